"""Readers of spatial transcriptomics data, one file a format, all giving `tcgn_hub.data.sections.Section`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tcgn_hub.data.readers.sources import read_sections
from tcgn_hub.data.sections import Section
from tcgn_hub.errors import SectionError

Data = str | Path | Sequence[Section] | Sequence[str | Path]
"""Sections, or where to read them from."""


def as_sections(data: Data) -> list[Section]:
    """Sections as they are, and anything else by `read_sections`."""
    if isinstance(data, (str, Path)):
        return read_sections(data)
    sections = [item for item in data if isinstance(item, Section)]
    paths = [item for item in data if not isinstance(item, Section)]
    if not sections and not paths:
        raise SectionError("There are no sections.")
    sections += read_sections(paths) if paths else []
    twice = [name for name, count in Counter(section.name for section in sections).items() if count > 1]
    if twice:
        raise SectionError(f"Two sections are named {twice[0]}; rename one.")
    return sections
