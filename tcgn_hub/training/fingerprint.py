"""What a run follows from, told in a few lines, so that none is continued as another one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import TrainingError

if TYPE_CHECKING:
    from tcgn_hub.data.sections import Section
    from tcgn_hub.evaluation.splits import Split
    from tcgn_hub.training.recipe import Recipe
    from tcgn_hub.weights.lineage import Parent


def fingerprint(
    sections: Sequence[Section], *, panel: Sequence[str], split: Split, recipe: Recipe, parent: Parent | None
) -> dict[str, Any]:
    """Everything that the result of a run follows from, as plain values; ``metrics.json`` states it too.

    ``sections``: the sections as they were read; ``panel``: the genes; ``split``: what trains, chooses and tests;
    ``recipe``: how to train; ``parent``: the weights it starts from, None from scratch.
    """
    return {
        "recipe": recipe.to_dict(),
        "weights": None if parent is None else parent.to_json(),
        "panel": hashlib.sha256("\n".join(panel).encode()).hexdigest(),
        "split": {part: list(names) for part, names in asdict(split).items()},
        "data": {section.name: _of_section(section) for section in sections},
    }


def refuse_another(folder: Path, stated: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to continue, or to take for done, a run that follows from something else."""
    other, this = _flat(stated), _flat(own)
    different = [key for key in {**this, **other} if this.get(key) != other.get(key)]
    if different:
        raise TrainingError(
            f"{folder} holds a run with another {', '.join(different)}; give another folder, or delete it."
        )


def _of_section(section: Section) -> dict[str, str]:
    seen = section.seen()
    content = hashlib.sha256(json.dumps([section.mpp, section.bulk, section.spots, seen.image, seen.counts]).encode())
    content.update(section.xy.tobytes())
    return {"study": seen.study, "patient": seen.patient, "content": content.hexdigest()}


def _flat(stated: Mapping[str, Any]) -> dict[str, str]:
    """One line for each thing that can differ."""
    parts = {**stated.get("recipe", {}), **{f"section {name}": it for name, it in stated.get("data", {}).items()}}
    parts |= {key: stated.get(key) for key in ("panel", "split", "teachers")}
    # the name of the weights is the recipe's, and a path may be named from elsewhere
    sha256 = (stated.get("weights") or {}).get("sha256")
    if sha256:
        parts.pop("weights", None)
    parts["weights (their sha256)"] = sha256
    return {key: json.dumps(value, sort_keys=True) for key, value in parts.items()}
