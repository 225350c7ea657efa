"""Places of spots in tissue, of whatever file lists them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from tcgn_hub.data.hdf5 import check_heaps
from tcgn_hub.errors import ExtraError, SectionError
from tcgn_hub.extras import require
from tcgn_hub.images.tiles import Tiles

_VISIUM = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


def read_spots(path: str | Path) -> Tiles:
    """Spots in tissue from a file: a her2st selection, Space Ranger's ``tissue_positions``, or an h5ad.

    ``path``: ``.tsv`` with pixel_x and pixel_y; ``.csv`` with or without a header, or ``.parquet``; ``.h5ad`` with
    obsm['spatial'].
    """
    path = Path(path)
    if not path.is_file():
        raise SectionError(f"The spots file {path} does not exist.")
    try:
        if path.suffix == ".h5ad":
            tiles = _spots_of_h5ad(path)
        elif path.suffix == ".parquet":
            table = require("pyarrow.parquet", extra="parquet", to="read .parquet files").read_table(path).to_pydict()
            tiles = _visium([dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])
        else:
            tiles = _spots_of_text(path)
    except ExtraError:
        raise
    except Exception as err:  # of damage h5py, anndata and pyarrow say whatever comes of it
        raise SectionError(
            f"{path} is not a file of spots ({err}); give a her2st selection, tissue_positions of Space Ranger, or an"
            " h5ad with obsm['spatial']."
        ) from err
    if not len(tiles):
        raise SectionError(f"{path} has no spot in tissue.")
    if not np.isfinite(tiles.xy).all():
        raise SectionError(f"{path} has spots whose position is not a number.")
    return tiles


def _spots_of_text(path: Path) -> Tiles:
    with open(path, newline="", encoding="utf-8-sig") as handle:
        first = handle.readline()
        handle.seek(0)
        if "pixel_x" in first:
            rows = list(csv.DictReader(handle, delimiter="\t"))
            x, y = (np.array([round(float(row[key])) for row in rows], int) for key in ("x", "y"))
            xy = np.array([[float(row["pixel_x"]), float(row["pixel_y"])] for row in rows], float).reshape(-1, 2)
            return Tiles([f"{a}x{b}" for a, b in zip(x, y, strict=True)], xy, y, x)
        # Space Ranger wrote the table without a header before version 2
        names = None if first.startswith("barcode") else _VISIUM
        return _visium(list(csv.DictReader(handle, fieldnames=names)))


def _visium(rows: list[dict]) -> Tiles:
    rows = [row for row in rows if int(row["in_tissue"])]
    xy = [[float(row["pxl_col_in_fullres"]), float(row["pxl_row_in_fullres"])] for row in rows]
    array = [[int(row["array_row"]), int(row["array_col"])] for row in rows]
    array_row, array_col = np.array(array, int).reshape(-1, 2).T
    return Tiles([row["barcode"] for row in rows], np.array(xy, float).reshape(-1, 2), array_row, array_col)


def _spots_of_h5ad(path: Path) -> Tiles:
    anndata = require("anndata", extra="h5ad", to="read .h5ad files")
    check_heaps(path)
    data = anndata.read_h5ad(path, backed="r")
    xy = np.asarray(data.obsm["spatial"], float)[:, :2]
    obs = data.obs
    keep = np.asarray(obs["in_tissue"]).astype(bool) if "in_tissue" in obs else np.ones(len(obs), bool)
    row, col = (
        np.asarray(obs[key]).astype(int) if key in obs else np.arange(len(obs)) for key in ("array_row", "array_col")
    )
    return Tiles(list(obs.index.astype(str)), xy, row, col).at(keep)
