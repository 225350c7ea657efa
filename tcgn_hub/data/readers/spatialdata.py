"""Sections as stores of SpatialData, with the elements that spatialdata-io makes of Visium, Visium HD and Xenium."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tcgn_hub.data.readers.genes import tidy
from tcgn_hub.data.readers.parts import given
from tcgn_hub.data.scales import BY_DISTANCE, PITCH_VISIUM, check_positions, settled, visium_pitch_px
from tcgn_hub.data.sections import Section
from tcgn_hub.data.spatialdata import check_binned, find_spots, in_squares, read_counts
from tcgn_hub.errors import SectionError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import size_and_scale
from tcgn_hub.images.scale import Scale
from tcgn_hub.text import option

_CHOOSE = "name one in the column library of a sample sheet (a CSV with the columns section, patient, data, library)"


def read_spatialdata(
    path: str | Path,
    *,
    name: str | None = None,
    patient: str | None = None,
    image: str | Path | None = None,
    mpp: float | None = None,
    library: str | None = None,
    bin_um: float | None = None,
    force_scale: bool = False,
) -> Section:
    """Read the spots of one section, those in tissue if the table tells; or cells, binned to square spots.

    Whichever way shapes and image are placed, the spots are where they belong in pixels of the image.

    ``path``: the store; ``name``: name of the section; if None, ``library``, or the stem of the store; ``patient``:
    patient; the name of the section if None; ``image``: the image, ``STORE/images/NAME``, or one outside of the store,
    in whose pixels the shapes are then taken to be; if None, that of the full resolution by the name of the spots, or
    the only one that is RGB; ``mpp``: micrometres per pixel of the image; if None, what follows from the cells of
    Xenium, whose shapes are in micrometres, from the bins of Visium HD, from a coordinate system ``microns``, from the
    distance of the spots of Visium, or what the image states; ``library``: the table, or the element that it annotates,
    if there are several, such as 'square_016um'; ``bin_um``: side in micrometres of squares, beginning at the upper
    left corner of the image, whose cells, spots or bins are added up to one spot each; needed of cells;
    ``force_scale``: go by the first of these scales although another one is more than 40 % off.
    """
    path = Path(path)
    name = name or library or path.stem
    found = find_spots(path, library=library, image=None if image is None else Path(image), choose=_CHOOSE)
    check_binned(found, bin_um)
    said = [given(mpp), found.scale]
    pitch = None if found.array is None else visium_pitch_px(found.array, found.xy)
    factors = {"spot_diameter_fullres": found.diameter_px}
    of_visium = check_positions(name, found.image, pitch, factors, {}, said=said, force=force_scale)
    by_distance = None if pitch is None else Scale(PITCH_VISIUM / pitch, BY_DISTANCE)
    scale, doubts = settled(name, [*said, by_distance], found.image, of_visium, force=force_scale)
    counts, genes, symbols, left_out = read_counts(found)
    names, xy = found.names, found.xy
    outside = ((xy < 0) | (xy >= size_and_scale(found.image)[0])).any(axis=1)
    if outside.all():
        raise SectionError(f"Section {name}: all {len(names)} spots of {path} lie outside of {found.image}.")
    keep = np.flatnonzero(~outside)
    genes, counts, summed = tidy(counts[keep], genes, rows=[names[i] for i in keep], source=path, symbols=symbols)
    names, xy = [names[i] for i in keep], xy[keep]
    if bin_um is not None:
        if scale is None:
            raise SectionError(f"Section {name} has no known micrometres per pixel to bin by; give {option('mpp')}.")
        of, places = in_squares(xy, bin_um / scale)
        sparse = require("scipy.sparse", extra="spatialdata", to="bin cells")
        ones = np.ones(len(of), np.float32)
        counts = sparse.csr_matrix((ones, (of, np.arange(len(of)))), shape=(len(places), len(of))) @ counts
        names = [f"{row}x{column}" for column, row in places.tolist()]
        xy = (places + 0.5) * (bin_um / scale)
    left_out = found.left_out | left_out | summed
    if outside.any():
        left_out["spots outside of the image"] = int(outside.sum())
    return Section(
        name=name,
        patient=patient or name,
        image=found.image,
        spots=names,
        xy=xy,
        genes=genes,
        counts=counts,
        mpp=scale,
        left_out=left_out,
        doubts=doubts,
    )
