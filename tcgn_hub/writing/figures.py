"""Pictures of a slide: a gene over its tiles, and where the tissue is."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.errors import PanelError
from tcgn_hub.extras import require
from tcgn_hub.files import write_bytes
from tcgn_hub.writing.frames import significance

if TYPE_CHECKING:
    from tcgn_hub.prediction.slides import SlidePrediction

__all__ = ["draw_gene", "draw_mask", "gene_map", "mask_figure"]

# pixels: room around the slide for the title, the scale bar and the colour bar, whatever the slide's shape
_DPI = 100
_MARGIN, _TOP, _BOTTOM = 20, 72, 84
_LEAST_WIDTH = 620
_BAR = 340
_GREY = "#444444"


def gene_map(prediction: SlidePrediction, gene: str, path: str | Path) -> None:
    """Write `draw_gene` as a file.

    Raises:
        ExtraError: matplotlib is not installed.
        PanelError: The gene was not predicted.
        OutputError: The file cannot be written.
    """
    write_bytes(path, draw_gene(prediction, gene))


def mask_figure(prediction: SlidePrediction, path: str | Path) -> None:
    """Write `draw_mask` as a file.

    Raises:
        ExtraError: matplotlib is not installed.
        OutputError: The file cannot be written.
    """
    write_bytes(path, draw_mask(prediction))


def draw_gene(prediction: SlidePrediction, gene: str, *, side: int = 1200) -> bytes:
    """A PNG of the faded slide with its tiles in true size, coloured by the predicted value.

    Args:
        prediction: The slide.
        gene: Its symbol.
        side: Longest side of the picture in pixels; the text needs a width of 620 all the same.

    Raises:
        ExtraError: matplotlib is not installed.
        PanelError: The gene was not predicted.
    """
    if gene not in prediction.genes:
        raise PanelError(f"{gene} is not among the genes predicted for {prediction.slide}.")
    pcc = prediction.pcc(gene)
    title = f"significant on held-out tissue: {significance(prediction, gene)}"
    if pcc is not None:
        title += f" (PCC {pcc:.2f})"
    figure = _Figure(prediction, gene, title, side=side, faded=True)
    figure.add_tiles(prediction.values[:, prediction.genes.index(gene)])
    return figure.png()


def draw_mask(prediction: SlidePrediction, *, side: int = 1200) -> bytes:
    """A PNG of the slide with the outline of its tissue, if it was looked for.

    Args:
        prediction: The slide.
        side: Longest side of the picture in pixels; the text needs a width of 620 all the same.

    Raises:
        ExtraError: matplotlib is not installed.
    """
    mask = prediction.mask
    share = "not looked for" if mask is None else f"{mask.mean():.0%} of the slide"
    figure = _Figure(prediction, "Tissue", f"{share}; {len(prediction.tiles)} tiles", side=side)
    if mask is not None and mask.any():
        figure.add_outline(mask)
    return figure.png()


class _Figure:
    """A slide in pixels at full resolution, under a title of two lines and above a scale bar.

    It is laid out in pixels of the picture, so that the text fits beside a slide of any shape.
    """

    def __init__(self, prediction: SlidePrediction, title: str, subtitle: str, *, side: int, faded: bool = False):
        to = "draw figures"
        figure = require("matplotlib.figure", extra="plot", to=to)
        self._canvas_of = require("matplotlib.backends.backend_agg", extra="plot", to=to).FigureCanvasAgg
        self._collections = require("matplotlib.collections", extra="plot", to=to)
        self._ticker = require("matplotlib.ticker", extra="plot", to=to)
        self._prediction = prediction

        thumbnail = prediction.thumbnail
        height, width = (n * prediction.thumbnail_downsample for n in thumbnail.shape[:2])
        scale = min((side - 2 * _MARGIN) / width, (side - _TOP - _BOTTOM) / height)
        self._width = max(round(width * scale) + 2 * _MARGIN, _LEAST_WIDTH)
        self._height = round(height * scale) + _TOP + _BOTTOM
        self._figure = figure.Figure(figsize=(self._width / _DPI, self._height / _DPI), dpi=_DPI, facecolor="white")
        self._axes = self._box((self._width - width * scale) / 2, _BOTTOM, width * scale, height * scale)
        self._axes.set(xticks=[], yticks=[])
        for spine in self._axes.spines.values():
            spine.set(color="#bbbbbb", linewidth=0.8)
        if faded:
            thumbnail = 255 - (255 - thumbnail.astype(np.float32)) * 0.55
        self._axes.imshow(thumbnail.astype(np.uint8), extent=(0, width, height, 0), interpolation="antialiased")
        self._axes.set(xlim=(0, width), ylim=(height, 0))
        self._text(_MARGIN, self._height - 30, title, size=16, weight="bold")
        self._text(_MARGIN, self._height - 58, subtitle, size=11)
        self._add_scale_bar(scale / prediction.mpp, longest=min(width * scale, 200))

    def _box(self, left: float, bottom: float, width: float, height: float) -> Any:
        """Axes at a place given in pixels."""
        place = (left / self._width, bottom / self._height, width / self._width, height / self._height)
        return self._figure.add_axes(place)

    def _text(self, left: float, bottom: float, text: str, **style: Any) -> None:
        # a dollar sign in a name is no formula
        self._figure.text(left / self._width, bottom / self._height, text, parse_math=False, **style)

    def _add_scale_bar(self, px_per_um: float, *, longest: float) -> None:
        """A round length, 1, 2 or 5 times a power of ten, at the lower left."""
        power = 10.0 ** math.floor(math.log10(longest / px_per_um))
        length = max(step * power for step in (0.5, 1, 2, 5) if step * power * px_per_um <= longest)
        bar = self._box(_MARGIN, 52, length * px_per_um, 6)
        bar.set(xticks=[], yticks=[], facecolor="black")
        self._text(_MARGIN, 30, f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm", size=10)

    def add_tiles(self, values: np.ndarray) -> None:
        """Squares coloured by value, and a colour bar at the lower right."""
        half = self._prediction.tile_px / 2
        corners = np.array([(-half, -half), (half, -half), (half, half), (-half, half)])
        tiles = self._collections.PolyCollection(
            self._prediction.xy[:, None] + corners,
            array=values,
            cmap="viridis",
            alpha=0.8,
            linewidths=0,
            antialiaseds=False,
        )
        low, high = float(values.min()), float(values.max())
        if high - low < 1e-6:
            low, high = low - 0.01, high + 0.01
        tiles.set_clim(low, high)
        self._axes.add_collection(tiles, autolim=False)
        box = self._box(self._width - _MARGIN - _BAR, 52, _BAR, 12)
        bar = self._figure.colorbar(tiles, cax=box, orientation="horizontal", ticks=self._ticker.MaxNLocator(5))
        bar.outline.set_visible(False)
        box.tick_params(labelsize=9, length=3, color=_GREY)
        right = self._width - _MARGIN
        self._text(right, 14, self._prediction.units, size=9, color=_GREY, horizontalalignment="right")

    def add_outline(self, mask: np.ndarray) -> None:
        """A line around the tissue."""
        downsample = self._prediction.thumbnail_downsample
        # closed where the tissue is cut by the edge of the slide
        padded = np.pad(mask, 1)
        x, y = ((np.arange(n) - 0.5) * downsample for n in padded.shape[::-1])
        for colour, width in (("white", 3.5), ("#0057b8", 1.8)):
            outline = self._axes.contour(x, y, padded, levels=[0.5], colors=colour, linewidths=width)
            outline.set(clip_on=False, zorder=3)

    def png(self) -> bytes:
        """The picture as the bytes of a file."""
        content = io.BytesIO()
        self._canvas_of(self._figure).print_png(content)
        return content.getvalue()
