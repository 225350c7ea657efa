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

from tcgn_hub.correlation import column_means
from tcgn_hub.errors import ExtraError, SectionError
from tcgn_hub.files import make_folder, write_npz, write_text
from tcgn_hub.result import Evaluation, Measured
from tcgn_hub.writing.evaluation_page import write_page

_logger = logging.getLogger(__name__)
_ARRAYS = ("xy", "targets", "predicted", "counts", "train_variance", "predicted_depth", "depth_slope")
_LABELLED = ("baselines", "predictions", "train_pcc")


def write_evaluation(
    evaluation: Evaluation, measured: Sequence[Measured], out: str | Path, *, metadata: Mapping[str, Any]
) -> None:
    """Write ``per_gene.csv``, ``held_out.npz``, ``figures/methods.png``, ``evaluation.html`` and ``metrics.json``.

    The last says that all others are there. ``evaluation``: the results; ``measured``: what they were computed from;
    ``out``: the folder; ``metadata``: what ``metrics.json`` says beside the summary.
    """
    out = Path(out)
    make_folder(out)
    figure = out / "figures" / "methods.png"
    write_csv(out / "per_gene.csv", evaluation.per_gene)
    for earlier in (out / "metrics.json", figure):  # of a run whose files are replaced one by one
        earlier.unlink(missing_ok=True)
    write_measured(out / "held_out.npz", measured)
    draw(out / "figures", methods=_by_method(evaluation))
    write_page(
        out / "evaluation.html",
        evaluation,
        metadata={key: value for key, value in metadata.items() if not isinstance(value, Mapping)},
        figure=figure.read_bytes() if figure.exists() else None,
    )
    write_text(out / "metrics.json", json.dumps({**metadata, "held_out": evaluation.summary}, indent=2) + "\n")


def draw(
    folder: Path,
    *,
    history: Sequence[Mapping[str, Any]] | None = None,
    methods: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Figures of a run and of its results; without matplotlib a warning."""
    from tcgn_hub.writing.training_figures import curve_figure, methods_figure

    folder.mkdir(exist_ok=True)
    try:
        if history:
            curve_figure(history, folder / "curve.png")
        if methods is not None:
            methods_figure(methods, folder / "methods.png")
    except ExtraError as err:
        if not any(folder.iterdir()):
            folder.rmdir()
        _logger.warning("No figures are drawn. %s", err)


def _by_method(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """What `methods_figure` draws: of each method the correlations of all genes, means over the sections."""
    summary = evaluation.summary
    methods: dict[str, dict[str, Any]] = {}
    for label in [*(row["label"] for row in summary["ranking"]), "ceiling"]:
        stated = summary["methods"].get(label, {})
        own = methods[label] = {}
        for key, sections in (("pcc", evaluation.pcc), ("pcc_given_depth", evaluation.given_depth)):
            values = [section[label] for section in sections.values() if label in section]
            if values:
                own[key] = column_means(np.stack(values), np.nan)
                own[f"{key}_interval"] = stated.get(f"median_{key}_interval")
    return methods


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table, with a column for each key of any of them."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_measured(path: Path, measured: Sequence[Measured]) -> None:
    """Predictions and measurements of held-out spots, in float32, under ``<number of the section>.<what>``.

    ``<what>`` is 'targets', 'predicted' and so on, and of the methods 'baselines.<label>', 'predictions.<label>' and
    'train_pcc.<label>'.
    """
    arrays: dict[str, Any] = {
        "sections": np.array([[s.name, s.patient] for s in measured]),
        "in_units": np.array(sorted(set().union(*(s.in_units for s in measured))), np.str_),
    }
    for i, section in enumerate(measured):
        known = {key: value for key in _ARRAYS if (value := getattr(section, key)) is not None}
        known |= {f"{key}.{label}": value for key in _LABELLED for label, value in getattr(section, key).items()}
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
                _read_section(file, i, str(name), str(patient)) for i, (name, patient) in enumerate(file["sections"])
            ]
    except Exception as err:  # of damage zipfile says whatever comes of it
        raise SectionError(f"{path} cannot be read ({err}); delete its folder to compute it again.") from err


def _read_section(file: Any, i: int, name: str, patient: str) -> Measured:
    by_label = {}
    for key in _LABELLED:
        start = f"{i}.{key}."
        by_label[key] = {name.removeprefix(start): file[name] for name in file.files if name.startswith(start)}
    return Measured(
        name=name,
        patient=patient,
        xy=file[f"{i}.xy"].astype(np.float64),
        targets=file[f"{i}.targets"],
        predicted=file.get(f"{i}.predicted"),
        counts=file.get(f"{i}.counts"),
        train_variance=file.get(f"{i}.train_variance"),
        predicted_depth=file.get(f"{i}.predicted_depth"),
        depth_slope=file.get(f"{i}.depth_slope"),
        in_units=frozenset(file["in_units"].tolist()),
        **by_label,
    )
