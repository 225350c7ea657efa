"""Where the tissue is: Otsu's threshold on how much green is absorbed by what has the hue of the stains."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcgn_hub.images.quality import DENSE, densities, is_ink

_LEAST = 8.0  # of 255: below, what is left of the stain is the noise of a blank slide
_LEAST_STAINED = 0.02  # share of a patch that has tissue in it
_LEAST_RANGE = 5.0  # of 255, between means over 64 pixels of anything but glass
_NOISY = 100.0  # variance of pixels from which noise may look stained
_LEAST_ALIKE = (
    0.05  # variance of means over 64 pixels, as a share of that of pixels: 1/64 of noise, above 0.18 of tissue
)
_HUE = 4.0  # of 255, by which green is below red and blue in pale tissue
_PALE, _PALEST = 0.3, 0.1  # density of green, above which all is tissue; and above glass, below which nothing is


def tissue_mask(overview: np.ndarray, *, um_per_px: float) -> np.ndarray:
    """Tissue of an H&E slide.

    Both stains absorb green, so that tissue is where the density of green, smoothed, is above a threshold: halfway
    between that of the glass, which may be stained itself, and Otsu's (IEEE Transactions on Systems, Man, and
    Cybernetics 9, 62, 1979), at most 0.3. Grey dust, black, blue, green and red pens absorb as much of another colour,
    see `tcgn_hub.images.quality.is_ink`.

    ``overview``: the whole slide, uint8, shape (h, w, 3); ``um_per_px``: micrometres per pixel of the overview. Returns
    bool, shape (h, w); objects and holes below 0.01 mm^2 are removed.
    """
    from tcgn_hub.extras import require

    filters, measure = (require(f"skimage.{name}", extra="slides", to="find tissue") for name in ("filters", "measure"))
    if is_blank(overview):
        return np.zeros(overview.shape[:2], bool)
    sigma = max(1.0, 10.0 / um_per_px)
    rgb = filters.gaussian(overview.astype(np.float32), sigma=sigma, preserve_range=True, channel_axis=2)
    stain, density, ink = _absorbed(rgb)
    green = density[1]
    usual = green[~ink]
    if usual.size == 0:
        return np.zeros(ink.shape, bool)
    if usual.max() - usual.min() < _PALEST:
        return np.full(ink.shape, bool(stain.mean() >= _LEAST)) & ~ink
    otsu = filters.threshold_otsu(usual)
    glass = float(np.median(usual[usual <= otsu]))
    threshold = max(min((glass + otsu) / 2, _PALE), min(glass, _PALE) + _PALEST / 2)
    mask = (green > threshold) & ~ink & ((stain >= _HUE) | (density.sum(axis=0) > DENSE))
    area = max(1, round(10_000 / um_per_px**2))

    def large(mask: np.ndarray) -> np.ndarray:
        # skimage's own names for it changed with the release that no longer ran on Python 3.10
        labels = measure.label(mask, connectivity=1)
        sizes = np.bincount(labels.ravel())
        return ((sizes > area) & (np.arange(len(sizes)) > 0))[labels]

    return ~large(~large(mask))


def shows_tissue(patch: np.ndarray) -> bool:
    """Whether some of a patch has the hue of the stains, or is dense and no ink.

    ``patch``: uint8, shape (h, w, 3).
    """
    stain, density, ink = _absorbed(_small(patch))
    stained = (stain >= _LEAST) | ((density.sum(axis=0) > DENSE) & ~ink)
    return not is_blank(patch) and bool(stained.mean() >= _LEAST_STAINED)


def is_blank(picture: np.ndarray) -> bool:
    """Whether a picture, uint8, shape (h, w, 3), is of one colour, or of noise.

    Neighbouring pixels of tissue are alike, so that their means over squares of eight differ, too.
    """
    small = _small(picture)
    if (small.max(axis=(0, 1)) - small.min(axis=(0, 1))).max() < _LEAST_RANGE:
        return True
    pixels, means = picture.mean(axis=2, dtype=np.float32).var(), small.mean(axis=2).var()
    return bool(pixels > _NOISY and means < _LEAST_ALIKE * pixels)


def outlines(mask: np.ndarray, *, downsample: float = 1.0) -> list[Any]:
    """The pieces of a mask as polygons of shapely, with their holes, the first rows first.

    ``mask``: bool, shape (h, w); ``downsample``: by which the coordinates are multiplied. Pixel 0 reaches from 0 to 1.

    Raises:
        ExtraError: A package is not installed.
    """
    from tcgn_hub.extras import require

    shapely = require("shapely", extra="spatialdata", to="outline tissue")
    measure = require("skimage.measure", extra="slides", to="outline tissue")
    # what reaches the edge is closed there
    rings = measure.find_contours(np.pad(mask, 1).astype(np.float32), 0.5)
    lines = [shapely.LinearRing(np.clip(ring[:, ::-1] - 0.5, 0, mask.shape[::-1])) for ring in rings]
    faces = shapely.get_parts(shapely.polygonize(lines)) if lines else []
    pieces = []
    for face in faces:
        at = face.representative_point()
        if mask[min(int(at.y), mask.shape[0] - 1), min(int(at.x), mask.shape[1] - 1)]:
            scaled = shapely.transform(face.simplify(0.25), lambda xy: xy * downsample)
            pieces.append(scaled)
    return sorted(pieces, key=lambda piece: (piece.bounds[1], piece.bounds[0]))


def _absorbed(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By how much green is below red and blue, of 255; densities of the colours, shape (3, h, w); and where ink is."""
    density = densities(np.moveaxis(rgb, 2, 0)[None] / 255)
    return np.minimum(rgb[..., 0], rgb[..., 2]) - rgb[..., 1], density[0], is_ink(density)[0]


def _small(picture: np.ndarray) -> np.ndarray:
    """Means over squares of eight pixels."""
    from PIL import Image

    height, width = (max(1, n // 8) for n in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX)).astype(np.float32)


def tissue_fraction(mask: np.ndarray, xy: np.ndarray, side: float) -> np.ndarray:
    """Share of tissue in squares.

    ``mask``: bool, shape (h, w); ``xy``: centres as (x, y) in pixels of the mask, shape (n, 2); ``side``: side of the
    squares in pixels of the mask. Returns values from 0 to 1, shape (n,).
    """
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(0).cumsum(1)
    low = np.floor(xy - side / 2).astype(int)
    high = np.maximum(np.ceil(xy + side / 2).astype(int), low + 1)
    limit = np.array([mask.shape[1], mask.shape[0]])
    area = np.prod(high - low, axis=1)
    (x0, y0), (x1, y1) = np.clip(low, 0, limit).T, np.clip(high, 0, limit).T
    return (total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]) / area
