"""How well a tile shows its tissue: focus, ink, folds and colour, by means over its pixels, and one number of them.

The limits are what 99 % of 910 spots of five sections of her2st (patient C) reach; `benchmarks/quality.py` prints them,
and what they find on other tissue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tcgn_hub.errors import NoTissueError
from tcgn_hub.text import option

POOR = 0.5
"""Quality below which a tile is called poor."""

REASONS = ("focus", "pen", "fold", "saturation")
"""What the quality of a tile is the least of."""

MEASURES = (*REASONS, "stain_distance")
"""The columns that `graded` gives beside ``quality``."""

FOCUS_LIMIT, SATURATION_LIMIT = 0.41, 0.19
LIMIT_UM = 0.6875  # per pixel, at which the limit of the focus was found
_NOISE = 4 * (3 / 255) ** 2  # energy of steps of noise with a standard deviation of three grey levels
_PEN_WHOLE, _FOLD_WHOLE = 8, 4  # so many times the share, and nothing is left of the quality

DENSE = 1.0
"""Density of all channels from which ink can be told from tissue."""

_WHITE = 0.02  # added to what a part lets through, so that black is no infinite density
_DARK = 4.5  # density of all channels in double layers of tissue
_INK = {("blue", "green"): -0.05, ("red", "green"): 0.08, ("red", "blue"): 0.25}
_CHANNELS = ("red", "green", "blue")

STAIN_MEAN = np.array([0.3436, 0.2361])
STAIN_ROOT = np.array([[20.04, 51.63], [0.0, 28.51]])
"""Shares of red and blue in the density of the six sections, and what makes of their distance one whose limit is 1."""


def densities(parts: np.ndarray) -> np.ndarray:
    """Optical densities, natural logarithm, of what lets through from 0 to 1."""
    return (-np.log(parts.clip(0) + _WHITE)).clip(0)


def is_ink(density: np.ndarray) -> np.ndarray:
    """Where it is dense enough to tell, and another colour than green is what is absorbed.

    ``density``: of red, green and blue, shape (n, 3, ...). Returns bool, shape (n, ...).
    """
    total = density.sum(axis=1)
    share = {name: density[:, i] / np.maximum(total, 1e-6) for i, name in enumerate(_CHANNELS)}
    ink = np.any([share[one] - share[other] > limit for (one, other), limit in _INK.items()], axis=0)
    return ink & (total > DENSE)


def measure(parts: np.ndarray, steps: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """What `graded` takes, of patches whose pixels may be of any size.

    ``parts``: means of red, green and blue, from 0 to 1, over the squares that a patch is divided into, shape (n, 3,
    k); ``steps``: energy of differences of brightness between neighbouring pixels; ``seconds``: that of second
    differences, shape (n,). Returns float32, shape (n, 6): both energies, and `MEASURES` after the focus.
    """
    density = densities(parts)
    total, ink = density.sum(axis=1), is_ink(density)
    dense = np.maximum(total.sum(axis=1), 1e-6)
    brightest = parts.max(axis=1)
    saturation = (brightest - parts.min(axis=1)) / np.maximum(brightest, 1e-3)
    hue = np.stack([density[:, i].sum(axis=1) for i in (0, 2)], axis=1) / dense[:, None]
    measures = [
        steps,
        seconds,
        ink.mean(axis=1),
        ((total > _DARK) & ~ink).mean(axis=1),
        (saturation * total).sum(axis=1) / dense,
        np.linalg.norm((hue - STAIN_MEAN) @ STAIN_ROOT.T, axis=1),
    ]
    return np.stack(measures, axis=1).astype(np.float32)


def graded(measures: np.ndarray, um_per_px: np.ndarray | float) -> dict[str, np.ndarray]:
    """``quality`` from 0 to 1, and `MEASURES` by name, float32, shape (n,).

    The focus is the energy of second differences over that of steps and of some noise. Where pixels are smaller than
    `LIMIT_UM`, details of tissue are wider than they: steps are smaller in proportion, second differences by the
    square.

    ``measures``: what `measure` gives; ``um_per_px``: micrometres per pixel of what it was given.
    """
    steps, seconds, *others = measures.T
    finer = np.minimum(1, np.asarray(um_per_px) / LIMIT_UM) ** 2
    focus = seconds / finer**2 / (steps / finer + _NOISE) / FOCUS_LIMIT
    columns = dict(zip(MEASURES, [focus.astype(np.float32), *others], strict=True))
    return {"quality": _scores(columns).min(axis=0), **columns}


def poor_by(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Which tiles are poor, below `POOR`, by which of `REASONS` most of all, bool, shape (n,) each.

    ``columns``: what `graded` gives.
    """
    poor, worst = columns["quality"] < POOR, worst_of(columns)
    return {reason: poor & (worst == reason) for reason in REASONS}


def worst_of(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which of `REASONS` the quality of a tile is that of, shape (n,)."""
    return np.array(REASONS, object)[_scores(columns).argmin(axis=0)]


def too_poor(columns: Mapping[str, np.ndarray], names: Sequence[str], least: float) -> dict[str, str]:
    """Why those are left out whose quality is below the ``least``, by name."""
    quality, worst = columns["quality"], worst_of(columns)
    return {names[i]: f"quality {quality[i]:.2f} ({worst[i]})" for i in np.flatnonzero(quality < least).tolist()}


def none_good(columns: Mapping[str, np.ndarray], what: str, least: float) -> NoTissueError:
    """What to say where all are left out. ``what`` they are, such as '12 tiles of a.svs'."""
    best = int(columns["quality"].argmax())
    return NoTissueError(
        f"Of {what} none has a quality of {least:g}, so that nothing is left: that of the best is"
        f" {columns['quality'][best]:.2f} ({worst_of(columns)[best]}); give a lower {option('min_quality')}."
    )


def _scores(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of each of `REASONS`, 1 within the range of real tissue, shape (4, n)."""
    focus, pen, fold, saturation = (columns[reason] for reason in REASONS)
    scores = [focus, 1 - _PEN_WHOLE * pen, 1 - _FOLD_WHOLE * fold, saturation / np.float32(SATURATION_LIMIT)]
    return np.stack(scores).clip(0, 1).astype(np.float32)
