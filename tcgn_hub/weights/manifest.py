"""The manifest: every set of weights this package knows, and all that is known of it.

``weights_manifest.json`` is the single source. It stands at the top of the repository, and a built package carries a
copy of it. Two more of the same schema are read beside it: the one that `tcgn weights import` keeps, and those that
the environment variable ``TCGN_MANIFEST`` names (paths, separated like those of ``PATH``), a user's or a lab's own.
An entry is all it takes: its tag appears in timm. The schema, version 1::

    {"schema": 1,
     "models": [{
        "tag":           "tcgn_base.her2st_c6",      the timm name, architecture.tag
        "scope":         "model",                    or "trunk": no graph branches and no head, to start training from
        "panel":         "her2st_785",               ordered genes: a panel of this package, or a list of symbols
        "units":         "log10(1 + ...)",           of the outputs
        "crop":          {"px": 112, "magnification": 20, "nominal_patch_um": 56, "patch_um": 77, "rule": ...},
        "training_data": {"name", "sections", "held_out", "source", "license", "citation"},
        "held_out":      {"spots", "median_pcc", "median_pcc_ridge", "pcc": [one a gene], "significant": [genes], ...},
        "files":         [{"name": "model.safetensors", "size": bytes, "sha256": "..."}],
        "bundled":       true if the files lie with the manifest, in a folder named like the tag,
        "hub":           {"repo_id": "org/name", "revision": "commit"},   both null until published
        "import":        {"file": "its name", "from": "where to get it"},
        "license":       "Apache-2.0",
        "origin":        how the weights came about
     }]}

``scope`` and ``import`` may be left out. An entry with ``import`` describes weights that only their authors give: it
has no ``files``, until an import puts an entry with files in its place.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tcgn_hub.errors import ManifestError, PanelError
from tcgn_hub.panels import load_panel

__all__ = [
    "ARCHITECTURES",
    "WeightFile",
    "Weights",
    "exports_folder",
    "find_weights",
    "load_manifest",
    "package_manifest",
    "parse_manifest",
    "registries",
    "reload_manifest",
]

ARCHITECTURES = ("tcgn_base", "test_tcgn")
NAME = "weights_manifest.json"
_PACKAGE = Path(__file__).resolve().parent.parent

TAG = re.compile(rf"(?:{'|'.join(ARCHITECTURES)})\.[A-Za-z0-9_-]+")
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
REPO_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_REVISION = re.compile(r"[0-9a-f]{40}")

registries: list[Callable[[], None]] = []
"""What is to be told when the entries change."""


@dataclass(frozen=True)
class WeightFile:
    """A file of a set of weights: its name, size in bytes and sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Weights:
    """An entry of a manifest; the fields are those of its schema, with the panel as a list of genes.

    Attributes:
        folder: Where the files lie if they are ``bundled`` with the manifest.
    """

    tag: str
    scope: str
    genes: tuple[str, ...]
    units: str
    crop: dict[str, Any]
    training_data: dict[str, Any]
    held_out: dict[str, Any]
    files: tuple[WeightFile, ...]
    bundled: bool
    folder: Path
    hub: dict[str, str | None]
    license: str
    origin: str
    import_from: dict[str, str] | None = None

    @property
    def architecture(self) -> str:
        """The timm architecture, the part of the tag before its dot."""
        return self.tag.split(".")[0]

    @property
    def model_file(self) -> WeightFile | None:
        """The file of parameters; None before an import."""
        return next((file for file in self.files if file.name == "model.safetensors"), None)


def manifest_path() -> Path:
    """The manifest of this package: its own copy where it was built, the repository's in a checkout."""
    inside = _PACKAGE / NAME
    return inside if inside.exists() else _PACKAGE.parent / NAME


def imports_folder() -> Path:
    """Where imported weights and their manifest are kept: in the assets of ``HF_HOME``."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "tcgn_hub" / "imports"


def exports_folder() -> Path:
    """Where exported weights are kept that were not given another place: in the assets of ``HF_HOME``."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "tcgn_hub" / "exports"


@cache
def load_manifest() -> dict[str, Weights]:
    """All entries by tag: the package's in the order of its file, whose first is the default, then the others.

    Raises:
        ManifestError: A manifest is missing or malformed, the message gives the JSON path at fault; or one of
            ``TCGN_MANIFEST`` repeats a tag.
    """
    entries = package_manifest()
    for value in os.environ.get("TCGN_MANIFEST", "").split(os.pathsep):
        if value:
            path = Path(value).expanduser()
            for tag, entry in read_manifest(path).items():
                if tag in entries:
                    raise ManifestError(f"{path} of TCGN_MANIFEST has the tag {tag}, which is taken; rename it.")
                entries[tag] = entry
    imported = imports_folder() / NAME
    if imported.is_file():
        entries.update(read_manifest(imported))
    return entries


def package_manifest() -> dict[str, Weights]:
    """The entries of this package alone, by tag.

    Raises:
        ManifestError: The manifest is missing or malformed.
    """
    return read_manifest(manifest_path(), folder=_PACKAGE / "weights" / "bundled")


def reload_manifest() -> None:
    """Read the manifests again after one of them has changed, and tell timm which tags there are now."""
    load_manifest.cache_clear()
    for registry in registries:
        registry()


def read_manifest(path: Path, *, folder: Path | None = None) -> dict[str, Weights]:
    """Entries of a manifest file by tag.

    Args:
        path: The file.
        folder: Where bundled files lie, in folders named like the tags; beside the manifest if None.

    Raises:
        ManifestError: The file is missing or malformed.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        what = "install the package again" if path == manifest_path() else "mend it or take it away"
        raise ManifestError(f"The manifest {path} cannot be read ({err}); {what}.") from err
    return parse_manifest(document, source=str(path), folder=folder or path.resolve().parent)


def parse_manifest(document: Any, *, source: str, folder: Path) -> dict[str, Weights]:
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
        entry = _parse_entry(model, f"$.models[{i}]", source, folder)
        if entry.tag in entries:
            raise ManifestError(f"{source}: $.models[{i}].tag repeats {entry.tag}.")
        entries[entry.tag] = entry
    return entries


def _parse_entry(model: Any, at: str, source: str, folder: Path) -> Weights:
    _check(model, dict, at, source)

    def field(key: str, kind: type | tuple[type, ...]) -> Any:
        return _field(model, key, kind, at, source)

    def fail(path: str, why: str) -> ManifestError:
        return ManifestError(f"{source}: {at}.{path} {why}.")

    tag = field("tag", str)
    if not TAG.fullmatch(tag):
        raise fail("tag", f"is {tag!r}, not {' or '.join(ARCHITECTURES)}, a dot and a name")
    scope = model.get("scope", "model")
    if scope not in ("model", "trunk"):
        raise fail("scope", f"is {scope!r}, not 'model' or 'trunk'")
    try:
        genes = () if scope == "trunk" else tuple(load_panel(field("panel", (str, list))))
    except (PanelError, AttributeError) as err:
        raise fail("panel", f"is not a panel: {model.get('panel')!r:.80}") from err

    files = []
    for j, file in enumerate(field("files", list)):
        where = f"files[{j}]"
        name, size, sha256 = (
            _field(file, key, kind, f"{at}.{where}", source)
            for key, kind in (("name", str), ("size", int), ("sha256", str))
        )
        if not _FILE_NAME.fullmatch(name):
            raise fail(f"{where}.name", f"is {name!r}, not the name of a file")
        if size < 1:
            raise fail(f"{where}.size", f"is {size}, not a number of bytes")
        if not _SHA256.fullmatch(sha256):
            raise fail(f"{where}.sha256", f"is {sha256!r:.80}, not 64 hexadecimal digits")
        files.append(WeightFile(name=name, size=size, sha256=sha256))

    import_from = model.get("import")
    if import_from is not None:
        for key in ("file", "from"):
            _field(import_from, key, str, f"{at}.import", source)
    bundled, hub = field("bundled", bool), field("hub", dict)
    for key, pattern, what in (
        ("repo_id", REPO_ID, "organisation/name"),
        ("revision", _REVISION, "a commit of 40 hexadecimal digits"),
    ):
        value = _field(hub, key, (str, type(None)), f"{at}.hub", source)
        if value is not None and not pattern.fullmatch(value):
            raise fail(f"hub.{key}", f"is {value!r:.80}, not {what}")
    if (hub["repo_id"] is None) != (hub["revision"] is None):
        raise fail("hub", "needs both repo_id and revision, or null for both")
    if import_from is None and "model.safetensors" not in {file.name for file in files}:
        raise fail("files", "lacks model.safetensors")
    if import_from is None and not bundled and hub["repo_id"] is None:
        raise fail("hub.repo_id", "is null, and the files are not bundled: there is nowhere to get them")

    held_out = field("held_out", dict)
    if "pcc" in held_out and len(_field(held_out, "pcc", list, f"{at}.held_out", source)) != len(genes):
        raise fail("held_out.pcc", f"has {len(held_out['pcc'])} values for {len(genes)} genes")
    if "significant" in held_out:
        significant = _field(held_out, "significant", list, f"{at}.held_out", source)
        others = [gene for gene in significant if gene not in genes]
        if others:
            raise fail("held_out.significant", f"names {others[0]!r}, which is not in the panel")
    return Weights(
        tag=tag,
        scope=scope,
        genes=genes,
        units=field("units", str),
        crop=field("crop", dict),
        training_data=field("training_data", dict),
        held_out=held_out,
        files=tuple(files),
        bundled=bundled,
        folder=folder / tag,
        hub=hub,
        license=field("license", str),
        origin=field("origin", str),
        import_from=import_from,
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
