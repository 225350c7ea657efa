from pathlib import Path

import golden
import pytest
import timm
import torch
from safetensors.torch import save_file

import tcgn_hub  # noqa: F401


@pytest.fixture(scope="session")
def golden_file(tmp_path_factory) -> Path:
    """The generated checkpoint with the published key names."""
    path = tmp_path_factory.mktemp("golden") / "published.safetensors"
    save_file(golden.published_state_dict(), path)
    return path


@pytest.fixture(scope="session")
def golden_model(golden_file) -> torch.nn.Module:
    """tcgn_base with the golden weights, in eval mode. Tests that change it work on a copy."""
    return timm.create_model("tcgn_base", pretrained=True, pretrained_cfg_overlay={"file": str(golden_file)}).eval()
