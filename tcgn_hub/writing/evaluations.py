"""What was measured on held-out sections, as files."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import ExtraError, SectionError
from tcgn_hub.files import make_folder, write_npz, write_text
from tcgn_hub.result import Evaluation, Measured

_logger = logging.getLogger(__name__)
_BASELINES = ("ridge", "mean")


def write_evaluation(
    evaluation: Evaluation, measured: Sequence[Measured], out: str | Path, *, metadata: Mapping[str, Any]
) -> None:
    """Write ``per_gene.csv``, ``held_out.npz``, ``figures/violin.png`` and, last, ``metrics.json``.

    ``evaluation``: the results; ``measured``: what they were computed from; ``out``: the folder; ``metadata``: what
    ``metrics.json`` says beside the summary.
    """
    out = Path(out)
    make_folder(out)
    write_csv(out / "per_gene.csv", evaluation.per_gene)
    write_measured(out / "held_out.npz", measured)
    draw(out / "figures", evaluation=evaluation)
    write_text(out / "metrics.json", json.dumps({**metadata, "held_out": evaluation.summary}, indent=2) + "\n")


def draw(
    folder: Path, *, history: Sequence[Mapping[str, Any]] | None = None, evaluation: Evaluation | None = None
) -> None:
    """Figures of a run and of its results; without matplotlib a warning."""
    from tcgn_hub.writing.training_figures import curve_figure, violin_figure

    folder.mkdir(exist_ok=True)
    try:
        if history:
            curve_figure(history, folder / "curve.png")
        if evaluation is not None:
            violin_figure(evaluation.pcc, folder / "violin.png")
    except ExtraError as err:
        folder.rmdir()
        _logger.warning("No figures are drawn. %s", err)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table, with a column for each key of any of them."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_measured(path: Path, measured: Sequence[Measured]) -> None:
    """Predictions and measurements of held-out spots, in float32, under ``<number of the section>.<what>``."""
    arrays: dict[str, Any] = {"sections": np.array([[s.name, s.patient] for s in measured])}
    for i, section in enumerate(measured):
        known = {"xy": section.xy, "targets": section.targets, "predicted": section.predicted, **section.baselines}
        if section.counts is not None:
            known["counts"] = section.counts
        arrays |= {f"{i}.{key}": np.asarray(value, np.float32) for key, value in known.items()}
    write_npz(path, arrays)


def read_measured(path: Path) -> list[Measured]:
    """What `write_measured` wrote.

    Raises:
        SectionError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return [
                Measured(
                    name=str(name),
                    patient=str(patient),
                    xy=file[f"{i}.xy"].astype(np.float64),
                    targets=file[f"{i}.targets"],
                    predicted=file[f"{i}.predicted"],
                    baselines={key: file[f"{i}.{key}"] for key in _BASELINES if f"{i}.{key}" in file},
                    counts=file.get(f"{i}.counts"),
                )
                for i, (name, patient) in enumerate(file["sections"])
            ]
    except Exception as err:  # of damage zipfile says whatever comes of it
        raise SectionError(f"{path} cannot be read ({err}); delete its folder to compute it again.") from err
