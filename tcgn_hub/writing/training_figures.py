"""Pictures of a training run: how it went, and how well its model does on sections held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.files import write_bytes
from tcgn_hub.result import OURS
from tcgn_hub.writing.canvas import GREY, Canvas, matplotlib

_DPI = 150
# of Okabe and Ito, which the colour-blind can tell apart
_COLOURS = {OURS: "#0072b2", "ridge": "#e69f00", "other": "#009e73", "depth": "#cc79a7", "mean": "#999999"}


def curve_figure(history: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """A PNG of the training loss over epochs, and below it the correlation on validation spots where it was measured.

    ``history``: one row an epoch, with ``epoch``, ``loss``, and ``val_pcc`` where there is one; ``path``: file to
    write.
    """
    known = [row for row in history if row.get("val_pcc") is not None]
    canvas = Canvas(6.4, 5.6 if known else 3.6, dpi=_DPI, layout="constrained")
    panels = np.ravel(canvas.figure.subplots(2 if known else 1, 1, sharex=True))
    curves = [
        ("loss", history, "training loss\n(scaled squared error)"),
        ("val_pcc", known, "validation PCC\n(median)"),
    ]
    for axes, (key, rows, label) in zip(panels, curves, strict=False):
        axes.plot(
            [row["epoch"] for row in rows], [row[key] for row in rows], color=_COLOURS[OURS], marker="o", markersize=3
        )
        axes.set_ylabel(label)
        _quieten(axes)
    panels[0].set_title("Training")
    panels[-1].set_xlabel("epoch")
    panels[-1].set_xlim(0.5, max((row["epoch"] for row in history), default=1) + 0.5)
    panels[-1].xaxis.set_major_locator(matplotlib("ticker").MaxNLocator(integer=True, min_n_ticks=1))
    canvas.figure.align_ylabels()
    write_bytes(path, canvas.png())


def methods_figure(methods: Mapping[str, Mapping[str, Any]], path: str | Path) -> None:
    """A PNG of the correlations of all genes, method by method, and of the same given depth.

    ``methods``: by label, the first on top, ``pcc`` and ``pcc_given_depth``, each of shape (genes,), and
    ``pcc_interval`` and ``pcc_given_depth_interval``, the ends of that of their medians; of 'ceiling' what the noise
    leaves. What is missing, None or NaN is left out; ``path``: file to write.
    """
    lines = matplotlib("lines")
    shown = [label for label in methods if label != "ceiling"]
    panels = [
        (key, title)
        for key, title in (("pcc", "PCC"), ("pcc_given_depth", "PCC given depth"))
        if key == "pcc" or any(len(_known(methods[label], key)) for label in shown)
    ]
    canvas = Canvas(1.6 + 3.2 * len(panels), 1.5 + 0.55 * max(len(shown), 1), dpi=_DPI, layout="constrained")
    drawn: dict[str, Any] = {}
    for axes, (key, title) in zip(
        np.ravel(canvas.figure.subplots(1, len(panels), sharex=True, sharey=True)), panels, strict=True
    ):
        axes.axvline(0, color="#999999", linewidth=1, zorder=0.9)
        for at, label in enumerate(shown):
            pcc = _known(methods[label], key)
            if not len(pcc):
                continue
            where, height = _density(pcc)
            axes.fill_between(where, at - 0.4 * height, at + 0.4 * height, color=_colour(label), alpha=0.6, linewidth=0)
            ends = methods[label].get(f"{key}_interval")
            if ends is not None:
                axes.plot(ends, [at, at], color="black", linewidth=2, solid_capstyle="butt")
                drawn["its interval"] = lines.Line2D([], [], color="black", linewidth=2)
            axes.plot(float(np.median(pcc)), at, "o", markersize=6, color="white", markeredgecolor="black")
            drawn["median over genes"] = lines.Line2D(
                [], [], linestyle="", marker="o", color="white", markeredgecolor="black"
            )
        ceiling = _known(methods.get("ceiling", {}), key)
        if len(ceiling):
            style = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1.2}
            axes.axvline(float(np.median(ceiling)), **style)
            drawn["median noise ceiling"] = lines.Line2D([], [], **style)
        axes.set(xlabel=f"{title} of a gene over spots", ylim=(len(shown) - 0.4, -0.6))
        # a dollar sign in a name is no formula
        axes.set_yticks(range(len(shown)), shown, parse_math=False)
        _quieten(axes, "x")
    if drawn:
        canvas.figure.legend(
            list(drawn.values()), list(drawn), loc="outside upper center", ncols=len(drawn), frameon=False
        )
    write_bytes(path, canvas.png())


def _density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often values occur, smoothed by a Gaussian (Scott 1992): places, and heights of which the largest is 1."""
    width = max(float(values.std()) * len(values) ** -0.2, 0.01)
    where = np.linspace(values.min() - width, values.max() + width, 200)
    height = np.zeros(len(where))
    for part in np.array_split(values, len(values) // 1000 + 1):
        height += np.exp(-(((where[:, None] - part) / width) ** 2) / 2).sum(axis=1)
    return where, height / height.max()


def _colour(label: str) -> str:
    if label in (OURS, "mean", "depth"):
        return _COLOURS[label]
    return _COLOURS["ridge" if label.split(" ")[0] == "ridge" else "other"]


def _known(values: Mapping[str, Any], name: str) -> np.ndarray:
    found = values.get(name)
    array = np.asarray(() if found is None else found, dtype=np.float64)
    return array[~np.isnan(array)]


def _quieten(axes: Any, axis: str = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=axis, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=GREY)
