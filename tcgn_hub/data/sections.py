"""A section of tissue with measured expression: image, spots, counts, patient and scale behind one interface."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import SectionError
from tcgn_hub.result import Result
from tcgn_hub.units import depth
from tcgn_hub.weights.lineage import SeenSection

OWN = "own"
"""The study of sections of which nothing else is said."""

_WHOLE = 64 << 20  # bytes of an image that is hashed from end to end
_END = 4 << 20
_PARTS = 16  # files of a folder that are looked into


@dataclass(frozen=True)
class Section:
    """One tissue section, whoever measured it."""

    name: str  # name of the section
    patient: str  # patient the tissue is from; a split by patient keeps its sections together
    image: Path | None  # the full-resolution image; None where every spot has a picture of its own, see ``patches``
    spots: list[str]  # names of the spots, n of them
    xy: np.ndarray  # spot centres as (x, y) in pixels of the image, float64, shape (n, 2)
    genes: list[str]  # symbols of the columns of ``counts``, without duplicates
    # raw counts, float32, shape (n, genes); of a bulk measurement, shape (1, genes). An array, or a CSR matrix of
    # SciPy where the file had a sparse one
    counts: Any
    mpp: float | None = None  # micrometres per pixel of the image, None if unknown
    patches: list[Path] | None = None  # one picture a spot, whose centre is the spot's; None where there is an image
    # whether ``counts`` is the one measurement of the whole section; the spots are then tiles of its tissue
    bulk: bool = False
    # what a reader had to leave out or to mend, and how often: a short noun phrase and a number, such as ``{"spots
    # without counts": 1}``; shown in the table before training
    left_out: dict[str, int] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()  # what contradicts its scale, a line each; shown below the table before training
    study: str = OWN  # the study it is from; sections and patients of different studies may share names

    def at(self, keep: np.ndarray) -> Section:
        """The section with the spots of an index or a mask only."""
        index = np.arange(len(self.spots))[keep]
        return replace(
            self,
            spots=[self.spots[i] for i in index],
            xy=self.xy[index],
            counts=self.counts if self.bulk else self.counts[index],
            patches=None if self.patches is None else [self.patches[i] for i in index],
        )

    def seen(self) -> SeenSection:
        """What tells the section from others, whatever it is called; of the section as it was read, with all spots.

        ``image`` is the SHA-256 of the image file; of a file above 64 MiB, of its size and its first and last 4 MiB; of
        patches, of their sorted hashes. ``counts`` is that of the symbols and total counts of the genes that have any,
        sorted: the order of spots and genes, spots and genes without counts, and the format of the file change nothing.
        """
        try:
            if self.patches is not None:
                image = _sha256(*sorted(file_hash(patch) for patch in self.patches))
            else:
                image = file_hash(self.image) if self.image is not None else ""
        except OSError as err:
            raise SectionError(f"An image of section {self.name} cannot be read: {err}.") from err
        totals = np.rint(np.asarray(self.counts.sum(axis=0, dtype=np.float64)).ravel())
        pairs = sorted(f"{gene}\t{total:.0f}\n" for gene, total in zip(self.genes, totals, strict=True) if total > 0)
        return SeenSection(self.study, self.patient, self.name, image, _sha256(*pairs) if pairs else "")


def panel_counts(section: Section, panel: Sequence[str]) -> np.ndarray:
    """Counts of the genes of a panel, float64, shape (n, len(panel)); NaN in the columns of genes not measured."""
    column = {gene: i for i, gene in enumerate(section.genes)}
    counts = np.full((section.counts.shape[0], len(panel)), np.nan)
    measured = [i for i, gene in enumerate(panel) if gene in column]
    found = section.counts[:, [column[panel[i]] for i in measured]]
    counts[:, measured] = found.toarray() if hasattr(found, "toarray") else found
    return counts


def panel_depth(section: Section, panel: Sequence[str]) -> np.ndarray:
    """`tcgn_hub.units.depth` of each spot, shape (n,); NaN of a bulk measurement, which tells nothing of its spots.

    ``section``: the section; ``panel``: gene symbols.
    """
    return np.full(len(section.spots), np.nan) if section.bulk else depth(panel_counts(section, panel))


def beside(result: Result, section: Section) -> Result:
    """A result of tiles that are spots of a section, with what was measured of them.

    That is ``layers['measured']``, in the units of `expression_targets`, and ``obs['measured_depth']``, see
    `panel_depth`; NaN of tiles that the section has not, by name, and of genes that it has not.
    """
    panel = result.info.genes
    row = {name: i for i, name in enumerate(section.spots)}
    at = np.array([row.get(name, -1) for name in result.names], int)
    columns = [panel.index(gene) for gene in result.genes]
    measured = np.where(at[:, None] < 0, np.float32(np.nan), expression_targets(section, panel)[at][:, columns])
    own = np.where(at < 0, np.nan, panel_depth(section, panel)[at])
    return replace(
        result,
        layers={**result.layers, "measured": measured},
        obs={**result.obs, "measured_depth": own},
    )


def expression_targets(section: Section, panel: Sequence[str]) -> np.ndarray:
    """Training targets of the paper: ``log10(1 + 10^4 count / sum of the panel's counts)``.

    ``section``: the section; ``panel``: gene symbols. Returns float32, shape (n, len(panel)); shape (1, len(panel)) of
    a bulk measurement. A gene that was not measured gives a column of NaN, a spot whose panel counts are all zero a row
    of NaN.
    """
    counts = panel_counts(section, panel)
    if np.isnan(counts).all():
        raise SectionError(f"Section {section.name} has no counts of any gene of the panel, such as {panel[0]}.")
    total = np.nansum(counts, axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return np.log10(1 + 1e4 * share).astype(np.float32)


def _sha256(*parts: str | bytes) -> str:
    return hashlib.sha256(b"".join(part.encode() if isinstance(part, str) else part for part in parts)).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of an image: of its file, or, above 64 MiB, of its size and its first and last 4 MiB.

    Of a folder it is of the names and sizes of all its files, and of the first 4 MiB of 16 of them.
    """
    if path.is_dir():
        return _folder_hash(path)
    with open(path, "rb") as file:
        size = path.stat().st_size
        if size <= _WHOLE:
            return _sha256(file.read())
        first = file.read(_END)
        file.seek(-_END, 2)
        return _sha256(str(size), first, file.read())


def _folder_hash(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    listed = "".join(f"{file.relative_to(folder).as_posix()}\n{file.stat().st_size}\n" for file in files)
    starts = []
    for file in files[:: -(-len(files) // _PARTS) or 1]:
        with open(file, "rb") as part:
            starts.append(part.read(_END))
    return _sha256(listed.encode("utf-8", "surrogateescape"), *starts)
