"""The manifest: every set of weights this package knows, and all that is known of it.

``tcgn_hub/weights_manifest.json`` is the single source; the ``weights_manifest.json`` at the top of the repository is a
link to it. Two more of the same schema are read beside it: the one that `tcgn weights import` keeps, and those that
the environment variable ``TCGN_MANIFEST`` names (paths, separated like those of ``PATH``), a user's or a lab's own.
An entry is all it takes: its tag appears in timm. The schema, version 1::

    {"schema": 1,
     "models": [{
        "tag":           "tcgn_base.her2st",         the timm name, architecture.tag
        ...                                          what `tcgn_hub.weights.info.WeightsInfo` states, ``panel`` being a
                                                     panel of this package or a list of symbols
        "files":         [{"name": "model.safetensors", "size": bytes, "sha256": "..."}],
        "bundled":       true if the files lie with the manifest, in a folder named like the tag,
        "hub":           {"repo_id": "org/name", "revision": "commit"},   both null until published
        "import":        {"file": "its name", "from": "where to get it"}
     }]}

What is not known may be left out, but for units, license and origin. An entry with ``import`` describes weights that
only their authors give: it has no ``files``, until an import puts an entry with files in its place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tcgn_hub.errors import ManifestError, WeightsError
from tcgn_hub.files import read_json
from tcgn_hub.weights.info import WeightsInfo

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
class ManifestEntry:
    """What a manifest says of weights."""

    info: WeightsInfo
    files: tuple[WeightFile, ...]  # none before an import
    bundled: bool  # whether the files lie with the manifest, in ``folder``
    folder: Path
    hub: dict[str, str | None]  # ``repo_id`` and ``revision``, None until they are published
    import_from: dict[str, str] | None = None  # ``file`` and ``from`` of weights that only their authors give

    @property
    def tag(self) -> str:
        """The timm name, architecture.tag."""
        return self.info.name

    @property
    def model_file(self) -> WeightFile | None:
        """The file of parameters; None before an import."""
        return next((file for file in self.files if file.name == "model.safetensors"), None)


def manifest_path() -> Path:
    """The manifest of this package."""
    return _PACKAGE / NAME


def assets_folder(kind: str) -> Path:
    """Where 'imports' and their manifest, 'exports' or 'downloads' are kept: in the assets of ``HF_HOME``."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "tcgn_hub" / kind


@cache
def load_manifest() -> dict[str, ManifestEntry]:
    """All entries by tag: the package's in the order of its file, whose first is the default, then the others."""
    entries = package_manifest()
    for value in os.environ.get("TCGN_MANIFEST", "").split(os.pathsep):
        if value:
            path = Path(value).expanduser()
            for tag, entry in read_manifest(path).items():
                if tag in entries:
                    raise ManifestError(f"{path} of TCGN_MANIFEST has the tag {tag}, which is taken; rename it.")
                entries[tag] = entry
    imported = assets_folder("imports") / NAME
    if imported.is_file():
        entries.update(read_manifest(imported))
    return entries


def package_manifest() -> dict[str, ManifestEntry]:
    """The entries of this package alone, by tag."""
    return read_manifest(manifest_path(), folder=_PACKAGE / "weights" / "bundled")


def reload_manifest() -> None:
    """Read the manifests again after one of them has changed, and tell timm which tags there are now."""
    load_manifest.cache_clear()
    for registry in registries:
        registry()


def read_manifest(path: Path, *, folder: Path | None = None) -> dict[str, ManifestEntry]:
    """Entries of a manifest file by tag; bundled files lie in folders named like these, in ``folder`` or beside it."""
    try:
        document = read_json(path)
    except (OSError, ValueError) as err:
        what = "install the package again" if path == manifest_path() else "mend it or take it away"
        raise ManifestError(f"The manifest {path} cannot be read ({err}); {what}.") from err
    return parse_manifest(document, source=str(path), folder=folder or path.resolve().parent)


def parse_manifest(document: Any, *, source: str, folder: Path) -> dict[str, ManifestEntry]:
    """Entries of a manifest by tag."""
    _check(document, dict, "$", source)
    if document.get("schema") != 1:
        raise ManifestError(f"{source}: $.schema is {document.get('schema')!r}, this version reads 1 only.")
    models = _field(document, "models", list, "$", source)
    entries: dict[str, ManifestEntry] = {}
    for i, model in enumerate(models):
        entry = _parse_entry(model, f"$.models[{i}]", source, folder)
        if entry.tag in entries:
            raise ManifestError(f"{source}: $.models[{i}].tag repeats {entry.tag}.")
        entries[entry.tag] = entry
    return entries


def _parse_entry(model: Any, at: str, source: str, folder: Path) -> ManifestEntry:
    def field(key: str, kind: type | tuple[type, ...]) -> Any:
        return _field(model, key, kind, at, source)

    def fail(path: str, why: str) -> ManifestError:
        return ManifestError(f"{source}: {at}.{path} {why}.")

    tag = field("tag", str)
    if not TAG.fullmatch(tag):
        raise fail("tag", f"is {tag!r}, not {' or '.join(ARCHITECTURES)}, a dot and a name")
    files = []
    for j, file in enumerate(field("files", list)):
        where = f"files[{j}]"
        known = {
            key: _field(file, key, kind, f"{at}.{where}", source)
            for key, kind in (("name", str), ("size", int), ("sha256", str))
        }
        if not _FILE_NAME.fullmatch(known["name"]):
            raise fail(f"{where}.name", f"is {known['name']!r}, not the name of a file")
        if known["size"] < 1:
            raise fail(f"{where}.size", f"is {known['size']}, not a number of bytes")
        if not _SHA256.fullmatch(known["sha256"]):
            raise fail(f"{where}.sha256", f"is {known['sha256']!r:.80}, not 64 hexadecimal digits")
        files.append(WeightFile(**known))

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
    parameters = next((file for file in files if file.name == "model.safetensors"), None)
    if import_from is None and parameters is None:
        raise fail("files", "lacks model.safetensors")
    if import_from is None and not bundled and hub["repo_id"] is None:
        raise fail("hub.repo_id", "is null, and the files are not bundled: there is nowhere to get them")

    for key in ("units", "license", "origin"):
        field(key, str)
    if model.get("scope", "model") == "model":
        field("panel", (str, list))
    try:
        info = WeightsInfo.from_json(
            model, name=tag, architecture=tag.split(".")[0], sha256=parameters.sha256 if parameters else ""
        )
    except WeightsError as err:
        raise ManifestError(f"{source}: {at}: {err}") from err
    return ManifestEntry(info, tuple(files), bundled, folder / tag, hub, import_from)


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


def find_weights(tag: str) -> ManifestEntry:
    """The entry of a tag; an architecture alone stands for its first."""
    entries = load_manifest()
    for entry in entries.values():
        if tag in (entry.tag, entry.info.architecture):
            return entry
    raise ManifestError(f"No weights are called {tag!r}; there are {', '.join(entries) or 'none'}.")
