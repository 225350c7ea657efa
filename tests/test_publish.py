"""Publishing to a hub on loopback with the real client, and what plain timm makes of it."""

import json
import shutil

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from test_hub import BUNDLED, TOKEN, Hub, bundled_folder, equal_to_bundled, use_endpoint

import tcgn_hub
from tcgn_hub.errors import WeightsError
from tcgn_hub.weights.manifest import find_weights, reload_manifest
from tcgn_hub.weights.publish import publish

REPO = "pathlab/tcgn-her2st"


@pytest.fixture
def hub(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    # the storage service of the real Hub is not part of the protocol that can be served here
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with Hub() as hub:
        hub.token = TOKEN
        use_endpoint(monkeypatch, hub.url)
        yield hub


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return bundled_folder(tmp_path_factory.mktemp("bundled"))


@pytest.fixture
def folder(tmp_path, whole_folder):
    return shutil.copytree(whole_folder, tmp_path / "model")


def test_published_weights_load_with_plain_timm(hub, folder, tmp_path, monkeypatch):
    published = publish(folder, REPO, private=True)
    repo = hub.repos[REPO]
    assert repo.private
    assert published.entry["hub"] == {"repo_id": REPO, "revision": repo.head}
    assert set(published.files) <= set(repo.commits[repo.head])

    model = timm.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path / "cache").eval()
    assert equal_to_bundled(model)
    assert tuple(model.pretrained_cfg["label_names"]) == find_weights(BUNDLED).info.genes
    local = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(model(x), local(x))
    data = timm.data.resolve_model_data_config(model)
    assert (data["crop_pct"], data["crop_mode"]) == (1.0, "squash")

    # the entry it prints is all that another lab needs
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 1, "models": [published.entry]}))
    monkeypatch.setenv("TCGN_MANIFEST", str(tmp_path / "manifest.json"))
    reload_manifest()
    assert published.entry["tag"] == "tcgn_base.tcgn_her2st"
    entry = find_weights("tcgn_base.tcgn_her2st")
    assert entry.info.held_out == find_weights(BUNDLED).info.held_out
    assert tcgn_hub.weights.hub.resolve(entry, cache_dir=tmp_path / "cache").source == "hub"


def test_publishing_twice_moves_the_revision(hub, folder):
    first = publish(folder, REPO)
    config = json.loads((folder / "config.json").read_text())
    config["tcgn"]["origin"] = "something else"
    (folder / "config.json").write_text(json.dumps(config))
    second = publish(folder, REPO)
    assert first.entry["hub"]["revision"] != second.entry["hub"]["revision"]
    assert set(hub.repos[REPO].commits) > {first.entry["hub"]["revision"], second.entry["hub"]["revision"]}


def test_the_card_says_it_all(folder):
    card = publish(folder, REPO, dry_run=True).card
    parsed = ModelCard(card)
    assert parsed.data.library_name == "timm"
    assert parsed.data.pipeline_tag == "image-feature-extraction"
    assert parsed.data.license == "apache-2.0"
    assert parsed.data.datasets == ["her2st"]
    assert {"pathology", "histology", "spatial-transcriptomics", "gene-expression"} <= set(parsed.data.tags)
    entry = find_weights(BUNDLED).info
    for text in (
        f'timm.create_model("hf-hub:{REPO}", pretrained=True)',
        entry.units,
        f"{entry.held_out['median_pcc']:.3f}",
        f"| {len(entry.held_out['significant'])} |",
        "CC-BY-4.0",
        "Protocol: cross-validation by section, folds B4, C6",
        "90 % prediction intervals, which hold 84 % of B4 and 86 % of C6",
        "not for diagnosis",
        "@article{xiao2024tcgn",
        entry.training_data["citation"],
    ):
        assert text in card


def test_what_the_weights_have_seen_is_published(hub, folder):
    lineage = {
        "parents": [{"name": "lab/first", "sha256": "0" * 64}],
        "seen": [{"study": "lab", "patient": "P1", "section": "P1_2", "image": "1" * 64, "counts": "2" * 64}],
    }
    config = json.loads((folder / "config.json").read_text())
    config["tcgn"] |= lineage
    config["tcgn"]["held_out"]["allowed_seen"] = ["P1_2", "P1_3"]
    (folder / "config.json").write_text(json.dumps(config))
    published = publish(folder, REPO)
    assert {key: published.entry[key] for key in lineage} == lineage
    assert published.entry["held_out"]["allowed_seen"] == ["P1_2", "P1_3"]

    files = hub.repos[REPO].commits[published.entry["hub"]["revision"]]
    stated = json.loads(files["config.json"])["tcgn"]
    assert {key: stated[key] for key in lineage} == lineage
    assert stated["held_out"]["allowed_seen"] == ["P1_2", "P1_3"]
    card = files["README.md"].decode()
    assert f"- Started from: lab/first, sha256 {'0' * 64}\n" in card
    assert "- Seen by these weights or those they were started from: P1_2\n" in card
    assert "**Measured on sections that the weights or their parents have seen: P1_2, P1_3.**" in card


def test_a_card_of_ones_own_is_kept(hub, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    published = publish(folder, REPO)
    assert hub.repos[REPO].commits[published.entry["hub"]["revision"]]["README.md"].decode() == published.card
    assert published.card.endswith("# Mine\n")


def test_weights_that_were_not_measured_say_so(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["tcgn"]["held_out"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "Not measured" in publish(folder, REPO, dry_run=True).card


def test_what_is_refused_before_the_hub_is_asked(hub, folder, tmp_path, monkeypatch):
    def refuses(says, *args, **kwargs):
        with pytest.raises(WeightsError, match=says) as raised:
            publish(*args, **kwargs)
        assert "\n" not in str(raised.value)

    refuses("'noorg' is not the name of a repository", folder, "noorg")
    refuses("no config.json", tmp_path, REPO)
    config = json.loads((folder / "config.json").read_text())
    facts = {key: value for key, value in config["tcgn"].items() if key not in ("license", "origin")}
    (folder / "config.json").write_text(json.dumps({**config, "tcgn": facts}))
    refuses("does not state license, origin in its block tcgn", folder, REPO)
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    refuses("needs a token", folder, REPO)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    refuses("cannot be read as parameters", folder, REPO)
    (folder / "model.safetensors").unlink()
    refuses(r"model\.safetensors cannot be read \(No such file or directory\)", folder, REPO)
    assert not [path for _, path, _ in hub.log if "models" in path or "repos" in path]


def test_a_token_that_may_not_write(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "expired")
    with pytest.raises(WeightsError, match=r"may not write to pathlab/tcgn-her2st"):
        publish(folder, REPO)
    assert not hub.repos
