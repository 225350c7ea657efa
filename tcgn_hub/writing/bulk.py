"""One value per gene and slide, to compare with bulk RNA-seq."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from tcgn_hub.errors import OutputError
from tcgn_hub.result import Result
from tcgn_hub.writing.tables import write_with_metadata


class BulkTable:
    """A table with one row per slide: its path, its number of tiles, and `Result.bulk` in a column per gene.

    ``path``: the file, CSV.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._rows: list[list[Any]] = []
        self._metadata: dict[str, Any] = {"runs": []}

    def add(self, result: Result) -> None:
        """Take a slide up; its tiles are not kept.

        Raises:
            OutputError: It was not predicted for the genes of those before, or not in units that can be averaged.
        """
        if not self._rows:
            self._rows.append(["slide", "tiles", *result.genes])
            self._metadata["significant"] = None
        if result.genes != self._rows[0][2:]:
            raise OutputError(f"{self._path} cannot be a table of slides that were not predicted for the same genes.")
        where = result.slide.path if result.slide else ""
        self._rows.append([where, len(result), *(f"{value:.6g}" for value in result.bulk().tolist())])
        self._metadata["runs"].append(result.metadata())
        # intervals of tiles do not hold for means; what is withheld of one slide may hold for another
        if self._metadata["significant"] is None:
            self._metadata["significant"] = result.gene_metadata()["significant"]

    def write(self) -> None:
        """Write it, and beside it, as ``FILE.json``, what was run on what and which genes are significant.

        Raises:
            OutputError: There are no slides, or a file cannot be written.
        """
        if not self._rows:
            raise OutputError(f"{self._path} cannot be a table of slides, as there are none.")
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self._rows)
        write_with_metadata(self._path, [text.getvalue()], self._metadata)
