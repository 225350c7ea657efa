"""The results on sections held out as a table to read."""

from __future__ import annotations

from typing import Any

from tcgn_hub.result import Evaluation
from tcgn_hub.text import aligned

_COLUMNS = (
    "section",
    "patient",
    "spots",
    "PCC [95 %]",
    "ridge",
    "gain [95 %]",
    "Spearman",
    "NRMSE",
    "ceiling",
    "significant",
)
_LEFT = 2
_LEGEND = (
    "Medians over genes, [95 % intervals]. Ridge: PCC of ridge regression on colour and texture.\n"
    "Gain: PCC less that of ridge. NRMSE: 1 is what the mean of the section reaches. Ceiling: PCC that the noise of\n"
    "the counts leaves to a perfect prediction. Significant: genes with a PCC above 0 at a false discovery rate of 5 %."
)


def section_table(evaluation: Evaluation, *, markdown: bool = False) -> str:
    """One line a section, and one over all of them if there are several."""
    summary = evaluation.summary
    rows = [_row(name, values["patient"], values) for name, values in summary["sections"].items()]
    if len(rows) > 1:
        patients = len({values["patient"] for values in summary["sections"].values()})
        rows.append(_row("all", f"{patients} patient{'s' * (patients > 1)}", summary))
    notes = [f"{name}: {values['note']}." for name, values in summary["sections"].items() if "note" in values]
    if reason := summary.get("not_marked_because"):
        notes.append(f"No gene is marked significant: {reason}.")
    if seen := summary.get("allowed_seen"):
        notes.append(
            f"The weights, or those they were started from, have seen {', '.join(seen)}: no measure of new tissue."
        )
    after = "\n".join([_LEGEND, *notes]) + "\n"
    if markdown:
        rule = ["---" if i < _LEFT else "---:" for i in range(len(_COLUMNS))]
        lines = ["| " + " | ".join(cells) + " |" for cells in (_COLUMNS, rule, *rows)]
        return "\n".join(lines) + "\n\n" + after
    return aligned([_COLUMNS, *rows], left=range(_LEFT)) + "\n" + after


def _row(name: str, patient: str, values: dict[str, Any]) -> list[str]:
    return [
        name,
        patient,
        str(values["spots"]),
        _with_interval(values["median_pcc"], values["median_pcc_interval"], ".3f"),
        _number(values["median_pcc_ridge"], ".3f"),
        _with_interval(values["gain_over_ridge"], values["gain_over_ridge_interval"], "+.3f"),
        _number(values["median_spearman"], ".3f"),
        _number(values["median_nrmse"], ".2f"),
        _number(values["median_ceiling"], ".2f"),
        str(values["significant_genes"]),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _with_interval(value: float | None, ends: list[float] | None, form: str) -> str:
    if value is None or ends is None:
        return "-"
    return f"{value:{form}} [{ends[0]:{form}}, {ends[1]:{form}}]"
