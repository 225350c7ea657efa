"""tcgn export: weights as a file that other programs run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcgn_hub.cli.common import run, version
from tcgn_hub.cli.images import positive


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn export."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write weights as ONNX or as a program of torch.export, and check that they give the same values."
        " Genes, units and scale travel with them.",
    )
    parser.add_argument(
        "--weights", metavar="TAG|DIR|FILE", help="tag, hf-hub:ORG/NAME, model directory, or parameters"
    )
    parser.add_argument("--format", choices=("onnx", "torch-export"), default="onnx", help="default: onnx")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=".onnx or .pt2 (default: kept where `tcgn predict --backend onnx` finds it)",
    )
    parser.add_argument("--dynamic-batch", action="store_true", help="take any number of patches at once, 1 to 1024")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="otherwise exactly N (default: 1)")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="ONNX: store weights in float16, compute in float32")
    precision.add_argument("--int8", action="store_true", help="ONNX: multiply matrices in 8 bits")
    parser.add_argument("--version", action="version", version=version(prog))
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn export") -> int:
    """Run tcgn export; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    return run(lambda: _export(args), prog)


def _export(args: argparse.Namespace) -> int:
    from tcgn_hub.prediction.export import export_model

    exported = export_model(
        args.weights,
        out=args.output,
        format=args.format,
        precision="float16" if args.fp16 else "int8" if args.int8 else "float32",
        batch_size=None if args.dynamic_batch else args.batch_size,
    )
    size = exported.path.stat().st_size
    print(f"{exported.path}: {size:,} bytes, values within {exported.difference:.2g} of those of the model")
    return 0
