"""From a model directory to a repository on the Hub, and the manifest entry that pins it."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcgn_hub.errors import CheckpointError, WeightsError
from tcgn_hub.weights.card import model_card
from tcgn_hub.weights.hub import explain, http_error, kept_in
from tcgn_hub.weights.manifest import REPO_ID
from tcgn_hub.weights.model_dir import manifest_entry, read_info, read_model_dir


@dataclass(frozen=True)
class Published:
    """What was published, or would be."""

    entry: dict[str, Any]  # for a manifest; its revision is the commit, or null where nothing was uploaded
    card: str
    files: tuple[str, ...]
    url: str | None  # of the commit; None where nothing was uploaded


def publish(
    folder: str | Path, repo_id: str, *, tag: str | None = None, private: bool = False, dry_run: bool = False
) -> Published:
    """Upload ``config.json``, ``model.safetensors`` and a model card in one commit.

    A ``README.md`` in the folder is taken as the card; otherwise one is written from what ``config.json`` states.
    """
    import timm
    from safetensors import SafetensorError

    folder = Path(folder)
    if not REPO_ID.fullmatch(repo_id):
        raise WeightsError(f"{repo_id!r} is not the name of a repository; give organisation/name.")
    config = read_model_dir(folder)
    name = re.sub(r"[^A-Za-z0-9_]+", "_", repo_id.split("/")[1])
    entry = manifest_entry(folder, tag=tag or f"{config['architecture']}.{name}")
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (SafetensorError, RuntimeError, OSError) as err:
        if isinstance(err, CheckpointError):
            raise
        raise WeightsError(f"{folder} cannot be read as parameters ({str(err).splitlines()[0]}).") from err
    own_card = folder / "README.md"
    card = (
        own_card.read_text(encoding="utf-8")
        if own_card.is_file()
        else model_card(repo_id, read_info(folder, name=entry["tag"]))
    )
    files = (*(file["name"] for file in entry["files"]), "README.md")
    if dry_run:
        return Published(entry, card, files, None)

    with kept_in(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="tcgn-publish-") as staging:
        for file in entry["files"]:
            shutil.copy(folder / file["name"], staging)
        (Path(staging) / "README.md").write_text(card, encoding="utf-8")
        commit = _upload(staging, repo_id, private)
    entry["hub"] = {"repo_id": repo_id, "revision": commit.oid}
    return Published(entry, card, files, commit.commit_url)


def _upload(staging: str, repo_id: str, private: bool) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import get_token

    from tcgn_hub.version import __version__

    if not get_token():
        raise WeightsError("Publishing needs a token of the Hub that may write: `hf auth login`, or set HF_TOKEN.")
    api = HfApi(library_name="tcgn_hub", library_version=__version__)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id, folder_path=staging, commit_message=f"Upload with tcgn_hub {__version__}"
        )
    except OfflineModeIsEnabled as err:
        raise WeightsError("Nothing can be published while HF_HUB_OFFLINE is set.") from err
    except (http_error(), LocalTokenNotFoundError) as err:
        status = getattr(getattr(err, "response", None), "status_code", None)
        if status in (401, 403):
            raise WeightsError(
                f"Your token may not write to {repo_id}: log in with one that may, `hf auth login` or HF_TOKEN."
            ) from err
        raise explain(err, repo_id, "main", "the upload") from err
    except (RuntimeError, ValueError) as err:
        raise WeightsError(f"The upload to {repo_id} failed ({str(err).splitlines()[0]}); run it again.") from err
