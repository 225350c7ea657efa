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
    "given depth [95 %]",
    "one factor",
    "HVG-50",
    "rank",
    "ridge",
    "depth",
    "NRMSE",
    "ceiling",
    "significant",
)
_LEFT = 2
_LEGEND = (
    "PCC: correlation over the spots of a section, median over genes. Given depth: with log10(1 + the panel's counts\n"
    "of a spot) held fixed. One factor: if one picture stood for all genes. HVG-50: PCC of the 50 genes that vary\n"
    "most beyond what counting explains. Rank: how many different pictures the genes are worth. Ridge: PCC of ridge\n"
    "regression on colour and texture; depth: of the spot's own depth, which no image tells. NRMSE: 1 is what the\n"
    "mean of the section reaches. Ceiling: PCC that the noise of the counts leaves to a perfect prediction.\n"
    "Significant: genes whose correlation given depth is above 0 at a false discovery rate of 5 %, by a test that\n"
    "allows for neighbouring spots being alike."
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
    if (held := summary["interval_simulated"]) is not None:
        notes.insert(0, f"The 95 % intervals held the truth in {held:.0%} of simulated sections like these.")
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
        _with_interval(values["median_pcc_given_depth"], values["median_pcc_given_depth_interval"], ".3f"),
        _number(values["median_one_factor"], ".3f"),
        _number(values["hvg50"], ".3f"),
        _number(values["effective_rank"], ".1f"),
        *(_number(values["methods"].get(label, {}).get("median_pcc"), ".3f") for label in ("ridge", "depth")),
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
