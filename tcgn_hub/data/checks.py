"""What sections hold, checked against a panel before hours are spent on them, and told in one table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcgn_hub.data.readers.genes import are_ensembl
from tcgn_hub.data.sections import Section, panel_counts
from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.images.readers import size_and_scale
from tcgn_hub.text import aligned, some

_COLUMNS = ("section", "patient", "image", "um/px", "spots", "used", "zero", "off image", "genes missing", "notes")
_TEXT = {"section", "patient", "image", "notes"}
_SCALES = 1.2  # ratio of scales from which sections do not look alike to a model that sees micrometres
_LEAST_SPREAD = 0.1  # of the image's width and height; of less, the spots hardly belong to the image
_CORNER = 0.35  # likewise, if all of them lie that near to the upper left corner, as those of a smaller picture do


def check_sections(
    sections: Sequence[Section], panel: Sequence[str], *, images: bool = True
) -> tuple[list[Section], str]:
    """Check sections against a panel: those without the spots that cannot be trained on, and a table of it.

    ``images``: whether each needs an image.
    """
    if not sections:
        raise SectionError("No section is given.")
    _check_genes(sections, panel)
    rows, fit, warnings = [], [], []
    for section in sections:
        kept, row, warning = _check(section, panel, images)
        fit.append(kept)
        rows.append(row)
        warnings += warning
    warnings += _between(sections, panel)
    columns = [name for name in _COLUMNS if name != "notes" or any(row["notes"] for row in rows)]
    cells = [columns, *([str(row[name]) for name in columns] for row in rows)]
    left = [i for i, name in enumerate(columns) if name in _TEXT]
    return fit, "\n".join([aligned(cells, left=left).rstrip("\n"), *warnings])


def _place(section: Section) -> str:
    file = section.image or next(iter(section.patches or []), None)
    return f"section {section.name}" + (f" ({file})" if file else "")


def _check_genes(sections: Sequence[Section], panel: Sequence[str]) -> None:
    measured = set().union(*(section.genes for section in sections))
    absent = [gene for gene in panel if gene not in measured]
    if not absent:
        return
    ids = [are_ensembl(names) for names in (sections[0].genes, panel)]
    hint = "take them out of the panel"
    if ids[0] != ids[1]:
        kinds = [("Ensembl ids" if ensembl else "symbols") for ensembl in ids]
        hint = f"the sections name genes by {kinds[0]}, the panel by {kinds[1]}, so translate one of them"
    raise SectionError(
        f"{len(absent)} genes of the panel were measured in no section, such as {_place(sections[0])}: {some(absent)};"
        f" {hint}."
    )


def _check(section: Section, panel: Sequence[str], images: bool) -> tuple[Section, dict[str, object], list[str]]:
    """The section without unusable spots, its row of the table, and warnings."""
    count = len(section.spots)
    off: np.ndarray = np.zeros(count, bool)
    warnings = [f"Warning: {doubt}." for doubt in section.doubts]
    if section.patches is None and section.image is None:
        if images:
            raise SectionError(f"Section {section.name} has no image; give one in a sample sheet.")
    elif section.image is not None:
        try:
            size, _ = size_and_scale(section.image)
        except ImageError as err:
            raise SectionError(f"The image of section {section.name} cannot be used: {err}") from err
        # a position that is not a number is off as well
        off = np.logical_not(((section.xy >= 0) & (section.xy < size)).all(axis=1))
        if 2 * off.sum() > count:
            raise SectionError(
                f"{int(off.sum())} of the {count} spots of {_place(section)} lie off the image of {size[0]} x {size[1]}"
                " px; the positions may belong to another resolution."
            )
        spread = np.ptp(section.xy[~off], axis=0) / size if count else np.ones(2)
        if count > 20 and ((spread < _LEAST_SPREAD).all() or (section.xy[~off] < _CORNER * np.array(size)).all()):
            warnings.append(
                f"Warning: the spots of {_place(section)} cover only {spread.max():.0%} of its width or height; the"
                " positions may belong to another resolution."
            )
    counts = panel_counts(section, panel)
    missing = np.isnan(counts).all(axis=0)
    zero = np.broadcast_to(np.nansum(counts, axis=1) <= 0, count) & ~off
    keep = ~off & ~zero
    if not keep.any():
        raise SectionError(
            f"No spot of {_place(section)} can be trained on: of {count}, {int(off.sum())} lie off the image and"
            f" {int(zero.sum())} have no counts of the panel; leave the section out."
        )
    row = {
        "section": section.name,
        "patient": section.patient,
        "image": section.image.name if section.image else "none" if section.patches is None else f"{count} patches",
        "um/px": "?" if section.mpp is None else f"{section.mpp:.3f}",
        "spots": count,
        "used": int(keep.sum()),
        "zero": int(zero.sum()),
        "off image": int(off.sum()),
        "genes missing": int(missing.sum()),
        "notes": "; ".join(
            [*(["bulk"] if section.bulk else []), *(f"{n} {what}" for what, n in section.left_out.items())]
        ),
    }
    return section if keep.all() else section.at(keep), row, warnings


def _between(sections: Sequence[Section], panel: Sequence[str]) -> list[str]:
    """Warnings of what differs between sections."""
    warnings = []
    scales = sorted((section.mpp, section.name) for section in sections if section.mpp is not None)
    if scales and scales[-1][0] > _SCALES * scales[0][0]:
        (low, fine), (high, coarse) = scales[0], scales[-1]
        warnings.append(
            f"Warning: scales differ, from {low:.3g} um/px ({fine}) to {high:.3g} um/px ({coarse}); crops of so many"
            " micrometres are resized to one size, but those of the coarser image are less sharp."
        )
    measured = [set(section.genes) for section in sections]
    partly = [gene for gene in panel if not all(gene in genes for genes in measured)]
    if partly:
        verb = "gene of the panel was" if len(partly) == 1 else "genes of the panel were"
        warnings.append(f"Warning: {len(partly)} {verb} not measured in every section: {some(partly)}.")
    return warnings
