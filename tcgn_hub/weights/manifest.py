"""The manifest: every set of weights this package knows, and all that is known of it.

``weights_manifest.json`` is the single source. It stands at the top of the repository, and a built package carries a
copy of it. Its schema, version 1::

    {"schema": 1,
     "models": [{
        "tag":           "tcgn_base.her2st_c6",      the timm name, architecture.tag
        "panel":         "her2st_785",               ordered genes: a panel of this package, or a list of symbols
        "units":         "log10(1 + ...)",           of the outputs
        "crop":          {"px": 112, "magnification": 20, "trained_mpp": 0.69, "rule": "..."},
        "training_data": {"name", "sections", "held_out", "source", "license", "citation"},
        "held_out":      {"spots", "median_pcc", "median_pcc_ridge", "pcc": [one a gene], "reliable": [genes], ...},
        "files":         [{"name": "model.safetensors", "size": bytes, "sha256": "..."}],
        "bundled":       true if the package carries the files,
        "hub":           {"repo_id": null, "revision": null},   null until published
        "license":       "Apache-2.0",
        "origin":        how the weights came about
     }]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tcgn_hub.data.panels import load_panel
from tcgn_hub.errors import ManifestError, PanelError

__all__ = ["WeightFile", "Weights", "find_weights", "load_manifest"]

_PACKAGE = Path(__file__).resolve().parent.parent
_NAME = "weights_manifest.json"


@dataclass(frozen=True)
class WeightFile:
    """A file of a set of weights: its name, size in bytes and sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Weights:
    """An entry of the manifest; the fields are those of its schema, with the panel as a list of genes."""

    tag: str
    genes: tuple[str, ...]
    units: str
    crop: dict[str, Any]
    training_data: dict[str, Any]
    held_out: dict[str, Any]
    files: tuple[WeightFile, ...]
    bundled: bool
    hub: dict[str, str | None]
    license: str
    origin: str

    @property
    def architecture(self) -> str:
        """The timm architecture, the part of the tag before its dot."""
        return self.tag.split(".")[0]

    @property
    def folder(self) -> Path:
        """Where the package carries the files, if it does."""
        return _PACKAGE / "weights" / "bundled" / self.tag

    @property
    def model_file(self) -> WeightFile:
        """The file of parameters."""
        return next(file for file in self.files if file.name == "model.safetensors")


def manifest_path() -> Path:
    """The manifest of this package: its own copy where it was built, the repository's in a checkout."""
    inside = _PACKAGE / _NAME
    return inside if inside.exists() else _PACKAGE.parent / _NAME


@cache
def load_manifest() -> dict[str, Weights]:
    """All entries by tag, in the order of the file: an architecture's first is its default.

    Raises:
        ManifestError: The manifest is missing or malformed; the message gives the JSON path at fault.
    """
    path = manifest_path()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ManifestError(f"The manifest {path} cannot be read ({err}); install the package again.") from err
    return parse_manifest(document, source=str(path))


def parse_manifest(document: Any, *, source: str) -> dict[str, Weights]:
    """Entries of a manifest by tag.

    Raises:
        ManifestError: Something is missing or of the wrong kind; the message gives the JSON path at fault.
    """
    _check(document, dict, "$", source)
    if document.get("schema") != 1:
        raise ManifestError(f"{source}: $.schema is {document.get('schema')!r}, this version reads 1 only.")
    models = _field(document, "models", list, "$", source)
    entries: dict[str, Weights] = {}
    for i, model in enumerate(models):
        entry = _parse_entry(model, f"$.models[{i}]", source)
        if entry.tag in entries:
            raise ManifestError(f"{source}: $.models[{i}].tag repeats {entry.tag}.")
        entries[entry.tag] = entry
    return entries


def _parse_entry(model: Any, at: str, source: str) -> Weights:
    _check(model, dict, at, source)
    tag = _field(model, "tag", str, at, source)
    if tag.count(".") != 1 or not all(tag.split(".")):
        raise ManifestError(f"{source}: {at}.tag is {tag!r}, not architecture.tag.")
    panel = model.get("panel")
    try:
        genes = tuple(load_panel(_field(model, "panel", (str, list), at, source)))
    except (PanelError, AttributeError) as err:
        raise ManifestError(f"{source}: {at}.panel is not a panel: {panel!r:.80}.") from err
    files = tuple(
        WeightFile(
            name=_field(file, "name", str, f"{at}.files[{j}]", source),
            size=_field(file, "size", int, f"{at}.files[{j}]", source),
            sha256=_field(file, "sha256", str, f"{at}.files[{j}]", source),
        )
        for j, file in enumerate(_field(model, "files", list, at, source))
    )
    if "model.safetensors" not in {file.name for file in files}:
        raise ManifestError(f"{source}: {at}.files lacks model.safetensors.")
    held_out = _field(model, "held_out", dict, at, source)
    if "pcc" in held_out and len(_field(held_out, "pcc", list, f"{at}.held_out", source)) != len(genes):
        raise ManifestError(f"{source}: {at}.held_out.pcc has {len(held_out['pcc'])} values for {len(genes)} genes.")
    return Weights(
        tag=tag,
        genes=genes,
        units=_field(model, "units", str, at, source),
        crop=_field(model, "crop", dict, at, source),
        training_data=_field(model, "training_data", dict, at, source),
        held_out=held_out,
        files=files,
        bundled=_field(model, "bundled", bool, at, source),
        hub=_field(model, "hub", dict, at, source),
        license=_field(model, "license", str, at, source),
        origin=_field(model, "origin", str, at, source),
    )


def _field(parent: Any, key: str, kind: type | tuple[type, ...], at: str, source: str) -> Any:
    _check(parent, dict, at, source)
    if key not in parent:
        raise ManifestError(f"{source}: {at}.{key} is missing.")
    _check(parent[key], kind, f"{at}.{key}", source)
    return parent[key]


def _check(value: Any, kind: type | tuple[type, ...], at: str, source: str) -> None:
    # a JSON true is an int to Python, but no number to a reader
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ManifestError(f"{source}: {at} should be a {names}, but is {value!r:.80}.")


def find_weights(tag: str) -> Weights:
    """The entry of a tag; an architecture alone stands for its first.

    Raises:
        ManifestError: There is no such tag.
    """
    entries = load_manifest()
    for entry in entries.values():
        if tag in (entry.tag, entry.architecture):
            return entry
    raise ManifestError(f"No weights are called {tag!r}; there are {', '.join(entries) or 'none'}.")
