"""Plain pictures, by Pillow: decoded as a whole, when they are first looked at."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tcgn_hub.errors import ExtraError, ImageError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import NotOfThisReader
from tcgn_hub.images.scale import Scale, scale_of_density
from tcgn_hub.images.slides import Slide
from tcgn_hub.images.transforms import to_rgb
from tcgn_hub.text import option

_ORIENTATION = 0x0112
_TURNS = {
    **{2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM},
    **{5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE},
    8: Image.Transpose.ROTATE_90,
}
_SWAPPING = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))


class ArraySlide(Slide):
    """Pixels in memory, uint8, shape (height, width, 3)."""

    reopens = False
    downsamples = (1.0,)

    def __init__(self, path: Path, pixels: np.ndarray | None, scale: Scale | None = None) -> None:
        self.path, self.scale, self._pixels = path, scale, pixels
        if pixels is not None:
            self.size = pixels.shape[1], pixels.shape[0]

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> np.ndarray:
        left, top = max(x, 0), max(y, 0)
        inside = self._whole()[top : max(y + height, 0), left : max(x + width, 0)]
        if inside.shape[:2] == (height, width):
            return inside.copy()
        out = np.full((height, width, 3), 255, np.uint8)
        out[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
        return out

    def close(self) -> None:
        self._pixels = None

    def _whole(self) -> np.ndarray:
        assert self._pixels is not None
        return self._pixels


def slide_of(image: Image.Image, name: str) -> ArraySlide:
    """A picture in memory as its file would be read: upright, and with the scale that it states."""
    turn = _turn(image)
    picture = to_rgb(image)
    pixels = np.asarray(picture if turn is None else picture.transpose(turn))
    return ArraySlide(Path(name), pixels, _scale_of(image, swapped=turn in _SWAPPING))


class PictureReader(ArraySlide):
    """A picture that Pillow reads, upright by its EXIF orientation; of several pages, the first."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        super().__init__(path, None)
        self._failed: ImageError | None = None  # decoding, which is not tried for every part again
        try:
            with open_picture(path) as image:
                if image.width * image.height > max_pixels:
                    raise ImageError(
                        f"{path} has {image.width} x {image.height} px, more than the limit of {max_pixels:,}; if you"
                        f" trust the file, raise it with {option('max_pixels')}."
                    )
                self._turn = _turn(image)
                swapped = self._turn in _SWAPPING
                self.size = image.size[::-1] if swapped else image.size
                self.scale = _scale_of(image, swapped=swapped)
                if image.format == "TIFF" and (getattr(image, "n_frames", 1) > 1 or "<OME" in _description(image)):
                    # which page is the scan, and what its channels are, Pillow does not tell
                    require("tifffile", extra="slides", to="read a TIFF of several images")
                    self.chosen = "the first of its pages is taken"
        except Image.UnidentifiedImageError as err:
            raise NotOfThisReader from err
        except Image.DecompressionBombError as err:  # a check within a format: of WebP, since Pillow 13
            raise ImageError(f"{path} has more pixels than Pillow reads of its format; save it as a TIFF.") from err
        except (ImageError, ExtraError):
            raise
        except Exception as err:  # of damage Pillow says whatever comes of it
            raise NotOfThisReader(f"Pillow: {str(err) or type(err).__name__}") from err

    def _whole(self) -> np.ndarray:
        if self._failed is not None:
            raise self._failed
        if self._pixels is None:
            try:
                with open_picture(self.path) as image:
                    if hasattr(image, "_tile_size"):
                        # of a TIFF without memory Pillow would ask its own limit once more
                        image.im = Image.core.new(image.mode, image._tile_size)
                    picture = to_rgb(image)
                    self._pixels = np.asarray(picture if self._turn is None else picture.transpose(self._turn))
            except ImageError as err:
                self._failed = ImageError(f"{self.path}: {err}.")
                raise self._failed from err
            except Exception as err:  # as above
                self._failed = ImageError(f"{self.path} cannot be read as an image ({str(err) or type(err).__name__}).")
                raise self._failed from err
        return self._pixels


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a picture is to be turned by its EXIF orientation; a TIFF is turned by Pillow itself."""
    # of a PNG that has none before its pixels Pillow would decode these to look behind them
    if image.format == "TIFF" or (image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys()):
        return None
    return _TURNS.get(image.getexif().get(_ORIENTATION, 1))


def _scale_of(image: Image.Image, *, swapped: bool) -> Scale | None:
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
