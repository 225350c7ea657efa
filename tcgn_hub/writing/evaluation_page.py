"""The results on sections held out as one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcgn_hub.files import write_text
from tcgn_hub.result import Evaluation
from tcgn_hub.text import counted
from tcgn_hub.version import __version__

UNSEEN = (
    "Whether a method was trained on a section measured here, or on another one of its patient, cannot be seen in its"
    " predictions: the results are of new tissue only if it was not."
)
"""What every table with predictions of others has to say."""

_MOST_CELLS = 32_000  # of genes, on a page that is to stay below 2 MB

_MEASURES = (
    ("median_pcc", "PCC", ".3f"),
    ("median_pcc_given_depth", "PCC given depth", ".3f"),
    ("median_one_factor", "one factor", ".3f"),
    ("median_beyond_one_factor", "beyond one factor", ".3f"),
    ("hvg50", "HVG-50", ".3f"),
    ("hvg50_residuals", "HVG-50, residuals", ".3f"),
    ("hvg50_train", "HVG-50 of training", ".3f"),
    ("top50_own", "top 50 by own training", ".3f"),
    ("median_spearman", "Spearman", ".3f"),
    ("median_nrmse", "NRMSE", ".2f"),
    ("effective_rank", "effective rank", ".1f"),
    ("significant_genes", "significant genes", "d"),
)
_OTHERS = {"pcc": "PCC of", "pcc_given_depth": "given depth, of"}
_RANKED = ("PCC", "PCC given depth", "one factor", "beyond one factor", "HVG-50", "effective rank", "significant genes")
_MEANS = (
    ("PCC", "Pearson correlation over the spots of a section, mean over sections, median over genes"),
    ("PCC given depth", "the same with log10(1 + the panel's counts of a spot) held fixed on both sides"),
    ("one factor", "PCC if every gene is given the first principal component of all standardised predictions"),
    ("beyond one factor", "PCC of what is left of the predictions without it"),
    ("HVG-50", "median PCC of the 50 genes whose analytic Pearson residuals vary most in the section"),
    ("HVG-50, residuals", "the same genes, with these residuals as what was measured"),
    ("HVG-50 of training", "median PCC of 50 genes chosen so on the training sections"),
    ("top 50 by own training", "median PCC of the 50 genes that the method predicts best on its training sections"),
    ("Spearman", "median over genes of the rank correlation"),
    ("NRMSE", "median over genes of the error in standard deviations; only of predictions in the units measured"),
    ("effective rank", "exp of the entropy of the squared singular values of the standardised predictions"),
    (
        "significant genes",
        "genes better than chance, given depth, its square and its cube, at a false discovery rate of 5 %",
    ),
    (
        "behind",
        "how much lower the median PCC is than that of the method above, over the genes of all, by the same draws",
    ),
)
_COLUMNS = (
    ("pcc_given_depth", "given depth"),
    ("one_factor", "one factor"),
    ("beyond_one_factor", "beyond it"),
    ("ceiling", "ceiling"),
    ("ceiling_given_depth", "ceiling given depth"),
    ("spearman", "Spearman"),
)


def write_page(
    path: str | Path, evaluation: Evaluation, *, metadata: Mapping[str, Any], figure: bytes | None = None
) -> None:
    """Write a page with all methods ranked, each section, each gene, and what was left out.

    ``metadata``: what was run, to be listed; ``figure``: a PNG of the methods, if there is one.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    summary = evaluation.summary
    methods, ranking, main = summary["methods"], summary["ranking"], summary["main"]
    measures = [one for one in _MEASURES if any(_known(methods[row["label"]], one[0]) for row in ranking)]
    ranked = [one for one in measures if one[1] in _RANKED]
    rows = sorted(evaluation.per_gene, key=_skill)
    others = [key for key in (rows[0] if rows else ()) if key.startswith(("pcc ", "pcc_given_depth "))]
    named = [(key, name) for key, name in _COLUMNS if any(row.get(key) is not None for row in rows)]
    most = _MOST_CELLS // (3 + len(named) + len(others))
    environment = Environment(loader=PackageLoader("tcgn_hub.writing", "."), autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("evaluation.html.jinja").stream(
        sections=list(summary["sections"]),
        main=main,
        interval_note=interval_note(summary),
        unseen=UNSEEN if summary.get("predictions") else "",
        measures=measures,
        ranked=[name for _, name, _ in ranked],
        ranking=[
            (
                row["label"],
                [with_interval(methods[row["label"]], key, form) for key, _, form in ranked],
                with_interval(row, "behind", ".3f"),
            )
            for row in ranking
        ],
        measured=[
            number(summary.get("effective_rank_measured"), ".1f") if key == "effective_rank" else ""
            for key, *_ in ranked
        ],
        ceilings=[
            (name, number(summary.get(key), ".3f"))
            for key, name in (("median_ceiling", "PCC"), ("median_ceiling_given_depth", "PCC given depth"))
            if summary.get(key) is not None
        ],
        means=[(name, text) for name, text in _MEANS if name == "behind" or name in {one[1] for one in measures}],
        protocols=[
            (protocol, [number(scores.get(row["label"]), ".3f") for row in ranking])
            for protocol, scores in summary.get("protocols", {}).items()
        ],
        per_section=[
            (
                name,
                values["patient"],
                values["spots"],
                row["label"],
                [with_interval(values["methods"].get(row["label"], {}), key, form) for key, _, form in measures],
            )
            for name, values in summary["sections"].items()
            for row in ranking
        ],
        figure=None if figure is None else base64.b64encode(figure).decode(),
        columns=["gene", f"PCC of {main}", *(name for _, name in named), "significant"]
        + [f"{_OTHERS[key.split(' ')[0]]} {key.split(' ', 1)[1]}" for key in others],
        genes=[
            (
                row["gene"],
                [(row.get(key), _between(row, key)) for key in ("pcc", *(key for key, _ in named))],
                row.get("significant"),
                [row.get(key) for key in others],
            )
            for row in rows[:most]
        ],
        left_out=max(0, len(rows) - most),
        notes=_notes(summary),
        run=[(key, _text(value)) for key, value in {**metadata, "tcgn_hub": __version__}.items()],
    )
    write_text(path, page)


def _skill(row: Mapping[str, Any]) -> float:
    known = (row.get(key) for key in ("pcc_given_depth", "pcc"))
    return -next((value for value in known if value is not None), -2)


def interval_note(summary: Mapping[str, Any]) -> str:
    """How often intervals such as these hold the truth."""
    held = summary.get("interval_simulated")
    if held is None:
        return "Intervals are made to hold the truth in 95 % of the cases; how often they do could not be simulated."
    return f"Intervals are made for 95 %, and held the truth in {held:.0%} of simulated sections like these."


def ranking_note(summary: Mapping[str, Any]) -> list[str]:
    """What the order of the methods rests on, where not all of them predict the same genes."""
    shared = {(row.get("genes"), row.get("shared_genes")) for row in summary["ranking"]}
    if len(shared) < 2:
        return []
    count = next(iter(shared))[1]
    if not count:
        return ["no gene is predicted by all methods, so that their order compares different genes"]
    return [
        f"methods are ordered, and behind is taken, by the {counted(count, 'gene')} that all of them predict; the other"
        " numbers are of each method's own genes"
    ]


def depth_note(summary: Mapping[str, Any]) -> list[str]:
    """What significance is of, where depth is not known."""
    if summary.get("median_pcc") is None or summary.get("median_pcc_given_depth") is not None:
        return []
    return ["no counts of spots are known, so that significant genes are of the PCC itself, not given depth"]


def predicted_depth_note(summary: Mapping[str, Any]) -> list[str]:
    """How well depth is predicted, over all sections and in each, and what is left of the genes without it."""
    pcc, left = summary.get("depth_pcc"), summary.get("median_pcc_of_given_depth")
    if pcc is None:
        return []
    of = ", ".join(f"{name} {number(part.get('depth_pcc'), '.3f')}" for name, part in summary["sections"].items())
    genes = "" if left is None else f"; genes given the predicted depth have a PCC of {left:.3f} with what is measured"
    return [f"the predicted depth has a PCC of {pcc:.3f} with that of the spots ({of}){genes}"]


def number(value: float | None, form: str) -> str:
    """A number, or a dash where it is not known."""
    return "-" if value is None else format(value, form)


def with_interval(values: Mapping[str, Any], key: str, form: str) -> str:
    """A number and its interval, as far as they are known."""
    value, ends = values.get(key), values.get(f"{key}_interval")
    return number(value, form) + ("" if value is None or ends is None else f" [{ends[0]:{form}}, {ends[1]:{form}}]")


def _known(values: Mapping[str, Any], key: str) -> bool:
    return values.get(key) is not None


def _between(row: Mapping[str, Any], key: str) -> str:
    ends = row.get(f"{key}_low"), row.get(f"{key}_high")
    return "" if None in ends else f"[{ends[0]:.2f}, {ends[1]:.2f}]"


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = [f"{name}: {values['note']}" for name, values in summary["sections"].items() if "note" in values]
    if reason := summary.get("not_marked_because"):
        notes.append(f"no gene is marked significant: {reason}")
    if seen := summary.get("allowed_seen"):
        notes.append(
            f"the weights, or those they were started from, have seen {', '.join(seen)}: no measure of new tissue"
        )
    return (
        notes
        + depth_note(summary)
        + predicted_depth_note(summary)
        + ranking_note(summary)
        + list(summary.get("notes", ()))
    )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)
