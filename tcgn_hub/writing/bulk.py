"""One value per gene and slide, to compare with bulk RNA-seq."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcgn_hub.errors import OutputError
from tcgn_hub.result import Result
from tcgn_hub.writing.tables import write_with_metadata


@dataclass(frozen=True)
class BulkRow:
    """What a table of slides says of one.

    Attributes:
        slide: Its path.
        tiles: How many it has.
        values: `Result.bulk` of each gene, by its symbol.
        run: `Result.metadata`.
        significant: Whether each gene is, by its symbol; None where that is withheld or not known.
    """

    slide: str
    tiles: int
    values: dict[str, float]
    run: dict[str, Any]
    significant: dict[str, Any] | None

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BulkRow:
        """What `to_json` gave; a ValueError if it is no such thing."""
        try:
            return cls(**json.loads(text))
        except TypeError as err:
            raise ValueError(str(err)) from err


def bulk_row(result: Result) -> BulkRow:
    """What a table of slides says of a slide.

    Raises:
        OutputError: It was not predicted in units that can be averaged.
    """
    # intervals of tiles do not hold for means; what is withheld of one slide may hold for another
    return BulkRow(
        slide=str(result.slide.path) if result.slide else "",
        tiles=len(result),
        values=dict(zip(result.genes, map(float, result.bulk()), strict=True)),
        run=result.metadata(),
        significant=result.gene_metadata()["significant"],
    )


class BulkTable:
    """A table with one row per slide: its path, its number of tiles, and `Result.bulk` in a column per gene.

    ``path``: the file, CSV.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._genes: list[str] | None = None
        self._lines: list[str] = []
        self._metadata: dict[str, Any] = {"runs": [], "significant": None}

    def add(self, row: BulkRow) -> None:
        """Take a slide up.

        Raises:
            OutputError: It was not predicted for the genes of those before.
        """
        if self._genes is None:
            self._genes = list(row.values)
            self._lines.append(_line(["slide", "tiles", *self._genes]))
        if list(row.values) != self._genes:
            raise OutputError(f"{self._path} cannot be a table of slides that were not predicted for the same genes.")
        self._lines.append(_line([row.slide, row.tiles, *(f"{value:.6g}" for value in row.values.values())]))
        self._metadata["runs"].append(row.run)
        if self._metadata["significant"] is None:
            self._metadata["significant"] = row.significant

    def write(self) -> None:
        """Write it, and beside it, as ``FILE.json``, what was run on what and which genes are significant.

        Raises:
            OutputError: There are no slides, or a file cannot be written.
        """
        if not self._lines:
            raise OutputError(f"{self._path} cannot be a table of slides, as there are none.")
        write_with_metadata(self._path, self._lines, self._metadata)


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
