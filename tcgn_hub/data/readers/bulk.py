"""Slides with bulk RNA-seq: one vector of expression for the whole of a slide's tissue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.parts import given
from tcgn_hub.data.scales import settled
from tcgn_hub.data.sections import Section
from tcgn_hub.data.tables import read_matrix
from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.tiles import OVERVIEW_PX, grid_tiles, on_tissue
from tcgn_hub.text import option

_MIN_TISSUE = 0.5


def read_bulk(
    table: str | Path, *, mpp: float | None = None, patch_um: float, force_scale: bool = False
) -> list[Section]:
    """Read slides and the bulk expression of each.

    ``table``: CSV or TSV with the columns slide (relative to the table), patient, and then genes: counts or TPM, not
    logged; ``mpp``: micrometres per pixel of the slides; what each states if None; ``patch_um``: side of the tiles in
    micrometres; ``force_scale``: go by ``mpp`` although a slide states one that is more than 40 % off. Returns a
    section per slide, named by its stem, whose spots are the tiles of a grid that are at least half tissue.
    """
    return [read() for read in find_bulk(Path(table), mpp=mpp, patch_um=patch_um, force_scale=force_scale).values()]


def find_bulk(
    table: Path, *, mpp: float | None, patch_um: float, force_scale: bool
) -> dict[str, Callable[[], Section]]:
    """The sections of `read_bulk` by name, each to be read by a call."""
    labels, genes, values = read_matrix(table, labels=2)
    stems = Counter(Path(slide).stem for slide, _ in labels)
    if max(stems.values()) > 1:
        raise SectionError(f"{table} has more than one slide named {stems.most_common(1)[0][0]}; rename one.")

    def read(row: int) -> Section:
        slide, patient = labels[row]
        name = Path(slide).stem
        if not patient:
            raise SectionError(f"{table} names no patient for {slide}.")
        measured, counts, left_out = tidy(values[row : row + 1], genes, rows=[slide], source=table, bulk=True)
        path = table.parent / slide
        scale, doubts = settled(name, [given(mpp)], path, force=force_scale)
        if scale is None:
            raise SectionError(f"{path} states no micrometres per pixel; give them with {option('mpp')}.")
        side = patch_um / scale
        try:
            with open_slide(path) as opened:
                overview, downsample, lost = opened.overview(OVERVIEW_PX)
                tiles = grid_tiles(opened.size, side=side, stride=side)
        except ImageError as err:
            raise SectionError(f"The slide of section {name}, {path}, cannot be used: {err}") from err
        # unlike for a prediction, what cannot be decoded is no use
        tiles, _ = on_tissue(
            tiles, overview, downsample, mpp=scale, side=side, min_tissue=_MIN_TISSUE, lost=np.zeros_like(lost)
        )
        if not len(tiles):
            raise SectionError(f"{path} shows no tissue; leave it out of {table}.")
        return Section(
            name=name,
            patient=patient,
            image=path,
            spots=tiles.names,
            xy=tiles.xy,
            genes=measured,
            counts=counts,
            mpp=scale,
            bulk=True,
            left_out=left_out,
            doubts=doubts,
        )

    return {Path(slide).stem: partial(read, row) for row, (slide, _) in enumerate(labels)}
