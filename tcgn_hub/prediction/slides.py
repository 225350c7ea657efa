"""A slide in, gene expression of its tiles out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from tcgn_hub.errors import ImageError, OutputError, SectionError
from tcgn_hub.files import write_text
from tcgn_hub.images.scale import Scale, given_scale
from tcgn_hub.images.slides import MAX_PIXELS, Slide, open_slide
from tcgn_hub.images.tiles import OVERVIEW_PX, TileReader, Tiles, grid_tiles, on_tissue, read_spots
from tcgn_hub.prediction.patches import OfModel, check_views, gene_columns, no_scale

if TYPE_CHECKING:
    import torch

    from tcgn_hub.weights.info import ModelInfo

__all__ = ["SlidePrediction", "predict_slide"]

_CHUNK = 256  # tiles; what an interruption may cost


@dataclass(frozen=True)
class SlidePrediction(OfModel):
    """Predicted expression of genes in the tiles of a slide.

    Attributes:
        slide: Path of the slide.
        tiles: Names of the tiles, n of them: spot names where spots were given, otherwise ``row x column`` of the grid.
        xy: Centres as (x, y) in pixels at full resolution, float64, shape (n, 2).
        array_row: Row of each tile in its grid or array, int, shape (n,).
        array_col: Column, likewise.
        genes: Symbols of the columns of ``values``.
        values: Predictions in ``units``, float32, shape (n, genes).
        units: Units of the values.
        model: What is known of the model, its held-out significance per gene included.
        mpp: Micrometres per pixel at full resolution.
        scale_source: Where ``mpp`` comes from, such as 'openslide.mpp-x' or '--mpp'.
        patch_um: Side of a tile in micrometres.
        stride_um: Distance of neighbouring tiles in micrometres; None where spots were given.
        size: (width, height) in pixels at full resolution.
        thumbnail: Overview, uint8, shape (h, w, 3).
        thumbnail_downsample: Full-resolution pixels per pixel of the thumbnail.
        mask: Where the tissue is, bool, of the shape of the thumbnail; None where spots were given.
        features: Features before the head, float32, shape (n, 1280); None unless asked for.
        failed: Tiles that could not be read, and why; they are not among ``tiles``.
        spread: As of `tcgn_hub.Prediction`.
        distance: As of `tcgn_hub.Prediction`.
    """

    slide: Path
    tiles: list[str]
    xy: np.ndarray
    array_row: np.ndarray
    array_col: np.ndarray
    genes: list[str]
    values: np.ndarray
    units: str
    model: ModelInfo
    mpp: float
    scale_source: str
    patch_um: float
    stride_um: float | None
    size: tuple[int, int]
    thumbnail: np.ndarray
    thumbnail_downsample: float
    mask: np.ndarray | None = None
    features: np.ndarray | None = None
    failed: dict[str, str] = field(default_factory=dict)
    spread: np.ndarray | None = None
    distance: np.ndarray | None = None

    @property
    def tile_px(self) -> float:
        """Side of a tile in pixels at full resolution."""
        return self.patch_um / self.mpp


def predict_slide(
    slide: str | Path,
    *,
    weights: str | Path | None = None,
    genes: str | Path | Sequence[str] | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    patch_um: float | None = None,
    stride_um: float | None = None,
    spots: str | Path | None = None,
    min_tissue: float = 0.5,
    features: bool = False,
    significant_only: bool = False,
    views: int = 1,
    batch_size: int = 32,
    workers: int = 1,
    device: str | None = None,
    backend: str | None = None,
    max_pixels: int = MAX_PIXELS,
    resume: str | Path | None = None,
    progress: bool = False,
) -> SlidePrediction:
    """Predict gene expression over the tissue of a slide.

    Tiles are read by worker processes ahead of the model, and memory does not grow with the slide unless it is a plain
    picture, which has to be decoded as a whole.

    Args:
        slide: A slide in a format of OpenSlide, OME-TIFF, other tiled TIFF, or a plain picture.
        weights: A tag, model directory or file, see `tcgn_hub.load_model`; the default weights if None.
        genes: Genes to return, in this order, see `tcgn_hub.panels.load_panel`; all if None.
        mpp: Micrometres per pixel at full resolution, if not what the file says.
        magnification: The same as a magnification, such as 20.
        patch_um: Side of a tile in micrometres; by default what the weights were trained on, or what that nominally was
            where the scale is that of a magnification.
        stride_um: Distance of neighbouring tiles in micrometres; the side of a tile if None.
        spots: File of spots to predict instead of a grid over the tissue, see `tcgn_hub.images.tiles.read_spots`.
        min_tissue: Least share of tissue in a tile of the grid; 0 predicts every tile and looks for no tissue.
        features: Keep the 1280 features of each tile.
        significant_only: Leave out genes that could not be predicted better than chance on held-out tissue.
        views: Over how many rotations and reflections of a tile to average, 1 to 8; more than one give a spread.
        batch_size: Tiles per forward pass.
        workers: Processes that read tiles; 0 reads them in this one.
        device: Where to compute, such as 'cuda'; the CPU if None.
        backend: As in `tcgn_hub.predict`.
        max_pixels: The most pixels of a plain picture.
        resume: Folder to keep what is done in, also after the end; a run of the same slide and settings continues
            from it.
        progress: Show a progress bar on stderr where that is a terminal.

    Raises:
        ImageError: The slide cannot be read, has no scale or no tissue, or none of its tiles could be read.
        SectionError: The file of spots is malformed, or spots lie outside of the slide.
        PanelError: A gene is not among the outputs of the model.
        WeightsError: The weights cannot be found, read or verified.
        OutputError: The folder ``resume`` cannot be written.
        ExtraError: The format needs a package that is not installed.
    """
    from tcgn_hub.prediction.backends import load_backend, run

    slide = Path(slide)
    if batch_size < 1 or workers < 0:
        raise ValueError("batch_size must be at least 1 and workers at least 0")
    check_views(views)
    given = given_scale(mpp, magnification)
    with open_slide(slide, max_pixels=max_pixels) as opened:
        scale = given or opened.scale
        if scale is None:
            raise no_scale(slide)
        model = load_backend(weights, backend=backend, device=device)
        info = model.info
        columns = gene_columns(info, genes, significant_only=significant_only)
        side_um = patch_um or scale.patch_um(info.patch_um, info.nominal_patch_um)
        step_um = None if spots else stride_um or side_um
        overview, downsample, lost = opened.overview(OVERVIEW_PX)
        tiles, mask = _choose(opened, scale, side_um, step_um, spots, min_tissue, overview, downsample, lost)

        reader = TileReader(opened, tiles.xy, side_um / scale.mpp, max_pixels=max_pixels)
        facts = {
            "slide": [str(slide.resolve()), slide.stat().st_size, slide.stat().st_mtime_ns],
            "weights": [info.sha256, type(model).__name__],
            "tiles": hashlib.sha256(tiles.xy.tobytes()).hexdigest(),
            "read": [reader.side, reader.level],
            "features": features,
            "views": views,
            "distance": info.ood is not None,
        }
        store = _Store(Path(resume) if resume else None, facts)

        def predict(pixels: torch.Tensor) -> dict[str, np.ndarray]:
            return run(model, model.prepare(pixels.permute(0, 2, 3, 1).numpy()), views=views, features=features)

        arrays, failed = _predict_tiles(reader, store, predict, batch_size, workers, progress, slide.name)
    good = np.array([i for i in range(len(tiles)) if i not in failed], int)
    if not len(good):
        raise ImageError(f"None of the {len(tiles)} tiles of {slide} could be read: {next(iter(failed.values()))}")
    names = {i: tiles.names[i] for i in failed}
    tiles = tiles.at(good)
    return SlidePrediction(
        slide=slide,
        tiles=tiles.names,
        xy=tiles.xy,
        array_row=tiles.array_row,
        array_col=tiles.array_col,
        genes=[info.genes[i] for i in columns],
        values=np.ascontiguousarray(arrays["values"][good][:, columns]),
        units=info.units,
        model=info,
        mpp=scale.mpp,
        scale_source=scale.source,
        patch_um=side_um,
        stride_um=step_um,
        size=opened.size,
        thumbnail=overview,
        thumbnail_downsample=downsample,
        mask=mask,
        features=arrays["features"][good] if features else None,
        failed={names[i]: why for i, why in failed.items()},
        spread=np.ascontiguousarray(arrays["spread"][good][:, columns]) if "spread" in arrays else None,
        distance=arrays["distance"][good] if "distance" in arrays else None,
    )


def _choose(
    slide: Slide,
    scale: Scale,
    side_um: float,
    step_um: float | None,
    spots: str | Path | None,
    min_tissue: float,
    overview: np.ndarray,
    downsample: float,
    lost: np.ndarray,
) -> tuple[Tiles, np.ndarray | None]:
    """The tiles to predict, and the mask they were chosen by."""
    if step_um is None:
        assert spots is not None
        tiles = read_spots(spots)
        outside = ((tiles.xy < 0) | (tiles.xy >= slide.size)).any(axis=1)
        if outside.any():
            raise SectionError(
                f"{int(outside.sum())} of the {len(tiles)} spots of {spots}, such as"
                f" {tiles.names[int(outside.argmax())]}, lie outside {slide.path} of {slide.size[0]} x {slide.size[1]}"
                " px; they may belong to another resolution."
            )
        return tiles, None
    try:
        tiles = grid_tiles(slide.size, side=side_um / scale.mpp, stride=step_um / scale.mpp)
    except ImageError as err:
        raise ImageError(f"{slide.path}: {err}.") from err
    if min_tissue <= 0:
        return tiles, None
    # what the overview lacks may be tissue: those tiles are tried, and their failure is recorded
    tiles, mask = on_tissue(
        tiles, overview, downsample, mpp=scale.mpp, side=side_um / scale.mpp, min_tissue=min_tissue, lost=lost
    )
    if not len(tiles):
        raise ImageError(
            f"{slide.path} shows no tissue; if it does, predict all of it with --min-tissue 0, or give --spots."
        )
    return tiles, mask


def _collate(items: list[tuple[int, np.ndarray | None, str]]) -> tuple[list[int], torch.Tensor | None, dict[int, str]]:
    """Indices and pixels (B, 3, side, side) of what could be read, and what could not and why."""
    import torch

    good = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    stack = torch.from_numpy(np.stack([pixels for _, pixels in good])).permute(0, 3, 1, 2) if good else None
    return [index for index, _ in good], stack, {index: why for index, pixels, why in items if pixels is None}


def _predict_tiles(
    reader: TileReader,
    store: _Store,
    predict: Callable[[torch.Tensor], dict[str, np.ndarray]],
    batch_size: int,
    workers: int,
    progress: bool,
    name: str,
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """What the model says by tile, and what failed; what the store has is not computed again."""
    from huggingface_hub.utils import tqdm
    from torch.utils.data import DataLoader, Subset

    chunks = [range(start, min(start + _CHUNK, len(reader))) for start in range(0, len(reader), _CHUNK)]
    todo = [chunk for chunk in chunks if not store.has(chunk.start)]
    loader: DataLoader[Any] = DataLoader(
        Subset(reader, [index for chunk in todo for index in chunk]),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=_context() if workers else None,
    )
    waiting: dict[int, dict[int, dict[str, np.ndarray]]] = {}
    failed: dict[int, str] = {}
    with tqdm(
        total=len(reader),
        initial=len(reader) - len(loader.dataset),  # type: ignore[arg-type]
        unit="tile",
        desc=name,
        disable=None if progress else True,
    ) as bar:
        for indices, pixels, errors in loader:
            failed.update(errors)
            said = predict(pixels) if pixels is not None else {}
            for row, index in enumerate(indices):
                part = waiting.setdefault(index // _CHUNK * _CHUNK, {})
                part[index] = {key: array[row] for key, array in said.items()}
            bar.update(len(indices) + len(errors))
            last = max([*indices, *errors])
            for chunk in todo:
                # tiles come in order, so that a chunk is whole once a later tile is there
                if chunk.stop - 1 <= last and not store.has(chunk.start):
                    store.put(chunk.start, waiting.pop(chunk.start, {}), {i: failed[i] for i in chunk if i in failed})
    return store.all(chunks)


def _context() -> str | None:
    """Forked processes share the pixels of a picture and start at once; elsewhere the platform decides."""
    import multiprocessing

    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None


class _Store:
    """Results of whole chunks of tiles, in memory, and in a folder that outlives an interruption."""

    def __init__(self, folder: Path | None, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.done: dict[int, dict[str, np.ndarray]] = {}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = folder / "run.json"
            if known.is_file() and known.read_text(encoding="utf-8") == json.dumps(facts):
                for path in folder.glob("*.npz"):
                    # what cannot be read, after a loss of power, is computed again
                    with suppress(ValueError, EOFError, BadZipFile), np.load(path, allow_pickle=False) as arrays:
                        self.done[int(path.stem)] = dict(arrays)
            else:
                for path in folder.glob("*.npz"):
                    path.unlink()
                write_text(known, json.dumps(facts))
        except OSError as err:
            raise OutputError(f"{folder} cannot be written ({err.strerror or err}).") from err

    def has(self, start: int) -> bool:
        return start in self.done

    def put(self, start: int, part: dict[int, dict[str, np.ndarray]], failed: dict[int, str]) -> None:
        order = sorted(part)
        arrays = {
            **({key: np.stack([part[i][key] for i in order]) for key in part[order[0]]} if order else {}),
            "index": np.array(order, int),
            "failed": np.array(json.dumps(failed)),
        }
        self.done[start] = arrays
        if self.folder is not None:
            path = self.folder / f"{start}.npz"
            part_path = path.with_suffix(".part")
            try:
                with open(part_path, "wb") as handle:
                    np.savez(handle, **arrays)  # type: ignore[arg-type]
                os.replace(part_path, path)
            except OSError as err:
                part_path.unlink(missing_ok=True)
                raise OutputError(
                    f"{path} cannot be written ({err.strerror or err}); what was done before is kept, run again to"
                    " continue."
                ) from err

    def all(self, chunks: list[range]) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """By the number of the tile, NaN where it could not be read."""
        out: dict[str, np.ndarray] = {}
        failed: dict[int, str] = {}
        for arrays in (self.done[chunk.start] for chunk in chunks):
            failed.update({int(i): why for i, why in json.loads(str(arrays["failed"])).items()})
            for key in arrays.keys() - {"index", "failed"}:
                shape = (chunks[-1].stop, *arrays[key].shape[1:])
                out.setdefault(key, np.full(shape, np.nan, np.float32))[arrays["index"]] = arrays[key]
        return out, failed
