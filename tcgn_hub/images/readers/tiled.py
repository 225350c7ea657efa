"""Slides whose levels are stored in parts, tiles or strips or chunks: what is decoded is what is looked at."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.images.slides import Slide
from tcgn_hub.text import option

_CACHE_BYTES = 64 << 20  # decoded parts that are kept for the neighbour that overlaps them
_SHARE = 4  # of what may be decoded at once, that one of several parts may take


@dataclass(frozen=True)
class Parts:
    """Size of a level, and of the parts it is stored in row by row, in pixels of the level."""

    width: int
    height: int
    across: int  # width of a part
    down: int

    @property
    def columns(self) -> int:
        """How many parts there are beside each other."""
        return -(-self.width // self.across)


class TiledSlide(Slide):
    """A slide of which `part` decodes one part."""

    reopens = True
    library: str  # that decodes, for messages

    def stored_in(self, levels: Sequence[Parts]) -> None:
        """Take over size and levels, the whole first."""
        self._parts_of = tuple(levels)
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        width, height = self.size = levels[0].width, levels[0].height
        self.downsamples = tuple((width / level.width + height / level.height) / 2 for level in levels)

    @abstractmethod
    def part(self, level: int, index: int) -> np.ndarray | None:
        """A part as RGB, uint8, shape (h, w, 3); None where the file has none, which is glass."""

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> np.ndarray:
        own, parts = self.downsamples[level], self._parts_of[level]
        left, top = round(x / own), round(y / own)
        out = np.full((height, width, 3), 255, np.uint8)
        right, bottom = min(left + width, parts.width), min(top + height, parts.height)
        for row in range(max(top, 0) // parts.down, -(-bottom // parts.down)):
            for column in range(max(left, 0) // parts.across, -(-right // parts.across)):
                part = self._part(level, row * parts.columns + column, (x, y))
                if part is None:
                    continue
                at_x, at_y = column * parts.across, row * parts.down
                x0, y0 = max(left, at_x), max(top, at_y)
                x1, y1 = min(right, at_x + part.shape[1]), min(bottom, at_y + part.shape[0])
                if x0 < x1 and y0 < y1:
                    out[y0 - top : y1 - top, x0 - left : x1 - left] = part[y0 - at_y : y1 - at_y, x0 - at_x : x1 - at_x]
        return out

    def close(self) -> None:
        self._kept.clear()

    def _part(self, level: int, index: int, place: tuple[int, int]) -> np.ndarray | None:
        key = level, index
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            part = self.part(level, index)
        except Exception as err:
            why = reason(self.library, err)
            raise ImageError(f"{self.path} cannot be decoded at {place[0]}, {place[1]} ({why}).") from err
        if part is None:
            return None
        self._kept[key] = part
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _CACHE_BYTES:
            self._kept.popitem(last=False)
        return part


def check_parts(path: Path, size: tuple[int, int], at_once: int, *, alone: bool, max_pixels: int) -> None:
    """Refuse parts of too many pixels, which have to be decoded at once.

    ``size``: of the image; ``alone``: whether there is but one part. Of several those beside each other are decoded
    over and over; scanners write some of up to 8192 px a side.
    """
    if at_once > (max_pixels if alone else max_pixels // _SHARE):
        raise ImageError(
            f"{path} has {size[0]} x {size[1]} px in parts of {at_once:,}, more than the limit of {max_pixels:,}; if"
            f" you trust the file, raise it with {option('max_pixels')}."
        )


def reason(library: str, err: Exception) -> str:
    """What a library says of a file it cannot read, in one line."""
    return f"{library}: {(str(err).splitlines() or [''])[0] or type(err).__name__}"
