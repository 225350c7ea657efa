"""The manifest, verified files, and loading by tag, folder or file."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import golden
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import tcgn_hub
from tcgn_hub import registry
from tcgn_hub.errors import CheckpointError, ManifestError, TcgnError, WeightsError
from tcgn_hub.weights import cache, manifest
from tcgn_hub.weights.cache import sha256_of
from tcgn_hub.weights.manifest import find_weights, load_manifest, parse_manifest
from tcgn_hub.weights.model_dir import manifest_entry, read_model_dir
from tcgn_hub.weights.resolve import resolve

TAG = "tcgn_base.her2st"


def flip_last_byte(path):
    with open(path, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        last = handle.read(1)
        handle.seek(-1, os.SEEK_END)
        handle.write(bytes([last[0] ^ 1]))


@pytest.fixture
def document():
    return json.loads(manifest.manifest_path().read_text())


@pytest.mark.parametrize(("number", "tag", "held_out"), [(0, TAG, ["B4", "C6"]), (1, "tcgn_base.her2st_c6", ["C6"])])
def test_the_manifest_describes_the_bundled_folders(document, number, tag, held_out):
    entry = find_weights(tag)
    assert document["models"][number] == manifest_entry(entry.folder, tag=tag, bundled=True)
    assert len(entry.genes) == len(entry.held_out["pcc"]) == 785
    assert set(entry.held_out["significant"]) < set(entry.genes)
    assert list(entry.held_out["sections"]) == held_out


def test_the_default_weights_say_how_sure_they_are():
    info = tcgn_hub.load_model()[1]
    assert all(0 < width < 5 for width in info.interval_radius.values())
    entry = find_weights(TAG)
    assert all(0.8 < share < 1 for share in entry.held_out["interval_coverage"].values())
    assert info.ood.mean.shape == (1280,)
    assert "protocol" in entry.held_out


def test_the_checkout_and_not_a_stale_copy_is_read():
    assert manifest.manifest_path().name == "weights_manifest.json"
    assert not (manifest.manifest_path().parent / "tcgn_hub" / "weights_manifest.json").exists()


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(schema=2), r"\$\.schema"),
        (lambda d: d.pop("models"), r"\$\.models is missing"),
        (lambda d: d["models"][0].pop("units"), r"\$\.models\[0\]\.units is missing"),
        (lambda d: d["models"][0].update(tag="nodot"), r"\$\.models\[0\]\.tag"),
        (lambda d: d["models"][0].update(panel="unknown"), r"\$\.models\[0\]\.panel"),
        (lambda d: d["models"][0].update(panel=["A", 1]), r"\$\.models\[0\]\.panel"),
        (lambda d: d["models"][0]["files"][0].update(size="big"), r"\$\.models\[0\]\.files\[0\]\.size should be a int"),
        (lambda d: d["models"][0]["files"].pop(0), r"\$\.models\[0\]\.files lacks"),
        (lambda d: d["models"][0]["held_out"]["pcc"].pop(), r"\$\.models\[0\]\.held_out\.pcc has 784"),
        (lambda d: d["models"].append(d["models"][0]), r"\$\.models\[6\]\.tag repeats"),
        (lambda d: d["models"][0].update(tag="tcgn_huge.x"), r"\$\.models\[0\]\.tag"),
        (lambda d: d["models"][0].update(scope="half"), r"\$\.models\[0\]\.scope"),
        (lambda d: d["models"][0]["files"][0].update(name="../x"), r"\$\.models\[0\]\.files\[0\]\.name"),
        (lambda d: d["models"][0]["files"][0].update(size=0), r"\$\.models\[0\]\.files\[0\]\.size"),
        (lambda d: d["models"][0]["files"][0].update(sha256="../" * 22), r"\$\.models\[0\]\.files\[0\]\.sha256"),
        (lambda d: d["models"][0]["hub"].update(repo_id="org/x"), r"\$\.models\[0\]\.hub needs both"),
        (lambda d: d["models"][0]["hub"].update(repo_id="org/x", revision="main"), r"\.hub\.revision"),
        (lambda d: d["models"][0].update(bundled=False), r"\$\.models\[0\]\.hub\.repo_id is null"),
        (
            lambda d: d["models"][0]["held_out"].update(significant=["NOGENE"]),
            r"\.held_out\.significant names 'NOGENE'",
        ),
        (lambda d: d["models"][1].update({"import": {"file": "x"}}), r"\$\.models\[1\]\.import\.from is missing"),
        (lambda d: d.update(models=[3]), r"\$\.models\[0\] should be a dict"),
    ],
)
def test_a_malformed_manifest_names_the_path(document, tmp_path, change, where):
    change(document)
    with pytest.raises(ManifestError, match=where):
        parse_manifest(document, source="mine.json", folder=tmp_path)


def test_unknown_tags_are_named():
    with pytest.raises(ManifestError, match=r"'tcgn_base\.nothing'.*her2st"):
        find_weights("tcgn_base.nothing")


def test_timm_lists_the_tag_as_default():
    assert timm.list_models("tcgn_*") == ["tcgn_base"]
    assert timm.list_pretrained("tcgn_*") == [TAG, f"{TAG}_c6"]
    assert timm.get_pretrained_cfg("tcgn_base").tag == "her2st"


def test_pretrained_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = timm.create_model("tcgn_base", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == list(load_manifest()[TAG].genes)
    file = load_file(find_weights(TAG).folder / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[key], value.to(state[key].dtype)) for key, value in file.items())
    assert next(model.parameters()).dtype == torch.float32
    data = timm.data.resolve_model_data_config(model)
    assert (data["input_size"], data["crop_pct"], data["crop_mode"], data["interpolation"]) == (
        (3, 224, 224),
        1.0,
        "squash",
        "bilinear",
    )


def test_new_outputs_have_no_old_names():
    model = timm.create_model("tcgn_base", pretrained=True, num_classes=10, in_chans=4, cache_dir="unused")
    assert "label_names" not in model.pretrained_cfg
    assert model(torch.zeros(1, 4, 224, 224)).shape == (1, 10)
    assert timm.create_model(TAG, pretrained=True, features_only=True)


def test_checkpoint_path(tmp_path, golden_model):
    torch.save(golden_model.state_dict(), tmp_path / "mine.pth")
    model = timm.create_model("tcgn_base", checkpoint_path=str(tmp_path / "mine.pth")).eval()
    with torch.inference_mode():
        got = model(golden.expected()["input"][:1])
    torch.testing.assert_close(got, golden.expected()["logits"][:1], atol=1e-4, rtol=0)


def test_a_weaker_source_of_the_user_is_not_overruled():
    kwargs = {"pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x.pth"}}
    assert registry._manifest_entry("tcgn_base", kwargs) is None
    assert kwargs["pretrained_cfg_overlay"] == {"url": "http://127.0.0.1:9/x.pth", "file": None}


def test_same_size_corruption_is_found(tmp_path):
    entry = find_weights(TAG)
    entry = replace(entry, folder=Path(shutil.copytree(entry.folder, tmp_path / "weights")))
    path = resolve(entry).path
    assert path.parent == tmp_path / "weights"
    flip_last_byte(path)
    with pytest.raises(WeightsError, match=r"sha256 differs.*install the package again"):
        resolve(entry)
    path.unlink()
    with pytest.raises(WeightsError, match="missing"):
        resolve(entry)


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12")
    first, stat = sha256_of(path), path.stat()
    hashed = []
    real = cache.hashlib.sha256
    monkeypatch.setattr(cache.hashlib, "sha256", lambda: hashed.append(1) or real())
    assert sha256_of(path) == first
    assert not hashed
    # the same size, inode and mtime: only force sees it
    path.write_bytes(b"21")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert sha256_of(path) == first
    assert sha256_of(path, force=True) != first
    path.write_bytes(b"12")
    assert sha256_of(path) == first
    assert len(hashed) == 2


def test_load_model_by_tag_folder_and_file(tmp_path):
    entry = find_weights(TAG)
    x = golden.expected()["input"][:1]
    outputs = []
    for weights in (None, TAG, "tcgn_base", entry.folder, entry.folder / "model.safetensors"):
        model, info = tcgn_hub.load_model(weights)
        assert not model.training
        assert info.genes == entry.genes
        assert info.sha256 == entry.model_file.sha256 == sha256_of(entry.folder / "model.safetensors")
        assert info.significant == set(entry.held_out["significant"])
        with torch.inference_mode():
            outputs.append(model(x))
    assert all(torch.equal(outputs[0], output) for output in outputs)
    assert "state_dict" not in model.pretrained_cfg


@pytest.mark.parametrize("panel", [785, 171])
def test_load_published_file(tmp_path, panel):
    torch.save(golden.published_state_dict(panel), tmp_path / "published.pth")
    model, info = tcgn_hub.load_model(tmp_path / "published.pth")
    assert len(info.genes) == model.num_classes == panel
    assert info.significant is None


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_bad_files_are_refused(tmp_path, monkeypatch, golden_file):
    monkeypatch.chdir(tmp_path)
    torch.save({"stem_conv1.weight": Evil()}, "evil.pth")
    whole = golden_file.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("no weights")
    torch.save([1, 2], "list.pth")
    save_file({"head.2.bias": torch.zeros(33)}, tmp_path / "panel.safetensors")
    save_file({"fc.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    for name in ("evil.pth", "cut.safetensors", "text.pth", "list.pth", "panel.safetensors", "other.safetensors"):
        with pytest.raises((WeightsError, CheckpointError)) as raised:
            tcgn_hub.load_model(tmp_path / name)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "evil").exists()


def test_bad_folders_are_refused(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(find_weights(TAG).folder, folder)
    config = json.loads((folder / "config.json").read_text())

    def write(**changes):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    for changes, why in (
        ({"label_names": config["label_names"][:5]}, "names 5 genes"),
        ({"architecture": "resnet50"}, "resnet50"),
        ({"num_classes": 3, "label_names": ["A", "B", "C"]}, "predicts 785 genes"),
    ):
        write(**changes)
        with pytest.raises(TcgnError, match=why):
            tcgn_hub.load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_model_dir(folder)
    with pytest.raises(WeightsError, match=r"no config\.json"):
        read_model_dir(tmp_path)
    with pytest.raises(WeightsError, match="no such tag"):
        tcgn_hub.load_model(str(tmp_path / "absent"))
