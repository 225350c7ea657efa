"""The loop of steps that every training runs in, and the `TrainState` that is all a run goes on from."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from tcgn_hub.files import make_folder
from tcgn_hub.progress import Progress
from tcgn_hub.text import option
from tcgn_hub.training.checkpoints import load_checkpoint, save_checkpoint
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.fingerprint import refuse_another
from tcgn_hub.training.recipe import Steps

if TYPE_CHECKING:
    from torch.amp import GradScaler

_logger = logging.getLogger(__name__)


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


class Loop(ABC):
    """Steps of an optimiser, counted in epochs, that can be interrupted and continued.

    Attributes:
        recipe: How to train.
        state: Everything that a run goes on from.
        total: Steps of the whole run.
    """

    recipe: Steps
    state: TrainState
    total: int
    _schedule: CosineLRScheduler
    _network: nn.Module  # the model as it is called: over several processes, with what averages its gradients
    _per_epoch: int  # steps
    _cycle: int  # steps

    def __init__(self, recipe: Steps, processes: Processes | None, *, progress: bool) -> None:
        self.recipe = recipe
        self.processes = processes or Processes().__enter__()
        self._shown = progress and self.processes.first
        self._frozen: list[nn.Module] = []  # modules that stay in eval mode

    @abstractmethod
    def batches(self, epoch: int, skip: int, workers: int) -> Iterator[tuple[int, list[Any]]]:
        """The steps of an epoch but for the first ``skip``: the size of the whole batch, and this process's parts."""

    @abstractmethod
    def loss(self, part: Any) -> tuple[torch.Tensor, int]:
        """Mean of the loss over the items of a part of a batch, and how many there are."""

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

        if processes.first and self.total and not state.step:
            _logger.info("Training takes %d steps of %d.", self.total, self.recipe.batch_size)
        bar = Progress(self.total, "step", name="training", done=state.step, shown=self._shown)
        saved = began = time.monotonic()
        with bar, _tensorboard(written) as board, processes.finishing_steps(), self._seeded(self.recipe.seed):
            while state.step < self.total and not self.stopped:
                self._start_epoch()
                for size, parts in self.batches(*divmod(state.step, self._per_epoch), workers):
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
        return rounded(self.whole(state.kept).eval())

    def step(self, size: int, parts: Sequence[Any]) -> None:
        """One step of the optimiser.

        Args:
            size: Items of the whole batch, over all processes.
            parts: The parts of it that this process computes, one after another.
        """
        state, recipe, processes = self.state, self.recipe, self.processes
        # dropout of a step follows from its number, so that a resumed run repeats it
        torch.manual_seed(_seed_of(recipe.seed, state.step, processes.rank))
        self._schedule.step_update(state.step % self._cycle)
        done = 0.0
        for i, part in enumerate(parts, 1):
            with processes.joined(self._network, last=i == len(parts)):
                mean, items = self.loss(part)
                loss = mean * items / size
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

    def autocast(self) -> torch.autocast:
        """Products in the precision of the recipe."""
        dtype = torch.float16 if self.recipe.precision == "float16" else torch.bfloat16
        return torch.autocast(self.processes.kind, dtype, enabled=self.recipe.precision != "float32")

    @property
    def stopped(self) -> bool:
        """Whether training ends before all steps are done."""
        return False

    def whole(self, kept: nn.Module) -> nn.Module:
        """The model to be stored, of what is trained of it."""
        return kept

    @abstractmethod
    def items(self) -> int:
        """How many items an epoch passes over."""

    def measures(self) -> dict[str, float]:
        """What is measured at the end of an epoch, to be told and kept in the history."""
        return {}

    def _begin(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: CosineLRScheduler) -> None:
        recipe = self.recipe
        ema = ModelEmaV3(model, decay=recipe.ema) if recipe.ema else None
        scaler = torch.amp.GradScaler(self.processes.kind, enabled=recipe.precision == "float16")
        self._schedule, self._network = schedule, self.processes.shared(model)
        self.state = TrainState(model, ema, optimizer, scaler)

    def _resume(self, out: Path, fingerprint: Mapping[str, Any]) -> None:
        saved = load_checkpoint(out)
        if saved is not None:
            refuse_another(out, saved["fingerprint"], fingerprint)
            self.state.load_state_dict(saved)
            _logger.info("Continuing after step %d of %d.", self.state.step, self.total)

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
        row: dict[str, Any] = {"epoch": len(state.history) + 1, "loss": state.loss / self.items()}
        row["seconds"] = seconds
        state.loss = 0.0
        row |= self.measures()
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


def rounded(model: nn.Module) -> nn.Module:
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
