"""What computes a prediction: PyTorch, or ONNX Runtime without it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

BACKENDS = ("torch", "onnx")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


class Backend(Protocol):
    """A loaded model.

    Attributes:
        name: One of `BACKENDS`.
        precision: What it computes in, one of `PRECISIONS` but 'auto'.
        batch_size: Patches of a forward pass that suit the device.
    """

    name: str
    precision: str
    batch_size: int

    def prepare(self, pixels: Any) -> Any:
        """RGB patches of 0 to 255, array or tensor (B, H, W, 3) or a list of any size, as input (B, 3, 224, 224)."""

    def forward(self, x: Any, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, genes) and features (B, 1280), float32, of one of the eight rotations and reflections."""

    def to(self, device: str) -> Backend:
        """The same on another device; the one that is asked stays as it is."""
