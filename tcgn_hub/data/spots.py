"""Places of spots in tissue, of whatever file lists them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.flags import in_tissue
from tcgn_hub.data.h5ad import array_of, check_one_section, chosen, open_h5ad, positions, tissue_of
from tcgn_hub.data.sections import file_hash
from tcgn_hub.data.spatialdata import check_binned, find_spots, in_squares, is_spatialdata
from tcgn_hub.data.tables import open_table
from tcgn_hub.errors import SectionError
from tcgn_hub.extras import require
from tcgn_hub.images.tiles import Tiles
from tcgn_hub.text import option, some

POSITIONS = ("tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.parquet")
"""What Space Ranger has called its file of positions, in its folder ``spatial``."""

_VISIUM = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
SPOT_NAMES = ("barcode", "name", "spot", "spot_id", "id", "index", "__index_level_0__", "")
_ACCEPTED = (
    "give a table with the columns x and y in pixels at full resolution, tissue_positions of Space Ranger, a her2st"
    " selection, an h5ad with obsm['spatial'], or a store of SpatialData"
)


def check_spots_file(path: str | Path) -> None:
    """Refuse what is no file of spots, and name the one that may be meant where it is a folder."""
    path = Path(path)
    if is_spatialdata(path):
        return
    if path.is_dir():
        files = [folder / name for folder in (path, *_spatial(path)) for name in POSITIONS]
        inside = some(str(file) for file in files if file.is_file())
        raise SectionError(f"{path} is a folder; give a file of spots" + (f", such as {inside}." if inside else "."))
    if not path.is_file():
        raise SectionError(f"The spots file {path} does not exist.")


def spots_hash(path: str | Path) -> str:
    """SHA-256 of a file of spots; of a SpatialData, of its tables and shapes."""
    path = Path(path)
    if not is_spatialdata(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    parts = [file_hash(path / kind) for kind in ("tables", "shapes") if (path / kind).is_dir()]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def binned_folders(outs: Path) -> list[Path]:
    """The folders of Visium HD below ``outs``, one a size of bins, each laid out as ``outs`` is of Visium."""
    binned = outs / "binned_outputs"
    found = sorted(binned.glob("square_*")) if binned.is_dir() else []
    return [folder for folder in found if (folder / "spatial").is_dir()]


def _spatial(folder: Path) -> list[Path]:
    """The folders ``spatial`` of Space Ranger that are meant by the one of a run, its ``outs``, or one of bins."""
    outs = folder / "outs" if (folder / "outs").is_dir() else folder
    return [one / "spatial" for one in (outs, *binned_folders(outs))]


def read_spots(
    path: str | Path,
    *,
    library: str | None = None,
    bin_um: float | None = None,
    image: Path | None = None,
    mpp: float | None = None,
) -> Tiles:
    """Spots in tissue from a file: a plain table, a her2st selection, ``tissue_positions``, an h5ad, or a SpatialData.

    ``path``: a table (CSV, TSV, also with semicolons or compressed by gzip) or ``.parquet`` with pixel_x and pixel_y,
    with the columns of Space Ranger, with or without a header, or with x and y; ``.h5ad`` with obsm['spatial']; or a
    store of SpatialData. ``library``: the section of an h5ad, or the table of a store, that holds several. The column
    ``in_tissue``, if there is one, says which spots are wanted. Of a store also ``image``: the image in whose pixels
    they are wanted, see `tcgn_hub.data.spatialdata.find_spots`; ``bin_um``: side in micrometres of the squares that
    have cells, or spots, in them, and are wanted in place of these; ``mpp``: micrometres per pixel of the image.
    """
    path = Path(path)
    check_spots_file(path)
    is_store = is_spatialdata(path)
    if library is not None and path.suffix != ".h5ad" and not is_store:
        raise SectionError(f"{path} holds the spots of one section; leave {option('library')} out.")
    if bin_um is not None and not is_store:
        raise SectionError(f"{path} is no store of SpatialData, whose cells are binned; leave {option('bin_um')} out.")
    if is_store:
        tiles = _spots_of_store(path, library, bin_um, image, mpp)
    elif path.suffix == ".h5ad":
        tiles = _spots_of_h5ad(path, library)
    else:
        table = _parquet(path) if path.suffix == ".parquet" else _text(path)
        try:
            tiles = _spots_of_table(table, path)
        except SectionError:
            raise
        except (ValueError, TypeError, OverflowError) as err:
            raise SectionError(f"{path} is not a file of spots ({err}); {_ACCEPTED}.") from err
    if not len(tiles):
        raise SectionError(f"{path} lists no spot in tissue.")
    if not np.isfinite(tiles.xy).all():
        raise SectionError(f"{path} has spots whose position is not a number.")
    twice = [name for name, count in Counter(tiles.names).items() if count > 1]
    if twice:
        raise SectionError(f"{path} names the spot {twice[0]} more than once; give each a name of its own.")
    return tiles


def _parquet(path: Path) -> dict[str, Sequence[Any]]:
    parquet = require("pyarrow.parquet", extra="parquet", to="read .parquet files")
    try:
        table = parquet.read_table(path)
        return {str(name).strip().lower(): table.column(i).to_pylist() for i, name in enumerate(table.column_names)}
    except Exception as err:  # of damage pyarrow says whatever comes of it
        raise SectionError(f"{path} is not a file of spots ({err}); {_ACCEPTED}.") from err


def _text(path: Path) -> dict[str, Sequence[Any]]:
    with open_table(path) as lines:
        rows = [row for row in ([cell.strip() for cell in line] for line in lines) if any(row)]
    header = [name.lower() for name in rows[0]] if rows else []
    if len(header) == len(_VISIUM) and header[1] in ("0", "1", "true", "false"):
        # Space Ranger wrote the table without a header before version 2
        header = list(_VISIUM)
    else:
        rows = rows[1:]
    if rows and all(len(row) == len(header) + 1 for row in rows):
        # R leaves the column of the names of rows without a name
        header = ["name", *header]
    odd = next((row for row in rows if len(row) < len(header) or any(row[len(header) :])), None)
    if odd is not None:
        raise SectionError(f"{path} has a row of {len(odd)} cells, but {len(header)} columns: {', '.join(odd)}.")
    return dict(zip(header, zip(*rows, strict=False), strict=False)) if rows else dict.fromkeys(header, ())


def _spots_of_table(table: dict[str, Sequence[Any]], path: Path) -> Tiles:
    """The spots of columns by name, in lower case."""
    for x, y in (
        ("pixel_x", "pixel_y"),
        ("pxl_col_in_fullres", "pxl_row_in_fullres"),
        ("imagecol", "imagerow"),
        ("x", "y"),
    ):
        if x in table and y in table:
            break
    else:
        raise ValueError(f"its columns are {some(table) or 'none'}")
    count = len(table[x])
    keep = list(range(count))
    if "in_tissue" in table:
        keep = np.flatnonzero(in_tissue(table["in_tissue"], source=path)).tolist()
    xy = np.array([[_number(table[axis][i], axis) for axis in (x, y)] for i in keep], float).reshape(-1, 2)
    names = next((table[name] for name in SPOT_NAMES if name in table), None)
    if x == "pixel_x" and {"x", "y"} <= table.keys():
        col, row = (np.array([round(_number(table[axis][i], axis)) for i in keep], int) for axis in "xy")
        return Tiles([f"{a}x{b}" for a, b in zip(col, row, strict=True)], xy, row, col)
    array = [
        np.array([int(_number(table[name][i], name)) for i in keep] if name in table else keep, int)
        for name in ("array_row", "array_col")
    ]
    if {"array_row", "array_col"} <= table.keys():
        check_one_section(np.stack(array, axis=1), path)
    return Tiles([str(i if names is None else names[i]) for i in keep], xy, *array)


def _number(value: Any, column: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"its column {column} has '{value}', which is not a number") from None


def _spots_of_store(
    path: Path, library: str | None, bin_um: float | None, image: Path | None, mpp: float | None
) -> Tiles:
    found = find_spots(path, library=library, image=image, choose=f"choose one with {option('library', 'NAME')}")
    check_binned(found, bin_um)
    if bin_um is None:
        rows, cols = (found.rows, found.rows) if found.array is None else found.array.T
        return Tiles(found.names, found.xy, rows, cols)
    if mpp is None:
        raise SectionError(f"{path} cannot be binned without a scale of its image; give {option('mpp')}.")
    _, places = in_squares(found.xy, bin_um / mpp)
    cols, rows = places.T
    names = [f"{row}x{col}" for row, col in zip(rows, cols, strict=True)]
    return Tiles(names, (places + 0.5) * (bin_um / mpp), rows, cols)


def _spots_of_h5ad(path: Path, library: str | None) -> Tiles:
    data = open_h5ad(path, backed=True)
    try:
        xy = positions(data, path)
        mine, _ = chosen(data, path, library, choose=f"choose one with {option('library', 'NAME')}")
        keep = np.flatnonzero(mine)[tissue_of(data, mine, path)]
        array = array_of(data)
        rows, cols = (keep, keep) if array is None else array[keep].T
        return Tiles([str(data.obs_names[i]) for i in keep], xy[keep], rows, cols)
    except SectionError:
        raise
    except Exception as err:  # of damage h5py and anndata say whatever comes of it
        raise SectionError(f"{path} is not a file of spots ({err}); {_ACCEPTED}.") from err
    finally:
        data.file.close()
