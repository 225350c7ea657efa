"""Sections in the layout of github.com/almaan/her2st (Andersson et al., Nature Communications 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.parts import files_in, given, matched
from tcgn_hub.data.scales import BY_DISTANCE, array_mpp, settled
from tcgn_hub.data.sections import Section
from tcgn_hub.data.tables import number, read_matrix, read_rows
from tcgn_hub.errors import SectionError

_PITCH_UM = 200.0


def is_her2st(root: Path) -> bool:
    """Whether a folder, or its folder ``data``, is of this layout."""
    return (root / "ST-cnts").is_dir() or (root / "data" / "ST-cnts").is_dir()


def _data(root: Path) -> Path:
    if not is_her2st(root):
        raise SectionError(f"{root} has no folder ST-cnts; give the data folder of a clone of almaan/her2st.")
    return root if (root / "ST-cnts").is_dir() else root / "data"


def her2st_names(root: str | Path) -> list[str]:
    """Names of the sections that have counts, sorted."""
    folder = _data(Path(root)) / "ST-cnts"
    names = [p.name.removesuffix(".tsv.gz") for p in files_in(folder, (".tsv.gz",))]
    if not names:
        raise SectionError(f"{folder} holds no .tsv.gz file of counts.")
    return names


def read_her2st(
    root: str | Path,
    names: Sequence[str] | None = None,
    *,
    mpp: float | None = None,
    force_scale: bool = False,
) -> list[Section]:
    """Read sections in the layout of almaan/her2st.

    ``root``: folder that holds ``ST-cnts``, ``ST-imgs`` and ``ST-spotfiles``, or whose ``data`` folder does; ``names``:
    sections to read, such as ``['B4', 'C2']``; all that have counts if None; ``mpp``: micrometres per pixel of all
    images; by the distance of the spots, 200 um, if None; ``force_scale``: go by that although the other, or what the
    image states, is more than 40 % off. Returns the sections, in the order of ``names``, or sorted. The study is
    'her2st', the patient the letter a section's name begins with.
    """
    data = _data(Path(root))
    return [_read(data, name, mpp, force_scale) for name in (her2st_names(root) if names is None else names)]


def _read(root: Path, name: str, mpp: float | None, force_scale: bool) -> Section:
    counts_file = root / "ST-cnts" / f"{name}.tsv.gz"
    spots_file = root / "ST-spotfiles" / f"{name}_selection.tsv"
    folder = root / "ST-imgs" / name[:1] / name
    images = files_in(folder, (".jpg",))
    if len(images) != 1:
        raise SectionError(f"{folder} should hold the one .jpg image of section {name}, but holds {len(images)}.")
    labels, genes, counts = read_matrix(counts_file)
    position: dict[str, tuple[list[int], list[float]]] = {}
    for row in read_rows(spots_file):
        values = [number(row, key, spots_file) for key in ("x", "y", "pixel_x", "pixel_y")]
        if any(value is None or not np.isfinite(value) for value in values):
            raise SectionError(f"{spots_file} has a row without x, y, pixel_x or pixel_y: {', '.join(row.values())}.")
        x, y, *pixel = (float(value) for value in values if value is not None)
        position[f"{round(x)}x{round(y)}"] = ([round(x), round(y)], pixel)
    rows = [label for (label,) in labels]
    keep, left_out = matched(rows, position, counts=counts_file, spots=spots_file)
    spots = [rows[i] for i in keep]
    genes, counts, summed = tidy(counts[keep], genes, rows=spots, source=counts_file)
    array, xy = (np.array([values[i] for values in position.values()]) for i in (0, 1))
    by_distance = given(array_mpp(array, xy, steps=((1, 0), (0, 1)), pitch_um=_PITCH_UM), BY_DISTANCE)
    scale, doubts = settled(name, [given(mpp), by_distance], images[0], force=force_scale)
    return Section(
        name=name,
        patient=name[:1],
        image=images[0],
        spots=spots,
        xy=np.array([position[spot][1] for spot in spots]),
        genes=genes,
        counts=counts,
        mpp=scale,
        left_out=left_out | summed,
        study="her2st",
        doubts=doubts,
    )
