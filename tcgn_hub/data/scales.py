"""Whether what is said of the scale of a section fits together: spots, small pictures, the image, and who gives it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.images.readers import size_and_scale
from tcgn_hub.images.scale import Scale, given_scale
from tcgn_hub.text import option

PITCH_VISIUM = 100.0
"""Micrometres between the centres of neighbouring spots of Visium."""

BY_DISTANCE = "the distance of its spots"
"""What a scale that follows from the places of the spots is said by."""

_NEIGHBOURS = ((0, 2), (1, 1), (1, -1))  # from a spot to its neighbours, in rows and columns of Visium's array
_DIAMETERS_UM = (65.0, 55.0)  # what Space Ranger takes a spot for, and what is printed
_LEAST_PAIRS = 10  # single spots of her2st are up to a third off their place in the array
_LEAST_OF_VISIUM, _LEAST_EACH = 5, 2  # those of Visium are printed where they belong
_EQUAL = 0.1  # by how much two scales that confirm each other may differ
_WORTH_SAYING, _REFUSED = 0.05, 0.4  # as of an image and what is given for it
_OTHER_PIXELS = 1.2  # ratio from which positions are in the pixels of another picture; tissue_hires_scalef is less


def steps_px(array: np.ndarray, xy: np.ndarray, steps: Sequence[tuple[int, int]]) -> list[list[float]]:
    """Distances in pixels of spots that are neighbours in their array, by the step from one to the other.

    ``array``: places in the array, int, shape (n, 2); ``xy``: centres in pixels, shape (n, 2).
    """
    at = {tuple(place): centre for place, centre in zip(array.tolist(), xy, strict=True)}
    return [
        [
            float(np.hypot(*(at[a + da, b + db] - centre)))
            for (a, b), centre in at.items()
            if (a + da, b + db) in at and np.isfinite(centre).all() and np.isfinite(at[a + da, b + db]).all()
        ]
        for da, db in steps
    ]


def array_mpp(array: np.ndarray, xy: np.ndarray, *, steps: Sequence[tuple[int, int]], pitch_um: float) -> float | None:
    """Micrometres per pixel by the distance of spots that are neighbours in their array, the median over all pairs.

    ``steps``: from a spot to its neighbours, in places; ``pitch_um``: distance of neighbours in micrometres. Returns
    None if there are too few neighbours to tell, or the result cannot be the scale of an image.
    """
    pairs = list(chain.from_iterable(steps_px(array, xy, steps)))
    if len(pairs) < _LEAST_PAIRS or not (distance := float(np.median(pairs))) > 0:
        return None
    return pitch_um / distance if _can_be(pitch_um / distance) else None


def visium_pitch_px(array: np.ndarray, xy: np.ndarray) -> float | None:
    """Distance in pixels of the spots of Visium; None of any other array, or of too few neighbours to tell.

    Rows of Visium are moved by half a step against each other, so that row and column are both even or both odd, and
    the neighbours in all directions equally far. ``array``: rows and columns, int, shape (n, 2).
    """
    if len(set((array.sum(axis=1) % 2).tolist())) != 1:
        return None
    directions = [pairs for pairs in steps_px(array, xy, _NEIGHBOURS) if len(pairs) >= _LEAST_EACH]
    medians = [float(np.median(pairs)) for pairs in directions]
    if len(medians) < 2 or sum(map(len, directions)) < _LEAST_OF_VISIUM or not min(medians) > 0:
        return None
    if max(medians) / min(medians) - 1 > 2 * _EQUAL:
        return None
    return float(np.median(list(chain.from_iterable(directions))))


def settled(
    section: str, said: Sequence[Scale | None], image: Path | None, decides: bool = True, *, force: bool = False
) -> tuple[float | None, tuple[str, ...]]:
    """The scale of a section, and a line for each that says otherwise.

    ``said``: what says something of it, the most trusted first; what the image states is the last; ``decides``: whether
    the distance of the spots is taken for the scale where nothing else says it.

    Raises:
        SectionError: One differs by more than 40 %, and that is not forced.
    """
    known = [scale for scale in said if scale is not None]
    try:
        known += filter(None, [_of_image(image)])
    except ImageError as err:
        # otherwise told where the image is needed
        if not known:
            raise SectionError(f"The image of section {section} cannot be used: {err}") from err
    if not known or (not decides and len(known) == 1 and known[0].source == BY_DISTANCE):
        return None, ()
    first, doubts = known[0], []
    for other in known[1:]:
        off = apart(first.mpp, other.mpp)
        if off <= _WORTH_SAYING:
            continue
        line = f"{first.source} says {first.mpp:.4g} um/px, but {other.source} {other.mpp:.4g}"
        if off > _REFUSED and not force:
            raise SectionError(f"Section {section}: {line}{_hint(first, other)}.")
        doubts.append(f"section {section}: {line}")
    return first.mpp, tuple(doubts)


def check_spots(spots: str | Path, array: np.ndarray, xy: np.ndarray, scale: Scale, *, force: bool = False) -> str:
    """What to say where the distance of Visium's spots contradicts the scale of the slide; nothing if it does not.

    Raises:
        SectionError: They differ by more than 40 %, and that is not forced.
    """
    pitch = visium_pitch_px(array, xy)
    off = 0.0 if pitch is None else apart(PITCH_VISIUM / pitch, scale.mpp)
    if pitch is None or off <= _WORTH_SAYING:
        return ""
    line = (
        f"the spots of {spots} are {pitch:.1f} px apart, which is 100 um at {PITCH_VISIUM / pitch:.4g} um/px, but the"
        f" scale of the slide is {scale.mpp:.4g} ({scale.source})"
    )
    if off > _REFUSED and not force:
        hint = "the positions may be in the pixels of a smaller picture; give those of the slide's full resolution"
        raise SectionError(f"{line[0].upper()}{line[1:]}; {hint}, or insist by {option('force_scale', True)}.")
    return line


def check_positions(
    section: str,
    image: Path,
    pitch_px: float | None,
    factors: Mapping[str, Any],
    pictures: Mapping[str, tuple[int, int]],
    *,
    said: Sequence[Scale | None] = (),
    force: bool = False,
) -> bool:
    """Whether distance and diameter of the spots show that these are Visium's, in pixels of the image.

    ``pitch_px``: distance of the spots, see `visium_pitch_px`; ``factors``: those that Space Ranger keeps in
    ``scalefactors_json.json``; ``pictures``: (width, height) of its smaller pictures, such as 'hires'; ``said``: what
    else says something of the scale. Who agrees with the distance is proof enough, whatever the factors are.

    Raises:
        SectionError: The positions are in the pixels of another picture than the image, and that is not forced.
    """
    diameter = _factor(factors, "spot_diameter_fullres")
    if pitch_px is None or diameter is None:
        return False
    try:
        size, _ = size_and_scale(image)
        known = [scale.mpp for scale in (*said, _of_image(image)) if scale is not None]
    except ImageError:  # told where the image is needed
        return False
    if any(apart(mpp, PITCH_VISIUM / pitch_px) <= _EQUAL for mpp in known):
        return True
    larger = _larger(size, factors, pictures)
    ratios = [pitch_px / diameter * um / PITCH_VISIUM / larger for um in _DIAMETERS_UM]
    ratio = min(ratios, key=lambda value: abs(math.log(value)))
    if max(ratio, 1 / ratio) <= _OTHER_PIXELS:
        return True
    if force:
        return False
    fits = [
        f"{name} is {value:.3g}"
        for name in ("tissue_hires_scalef", "tissue_lowres_scalef")
        if (value := _factor(factors, name)) and any(apart(value, one) <= _EQUAL for one in ratios)
    ]
    raise SectionError(
        f"Section {section}: the positions of its spots are in the pixels of a picture {ratio:.2g} times as wide as"
        f" {image}, as the spots are {pitch_px:.1f} px apart, which is 100 um, and {diameter:.1f} px wide"
        f" (spot_diameter_fullres){' and ' + fits[0] if fits else ''}; give the positions in pixels of the image, or,"
        " if the diameter is wrong, the mpp."
    )


def apart(one: float, other: float) -> float:
    """By which share the larger of two scales is above the other."""
    return max(one / other, other / one) - 1


def _hint(first: Scale, other: Scale) -> str:
    insist = f"insist by {option('force_scale', True)}"
    if BY_DISTANCE in (first.source, other.source):
        return (
            "; the positions may be in the pixels of a smaller picture: give those of the image, or correct the other,"
            f" or {insist}"
        )
    return f"; correct the one that is wrong, or {insist}"


def _larger(size: tuple[int, int], factors: Mapping[str, Any], pictures: Mapping[str, tuple[int, int]]) -> float:
    """How many times as wide the image is as the one that smaller pictures were made of; 1 if they do not tell."""
    ratios = []
    for name, small in pictures.items():
        factor = _factor(factors, f"tissue_{name}_scalef")
        if factor is not None and min(small) > 0:
            wide, high = (side * factor / other for side, other in zip(size, small, strict=True))
            ratios += [wide, high]
    # pictures that were cut, or made otherwise, tell nothing
    if not ratios or max(ratios) / min(ratios) - 1 > _WORTH_SAYING:
        return 1.0
    return float(np.mean(ratios))


def _factor(factors: Mapping[str, Any], name: str) -> float | None:
    try:
        value = float(factors[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) and value > 0 else None


def _of_image(image: Path | None) -> Scale | None:
    """What an image states, and does not only guess by a magnification."""
    scale = None if image is None else size_and_scale(image)[1]
    return None if scale is None or scale.nominal else Scale(scale.mpp, f"{image} ({scale.source})")


def _can_be(mpp: float) -> bool:
    try:
        return given_scale(mpp, None) is not None
    except ImageError:
        return False
