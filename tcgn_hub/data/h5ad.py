"""What an .h5ad file says of its spots: where they are, which are in tissue, and of which section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.flags import in_tissue
from tcgn_hub.data.hdf5 import check_heaps, check_sizes
from tcgn_hub.errors import SectionError
from tcgn_hub.extras import require
from tcgn_hub.text import some

SECTION_OF = ("library_id", "library", "section_id", "section", "sample_id", "sample", "slide_id", "batch")
_X, _Y = (
    ("x", "pxl_col_in_fullres", "pixel_x", "imagecol", "x_pixel", "col", "column"),
    ("y", "pxl_row_in_fullres", "pixel_y", "imagerow", "y_pixel", "row"),
)
_LEAST_SPOTS = 3  # a section; a column that differs from spot to spot names no sections
_SHARED = 0.05  # of the spots may be given a place twice by mistake
JOINTS = "-_:."


def open_h5ad(path: Path, *, backed: bool = False) -> Any:
    """The AnnData of a file, without its counts in memory if ``backed``."""
    anndata = require("anndata", extra="h5ad", to="read .h5ad files")
    try:
        check_heaps(path)
        check_sizes(path, counts=not backed)
        return anndata.read_h5ad(path, backed="r" if backed else None)
    except Exception as err:  # anndata and h5py fail in many ways on what is damaged, old, or newer than they are
        raise SectionError(f"{path} is no .h5ad file that can be read ({' '.join(str(err).split())[:300]}).") from err


def positions(data: Any, path: Path) -> np.ndarray:
    """Centres of all spots as (x, y), float64, shape (n, 2)."""
    if "spatial" not in data.obsm:
        raise SectionError(f"{path} has no obsm['spatial'], the positions of the spots in pixels of the image.")
    found = data.obsm["spatial"]
    if hasattr(found, "columns"):
        column = {str(name).strip().lower(): name for name in found.columns}
        x, y = (next((column[name] for name in names if name in column), None) for names in (_X, _Y))
        found = found if x is None or y is None else found[[x, y]]
    try:
        xy = np.asarray(found, np.float64)
    except (ValueError, TypeError) as err:
        raise SectionError(f"{path}: obsm['spatial'] holds what is no number ({err}).") from err
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise SectionError(f"{path}: obsm['spatial'] has the shape {xy.shape}; give (x, y) of every spot.")
    return xy[:, :2]


def chosen(data: Any, path: Path, library: str | None, *, choose: str) -> tuple[np.ndarray, str | None]:
    """Which spots are of the section that is meant, bool, shape (n,), and its name if the file names any.

    ``library``: the section, None if the file holds one; ``choose``: how the user is to name one, for the error.
    """
    owner, named = _owners(data, path)
    names = list(dict.fromkeys(owner)) if owner is not None else named
    if library is None and len(names) > 1:
        raise SectionError(f"{path} holds {len(names)} sections ({some(names)}); {choose}.")
    if library is not None and library not in names:
        there = f"there are {some(names, 20)}" if names else "it names none"
        raise SectionError(f"{path} has no section {library}; {there}.")
    name = library or next(iter(names), None)
    mine = np.ones(data.n_obs, bool) if owner is None else np.array([one == name for one in owner], bool)
    array = array_of(data)
    if array is not None:
        check_one_section(array[mine], path)
    return mine, name


def check_one_section(array: np.ndarray, path: Path) -> None:
    """Refuse spots that share places of their array, (row, column) of each, as those of several sections do."""
    places = len(np.unique(array, axis=0))
    # where all are given one place, it says nothing
    if places >= _LEAST_SPOTS and len(array) - places > _SHARED * len(array):
        raise SectionError(
            f"{path} holds several sections, as its {len(array)} spots have but {places} places in the array; save one"
            " file a section, or name the section of each spot in a column library_id of obs."
        )


def tissue_of(data: Any, of_section: np.ndarray, path: Path) -> np.ndarray:
    """Which of a section's spots are in tissue, bool, shape (spots of the section,); all if the file does not say."""
    column = data.obs.get("in_tissue")
    return np.ones(int(of_section.sum()), bool) if column is None else in_tissue(column[of_section], source=path)


def array_of(data: Any) -> np.ndarray | None:
    """Places of all spots in their array as (row, column), int, shape (n, 2); None if the file does not say."""
    if not {"array_row", "array_col"} <= set(data.obs):
        return None
    try:
        places = np.asarray(data.obs[["array_row", "array_col"]], np.float64)
    except (ValueError, TypeError):
        return None
    return places.astype(int) if np.isfinite(places).all() else None


def library_of(data: Any, name: str | None) -> dict[str, Any]:
    """What ``uns['spatial']`` holds of a section: scalefactors, images, metadata; of the only one if it has no name."""
    libraries = _libraries(data)
    found = libraries.get(name or "", next(iter(libraries.values())) if len(libraries) == 1 else {})
    return dict(found) if isinstance(found, Mapping) else {}


def _libraries(data: Any) -> dict[str, Any]:
    found = data.uns.get("spatial", {})
    return {str(name): value for name, value in found.items()} if isinstance(found, Mapping) else {}


def _owners(data: Any, path: Path) -> tuple[list[str] | None, list[str]]:
    """The section of each spot, None if all are of one; and the sections that ``uns['spatial']`` names."""
    named = list(_libraries(data))
    columns = {name: [str(value) for value in data.obs[name]] for name in SECTION_OF if name in data.obs}
    for values in columns.values():
        if named and values and set(values) <= set(named):
            return values, named
    for values in columns.values():
        if 1 < len(set(values)) <= len(values) // _LEAST_SPOTS:
            return values, named
    if len(named) < 2:
        return None, named
    # the names of spots, which concatenating has made differ
    owner = [_owner(str(spot), named) for spot in data.obs_names]
    if None in owner:
        raise SectionError(
            f"{path} holds {len(named)} sections ({some(named)}), and no column of obs, such as library_id, says of"
            " which a spot is; save one file a section."
        )
    return [str(name) for name in owner], named


def _owner(spot: str, named: list[str]) -> str | None:
    fits = [
        name
        for name in named
        if any(spot.endswith(f"{joint}{name}") or spot.startswith(f"{name}{joint}") for joint in JOINTS)
    ]
    return max(fits, key=len, default=None)
