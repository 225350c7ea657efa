"""A slide in, gene expression of its tiles out."""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from tcgn_hub.data.scales import check_spots
from tcgn_hub.data.spots import check_spots_file, read_spots, spots_hash
from tcgn_hub.devices import usable_cores
from tcgn_hub.errors import ImageError, NoTissueError, OutputError, SectionError
from tcgn_hub.files import make_folder, read_json, write_text, writing
from tcgn_hub.images.quality import graded, none_good, too_poor
from tcgn_hub.images.readers import open_slide, stat_of
from tcgn_hub.images.scale import Scale, chosen_scale
from tcgn_hub.images.slides import MAX_PIXELS, Slide
from tcgn_hub.images.tiles import OVERVIEW_PX, TileReader, Tiles, grid_tiles, on_tissue
from tcgn_hub.images.tissue import is_blank
from tcgn_hub.images.transforms import INPUT_PX
from tcgn_hub.panels import named_genes
from tcgn_hub.prediction.patches import check_options, no_scale
from tcgn_hub.progress import Progress
from tcgn_hub.result import Result, SlideContext, gene_table
from tcgn_hub.rows import Table, forget
from tcgn_hub.text import counted, option

if TYPE_CHECKING:
    import torch

    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.weights.info import WeightsInfo

_CHUNK = 256  # tiles; what an interruption may cost
_MOST_WORKERS = 16
_READ_AHEAD = 1 << 30  # bytes of tiles that workers may have read before they are predicted
_SHARED = Path("/dev/shm")
_FORMAT = "tcgn_hub slide 4"
_FOLLOWED = (
    *("genes", "significant_only", "mpp", "magnification", "patch_um", "stride_um", "spots", "min_tissue"),
    *("features", "tta", "series", "force", "library", "bin_um", "min_quality"),
)
_AFTERWARDS = ("min_quality",)  # which chunks of tiles do not follow from
_NUMBERS = ("mpp", "magnification", "patch_um", "stride_um", "min_tissue", "min_quality", "bin_um")
_LIMITS = ("force_scale", "max_pixels")
_OWN_FILES = re.compile(r"(run\.json|\d+\.npz)(\.\w+\.part)?")


def predict_tiles(
    predictor: Predictor,
    path: str | Path,
    *,
    genes: str | Path | Sequence[str] | None = None,
    mpp: float | None = None,
    magnification: float | None = None,
    patch_um: float | None = None,
    force_scale: bool = False,
    series: int | None = None,
    stride_um: float | None = None,
    spots: str | Path | None = None,
    library: str | None = None,
    bin_um: float | None = None,
    min_tissue: float = 0.5,
    min_quality: float = 0,
    force: bool = False,
    features: bool = False,
    significant_only: bool = False,
    tta: int = 1,
    batch_size: int | None = None,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    resume: str | Path | None = None,
    progress: bool = False,
) -> Result:
    """Predict gene expression over the tissue of a slide.

    Tiles are read by worker processes ahead of the model, and what is read does not stay in memory, unless the slide is
    a plain picture, which has to be decoded as a whole. What is predicted is kept on disk where it takes more than
    64 MB, so that memory does not grow with the tiles: in a file without a name beside the folder ``resume``, or where
    there is none or it cannot be in the folder of temporary files, that is gone when the result is, or the process. The
    arrays of the result are those of that file, and behave as any do.

    Args:
        predictor: The weights.
        path: A slide in a format of OpenSlide, OME-TIFF, other tiled TIFF, or a plain picture.
        genes: As of `Predictor.patches`.
        mpp: Micrometres per pixel at full resolution, if not what the file says.
        magnification: The same as a magnification, such as 20.
        patch_um: Side of a tile in micrometres; by default what the weights were trained on, or what that nominally was
            where the scale is that of a magnification.
        force_scale: Believe the scale although another one is more than 40 % off: what the file states where one is
            given, or the distance of spots of Visium.
        series: Which image of a file that holds several, 0 the first; if None, the scan: the finest where all state
            their scale, else the largest. ``Result.notes`` says which.
        stride_um: Distance of neighbouring tiles in micrometres; half the side of a tile if None, so that a map of them
            shows the tissue without gaps and without blocks.
        spots: File of spots to predict instead of a grid over the tissue, see `tcgn_hub.data.spots.read_spots`. Those
            outside of the slide are left out, and listed in ``Result.failed``.
        library: The section of ``spots`` to predict, where an h5ad holds several, or the table of a SpatialData.
        bin_um: Side in micrometres of the square spots that the cells of a SpatialData are binned to.
        min_tissue: Least share of tissue in a tile of the grid; 0 predicts every tile and looks for no tissue.
        min_quality: Leave out tiles of a lower quality, from 0 to 1, see `tcgn_hub.images.quality`; they are listed in
            ``Result.left_out``. They are predicted all the same, so that a run that continues may ask for another.
        force: Predict every tile where no tissue is found.
        features: Keep the 1280 features of each tile.
        significant_only: Leave out genes that could not be predicted better than chance on held-out tissue.
        tta: Over how many rotations and reflections of a tile to average, 1 to 8; more than one give ``tta_std``.
        batch_size: Tiles per forward pass; if None, as many as suit the device.
        workers: Processes that read tiles, started as the platform does by default; 0 reads them in this one, as a
            daemonic process, which may start none, does in any case. If None, none for a plain picture, which is in
            memory; otherwise one for eight cores, or for each core but one where a GPU computes, up to 16, and
            fewer where little memory can be shared.
        max_pixels: The most pixels of a plain picture.
        resume: Folder to keep what is done in, also after the end: a run of the same slide, weights and options
            continues from it, and tries again what could not be read. A folder that anything else has written to is
            refused.
        progress: Show a progress bar on stderr where that is a terminal, and else log a line a minute.

    Raises:
        ImageError: The slide cannot be read, has no scale or another one than the one given, or none of its tiles could
            be read.
        NoTissueError: The slide shows no tissue, or no tile is of the quality that is asked for.
        SectionError: The file of spots is malformed, most spots lie outside of the slide, or their distance contradicts
            its scale.
        PanelError: A gene is not among the outputs of the weights.
        OutputError: The folder ``resume`` cannot be written, or is not of this run.
        ExtraError: The format needs a package that is not installed.
    """
    path, info = Path(path), predictor.info
    options: dict[str, Any] = {name: asked for name, asked in locals().items() if name in _FOLLOWED}
    given = _check_tiling(path, batch_size=batch_size, workers=workers, **options)
    store = None
    if resume is not None:
        backend = predictor.backend
        run = _run(path, options, weights=info.sha256, backend=backend.name, precision=backend.precision)
        store = _Store(Path(resume), run)
    asked = info.columns(genes, significant_only=significant_only)
    columns = list(asked.values())
    with open_slide(path, max_pixels=max_pixels, series=series) as opened:
        plan = _plan(
            opened,
            info,
            given,
            patch_um=patch_um,
            stride_um=stride_um,
            spots=spots,
            library=library,
            bin_um=bin_um,
            min_tissue=min_tissue,
            force=force,
            force_scale=force_scale,
        )
        tiles, mpp = plan.tiles, plan.scale.mpp
        reader = TileReader(opened, tiles.xy, plan.side_um / mpp, max_pixels=max_pixels)
        if store is not None:
            store.claim([info.genes[i] for i in columns], tiles.xy, reader)
        table = _Table(len(tiles), columns, store)
        if batch_size is None:
            batch_size = predictor.backend.batch_size
        if workers is None:
            workers = _workers(predictor, opened, _batches_ahead(reader, batch_size))
        table.fill(predictor, reader, tta, features, batch_size, workers, path.name if progress else None)
    failed = {tiles.names[i]: why for i, why in sorted(table.failed.items())}
    if len(failed) == len(tiles):
        raise ImageError(f"None of the {len(tiles)} tiles of {path} could be read: {next(iter(failed.values()))}")
    notes = info.renamed(asked) | {note: [str(path)] for note in plan.notes}
    good = np.flatnonzero(table.done)
    quality = graded(table.tables["measures"].array[good], plan.side_um / INPUT_PX)
    left_out = too_poor(quality, [tiles.names[i] for i in good], min_quality)
    if len(left_out) == len(good):
        raise none_good(quality, f"{counted(len(good), 'tile')} of {path}", min_quality)
    if left_out:
        enough = quality["quality"] >= min_quality
        good, quality = good[enough], {key: values[enough] for key, values in quality.items()}
    arrays = table.compressed(good)
    tiles = tiles if len(good) == len(tiles) else tiles.at(good)
    share = tiles.tissue_share
    return Result(
        X=arrays["values"],
        obs={
            "name": np.array(tiles.names, dtype=object),
            "array_row": tiles.array_row,
            "array_col": tiles.array_col,
            "tissue_share": np.full(len(tiles), np.nan, np.float32) if share is None else share.astype(np.float32),
            **quality,
            **{key: arrays[key] for key in ("ood", "predicted_depth") if key in arrays},
        },
        var=gene_table(info, columns),
        uns={
            "failed": failed | plan.outside,
            "left_out": left_out,
            "notes": notes,
            "asked": genes is not None,
            **predictor.metadata(tta),
            "slide": SlideContext(
                path=path,
                size=opened.size,
                mpp=mpp,
                scale_source=plan.scale.source,
                patch_um=plan.side_um,
                trained_um=plan.trained_um,
                stride_um=plan.step_um,
                series=opened.series,
                origin=opened.origin,
                thumbnail=plan.overview,
                thumbnail_downsample=plan.downsample,
                mask=plan.mask,
            ),
        },
        layers={"tta_std": arrays["tta_std"]} if "tta_std" in arrays else {},
        obsm={"spatial": tiles.xy, **{key: arrays[key] for key in ("modules", "features") if key in arrays}},
    )


@dataclass(frozen=True)
class Plan:
    """What of a slide is to be predicted.

    Attributes:
        scale: By which it is read.
        side_um: Side of a tile in micrometres.
        trained_um: The same of the patches that the weights were trained on.
        step_um: Distance of tiles, None where spots were given.
        tiles: The tiles.
        mask: Where the tissue is, bool, of the shape of the overview; None where it was not looked for.
        outside: Of spots outside of the slide, by name, why they are left out.
        overview: The slide, uint8, shape (H, W, 3).
        downsample: Full-resolution pixels per pixel of the overview.
        notes: What was decided that the user may not expect.
    """

    scale: Scale
    side_um: float
    trained_um: float
    step_um: float | None
    tiles: Tiles
    mask: np.ndarray | None
    outside: dict[str, str]
    overview: np.ndarray
    downsample: float
    notes: tuple[str, ...]


def plan_slide(
    path: str | Path,
    info: WeightsInfo,
    *,
    series: int | None = None,
    patch_um: float | None = None,
    stride_um: float | None = None,
    spots: str | Path | None = None,
    library: str | None = None,
    bin_um: float | None = None,
    min_tissue: float = 0.5,
    force: bool = False,
    force_scale: bool = False,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> Plan:
    """What `predict_tiles` would predict, by its options; raises what it would raise before it predicts."""
    tiling: dict[str, Any] = {"patch_um": patch_um, "stride_um": stride_um, "spots": spots, "library": library}
    tiling |= {"bin_um": bin_um, "min_tissue": min_tissue, "force": force}
    given = _check_tiling(path, **tiling, **options)
    with open_slide(path, max_pixels=max_pixels, series=series) as opened:
        return _plan(opened, info, given, **tiling, force_scale=force_scale)


def _plan(
    opened: Slide,
    info: WeightsInfo,
    given: Scale | None,
    *,
    patch_um: float | None,
    stride_um: float | None,
    spots: str | Path | None,
    library: str | None,
    bin_um: float | None,
    min_tissue: float,
    force: bool,
    force_scale: bool,
) -> Plan:
    scale, differs = slide_scale(opened, given, force=force_scale)
    trained_um = scale.patch_um(info.patch_um, info.nominal_patch_um)
    side_um = patch_um or trained_um
    step_um = None if spots else stride_um or side_um / 2
    overview, downsample, lost = opened.overview(OVERVIEW_PX)
    tiles, mask, outside = _choose(
        opened, scale, side_um, step_um, spots, library, min_tissue, force, overview, downsample, lost, bin_um
    )
    odd = _check_distance(spots, tiles, scale, force_scale) if spots else ""
    notes = tuple(note for note in (differs, odd, opened.chosen, _frame(opened.origin)) if note)
    return Plan(scale, side_um, trained_um, step_um, tiles, mask, outside, overview, downsample, notes)


def check_slide(
    path: str | Path,
    *,
    spots: str | Path | None = None,
    library: str | None = None,
    bin_um: float | None = None,
    series: int | None = None,
    force_scale: bool = False,
    max_pixels: int = MAX_PIXELS,
    **options: Any,
) -> None:
    """Refuse options that no weights could make sense of, a slide without a scale, and spots that contradict it."""
    given = _check_tiling(path, spots=spots, library=library, bin_um=bin_um, **options)
    with open_slide(path, max_pixels=max_pixels, series=series) as slide:
        scale, _ = slide_scale(slide, given, force=force_scale)
    if spots is not None:
        tiles = read_spots(spots, library=library, bin_um=bin_um, image=Path(path), mpp=scale.mpp)
        _check_distance(spots, tiles, scale, force_scale)


def _check_tiling(
    path: str | Path,
    *,
    stride_um: float | None = None,
    spots: str | Path | None = None,
    library: str | None = None,
    bin_um: float | None = None,
    min_tissue: float = 0.5,
    batch_size: int | None = None,
    workers: int | None = None,
    **options: Any,
) -> Scale | None:
    """Refuse options that no slide could be tiled by; gives the scale that they state."""
    if batch_size is not None:
        options["batch_size"] = batch_size
    given = check_options(**options)
    if workers is not None and workers < 0:
        raise ValueError(f"workers is {workers}, but must be at least 0")
    if not 0 <= min_tissue <= 1:
        raise ValueError(f"min_tissue is {min_tissue}, but must be from 0 to 1")
    for name, value in (("stride_um", stride_um), ("bin_um", bin_um)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}, but must be above 0")
    if not Path(path).exists():
        raise ImageError(f"{path} does not exist.")
    if spots is not None:
        check_spots_file(spots)
    elif library is not None or bin_um is not None:
        name = option("bin_um" if library is None else "library")
        raise SectionError(f"{name} is of a file of spots; give {option('spots')}, or leave it out.")
    return given


def slide_scale(slide: Slide, given: Scale | None, *, force: bool = False) -> tuple[Scale, str]:
    """The scale to predict a slide by, and what to say of it."""
    try:
        scale, differs = chosen_scale(given, slide.scale, force=force)
    except ImageError as err:
        raise ImageError(f"{slide.path}: {err}.") from err
    if scale is None:
        raise no_scale(slide.path)
    return scale, differs


def _frame(origin: tuple[int, int]) -> str:
    """What places are counted from where a slide is larger than what was scanned."""
    if not any(origin):
        return ""
    return f"its scan begins at {origin[0]}, {origin[1]} px of the slide, which places count from, but GeoJSON the scan"


def _check_distance(spots: str | Path, tiles: Tiles, scale: Scale, force: bool) -> str:
    array = np.stack([tiles.array_row, tiles.array_col], axis=1)
    return check_spots(spots, array, tiles.xy, scale, force=force)


def check_folder(folder: str | Path, path: str | Path, options: dict[str, Any], **loaded: str) -> None:
    """Refuse a folder that `predict_tiles` could not resume from."""
    _Store(Path(folder), _run(Path(path), options, **loaded))


def _choose(
    slide: Slide,
    scale: Scale,
    side_um: float,
    step_um: float | None,
    spots: str | Path | None,
    library: str | None,
    min_tissue: float,
    force: bool,
    overview: np.ndarray,
    downsample: float,
    lost: np.ndarray,
    bin_um: float | None = None,
) -> tuple[Tiles, np.ndarray | None, dict[str, str]]:
    """The tiles to predict, the mask they were chosen by, and of spots that are outside of the slide, why not."""
    if step_um is None:
        assert spots is not None
        tiles = read_spots(spots, library=library, bin_um=bin_um, image=slide.path, mpp=scale.mpp)
        outside = ((tiles.xy < 0) | (tiles.xy >= slide.size)).any(axis=1)
        where = f"outside {slide.path} of {slide.size[0]} x {slide.size[1]} px"
        if 2 * outside.sum() > len(tiles):
            raise SectionError(
                f"{int(outside.sum())} of the {len(tiles)} spots of {spots}, such as"
                f" {tiles.names[int(outside.argmax())]}, lie {where}; they may belong to another resolution."
            )
        if is_blank(overview) and not force:
            raise _no_tissue(slide.path)
        lost_spots = {tiles.names[i]: f"spot {tiles.names[i]} of {spots} lies {where}" for i in np.flatnonzero(outside)}
        return tiles.at(np.logical_not(outside)), None, lost_spots
    try:
        tiles = grid_tiles(slide.size, side=side_um / scale.mpp, stride=step_um / scale.mpp)
    except ImageError as err:
        raise ImageError(f"{slide.path}: {err}.") from err
    if min_tissue <= 0:
        return tiles, None, {}
    # what the overview lacks may be tissue: those tiles are tried, and their failure is recorded
    on, mask = on_tissue(
        tiles, overview, downsample, mpp=scale.mpp, side=side_um / scale.mpp, min_tissue=min_tissue, lost=lost
    )
    if not len(on) and not force:
        raise _no_tissue(slide.path)
    return (on, mask, {}) if len(on) else (tiles, None, {})


def _no_tissue(path: Path) -> NoTissueError:
    return NoTissueError(
        f"{path} shows no tissue, so that nothing is predicted; if it does, insist by {option('force', True)}."
    )


def _workers(predictor: Predictor, slide: Slide, ahead: int) -> int:
    """Processes to read tiles by: as many as keep the model busy, as one decodes hundreds of tiles a second.

    ``ahead``: how many batches they may have read in all.
    """
    if not slide.reopens:
        return 0
    cores = usable_cores()
    on_gpu = getattr(getattr(predictor.backend, "device", None), "type", "cpu") != "cpu"
    return min(max(1, cores - 1 if on_gpu else cores // 8), _MOST_WORKERS, ahead // 2)


def _batches_ahead(reader: TileReader, batch_size: int) -> int:
    """Batches that workers may have read before they are predicted.

    They lie in shared memory, of which a container has little; a worker that finds it full is killed.
    """
    room = _READ_AHEAD
    if _SHARED.is_dir():
        room = min(room, shutil.disk_usage(_SHARED).free // 2)
    return room // (3 * reader.side**2 * batch_size)


def _collate(items: list[tuple[int, np.ndarray | None, str]]) -> tuple[list[int], torch.Tensor | None, dict[int, str]]:
    """Indices and pixels (B, side, side, 3) of what could be read, and what could not and why."""
    import torch

    good = [(index, pixels) for index, pixels, _ in items if pixels is not None]
    stack = torch.from_numpy(np.stack([pixels for _, pixels in good])) if good else None
    return [index for index, _ in good], stack, {index: why for index, pixels, why in items if pixels is None}


class _Table:
    """What the weights say of each tile, held once: a row a tile, 0 until it is predicted.

    Attributes:
        tables: ``values`` and what else `Predictor.run` gives, of the wanted columns.
        done: Which tiles are predicted, bool, shape (n,).
        failed: Of those that could not be read, why.
    """

    def __init__(self, count: int, columns: list[int], store: _Store | None) -> None:
        self.columns, self.store = columns, store
        self.tables: dict[str, Table] = {}
        self.done = np.zeros(count, bool)
        self.failed: dict[int, str] = {}
        for start, arrays in store.chunks() if store else ():
            done = arrays.pop("done")
            self._put(start + np.flatnonzero(done), {key: array[done] for key, array in arrays.items()})

    def fill(
        self,
        predictor: Predictor,
        reader: TileReader,
        tta: int,
        features: bool,
        batch_size: int,
        workers: int,
        shown: str | None,
    ) -> None:
        """Predict what is not done; store whole chunks as they are complete."""
        from torch.utils.data import DataLoader, Subset

        todo = np.flatnonzero(~self.done)
        if multiprocessing.current_process().daemon:
            workers = 0
        loader: DataLoader[Any] = DataLoader(
            Subset(reader, todo),  # type: ignore[arg-type]
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=_collate,
            prefetch_factor=min(4, max(1, _batches_ahead(reader, batch_size) // workers)) if workers else None,
        )
        wanted = {"values": self.columns, "tta_std": self.columns}
        waiting = deque(np.unique(todo // _CHUNK * _CHUNK).tolist())
        read: deque[tuple[int, dict[int, str]]] = deque()  # how many tiles of a batch could be read, and the others
        seen, before = 0, len(reader) - len(todo)

        def batches() -> Iterator[tuple[list[int], np.ndarray]]:
            for indices, pixels, errors in loader:
                read.append((len(indices), errors))
                if pixels is not None:
                    yield indices, pixels.numpy()

        def finish() -> bool:
            """What is to be done once a batch is in the table; gives whether it had tiles that could be read."""
            nonlocal seen
            good, errors = read.popleft()
            self.failed.update(errors)
            seen += good + len(errors)
            bar.update(good + len(errors))
            reached = todo[seen] if seen < len(todo) else len(reader)
            # tiles come in order, so that a chunk is whole once a later tile is next
            while waiting and min(waiting[0] + _CHUNK, len(reader)) <= reached:
                self._keep(waiting.popleft())
            return good > 0

        with Progress(len(reader), "tile", name=shown or "", done=before, shown=shown is not None) as bar:
            # of the whole slide, so that a run that continues decides as the first one did
            sizes = {"count": len(reader), "batch_size": batch_size}
            for indices, said in predictor.stream(batches(), tta=tta, features=features, **sizes):
                part = {key: a[:, wanted[key]] if key in wanted else a for key, a in said.items()}
                self._put(np.array(indices), part)
                while not finish():
                    pass
            while read:
                finish()

    def compressed(self, good: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of an ascending index, moved to the front of the same memory."""
        return {key: table.keep(good) for key, table in self.tables.items()}

    def _put(self, rows: np.ndarray, part: dict[str, np.ndarray]) -> None:
        beside = self.store.folder.parent if self.store else None
        if beside is not None and not os.access(beside, os.W_OK):
            beside = None  # the folder itself may be a volume of its own, below what can only be read
        try:
            for key, array in part.items():
                if key not in self.tables:
                    self.tables[key] = Table((len(self.done), *array.shape[1:]), beside=beside)
                self.tables[key].put(rows, array)
        except OutputError as err:
            if self.store is None:
                raise
            raise self.store.interrupted(err) from err
        self.done[rows] = True

    def _keep(self, start: int) -> None:
        if self.store is not None and self.done[start : start + _CHUNK].any():
            part = slice(start, start + _CHUNK)
            arrays = {key: table.array for key, table in self.tables.items()}
            self.store.put(start, {"done": self.done[part], **{key: array[part] for key, array in arrays.items()}})
            forget(*arrays.values())


class _Store:
    """A folder of chunks of tiles that outlives an interruption; nothing but its own files may lie in it."""

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder, self.run = folder, run
        self.of = ""
        try:
            found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
            foreign = next((name for name in found if not _OWN_FILES.fullmatch(name)), None)
            known = read_json(folder / "run.json") if "run.json" in found else {}
        except (OSError, ValueError) as err:
            raise OutputError(f"{folder} is no folder to resume from ({err}); give another one.") from err
        whole = [name for name in found if not name.endswith(".part")]
        if foreign is None and whole and (not isinstance(known, dict) or known.get("format") != _FORMAT):
            foreign = whole[0]
        if foreign is not None:
            raise OutputError(f"{folder} holds {foreign}, which no run has written there; give another folder.")
        before = known.get("run") if isinstance(known, dict) else None
        other = [key for key in run if known and (not isinstance(before, dict) or before.get(key) != run[key])]
        if other:
            raise OutputError(
                f"{folder} holds a run with other {', '.join(other)}; give another folder, or delete this one."
            )

    def claim(self, genes: list[str], xy: np.ndarray, reader: TileReader) -> None:
        """Make the folder that of this run; what its tiles are goes into every chunk."""
        tiles = hashlib.sha256(xy.tobytes()).hexdigest()
        self.of = hashlib.sha256(json.dumps([self.run, genes, tiles, reader.side, reader.level]).encode()).hexdigest()
        make_folder(self.folder)
        write_text(self.folder / "run.json", json.dumps({"format": _FORMAT, "run": self.run}, indent=1))

    def chunks(self) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """What was stored, by the first tile. What cannot be read, after a loss of power, is predicted again."""
        for path in sorted(self.folder.glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    chunk = dict(arrays)
            except (OSError, ValueError, EOFError, BadZipFile):
                continue
            if str(chunk.pop("of", "")) != self.of:
                raise OutputError(f"{path} is of another run; give another folder, or delete this one.")
            yield int(path.stem), chunk

    def put(self, start: int, arrays: dict[str, np.ndarray]) -> None:
        """Store a chunk."""
        path = self.folder / f"{start}.npz"
        try:
            with writing(path) as part, open(part, "wb") as handle:
                np.savez(handle, of=np.array(self.of), **arrays)  # type: ignore[arg-type]
        except OutputError as err:
            raise self.interrupted(err) from err

    def interrupted(self, err: OutputError) -> OutputError:
        """What to say of an error that ends the run."""
        reason = str(err).removesuffix(".")
        return OutputError(f"{reason}; what was done before is kept, run again to continue.")


def _run(path: Path, options: dict[str, Any], **loaded: str) -> dict[str, Any]:
    """What the results of a slide follow from, by the words of `predict_tiles`."""
    stat = stat_of(path)
    followed = {name: asked for name, asked in followed_options(options).items() if name not in _AFTERWARDS}
    return {"slide": [str(path.resolve()), stat.st_size, stat.st_mtime_ns], **loaded, **followed}


def limits_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `predict_tiles` that say which slides are refused, as values that JSON can hold."""
    defaults = inspect.signature(predict_tiles).parameters
    return {name: int(options.get(name, defaults[name].default)) for name in _LIMITS}


def followed_options(options: dict[str, Any]) -> dict[str, Any]:
    """What of the options of `predict_tiles` its results follow from, as values that JSON can hold."""
    defaults = inspect.signature(predict_tiles).parameters
    followed = {name: options.get(name, defaults[name].default) for name in _FOLLOWED}
    # 400 and 400.0 are one distance
    followed |= {name: float(followed[name]) for name in _NUMBERS if followed[name] is not None}
    followed["genes"] = named_genes(followed["genes"])
    if followed["spots"] is not None:
        followed["spots"] = spots_hash(followed["spots"])
    return followed
