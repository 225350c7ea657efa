"""Images in, gene expression out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tcgn_hub.errors import ImageError, NoTissueError
from tcgn_hub.images.quality import graded, none_good, too_poor
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.readers.picture import ArraySlide, slide_of
from tcgn_hub.images.scale import Scale, chosen_scale, given_scale
from tcgn_hub.images.slides import Slide
from tcgn_hub.images.tissue import shows_tissue
from tcgn_hub.images.transforms import INPUT_PX, patch_px
from tcgn_hub.panels import named_genes
from tcgn_hub.progress import Progress
from tcgn_hub.result import Result, gene_table
from tcgn_hub.text import on_command_line, one_line, option, printable

if TYPE_CHECKING:
    from PIL import Image

    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.weights.info import WeightsInfo

_SCALES = ("auto", "strict")
_LARGEST_PX = 1024  # side of a picture that is taken for one patch although it states no scale
_LEAST_PX = 16  # side of a picture in which tissue can be seen
_SLIDE_PX, _SLIDE_PATCHES = 2048, 4  # a picture whose sides are longer, in pixels and in patches, is a slide
_LOOKED_AT = 32  # images that are opened before weights are loaded


@dataclass(frozen=True)
class Cut:
    """What the model is shown of an image."""

    name: str
    size: tuple[int, int]  # (width, height) of the image in pixels
    side: int  # in pixels of the image
    scale: Scale | None  # None if it is not known
    trained_um: float  # side of the patches that the weights were trained on
    notes: tuple[str, ...] = ()  # what was done that the user may not expect

    @property
    def corner(self) -> tuple[int, int]:
        """Upper left corner in pixels of the image, (x, y)."""
        left, top = ((length - self.side) // 2 for length in self.size)
        return left, top

    @property
    def patch_um(self) -> float:
        """Side of what is shown in micrometres; NaN if it is not known."""
        return self.side * self.scale.mpp if self.scale else float("nan")


def predict_patches(
    predictor: Predictor,
    images: Sequence[str | Path | Image.Image | np.ndarray],
    *,
    genes: str | Path | Sequence[str] | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    patch_um: float | None = None,
    scale: Literal["auto", "strict"] = "auto",
    force_scale: bool = False,
    force: bool = False,
    min_quality: float = 0,
    significant_only: bool = False,
    tta: int = 1,
    features: bool = False,
    batch_size: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
) -> Result:
    """Predict gene expression in the centre of patches.

    The centre is cut out and resized to 224: the patch the weights were trained on where micrometres per pixel are
    known, and what that nominally was, at 0.5 um/px for 20x, where a magnification is given. For weights of the paper's
    patches that is its rule (56 px at 10x, 112 px at 20x, 224 px at 40x; Xiao et al. 2024).

    A picture that shows less than that is taken as a whole, and so is one of at most 1024 px a side that states no
    scale; ``Result.notes`` says so, and ``obs`` how much is shown, NaN where it is not known. If it is not square, it
    is the largest central square. Pictures are turned upright as their EXIF orientation says.

    Args:
        predictor: The weights.
        images: Paths, PIL images of any mode, or uint8 arrays of shape (H, W, 3).
        genes: Genes to return, in this order, see `tcgn_hub.panels.load_panel`; retired and common names and Ensembl
            ids of the panel's genes are understood, and noted; all if None or "all".
        mpp: Micrometres per pixel of all images; if neither this nor a magnification is given, that of each file.
        magnification: Of all images, such as 20.
        patch_um: Side of the patches in micrometres, if not that of the weights.
        scale: Whether a picture without a scale, or smaller than a patch, is taken as a whole, 'auto', or refused,
            'strict'.
        force_scale: Believe a given scale although a file states one that is more than 40 % off.
        force: Also predict what shows no tissue.
        min_quality: Leave out patches of a lower quality, from 0 to 1, see `tcgn_hub.images.quality`; they are listed
            in ``Result.left_out``.
        significant_only: Leave out genes that could not be predicted better than chance on held-out tissue.
        tta: Over how many rotations and reflections of a patch to average, 1 to 8; more than one give ``tta_std``.
        features: Keep the 1280 features of each patch.
        batch_size: Images per forward pass; what suits the device if None.
        on_error: On an image that cannot be used, 'raise', or 'skip' it and note it in ``Result.failed``.
        progress: Show a progress bar on stderr where that is a terminal, and else log a line a minute.

    Raises:
        ImageError: An image cannot be read, is a slide, states no scale and is above 1024 px, states another scale than
            the one given, or, with 'strict', states none or is smaller than a patch; or none is left to predict.
        NoTissueError: An image shows no tissue, or no patch is of the quality that is asked for.
        PanelError: A gene is not among the outputs of the weights.
    """
    given = check_options(
        genes=genes,
        mpp=mpp,
        magnification=magnification,
        patch_um=patch_um,
        scale=scale,
        tta=tta,
        batch_size=batch_size,
        on_error=on_error,
        min_quality=min_quality,
    )
    info = predictor.info
    asked = info.columns(genes, significant_only=significant_only)
    columns = list(asked.values())
    cuts: list[Cut] = []
    failed: dict[str, str] = {}
    kinds: list[type[ImageError]] = []
    parts: list[dict[str, np.ndarray]] = []
    size = batch_size or predictor.backend.batch_size
    bar = Progress(len(images), "image", shown=progress and len(images) > size)

    def batches() -> Iterator[tuple[None, list[np.ndarray]]]:
        batch: list[np.ndarray] = []
        for i, image in enumerate(bar.over(images)):
            name = str(image) if isinstance(image, (str, Path)) else f"image {i}"
            try:
                cut, pixels = cut_image(
                    image, name, given, patch_um, info, strict=scale == "strict", force_scale=force_scale, force=force
                )
            except ImageError as err:
                if on_error == "raise":
                    raise
                failed[name] = str(err)
                kinds.append(type(err))
                continue
            cuts.append(cut)
            batch.append(pixels)
            if len(batch) == size:
                yield None, batch
                batch = []
        if batch:
            yield None, batch

    sizes = {"count": len(images), "batch_size": size}
    for _, part in predictor.stream(batches(), tta=tta, features=features, **sizes):
        parts.append({key: a[:, columns] if key in ("values", "tta_std") else a for key, a in part.items()})
    if not parts and failed:
        kind = NoTissueError if all(issubclass(kind, NoTissueError) for kind in kinds) else ImageError
        raise _none_usable(list(failed.values()), kind)
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
    obs, left_out = patch_table(cuts, arrays), dict[str, str]()
    if parts and min_quality > 0:
        left_out = too_poor(obs, list(obs["name"]), min_quality)
        good = obs["quality"] >= min_quality
        if not good.any():
            what = cuts[0].name if len(cuts) == 1 else f"{len(cuts)} patches"
            raise none_good(obs, what, min_quality)
        arrays, obs = ({key: array[good] for key, array in table.items()} for table in (arrays, obs))
        cuts = [cut for cut, is_good in zip(cuts, good, strict=True) if is_good]
    return Result(
        X=arrays.get("values", np.empty((0, len(columns)), np.float32)),
        obs=obs,
        var=gene_table(info, columns),
        uns={
            "failed": failed,
            "left_out": left_out,
            "notes": info.renamed(asked) | notes_of(cuts),
            **predictor.metadata(tta),
        },
        layers={"tta_std": arrays["tta_std"]} if "tta_std" in arrays else {},
        obsm={key: arrays[key] for key in ("modules", "features") if key in arrays},
    )


def patch_table(cuts: Sequence[Cut], said: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`Result.obs` of patches, of which it is known how they were cut, and what the weights say of them."""
    shown_um = np.array([cut.trained_um if cut.scale is None else cut.patch_um for cut in cuts], float)
    return {
        "name": np.array([printable(cut.name) for cut in cuts], dtype=object),
        "x": np.array([cut.corner[0] + cut.side / 2 for cut in cuts], float),
        "y": np.array([cut.corner[1] + cut.side / 2 for cut in cuts], float),
        "mpp": np.array([cut.scale.mpp if cut.scale else np.nan for cut in cuts], float),
        "scale_source": np.array([cut.scale.source if cut.scale else "unknown" for cut in cuts], dtype=object),
        "patch_um": np.array([cut.patch_um for cut in cuts], float),
        "trained_um": np.array([cut.trained_um for cut in cuts], float),
        "patch_px": np.array([cut.side for cut in cuts], int),
        **(graded(said["measures"], shown_um / INPUT_PX) if "measures" in said else {}),
        **{key: said[key] for key in ("ood", "predicted_depth") if key in said},
    }


def notes_of(cuts: Sequence[Cut]) -> dict[str, list[str]]:
    """`Result.notes`: each thing that is to be said once, and the images that it is said of."""
    notes: dict[str, list[str]] = {}
    for cut in cuts:
        for note in cut.notes:
            notes.setdefault(note, []).append(cut.name)
    return notes


def check_options(
    *,
    genes: str | Path | Sequence[str] | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    patch_um: float | None = None,
    scale: str = "auto",
    tta: int = 1,
    batch_size: int | None = None,
    on_error: str = "raise",
    min_quality: float = 0,
    **_: Any,
) -> Scale | None:
    """Refuse options that no weights could make sense of; gives the scale that they state."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    if not 1 <= tta <= 8:
        raise ValueError(f"tta is {tta}, but must be from 1 to 8")
    if patch_um is not None and not patch_um > 0:
        raise ValueError(f"patch_um is {patch_um}, but must be above 0")
    if scale not in _SCALES:
        raise ValueError(f"scale is {scale!r}, but must be 'auto' or 'strict'")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}, but must be 'raise' or 'skip'")
    if not 0 <= min_quality <= 1:
        raise ValueError(f"min_quality is {min_quality}, but must be from 0 to 1")
    named_genes(genes)
    return given_scale(mpp, magnification)


def check_patches(
    images: Sequence[str | Path | Image.Image | np.ndarray],
    *,
    info: WeightsInfo | None = None,
    patch_um: float | None = None,
    scale: str = "auto",
    force_scale: bool = False,
    force: bool = False,
    on_error: str = "raise",
    **options: Any,
) -> None:
    """Refuse options that no weights could make sense of, and a few images of which none can be predicted.

    ``info``: what is known of the weights, without which it is not known how large a patch is.
    """
    given = check_options(patch_um=patch_um, scale=scale, on_error=on_error, **options)
    paths = [image for image in images if isinstance(image, (str, Path))]
    insists = {"strict": scale == "strict", "force_scale": force_scale}
    refused: list[ImageError] = []
    for path in paths if len(images) <= _LOOKED_AT else []:
        try:
            if info is not None:
                cut_image(path, str(path), given, patch_um, info, force=force, **insists)
                continue
            with open_slide(path) as slide:
                _scale(slide, str(path), given, **insists)
        except ImageError as err:
            refused.append(_named(err, str(path)))
            if on_error == "raise":
                raise refused[0] from err
    if refused and len(refused) == len(images):
        kind = NoTissueError if all(isinstance(err, NoTissueError) for err in refused) else ImageError
        raise _none_usable([str(err) for err in refused], kind)


def _named(err: ImageError, name: str) -> ImageError:
    """An error that says which image it is of."""
    return err if one_line(name) in str(err) else type(err)(f"{name}: {str(err).rstrip('.')}.")


def _none_usable(reasons: Sequence[str], kind: type[ImageError] = ImageError) -> ImageError:
    return kind(reasons[0] if len(reasons) == 1 else f"None of {len(reasons)} images is usable: {reasons[0]}")


def cut_image(
    image: str | Path | Image.Image | np.ndarray,
    name: str,
    given: Scale | None,
    patch_um: float | None,
    info: WeightsInfo,
    *,
    strict: bool = False,
    force_scale: bool = False,
    force: bool = False,
) -> tuple[Cut, np.ndarray]:
    """How the centre of an image is cut out, and its pixels, uint8, shape (side, side, 3)."""
    try:
        with _opened(image, name) as slide:
            cut = _cut(slide, name, given, patch_um, info, strict=strict, force_scale=force_scale)
            pixels = slide.read(*cut.corner, cut.side, cut.side)
    except ImageError as err:
        raise _named(err, name) from err
    if not (force or shows_tissue(pixels)):
        raise NoTissueError(
            f"{name} shows no tissue in its central {cut.side} px, so that nothing is predicted; if it does, insist by"
            f" {option('force', True)}."
        )
    return cut, pixels


def _opened(image: str | Path | Image.Image | np.ndarray, name: str) -> Slide:
    if isinstance(image, (str, Path)):
        return open_slide(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ImageError(f"{name} is an array of {image.dtype} {image.shape}, not of uint8 (height, width, 3).")
        return ArraySlide(Path(name), image)
    return slide_of(image, name)


def _cut(
    slide: Slide,
    name: str,
    given: Scale | None,
    patch_um: float | None,
    info: WeightsInfo,
    *,
    strict: bool,
    force_scale: bool,
) -> Cut:
    """The patch in the centre of an image, by the scale that it has."""
    size, short = slide.size, min(slide.size)
    scale, differs = _scale(slide, name, given, strict=strict, force_scale=force_scale)
    notes = [note for note in (differs, slide.chosen) if note]
    if scale is None:
        trained = info.patch_um
        notes.append(
            f"states no scale: all of it is taken for one patch of {trained:g} um; say how large its pixels are with"
            f" {option('mpp')}"
        )
        return Cut(name, size, short, None, trained, tuple(notes))
    trained = scale.patch_um(info.patch_um, info.nominal_patch_um)
    side = patch_px(scale.mpp, patch_um or trained)
    if side < _LEAST_PX:
        raise ImageError(f"a patch of {patch_um or trained:g} um is {side} px of {name}, too small to show tissue.")
    if len(slide.downsamples) > 1 or short > max(_SLIDE_PX, _SLIDE_PATCHES * side):
        raise ImageError(
            f"{name} is a slide, {size[0] * scale.mpp / 1000:.1f} x {size[1] * scale.mpp / 1000:.1f} mm, and no patch:"
            f" predict its tissue with {_as_slide()}, or cut the patch out of it first."
        )
    if side > short:
        if strict:
            raise ImageError(
                f"{name} is {size[0]} x {size[1]} px, smaller than a patch of {side} px; check the scale, or give a"
                " larger image."
            )
        whole = f"{trained:g} um the weights were trained on" if patch_um is None else f"{patch_um:g} um asked for"
        notes.append(f"shows {short * scale.mpp:.3g} of the {whole}")
        side = short
    return Cut(name, size, side, scale, trained, tuple(notes))


def _scale(
    slide: Slide, name: str, given: Scale | None, *, strict: bool, force_scale: bool
) -> tuple[Scale | None, str]:
    """The scale of an image, None if it can be taken for one patch without; and what to say of it."""
    size = slide.size
    scale, differs = chosen_scale(given, slide.scale, force=force_scale)
    if min(size) < _LEAST_PX:
        raise ImageError(f"{name} is {size[0]} x {size[1]} px, too small to show tissue.")
    if scale is None and (strict or max(size) > _LARGEST_PX):
        raise no_scale(name, maybe_slide=max(size) > _LARGEST_PX)
    return scale, differs


def _as_slide() -> str:
    """How a picture is predicted as a slide."""
    return f"{option('stride_um')}, or -o FILE.h5ad" if on_command_line.get() else "predict_slide"


def no_scale(name: str | Path, *, maybe_slide: bool = False) -> ImageError:
    """What to do about an image of unknown scale."""
    also = f"; if it is a slide, predict its tissue with {_as_slide()}" if maybe_slide else ""
    return ImageError(
        f"{name} does not say how large its pixels are: give {option('mpp')} with the micrometres per pixel, or"
        f" {option('magnification')}{also}."
    )
