"""Patches: a picture a spot, in a table that says which section and patient each is from."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.parts import given
from tcgn_hub.data.scales import settled
from tcgn_hub.data.sections import Section
from tcgn_hub.data.tables import mpp_in, number, read_matrix, read_rows
from tcgn_hub.errors import SectionError


def read_patches(
    table: str | Path, expression: str | Path, *, mpp: float | None = None, force_scale: bool = False
) -> list[Section]:
    """Read patches and the expression of their spots.

    ``table``: CSV with the columns patch (a picture, relative to the table), section, patient, and optionally spot, x,
    y (the centre in pixels of the section) and mpp (micrometres per pixel of the picture); ``expression``: CSV or TSV
    whose rows are spots and whose columns are genes. A row is named by the column spot, or by the file name of the
    patch, with or without its suffix; ``mpp``: micrometres per pixel of all pictures, if the table does not say;
    ``force_scale``: go by these although the first picture of a section states a scale that is more than 40 % off.
    Returns the sections by name. Patches that have no row of expression are left out.
    """
    return [read() for read in find_patches(Path(table), Path(expression), mpp=mpp, force_scale=force_scale).values()]


def find_patches(
    table: Path, expression: Path, *, mpp: float | None, force_scale: bool
) -> dict[str, Callable[[], Section]]:
    """The sections of `read_patches` by name, each to be read by a call."""
    labels, genes, values = read_matrix(expression)
    line = {label: i for i, (label,) in enumerate(labels)}
    owner: dict[str, str] = {}
    rows = read_rows(table)
    for row in rows:
        if not (row["patch"] and row["section"] and row["patient"]):
            raise SectionError(f"{table} has a row without patch, section or patient: {', '.join(row.values())}.")
        names = [row["spot"]] if row.get("spot") else [Path(row["patch"]).name, Path(row["patch"]).stem]
        row["spot"] = next((name for name in names if name in line), names[-1])
        other = owner.setdefault(row["spot"], row["patch"])
        if other != row["patch"]:
            raise SectionError(
                f"{table} gives the patches {other} and {row['patch']} the spot {row['spot']}; each needs its own row"
                f" of {expression}."
            )
    if not owner.keys() & line.keys():
        dihedral = " its columns do, so it may have to be transposed;" if owner.keys() & set(genes) else ""
        raise SectionError(
            f"No row of {expression}, such as {labels[0][0]}, names a patch of {table}, such as {rows[0]['spot']};"
            f"{dihedral} name the rows as the column spot does, or as the files of the patches."
        )
    by_section: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_section.setdefault(row["section"], []).append(row)

    def read(name: str) -> Section:
        mine = by_section[name]
        has = [row for row in mine if row["spot"] in line]
        if not has:
            raise SectionError(f"Section {name} of {table} has no patch that a row of {expression} names.")
        files = [table.parent / row["patch"] for row in has]
        absent = next((file for file in files if not file.is_file()), None)
        if absent is not None:
            raise SectionError(f"Section {name} of {table} has the patch {absent}, which does not exist.")
        spots = [row["spot"] for row in has]
        measured, counts, left_out = tidy(values[[line[s] for s in spots]], genes, rows=spots, source=expression)
        if len(has) < len(mine):
            left_out["patches without counts"] = len(mine) - len(has)
        xy = [[np.nan if (v := number(row, key, table)) is None else v for key in ("x", "y")] for row in has]
        scales = {mpp_in(row, table) for row in has} if mpp is None else {mpp}
        patients = {row["patient"] for row in mine}
        for what, differing in (("patients", patients), ("scales", scales)):
            if len(differing) > 1:
                raise SectionError(
                    f"{table} gives the section {name} {len(differing)} {what}; give patches of different {what}"
                    " different sections."
                )
        scale = scales.pop()
        # pictures have always been taken for what the table says; without it they may be of any size
        scale, doubts = (None, ()) if scale is None else settled(name, [given(scale)], files[0], force=force_scale)
        return Section(
            name=name,
            patient=patients.pop(),
            image=None,
            spots=spots,
            xy=np.array(xy, np.float64),
            genes=measured,
            counts=counts,
            mpp=scale,
            patches=files,
            left_out=left_out,
            doubts=doubts,
        )

    return {name: partial(read, name) for name in by_section}
