"""A small network of timm with parameters drawn at random, as a folder that timm reads."""

from pathlib import Path

import timm
import torch
from timm.models import save_for_hf


def write_encoder(folder: Path, name: str = "test_resnet", *, seed: int = 0, **config) -> str:
    """The name of the network for timm; ``config`` is what it states of its images."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=0).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    model.pretrained_cfg |= config
    save_for_hf(model, folder, safe_serialization=True)
    return f"local-dir:{folder}"
