"""What computes a prediction: PyTorch, or ONNX Runtime or OpenVINO without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

BACKENDS = ("torch", "onnx", "openvino")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
COMPILE = ("auto", "on", "off")


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

    @property
    def compiled(self) -> bool:
        """Whether a compiled model computes by now."""

    @property
    def in_flight(self) -> int:
        """How many batches to begin before the result of the first is waited for."""

    def expect(self, count: int, batch_size: int, *, tta: int = 1) -> None:
        """So many patches are to come, in batches of this size, each in so many views; it gets ready for them."""

    def prepare(self, pixels: Any) -> Any:
        """RGB patches of 0 to 255, array or tensor (B, H, W, 3) or a list of any size, as input (B, 3, 224, 224)."""

    def forward(self, x: Any, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, genes) and features (B, 1280), float32, of one of the eight rotations and reflections."""

    def start(self, x: Any, index: int = 0) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Begin `forward`; what is returned waits for its result, and gives it."""

    def fetch(self, array: Any) -> Callable[[], np.ndarray]:
        """Likewise begin to copy an array of the device to the host."""

    def to(self, device: str) -> Backend:
        """The same on another device; the one that is asked stays as it is."""
