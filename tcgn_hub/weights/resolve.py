"""From a name to a file whose sha256 has been checked: explicit path, bundled, cached, and the Hub, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tcgn_hub.errors import ManifestError, WeightsError
from tcgn_hub.weights.cache import cached_path, matches, sha256_of
from tcgn_hub.weights.download import fetch
from tcgn_hub.weights.manifest import WeightFile, Weights, find_weights

__all__ = ["Resolved", "resolve", "where"]


@dataclass(frozen=True)
class Resolved:
    """A file of parameters.

    Attributes:
        path: Where it lies.
        sha256: Of its content, checked in this process.
        source: 'path' where the user named it, and otherwise 'bundled', 'cache' or 'hub'.
        weights: Its entry in the manifest; None for a path, which is no part of it.
    """

    path: Path
    sha256: str
    source: str
    weights: Weights | None


def resolve(
    weights: str | Path | Weights,
    *,
    cache_dir: str | Path | None = None,
    download: bool = True,
    force: bool = False,
    progress: bool = True,
) -> Resolved:
    """The file of parameters that a name stands for.

    Args:
        weights: A model directory or a file, a tag of the manifest, or an architecture, which stands for its first tag.
        cache_dir: Where to keep downloads, instead of among the assets of ``HF_HOME``.
        download: Whether to ask the Hub for what is not on this machine.
        force: Hash the file even if this process has done so before.
        progress: Show a progress bar on stderr while downloading.

    Raises:
        WeightsError: There is no such path or tag; its file is not the one the manifest lists; or it is not on this
            machine and cannot be had.
    """
    if isinstance(weights, (str, Path)):
        path = Path(weights)
        if path.is_dir():
            path = path / "model.safetensors"
        if path.exists() or isinstance(weights, Path):
            if not path.is_file():
                raise WeightsError(f"{path} does not exist.")
            try:
                return Resolved(path, sha256_of(path, force=force), "path", None)
            except OSError as err:
                raise WeightsError(f"{path} cannot be read ({err.strerror or err}).") from err
        try:
            weights = find_weights(weights)
        except ManifestError as err:
            raise WeightsError(f"There is no folder or file {weights}, and no such tag: {err}") from err

    file = weights.model_file
    if file is None:
        raise not_imported(weights)
    if weights.bundled:
        path = weights.folder / file.name
        if matches(path, file, force=force):
            return Resolved(path, file.sha256, "bundled", weights)
        if weights.hub["repo_id"] is None:
            what = "is not the file the manifest lists (its sha256 differs)" if path.exists() else "is missing"
            again = "import it" if weights.import_from else "install the package"
            raise WeightsError(f"{path} of {weights.tag} {what}; {again} again.")
    path = cached_path(file, cache_dir)
    if matches(path, file, force=force):
        return Resolved(path, file.sha256, "cache", weights)
    if not download:
        what = "is damaged (its sha256 differs)" if path.exists() else "is not on this machine"
        raise WeightsError(f"{weights.tag} {what}; get it with `tcgn weights pull {weights.tag}`.")
    pull(weights, file, cache_dir=cache_dir, progress=progress)
    return Resolved(path, file.sha256, "hub", weights)


def pull(weights: Weights, file: WeightFile, *, cache_dir: str | Path | None = None, progress: bool = True) -> Path:
    """Download one file of an entry that is on the Hub; returns where it lies.

    Raises:
        WeightsError: It cannot be had.
    """
    from huggingface_hub import constants

    path, repo_id, revision = cached_path(file, cache_dir), weights.hub["repo_id"], weights.hub["revision"]
    assert repo_id is not None
    assert revision is not None
    if constants.HF_HUB_OFFLINE:
        what = "is damaged" if path.exists() else "is not"
        raise WeightsError(
            f"{weights.tag} {what} in {path.parent.parent}, and HF_HUB_OFFLINE forbids to fetch it: run"
            f" `tcgn weights pull {weights.tag}` where there is a network, and use the same HF_HOME here."
        )
    fetch(repo_id, revision, file, path, progress=progress)
    return path


def where(weights: Weights, *, cache_dir: str | Path | None = None) -> str:
    """Where an entry's parameters are to be had, in a word: 'bundled', 'imported', 'cached', 'hub' or 'import'."""
    file = weights.model_file
    if file is None:
        return "import"
    if weights.bundled:
        return "imported" if weights.import_from else "bundled"
    return "cached" if cached_path(file, cache_dir).is_file() else "hub"


def not_imported(weights: Weights) -> WeightsError:
    """What to do about weights that only an import can bring."""
    assert weights.import_from is not None
    return WeightsError(
        f"{weights.tag} is not redistributed here: get {weights.import_from['file']} from"
        f" {weights.import_from['from']}, then run `tcgn weights import FILE --tag {weights.tag}`."
    )
