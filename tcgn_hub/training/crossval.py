"""crossval(): every patient or section held out once."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tcgn_hub.data.readers import Data, as_sections
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.splits import folds
from tcgn_hub.panels import load_panel
from tcgn_hub.result import Evaluation
from tcgn_hub.training.finetune import finetune
from tcgn_hub.training.recipe import Recipe
from tcgn_hub.training.results import facts_of_evaluation
from tcgn_hub.writing.evaluations import read_measured, write_csv, write_evaluation

__all__ = ["crossval"]

_logger = logging.getLogger(__name__)


def crossval(
    data: Data,
    *,
    genes: str | Path | Sequence[str],
    out: str | Path,
    by: str = "patient",
    only: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    final: bool = False,
    resume: bool = False,
    device: str | None = None,
    workers: int = 0,
    checkpoint_minutes: float = 10,
    facts: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Evaluation:
    """Train once for every patient or section, without it, and measure all of them together.

    Args:
        data: Sections, or what `tcgn_hub.read_sections` takes.
        genes: Gene panel, the same in all folds.
        out: Folder to write: a model directory for each fold, and ``crossval.csv`` (a row a section), ``per_gene.csv``,
            ``held_out.npz``, ``metrics.json`` and ``figures/violin.png``.
        by: 'patient' or 'section'.
        only: Folds to run, by the names of their patients or sections; all if None.
        recipe: How to train.
        final: Afterwards train on all sections, by the same recipe, and write ``final``, a model directory that states
            the metrics of the cross-validation as its own held-out metrics.
        resume: Continue in ``out``: folds that have ended are kept, one that was interrupted goes on.
        device: As in `finetune`, and so are the others.
        workers: Processes that prepare crops.
        checkpoint_minutes: How often the state of a fold is saved.
        facts: What else to record of each fold's weights.
        progress: Show a progress bar on stderr where that is a terminal.

    Raises:
        SectionError: Data are missing or malformed, or there is one patient or section only.
        TrainingError: ``out`` holds another run.
        OutputError: The results cannot be written.
    """
    recipe, out = recipe or Recipe(), Path(out)
    panel = load_panel(genes)
    sections = as_sections(data)
    chosen = folds(sections, by, val=bool(recipe.patience), seed=recipe.seed)
    if only is not None:
        known = {name.removeprefix("patient "): (name, split) for name, split in chosen}
        unknown = [name for name in only if name not in known]
        if unknown:
            raise SectionError(f"There is no fold {', '.join(unknown)}; the folds are {', '.join(known)}.")
        chosen = [fold for name, fold in known.items() if name in only]
    if (out / "metrics.json").exists() and not resume:
        raise TrainingError(f"{out} holds a finished cross-validation; resume it, or give another folder.")

    options: dict[str, Any] = {
        "genes": panel,
        "recipe": recipe,
        "resume": resume,
        "device": device,
        "workers": workers,
        "cache": out / "crops",
        "checkpoint_minutes": checkpoint_minutes,
        "progress": progress,
    }
    measured = []
    for number, (name, split) in enumerate(chosen, 1):
        folder = out / name.replace(" ", "_")
        _logger.info("Fold %d of %d: %s held out.", number, len(chosen), name)
        done = folder / "metrics.json"
        if done.exists() and resume:
            if json.loads(done.read_text())["recipe"] != recipe.to_dict():
                raise TrainingError(f"{folder} was trained by another recipe; give another folder, or delete it.")
        else:
            finetune(sections, out=folder, split=split, facts=facts, **options)
        measured += read_measured(folder / "held_out.npz")
    evaluation = summarise(measured, panel)
    rows = [
        {"section": name, **{key: value for key, value in row.items() if not isinstance(value, list)}}
        for name, row in evaluation.summary["sections"].items()
    ]
    write_csv(out / "crossval.csv", rows)
    names = [name for name, _ in chosen]
    write_evaluation(evaluation, measured, out, facts={"by": by, "folds": names, "recipe": recipe.to_dict()})
    if final and not (out / "final" / "metrics.json").exists():
        _logger.info("Training on all %d sections.", len(sections))
        held_out = {
            **facts_of_evaluation(evaluation),
            "protocol": f"cross-validation by {by}, folds {', '.join(names)}",
        }
        finetune(sections, out=out / "final", split="none", facts={**(facts or {}), "held_out": held_out}, **options)
    return evaluation
