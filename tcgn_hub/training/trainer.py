"""The `Trainer`: sections and a recipe in, a trained model out."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tcgn_hub.correlation import column_means, pearson
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.data.targets import training_targets
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.evaluation.measuring import predict_crops
from tcgn_hub.evaluation.splits import Split, spatial_block
from tcgn_hub.images.transforms import to_input
from tcgn_hub.prediction.predictor import Predictor
from tcgn_hub.training.batches import (
    Batch,
    TrainingFeatures,
    TrainingItems,
    TrainingSpots,
    batches,
    margin,
    steps_per_epoch,
)
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.features import KnownFeatures, PooledHead, TrunkFeatures, known_features, round_trunk, with_head
from tcgn_hub.training.loop import Loop
from tcgn_hub.training.losses import loss_of
from tcgn_hub.training.optimisation import freeze, make_optimizer, make_schedule
from tcgn_hub.training.probe import VIEWS, Probe, fit_probe, write_probe
from tcgn_hub.training.recipe import Recipe
from tcgn_hub.training.start import Start, begin_at, starting_model
from tcgn_hub.units import UNITS, mean_in_linear
from tcgn_hub.weights.info import WeightsInfo

_logger = logging.getLogger(__name__)

_PATCH_UM = 154.0  # of the default weights: the whole of a spot of 100 um, and what is around it
_LEAST_SPOTS = 4  # below which a correlation says nothing


class Trainer(Loop):
    """Trains a model on sections; see `tcgn_hub.finetune` for what is around it.

    Args:
        sections: Sections without spots that cannot be trained on, see `tcgn_hub.data.checks.check_sections`.
        recipe: How to train.
        panel: Genes to predict.
        split: What trains, and what is validated on.
        start: The model to train; that of the recipe if None.
        processes: The processes that share the work; this one alone if None.
        cache: Folder to keep crops, and features of a frozen trunk, in; in memory if None.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.

    Attributes:
        state: Everything that a run goes on from.
        crops: Of each section, by name.
        train_crops: Those that train.
        patch_um: Side of the patches in micrometres; None if they are cut by ``crop_px``.
        crop_px: The same in pixels of the image.
        probe: The linear head that was fitted in closed form, None if there is none.
        features: Of each section by name, by a frozen trunk, of each rotation or reflection that was computed, float32,
            shape (views, spots, d); none where the trunk is trained from the start.
        total: Steps of the whole run.

    Raises:
        SectionError: The scale of a section is not known but needed, or an image cannot be read.
        TrainingError: The recipe does not fit the data.
        WeightsError: The weights to start from cannot be had.
        OutputError: The cache cannot be written.
    """

    recipe: Recipe

    def __init__(
        self,
        sections: Sequence[Section],
        recipe: Recipe,
        *,
        panel: Sequence[str],
        split: Split,
        start: Start | None = None,
        processes: Processes | None = None,
        cache: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        super().__init__(recipe, processes, progress=progress)
        self.sections = {section.name: section for section in sections}
        self.panel, self.split = list(panel), split
        start = start or starting_model(recipe, panel)
        self.patch_um, self.crop_px = _patch_side(recipe, start.info, sections)
        self.crops = self._cut(cache)
        self._divide()
        self._prepare(start, cache)

    def _cut(self, cache: str | Path | None) -> dict[str, SpotCrops]:
        """Crops of all sections; a cache that several processes share is written by the first."""
        size: dict[str, Any] = {"patch_um": self.patch_um, "crop_px": self.crop_px, "margin": margin(self.recipe)}
        size["progress"] = self._shown
        crops = {}
        for turn in (True, False):
            if self.processes.first == turn:
                crops = {name: spot_crops(section, cache=cache, **size) for name, section in self.sections.items()}
            self.processes.wait()
        return crops

    def _divide(self) -> None:
        """Say which spots train, and which are validated on."""
        tables = {
            name: (self.crops[name], expression_targets(section, self.panel), np.arange(len(section.spots)))
            for name, section in self.sections.items()
        }
        train = {name: tables[name] for name in self.split.train}
        self._validation = {name: tables[name] for name in self.split.val}
        if self.recipe.patience and not self._validation:
            train, self._validation = self._block_aside(train)
        self._train = train
        measured = [targets for _, targets, _ in train.values()]
        items = sum(len(targets) for targets in measured)
        _check_batch(items, self.recipe, self.processes)
        self.train_crops = [crops for crops, _, _ in train.values()]
        counts = [panel_counts(self.sections[name].at(rows), self.panel) for name, (_, _, rows) in train.items()]
        self._targets = training_targets(
            measured, self.recipe.components, counts=counts, residuals=self.recipe.residuals
        )
        self._spots: TrainingItems = TrainingSpots(self.train_crops, self._targets.targets, self.recipe)
        self._per_epoch = steps_per_epoch(items, self.recipe, processes=self.processes.count)
        self.total = self.recipe.epochs * self._per_epoch
        self._cycle = self.total // self.recipe.cycles

    def _block_aside(self, train: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Without a section to validate on, that is a block at one end of the largest one."""
        divisible = {name: len(table[1]) for name, table in train.items() if not self.sections[name].bulk}
        if not divisible:
            raise TrainingError(
                "No slide was set aside to validate on, and one bulk measurement cannot be divided; add slides, or"
                " train without patience."
            )
        name = max(divisible, key=divisible.__getitem__)
        crops, targets, _ = train[name]
        block = spatial_block(self.sections[name].xy)
        rest, aside = ((SpotCrops(crops.pixels[p], crops.patch_px), targets[p], p) for p in (~block, block))
        return {**train, name: rest}, {name: aside}

    def _prepare(self, start: Start, cache: str | Path | None) -> None:
        recipe, processes = self.recipe, self.processes
        model = start.model
        if start.new_classifier:
            begin_at(model, torch.from_numpy(self._targets.mean))
        self._whole = model = processes.prepared(model.to(processes.device))
        self._frozen = freeze(model, recipe)
        if recipe.grad_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        self.features: dict[str, np.ndarray] = {}
        self.probe: Probe | None = None
        if recipe.tune in ("head", "probe", "probe+all"):
            self._see(cache)
        if recipe.tune in ("probe", "probe+all"):
            self.probe = self.probe_of(self.features)
            write_probe(model, self.probe)
            if processes.first:
                _logger.info("The head was fitted in closed form: %s.", self.probe)
        if recipe.tune == "head":
            seen = [self.features[name][:, rows] for name, (_, _, rows) in self._train.items()]
            self._spots = TrainingFeatures(seen, self._targets.targets, recipe)
        trained = PooledHead(model) if self._trunk_is_frozen else model
        optimizer = make_optimizer(trained, recipe)
        self._scale = torch.from_numpy(self._targets.scale.astype(np.float32)).to(processes.device)
        # a probe takes none
        self._begin(trained, optimizer, make_schedule(optimizer, recipe, max(self._cycle, 2)))

    @property
    def _trunk_is_frozen(self) -> bool:
        return self.recipe.tune in ("head", "probe")

    def _see(self, cache: str | Path | None) -> None:
        """Compute the features of all sections; of those that are only measured as they are."""
        if self._trunk_is_frozen:
            # what the head is trained on is what it will see of the weights that are stored
            round_trunk(self._whole)
        known = TrunkFeatures(self._whole, self.processes, cache=cache, progress=self._shown)
        views = min(8, self.recipe.epochs) if self.recipe.tune == "head" else VIEWS
        for name, crops in self.crops.items():
            if name in self._train or self._trunk_is_frozen:
                turns = range(views if name in self._train else 1)
                self.features[name] = np.stack([known.of(name, crops, view) for view in turns])

    def probe_of(self, features: Mapping[str, np.ndarray]) -> Probe:
        """Ridge regression of the training targets on features of the training sections, see `fit_probe`.

        Args:
            features: Of each section by name, shape (views, spots, d).
        """
        return fit_probe(
            [features[name][:, rows] for name, (_, _, rows) in self._train.items()],
            self._targets,
            [targets for _, targets, _ in self._train.values()],
            [self.sections[name].at(rows) for name, (_, _, rows) in self._train.items()],
        )

    def whole(self, kept: nn.Module) -> nn.Module:
        """The model to be stored, of what is trained of it."""
        return with_head(self._whole, kept) if isinstance(kept, PooledHead) else kept

    def items(self) -> int:
        """How many items an epoch passes over."""
        return len(self._spots)

    def batches(self, epoch: int, skip: int, workers: int) -> Iterator[tuple[int, list[Batch]]]:
        """The steps of an epoch but for the first ``skip``, see `Loop.batches`."""
        rank, count = self.processes.rank, self.processes.count
        # of features there is nothing to prepare
        workers = 0 if self._trunk_is_frozen else workers
        return batches(self._spots, self.recipe, epoch=epoch, skip=skip, rank=rank, processes=count, workers=workers)

    def loss(self, part: Batch) -> tuple[torch.Tensor, int]:
        """Mean of the loss over the items of a part of a batch, and how many there are."""
        seen, index, targets = (tensor.to(self.processes.device) for tensor in part)
        with self.autocast():
            predicted = self._network(seen if self._trunk_is_frozen else to_input(seen))
        return loss_of(predicted.float(), index, targets, self._scale, pearson=self.recipe.pearson), len(targets)

    def validate(self) -> dict[str, float]:
        """How well the model that is kept predicts what was set aside; the processes share the work.

        Returns:
            ``val_pcc``, the median over genes of the correlation, of each gene the mean over sections, with the bulk
            slides as the spots of one section; or ``val_rmse`` where no section has spots enough for a correlation.
        """
        self.processes.align(self.state.kept)
        predictor = self.predictor(self.whole(self.state.kept))
        spots, slides = [], []
        for name, (crops, targets, _) in self._validation.items():
            predicted = self._predict(predictor, crops)
            if self.sections[name].bulk:
                slides.append((mean_in_linear(predicted)[None], targets))
            else:
                spots.append((predicted, targets))
        if slides:
            spots.append((np.concatenate([p for p, _ in slides]), np.concatenate([t for _, t in slides])))
        enough = [pearson(p, t) for p, t in spots if len(t) >= _LEAST_SPOTS]
        if enough:
            of_genes = column_means(np.array(enough), np.nan)
            return {"val_pcc": self.processes.of_first(float(np.nanmedian(of_genes)))}
        errors = np.concatenate([(p - t) ** 2 for p, t in spots])
        return {"val_rmse": self.processes.of_first(float(np.sqrt(np.nanmean(errors))))}

    @property
    def stopped(self) -> bool:
        """Whether so many epochs were not better that training ends."""
        best, patience = self.state.best, self.recipe.patience
        return bool(best and patience and best["stale"] >= patience)

    def predictor(self, model: Any, **known: Any) -> Predictor:
        """A model of this run, and what is known of it, to predict with."""
        features: dict[bytes, np.ndarray] = {}
        if self._trunk_is_frozen:
            for name, of in self.features.items():
                features |= known_features(self.crops[name], of[0])
        backend = KnownFeatures(model, features)
        return Predictor(backend, WeightsInfo("these weights", tuple(self.panel), UNITS, **known))

    def _predict(self, predictor: Predictor, crops: SpotCrops) -> np.ndarray:
        rank, count = self.processes.rank, self.processes.count
        predicted = np.zeros((len(crops.pixels), len(self.panel)))
        if rank < len(predicted):
            predicted[rank::count] = predict_crops(predictor, SpotCrops(crops.pixels[rank::count], crops.patch_px))
        return self.processes.sums(predicted)

    def measures(self) -> dict[str, float]:
        """What the epoch reached on what was set aside; the model of the best epoch is kept with it."""
        if not self._validation:
            return {}
        state, measures = self.state, self.validate()
        score = measures.get("val_pcc", -measures.get("val_rmse", math.nan))
        if math.isnan(score):
            score = -math.inf
        if state.best is None or score > state.best["score"]:
            model = {key: value.detach().cpu().clone() for key, value in state.kept.state_dict().items()}
            state.best = {"score": score, "epoch": len(state.history) + 1, "stale": 0, "model": model}
        else:
            state.best = {**state.best, "stale": state.best["stale"] + 1}
        return measures


def _check_batch(items: int, recipe: Recipe, processes: Processes) -> None:
    parts = processes.count * recipe.accumulate
    if recipe.batch_size < parts:
        raise TrainingError(f"A batch of {recipe.batch_size} cannot be divided into {parts} parts; enlarge it.")
    if items < max(2, parts):
        raise TrainingError(
            f"There {'is one spot' if items == 1 else f'are {items} spots'} to train on; at least {max(2, parts)}"
            " are needed."
        )
    if items < recipe.batch_size and recipe.epochs and processes.first:
        _logger.warning(
            "The batch of %d is larger than the %d training spots: every step sees all of them.",
            recipe.batch_size,
            items,
        )


def _patch_side(
    recipe: Recipe, known: WeightsInfo | None, sections: Sequence[Section]
) -> tuple[float | None, int | None]:
    """The side of a patch: in micrometres, or else in pixels of the image."""
    if recipe.crop_px:
        return None, recipe.crop_px
    unknown = [section.name for section in sections if section.mpp is None]
    if unknown:
        raise SectionError(
            f"The scale of section {unknown[0]} is not known; give the micrometres per pixel of its image, or the side"
            " of a patch in pixels (crop_px)."
        )
    of_weights = None if known is None or known.scope != "model" else known.patch_um
    return recipe.patch_um or of_weights or _PATCH_UM, None
