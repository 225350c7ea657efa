"""Prediction by PyTorch, on the CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tcgn_hub.models.tcgn import TCGN
from tcgn_hub.registry import load_model
from tcgn_hub.transforms import to_input, turned
from tcgn_hub.weights.info import ModelInfo

__all__ = ["TorchRuntime"]


class TorchRuntime:
    """A model of PyTorch, see `tcgn_hub.runtimes.Runtime`.

    Args:
        model: It is put in eval mode.
        info: What is known of it.
    """

    def __init__(self, model: TCGN, info: ModelInfo) -> None:
        self.model, self.info = model.eval(), info
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, weights: str | Path | None = None, *, device: str | None = None) -> TorchRuntime:
        """See `tcgn_hub.load_model`."""
        return cls(*load_model(weights, device=device))

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resized and normalised on the device."""
        with torch.inference_mode():
            # PyTorch warns of arrays that it could not write to
            pixels = np.require(pixels, requirements="W")
            return to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))

    def join(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Concatenated."""
        return torch.cat(list(inputs))

    def forward(self, x: torch.Tensor, view: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values and features."""
        with torch.inference_mode():
            maps = self.model.forward_features(turned(x, view))
            values = self.model.forward_head(maps)
            return values.float().cpu().numpy(), maps.mean(dim=(2, 3)).float().cpu().numpy()
