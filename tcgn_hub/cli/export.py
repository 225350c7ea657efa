"""tcgn export: weights as a file that other programs run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tcgn_hub.cli.common import load_predictor, make_parser, run
from tcgn_hub.cli.options import add, given


def build_parser(prog: str = "tcgn export") -> argparse.ArgumentParser:
    """The arguments of tcgn export."""
    parser = make_parser(
        prog,
        "Write weights as ONNX (-o FILE.onnx; without -o it is kept where `tcgn predict --backend onnx` finds it) or as"
        " a program of torch.export (-o FILE.pt2), and check that they give the same values. Genes, units and scale"
        " travel with them. The file takes any number of patches at once, unless --batch-size fixes it.",
    )
    add(parser, "weights", "output", "batch_size")
    add(parser.add_mutually_exclusive_group(), "fp16", "int8")
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn export") -> int:
    """Run tcgn export; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    return run(lambda: _export(args), prog)


def _export(args: argparse.Namespace) -> int:
    from tcgn_hub.errors import OutputError

    suffix = Path(args.output).suffix.lower() if args.output else ".onnx"
    if suffix not in (".onnx", ".pt2"):
        raise OutputError(f"{args.output} is of no format that is known; let it end in .onnx or .pt2.")
    if suffix == ".pt2" and (args.fp16 or args.int8):
        raise OutputError("--fp16 and --int8 are for ONNX; let the name end in .onnx, or leave them out.")
    exported = load_predictor(args).export(
        args.output,
        precision="float16" if args.fp16 else "int8" if args.int8 else "float32",
        **given(args, ["batch_size"]),
    )
    size = exported.path.stat().st_size
    print(f"{exported.path}: {size:,} bytes, values within {exported.difference:.2g} of those of the model")
    return 0
