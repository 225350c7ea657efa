"""Everything that decides how a model is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tcgn_hub.errors import TrainingError
from tcgn_hub.text import option

SCRATCH = "scratch"
TUNE = ("head", "last-stage", "all", "probe", "probe+all")
PRECISION = ("bfloat16", "float16", "float32")
_MANY = 10**9
_OF_CROPS = ("color_jitter", "coarsest", "shift", "stain_jitter", "zoom")
_OF_STEPS = (
    *("accumulate", "clip", "cycles", "drop_path", "drop_rate", "ema", "freeze_norm", "grad_checkpointing"),
    *("layer_decay", "lr", "norm_momentum", "pearson", "warmup", "weight_decay"),
)
_IDLE = {"head": _OF_CROPS, "probe": _OF_CROPS + _OF_STEPS}
"""What says nothing where features are computed once, and where there are no steps."""


def _within(default: Any, low: float, high: float = _MANY) -> Any:
    return field(default=default, metadata={"range": (low, high)})


def _by_tune(usual: Any, gentle: Any, low: float, high: float = _MANY) -> Any:
    """A value whose default is another one where training goes on from a probe."""
    return field(default=None, metadata={"range": (low, high), "usual": usual, "probe+all": gentle})


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How an optimiser is run.

    Attributes:
        epochs: Passes over the training items.
        cycles: How often the learning rate rises and falls; each cycle begins with the weights that the one before it
            would have kept (Loshchilov and Hutter, arXiv:1608.03983).
        batch_size: Items per step, over all processes.
        accumulate: Parts that a batch is computed in, one after another, to need less memory.
        lr: Highest learning rate.
        warmup: Share of the steps of a cycle in which the rate rises, before it falls as a cosine.
        weight_decay: Decoupled weight decay of AdamW.
        layer_decay: Factor of the learning rate from each group of layers to the one below it; 1 for none.
        clip: Largest norm of the gradient.
        ema: Decay of the moving average of the weights, which is what is kept; 0 for none.
        color_jitter: Largest change of the colour channels, as a share.
        coarsest: Pixels along the side that a training picture is seen by at the least; every other one is made as
            coarse as that at random, so that what is learned holds for images of less resolution; 224 for none.
        drop_rate: Rate of dropout, in the graph branches and before the classifier.
        grad_checkpointing: Compute activations twice to need less memory.
        precision: Of the products: 'bfloat16', 'float16' or 'float32'.
        seed: Decides the start, the order, the augmentation and what is dropped. The same seed gives the same weights,
            bit for bit, on one device with one number of threads.
    """

    epochs: int = _within(14, 1)
    cycles: int = _within(1, 1)
    batch_size: int = _within(32, 1)
    accumulate: int = _within(1, 1)
    lr: float = _within(2.5e-4, 1e-12, 1e3)
    warmup: float = _within(0.15, 0, 1)
    weight_decay: float = _within(0.05, 0, 1e3)
    layer_decay: float = _within(1.0, 0.01, 1)
    clip: float = _within(1.0, 1e-6, 1e9)
    ema: float = _within(0.98, 0, 0.999999)
    color_jitter: float = _within(0.1, 0, 1)
    coarsest: int = _within(224, 16, 224)
    drop_rate: float = _within(0.1, 0, 0.9)
    grad_checkpointing: bool = False
    precision: str = "bfloat16"
    seed: int = _within(0, 0)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            TrainingError: A value is out of its range.
        """
        for f in fields(self):
            (low, high), value = f.metadata.get("range", (None, None)), getattr(self, f.name)
            if low is not None and value is not None and not low <= value <= high:
                raise TrainingError(f"{option(f.name)} is {value:g}, but has to be from {low:g} to {high:g}.")
        one_of(self, "precision", PRECISION)
        if self.epochs % self.cycles:
            raise TrainingError(f"{self.epochs} epochs cannot be divided into {self.cycles} cycles.")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON and checkpoints."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def one_of(steps: Steps, name: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of those there are."""
    if getattr(steps, name) not in choices:
        found = f"{option(name)} is {getattr(steps, name)!r}"
        raise TrainingError(f"{found}, but has to be one of {', '.join(choices)}.")


@dataclass(frozen=True, kw_only=True)
class Recipe(Steps):
    """How to train on spots; beside these, what `Steps` has.

    Attributes:
        weights: What to start from: a tag of the manifest, such as 'tcgn_base.cmt_tiny' for the trunk of ImageNet,
            'hf-hub:organisation/name', a model directory, a file of parameters, or 'scratch'. None: the default tag.
        architecture: What to build from scratch; weights bring their own.
        tune: What is trained: 'head', 'last-stage' (with the final convolution and the head) or 'all'. The rest keeps
            its weights and the statistics of its normalisation. Of 'head' the features of the trunk are computed once:
            its patches are rotated and reflected, but not moved and not changed in colour. 'probe' is a linear head in
            closed form: ridge regression, with a penalty chosen by leaving one training section out, and no epochs;
            'probe+all' goes on from there with all weights, gently.
        components: Principal components that are kept of the training targets to remove noise; 0 keeps all.
        residuals: How much Pearson residuals of the counts, which do not go with a spot's depth as the targets do, say
            in what the components are; 1 as much as the targets themselves.
        pearson: Weight of ``1 - PCC`` over the spots of a batch, averaged over genes, beside the squared error.
        shift: How far a training crop may move from the spot's centre, as a share of its side.
        zoom: Largest factor by which a training crop shows more, or less, tissue than a patch; 1 for none.
        stain_jitter: Largest change of the amounts of haematoxylin, eosin and residual, as a share.
        drop_path: Rate of dropping a residual branch of the trunk's last block, rising from 0 at its first.
        norm_momentum: Weight of a batch in the statistics of batch normalisation.
        freeze_norm: Keep the statistics of batch normalisation, also where weights are trained.
        patience: Stop after so many epochs without a better median PCC on validation sections, set aside of the
            training patients, and keep the best epoch; None trains all epochs on everything. Where there are too few
            validation spots or bulk slides for a correlation, the error decides.
        tiles_per_slide: Tiles drawn per step of a slide with one bulk measurement, which the mean of their predicted
            counts, not of the logarithms, is compared to.
        patch_um: Side of the patch in micrometres; None: that of the patches of ``weights``.
        crop_px: Side of the patch in pixels of the image instead, for sections whose scale is not known.
    """

    weights: str | None = None
    architecture: str = "tcgn_base"
    tune: str = "all"
    components: int = _within(20, 0)
    residuals: float = _within(0.0, 0, 1e3)
    pearson: float = _within(0.0, 0, 1e6)
    shift: float = _within(0.1, 0, 1)
    zoom: float = _within(1.0, 1, 4)
    stain_jitter: float = _within(0.0, 0, 1)
    epochs: int = _by_tune(14, 3, 0)
    lr: float = _by_tune(2.5e-4, 1e-4, 1e-12, 1e3)
    ema: float = _by_tune(0.98, 0.0, 0, 0.999999)
    drop_rate: float = _by_tune(0.1, 0.0, 0, 0.9)
    drop_path: float = _by_tune(0.0, 0.1, 0, 0.9)
    norm_momentum: float = _by_tune(0.1, 0.02, 0, 1)
    freeze_norm: bool = False
    patience: int | None = _within(None, 1)
    tiles_per_slide: int = _within(16, 1)
    patch_um: float | None = _within(None, 1, 10_000)
    crop_px: int | None = _within(None, 8, 10_000)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            TrainingError: A value is out of its range, or two contradict each other.
        """
        for f in fields(self):
            if "usual" in f.metadata and getattr(self, f.name) is None:
                value = 0 if (f.name, self.tune) == ("epochs", "probe") else f.metadata.get(self.tune)
                object.__setattr__(self, f.name, f.metadata["usual"] if value is None else value)
        super().__post_init__()
        one_of(self, "tune", TUNE)
        _from_scratch(self, "weights")
        for f in fields(self):
            usual = f.metadata.get("usual", f.default)
            if f.name in _IDLE.get(self.tune, ()) and getattr(self, f.name) != usual:
                tune = option("tune", self.tune)
                raise TrainingError(f"{option(f.name)} would do nothing with {tune}; leave it out.")
        if self.tune == "probe" and (self.epochs or self.patience):
            given = option("epochs" if self.epochs else "patience")
            goes_on = option("tune", "probe+all")
            raise TrainingError(f"A probe has no epochs: leave {given} out, or say {goes_on} to go on from it.")
        if self.tune != "probe" and not self.epochs:
            raise TrainingError(f"{option('epochs')} is 0, but has to be 1 at least.")
        if self.residuals and not self.components:
            raise TrainingError(f"{option('residuals')} says what components are, but {option('components')} is 0.")
        if self.patch_um is not None and self.crop_px is not None:
            raise TrainingError(f"Give the side of a patch once: {option('patch_um')} or {option('crop_px')}.")


@dataclass(frozen=True, kw_only=True)
class Distillation(Steps):
    """How to distil frozen networks into a backbone; beside these, what `Steps` has.

    Attributes:
        start: What to start from: 'scratch', or what `Recipe.weights` may be.
        architecture: What to build from scratch; weights bring their own.
        crops: Squares of tissue that are drawn, as many of each image.
        smallest_um: Side of the smallest square in micrometres.
        largest_um: Side of the largest.
    """

    epochs: int = _within(8, 1)
    lr: float = _within(1e-3, 1e-12, 1e3)
    warmup: float = _within(0.1, 0, 1)
    ema: float = _within(0.0, 0, 0.999999)
    drop_rate: float = _within(0.0, 0, 0.9)
    start: str = SCRATCH
    architecture: str = "tcgn_base"
    crops: int = _within(5000, 2)
    smallest_um: float = _within(77.0, 1, 10_000)
    largest_um: float = _within(300.0, 1, 10_000)
    coarsest: int = _within(140, 16, 224)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            TrainingError: A value is out of its range, or two contradict each other.
        """
        super().__post_init__()
        _from_scratch(self, "start")
        if self.smallest_um > self.largest_um:
            raise TrainingError(f"{option('smallest_um')} is larger than {option('largest_um')}.")
        if self.crops < self.batch_size:
            raise TrainingError(f"{option('crops')} is {self.crops}, less than a batch of {self.batch_size}.")


def _from_scratch(steps: Recipe | Distillation, name: str) -> None:
    """Refuse an architecture where weights, which are the value of a field, bring their own."""
    if steps.architecture != "tcgn_base" and getattr(steps, name) != SCRATCH:
        scratch = option(name, SCRATCH)
        raise TrainingError(f"An architecture, {steps.architecture}, is built from scratch: say {scratch}.")
