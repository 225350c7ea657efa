"""tcgn demo: a web page to play with."""

from __future__ import annotations

import argparse

from tcgn_hub.cli.common import command, make_parser
from tcgn_hub.cli.options import add, given

_OPTIONS = ("weights", "device", "precision", "compile", "host", "port", "max_mb")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn demo."""
    parser = make_parser(
        prog,
        "Open a web page on this machine: drop a patch or a slide, pick genes, see values, maps and the learned graph."
        " Ctrl-C ends it.",
    )
    add(parser, *_OPTIONS)
    return parser


def _demo(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.demo import launch_demo

    launch_demo(**given(args, _OPTIONS))
    return 0


main = command(build_parser, _demo, "tcgn demo")
