"""crossval(): every patient or section held out once."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.splits import Split, folds, make_split
from tcgn_hub.files import read_json
from tcgn_hub.panels import load_panel
from tcgn_hub.result import Evaluation
from tcgn_hub.training.checkpoints import check_folder
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.finetune import refuse_seen, run
from tcgn_hub.training.fingerprint import fingerprint, refuse_another
from tcgn_hub.training.recipe import Recipe
from tcgn_hub.training.results import held_out_of
from tcgn_hub.training.start import starting_model
from tcgn_hub.writing.evaluations import read_measured, write_csv, write_evaluation

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

    Raises:
        SectionError: Data are missing or malformed, there is one patient or section only, or one was seen by the
            weights that training starts from.
        TrainingError: ``out`` holds another run.
        OutputError: The results cannot be written.
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

    def train(folder: Path, split: Split, stated: Mapping[str, Any]) -> None:
        own = fingerprint(sections, panel=panel, split=split, recipe=recipe, parent=start.parent)
        done = folder / "metrics.json"
        if done.exists() and resume:
            refuse_another(folder, read_json(done), own)
            return
        check_folder(folder, resume=resume)
        run(
            sections,
            panel,
            folder,
            recipe=recipe,
            split=split,
            allow_seen=allow_seen,
            processes=processes,
            cache=out / "crops",
            metadata=stated,
            workers=workers,
            checkpoint_minutes=checkpoint_minutes,
            progress=progress,
        )

    with Processes(device) as processes:
        measured = []
        for number, (name, split) in enumerate(chosen, 1):
            if processes.first:
                _logger.info("Fold %d of %d: %s held out.", number, len(chosen), name)
            train(out / folders[name], split, metadata or {})
            measured += read_measured(out / folders[name] / "held_out.npz")
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
            train(out / "final", split, {**(metadata or {}), "held_out": held_out})
    return evaluation


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
