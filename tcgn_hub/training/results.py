"""What a finished run leaves: the model directory, its card, metrics, tables and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.data.sections import Section
from tcgn_hub.files import write_text
from tcgn_hub.writing.evaluations import draw, write_csv, write_evaluation

if TYPE_CHECKING:
    from torch import nn

    from tcgn_hub.evaluation.splits import Split
    from tcgn_hub.prediction.ood import TissueModel
    from tcgn_hub.result import Evaluation, Measured
    from tcgn_hub.training.recipe import Recipe

__all__ = ["facts_of_evaluation", "write_results"]


def write_results(
    model: nn.Module,
    out: Path,
    *,
    panel: Sequence[str],
    recipe: Recipe,
    split: Split,
    sections: Mapping[str, Section],
    crop: Mapping[str, Any],
    units: str,
    history: Sequence[Mapping[str, Any]],
    evaluation: Evaluation | None,
    measured: Sequence[Measured],
    ood: TissueModel | None,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the files of a finished run; ``metrics.json`` comes last and says that all others are there.

    Raises:
        OutputError: A file cannot be written.
    """
    from tcgn_hub.weights.card import model_card
    from tcgn_hub.weights.model_dir import save_model_dir

    metrics: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "split": asdict(split),
        "spots": {name: len(section.spots) for name, section in sections.items()},
        "left_out": {name: dict(section.left_out) for name, section in sections.items()},
        "epochs": len(history),
        "held_out": None,
    }
    known: dict[str, Any] = {
        "panel": "custom",
        "units": units,
        "crop": {**facts.get("crop", {}), **crop},
        "training_data": {
            "name": "own sections",
            **facts.get("training_data", {}),
            "sections": list(split.train),
            "patients": sorted({sections[name].patient for name in split.train}),
            "held_out": list(split.test),
            **({} if ood is None else {"features": ood.to_json()}),
        },
        "held_out": {},
        "license": "not stated",
        "origin": "fine-tuned with tcgn_hub",
        **{key: value for key, value in facts.items() if key not in ("training_data", "crop")},
    }
    if evaluation is not None:
        known["held_out"] = facts_of_evaluation(evaluation)
    save_model_dir(model, out, genes=panel, facts=known)
    write_text(out / "README.md", model_card(out.resolve().name, known, list(panel)))
    write_text(out / "splits.json", json.dumps(asdict(split), indent=2) + "\n")
    write_csv(out / "history.csv", history)
    draw(out / "figures", history=history)
    if evaluation is None:
        write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    else:
        write_evaluation(evaluation, measured, out, facts=metrics)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def facts_of_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Held-out metrics as ``config.json`` and the manifest state them."""
    pcc, widths = (
        [None if row[key] is None else round(row[key], 4) for row in evaluation.per_gene]
        for key in ("pcc", "interval_radius")
    )
    significant = [row["gene"] for row in evaluation.per_gene if row["significant"]]
    known = {"interval_radius": widths} if any(width is not None for width in widths) else {}
    return {**evaluation.summary, "pcc": pcc, "significant": significant, **known}
