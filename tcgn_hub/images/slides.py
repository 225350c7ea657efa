"""Whole slides and large pictures behind one interface: size, scale, levels, regions."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.errors import ExtraError, ImageError
from tcgn_hub.images.scale import Scale, scale_of_picture, scale_of_properties
from tcgn_hub.images.transforms import to_rgb

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 500_000_000
"""Pixels of a picture that is not a pyramid and has to be decoded as a whole, 1.5 GB; more may be a bomb."""

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
SLIDE_SUFFIXES = {".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi"}
"""Suffixes of formats that hold whole slides and never patches."""
_BLOCK_PX = 1024  # side of the parts an overview is read in where the slide has no small level
_LEAST_BLOCK_PX = 256  # side of the parts around damage, in full-resolution pixels


class Slide(ABC):
    """An open slide; close it, or use it as a context manager.

    Attributes:
        path: The file.
        size: (width, height) in pixels at full resolution.
        scale: What the file says of its scale, None if nothing believable.
        downsamples: Full-resolution pixels per pixel of each level, ascending.
        reopens: Whether another process has to open the file for itself.
    """

    path: Path
    size: tuple[int, int]
    scale: Scale | None
    downsamples: tuple[float, ...]
    reopens: bool

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
        error = None
        for top in range(0, out.shape[0], step):
            for left in range(0, out.shape[1], step):
                box = left, top, min(left + step, out.shape[1]), min(top + step, out.shape[0])
                error = self._overview_part(out, lost, box, downsample, level) or error
        if error is not None and lost.all():
            raise error
        return out, downsample, lost

    def _overview_part(
        self, out: np.ndarray, lost: np.ndarray, box: tuple[int, int, int, int], downsample: float, level: int
    ) -> ImageError | None:
        """Fill a box (left, top, right, bottom) of an overview; around damage in smaller and smaller parts."""
        from PIL import Image

        left, top, right, bottom = box
        own = self.downsamples[level]
        # on a pixel of the level, between which OpenSlide would interpolate at four times the cost
        x, y = (int(int(v * downsample / own) * own) for v in (left, top))
        # the part may begin and end within a pixel of the level
        first, last = ((np.array(corner) * downsample - (x, y)) / own for corner in ((left, top), (right, bottom)))
        try:
            part = self.read(x, y, int(np.ceil(last[0])), int(np.ceil(last[1])), level=level)
        except ImageError as err:
            if (right - left) * downsample <= _LEAST_BLOCK_PX or right - left < 2 or bottom - top < 2:
                lost[top:bottom, left:right] = True
                return err
            middle = (left + right) // 2, (top + bottom) // 2
            for begin, end in ((left, middle[0]), (middle[0], right)):
                self._overview_part(out, lost, (begin, top, end, middle[1]), downsample, level)
                self._overview_part(out, lost, (begin, middle[1], end, bottom), downsample, level)
            return err
        resized = Image.fromarray(part).resize(
            (right - left, bottom - top), Image.Resampling.BOX, box=(first[0], first[1], last[0], last[1])
        )
        out[top:bottom, left:right] = np.asarray(resized)
        return None


class _Pyramid(Slide):
    """A slide that OpenSlide reads, or tiffslide, whose interface is the same."""

    reopens = True

    def __init__(self, path: Path, handle: Any) -> None:
        self.path = path
        self._handle = handle
        self.size = tuple(handle.dimensions)
        self.scale = scale_of_properties(handle.properties)
        self.downsamples = tuple(float(d) for d in handle.level_downsamples)

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> np.ndarray:
        try:
            region = self._handle.read_region((x, y), level, (width, height))
        except Exception as err:
            # OpenSlide refuses everything after its first error; other regions may be sound
            self._handle = type(self._handle)(str(self.path))
            reason = (str(err).splitlines() or [""])[0]
            raise ImageError(f"{self.path} cannot be decoded at {x}, {y} ({reason or type(err).__name__}).") from err
        try:
            pixels = np.asarray(to_rgb(region))
        except ImageError as err:
            raise ImageError(f"{self.path}: {err}.") from err
        # tiffslide repeats or zeroes what lies outside, where OpenSlide is transparent
        return _whiten(pixels, x, y, self.downsamples[level], self.size) if region.mode != "RGBA" else pixels

    def close(self) -> None:
        self._handle.close()


def _whiten(pixels: np.ndarray, x: int, y: int, downsample: float, size: tuple[int, int]) -> np.ndarray:
    height, width = pixels.shape[:2]
    left, top = (max(0, int(np.ceil(-v / downsample))) for v in (x, y))
    right, bottom = (int(np.ceil((s - v) / downsample)) for s, v in zip(size, (x, y), strict=True))
    if left or top or right < width or bottom < height:
        pixels = pixels.copy()
        pixels[:top] = pixels[:, :left] = pixels[max(bottom, 0) :] = pixels[:, max(right, 0) :] = 255
    return pixels


class _Picture(Slide):
    """A plain picture, decoded as a whole."""

    reopens = False

    def __init__(self, path: Path, max_pixels: int) -> None:
        from PIL import Image

        self.path = path
        self.downsamples = (1.0,)
        try:
            with open_picture(path) as image:
                self.size = image.size
                if self.size[0] * self.size[1] > max_pixels:
                    raise ImageError(
                        f"{path} has {self.size[0]} x {self.size[1]} px, more than the limit of {max_pixels:,}; if you"
                        " trust the file, raise it with --max-pixels."
                    )
                self.scale = scale_of_picture(image)
                if hasattr(image, "_tile_size"):
                    # of a TIFF without memory Pillow would ask its own limit once more
                    image.im = Image.core.new(image.mode, image._tile_size)
                self._pixels = np.asarray(to_rgb(image))
        except Image.UnidentifiedImageError as err:
            raise ImageError(f"{path} is not an image that can be read.") from err
        except ImageError as err:
            raise err if str(path) in str(err) else ImageError(f"{path}: {err}.") from err
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as err:
            raise ImageError(f"{path} cannot be read as an image ({err}).") from err

    def read(self, x: int, y: int, width: int, height: int, *, level: int = 0) -> np.ndarray:
        out = np.full((height, width, 3), 255, np.uint8)
        left, top = max(x, 0), max(y, 0)
        inside = self._pixels[top : max(y + height, 0), left : max(x + width, 0)]
        out[top - y : top - y + inside.shape[0], left - x : left - x + inside.shape[1]] = inside
        return out

    def close(self) -> None:
        self._pixels = np.empty((0, 0, 3), np.uint8)


def is_slide_file(path: str | Path) -> bool:
    """Whether a file is, by its name, of a format that holds whole slides and never patches."""
    name = Path(path).name.lower()
    return Path(name).suffix in SLIDE_SUFFIXES or name.endswith((".ome.tif", ".ome.tiff"))


def open_slide(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Slide:
    """Open a slide: any format of OpenSlide, OME-TIFF and other tiled TIFF, or a plain picture.

    ``path``: the file; ``max_pixels``: the most pixels of a picture that has to be decoded as a whole.
    """
    path = Path(path)
    return _open_pyramid(path) or _Picture(path, max_pixels)


def size_and_scale(path: str | Path) -> tuple[tuple[int, int], Scale | None]:
    """(width, height) in pixels at full resolution, and the scale the file states; decodes no pixels."""
    path = Path(path)
    slide = _open_pyramid(path)
    if slide is not None:
        with slide:
            return slide.size, slide.scale
    try:
        with open_picture(path) as image:
            return image.size, scale_of_picture(image)
    except (OSError, SyntaxError, ValueError, EOFError) as err:
        raise ImageError(f"{path} is not an image that can be read.") from err


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A picture of any size, open but not decoded: who calls says what is too large.

    `PIL.Image.open` has one limit for the whole process; to change it, if only for a while, would change it for other
    threads, too.
    """
    from PIL import Image

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


def _open_pyramid(path: Path) -> Slide | None:
    """An open slide, None if the file is to be tried as a plain picture."""
    if not path.exists():
        raise ImageError(f"{path} does not exist.")
    if path.is_dir():
        raise ImageError(f"{path} is a folder.")
    if path.suffix.lower() not in _PICTURES:
        missing = None
        try:
            for opened in _readers(path):
                return opened
        except ExtraError as err:
            missing = err
        if missing is not None and is_slide_file(path):
            raise missing
        if is_slide_file(path):
            raise ImageError(f"{path} is no slide that can be read; it may be cut short, or of another format.")
    return None


def _readers(path: Path) -> Iterable[Slide]:
    """The slide, opened by the first library that can, if any."""
    from tcgn_hub.extras import require

    openslide = require("openslide", extra="slides", to="read slides")
    try:
        yield _Pyramid(path, openslide.OpenSlide(str(path)))
        return
    except openslide.OpenSlideUnsupportedFormatError:
        pass
    except openslide.OpenSlideError as err:
        raise ImageError(f"{path} is damaged ({err}).") from err
    if path.suffix.lower() in (".tif", ".tiff"):
        tiffslide = require("tiffslide", extra="slides", to="read this TIFF")
        try:
            yield _Pyramid(path, tiffslide.TiffSlide(str(path)))
        except Exception:  # noqa: BLE001 - tiffslide fails in many ways on a TIFF that is no slide; Pillow is next
            return
