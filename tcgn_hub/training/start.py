"""What training starts from: the model, and what is known of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.data.sections import Section
from tcgn_hub.errors import TrainingError
from tcgn_hub.training.recipe import SCRATCH, Distillation, Recipe
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.lineage import Parent, union

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Start:
    """A model with an output for each gene, and what is known of it."""

    model: nn.Module
    info: WeightsInfo | None  # None from scratch
    new_classifier: bool  # whether the last layer is untrained: the weights have none, or one of other genes

    @property
    def parent(self) -> Parent | None:
        """The weights by name and sha256; a folder or a file by its name alone, wherever it lies."""
        if self.info is None:
            return None
        path = Path(self.info.name)
        return Parent(path.resolve().name if path.exists() else self.info.name, self.info.sha256)

    def lineage(self, trained_on: Iterable[Section]) -> dict[str, Any]:
        """``parents`` and ``seen`` of what comes of it, as `WeightsInfo` states them; sections as they were read."""
        known, parent = self.info, self.parent
        parents = (parent, *known.parents) if known and parent else ()
        seen = union(known.seen if known else (), (section.seen() for section in trained_on))
        return {"parents": [one.to_json() for one in parents], "seen": [section.to_json() for section in seen]}


def starting_model(recipe: Recipe, panel: Sequence[str]) -> Start:
    """A model started as a recipe says; what is new in it follows from the seed."""
    import torch

    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        return _started(recipe, panel)


def starting_backbone(recipe: Distillation) -> Start:
    """A model without a classifier, started as a recipe says."""
    start = starting_model(Recipe(weights=recipe.start, architecture=recipe.architecture, seed=recipe.seed), ["-"])
    start.model.reset_classifier(0)  # type: ignore[operator]
    return Start(start.model, start.info, True)


def begin_at(model: nn.Module, mean: torch.Tensor) -> None:
    """Let a new classifier predict the mean of each gene, whatever it sees, but for a little to learn from."""
    import torch

    with torch.no_grad():
        classifier = model.get_classifier()  # type: ignore[operator]
        classifier.bias.copy_(mean)
        classifier.weight.mul_(0.1)


def _started(recipe: Recipe, panel: Sequence[str]) -> Start:
    import timm

    from tcgn_hub.models.loading import load_model
    from tcgn_hub.weights.manifest import load_manifest

    if recipe.weights == SCRATCH:
        if recipe.architecture not in timm.list_models("*tcgn*"):
            raise TrainingError(f"There is no architecture {recipe.architecture}; tcgn_base is the one to train.")
        return Start(timm.create_model(recipe.architecture, num_classes=len(panel)), None, True)
    entry = load_manifest().get(recipe.weights or "")
    if entry is not None and entry.info.scope == "trunk":
        return Start(timm.create_model(entry.tag, pretrained=True, num_classes=len(panel)), entry.info, True)
    model, info = load_model(recipe.weights, backbone=True)
    other = list(info.genes) != list(panel)
    if other:
        model.reset_classifier(len(panel))
    return Start(model, info, other)
