"""export_model(): weights as a file that other programs run, ONNX or a program of torch.export."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tcgn_hub.errors import CheckpointError, OutputError
from tcgn_hub.extras import require
from tcgn_hub.files import writing
from tcgn_hub.images.transforms import INPUT_PX

if TYPE_CHECKING:
    import torch

    from tcgn_hub.models.tcgn import TCGN
    from tcgn_hub.weights.info import ModelInfo

__all__ = ["FORMATS", "PRECISIONS", "Exported", "export_model", "with_features", "write_onnx"]

FORMATS = ("onnx", "torch-export")
PRECISIONS = ("float32", "float16", "int8")
_MOST = 1024  # patches in a batch of a dynamic program
_OPSET = 20  # the first that has GELU
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": 0.2}


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: Where it is.
        difference: Largest difference of its values to those of the model, on patches of noise.
    """

    path: Path
    difference: float


def export_model(
    weights: str | Path | None = None,
    *,
    out: str | Path | None = None,
    format: str = "onnx",
    precision: str = "float32",
    batch_size: int | None = None,
) -> Exported:
    """Export weights. The file takes normalised patches ``pixels``, float32, shape (B, 3, 224, 224).

    It gives ``values``, float32, shape (B, genes), and ``features``, (B, 1280). Genes, units, scale and held-out
    metrics travel with it as JSON: in the metadata of an .onnx file, as the extra file ``tcgn.json`` of a .pt2 file.

    Args:
        weights: As in `tcgn_hub.load_model`; the default weights if None.
        out: File to write, .onnx or .pt2. If None, an ONNX file is kept below ``HF_HOME``, where ``backend='onnx'``
            finds it.
        format: 'onnx', or 'torch-export' for `torch.export.load`.
        precision: 'float32'; for ONNX also 'float16', which stores the weights so and computes in float32, at half the
            size, or 'int8', which multiplies matrices in 8 bits with scales found anew for each batch.
        batch_size: Patches in a batch; any number from 1 to 1024 if None.

    Raises:
        WeightsError: The weights cannot be had.
        CheckpointError: The exported model does not give the values of the model.
        OutputError: The file cannot be written, or has the name of another format.
        ExtraError: ONNX is not installed.
    """
    if format not in FORMATS or precision not in PRECISIONS:
        raise ValueError(f"format is one of {', '.join(FORMATS)}, and precision one of {', '.join(PRECISIONS)}")
    suffix = ".onnx" if format == "onnx" else ".pt2"
    if format == "torch-export" and precision != "float32":
        raise OutputError(f"{precision} is for ONNX; export float32, or to ONNX.")
    if out is None and format != "onnx":
        raise OutputError("Say where to write the program: a file that ends in .pt2.")
    if out is not None and Path(out).suffix != suffix:
        raise OutputError(f"{out} does not end in {suffix}, as {format} does.")
    if format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, extra="onnx", to="export ONNX")
    import torch

    from tcgn_hub.models.loading import load_model
    from tcgn_hub.prediction.backends.onnx import exported_path

    model, info = load_model(weights)
    if out is None:
        path = exported_path(info.sha256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise OutputError(f"{path.parent} cannot be made a folder ({err.strerror}).") from err
    else:
        path = Path(out)
        if not path.parent.is_dir():
            raise OutputError(f"{path} cannot be written: there is no folder {path.parent}.")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size or 2, 3, INPUT_PX, INPUT_PX, generator=generator)
    wrapped = with_features(model)
    with torch.inference_mode():
        expected = wrapped(x)[0].numpy()
    facts = json.dumps(_known(info))
    with writing(path) as part:
        if format == "onnx":
            write_onnx(wrapped, x, part, precision=precision, dynamic=batch_size is None, facts=facts)
            found = _run_onnx(part, x)
        else:
            program = torch.export.export(wrapped, (x,), dynamic_shapes=_dynamic(batch_size is None))
            with open(part, "wb") as handle:
                torch.export.save(program, handle, extra_files={"tcgn.json": facts})
            with torch.inference_mode():
                found = program.module()(x)[0].numpy()
        difference = float(np.abs(found - expected).max())
        if not difference <= _TOLERANCE[precision] * max(1.0, float(np.abs(expected).max())):
            raise CheckpointError(
                f"The exported model differs by {difference:.2g} from {info.name}; nothing was written."
            )
    return Exported(path, difference)


def _known(info: ModelInfo) -> dict[str, Any]:
    """What is known of a model, as `tcgn_hub.weights.info.model_info` takes it."""
    held_out: dict[str, Any] = {"interval_level": info.level}
    if info.pcc is not None:
        held_out["pcc"] = [info.pcc[gene] for gene in info.genes]
    if info.significant is not None:
        held_out["significant"] = sorted(info.significant)
    if info.interval_radius is not None:
        held_out["interval_radius"] = [
            None if np.isnan(width) else width for width in (info.interval_radius[gene] for gene in info.genes)
        ]
    features = {} if info.ood is None else {"features": info.ood.to_json()}
    return {
        "name": info.name,
        "sha256": info.sha256,
        "genes": list(info.genes),
        "units": info.units,
        "facts": {
            "held_out": held_out,
            "crop": {"patch_um": info.patch_um, "nominal_patch_um": info.nominal_patch_um},
            "training_data": {**info.training_data, **features},
        },
    }


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
    model: torch.nn.Module, x: torch.Tensor, path: Path, *, precision: str, dynamic: bool, facts: str
) -> None:
    """Write a model as ONNX.

    Args:
        model: What `with_features` gave.
        x: An input that it takes.
        path: File to write.
        precision: One of `PRECISIONS`.
        dynamic: Whether the file takes other batches than that of ``x``.
        facts: JSON for the metadata.
    """
    import onnx

    from tcgn_hub.prediction.backends.onnx import METADATA

    proto = _graph_of(model, x, dynamic=dynamic)
    if precision == "int8":
        proto = _in_int8(proto)
    elif precision == "float16":
        _store_half(proto)
    onnx.helper.set_model_props(proto, {METADATA: facts})
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
    return program.model_proto


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The exporter tells of every node that it did not simplify."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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


def _in_int8(proto: Any) -> Any:
    """Products of matrices in 8 bits: weights per output channel, activations per batch."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    logging.getLogger().disabled, was = True, logging.getLogger().disabled  # it advises on the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder, "before.onnx"), Path(folder, "after.onnx")
            before.write_bytes(proto.SerializeToString())
            quantize_dynamic(before, after, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
            return onnx.load(after)
    finally:
        logging.getLogger().disabled = was


def _run_onnx(path: Path, x: torch.Tensor) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["values"], {"pixels": x.numpy()})[0]
