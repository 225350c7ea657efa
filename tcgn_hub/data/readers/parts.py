"""What readers share: the image beside the data, the scale of a regular array, a section of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.files import data_files
from tcgn_hub.images.readers import IMAGE_SUFFIXES, size_and_scale
from tcgn_hub.images.scale import given_scale

PITCH_VISIUM = 100.0
"""Micrometres between the centres of neighbouring spots of Visium."""

_LEAST_PAIRS = 10  # single spots are up to a third off their place in the array


def images_in(folder: Path, *stems: str) -> list[Path]:
    """The images directly in a folder; those of the first stem that names any, if one does."""
    images = data_files(folder, endings=IMAGE_SUFFIXES)
    for stem in stems:
        named = [p for p in images if p.name.partition(".")[0] == stem]
        if named:
            return named
    return images


def array_mpp(array: np.ndarray, xy: np.ndarray, *, steps: Sequence[tuple[int, int]], pitch_um: float) -> float | None:
    """Micrometres per pixel by the distance of spots that are neighbours in their array, the median over all pairs.

    ``array``: places in the array, int, shape (n, 2); ``xy``: centres in pixels, shape (n, 2); ``steps``: from a spot
    to its neighbours, in places; ``pitch_um``: distance of neighbours in micrometres. Returns None if there are too few
    neighbours to tell, or the result cannot be the scale of an image.
    """
    at = {tuple(place): centre for place, centre in zip(array.tolist(), xy, strict=True)}
    pairs = [
        np.hypot(*(at[a + da, b + db] - centre))
        for (a, b), centre in at.items()
        for da, db in steps
        if (a + da, b + db) in at
    ]
    if len(pairs) < _LEAST_PAIRS or not (distance := float(np.median(pairs))) > 0:
        return None
    try:
        given_scale(pitch_um / distance, None)
    except ImageError:
        return None
    return pitch_um / distance


def image_mpp(image: Path, name: str) -> float | None:
    """Micrometres per pixel an image states, None if it states nothing, or only a magnification."""
    try:
        _, scale = size_and_scale(image)
    except ImageError as err:
        raise SectionError(f"The image of section {name} cannot be used: {err}") from err
    return None if scale is None or scale.nominal else scale.mpp


def matched(
    rows: Sequence[str], positions: Mapping[str, object], *, counts: Path, spots: Path
) -> tuple[list[int], dict[str, int]]:
    """Rows of the counts that have a position, and what to note of the others in ``left_out``."""
    keep = [i for i, name in enumerate(rows) if name in positions]
    if not keep:
        raise SectionError(
            f"No row of {counts}, such as {next(iter(rows), 'none')}, names a spot of {spots}, such as"
            f" {next(iter(positions), 'none')}; give counts and positions of the same section."
        )
    lone = len(set(rows) ^ set(positions))
    return keep, {"spots without counts or position": lone} if lone else {}
