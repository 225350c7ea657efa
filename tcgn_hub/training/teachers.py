"""Frozen networks of timm as teachers: the maps that a student is to give, brought to its grids, and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tcgn_hub.data.fields import CHUNK, Fields, chunk, kept
from tcgn_hub.errors import WeightsError
from tcgn_hub.evaluation.encoders import Encoder, load_encoder
from tcgn_hub.progress import Progress
from tcgn_hub.text import one_line

GRIDS = (56, 28, 14, 7)
"""Sides of the maps of a student: of its first three stages, and of its last map."""

LARGEST = 8.0
"""Standard deviations that are believed of what is to be learned."""

_BATCH = 32
_ALIKE = 0.25  # how far the side of a teacher's map may be from that of a student's, as a share
_DEEP = 2 / 3  # of the blocks of a network whose maps are all of one size
_LARGEST_MAP = 64 * 56 * 56  # numbers; larger ones cost more to keep than they teach


@dataclass(frozen=True)
class Target:
    """One map of a teacher and the map of the student that is to tell it."""

    source: int  # index into the teacher's intermediate maps; -1: its last map
    stage: int  # of the student, 3 for its last map
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the map as it is compared."""
        return self.channels, GRIDS[self.stage], GRIDS[self.stage]


class Teacher:
    """A frozen network, and which of its maps a student learns.

    ``targets``: the maps; ``mean`` and ``std``: of their channels one after the other, over tissue, float32, known once
    `look` was called.
    """

    def __init__(self, name: str, *, device: str = "auto") -> None:
        self.encoder: Encoder = load_encoder(name, device=device)
        self.name = name
        self.targets = self._find()
        self.mean: np.ndarray | None = None
        self.std: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Numbers that are kept of a square."""
        return sum(int(np.prod(target.shape)) for target in self.targets)

    @property
    def fingerprint(self) -> str:
        """Of the network and of what is taken of it."""
        taken = json.dumps([(target.source, target.stage, target.channels) for target in self.targets])
        return hashlib.sha256((self.encoder.fingerprint + taken).encode()).hexdigest()

    @property
    def license(self) -> str:
        """Licence of its parameters by what it states; 'not stated' if it does not."""
        return str((getattr(self.encoder.model, "pretrained_cfg", None) or {}).get("license") or "not stated")

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Its maps one after the other, float16, shape (n, width), of squares, uint8, shape (n, 3, side, side)."""
        parts = []
        for start in range(0, len(pixels), _BATCH):
            maps = self._maps(self.encoder.images(np.asarray(pixels[start : start + _BATCH])))
            parts.append(np.concatenate([m.flatten(1).cpu().numpy() for m in maps], axis=1))
        values = np.concatenate(parts)
        if not np.isfinite(values).all():
            raise WeightsError(f"Encoder {self.name} gives values that are not finite; it cannot teach.")
        return values

    def look(self, squares: Sequence[np.ndarray]) -> None:
        """Learn how its channels vary, from its own maps of some tissue, each (n, width)."""
        values = np.concatenate(list(squares))
        means, stds, at = [], [], 0
        for target in self.targets:
            size = int(np.prod(target.shape))
            of = values[:, at : at + size].reshape(len(values), target.channels, -1)
            means.append(of.mean(axis=(0, 2), dtype=np.float64))
            stds.append(of.std(axis=(0, 2), dtype=np.float64))
            at += size
        self.mean = np.concatenate(means).astype(np.float32)
        # a channel that hardly varies must not drown the others
        least = np.concatenate([np.full(len(std), 0.1 * np.median(std) + 1e-6) for std in stds])
        self.std = np.maximum(np.concatenate(stds), least).astype(np.float32)

    def maps(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Standardised maps, float32, shape (n, channels, side, side) each, of what a call gave."""
        assert self.mean is not None
        assert self.std is not None
        out, at, channel = [], 0, 0
        for target in self.targets:
            size = int(np.prod(target.shape))
            of = values[:, at : at + size].float().reshape(len(values), *target.shape)
            mean, std = (
                torch.from_numpy(v[channel : channel + target.channels]).to(of.device).view(1, -1, 1, 1)
                for v in (self.mean, self.std)
            )
            out.append(((of - mean) / std).clamp(-LARGEST, LARGEST))
            at, channel = at + size, channel + target.channels
        return out

    def chunk(self, fields: Fields, number: int, folder: Path) -> np.ndarray:
        """`__call__` for a chunk of squares, computed now or kept from before."""
        key = hashlib.sha256((fields.fingerprint + self.fingerprint).encode()).hexdigest()[:16]
        rows = min(CHUNK, len(fields) - number * CHUNK)
        return kept(
            folder / f"teacher-{key}-{number:05d}.npy",
            lambda: self(chunk(fields, number, folder)),
            (rows, self.width),
            np.dtype(np.float16),
        )

    def all_chunks(self, fields: Fields, folder: Path, *, progress: bool = False) -> list[np.ndarray]:
        """The same of all chunks."""
        numbers = Progress(fields.chunks, "chunk", name=f"asking {self.name}", shown=progress).over(
            range(fields.chunks)
        )
        return [self.chunk(fields, number, folder) for number in numbers]

    @torch.inference_mode()
    def _maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        final, between = self._forward(x)
        out = []
        for target in self.targets:
            of = final if target.source == -1 else between[target.source]
            side = GRIDS[target.stage]
            if of.shape[-2:] != (side, side):
                of = F.interpolate(of.float(), size=(side, side), mode="bilinear", antialias=True)
            out.append(of.half())
        return out

    def _forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The last map, and those before it, each (n, channels, side, side)."""
        model: torch.nn.Module = self.encoder.model
        final, between = model.forward_intermediates(x)  # type: ignore[operator]
        if final.ndim == 3:
            skipped = getattr(model, "num_prefix_tokens", 0) or 0
            height, width = between[-1].shape[-2:]
            final = final[:, skipped:].transpose(1, 2).reshape(len(x), -1, height, width)
        elif final.ndim == 4 and final.shape[1] != between[-1].shape[1] and final.shape[3] == between[-1].shape[1]:
            final = final.permute(0, 3, 1, 2)
        return final, between

    def _find(self) -> list[Target]:
        """The teacher's last map, and of those before it the deepest one of about the size of each stage's."""
        size = self.encoder.size
        try:
            with torch.inference_mode():
                final, between = self._forward(torch.zeros(1, 3, size, size, device=self.encoder.device))
            sides = [of.shape[-1] for of in between]
            channels = final.shape[1] if final.ndim == 4 else 0
        except (AttributeError, NotImplementedError, RuntimeError, ValueError, IndexError) as err:
            raise WeightsError(
                f"Encoder {self.name} gives no maps of what it sees ({one_line(str(err), most=120)}); give a network of"
                " timm with forward_intermediates."
            ) from err
        if not channels or final.shape[-1] < 2:
            raise WeightsError(f"Encoder {self.name} gives one vector a picture and no map; it cannot teach.")
        targets = [Target(-1, 3, channels)]
        if len(set(sides)) == 1 and len(sides) > 1:
            deep = round(_DEEP * len(sides)) - 1
            return [*targets, Target(deep, 2, between[deep].shape[1])]
        for stage, side in enumerate(GRIDS[:3]):
            near = [i for i, own in enumerate(sides) if abs(own * 224 / size - side) <= _ALIKE * side]
            target = Target(near[-1], stage, between[near[-1]].shape[1]) if near else None
            if target is not None and np.prod(target.shape) <= _LARGEST_MAP:
                targets.append(target)
        return targets
