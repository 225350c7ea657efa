"""Stores of SpatialData: which spots or cells a table is of, and where these lie in an image.

What is needed is read here, and no more: tables of Visium HD fill the memory of most machines. zarr is given arrays of
codecs that are known alone, and does not follow consolidated metadata, which may state others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.flags import in_tissue
from tcgn_hub.data.transformations import moved, placed, scale_of
from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import NotOfThisReader, is_zarr, size_and_scale
from tcgn_hub.images.readers.ome_zarr import attributes_of, check_codecs
from tcgn_hub.images.scale import Scale
from tcgn_hub.text import option, some

_MICRONS = ("microns", "micrometers", "micrometer", "um", "µm")  # coordinate systems whose unit is said by the name
_XENIUM = ("cell_circles", "cell_boundaries", "nucleus_boundaries")  # whose own coordinates are micrometres
_SMALLER = re.compile(r".*_(hires|lowres|cytassist)_image")
_SQUARE_UM = re.compile(r"(?:.*_)?square_(\d{3})um")
_BINS = re.compile(r"_square_\d{3}um$")
_ONE_SIZE = 0.05  # by how much spots or bins of one size may differ in area


@dataclass(frozen=True)
class Found:
    """Spots of a table of a store, n of them.

    Attributes:
        path: The store.
        table: Name of the table.
        rows: Of it, ascending, int, shape (n,).
        names: Of the rows.
        xy: Centres as (x, y) in pixels of the image, float64, shape (n, 2).
        array: Places in the array as (row, column), int, shape (n, 2); None if there are none.
        diameter_px: Of a spot in pixels of the image; None of cells, which differ.
        scale: Of the image, as the store states it.
        image: The image; None if none was asked for and there is none.
        left_out: What is not among the spots, and how often.
    """

    path: Path
    table: str
    rows: np.ndarray
    names: list[str]
    xy: np.ndarray
    array: np.ndarray | None
    diameter_px: float | None
    scale: Scale | None
    image: Path
    left_out: dict[str, int]


def is_spatialdata(path: str | Path) -> bool:
    """Whether a folder is a store of SpatialData."""
    return is_zarr(path) and any((Path(path) / kind).is_dir() for kind in ("tables", "shapes"))


def find_spots(path: Path, *, library: str | None, image: Path | None, choose: str) -> Found:
    """The spots or cells of a table, in pixels of an image.

    ``path``: the store; ``library``: the table, or the element that it annotates, where there are several; ``image``:
    an image of the store, or any other, in whose pixels the elements are then taken to be; if None, the one of full
    resolution by the name of the spots, or the only one that is RGB; ``choose``: how the user is to name a table, for
    the error.
    """
    try:
        return _found(path, library, image, choose)
    except SectionError:
        raise
    except ImageError as err:
        raise SectionError(str(err)) from err
    except NotOfThisReader as err:
        raise SectionError(f"{path} cannot be read ({err}).") from err
    except Exception as err:  # of damage zarr, anndata and pyarrow say whatever comes of it
        raise SectionError(f"{path} is no store of SpatialData that can be read ({_first_line(err)}).") from err


def read_counts(found: Found) -> tuple[Any, list[str], list[str] | None, dict[str, int]]:
    """Counts of the spots (n, genes), names of the genes, their symbols if these are others, and what is left out."""
    try:
        group = _group(found.path / "tables" / found.table)
        var = _read(group["var"])
        layer = group["layers/counts"] if "layers/counts" in group else group["X"]
        counts = _read(layer)[found.rows]
        names, left_out = np.array([str(gene) for gene in var.index], object), {}
        column = next((name for name in ("gene_symbols", "gene_name") if name in var), None)
        symbols = None if column is None else var[column].astype(str).to_numpy()
        if "feature_types" in var and (genes := var["feature_types"].astype(str) == "Gene Expression").any():
            keep = np.flatnonzero(genes)
            if len(keep) < len(names):
                left_out["features that are no genes"] = len(names) - len(keep)
                counts, names = counts[:, keep], names[keep]
                symbols = None if symbols is None else symbols[keep]
        return counts, names.tolist(), None if symbols is None else symbols.tolist(), left_out
    except SectionError:
        raise
    except Exception as err:
        what = f"the table {found.table} of {found.path}"
        raise SectionError(f"The counts of {what} cannot be read ({_first_line(err)}).") from err


def in_squares(xy: np.ndarray, side_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Squares that points lie in: that of each point, shape (n,), and (column, row) of each square, row by row.

    ``side_px``: side of a square; the first begins at the upper left corner of the image.
    """
    places, of = np.unique(np.floor(xy[:, ::-1] / side_px).astype(int), axis=0, return_inverse=True)
    return of.ravel(), places[:, ::-1]


def check_binned(found: Found, bin_um: float | None) -> None:
    """Refuse cells without a size of the spots to bin them to."""
    if bin_um is None and found.diameter_px is None:
        raise SectionError(
            f"The table {found.table} of {found.path} is of {len(found.names)} cells; say how large the square spots"
            f" are that they are binned to, by {option('bin_um', 55)}."
        )


def _found(path: Path, library: str | None, image: Path | None, choose: str) -> Found:
    table, region = _chosen(path, library, choose)
    facts = attributes_of(path / "tables" / table)
    group = _group(path / "tables" / table)
    obs = _read(group["obs"])
    region_key, instance_key = str(facts["region_key"]), str(facts["instance_key"])
    mine = (obs[region_key].astype(str) == region).to_numpy()
    left_out = {}
    if "in_tissue" in obs:
        tissue = in_tissue(obs["in_tissue"], source=path)
        if (mine & ~tissue).any():
            left_out["spots not in tissue"] = int((mine & ~tissue).sum())
        mine &= tissue
    element, key = (region, instance_key)
    if not (path / "shapes" / region).is_dir():
        # spatialdata-io lets the table of Xenium annotate labels, whose outlines have the same ids
        element = next((name for name in ("cell_boundaries", "cell_circles") if (path / "shapes" / name).is_dir()), "")
        key = "cell_id"
        if not element or key not in obs:
            raise SectionError(f"{path}: the table {table} is of {region}, which is no element of its shapes.")
    centres, sizes, index = _shapes(path, element)
    instances = obs[key]
    if instances.dtype != index.dtype:
        instances, index = instances.astype(str), index.astype(str)
    at = index.get_indexer(instances)
    at[~np.isfinite(centres).all(axis=1)[at]] = -1  # an outline without points is nowhere
    lone = mine & (at < 0)
    if lone.any():
        left_out["spots without a shape"] = int(lone.sum())
    rows = np.flatnonzero(mine & (at >= 0))
    if not len(rows):
        raise SectionError(f"{path}: no row of the table {table} has a shape in {element}.")
    xy, sizes = centres[at[rows]], sizes[at[rows]]
    shapes = path / "shapes" / element
    where = placed(attributes_of(shapes)["coordinateTransformations"], element=str(shapes))
    image = _image(path, region) if image is None else image
    matrix, own = _to_image(path, element, where, image)
    factor = scale_of(matrix, what=f"{path}: {element} lies in {image}")
    alike = sizes.max() / max(sizes.min(), 1e-12) - 1 <= _ONE_SIZE
    diameter = float(np.median(sizes)) ** 0.5 if alike else None
    array = None
    if {"array_row", "array_col"} <= set(obs):
        array = obs[["array_row", "array_col"]].to_numpy(np.float64)[rows].astype(int)
    return Found(
        path=path,
        table=table,
        rows=rows,
        names=[str(obs.index[i]) for i in rows],
        xy=moved(matrix, xy),
        array=array,
        diameter_px=None if diameter is None else diameter * factor,
        scale=_scale(path, element, diameter, factor, where, own),
        image=image,
        left_out=left_out,
    )


def _chosen(path: Path, library: str | None, choose: str) -> tuple[str, str]:
    """A table, and the element of which its rows are wanted."""
    folder = path / "tables"
    names = sorted(one.name for one in folder.iterdir() if is_zarr(one)) if folder.is_dir() else []
    there: list[tuple[str, str]] = []
    for name in names:
        region = attributes_of(folder / name).get("region")
        there += [(name, str(one)) for one in ([region] if isinstance(region, str) else region or [])]
    if not there:
        raise SectionError(f"{path} has no table that annotates spots or cells.")
    fits = [one for one in there if library in (None, *one)]
    # a table of one element is called as the element or as the table
    twice = [name for name, _ in there]
    known = [region if twice.count(name) > 1 else name for name, region in there]
    if not fits:
        raise SectionError(f"{path} has no table {library}; there are {some(known, 20)}.")
    if len(fits) > 1:
        raise SectionError(f"{path} holds {len(there)} tables of spots ({some(known)}); {choose}.")
    return fits[0]


def _shapes(path: Path, element: str) -> tuple[np.ndarray, np.ndarray, Any]:
    """Of the shapes of an element their centres (n, 2), their areas (n,), of a circle that of its square, and index."""
    geopandas = require("geopandas", extra="spatialdata", to="read shapes of SpatialData")
    file = path / "shapes" / element / "shapes.parquet"
    if not file.is_file():
        raise SectionError(f"{path} has no {file.relative_to(path)}; if spatialdata reads it, let it write it anew.")
    frame = geopandas.read_parquet(file)
    centres = frame.geometry.centroid
    areas = (2 * frame["radius"]) ** 2 if "radius" in frame else frame.geometry.area
    return np.stack([centres.x, centres.y], axis=1), areas.to_numpy(np.float64), frame.index


def _image(path: Path, region: str) -> Path:
    """The image in H&E that there is at full resolution."""
    folder = path / "images"
    names = sorted(one.name for one in folder.iterdir() if is_zarr(one)) if folder.is_dir() else []
    full = [name for name in names if not _SMALLER.fullmatch(name) and _is_he(folder / name)]
    named = f"{_BINS.sub('', region)}_full_image"
    if named in full:
        return folder / named
    if len(full) != 1:
        what = f"several images in H&E ({some(full)})" if full else "no image in H&E at full resolution"
        there = f", such as {folder / (full or names)[0]}" if names else ""
        raise SectionError(
            f"{path} has {what}; name one in the column image of a sample sheet (a CSV with the columns section,"
            f" patient, data, image){there}."
        )
    return folder / full[0]


def _is_he(image: Path) -> bool:
    try:
        size_and_scale(image)
    except ImageError:
        return False
    return True


def _to_image(
    path: Path, element: str, where: Mapping[str, np.ndarray], image: Path
) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """The matrix from the shapes to pixels of an image, and where that lies itself."""
    inside = os.path.realpath(image).startswith(os.path.realpath(path / "images") + os.sep)
    if not inside:
        # where they lie as they are in micrometres, they are no pixels
        pixels = [matrix for name, matrix in where.items() if name not in _MICRONS]
        if not any(np.allclose(matrix, np.eye(3)) for matrix in pixels):
            raise SectionError(
                f"{element} of {path} is not in pixels of an image; give one of its own, {path / 'images'}/NAME, as"
                f" how {image} lies is not known."
            )
        return np.eye(3), {}
    stated = (attributes_of(image).get("multiscales") or [{}])[0].get("coordinateTransformations")
    own = placed(stated, element=f"{image}")
    common = [name for name in where if name in own]
    if not common:
        raise SectionError(
            f"{element} and {image} have no coordinate system in common: one lies in {some(where)}, the other in"
            f" {some(own)}; align them first."
        )
    system = "global" if "global" in common else common[0]
    if abs(np.linalg.det(own[system])) < 1e-12:
        raise SectionError(f"{image} is placed in {system} by a transformation that cannot be inverted.")
    return np.linalg.inv(own[system]) @ where[system], own


def _scale(
    path: Path,
    element: str,
    diameter: float | None,
    factor: float,
    where: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
) -> Scale | None:
    """The scale of the image, where the store states something in micrometres.

    ``diameter``: of a spot in the unit of the shapes; ``factor``: pixels of the image in that unit; ``where``: the
    shapes lie; ``own``: where the image does.
    """
    if element in _XENIUM:
        return Scale(1 / factor, f"{element} of {path}, which is in micrometres")
    bins = _SQUARE_UM.fullmatch(element)
    if bins and diameter:
        return Scale(float(bins[1]) / (diameter * factor), f"the bins of {element} of {path}")
    for systems, pixels in ((own, 1.0), (where, factor)):
        name = next((name for name in _MICRONS if name in systems), None)
        if name is not None:
            um = scale_of(systems[name], what=f"{path} is placed in {name}")
            return Scale(um / pixels, f"the coordinate system {name} of {path}")
    return None


# zarr


def _group(folder: Path) -> Any:
    """A group as zarr opens it, of codecs that are known."""
    zarr = require("zarr", extra="spatialdata", to="read SpatialData")
    check_codecs(folder)
    return zarr.open_group(folder, mode="r", use_consolidated=False)


def _read(group: Any) -> Any:
    return require("anndata.io", extra="spatialdata", to="read SpatialData").read_elem(group)


def _first_line(err: Exception) -> str:
    return " ".join(str(err).split())[:300] or type(err).__name__
