"""Unlabelled tissue: squares at random places and of random sizes, out of sections or slides, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.data.readers import as_sections
from tcgn_hub.data.readers.sources import kind_of_folder
from tcgn_hub.data.sections import OWN, Section, file_hash
from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.files import make_folder, writing
from tcgn_hub.images.finding import find_images, images_in
from tcgn_hub.images.readers import IMAGE_SUFFIXES, is_zarr, open_slide
from tcgn_hub.images.scale import given_scale
from tcgn_hub.images.slides import Slide
from tcgn_hub.images.tiles import OVERVIEW_PX
from tcgn_hub.images.tissue import tissue_mask
from tcgn_hub.images.transforms import INPUT_PX
from tcgn_hub.progress import Progress
from tcgn_hub.text import some
from tcgn_hub.weights.lineage import SeenSection

Tissues = str | Path | Sequence[Section] | Sequence[str | Path]
"""Sections and images, or where to read them from."""

CHUNK = 256
"""Squares that are kept in one file."""

_MAX_PIXELS = 4_000_000_000  # the images of whoever trains are trusted
_AROUND_UM = 150.0  # how far from a spot a square of a section is centred, along each side


@dataclass(frozen=True)
class Tissue:
    """An image of tissue."""

    name: str
    image: Path
    mpp: float  # micrometres per pixel of the image
    seen: SeenSection  # what whoever trains on it has seen: its picture, and no counts
    xy: np.ndarray | None = None  # centres of spots in pixels, shape (n, 2); None: the tissue is to be looked for


@dataclass(frozen=True)
class Fields:
    """Squares of tissue: of each the image, the centre in its pixels, and the side in micrometres."""

    tissues: tuple[Tissue, ...]
    of: np.ndarray  # index into ``tissues``, ascending, shape (n,)
    xy: np.ndarray  # shape (n, 2)
    um: np.ndarray  # shape (n,)

    def __len__(self) -> int:
        return len(self.of)

    @property
    def fingerprint(self) -> str:
        """Of everything that their pixels follow from."""
        files = [(t.seen.image, t.mpp) for t in self.tissues]
        digest = hashlib.sha256(json.dumps(files).encode())
        for array in (self.of, self.xy, self.um):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def chunks(self) -> int:
        """Files that they are kept in."""
        return -(-len(self) // CHUNK)


def read_tissues(data: Tissues, *, names: Sequence[str] | None = None, mpp: float | None = None) -> list[Tissue]:
    """What there is to cut squares from; counts are not looked at.

    ``data``: sections or images; ``names``: those to take, all if None; ``mpp``: micrometres per pixel of all images,
    in place of what the sources say.
    """
    given_scale(mpp, None)
    items: list[Any] = [data] if isinstance(data, (str, Path)) else list(data)
    for path in (Path(item) for item in items if not isinstance(item, Section)):
        if not path.exists():
            raise SectionError(f"{path} does not exist; give slides, images, folders of them, or sections.")
    images = [item for item in items if not isinstance(item, Section) and _is_image(Path(item))]
    rest = [item for item in items if not any(item is image for image in images)]
    sections, files = as_sections(rest) if rest else [], find_images(images) if images else []
    there = [*(section.name for section in sections), *(file.stem for file in files)]
    if not there or (names is not None and not names):
        raise SectionError("There is no tissue to train on; give sections or slides.")
    if len(set(there)) < len(there):
        raise SectionError(f"Two images are named {max(there, key=there.count)}; rename one.")
    unknown = [name for name in names or () if name not in there]
    if unknown:
        raise SectionError(f"There is no tissue {', '.join(unknown)}; there are {some(there, 20)}.")
    chosen = set(there if names is None else names)
    tissues = [_of_section(section, mpp) for section in sections if section.name in chosen]
    return tissues + [_of_image(path, mpp) for path in files if path.stem in chosen]


def draw_fields(
    tissues: Sequence[Tissue], count: int, *, smallest_um: float, largest_um: float, seed: int, progress: bool = False
) -> Fields:
    """Squares at random, as many of each image; sides are uniform in their logarithm.

    Those of sections are centred up to 150 um around spots, those of slides where there is tissue.
    """
    of = np.arange(count) * len(tissues) // count
    xy = np.empty((count, 2))
    um = np.empty(count)
    for number, tissue in enumerate(
        Progress(len(tissues), "image", name="finding tissue", shown=progress).over(tissues)
    ):
        rng = np.random.default_rng((seed, number))
        mine = of == number
        xy[mine] = _places(tissue, int(mine.sum()), rng)
        um[mine] = np.exp(rng.uniform(np.log(smallest_um), np.log(largest_um), mine.sum()))
    return Fields(tuple(tissues), of, xy, um)


def chunk(fields: Fields, number: int, folder: Path) -> np.ndarray:
    """The pixels of a chunk, RGB, uint8, shape (at most CHUNK, 3, 224, 224), cut now or kept from before."""
    return kept(
        folder / f"fields-{fields.fingerprint[:16]}-{number:05d}.npy",
        lambda: _cut(fields, number),
        (min(CHUNK, len(fields) - number * CHUNK), 3, INPUT_PX, INPUT_PX),
        np.dtype(np.uint8),
    )


def kept(path: Path, make: Callable[[], np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of a file, made anew where there is none, or one that is damaged or of another shape or type."""
    for written in (False, True):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if array.shape == shape and array.dtype == dtype:
                return array
        except (OSError, ValueError, EOFError):
            pass
        if not written:
            made = make()
            make_folder(path.parent)
            with writing(path) as part, part.open("wb") as file:
                np.save(file, made)
    return made


def _cut(fields: Fields, number: int) -> np.ndarray:
    rows = np.arange(number * CHUNK, min((number + 1) * CHUNK, len(fields)))
    pixels = np.empty((len(rows), 3, INPUT_PX, INPUT_PX), np.uint8)
    for which in np.unique(fields.of[rows]):
        tissue = fields.tissues[which]
        with _open(tissue.image, tissue.name) as slide:
            for row in rows[fields.of[rows] == which]:
                try:
                    pixels[row - rows[0]] = _read(slide, fields.xy[row], fields.um[row] / tissue.mpp)
                except ImageError as err:
                    raise SectionError(f"A part of {tissue.image} cannot be read: {err}") from err
    return pixels


def _read(slide: Slide, centre: np.ndarray, side: float) -> np.ndarray:
    """A square of ``side`` full-resolution pixels, resized to what the model takes, shape (3, 224, 224)."""
    from PIL import Image

    level = slide.level_for(max(1.0, side / INPUT_PX))
    own = slide.downsamples[level]
    px = max(1, round(side / own))
    x, y = np.round(np.round((centre - side / 2) / own) * own).astype(int)
    region = Image.fromarray(slide.read(int(x), int(y), px, px, level=level))
    return np.asarray(region.resize((INPUT_PX, INPUT_PX), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def _places(tissue: Tissue, count: int, rng: np.random.Generator) -> np.ndarray:
    """Centres in pixels of the image, shape (count, 2)."""
    if tissue.xy is not None:
        return tissue.xy[rng.integers(0, len(tissue.xy), count)] + rng.uniform(-1, 1, (count, 2)) * (
            _AROUND_UM / tissue.mpp
        )
    with _open(tissue.image, tissue.name) as slide:
        overview, downsample, lost = slide.overview(OVERVIEW_PX)
    mask = tissue_mask(overview, um_per_px=tissue.mpp * downsample) & ~lost
    places = np.argwhere(mask)[:, ::-1]
    if not len(places):
        raise SectionError(f"{tissue.image} shows no tissue; leave it out.")
    return (places[rng.integers(0, len(places), count)] + rng.uniform(0, 1, (count, 2))) * downsample


def _open(path: Path, name: str) -> Slide:
    try:
        return open_slide(path, max_pixels=_MAX_PIXELS)
    except ImageError as err:
        raise SectionError(f"The image of {name} cannot be read: {err}") from err


def _is_image(path: Path) -> bool:
    if path.is_dir():
        # sections may have their image beside their counts
        return kind_of_folder(path) is None and (is_zarr(path) or bool(images_in(path)))
    return path.suffix.lower() in IMAGE_SUFFIXES


def _of_section(section: Section, mpp: float | None) -> Tissue:
    if section.image is None:
        raise SectionError(f"Section {section.name} has a picture of each spot and no image to cut squares from.")
    if not len(section.xy) or not np.isfinite(section.xy).all():
        raise SectionError(f"Section {section.name} has no spots, or no places of them, to cut squares around.")
    scale = mpp or section.mpp
    if scale is None:
        raise SectionError(f"The scale of section {section.name} is not known; give the micrometres per pixel.")
    seen = SeenSection(section.study, section.patient, section.name, section.seen().image)
    return Tissue(section.name, section.image, scale, seen, section.xy)


def _of_image(path: Path, mpp: float | None) -> Tissue:
    with _open(path, path.name) as slide:
        scale = mpp or (slide.scale.mpp if slide.scale else None)
    if scale is None:
        raise SectionError(f"{path} does not state its scale; give the micrometres per pixel.")
    return Tissue(path.stem, path, scale, SeenSection(OWN, path.stem, path.stem, file_hash(path)))


def all_chunks(fields: Fields, folder: Path, *, progress: bool = False) -> Iterator[np.ndarray]:
    """The pixels of all chunks, one after the other."""
    numbers = range(fields.chunks)
    for number in Progress(fields.chunks, "chunk", name="cutting tissue", shown=progress).over(numbers):
        yield chunk(fields, number, folder)
