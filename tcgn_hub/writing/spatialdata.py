"""Results as stores of SpatialData."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.devices import usable_cores
from tcgn_hub.errors import OutputError
from tcgn_hub.extras import require
from tcgn_hub.files import read_json, writing_folder
from tcgn_hub.result import Result, writer
from tcgn_hub.text import option, some
from tcgn_hub.writing.anndata import ARRAY
from tcgn_hub.writing.tables import rows_of

_KINDS = ("images", "labels", "points", "shapes", "tables")
_OWN = ("images/wsi", "shapes/tiles", "shapes/region_of_interest", "tables/table")
_CHUNK_BYTES = 1 << 22


@writer(".zarr", needs="spatialdata", extra="spatialdata")
def write_zarr(path: Path, result: Result, *, image: str = "link") -> None:
    """Write what `Result.to_spatialdata` gives, its tables some rows and its pixels some parts at a time.

    ``image``: 'link': of the slide the overview, and where it lies, in ``attrs['tcgn']['slide_path']``; 'copy': all
    levels. Parts that cannot be decoded are white then, and ``attrs['tcgn']['image_parts_lost']`` counts them.
    """
    check_replaced(path)
    if result.slide is not None and path.resolve() in result.slide.path.resolve().parents:
        raise OutputError(f"{path} cannot be written: it holds the slide, {result.slide.path}; give another name.")
    if image not in ("link", "copy"):
        raise OutputError(f"{option('image', image)} is neither link nor copy.")
    zarr, dask = (require(name, extra="spatialdata", to="write SpatialData") for name in ("zarr", "dask"))
    lost: list[str] = []
    wanted = "slide" if image == "copy" else "overview"
    data = result.elements(result.annotations(copy=False), image=wanted, lost=lost)
    # a worker of a cluster would wait for itself to read what its task is made of
    here = dask.config.set(scheduler="threads", num_workers=usable_cores())
    with writing_folder(path) as part, warnings.catch_warnings(), here:
        warnings.simplefilter("ignore")  # of what zarr and anndata are going to do otherwise one day
        data.write(part)
        root = zarr.open_group(part, mode="r+", use_consolidated=False)
        for place, table in result.tables().items():
            _write_table(root["tables/table"], place, table, result)
        if lost:
            root.attrs["tcgn"] = {**root.attrs["tcgn"], "image_parts_lost": len(lost)}
        data.write_consolidated_metadata()


def check_replaced(path: Path) -> None:
    """Refuse to replace a folder that this package has not written, or to which others have added something."""
    if not path.is_dir():
        return
    found = [f"{folder.parent.name}/{folder.name}" for kind in _KINDS for folder in sorted(path.glob(f"{kind}/*/"))]
    added = [name for name in found if name not in _OWN]
    what = f"it holds {some(added)}" if _is_own(path) and added else "it is a folder"
    if added or not _is_own(path):
        raise OutputError(
            f"{path} cannot be written: {what} that tcgn_hub has not written; give another name, or delete it."
        )


def _is_own(path: Path) -> bool:
    try:
        return "tcgn" in read_json(path / "zarr.json")["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_table(group: Any, place: str, table: Callable[[slice], np.ndarray], result: Result) -> None:
    """A table at its place, some rows at a time."""
    kind = table(slice(0))
    row_bytes = kind.dtype.itemsize * int(np.prod(kind.shape[1:]))
    rows = max(1, min(len(result), _CHUNK_BYTES // max(row_bytes, 1)))
    shape = len(result), *kind.shape[1:]
    chunks = tuple(max(1, side) for side in (rows, *kind.shape[1:]))
    array = group.create_array(place, shape=shape, dtype=kind.dtype, chunks=chunks, attributes=ARRAY)
    for part in rows_of(result, rows):
        array[part] = table(part)
