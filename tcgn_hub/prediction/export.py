"""Weights as a file that other programs run, ONNX or a program of torch.export."""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.errors import CheckpointError, OutputError
from tcgn_hub.extras import require
from tcgn_hub.files import make_folder, writing
from tcgn_hub.images.transforms import IMAGENET_MEAN, IMAGENET_STD, INPUT_PX
from tcgn_hub.units import UNITS

if TYPE_CHECKING:
    import torch

    from tcgn_hub.models.tcgn import TCGN
    from tcgn_hub.prediction.predictor import Predictor
    from tcgn_hub.weights.info import WeightsInfo

PRECISIONS = ("float32", "float16")
_MOST = 1024  # patches in a batch of a dynamic program
_OPSET = 20  # the first that has GELU
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
_exporting = threading.Lock()  # PyTorch's exporter changes state of the process while it runs


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked."""

    path: Path  # where it is
    difference: float  # largest difference of its values to those of the model, on patches of noise


def export_weights(
    predictor: Predictor, path: str | Path | None = None, *, precision: str = "float32", batch_size: int | None = None
) -> Exported:
    """Export weights. The file takes normalised patches ``pixels``, float32, shape (B, 3, 224, 224).

    It gives ``values``, float32, shape (B, genes), and ``features``, (B, 1280). `WeightsInfo` travels with it as JSON,
    and so does what a program without this package has to know, see `interface`: under the keys ``tcgn`` and
    ``tcgn_interface`` of the metadata of an .onnx file, as the extra files ``tcgn.json`` and ``tcgn_interface.json`` of
    a .pt2 file.

    Args:
        predictor: The weights.
        path: File to write: .onnx, or .pt2 for `torch.export.load`. If None, an ONNX file is kept below ``HF_HOME``,
            where ``backend='onnx'`` finds it.
        precision: 'float32'; for ONNX also 'float16', which stores the weights so and computes in float32, at half the
            size.
        batch_size: Patches in a batch; any number from 1 to 1024 if None.

    Raises:
        WeightsError: The weights were exported themselves.
        CheckpointError: The exported model does not give the values of the model.
        OutputError: The file cannot be written, or its name is that of no format.
        ExtraError: ONNX is not installed.
    """
    is_onnx = check_export(path, precision=precision, batch_size=batch_size)
    import torch

    from tcgn_hub.prediction.backends.onnx import INTERFACE, METADATA, exported_path

    model, info = copy.deepcopy(predictor.model).cpu(), predictor.info
    if path is None:
        path = exported_path(info.sha256)
        make_folder(path.parent)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size or 2, 3, INPUT_PX, INPUT_PX, generator=generator)
    wrapped = with_features(model)
    with torch.inference_mode():
        expected = wrapped(x)[0].numpy()
    stated = {METADATA: json.dumps(info.to_json()), INTERFACE: json.dumps(interface(info))}
    with writing(path) as part, _exporting:
        if is_onnx:
            write_onnx(wrapped, x, part, precision=precision, dynamic=batch_size is None, metadata=stated)
            found = _run_onnx(part, x)
        else:
            program = torch.export.export(wrapped, (x,), dynamic_shapes=_dynamic(batch_size is None))
            with open(part, "wb") as handle:
                torch.export.save(program, handle, extra_files={f"{key}.json": text for key, text in stated.items()})
            with torch.inference_mode():
                found = program.module()(x)[0].numpy()
        difference = float(np.abs(found - expected).max())
        if not difference <= _TOLERANCE[precision] * max(1.0, float(np.abs(expected).max())):
            raise CheckpointError(
                f"The exported model differs by {difference:.2g} from {info.name}; nothing was written."
            )
    return Exported(Path(path), difference)


def interface(info: WeightsInfo) -> dict[str, Any]:
    """What makes of a patch the input ``pixels``, and of ``values`` numbers with a name and a unit.

    The pixels of ``patch_um`` micrometres, resized to ``size``, are divided by 255, less ``mean``, divided by ``std``.
    """
    return {
        "patch_um": info.patch_um,
        "size": [INPUT_PX, INPUT_PX],
        "resize": "bilinear, antialiased",
        "colour": "RGB",
        "layout": "NCHW",
        "divide_by": 255,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "genes": info.genes,
        "units": info.units,
        "least": 0 if info.units == UNITS else None,
    }


def check_export(path: str | Path | None = None, *, precision: str = "float32", batch_size: int | None = None) -> bool:
    """Refuse what cannot be exported, before weights are loaded; whether it is ONNX."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, but has to be one of {', '.join(PRECISIONS)}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be at least 1")
    suffix = ".onnx" if path is None else Path(path).suffix.lower()
    if suffix not in (".onnx", ".pt2"):
        raise OutputError(f"{path} is of no format that is known; let it end in .onnx or .pt2.")
    if suffix == ".pt2" and precision != "float32":
        raise OutputError(f"{precision} is for ONNX; export float32, or to a file that ends in .onnx.")
    if path is not None and not Path(path).parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {Path(path).parent}.")
    if suffix == ".onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, extra="onnx", to="export ONNX")
    return suffix == ".onnx"


def with_features(model: TCGN) -> torch.nn.Module:
    """The model as it is exported: patches to values and features."""
    import torch

    class WithFeatures(torch.nn.Module):
        """A model that also gives its features."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            maps = self.model.forward_features(pixels)
            return self.model.forward_head(maps), maps.mean(dim=(2, 3))

    return WithFeatures().eval()


def _dynamic(dynamic: bool) -> Any:
    import torch

    return {"pixels": {0: torch.export.Dim("batch", min=1, max=_MOST)}} if dynamic else None


def write_onnx(
    model: torch.nn.Module, x: torch.Tensor, path: Path, *, precision: str, dynamic: bool, metadata: dict[str, str]
) -> None:
    """Write a model as ONNX."""
    import onnx

    from tcgn_hub.prediction.backends.onnx import PRECISION

    proto = _graph_of(model, x, dynamic=dynamic)
    if precision == "float16":
        _store_half(proto)
    onnx.helper.set_model_props(proto, {**metadata, PRECISION: precision})
    path.write_bytes(proto.SerializeToString())


def _graph_of(model: torch.nn.Module, x: torch.Tensor, *, dynamic: bool) -> Any:
    import torch

    with _quietly():
        program = torch.onnx.export(
            model,
            (x,),
            dynamo=True,
            dynamic_shapes=_dynamic(dynamic),
            input_names=["pixels"],
            output_names=["values", "features"],
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    return _without_traces(program.model_proto)


def _without_traces(proto: Any) -> Any:
    """Less what the exporter says of every node: where it was traced, in files of this machine, in megabytes."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]
    return proto


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of every node that it did not simplify; other threads still hear their own."""
    logger, thread = logging.getLogger("onnxscript.optimizer._constant_folding"), threading.get_ident()

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)


def _store_half(proto: Any) -> None:
    """Store weights in float16, and cast them back when the file is loaded."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in list(proto.graph.initializer):
        if weight.data_type != TensorProto.FLOAT or int(np.prod(weight.dims)) < 1024:
            continue
        name = weight.name
        half = numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), f"{name}_float16")
        weight.CopyFrom(half)
        casts.append(helper.make_node("Cast", [half.name], [name], name=f"{name}_cast", to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _run_onnx(path: Path, x: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["values"], {"pixels": x.numpy()})[0]
