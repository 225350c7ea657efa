"""Prediction by OpenVINO, of files for ONNX Runtime, in bfloat16 where the processor has it."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.extras import require
from tcgn_hub.prediction.backends.onnx import PRECISION, OnnxBackend

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""What it computes in, as OpenVINO calls it."""


def compile_options(precision: str) -> dict[str, Any]:
    """How OpenVINO is to compute."""
    return {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        # pinned, with one thread to compute, the thread that calls is left bound to one core
        "ENABLE_CPU_PINNING": False,
    }


@cache
def _core() -> Any:
    """OpenVINO, once for the process.

    Its CPU plugin gives a thread a stack for signals, and unmaps it in the end. Where one of several ends before a
    later one, the thread is left with a stack that is gone, and the next signal ends the process: that of the end of a
    child, once a DataLoader with workers listens to it.
    """
    return require("openvino", extra="openvino", to="predict with OpenVINO").Core()


class OpenvinoBackend(OnnxBackend):
    """An exported model on the CPU, see `tcgn_hub.prediction.backends.Backend`.

    ``precision``: one of `PRECISIONS`, or 'auto' for bfloat16 if the processor multiplies in it.
    """

    name, _runtime = "openvino", "OpenVINO"

    def __init__(self, path: Path, precision: str = "auto") -> None:
        self._asked = precision
        self._one = threading.Lock()  # a request answers one thread at a time
        super().__init__(path)

    def _open(self, path: Path) -> dict[str, str]:
        core = _core()
        model = core.read_model(path)
        precision = self._asked
        if precision == "auto":
            precision = "bfloat16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "float32"
        self._request = core.compile_model(model, "CPU", compile_options(precision)).create_infer_request()
        batch = model.input("pixels").partial_shape[0]
        self._batch = batch.get_length() if batch.is_static else None
        stated = model.get_rt_info()["framework"]
        return {**{key: text.value for key, text in stated.items()}, PRECISION: precision}

    def _run(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._one:
            out = self._request.infer({"pixels": x})
            return out["values"].copy(), out["features"].copy()
