"""Plain pictures, by Pillow: decoded as a whole, when they are first looked at."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tcgn_hub.errors import ExtraError, ImageError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import NotOfThisReader
from tcgn_hub.images.scale import Scale, scale_of_density
from tcgn_hub.images.slides import Slide
from tcgn_hub.images.transforms import to_rgb
from tcgn_hub.text import option

_ORIENTATION = 0x0112


class ArraySlide(Slide):
    """Pixels in memory, uint8, shape (height, width, 3)."""

    reopens = False
    downsamples = (1.0,)

    def __init__(self, path: Path, pixels: np.ndarray | None, scale: Scale | None = None) -> None:
        self.path, self.scale, self._pixels = path, scale, pixels
        if pixels is not None:
            self.size = pixels.shape[1], pixels.shape[0]

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> np.ndarray:
        out = np.full((height, width, 3), 255, np.uint8)
        left, top = max(x, 0), max(y, 0)
        inside = self._whole()[top : max(y + height, 0), left : max(x + width, 0)]
        out[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
        return out

    def close(self) -> None:
        self._pixels = None

    def _whole(self) -> np.ndarray:
        assert self._pixels is not None
        return self._pixels


class PictureReader(ArraySlide):
    """A picture that Pillow reads, upright by its EXIF orientation; of several pages, the first."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        super().__init__(path, None)
        self._failed: ImageError | None = None  # decoding, which is not tried for every part again
        try:
            with open_picture(path) as image:
                if image.format == "TIFF" and (getattr(image, "n_frames", 1) > 1 or "<OME" in _description(image)):
                    # which page is the scan, and what its channels are, Pillow does not tell
                    require("tifffile", extra="slides", to="read a TIFF of several images")
                    self.chosen = "the first of its pages is taken"
                self.size = _upright(image)
                self.scale = _scale(image, swapped=self.size != image.size)
        except Image.UnidentifiedImageError as err:
            raise NotOfThisReader from err
        except (ImageError, ExtraError):
            raise
        except Exception as err:  # of damage Pillow says whatever comes of it
            raise NotOfThisReader(f"Pillow: {str(err) or type(err).__name__}") from err
        if self.size[0] * self.size[1] > max_pixels:
            raise ImageError(
                f"{path} has {self.size[0]} x {self.size[1]} px, more than the limit of {max_pixels:,}; if you trust"
                f" the file, raise it with {option('max_pixels')}."
            )

    def _whole(self) -> np.ndarray:
        if self._failed is not None:
            raise self._failed
        if self._pixels is None:
            try:
                with open_picture(self.path) as image:
                    if hasattr(image, "_tile_size"):
                        # of a TIFF without memory Pillow would ask its own limit once more
                        image.im = Image.core.new(image.mode, image._tile_size)
                    # Pillow turns a TIFF itself
                    turned = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
                    self._pixels = np.asarray(to_rgb(turned))
            except ImageError as err:
                self._failed = ImageError(f"{self.path}: {err}.")
                raise self._failed from err
            except Exception as err:  # as above
                self._failed = ImageError(f"{self.path} cannot be read as an image ({str(err) or type(err).__name__}).")
                raise self._failed from err
        return self._pixels


def _upright(image: Image.Image) -> tuple[int, int]:
    if image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
        return image.height, image.width
    return image.size


def _scale(image: Image.Image, *, swapped: bool) -> Scale | None:
    """Scale by the resolution of a picture, unless that is the 72 or 96 dpi of screens."""
    try:
        x, y = (float(density) for density in image.info.get("dpi", (0, 0)))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    x, y = (y, x) if swapped else (x, y)
    return scale_of_density(x, y, unit="inch", source="resolution in the file")


def _description(image: Any) -> str:
    return str(getattr(image, "tag_v2", {}).get(270, ""))


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of any size, open but not decoded: who calls says what is too large.

    `PIL.Image.open` has one limit for the whole process; to change it, if only for a while, would change it for other
    threads, too.
    """
    with open(path, "rb") as file:
        yield _identified(file, path, Image)


def _identified(file: Any, path: Path, pillow: Any) -> Image.Image:
    prefix = file.read(16)
    for load_plugins in (pillow.preinit, pillow.init):
        load_plugins()
        for name in pillow.ID:
            factory, accept = pillow.OPEN[name]
            try:
                accepted = accept is None or accept(prefix)
                # a text says what is missing to open the file
                if accepted and not isinstance(accepted, str):
                    file.seek(0)
                    return factory(file, str(path))
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue
    raise pillow.UnidentifiedImageError(f"{path} is of no format that Pillow knows")
