"""TIFF of no vendor, by tifffile: any codec, OME-TIFF, pyramids in SubIFDs, colour in planes, sixteen bits, strips."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from tcgn_hub.errors import ImageError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import NotOfThisReader
from tcgn_hub.images.readers.series import is_level, no_colours, order_of_colours, plane_of, taken
from tcgn_hub.images.readers.tiled import Parts, TiledSlide, check_parts, reason
from tcgn_hub.images.scale import Scale, scale_of_density, scale_of_size, square_scale

_KINDS = ("svs", "ndpi", "philips", "scn", "bif", "qpi")  # whose series tifffile knows
_REDUCED = 1  # of NewSubfileType
_UNITS = {2: "inch", 3: "cm"}
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_ASSOCIATED_ALPHA, _ALPHA = 1, 2
_JPEG = (6, 7, 34892, 33007)  # compressions whose decoders give RGB
_J2K_YCBCR = 33003  # of Aperio, whatever the tag of the colours says; its decoder leaves them as they are
_MAX_SAMPLE = 281
_SUBSAMPLING, _OF_EVERY_PIXEL = 530, (1, 1)
_LOOKED_AT = 16  # tiles or strips that are looked at for the range of their samples
_APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*(\d+\.?\d*)")

# what tifffile has to say of a file goes into our own errors
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass
class _Image:
    """One of the images in a file: its levels, each of one page in colour, or of one for each of red, green, blue."""

    levels: list[list[Any]]
    name: str = ""
    scale: Scale | None = None
    note: str = ""
    problem: str = ""  # why its colours are not known
    bits: int = 0  # that are used of each sample, 0 if all

    @property
    def size(self) -> tuple[int, int]:
        page = self.levels[0][0].keyframe
        # of a damaged file they may be text
        width, height = (side if isinstance(side, int) else 0 for side in (page.imagewidth, page.imagelength))
        return width, height


class TiffReader(TiledSlide):
    """An image of a TIFF. What is decoded is what is looked at, also of strips."""

    library = "tifffile"

    def __init__(self, path: Path, max_pixels: int, series: int | None = None) -> None:
        tifffile = require("tifffile", extra="slides", to="read this TIFF")
        self.path = path
        try:
            self._file = tifffile.TiffFile(path)
        except Exception as err:
            raise NotOfThisReader(reason(self.library, err)) from err
        try:
            images = _images_of(self._file)
            self._open(images, max_pixels, series)
        except (ImageError, NotOfThisReader):
            self._file.close()
            raise
        except Exception as err:
            self._file.close()
            raise NotOfThisReader(reason(self.library, err)) from err

    def _open(self, images: list[_Image], max_pixels: int, series: int | None) -> None:
        if not images:
            raise NotOfThisReader("tifffile finds no image in it")
        self.series, self.chosen = taken(images, series, self.path)
        image = images[self.series]
        for page in image.levels[0]:
            _check(page.keyframe, self.path, max_pixels)
        image.levels[1:] = [level for level in image.levels[1:] if all(_readable(page.keyframe) for page in level)]
        self.stored_in([_parts_of(page.keyframe) for page, *_ in image.levels])
        self.scale = image.scale
        self._levels, self._bits = image.levels, image.bits
        self._check_range(image.levels[0][0].keyframe)

    def _check_range(self, page: Any) -> None:
        """Refuse samples of 16 bits that use a few of them though nothing says so, or more of them than are stated."""
        if page.dtype.itemsize == 1 or page.photometric not in (_RGB, _YCBCR, _MINISBLACK):
            return
        count, largest = len(page.dataoffsets), 0
        for index in sorted({count * i // _LOOKED_AT for i in range(_LOOKED_AT)}):
            try:
                part = self._segment(self._levels[0][0], index)
            except Exception:  # noqa: BLE001 - told where it is read
                part = None
            largest = max(largest, 0 if part is None else int(part.max()))
        if self._bits and largest >> self._bits:
            raise ImageError(
                f"{self.path}: its samples of 16 bits are as large as {largest:,}, above what the file says of their"
                " range; save it as 8-bit RGB."
            )
        if not self._bits and 0 < largest < 1 << 15:
            raise ImageError(
                f"{self.path}: its samples of 16 bits are at most {largest:,} of 65,535 in the parts that were looked"
                " at, and nothing says which of them is white; save it as 8-bit RGB."
            )

    def part(self, level: int, index: int) -> np.ndarray | None:
        found = [self._decoded(page, index) for page in self._levels[level]]
        parts = [part for part in found if part is not None]
        return _as_rgb(parts, self._levels[level][0].keyframe, self._bits) if len(parts) == len(found) else None

    def close(self) -> None:
        super().close()
        self._file.close()

    def _decoded(self, page: Any, index: int) -> np.ndarray | None:
        """A tile of a page, shape (h, w, samples)."""
        key = page.keyframe
        planes = key.samplesperpixel if key.planarconfig == 2 else 1
        count = len(page.dataoffsets) // planes
        found = (self._segment(page, index + plane * count) for plane in range(planes))
        parts = [part for part in found if part is not None]
        return np.concatenate(parts, axis=2) if len(parts) == planes else None

    def _segment(self, page: Any, index: int) -> np.ndarray | None:
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count or not offset:
            return None
        handle = page.parent.filehandle
        handle.seek(offset)
        data = handle.read(count)
        if len(data) < count:
            raise ValueError("the file is cut short")
        tables = {"jpegtables": page.jpegtables} if page.keyframe.jpegtables or page.jpegtables else {}
        if getattr(page, "jpegheader", None) is not None:
            tables["jpegheader"] = page.jpegheader
        decoded = page.keyframe.decode(data, index, **tables)[0]
        return None if decoded is None else decoded[0]


def _parts_of(page: Any) -> Parts:
    across, down = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    return Parts(page.imagewidth, page.imagelength, across, down)


def _as_rgb(parts: Sequence[np.ndarray], page: Any, bits: int) -> np.ndarray:
    """Decoded samples as RGB, 8 bits: alpha over white, which is glass."""
    pixels = np.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
    if page.photometric == _PALETTE:
        colours = np.asarray(page.colormap)
        colours = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
        return np.ascontiguousarray(colours[:, pixels[..., 0]].transpose(1, 2, 0))
    if pixels.dtype != np.uint8:
        pixels = (pixels >> max(0, (bits or page.bitspersample) - 8)).clip(0, 255).astype(np.uint8)
    if page.photometric == _MINISWHITE:
        pixels = 255 - pixels
    if _is_ycbcr(page) and pixels.shape[2] == 3:
        pixels = np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))
    samples = 3 if len(parts) == 3 or page.photometric in (_RGB, _YCBCR) else 1
    kind = next(iter(page.extrasamples), 0) if len(parts) == 1 else 0
    if pixels.shape[2] > samples and kind in (_ASSOCIATED_ALPHA, _ALPHA):
        alpha = pixels[..., samples : samples + 1].astype(np.uint16)
        own = pixels[..., :samples].astype(np.uint16)
        own = own if kind == _ASSOCIATED_ALPHA else (own * alpha + 127) // 255
        pixels = np.minimum(own + 255 - alpha, 255).astype(np.uint8)
    pixels = pixels[..., :samples]
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _is_ycbcr(page: Any) -> bool:
    """Whether the decoder of a page leaves its colours as luma and chroma."""
    return page.compression == _J2K_YCBCR or (page.photometric == _YCBCR and page.compression not in _JPEG)


def _readable(page: Any) -> bool:
    """Whether the tiles of a page can be decoded to colours or shades by `_as_rgb`."""
    parts = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.rowsperstrip)
    if not all(isinstance(side, int) and side > 0 for side in (*parts, page.imagewidth, page.imagelength)):
        return False
    try:
        page.decode(None, 0)
    except Exception:  # noqa: BLE001 - a codec that is not known, or no pixels at all
        return False
    if page.photometric not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR) or page.imagedepth != 1:
        return False
    if _is_ycbcr(page) and tuple(page.tags.valueof(_SUBSAMPLING, default=_OF_EVERY_PIXEL)) != _OF_EVERY_PIXEL:
        return False
    if page.photometric == _PALETTE and (page.colormap is None or page.samplesperpixel != 1):
        return False
    return page.photometric not in (_RGB, _YCBCR) or page.samplesperpixel >= 3


def _check(page: Any, path: Path, max_pixels: int) -> None:
    if not _readable(page):
        raise NotOfThisReader(f"tifffile: {_kind(page.compression)}, {_kind(page.photometric)}", damaged=False)
    if page.dtype is not None and page.dtype.kind in "bu" and page.bitspersample < 8 and page.photometric != _PALETTE:
        raise NotOfThisReader("tifffile: its samples have less than 8 bits", damaged=False)
    if page.dtype is None or page.dtype.kind != "u" or page.dtype.itemsize > 2:
        raise ImageError(
            f"{path}: pixels are stored as {page.dtype}, whose range is unknown; save the image as 8-bit RGB."
        )
    if page.tags.valueof(274, default=1) not in (0, 1):
        raise NotOfThisReader("tifffile: its pixels are stored turned", damaged=False)
    if 0 in (page.imagewidth, page.imagelength):
        raise NotOfThisReader("tifffile: it has no pixels")
    if len(page.dataoffsets) < math.prod(page.chunked) or len(page.databytecounts) < math.prod(page.chunked):
        raise NotOfThisReader(
            f"tifffile: of {math.prod(page.chunked)} parts of {page.imagewidth} x {page.imagelength} px it lists"
            f" {len(page.dataoffsets)}"
        )
    parts = _parts_of(page)
    at_once, alone = parts.across * parts.down, len(page.dataoffsets) == 1
    check_parts(path, (parts.width, parts.height), at_once, alone=alone, max_pixels=max_pixels)


# which images a file holds


def _images_of(file: Any) -> list[_Image]:
    # counted first, which ends where directories lead back; to go through them does not
    len(file.pages)
    if file.is_ome:
        return list(_of_ome(file))
    if file.is_imagej:
        return [_of_imagej(file)]
    if any(getattr(file, f"is_{kind}", False) for kind in _KINDS):
        return [_of_series(series) for series in file.series]
    return list(_of_pages(file))


def _of_pages(file: Any) -> Iterator[_Image]:
    """The pages of a TIFF, each an image, with those that are marked as reduced as the levels of the one before."""
    found: list[_Image] = []
    for number in range(len(file.pages)):
        page = file.pages[number].aspage()
        last = found[-1] if found else None
        # Aperio marks the picture of the whole glass as reduced and more
        if page.subfiletype == _REDUCED and last is not None and _is_level(page, last.levels[-1][0]):
            last.levels.append([page])
        elif not (page.subfiletype & _REDUCED and found):
            found.append(_Image([[page]], scale=_scale_of_tags(page), bits=_bits_of(page)))
            for inner in page.pages or ():
                if _is_level(inner.aspage(), found[-1].levels[-1][0]):
                    found[-1].levels.append([inner.aspage()])
    if len(found) > 1 and all(_is_grey(image.levels[0][0]) for image in found):
        grey = [image for image in found if image.size == found[0].size]
        if len(grey) > 1:
            yield _Image(
                grey[0].levels,
                scale=grey[0].scale,
                problem=f"it holds {len(grey)} pages in shades of grey, and nothing says that they are red, green and"
                " blue; save it as RGB",
            )
            return
    yield from found


def _is_level(page: Any, larger: Any) -> bool:
    sizes = ((of.imagewidth, of.imagelength) for of in (page, larger))
    return is_level(*sizes) and page.samplesperpixel == larger.samplesperpixel


def _is_grey(page: Any) -> bool:
    return page.photometric in (_MINISBLACK, _MINISWHITE) and page.samplesperpixel == 1


def _of_series(series: Any) -> _Image:
    page = series.keyframe
    stated = _APERIO_MPP.search(str(page.description))
    scale = square_scale(float(stated[1]), 0, "Aperio MPP") if stated else _scale_of_tags(page)
    levels = [[level.pages[0].aspage()] for level in series.levels]
    return _Image(levels, series.name, scale, bits=_bits_of(page))


def _bits_of(page: Any, largest: Any = None) -> int:
    """How many bits of a sample are used, by its largest value or the one a page states; 0 if neither is known."""
    try:
        stated = page.tags.valueof(_MAX_SAMPLE) if largest is None else largest
        value = int(float(min(stated) if isinstance(stated, (tuple, list)) else stated))
    except (TypeError, ValueError, OverflowError):
        return 0
    return value.bit_length() if 255 <= value < 65535 and page.dtype is not None and page.dtype.itemsize == 2 else 0


@dataclass
class _Described:
    """What OME-XML says of an image."""

    name: str
    scale: Scale | None
    bits: int
    names: list[str] = field(default_factory=list)
    colours: list[int | None] = field(default_factory=list)


def _of_ome(file: Any) -> Iterator[_Image]:
    described = _described(file.ome_metadata or "")
    for i, series in enumerate(file.series):
        known = described[i] if i < len(described) else _Described(series.name, None, 0)
        scale = known.scale or _scale_of_tags(series.keyframe)
        bits = known.bits or _bits_of(series.keyframe)
        yield _of_planes(series, known.name, scale, known.names, known.colours, bits)


def _described(xml: str) -> list[_Described]:
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as err:
        raise ImageError(f"its OME-XML is malformed ({err})") from err
    found = []
    for image in root.iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is None:
            continue
        channels = pixels.findall("{*}Channel")
        found.append(
            _Described(
                image.get("Name", ""),
                scale_of_size(pixels.attrib),
                int(pixels.get("SignificantBits") or 0),
                [channel.get("Name", "") for channel in channels],
                [int(channel.get("Color", "")) if channel.get("Color") else None for channel in channels],
            )
        )
    return found


def _of_imagej(file: Any) -> _Image:
    known, series, page = file.imagej_metadata or {}, file.series[0], file.pages[0]
    x, y = (_ratio(page.tags.valueof(code)) for code in (282, 283))
    scale = scale_of_density(x, y, unit=str(known.get("unit", "")), source="ImageJ") or _scale_of_tags(page)
    labels = [str(label) for label in known.get("Labels") or ()]
    ends = [np.asarray(table)[:, -1] for table in known.get("LUTs") or ()]
    colours = [int(r) << 24 | int(g) << 16 | int(b) << 8 | 255 for r, g, b in ends if len(ends[0]) == 3]
    bits = _bits_of(page, known.get("max")) or _bits_of(page)
    return _of_planes(series, "", scale, labels, colours, bits)


def _of_planes(
    series: Any, name: str, scale: Scale | None, names: list[str], colours: Sequence[int | None], bits: int
) -> _Image:
    """An image whose pages are planes of channels, of a stack, or of times: of these the middle and the first."""
    counts = dict(zip(series.axes, series.shape, strict=True))
    in_colour = counts.get("S", 1) >= 3
    order, problem = [0], ""
    channels = counts.get("C", 1)
    if not in_colour and channels > 1:
        order = order_of_colours(channels, names, colours)
        if not order:
            problem = no_colours(channels, names)
            order = [0]
    place, said = plane_of(counts)
    if in_colour and channels > 1:
        said.append(f"channel 0 of 0 to {channels - 1}, each in colour, is taken")
    note = "; ".join(said)
    levels = []
    for level in series.levels:
        outer = [(axis, n) for axis, n in zip(level.axes, level.shape, strict=True) if axis not in "YXS"]
        if (outer and len(level.pages) < np.prod([n for _, n in outer])) or (not outer and not level.pages):
            problem = problem or "its planes are stored in a way that is not read; save it as RGB"
            break
        pages = []
        for channel in order:
            at = {**place, "C": channel}
            index = int(np.ravel_multi_index([at[a] for a, _ in outer], [n for _, n in outer])) if outer else 0
            pages.append(level.pages[index])
        if any(page is None for page in pages):
            problem = problem or "its pixels are in another file, which is not beside it"
            break
        levels.append([page if page.keyframe is page else page.aspage() for page in pages])
    if not levels:
        raise NotOfThisReader(f"tifffile: {problem}")
    return _Image(levels, name or series.name, scale, note, problem, bits)


def _scale_of_tags(page: Any) -> Scale | None:
    """Scale in the resolution of a page."""
    x, y, unit = (page.tags.valueof(code) for code in (282, 283, 296))
    return scale_of_density(
        _ratio(x), _ratio(y), unit=_UNITS.get(2 if unit is None else int(unit), ""), source="tiff.XResolution"
    )


def _ratio(value: Any) -> float:
    try:
        return float(value[0]) / float(value[1])
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        return 0.0


def _kind(value: Any) -> str:
    """What a tag says, by the name of its number if it has one."""
    return f"{type(value).__name__.lower()} {getattr(value, 'name', value)}"
