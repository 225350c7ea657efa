"""The results on sections held out as tables to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tcgn_hub.result import OURS, Evaluation
from tcgn_hub.text import aligned
from tcgn_hub.writing.evaluation_page import (
    UNSEEN,
    depth_note,
    interval_note,
    number,
    predicted_depth_note,
    ranking_note,
    with_interval,
)

_SECTIONS = (
    "section",
    "patient",
    "spots",
    "PCC [interval]",
    "given depth [interval]",
    "one factor",
    "beyond it",
    "HVG-50",
    "rank",
    "NRMSE",
    "ceiling",
    "significant",
)
_METHODS = (
    "method",
    "PCC [interval]",
    "given depth [interval]",
    "one factor",
    "beyond it",
    "HVG-50",
    "rank",
    "behind [interval]",
)
_LEGEND = (
    "PCC: correlation over the spots of a section, median over genes. Given depth: with log10(1 + the panel's counts\n"
    "of a spot) held fixed on both sides. One factor: PCC if one picture, the first principal component of all\n"
    "predictions, stood for every gene; beyond it: PCC of what is left. HVG-50: PCC of the 50 genes that vary most\n"
    "in the section beyond what counting explains. Rank: how many different pictures the genes are worth. NRMSE: 1 is\n"
    "what the mean of the section reaches. Ceiling: PCC that the noise of the counts leaves to a perfect prediction.\n"
    "Significant: genes whose PCC given depth, its square and its cube is above 0 at a false discovery rate of 5 %,\n"
    "by a test that allows for neighbouring spots being alike."
)
_OF_METHODS = (
    "Mean, depth, ridge: of the training spots' mean; of the very spot's depth, which no image tells; of ridge\n"
    "regression on colour and texture, or on a frozen network. Behind: difference of the median PCC to that of the\n"
    "method above, from the same draws of spots."
)


def tables(evaluation: Evaluation) -> str:
    """All tables of the results, of sections and of methods."""
    return "\n".join(filter(None, (section_table(evaluation), method_table(evaluation))))


def section_table(evaluation: Evaluation, *, markdown: bool = False) -> str:
    """One line a section, and one over all of them if there are several, of the weights or the first predictions."""
    summary = evaluation.summary
    rows = [_of_section(name, values["patient"], values) for name, values in summary["sections"].items()]
    if len(rows) > 1:
        patients = len({values["patient"] for values in summary["sections"].values()})
        rows.append(_of_section("all", f"{patients} patient{'s' * (patients > 1)}", summary))
    notes = [f"{name}: {values['note']}." for name, values in summary["sections"].items() if "note" in values]
    notes += [f"{note[0].upper()}{note[1:]}." for note in (*depth_note(summary), *predicted_depth_note(summary))]
    if reason := summary.get("not_marked_because"):
        notes.append(f"No gene is marked significant: {reason}.")
    if seen := summary.get("allowed_seen"):
        notes.append(
            f"The weights, or those they were started from, have seen {', '.join(seen)}: no measure of new tissue."
        )
    of = [] if summary["main"] == OURS else [f"All of {summary['main']}, the first of the predictions."]
    return _table([_SECTIONS, *rows], 2, [_LEGEND, *of, interval_note(summary), *notes], markdown)


def method_table(evaluation: Evaluation, *, markdown: bool = False) -> str:
    """One line a method, the best first, and one of the measurement; nothing where there is one method only."""
    summary = evaluation.summary
    rows = [_of_method(row["label"], summary["methods"][row["label"]], row) for row in summary["ranking"]]
    notes = [f"{note}." for note in (*ranking_note(summary), *summary.get("notes", ()))]
    if summary.get("predictions"):
        notes.append(UNSEEN)
    if len(rows) < 2 and not notes:
        return ""
    rows.append(["measured", *["-"] * 5, number(summary["effective_rank_measured"], ".1f"), "-"])
    return _table([_METHODS, *rows], 1, [_OF_METHODS, *notes], markdown)


def _table(rows: list[Sequence[str]], left: int, after: Sequence[str], markdown: bool) -> str:
    text = "\n".join(after) + "\n"
    if markdown:
        rule = ["---" if i < left else "---:" for i in range(len(rows[0]))]
        lines = ["| " + " | ".join(cells) + " |" for cells in (rows[0], rule, *rows[1:])]
        return "\n".join(lines) + "\n\n" + text
    return aligned(rows, left=range(left)) + "\n" + text


def _of_section(name: str, patient: str, values: dict[str, Any]) -> list[str]:
    return [
        name,
        patient,
        str(values["spots"]),
        with_interval(values, "median_pcc", ".3f"),
        with_interval(values, "median_pcc_given_depth", ".3f"),
        number(values.get("median_one_factor"), ".3f"),
        number(values.get("median_beyond_one_factor"), ".3f"),
        number(values.get("hvg50"), ".3f"),
        number(values.get("effective_rank"), ".1f"),
        number(values.get("median_nrmse"), ".2f"),
        number(values.get("median_ceiling"), ".2f"),
        number(values.get("significant_genes"), "d"),
    ]


def _of_method(label: str, values: dict[str, Any], row: dict[str, Any]) -> list[str]:
    return [
        label,
        with_interval(values, "median_pcc", ".3f"),
        with_interval(values, "median_pcc_given_depth", ".3f"),
        number(values.get("median_one_factor"), ".3f"),
        number(values.get("median_beyond_one_factor"), ".3f"),
        number(values.get("hvg50"), ".3f"),
        number(values.get("effective_rank"), ".1f"),
        with_interval(row, "behind", ".3f"),
    ]
