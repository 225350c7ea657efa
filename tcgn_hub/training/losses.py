"""What training makes small: the squared error, in units of each gene's spread, and a share of 1 - PCC."""

from __future__ import annotations

import math

import torch

_LN10 = math.log(10)


def bulk_mean(predicted: torch.Tensor, index: torch.Tensor, slides: int) -> torch.Tensor:
    """Mean over the tiles of each slide as `tcgn_hub.units.mean_in_linear` takes it, here with gradients.

    ``log10(1 + mean(10^p - 1))`` is ``log10(mean(10^p))``, of which the largest tile is taken out so that nothing
    overflows.

    ``predicted``: of each tile, in `tcgn_hub.units.UNITS`, shape (m, genes); ``index``: which slide each tile is of,
    shape (m,); ``slides``: how many slides there are; each has a tile. Returns shape (slides, genes).
    """
    rows = index[:, None].expand_as(predicted)
    largest = predicted.detach().new_full((slides, predicted.shape[1]), -math.inf)
    largest.scatter_reduce_(0, rows, predicted.detach(), "amax")
    scaled = ((predicted - largest[index]) * _LN10).exp()
    tiles = torch.bincount(index, minlength=slides)[:, None]
    return torch.zeros_like(largest).index_add(0, index, scaled).div(tiles).log() / _LN10 + largest


def loss_of(
    predicted: torch.Tensor, index: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, *, pearson: float = 0
) -> torch.Tensor:
    """Mean over the items of a part of a batch, all on one device.

    ``predicted``: of each crop, float32, shape (m, genes); ``index``: which item each crop is of, shape (m,);
    ``targets``: of each item, shape (b, genes); NaN where a gene was not measured; ``scale``: spread of each gene,
    shape (genes,); ``pearson``: weight of ``1 - PCC`` over the items, averaged over genes; there have to be three.
    """
    if len(index) != len(targets):
        predicted = bulk_mean(predicted, index, len(targets))
    known = ~targets.isnan()
    error = torch.where(known, (predicted - targets) / scale, 0)
    loss = (error.square().sum(1) / known.sum(1).clamp(min=1)).mean()
    if pearson and len(targets) > 2:
        p, t = (torch.where(known, x, 0) for x in (predicted, targets.nan_to_num()))
        count = known.sum(0).clamp(min=1)
        p, t = (torch.where(known, x - x.sum(0) / count, 0) for x in (p, t))
        pcc = (p * t).sum(0) / (p.square().sum(0) * t.square().sum(0) + 1e-8).sqrt()
        loss = loss + pearson * (1 - pcc.mean())
    return loss
