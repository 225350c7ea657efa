"""Checkpoints of other authors: converted exactly, or refused with nothing written."""

import os
import resource
from pathlib import Path

import golden
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from tcgn_hub.errors import CheckpointError, PanelError, TcgnError, WeightsError
from tcgn_hub.models.loading import load_model
from tcgn_hub.panels import load_panel
from tcgn_hub.weights.convert import import_checkpoint, remove_import
from tcgn_hub.weights.hub import resolve, sha256_of, where
from tcgn_hub.weights.manifest import assets_folder, find_weights
from tcgn_hub.weights.published_keys import is_trunk_key

A2 = "tcgn_base.her2st_a2"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A checkpoint as its authors would save one: pickled, wrapped, of a model in DataParallel."""
    path = tmp_path_factory.mktemp("published") / "A2-TCGN-her2-best.pth"
    state = {f"module.{key}": value for key, value in golden.published_state_dict().items()}
    torch.save({"model": state, "epoch": 3}, path)
    return path


def trunk_of(state):
    graph = ("gnn_block", "channel_attention", "head.")
    return {key: value for key, value in state.items() if not key.startswith(graph)}


def test_before_the_import_the_error_says_what_to_do():
    with pytest.raises(WeightsError, match=rf"A2-TCGN-her2-best\.pth from .*tcgn weights import FILE --tag {A2}"):
        timm.create_model(A2, pretrained=True)
    with pytest.raises(WeightsError, match="tcgn weights import"):
        load_model(A2)


def test_the_published_model(published):
    imported = import_checkpoint(published)
    assert imported.weights.tag == A2
    assert (len(imported.filled), imported.fresh, imported.left_out) == (994, [], [])
    entry = find_weights(A2)
    assert where(entry) == "imported"
    assert entry.import_from["sha256"] == sha256_of(published)
    assert entry.import_from["file"] in entry.info.origin
    assert entry.info.genes == tuple(load_panel("her2st_785"))
    assert entry.info.held_out == {}

    model = timm.create_model(A2, pretrained=True).eval()
    assert tuple(model.pretrained_cfg["label_names"]) == entry.info.genes
    with torch.inference_mode():
        logits = model(golden.expected()["input"])
    torch.testing.assert_close(logits, golden.expected()["logits"], atol=1e-4, rtol=0)
    _, info = load_model(A2)
    assert (info.genes, info.pcc) == (entry.info.genes, None)
    # the folder is one that timm loads too, and nothing was rounded
    again = timm.create_model(f"local-dir:{entry.folder}", pretrained=True)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))

    assert remove_import(A2) > 90e6
    assert not (assets_folder("imports") / A2).exists()
    with pytest.raises(WeightsError, match="tcgn weights import"):
        resolve(A2)


@pytest.mark.parametrize(("genes", "tag"), [(171, "tcgn_base.cscc"), (250, "tcgn_base.spatiallibd")])
def test_the_other_published_panels(tmp_path, genes, tag):
    torch.save(golden.published_state_dict(genes), tmp_path / "x.pt")
    assert import_checkpoint(tmp_path / "x.pt").weights.tag == tag
    model = timm.create_model(tag, pretrained=True)
    assert len(model.pretrained_cfg["label_names"]) == model.num_classes == genes


def test_any_panel_with_a_name(tmp_path):
    genes = [f"G{i}" for i in range(33)]
    (tmp_path / "genes.txt").write_text("\n".join(genes))
    save_file(golden.published_state_dict(33), tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match=r"a model of 33 genes, .*tag='tcgn_base\.NAME'"):
        import_checkpoint(tmp_path / "mine.safetensors")
    with pytest.raises(PanelError, match=r"33 genes; name them with genes="):
        import_checkpoint(tmp_path / "mine.safetensors", tag="tcgn_base.mine")
    for _ in range(2):  # the second replaces the first
        import_checkpoint(tmp_path / "mine.safetensors", tag="tcgn_base.mine", genes=tmp_path / "genes.txt")
    _, info = load_model("tcgn_base.mine")
    assert list(info.genes) == genes
    assert info.units == "not stated"


def test_a_trunk_is_a_start(tmp_path, caplog):
    state = trunk_of(golden.published_state_dict())
    torch.save({**state, "head.weight": torch.zeros(1000, 1280), "head.bias": torch.zeros(1000)}, tmp_path / "cmt.pth")
    imported = import_checkpoint(tmp_path / "cmt.pth")
    assert imported.weights.tag == "tcgn_base.cmt_tiny"
    assert imported.left_out == ["head.weight", "head.bias"]
    assert len(imported.filled) == len(state)
    assert {key.split(".")[0] for key in imported.fresh} == {"stages", "head"}
    assert not any(is_trunk_key(key) for key in imported.fresh)

    torch.manual_seed(3)
    new = timm.create_model("tcgn_base", num_classes=7).state_dict()
    torch.manual_seed(3)
    model = timm.create_model("tcgn_base.cmt_tiny", pretrained=True, num_classes=7)
    assert "graph branches and the head are new" in caplog.text
    given = load_file(imported.weights.folder / "model.safetensors")
    for key, value in model.state_dict().items():
        assert torch.equal(value, given[key] if is_trunk_key(key) else new[key]), key
    assert timm.create_model("tcgn_base.cmt_tiny", pretrained=True, features_only=True)
    with pytest.raises(WeightsError, match="a start for fine-tuning"):
        load_model("tcgn_base.cmt_tiny")
    # named as a file it is not taken for a whole model
    with pytest.raises(CheckpointError, match="missing"):
        timm.create_model(
            "tcgn_base", pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "cmt.pth")}, num_classes=7
        )


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_bad_checkpoints_are_refused(tmp_path, monkeypatch, published):
    monkeypatch.chdir(tmp_path)
    good = golden.published_state_dict()
    whole = published.read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({**good, "stem_conv1.weight": Evil()}, "evil.pth")
    torch.save(timm.create_model("resnet18").state_dict(), "resnet.pth")
    torch.save({**good, "extra.weight": torch.zeros(1)}, "extra.pth")
    torch.save({**good, "stem_conv1.weight": torch.full((16, 3, 3, 3), torch.nan)}, "nan.pth")
    torch.save({**good, "stem_conv1.weight": torch.zeros(16, 4, 3, 3)}, "shape.pth")
    torch.save({key: value for key, value in good.items() if "gc2" not in key}, "missing.pth")
    short = trunk_of(good)
    short.pop("stem_conv2.weight")
    torch.save(short, "trunk.pth")
    (tmp_path / "three.txt").write_text("A\nB\nC\n")
    for name, options, says in (
        ("none.pth", {}, "does not exist"),
        ("cut.pth", {}, "cannot be read as parameters"),
        ("empty.pth", {}, "cannot be read as parameters"),
        ("evil.pth", {}, "cannot be read as parameters"),
        ("resnet.pth", {}, "not a TCGN checkpoint"),
        ("extra.pth", {}, r"1 unexpected \(extra\.weight\)"),
        ("nan.pth", {}, r"1 not finite \(stem\.conv1\.weight\)"),
        ("shape.pth", {}, r"1 of another shape \(stem\.conv1\.weight\)"),
        ("missing.pth", {}, r"6 missing \(stages\.0\.graph\.co_embed\.censnet\.edge"),
        ("trunk.pth", {}, r"1 missing \(stem\.conv2\.weight\)"),
        (published, {"genes": "three.txt", "tag": "tcgn_base.mine"}, "predicts 785 genes, but the panel has 3"),
        (published, {"genes": "cscc_171"}, "name it with tag"),
        (published, {"tag": "tcgn_base.cscc"}, r"not what tcgn_base\.cscc stands for: a model of 785 genes"),
        (published, {"tag": "tcgn_base.her2st"}, "belongs to other weights"),
        (published, {"tag": "mine"}, "'mine' is not a tag"),
    ):
        with pytest.raises(TcgnError, match=says) as raised:
            import_checkpoint(name, **options)
        assert "\n" not in str(raised.value), name
    assert not (tmp_path / "evil").exists()
    assert not assets_folder("imports").exists() or not list(assets_folder("imports").iterdir())


@pytest.mark.parametrize("kept", [trunk_of, dict])
def test_disk_full(tmp_path, kept):
    save_file(kept(golden.published_state_dict()), tmp_path / "cmt.safetensors")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises(WeightsError, match=r"imports cannot be written \(File too large\); make") as raised:
            import_checkpoint(tmp_path / "cmt.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    assert not list(assets_folder("imports").iterdir())


def test_a_changed_import_is_refused(tmp_path):
    save_file(trunk_of(golden.published_state_dict()), tmp_path / "cmt.safetensors")
    weights = import_checkpoint(tmp_path / "cmt.safetensors").weights
    path = weights.folder / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(WeightsError, match=r"sha256 differs\); import it again"):
        timm.create_model(weights.tag, pretrained=True)
