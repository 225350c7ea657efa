"""Images in, gene expression out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tcgn_hub.data.images import read_image
from tcgn_hub.data.panels import load_panel
from tcgn_hub.data.transforms import CROP_PX, center_crop, to_input, to_rgb
from tcgn_hub.errors import ImageError, PanelError

if TYPE_CHECKING:
    from PIL import Image

    from tcgn_hub.registry import ModelInfo

__all__ = ["Prediction", "predict"]


@dataclass(frozen=True)
class Prediction:
    """Predicted expression of genes in images.

    Attributes:
        images: Names of the images, n of them.
        genes: Symbols of the columns.
        values: Predictions in ``units``, float32, shape (n, genes).
        units: Units of the values.
        model: What is known of the model, its held-out reliability per gene included.
        magnification: Magnification the images were taken to have.
        crop_px: Side of the central crop that was predicted, in image pixels.
        failed: Images that could not be predicted, and why.
    """

    images: list[str]
    genes: list[str]
    values: np.ndarray
    units: str
    model: ModelInfo
    magnification: int
    crop_px: int
    failed: dict[str, str] = field(default_factory=dict)

    def reliable(self, gene: str) -> bool | None:
        """Whether a gene was predicted better than chance on held-out tissue; None if that was not measured."""
        return None if self.model.reliable is None else gene in self.model.reliable

    def pcc(self, gene: str) -> float | None:
        """Held-out Pearson correlation of a gene; None if it was not measured."""
        return None if self.model.pcc is None else self.model.pcc[gene]


def predict(
    images: Sequence[str | Path | Image.Image | np.ndarray],
    *,
    weights: str | Path | None = None,
    genes: str | Path | Sequence[str] | None = None,
    magnification: int = 20,
    batch_size: int = 32,
    device: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
) -> Prediction:
    """Predict gene expression in the centre of patches.

    The central 56 px (10x), 112 px (20x) or 224 px (40x) are cut out and resized to 224 (Xiao et al. 2024).

    Args:
        images: Paths, PIL images of any mode, or uint8 arrays of shape (H, W, 3).
        weights: A tag, model directory or file, see `tcgn_hub.load_model`; the default weights if None.
        genes: Genes to return, in this order, see `tcgn_hub.data.panels.load_panel`; all if None.
        magnification: Of the images: 10, 20 or 40.
        batch_size: Images per forward pass.
        device: Where to compute, such as 'cuda'; the CPU if None.
        progress: Show a progress bar on stderr where that is a terminal.
        on_error: On an image that cannot be used, 'raise', or 'skip' it and note it in ``Prediction.failed``.

    Raises:
        ImageError: An image cannot be read or is smaller than the crop, or none is left to predict.
        PanelError: A gene is not among the outputs of the model.
        WeightsError: The weights cannot be found, read or verified.
    """
    import torch
    from huggingface_hub.utils import tqdm

    from tcgn_hub.registry import load_model

    if magnification not in CROP_PX:
        raise ImageError(f"Magnification {magnification} has no crop; give one of {', '.join(map(str, CROP_PX))}.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    crop_px = CROP_PX[magnification]
    model, info = load_model(weights, device=device)
    wanted = list(info.genes) if genes is None else load_panel(genes)
    index = {gene: i for i, gene in enumerate(info.genes)}
    unknown = [gene for gene in wanted if gene not in index]
    if unknown:
        raise PanelError(
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}: not among the {len(index)} genes that"
            f" {info.name} predicts."
        )
    columns = [index[gene] for gene in wanted]

    names: list[str] = []
    failed: dict[str, str] = {}
    values: list[np.ndarray] = []
    batch: list[np.ndarray] = []

    def flush() -> None:
        if batch:
            pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).to(device or "cpu")
            with torch.inference_mode():
                values.append(model(to_input(pixels)).float().cpu().numpy()[:, columns])
            batch.clear()

    hidden = None if progress and len(images) > batch_size else True
    for i, image in enumerate(tqdm(images, unit="image", disable=hidden)):
        name = str(image) if isinstance(image, (str, Path)) else f"image {i}"
        try:
            crop = _crop(image, name, crop_px)
        except ImageError as err:
            if on_error == "raise":
                raise
            failed[name] = str(err)
            continue
        names.append(name)
        batch.append(crop)
        if len(batch) == batch_size:
            flush()
    flush()
    if not names and failed:
        raise ImageError(
            next(iter(failed.values())) if len(failed) == 1 else f"None of {len(failed)} images is usable."
        )
    return Prediction(
        images=names,
        genes=wanted,
        values=np.concatenate(values) if values else np.empty((0, len(wanted)), np.float32),
        units=info.units,
        model=info,
        magnification=magnification,
        crop_px=crop_px,
        failed=failed,
    )


def _crop(image: str | Path | Image.Image | np.ndarray, name: str, size: int) -> np.ndarray:
    """The central crop as uint8, shape (size, size, 3)."""
    from PIL import Image

    if isinstance(image, (str, Path)):
        picture = read_image(image)
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"{name} is an array of {image.dtype} {image.shape}, not of uint8 (height, width, 3).")
        picture = Image.fromarray(image)
    else:
        picture = to_rgb(image)
    try:
        return np.asarray(center_crop(picture, size))
    except ImageError as err:
        raise ImageError(
            f"{name}: {err}; give a lower --magnification if the image has one, or a larger image."
        ) from err
