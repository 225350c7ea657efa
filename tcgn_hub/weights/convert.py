"""Foreign checkpoints: read without running what is in them, checked key by key, and kept as safetensors."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcgn_hub.errors import CheckpointError, ManifestError, PanelError, WeightsError
from tcgn_hub.panels import PANELS, load_panel
from tcgn_hub.text import option
from tcgn_hub.weights.hub import kept_in, sha256_of
from tcgn_hub.weights.manifest import (
    NAME,
    TAG,
    ManifestEntry,
    assets_folder,
    find_weights,
    manifest_path,
    parse_manifest,
    reload_manifest,
)
from tcgn_hub.weights.published_keys import is_trunk_key, rename_published

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Imported:
    """What an import did: the new entry of the manifest of imports, and names of tensors."""

    weights: ManifestEntry
    filled: list[str]  # that the checkpoint gives
    fresh: list[str]  # that it leaves to a new model: none, or the graph branches and the head
    left_out: list[str]  # that the model has no use for


def read_parameters(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, by its own names. Nothing in it is executed."""
    import torch
    from timm.models import load_state_dict

    if not file.is_file():
        raise WeightsError(f"{file} does not exist.")
    try:
        state_dict = load_state_dict(str(file), weights_only=True)
    except Exception as err:  # of damage PyTorch and safetensors say whatever comes of it
        raise WeightsError(f"{file} cannot be read as parameters ({why_unread(err)}).") from err
    if not state_dict or not all(isinstance(value, torch.Tensor) for value in state_dict.values()):
        raise WeightsError(f"{file} does not hold a dictionary of tensors.")
    return state_dict


def why_unread(err: BaseException) -> str:
    """What is wrong with a file of PyTorch's, in a few words of ours where PyTorch would have it unpacked unsafely."""
    if "weights_only" in str(err).lower().replace(" ", "_"):
        return (
            "it is damaged, or holds more than tensors, which is never unpacked, for a pickle may run any program: ask"
            " for the state dict alone, best as safetensors"
        )
    if isinstance(err, (LookupError, EOFError)):
        return "it is damaged, or no file of parameters"
    return (str(err).splitlines() or [""])[0].rstrip(".") or repr(err)


def import_checkpoint(
    file: str | Path, *, tag: str | None = None, genes: str | Path | Sequence[str] | None = None
) -> Imported:
    """Keep a foreign checkpoint as weights of this machine, which timm then knows by their tag.

    A full model, one without a classifier, or a trunk without graph branches and head, of published or of our names.
    Numbers are kept as they are. A tag that was imported before is replaced.
    """
    import timm
    import torch

    file = Path(file)
    if genes is not None:
        genes = load_panel(genes)
    source = {"file": file.name, "size": file.stat().st_size, "sha256": sha256_of(file)} if file.is_file() else {}
    state = rename_published(read_parameters(file))
    if "stem.conv1.weight" not in state:
        raise CheckpointError(f"{file} is not a TCGN checkpoint: it has no parameter stem_conv1.weight.")
    left_out: list[str] = []
    if all(is_trunk_key(key) or key in ("head.weight", "head.bias") for key in state):
        scope, outputs = "trunk", 1
        left_out = [key for key in state if not is_trunk_key(key)]
        state = {key: value for key, value in state.items() if is_trunk_key(key)}
        if genes is not None:
            raise PanelError(f"{file} is a trunk, which predicts no genes; leave the panel out.")
    elif "head.pre_logits.fc.bias" in state and not any(key.startswith("head.fc.") for key in state):
        scope, outputs = "backbone", 0
        if genes is not None:
            raise PanelError(f"{file} is a backbone, which predicts no genes; leave the panel out.")
    else:
        scope = "model"
        last = state.get("head.fc.bias")
        if last is None or last.ndim != 1:
            raise CheckpointError(f"{file} is not a TCGN checkpoint: it has no last layer of one output per gene.")
        outputs = len(last)
    with torch.device("meta"):
        expected = timm.create_model("tcgn_base", num_classes=outputs).state_dict()
    fresh = [key for key in expected if scope == "trunk" and not is_trunk_key(key)]
    _check_fit(file, state, {key: value for key, value in expected.items() if key not in fresh})

    known = _known(tag, scope, outputs, genes)
    tag = known["tag"]
    panel = None if scope != "model" else _panel(file, outputs, genes or known.get("panel"))
    entry = {
        **known,
        "scope": scope,
        "panel": panel,
        "bundled": True,
        "hub": {"repo_id": None, "revision": None},
        "import": {"file": file.name, "from": known.get("import", {}).get("from", "its owner"), **source},
        "origin": f"{known['origin']}; converted from {file.name}, sha256 {source['sha256']}",
    }
    root = assets_folder("imports")
    with kept_in(root):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".part-") as part:
            entry["files"] = _write(Path(part), state, entry, outputs)
            weights = parse_manifest({"schema": 1, "models": [entry]}, source=f"import of {file}", folder=root)[tag]
            _keep(Path(part), entry, root)
    reload_manifest()
    return Imported(weights=weights, filled=list(state), fresh=fresh, left_out=left_out)


def _check_fit(file: Path, state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    import torch

    problems = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [key for key in expected if key in state and state[key].shape != expected[key].shape],
        "not finite": [
            key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()
        ],
    }
    found = [
        f"{len(keys)} {what} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if found:
        raise CheckpointError(f"{file} does not fit TCGN: parameters {'; '.join(found)}.")


def _known(tag: str | None, scope: str, outputs: int, genes: list[str] | None) -> dict[str, Any]:
    """What the package's manifest says of a tag; with no tag, of the only weights of this kind that can be imported."""
    entries = json.loads(manifest_path().read_text(encoding="utf-8"))["models"]
    for entry in entries:
        if "import" not in entry or tag not in (None, entry["tag"]):
            continue
        panel = load_panel(entry["panel"]) if "panel" in entry else None
        if entry.get("scope", "model") == scope and (panel is None or len(panel) == outputs):
            if tag or genes in (None, panel):
                return entry
        elif tag:
            raise WeightsError(f"The file is not what {tag} stands for: {_described(scope, outputs)}.")
    if tag is None:
        raise WeightsError(
            f"The file is {_described(scope, outputs)}, which no published weights are; name it with"
            f" {option('tag', 'tcgn_base.NAME')} and its genes with {option('genes', 'FILE')}."
        )
    if not TAG.fullmatch(tag):
        raise WeightsError(f"{tag!r} is not a tag; give tcgn_base, a dot and a name of letters, digits, - and _.")
    try:
        taken = find_weights(tag)
    except ManifestError:
        pass
    else:
        if not (taken.bundled and taken.import_from):
            raise WeightsError(f"The tag {tag} belongs to other weights; give another name with {option('tag')}.")
    return {
        "tag": tag,
        "units": "not stated",
        "crop": {
            "px": 112,
            "magnification": 20,
            "nominal_patch_um": 56,
            "rule": "that of the paper, not stated otherwise",
        },
        "training_data": {"name": "not stated"},
        "held_out": {},
        "license": "not stated",
        "origin": "imported",
    }


def _described(scope: str, outputs: int) -> str:
    return f"a {scope} without genes" if scope != "model" else f"a model of {outputs} genes"


def _panel(file: Path, outputs: int, genes: str | Sequence[str] | None) -> list[str] | str:
    if genes is None:
        named = [name for name in PANELS if len(load_panel(name)) == outputs]
        if not named:
            raise PanelError(f"{file} predicts {outputs} genes; name them with {option('genes', 'FILE')}, one a line.")
        return named[0]
    if len(load_panel(genes)) != outputs:
        raise PanelError(f"{file} predicts {outputs} genes, but the panel has {len(load_panel(genes))}.")
    return genes if isinstance(genes, str) else list(genes)


def _write(part: Path, state: dict[str, torch.Tensor], entry: dict[str, Any], outputs: int) -> list[dict[str, Any]]:
    """Write the files of an entry; returns their list for the manifest."""
    if entry["scope"] == "trunk":
        from safetensors.torch import save_file

        tensors = {key: value.contiguous() for key, value in state.items()}
        save_file(tensors, part / "model.safetensors", {"format": "pt"})
    else:
        import timm

        from tcgn_hub.weights.info import WeightsInfo
        from tcgn_hub.weights.model_dir import save_model_dir

        model = timm.create_model(entry["tag"].split(".")[0], num_classes=outputs)
        model.load_state_dict(state)
        save_model_dir(model, part, WeightsInfo.from_json(entry, name=entry["tag"]), half=False)
    names = sorted(path.name for path in part.iterdir())
    return [
        {"name": name, "size": (part / name).stat().st_size, "sha256": sha256_of(part / name, force=True)}
        for name in names
    ]


def _keep(part: Path, entry: dict[str, Any], root: Path) -> None:
    """Move the files in place, then list them; in between the old sha256 has the new file refused."""
    from huggingface_hub.utils import WeakFileLock

    with WeakFileLock(root / f"{NAME}.lock"):
        folder = root / entry["tag"]
        folder.mkdir(exist_ok=True)
        for file in entry["files"]:
            os.replace(part / file["name"], folder / file["name"])
        _rewrite(root, [entry], entry["tag"])


def _rewrite(root: Path, entries: list[dict[str, Any]], tag: str) -> None:
    """Put entries in the place of a tag's in the manifest of imports."""
    path = root / NAME
    models = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
    models = [model for model in models if model["tag"] != tag] + entries
    part = path.with_name(f".{NAME}.part")
    part.write_text(json.dumps({"schema": 1, "models": models}, indent=1), encoding="utf-8")
    os.replace(part, path)


def remove_import(tag: str) -> int:
    """Forget imported weights and delete their files; returns the bytes freed."""
    from huggingface_hub.utils import WeakFileLock

    root = assets_folder("imports")
    with kept_in(root), WeakFileLock(root / f"{NAME}.lock"):
        _rewrite(root, [], tag)
        freed = sum(path.stat().st_size for path in (root / tag).glob("*"))
        shutil.rmtree(root / tag)
    reload_manifest()
    return freed
