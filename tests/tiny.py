"""Weights of the tiny architecture, drawn at random, and what compiles in seconds."""

from pathlib import Path

import golden
import numpy as np
import timm
import torch
from sections import PANEL
from timm.models import save_for_hf

import tcgn_hub  # noqa: F401
from tcgn_hub.models.censnet import GraphEmbed
from tcgn_hub.prediction.ood import describe
from tcgn_hub.units import UNITS
from tcgn_hub.weights.typical import describe_predictions


def write_tiny_weights(folder: Path) -> Path:
    """A model directory of the tiny architecture that states all there is to state: 12 genes, patches of 154 um."""
    torch.manual_seed(0)
    model = timm.create_model("test_tcgn", num_classes=len(PANEL)).eval()
    # as drawn at first, all patches would be given nearly the same values
    drawn = {key: golden.filled(key, value.shape) for key, value in model.state_dict().items()}
    drawn["head.fc.bias"] += 4  # values are clipped at 0, below which there is no expression
    model.load_state_dict(drawn)
    with torch.inference_mode():
        maps = model.forward_features(torch.randn(60, 3, 224, 224))
        features = maps.mean(dim=(2, 3)).numpy()
        values = model.forward_head(maps).numpy().clip(0)
    stated = {
        "units": UNITS,
        "crop": {"patch_um": 154, "nominal_patch_um": 112},
        "training_data": {"name": "drawn", "sections": ["Z1"], "patients": ["Z"]},
        "held_out": {
            "interval_level": 0.9,
            "pcc": [None, *(0.05 * i for i in range(1, len(PANEL)))],
            "significant": PANEL[4:],
            "interval_radius": [None, *(0.1 * i for i in range(1, len(PANEL)))],
            "median_pcc": 0.3,
        },
        "ood": describe([features]).to_json(),
        "typical": describe_predictions(
            values, 3 + values.mean(axis=1), features=features, parts=np.arange(60) // 20
        ).to_json(),
        "seen": [{"study": "drawn", "patient": "Z", "section": "Z1"}],
        "license": "MIT",
        "origin": "drawn at random",
    }
    config = {"label_names": PANEL, "tcgn": stated}
    save_for_hf(model.half(), folder, model_config=config, safe_serialization=True)
    return folder


class Small(torch.nn.Module):
    """A convolution and a graph: what compiles in seconds, and has all that a TCGN has that is special."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.graph, self.fc = (
            torch.nn.Conv2d(3, 16, 16, 16),
            GraphEmbed(16, out_dim=16),
            torch.nn.Linear(16, 5),
        )
        self.final_conv = torch.nn.Identity()

    def forward_stages(self, maps):
        tokens = maps.flatten(2).transpose(1, 2)
        return maps + self.graph(tokens, tokens)[0].transpose(1, 2).reshape(maps.shape)

    def forward_head(self, maps):
        return self.fc(maps.mean((2, 3)))
