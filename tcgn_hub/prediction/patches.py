"""Images in, gene expression out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tcgn_hub.errors import ImageError, PanelError
from tcgn_hub.images.pictures import read_image
from tcgn_hub.images.scale import Scale, given_scale
from tcgn_hub.images.transforms import center_crop, patch_px, to_input, to_rgb
from tcgn_hub.panels import load_panel
from tcgn_hub.units import UNITS

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from tcgn_hub.weights.info import ModelInfo

__all__ = ["Prediction", "TilePredictor", "predict"]


class OfModel:
    """What a prediction says of its genes by the model it comes from."""

    model: ModelInfo
    genes: list[str]
    values: np.ndarray
    distance: np.ndarray | None

    def significant(self, gene: str) -> bool | None:
        """Whether a gene was predicted better than chance on held-out tissue; None if that was not measured."""
        return None if self.model.significant is None else gene in self.model.significant

    def pcc(self, gene: str) -> float | None:
        """Held-out Pearson correlation of a gene; None if it was not measured."""
        return None if self.model.pcc is None else self.model.pcc[gene]

    def interval(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Where a measurement would lie, in ``model.level`` of the cases: lower and upper ends, each like ``values``.

        NaN for genes whose errors are not known; None if those of no gene are. See `tcgn_hub.evaluation.conformal` for
        what it promises.
        """
        if self.model.interval_radius is None:
            return None
        width = np.array([self.model.interval_radius[gene] for gene in self.genes], np.float32)
        low, high = self.values - width, self.values + width
        # this measure is never below 0
        return (np.maximum(low, 0) if self.model.units == UNITS else low), high

    @property
    def unlike(self) -> np.ndarray | None:
        """Which pictures are unlike the training tissue, bool, shape (n,); None if that is not known."""
        return None if self.distance is None else self.distance > 1


@dataclass(frozen=True)
class Prediction(OfModel):
    """Predicted expression of genes in images.

    Attributes:
        images: Names of the images, n of them.
        genes: Symbols of the columns.
        values: Predictions in ``units``, float32, shape (n, genes).
        units: Units of the values.
        model: What is known of the model, its held-out significance per gene included.
        scales: Scale of each image, and where it comes from.
        crop_px: Side of the central crop of each image that was predicted, in its pixels.
        failed: Images that could not be predicted, and why.
        spread: Standard deviation over the rotations and reflections that ``values`` are the mean of, float32, shape
            (n, genes); None if there was one.
        distance: How far the features of each image are from those of the training tissue; above 1 it is unlike it.
            float32, shape (n,); None if the weights do not describe their training tissue.
    """

    images: list[str]
    genes: list[str]
    values: np.ndarray
    units: str
    model: ModelInfo
    scales: list[Scale]
    crop_px: list[int]
    failed: dict[str, str] = field(default_factory=dict)
    spread: np.ndarray | None = None
    distance: np.ndarray | None = None


def predict(
    images: Sequence[str | Path | Image.Image | np.ndarray],
    *,
    weights: str | Path | None = None,
    genes: str | Path | Sequence[str] | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    patch_um: float | None = None,
    significant_only: bool = False,
    views: int = 1,
    batch_size: int = 32,
    device: str | None = None,
    backend: str | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
) -> Prediction:
    """Predict gene expression in the centre of patches.

    The centre is cut out and resized to 224: the field the weights were trained on where micrometres per pixel are
    known, and what that nominally was, at 0.5 um/px for 20x, where a magnification is given. For weights of the paper's
    patches that is its rule (56 px at 10x, 112 px at 20x, 224 px at 40x; Xiao et al. 2024). The scale is never guessed.

    Args:
        images: Paths, PIL images of any mode, or uint8 arrays of shape (H, W, 3).
        weights: A tag, model directory or file, see `tcgn_hub.load_model`; the default weights if None.
        genes: Genes to return, in this order, see `tcgn_hub.panels.load_panel`; all if None.
        mpp: Micrometres per pixel of all images; if neither this nor a magnification is given, that of each file.
        magnification: Of all images, such as 20.
        patch_um: Side of the patches in micrometres, if not that of the weights.
        significant_only: Leave out genes that could not be predicted better than chance on held-out tissue.
        views: Over how many rotations and reflections of a patch to average, 1 to 8; more than one give a spread.
        batch_size: Images per forward pass.
        device: Where to compute, such as 'cuda'; the CPU if None.
        backend: 'torch', or 'onnx' for weights that were exported, see `tcgn_hub.export_model`; if None, what the name
            of the weights says.
        progress: Show a progress bar on stderr where that is a terminal.
        on_error: On an image that cannot be used, 'raise', or 'skip' it and note it in ``Prediction.failed``.

    Raises:
        ImageError: An image cannot be read, states no scale where none is given, or is smaller than the crop; or none
            is left to predict.
        PanelError: A gene is not among the outputs of the model.
        WeightsError: The weights cannot be found, read or verified.
    """
    from huggingface_hub.utils import tqdm

    from tcgn_hub.prediction.backends import load_backend, run

    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    check_views(views)
    given = given_scale(mpp, magnification)
    model = load_backend(weights, backend=backend, device=device)
    info = model.info
    columns = gene_columns(info, genes, significant_only=significant_only)

    names: list[str] = []
    failed: dict[str, str] = {}
    parts: list[dict[str, np.ndarray]] = []
    scales: list[Scale] = []
    crop_px: list[int] = []
    batch: list[Any] = []

    def flush() -> None:
        if batch:
            parts.append(run(model, model.join(batch), views=views))
            batch.clear()

    hidden = None if progress and len(images) > batch_size else True
    for i, image in enumerate(tqdm(images, unit="image", disable=hidden)):
        name = str(image) if isinstance(image, (str, Path)) else f"image {i}"
        try:
            crop, scale = crop_image(image, name, given, patch_um, info)
        except ImageError as err:
            if on_error == "raise":
                raise
            failed[name] = str(err)
            continue
        names.append(name)
        scales.append(scale)
        crop_px.append(crop.shape[0])
        batch.append(model.prepare(crop[None]))
        if len(batch) == batch_size:
            flush()
    flush()
    if not names and failed:
        raise ImageError(
            next(iter(failed.values())) if len(failed) == 1 else f"None of {len(failed)} images is usable."
        )
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
    return Prediction(
        images=names,
        genes=[info.genes[i] for i in columns],
        values=arrays["values"][:, columns] if parts else np.empty((0, len(columns)), np.float32),
        units=info.units,
        model=info,
        scales=scales,
        crop_px=crop_px,
        failed=failed,
        spread=arrays["spread"][:, columns] if "spread" in arrays else None,
        distance=arrays.get("distance"),
    )


def check_views(views: int) -> None:
    """Refuse a number of rotations and reflections that a square does not have."""
    if not 1 <= views <= 8:
        raise ValueError(f"views is {views}, but must be from 1 to 8")


def gene_columns(
    info: ModelInfo, genes: str | Path | Sequence[str] | None, *, significant_only: bool = False
) -> list[int]:
    """Which outputs of a model are asked for.

    Raises:
        PanelError: A gene is not among the outputs, none is left, or significance was asked for but not measured.
    """
    index = {gene: i for i, gene in enumerate(info.genes)}
    wanted = list(info.genes) if genes is None else load_panel(genes)
    unknown = [gene for gene in wanted if gene not in index]
    if unknown:
        raise PanelError(
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}: not among the {len(index)} genes that"
            f" {info.name} predicts."
        )
    if significant_only:
        if info.significant is None:
            raise PanelError(
                f"Which genes {info.name} predicts better than chance was not measured; leave --significant-only out."
            )
        wanted = [gene for gene in wanted if gene in info.significant]
        if not wanted:
            raise PanelError(f"{info.name} predicts none of these genes better than chance.")
    return [index[gene] for gene in wanted]


def crop_image(
    image: str | Path | Image.Image | np.ndarray,
    name: str,
    given: Scale | None,
    patch_um: float | None,
    info: ModelInfo,
) -> tuple[np.ndarray, Scale]:
    """The central crop as uint8, shape (size, size, 3), and the scale of the image."""
    from PIL import Image

    scale = given
    if isinstance(image, (str, Path)):
        picture, stated = read_image(image)
        scale = given or stated
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"{name} is an array of {image.dtype} {image.shape}, not of uint8 (height, width, 3).")
        picture = Image.fromarray(image)
    else:
        picture = to_rgb(image)
    if scale is None:
        raise no_scale(name)
    try:
        return np.asarray(
            center_crop(picture, patch_px(scale.mpp, patch_um or scale.patch_um(info.patch_um, info.nominal_patch_um)))
        ), scale
    except ImageError as err:
        raise ImageError(f"{name}: {err}; check the scale, or give a larger image.") from err


def no_scale(name: str | Path) -> ImageError:
    """What to do about an image of unknown scale."""
    return ImageError(
        f"{name} does not say how large its pixels are: give --mpp with the micrometres per pixel, or --magnification."
    )


class TilePredictor:
    """Genes of tiles that another package reads, such as LazySlide: ``predict(image) -> {gene: values}``.

    Args:
        weights: A tag, model directory or file, see `tcgn_hub.load_model`; the default weights if None.
        device: Where to compute, such as 'cuda'; the CPU if None.

    Attributes:
        info: What is known of the model; tiles should cover ``info.patch_um`` micrometres.
    """

    def __init__(self, weights: str | Path | None = None, *, device: str | None = None) -> None:
        from tcgn_hub.models.loading import load_model

        self.device = device or "cpu"
        self.model, self.info = load_model(weights, device=device)

    def predict(self, image: torch.Tensor | np.ndarray) -> dict[str, np.ndarray]:
        """Values of every gene, float32, shape (B,).

        Args:
            image: RGB tiles before any normalisation: a tensor (B, 3, H, W) or (3, H, W), or an array (B, H, W, 3) or
                (H, W, 3); uint8, or float from 0 to 1.

        Raises:
            ImageError: The shape is another one, or float values lie outside of 0 to 1.
        """
        import torch

        pixels = torch.from_numpy(image.copy()) if isinstance(image, np.ndarray) else image
        pixels = pixels[None] if pixels.ndim == 3 else pixels
        if isinstance(image, np.ndarray):
            pixels = pixels.movedim(-1, 1)
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ImageError(f"Tiles of shape {tuple(image.shape)} are not RGB images.")
        if pixels.is_floating_point():
            if pixels.numel() and not (pixels.min() >= 0 and pixels.max() <= 1):
                raise ImageError("Tiles of floating point should be from 0 to 1, before any normalisation.")
            pixels = pixels.float() * 255
        with torch.inference_mode():
            values = self.model(to_input(pixels.to(self.device))).float().cpu().numpy()
        return {gene: values[:, i] for i, gene in enumerate(self.info.genes)}
