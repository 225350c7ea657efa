"""The one way in: sections from whatever holds them, told by its content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tcgn_hub.data.readers.bulk import find_bulk
from tcgn_hub.data.readers.h5ad import hest_names, is_hest, read_h5ad, read_hest
from tcgn_hub.data.readers.her2st import her2st_names, is_her2st, read_her2st
from tcgn_hub.data.readers.patches import find_patches
from tcgn_hub.data.readers.spatialdata import read_spatialdata
from tcgn_hub.data.readers.visium import is_visium, read_visium, visium_name
from tcgn_hub.data.sections import Section
from tcgn_hub.data.spatialdata import is_spatialdata
from tcgn_hub.data.tables import columns_of, mpp_in, number, read_rows
from tcgn_hub.errors import SectionError
from tcgn_hub.images.readers import is_zarr
from tcgn_hub.images.scale import given_scale
from tcgn_hub.text import option, some

_Found = dict[str, Callable[[], Section]]

_ACCEPTED = (
    "give a folder of her2st, Space Ranger or HEST-1k, an .h5ad, a store of SpatialData, or a table with the columns"
    " section, patient, data (a sample sheet), patch, section, patient (patches), or slide, patient and genes (bulk"
    " RNA-seq)"
)


def read_sections(
    source: str | Path | Sequence[str | Path],
    *,
    names: Sequence[str] | None = None,
    expression: str | Path | None = None,
    mpp: float | None = None,
    study: str | None = None,
    tiles_um: float = 77.0,
    bin_um: float | None = None,
    force_scale: bool = False,
) -> list[Section]:
    """Sections with measured expression, from one source or several.

    A source is one of these, told by its content:

    - a folder in the layout of almaan/her2st;
    - the folder ``outs`` of Space Ranger, or the one that holds it; of Visium HD, one of the folders in its
      ``binned_outputs``; its patient is the name of the run;
    - an ``.h5ad``; its patient is the name of the section if the file does not say;
    - a folder in the layout of HEST-1k;
    - a store of SpatialData, with the elements that spatialdata-io makes of Visium, Visium HD and Xenium, see
      `tcgn_hub.data.readers.spatialdata.read_spatialdata`;
    - a sample sheet, a CSV with the columns section, patient, data (one of the above, relative to the sheet), and
      optionally image, mpp, study, library, the section of an ``.h5ad`` or the table of a store that holds several, and
      bin_um;
    - a CSV of patches with the columns patch, section, patient, and optionally spot, x, y, mpp, together with
      ``expression``;
    - a CSV with the columns slide and patient, then genes: bulk RNA-seq, see `tcgn_hub.data.readers.bulk.read_bulk`.

    Args:
        source: Path or paths.
        names: Sections to read, in this order; all if None.
        expression: Table of spots by genes for patches.
        mpp: Micrometres per pixel of every image, in place of what the sources say.
        study: The study that all sections are from, in place of what the sources say, which is 'own' mostly: weights
            know the sections and patients that they have seen by study and name, see `tcgn_hub.weights.lineage`.
        tiles_um: Side of the tiles of slides with bulk RNA-seq, in micrometres.
        bin_um: Side of the square spots that the cells of a store of SpatialData are binned to, in micrometres, and its
            spots if there are any; in place of what a sheet says.
        force_scale: Believe ``mpp``, or what a source says, although the image or the distance of the spots is more
            than 40 % off. `Section.doubts` says of all that is more than 5 % off.

    Raises:
        SectionError: A source is missing, malformed or of no such kind, two sections have one name, a name is unknown,
            or what is said of a scale does not fit together.
        ImageError: ``mpp`` cannot be the scale of a histology image.
        ExtraError: A package to read a source is not installed.
    """
    given_scale(mpp, None)
    paths = [Path(path) for path in ([source] if isinstance(source, (str, Path)) else source)]
    table = None if expression is None else Path(expression)
    found: _Found = {}
    used = False
    for path in paths:
        kind = _kind(path)
        used = used or kind == "patches"
        for name, read in _find(path, kind, table, tiles_um, bin_um, mpp=mpp, force_scale=force_scale).items():
            if name in found:
                raise SectionError(f"Two sections are named {name}, one of them in {path}; rename one.")
            found[name] = read
    if table is not None and not used:
        raise SectionError(f"{table} is the expression of patches, but no table of patches is given.")
    unknown = [name for name in names or () if name not in found]
    if unknown:
        raise SectionError(
            f"There is no section {', '.join(unknown)} in {', '.join(map(str, paths))}; there are {some(found, 20)}."
        )
    sections = [found[name]() for name in (found if names is None else names)]
    return [replace(section, study=study) for section in sections] if study else sections


def kind_of_folder(folder: Path) -> str | None:
    """Which of the layouts that sections are read from a folder has, whatever else lies in it; None if it has none."""
    layouts = (("her2st", is_her2st), ("visium", is_visium), ("hest", is_hest), ("spatialdata", is_spatialdata))
    return next((kind for kind, test in layouts if test(folder)), None)


def _kind(path: Path) -> str:
    try:
        there = path.exists()
    except (OSError, ValueError) as err:  # such as a name that is too long
        raise SectionError(f"{path!s:.200} cannot be a file; {_ACCEPTED}.") from err
    if not there:
        raise SectionError(f"{path} does not exist; {_ACCEPTED}.")
    if path.is_dir():
        kind = kind_of_folder(path)
        if kind is not None:
            return kind
    elif path.suffix == ".h5ad":
        return "h5ad"
    elif path.name.removesuffix(".gz").endswith((".csv", ".tsv", ".txt")):
        columns = columns_of(path)
        for kind, needed in (("sheet", {"section", "patient", "data"}), ("patches", {"patch", "section", "patient"})):
            if needed <= set(columns):
                return kind
        if columns[:2] == ["slide", "patient"]:
            return "bulk"
    raise SectionError(f"{path} is nothing that sections can be read from; {_ACCEPTED}.")


def _find(
    path: Path, kind: str, expression: Path | None, tiles_um: float, bin_um: float | None, **scale: Any
) -> _Found:
    """The sections of a source by name, each to be read by a call."""
    if kind == "sheet":
        return _of_sheet(path, bin_um=bin_um, **scale)
    known: dict[str, Any] = {} if bin_um is None else {"bin_um": _binned(path, kind, bin_um)}
    if kind == "bulk":
        return find_bulk(path, patch_um=tiles_um, **scale)
    if kind == "patches":
        if expression is None:
            raise SectionError(f"{path} is a table of patches; give the expression of their spots too.")
        return find_patches(path, expression, **scale)
    return _of_data(path, kind, **scale, **known)


def _binned(path: Path, kind: str, bin_um: float) -> float:
    """The side of the spots to bin to, if there is something to be binned."""
    if kind != "spatialdata":
        raise SectionError(f"{path} is no store of SpatialData, whose cells are binned; leave {option('bin_um')} out.")
    if not 0 < bin_um < float("inf"):
        raise SectionError(f"{bin_um:g} um cannot be the side of a spot to bin cells of {path} to.")
    return bin_um


def _of_data(path: Path, kind: str, *, mpp: float | None, force_scale: bool, **known: Any) -> _Found:
    """The sections of a folder, store or .h5ad; what is known of them goes to the readers that would look for it."""
    scale: dict[str, Any] = {"mpp": mpp, "force_scale": force_scale}
    if kind in ("her2st", "hest"):
        names, read = (her2st_names, read_her2st) if kind == "her2st" else (hest_names, read_hest)
        return {name: partial(_one, partial(read, **scale), path, name) for name in names(path)}
    if kind == "visium":
        return {visium_name(path): partial(read_visium, path, **scale, **known)}
    read_one = read_spatialdata if kind == "spatialdata" else read_h5ad
    return {path.stem: partial(read_one, path, **scale, **known)}


def _one(read: Callable[[Path, list[str]], list[Section]], path: Path, name: str) -> Section:
    return read(path, [name])[0]


def _of_sheet(sheet: Path, *, mpp: float | None, bin_um: float | None, force_scale: bool) -> _Found:
    found: _Found = {}
    for row in read_rows(sheet):
        name, patient = row["section"], row["patient"]
        if not (name and patient and row["data"]):
            raise SectionError(f"{sheet} has a row without section, patient or data: {', '.join(row.values())}.")
        if name in found:
            raise SectionError(f"{sheet} names the section {name} more than once; give each a name of its own.")
        data = sheet.parent / row["data"]
        image = sheet.parent / row["image"] if row.get("image") else None
        if image is not None and not (image.is_file() or is_zarr(image)):
            raise SectionError(f"{sheet} gives section {name} the image {image}, which does not exist.")
        kind = _kind(data)
        if kind in ("sheet", "patches", "bulk"):
            raise SectionError(f"{sheet} gives section {name} the data {data}, a table; give a folder or an .h5ad.")
        known: dict[str, Any] = {"name": name, "patient": patient, "image": image}
        if row.get("library"):
            if kind not in ("h5ad", "spatialdata"):
                raise SectionError(f"{sheet} gives section {name} a library, but {data} holds one section a folder.")
            known["library"] = row["library"]
        side = number(row, "bin_um", sheet) if bin_um is None else bin_um
        if side is not None:
            known["bin_um"] = _binned(data, kind, side)
        scale = mpp_in(row, sheet) if mpp is None else mpp
        inside = _of_data(data, kind, mpp=scale, force_scale=force_scale, **known)
        read = inside.get(name, next(iter(inside.values())) if len(inside) == 1 else None)
        if read is None:
            raise SectionError(f"{sheet}: {data} has no section {name}; there are {some(inside, 20)}.")
        changes = {"name": name, "patient": patient, "image": image, "study": row.get("study")}
        found[name] = partial(_changed, read, {key: value for key, value in changes.items() if value})
    return found


def _changed(read: Callable[[], Section], changes: dict[str, Any]) -> Section:
    return replace(read(), **changes)
