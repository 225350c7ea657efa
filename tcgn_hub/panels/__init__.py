"""Gene panels: ordered lists of gene symbols, one model output each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tcgn_hub.errors import PanelError

_FOLDER = Path(__file__).parent
PANELS = ("her2st_785", "cscc_171", "spatiallibd_250")
"""Panels that come with the package, from the data sets of the paper."""


def load_panel(genes: str | Path | Sequence[str]) -> list[str]:
    """An ordered gene panel."""
    source = "the given list"
    if isinstance(genes, (str, Path)):
        source = str(genes)
        path = _FOLDER / f"{genes}.txt" if source in PANELS else Path(genes)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as err:
            raise PanelError(
                f"Gene panel {source} could not be read ({err}); give a text file with one symbol a line,"
                f" or one of {', '.join(PANELS)}."
            ) from err
        genes = text.splitlines()
    symbols = [symbol.strip() for symbol in genes if symbol.strip()]
    if not symbols:
        raise PanelError(f"Gene panel {source} has no genes in it.")
    twice = [symbol for symbol, count in Counter(symbols).items() if count > 1]
    if twice:
        raise PanelError(f"Gene panel {source} names a gene more than once: {', '.join(twice[:5])}.")
    return symbols


def parse_genes(text: str) -> str | list[str]:
    """What a user of the command line names: a file or a panel as it is, anything else as a list with commas."""
    return text if text in PANELS or Path(text).is_file() else text.split(",")
