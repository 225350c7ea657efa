"""From a name to a file whose sha256 was checked: in the package, among imports and downloads, and on the Hub.

huggingface_hub's own downloads compare no content hash, start over in a new process and give a cached file where the
Hub refuses. Here its client, endpoint, token and typed errors are used, and the bytes go to a ``.part`` file that any
later process continues.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tcgn_hub.errors import OutputError, WeightsError
from tcgn_hub.progress import Progress
from tcgn_hub.weights.manifest import ManifestEntry, WeightFile, assets_folder, find_weights, load_manifest

_logger = logging.getLogger(__name__)
_HUB = "hf-hub:"
_TRIES = 4  # without a new byte in between
_PATIENCE = 15.0  # seconds without a new byte, after which no further try is made
# sha256 of files hashed in this process, each with the size, mtime and inode it then had
_hashed: dict[str, tuple[tuple[int, int, int], str]] = {}
_BUSY = (408, 425, 429, 500, 502, 503, 504)


def locate(weights: str | Path | None) -> dict[str, Any]:
    """What `tcgn_hub.load` is to be given for weights named in one word: a tag is one, whatever lies around."""
    if weights is None:
        return {}
    if isinstance(weights, str) and (
        weights.startswith(_HUB)
        or any(weights in (tag, entry.info.architecture) for tag, entry in load_manifest().items())
    ):
        return {"tag": weights}
    return {"path": weights}


@dataclass(frozen=True)
class Resolved:
    """A file of parameters, whose content was checked in this process; ``entry`` is None outside of the manifest."""

    path: Path
    sha256: str
    source: str  # 'path' where the user named it, and otherwise 'bundled', 'cache' or 'hub'
    entry: ManifestEntry | None
    name: str  # what it was called


def resolve(
    weights: str | Path | ManifestEntry | None = None,
    *,
    cache_dir: str | Path | None = None,
    download: bool = True,
    force: bool = False,
    progress: bool = True,
) -> Resolved:
    """The file of parameters that a name stands for."""
    if isinstance(weights, ManifestEntry):
        entry = weights
    else:
        weights = next(iter(load_manifest())) if weights is None else weights
        known = locate(weights)
        name = str(known.get("tag", weights))
        if "path" in known or name.startswith(_HUB):
            path = hub_folder(name, cache_dir) if "tag" in known else Path(weights)
            refuse_unfinished(path)
            path = path / "model.safetensors" if path.is_dir() else path
            if not path.is_file():
                tags = ", ".join(load_manifest()) or "none"
                neither = "" if isinstance(weights, Path) else f", and {weights} is no such tag: there are {tags}"
                raise WeightsError(f"{path} does not exist{neither}.")
            try:
                return Resolved(path, sha256_of(path, force=force), "path", None, name)
            except OSError as err:
                raise WeightsError(f"{path} cannot be read ({err.strerror or err}).") from err
        entry = find_weights(name)

    file = entry.model_file
    if file is None:
        raise not_imported(entry)
    if entry.bundled:
        path = entry.folder / file.name
        if matches(path, file, force=force):
            return Resolved(path, file.sha256, "bundled", entry, entry.tag)
        if entry.hub["repo_id"] is None:
            what = "is not the file the manifest lists (its sha256 differs)" if path.exists() else "is missing"
            again = "import it" if entry.import_from else "install the package"
            raise WeightsError(f"{path} of {entry.tag} {what}; {again} again.")
    path = cached_path(file, cache_dir)
    if matches(path, file, force=force):
        return Resolved(path, file.sha256, "cache", entry, entry.tag)
    if not download:
        what = "is damaged (its sha256 differs)" if path.exists() else "is not on this machine"
        raise WeightsError(f"{entry.tag} {what}; get it with `tcgn weights pull {entry.tag}`.")
    pull(entry, file, cache_dir=cache_dir, progress=progress)
    return Resolved(path, file.sha256, "hub", entry, entry.tag)


def refuse_unfinished(path: Path) -> None:
    """Say of a run that has not ended, or of the state that it keeps, that it is no weights yet."""
    folder = path if path.is_dir() else path.parent
    if path not in (folder, *folder.glob("checkpoint*.pt")) or (folder / "model.safetensors").exists():
        return
    if list(folder.glob("checkpoint*.pt")):
        resume = f"`tcgn finetune ... -o {shlex.quote(str(folder))} --resume`"
        raise WeightsError(f"{folder} is an unfinished run; continue it with {resume}.")


def pull(entry: ManifestEntry, file: WeightFile, *, cache_dir: str | Path | None = None, progress: bool = True) -> Path:
    """Download one file of an entry that is on the Hub; returns where it lies."""
    from huggingface_hub import constants

    path, repo_id, revision = cached_path(file, cache_dir), entry.hub["repo_id"], entry.hub["revision"]
    assert repo_id is not None
    assert revision is not None
    if constants.HF_HUB_OFFLINE:
        what = "is damaged" if path.exists() else "is not"
        raise WeightsError(
            f"{entry.tag} {what} in {path.parent.parent}, and HF_HUB_OFFLINE forbids to fetch it: run"
            f" `tcgn weights pull {entry.tag}` where there is a network, and use the same HF_HOME here."
        )
    fetch(repo_id, revision, file, path, progress=progress)
    return path


def where(entry: ManifestEntry, *, cache_dir: str | Path | None = None) -> str:
    """Where an entry's parameters are to be had, in a word: 'bundled', 'imported', 'cached', 'hub' or 'import'."""
    file = entry.model_file
    if file is None:
        return "import"
    if entry.bundled:
        return "imported" if entry.import_from else "bundled"
    return "cached" if cached_path(file, cache_dir).is_file() else "hub"


def not_imported(entry: ManifestEntry) -> WeightsError:
    """What to do about entry that only an import can bring."""
    assert entry.import_from is not None
    return WeightsError(
        f"{entry.tag} is not redistributed here: get {entry.import_from['file']} from"
        f" {entry.import_from['from']}, then run `tcgn weights import FILE --tag {entry.tag}`."
    )


def downloads_folder(cache_dir: str | Path | None = None) -> Path:
    """Where downloads are kept: below ``cache_dir``, or among the assets of ``HF_HOME``."""
    return Path(cache_dir) / "tcgn_hub" if cache_dir else assets_folder("downloads")


def cached_path(file: WeightFile, cache_dir: str | Path | None = None) -> Path:
    """Where a file is kept once it is downloaded, by its content: neither tag nor repository can mistake it."""
    return downloads_folder(cache_dir) / file.sha256 / file.name


def sha256_of(path: Path, *, force: bool = False) -> str:
    """Hexadecimal sha256 of a file, computed once in a process while its size, mtime and inode stay the same."""
    key, before = os.path.realpath(path), _signature(path)
    if not force and key in _hashed and _hashed[key][0] == before:
        return _hashed[key][1]
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    if _signature(path) == before:
        _hashed[key] = before, digest.hexdigest()
    return digest.hexdigest()


def _signature(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def matches(path: Path, file: WeightFile, *, force: bool = False) -> bool:
    """Whether a file is there and has the size and sha256 of the manifest."""
    try:
        return path.stat().st_size == file.size and sha256_of(path, force=force) == file.sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as err:
        raise WeightsError(
            f"{path} cannot be read ({err.strerror or err}); make it readable, or give another folder with HF_HOME or"
            " cache_dir."
        ) from err


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses below ``folder`` into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as err:
        raise WeightsError(
            f"{folder} cannot be written ({_reason(err)}); make room or give another folder with HF_HOME or cache_dir."
        ) from err


def _reason(err: BaseException) -> str:
    """What the system said, such as 'No space left on device', under an error of ours or of safetensors."""
    while isinstance(err, OutputError) and err.__cause__ is not None:
        err = err.__cause__
    if number := re.search(r"\(os error (\d+)\)", str(err)):
        return os.strerror(int(number[1]))  # safetensors has it in its text alone
    return getattr(err, "strerror", None) or str(err) or type(err).__name__


def clear_cache(sha256: str | None = None, *, cache_dir: str | Path | None = None) -> int:
    """Delete downloads, parts of downloads included; returns the bytes freed."""
    folder = downloads_folder(cache_dir)
    freed = 0
    if not folder.is_dir():
        return freed
    with kept_in(folder):
        for child in folder.iterdir():
            if child.is_dir() and (sha256 is None or child.name == sha256):
                freed += sum(path.stat().st_size for path in child.rglob("*") if path.is_file())
                shutil.rmtree(child)
    return freed


def fetch(repo_id: str, revision: str, file: WeightFile, target: Path, *, progress: bool = True) -> None:
    """Download a file to ``target``, which exists afterwards with the sha256 of ``file``, or not at all.

    Processes that want the same file wait for each other. What an interrupted download left is continued.
    """
    part = target.with_name(f"{target.name}.part")
    with kept_in(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target, part):
            if matches(target, file):
                return
            target.unlink(missing_ok=True)
            # what was continued may have begun with other bits: those get a second chance from the start
            for _ in range(2):
                continued = part.exists()
                with open(part, "ab") as handle:
                    _transfer(repo_id, revision, file, handle, progress)
                    handle.flush()
                    os.fsync(handle.fileno())
                if part.stat().st_size == file.size and sha256_of(part, force=True) == file.sha256:
                    os.replace(part, target)
                    return
                part.unlink()
                if not continued:
                    break
    raise WeightsError(
        f"{file.name} of {repo_id} at {revision[:12]} is not the file the manifest lists (its sha256 differs); nothing"
        " was kept, try again or tell the owner of the repository."
    )


def hub_folder(name: str, cache_dir: str | Path | None = None) -> Path:
    """The verified files of a repository of ours, 'hf-hub:organisation/name' with an optional '@revision'."""
    repo_id, _, revision = name.removeprefix(_HUB).partition("@")
    folder = fetch_folder(repo_id, revision or None, ("config.json", "model.safetensors"), cache_dir=cache_dir)
    for entry in load_manifest().values():
        file = entry.model_file
        if file and (entry.hub["repo_id"], entry.hub["revision"]) == (repo_id, revision):
            path = folder / file.name
            if sha256_of(path) != file.sha256:
                raise WeightsError(f"{path} is not the file the manifest lists for {entry.tag} (its sha256 differs).")
    return folder


def fetch_folder(
    repo_id: str, revision: str | None, names: Sequence[str], *, cache_dir: str | Path | None = None
) -> Path:
    """Files of any repository, through the cache of huggingface_hub; returns the folder that holds them.

    A file that the Hub stores by its sha256 is checked against it, for its own client does not.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    path = None
    for name in names:
        try:
            path = Path(hf_hub_download(repo_id, name, revision=revision, cache_dir=cache_dir, library_name="tcgn_hub"))
        except HFValidationError as err:
            raise WeightsError(f"{repo_id!r} is not the name of a repository; give organisation/name.") from err
        except LocalEntryNotFoundError as err:
            # it stands for what kept the client from asking: a refusal, or no network
            raise explain(_cause(err) or err, repo_id, revision or "main", name) from err
        except http_error() as err:
            raise explain(err, repo_id, revision or "main", name) from err
        except OSError as err:
            raise WeightsError(
                f"{name} of {repo_id} cannot be kept ({err.strerror or err}); make room or give another folder with"
                " HF_HOME or cache_dir."
            ) from err
        promised = _promised_sha256(path, repo_id, revision, name, downloads_folder(cache_dir))
        if promised is not None and sha256_of(path) != promised:
            blob = os.path.realpath(path)
            raise WeightsError(f"{blob} is damaged (its sha256 is not the one of the Hub); delete it and try again.")
    assert path is not None
    return path.parent


def _promised_sha256(path: Path, repo_id: str, revision: str | None, name: str, records: Path) -> str | None:
    """The sha256 that the Hub stores a file by; None of a small file, which it stores otherwise.

    In a cache with links the file has it for its name. Elsewhere, as on Windows, the Hub is asked, and what it said is
    kept below ``records`` for when it cannot be asked; a file of which nothing was said is taken as it is, with a
    warning.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled

    stored = os.path.basename(os.path.realpath(path))
    if stored == name:
        record = records / "hub" / repo_id / path.parent.name / f"{name}.sha256"
        try:
            stored = get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision)).etag or ""
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(stored, encoding="utf-8")
        except (http_error(), OfflineModeIsEnabled, OSError) as err:
            if record.is_file():
                stored = record.read_text(encoding="utf-8")
                return stored if re.fullmatch(r"[0-9a-f]{64}", stored) else None
            _logger.warning(
                "%s of %s was not checked: the Hub cannot be asked for its sha256 (%s).", name, repo_id, err
            )
    return stored if re.fullmatch(r"[0-9a-f]{64}", stored) else None


def _cause(err: BaseException) -> Exception | None:
    """The answer of the Hub behind an error, if it answered."""
    cause = err.__cause__
    return cause if isinstance(cause, Exception) and getattr(cause, "response", None) is not None else None


@contextmanager
def _alone(target: Path, part: Path) -> Iterator[None]:
    """Hold the lock of a download, waiting for a process that has it as long as its part grows."""
    from huggingface_hub.utils import WeakFileLock

    lock = target.with_name(f"{target.name}.lock")
    size, grown = -1, time.monotonic()
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(lock, timeout=1))
                break
            except TimeoutError as err:
                now = part.stat().st_size if part.exists() else 0
                if now != size:
                    size, grown = now, time.monotonic()
                elif time.monotonic() - grown > _PATIENCE:
                    raise WeightsError(
                        f"Another process holds {lock} and gets no further; stop it, or give another folder with"
                        " HF_HOME or cache_dir."
                    ) from err
        yield


def _transfer(repo_id: str, revision: str, file: WeightFile, handle: BinaryIO, progress: bool) -> None:
    """Append to a file what it lacks, trying again while the network lets some of it through."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repo_id, file.name, revision=revision)
    if handle.tell() > file.size:
        handle.truncate(0)
    tries, heard, most = 0, time.monotonic(), handle.tell()
    with Progress(file.size, "B", name=file.name, done=most, shown=progress) as bar:
        while handle.tell() < file.size:
            error: Exception | None = None
            try:
                _request(url, file, handle, bar)
            except http_error() as err:
                error = err
            if handle.tell() > most:
                tries, heard, most = 0, time.monotonic(), handle.tell()
            tries += 1
            status = getattr(getattr(error, "response", None), "status_code", None)
            if (status is not None and status not in _BUSY) or tries >= _TRIES or time.monotonic() - heard > _PATIENCE:
                if error is None:
                    return  # a whole answer, but shorter than it should be
                raise explain(error, repo_id, revision, file.name) from error
            if error is not None:
                _logger.info("%s: %s; trying again", url, error)
                time.sleep(min(0.5 * 2**tries, 4))


def _request(url: str, file: WeightFile, handle: BinaryIO, bar: Progress) -> None:
    from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    from tcgn_hub.version import __version__

    have = handle.tell()
    headers = {
        **build_hf_headers(library_name="tcgn_hub", library_version=__version__),
        "Accept-Encoding": "identity",  # a range counts the bytes of the file, not of its compressed form
    }
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == 416:
            return _start_over(handle, bar)
        if response.status_code >= 400:
            response.read()
        hf_raise_for_status(response)
        begins = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if have and (response.status_code != 206 or begins != str(have)):
            # a server that ignores the range sends the file from its start
            _start_over(handle, bar)
            if response.status_code == 206:
                return
        for block in response.iter_bytes():
            handle.write(block)
            bar.update(len(block))
            if handle.tell() > file.size:
                return


def _start_over(handle: BinaryIO, bar: Progress) -> None:
    bar.update(-handle.tell())
    handle.truncate(0)
    handle.seek(0)


def http_error() -> type[Exception]:
    """The base of all errors of whichever HTTP library huggingface_hub is built on."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def explain(err: Exception, repo_id: str, revision: str, name: str) -> WeightsError:
    """What an error of the Hub's client means for the user, in one sentence."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import get_token

    hub = constants.ENDPOINT
    status = getattr(getattr(err, "response", None), "status_code", None)
    if constants.HF_HUB_OFFLINE:
        return WeightsError(
            f"{name} of {repo_id} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: fetch it where there"
            " is a network, and use the same HF_HOME here, or unset HF_HUB_OFFLINE."
        )
    said = {
        errors.GatedRepoError: f"{repo_id} is gated: accept its terms at {hub}/{repo_id}, then log in with"
        " `hf auth login` or set HF_TOKEN.",
        errors.RevisionNotFoundError: f"{repo_id} no longer has the revision {revision} (it was moved or deleted);"
        " install a newer tcgn_hub or tell the owner of the repository.",
        errors.LocalEntryNotFoundError: f"{hub} cannot be reached, and {name} of {repo_id} is not on this machine;"
        " check the network, HF_ENDPOINT and the proxy settings.",
        errors.EntryNotFoundError: f"{repo_id} has no file {name} at revision {revision}; tell the owner of the"
        " repository.",
    }
    # the kinds stand before those they are kinds of
    text = next((text for kind, text in said.items() if isinstance(err, kind)), None)
    if text is not None:
        return WeightsError(text)
    if isinstance(err, errors.RepositoryNotFoundError) or status == 404:
        text = f"There is no repository {repo_id} at {hub}, or it is private: if you have access, log in with"
        text += " `hf auth login` or set HF_TOKEN."
    elif status == 401 and get_token():
        text = (
            f"{hub} refused your token for {repo_id} (it may have expired): log in again with `hf auth login`, or set"
        )
        text += " another HF_TOKEN."
    elif status in (401, 403):
        text = (
            f"{hub} refused access to {repo_id}: log in with `hf auth login` or set an HF_TOKEN that may read it, and"
        )
        text += f" accept its terms at {hub}/{repo_id} if it has any."
    elif status is not None:
        text = f"{hub} answered {status} for {name} of {repo_id}; try again later."
    else:
        text = f"{hub} cannot be reached, or broke off, for {name} of {repo_id} ({type(err).__name__}); check the"
        text += " network, HF_ENDPOINT and the proxy settings and try again: what has arrived is kept."
    return WeightsError(text)
