"""Readers of spatial transcriptomics sections: image, spots and counts behind one interface."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tcgn_hub.errors import SectionError

__all__ = ["Section", "expression_targets", "read_her2st", "spot_crops"]


@dataclass(frozen=True)
class Section:
    """One tissue section.

    Attributes:
        name: Name of the section.
        patient: Patient the tissue is from; a split by patient keeps its sections together.
        image: Path of the full-resolution image.
        spots: Names of the spots, n of them.
        xy: Spot centres as (x, y) in pixels of the image, shape (n, 2).
        genes: Symbols of the columns of ``counts``.
        counts: Raw counts, float32, shape (n, genes).
        unmatched: Spots that have a position or counts but not both, left out of the above.
    """

    name: str
    patient: str
    image: Path
    spots: list[str]
    xy: np.ndarray
    genes: list[str]
    counts: np.ndarray
    unmatched: list[str]


def read_her2st(root: str | Path, names: Sequence[str] | None = None) -> list[Section]:
    """Read sections in the layout of github.com/almaan/her2st (Andersson et al., Nature Communications 2021).

    Args:
        root: Folder that holds ``ST-cnts``, ``ST-imgs`` and ``ST-spotfiles``, or whose ``data`` folder does.
        names: Sections to read, such as ``['B4', 'C2']``; all that have counts if None.

    Returns:
        The sections, in the order of ``names``, or sorted. The patient is the letter a section's name begins with.

    Raises:
        SectionError: A file is missing or malformed.
    """
    root = Path(root)
    if (root / "data" / "ST-cnts").is_dir():
        root = root / "data"
    if not (root / "ST-cnts").is_dir():
        raise SectionError(f"{root} has no folder ST-cnts; give the data folder of a clone of almaan/her2st.")
    if names is None:
        names = sorted(p.name.removesuffix(".tsv.gz") for p in (root / "ST-cnts").glob("*.tsv.gz"))
        if not names:
            raise SectionError(f"{root / 'ST-cnts'} holds no .tsv.gz file of counts.")
    return [_read_her2st_section(root, name) for name in names]


def _read_her2st_section(root: Path, name: str) -> Section:
    counts_file = root / "ST-cnts" / f"{name}.tsv.gz"
    spots_file = root / "ST-spotfiles" / f"{name}_selection.tsv"
    folder = root / "ST-imgs" / name[:1] / name
    images = sorted(folder.glob("*.jpg")) if folder.is_dir() else []
    if len(images) != 1:
        raise SectionError(f"{folder} should hold the one .jpg image of section {name}, but holds {len(images)}.")
    try:
        with gzip.open(counts_file, "rt", newline="") as handle:
            rows = csv.reader(handle, delimiter="\t")
            genes = next(rows)[1:]
            table = {row[0]: np.array(row[1:], dtype=np.float32) for row in rows}
        with open(spots_file, newline="") as handle:
            position = {
                f"{round(float(row['x']))}x{round(float(row['y']))}": (float(row["pixel_x"]), float(row["pixel_y"]))
                for row in csv.DictReader(handle, delimiter="\t")
            }
    except (OSError, EOFError, StopIteration, KeyError, ValueError) as err:
        raise SectionError(f"Section {name} could not be read from {counts_file} and {spots_file}: {err!r}.") from err
    spots = [spot for spot in table if spot in position]
    if not spots:
        raise SectionError(f"Section {name}: no row of {counts_file} names a spot of {spots_file}.")
    return Section(
        name=name,
        patient=name[:1],
        image=images[0],
        spots=spots,
        xy=np.array([position[spot] for spot in spots]),
        genes=genes,
        counts=np.stack([table[spot] for spot in spots]),
        unmatched=sorted(set(table) ^ set(position)),
    )


def expression_targets(section: Section, panel: Sequence[str]) -> np.ndarray:
    """Training targets of the paper: ``log10(1 + 10^4 count / sum of the panel's counts)``, shape (n, len(panel)).

    A spot whose panel counts are all zero gives a row of NaN.

    Raises:
        SectionError: A gene of the panel is not among the section's genes.
    """
    column = {gene: i for i, gene in enumerate(section.genes)}
    absent = [gene for gene in panel if gene not in column]
    if absent:
        raise SectionError(
            f"Section {section.name} has no counts of {len(absent)} genes of the panel: {', '.join(absent[:5])}."
        )
    counts = section.counts[:, [column[gene] for gene in panel]].astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return np.log10(1 + 1e4 * share).astype(np.float32)


def spot_crops(section: Section, size: int) -> np.ndarray:
    """Square crops around the spot centres, uint8, shape (n, 3, size, size); white beyond the image's edge.

    Raises:
        SectionError: The image cannot be decoded, or a spot's centre lies outside of it.
    """
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    try:
        # section images are larger than Pillow expects of a picture from an unknown source
        Image.MAX_IMAGE_PIXELS = None
        with Image.open(section.image) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as err:
        raise SectionError(f"The image of section {section.name}, {section.image}, cannot be read: {err}.") from err
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    height, width = pixels.shape[:2]
    centre = np.round(section.xy).astype(int)
    outside = ((centre < 0) | (centre >= (width, height))).any(axis=1)
    if outside.any():
        spot = section.spots[int(outside.argmax())]
        raise SectionError(
            f"Section {section.name}: {int(outside.sum())} spots, such as {spot}, lie outside the image"
            f" {section.image} of {width} x {height} px; the positions may belong to another resolution."
        )
    pad = size
    padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), constant_values=255)
    crops = np.empty((len(centre), 3, size, size), np.uint8)
    for crop, (x, y) in zip(crops, centre + pad - size // 2, strict=True):
        crop[:] = padded[y : y + size, x : x + size].transpose(2, 0, 1)
    return crops
