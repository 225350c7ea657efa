"""Predictions as text: a table to read, CSV and JSON to work with."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tcgn_hub.outputs.frames import reliability

if TYPE_CHECKING:
    from tcgn_hub.prediction import Prediction

__all__ = ["FORMATS"]


def _rows(prediction: Prediction, image: int, top: int | None) -> list[tuple[str, float]]:
    """Genes and values of an image, in the order of the prediction, or the ``top`` highest first."""
    rows = list(zip(prediction.genes, prediction.values[image].tolist(), strict=True))
    return rows if top is None else sorted(rows, key=lambda row: -row[1])[:top]


def to_table(prediction: Prediction, *, top: int | None = None) -> str:
    """A table to read, one block an image."""
    width = max(map(len, (*prediction.genes, "gene")))
    blocks = []
    for i, image in enumerate(prediction.images):
        lines = [
            f"{image}: central {prediction.crop_px[i]} px, {prediction.scales[i].mpp:.4g} um/px by"
            f" {prediction.scales[i].source}, weights {prediction.model.name}",
            f"{'gene':{width}}  {'value':>7}  reliable  held-out PCC",
        ]
        for gene, value in _rows(prediction, i, top):
            pcc = prediction.pcc(gene)
            lines.append(
                f"{gene:{width}}  {value:7.3f}  {reliability(prediction, gene):8}  "
                + ("unknown" if pcc is None else f"{pcc:12.3f}")
            )
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks) + f"\nvalues in {prediction.units}\n"


def to_csv(prediction: Prediction, *, top: int | None = None) -> str:
    """One row per image and gene."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "gene", "value", "units", "reliable", "held_out_pcc", "mpp", "weights"])
    for i, image in enumerate(prediction.images):
        for gene, value in _rows(prediction, i, top):
            pcc = prediction.pcc(gene)
            writer.writerow(
                [
                    image,
                    gene,
                    f"{value:.6g}",
                    prediction.units,
                    reliability(prediction, gene),
                    "" if pcc is None else f"{pcc:.4f}",
                    f"{prediction.scales[i].mpp:.6g}",
                    prediction.model.name,
                ]
            )
    return text.getvalue()


def to_json(prediction: Prediction, *, top: int | None = None) -> str:
    """One object: the facts of the run, and per image its genes."""
    document: dict[str, Any] = {
        "weights": prediction.model.name,
        "sha256": prediction.model.sha256,
        "units": prediction.units,
        "predictions": [
            {
                "image": image,
                "mpp": prediction.scales[i].mpp,
                "scale_source": prediction.scales[i].source,
                "crop_px": prediction.crop_px[i],
                "genes": [
                    {
                        "gene": gene,
                        "value": value,
                        "reliable": prediction.reliable(gene),
                        "held_out_pcc": prediction.pcc(gene),
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
