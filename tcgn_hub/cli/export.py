"""tcgn export: weights as a file that other programs run."""

from __future__ import annotations

import argparse

from tcgn_hub.cli.common import command, make_parser
from tcgn_hub.cli.options import add, given


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn export."""
    parser = make_parser(
        prog,
        "Write weights as ONNX (-o FILE.onnx; without -o it is kept where `tcgn predict --backend onnx` finds it) or as"
        " a program of torch.export (-o FILE.pt2), and check that they give the same values. Genes, units and scale"
        " travel with them. The file takes any number of patches at once, unless --batch-size fixes it.",
    )
    add(parser, "weights", "output", "batch_size", "fp16")
    return parser


def _export(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.prediction.predictor import export

    precision = "float16" if args.fp16 else "float32"
    exported = export(args.weights, args.output, precision=precision, **given(args, ["batch_size"]))
    size = exported.path.stat().st_size
    print(f"{exported.path}: {size:,} bytes, values within {exported.difference:.2g} of those of the model")
    return 0


main = command(build_parser, _export, "tcgn export")
