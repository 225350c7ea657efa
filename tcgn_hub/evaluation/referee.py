"""Predictions of other methods beside ours, on the spots that all of them have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tcgn_hub.data.predictions import GivenPredictions, read_predictions
from tcgn_hub.data.sections import Section
from tcgn_hub.errors import SectionError
from tcgn_hub.result import OURS, Measured
from tcgn_hub.text import some

RESERVED = (OURS, "mean", "depth", "ridge", "ceiling")
"""What methods of this package are called in tables; so is whatever begins with 'ridge '."""


def read_given(
    predictions: Mapping[str, Any],
    scale: str | Mapping[str, str],
    sections: Sequence[Section],
    genes: Sequence[str],
    *,
    rows: Mapping[str, Sequence[str]],
) -> list[GivenPredictions]:
    """The predictions of each method, see `tcgn_hub.data.predictions.read_predictions`.

    ``predictions``: files or data by label; ``scale``: that of all, or by label; ``sections``: sections to score them
    on; ``genes``: the panel; ``rows``: spots of each section as it was read, for arrays.
    """
    for label in predictions:
        if label in RESERVED or label.startswith("ridge ") or not label.strip():
            raise SectionError(f"Predictions cannot be called {label!r}: tables call something else so; use another.")
    if not isinstance(scale, str) and set(scale) - set(predictions):
        unknown = some(sorted(set(scale) - set(predictions)))
        raise SectionError(f"A scale is given of {unknown}, but predictions only of {some(predictions)}.")
    return [
        read_predictions(
            source,
            sections,
            genes,
            label=label,
            scale=scale if isinstance(scale, str) else scale.get(label, "log"),
            rows=rows,
        )
        for label, source in predictions.items()
    ]


def with_predictions(
    measured: Sequence[Measured], given: Sequence[GivenPredictions]
) -> tuple[list[Measured], list[str]]:
    """Measurements with the predictions of other methods, and what to note.

    A spot that one method lacks is left out for all of them where they are compared, see
    `tcgn_hub.evaluation.evaluate.summarise`, so that each number of a table is of the same tissue; a section without
    any other spot is left out here. A gene that a method lacks is NaN of it alone.
    """
    out, notes = [], [f"{one.label}: {note}" for one in given for note in one.notes]
    for section in measured:
        known = {one.label: ~np.isnan(one.values[section.name]).all(axis=1) for one in given}
        lacks = int((~np.logical_and.reduce(list(known.values()))).sum())
        which = some(label for label, rows in known.items() if not rows.all())
        if lacks == len(section.targets):
            notes.append(f"section {section.name} is left out for all methods, as no spot of it is in all of {which}")
            continue
        if lacks:
            notes.append(
                f"{lacks} of {len(section.targets)} spots of {section.name} {'is' if lacks == 1 else 'are'} left out"
                f" for all methods, as not in {which}"
            )
        predictions = {one.label: one.values[section.name] for one in given}
        in_units = frozenset(one.label for one in given if one.ours)
        out.append(replace(section, predictions=predictions, in_units=in_units))
    if not out:
        raise SectionError("No spot is predicted by all methods: " + "; ".join(notes) + "; leave one of them out.")
    return out, notes


def stated(given: Sequence[GivenPredictions]) -> dict[str, Any]:
    """What ``metrics.json`` says of the predictions of others: where from, of which scale, and all that they lack."""
    return {
        one.label: {
            "source": one.source,
            "scale": one.scale,
            "missing_genes": one.missing_genes,
            "missing_spots": one.missing_spots,
        }
        for one in given
    }
