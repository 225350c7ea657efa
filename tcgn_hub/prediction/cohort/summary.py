"""A cohort as a whole: what became of its slides, which of them differ from the others, and their pseudo-bulk."""

from __future__ import annotations

import csv
import io
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.correlation import pearson
from tcgn_hub.errors import OutputError
from tcgn_hub.extras import require
from tcgn_hub.files import write_text
from tcgn_hub.images.quality import REASONS
from tcgn_hub.prediction.cohort.attempt import bulk_file
from tcgn_hub.prediction.cohort.ledger import DONE, Ledger, Record
from tcgn_hub.writing.bulk import BulkRow, BulkTable

SLIDES, BULK = "cohort.csv", "bulk.csv"
"""Names of the tables in the folder of a cohort."""

MEASURES = ("tissue", "failed", "ood", "depth", "poor", "bulk_pcc")
"""What slides are compared by, see `tcgn_hub.prediction.cohort.attempt.quality_of`, and ``bulk_pcc``, the correlation
of a slide's pseudo-bulk, over genes, with the median one of the cohort."""

OUTLYING = 3.5
"""Robust z beyond which a slide is an outlier (Iglewicz and Hoaglin, How to Detect and Handle Outliers, 1993)."""

_FEWEST = 8  # slides, below which none is called an outlier


def write_summary(ledger: Ledger, records: Sequence[Record], *, bulk: str | Path | None = None) -> list[dict[str, Any]]:
    """Write ``cohort.csv``, a row a slide, and ``bulk.csv``, the pseudo-bulk of those that are done.

    Args:
        ledger: Of the folder.
        records: The last attempts at the slides.
        bulk: Where to write the pseudo-bulk, if not in the folder.

    Returns:
        The rows of ``cohort.csv``: what a record says, `MEASURES`, the shares of tiles that are poor by each of
        `tcgn_hub.images.quality.REASONS`, and ``outlier``, by which of the `MEASURES` a slide is one.

    Raises:
        OutputError: A file cannot be written, or the slides were not predicted for the same genes.
    """
    table = BulkTable(ledger.folder / BULK if bulk is None else bulk)
    profiles, held = [], []
    for record in records:
        row = _bulk_of(ledger.folder, record)
        if row is not None:
            table.add(row)
            profiles.append(np.array(list(row.values.values()), np.float32))
            held.append(record.output)
    alike = dict(zip(held, _alike(profiles), strict=True))
    measures = [{**record.quality, "bulk_pcc": alike.get(record.output)} for record in records]
    outlying = outliers([[row.get(name) for row in measures] for name in MEASURES])
    rows = [
        {
            "slide": record.slide,
            "output": record.output,
            "state": record.state,
            "tiles": record.tiles,
            "left_out": record.left_out_tiles,
            "seconds": record.seconds,
            **{name: _rounded(row.get(name)) for name in (*MEASURES, *REASONS)},
            "outlier": " ".join(name for name, is_one in zip(MEASURES, odd, strict=True) if is_one),
            "error": record.error,
        }
        for record, row, odd in zip(records, measures, outlying.T.tolist(), strict=True)
    ]
    write_text(ledger.folder / SLIDES, _csv(rows))
    if held or bulk is not None:
        table.write()
    return rows


def outliers(measures: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Which slides are outliers by which measure, bool, shape (measures, slides): by the distance from the median in
    units of what the median distance would be in a normal distribution, or the mean one where most slides agree.

    ``measures``: of each measure a value a slide, None where it is not known.
    """
    values = np.array([[np.nan if value is None else value for value in row] for row in measures], float)
    found = np.zeros(values.shape, bool)
    for row, out in zip(values, found, strict=True):
        known = row[np.isfinite(row)]
        if len(known) < _FEWEST:
            continue
        distance = np.abs(row - np.median(known))
        spread = 1.4826 * np.nanmedian(distance) or 1.2533 * np.nanmean(distance)
        if spread > 0:
            out[:] = np.nan_to_num(distance / spread) > OUTLYING
    return found


def concatenate(ledger: Ledger, path: str | Path) -> int:
    """All tiles of the slides that are done in one .h5ad or .zarr, written without reading them into memory.

    Tiles are named after their slide, which ``obs["slide"]`` says too; what is known of the genes is kept where it is
    the same in all. Returns the number of slides.

    Raises:
        OutputError: The outputs are no .h5ad, there are none, or the file cannot be written.
        ExtraError: anndata is not installed.
    """
    path = Path(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise OutputError(f"{path} is neither .h5ad nor .zarr, as all tiles of a cohort are written.")
    records = [record for record in ledger.records if record.state == DONE]
    done = [record.output for record in records]
    files = {name.removesuffix(".h5ad"): ledger.folder / name for name in done if name.endswith(".h5ad")}
    if not done or len(files) < len(done):
        what = "no slide that is done" if not done else f"{done[0]}, which is no .h5ad"
        raise OutputError(f"{path} cannot be written: {ledger.folder} has {what}.")
    if len({record.run for record in records}) > 1:
        raise OutputError(
            f"{path} cannot be written: the slides of {ledger.folder} were predicted by different weights or options;"
            " predict all of them by one command first."
        )
    experimental = require("anndata.experimental", extra="h5ad", to="write all tiles of a cohort")
    if path.suffix == ".zarr":
        require("zarr", extra="h5ad", to="write .zarr")
    options = {"label": "slide", "keys": list(files), "index_unique": "-", "merge": "same", "uns_merge": "same"}
    if path.exists():
        raise OutputError(f"{path} is there; give another name, or delete it.")
    part = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")  # anndata goes by the suffix
    try:
        experimental.concat_on_disk(list(files.values()), part, **options)
        part.rename(path)
    except OSError as err:
        raise OutputError(f"{path} cannot be written ({err.strerror or err}).") from err
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
    return len(files)


def _bulk_of(folder: Path, record: Record) -> BulkRow | None:
    if record.state != DONE:
        return None
    try:
        return BulkRow.from_json(bulk_file(folder, record.output).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # units that no mean is taken of


def _alike(profiles: list[np.ndarray]) -> list[float | None]:
    """The correlation of each profile with the median one; None where there is none to be had."""
    if len(profiles) < 2 or len(profiles[0]) < 3:
        return [None] * len(profiles)
    columns = np.stack(profiles, axis=1)
    median = np.median(columns, axis=1, keepdims=True)
    return pearson(columns, np.broadcast_to(median, columns.shape)).tolist()


def _rounded(value: float | None) -> float | str:
    return "" if value is None else float(f"{value:.4g}")


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
