"""One value per gene and slide, to compare with bulk RNA-seq."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tcgn_hub.errors import OutputError

if TYPE_CHECKING:
    from tcgn_hub.prediction.slides import SlidePrediction

__all__ = ["bulk_csv", "pseudo_bulk"]

_UNITS = "log10(1 + 10^4 count / sum of the panel's counts)"


def pseudo_bulk(prediction: SlidePrediction) -> np.ndarray:
    """Mean over the tiles in linear space, float32, shape (genes,), in the units of the prediction.

    Every tile weighs the same, however many counts it would have had.

    Raises:
        OutputError: The units are not the logarithm whose inverse is known here.
    """
    if prediction.units != _UNITS:
        raise OutputError(
            f"The mean over tiles is taken for values in {_UNITS}, but these of {prediction.slide} are in"
            f" {prediction.units}."
        )
    linear = np.expm1(prediction.values.astype(np.float64) * np.log(10))
    return (np.log1p(linear.mean(axis=0)) / np.log(10)).astype(np.float32)


def bulk_csv(predictions: Sequence[SlidePrediction]) -> str:
    """One row per slide: its path, its number of tiles, and `pseudo_bulk` in a column per gene.

    Raises:
        OutputError: The slides were not predicted for the same genes, or not in units that can be averaged.
    """
    if len({tuple(prediction.genes) for prediction in predictions}) != 1:
        raise OutputError("A table of slides needs at least one slide, and the same genes in all of them.")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "tiles", *predictions[0].genes])
    for prediction in predictions:
        values = pseudo_bulk(prediction).tolist()
        writer.writerow([prediction.slide, len(prediction.tiles), *(f"{value:.6g}" for value in values)])
    return text.getvalue()
