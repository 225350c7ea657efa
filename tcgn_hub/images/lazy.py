"""A slide as a pyramid of arrays that read their pixels when these are looked at."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import open_slide, stat_of
from tcgn_hub.images.slides import Slide

CHUNK_PX = 1024
"""Side of the parts that are read together, in pixels of their level."""

_LEAST_PX = 1024  # a level whose longest side is at most this is the last
_STEP = 4  # at most from one level to the next, so that a part of a level is made of no more than 16 of the one above
_MAX_PIXELS = 4_000_000_000  # what was predicted from is trusted


def pyramid(path: str | Path, *, series: int = 0, lost: list[str] | None = None) -> list[Any]:
    """The levels of a slide as arrays of dask, RGB, uint8, shape (3, height, width), the whole first.

    They are those of the file, and smaller ones so that each is at most four times as wide as the next, until one is at
    most 1024 px. Each thread reads by a slide of its own, and so does each process. A level of ``d`` full-resolution
    pixels per pixel shows them all, whichever way its sides are rounded.

    ``path``: the file; ``series``: which of the images in it; ``lost``: what takes up why a part cannot be decoded,
    which then is white; without it that is an error.

    Raises:
        ImageError: The slide cannot be read.
        ExtraError: dask is not installed.
    """
    array = require("dask.array", extra="spatialdata", to="read slides as they are looked at")
    pixels = _Pixels(Path(path), series, lost)
    stat = stat_of(pixels.path)
    of = str(pixels.path.resolve()), stat.st_size, stat.st_mtime_ns, series
    levels = []
    for downsample in _downsamples(pixels.size, pixels.downsamples):
        level = _Level(pixels, downsample)
        name = f"slide-{array.core.tokenize(*of, downsample, lost is None)}"
        chunks = (3, CHUNK_PX, CHUNK_PX)
        levels.append(
            array.from_array(level, chunks=chunks, name=name, asarray=False, fancy=False, lock=False, meta=_NOTHING)
        )
    return levels


_NOTHING = np.empty((0, 0, 0), np.uint8)


def _downsamples(size: tuple[int, int], own: tuple[float, ...]) -> list[float]:
    """Full-resolution pixels per pixel of each level, of which ``own`` are those of the file."""
    found = [1.0]
    while max(size) / found[-1] > _LEAST_PX:
        within = [d for d in own if 1.5 * found[-1] < d <= 1.1 * _STEP * found[-1]]
        found.append(max(within, default=_STEP * found[-1]))
    return found


class _Pixels:
    """A slide that each thread opens for itself; one that is decoded as a whole is shared."""

    def __init__(self, path: Path, series: int, lost: list[str] | None) -> None:
        self.path, self.series, self.lost = path, series, lost
        self._here()
        with self._slide() as slide:
            self.size, self.downsamples, self._reopens = slide.size, slide.downsamples, slide.reopens

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_own", "_shared")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._here()

    def _here(self) -> None:
        self._lock, self._own = threading.Lock(), threading.local()
        self._shared: Slide | None = None

    def _slide(self) -> Slide:
        return open_slide(self.path, max_pixels=_MAX_PIXELS, series=self.series)

    def read(self, x: int, y: int, width: int, height: int, *, level: int) -> np.ndarray:
        """As `Slide.read` does."""
        try:
            if not self._reopens:
                with self._lock:
                    self._shared = self._shared or self._slide()
                return self._shared.read(x, y, width, height, level=level)
            if not hasattr(self._own, "slide"):
                self._own.slide = self._slide()
            return self._own.slide.read(x, y, width, height, level=level)
        except ImageError as err:
            if self.lost is None:
                raise
            self.lost.append(str(err))
            return np.full((height, width, 3), 255, np.uint8)


class _Level:
    """What dask takes for an array: a level of a slide, of the file or made of the nearest one above."""

    ndim, dtype = 3, np.dtype(np.uint8)

    def __init__(self, pixels: _Pixels, downsample: float) -> None:
        self._pixels, self._downsample = pixels, downsample
        width, height = (max(1, round(side / downsample)) for side in pixels.size)
        self.shape = 3, height, width
        self._level = max((i for i, d in enumerate(pixels.downsamples) if d <= downsample * 1.01), default=0)

    def __getitem__(self, place: tuple[slice | int, ...]) -> np.ndarray:
        # dask hands on what is asked of a part, single rows and every second one too
        channels, rows, columns = place
        top, bottom = _ends(rows, self.shape[1])
        left, right = _ends(columns, self.shape[2])
        down, across = (slice(None, None, at.step) if isinstance(at, slice) else 0 for at in (rows, columns))
        return np.ascontiguousarray(self._read(left, top, right, bottom).transpose(2, 0, 1)[channels, down, across])

    def _read(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        from PIL import Image

        own = self._pixels.downsamples[self._level]
        first = np.array([left, top]) * (self._downsample / own)
        last = np.minimum(np.array([right, bottom]) * self._downsample, self._pixels.size) / own
        corner = np.floor(first + 1e-6).astype(int)
        sides = np.maximum(1, np.ceil(last - corner - 1e-6).astype(int)).tolist()
        x, y = np.round(corner * own).astype(int).tolist()
        pixels = self._pixels.read(x, y, *sides, level=self._level)
        if self._downsample / own > 1.01:
            ends = np.minimum(last - corner, sides)
            box = (*(first - corner).tolist(), *ends.tolist())
            size = right - left, bottom - top
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX, box=box))
        return pixels[: bottom - top, : right - left]


def _ends(at: slice | int, side: int) -> tuple[int, int]:
    """The first of what is asked of an axis, and the one after the last."""
    asked = range(side)[at if isinstance(at, slice) else slice(at, at + 1)]
    return min(asked, default=0), max(asked, default=0) + 1
