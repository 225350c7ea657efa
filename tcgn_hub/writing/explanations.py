"""Explanations as pictures and arrays: maps of genes over a patch, the learned graph, galleries of tiles."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.version import __version__
from tcgn_hub.extras import require
from tcgn_hub.files import write_bytes
from tcgn_hub.writing.frames import significance

if TYPE_CHECKING:
    from tcgn_hub.prediction.explain import Explanation, Gallery, LearnedGraph
    from tcgn_hub.prediction.slides import SlidePrediction

__all__ = ["draw_explanation", "draw_gallery", "explanation_text", "write_arrays"]

_DPI = 110
_PANEL, _GAP, _TOP, _BOTTOM, _MARGIN = 2.5, 0.14, 0.75, 0.95, 0.2  # inches
_GREY = "#444444"
_EDGE, _LOOP = "#0b3c8c", "#b35900"  # apart for the colour-blind, and from pink and violet tissue
_DRAWN_EDGES = 120
_CMAP, _SIGNED = "viridis", "PuOr_r"
_ALPHA = 0.65
_TITLES = {
    "final_conv": "Grad-CAM, last convolution",
    "stages.2": "LayerCAM, stage 3",
    "stages.1": "LayerCAM, stage 2",
    "stages.0": "LayerCAM, stage 1",
}


def explanation_text(explanation: Explanation) -> str:
    """Genes, values and how sure they are, and the graphs in numbers, as text to read."""
    e = explanation
    lines = [
        f"{e.image}: central {e.patch_um:.3g} um, {e.scale.mpp:.4g} um/px by {e.scale.source}, weights {e.model.name}"
    ]
    if e.unlike is not None and e.unlike[0]:
        lines.append(_unlike(e))
    agreement = e.agreement()
    width = max(map(len, e.genes))
    for i, gene in enumerate(e.genes):
        line = f"{gene:{width}}  {_value(e, i)}"
        interval = _interval(e, i)
        line += f"  {interval}" if interval else ""
        line += f"  significant: {significance(e, gene)}"
        line += "" if agreement is None else f"  Grad-CAM and occlusion: rank correlation {_rounded(agreement[i])}"
        lines.append(line)
    lines.append(f"values in {e.units}, +- standard deviation over rotations and reflections")
    if e.model.interval_radius is None:
        lines.append(f"no intervals: {e.model.name} states no errors on held-out tissue")
    lines += [f"graph of {graph.stage}: {_graph_text(graph, e.patch_um)}" for graph in e.graphs]
    return "\n".join(lines) + "\n"


def draw_explanation(explanation: Explanation) -> bytes:
    """A PNG: the patch and its learned graphs above, and below a row of maps for each gene.

    Raises:
        ExtraError: matplotlib is not installed.
    """
    e = explanation
    columns = max(4, 1 + len(e.maps) + (e.occlusion is not None))
    sheet = _Sheet(columns, 1 + len(e.genes), f"{Path(e.image).name}: {e.patch_um:.3g} µm, weights {e.model.name}")
    axes = sheet.panel(0, 0, "patch")
    axes.imshow(e.patch, extent=(0, 1, 1, 0))
    _scale_bar(axes, e.patch_um)
    for column, graph in enumerate(e.graphs, 1):
        strongest = min(_DRAWN_EDGES, int((~graph.loops).sum()))
        axes = sheet.panel(0, column, f"graph of {graph.stage}, {strongest} strongest edges")
        axes.imshow(_faded(e.patch), extent=(0, 1, 1, 0))
        _draw_graph(axes, graph)
    sheet.text(0, 3, _graph_notes(e))
    for row, gene in enumerate(e.genes, 1):
        sheet.text(row, 0, _gene_notes(e, row - 1), title=gene)
        for column, (layer, maps) in enumerate(e.maps.items(), 1):
            axes = sheet.panel(row, column, f"{_TITLES[layer]} ({maps.shape[1]} x {maps.shape[1]})")
            _overlay(axes, e.patch, maps[row - 1])
        if e.occlusion is not None:
            values = e.occlusion[row - 1]
            limit = float(np.abs(values).max()) or 1.0
            axes = sheet.panel(row, 1 + len(e.maps), f"occlusion, from -{limit:.2g} to {limit:.2g}")
            axes.imshow(_faded(e.patch), extent=(0, 1, 1, 0))
            axes.imshow(values, extent=(0, 1, 1, 0), cmap=_SIGNED, vmin=-limit, vmax=limit, alpha=_ALPHA)
    sheet.bar(_CMAP, "maps: evidence for a higher value, from none to the 99th percentile of the map", left=True)
    if e.occlusion is not None:
        sheet.bar(_SIGNED, f"occlusion: what covering takes away, in {e.units}", left=False)
    else:
        sheet.note(f"values in {e.units}")
    return sheet.png()


def draw_gallery(prediction: SlidePrediction, gallery: Gallery) -> bytes:
    """A PNG of the tiles in which a gene is highest and lowest, each beside its Grad-CAM.

    Raises:
        ExtraError: matplotlib is not installed.
    """
    groups = [range(gallery.highest), range(gallery.highest, len(gallery.tiles))]
    groups = [group for group in groups if group]
    pcc = prediction.pcc(gallery.gene)
    known = significance(prediction, gallery.gene)
    title = f"{gallery.gene}: highest and lowest tiles; significant on held-out tissue: {known}"
    title += "" if pcc is None else f" (PCC {pcc:.2f})"
    sheet = _Sheet(max(2, *map(len, groups)), 2 * len(groups), title)
    for group, name in zip(range(len(groups)), ("highest", "lowest"), strict=False):
        for column, i in enumerate(groups[group]):
            tile = prediction.tiles[int(gallery.tiles[i])]
            axes = sheet.panel(2 * group, column, f"{name}: tile {tile}, {gallery.values[i]:.3f}")
            axes.imshow(gallery.patches[i], extent=(0, 1, 1, 0))
            if column == 0:
                _scale_bar(axes, prediction.patch_um)
            axes = sheet.panel(2 * group + 1, column, "Grad-CAM, last convolution")
            _overlay(axes, gallery.patches[i], gallery.maps[i])
    sheet.bar(_CMAP, "evidence for a higher value, from none to the 99th percentile of the tile", left=True)
    sheet.note(f"values in {prediction.units}")
    return sheet.png()


def write_arrays(path: str | Path, explanation: Explanation) -> None:
    """Write all arrays of an explanation as .npz that needs no pickle.

    ``genes``, ``values``, ``spread``, ``interval_low`` and ``interval_high`` (NaN where unknown) of shape (genes,);
    ``patch``; ``map.<layer>`` of shape (genes, side, side), ``occlusion`` if there is one; ``<stage>.edges`` and
    ``<stage>.weights`` of the graphs; ``facts``, JSON.

    Raises:
        OutputError: The file cannot be written.
    """
    e = explanation
    ends = e.interval()
    unknown = np.full(len(e.genes), np.nan, np.float32)
    facts = {
        "image": e.image,
        "mpp": e.scale.mpp,
        "scale_source": e.scale.source,
        "patch_um": e.patch_um,
        "units": e.units,
        "weights": e.model.name,
        "sha256": e.model.sha256,
        "interval_level": None if ends is None else e.model.level,
        "tissue_distance": None if e.distance is None else float(e.distance[0]),
        "graphs": {graph.stage: graph.summary(e.patch_um) for graph in e.graphs},
        "tcgn_hub": __version__,
    }
    arrays = {
        "genes": np.array(e.genes),
        "values": e.values[0],
        "spread": unknown if e.spread is None else e.spread[0],
        "interval_low": unknown if ends is None else ends[0][0],
        "interval_high": unknown if ends is None else ends[1][0],
        "patch": e.patch,
        **{f"map.{layer}": maps for layer, maps in e.maps.items()},
        **({} if e.occlusion is None else {"occlusion": e.occlusion}),
        **{f"{graph.stage}.edges": graph.edges for graph in e.graphs},
        **{f"{graph.stage}.weights": graph.weights for graph in e.graphs},
        "facts": np.array(json.dumps(facts)),
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(path, content.getvalue())


def _value(e: Explanation, i: int) -> str:
    return f"{e.values[0, i]:.3f}" + ("" if e.spread is None else f" +- {e.spread[0, i]:.3f}")


def _interval(e: Explanation, i: int) -> str:
    ends = e.interval()
    if ends is None or math.isnan(ends[0][0, i]):
        return ""
    return f"{e.model.level:.0%} interval {ends[0][0, i]:.2f} to {ends[1][0, i]:.2f}"


def _rounded(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # not -0.00


def _unlike(e: Explanation) -> str:
    assert e.distance is not None
    return f"unlike the training tissue (distance {e.distance[0]:.1f}, above 1): do not rely on it"


def _gene_notes(e: Explanation, i: int) -> list[str]:
    gene = e.genes[i]
    pcc, agreement = e.pcc(gene), e.agreement()
    notes = [
        _value(e, i).replace("+-", "±"),
        _interval(e, i) or "no interval is known",
        f"significant on held-out tissue: {significance(e, gene)}",
        "" if pcc is None else f"held-out PCC {pcc:.2f}",
        "" if agreement is None else f"Grad-CAM and occlusion:\nrank correlation {_rounded(agreement[i])}",
    ]
    return [note for note in notes if note]


def _graph_notes(e: Explanation) -> list[str]:
    notes = []
    for graph in e.graphs:
        numbers = graph.summary(e.patch_um)
        notes += [
            f"graph of {graph.stage}",
            f"  {numbers['edges']} edges, {numbers['self_loops']} self-loops",
            f"  degree {numbers['median_degree']:g}, at most {numbers['max_degree']}",
            f"  length {numbers['median_length_um']:.0f} µm, at most {numbers['max_length_um']:.0f} µm",
            f"  {numbers['nodes_without_edges']} nodes without edges",
        ]
    notes.append("degree and length: medians;\nself-loops are drawn as dots")
    if e.unlike is not None and e.unlike[0]:
        notes.append(_unlike(e).replace(": ", ":\n"))
    return notes


def _graph_text(graph: LearnedGraph, patch_um: float) -> str:
    numbers = graph.summary(patch_um)
    return (
        f"{numbers['edges']} edges, {numbers['self_loops']} self-loops, {numbers['nodes_without_edges']} nodes without"
        f" edges, median degree {numbers['median_degree']:g} (at most {numbers['max_degree']}), median length"
        f" {numbers['median_length_um']:.0f} um (at most {numbers['max_length_um']:.0f})"
    )


def _faded(patch: np.ndarray) -> np.ndarray:
    """The patch in light grey, so that colours on it are those of the map."""
    grey = patch.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat((255 - (255 - grey) * 0.6)[..., None], 3, axis=2).astype(np.uint8)


def _overlay(axes: Any, patch: np.ndarray, values: np.ndarray) -> None:
    axes.imshow(_faded(patch), extent=(0, 1, 1, 0))
    # single positions of fine maps would leave the rest dark
    most = float(np.quantile(values, 0.99))
    if most <= 0:
        axes.text(0.5, 0.5, "no evidence for\na higher value", ha="center", va="center", fontsize=9)
        return
    axes.imshow(values, extent=(0, 1, 1, 0), cmap=_CMAP, vmin=0, vmax=most, alpha=_ALPHA, interpolation="bilinear")


def _scale_bar(axes: Any, patch_um: float) -> None:
    """A round length over about a third of the patch, on white so that it shows on any tissue."""
    power = 10.0 ** math.floor(math.log10(patch_um / 2.5))
    length = max(step * power for step in (1, 2, 5) if step * power <= patch_um / 2.5)
    share = length / patch_um
    axes.plot([0.05, 0.05 + share], [0.94, 0.94], color="white", linewidth=6, solid_capstyle="butt")
    axes.plot([0.05, 0.05 + share], [0.94, 0.94], color="black", linewidth=3, solid_capstyle="butt")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.text(0.05, 0.905, f"{length:g} µm", fontsize=8, va="bottom", bbox=box)


def _draw_graph(axes: Any, graph: LearnedGraph) -> None:
    collections = require("matplotlib.collections", extra="plot", to="draw figures")
    row, col = np.divmod(graph.edges, graph.side)
    ends = np.stack([col + 0.5, row + 0.5], axis=-1) / graph.side
    loops = graph.loops
    kept = np.flatnonzero(~loops)[:_DRAWN_EDGES]
    # attention differs little between edges of one patch: from the weakest drawn to the strongest
    low, high = (float(graph.weights[kept].min()), float(graph.weights[kept].max())) if len(kept) else (0.0, 1.0)
    strength = (graph.weights[kept] - low) / (high - low or 1.0)
    order = np.argsort(strength, kind="stable")  # the strongest on top
    axes.add_collection(
        collections.LineCollection(
            list(ends[kept][order]), linewidths=0.4 + 2.2 * strength[order], colors=_EDGE, alpha=0.75
        )
    )
    axes.plot(*ends[loops, 0].T, ".", color=_LOOP, markersize=2.5)


class _Sheet:
    """Square panels in rows and columns below a title, laid out in inches so that text has its place."""

    def __init__(self, columns: int, rows: int, title: str) -> None:
        to = "draw figures"
        figure = require("matplotlib.figure", extra="plot", to=to)
        self._canvas_of = require("matplotlib.backends.backend_agg", extra="plot", to=to).FigureCanvasAgg
        self._width = 2 * _MARGIN + columns * _PANEL + (columns - 1) * _GAP
        self._height = _TOP + rows * (_PANEL + _GAP + 0.22) + _BOTTOM
        self._figure = figure.Figure(figsize=(self._width, self._height), dpi=_DPI, facecolor="white")
        self._put(_MARGIN, self._height - 0.42, title, fontsize=13, weight="bold")

    def _put(self, left: float, bottom: float, text: str, **style: Any) -> None:
        # a dollar sign in a name is no formula
        self._figure.text(left / self._width, bottom / self._height, text, parse_math=False, **style)

    def _place(self, row: int, column: int) -> tuple[float, float]:
        left = _MARGIN + column * (_PANEL + _GAP)
        return left, self._height - _TOP - row * (_PANEL + _GAP + 0.22) - 0.2 - _PANEL

    def panel(self, row: int, column: int, title: str) -> Any:
        """Axes from 0 to 1, y downwards, under a title."""
        left, bottom = self._place(row, column)
        size = _PANEL / self._width, _PANEL / self._height
        axes = self._figure.add_axes((left / self._width, bottom / self._height, *size))
        axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0), autoscale_on=False)
        axes.set_title(title, fontsize=8, pad=3, parse_math=False)
        axes.spines[:].set(color="#bbbbbb", linewidth=0.8)
        return axes

    def text(self, row: int, column: int, lines: Sequence[str], *, title: str = "") -> None:
        """Lines in the place of a panel."""
        left, bottom = self._place(row, column)
        top = bottom + _PANEL
        if title:
            self._put(left, top - 0.25, title, fontsize=15, weight="bold")
            top -= 0.4
        self._put(left, top, "\n".join(lines), fontsize=8.5, color=_GREY, va="top", linespacing=1.5)

    def bar(self, cmap: str, text: str, *, left: bool) -> None:
        """What the colours of one kind of map mean."""
        width = 2.2
        at = _MARGIN if left else self._width / 2
        place = (at / self._width, 0.45 / self._height, width / self._width, 0.13 / self._height)
        axes = self._figure.add_axes(place)
        # on white, as transparent as on the patch
        axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=cmap, alpha=_ALPHA)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        self._put(at, 0.2, text, fontsize=8.5, color=_GREY)

    def note(self, text: str) -> None:
        """A line at the lower right."""
        self._put(self._width - _MARGIN, 0.45, text, fontsize=8.5, color=_GREY, horizontalalignment="right")

    def png(self) -> bytes:
        """The picture as the bytes of a file."""
        content = io.BytesIO()
        self._canvas_of(self._figure).print_png(content)
        return content.getvalue()
