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
    from tcgn_hub.models.loading import create_model, load_model
    from tcgn_hub.prediction.explain import Explanation, explain
    from tcgn_hub.prediction.export import export_model
    from tcgn_hub.prediction.patches import Prediction, TilePredictor, predict
    from tcgn_hub.prediction.slides import SlidePrediction, predict_slide
    from tcgn_hub.training.crossval import crossval
    from tcgn_hub.training.finetune import finetune
    from tcgn_hub.training.recipe import Recipe

__all__ = [
    "Explanation",
    "Prediction",
    "Recipe",
    "SlidePrediction",
    "TilePredictor",
    "create_model",
    "crossval",
    "evaluate",
    "explain",
    "export_model",
    "finetune",
    "load_model",
    "predict",
    "predict_slide",
    "read_sections",
]

_HOMES = {
    "Explanation": "tcgn_hub.prediction.explain",
    "Prediction": "tcgn_hub.prediction.patches",
    "Recipe": "tcgn_hub.training.recipe",
    "SlidePrediction": "tcgn_hub.prediction.slides",
    "TilePredictor": "tcgn_hub.prediction.patches",
    "create_model": "tcgn_hub.models.loading",
    "crossval": "tcgn_hub.training.crossval",
    "evaluate": "tcgn_hub.evaluation.heldout",
    "explain": "tcgn_hub.prediction.explain",
    "export_model": "tcgn_hub.prediction.export",
    "finetune": "tcgn_hub.training.finetune",
    "load_model": "tcgn_hub.models.loading",
    "predict": "tcgn_hub.prediction.patches",
    "predict_slide": "tcgn_hub.prediction.slides",
    "read_sections": "tcgn_hub.data.readers",
}

register_with_timm()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
