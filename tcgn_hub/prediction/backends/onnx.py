"""Prediction by ONNX Runtime, which needs neither PyTorch nor timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import DeviceError, TcgnError, WeightsError
from tcgn_hub.extras import require
from tcgn_hub.images.transforms import dihedral, to_input_array
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.manifest import assets_folder

METADATA, INTERFACE, PRECISION = "tcgn", "tcgn_interface", "tcgn_precision"
"""Keys of the metadata of an .onnx file: JSON of `WeightsInfo` and of `tcgn_hub.prediction.export.interface`, and the
precision of the export."""


def exported_path(sha256: str) -> Path:
    """Where `tcgn_hub.export` keeps weights of this checksum if it is not told otherwise."""
    return assets_folder("exports") / f"{sha256}.onnx"


class OnnxBackend:
    """An exported model on the CPU, see `tcgn_hub.prediction.backends.Backend`.

    Attributes:
        info: What is known of the weights that were exported.
    """

    name, _runtime = "onnx", "ONNX Runtime"
    batch_size = 32
    compiled = False
    in_flight = 0

    def __init__(self, path: Path) -> None:
        try:
            stated = self._open(path)
            self.info = WeightsInfo.from_json(json.loads(stated[METADATA]))
            self.precision = stated[PRECISION]
        except TcgnError:
            raise
        except Exception as err:
            raise WeightsError(
                f"{path} is not a model that `tcgn export` wrote ({type(err).__name__}: {str(err).splitlines()[0]})."
            ) from err

    def _open(self, path: Path) -> dict[str, str]:
        """Get a file ready to compute, and return its metadata."""
        ort = require("onnxruntime", extra="onnx", to="predict with ONNX Runtime")
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._batch = self._session.get_inputs()[0].shape[0]
        return self._session.get_modelmeta().custom_metadata_map

    def prepare(self, pixels: Any) -> np.ndarray:
        """Resized and normalised by NumPy and Pillow."""
        return to_input_array(pixels if isinstance(pixels, list) else np.asarray(pixels))

    def forward(self, x: np.ndarray, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values and features. A file of a fixed batch is given as many patches as it takes."""
        x = np.ascontiguousarray(dihedral(x, index))
        if not isinstance(self._batch, int):
            return self._run(x)
        parts = []
        for start in range(0, len(x), self._batch):
            part = x[start : start + self._batch]
            full = np.concatenate([part, np.repeat(part[:1], self._batch - len(part), axis=0)])
            parts.append([array[: len(part)] for array in self._run(full)])
        values, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return values, features

    def _run(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and features of a batch that the file takes."""
        values, features = self._session.run(["values", "features"], {"pixels": x})
        return values, features

    def start(self, x: np.ndarray, index: int = 0) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """`forward`, which is over when it returns."""
        said = self.forward(x, index)
        return lambda: said

    def fetch(self, array: np.ndarray) -> Callable[[], np.ndarray]:
        """The array itself."""
        return lambda: array

    def expect(self, count: int, batch_size: int, *, tta: int = 1) -> None:
        """Nothing: ONNX Runtime is ready."""

    def to(self, device: object) -> OnnxBackend:
        """Itself: there is no device but the CPU."""
        if str(device) not in ("auto", "cpu"):
            raise DeviceError(f"{self._runtime} computes on the CPU, not on '{device}'; leave the device out.")
        return self
