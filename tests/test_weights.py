"""The manifest, verified files, and loading by tag, folder or file."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import golden
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import tcgn_hub
from tcgn_hub.errors import CheckpointError, ManifestError, TcgnError, WeightsError
from tcgn_hub.models import tcgn
from tcgn_hub.models.loading import load_model
from tcgn_hub.weights import hub, manifest
from tcgn_hub.weights.convert import read_parameters
from tcgn_hub.weights.hub import resolve, sha256_of
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.lineage import Parent, SeenSection
from tcgn_hub.weights.manifest import find_weights, load_manifest, parse_manifest
from tcgn_hub.weights.model_dir import manifest_entry, read_info, read_model_dir, save_model_dir

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


def test_the_manifest_says_all_of_the_bundled_weights_and_nothing_else_does(document):
    (bundled,) = [entry for entry in document["models"] if entry["bundled"]]
    entry = find_weights(TAG)
    assert bundled["tag"] == TAG == next(iter(load_manifest()))
    assert [path.name for path in entry.folder.iterdir()] == ["model.safetensors"]
    assert len(entry.info.genes) == len(entry.info.pcc) == 785
    assert entry.info.significant < set(entry.info.genes)
    assert list(entry.info.held_out["sections"]) == ["B4", "C6"]


def test_the_default_weights_say_how_sure_they_are():
    predictor = tcgn_hub.load()
    info = predictor.info
    assert all(0 < radius < 5 for radius in info.interval_radius.values())
    assert all(0.8 < share < 1 for share in info.held_out["interval_coverage"].values())
    assert predictor.run(np.zeros((1, 224, 224, 3), np.uint8))["ood"].shape == (1,)
    assert "protocol" in info.held_out


def test_the_default_weights_say_what_they_have_seen():
    seen = find_weights(TAG).info.seen
    assert [(s.study, s.patient, s.section) for s in seen] == [
        ("her2st", name[0], name) for name in ("B4", "C2", "C3", "C4", "C5", "C6")
    ]
    assert all(len(s.image) == len(s.counts) == 64 for s in seen)


def test_the_top_of_the_repository_links_to_the_one_manifest():
    top = Path(tcgn_hub.__file__).parent.parent / "weights_manifest.json"
    assert top.is_symlink()
    assert top.resolve() == manifest.manifest_path()


INFO = WeightsInfo(
    "mine",
    ("A", "B"),
    units="counts",
    sha256="0" * 64,
    architecture="test_tcgn",
    crop={"patch_um": 154.0},
    training_data={"name": "mine"},
    held_out={"pcc": [0.5, None], "significant": ["A"], "interval_radius": [None, 1.5], "interval_level": 0.8},
    ood={"rest": 1.0},
    parents=(Parent("tcgn_base.her2st", "1" * 64),),
    seen=(SeenSection("own", "P", "S", "2" * 64, "3" * 64),),
    license="MIT",
    origin="drawn",
)


def test_what_is_known_has_one_form(tmp_path):
    text = json.dumps(INFO.to_json())
    assert WeightsInfo.from_json(json.loads(text)) == INFO
    model = timm.create_model("test_tcgn", num_classes=2)
    save_model_dir(model, tmp_path, INFO)
    assert read_info(tmp_path, name="mine", sha256=INFO.sha256) == INFO
    entry = manifest_entry(tmp_path, tag="test_tcgn.mine", bundled=True)
    parsed = parse_manifest({"schema": 1, "models": [entry]}, source="m.json", folder=tmp_path)["test_tcgn.mine"]
    assert parsed.info == replace(INFO, name="test_tcgn.mine", sha256=sha256_of(tmp_path / "model.safetensors"))


def test_a_number_that_float16_cannot_hold_is_kept(tmp_path, caplog):
    torch.manual_seed(0)
    model = timm.create_model("test_tcgn", num_classes=2).eval()
    norm = model.stages[0].blocks[0].ffn.norm2
    norm.running_var.fill_(1e6)
    norm.weight.data.fill_(1e3)
    save_model_dir(model, tmp_path, INFO)
    assert "keeps stages.0.blocks.0.ffn.norm2.running_var in float32" in caplog.text
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["stages.0.blocks.0.ffn.norm2.running_var"].dtype == torch.float32
    assert stored["stages.0.blocks.0.ffn.norm2.weight"].dtype == torch.float16
    again, _ = load_model(tmp_path)
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert (again(x) - model(x)).abs().max() < 0.01 * model(x).abs().max()


def test_a_variance_that_float16_would_make_0_is_kept(tmp_path, caplog):
    model = timm.create_model("test_tcgn", num_classes=2).eval()
    model.stem.norm1.running_var.fill_(1e-9)
    save_model_dir(model, tmp_path, INFO)
    assert "keeps stem.norm1.running_var in float32" in caplog.text
    assert load_file(tmp_path / "model.safetensors")["stem.norm1.running_var"].eq(1e-9).all()


def test_small_outputs_are_compared_by_their_size(tmp_path):
    model = timm.create_model("test_tcgn", num_classes=2).eval()
    model.head.fc.weight.data.mul_(1e-6)
    model.head.fc.bias.data.zero_()
    with pytest.raises(CheckpointError, match="nothing was kept"):
        save_model_dir(model, tmp_path, INFO)
    assert not list(tmp_path.iterdir())


def test_weights_that_rounding_breaks_are_not_kept(tmp_path):
    model = timm.create_model("test_tcgn", num_classes=2).eval()
    model.head.fc.bias.data.fill_(torch.nan)
    with pytest.raises(CheckpointError, match=r"gives other values .* nothing was kept"):
        save_model_dir(model, tmp_path, INFO)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.update(schema=2), r"\$\.schema"),
        (lambda d: d.pop("models"), r"\$\.models is missing"),
        (lambda d: d["models"][0].pop("units"), r"\$\.models\[0\]\.units is missing"),
        (lambda d: d["models"][0].update(tag="nodot"), r"\$\.models\[0\]\.tag"),
        (lambda d: d["models"][0].update(panel="unknown"), r"\$\.models\[0\]: .*panel is no panel: 'unknown'"),
        (lambda d: d["models"][0].update(panel=["A", 1]), r"\$\.models\[0\]: .*panel is no panel"),
        (lambda d: d["models"][0]["files"][0].update(size="big"), r"\$\.models\[0\]\.files\[0\]\.size should be a int"),
        (lambda d: d["models"][0]["files"].pop(0), r"\$\.models\[0\]\.files lacks"),
        (lambda d: d["models"][0]["held_out"]["pcc"].pop(), r"\$\.models\[0\]: .*held_out\.pcc has 784"),
        (lambda d: d["models"].append(d["models"][0]), r"\$\.models\[6\]\.tag repeats"),
        (lambda d: d["models"][0].update(tag="tcgn_huge.x"), r"\$\.models\[0\]\.tag"),
        (lambda d: d["models"][0].update(scope="half"), r"\$\.models\[0\]: .*scope is 'half'"),
        (lambda d: d["models"][0]["files"][0].update(name="../x"), r"\$\.models\[0\]\.files\[0\]\.name"),
        (lambda d: d["models"][0]["files"][0].update(size=0), r"\$\.models\[0\]\.files\[0\]\.size"),
        (lambda d: d["models"][0]["files"][0].update(sha256="../" * 22), r"\$\.models\[0\]\.files\[0\]\.sha256"),
        (lambda d: d["models"][0]["hub"].update(repo_id="org/x"), r"\$\.models\[0\]\.hub needs both"),
        (lambda d: d["models"][0]["hub"].update(repo_id="org/x", revision="main"), r"\.hub\.revision"),
        (lambda d: d["models"][0].update(bundled=False), r"\$\.models\[0\]\.hub\.repo_id is null"),
        (
            lambda d: d["models"][0]["held_out"].update(significant=["NOGENE"]),
            r"\$\.models\[0\]: .*held_out\.significant names 'NOGENE'",
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
    assert timm.list_models("*tcgn*") == ["tcgn_base", "test_tcgn"]
    assert timm.list_pretrained("*tcgn*") == [TAG]
    assert timm.get_pretrained_cfg("tcgn_base").tag == "her2st"


def test_pretrained_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = timm.create_model("tcgn_base", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == list(load_manifest()[TAG].info.genes)
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
    assert tcgn._manifest_entry("tcgn_base", kwargs) is None
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


def test_a_run_that_has_not_ended_is_no_weights(tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    for weights in (tmp_path, tmp_path / "checkpoint.pt", str(tmp_path)):
        with pytest.raises(WeightsError, match=r"is an unfinished run; continue it with `tcgn finetune .* --resume`"):
            resolve(weights)
    with pytest.raises(WeightsError, match="is an unfinished run"):
        read_model_dir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert resolve(tmp_path).path == tmp_path / "model.safetensors"


class _Object:
    pass


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_is_refused_in_our_own_words(tmp_path):
    file = tmp_path / "model.pth"
    for write in (
        lambda: torch.save({"model": _Object()}, file),
        lambda: file.write_bytes(pickle.dumps({"model": print})),
        lambda: file.write_text("weights"),
        lambda: file.write_bytes(b""),
    ):
        write()
        with pytest.raises(WeightsError, match=r"model\.pth cannot be read as parameters \(it is damaged") as raised:
            read_parameters(file)
        assert "weights_only" not in str(raised.value)


def test_a_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12")
    first, stat = sha256_of(path), path.stat()
    hashed = []
    real = hub.hashlib.sha256
    monkeypatch.setattr(hub.hashlib, "sha256", lambda: hashed.append(1) or real())
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
    model, info = load_model()
    save_model_dir(model, tmp_path, info)
    outputs = []
    for weights in (None, TAG, "tcgn_base", tmp_path, tmp_path / "model.safetensors"):
        model, info = load_model(weights)
        assert not model.training
        known = replace(info, name=TAG, sha256=entry.model_file.sha256)
        assert known == entry.info
        with torch.inference_mode():
            outputs.append(model(x))
    assert all(torch.equal(outputs[0], output) for output in outputs)
    assert info.sha256 == sha256_of(tmp_path / "model.safetensors")
    assert "state_dict" not in model.pretrained_cfg


@pytest.mark.parametrize("panel", [785, 171])
def test_load_published_file(tmp_path, panel):
    torch.save(golden.published_state_dict(panel), tmp_path / "published.pth")
    model, info = load_model(tmp_path / "published.pth")
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
            load_model(tmp_path / name)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "evil").exists()


def test_bad_folders_are_refused(tmp_path):
    folder = tmp_path / "model"
    save_model_dir(timm.create_model("test_tcgn", num_classes=2), folder, replace(INFO, held_out={}))
    config = json.loads((folder / "config.json").read_text())

    def write(**changes):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    for changes, why in (
        ({"label_names": ["A"]}, "names 1 genes"),
        ({"architecture": "resnet50"}, "resnet50"),
        ({"num_classes": 3, "label_names": ["A", "B", "C"]}, "predicts 2 genes"),
    ):
        write(**changes)
        with pytest.raises(TcgnError, match=why):
            load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_model_dir(folder)
    with pytest.raises(WeightsError, match=r"no config\.json"):
        read_model_dir(tmp_path)
    with pytest.raises(WeightsError, match="no such tag"):
        load_model(str(tmp_path / "absent"))
