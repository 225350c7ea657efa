"""What a frozen trunk sees of spots, computed once and kept: all that training of the head needs."""

from __future__ import annotations

import copy
import hashlib
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tcgn_hub.data.crops import SpotCrops
from tcgn_hub.errors import OutputError
from tcgn_hub.evaluation.encoders import fingerprint
from tcgn_hub.files import make_folder, write_npz
from tcgn_hub.images.transforms import dihedral, to_input
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.progress import Progress
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.loop import fits_float16

_logger = logging.getLogger(__name__)

# every batch has this size, the last one filled up: only then are the features of a patch the same to the last bit
# whatever stands beside it, and may be mixed with those that another run has kept
_BATCH = 16


class TrunkFeatures:
    """Pooled features of patches by a trunk that does not change any more.

    ``model``: a TCGN; its trunk is put in eval mode whenever it computes; ``processes``: those that share the work;
    ``cache``: folder to keep the features in, None for none. A spot's are found by its pixels and the trunk's
    parameters, so that another panel, or a run that was killed, computes none again; ``progress``: show how far it is,
    see `tcgn_hub.progress`.
    """

    def __init__(self, model: Any, processes: Processes, *, cache: str | Path | None = None, progress: bool = False):
        self._model, self._processes, self._progress = model, processes, progress
        self._cache = None if cache is None or not processes.first else Path(cache)
        trunk = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
        self._trunk = fingerprint(trunk, [type(model).__name__, str(model.head.global_pool), processes.kind])

    def of(self, name: str, crops: SpotCrops, view: int = 0) -> np.ndarray:
        """Features, float32, shape (n, d), of the crops of a section; ``view``: as of `dihedral`."""
        count, processes = len(crops.pixels), self._processes
        features, known = np.zeros((count, self._model.num_features), np.float32), np.zeros(count)
        if self._cache is not None:
            what = re.sub(r"[^\w.-]", "_", name)
            path = self._cache / f"{what}-{self._trunk[:16]}-{view}.npz"
            keys = [key for patches in crops.patches() for key in keys_of(patches)]
            kept = _kept(path, self._model.num_features)
            for i, key in enumerate(keys):
                if key in kept:
                    features[i], known[i] = kept[key], 1
        missing = np.flatnonzero(processes.sums(known) == 0)
        if not len(missing):
            return processes.sums(features).astype(np.float32)
        mine = missing[processes.rank :: processes.count]
        features[mine] = self._computed(name, crops, mine, view)
        features = processes.sums(features).astype(np.float32)
        if self._cache is not None:
            # those of other spots stay: another panel may have left out these
            _keep(path, kept | dict(zip(keys, features, strict=True)))
        return features

    def _computed(self, name: str, crops: SpotCrops, rows: np.ndarray, view: int) -> np.ndarray:
        """Features of some of the crops, shape (rows, d)."""
        features = np.empty((len(rows), self._model.num_features), np.float32)
        training = self._model.training
        self._model.eval()
        with Progress(len(rows), "spot", name=f"features of {name}", shown=self._progress) as bar:
            for start in range(0, len(rows), _BATCH):
                some = crops.pixels[rows[start : start + _BATCH]]
                (patches,) = SpotCrops(some, crops.patch_px).patches(_BATCH)
                filled = np.concatenate([patches, np.repeat(patches[:1], _BATCH - len(patches), axis=0)])
                with torch.inference_mode():
                    x = dihedral(to_input(torch.from_numpy(filled).to(self._processes.device)), view)
                    pooled = pooled_of(self._model, self._model.forward_features(x)).float().cpu().numpy()
                features[start : start + _BATCH] = pooled[: len(patches)]
                bar.update(len(patches))
        self._model.train(training)
        return features


def pooled_of(model: Any, maps: torch.Tensor) -> torch.Tensor:
    """What the head of a model makes of the final map first, shape (n, d)."""
    return model.head.flatten(model.head.global_pool(maps))


class PooledHead(nn.Module):
    """The head of a TCGN on pooled features: what is trained of a model whose trunk is frozen."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head = model.head

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Values, shape (n, genes), of pooled features, shape (n, d)."""
        return self.head.fc(self.head.pre_logits(self.head.drop(pooled)))


def with_head(model: Any, trained: PooledHead) -> nn.Module:
    """A model that shares its trunk with another, under a trained head."""
    whole = copy.copy(model)
    whole._modules = {**model._modules, "head": trained.head}
    return whole


def round_trunk(model: Any) -> None:
    """Round the trunk of a model to float16, as it is stored."""
    if not fits_float16(model):
        return
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not key.startswith("head."):
            value.copy_(value.half())


class KnownFeatures(TorchBackend):
    """A model that knows the features of some patches already: of those it runs the head alone.

    ``model``: a TCGN; ``features``: float32, shape (d,), of a patch by its key, see `keys_of`.
    """

    def __init__(self, model: Any, features: Mapping[bytes, np.ndarray]) -> None:
        super().__init__(model)
        self._features = features
        self._prepared: tuple[Any, list[bytes]] = (None, [])

    def prepare(self, pixels: Any) -> torch.Tensor:
        """Resized and normalised on the device."""
        x = super().prepare(pixels)
        known = self._features and isinstance(pixels, np.ndarray)
        self._prepared = x, keys_of(pixels.transpose(0, 3, 1, 2)) if known else []
        return x

    def start(self, x: torch.Tensor, index: int = 0) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Begin `forward`."""
        last, keys = self._prepared
        if last is not x or index or not keys or not all(key in self._features for key in keys):
            return super().start(x, index)
        pooled = np.stack([self._features[key] for key in keys])
        with torch.inference_mode():
            values = PooledHead(self.model)(torch.from_numpy(pooled).to(self.device))
        return lambda: (values.float().cpu().numpy(), pooled)


def keys_of(patches: np.ndarray) -> list[bytes]:
    """What tells RGB patches, uint8, shape (n, 3, side, side), from others: of each a hash of its pixels."""
    return [hashlib.sha256(patch.tobytes()).digest() for patch in patches]


def known_features(crops: SpotCrops, features: np.ndarray) -> dict[bytes, np.ndarray]:
    """Features, shape (n, d), by the keys of their patches."""
    return dict(zip((key for patches in crops.patches() for key in keys_of(patches)), features, strict=True))


def _kept(path: Path, width: int) -> dict[bytes, np.ndarray]:
    """The features of a file by the key of their patch; none if there is no file, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, features = file["keys"], file["features"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return {}
    if keys.dtype != np.uint8 or keys.shape != (len(features), 32):
        return {}
    if features.dtype != np.float32 or features.shape != (len(keys), width):
        return {}
    return {key.tobytes(): row for key, row in zip(keys, features, strict=True)}


def _keep(path: Path, kept: dict[bytes, np.ndarray]) -> None:
    keys = np.frombuffer(b"".join(kept), np.uint8).reshape(len(kept), 32)
    try:
        make_folder(path.parent)
        write_npz(path, {"keys": keys, "features": np.stack(list(kept.values()))})
    except OutputError as err:
        _logger.warning("Features are not kept, and will have to be computed again: %s", err)
