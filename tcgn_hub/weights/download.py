"""One file from the Hub, at a pinned revision, checked before anyone can see it.

huggingface_hub's own downloads compare no content hash and start over in a new process. Here its client, endpoint,
token and typed errors are used, and the bytes go to a ``.part`` file that any later process continues.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tcgn_hub.errors import WeightsError
from tcgn_hub.weights.cache import matches, sha256_of, writing
from tcgn_hub.weights.manifest import WeightFile

__all__ = ["explain", "fetch", "fetch_folder", "http_error"]

_logger = logging.getLogger(__name__)
_TRIES = 4  # without a new byte in between
_PATIENCE = 15.0  # seconds without a new byte, after which no further try is made
_BUSY = (408, 425, 429, 500, 502, 503, 504)


def fetch(repo_id: str, revision: str, file: WeightFile, target: Path, *, progress: bool = True) -> None:
    """Download a file to ``target``, which exists afterwards with the sha256 of ``file``, or not at all.

    Processes that want the same file wait for each other. What an interrupted download left is continued.

    Args:
        repo_id: Repository on the Hub.
        revision: Commit.
        file: What is expected.
        target: Where to write it.
        progress: Show a progress bar on stderr.

    Raises:
        WeightsError: The Hub does not give the file, gives other bits, or ``target`` cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    with writing(target.parent):
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


def fetch_folder(
    repo_id: str, revision: str | None, names: Sequence[str], *, cache_dir: str | Path | None = None
) -> Path:
    """Files of any repository, through the cache of huggingface_hub; returns the folder that holds them.

    A file that the Hub stores by its sha256 is checked against it, for its own client does not.

    Raises:
        WeightsError: The Hub does not give a file, or it is damaged.
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
        blob = Path(os.path.realpath(path))
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256_of(blob) != blob.name:
            raise WeightsError(f"{blob} is damaged (its sha256 is not the one of the Hub); delete it and try again.")
    assert path is not None
    return path.parent


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
    from huggingface_hub.utils import tqdm

    url = hf_hub_url(repo_id, file.name, revision=revision)
    if handle.tell() > file.size:
        handle.truncate(0)
    tries, heard, most = 0, time.monotonic(), handle.tell()
    with tqdm(
        total=file.size,
        initial=most,
        unit="B",
        unit_scale=True,
        desc=file.name,
        disable=None if progress else True,
    ) as bar:
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


def _request(url: str, file: WeightFile, handle: BinaryIO, bar: Any) -> None:
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
        if response.status_code >= 400 and response.status_code != 416:
            response.read()
        if response.status_code == 416:
            _start_over(handle, bar)
            return
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


def _start_over(handle: BinaryIO, bar: Any) -> None:
    bar.update(-handle.tell())
    handle.truncate(0)
    handle.seek(0)


def http_error() -> type[Exception]:
    """The base of all errors of whichever HTTP library huggingface_hub is built on."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def explain(err: Exception, repo_id: str, revision: str, name: str) -> WeightsError:
    """What an error of the Hub's client means for the user, in one sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import get_token

    hub = constants.ENDPOINT
    status = getattr(getattr(err, "response", None), "status_code", None)
    if isinstance(err, OfflineModeIsEnabled):
        return WeightsError(f"{name} of {repo_id} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it.")
    if isinstance(err, GatedRepoError):
        return WeightsError(
            f"{repo_id} is gated: accept its terms at {hub}/{repo_id}, then log in with `hf auth login` or set"
            " HF_TOKEN."
        )
    if isinstance(err, RevisionNotFoundError):
        return WeightsError(
            f"{repo_id} no longer has the revision {revision} (it was moved or deleted); install a newer tcgn_hub or"
            " tell the owner of the repository."
        )
    if isinstance(err, LocalEntryNotFoundError):
        return WeightsError(
            f"{hub} cannot be reached, and {name} of {repo_id} is not on this machine; check the network, HF_ENDPOINT"
            " and the proxy settings."
        )
    if isinstance(err, EntryNotFoundError):
        return WeightsError(f"{repo_id} has no file {name} at revision {revision}; tell the owner of the repository.")
    if isinstance(err, RepositoryNotFoundError) or status == 404:
        return WeightsError(
            f"There is no repository {repo_id} at {hub}, or it is private: if you have access, log in with"
            " `hf auth login` or set HF_TOKEN."
        )
    if status == 401 and get_token():
        return WeightsError(
            f"{hub} refused your token for {repo_id} (it may have expired): log in again with `hf auth login`, or set"
            " another HF_TOKEN."
        )
    if status in (401, 403):
        return WeightsError(
            f"{hub} refused access to {repo_id}: log in with `hf auth login` or set an HF_TOKEN that may read it, and"
            f" accept its terms at {hub}/{repo_id} if it has any."
        )
    if status is not None:
        return WeightsError(f"{hub} answered {status} for {name} of {repo_id}; try again later.")
    return WeightsError(
        f"{hub} cannot be reached, or broke off, for {name} of {repo_id} ({type(err).__name__}); check the network,"
        " HF_ENDPOINT and the proxy settings and try again: what has arrived is kept."
    )
