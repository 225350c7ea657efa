"""Slides in the formats of scanner vendors, by OpenSlide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import NotOfThisReader
from tcgn_hub.images.scale import scale_of_properties
from tcgn_hub.images.slides import Slide
from tcgn_hub.images.transforms import to_rgb


class OpenSlideReader(Slide):
    """A slide that OpenSlide reads, but no TIFF of no vendor, whose colours and series it does not tell apart."""

    reopens = True

    def __init__(self, path: Path) -> None:
        openslide = require("openslide", extra="slides", to="read slides")
        self.path = path
        try:
            if openslide.OpenSlide.detect_format(str(path)) in (None, "generic-tiff"):
                raise NotOfThisReader
            self._handle = openslide.OpenSlide(str(path))
        except openslide.OpenSlideUnsupportedFormatError as err:
            raise NotOfThisReader from err
        except openslide.OpenSlideError as err:
            raise NotOfThisReader(f"OpenSlide: {_first_line(err)}") from err
        properties = self._handle.properties
        self.size = tuple(self._handle.dimensions)
        self.scale = scale_of_properties(properties)
        self.downsamples = tuple(float(d) for d in self._handle.level_downsamples)
        x, y = (properties.get(f"openslide.bounds-{axis}", "0") for axis in "xy")
        self.origin = int(x), int(y)

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> np.ndarray:
        try:
            region = self._handle.read_region((x, y), level, (width, height))
        except Exception as err:
            # OpenSlide refuses everything after its first error; other regions may be sound
            self._handle = type(self._handle)(str(self.path))
            reason = _first_line(err) or type(err).__name__
            raise ImageError(f"{self.path} cannot be decoded at {x}, {y} ({reason}).") from err
        return np.asarray(to_rgb(region))

    def close(self) -> None:
        self._handle.close()


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [""])[0]
