"""One value per gene and slide, to compare with bulk RNA-seq."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tcgn_hub.errors import OutputError
from tcgn_hub.result import Result
from tcgn_hub.writing.tables import write_with_metadata

__all__ = ["write_bulk"]


def write_bulk(path: str | Path, results: Iterable[Result]) -> None:
    """One row per slide: its path, its number of tiles, and `Result.bulk` in a column per gene.

    Beside it, as ``FILE.json``, is written what was run on what, and which genes are significant; intervals of tiles do
    not hold for means.

    Args:
        path: The file, CSV.
        results: Slides; each is let go before the next is asked for.

    Raises:
        OutputError: The slides were not predicted for the same genes, or not in units that can be averaged, or a file
            cannot be written.
    """
    rows: list[list[Any]] = []
    runs: list[dict[str, Any]] = []
    significant = None
    for result in results:
        if not rows:
            rows.append(["slide", "tiles", *result.genes])
            significant = result.gene_metadata()["significant"]
        if result.genes != rows[0][2:]:
            raise OutputError(f"{path} cannot be a table of slides that were not predicted for the same genes.")
        where = result.slide.path if result.slide else ""
        rows.append([where, len(result), *(f"{value:.6g}" for value in result.bulk().tolist())])
        runs.append(result.metadata())
        del result
    if not rows:
        raise OutputError(f"{path} cannot be a table of slides, as there are none.")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_with_metadata(path, [text.getvalue()], {"runs": runs, "significant": significant})
