"""Pictures of a slide: a gene over its tiles, and where the tissue is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tcgn_hub.errors import OutputError
from tcgn_hub.result import Result, SlideContext
from tcgn_hub.text import counted
from tcgn_hub.weights.typical import Typical
from tcgn_hub.writing.canvas import GREY, Canvas, matplotlib, round_length

# pixels: room around the slide for the title, the scale bar and the colour bar, whatever the slide's shape
_DPI = 100
_MARGIN, _TOP, _BOTTOM = 20, 72, 90
_LEAST_WIDTH = 620
_BAR = 340
COLOURS, OPACITY, SLIDE_OPACITY = "viridis", 0.8, 0.55
"""Of the tiles of a map, and of the slide beneath them."""
_LONGEST_TISSUE = 34  # letters that fit into a title


def draw_gene(result: Result, gene: str, *, layer: str = "value", side: int = 1200) -> bytes:
    """A PNG of the faded slide with its tiles, coloured by the predicted value.

    The colours span what is predicted for the training tissue, 1 % to 99 %, where the weights state it, so that they
    mean the same on every slide; else what is predicted here.

    ``layer``: 'value', or 'given_depth' for `tcgn_hub.result.Result.given_depth`; ``side``: longest side of the picture
    in pixels; the text needs a width of 620 all the same.
    """
    limits = gene_limits(result, [gene], layer)[0]
    title, subtitle = f"{gene}, given depth" if layer == "given_depth" else gene, gene_title(result, gene)
    values = layer_values(result.select([gene]), layer)[:, 0]
    return draw_values(result, values, title, subtitle, result.units, limits=limits, side=side)


def draw_signature(result: Result, name: str, *, side: int = 1200) -> bytes | None:
    """A PNG, as of `draw_gene`, of the scores of a gene set; None where they are withheld of all tiles.

    The colours are those of a gene: the more the genes of a set agree, the more a score varies like one of them.
    """
    index = [signature.name for signature in result.signatures].index(name)
    signature, scores = result.signatures[index], result.obsm["signatures"][:, index]
    if not np.isfinite(scores).any():
        return None
    subtitle = f"{len(signature.genes)} of {counted(signature.size, 'gene')}, at mean depth"
    label, limits = "mean of the genes, in sd over the training tissue", Typical.module_limits()
    return draw_values(result, scores, name, subtitle, label, limits=limits, side=side)


def gene_limits(result: Result, genes: Sequence[str], layer: str) -> list[tuple[float, float] | None]:
    """What the colours of each gene's map span, None where it is what is predicted here."""
    typical = result.info.predicted_in_training
    if layer == "given_depth" and typical is not None:
        place = {gene: i for i, gene in enumerate(result.info.genes)}
        return [typical.given_depth_limits(place[gene]) for gene in genes]
    if "trained_low" not in result.var:
        return [None] * len(genes)
    place = {gene: i for i, gene in enumerate(result.genes)}
    low, high = (result.var[f"trained_{end}"].tolist() for end in ("low", "high"))
    return [(low[place[gene]], high[place[gene]]) for gene in genes]


def colour_span(low: float, high: float) -> tuple[float, float]:
    """From where to where colours run, which have to differ also where all values are the same."""
    return (low - 0.01, high + 0.01) if high - low < 1e-6 else (low, high)


def square_px(slide: SlideContext) -> float:
    """Side of the square that a tile is drawn as: its own, or the distance of tiles that overlap, which then touch."""
    return min(slide.patch_um, slide.stride_um or slide.patch_um) / slide.mpp


def layer_values(result: Result, layer: str, rows: slice = slice(None)) -> np.ndarray:
    """What a map shows of each gene, shape (n, genes): its 'value', or 'given_depth'. ``rows``: of which tiles.

    Raises:
        OutputError: The weights predict no depth.
    """
    given = result.given_depth(rows) if layer == "given_depth" else result.X[rows]
    if given is None:
        raise OutputError(no_depth(result.info.name))
    return given


def no_depth(weights: str) -> str:
    """What to say where nothing can be given depth."""
    return f"{weights} predicts no depth, so that there are no maps of given_depth; draw the values."


def draw_values(
    result: Result,
    values: np.ndarray,
    title: str,
    subtitle: str,
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    span: tuple[float, float] | None = None,
    side: int = 1200,
) -> bytes:
    """The same of any values of the tiles, shape (n,), NaN of those that are left out.

    Tiles are drawn in true size or, where they overlap, as squares that touch, each the size of their distance.
    ``label`` says what the values are; ``limits`` are those of the colours in training tissue; without them ``span`` is
    what the colours span, or the values where that is not given.
    """
    figure, known = _SlideFigure(slide_of(result), title, subtitle, side=side, faded=True), np.isfinite(values)
    figure.add_tiles(result.obsm["spatial"][known], values[known], label, limits, span)
    return figure.png()


def draw_scatter(predicted: np.ndarray, measured: np.ndarray, title: str, subtitle: str, units: str) -> bytes:
    """A PNG of what was measured against what is predicted, one dot a spot, both of shape (n,) and on one scale."""
    canvas = Canvas(_LEAST_WIDTH, _LEAST_WIDTH, dpi=_DPI, unit=1 / _DPI)
    low, high = min(predicted.min(), measured.min()), max(predicted.max(), measured.max())
    edge = 0.03 * max(high - low, 0.01)
    axes = canvas.box(80, 70, _LEAST_WIDTH - 80 - _MARGIN, _LEAST_WIDTH - 70 - _TOP)
    axes.axline((low, low), slope=1, color="#bbbbbb", linewidth=1)
    axes.scatter(predicted, measured, s=9, color="#31688e", alpha=0.6, linewidths=0)
    axes.set(xlim=(low - edge, high + edge), ylim=(low - edge, high + edge))
    for axis, label in ((axes.xaxis, f"predicted, {units}"), (axes.yaxis, "measured, likewise")):
        axis.set_major_locator(matplotlib("ticker").MaxNLocator(5))
        axis.set_label_text(label, size=10)
    axes.tick_params(labelsize=9, length=3, color=GREY)
    canvas.text(_MARGIN, _LEAST_WIDTH - 30, title, size=16, weight="bold")
    canvas.text(_MARGIN, _LEAST_WIDTH - 58, subtitle, size=11)
    return canvas.png()


def draw_mask(result: Result, *, side: int = 1200) -> bytes:
    """A PNG, as of `draw_gene`, of the slide with the outline of its tissue, if it was looked for."""
    slide = slide_of(result)
    share = "not looked for" if slide.mask is None else f"{slide.mask.mean():.0%} of the slide"
    figure = _SlideFigure(slide, "Tissue", f"{share}; {len(result)} tiles", side=side)
    if slide.mask is not None and slide.mask.any():
        figure.add_outline(slide.mask)
    return figure.png()


def slide_of(result: Result) -> SlideContext:
    """The slide of a result.

    Raises:
        OutputError: It is of patches.
    """
    if result.slide is None:
        raise OutputError("Maps and reports are drawn of slides; these are patches.")
    return result.slide


def gene_title(result: Result, gene: str) -> str:
    """How well a gene is predicted."""
    shown = [(result.pcc(gene), "PCC {:.2f}"), (result.pcc(gene, given_depth=True), "{:.2f} given depth")]
    known = ", ".join(text.format(pcc) for pcc, text in shown if pcc is not None)
    tissue = result.info.tissue if 0 < len(result.info.tissue) <= _LONGEST_TISSUE else "held-out tissue"
    return f"significant on {tissue}: {result.significance(gene)}" + (f"; {known}" if known else "")


class _SlideFigure(Canvas):
    """A slide in pixels at full resolution, under a title of two lines and above a scale bar.

    It is laid out in pixels of the picture, so that the text fits beside a slide of any shape.
    """

    def __init__(self, slide: SlideContext, title: str, subtitle: str, *, side: int, faded: bool = False) -> None:
        self._slide = slide
        thumbnail = slide.thumbnail
        height, width = (n * slide.thumbnail_downsample for n in thumbnail.shape[:2])
        scale = min((side - 2 * _MARGIN) / width, (side - _TOP - _BOTTOM) / height)
        super().__init__(
            max(round(width * scale) + 2 * _MARGIN, _LEAST_WIDTH),
            round(height * scale) + _TOP + _BOTTOM,
            dpi=_DPI,
            unit=1 / _DPI,
        )
        self._axes = self.box((self.width - width * scale) / 2, _BOTTOM, width * scale, height * scale)
        if faded:
            thumbnail = 255 - (255 - thumbnail.astype(np.float32)) * SLIDE_OPACITY
        self._axes.imshow(thumbnail.astype(np.uint8), extent=(0, width, height, 0), interpolation="antialiased")
        self._axes.set(xlim=(0, width), ylim=(height, 0))
        self.text(_MARGIN, self.height - 30, title, size=16, weight="bold")
        self.text(_MARGIN, self.height - 58, subtitle, size=11)
        self._add_scale_bar(scale / slide.mpp, longest=min(width * scale, 200))

    def _add_scale_bar(self, px_per_um: float, *, longest: float) -> None:
        """A round length at the lower left."""
        length = round_length(longest / px_per_um)
        self.box(_MARGIN, 52, length * px_per_um, 6).set(facecolor="black")
        self.text(_MARGIN, 30, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm", size=10)

    def add_tiles(
        self,
        xy: np.ndarray,
        values: np.ndarray,
        label: str,
        limits: tuple[float, float] | None = None,
        span: tuple[float, float] | None = None,
    ) -> None:
        """Squares coloured by value, and a colour bar at the lower right, pointed where values lie beyond it."""
        half = square_px(self._slide) / 2
        corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
        # one square at many places: a square for each would be held for each
        places: dict[str, Any] = {"offsets": xy, "offset_transform": self._axes.transData}
        places["transform"] = matplotlib("transforms").AffineDeltaTransform(self._axes.transData)
        style: dict[str, Any] = {"cmap": COLOURS, "alpha": OPACITY, "linewidths": 0, "antialiaseds": False}
        tiles = matplotlib("collections").PolyCollection([corners], array=values, **places, **style)
        low, high = colour_span(*(limits or span or (float(values.min()), float(values.max()))))
        tiles.set_clim(low, high)
        self._axes.add_collection(tiles, autolim=False)
        box = self.box(self.width - _MARGIN - _BAR, 52, _BAR, 12)
        ticks = matplotlib("ticker").MaxNLocator(5)
        beyond = bool((values < low).any()), bool((values > high).any())
        extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
        bar = self.figure.colorbar(tiles, cax=box, orientation="horizontal", ticks=ticks, extend=extend)
        bar.outline.set_visible(False)
        box.tick_params(labelsize=9, length=3, color=GREY)
        right: dict[str, Any] = {"size": 9, "color": GREY, "horizontalalignment": "right"}
        self.text(self.width - _MARGIN, 14, label, **right)
        if limits is not None:
            count = int((values < low).sum() + (values > high).sum())
            what = f"colours of 98 % of the training tissue; {counted(count, 'tile')} beyond"
            self.text(self.width - _MARGIN, 68, what, **right)

    def add_outline(self, mask: np.ndarray) -> None:
        """A line around the tissue."""
        downsample = self._slide.thumbnail_downsample
        # closed where the tissue is cut by the edge of the slide
        padded = np.pad(mask, 1)
        x, y = ((np.arange(n) - 0.5) * downsample for n in padded.shape[::-1])
        for colour, width in (("white", 3.5), ("#0057b8", 1.8)):
            outline = self._axes.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=width)
            outline.set(clip_on=False, zorder=3)
