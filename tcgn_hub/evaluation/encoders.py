"""What frozen networks of timm see of the spots of a section: features for ridge regression."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.data.crops import SpotCrops, crops_fingerprint, spot_crops
from tcgn_hub.data.sections import Section
from tcgn_hub.devices import pick_device
from tcgn_hub.errors import WeightsError
from tcgn_hub.files import make_folder, writing
from tcgn_hub.progress import Progress
from tcgn_hub.text import one_line
from tcgn_hub.weights.hub import explain, http_error

if TYPE_CHECKING:
    import torch

_BATCH = 32


@dataclass(frozen=True)
class Encoder:
    """A frozen network of timm, and how it wants its images."""

    name: str  # what it was called
    model: torch.nn.Module  # gives features, shape (n, d), or maps of them
    device: str
    size: int  # side of its input in pixels; the whole patch is resized to it, nothing is cut off
    interpolation: str  # of resizing: bilinear, bicubic, ...
    mean: tuple[float, ...]  # of an image from 0 to 1, by channel
    std: tuple[float, ...]
    fingerprint: str  # of its architecture, its parameters, and how it wants its images

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Features, float32, shape (n, d), of RGB patches, uint8, shape (n, 3, side, side) of any side."""
        import torch

        with torch.inference_mode():
            values = self.model(self.images(patches)).float().cpu().numpy()
        # networks without pooling give maps (n, d, h, w) or tokens (n, tokens, d)
        return values.mean(axis={2: (), 3: 1, 4: (2, 3)}[values.ndim])

    def images(self, patches: np.ndarray) -> torch.Tensor:
        """Its input, float32, shape (n, 3, size, size), of RGB patches, uint8, shape (n, 3, side, side)."""
        import torch
        from PIL import Image

        resample = Image.Resampling[self.interpolation.upper()]
        shape = self.size, self.size
        images = [Image.fromarray(patch).resize(shape, resample) for patch in patches.transpose(0, 2, 3, 1)]
        x = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
        x = (x - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(self.device)


def load_encoder(name: str, *, device: str = "auto") -> Encoder:
    """A network of timm with its trained parameters, without its classifier.

    ``name``: a model of timm, 'hf-hub:organisation/name', or 'local-dir:folder' with ``config.json`` and parameters, as
    ``timm.models.save_for_hf`` writes them; ``device``: as of `tcgn_hub.load`.
    """
    import timm
    from huggingface_hub.errors import EntryNotFoundError
    from safetensors import SafetensorError

    device = pick_device(device)
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0).eval().requires_grad_(False)
        config = timm.data.resolve_model_data_config(model)
    except (EntryNotFoundError, http_error()) as err:
        repo = name.removeprefix("hf-hub:")
        raise explain(err, repo if "/" in repo else f"timm/{repo}", "main", "the parameters") from err
    except (
        OSError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        EOFError,
        SafetensorError,
    ) as err:
        reason = one_line(str(err), most=200) or type(err).__name__
        raise WeightsError(
            f"Encoder {name} cannot be had ({reason}); give a model of timm that has trained parameters,"
            " hf-hub:ORG/NAME, or local-dir:DIR with config.json and parameters."
        ) from err
    size, mean, std = config["input_size"][-1], tuple(config["mean"]), tuple(config["std"])
    how = [type(model).__name__, size, config["interpolation"], mean, std]
    return Encoder(
        name, model.to(device), device, size, config["interpolation"], mean, std, fingerprint(model.state_dict(), how)
    )


def encoder_features(
    encoder: Encoder,
    section: Section,
    *,
    patch_um: Sequence[float] = (),
    crop_px: int | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Features of each spot's patches, those of several sizes side by side, float32, shape (spots, sizes * d).

    ``encoder``: the network; ``section``: the section; ``patch_um``: sides of the patches in micrometres; without any,
    ``crop_px``: the side of one in pixels of the image; ``cache``: folder to keep the features in. They are computed
    anew if the network, the image, or anything else that they follow from has changed; ``progress``: show how far it
    is, see `tcgn_hub.progress`.
    """
    fields: list[dict[str, Any]] = [{"patch_um": um} for um in patch_um] or [{"crop_px": crop_px}]
    return np.concatenate([_field(encoder, section, field, cache, progress) for field in fields], axis=1)


def _field(
    encoder: Encoder, section: Section, field: dict[str, Any], cache: str | Path | None, progress: bool
) -> np.ndarray:
    """Features of one patch of each spot, shape (spots, d)."""
    path = None
    if cache is not None:
        follows = crops_fingerprint(section, most_px=encoder.size, **field) + encoder.fingerprint
        what = re.sub(r"[^\w.-]+", "_", f"{section.name}-{encoder.name.rpartition('/')[2]}")
        path = Path(cache) / f"{what}-{hashlib.sha256(follows.encode()).hexdigest()[:16]}.npy"
        kept = _kept(path, len(section.spots))
        if kept is not None:
            return kept
    crops = spot_crops(section, most_px=encoder.size, progress=progress, **field)
    features = _encode(encoder, crops, section.name, progress)
    if path is not None:
        make_folder(path.parent)
        with writing(path) as part, part.open("wb") as file:
            np.save(file, features)
    return features


def _encode(encoder: Encoder, crops: SpotCrops, name: str, progress: bool) -> np.ndarray:
    parts = []
    with Progress(len(crops.pixels), "spot", name=f"{encoder.name} of {name}", shown=progress) as bar:
        for patches in crops.patches(_BATCH):
            parts.append(encoder(patches))
            bar.update(len(patches))
    return np.concatenate(parts)


def _kept(path: Path, spots: int) -> np.ndarray | None:
    """The features of a file, None if there is none or it is damaged."""
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == spots and features.dtype == np.float32 else None


def short_name(encoder: str) -> str:
    """What a frozen network is called, wherever it is from or lies."""
    return Path(encoder).name if encoder.startswith("local-dir:") else encoder.removeprefix("hf-hub:")


def encoder_labels(encoders: Sequence[str]) -> dict[str, str]:
    """Names of frozen networks by the label of their baseline, without folders where that leaves them apart."""
    short = [short_name(name) for name in encoders]
    apart = len(set(short)) == len(set(encoders))
    return {f"ridge {label}": name for label, name in zip(short if apart else encoders, encoders, strict=True)}


def fingerprint(parameters: Mapping[str, torch.Tensor], how: Sequence[Any]) -> str:
    """Of parameters and statistics by name, and of what else decides the features, as plain values."""
    import torch

    digest = hashlib.sha256(json.dumps(how).encode())
    for key, value in parameters.items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
