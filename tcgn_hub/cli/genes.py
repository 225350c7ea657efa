"""tcgn genes: which genes weights predict, and how well."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tcgn_hub.cli.common import command, make_parser
from tcgn_hub.cli.options import add
from tcgn_hub.weights.info import WeightsInfo


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn genes."""
    parser = make_parser(
        prog,
        "List the genes of weights or of a panel in their order, with the held-out Pearson correlation (PCC) of each,"
        " whether it is significant, its Ensembl id, and the symbol of today where the panel has an older one.",
        epilog="Exit code: 0 listed, 2 nothing was, for the reason printed.",
    )
    parser.add_argument(
        "which",
        nargs="?",
        metavar="TAG|DIR|FILE",
        help="weights as of `tcgn predict --weights`, the name of a panel, or a .txt file of one (default: the first"
        " tag of `tcgn weights list`)",
    )
    add(parser, "grep", "json")
    return parser


def _genes(args: argparse.Namespace, prog: str) -> int:
    from tcgn_hub.errors import PanelError
    from tcgn_hub.panels import ensembl_ids, names_of, symbol_of_today
    from tcgn_hub.text import aligned

    info = _info(args.which)
    asked = (args.grep or "").upper()
    rows = [
        {
            "gene": gene,
            "today": names[0],
            "gene_id": ensembl_ids([gene])[0] or None,
            "pcc": (info.pcc or {}).get(gene),
            "pcc_given_depth": (info.pcc_given_depth or {}).get(gene),
            "significant": None if info.significant is None else gene in info.significant,
        }
        for gene, names in names_of(info.genes).items()
        if any(asked in name.upper() for name in (gene, *names))
    ]
    if not rows:
        today = symbol_of_today(args.grep)
        known = f"; it is a name of {today}, which is not among them" if today != args.grep else ""
        raise PanelError(
            f"None of the {len(info.genes)} genes of {info.name} has {args.grep!r} in one of its names{known}."
        )
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    columns = [["gene", *(row["gene"] for row in rows)]]
    for title, key in (("PCC", "pcc"), ("given depth", "pcc_given_depth")):
        if getattr(info, key) is not None:
            columns.append([title, *("" if row[key] is None else f"{row[key]:.3f}" for row in rows)])
    if info.significant is not None:
        columns.append(["significant", *("yes" if row["significant"] else "no" for row in rows)])
    if any(row["gene_id"] for row in rows):
        columns.append(["Ensembl", *(row["gene_id"] or "" for row in rows)])
    columns.append(["", *("" if row["today"] == row["gene"] else f"today {row['today']}" for row in rows)])
    sys.stdout.write(aligned(list(zip(*columns, strict=True)), left=(0, len(columns) - 1)))
    print(f"{len(rows)} of the {len(info.genes)} genes of {info.name}", file=sys.stderr)
    if info.significant is not None:
        print(f"significant: {info.significance}", file=sys.stderr)
    if info.skill:
        print(f"{info.name} {info.skill}", file=sys.stderr)
    return 0


def _info(which: str | None) -> WeightsInfo:
    """What is known of weights, none of whose parameters are read, or of a panel."""
    from tcgn_hub.errors import PanelError
    from tcgn_hub.panels import PANELS, load_panel
    from tcgn_hub.weights.hub import locate, resolve
    from tcgn_hub.weights.manifest import find_weights, load_manifest
    from tcgn_hub.weights.model_dir import info_of, read_info

    if which is not None and (which in PANELS or which.lower().endswith(".txt")):
        return WeightsInfo(which, genes=tuple(load_panel(which)))
    where = locate(next(iter(load_manifest())) if which is None else which)
    path, tag = Path(where.get("path", "")), str(where.get("tag", ""))
    if path.suffix == ".onnx" and path.is_file():
        from tcgn_hub.prediction.backends.onnx import OnnxBackend

        return OnnxBackend(path).info
    if path.is_dir() and "path" in where:
        return read_info(path, name=str(path))
    info = find_weights(tag).info if tag and not tag.startswith("hf-hub:") else info_of(resolve(which))
    if info is None or not info.genes:
        raise PanelError(f"{which} states no genes.")
    return info


main = command(build_parser, _genes, "tcgn genes")

if __name__ == "__main__":
    sys.exit(main())
