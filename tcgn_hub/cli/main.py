"""tcgn: the umbrella command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from tcgn_hub.cli.common import make_parser

COMMANDS = {
    "predict": "genes and values of patches and slides (also installed as tcgn-predict)",
    "explain": "draw what predictions rest on: maps of genes, the learned graph, tiles of slides",
    "pretrain": "distil frozen networks into a backbone, from tissue alone",
    "finetune": "train on sections of your own",
    "adapt": "adapt weights to a section of your own by few of its spots",
    "evaluate": "measure weights on sections that they have not seen",
    "crossval": "train and measure with every patient or section held out once",
    "view": "open a predicted slide in a viewer, with a map of any gene",
    "export": "write weights as ONNX or as a program of torch.export",
    "cohort": "what became of the slides of a folder, and all of them together",
    "demo": "open a web page to play with",
    "genes": "list the genes of weights, and how well each is predicted",
    "weights": "list, get, verify, import and publish weights",
}


def build_parser() -> argparse.ArgumentParser:
    """The arguments of tcgn, up to the name of the command."""
    listed = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    parser = make_parser("tcgn", "Gene expression from H&E images.", epilog=f"commands:\n{listed}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see `tcgn COMMAND --help`")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run tcgn; returns its exit code."""
    args = build_parser().parse_args(argv)
    command = import_module(f"tcgn_hub.cli.{args.command}")
    return command.main(args.arguments, prog=f"tcgn {args.command}")


if __name__ == "__main__":
    sys.exit(main())
