"""Gene expression from H&E images with TCGN: pretrained weights, prediction and fine-tuning.

`import tcgn_hub` makes the architecture `tcgn_base` known to timm, whichever of the two is imported first. It imports
neither torch nor timm itself, so that the command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tcgn_hub._timm_hook import register_with_timm
from tcgn_hub.version import __version__ as __version__

if TYPE_CHECKING:
    from tcgn_hub.data.readers import read_sections
    from tcgn_hub.evaluation.heldout import evaluate
    from tcgn_hub.models.loading import create_model
    from tcgn_hub.prediction.predictor import Predictor, explain, export, load, predict, predict_slide, predict_slides
    from tcgn_hub.result import Explanation, Result
    from tcgn_hub.training.adapt import adapt
    from tcgn_hub.training.crossval import crossval
    from tcgn_hub.training.finetune import finetune
    from tcgn_hub.training.pretrain import pretrain
    from tcgn_hub.training.recipe import Distillation, Recipe
    from tcgn_hub.training.trainer import Trainer
    from tcgn_hub.weights.info import WeightsInfo
    from tcgn_hub.writing.view import view

_HOMES = {
    "data.readers": ("read_sections",),
    "evaluation.heldout": ("evaluate",),
    "models.loading": ("create_model",),
    "prediction.predictor": ("Predictor", "explain", "export", "load", "predict", "predict_slide", "predict_slides"),
    "result": ("Explanation", "Result"),
    "training.adapt": ("adapt",),
    "training.crossval": ("crossval",),
    "training.finetune": ("finetune",),
    "training.pretrain": ("pretrain",),
    "training.recipe": ("Distillation", "Recipe"),
    "training.trainer": ("Trainer",),
    "weights.info": ("WeightsInfo",),
    "writing.view": ("view",),
}
_HOME_OF = {name: f"tcgn_hub.{home}" for home, names in _HOMES.items() for name in names}

__all__ = [
    "Distillation",
    "Explanation",
    "Predictor",
    "Recipe",
    "Result",
    "Trainer",
    "WeightsInfo",
    "adapt",
    "create_model",
    "crossval",
    "evaluate",
    "explain",
    "export",
    "finetune",
    "load",
    "predict",
    "predict_slide",
    "predict_slides",
    "pretrain",
    "read_sections",
    "view",
]

register_with_timm()


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
