"""Which images are meant by paths and folders: one a slide, and nothing that is no data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tcgn_hub.errors import ImageError
from tcgn_hub.extras import require
from tcgn_hub.images.readers import IMAGE_SUFFIXES, is_dicom, is_zarr
from tcgn_hub.images.readers.ome_zarr import is_image
from tcgn_hub.text import some

_TAGS = ["SeriesInstanceUID", "ImageType", "InstanceNumber"]


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """The given files, and in place of a folder that is no Zarr the images and slides in it by name.

    The instances of a DICOM series, which are the levels, label and overview of one slide, are given by one of them.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir() and not is_zarr(path):
            inside = images_in(path)
            if not inside:
                folders = [folder.name for folder in sorted(path.iterdir()) if folder.is_dir()]
                hint = f"; its folders are {some(folders)}" if folders else ""
                endings = ", ".join(sorted({*IMAGE_SUFFIXES, ".zarr"}))
                raise ImageError(f"The folder {path} holds no image ({endings}){hint}.")
            found += inside
        else:
            found.append(path)
    return _one_a_series(found)


def images_in(folder: Path) -> list[Path]:
    """The images in a folder by name; those of OME-Zarr are folders themselves.

    Names that begin with a dot are no data.
    """
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as err:
        raise ImageError(f"The folder {folder} cannot be read ({err.strerror}).") from err
    return [path for path in inside if (_is_image_file(path) if path.is_file() else is_image(path))]


def _is_image_file(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES or is_dicom(path)


def _one_a_series(paths: list[Path]) -> list[Path]:
    dicom = {path for path in paths if path.is_file() and is_dicom(path)}
    if len(dicom) < 2:
        return paths
    pydicom = require("pydicom", extra="slides", to="tell which DICOM files are one slide")
    best: dict[tuple[Path, str], tuple[tuple[bool, bool, int, str], Path]] = {}
    for path in dicom:
        try:
            facts = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            series = str(facts.SeriesInstanceUID)
            kind = [str(value) for value in facts.get("ImageType") or ()]
            number = int(facts.get("InstanceNumber") or 0)
        except Exception:  # noqa: BLE001 - pydicom fails in many ways on damage, which is told where the file is opened
            series, kind, number = str(path), [], 0
        # a copy elsewhere is a slide of its own
        key = path.parent, series
        rank = "VOLUME" not in kind, "ORIGINAL" not in kind, number, path.name
        if key not in best or rank < best[key][0]:
            best[key] = rank, path
    chosen = {path for _, path in best.values()}
    return [path for path in paths if path not in dicom or path in chosen]
