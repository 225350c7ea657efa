"""Readers of images, one file a kind, and the one place that decides which of them opens a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tcgn_hub.errors import ExtraError, ImageError
from tcgn_hub.images.scale import Scale
from tcgn_hub.images.slides import MAX_PIXELS, Slide
from tcgn_hub.text import one_line, option

SLIDE_SUFFIXES = {".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".dcm", ".czi"}
"""Suffixes of formats that hold whole slides and never patches."""

_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
IMAGE_SUFFIXES = {".tif", ".tiff", ".btf", ".qptiff", *_PICTURE_SUFFIXES, *SLIDE_SUFFIXES}
"""Suffixes of what is taken for an image where a folder is given."""

_ZARR = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DICOM_AT, _DICOM = 128, b"DICM"
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8")
_CZI = b"ZISRAWFILE"


class NotOfThisReader(Exception):  # noqa: N818 - it is no error, the next reader is asked
    """A reader cannot open a file; the next one may.

    ``damaged``: whether the file is none that anything reads, as far as the reader knows.
    """

    def __init__(self, why: str = "", *, damaged: bool = True) -> None:
        super().__init__(why)
        self.damaged = damaged


def is_slide_file(path: str | Path) -> bool:
    """Whether a file is of a format that holds whole slides and never patches, by its name, or as DICOM or Zarr."""
    name = Path(path).name.lower()
    by_name = Path(name).suffix in SLIDE_SUFFIXES or name.endswith((".ome.tif", ".ome.tiff", ".ome.btf"))
    return by_name or is_dicom(path) or is_zarr(path)


def is_zarr(path: str | Path) -> bool:
    """Whether a folder is a Zarr, which is opened as a file is; one that is named OME-Zarr and damaged as well."""
    return os.path.isdir(path) and (_metadata_of(path) is not None or Path(path).name.lower().endswith(".ome.zarr"))


def stat_of(path: Path) -> os.stat_result:
    """Size and time by which an image that was changed is known; those of a folder are of what states its contents."""
    return os.stat(_metadata_of(path) or path)


def _metadata_of(path: str | Path) -> Path | None:
    return next((Path(path, name) for name in _ZARR if os.path.isfile(Path(path, name))), None)


def is_dicom(path: str | Path) -> bool:
    """Whether a file is of DICOM, whose names often have no suffix."""
    path = Path(path)
    if path.suffix:
        return path.suffix.lower() == ".dcm"
    try:
        with open(path, "rb") as file:
            return file.read(_DICOM_AT + len(_DICOM))[_DICOM_AT:] == _DICOM
    except OSError:
        return False


def open_slide(path: str | Path, *, max_pixels: int = MAX_PIXELS, series: int | None = None) -> Slide:
    """Open an image: any format of OpenSlide, OME-TIFF and any other TIFF, OME-Zarr, or a plain picture.

    ``path``: the file; ``max_pixels``: the most pixels that may have to be decoded at once; ``series``: which image of
    a file that holds several, 0 the first; if None, the scan: that of the finest scale where all state theirs, else the
    largest, and none that is called label, macro, overview or thumbnail if there is another.
    """
    path = Path(path)
    refused: list[NotOfThisReader] = []
    missing = None
    for reader in _readers(path):
        try:
            return reader(path, max_pixels, series)
        except NotOfThisReader as err:
            refused.append(err)
        except ExtraError as err:
            if path.suffix.lower() in SLIDE_SUFFIXES:
                raise
            missing = missing or err
        except ImageError as err:
            raise err if one_line(str(path)) in str(err) else ImageError(f"{path}: {str(err).rstrip('.')}.") from err
    if missing is not None:
        raise missing
    why = "; ".join(dict.fromkeys(filter(None, map(str, refused))))
    if not all(err.damaged for err in refused):
        raise ImageError(f"{path} stores its pixels in a way that is not read ({why}); save it as 8-bit RGB.")
    raise ImageError(f"{path} is damaged ({why})." if why else f"{path} is no image that can be read.")


def size_and_scale(path: str | Path) -> tuple[tuple[int, int], Scale | None]:
    """(width, height) in pixels at full resolution, and the scale the file states; the picture is not decoded."""
    with open_slide(path) as slide:
        return slide.size, slide.scale


def _readers(path: Path) -> Iterator[Callable[[Path, int, int | None], Slide]]:
    """Who may be able to open a file, the one that knows most of it first."""
    if is_zarr(path):
        yield _zarr
        return
    suffix, start = path.suffix.lower(), _start_of(path)
    if suffix == ".mrxs" and not path.with_suffix("").is_dir():
        raise ImageError(
            f"{path} needs the folder {path.stem} beside it, which holds its pixels; move the two together."
        )
    is_tiff, is_picture = start.startswith(_TIFF), start.startswith(_PICTURES) or suffix in _PICTURE_SUFFIXES
    if is_tiff or suffix in SLIDE_SUFFIXES or not is_picture:
        yield _openslide
    if start.startswith(_CZI):
        yield _czi
    if is_tiff:
        yield _tiff
    # the file of a slide may be the picture of its label
    if suffix not in SLIDE_SUFFIXES:
        yield _picture


def _openslide(path: Path, max_pixels: int, series: int | None) -> Slide:
    from tcgn_hub.images.readers.openslide import OpenSlideReader

    return _the_only(OpenSlideReader(path), series)


def _tiff(path: Path, max_pixels: int, series: int | None) -> Slide:
    from tcgn_hub.images.readers.tiff import TiffReader

    return TiffReader(path, max_pixels, series)


def _czi(path: Path, max_pixels: int, series: int | None) -> Slide:
    from tcgn_hub.images.readers.czi import CziReader

    return _the_only(CziReader(path), series)


def _zarr(path: Path, max_pixels: int, series: int | None) -> Slide:
    from tcgn_hub.images.readers.ome_zarr import OmeZarrReader

    try:
        return OmeZarrReader(path, max_pixels, series)
    except OSError as err:
        raise ImageError(f"{path} cannot be read ({err.strerror or err}).") from err


def _picture(path: Path, max_pixels: int, series: int | None) -> Slide:
    from tcgn_hub.images.readers.picture import PictureReader

    return _the_only(PictureReader(path, max_pixels), series)


def _the_only(slide: Slide, series: int | None) -> Slide:
    """A slide that is the one image of its file."""
    if series:
        slide.close()
        raise ImageError(f"{slide.path} holds one image, and no number {series}; leave {option('series')} out.")
    return slide


def _start_of(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except FileNotFoundError as err:
        raise ImageError(f"{path} does not exist.") from err
    except IsADirectoryError as err:
        raise ImageError(f"{path} is a folder.") from err
    except (OSError, ValueError) as err:  # a name may hold what no name of a file can
        raise ImageError(f"{path} cannot be read ({getattr(err, 'strerror', None) or err}).") from err
    if not start:
        raise ImageError(f"{path} is empty.")
    return start
