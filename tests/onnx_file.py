"""A model as `tcgn export` writes it, small enough to be made by hand: the mean colour, and values of it."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tcgn_hub.weights.info import WeightsInfo

FEATURES = 32  # as many as those of test_tcgn


def write(
    path: Path,
    info: WeightsInfo,
    *,
    batch: int | str = "batch",
    precision: str = "float32",
    metadata: dict[str, str] | None = None,
) -> Path:
    rng = np.random.default_rng(0)
    shapes = {"mix": (3, FEATURES), "weight": (FEATURES, len(info.genes))}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixels", "axes"], ["colour"], keepdims=0),
            helper.make_node("MatMul", ["colour", "mix"], ["features"]),
            helper.make_node("MatMul", ["features", "weight"], ["values"]),
        ],
        "colour",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [batch, 3, 224, 224])],
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, [batch, len(info.genes)]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, FEATURES]),
        ],
        [numpy_helper.from_array(array, name) for name, array in {"axes": np.array([2, 3]), **weights}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"tcgn": json.dumps(info.to_json()), **(metadata or {}), "tcgn_precision": precision})
    path.write_bytes(model.SerializeToString())
    return path


def onnx_without_metadata(path: Path, out: Path) -> Path:
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, out)
    return out
