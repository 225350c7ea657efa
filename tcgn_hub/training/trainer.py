"""The `Trainer`: sections and a recipe in, a trained model out; and the `TrainState` that is all a run goes on from."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from tcgn_hub.correlation import column_means, pearson
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.sections import Section, expression_targets
from tcgn_hub.data.targets import training_targets
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.evaluation.measuring import predict_crops
from tcgn_hub.evaluation.splits import Split, spatial_block
from tcgn_hub.files import make_folder
from tcgn_hub.images.transforms import to_input
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.prediction.predictor import Predictor
from tcgn_hub.progress import Progress
from tcgn_hub.text import option
from tcgn_hub.training.batches import Batch, TrainingSpots, batches, steps_per_epoch
from tcgn_hub.training.checkpoints import load_checkpoint, save_checkpoint
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.fingerprint import refuse_another
from tcgn_hub.training.losses import loss_of
from tcgn_hub.training.optimisation import freeze, make_optimizer, make_schedule
from tcgn_hub.training.recipe import Recipe
from tcgn_hub.training.start import Start, begin_at, starting_model
from tcgn_hub.units import UNITS, mean_in_linear
from tcgn_hub.weights.info import WeightsInfo

if TYPE_CHECKING:
    from torch.amp import GradScaler

_logger = logging.getLogger(__name__)

_PATCH_UM = 154.0  # of the default weights: the whole of a spot of 100 um, and what is around it
_LEAST_SPOTS = 4  # below which a correlation says nothing


@dataclass
class TrainState:
    """Everything that a run goes on from."""

    model: nn.Module  # the model in training
    ema: ModelEmaV3 | None  # the moving average of its weights, None for none
    optimizer: torch.optim.Optimizer  # the optimiser
    scaler: GradScaler  # of the loss, for float16
    step: int = 0  # steps done
    loss: float = 0.0  # sum of the loss over the items of the epoch so far
    history: list[dict[str, Any]] = field(default_factory=list)  # one row an epoch that has ended
    # ``score``, ``epoch``, ``model`` of the best epoch, and how many epochs since were ``stale``; None before
    # anything was validated
    best: dict[str, Any] | None = None

    _PARTS = ("optimizer", "scaler")
    _PLAIN = ("step", "loss", "history", "best")

    @property
    def kept(self) -> nn.Module:
        """The model that is validated and kept."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        """As tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            **{name: getattr(self, name).state_dict() for name in self._PARTS},
            **{name: getattr(self, name) for name in self._PLAIN},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        for name in self._PARTS:
            getattr(self, name).load_state_dict(state[name])
        for name in self._PLAIN:
            setattr(self, name, state[name])


class Trainer:
    """Trains a model on sections; see `tcgn_hub.finetune` for what is around it.

    Args:
        sections: Sections without spots that cannot be trained on, see `tcgn_hub.data.checks.check_sections`.
        recipe: How to train.
        panel: Genes to predict.
        split: What trains, and what is validated on.
        start: The model to train; that of the recipe if None.
        processes: The processes that share the work; this one alone if None.
        cache: Folder to keep crops in; in memory if None.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.

    Attributes:
        state: Everything that a run goes on from.
        crops: Of each section, by name.
        train_crops: Those that train.
        patch_um: Side of the patches in micrometres; None if they are cut by ``crop_px``.
        crop_px: The same in pixels of the image.
        total: Steps of the whole run.

    Raises:
        SectionError: The scale of a section is not known but needed, or an image cannot be read.
        TrainingError: The recipe does not fit the data.
        WeightsError: The weights to start from cannot be had.
        OutputError: The cache cannot be written.
    """

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
        self.sections = {section.name: section for section in sections}
        self.recipe, self.panel, self.split = recipe, list(panel), split
        self.processes = processes or Processes().__enter__()
        self._shown = progress and self.processes.first
        start = start or starting_model(recipe, panel)
        self.patch_um, self.crop_px = _patch_side(recipe, start.info, sections)
        self.crops = self._cut(cache)
        self._divide()
        self.state = self._begin(start)

    def _cut(self, cache: str | Path | None) -> dict[str, SpotCrops]:
        """Crops of all sections; a cache that several processes share is written by the first."""
        size: dict[str, Any] = {"patch_um": self.patch_um, "crop_px": self.crop_px, "margin": self.recipe.shift}
        size["progress"] = self._shown
        crops = {}
        for turn in (True, False):
            if self.processes.first == turn:
                crops = {name: spot_crops(section, cache=cache, **size) for name, section in self.sections.items()}
            self.processes.wait()
        return crops

    def _divide(self) -> None:
        """Say which spots train, and which are validated on."""
        tables = {n: (self.crops[n], expression_targets(self.sections[n], self.panel)) for n in self.sections}
        train = {name: tables[name] for name in self.split.train}
        self._validation = {name: tables[name] for name in self.split.val}
        if self.recipe.patience and not self._validation:
            train, self._validation = self._block_aside(train)
        items = sum(len(targets) for _, targets in train.values())
        _check_batch(items, self.recipe, self.processes)
        self.train_crops = [crops for crops, _ in train.values()]
        self._targets = training_targets([targets for _, targets in train.values()], self.recipe.components)
        self._spots = TrainingSpots(self.train_crops, self._targets.targets, self.recipe)
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
        crops, targets = train[name]
        block = spatial_block(self.sections[name].xy)
        rest, aside = ((SpotCrops(crops.pixels[p], crops.patch_px), targets[p]) for p in (~block, block))
        return {**train, name: rest}, {name: aside}

    def _begin(self, start: Start) -> TrainState:
        recipe, processes = self.recipe, self.processes
        model = start.model
        if start.new_classifier:
            begin_at(model, torch.from_numpy(self._targets.mean))
        model = processes.prepared(model.to(processes.device))
        self._frozen = freeze(model, recipe)
        if recipe.grad_checkpointing:
            model.set_grad_checkpointing(True)  # type: ignore[operator]
        ema = ModelEmaV3(model, decay=recipe.ema) if recipe.ema else None
        optimizer = make_optimizer(model, recipe)
        scaler = torch.amp.GradScaler(processes.kind, enabled=recipe.precision == "float16")
        self._schedule = make_schedule(optimizer, recipe, self._cycle)
        self._scale = torch.from_numpy(self._targets.scale.astype(np.float32)).to(processes.device)
        self._network = processes.shared(model)
        return TrainState(model, ema, optimizer, scaler)

    def fit(
        self,
        out: str | Path | None = None,
        *,
        fingerprint: Mapping[str, Any] | None = None,
        workers: int = 0,
        checkpoint_minutes: float = 10,
    ) -> nn.Module:
        """Run the steps that are left.

        Args:
            out: Folder that the state is saved in, and continued from if it holds one; nothing is saved if None.
            fingerprint: What the run follows from, saved with its state and compared before it is continued.
            workers: Processes that prepare crops.
            checkpoint_minutes: How often the state is saved. It is saved too at Ctrl-C and SIGTERM.

        Returns:
            The model that is kept, in eval mode, its weights rounded to float16 as they are stored.

        Raises:
            TrainingError: The state is that of another run, or damaged.
            OutputError: ``out`` cannot be made a folder.
            KeyboardInterrupt: At Ctrl-C or SIGTERM, after the state was saved.
        """
        state, processes, out = self.state, self.processes, None if out is None else Path(out)
        written = out if processes.first else None
        if out is not None:
            self._resume(out, fingerprint or {})
        if written is not None:
            make_folder(written)

        def save() -> None:
            if written is not None:
                save_checkpoint(written, {"fingerprint": dict(fingerprint or {}), **state.state_dict()})

        if processes.first and not state.step:
            _logger.info("Training takes %d steps of %d spots.", self.total, self.recipe.batch_size)
        bar = Progress(self.total, "step", name="training", done=state.step, shown=self._shown)
        saved = began = time.monotonic()
        with bar, _tensorboard(written) as board, processes.finishing_steps(), self._seeded(self.recipe.seed):
            while state.step < self.total and not self.stopped:
                self._start_epoch()
                for size, parts in self._batches(workers):
                    self.step(size, parts)
                    bar.update()
                    if state.step % self._per_epoch == 0:
                        self._end_epoch(time.monotonic() - began, board)
                        began = time.monotonic()
                    stop = processes.stop_asked()
                    if stop or time.monotonic() - saved >= 60 * checkpoint_minutes:
                        save()
                        saved = time.monotonic()
                    if stop:
                        saved_in = f"the state is saved in {out}; continue with {option('resume', True)}"
                        raise KeyboardInterrupt(saved_in if out else "")
        if state.best is not None:
            state.kept.load_state_dict(state.best["model"])
        processes.align(state.kept)
        return _rounded(state.kept.eval())

    def step(self, size: int, parts: Sequence[Batch]) -> None:
        """One step of the optimiser.

        Args:
            size: Items of the whole batch, over all processes.
            parts: The parts of it that this process computes, one after another.
        """
        state, recipe, processes = self.state, self.recipe, self.processes
        # dropout of a step follows from its number, so that a resumed run repeats it
        torch.manual_seed(_seed_of(recipe.seed, state.step, processes.rank))
        self._schedule.step_update(state.step % self._cycle)
        dtype = torch.float16 if recipe.precision == "float16" else torch.bfloat16
        done = 0.0
        for i, part in enumerate(parts, 1):
            crops, index, targets = (tensor.to(processes.device) for tensor in part)
            with processes.joined(self._network, last=i == len(parts)):
                with torch.autocast(processes.kind, dtype, enabled=recipe.precision != "float32"):
                    predicted = self._network(to_input(crops))
                loss = loss_of(predicted.float(), index, targets, self._scale, pearson=recipe.pearson)
                loss = loss * len(targets) / size
                # the mean over processes is taken of the gradients
                state.scaler.scale(loss * processes.count).backward()
            done += loss.item()
        state.loss += processes.sum(done) * size
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad()
        state.step += 1
        if state.ema is not None:
            state.ema.update(state.model, state.step)

    def validate(self) -> dict[str, float]:
        """How well the model that is kept predicts what was set aside; the processes share the work.

        Returns:
            ``val_pcc``, the median over genes of the correlation, of each gene the mean over sections, with the bulk
            slides as the spots of one section; or ``val_rmse`` where no section has spots enough for a correlation.
        """
        self.processes.align(self.state.kept)
        predictor = self.predictor(self.state.kept)
        spots, slides = [], []
        for name, (crops, targets) in self._validation.items():
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
        return Predictor(TorchBackend(model), WeightsInfo("these weights", tuple(self.panel), UNITS, **known))

    def _predict(self, predictor: Predictor, crops: SpotCrops) -> np.ndarray:
        rank, count = self.processes.rank, self.processes.count
        predicted = np.zeros((len(crops.pixels), len(self.panel)))
        if rank < len(predicted):
            predicted[rank::count] = predict_crops(predictor, SpotCrops(crops.pixels[rank::count], crops.patch_px))
        return self.processes.sums(predicted)

    def _resume(self, out: Path, fingerprint: Mapping[str, Any]) -> None:
        saved = load_checkpoint(out)
        if saved is not None:
            refuse_another(out, saved["fingerprint"], fingerprint)
            self.state.load_state_dict(saved)
            _logger.info("Continuing after step %d of %d.", self.state.step, self.total)

    def _batches(self, workers: int) -> Iterator[tuple[int, list[Batch]]]:
        epoch, skip = divmod(self.state.step, self._per_epoch)
        processes = self.processes
        return batches(
            self._spots,
            self.recipe,
            epoch=epoch,
            skip=skip,
            rank=processes.rank,
            processes=processes.count,
            workers=workers,
        )

    def _start_epoch(self) -> None:
        state = self.state
        if state.step and state.step % self._cycle == 0:
            state.model.load_state_dict(state.kept.state_dict())
            state.optimizer.state.clear()
        state.model.train()
        for module in self._frozen:
            module.eval()

    def _end_epoch(self, seconds: float, board: Any) -> None:
        state = self.state
        row: dict[str, Any] = {"epoch": len(state.history) + 1, "loss": state.loss / len(self._spots)}
        row["seconds"] = seconds
        state.loss = 0.0
        if self._validation:
            measures = self.validate()
            row |= measures
            score = measures.get("val_pcc", -measures.get("val_rmse", math.nan))
            if math.isnan(score):
                score = -math.inf
            if state.best is None or score > state.best["score"]:
                model = {key: value.detach().cpu().clone() for key, value in state.kept.state_dict().items()}
                state.best = {"score": score, "epoch": row["epoch"], "stale": 0, "model": model}
            else:
                state.best = {**state.best, "stale": state.best["stale"] + 1}
        state.history.append(row)
        if self.processes.first:
            told = ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch")
            _logger.info("Epoch %d of %d: %s.", row["epoch"], self.recipe.epochs, told)
        if board is not None:
            for key in row.keys() - {"epoch"}:
                board.add_scalar(key, row[key], row["epoch"])

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """While this lasts, random numbers follow from a seed; afterwards they are those of the caller again."""
        device = torch.device(self.processes.device)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _check_batch(items: int, recipe: Recipe, processes: Processes) -> None:
    parts = processes.count * recipe.accumulate
    if recipe.batch_size < parts:
        raise TrainingError(f"A batch of {recipe.batch_size} cannot be divided into {parts} parts; enlarge it.")
    if items < max(2, parts):
        raise TrainingError(
            f"There {'is one spot' if items == 1 else f'are {items} spots'} to train on; at least {max(2, parts)}"
            " are needed."
        )
    if items < recipe.batch_size and processes.first:
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
    of_weights = None if known is None or known.scope == "trunk" else known.patch_um
    return recipe.patch_um or of_weights or _PATCH_UM, None


def _rounded(model: nn.Module) -> nn.Module:
    """The model as it is stored: what is measured is what is kept."""
    if not fits_float16(model):
        _logger.warning("A parameter is too large for float16, so that the weights are kept in float32.")
        return model.float()
    return model.half().float()


def fits_float16(model: nn.Module) -> bool:
    """Whether no parameter or statistic of a model becomes infinite in float16."""
    large = torch.finfo(torch.float16).max
    return all(bool((v.abs() <= large).all()) for v in model.state_dict().values() if v.is_floating_point())


@contextlib.contextmanager
def _tensorboard(out: Path | None) -> Iterator[Any]:
    """A writer for TensorBoard where that is installed."""
    with contextlib.ExitStack() as stack:
        board = None
        if out is not None:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                board = stack.enter_context(SummaryWriter(str(out / "tensorboard")))
        yield board
