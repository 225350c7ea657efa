"""Explanations as pictures and arrays: maps of genes over a patch, the learned graph, galleries of tiles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.files import write_npz
from tcgn_hub.result import Explanation, Gallery, LearnedGraph, Result
from tcgn_hub.writing.canvas import GREY, Canvas, matplotlib, round_length
from tcgn_hub.writing.figures import gene_title, slide_of
from tcgn_hub.writing.tables import ood_text

_DPI = 110
_PANEL, _GAP, _TOP, _BOTTOM, _MARGIN = 2.5, 0.14, 0.75, 0.95, 0.2  # inches
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
    e, result = explanation, explanation.result
    obs = {key: values[0] for key, values in result.obs.items()}
    lines = [
        f"{obs['name']}: {e.field.replace('µ', 'u')}, weights {result.info.name}",
        *_ood(e),
    ]
    agreement = e.agreement()
    width = max(map(len, result.genes))
    for i, gene in enumerate(result.genes):
        cells = [f"{gene:{width}}", _value(e, i), _interval(e, i), f"significant: {result.significance(gene)}"]
        if agreement is not None:
            cells.append(f"Grad-CAM and occlusion: rank correlation {_rounded(agreement[i])}")
        lines.append("  ".join(cell for cell in cells if cell))
    lines.append(f"values in {result.units}, +- standard deviation over rotations and reflections")
    if result.info.interval_radius is None:
        lines.append(f"no intervals: {result.info.name} states no errors on held-out tissue")
    lines += [f"graph of {graph.stage}: {_graph_text(graph, e.patch_um)}" for graph in e.graphs]
    return "\n".join(lines) + "\n"


def draw_explanation(explanation: Explanation) -> bytes:
    """A PNG: the patch and its learned graphs above, and below a row of maps for each gene."""
    e, result = explanation, explanation.result
    columns = max(4, 1 + len(e.maps) + (e.occlusion is not None))
    title = f"{Path(result.names[0]).name}: {e.patch_um:.3g} µm, weights {result.info.name}"
    sheet = _Sheet(columns, 1 + len(result.genes), title)
    axes = sheet.panel(0, 0, "patch")
    axes.imshow(e.patch, extent=(0, 1, 1, 0))
    _scale_bar(axes, e.patch_um)
    for column, graph in enumerate(e.graphs, 1):
        strongest = min(_DRAWN_EDGES, int((~graph.loops).sum()))
        axes = sheet.panel(0, column, f"graph of {graph.stage}, {strongest} strongest edges")
        axes.imshow(_faded(e.patch), extent=(0, 1, 1, 0))
        _draw_graph(axes, graph)
    sheet.lines(0, 3, _graph_notes(e))
    for row, gene in enumerate(result.genes, 1):
        sheet.lines(row, 0, _gene_notes(e, row - 1), title=gene)
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
        sheet.bar(_SIGNED, f"occlusion: what covering takes away, in {result.units}", left=False)
    else:
        sheet.note(f"values in {result.units}")
    return sheet.png()


def draw_gallery(result: Result, gallery: Gallery) -> bytes:
    """A PNG of the tiles in which a gene is highest and lowest, each beside its Grad-CAM."""
    slide = slide_of(result)
    numbers = range(len(gallery.tiles))
    groups = [numbers[: gallery.highest], numbers[gallery.highest :]]
    groups = [group for group in groups if group]
    title = f"{gallery.gene}: highest and lowest tiles; {gene_title(result, gallery.gene)}"
    sheet = _Sheet(max(2, *map(len, groups)), 2 * len(groups), title)
    for number, (group, name) in enumerate(zip(groups, ("highest", "lowest"), strict=False)):
        for column, i in enumerate(group):
            tile = result.names[int(gallery.tiles[i])]
            axes = sheet.panel(2 * number, column, f"{name}: tile {tile}, {gallery.values[i]:.3f}")
            axes.imshow(gallery.patches[i], extent=(0, 1, 1, 0))
            if column == 0:
                _scale_bar(axes, slide.patch_um)
            axes = sheet.panel(2 * number + 1, column, "Grad-CAM, last convolution")
            _overlay(axes, gallery.patches[i], gallery.maps[i])
    sheet.bar(_CMAP, "evidence for a higher value, from none to the 99th percentile of the tile", left=True)
    sheet.note(f"values in {result.units}")
    return sheet.png()


def write_arrays(path: str | Path, explanation: Explanation) -> None:
    """Write all arrays of an explanation as .npz that needs no pickle.

    ``genes``, ``values``, ``tta_std``, ``interval_low`` and ``interval_high`` (NaN where unknown) of shape (genes,);
    ``patch``; ``map.<layer>`` of shape (genes, side, side), ``occlusion`` if there is one; ``<stage>.edges`` and
    ``<stage>.weights`` of the graphs; ``metadata``, JSON.
    """
    e, result = explanation, explanation.result
    unknown = np.full_like(result.X, np.nan)
    low, high = result.interval() or (unknown, unknown)
    metadata = {
        **result.metadata(),
        **{key: None if (value := values[:1].tolist()[0]) != value else value for key, values in result.obs.items()},
        "graphs": {graph.stage: graph.summary(e.patch_um) for graph in e.graphs},
    }
    arrays = {
        "genes": np.array(result.genes),
        "values": result.X[0],
        "tta_std": result.layers.get("tta_std", unknown)[0],
        "interval_low": low[0],
        "interval_high": high[0],
        "patch": e.patch,
        **{f"map.{layer}": maps for layer, maps in e.maps.items()},
        **({} if e.occlusion is None else {"occlusion": e.occlusion}),
        **{f"{graph.stage}.edges": graph.edges for graph in e.graphs},
        **{f"{graph.stage}.weights": graph.weights for graph in e.graphs},
        "metadata": np.array(json.dumps(metadata)),
    }
    write_npz(path, arrays)


def _value(e: Explanation, i: int) -> str:
    std = e.result.layers.get("tta_std")
    return f"{e.result.X[0, i]:.3f}" + ("" if std is None else f" +- {std[0, i]:.3f}")


def _interval(e: Explanation, i: int) -> str:
    ends = e.result.interval()
    if ends is None or np.isnan(ends[0][0, i]):
        return ""
    return f"{e.result.info.interval_level:.0%} interval {ends[0][0, i]:.2f} to {ends[1][0, i]:.2f}"


def _rounded(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # not -0.00


def _ood(e: Explanation) -> list[str]:
    is_ood = e.result.is_ood
    return [] if is_ood is None or not is_ood[0] else [ood_text(e.result.obs["ood"][0])]


def _gene_notes(e: Explanation, i: int) -> list[str]:
    gene = e.result.genes[i]
    pcc, agreement = e.result.pcc(gene), e.agreement()
    notes = [
        _value(e, i).replace("+-", "±"),
        _interval(e, i) or "no interval is known",
        f"significant on held-out tissue: {e.result.significance(gene)}",
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
    return notes + [text.replace(": ", ":\n") for text in _ood(e)]


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
    length = round_length(patch_um / 2.5)
    share = length / patch_um
    axes.plot([0.05, 0.05 + share], [0.94, 0.94], color="white", linewidth=6, solid_capstyle="butt")
    axes.plot([0.05, 0.05 + share], [0.94, 0.94], color="black", linewidth=3, solid_capstyle="butt")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.text(0.05, 0.905, f"{length:g} µm", fontsize=8, va="bottom", bbox=box)


def _draw_graph(axes: Any, graph: LearnedGraph) -> None:
    row, col = np.divmod(graph.edges, graph.side)
    ends = np.stack([col + 0.5, row + 0.5], axis=-1) / graph.side
    loops = graph.loops
    kept = np.flatnonzero(~loops)[:_DRAWN_EDGES]
    # attention differs little between edges of one patch: from the weakest drawn to the strongest
    low, high = (float(graph.weights[kept].min()), float(graph.weights[kept].max())) if len(kept) else (0.0, 1.0)
    strength = (graph.weights[kept] - low) / (high - low or 1.0)
    order = np.argsort(strength, kind="stable")  # the strongest on top
    axes.add_collection(
        matplotlib("collections").LineCollection(
            list(ends[kept][order]), linewidths=0.4 + 2.2 * strength[order], colors=_EDGE, alpha=0.75
        )
    )
    axes.plot(*ends[loops, 0].T, ".", color=_LOOP, markersize=2.5)


class _Sheet(Canvas):
    """Square panels in rows and columns below a title, laid out in inches so that text has its place."""

    def __init__(self, columns: int, rows: int, title: str) -> None:
        width = 2 * _MARGIN + columns * _PANEL + (columns - 1) * _GAP
        super().__init__(width, _TOP + rows * (_PANEL + _GAP + 0.22) + _BOTTOM, dpi=_DPI)
        self.text(_MARGIN, self.height - 0.42, title, fontsize=13, weight="bold")

    def _place(self, row: int, column: int) -> tuple[float, float]:
        left = _MARGIN + column * (_PANEL + _GAP)
        return left, self.height - _TOP - row * (_PANEL + _GAP + 0.22) - 0.2 - _PANEL

    def panel(self, row: int, column: int, title: str) -> Any:
        """Axes from 0 to 1, y downwards, under a title."""
        axes = self.box(*self._place(row, column), _PANEL, _PANEL)
        axes.set(xlim=(0, 1), ylim=(1, 0), autoscale_on=False)
        axes.set_title(title, fontsize=8, pad=3, parse_math=False)
        return axes

    def lines(self, row: int, column: int, lines: Sequence[str], *, title: str = "") -> None:
        """Lines of text in the place of a panel."""
        left, bottom = self._place(row, column)
        top = bottom + _PANEL
        if title:
            self.text(left, top - 0.25, title, fontsize=15, weight="bold")
            top -= 0.4
        self.text(left, top, "\n".join(lines), fontsize=8.5, color=GREY, va="top", linespacing=1.5)

    def bar(self, cmap: str, text: str, *, left: bool) -> None:
        """What the colours of one kind of map mean."""
        at = _MARGIN if left else self.width / 2
        axes = self.box(at, 0.45, 2.2, 0.13)
        # on white, as transparent as on the patch
        axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=cmap, alpha=_ALPHA)
        axes.spines[:].set_visible(False)
        self.text(at, 0.2, text, fontsize=8.5, color=GREY)

    def note(self, text: str) -> None:
        """A line at the lower right."""
        self.text(self.width - _MARGIN, 0.45, text, fontsize=8.5, color=GREY, horizontalalignment="right")
