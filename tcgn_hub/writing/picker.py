"""Every gene of a slide for a page that draws its map itself: values of one byte, and what is said of each gene."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from tcgn_hub.result import Result
from tcgn_hub.text import counted, printable
from tcgn_hub.writing.canvas import matplotlib, round_length
from tcgn_hub.writing.figures import (
    COLOURS,
    OPACITY,
    SLIDE_OPACITY,
    colour_span,
    gene_limits,
    gene_title,
    layer_values,
    slide_of,
    square_px,
)
from tcgn_hub.writing.tables import rows_of

_MOST_BYTES = 6_000_000  # of all tiles of a page, which are 8 MB of its text
_LEVELS = 255  # of a value, above the lowest
_BAR = 0.2  # of the width of the slide, at most


def picker(result: Result, genes: Sequence[str], *, layer: str = "value") -> dict[str, Any]:
    """What ``picker.html.jinja`` draws any of these genes from, as JSON can hold it.

    Where tiles and genes are more than 6 MB, tiles are joined to squares of the least whole number of tiles a side that
    are not: ``joined`` says to what, and values are then means over the tiles of a square. ``layer``: see
    `tcgn_hub.writing.figures.draw_gene`; arrays are little-endian and in base 64.
    """
    slide, place = slide_of(result), {gene: i for i, gene in enumerate(result.genes)}
    facts = {key: values for key, values in result.obs.items() if values.dtype.kind == "f"}
    square, side, times = _squares(result, len(genes) + 4 * len(facts))
    sizes = np.bincount(square)
    centres = np.stack([_means(axis, square, sizes) for axis in result.obsm["spatial"].T.astype(np.float64)], axis=1)
    if times > 1:
        corner = result.obsm["spatial"].min(axis=0) - square_px(slide) / 2
        centres = corner + (np.floor((centres - corner) / side) + 0.5) * side
    limits = gene_limits(result, genes, layer)
    values, low, high, beyond = _gathered(result, [place[gene] for gene in genes], layer, square, limits)
    values /= sizes[:, None]
    spans = [colour_span(*(known or ends)) for known, ends in zip(limits, zip(low, high, strict=True), strict=True)]
    first, last = values.min(axis=0), values.max(axis=0)
    step = np.where(last > first, (last - first) / _LEVELS, 1)
    levels = np.rint((values - first) / step).astype(np.uint8).T
    longest = round_length(_BAR * slide.size[0] * slide.mpp)
    return {
        "genes": list(genes),
        "ids": [result.var["gene_ids"][place[gene]] for gene in genes],
        "said": [gene_title(result, gene) for gene in genes],
        "dull": [int(result.significance(gene) == "no") for gene in genes],
        "low": [_short(span[0]) for span in spans],
        "high": [_short(span[1]) for span in spans],
        "below": [int(count) for count in beyond[0]],
        "above": [int(count) for count in beyond[1]],
        "first": [_short(value) for value in first],
        "step": [_short(value) for value in step],
        "levels": [_packed(of_gene) for of_gene in levels],
        "of_training": [int(known is not None) for known in limits],
        "names": _names(result, square, sizes),
        "centres": _packed(centres.T.astype("<f4")),
        "facts": {key: _packed(_means(of, square, sizes).astype("<f4")) for key, of in facts.items()},
        "side": side,
        "size": list(slide.size),
        "units": ("given depth, " if layer == "given_depth" else "") + result.units,
        "joined": f"squares of {times} x {times} tiles, {side * slide.mpp:.4g} µm" if times > 1 else "",
        "bar": {
            "share": longest / (slide.size[0] * slide.mpp),
            "text": f"{longest / 1000:g} mm" if longest >= 1000 else f"{longest:g} µm",
        },
        "colours": _packed(_colours()),
        "opacity": OPACITY,
        "slide_opacity": SLIDE_OPACITY,
    }


def _squares(result: Result, bytes_each: int) -> tuple[np.ndarray, float, int]:
    """The square of each tile, int, shape (n,); the side of squares in pixels, and in tiles, 1 if not joined."""
    spatial, pitch, times = result.obsm["spatial"], square_px(slide_of(result)), 1
    named = sum(len(printable(name)) for name in result.names) / max(len(result), 1)
    each = bytes_each + 8 + named
    square = np.arange(len(result))
    while (square.max(initial=-1) + 1) * each > _MOST_BYTES:
        times += 1
        cells = ((spatial - spatial.min(axis=0) + pitch / 2) // (times * pitch)).astype(np.int64)
        square = np.unique(cells[:, 1] * (cells[:, 0].max() + 1) + cells[:, 0], return_inverse=True)[1].reshape(-1)
    return square, times * pitch, times


def _gathered(
    result: Result, columns: list[int], layer: str, square: np.ndarray, limits: list[tuple[float, float] | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sums of genes over squares, float64, shape (squares, genes); of the tiles the lowest and highest values, each of
    shape (genes,), and how many are below and above the limits of the colours, int, shape (2, genes).
    """
    total = np.zeros((square.max(initial=-1) + 1, len(columns)))
    low, high = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
    ends = np.array([known or (-np.inf, np.inf) for known in limits]).reshape(-1, 2).T
    beyond = np.zeros((2, len(columns)), np.int64)
    for rows in rows_of(result):
        values = layer_values(result, layer, rows)[:, columns]
        order = np.argsort(square[rows], kind="stable")
        own, starts = np.unique(square[rows][order], return_index=True)
        total[own] += np.add.reduceat(values[order], starts, axis=0, dtype=np.float64)
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        beyond += [(values < ends[0]).sum(axis=0), (values > ends[1]).sum(axis=0)]
    return total, low, high, beyond


def _means(values: np.ndarray, square: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.bincount(square, weights=values) / sizes


def _colours() -> np.ndarray:
    """From the lowest to the highest, uint8, shape (256, 3)."""
    return matplotlib("cm").ScalarMappable(cmap=COLOURS).to_rgba(np.arange(256), bytes=True)[:, :3]


def _names(result: Result, square: np.ndarray, sizes: np.ndarray) -> list[str]:
    """What each square is called: by its first tile, and how many others there are."""
    first = np.unique(square, return_index=True)[1]
    names = [printable(result.obs["name"][i]) for i in first.tolist()]
    return [
        name if size == 1 else f"{name} and {counted(size - 1, 'other tile')}"
        for name, size in zip(names, sizes.tolist(), strict=True)
    ]


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _short(number: float) -> float:
    return float(f"{number:.6g}")
