"""tcgn demo: a web page to play with."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcgn_hub.cli.common import make_parser, run
from tcgn_hub.cli.options import add, given

_OPTIONS = ("weights", "device", "host", "port", "max_mb")


def build_parser(prog: str = "tcgn demo") -> argparse.ArgumentParser:
    """The arguments of tcgn demo."""
    parser = make_parser(
        prog,
        "Open a web page on this machine: drop a patch or a slide, pick genes, see values, maps and the learned graph."
        " Ctrl-C ends it.",
    )
    add(parser, *_OPTIONS)
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str = "tcgn demo") -> int:
    """Run tcgn demo; returns its exit code."""
    args = build_parser(prog).parse_args(argv)
    return run(lambda: _demo(args), prog)


def _demo(args: argparse.Namespace) -> int:
    from tcgn_hub.demo import launch_demo

    launch_demo(**given(args, _OPTIONS))
    return 0
