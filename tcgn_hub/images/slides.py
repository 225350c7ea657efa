"""What an open image is, whichever reader opened it: size, scale, levels, regions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.images.scale import Scale

MAX_PIXELS = 150_000_000
"""Pixels that have to be decoded at once, of a picture that is not in tiles, for which 2 GB are needed."""

_BLOCK_PX = 1024  # side of the parts an overview is read in where the slide has no small level
_LARGEST_PART = 1 << 27  # pixels that one part of an overview may be read from
_MOST_FAILED = 500  # reads, after which no smaller parts are tried
_LEAST_BLOCK_PX = 256  # side of the parts around damage, in full-resolution pixels


class Slide(ABC):
    """An open slide or picture; close it, or use it as a context manager.

    Attributes:
        path: The file.
        size: (width, height) in pixels at full resolution.
        scale: What the file says of its scale, None if nothing believable.
        downsamples: Full-resolution pixels per pixel of each level, ascending.
        reopens: Whether another process has to open the file for itself.
        series: Which of the images in the file it is, 0 the first.
        chosen: What to say of the choice where the file holds several images.
        origin: Upper left corner of what was scanned, (x, y) in pixels at full resolution: QuPath counts from there.
    """

    path: Path
    size: tuple[int, int]
    scale: Scale | None
    downsamples: tuple[float, ...]
    reopens: bool
    series: int = 0
    chosen: str = ""
    origin: tuple[int, int] = (0, 0)

    @abstractmethod
    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> np.ndarray:
        """A region as RGB, uint8, shape (height, width, 3), white beyond the edges.

        ``x``: left edge, in full-resolution pixels; ``y``: upper edge, likewise; ``width``: in pixels of the level;
        ``height``: likewise; ``level``: index into ``downsamples``.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back the file."""

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def level_for(self, downsample: float) -> int:
        """The smallest level that has at least the resolution of a downsampling."""
        return max((i for i, d in enumerate(self.downsamples) if d <= downsample * 1.01), default=0)

    def overview(self, side: int) -> tuple[np.ndarray, float, np.ndarray]:
        """The whole slide, at most ``side`` pixels wide and high. Reads it in parts.

        Returns the picture, uint8, shape (h, w, 3); its downsampling; and what could not be decoded and is white in it,
        bool, shape (h, w).
        """
        width, height = self.size
        downsample = max(width / side, height / side, 1.0)
        out = np.full((max(1, round(height / downsample)), max(1, round(width / downsample)), 3), 255, np.uint8)
        lost = np.zeros(out.shape[:2], bool)
        level = self.level_for(downsample)
        step = max(1, int(_BLOCK_PX * self.downsamples[level] / downsample))
        failed: list[ImageError] = []
        for top in range(0, out.shape[0], step):
            for left in range(0, out.shape[1], step):
                box = left, top, min(left + step, out.shape[1]), min(top + step, out.shape[0])
                self._overview_part(out, lost, box, downsample, level, failed)
                if len(failed) == _MOST_FAILED and lost[: top + 1, : left + 1].all():
                    raise failed[0]
        if failed and lost.all():
            raise failed[-1]
        return out, downsample, lost

    def _overview_part(
        self,
        out: np.ndarray,
        lost: np.ndarray,
        box: tuple[int, int, int, int],
        downsample: float,
        level: int,
        failed: list[ImageError],
    ) -> None:
        """Fill a box (left, top, right, bottom) of an overview; around damage in smaller and smaller parts."""
        from PIL import Image

        left, top, right, bottom = box
        own = self.downsamples[level]
        # on a pixel of the level, between which OpenSlide would interpolate at four times the cost
        x, y = (int(int(v * downsample / own) * own) for v in (left, top))
        # the part may begin and end within a pixel of the level
        # and a picture of few rows ends long before the pixel of the overview does
        ends = (np.minimum(np.array(corner) * downsample, self.size) for corner in ((left, top), (right, bottom)))
        first, last = ((end - (x, y)) / own for end in ends)
        width, height = (int(np.ceil(side)) for side in last)
        if width * height > _LARGEST_PART:
            raise ImageError(
                f"{self.path} is {self.size[0]} x {self.size[1]} px, and has no smaller level to look at it by."
            )
        try:
            part = self.read(x, y, width, height, level=level)
        except ImageError as err:
            if len(failed) < _MOST_FAILED:
                failed.append(err)
            small = (right - left) * downsample <= _LEAST_BLOCK_PX or right - left < 2 or bottom - top < 2
            if small or len(failed) == _MOST_FAILED:
                lost[top:bottom, left:right] = True
                return
            middle = (left + right) // 2, (top + bottom) // 2
            for begin, end in ((left, middle[0]), (middle[0], right)):
                self._overview_part(out, lost, (begin, top, end, middle[1]), downsample, level, failed)
                self._overview_part(out, lost, (begin, middle[1], end, bottom), downsample, level, failed)
            return
        resized = Image.fromarray(part).resize(
            (right - left, bottom - top), Image.Resampling.BOX, box=(first[0], first[1], last[0], last[1])
        )
        out[top:bottom, left:right] = np.asarray(resized)
