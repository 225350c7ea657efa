"""Before a night is spent: which slides can be opened, how many tiles they have, and what time and room these take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.errors import TcgnError
from tcgn_hub.prediction.slides import plan_slide

if TYPE_CHECKING:
    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.weights.info import WeightsInfo

_TIMED = 3  # batches
_TABLES = 5  # of genes, see `Result.tables`
_FACTS = 1 << 20  # bytes of what is known of genes and run, and of HDF5 itself
_BESIDE = 32  # numbers of a tile in obs and obsm


@dataclass(frozen=True)
class Planned:
    """What is to come of a slide.

    Attributes:
        slide: Its path.
        tiles: How many are predicted.
        tissue: Share of the slide that is tissue; None where it is not looked for.
        mpp: Micrometres per pixel.
        scale_source: Where that is from.
        beside: Bytes of overview, mask and what is known of genes, which an .h5ad holds beside the tiles, at most.
        error: Why it cannot be predicted, in one sentence; empty if it can.
    """

    slide: str
    tiles: int = 0
    tissue: float | None = None
    mpp: float | None = None
    scale_source: str = ""
    beside: int = 0
    error: str = ""


def plan(paths: Sequence[str | Path], info: WeightsInfo, **options: Any) -> Iterator[Planned]:
    """Look at slides without predicting anything, by the options of `tcgn_hub.Predictor.slide`; as they are looked at.

    Needs no PyTorch.
    """
    for path in paths:
        try:
            found = plan_slide(path, info, **options)
        except TcgnError as err:
            yield Planned(str(path), error=str(err))
            continue
        tissue = None if found.mask is None else float(found.mask.mean())
        beside = _FACTS + found.overview.nbytes + (0 if found.mask is None else found.mask.nbytes)
        yield Planned(str(path), len(found.tiles), tissue, found.scale.mpp, found.scale.source, beside)


def seconds_per_tile(predictor: Predictor, *, tta: int = 1, batch_size: int | None = None) -> float:
    """How long a tile takes here, of noise: the model alone, which is most of it on a CPU, not compiled."""
    size = batch_size or predictor.backend.batch_size
    noise = np.random.default_rng(0).integers(0, 256, (size, 224, 224, 3), np.uint8)
    predictor.run(noise, tta=tta)
    began = perf_counter()
    for _ in range(_TIMED):
        predictor.run(noise, tta=tta)
    return (perf_counter() - began) / (_TIMED * size)


def bytes_per_tile(genes: int, *, features: bool = False, tta: int = 1) -> int:
    """The most that a tile takes in an .h5ad, before compression: values, four layers of them or five, and features."""
    return 4 * (genes * (_TABLES + (tta > 1)) + 1280 * features + _BESIDE)
