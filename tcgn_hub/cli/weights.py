"""tcgn weights: what weights there are, where they lie, and how they come and go."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

from tcgn_hub.cli.common import command, make_parser, panel_of
from tcgn_hub.cli.options import add
from tcgn_hub.text import aligned, some

if TYPE_CHECKING:
    from tcgn_hub.weights.info import WeightsInfo
    from tcgn_hub.weights.manifest import ManifestEntry

_LONG_LIST, _LONG_WORD = 30, 80  # what a dry run does not print in full; a sha256 has 64 letters
_WHERE = {
    "bundled": "in this package",
    "imported": "imported",
    "cached": "downloaded",
    "hub": "on the Hub",
    "import": "to be imported",
}


def build_parser(prog: str) -> argparse.ArgumentParser:
    """The arguments of tcgn weights."""
    parser = make_parser(
        prog,
        "List, get, verify, import and publish weights.",
        epilog="Exit code: 0 done, 1 verify found damage, 2 nothing was done, for the reason printed.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add_command(name: str, text: str, *options: str, which: str | None = "") -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if which != "":
            own.add_argument("which", nargs=which, metavar="TAG", help="such as tcgn_base.her2st")
        add(own, *options)
        return own

    add_command("list", "all weights of the manifests", "cache_dir", "json")
    add_command("show", "all that is known of one set", "cache_dir", "json", "all_genes", which=None)
    add_command("pull", "download a set, unless it is on this machine", "cache_dir", which=None)
    add_command("verify", "hash the files on this machine again", "cache_dir", which="?")
    add_command("path", "print the verified file of parameters on this machine", "cache_dir", which=None)
    add_command("clear", "delete downloads; with TAG those of one set, or its import", "cache_dir", which="?")
    own = add_command("import", "keep a checkpoint of other authors as weights of this machine", "tag", "genes")
    own.add_argument("file", metavar="FILE", help=".pth, .pt or .safetensors; its genes in the order of the outputs")
    own = add_command("publish", "upload a model directory to the Hub, with a model card", "tag", "private", "dry_run")
    add(own, "repo", required=True)
    own.add_argument("folder", metavar="DIR", help="model directory")
    return parser


def _weights(args: argparse.Namespace, prog: str) -> int:
    return globals()[f"_{args.command}"](args)


def _summary(entry: ManifestEntry, cache_dir: str | None) -> dict[str, Any]:
    from tcgn_hub.weights.hub import where

    return {
        "tag": entry.tag,
        "genes": len(entry.info.genes),
        "median_pcc": entry.info.held_out.get("median_pcc"),
        "measured_on": _measured_on(entry.info),
        "size": sum(file.size for file in entry.files) or None,
        "where": where(entry, cache_dir=cache_dir),
        "license": entry.info.license,
    }


def _measured_on(info: WeightsInfo) -> str | None:
    """The sections of which the held-out numbers are: those of other sections are not to be compared with them."""
    if info.held_out.get("median_pcc") is None:
        return None
    name, sections = info.training_data.get("name"), list(info.held_out.get("sections") or ())
    return " ".join(filter(None, [name, some(sections, 6)])) or "sections that are not stated"


def _list(args: argparse.Namespace) -> int:
    from tcgn_hub.weights.manifest import load_manifest

    rows = [_summary(entry, args.cache_dir) for entry in load_manifest().values()]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    cells = [
        (
            row["tag"],
            str(row["genes"] or "-"),
            "not measured" if row["median_pcc"] is None else f"{row['median_pcc']:.3f} on {row['measured_on']}",
            "" if row["size"] is None else f"{row['size'] / 1e6:.0f}",
            _WHERE[row["where"]],
        )
        for row in rows
    ]
    print(aligned([("tag", "genes", "held-out median PCC", "MB", "where"), *cells], left=(0, 2, 4)))
    print("`tcgn weights show TAG` says more, and where to get what is to be imported.")
    return 0


def _show(args: argparse.Namespace) -> int:
    from tcgn_hub.weights.hub import cached_path, not_imported
    from tcgn_hub.weights.manifest import find_weights

    entry = find_weights(args.which)
    info = entry.info
    shown = {
        **_summary(entry, args.cache_dir),
        "units": info.units,
        "origin": info.origin,
        "hub": entry.hub,
        "import": entry.import_from,
        "crop": info.crop,
        "training_data": info.training_data,
        "seen": [section.to_json() for section in info.seen],
        "held_out": info.held_out,
        "panel": list(info.genes),
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256} for file in entry.files],
    }
    if args.json:
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    of_genes = {key: getattr(info, key) for key in ("pcc", "pcc_given_depth", "interval_radius", "significant")}
    shown |= {
        "where": _WHERE[shown["where"]],
        "seen": ", ".join(f"{section.study} {section.section}" for section in info.seen),
        "held_out": {
            key: f"{len(of_genes[key] or ())} genes" if key in of_genes else value
            for key, value in info.held_out.items()
            if key != "sections"
        },
        "panel": ", ".join(info.genes) if args.all_genes else some(info.genes, 8),
    }
    del shown["files"]
    for key, value in shown.items():
        for name, part in value.items() if isinstance(value, dict) else [(None, value)]:
            text = ", ".join(map(str, part)) if isinstance(part, list) else part
            if text not in (None, ""):
                print(f"{key:14} {name}: {text}" if name else f"{key:14} {text}")
    for file in entry.files:
        path = entry.folder / file.name if entry.bundled else cached_path(file, args.cache_dir)
        print(f"{'file':14} {path}\n{'':14} {file.size:,} bytes, sha256 {file.sha256}")
    if entry.model_file is None:
        print(f"\n{not_imported(entry)}")
    return 0


def _pull(args: argparse.Namespace) -> int:
    from tcgn_hub.weights.hub import pull, resolve

    resolved = resolve(args.which, cache_dir=args.cache_dir)
    if resolved.source in ("cache", "hub") and resolved.entry is not None:
        for file in resolved.entry.files:
            pull(resolved.entry, file, cache_dir=args.cache_dir)
    print(resolved.path)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from tcgn_hub.weights.hub import cached_path, matches
    from tcgn_hub.weights.manifest import find_weights, load_manifest

    damaged = checked = 0
    for weights in [find_weights(args.which)] if args.which else load_manifest().values():
        for file in weights.files:
            path = weights.folder / file.name if weights.bundled else cached_path(file, args.cache_dir)
            if path.exists() or weights.bundled:
                good = matches(path, file, force=True)
                checked, damaged = checked + 1, damaged + (not good)
                print(f"{'good' if good else 'DAMAGED'}  {weights.tag}  {path}")
    if not checked:
        print("nothing to verify: none of these weights is on this machine")
    return 1 if damaged else 0


def _path(args: argparse.Namespace) -> int:
    from tcgn_hub.weights.hub import resolve

    print(resolve(args.which, cache_dir=args.cache_dir, download=False).path)
    return 0


def _clear(args: argparse.Namespace) -> int:
    from tcgn_hub.errors import WeightsError
    from tcgn_hub.weights.convert import remove_import
    from tcgn_hub.weights.hub import clear_cache
    from tcgn_hub.weights.manifest import find_weights

    if args.which is None:
        freed = clear_cache(cache_dir=args.cache_dir)
    else:
        weights = find_weights(args.which)
        if weights.bundled and weights.import_from:
            freed = remove_import(weights.tag)
        elif weights.bundled:
            raise WeightsError(f"{weights.tag} is part of this package; uninstall it to be rid of them.")
        else:
            freed = sum(clear_cache(file.sha256, cache_dir=args.cache_dir) for file in weights.files)
    print(f"{freed / 1e6:.1f} MB freed")
    return 0


def _import(args: argparse.Namespace) -> int:
    from tcgn_hub.weights.convert import import_checkpoint

    imported = import_checkpoint(args.file, tag=args.tag, genes=panel_of(args))
    weights = imported.weights
    print(f"{weights.tag}: {len(imported.filled)} tensors from {args.file}, in {weights.folder}")
    for what, names in (("fresh", imported.fresh), ("left out", imported.left_out)):
        if names:
            print(f"{what}: {_grouped(names)}")
    if imported.fresh:
        print(f"filled: {_grouped(imported.filled)}")
        print(f"start from it: timm.create_model({weights.tag!r}, pretrained=True, num_classes=...)")
    else:
        print(f"use it: timm.create_model({weights.tag!r}, pretrained=True)")
    return 0


def _grouped(names: list[str]) -> str:
    """Names of tensors by the module they belong to, such as 'stages.0.blocks (120)'."""

    def module(name: str) -> str:
        parts = name.split(".")
        return ".".join(parts[: 3 if parts[0] == "stages" else 1])

    return ", ".join(f"{name} ({count})" for name, count in Counter(map(module, names)).items())


def _publish(args: argparse.Namespace) -> int:
    from tcgn_hub.weights.publish import publish

    published = publish(args.folder, args.repo, tag=args.tag, private=args.private, dry_run=args.dry_run)
    if published.url is None:
        print(f"Would upload {', '.join(published.files)} to {args.repo}, with this card:\n", file=sys.stderr)
        print(published.card)
        print("The manifest entry, its revision null until it is uploaded:\n", file=sys.stderr)
    else:
        print(f"{published.url}\n\nThe manifest entry:\n", file=sys.stderr)
    entry = _shortened(published.entry) if published.url is None else published.entry
    print(json.dumps(entry, indent=2, ensure_ascii=False))
    return 0


def _shortened(value: Any) -> Any:
    """An entry to look at: long lists and arrays in base64 by their length."""
    if isinstance(value, dict):
        return {key: _shortened(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shortened(part) for part in value] if len(value) <= _LONG_LIST else f"<{len(value):,} values>"
    if isinstance(value, str) and re.fullmatch(rf"[A-Za-z0-9+/=]{{{_LONG_WORD},}}", value):
        return f"<{len(value) * 3 // 4:,} bytes>"
    return value


main = command(build_parser, _weights, "tcgn weights")

if __name__ == "__main__":
    sys.exit(main())
