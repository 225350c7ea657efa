"""From cached crops to batches: which spots make a step, and how their crops are varied.

All randomness is a function of the seed and of the epoch, spot or step it is for. A run that is continued, or shared by
several processes, therefore sees what an uninterrupted one would.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

from tcgn_hub.data.crops import SpotCrops
from tcgn_hub.images.transforms import INPUT_PX
from tcgn_hub.training.recipe import Recipe

# haematoxylin, eosin and residual in optical density (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23, 291, 2001)
_HED = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Crops (m, 3, S, S), float32 in 0 to 255, or features (m, d); which target each belongs to, (m,); targets (b, genes),
NaN if unknown."""


class TrainingItems(Dataset, ABC):
    """What is seen of spots, and their targets; a slide with one bulk measurement is one item of many tiles.

    ``counts``: spots or tiles of each section; ``targets``: of each section, float32, shape (spots, genes); shape
    (1, genes) of a bulk measurement; ``recipe``: says how what is seen varies.
    """

    def __init__(self, counts: Sequence[int], targets: Sequence[np.ndarray], recipe: Recipe):
        self._counts, self._targets, self._recipe = counts, targets, recipe
        self._items = [(section, row) for section, t in enumerate(targets) for row in range(len(t))]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """What is seen, shape (k, ...), and the target (genes,) of an item in an epoch; the key is (epoch, item)."""
        epoch, item = key
        section, row = self._items[item]
        rng = np.random.default_rng((self._recipe.seed, epoch, item))
        rows, count = [row], self._counts[section]
        if len(self._targets[section]) != count:
            rows = list(rng.choice(count, min(self._recipe.tiles_per_slide, count), replace=False))
        return self._seen(section, rows, rng), torch.from_numpy(self._targets[section][row])

    @abstractmethod
    def _seen(self, section: int, rows: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
        """What is seen of some spots of a section, varied at random, shape (k, ...)."""


class TrainingSpots(TrainingItems):
    """Varied crops of spots, float32, shape (k, 3, S, S).

    ``crops``: of each section; the others as of `TrainingItems`.
    """

    def __init__(self, crops: Sequence[SpotCrops], targets: Sequence[np.ndarray], recipe: Recipe):
        super().__init__([len(c.pixels) for c in crops], targets, recipe)
        self._crops = crops
        # sections of one scale are resized on the device, at once
        self._resize = len({c.patch_px for c in crops}) > 1 or recipe.zoom > 1 or recipe.coarsest < INPUT_PX

    def _seen(self, section: int, rows: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
        crops = self._crops[section]
        pieces = [self._vary(np.asarray(crops.pixels[r]), crops.patch_px, rng) for r in rows]
        if self._resize:
            pieces = [coarsened(resized(piece, INPUT_PX), self._recipe.coarsest, rng) for piece in pieces]
        return torch.stack(pieces)

    def _vary(self, crop: np.ndarray, size: int, rng: np.random.Generator) -> torch.Tensor:
        """Move, enlarge, rotate by 90 degrees and flip a crop (3, S, S), and change its colours."""
        if self._recipe.zoom > 1:
            largest = crop.shape[-1]
            move, size = round(self._recipe.shift * size), round(size * self._recipe.zoom ** rng.uniform(-1, 1))
            size = min(size, largest)  # both are rounded
            top, left = ((largest - size) // 2 + rng.integers(-move, move + 1, 2)).clip(0, largest - size)
        else:
            top, left = rng.integers(0, crop.shape[-1] - size + 1, 2)
        turn, flip = int(rng.integers(0, 4)), rng.integers(0, 2)
        gain, shift = rng.uniform(-1, 1, (2, 3, 1, 1)).astype(np.float32) * self._recipe.color_jitter
        stain = rng.uniform(-1, 1, (2, 3)) * self._recipe.stain_jitter
        piece = np.rot90(crop[:, top : top + size, left : left + size], turn, (1, 2))
        piece = (piece[:, :, ::-1] if flip else piece).astype(np.float32)
        if self._recipe.stain_jitter:
            piece = _jitter_stains(piece, *stain)
        # half of the share in the offset: 12 of 255 where the gain is 10 %
        return torch.from_numpy(np.clip(piece * (1 + gain) + 120 * shift, 0, 255))


class TrainingFeatures(TrainingItems):
    """Features of spots by a frozen trunk, float32, shape (k, d), of a rotation or reflection drawn for each.

    ``features``: of each section, shape (views, spots, d); the others as of `TrainingItems`.
    """

    def __init__(self, features: Sequence[np.ndarray], targets: Sequence[np.ndarray], recipe: Recipe):
        super().__init__([of.shape[1] for of in features], targets, recipe)
        self._features = features

    def _seen(self, section: int, rows: Sequence[int], rng: np.random.Generator) -> torch.Tensor:
        features = self._features[section]
        return torch.from_numpy(features[rng.integers(0, len(features), len(rows)), rows])


def margin(recipe: Recipe) -> float:
    """What training crops need around a patch on each side, as a share of its side."""
    return recipe.shift + (recipe.zoom - 1) / 2


def resized(piece: torch.Tensor, side: int) -> torch.Tensor:
    """A square (3, S, S) of another side."""
    if piece.shape[-1] == side:
        return piece
    return F.interpolate(piece[None], size=(side, side), mode="bilinear", antialias=True)[0]


def coarsened(piece: torch.Tensor, coarsest: int, rng: np.random.Generator) -> torch.Tensor:
    """Every other square (3, 224, 224) as if it had been seen by fewer pixels along its side, ``coarsest`` or more."""
    if coarsest >= INPUT_PX or rng.random() < 0.5:
        return piece
    return resized(resized(piece, int(rng.integers(coarsest, INPUT_PX))), INPUT_PX)


def _jitter_stains(piece: np.ndarray, gain: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Change the amounts of the stains of a crop (3, S, S) (Tellez et al., IEEE Trans. Med. Imaging 37, 2126, 2018)."""
    basis = np.array(_HED)
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    density = -np.log((piece.reshape(3, -1) + 1) / 256)
    amounts = np.linalg.solve(basis.T, density)
    amounts = amounts * (1 + gain[:, None]) + shift[:, None]
    return (256 * np.exp(-(basis.T @ amounts)) - 1).reshape(piece.shape).astype(np.float32)


def steps_per_epoch(items: int, recipe: Recipe, *, processes: int = 1) -> int:
    """How many steps pass over all items once."""
    return len(_starts(items, recipe, processes))


def _starts(items: int, recipe: Recipe, processes: int) -> list[int]:
    return even_starts(items, recipe.batch_size, processes * recipe.accumulate)


def even_starts(items: int, batch_size: int, parts: int) -> list[int]:
    """Where each batch begins. The last one may be smaller, but every one of its parts has an item."""
    starts = list(range(0, items, batch_size))
    if len(starts) > 1 and items - starts[-1] < parts:
        starts.pop()
    return starts


def batches(
    spots: TrainingItems,
    recipe: Recipe,
    *,
    epoch: int,
    skip: int = 0,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[tuple[int, list[Batch]]]:
    """The steps of an epoch: the size of the whole batch, and the parts of it that this process computes."""
    order = np.random.default_rng((recipe.seed, epoch)).permutation(len(spots)).tolist()
    starts = _starts(len(order), recipe, processes)
    chunks = [order[i:j] for i, j in zip(starts, [*starts[1:], len(order)], strict=True)][skip:]
    parts = processes * recipe.accumulate
    keys = [
        [(epoch, item) for item in chunk[part::parts]] for chunk in chunks for part in range(rank, parts, processes)
    ]
    loader = iter(DataLoader(spots, batch_sampler=keys, num_workers=workers, collate_fn=_collate))
    for chunk in chunks:
        yield len(chunk), [next(loader) for _ in range(recipe.accumulate)]


def _collate(items: list[Any]) -> Batch:
    pieces, targets = zip(*items, strict=True)
    index = torch.repeat_interleave(torch.arange(len(pieces)), torch.tensor([len(p) for p in pieces]))
    return torch.cat(pieces), index, torch.stack(targets)
