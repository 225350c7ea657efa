"""Which squares of a slide to predict, a grid over the tissue or spots of a file, and reading them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tcgn_hub.errors import ImageError
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.slides import MAX_PIXELS, Slide
from tcgn_hub.images.tissue import tissue_fraction, tissue_mask
from tcgn_hub.images.transforms import INPUT_PX

OVERVIEW_PX = 2000
"""Longest side of the overview that tissue is looked for on."""


@dataclass(frozen=True)
class Tiles:
    """Squares of a slide, n of them."""

    names: list[str]
    xy: np.ndarray  # centres as (x, y) in pixels at full resolution, float64, shape (n, 2)
    array_row: np.ndarray  # in the grid or array, int, shape (n,)
    array_col: np.ndarray
    tissue_share: np.ndarray | None = None  # of each, from 0 to 1, shape (n,); None where tissue was not looked for

    def __len__(self) -> int:
        return len(self.names)

    def at(self, keep: np.ndarray) -> Tiles:
        """Those of an index or a mask."""
        index = np.arange(len(self))[keep]
        share = None if self.tissue_share is None else self.tissue_share[index]
        return Tiles(
            [self.names[i] for i in index], self.xy[index], self.array_row[index], self.array_col[index], share
        )


class TileReader:
    """Tiles by index, for the processes of a DataLoader, however they are started: each opens the slide for itself.

    What is pickled is the path and how to read it. Only the pixels of a plain picture are shared, with processes that
    are forked; others decode it again. ``level`` is the level that is read, the nearest above what 224 px a tile ask
    for, and ``side`` the side of a tile in its pixels.
    """

    def __init__(self, slide: Slide, xy: np.ndarray, tile_px: float, *, max_pixels: int = MAX_PIXELS) -> None:
        self.path, self.series, self.xy, self.max_pixels = slide.path, slide.series, xy, max_pixels
        self.level = slide.level_for(tile_px / INPUT_PX)
        self.downsample = slide.downsamples[self.level]
        self.side = round(tile_px / self.downsample)
        # on a pixel of the level, between which OpenSlide would interpolate
        corners = np.round((xy - self.side * self.downsample / 2) / self.downsample) * self.downsample
        self._corners = np.round(corners).astype(int)
        self._slide: Slide | None = slide
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slide": None}

    def __len__(self) -> int:
        return len(self.xy)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray | None, str]:
        """The index, pixels (side, side, 3), and why there are none if they cannot be read."""
        if self._slide is None or (self._slide.reopens and self._process != os.getpid()):
            self._slide = open_slide(self.path, max_pixels=self.max_pixels, series=self.series)
            self._process = os.getpid()
        x, y = self._corners[index].tolist()
        try:
            return index, self._slide.read(x, y, self.side, self.side, level=self.level), ""
        except ImageError as err:
            return index, None, str(err)


def grid_tiles(size: tuple[int, int], *, side: float, stride: float) -> Tiles:
    """All squares of a regular grid that lie within a slide, centred on it.

    ``size``: (width, height) of the slide in pixels; ``side``: side of a square in pixels; ``stride``: distance of
    neighbouring centres in pixels.
    """
    if min(size) < side:
        raise ImageError(
            f"the slide is {size[0]} x {size[1]} px, smaller than a tile of {side:.0f} px; check its scale"
        )
    axes = []
    for length in size:
        count = int((length - side) // stride) + 1
        axes.append((length - (count - 1) * stride) / 2 + stride * np.arange(count))
    cols, rows = (np.arange(len(axis)) for axis in axes)
    row, col = (grid.ravel() for grid in np.meshgrid(rows, cols, indexing="ij"))
    xy = np.stack([axes[0][col], axes[1][row]], axis=1)
    return Tiles([f"{r}x{c}" for r, c in zip(row, col, strict=True)], xy, row, col)


def on_tissue(
    tiles: Tiles,
    overview: np.ndarray,
    downsample: float,
    *,
    mpp: float,
    side: float,
    min_tissue: float,
    lost: np.ndarray,
) -> tuple[Tiles, np.ndarray]:
    """Those tiles of a slide that show tissue.

    ``tiles``: tiles of the slide; ``overview``: the whole slide, uint8, shape (h, w, 3); ``downsample``:
    full-resolution pixels per pixel of the overview; ``mpp``: micrometres per pixel at full resolution; ``side``: side
    of a tile in full-resolution pixels; ``min_tissue``: least share of tissue in a tile; ``lost``: what is taken for
    tissue because the overview lacks it, bool, shape (h, w). Returns the tiles, none if there is no tissue, and where
    the tissue is, bool, shape (h, w).
    """
    mask = tissue_mask(overview, um_per_px=mpp * downsample)
    share = tissue_fraction(mask | lost, tiles.xy / downsample, side / downsample)
    return replace(tiles, tissue_share=share).at(share >= min_tissue), mask
