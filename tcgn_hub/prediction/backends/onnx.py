"""Prediction by ONNX Runtime, which needs neither PyTorch nor timm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import DeviceError, WeightsError
from tcgn_hub.extras import require
from tcgn_hub.images.transforms import dihedral, to_input_array
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.manifest import assets_folder

METADATA, PRECISION = "tcgn", "tcgn_precision"
"""Keys of the metadata of an .onnx file: JSON of `WeightsInfo`, and the precision of the export."""


def exported_path(sha256: str) -> Path:
    """Where `tcgn_hub.export` keeps weights of this checksum if it is not told otherwise."""
    return assets_folder("exports") / f"{sha256}.onnx"


class OnnxBackend:
    """An exported model on the CPU, see `tcgn_hub.prediction.backends.Backend`.

    Attributes:
        info: What is known of the weights that were exported.
    """

    name = "onnx"
    batch_size = 32

    def __init__(self, path: Path) -> None:
        ort = require("onnxruntime", extra="onnx", to="predict with ONNX Runtime")
        try:
            self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            stated = self._session.get_modelmeta().custom_metadata_map
            self.info = WeightsInfo.from_json(json.loads(stated[METADATA]))
            self.precision = stated[PRECISION]
        except WeightsError:
            raise
        except Exception as err:
            raise WeightsError(
                f"{path} is not a model that `tcgn export` wrote ({type(err).__name__}: {str(err).splitlines()[0]})."
            ) from err
        self._batch = self._session.get_inputs()[0].shape[0]

    def prepare(self, pixels: Any) -> np.ndarray:
        """Resized and normalised by NumPy and Pillow."""
        return to_input_array(pixels if isinstance(pixels, list) else np.asarray(pixels))

    def forward(self, x: np.ndarray, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values and features. A file of a fixed batch is given as many patches as it takes."""
        x = np.ascontiguousarray(dihedral(x, index))
        if not isinstance(self._batch, int):
            return tuple(self._session.run(["values", "features"], {"pixels": x}))
        parts = []
        for start in range(0, len(x), self._batch):
            part = x[start : start + self._batch]
            full = np.concatenate([part, np.repeat(part[:1], self._batch - len(part), axis=0)])
            out = self._session.run(["values", "features"], {"pixels": full})
            parts.append([array[: len(part)] for array in out])
        values, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return values, features

    def to(self, device: object) -> OnnxBackend:
        """Itself: there is no device but the CPU."""
        if str(device) not in ("auto", "cpu"):
            raise DeviceError(f"The ONNX backend computes on the CPU, not on '{device}'; leave the device out.")
        return self
