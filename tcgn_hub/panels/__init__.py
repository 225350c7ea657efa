"""Gene panels: ordered lists of gene symbols, one model output each."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from tcgn_hub.errors import PanelError

_FOLDER = Path(__file__).parent
PANELS = ("her2st_785", "cscc_171", "spatiallibd_250")
"""Panels that come with the package, from the data sets of the paper."""
_ENSEMBL = re.compile(r"(ENSG\d{11})(\.\d+)?")
ALL = "all"
"""What asks for all genes that weights predict."""


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


def named_genes(genes: str | Path | Sequence[str] | None) -> list[str] | None:
    """The genes that are asked for by name, see `load_panel`; None where it is all, by None or by `ALL`."""
    return None if genes is None or (isinstance(genes, str) and genes == ALL) else load_panel(genes)


def parse_genes(text: str) -> str | list[str]:
    """What a user of the command line names: a file or a panel as it is, anything else as a list with commas."""
    meant_as_file = text.lower().endswith((".txt", ".csv", ".tsv")) or os.sep in text
    return text if text in PANELS or meant_as_file or Path(text).is_file() else text.split(",")


def find_genes(names: Sequence[str], panel: Sequence[str], *, of: str) -> dict[str, str]:
    """The symbol that a panel has for each gene, whatever its case, by a retired or common name, or an Ensembl id.

    A symbol of the panel always stands for itself; a name that could be two of them for none.
    """
    found = match_genes(names, panel)
    unknown = [name for name in names if name not in found]
    if unknown:
        listed = ", ".join(name + _hint(name, panel) for name in unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise PanelError(
            f"{listed}: not among the {len(panel)} genes that {of} predicts; `tcgn genes {shlex.quote(of)} --grep TEXT`"
            " lists them."
        )
    for symbol, count in Counter(found.values()).items():
        if count > 1:
            same = " and ".join(name for name in found if found[name] == symbol)
            raise PanelError(f"{same} are one gene, {symbol} of {of}; name it once.")
    return found


def match_genes(names: Sequence[str], panel: Sequence[str]) -> dict[str, str]:
    """What `find_genes` finds, by name; names that stand for no gene of the panel are left out."""
    ways: list[tuple[Callable[[str], str], dict[str, str]]] = [
        (key, _alone(panel, key)) for key in (str, str.upper, _today)
    ]
    return {
        name: symbol
        for name in names
        if (symbol := next((index[key(name)] for key, index in ways if key(name) in index), None))
    }


def symbol_of_today(name: str) -> str:
    """The symbol that a retired or common name or an Ensembl id stands for; a name that is not known as it is."""
    ensembl = _ENSEMBL.fullmatch(name.upper())
    return _aliases().get(ensembl[1] if ensembl else name.upper(), name)


def names_of(genes: Iterable[str]) -> dict[str, list[str]]:
    """Of each gene the symbol of today, and after it all other names that are known."""
    others: dict[str, list[str]] = {}
    for name, symbol in _aliases().items():
        others.setdefault(symbol, [symbol]).append(name)
    return {gene: others.get(today := symbol_of_today(gene), [today]) for gene in genes}


def ensembl_ids(genes: Iterable[str]) -> list[str]:
    """The Ensembl gene of each without its version, that of the primary assembly; "" where none is known."""
    return [_ensembl_id(gene) for gene in genes]


def _ensembl_id(gene: str) -> str:
    if ensembl := _ENSEMBL.fullmatch(gene):
        return ensembl[1]
    # in small letters it is the gene of another species, but for such as C10orf10
    human = gene.upper() == gene.replace("orf", "ORF")
    return _ensembl().get(symbol_of_today(gene), "") if human else ""


def _today(name: str) -> str:
    return symbol_of_today(name).upper()


@cache
def _rows() -> list[list[str]]:
    """Symbols of today, their Ensembl genes and their other names, both with commas."""
    lines = (_FOLDER / "aliases.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@cache
def _aliases() -> dict[str, str]:
    """Symbols by their other names in capitals."""
    return {name.upper(): symbol for symbol, *others in _rows() for name in ",".join(others).split(",") if name}


@cache
def _ensembl() -> dict[str, str]:
    """The first Ensembl gene of each symbol of today."""
    return {symbol: ids.split(",")[0] for symbol, ids, _ in _rows()}


def _alone(panel: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """Symbols by a key that no other has."""
    keys = {symbol: key(symbol) for symbol in panel}
    count = Counter(keys.values())
    return {shared: symbol for symbol, shared in keys.items() if count[shared] == 1}


def _hint(name: str, panel: Sequence[str]) -> str:
    """What may be meant by a name that a panel does not have, in brackets."""
    today = symbol_of_today(name)
    if today != name:
        return f" (that is {today})"
    if _ENSEMBL.fullmatch(name.upper()):
        return " (an Ensembl id that is not known here: give the symbol)"
    capitals = {symbol.upper(): symbol for symbol in panel}
    near = [capitals[close] for close in difflib.get_close_matches(name.upper(), capitals, cutoff=0.74)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""
