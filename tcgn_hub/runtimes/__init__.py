"""What computes a prediction: PyTorch, or ONNX Runtime without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tcgn_hub.errors import DeviceError
from tcgn_hub.weights.info import ModelInfo

__all__ = ["RUNTIMES", "Runtime", "load_runtime", "run", "uses_onnx"]

RUNTIMES = ("torch", "onnx")


class Runtime(Protocol):
    """A loaded model.

    Attributes:
        info: What is known of it.
    """

    info: ModelInfo

    def prepare(self, pixels: np.ndarray) -> Any:
        """RGB crops, uint8, shape (B, H, W, 3), as model input (B, 3, 224, 224)."""

    def join(self, inputs: Sequence[Any]) -> Any:
        """Several inputs as one."""

    def forward(self, x: Any, view: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values (B, genes) and features (B, 1280), float32, of one of the eight rotations and reflections."""


def uses_onnx(weights: str | Path | None, runtime: str | None = None) -> bool:
    """Whether ONNX Runtime computes: if it is asked for, or else if the name of the weights ends in .onnx."""
    return runtime == "onnx" or (runtime is None and weights is not None and str(weights).endswith(".onnx"))


def load_runtime(
    weights: str | Path | None = None, *, runtime: str | None = None, device: str | None = None
) -> Runtime:
    """A model, ready to predict.

    Args:
        weights: As in `tcgn_hub.load_model`; or an .onnx file that `tcgn_hub.export_model` wrote.
        runtime: 'torch' or 'onnx', which needs weights that were exported; by the name of the file if None.
        device: Where PyTorch is to compute, such as 'cuda'; the CPU if None.

    Raises:
        WeightsError: The weights cannot be found, read or verified, or were not exported.
        DeviceError: A device other than the CPU is asked for with ONNX Runtime.
        ExtraError: ONNX Runtime is not installed.
    """
    if runtime not in (None, *RUNTIMES):
        raise ValueError(f"runtime is {runtime!r}, but has to be one of {', '.join(RUNTIMES)}")
    if uses_onnx(weights, runtime):
        if device not in (None, "cpu"):
            raise DeviceError(f"The ONNX runtime computes on the CPU, not on {device!r}; leave the device out.")
        from tcgn_hub.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(weights)
    from tcgn_hub.runtimes.pytorch import TorchRuntime

    return TorchRuntime.load(weights, device=device)


def run(runtime: Runtime, x: Any, *, views: int = 1, features: bool = False) -> dict[str, np.ndarray]:
    """What a model says of a batch.

    Args:
        runtime: The model.
        x: What `Runtime.prepare` gave.
        views: Over how many rotations and reflections to average.
        features: Whether to return the features.

    Returns:
        ``values``, float32, shape (B, genes); ``spread`` likewise, if there are several views; ``distance`` from the
        training tissue, shape (B,), if that is described; and ``features``, shape (B, 1280), if asked for.
    """
    first, pooled = runtime.forward(x)
    out = {"values": first}
    if views > 1:
        seen = np.stack([first, *(runtime.forward(x, view)[0] for view in range(1, views))])
        out = {"values": seen.mean(axis=0), "spread": seen.std(axis=0, ddof=1)}
    if runtime.info.familiarity is not None:
        out["distance"] = runtime.info.familiarity.distance(pooled)
    if features:
        out["features"] = pooled
    return out
