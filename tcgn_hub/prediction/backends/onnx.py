"""Prediction by ONNX Runtime, which needs neither PyTorch nor timm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tcgn_hub.errors import WeightsError
from tcgn_hub.extras import require
from tcgn_hub.images.transforms import dihedral, to_input_array
from tcgn_hub.prediction.backends import uses_onnx
from tcgn_hub.weights.info import model_info
from tcgn_hub.weights.manifest import exports_folder, load_manifest
from tcgn_hub.weights.resolve import resolve

__all__ = ["METADATA", "OnnxBackend", "exported_path"]

METADATA = "tcgn"
"""Key of the metadata of an .onnx file: JSON of ``name``, ``sha256``, ``genes``, ``units`` and ``facts``."""


def exported_path(sha256: str) -> Path:
    """Where `tcgn_hub.export_model` keeps weights of this checksum if it is not told otherwise."""
    return exports_folder() / f"{sha256}.onnx"


class OnnxBackend:
    """An exported model on the CPU, see `tcgn_hub.prediction.backends.Backend`.

    Args:
        weights: An .onnx file; or weights that were exported without saying where to, the default ones if None.

    Raises:
        WeightsError: There is no such file, or it is not one that this package exported.
        ExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        ort = require("onnxruntime", extra="onnx", to="predict with ONNX Runtime")
        path = _find(weights)
        try:
            self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            known = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA])
            self.info = model_info(
                known["name"], tuple(known["genes"]), known["units"], known["sha256"], known["facts"]
            )
        except WeightsError:
            raise
        except Exception as err:
            raise WeightsError(
                f"{path} is not a model that `tcgn export` wrote ({type(err).__name__}: {str(err).splitlines()[0]})."
            ) from err
        self._batch = self._session.get_inputs()[0].shape[0]

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Resized and normalised by NumPy and Pillow."""
        return to_input_array(pixels)

    def join(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Concatenated."""
        return np.concatenate(list(inputs))

    def forward(self, x: np.ndarray, view: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Values and features. A file of a fixed batch is given as many patches as it takes."""
        x = np.ascontiguousarray(dihedral(x, view))
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


def _find(weights: str | Path | None) -> Path:
    if weights is not None and uses_onnx(weights):
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"{path} does not exist.")
        return path
    name = next(iter(load_manifest())) if weights is None else weights
    path = exported_path(resolve(name).sha256)
    if not path.is_file():
        raise WeightsError(f"{name} was not exported for ONNX Runtime; run `tcgn export --weights {name}` once.")
    return path
