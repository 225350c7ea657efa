"""What computes a prediction: PyTorch, or ONNX Runtime without it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

__all__ = ["BACKENDS", "Backend"]

BACKENDS = ("torch", "onnx")


class Backend(Protocol):
    """A loaded model."""

    def prepare(self, pixels: np.ndarray) -> Any:
        """RGB patches, uint8, shape (B, H, W, 3), as model input (B, 3, 224, 224)."""

    def forward(self, x: Any, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, genes) and features (B, 1280), float32, of one of the eight rotations and reflections."""
