"""finetune(): sections in, a model directory out."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.correlation import pearson
from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.data.sections import Section, expression_targets
from tcgn_hub.errors import OutputError, SectionError, TrainingError
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.heldout import measure, pooled_features, predict_crops
from tcgn_hub.evaluation.splits import Split, make_split, spatial_block
from tcgn_hub.evaluation.tables import section_table
from tcgn_hub.images.transforms import INPUT_PX, to_input
from tcgn_hub.panels import load_panel
from tcgn_hub.prediction.ood import describe
from tcgn_hub.training.checkpoints import has_checkpoint, load_checkpoint, remove_checkpoints, save_checkpoint
from tcgn_hub.training.processes import Processes
from tcgn_hub.training.recipe import SCRATCH, Recipe
from tcgn_hub.training.results import write_results
from tcgn_hub.training.targets import TrainingTargets, training_targets, variable_genes
from tcgn_hub.units import UNITS
from tcgn_hub.weights.info import WeightsInfo

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.training.batches import Batch

__all__ = ["finetune"]

_logger = logging.getLogger(__name__)

_PATCH_UM = 154.0  # of the default weights: the whole of a spot of 100 um, and what is around it


def finetune(
    data: Data,
    *,
    genes: str | Path | Sequence[str] | int,
    out: str | Path,
    recipe: Recipe | None = None,
    split: str | Split = "patient",
    test: Sequence[str] | None = None,
    resume: bool = False,
    device: str | None = None,
    workers: int = 0,
    cache: str | Path | None = None,
    checkpoint_minutes: float = 10,
    facts: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train TCGN on the spots of sections, and measure it once on sections held out.

    Targets are ``log10(1 + 10^4 count / sum of the panel's counts)`` (Xiao et al. 2024); the loss compares predictions
    to targets from which noise was removed, see `Recipe.components`. What was read, left out and found doubtful is
    shown as a table before training begins. Started by ``torchrun``, several processes share each batch.

    Args:
        data: Sections, or what `tcgn_hub.read_sections` takes.
        genes: Gene panel, see `tcgn_hub.panels.load_panel`; or how many of the most variable genes to take, chosen
            on the training sections.
        out: Folder to write: ``model.safetensors``, ``config.json``, ``README.md`` (the model card), ``metrics.json``,
            ``per_gene.csv``, ``splits.json``, ``history.csv`` and ``figures/``.
        recipe: How to train.
        split: 'patient' holds out patients, 'section' sections whatever their patient, 'none' nothing; or a split.
        test: Names of the patients or sections to hold out; with 'patient' and None, about a fifth of the patients.
        resume: Continue the run in ``out`` where it was interrupted; it ends with the weights that it would have had.
        device: Device to train on; CUDA where there is one if None.
        workers: Processes that prepare crops.
        cache: Folder to keep crops in, for several runs on the same data; below ``out``, for this run, if None.
        checkpoint_minutes: How often the state of the run is saved. It is saved too at Ctrl-C and SIGTERM.
        facts: What else to record in the block ``tcgn`` of ``config.json``, such as the licence of the data.
        progress: Show a progress bar on stderr where that is a terminal.

    Returns:
        What ``metrics.json`` holds: recipe, split, spots, and the held-out results if anything was held out.

    Raises:
        SectionError: Data are missing or malformed, or the split is not possible.
        PanelError: The panel is not usable.
        WeightsError: The weights to start from cannot be had.
        TrainingError: ``out`` holds another run, or the recipe does not fit the data.
        OutputError: The results cannot be written.
        KeyboardInterrupt: At Ctrl-C or SIGTERM, after the state was saved.
    """
    recipe = recipe or Recipe()
    out = Path(out)
    with Processes(device) as processes:
        sections = as_sections(data)
        chosen = (
            split if isinstance(split, Split) else make_split(sections, by=split, test=test, val=bool(recipe.patience))
        )
        panel = _panel(genes, [s for s in sections if s.name in chosen.train])
        sections, table = check_sections(sections, panel)
        if processes.first:
            _logger.info("%s", table)
        run = _Run(sections, panel, recipe, chosen, out, processes)
        run.claim_folder(resume=resume)
        run.load_crops(Path(cache) if cache else out / "crops")
        model = run.train(workers=workers, checkpoint_minutes=checkpoint_minutes, progress=progress)
        metrics: dict[str, Any] = {}
        if processes.first:
            metrics = run.finish(model, facts or {}, keep_crops=cache is not None)
        processes.wait()
    return metrics


def _panel(genes: str | Path | Sequence[str] | int, train: Sequence[Section]) -> list[str]:
    if not isinstance(genes, int):
        return load_panel(genes)
    spots = [section for section in train if not section.bulk]
    if genes < 1 or not spots:
        raise TrainingError("Variable genes are chosen on training sections with spots: give their number, 1 or more.")
    return variable_genes([s.counts for s in spots], [s.genes for s in spots], genes)


def starting_model(recipe: Recipe, panel: Sequence[str]) -> tuple[nn.Module, float | None]:
    """A model with an output for each gene, started as a recipe says, and the side in um of the patches it knows.

    Raises:
        WeightsError: The weights cannot be had.
        CheckpointError: They do not fit the architecture.
    """
    import timm

    from tcgn_hub.models.loading import load_model
    from tcgn_hub.weights.manifest import load_manifest

    if recipe.weights == SCRATCH:
        return timm.create_model("tcgn_base", num_classes=len(panel)), None
    entry = load_manifest().get(recipe.weights or "")
    if entry is not None and entry.scope == "trunk":
        return timm.create_model(entry.tag, pretrained=True, num_classes=len(panel)), None
    model, info = load_model(recipe.weights)
    if list(info.genes) != list(panel):
        model.reset_classifier(len(panel))
    return model, info.patch_um


class _Run:
    """One run: its data, its state, and what it writes."""

    def __init__(
        self,
        sections: Sequence[Section],
        panel: list[str],
        recipe: Recipe,
        split: Split,
        out: Path,
        processes: Processes,
    ):
        import torch

        self.sections = {section.name: section for section in sections}
        self.panel, self.recipe, self.split, self.out, self.processes = panel, recipe, split, out, processes
        self.device = processes.device
        torch.manual_seed(recipe.seed)
        self.model, known_um = starting_model(recipe, panel)
        self.patch_um, self.crop_px = _field(recipe, known_um, sections)
        self.history: list[dict[str, Any]] = []

    def claim_folder(self, *, resume: bool) -> None:
        """Refuse a folder that holds something else than this run, to be continued."""
        finished, unfinished = (self.out / "metrics.json").exists(), has_checkpoint(self.out)
        if finished:
            raise TrainingError(f"{self.out} holds a finished run; give another folder.")
        if unfinished and not resume:
            raise TrainingError(f"{self.out} holds an unfinished run; resume it, or give another folder.")
        taken = [name for name in ("README.md", "config.json", "model.safetensors") if (self.out / name).exists()]
        if taken and not unfinished:
            raise TrainingError(f"{self.out} holds {', '.join(taken)} of something else; give another folder.")
        if self.processes.first:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as err:
                raise OutputError(f"{self.out} cannot be made a folder ({err.strerror}).") from err

    def load_crops(self, cache: Path) -> None:
        """Crops and targets of all sections; a cache that several processes share is written by the first."""
        for turn in (True, False):
            if self.processes.first == turn:
                self.crops: dict[str, SpotCrops] = {
                    name: spot_crops(
                        section, patch_um=self.patch_um, crop_px=self.crop_px, margin=self.recipe.shift, cache=cache
                    )
                    for name, section in self.sections.items()
                }
            self.processes.wait()
        crops = self.crops
        raw = {name: expression_targets(section, self.panel) for name, section in self.sections.items()}
        self.raw = raw
        train = {name: (crops[name], raw[name]) for name in self.split.train}
        self.validation = {name: (crops[name], raw[name]) for name in self.split.val}
        if self.recipe.patience and not self.validation:
            train, self.validation = self._block_for_validation(train)
        items = sum(len(targets) for _, targets in train.values())
        parts = self.processes.count * self.recipe.accumulate
        if self.recipe.batch_size < parts:
            raise TrainingError(
                f"A batch of {self.recipe.batch_size} cannot be divided into {parts} parts; enlarge it."
            )
        if items < max(2, parts):
            raise TrainingError(
                f"There {'is one spot' if items == 1 else f'are {items} spots'} to train on; at least {max(2, parts)}"
                " are needed."
            )
        if items < self.recipe.batch_size and self.processes.first:
            _logger.warning(
                "The batch of %d is larger than the %d training spots: every step sees all of them.",
                self.recipe.batch_size,
                items,
            )
        self.train_crops = [c for c, _ in train.values()]
        self.targets: TrainingTargets = training_targets([t for _, t in train.values()], self.recipe.components)

    def _block_for_validation(self, train: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """With one training section, validation is a block at one end of it."""
        (name, (crops, targets)) = max(train.items(), key=lambda item: len(item[1][1]))
        block = spatial_block(self.sections[name].xy)
        rest = {**train, name: (SpotCrops(crops.pixels[~block], crops.patch_px), targets[~block])}
        return rest, {name: (SpotCrops(crops.pixels[block], crops.patch_px), targets[block])}

    def _settings(self) -> dict[str, Any]:
        """What has to be the same for a run to be continued."""
        return {
            "recipe": self.recipe.to_dict(),
            "split": asdict(self.split),
            "panel": hashlib.sha256("\n".join(self.panel).encode()).hexdigest(),
            "spots": {name: len(section.spots) for name, section in self.sections.items()},
        }

    def train(self, *, workers: int, checkpoint_minutes: float, progress: bool) -> nn.Module:
        """Run the steps that are left; returns the model that is kept, its weights rounded to float16."""
        import torch
        from huggingface_hub.utils import tqdm
        from timm.utils import ModelEmaV3

        from tcgn_hub.training.batches import TrainingSpots, batches, steps_per_epoch
        from tcgn_hub.training.optimisation import freeze, make_optimizer, make_schedule

        recipe, processes = self.recipe, self.processes
        _start_head(self.model, self.targets.mean)
        self.model.to(self.device)
        frozen = freeze(self.model, recipe)
        optimizer = make_optimizer(self.model, recipe)
        spots = TrainingSpots(self.train_crops, self.targets.targets, recipe)
        per_epoch = steps_per_epoch(len(spots), recipe, processes=processes.count)
        total = recipe.epochs * per_epoch
        cycle = total // recipe.cycles
        schedule = make_schedule(optimizer, recipe, cycle)
        scaler = torch.amp.GradScaler(self.device, enabled=recipe.amp == "fp16")
        ema = ModelEmaV3(self.model, decay=recipe.ema) if recipe.ema else None
        if recipe.grad_checkpointing:
            self.model.set_grad_checkpointing(True)  # type: ignore[operator]
        kept = self.model if ema is None else ema.module
        dtype = torch.float16 if recipe.amp == "fp16" else torch.bfloat16
        best: dict[str, Any] | None = None
        step, running = 0, 0.0

        state = load_checkpoint(self.out)
        if state is not None:
            self._check_settings(state["settings"])
            self.model.load_state_dict(state["model"])
            if ema is not None:
                ema.module.load_state_dict(state["ema"])
            optimizer.load_state_dict(state["optimizer"])
            scaler.load_state_dict(state["scaler"])
            self.history, best, step, running = (state[key] for key in ("history", "best", "step", "running"))
            _logger.info("Continuing after step %d of %d.", step, total)

        def save() -> None:
            if processes.first:
                save_checkpoint(
                    self.out,
                    {
                        "settings": self._settings(),
                        "model": self.model.state_dict(),
                        "ema": None if ema is None else ema.module.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "scaler": scaler.state_dict(),
                        "history": self.history,
                        "best": best,
                        "step": step,
                        "running": running,
                    },
                )

        network = processes.shared(self.model)
        scale = torch.from_numpy(self.targets.scale.astype(np.float32)).to(self.device)
        board = _tensorboard(self.out) if processes.first else None
        bar = tqdm(total=total, initial=step, unit="step", disable=None if progress and processes.first else True)
        saved = began = time.monotonic()
        with bar, processes.finishing_steps():
            while step < total and not (best and best["stale"] >= (recipe.patience or math.inf)):
                epoch = step // per_epoch
                if step and step % cycle == 0:
                    self.model.load_state_dict(kept.state_dict())
                    optimizer.state.clear()
                self.model.train()
                for module in frozen:
                    module.eval()
                for size, parts in batches(
                    spots,
                    recipe,
                    epoch=epoch,
                    skip=step % per_epoch,
                    rank=processes.rank,
                    processes=processes.count,
                    workers=workers,
                ):
                    # dropout of a step follows from its number, so that a resumed run repeats it
                    torch.manual_seed(_seed_of(recipe.seed, step, processes.rank))
                    schedule.step_update(step % cycle)
                    for i, part in enumerate(parts, 1):
                        with processes.joined(network, last=i == len(parts)):
                            with torch.autocast(self.device, dtype, enabled=recipe.amp != "off"):
                                predicted = network(to_input(part[0].to(self.device)))
                            loss = self._loss(predicted.float(), part, scale) * len(part[2]) / size
                            # the mean over processes is taken of the gradients
                            scaler.scale(loss * processes.count).backward()
                        running += processes.sum(loss.item()) * size
                    scaler.unscale_(optimizer)
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    step += 1
                    if ema is not None:
                        ema.update(self.model, step)
                    bar.update()
                    if step % per_epoch == 0:
                        best = self._end_epoch(kept, running / len(spots), best, began, board)
                        running, began = 0.0, time.monotonic()
                    stop = processes.stop_asked()
                    if stop or time.monotonic() - saved >= 60 * checkpoint_minutes:
                        save()
                        saved = time.monotonic()
                    if stop:
                        raise KeyboardInterrupt(f"the state is saved in {self.out}; continue with --resume")
        if board is not None:
            board.close()
        if best is not None:
            kept.load_state_dict(best["model"])
        # the weights are kept in float16, so that is what is measured
        return kept.half().float()

    def _loss(self, predicted: torch.Tensor, part: Batch, scale: torch.Tensor) -> torch.Tensor:
        """Mean over the items of a part of a batch."""
        import torch

        _, index, targets = part
        targets = targets.to(self.device)
        if len(index) != len(targets):
            # one measurement is compared to the mean over its tiles
            sums = torch.zeros_like(targets).index_add_(0, index.to(self.device), predicted)
            predicted = sums / torch.bincount(index, minlength=len(targets)).to(self.device)[:, None]
        known = ~targets.isnan()
        error = torch.where(known, (predicted - targets) / scale, 0)
        loss = (error.square().sum(1) / known.sum(1).clamp(min=1)).mean()
        if self.recipe.pearson and len(targets) > 2:
            p, t = (torch.where(known, x, 0) for x in (predicted, targets.nan_to_num()))
            count = known.sum(0).clamp(min=1)
            p, t = (torch.where(known, x - x.sum(0) / count, 0) for x in (p, t))
            pcc = (p * t).sum(0) / (p.square().sum(0) * t.square().sum(0) + 1e-8).sqrt()
            loss = loss + self.recipe.pearson * (1 - pcc.mean())
        return loss

    def _end_epoch(
        self, kept: nn.Module, loss: float, best: dict[str, Any] | None, began: float, board: Any
    ) -> dict[str, Any] | None:
        row: dict[str, Any] = {"epoch": len(self.history) + 1, "loss": loss, "seconds": time.monotonic() - began}
        if self.validation:
            per_section = [
                pearson(predict_crops(self._runtime(kept), crops), targets)
                for crops, targets in self.validation.values()
            ]
            row["val_pcc"] = float(np.nanmedian(np.nanmean(per_section, axis=0)))
            if best is None or row["val_pcc"] > best["pcc"]:
                state = {key: value.detach().cpu().clone() for key, value in kept.state_dict().items()}
                best = {"pcc": row["val_pcc"], "epoch": row["epoch"], "stale": 0, "model": state}
            else:
                best = {**best, "stale": best["stale"] + 1}
        self.history.append(row)
        if self.processes.first:
            _logger.info(
                "Epoch %d of %d: %s.",
                row["epoch"],
                self.recipe.epochs,
                ", ".join(f"{key} {value:.4g}" for key, value in row.items() if key != "epoch"),
            )
        if board is not None:
            for key in row.keys() - {"epoch"}:
                board.add_scalar(key, row[key], row["epoch"])
        return best

    def _runtime(self, model: Any) -> Predictor:
        from tcgn_hub.prediction.backends.torch import TorchBackend
        from tcgn_hub.prediction.predictor import Predictor

        return Predictor(TorchBackend(model), WeightsInfo(name=str(self.out), genes=tuple(self.panel), units=UNITS))

    def _check_settings(self, settings: dict[str, Any]) -> None:
        own = json.loads(json.dumps(self._settings()))
        settings = json.loads(json.dumps(settings))
        flat = [({**s, **s.pop("recipe")}) for s in (own, settings)]
        different = sorted(key for key in {*flat[0], *flat[1]} if flat[0].get(key) != flat[1].get(key))
        if different:
            raise TrainingError(
                f"{self.out} holds a run with another {', '.join(different)}; give another folder, or delete it."
            )

    def finish(self, model: nn.Module, facts: Mapping[str, Any], *, keep_crops: bool) -> dict[str, Any]:
        """Measure the model on what was held out, and write everything."""
        evaluation, measured = None, []
        if self.split.test:
            measured = measure(
                self._runtime(model),
                train=[self.sections[name] for name in self.split.train],
                test=[self.sections[name] for name in self.split.test],
                panel=self.panel,
                crops=self.crops,
            )
            evaluation = summarise(measured, self.panel)
            _logger.info("%s", section_table(evaluation))
        metrics = write_results(
            model,
            self.out,
            panel=self.panel,
            recipe=self.recipe,
            split=self.split,
            sections=self.sections,
            crop=_crop_facts(self.patch_um, self.crop_px, list(self.sections.values())),
            units=UNITS,
            history=self.history,
            evaluation=evaluation,
            measured=measured,
            ood=describe([pooled_features(self._runtime(model), crops) for crops in self.train_crops]),
            facts=facts,
        )
        remove_checkpoints(self.out)
        if not keep_crops:
            shutil.rmtree(self.out / "crops", ignore_errors=True)
        return metrics


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _field(recipe: Recipe, known_um: float | None, sections: Sequence[Section]) -> tuple[float | None, int | None]:
    """The side of a patch: in micrometres, or else in pixels of the image."""
    if recipe.crop_px:
        return None, recipe.crop_px
    unknown = [section.name for section in sections if section.mpp is None]
    if unknown:
        raise SectionError(
            f"The scale of section {unknown[0]} is not known; give the micrometres per pixel of its image, or the side"
            " of a patch in pixels (crop_px)."
        )
    return recipe.patch_um or known_um or _PATCH_UM, None


def _crop_facts(patch_um: float | None, crop_px: int | None, sections: Sequence[Section]) -> dict[str, Any]:
    """How patches were cut, as the manifest states it."""
    if patch_um is not None:
        return {"patch_um": patch_um, "rule": f"a field of {patch_um:g} um, resized to {INPUT_PX} px"}
    sides = [crop_px * section.mpp for section in sections if section.mpp is not None and crop_px]
    covers = {"patch_um": round(float(np.median(sides)), 1)} if sides else {}
    return {"px": crop_px, **covers, "rule": f"{crop_px} px of the image, resized to {INPUT_PX} px"}


def _start_head(model: nn.Module, mean: np.ndarray) -> None:
    """Let an untrained classifier begin at the gene means."""
    import torch

    with torch.no_grad():
        head: Any = model.get_classifier()  # type: ignore[operator]
        if not head.bias.any():
            head.bias.copy_(torch.from_numpy(mean))
            head.weight.mul_(0.1)


def _tensorboard(out: Path) -> Any:
    """A writer for TensorBoard where that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out / "tensorboard"))
