"""Speed, memory and arithmetic of tcgn_base beside its literal form and timm's backbones, in one table.

    python benchmarks/model.py                       # everything; compiling takes minutes for each compiled row
    python benchmarks/model.py --no-compile          # eager rows only
    python benchmarks/model.py --quick --no-compile  # does the script work? its numbers mean nothing
    python benchmarks/model.py --only tcgn_base --batches 8 --train-batch 0

Rows. ``tcgn_base`` is our model as timm makes it, ``tcgn_base fused`` the same after `TCGN.fuse`, as predictions use
it, ``literal`` the same with the matrices of CensNet formed and multiplied as matrices, one image after another
(``tests/oracle.py``); ``resnet50``, ``densenet121`` and ``vit_large_patch16_224`` are timm's. All weights are random
and all images 224 x 224 noise: nothing here depends on their values. ``compiled`` is ``torch.compile`` with
``dynamic=False``, one compilation for each batch size, and with ``torch._inductor.config.freezing``, which folds and
repacks the weights for inference (``--no-freeze`` leaves it off); ``--autotune`` adds ``max_autotune``, with which the
compiler measures kernels of its own against the library's.
``onnx`` and ``openvino`` are the exported model, of any batch, in ONNX Runtime and OpenVINO, on the CPU and where these
are installed.
``bf16`` is autocast to bfloat16. A row ``train`` is one forward and backward pass in training mode, without the
optimiser.

Columns.
    images/s   From the median time of a call. The rows of one batch size take turns, round after round, so that a
               machine that slows down for a while does so for all of them.
    memory     MiB: the weights, and the most that torch's allocator held at once during one call beyond what it held
               before. Measured on CUDA by ``torch.cuda.max_memory_allocated`` and on the CPU by the events of
               ``torch.profiler``. Not in it: the batch of images, and memory taken outside torch's allocator, such as
               the packing buffers of a BLAS or the repacked weights of freezing, and all that ONNX Runtime and OpenVINO
               need.
    GFLOPs     An image, by ``torch.utils.flop_counter``: 2 for each multiply-add of matrix products, convolutions and
               attention. Elementwise work, gathers and scatters count nothing.
    limit      Images/s if these FLOPs ran at the rate of a large matrix product in the same dtype, measured between
               the rows of the same run: the best of several sizes, and like the rows the median over moments.
    of limit   Images/s as a share of that limit.
    off by     Largest difference of the logits from those of the same model in eager float32, and of ``literal`` from
               ``tcgn_base``, whose weights it has; relative to the largest of these logits. A compiled model may round
               a score of the graph to the other side of the threshold and so choose another edge, which shows here.

Float32 is float32 throughout: TF32 is off on CUDA unless ``--tf32`` is given, which turns it on for products and
convolutions alike.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import timm  # noqa: E402
from machine import processor_name, progress, usable_cores  # noqa: E402
from oracle import literal_model  # noqa: E402

import tcgn_hub  # noqa: E402, F401
from tcgn_hub.prediction.backends.openvino import compile_options  # noqa: E402
from tcgn_hub.prediction.export import with_features, write_onnx  # noqa: E402

OURS, FUSED, LITERAL = "tcgn_base", "tcgn_base fused", "literal"
BACKBONES = ("resnet50", "densenet121", "vit_large_patch16_224")
EXPORTED = (("onnx", "float32"), ("openvino", "float32"), ("openvino", "bf16"))
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
clock = time.perf_counter


@dataclass
class Row:
    """One line of the table; the measurements are None where the row failed."""

    model: str
    mode: str
    dtype: str
    batch: int
    train: bool = False
    call: Callable[[], torch.Tensor] | None = None
    seconds: float | None = None
    memory: float | None = None
    flops: float | None = None
    off_by: float | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """How the table calls it."""
        return f"{self.model} {self.mode} {self.dtype}" + (" train" if self.train else "")

    @property
    def rate(self) -> float | None:
        """Images a second."""
        return None if self.seconds is None else self.batch / self.seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device, at_least: float) -> float:
    """Mean time of a call, over as many as fill ``at_least`` seconds."""
    count = 0
    synchronize(device)
    start = clock()
    while True:
        call()
        synchronize(device)
        count += 1
        elapsed = clock() - start
        if elapsed >= at_least:
            return elapsed / count


def gemm_rates(device: torch.device, sizes: Sequence[int], repeats: int) -> dict[str, float]:
    """FLOPs a second of a square matrix product, the best size's median over repeats, for each dtype."""
    rates = dict.fromkeys(DTYPES, 0.0)
    for name, dtype in DTYPES.items():
        for size in sizes:
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            out = torch.empty(size, size, device=device, dtype=dtype)
            torch.mm(a, b, out=out)
            product = partial(torch.mm, a, b, out=out)
            seconds = statistics.median(seconds_of(product, device, 0) for _ in range(repeats))
            rates[name] = max(rates[name], 2 * size**3 / seconds)
    return rates


def conv_backward_flops(grad_out_shape, x_shape, w_shape, _bias, _stride, _padding, _dilation, transposed, *args, **_):
    """Each gradient costs what the convolution did; torch's own formula ignores the groups of a depthwise one."""
    output_mask = args[2]
    once = conv_flop_count(x_shape, w_shape, grad_out_shape, transposed=transposed)
    return once * (bool(output_mask[0]) + bool(output_mask[1]))


def flops_per_image(model: nn.Module, device: torch.device, train: bool, batch: int = 2) -> float:
    x = torch.randn(batch, 3, 224, 224, device=device)
    mapping = {torch.ops.aten.convolution_backward: conv_backward_flops}
    model.train(train)
    # not inference_mode, in which the counter's module hooks fail
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter, torch.set_grad_enabled(train):
        out = model(x)
        if train:
            out.square().mean().backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / batch


def peak_growth(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes of torch's allocator at the highest moment of a call, beyond those held before it."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        prof.export_chrome_trace(str(path))
        trace = json.loads(path.read_text())
    events = [event["args"] for event in trace["traceEvents"] if event["name"] == "[memory]"]
    # what an earlier profile left counted is in every total
    before = events[0]["Total Allocated"] - events[0]["Bytes"]
    return max(event["Total Allocated"] for event in events) - before


def weights_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def make_models(names: set[str], device: torch.device) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    models = {name: timm.create_model(name) for name in (OURS, *BACKBONES) if name in names or name == OURS}
    if FUSED in names:
        models[FUSED] = copy.deepcopy(models[OURS]).eval().fuse()
    if LITERAL in names:
        models[LITERAL] = literal_model(models[OURS])
    return {name: model.to(device).eval() for name, model in models.items()}


def make_rows(args: argparse.Namespace) -> list[Row]:
    rows = []
    for batch in args.batches:
        rows += [Row(OURS, "eager", dtype, batch) for dtype in DTYPES]
        rows += [Row(FUSED, mode, dtype, batch) for mode in ("eager", "compiled") for dtype in DTYPES]
        if args.exported:
            rows += [Row(FUSED, mode, dtype, batch) for mode, dtype in EXPORTED if mode != "openvino" or args.openvino]
        rows += [Row(model, "eager", "float32", batch) for model in (LITERAL, *BACKBONES)]
    if args.train_batch:
        rows += [
            Row(model, "eager", dtype, args.train_batch, train=True)
            for model, dtype in ((OURS, "float32"), (LITERAL, "float32"), (OURS, "bf16"))
        ]
    return [
        row
        for row in rows
        if (args.compile or row.mode != "compiled") and (not args.only or any(text in row.name for text in args.only))
    ]


@cache
def exported(model: nn.Module) -> bytes:
    """An ONNX file of a model, which takes a minute to trace."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        x = torch.zeros(2, 3, 224, 224)
        write_onnx(with_features(model), x, path, precision="float32", dynamic=True, metadata={})
        return path.read_bytes()


def onnx_call(model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported(model), options, providers=["CPUExecutionProvider"])
    pixels = x.numpy()
    return lambda: torch.from_numpy(session.run(["values"], {"pixels": pixels})[0])


def openvino_call(model: nn.Module, x: torch.Tensor, dtype: str) -> Callable[[], torch.Tensor]:
    import openvino

    core, options = openvino.Core(), compile_options({"float32": "float32", "bf16": "bfloat16"}[dtype])
    program = core.read_model(exported(model), b"")
    options["INFERENCE_NUM_THREADS"] = torch.get_num_threads()
    request = core.compile_model(program, "CPU", options).create_infer_request()
    pixels = x.numpy()
    return lambda: torch.from_numpy(request.infer({"pixels": pixels})["values"].copy())


def make_call(row: Row, model: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    if row.mode == "onnx":
        return onnx_call(model, x)
    if row.mode == "openvino":
        return openvino_call(model, x, row.dtype)
    run = model if row.mode == "eager" else torch.compile(model, dynamic=False)
    precision = nullcontext() if row.dtype == "float32" else torch.autocast(x.device.type, DTYPES[row.dtype])

    def infer() -> torch.Tensor:
        with torch.inference_mode(), precision:
            return run(x)

    def train() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        with precision:
            loss = run(x).float().square().mean()
        loss.backward()
        return loss

    return train if row.train else infer


def prepare(rows: list[Row], models: dict[str, nn.Module], device: torch.device) -> None:
    """The first call of rows of one batch size and one kind, with what does not need turns: memory and accuracy."""
    x = torch.randn(rows[0].batch, 3, 224, 224, device=device)
    for row in rows:
        model = models[row.model].train(row.train)
        progress(f"batch {row.batch}: {row.name}, first call")
        try:
            row.call = make_call(row, model, x)
            row.call()
            reference = OURS if row.model in (LITERAL, FUSED) else row.model
            if not row.train and (row.model, row.mode, row.dtype) != (reference, "eager", "float32"):
                with torch.inference_mode():
                    expected = models[reference](x)
                row.off_by = float((row.call().float() - expected).abs().max() / expected.abs().max())
            model.zero_grad(set_to_none=True)  # gradients of the first call are no part of the next one's start
            if row.mode in ("eager", "compiled"):
                row.memory = weights_bytes(model) + peak_growth(row.call, device)
        except Exception as error:  # noqa: BLE001 - a compiler can fail in any way; its row says how
            row.call = None
            row.error = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        model.zero_grad(set_to_none=True)


def measure(rows: list[Row], models: dict[str, nn.Module], device: torch.device, args: argparse.Namespace) -> None:
    """Measure rows of one batch size and one kind, in turns."""
    prepare(rows, models, device)
    alive = [row for row in rows if row.call is not None]
    times: list[list[float]] = [[] for _ in alive]
    for done in range(args.rounds):
        progress(f"batch {rows[0].batch}: round {done + 1} of {args.rounds}")
        for row, seconds in zip(alive, times, strict=True):
            seconds.append(seconds_of(row.call, device, args.seconds))
    for row, seconds in zip(alive, times, strict=True):
        row.seconds = statistics.median(seconds)
        models[row.model].zero_grad(set_to_none=True)
        row.call = None


def print_table(rows: list[Row], rates: dict[str, float]) -> None:
    width = max(len(row.name) for row in rows)
    head = f"{'':{width}}  batch  images/s  memory MiB  GFLOPs   limit  of limit   off by"
    print(head)
    kind = None
    for row in rows:
        if kind not in (None, (row.batch, row.train)):
            print()
        kind = row.batch, row.train
        line = f"{row.name:{width}}  {row.batch:5}"
        if row.rate is None:
            print(f"{line}  failed: {row.error}")
            continue
        limit = rates.get(row.dtype, math.nan) / row.flops
        off_by = "" if row.off_by is None else f"{row.off_by:.1e}"
        memory = "" if row.memory is None else f"{row.memory / 2**20:.0f}"
        limits = ("", "") if math.isnan(limit) else (f"{limit:.1f}", f"{row.rate / limit:.0%}")
        print(
            f"{line}  {row.rate:8.2f}  {memory:>10}  {row.flops / 1e9:6.2f}"
            f"  {limits[0]:>6}  {limits[1]:>8}  {off_by:>7}"
        )


def print_ratios(rows: list[Row], args: argparse.Namespace) -> None:
    def rate(model: str, mode: str, dtype: str, batch: int, train: bool = False) -> float | None:
        for row in rows:
            if (row.model, row.mode, row.dtype, row.batch, row.train) == (model, mode, dtype, batch, train):
                return row.rate
        return None

    def ratio(text: str, ours: float | None, theirs: float | None) -> None:
        if ours and theirs:
            print(f"  {text:58} {ours / theirs:6.2f}x")

    if args.batches:
        batch = 8 if 8 in args.batches else max(args.batches)
        print(f"\nimages/s against each other, batch {batch}:")
        literal = rate(LITERAL, "eager", "float32", batch)
        for mode, dtype in dict.fromkeys((row.mode, row.dtype) for row in rows if row.model == FUSED):
            ratio(f"{FUSED} {mode} {dtype} / literal eager float32", rate(FUSED, mode, dtype, batch), literal)
        for dtype in DTYPES:
            fused, whole = (rate(model, "eager", dtype, batch) for model in (FUSED, OURS))
            ratio(f"{FUSED} eager {dtype} / {OURS} eager {dtype}", fused, whole)
        for model in BACKBONES:
            ours, theirs = rate(FUSED, "eager", "float32", batch), rate(model, "eager", "float32", batch)
            ratio(f"{FUSED} eager float32 / {model} eager float32", ours, theirs)
    for batch in args.batches if args.exported else ():
        print(f"\nimages/s of {FUSED} against it in ONNX Runtime, batch {batch}:")
        for mode, dtype in dict.fromkeys((row.mode, row.dtype) for row in rows if row.model == FUSED):
            ratio(f"{mode} {dtype}", rate(FUSED, mode, dtype, batch), rate(FUSED, "onnx", "float32", batch))
    if args.train_batch:
        print(f"\ntraining steps against each other, batch {args.train_batch}:")
        literal = rate(LITERAL, "eager", "float32", args.train_batch, True)
        for dtype in DTYPES:
            ours = rate(OURS, "eager", dtype, args.train_batch, True)
            ratio(f"{OURS} eager {dtype} / literal eager float32", ours, literal)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; by default all cores this process may use")
    parser.add_argument("--batches", type=int, nargs="*", help="batch sizes of inference, by default 1 8 32")
    parser.add_argument("--train-batch", type=int, help="batch size of the training step, by default 16; 0 for none")
    parser.add_argument("--rounds", type=int, help="how often the rows take turns, by default 7")
    parser.add_argument("--seconds", type=float, help="the least time of one turn, by default 0.3")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose name contains one of these texts")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the compiled rows out")
    parser.add_argument("--no-freeze", dest="freeze", action="store_false", help="compile without frozen weights")
    parser.add_argument(
        "--autotune", action="store_true", help="let the compiler measure its kernels, in minutes a row"
    )
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="take the processor time of this process for the time, on a machine that others use; needs --threads 1",
    )
    parser.add_argument("--tf32", action="store_true", help="allow TF32 in float32 rows and in their limit")
    parser.add_argument("--quick", action="store_true", help="small batches and one round, to try the script")
    args = parser.parse_args(argv)
    for name, full, quick in (("batches", [1, 8, 32], [1, 2]), ("train_batch", 16, 2), ("rounds", 7, 1)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    if args.seconds is None:
        args.seconds = 0.0 if args.quick else 0.3
    if args.rounds < 1 or any(batch < 1 for batch in args.batches) or args.train_batch < 0:
        parser.error("batch sizes and rounds must be positive")
    if args.cpu_time and (args.threads != 1 or args.device != "cpu"):
        parser.error("--cpu-time needs --threads 1 and --device cpu")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    global clock
    args = parse_args(argv)
    clock = time.process_time if args.cpu_time else time.perf_counter
    device = torch.device(args.device)
    torch.set_num_threads(args.threads or usable_cores())
    torch.backends.cuda.matmul.allow_tf32 = args.tf32
    torch.backends.cudnn.allow_tf32 = args.tf32
    # each compiled row and batch size is one more version of the same forward
    torch._dynamo.config.recompile_limit = 64
    torch._inductor.config.freezing = args.freeze
    torch._inductor.config.max_autotune = args.autotune

    args.exported = device.type == "cpu" and all(map(find_spec, ("onnx", "onnxscript", "onnxruntime")))
    args.openvino = find_spec("openvino") is not None
    rows = make_rows(args)
    if not rows:
        sys.exit("No row is left to measure.")
    models = make_models({row.model for row in rows}, device)
    print(f"torch {torch.__version__}, {processor_name(str(device))}, {device}, {torch.get_num_threads()} CPU threads")

    sizes, repeats = ((1024, 1568), 2) if args.quick else ((1024, 1568, 2352, 3136), 5)
    torch.mm(*torch.randn(2, 2000, 2000, device=device))  # the first products of a process are slower
    moments = [gemm_rates(device, sizes, repeats)]
    flops: dict[tuple[str, bool], float] = {}
    for group in dict.fromkeys((row.batch, row.train) for row in rows):
        members = [row for row in rows if (row.batch, row.train) == group]
        for row in members:
            if (row.model, row.train) not in flops:
                flops[row.model, row.train] = flops_per_image(models[row.model], device, row.train)
            row.flops = flops[row.model, row.train]
        measure(members, models, device, args)
        moments.append(gemm_rates(device, sizes, repeats))
    rates = {name: statistics.median(moment[name] for moment in moments) for name in DTYPES}

    limits = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    print(f"matrix products: {limits}\n")
    print_table(rows, rates)
    print_ratios(rows, args)


if __name__ == "__main__":
    main()
