"""CZI that OpenSlide does not read, such as stacks, by libCZI."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import NotOfThisReader
from tcgn_hub.images.readers.series import plane_of
from tcgn_hub.images.readers.tiled import reason
from tcgn_hub.images.scale import Scale, square_scale
from tcgn_hub.images.slides import Slide

_CACHE_BYTES = 64 << 20
_RGB = "Bgr24"
_WHITE = (1.0, 1.0, 1.0)


class CziReader(Slide):
    """A CZI in colour, all its scenes on one canvas. Its levels are those of the pyramid that is stored."""

    reopens = True

    def __init__(self, path: Path) -> None:
        czi = require("pylibCZIrw.czi", extra="czi", to="read a CZI that OpenSlide does not")
        self.path = path
        cache = czi.CacheOptions(czi.CacheType.Standard, _CACHE_BYTES)
        try:
            self._czi = czi.CziReader(str(path), cache_options=cache)
        except Exception as err:
            raise NotOfThisReader(reason("libCZI", err)) from err
        try:
            self._open()
        except (ImageError, NotOfThisReader):
            self.close()
            raise
        except Exception as err:
            self.close()
            raise NotOfThisReader(reason("libCZI", err)) from err

    def _open(self) -> None:
        kinds = self._czi.pixel_types
        if list(kinds.values()) != [_RGB]:
            counted = ", ".join(f"{n} of {kind}" for kind, n in Counter(kinds.values()).items()) or "none"
            raise ImageError(
                f"{self.path}: its channels are {counted}, and not one of {_RGB}: these weights are for H&E in bright"
                " field; save it as RGB."
            )
        whole = self._czi.total_bounding_rectangle
        self._at, self.size = (whole.x, whole.y), (whole.w, whole.h)
        if min(self.size) < 1:
            raise NotOfThisReader("libCZI: it has no pixels")
        ranges = {axis: span for axis, span in self._czi.total_bounding_box.items() if axis not in "XYC"}
        place, said = plane_of({axis: end - first for axis, (first, end) in ranges.items()})
        self._plane = {"C": 0, **{axis: first + place[axis] for axis, (first, _) in ranges.items()}}
        self.chosen = "; ".join(said)
        self.downsamples = self._stored()
        self.scale = _scale(self._czi.raw_metadata)

    def _stored(self) -> tuple[float, ...]:
        """The downsamplings of the parts that are stored, all powers of two."""
        found = {0}

        def look(_: int, part: Any) -> bool:
            width, stored = part.logicalRect.w, part.physicalSize.w
            if 0 < stored <= width:
                found.add(round(np.log2(width / stored)))
            return True

        self._czi.enumerate_subblocks(look)
        return tuple(2.0**power for power in sorted(found) if 2**power <= max(self.size))

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> np.ndarray:
        own = self.downsamples[level]
        box = self._at[0] + x, self._at[1] + y, round(width * own), round(height * own)
        try:
            pixels = self._czi.read(box, self._plane, zoom=1 / own, pixel_type=_RGB, background_pixel=_WHITE)
        except Exception as err:
            raise ImageError(f"{self.path} cannot be decoded at {x}, {y} ({reason('libCZI', err)}).") from err
        out = np.full((height, width, 3), 255, np.uint8)
        inside = pixels[:height, :width, ::-1]
        out[: inside.shape[0], : inside.shape[1]] = inside
        return out

    def close(self) -> None:
        self._czi.close()


def _scale(xml: str) -> Scale | None:
    """The scale in the metadata, which is in metres a pixel."""
    metres = {"X": 0.0, "Y": 0.0}
    if not xml:
        return None
    for distance in ElementTree.fromstring(xml).iterfind(".//Scaling/Items/Distance"):
        try:
            metres[distance.get("Id", "")] = float(distance.findtext("Value", ""))
        except ValueError:
            continue
    return square_scale(metres["X"] * 1e6, metres["Y"] * 1e6, "CZI Scaling")
