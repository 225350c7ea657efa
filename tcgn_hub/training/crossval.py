"""crossval(): every patient or section held out once."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.data.sections import Section
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.splits import Split, folds, make_split
from tcgn_hub.extras import require
from tcgn_hub.files import read_json
from tcgn_hub.panels import load_panel
from tcgn_hub.prediction.cohort.claims import alone
from tcgn_hub.prediction.cohort.ledger import HIDDEN
from tcgn_hub.progress import Progress
from tcgn_hub.result import Evaluation
from tcgn_hub.training.checkpoints import check_folder
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.finetune import refuse_seen, run
from tcgn_hub.training.fingerprint import fingerprint, refuse_another
from tcgn_hub.training.recipe import Recipe
from tcgn_hub.training.results import held_out_of
from tcgn_hub.training.start import starting_model
from tcgn_hub.writing.evaluations import read_measured, write_csv, write_evaluation

if TYPE_CHECKING:
    from distributed import Client

_logger = logging.getLogger(__name__)


def crossval(
    data: Data,
    *,
    genes: str | Path | Sequence[str],
    out: str | Path,
    by: str = "patient",
    only: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    allow_seen: Sequence[str] = (),
    final: bool = False,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    checkpoint_minutes: float = 10,
    metadata: Mapping[str, Any] | None = None,
    progress: bool = True,
    client: Client | None = None,
) -> Evaluation:
    """Train once for every patient or section, without it, and measure all of them together.

    Args:
        data: Sections, or what `tcgn_hub.read_sections` takes.
        genes: Gene panel, the same in all folds.
        out: Folder to write: a model directory for each fold, and ``crossval.csv`` (a row a section), ``per_gene.csv``,
            ``held_out.npz``, ``metrics.json``, ``evaluation.html`` and ``figures/methods.png``.
        by: 'patient' or 'section'.
        only: Folds to run, by the names of their patients or sections; all if None.
        recipe: How to train.
        allow_seen: As in `finetune`; without it, weights to start from that have seen a fold's test are refused.
        final: Afterwards train on all sections, by the same recipe, and write ``final``, a model directory that states
            the metrics of the cross-validation as its own held-out metrics.
        resume: Continue in ``out``: folds that have ended are kept, one that was interrupted goes on. Folds of other
            data, another panel, recipe or split are refused.
        device: As in `finetune`, and so are the others.
        workers: Processes that prepare crops.
        checkpoint_minutes: How often the state of a fold is saved.
        metadata: What else to record of each fold's weights.
        progress: Show progress bars on stderr where that is a terminal, and else log a line a minute.
        client: A client of Dask, whose workers train the folds, one at a time each; they see data and ``out`` under the
            same paths.

    Raises:
        SectionError: Data are missing or malformed, there is one patient or section only, or one was seen by the
            weights that training starts from.
        TrainingError: ``out`` holds another run.
        OutputError: The results cannot be written.
        DeviceError: The cluster was lost; the folds that have ended are kept.
    """
    recipe, out = recipe or Recipe(), Path(out)
    panel = load_panel(genes)
    sections = as_sections(data)
    chosen = folds(sections, by, val=bool(recipe.patience), seed=recipe.seed)
    folders = _folders([name for name, _ in chosen])
    if only is not None:
        known = {name.removeprefix("patient "): (name, split) for name, split in chosen}
        unknown = [name for name in only if name not in known]
        if unknown:
            raise SectionError(f"There is no fold {', '.join(unknown)}; the folds are {', '.join(known)}.")
        chosen = [fold for name, fold in known.items() if name in only]
    if (out / "metrics.json").exists() and not resume:
        raise TrainingError(f"{out} holds a finished cross-validation; resume it, or give another folder.")
    # of all folds before hours are spent on the first
    start = starting_model(recipe, panel)
    allowed = [name for _, split in chosen for name in refuse_seen(start, sections, split, allow_seen)]

    def fold(folder: Path, split: Split, stated: Mapping[str, Any]) -> _Fold:
        own = fingerprint(sections, panel=panel, split=split, recipe=recipe, parent=start.parent)
        return _Fold(
            str(folder.absolute()),
            panel,
            recipe,
            split,
            own,
            stated=dict(stated),
            allow_seen=tuple(allow_seen),
            cache=str((out / "crops").absolute()),
            resume=resume,
            workers=workers,
            checkpoint_minutes=checkpoint_minutes,
            progress=progress and client is None,
        )

    with Processes(device) as processes:
        wanted = {name: fold(out / folders[name], split, metadata or {}) for name, split in chosen}
        if client is None:
            for number, (name, one) in enumerate(wanted.items(), 1):
                if processes.first:
                    _logger.info("Fold %d of %d: %s held out.", number, len(chosen), name)
                one.train(sections, processes)
        else:
            _train_on(client, wanted, sections, device, progress)
        measured = [row for name in wanted for row in read_measured(out / folders[name] / "held_out.npz")]
        evaluation = summarise(measured, panel)
        if allowed:
            evaluation.summary["allowed_seen"] = list(dict.fromkeys(allowed))
        names = [name for name, _ in chosen]
        if processes.first:
            rows = [
                {"section": name, **{key: value for key, value in row.items() if not isinstance(value, list)}}
                for name, row in evaluation.summary["sections"].items()
            ]
            write_csv(out / "crossval.csv", rows)
            stated = {"by": by, "folds": {name: folders[name] for name in names}, "recipe": recipe.to_dict()}
            write_evaluation(evaluation, measured, out, metadata=stated)
        if final:
            if processes.first:
                _logger.info("Training on all %d sections.", len(sections))
            held_out = {**held_out_of(evaluation), "protocol": f"cross-validation by {by}, folds {', '.join(names)}"}
            split = make_split(sections, by="none", val=bool(recipe.patience))
            last = fold(out / "final", split, {**(metadata or {}), "held_out": held_out})
            if client is None:
                last.train(sections, processes)
            else:
                _train_on(client, {"final": last}, sections, device, progress)
    return evaluation


@dataclass(frozen=True)
class _Fold:
    """A model that is trained on some of the sections, in words that another machine understands."""

    folder: str
    panel: list[str]
    recipe: Recipe
    split: Split
    own: dict[str, Any]  # what it follows from
    stated: dict[str, Any]
    allow_seen: tuple[str, ...]
    cache: str
    resume: bool
    workers: int
    checkpoint_minutes: float
    progress: bool

    def check(self) -> bool:
        """Refuse a folder that holds another run; gives whether the fold has ended."""
        folder = Path(self.folder)
        done = folder / "metrics.json"
        if done.exists() and self.resume:
            refuse_another(folder, read_json(done), self.own)
            return True
        check_folder(folder, resume=self.resume)
        return False

    def train(self, sections: Sequence[Section], processes: Processes) -> None:
        """Train it, unless it has ended."""
        if self.check():
            return
        run(
            sections,
            self.panel,
            Path(self.folder),
            recipe=self.recipe,
            split=self.split,
            allow_seen=self.allow_seen,
            processes=processes,
            cache=Path(self.cache),
            metadata=self.stated,
            workers=self.workers,
            checkpoint_minutes=self.checkpoint_minutes,
            progress=self.progress,
        )


def _train_there(fold: _Fold, sections: Sequence[Section], device: str) -> None:
    """The task of a fold, on a worker; one that was given up may still be at it."""
    from tcgn_hub.prediction.cohort.cluster import compute_as_alone

    compute_as_alone()
    folder = Path(fold.folder)
    with alone(folder.parent / HIDDEN / "claims", folder.name), Processes(device) as processes:
        fold.train(sections, processes)


def _train_on(
    client: Client, wanted: Mapping[str, _Fold], sections: Sequence[Section], device: str, progress: bool
) -> None:
    require("distributed", extra="cluster", to="train on a cluster of Dask")
    from tcgn_hub.prediction.cohort.cluster import each_on

    for one in wanted.values():
        one.check()
    held = client.scatter([sections], hash=False, broadcast=True)[0]  # or they are lost with the worker that has them
    # a fold whose worker is lost is continued by another
    calls = {name: (replace(one, resume=True), held, device) for name, one in wanted.items()}
    with Progress(len(calls), "fold", shown=progress) as bar:
        for name, _ in each_on(client, _train_there, calls):
            _logger.info("Fold %s has ended.", name)
            bar.update()


def _folders(names: Sequence[str]) -> dict[str, str]:
    """A folder for each fold that is one on any system: of plain letters, and of no other fold or file of the run."""
    plain = {name: re.sub(r"[^A-Za-z0-9._-]", "_", name.replace("patient ", "patient_", 1))[:80] for name in names}
    taken = ["final", "crops", "figures", *(name.casefold() for name in plain.values())]
    return {
        name: folder
        if folder in (name, name.replace("patient ", "patient_", 1))
        and "." not in (folder[0], folder[-1])
        and taken.count(folder.casefold()) == 1
        else f"{folder.strip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for name, folder in plain.items()
    }
