"""Prediction by PyTorch, on the CPU or a GPU."""

from __future__ import annotations

import numpy as np
import torch

from tcgn_hub.images.transforms import dihedral, to_input
from tcgn_hub.models.tcgn import TCGN

__all__ = ["TorchBackend"]


class TorchBackend:
    """A model of PyTorch, see `tcgn_hub.prediction.backends.Backend`.

    Args:
        model: It is put in eval mode.
    """

    def __init__(self, model: TCGN) -> None:
        self.model = model.eval()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.model.parameters()).device

    def prepare(self, pixels: np.ndarray) -> torch.Tensor:
        """Resized and normalised on the device."""
        with torch.inference_mode():
            # PyTorch warns of arrays that it could not write to
            pixels = np.require(pixels, requirements="W")
            return to_input(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device))

    def forward(self, x: torch.Tensor, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values and features."""
        with torch.inference_mode():
            maps = self.model.forward_features(dihedral(x, index))
            values = self.model.forward_head(maps)
            return values.float().cpu().numpy(), maps.mean(dim=(2, 3)).float().cpu().numpy()
