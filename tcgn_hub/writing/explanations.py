"""Explanations as pictures and arrays: maps of genes over a patch, the learned graph, galleries of tiles."""

from __future__ import annotations

import json
import math
import textwrap
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
_PANEL, _GAP, _TITLE, _TOP, _BOTTOM, _MARGIN = 2.5, 0.14, 0.5, 0.6, 1.1, 0.2  # inches
_LINE = 0.19  # inches from a line of text to the next
_EDGE, _CHANCE = "#0b3c8c", "#b35900"  # apart for the colour-blind, and from pink and violet tissue
_DRAWN_EDGES = 30
_CMAP, _SIGNED, _COUNTS = "viridis", "PuOr_r", "Blues"
_ALPHA, _DENSE = 0.65, 0.85  # over the patch: beside its structures, and where pale colours are to be told apart
_SHOWN = 0.99  # the share of values that colours tell apart; single ones beyond would leave the rest pale
_KINDS = {
    "final_conv": "Grad-CAM of the last convolution",
    "stages.2": "LayerCAM of stage 3",
    "stages.1": "LayerCAM of stage 2",
    "stages.0": "LayerCAM of stage 1",
    "occlusion": "occlusion",
}
_NUMBERS = {2: "two", 3: "three", 4: "four"}


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
    lines += _alike(e)
    lines += [f"graph of {graph.stage}: {_graph_text(graph, e.patch_um)}" for graph in e.graphs]
    return "\n".join(lines) + "\n"


def draw_explanation(explanation: Explanation) -> bytes:
    """A PNG: the patch and its learned graphs above, and below a row of maps for each gene."""
    e, result = explanation, explanation.result
    columns = max(5, 1 + len(e.maps) + (e.occlusion is not None))
    title = f"{Path(result.names[0]).name}: {e.patch_um:.3g} µm, weights {result.info.name}"
    sheet = _Sheet(columns, len(e.graphs) + len(result.genes), title, [*_ood(e), *_alike(e)])
    axes = sheet.panel(0, 0, "patch")
    axes.imshow(e.patch, extent=(0, 1, 1, 0))
    _scale_bar(axes, e.patch_um)
    most = math.ceil(_limit(np.concatenate([graph.degree for graph in e.graphs])))
    for row, graph in enumerate(e.graphs):
        _draw_graph(sheet, row, graph, e, most)
    limit = 0.0 if e.occlusion is None else _limit(np.abs(e.occlusion))
    for i, gene in enumerate(result.genes):
        row = len(e.graphs) + i
        sheet.lines(row, 0, _gene_notes(e, i), title=gene)
        for column, (layer, maps) in enumerate(e.maps.items(), 1):
            axes = sheet.panel(row, column, f"{_KINDS[layer]}\n({maps.shape[1]} x {maps.shape[1]})")
            _overlay(axes, e.patch, maps[i], _limit(maps[i]))
        if e.occlusion is not None:
            values = e.occlusion[i]
            low, middle, high = np.quantile(values, (0, 0.5, 1))
            title = f"occlusion ({len(values)} x {len(values)}):\n{low:.2g} to {high:.2g}, median {middle:.2g}"
            axes = sheet.panel(row, 1 + len(e.maps), title)
            axes.imshow(_faded(e.patch), extent=(0, 1, 1, 0))
            axes.imshow(values, extent=(0, 1, 1, 0), cmap=_SIGNED, vmin=-limit, vmax=limit, alpha=_DENSE)
    sheet.bar(0, _CMAP, ["none", "99th percentile of the map"], "maps: evidence for a higher value")
    sheet.bar(1, _COUNTS, ["0", f"{most} or more"], "degree: edges of a square that are no self-loops", alpha=_DENSE)
    if e.occlusion is not None:
        sheet.bar(
            2,
            _SIGNED,
            [f"{-limit:.2g}", "0", f"{limit:.2g}"],
            f"occlusion: what covering takes away, to the 99th percentile of\nall genes, in {result.units}",
            alpha=_DENSE,
        )
    else:
        sheet.note(f"values in {result.units}")
    return sheet.png()


def draw_gallery(result: Result, gallery: Gallery) -> bytes:
    """A PNG of the tiles in which a gene is highest and lowest, each beside its Grad-CAM."""
    slide = slide_of(result)
    numbers = range(len(gallery.tiles))
    groups = [numbers[: gallery.highest], numbers[gallery.highest :]]
    groups = [group for group in groups if group]
    title, said = f"{gallery.gene}: highest and lowest tiles", [gene_title(result, gallery.gene)]
    sheet = _Sheet(max(3, *map(len, groups)), 2 * len(groups), title, said)
    limit = _limit(gallery.maps)
    for number, (group, name) in enumerate(zip(groups, ("highest", "lowest"), strict=False)):
        for column, i in enumerate(group):
            tile = result.names[int(gallery.tiles[i])]
            axes = sheet.panel(2 * number, column, f"{name}: tile {tile}, {gallery.values[i]:.3f}")
            axes.imshow(gallery.patches[i], extent=(0, 1, 1, 0))
            if column == 0:
                _scale_bar(axes, slide.patch_um)
            axes = sheet.panel(2 * number + 1, column, f"Grad-CAM, at most {gallery.maps[i].max():.2g}")
            _overlay(axes, gallery.patches[i], gallery.maps[i], limit)
    meaning = (
        "Grad-CAM of the last convolution: evidence for a higher\nvalue, to the 99th percentile over all tiles shown"
    )
    sheet.bar(0, _CMAP, ["0", f"{limit:.2g} or more"], meaning)
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


def _alike(e: Explanation) -> list[str]:
    """A sentence of each group of genes whose maps are one picture."""
    sentences = []
    for genes, maps in e.alike().items():
        names = [f"{_KINDS[kind]} (r = {_range(low, high)})" for kind, (low, high) in maps.items()]
        number = _NUMBERS.get(len(genes), len(genes))
        sentences.append(f"{_listed(genes)}: the same {_listed(names)}: one picture, not {number} findings")
    return sentences


def _range(low: float, high: float) -> str:
    ends = _rounded(low), _rounded(high)
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _graph_text(graph: LearnedGraph, patch_um: float) -> str:
    numbers = graph.summary(patch_um)
    return (
        f"{numbers['edges']} edges, {numbers['self_loops']} self-loops, {numbers['nodes_without_edges']} nodes without"
        f" edges, median degree {numbers['median_degree']:g} (at most {numbers['max_degree']}), median length"
        f" {numbers['median_length_um']:.0f} um (at most {numbers['max_length_um']:.0f}; of any two squares"
        f" {np.median(_all_lengths(graph.side)) * patch_um:.0f})"
    )


def _faded(patch: np.ndarray) -> np.ndarray:
    """The patch in light grey, so that colours on it are those of the map."""
    grey = patch.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat((255 - (255 - grey) * 0.6)[..., None], 3, axis=2).astype(np.uint8)


def _limit(values: np.ndarray) -> float:
    """Where the colours of values from 0 on end."""
    return float(np.quantile(values, _SHOWN)) or float(values.max()) or 1.0


def _overlay(axes: Any, patch: np.ndarray, values: np.ndarray, most: float) -> None:
    axes.imshow(_faded(patch), extent=(0, 1, 1, 0))
    if values.max() <= 0:
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


def _draw_graph(sheet: _Sheet, row: int, graph: LearnedGraph, e: Explanation, most: int) -> None:
    """A row of panels: the strongest edges, how many each square has, how long they are, and numbers.

    ``most``: the degree at which colours end.
    """
    numbers = graph.summary(e.patch_um)
    others = ~graph.loops
    kept = np.flatnonzero(others)[:_DRAWN_EDGES]
    name = f"graph {row + 1} ({graph.stage})"
    axes = sheet.panel(row, 1, f"{name}:\n{len(kept)} strongest of {others.sum()} edges")
    axes.imshow(_faded(e.patch), extent=(0, 1, 1, 0))
    _arrows(axes, graph, kept)
    axes = sheet.panel(row, 2, f"{name}:\ndegree: median {numbers['median_degree']:g}, at most {numbers['max_degree']}")
    axes.imshow(_faded(e.patch), extent=(0, 1, 1, 0))
    degree = graph.degree.reshape(graph.side, graph.side)
    axes.imshow(degree, extent=(0, 1, 1, 0), cmap=_COUNTS, vmin=0, vmax=most, alpha=_DENSE)
    axes = sheet.plot(row, 3, f"{name}:\nlength: median {numbers['median_length_um']:.0f} µm")
    _lengths(axes, graph, e.patch_um)
    notes = [
        f"{numbers['edges']} edges; {numbers['self_loops']} of them are",
        "self-loops, which are not drawn",
        f"{numbers['nodes_without_edges']} squares have no other edge",
    ]
    if len(kept):
        weak, strong = graph.weights[kept[[-1, 0]]]
        notes += ["attention of the edges drawn:", f"{weak:.3g} (thin) to {strong:.3g} (thick)"]
    sheet.lines(row, 4, notes)


def _arrows(axes: Any, graph: LearnedGraph, kept: np.ndarray) -> None:
    """Edges as arrows from square to square, the wider the stronger, from the weakest drawn to the strongest."""
    row, col = np.divmod(graph.edges[kept], graph.side)
    ends = np.stack([col + 0.5, row + 0.5], axis=-1) / graph.side
    weights = graph.weights[kept]
    # attention differs little between edges of one patch
    spread = float(np.ptp(weights)) if len(weights) else 0.0
    strength = (weights - weights[-1:]) / (spread or 1.0)
    halo = [matplotlib("patheffects").withStroke(linewidth=3.5, foreground="white")]
    for (start, end), share in list(zip(ends, strength, strict=True))[::-1]:  # the strongest on top
        style = {"arrowstyle": "-|>", "mutation_scale": 9, "shrinkA": 0, "shrinkB": 0, "color": _EDGE}
        axes.annotate("", end, start, arrowprops={**style, "linewidth": 0.8 + 1.4 * share, "path_effects": halo})
        axes.plot(*start, "o", color=_EDGE, markersize=3, markeredgecolor="white", markeredgewidth=0.6)


def _lengths(axes: Any, graph: LearnedGraph, patch_um: float) -> None:
    """How many edges are how long, beside what edges between squares drawn by lot would be."""
    found, chance = graph.lengths[~graph.loops] * patch_um, _all_lengths(graph.side) * patch_um
    bins = np.linspace(0, patch_um * 2**0.5, 16)
    axes.hist(found, bins, color=_EDGE, alpha=0.75, label="edges")
    weights = np.full(len(chance), len(found) / len(chance))
    axes.hist(chance, bins, weights=weights, histtype="step", color=_CHANCE, linewidth=1.5, label="any two squares")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)  # room for the legend
    axes.legend(fontsize=8, frameon=False, loc="upper right", handlelength=1.2)


def _all_lengths(side: int) -> np.ndarray:
    """Distances of every two squares as a share of the side of the patch."""
    at = np.stack(np.divmod(np.arange(side**2), side), axis=-1)
    return np.linalg.norm(at[:, None] - at, axis=-1)[np.triu_indices(side**2, 1)] / side


class _Sheet(Canvas):
    """Square panels in rows and columns below a title, laid out in inches so that text has its place.

    ``said``: sentences below the title, broken where they are wider than the panels.
    """

    def __init__(self, columns: int, rows: int, title: str, said: Sequence[str] = ()) -> None:
        width = 2 * _MARGIN + columns * _PANEL + (columns - 1) * _GAP
        lines = [line for text in said for line in textwrap.wrap(text, int(width * 11), subsequent_indent="  ")]
        self._top = _TOP + len(lines) * _LINE
        super().__init__(width, self._top + rows * (_PANEL + _TITLE) + _BOTTOM, dpi=_DPI)
        self.text(_MARGIN, self.height - 0.42, title, fontsize=13, weight="bold")
        self.text(_MARGIN, self.height - 0.58, "\n".join(lines), fontsize=9.5, va="top", linespacing=1.3)

    def _place(self, row: int, column: int) -> tuple[float, float]:
        left = _MARGIN + column * (_PANEL + _GAP)
        return left, self.height - self._top - (row + 1) * (_PANEL + _TITLE)

    def panel(self, row: int, column: int, title: str) -> Any:
        """Axes from 0 to 1, y downwards, under a title of up to two lines."""
        axes = self.box(*self._place(row, column), _PANEL, _PANEL)
        axes.set(xlim=(0, 1), ylim=(1, 0), autoscale_on=False)
        axes.set_title(title, fontsize=9, pad=3, parse_math=False)
        return axes

    def plot(self, row: int, column: int, title: str) -> Any:
        """Axes with numbers in the place of a panel, in micrometres from left to right."""
        left, bottom = self._place(row, column)
        axes = self.box(left + 0.35, bottom + 0.4, _PANEL - 0.4, _PANEL - 0.4)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(matplotlib("ticker").MaxNLocator(4, integer=True))
        axes.tick_params(labelsize=8, length=3, color=GREY)
        axes.set_xlabel("µm", fontsize=8, labelpad=1)
        axes.set_title(title, fontsize=9, pad=3, parse_math=False)
        return axes

    def lines(self, row: int, column: int, lines: Sequence[str], *, title: str = "") -> None:
        """Lines of text in the place of a panel."""
        left, bottom = self._place(row, column)
        top = bottom + _PANEL
        if title:
            self.text(left, top - 0.25, title, fontsize=15, weight="bold")
            top -= 0.4
        self.text(left, top, "\n".join(lines), fontsize=9, color=GREY, va="top", linespacing=1.5)

    def bar(self, place: int, cmap: str, ends: Sequence[str], text: str, *, alpha: float = _ALPHA) -> None:
        """What the colours of one kind of map mean, with numbers at even distances; ``place``: 0, 1 or 2."""
        left, width = _MARGIN + place * (self.width - _MARGIN) / 3, 2.2
        axes = self.box(left, 0.55, width, 0.13)
        # on white, as transparent as on the patch
        axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=cmap, alpha=alpha)
        axes.spines[:].set_visible(False)
        for i, end in enumerate(ends):
            share = i / (len(ends) - 1)
            side = "left" if share == 0 else "right" if share == 1 else "center"
            self.text(left + share * width, 0.72, end, fontsize=8.5, color=GREY, horizontalalignment=side)
        self.text(left, 0.46, text, fontsize=8.5, color=GREY, va="top")

    def note(self, text: str) -> None:
        """A line at the lower right."""
        self.text(self.width - _MARGIN, 0.46, text, fontsize=8.5, color=GREY, va="top", horizontalalignment="right")
