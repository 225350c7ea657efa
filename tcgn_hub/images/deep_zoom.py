"""A slide as viewers in browsers ask for it: the squares of a pyramid whose levels halve, called Deep Zoom."""

from __future__ import annotations

import io
import math
from threading import Lock

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.images.slides import Slide

_SIDE = 512  # of a square, in pixels of its level
_QUALITY = 85
_OVERVIEW = 2000  # side of what is looked at where the slide has no level that is small enough
_MOST_PIXELS = 1 << 25  # that a square is read from


class DeepZoom:
    """The squares of a slide; of an overview that covers all of it, where the slide itself is not at hand.

    Attributes:
        size: (width, height) in pixels at full resolution.
    """

    def __init__(self, slide: Slide | None, size: tuple[int, int], overview: np.ndarray | None = None) -> None:
        self.size = size
        self._slide, self._overview, self._lock = slide, overview, Lock()

    @property
    def xml(self) -> str:
        """What says how large the slide and its squares are."""
        width, height = self.size
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" TileSize="{_SIDE}" Overlap="0" Format="jpeg">'
            f'<Size Width="{width}" Height="{height}"/></Image>\n'
        )

    def square(self, level: int, column: int, row: int) -> bytes:
        """A JPEG; what cannot be decoded is white in it.

        ``level``: 0 is the slide in one pixel, each above it has twice the resolution.

        Raises:
            KeyError: There is no such square.
        """
        from PIL import Image

        finest = math.ceil(math.log2(max(self.size)))
        downsample = 2.0 ** (finest - level)
        level_size = [math.ceil(side / downsample) for side in self.size]
        left, top = column * _SIDE, row * _SIDE
        if not (0 <= level <= finest and 0 <= left < level_size[0] and 0 <= top < level_size[1]):
            raise KeyError(f"{level}/{column}_{row}")
        right, bottom = min(left + _SIDE, level_size[0]), min(top + _SIDE, level_size[1])
        begin = left * downsample, top * downsample
        end = min(right * downsample, self.size[0]), min(bottom * downsample, self.size[1])
        # readers are not asked for two regions at a time
        with self._lock:
            part, box = self._read(begin, end, downsample)
        content = io.BytesIO()
        square = Image.fromarray(part).resize((right - left, bottom - top), Image.Resampling.BOX, box=box)
        square.save(content, "jpeg", quality=_QUALITY)
        return content.getvalue()

    def _read(
        self, begin: tuple[float, float], end: tuple[float, float], downsample: float
    ) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """A region by its corners at full resolution: pixels that it is among, and which of them it is."""
        if self._slide is not None:
            level = self._slide.level_for(downsample)
            own = self._slide.downsamples[level]
            # on a pixel of the level, as overviews are read
            x, y = (int(int(at / own) * own) for at in begin)
            box = (begin[0] - x) / own, (begin[1] - y) / own, (end[0] - x) / own, (end[1] - y) / own
            width, height = math.ceil(box[2]), math.ceil(box[3])
            if width * height <= _MOST_PIXELS:
                try:
                    return self._slide.read(x, y, width, height, level=level), box
                except ImageError:
                    return np.full((height, width, 3), 255, np.uint8), box
            if self._overview is None:
                self._overview = self._slide.overview(_OVERVIEW)[0]
        assert self._overview is not None
        across, down = (n / side for n, side in zip(self._overview.shape[1::-1], self.size, strict=True))
        return self._overview, (begin[0] * across, begin[1] * down, end[0] * across, end[1] * down)
