"""Pictures of a training run: how it went, and how well its model does on sections held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.files import write_bytes
from tcgn_hub.writing.canvas import GREY, Canvas, matplotlib

_DPI = 150
# blue and orange of Okabe and Ito, which the colour-blind can tell apart
_COLOURS = {"TCGN": "#0072b2", "ridge": "#e69f00"}


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
            [row["epoch"] for row in rows], [row[key] for row in rows], color=_COLOURS["TCGN"], marker="o", markersize=3
        )
        axes.set_ylabel(label)
        _quieten(axes)
    panels[0].set_title("Training")
    panels[-1].set_xlabel("epoch")
    panels[-1].set_xlim(0.5, max((row["epoch"] for row in history), default=1) + 0.5)
    panels[-1].xaxis.set_major_locator(matplotlib("ticker").MaxNLocator(integer=True, min_n_ticks=1))
    canvas.figure.align_ylabels()
    write_bytes(path, canvas.png())


def violin_figure(per_section: Mapping[str, Mapping[str, np.ndarray]], path: str | Path) -> None:
    """A PNG of the correlations of all genes, section by section.

    ``per_section``: of each section the correlations of 'TCGN' and 'ridge' and the 'ceiling', each of shape (genes,);
    what is missing or NaN is left out; ``path``: file to write.
    """
    lines, patches = matplotlib("lines"), matplotlib("patches")
    canvas = Canvas(max(6.4, 1.6 + 1.1 * len(per_section)), 4.4, dpi=_DPI, layout="constrained")
    axes = canvas.figure.subplots()
    axes.axhline(0, color="#999999", linewidth=1, zorder=0.9)
    drawn: dict[str, Any] = {}
    for at, values in enumerate(per_section.values()):
        for name, offset in (("TCGN", -0.21), ("ridge", 0.21)):
            pcc = _known(values, name)
            if not len(pcc):
                continue
            violin = axes.violinplot([pcc], [at + offset], widths=0.38, showextrema=False)
            violin["bodies"][0].set(facecolor=_COLOURS[name], edgecolor=_COLOURS[name], alpha=0.75)
            median = float(np.median(pcc))
            axes.plot(at + offset, median, "o", markersize=6, color="white", markeredgecolor="black")
            drawn[name] = patches.Patch(facecolor=_COLOURS[name], alpha=0.75)
            drawn["median"] = lines.Line2D([], [], linestyle="", marker="o", color="white", markeredgecolor="black")
        ceiling = _known(values, "ceiling")
        if len(ceiling):
            style = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 1.4}
            axes.plot([at - 0.44, at + 0.44], [np.median(ceiling)] * 2, **style)
            drawn["median noise ceiling"] = lines.Line2D([], [], **style)
    # names that would run into each other are turned; a dollar sign in one is no formula
    long = max(map(len, per_section), default=0) > 11
    turned = {"rotation": 30, "horizontalalignment": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(range(len(per_section)), list(per_section), parse_math=False, **turned)
    axes.set(xlim=(-0.6, len(per_section) - 0.4), xlabel="section held out", ylabel="PCC of a gene over spots")
    axes.set_title("Correlation of prediction and measurement", pad=32)
    _quieten(axes)
    shown = [name for name in ("TCGN", "ridge", "median", "median noise ceiling") if name in drawn]
    handles = [drawn[name] for name in shown]
    axes.legend(handles, shown, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
    write_bytes(path, canvas.png())


def _known(values: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    array = np.asarray(values.get(name, ()), dtype=np.float64)
    return array[~np.isnan(array)]


def _quieten(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=GREY)
