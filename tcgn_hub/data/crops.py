"""What the model sees of each spot, cut out of the section's image, and kept on disk if asked to."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcgn_hub.data.sections import Section
from tcgn_hub.errors import ImageError, OutputError, SectionError
from tcgn_hub.files import make_folder, writing
from tcgn_hub.images.readers import open_slide, stat_of
from tcgn_hub.images.slides import Slide
from tcgn_hub.images.transforms import INPUT_PX, patch_px
from tcgn_hub.progress import Progress

_MAX_PIXELS = 4_000_000_000  # the images of sections are trusted


@dataclass(frozen=True)
class SpotCrops:
    """Pictures of the spots of a section."""

    pixels: np.ndarray  # RGB, uint8, shape (n, 3, S, S), maybe a read-only memory map; white beyond the image's edge
    patch_px: int  # side of the central part that the model is to see; what is around it is margin

    def patches(self, at_once: int = 32) -> Iterator[np.ndarray]:
        """What the model is to see, uint8, in parts of shape (at most ``at_once``, 3, patch_px, patch_px)."""
        edge = (self.pixels.shape[-1] - self.patch_px) // 2
        inner = slice(edge, edge + self.patch_px)
        for start in range(0, len(self.pixels), at_once):
            yield np.array(self.pixels[start : start + at_once, :, inner, inner])


@dataclass(frozen=True)
class _Plan:
    """How a spot is cut out."""

    native: float  # side of the patch in full-resolution pixels
    patch: int  # the same in the pixels that are kept, at most what the model takes
    side: int  # of what is kept, margin included
    most: int  # pixels of a patch from which it is shrunk

    @property
    def downsample(self) -> float:
        """Full-resolution pixels per pixel that is kept."""
        return max(1.0, self.native / self.most)


def spot_crops(
    section: Section,
    *,
    patch_um: float | None = None,
    crop_px: int | None = None,
    margin: float = 0.0,
    most_px: int = INPUT_PX,
    cache: str | Path | None = None,
    progress: bool = False,
) -> SpotCrops:
    """Square crops around the centres of the spots.

    Patches of at most ``most_px`` are kept pixel by pixel; larger ones are read from the level that predictions are
    read from, and resized so that the patch has ``most_px``.

    ``section``: the section; ``patch_um``: side of the patch that the model is to see, in micrometres. Either this or
    ``crop_px``; ``crop_px``: the same in pixels of the image, as the rule of the paper has it; ``margin``: what to keep
    around the patch on each side, as a share of its side, for crops that are moved; ``most_px``: pixels along the side
    of a patch that whoever sees it can use; ``cache``: folder to keep the crops in. They are cut anew if the image or
    anything else that they follow from has changed; ``progress``: show how far it is, see `tcgn_hub.progress`.
    """
    plan = _plan(section, patch_um, crop_px, margin, most_px)
    shape = len(section.spots), 3, plan.side, plan.side
    if cache is None:
        pixels = np.empty(shape, np.uint8)
        for crop, cut in zip(pixels, _cut(section, plan, progress), strict=True):
            crop[:] = cut
        return SpotCrops(pixels, plan.patch)
    return SpotCrops(_cached(section, plan, shape, Path(cache), progress), plan.patch)


def crops_fingerprint(
    section: Section, *, patch_um: float | None = None, crop_px: int | None = None, most_px: int = INPUT_PX
) -> str:
    """What tells crops of `spot_crops` from others: it changes with the image, the spots and the size."""
    return _fingerprint(section, _plan(section, patch_um, crop_px, 0.0, most_px))


def _plan(section: Section, patch_um: float | None, crop_px: int | None, margin: float, most_px: int) -> _Plan:
    if (patch_um is None) == (crop_px is None):
        raise ValueError("give either patch_um or crop_px")
    if crop_px is None:
        assert patch_um is not None
        if section.mpp is None:
            raise SectionError(
                f"Section {section.name} has no known micrometres per pixel to crop {patch_um:g} um by; give them, or"
                " the side of the crop in pixels."
            )
        native = patch_um / section.mpp
    else:
        native = float(crop_px)
    patch = most_px if native > most_px else patch_px(1.0, native)
    return _Plan(native, patch, patch + 2 * round(margin * patch), most_px)


def _cached(section: Section, plan: _Plan, shape: tuple[int, ...], folder: Path, progress: bool) -> np.ndarray:
    name = re.sub(r"[^\w.-]", "_", section.name)
    path = folder / f"{name}-{_fingerprint(section, plan)}.npy"
    kept = _kept(path, shape)
    if kept is not None:
        return kept
    make_folder(folder)
    with writing(path) as part:
        _write(part, _cut(section, plan, progress), shape)
    kept = _kept(path, shape)
    if kept is None:
        raise OutputError(f"{path} cannot be read back after it was written; give another folder.")
    return kept


def _write(path: Path, cuts: Iterator[np.ndarray], shape: tuple[int, ...]) -> None:
    """Write crops as .npy, one after the other: a memory map would end the process if the disk is full."""
    with open(path, "wb") as handle:
        np.lib.format.write_array_header_1_0(handle, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for cut in cuts:
            handle.write(cut.tobytes())


def _kept(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The crops of a file, None if there is none or it is damaged."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _fingerprint(section: Section, plan: _Plan) -> str:
    """Of everything the pixels follow from."""
    files = [section.image] if section.patches is None else section.patches
    try:
        known = [(str(file.resolve()), stat_of(file)) for file in files if file]
    except OSError as err:
        raise SectionError(f"An image of section {section.name} cannot be read: {err}.") from err
    places = hashlib.sha256(np.ascontiguousarray(section.xy).tobytes()).hexdigest() if section.patches is None else ""
    follows = json.dumps([[(name, of.st_size, of.st_mtime_ns) for name, of in known], places, plan.native, plan.side])
    return hashlib.sha256(follows.encode()).hexdigest()[:16]


def _cut(section: Section, plan: _Plan, progress: bool) -> Iterator[np.ndarray]:
    """The crops, uint8, shape (3, side, side) each."""
    return Progress(len(section.spots), "crop", name=section.name, shown=progress).over(_each(section, plan))


def _each(section: Section, plan: _Plan) -> Iterator[np.ndarray]:
    if section.patches is None:
        if section.image is None:
            raise SectionError(f"Section {section.name} has neither an image nor patches.")
        try:
            slide = open_slide(section.image, max_pixels=_MAX_PIXELS)
        except ImageError as err:
            raise SectionError(f"The image of section {section.name} cannot be read: {err}") from err
        with slide:
            for spot, centre in zip(section.spots, section.xy, strict=True):
                yield _read(slide, centre, plan, section, spot)
        return
    for spot, patch in zip(section.spots, section.patches, strict=True):
        try:
            slide = open_slide(patch)
        except ImageError as err:
            raise SectionError(f"The patch of spot {spot} of section {section.name} cannot be read: {err}") from err
        with slide:
            width, height = slide.size
            if min(slide.size) < round(plan.native):
                raise SectionError(
                    f"The patch of spot {spot} of section {section.name}, {patch}, is {width} x {height} px, smaller"
                    f" than the crop of {plan.native:.0f} px; check its scale."
                )
            centre = np.array(slide.size) / 2
            # the pixels that a prediction takes, whose rule is (side of the picture - side of the patch) // 2
            yield _read(
                slide, (centre - plan.patch % 2 / 2) // 1 if plan.downsample == 1 else centre, plan, section, spot
            )


def _read(slide: Slide, centre: np.ndarray, plan: _Plan, section: Section, spot: str) -> np.ndarray:
    """A crop around a centre (x, y) in full-resolution pixels."""
    from PIL import Image

    try:
        if plan.downsample == 1:
            x, y = np.round(centre).astype(int) - plan.side // 2
            pixels = slide.read(int(x), int(y), plan.side, plan.side)
        else:
            # as for a prediction: the patch has whole pixels of the level above what is asked for, and begins on one
            level = slide.level_for(plan.downsample)
            own = slide.downsamples[level]
            side = round(plan.native / own)
            margin = (plan.side - plan.patch) / 2 * side / plan.patch
            around = math.ceil(margin)
            corner = np.round((centre - side * own / 2) / own) - around
            x, y = np.round(corner * own).astype(int)
            whole = side + 2 * around
            region = Image.fromarray(slide.read(int(x), int(y), whole, whole, level=level))
            low, high = around - margin, around + side + margin
            pixels = np.asarray(
                region.resize((plan.side, plan.side), Image.Resampling.BILINEAR, box=(low, low, high, high))
            )
    except ImageError as err:
        raise SectionError(f"Spot {spot} of section {section.name} cannot be cut out: {err}") from err
    return pixels.transpose(2, 0, 1)
