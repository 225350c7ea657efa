"""Images in, gene expression out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.images.pictures import read_image
from tcgn_hub.images.scale import Scale, given_scale
from tcgn_hub.images.transforms import center_crop, patch_px, to_rgb
from tcgn_hub.panels import load_panel
from tcgn_hub.result import Result, gene_table

if TYPE_CHECKING:
    from PIL import Image

    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.weights.info import WeightsInfo


def predict_patches(
    predictor: Predictor,
    images: Sequence[str | Path | Image.Image | np.ndarray],
    *,
    genes: str | Path | Sequence[str] | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    patch_um: float | None = None,
    significant_only: bool = False,
    tta: int = 1,
    features: bool = False,
    batch_size: int = 32,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
) -> Result:
    """Predict gene expression in the centre of patches.

    The centre is cut out and resized to 224: the patch the weights were trained on where micrometres per pixel are
    known, and what that nominally was, at 0.5 um/px for 20x, where a magnification is given. For weights of the paper's
    patches that is its rule (56 px at 10x, 112 px at 20x, 224 px at 40x; Xiao et al. 2024). The scale is never guessed.

    Args:
        predictor: The weights.
        images: Paths, PIL images of any mode, or uint8 arrays of shape (H, W, 3).
        genes: Genes to return, in this order, see `tcgn_hub.panels.load_panel`; all if None.
        mpp: Micrometres per pixel of all images; if neither this nor a magnification is given, that of each file.
        magnification: Of all images, such as 20.
        patch_um: Side of the patches in micrometres, if not that of the weights.
        significant_only: Leave out genes that could not be predicted better than chance on held-out tissue.
        tta: Over how many rotations and reflections of a patch to average, 1 to 8; more than one give ``tta_std``.
        features: Keep the 1280 features of each patch.
        batch_size: Images per forward pass.
        on_error: On an image that cannot be used, 'raise', or 'skip' it and note it in ``Result.failed``.
        progress: Show a progress bar on stderr where that is a terminal.

    Raises:
        ImageError: An image cannot be read, states no scale where none is given, or is smaller than the crop; or none
            is left to predict.
        PanelError: A gene is not among the outputs of the weights.
    """
    from huggingface_hub.utils import tqdm

    given = check_options(
        genes=genes,
        mpp=mpp,
        magnification=magnification,
        patch_um=patch_um,
        tta=tta,
        batch_size=batch_size,
        on_error=on_error,
    )
    info = predictor.info
    columns = predictor.columns(genes, significant_only=significant_only)
    cut: list[tuple[str, Scale, int]] = []
    failed: dict[str, str] = {}
    parts: list[dict[str, np.ndarray]] = []
    batch: list[np.ndarray] = []

    def flush() -> None:
        if batch:
            part = predictor.run(batch, tta=tta, features=features)
            parts.append({key: a[:, columns] if key in ("values", "tta_std") else a for key, a in part.items()})
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
        cut.append((name, scale, len(crop)))
        batch.append(crop)
        if len(batch) == batch_size:
            flush()
    flush()
    if not parts and failed:
        raise ImageError(
            next(iter(failed.values())) if len(failed) == 1 else f"None of {len(failed)} images is usable."
        )
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
    return Result(
        X=arrays.get("values", np.empty((0, len(columns)), np.float32)),
        obs=patch_table(cut, arrays),
        var=gene_table(info, columns),
        uns={"failed": failed, **predictor.metadata(tta)},
        layers={"tta_std": arrays["tta_std"]} if "tta_std" in arrays else {},
        obsm={"features": arrays["features"]} if "features" in arrays else {},
    )


def patch_table(cut: Sequence[tuple[str, Scale, int]], said: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`Result.obs` of patches, of which name, scale and side in pixels are known, and what the weights say of them."""
    return {
        "name": np.array([name for name, _, _ in cut], dtype=object),
        "mpp": np.array([scale.mpp for _, scale, _ in cut], float),
        "scale_source": np.array([scale.source for _, scale, _ in cut], dtype=object),
        "patch_um": np.array([side * scale.mpp for _, scale, side in cut], float),
        "patch_px": np.array([side for _, _, side in cut], int),
        **({"ood": said["ood"]} if "ood" in said else {}),
    }


def check_options(
    *,
    genes: str | Path | Sequence[str] | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    patch_um: float | None = None,
    tta: int = 1,
    batch_size: int = 32,
    on_error: str = "raise",
    **_: Any,
) -> Scale | None:
    """Refuse options that no weights could make sense of; gives the scale that they state."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    if not 1 <= tta <= 8:
        raise ValueError(f"tta is {tta}, but must be from 1 to 8")
    if patch_um is not None and not patch_um > 0:
        raise ValueError(f"patch_um is {patch_um}, but must be above 0")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}, but must be 'raise' or 'skip'")
    if genes is not None:
        load_panel(genes)
    return given_scale(mpp, magnification)


def crop_image(
    image: str | Path | Image.Image | np.ndarray,
    name: str,
    given: Scale | None,
    patch_um: float | None,
    info: WeightsInfo,
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
