"""Gene sets of a file, and how much of each a panel holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcgn_hub.errors import PanelError
from tcgn_hub.extras import require
from tcgn_hub.panels import match_genes, symbol_of_today
from tcgn_hub.text import counted, option, some

GeneSets = str | Path | Mapping[str, Sequence[str]]
"""A file of gene sets, or genes by the names of sets."""

MIN_SHARE = 0.2
"""Least share of a set that a score may rest on, unless another is given."""

LEAST_GENES = 5
"""Fewest genes that a score may rest on, unless it is all of a smaller set."""


_KEPT = {"_index", "zarr.json"}  # columns that anndata has of its own, in HDF5 and in Zarr


@dataclass(frozen=True)
class Signature:
    """A gene set, and what of it a score rests on."""

    name: str
    genes: tuple[str, ...]  # those of the panel that may be used, by its symbols and in its order
    size: int  # how many genes the set has, each counted once whatever names it has there

    @property
    def share(self) -> float:
        """Share of the set that may be used."""
        return len(self.genes) / self.size

    def __str__(self) -> str:
        return f"{self.name}: {len(self.genes)} of {counted(self.size, 'gene')} ({100 * self.share:.0f} %)"

    def has_enough(self, min_share: float) -> bool:
        """Whether that is enough to score it."""
        return self.share >= min_share and len(self.genes) >= min(LEAST_GENES, self.size)


def load_gene_sets(sets: GeneSets) -> dict[str, list[str]]:
    """Genes by the names of sets, in the order of the file.

    Args:
        sets: A file: GMT (a line a set: name, description and genes, with tabs between), JSON as MSigDB exports it
            (``{"NAME": {"geneSymbols": [...], ...}}``), or JSON of plain lists (``{"NAME": [...]}``); or a mapping.

    Returns:
        What each set lists. Of names, signs that no file name holds are replaced by ``_``.

    Raises:
        PanelError: It is no such file, has no sets, names one twice, or one has no genes.
    """
    source = "the given mapping" if isinstance(sets, Mapping) else str(sets)
    pairs = list(sets.items()) if isinstance(sets, Mapping) else _read(Path(sets))
    if not pairs:
        raise PanelError(f"There are no gene sets in {source}.")
    found = {}
    for name, listed in pairs:
        genes = listed.get("geneSymbols") if isinstance(listed, Mapping) else listed
        if isinstance(genes, str) or not isinstance(genes, Sequence) or not all(isinstance(g, str) for g in genes):
            raise PanelError(f"The gene set {name} in {source} is no list of symbols, nor has it one as geneSymbols.")
        found[name] = [gene.strip() for gene in genes if gene.strip()]
    names = Counter(map(_tidy, [name for name, _ in pairs]))
    twice = [name for name, count in names.items() if count > 1]
    empty = [name for name, genes in found.items() if not genes]
    if twice or not all(name.strip("._ ") for name in names):
        what = f"names {some(twice)} more than once" if twice else "has a gene set without a name"
        raise PanelError(f"{source} {what}; give each gene set a name of its own.")
    if kept := sorted(_KEPT.intersection(names)):
        raise PanelError(f"{source} calls a gene set {kept[0]}, which files keep for themselves; give it another name.")
    if empty:
        raise PanelError(f"The gene set {some(empty)} in {source} has no genes; leave it out.")
    return {_tidy(name): genes for name, genes in found.items()}


def signatures_of(sets: Mapping[str, Sequence[str]], panel: Sequence[str], usable: Collection[str]) -> list[Signature]:
    """What of each set may be used: genes are found by any name that `tcgn_hub.panels.match_genes` knows.

    ``sets``: what `load_gene_sets` gave; ``panel``: symbols; ``usable``: those of them that may be used.
    """
    symbols = match_genes(list(dict.fromkeys(gene for genes in sets.values() for gene in genes)), panel)
    signatures = []
    for name, genes in sets.items():
        found = {symbols[gene] for gene in genes if gene in symbols}.intersection(usable)
        # what the panel does not have counts as well
        size = len({symbols.get(gene, symbol_of_today(gene)).upper() for gene in genes})
        signatures.append(Signature(name, tuple(gene for gene in panel if gene in found), size))
    return signatures


def enough(signatures: Sequence[Signature], min_share: float, *, of: str) -> tuple[list[Signature], list[Signature]]:
    """Those of which enough may be used, and those that are refused.

    Raises:
        PanelError: None has enough.
    """
    scored = [signature for signature in signatures if signature.has_enough(min_share)]
    refused = [signature for signature in signatures if not signature.has_enough(min_share)]
    if not scored:
        best = max(refused, key=lambda signature: (min(len(signature.genes), LEAST_GENES), signature.share))
        raise PanelError(
            f"{of} predicts too few genes of {counted(len(refused), 'gene set')} better than chance, most of {best};"
            f" a score takes {LEAST_GENES} genes and {100 * min_share:g} % of a set, or the share that"
            f" {option('min_share')} says."
        )
    return scored, refused


def mean_scores(values: np.ndarray, genes: Sequence[str], signatures: Sequence[Signature]) -> np.ndarray:
    """The mean of each signature's genes, by decoupler's ``waggr``, float32, shape (n, signatures).

    Args:
        values: Finite, shape (n, genes).
        genes: Symbols of the columns.
        signatures: Of which all genes are among these.

    Raises:
        ExtraError: decoupler is not installed.
    """
    decoupler = require_decoupler()
    pandas = require("pandas", extra="signatures", to="score gene sets")
    names = [str(i) for i in range(len(signatures))]
    pairs = [(name, gene) for name, signature in zip(names, signatures, strict=True) for gene in signature.genes]
    net = pandas.DataFrame(pairs, columns=["source", "target"])
    net["weight"] = 1.0
    # without permutations, which take genes for independent
    scores, _ = decoupler.mt.waggr(
        pandas.DataFrame(values, columns=list(genes)), net, fun="wmean", times=0, tmin=0, empty=False
    )
    return scores[names].to_numpy(np.float32)


def require_decoupler() -> Any:
    """What scores are computed by, if it is installed."""
    return require("decoupler", extra="signatures", to="score gene sets")


def _read(path: Path) -> list[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise PanelError(f"Gene sets {path} could not be read ({err}); give a GMT or a JSON file.") from err
    if text.lstrip().startswith(("{", "[")):
        return _read_json(text, path)
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        name, *rest = line.rstrip().split("\t")
        if line.strip() and not rest:
            raise PanelError(
                f"{path}, line {number}: no gene set; a line of a GMT is a name, a description and genes, tabs between."
            )
        if line.strip():
            pairs.append((name, rest[1:]))
    return pairs


def _read_json(text: str, path: Path) -> list[tuple[str, Any]]:
    try:
        # as pairs, since of a name that is there twice an object keeps the last
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as err:
        raise PanelError(f"Gene sets {path} are no JSON ({err}).") from err
    if not isinstance(pairs, _Pairs):
        raise PanelError(f"Gene sets {path} are no JSON object of sets by name.")
    return [(name, dict(listed) if isinstance(listed, _Pairs) else listed) for name, listed in pairs]


class _Pairs(list[Any]):
    """The members of a JSON object."""


def _tidy(name: str) -> str:
    return "".join(sign if sign.isprintable() and sign not in "/\\" else "_" for sign in name.strip())
