import csv
import json
import logging

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sections import PANEL, write_section

import tcgn_hub
from tcgn_hub.data.sections import read_her2st
from tcgn_hub.errors import SectionError, TrainingError
from tcgn_hub.training import _denoise


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    root = tmp_path_factory.mktemp("her2st")
    write_section(root, "A1", spots=8, zero=2)
    write_section(root, "B1", spots=8, seed=1)
    return read_her2st(root)


@pytest.fixture(scope="module")
def run(sections, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "model"
    metrics = tcgn_hub.finetune(
        sections[:1], test=sections[1:], genes=PANEL, out=out, epochs=2, batch_size=4, components=3, amp=False
    )
    return out, metrics


def test_the_model_directory_is_complete(run):
    out, metrics = run
    assert metrics["spots"] == {"A1": 6}
    assert metrics["spots_without_counts"] == {"A1": 2}
    assert metrics["held_out"]["spots"] == 8
    assert json.loads((out / "metrics.json").read_text()) == metrics
    per_gene, history = (
        list(csv.DictReader((out / name).read_text().splitlines())) for name in ("per_gene.csv", "history.csv")
    )
    assert [row["gene"] for row in per_gene] == PANEL
    assert len(history) == 2
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == PANEL
    assert config["tcgn"]["units"].startswith("log10(1 + 10^4")
    assert len(config["tcgn"]["held_out"]["pcc"]) == len(PANEL)
    assert not [p for p in out.iterdir() if "part" in p.name]


def test_timm_and_predict_load_it(run):
    out, _ = run
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == PANEL
    patch = np.full((112, 112, 3), 128, np.uint8)
    prediction = tcgn_hub.predict([patch], weights=out, magnification=20)
    assert prediction.genes == PANEL
    assert prediction.pcc("G0") is not None
    assert np.isfinite(prediction.values).all()


def test_resumed_equals_uninterrupted(run, sections, tmp_path):
    out, _ = run
    settings = {"genes": PANEL, "batch_size": 4, "components": 3, "amp": False}

    class InterruptError(Exception):
        pass

    def stop(record):
        if record.getMessage().startswith("Epoch 2"):
            raise InterruptError
        return True

    logger = logging.getLogger("tcgn_hub.training")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addFilter(stop)
    try:
        with pytest.raises(InterruptError):
            tcgn_hub.finetune(sections[:1], test=sections[1:], out=tmp_path, epochs=2, **settings)
    finally:
        logger.removeFilter(stop)
        logger.setLevel(level)
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]) == 1
    tcgn_hub.finetune(sections[:1], test=sections[1:], out=tmp_path, epochs=2, **settings)
    once, twice = load_file(out / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(once[key], twice[key]) for key in once)

    with pytest.raises(TrainingError, match="other settings"):
        tcgn_hub.finetune(sections[:1], out=tmp_path, epochs=3, **settings)


def test_a_leak_is_refused(sections, tmp_path):
    with pytest.raises(SectionError, match="both to train and to test"):
        tcgn_hub.finetune(sections, test=sections[:1], genes=PANEL, out=tmp_path)


def test_a_model_of_another_panel_is_refused(sections, tmp_path):
    with pytest.raises(TrainingError, match="5 outputs"):
        tcgn_hub.finetune(
            sections, genes=PANEL, out=tmp_path, model=timm.create_model("tcgn_base", num_classes=5, device="meta")
        )


def test_denoised_targets():
    rng = np.random.default_rng(0)
    scores, loadings = rng.normal(size=(60, 2)), rng.normal(size=(2, 20))
    clean = scores @ loadings
    noisy = clean + rng.normal(size=clean.shape)
    sections = [noisy[:30] + 5, noisy[30:]]
    mean, _, targets = _denoise(sections, 2)
    assert targets.mean(axis=0) == pytest.approx(mean, abs=1e-4)
    error = np.abs(targets[30:] - targets[30:].mean(0) - (clean[30:] - clean[30:].mean(0))).mean()
    assert error < 0.5 * np.abs(noisy - clean).mean()
    assert np.array_equal(_denoise(sections, None)[2], np.concatenate(sections).astype(np.float32))
