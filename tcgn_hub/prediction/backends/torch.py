"""Prediction by PyTorch, on the CPU or a GPU."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from tcgn_hub.devices import pick_device
from tcgn_hub.images.transforms import dihedral, to_input
from tcgn_hub.models.tcgn import TCGN


class TorchBackend:
    """A model of PyTorch, see `tcgn_hub.prediction.backends.Backend`.

    ``model``: it is put in eval mode; ``precision``: 'bfloat16' and 'float16' are those of autocast, in which the graph
    blocks stay in float32.
    """

    name = "torch"
    batch_size = 32

    def __init__(self, model: TCGN, precision: str = "float32") -> None:
        self.model, self.precision = model.eval(), precision

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def prepare(self, pixels: Any) -> torch.Tensor:
        """Resized and normalised on the device."""
        if isinstance(pixels, list):
            return torch.cat([self.prepare(patch[None]) for patch in pixels])
        if isinstance(pixels, np.ndarray):
            # PyTorch warns of arrays that it could not write to
            pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        return to_input(pixels.to(self.device).permute(0, 3, 1, 2))

    def forward(self, x: torch.Tensor, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values and features."""
        with torch.inference_mode(), self._autocast():
            maps = self.model.forward_features(dihedral(x, index))
            values = self.model.forward_head(maps)
            return values.float().cpu().numpy(), maps.float().mean(dim=(2, 3)).cpu().numpy()

    def to(self, device: str | torch.device) -> TorchBackend:
        """A copy on another device, for others may use this one; itself where it is there already."""
        wanted = torch.device(pick_device(str(device)))
        if wanted.type == self.device.type and wanted.index in (None, self.device.index):
            return self
        return TorchBackend(copy.deepcopy(self.model).to(wanted), self.precision)

    def _autocast(self) -> AbstractContextManager[Any]:
        # whoever calls within an autocast of theirs, as LazySlide does, keeps it
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.precision))
