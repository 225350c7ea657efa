"""OME-Zarr 0.4 and 0.5 (Zarr 2 and 3), by zarr: folders of pyramids in RGB, one or, by bioformats2raw, several of them.

What a folder states is read here; zarr is given the arrays alone, and only those of codecs that are known.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.extras import require
from tcgn_hub.files import read_json
from tcgn_hub.images.readers import NotOfThisReader, is_zarr
from tcgn_hub.images.readers.series import is_level, nameless, no_colours, order_of_colours, plane_of, taken
from tcgn_hub.images.readers.tiled import Parts, TiledSlide, check_parts, reason
from tcgn_hub.images.scale import Scale, length_um, square_scale
from tcgn_hub.text import some

_IMAGE, _SEVERAL = "multiscales", "bioformats2raw.layout"
_AXES = "tczyx"
_SOURCE = "OME-Zarr coordinateTransformations"
# numcodecs has others, one of which unpickles what it is given
_CODECS = {
    *("blosc", "bytes", "bz2", "crc32c", "delta", "gzip", "lz4", "lzma", "sharding_indexed", "shuffle", "transpose"),
    *("zlib", "zstd"),
}
_OF_TEXT = {"vlen-utf8", "vlen-bytes"}
_LEAST_PX = 256  # side of what is read at once, where chunks are smaller


@dataclass
class _Image:
    """One of the images in a folder."""

    group: Path
    axes: str
    paths: list[str]  # of the levels, the whole first
    size: tuple[int, int]
    name: str = ""
    scale: Scale | None = None
    note: str = ""
    problem: str = ""
    order: Sequence[int] = ()


class OmeZarrReader(TiledSlide):
    """An image of OME-Zarr. Chunks are read when they are looked at; what is not stored has the fill value."""

    library = "zarr"

    def __init__(self, path: Path, max_pixels: int, series: int | None = None) -> None:
        require("zarr", extra="slides", to="read OME-Zarr")
        self.path = path
        images = [_image(group, attributes) for group, attributes in _groups(path)]
        if not images:
            groups = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and entry.name[:1] != "."]
            hint = f"; its groups are {some(group.name for group in groups)}" if groups else ""
            if (path / "images").is_dir() and (
                inside := [group for group in (path / "images").iterdir() if is_zarr(group)]
            ):
                hint = f", but holds some; give one of them: {some(map(str, sorted(inside)))}"
            raise ImageError(f"{path} states no image of OME-Zarr{hint}.")
        self.series, self.chosen = taken(images, series, path)
        image = images[self.series]
        self.scale, self._axes, self._order = image.scale, image.axes, image.order
        self._levels, lost = [_array(image.group, image.paths[0])], []
        for name in image.paths[1:]:
            try:
                level = _array(image.group, name)
            except NotOfThisReader:
                lost.append(f"{name!s:.20}")
                continue
            if self._is_below(level):
                self._levels.append(level)
        if lost:
            said = f"levels that cannot be read are left out ({some(lost)})"
            self.chosen = "; ".join(filter(None, [self.chosen, said]))
        for level in self._levels:
            at_once = math.prod(level.chunks) // level.chunks[self._axes.index("c")]
            alone = all(side <= chunk for side, chunk in zip(level.shape, level.chunks, strict=True))
            check_parts(path, image.size, at_once, alone=alone, max_pixels=max_pixels)
        self.stored_in([self._parts_in(level) for level in self._levels])

    def part(self, level: int, index: int) -> np.ndarray | None:
        array, parts = self._levels[level], self._parts_of[level]
        row, column = divmod(index, parts.columns)
        counts = {axis.upper(): int(length) for axis, length in zip(self._axes, array.shape, strict=True)}
        place, _ = plane_of(counts)
        where: dict[str, Any] = {axis: place[axis.upper()] for axis in self._axes} | {"c": slice(None)}
        where["y"] = slice(row * parts.down, min((row + 1) * parts.down, parts.height))
        where["x"] = slice(column * parts.across, min((column + 1) * parts.across, parts.width))
        pixels = np.asarray(array[tuple(where[axis] for axis in self._axes)])
        own = [axis for axis in self._axes if axis in "yxc"]
        return np.ascontiguousarray(pixels.transpose([own.index(axis) for axis in "yxc"])[..., self._order])

    def _is_below(self, array: Any) -> bool:
        """Whether an array can be the level below those that are known."""
        whole, last = self._levels[0], self._levels[-1]
        if array.ndim != whole.ndim or array.dtype != whole.dtype or self._along(array, "c") != len(self._order):
            return False
        sizes = [(self._along(of, "x"), self._along(of, "y")) for of in (array, last, whole)]
        return is_level(sizes[0], sizes[1]) and is_level(sizes[0], sizes[2])

    def _along(self, array: Any, axis: str) -> int:
        return int(array.shape[self._axes.index(axis)])

    def _parts_in(self, array: Any) -> Parts:
        width, height = (self._along(array, axis) for axis in "xy")
        across, down = (int(array.chunks[self._axes.index(axis)]) for axis in "xy")
        across, down = (side * max(1, _LEAST_PX // side) for side in (across, down))
        return Parts(width, height, across, down)


def is_image(folder: Path) -> bool:
    """Whether a folder is an image of OME-Zarr, also one that is damaged."""
    try:
        stated = is_zarr(folder) and bool({_IMAGE, _SEVERAL} & attributes_of(folder).keys())
    except NotOfThisReader:
        return True
    return stated or (is_zarr(folder) and folder.name.lower().endswith(".ome.zarr"))


# what a folder states


def _json(file: Path) -> dict[str, Any]:
    try:
        found = read_json(file)
    except (OSError, ValueError) as err:
        why = getattr(err, "strerror", None) or err
        raise NotOfThisReader(f"{file.parent.name}/{file.name}: {why}") from err
    if not isinstance(found, dict):
        raise NotOfThisReader(f"{file.parent.name}/{file.name} holds no object")
    return found


def attributes_of(group: Path) -> dict[str, Any]:
    """What is stated of a group of Zarr 2 or 3; of OME-Zarr, in either version, what that states."""
    found: Any = {}
    if os.path.isfile(group / "zarr.json"):
        found = _json(group / "zarr.json").get("attributes", {})
    elif os.path.isfile(group / ".zattrs"):
        found = _json(group / ".zattrs")
    found = found.get("ome", found) if isinstance(found, dict) else {}
    return found if isinstance(found, dict) else {}


def _groups(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The groups that are images, and what they state."""
    attributes = attributes_of(path)
    if _IMAGE in attributes:
        yield path, attributes
    elif _SEVERAL in attributes:
        listed = attributes_of(path / "OME").get("series")
        if not isinstance(listed, list):
            listed = [folder.name for folder in path.iterdir() if folder.name.isdecimal() and folder.is_dir()]
            listed.sort(key=int)
        for name in listed:
            yield _inside(path, name), attributes_of(_inside(path, name))


def _inside(folder: Path, name: Any) -> Path:
    """A path that a folder states, which leads nowhere else."""
    if not isinstance(name, str) or "\0" in name:
        raise NotOfThisReader(f"{name!r:.40} is no path of an array")
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise NotOfThisReader(f"{name!r:.40} leads out of it")
    return folder.joinpath(*parts)


def _image(group: Path, attributes: dict[str, Any]) -> _Image:
    """An image by what its group states. What its colours or scale lack is its problem; damage is raised."""
    multiscales = attributes.get(_IMAGE)
    multiscale = multiscales[0] if isinstance(multiscales, list) and multiscales else None
    datasets = multiscale.get("datasets") if isinstance(multiscale, dict) else None
    if not isinstance(multiscale, dict) or not isinstance(datasets, list) or not datasets:
        raise NotOfThisReader(f"{group.name} states no levels in {_IMAGE}")
    if not all(isinstance(level, dict) for level in datasets):
        raise NotOfThisReader(f"{group.name} states levels that are no objects")
    axes, units = _axes(multiscale)
    paths = [level.get("path") for level in datasets]
    whole = _array(group, paths[0])
    if whole.ndim != len(axes):
        raise NotOfThisReader(f"its axes are {', '.join(axes)}, but {paths[0]} has {whole.ndim}")
    counts = {axis: int(length) for axis, length in zip(axes, whole.shape, strict=True)}
    if 0 in counts.values():
        raise NotOfThisReader("it has no pixels")
    image = _Image(group, axes, paths, (counts["x"], counts["y"]), str(multiscale.get("name") or ""))
    image.note = "; ".join(plane_of({axis.upper(): count for axis, count in counts.items()})[1])
    names, colours = _channels(attributes)
    image.order = _order(counts.get("c", 1), names, colours)
    if not image.order:
        image.problem = no_colours(counts.get("c", 1), names)
    elif whole.dtype != np.uint8:
        image.problem = f"pixels are stored as {whole.dtype}, whose range is unknown; save the image as 8-bit RGB"
    try:
        image.scale = _scale(multiscale, datasets[0], axes, units)
    except ImageError as err:
        image.problem = image.problem or str(err)
    return image


def _axes(multiscale: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The axes, a letter each, and the units of those that state one."""
    stated = multiscale.get("axes")
    if not isinstance(stated, list):
        version = f" {multiscale['version']!s:.10}" if "version" in multiscale else ""
        raise NotOfThisReader(f"OME-Zarr{version} without axes", damaged=False)
    known = [axis if isinstance(axis, dict) else {"name": axis} for axis in stated]
    names = [str(axis.get("name")) for axis in known]
    if not {"y", "x"} <= set(names) <= set(_AXES) or len(set(names)) < len(names):
        raise NotOfThisReader(f"axes {some(names)}, where y and x and at most t, c and z are known", damaged=False)
    units = {str(axis["name"]): str(axis["unit"]) for axis in known if axis.get("unit")}
    return "".join(names), units


def _channels(attributes: dict[str, Any]) -> tuple[list[str], list[int | None]]:
    """Names and colours (RGBA) of the channels, as far as they are stated."""
    omero = attributes.get("omero")
    stated = omero.get("channels") if isinstance(omero, dict) else None
    channels = [channel if isinstance(channel, dict) else {} for channel in stated] if isinstance(stated, list) else []
    return [str(channel.get("label") or "") for channel in channels], [_colour(c.get("color")) for c in channels]


def _colour(stated: Any) -> int | None:
    try:
        return int(str(stated).removeprefix("#")[:6], 16) << 8 | 0xFF
    except ValueError:
        return None


def _order(count: int, names: list[str], colours: list[int | None]) -> Sequence[int]:
    """Which of three channels are red, green and blue: in this order, unless something is said of them."""
    if count != 3:
        return ()
    order = order_of_colours(3, names, colours) if len(names) == 3 else []
    return order or ((0, 1, 2) if nameless(names) and len(set(colours)) < 2 else ())


def _scale(multiscale: dict[str, Any], level: dict[str, Any], axes: str, units: dict[str, str]) -> Scale | None:
    """The scale of a level; None if an axis has no unit of length, or what is stated is no scale of these axes."""
    pixel, stated = dict.fromkeys("xy", 1.0), False
    for steps in (level.get("coordinateTransformations"), multiscale.get("coordinateTransformations")):
        for step in steps if isinstance(steps, list) else ():
            if not isinstance(step, dict) or step.get("type") != "scale":
                continue
            factors = step.get("scale")
            if not isinstance(factors, list) or len(factors) != len(axes):
                return None
            try:
                pixel = {axis: pixel[axis] * float(factors[axes.index(axis)]) for axis in pixel}
            except (TypeError, ValueError, OverflowError):
                return None
            stated = True
    x, y = (pixel[axis] * (length_um(units.get(axis, "")) or 0) for axis in "xy")
    return square_scale(x, y, _SOURCE) if stated and x > 0 and y > 0 else None


# arrays


def _array(group: Path, name: Any) -> Any:
    """An array of a group as zarr opens it, of codecs that are known."""
    zarr = require("zarr", extra="slides", to="read OME-Zarr")
    folder = _inside(group, name)
    stated = [folder / file for file in ("zarr.json", ".zarray") if os.path.isfile(folder / file)]
    if not stated:
        raise NotOfThisReader(f"its level {name:.40} is missing")
    if zarr.__version__.startswith("2.") and not os.path.isfile(folder / ".zarray"):
        raise ImageError(f"OME-Zarr 0.5 needs zarr 3 (Python 3.11 and later), and here is zarr {zarr.__version__}")
    unknown = sorted({codec for file in stated for codec in _codecs(_json(file))} - _CODECS)
    if unknown:
        raise NotOfThisReader(f"its codec is {some(unknown)!s:.60}", damaged=False)
    try:
        array = zarr.open_array(folder, mode="r")
        if min(array.chunks, default=0) < 1:
            raise ValueError(f"chunks of {array.chunks}")
    except Exception as err:
        raise NotOfThisReader(f"{name}: {reason('zarr', err)}") from err
    return array


def check_codecs(folder: Path) -> None:
    """Refuse a group with arrays of texts and numbers in it of which one has a codec that is not known."""
    for where, inside, files in os.walk(folder):
        known = [_json(Path(where, name)) for name in ("zarr.json", ".zarray") if name in files]
        unknown = sorted({codec for stated in known for codec in _codecs(stated)} - _CODECS - _OF_TEXT)
        if unknown:
            raise NotOfThisReader(f"the codec of {where} is {some(unknown)!s:.60}", damaged=False)
        if ".zarray" in files or any(stated.get("node_type") == "array" for stated in known):
            inside.clear()  # its chunks


def _codecs(stated: dict[str, Any]) -> Iterator[str]:
    """The names of all codecs in what is stated of an array, or of a shard."""
    for key in ("compressor", "filters", "codecs", "index_codecs"):
        found = stated.get(key)
        for codec in found if isinstance(found, list) else [] if found is None else [found]:
            known = codec if isinstance(codec, dict) else {"id": codec}
            for name in {"id", "name"} & known.keys():
                yield str(known[name]).removeprefix("numcodecs.")
            if isinstance(known.get("configuration"), dict):
                yield from _codecs(known["configuration"])
