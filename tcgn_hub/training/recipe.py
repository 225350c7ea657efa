"""Everything that decides how a model is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tcgn_hub.errors import TrainingError

SCRATCH = "scratch"
TUNE = ("head", "last-stage", "all")
PRECISION = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        weights: What to start from: a tag of the manifest, such as 'tcgn_base.cmt_tiny' for the trunk of ImageNet,
            'hf-hub:organisation/name', a model directory, a file of parameters, or 'scratch'. None: the default tag.
        architecture: What to build from scratch; weights bring their own.
        tune: What is trained: 'head', 'last-stage' (with the final convolution and the head) or 'all'. The rest keeps
            its weights and the statistics of its normalisation.
        epochs: Passes over the training spots.
        cycles: How often the learning rate rises and falls; each cycle begins with the weights that the one before it
            would have kept (Loshchilov and Hutter, arXiv:1608.03983).
        batch_size: Spots per step, over all processes.
        accumulate: Parts that a batch is computed in, one after another, to need less memory.
        lr: Highest learning rate.
        warmup: Share of the steps of a cycle in which the rate rises, before it falls as a cosine.
        weight_decay: Decoupled weight decay of AdamW.
        layer_decay: Factor of the learning rate from each group of layers to the one below it; 1 for none.
        clip: Largest norm of the gradient.
        ema: Decay of the moving average of the weights, which is what is kept; 0 for none.
        components: Principal components that are kept of the training targets to remove noise; 0 keeps all.
        pearson: Weight of ``1 - PCC`` over the spots of a batch, averaged over genes, beside the squared error.
        shift: How far a training crop may move from the spot's centre, as a share of its side.
        color_jitter: Largest change of the colour channels, as a share.
        stain_jitter: Largest change of the amounts of haematoxylin, eosin and residual, as a share.
        drop_rate: Rate of dropout, in the graph branches and before the classifier.
        freeze_norm: Keep the statistics of batch normalisation, also where weights are trained.
        grad_checkpointing: Compute activations twice to need less memory.
        precision: Of the products: 'bfloat16', 'float16' or 'float32'.
        patience: Stop after so many epochs without a better median PCC on validation sections, set aside of the
            training patients, and keep the best epoch; None trains all epochs on everything. Where there are too few
            validation spots or bulk slides for a correlation, the error decides.
        tiles_per_slide: Tiles drawn per step of a slide with one bulk measurement, which the mean of their predicted
            counts, not of the logarithms, is compared to.
        patch_um: Side of the patch in micrometres; None: that of the patches of ``weights``.
        crop_px: Side of the patch in pixels of the image instead, for sections whose scale is not known.
        seed: Decides the start, the order, the augmentation and what is dropped. The same seed gives the same weights,
            bit for bit, on one device with one number of threads.
    """

    weights: str | None = None
    architecture: str = "tcgn_base"
    tune: str = "all"
    epochs: int = 14
    cycles: int = 1
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 2.5e-4
    warmup: float = 0.15
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip: float = 1.0
    ema: float = 0.98
    components: int = 20
    pearson: float = 0.0
    shift: float = 0.1
    color_jitter: float = 0.1
    stain_jitter: float = 0.0
    drop_rate: float = 0.1
    freeze_norm: bool = False
    grad_checkpointing: bool = False
    precision: str = "bfloat16"
    patience: int | None = None
    tiles_per_slide: int = 16
    patch_um: float | None = None
    crop_px: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            TrainingError: A value is out of its range.
        """
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise TrainingError(f"{name} is {value:g}, but has to be from {low:g} to {high:g}.")
        for name, choices in (("tune", TUNE), ("precision", PRECISION)):
            if getattr(self, name) not in choices:
                raise TrainingError(f"{name} is {getattr(self, name)!r}, but has to be one of {', '.join(choices)}.")
        if self.architecture != "tcgn_base" and self.weights != SCRATCH:
            raise TrainingError(f"An architecture, {self.architecture}, is built from scratch: say weights='scratch'.")
        if self.patch_um is not None and self.crop_px is not None:
            raise TrainingError("Give the side of a patch once: patch_um or crop_px.")
        if self.epochs % self.cycles:
            raise TrainingError(f"{self.epochs} epochs cannot be divided into {self.cycles} cycles.")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON and checkpoints."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


_MANY = 10**9
_RANGES = (
    ("epochs", 1, _MANY),
    ("cycles", 1, _MANY),
    ("batch_size", 1, _MANY),
    ("accumulate", 1, _MANY),
    ("lr", 1e-12, 1e3),
    ("warmup", 0, 1),
    ("weight_decay", 0, 1e3),
    ("layer_decay", 0.01, 1),
    ("clip", 1e-6, 1e9),
    ("ema", 0, 0.999999),
    ("components", 0, _MANY),
    ("pearson", 0, 1e6),
    ("shift", 0, 1),
    ("color_jitter", 0, 1),
    ("stain_jitter", 0, 1),
    ("drop_rate", 0, 0.9),
    ("patience", 1, _MANY),
    ("tiles_per_slide", 1, _MANY),
    ("patch_um", 1, 10_000),
    ("crop_px", 8, 10_000),
)
