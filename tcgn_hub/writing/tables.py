"""Predictions as text: a table to read, CSV and JSON to work with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.writing.frames import significance

if TYPE_CHECKING:
    from tcgn_hub.prediction.patches import Prediction

__all__ = ["FORMATS"]

_SURE = ("spread", "low", "high")
_WIDTHS = {"spread": 6, "low": 12}


def _rows(prediction: Prediction, image: int, top: int | None) -> list[tuple[str, float]]:
    """Genes and values of an image, in the order of the prediction, or the ``top`` highest first."""
    rows = list(zip(prediction.genes, prediction.values[image].tolist(), strict=True))
    return rows if top is None else sorted(rows, key=lambda row: -row[1])[:top]


def to_table(prediction: Prediction, *, top: int | None = None) -> str:
    """A table to read, one block an image."""
    width = max(map(len, (*prediction.genes, "gene")))
    sure = _sureness(prediction)
    names = {"spread": "spread", "low": f"{prediction.model.level:.0%} interval"}
    titles = "".join(f"  {title:>{_WIDTHS[key]}}" for key, title in names.items() if key in sure)
    blocks = []
    for i, image in enumerate(prediction.images):
        lines = [
            f"{image}: central {prediction.crop_px[i]} px, {prediction.scales[i].mpp:.4g} um/px by"
            f" {prediction.scales[i].source}, weights {prediction.model.name}",
        ]
        if prediction.distance is not None and prediction.distance[i] > 1:
            lines.append(
                f"unlike the training tissue (distance {prediction.distance[i]:.1f}, above 1): do not rely on it"
            )
        lines.append(f"{'gene':{width}}  {'value':>7}{titles}  significant  held-out PCC")
        for gene, value in _rows(prediction, i, top):
            pcc, column = prediction.pcc(gene), prediction.genes.index(gene)
            cells = ""
            if "spread" in sure:
                cells += f"  {sure['spread'][i, column]:6.3f}"
            if "low" in sure:
                low, high = sure["low"][i, column], sure["high"][i, column]
                cells += "  " + ("unknown" if np.isnan(low) else f"{low:.2f} to {high:.2f}").rjust(_WIDTHS["low"])
            lines.append(
                f"{gene:{width}}  {value:7.3f}{cells}  {significance(prediction, gene):8}  "
                + ("unknown" if pcc is None else f"{pcc:12.3f}")
            )
        blocks.append("\n".join(lines) + "\n")
    after = [f"values in {prediction.units}"]
    if "spread" in sure:
        after.append("spread: standard deviation over rotations and reflections of the patch")
    if "low" in sure:
        after.append(f"interval: where {prediction.model.level:.0%} of the measurements of held-out tissue would lie")
    elif prediction.model.pcc is None:
        after.append("no intervals: these weights state no errors on held-out tissue")
    return "\n".join(blocks) + "\n" + "\n".join(after) + "\n"


def _sureness(prediction: Prediction) -> dict[str, np.ndarray]:
    """Of each value what is known of ``spread``, ``low`` and ``high``."""
    known = {} if prediction.spread is None else {"spread": prediction.spread}
    ends = prediction.interval()
    return known if ends is None else {**known, "low": ends[0], "high": ends[1]}


def _cell(values: np.ndarray | None, image: int, column: int) -> float | None:
    """One value, None if it is not known."""
    return None if values is None or np.isnan(values[image, column]) else float(values[image, column])


def to_csv(prediction: Prediction, *, top: int | None = None) -> str:
    """One row per image and gene."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    sure = _sureness(prediction)
    writer.writerow(
        ["image", "gene", "value", "units", "significant", "held_out_pcc", "mpp", "weights", *_SURE, "tissue_distance"]
    )
    for i, image in enumerate(prediction.images):
        for gene, value in _rows(prediction, i, top):
            pcc, column = prediction.pcc(gene), prediction.genes.index(gene)
            cells = [_cell(sure.get(key), i, column) for key in _SURE]
            writer.writerow(
                [
                    image,
                    gene,
                    f"{value:.6g}",
                    prediction.units,
                    significance(prediction, gene),
                    "" if pcc is None else f"{pcc:.4f}",
                    f"{prediction.scales[i].mpp:.6g}",
                    prediction.model.name,
                    *("" if cell is None else f"{cell:.6g}" for cell in cells),
                    "" if prediction.distance is None else f"{prediction.distance[i]:.4g}",
                ]
            )
    return text.getvalue()


def to_json(prediction: Prediction, *, top: int | None = None) -> str:
    """One object: the facts of the run, and per image its genes."""
    sure = _sureness(prediction)
    column = {gene: i for i, gene in enumerate(prediction.genes)}
    document: dict[str, Any] = {
        "weights": prediction.model.name,
        "sha256": prediction.model.sha256,
        "units": prediction.units,
        "interval_level": None if prediction.model.interval_radius is None else prediction.model.level,
        "predictions": [
            {
                "image": image,
                "mpp": prediction.scales[i].mpp,
                "scale_source": prediction.scales[i].source,
                "crop_px": prediction.crop_px[i],
                "tissue_distance": None if prediction.distance is None else float(prediction.distance[i]),
                "genes": [
                    {
                        "gene": gene,
                        "value": value,
                        "significant": prediction.significant(gene),
                        "held_out_pcc": prediction.pcc(gene),
                        **{key: _cell(sure.get(key), i, column[gene]) for key in _SURE},
                    }
                    for gene, value in _rows(prediction, i, top)
                ],
            }
            for i, image in enumerate(prediction.images)
        ],
        "failed": prediction.failed,
    }
    return json.dumps(document, indent=1) + "\n"


FORMATS: dict[str, Callable[..., str]] = {"table": to_table, "csv": to_csv, "json": to_json}
"""Formats of a prediction by name."""
