"""tcgn view: a predicted slide in a viewer."""

from __future__ import annotations

import argparse

from tcgn_hub.cli.common import command, make_parser
from tcgn_hub.cli.options import add, given


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn view."""
    parser = make_parser(
        prog,
        "Open a predicted slide in TissUUmaps, in the browser of this machine: pan, zoom, pick a gene, see value and"
        " quality of the tile under the pointer. Nothing is written beside your files. Ctrl-C ends it.",
    )
    add(parser, "result", "slide", "port", "no_browser")
    return parser


def _view(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.writing.view import view

    view(args.result, browser=not args.no_browser, **given(args, ("slide", "port")))
    return 0


main = command(build_parser, _view, "tcgn view")
