import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import golden
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sections import PANEL, write_section
from timm.layers import convert_sync_batchnorm

import tcgn_hub
from tcgn_hub import Recipe
from tcgn_hub.correlation import pearson
from tcgn_hub.data.readers import read_sections
from tcgn_hub.data.sections import Section, expression_targets
from tcgn_hub.data.targets import training_targets, variable_genes
from tcgn_hub.errors import OutputError, SectionError, TrainingError
from tcgn_hub.evaluation.measuring import predict_crops
from tcgn_hub.evaluation.splits import Split
from tcgn_hub.training import checkpoints
from tcgn_hub.training.crossval import _folders
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.losses import bulk_mean
from tcgn_hub.training.optimisation import freeze, make_optimizer, make_schedule
from tcgn_hub.training.start import starting_model
from tcgn_hub.training.trainer import Trainer
from tcgn_hub.units import mean_in_linear
from tcgn_hub.weights.hub import sha256_of
from tcgn_hub.weights.model_dir import read_info

SMALL = {
    "architecture": "test_tcgn",
    "weights": "scratch",
    "epochs": 2,
    "batch_size": 4,
    "components": 3,
    "crop_px": 112,
    "precision": "float32",
}
RECIPE = Recipe(**SMALL, cycles=2)
STARTED = {key: value for key, value in SMALL.items() if key not in ("architecture", "weights")}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("her2st")
    write_section(root, "A1", spots=8, zero=2)
    write_section(root, "B1", spots=8, seed=1)
    return root


@pytest.fixture(scope="module")
def sections(root) -> list[Section]:
    return read_sections(root)


@pytest.fixture(scope="module")
def run(sections, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "model"
    metrics = tcgn_hub.finetune(sections, genes=PANEL, test=["B"], out=out, recipe=RECIPE)
    return out, metrics


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same(a: Path, b: Path) -> bool:
    first, second = weights_of(a), weights_of(b)
    return all(torch.equal(first[key], second[key]) for key in first)


def test_the_model_directory_is_complete(run):
    out, metrics = run
    assert metrics["spots"] == {"A1": 6, "B1": 8}
    assert metrics["split"] == {"train": ["A1"], "val": [], "test": ["B1"]}
    assert metrics["held_out"]["spots"] == 8
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert Split.from_json((out / "splits.json").read_text()) == Split(("A1",), (), ("B1",))
    per_gene, history = (
        list(csv.DictReader((out / name).read_text().splitlines())) for name in ("per_gene.csv", "history.csv")
    )
    assert [row["gene"] for row in per_gene] == PANEL
    assert len(history) == 2
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == PANEL
    assert config["tcgn"]["units"].startswith("log10(1 + 10^4")
    assert len(config["tcgn"]["held_out"]["pcc"]) == len(PANEL)
    assert config["tcgn"]["training_data"]["patients"] == ["A"]
    card = (out / "README.md").read_text()
    assert "Held-out metrics" in card
    assert 'create_model("local-dir:model"' in card
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and "tensorboard" not in str(path)}
    assert names == {
        *("README.md", "config.json", "model.safetensors", "metrics.json", "per_gene.csv", "splits.json"),
        *("history.csv", "held_out.npz", "evaluation.html", "figures/curve.png", "figures/methods.png"),
    }


def test_timm_and_predict_load_it(run):
    out, _ = run
    model = timm.create_model(f"local-dir:{out}", pretrained=True)
    assert list(model.pretrained_cfg["label_names"]) == PANEL
    patch = np.asarray(golden.tissue(112))
    prediction = tcgn_hub.predict([patch], weights=out, magnification=20)
    assert prediction.genes == PANEL
    assert prediction.pcc("G0") is not None
    assert np.isfinite(prediction.X).all()


def test_its_entry_for_the_manifest_can_be_made(run):
    from tcgn_hub.weights.model_dir import manifest_entry

    entry = manifest_entry(run[0], tag="test_tcgn.mine")
    assert entry["training_data"]["held_out"] == ["B1"]


def test_evaluating_the_weights_again_gives_the_same(run, root, tmp_path):
    out, _ = run
    again = tcgn_hub.evaluate(root, weights=out, crop_px=112, out=tmp_path / "again")
    for gene, row in zip(again.per_gene, csv.DictReader((out / "per_gene.csv").read_text().splitlines()), strict=True):
        assert gene["gene"] == row["gene"]
        assert gene["pcc"] == pytest.approx(float(row["pcc"]), abs=1e-5)
        assert gene["pcc ridge"] == pytest.approx(float(row["pcc ridge"]), abs=1e-5)
    assert json.loads((tmp_path / "again/metrics.json").read_text())["held_out"]["spots"] == 8
    for problem in ({"test": ["A1"]}, {"test": ["A"], "by": "section"}):
        with pytest.raises(SectionError, match="seen"):
            tcgn_hub.evaluate(root, weights=out, **problem)
    with pytest.raises(SectionError, match="no section or patient X9"):
        tcgn_hub.evaluate(root, weights=out, test=["X9"])


def test_a_patient_seen_in_training_is_refused_unless_asked_for(run, root, sections, tmp_path):
    other = Section(**{**vars(sections[1]), "name": "A2", "patient": "A"})
    with pytest.raises(SectionError, match="patient"):
        tcgn_hub.evaluate([other], weights=run[0], crop_px=112)
    evaluation = tcgn_hub.evaluate([other], weights=run[0], crop_px=112, by="section")
    assert "ridge" not in evaluation.summary["methods"]  # there is nothing to fit it on


@pytest.mark.parametrize("steps", [1, 3])
def test_resumed_equals_uninterrupted(run, sections, tmp_path, stop_after, steps):
    options = {"genes": PANEL, "test": ["B"], "out": tmp_path}
    stop_after(steps)
    with pytest.raises(KeyboardInterrupt):
        tcgn_hub.finetune(sections, recipe=RECIPE, **options)
    stop_after(1000)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == steps
    with pytest.raises(TrainingError, match="resume"):
        tcgn_hub.finetune(sections, recipe=RECIPE, **options)
    with pytest.raises(TrainingError, match="another lr"):
        tcgn_hub.finetune(sections, recipe=replace(RECIPE, lr=1e-3), resume=True, **options)
    metrics = tcgn_hub.finetune(sections, recipe=RECIPE, resume=True, **options)
    assert same(run[0], tmp_path)
    losses = [row["loss"] for row in csv.DictReader((tmp_path / "history.csv").read_text().splitlines())]
    assert losses == [row["loss"] for row in csv.DictReader((run[0] / "history.csv").read_text().splitlines())]
    assert metrics["held_out"] == run[1]["held_out"]
    with pytest.raises(TrainingError, match="finished run"):
        tcgn_hub.finetune(sections, recipe=RECIPE, resume=True, **options)


def test_a_cycle_begins_with_what_the_one_before_it_would_have_kept(sections, run, tmp_path, stop_after):
    options = {"genes": PANEL, "test": ["B"], "resume": True}
    tcgn_hub.finetune(sections, out=tmp_path / "one", recipe=replace(RECIPE, epochs=1, cycles=1), **options)
    first = load_file(tmp_path / "one/model.safetensors")
    stop_after(3)  # the first step of the second cycle
    with pytest.raises(KeyboardInterrupt):
        tcgn_hub.finetune(sections, out=tmp_path / "two", recipe=RECIPE, **options)
    state = torch.load(tmp_path / "two/checkpoint.pt", weights_only=True)
    assert {row["step"].item() for row in state["optimizer"]["state"].values()} == {1}
    rate = state["optimizer"]["param_groups"][0]["lr"]
    assert rate == pytest.approx(RECIPE.lr)
    name = "head.fc.weight"
    assert (state["model"][name] - first[name]).abs().max() < 1.1 * rate + 1e-3 * first[name].abs().max()


def command(root: Path, out: Path, *more: str) -> list[str]:
    options = [f"--{key.replace('_', '-')}={value}" for key, value in {**SMALL, "cycles": 2}.items()]
    where = ["--genes", ",".join(PANEL), "--test", "B", "-o", str(out), "--device", "cpu"]
    return ["-m", "tcgn_hub.cli.main", "finetune", str(root), *where, *options, *more]


def test_killed_and_resumed_equals_uninterrupted(sections, root, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    tcgn_hub.finetune(sections, genes=PANEL, test=["B"], out=whole, recipe=replace(RECIPE, epochs=12), device="cpu")
    more = ["--epochs", "12", "--checkpoint-minutes", "0.0001", "--resume"]
    start = [sys.executable, *command(root, out, *more)]
    process = subprocess.Popen(start, stderr=subprocess.DEVNULL)
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(np.random.default_rng().uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model.safetensors").exists()
    resumed = [sys.executable, "-m", "tcgn_hub.cli.main", "finetune", "--resume", "-o", str(out)]
    subprocess.run(resumed, check=True, stderr=subprocess.DEVNULL)
    assert same(whole, out)
    assert not (out / "run.json").exists()


def test_sigterm_saves_the_state(root, tmp_path):
    start = [sys.executable, *command(root, tmp_path, "--epochs", "100")]
    process = subprocess.Popen(start, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("Epoch 1 "):
            break
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] >= 2


def test_two_processes_give_what_one_gives(root, tmp_path):
    # the statistics of a batch, and what is dropped, are those of a process: they are left out of the comparison
    more = ["--freeze-norm", "--drop-rate", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    subprocess.run([sys.executable, *command(root, one, *more)], check=True, capture_output=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, *command(root, two, *more)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    first, second = weights_of(one), weights_of(two)
    start = starting_model(RECIPE, PANEL).model.state_dict()
    for key in first:
        if first[key].is_floating_point():
            moved = (first[key].float() - start[key]).abs().max()
            # they are kept in float16, whose steps are up to 2^-10 of a value
            near = torch.allclose(first[key].float(), second[key].float(), atol=max(2e-3 * moved, 1e-4), rtol=2**-10)
            assert near, key
    assert done.stderr.count("Epoch 1 of 2") == 1  # one process speaks


def test_several_processes_stop_together(root, tmp_path):
    """Each has norms of its own, and so another opinion of the epoch: that of the first one counts."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    more = ["--epochs", "12", "--cycles", "1", "--patience", "1", "--lr", "0.05", "--batch-size", "3"]
    done = subprocess.run(
        [*launch, *command(root, tmp_path, *more)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    epochs = json.loads((tmp_path / "metrics.json").read_text())["epochs"]
    assert 2 <= epochs < 12
    assert done.stderr.count(" of 12: loss") == epochs


def test_the_first_process_says_how_good_an_epoch_was(sections, monkeypatch):
    monkeypatch.setattr(Processes, "of_first", lambda self, value: 0.125)
    trainer = Trainer(sections, Recipe(**{**SMALL, "patience": 2}), panel=PANEL, split=Split(("A1",), ("B1",)))
    assert trainer.validate() == {"val_pcc": 0.125}


def test_waiting_for_the_first_process_has_a_time_limit_of_its_own(monkeypatch):
    """It may cut crops, or measure, for longer than a collective is allowed to take."""
    made = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("init_process_group", "destroy_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.new_group", lambda **options: made.setdefault("group", options))
    monkeypatch.setattr("torch.distributed.barrier", lambda group=None: made.setdefault("waited", group))
    with Processes("cpu") as processes:
        processes.wait()
    assert made["waited"] is made["group"]
    assert made["group"]["timeout"].total_seconds() > 86_400


def test_parts_of_a_batch_give_what_the_batch_gives(sections, tmp_path):
    losses = []
    for parts in (1, 2):
        recipe = Recipe(**{**SMALL, "epochs": 1, "accumulate": parts, "freeze_norm": True, "drop_rate": 0})
        tcgn_hub.finetune(sections, genes=PANEL, split="none", out=tmp_path / str(parts), recipe=recipe)
        losses.append(float(next(csv.DictReader((tmp_path / str(parts) / "history.csv").open()))["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_early_stopping_keeps_the_best_epoch_of_validation(sections, tmp_path, monkeypatch):
    """The weights that are kept are those of the best epoch, and not of the last."""
    scores, weights = iter([0.1, 0.3, 0.2, 0.2, 0.9]), []

    def validate(trainer):
        weights.append({key: value.clone() for key, value in trainer.state.kept.state_dict().items()})
        return {"val_pcc": next(scores)}

    monkeypatch.setattr(Trainer, "validate", validate)
    recipe = Recipe(**{**SMALL, "epochs": 5, "patience": 2, "lr": 1e-2})
    metrics = tcgn_hub.finetune(sections[:1], genes=PANEL, split="none", out=tmp_path, recipe=recipe)
    assert metrics["epochs"] == 4
    assert metrics["held_out"] is None
    assert [row["val_pcc"] for row in csv.DictReader((tmp_path / "history.csv").open())] == ["0.1", "0.3", "0.2", "0.2"]
    stored = weights_of(tmp_path)
    assert all(torch.equal(value, weights[1][key].to(value.dtype)) for key, value in stored.items())
    assert not torch.equal(stored["head.fc.weight"], weights[3]["head.fc.weight"].to(stored["head.fc.weight"].dtype))


def test_a_validation_on_spots_measures_them(sections):
    recipe = Recipe(**{**SMALL, "patience": 2})
    trainer = Trainer(sections, recipe, panel=PANEL, split=Split(("A1",), ("B1",)))
    crops, targets = trainer.crops["B1"], expression_targets(sections[1], PANEL)
    own = pearson(predict_crops(trainer.predictor(trainer.state.kept), crops), targets)
    assert trainer.validate() == {"val_pcc": pytest.approx(np.nanmedian(own))}


def test_a_validation_on_slides_compares_slides(sections):
    """Tiles of a slide have no measurement of their own: what is compared is their mean in linear space."""
    slides = bulk_slides(sections, 6)
    names = [slide.name for slide in slides]
    recipe = Recipe(**{**SMALL, "patience": 2})
    trainer = Trainer(slides, recipe, panel=PANEL, split=Split(tuple(names[:2]), tuple(names[2:])))
    with torch.no_grad():  # or tiles hardly differ, and with them the two kinds of mean
        trainer.state.kept.head.fc.weight.mul_(300)
    predictor = trainer.predictor(trainer.state.kept)
    predicted = np.stack([mean_in_linear(predict_crops(predictor, trainer.crops[name])) for name in names[2:]])
    targets = np.concatenate([expression_targets(slide, PANEL) for slide in slides[2:]])
    assert trainer.validate() == {"val_pcc": pytest.approx(np.nanmedian(pearson(predicted, targets)))}
    few = Trainer(slides, recipe, panel=PANEL, split=Split(tuple(names[:4]), tuple(names[4:])))
    assert set(few.validate()) == {"val_rmse"}


def test_bulk_is_the_mean_in_linear_space_also_in_the_loss():
    tiles = torch.tensor(np.random.default_rng(0).uniform(0, 3, (7, 4)), requires_grad=True)
    index = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    mean = bulk_mean(tiles, index, 2)
    for slide in (0, 1):
        np.testing.assert_allclose(
            mean[slide].detach().numpy(), mean_in_linear(tiles[index == slide].detach().numpy()), rtol=1e-12
        )
    assert torch.autograd.gradcheck(lambda x: bulk_mean(x, index, 2), tiles)
    assert bulk_mean(torch.full((2, 1), 400.0), torch.tensor([0, 0]), 1).item() == pytest.approx(400)


def test_nothing_is_held_out_where_nothing_was_asked_to_be(sections, tmp_path):
    recipe = Recipe(
        **{**SMALL, "epochs": 1, "pearson": 0.5, "precision": "bfloat16", "grad_checkpointing": True, "ema": 0}
    )
    metrics = tcgn_hub.finetune(sections, genes=3, split="none", out=tmp_path, recipe=recipe)
    assert metrics["held_out"] is None
    assert not (tmp_path / "per_gene.csv").exists()
    assert len(json.loads((tmp_path / "config.json").read_text())["label_names"]) == 3
    assert "Not measured" in (tmp_path / "README.md").read_text()


def bulk_slides(sections, number: int) -> list[Section]:
    """Slides with one measurement each, and each with tiles of its own."""
    return [
        Section(
            **{**vars(s), "name": f"{s.name}{i}", "patient": f"P{i}", "bulk": True, "counts": s.counts[i : i + 1]}
        ).at(np.arange(len(s.spots)) % number != i)
        for i, s in enumerate((sections * number)[:number])
    ]


def test_slides_with_one_measurement_each_train(sections, tmp_path):
    slides = bulk_slides(sections, 6)
    recipe = Recipe(**{**SMALL, "epochs": 1, "tiles_per_slide": 3})
    tested = ["P4", "P5", "P0", "P1"]
    metrics = tcgn_hub.finetune(slides, genes=PANEL, test=tested, out=tmp_path, recipe=recipe)
    assert list(metrics["held_out"]["sections"]) == ["bulk"]
    assert metrics["held_out"]["spots"] == 4


def test_weights_to_start_from(run):
    same_panel = starting_model(Recipe(weights=str(run[0])), PANEL)
    saved = weights_of(run[0])
    assert not same_panel.new_classifier
    assert torch.equal(same_panel.model.head.fc.weight.half(), saved["head.fc.weight"])
    assert same_panel.parent.sha256 == sha256_of(run[0] / "model.safetensors")
    other = starting_model(Recipe(weights=str(run[0])), PANEL[:5])
    assert other.new_classifier
    assert other.model.head.fc.weight.shape[0] == 5
    assert torch.equal(other.model.stem.conv1.weight.half(), saved["stem.conv1.weight"])
    scratch = starting_model(RECIPE, PANEL)
    assert (scratch.info, scratch.parent, scratch.new_classifier) == (None, None, True)
    default = starting_model(Recipe(), PANEL)
    assert default.info.patch_um == pytest.approx(154)
    assert default.parent.name == "tcgn_base.her2st"
    assert default.model.head.fc.weight.shape[0] == len(PANEL)


def test_a_new_panel_begins_at_the_gene_means(sections, tiny_weights):
    """Whatever numbers a new classifier was drawn with."""
    recipe = Recipe(**STARTED, weights=str(tiny_weights))
    panel = PANEL[:5]
    trainer = Trainer(sections, recipe, panel=panel, split=Split(("A1", "B1")))
    predicted = np.concatenate([predict_crops(trainer.predictor(trainer.state.model), c) for c in trainer.train_crops])
    targets = np.concatenate([expression_targets(section, panel) for section in sections])
    means = np.nanmean(targets, axis=0)
    assert np.abs(predicted.mean(0) - means).max() < 0.2 * means.min()
    # with its own panel the weights begin with what they have learned
    known = Trainer(sections, recipe, panel=PANEL, split=Split(("A1", "B1")))
    stored = load_file(tiny_weights / "model.safetensors")["head.fc.bias"]
    assert torch.equal(known.state.model.head.fc.bias.detach().half(), stored.half())


@pytest.mark.parametrize("tune", ["head", "last-stage", "all"])
def test_what_is_not_trained_stays(tune):
    model = timm.create_model("test_tcgn", num_classes=4)
    recipe = Recipe(tune=tune, lr=0.1)
    frozen = freeze(model, recipe)
    model.train()
    for module in frozen:
        module.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = make_optimizer(model, recipe)
    # after the stem, where a step is cheap; the rest is told by its flags
    model(torch.randn(2, 3, 224, 224)).square().mean().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    trained = {"head": ("head.",), "last-stage": ("head.", "final_conv.", "stages.3."), "all": ("",)}[tune]
    assert all(key.startswith(trained) for key in changed)
    for prefix in trained:
        assert any(key.startswith(prefix) for key in changed)


def test_rates_fall_towards_the_stem_and_along_the_run():
    model = timm.create_model("test_tcgn", num_classes=4)
    recipe = Recipe(lr=1.0, layer_decay=0.5, warmup=0.25)
    optimizer = make_optimizer(model, recipe)
    schedule = make_schedule(optimizer, recipe, 100)
    where = {id(p): group for group in optimizer.param_groups for p in group["params"]}

    def rate(parameter: torch.nn.Parameter) -> float:
        return where[id(parameter)]["lr"]

    rates = []
    for step in range(100):
        schedule.step_update(step)
        rates.append(rate(model.head.fc.weight))
        assert rate(model.stem.conv1.weight) < rate(model.stages[1].blocks[0].ffn.conv1.weight) < rates[-1]
    assert np.argmax(rates) == 25
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert rates[0] < 0.1
    assert where[id(model.head.fc.bias)]["weight_decay"] == 0 < where[id(model.head.fc.weight)]["weight_decay"]


def test_targets_lose_noise_but_not_the_mean():
    rng = np.random.default_rng(0)
    scores, loadings = rng.normal(size=(60, 2)), rng.normal(size=(2, 20))
    clean = scores @ loadings
    noisy = clean + rng.normal(size=clean.shape)
    sections = [noisy[:30] + 5, noisy[30:]]
    result = training_targets(sections, 2)
    targets = np.concatenate(result.targets)
    assert targets.mean(axis=0) == pytest.approx(result.mean, abs=1e-4)
    error = np.abs(targets[30:] - targets[30:].mean(0) - (clean[30:] - clean[30:].mean(0))).mean()
    assert error < 0.5 * np.abs(noisy - clean).mean()
    untouched = training_targets(sections, 0).targets
    assert all(np.array_equal(a, b.astype(np.float32)) for a, b in zip(untouched, sections, strict=True))


def _depths_and_programmes():
    """Counts of two sections whose spots differ in depth, and less in which of two programmes they follow."""
    rng = np.random.default_rng(0)
    programme = rng.normal(size=80)
    depths = np.exp(rng.normal(5, 0.8, 80))
    rates = rng.gamma(1.0, 1.0, 60) * np.exp(0.35 * np.outer(programme, rng.normal(size=60)))
    counts = rng.poisson(depths[:, None] * rates / rates.sum(axis=1, keepdims=True)).astype(float)
    targets = np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))
    return [counts[:40], counts[40:]], [targets[:40], targets[40:]], programme


def test_targets_are_sums_of_components():
    counts, targets, _ = _depths_and_programmes()
    for residuals in (0.0, 0.5):
        result = training_targets(targets, 4, counts=counts, residuals=residuals)
        scores = np.concatenate(result.scores)
        assert scores.T @ scores / 80 == pytest.approx(np.eye(4), abs=1e-9)
        assert all(of.mean(axis=0) == pytest.approx(np.zeros(4), abs=1e-9) for of in result.scores)
        assert np.concatenate(result.targets) == pytest.approx(scores @ result.axes + result.mean, abs=1e-5)
        # no other targets that are made of these components are nearer to those measured
        centred = np.concatenate([of - of.mean(axis=0) for of in targets])
        assert result.axes == pytest.approx(np.linalg.lstsq(scores, centred, rcond=None)[0], abs=1e-9)


def test_residuals_tell_components_what_does_not_go_with_depth():
    counts, targets, programme = _depths_and_programmes()

    def told(residuals):
        (one,) = np.concatenate(training_targets(targets, 1, counts=counts, residuals=residuals).scores).T
        return abs(np.corrcoef(one, programme)[0, 1])

    assert told(0.0) < 0.5 < 0.9 < told(3.0)
    plain = training_targets(targets, 3)
    for other in (training_targets(targets, 3, residuals=1), training_targets(targets, 3, counts=counts)):
        assert all(np.array_equal(a, b) for a, b in zip(plain.targets, other.targets, strict=True))


def test_targets_of_bulk_or_without_some_genes_are_not_told_by_components():
    counts, targets, _ = _depths_and_programmes()
    assert training_targets(targets, 0).scores is None
    assert training_targets([*targets, targets[0][:1]], 3).scores is None
    lacks = [targets[0], np.where(np.arange(60) == 7, np.nan, targets[1])]
    bare = [counts[0], np.where(np.arange(60) == 7, np.nan, counts[1])]
    result = training_targets(lacks, 3, counts=bare, residuals=0.5)
    assert result.scores is None
    assert np.isfinite(result.targets[0]).all()
    assert np.isnan(result.targets[1]).sum() == 40


def test_targets_of_genes_not_measured_stay_unknown():
    rng = np.random.default_rng(0)
    first, second, bulk = rng.normal(size=(9, 4)), rng.normal(size=(8, 4)), rng.normal(size=(1, 4))
    second[:, 2] = np.nan
    result = training_targets([first, second, bulk], 2)
    assert np.isnan(result.targets[1]).any(axis=0).tolist() == [False, False, True, False]
    assert not np.isnan(result.targets[0]).any()
    assert np.array_equal(result.targets[2], bulk.astype(np.float32))
    assert np.isfinite(result.scale).all()


def test_variable_genes_are_those_of_scanpy():
    scanpy = pytest.importorskip("scanpy")
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(0)
    rate = rng.gamma(1, 60, 60) * np.where(np.arange(60) < 15, rng.gamma(0.5, 2, (80, 60)), 1)
    counts = rng.poisson(rate).astype(np.float32)
    genes = [f"G{i:02}" for i in range(60)]
    data = anndata.AnnData(counts, var={"gene": genes})
    data.var_names = genes
    threads = torch.get_num_threads()
    scanpy.experimental.pp.highly_variable_genes(data, n_top_genes=12, flavor="pearson_residuals", theta=100)
    torch.set_num_threads(threads)  # numba changes it, and with it the last bits of what is trained afterwards
    assert set(variable_genes([counts], [genes], 12)) == set(data.var_names[data.var["highly_variable"]])
    assert variable_genes([counts, counts[:, :20]], [genes, genes[:20]], 99) == genes[:20]


def test_the_state_before_is_taken_where_the_latest_is_damaged(tmp_path, caplog):
    for step in (1, 2):
        assert checkpoints.save_checkpoint(tmp_path, {"step": step})
    assert checkpoints.load_checkpoint(tmp_path) == {"step": 2}
    latest = tmp_path / "checkpoint.pt"
    latest.write_bytes(latest.read_bytes()[:300])
    assert checkpoints.load_checkpoint(tmp_path) == {"step": 1}
    assert "damaged" in caplog.text
    (tmp_path / "checkpoint.previous.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt and .* cannot be read"):
        checkpoints.load_checkpoint(tmp_path)


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    assert checkpoints.save_checkpoint(tmp_path, {"step": 1})

    def full(_, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert not checkpoints.save_checkpoint(tmp_path, {"step": 2})
    assert "No space left" in caplog.text
    monkeypatch.undo()
    assert checkpoints.load_checkpoint(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_bad_input_is_refused_before_training(sections, tmp_path, caplog):
    def finetune(data, **options):
        recipe = options.pop("recipe", RECIPE)
        return tcgn_hub.finetune(data, **{"genes": PANEL, "out": tmp_path / "out", **options}, recipe=recipe)

    with pytest.raises(SectionError, match="split='none'"):
        finetune(sections[:1])
    with pytest.raises(SectionError, match="NOGENE"):
        finetune(sections, genes=[*PANEL, "NOGENE"], split="none")
    with pytest.raises(SectionError, match="scale of section A1 is not known"):
        finetune(sections, split="none", recipe=Recipe(weights="scratch"))
    with pytest.raises(TrainingError, match="one spot"):
        finetune([sections[1].at(np.array([3]))], split="none")
    with pytest.raises(TrainingError, match="divided into 8 parts"):
        finetune(sections, recipe=Recipe(**{**SMALL, "accumulate": 8}))
    with pytest.raises(SectionError, match="There are no sections"):
        finetune([])
    (tmp_path / "project").mkdir()
    (tmp_path / "project/README.md").write_text("mine")
    with pytest.raises(TrainingError, match="of something else"):
        finetune(sections, out=tmp_path / "project")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made a folder"):
        finetune(sections, out=tmp_path / "file")
    assert not (tmp_path / "out/model.safetensors").exists()


def test_a_batch_larger_than_the_data_is_the_data(sections, tmp_path, caplog):
    recipe = Recipe(**{**SMALL, "epochs": 1, "batch_size": 500, "precision": "float16"})
    with caplog.at_level(logging.WARNING):
        tcgn_hub.finetune(sections[:1], genes=PANEL, split="none", out=tmp_path, recipe=recipe)
    assert "larger than the 6 training spots" in caplog.text


def test_crossval_holds_out_everyone_once_and_goes_on(root, run, tmp_path, stop_after):
    options = {"genes": PANEL, "out": tmp_path, "recipe": RECIPE}
    stop_after(6)  # in the second fold
    with pytest.raises(KeyboardInterrupt):
        tcgn_hub.crossval(root, **options)
    stop_after(1000)
    first = (tmp_path / "patient_A/model.safetensors").stat().st_mtime_ns
    evaluation = tcgn_hub.crossval(root, resume=True, **options)
    assert (tmp_path / "patient_A/model.safetensors").stat().st_mtime_ns == first
    assert same(run[0], tmp_path / "patient_B")
    assert list(evaluation.summary["sections"]) == ["A1", "B1"]
    assert [row["section"] for row in csv.DictReader((tmp_path / "crossval.csv").open())] == ["A1", "B1"]
    assert (tmp_path / "figures/methods.png").stat().st_size > 5000
    with pytest.raises(TrainingError, match="finished cross-validation"):
        tcgn_hub.crossval(root, **options)
    with pytest.raises(TrainingError, match="another lr"):
        tcgn_hub.crossval(root, **{**options, "recipe": replace(RECIPE, lr=1e-3)}, resume=True)
    with pytest.raises(SectionError, match="no fold Z; the folds are A, B"):
        tcgn_hub.crossval(root, only=["Z"], **options)
    only = tcgn_hub.crossval(root, only=["B"], resume=True, **options)
    assert list(only.summary["sections"]) == ["B1"]


# --- what was seen, and what a run follows from -----------------------------------------------------------------------


def test_weights_say_what_they_and_their_parents_have_seen(run, sections, root, tmp_path):
    out, metrics = run
    assert metrics["weights"] is None
    info = read_info(out, name="run")
    assert (info.parents, [s.section for s in info.seen]) == ((), ["A1"])
    recipe = Recipe(**{**STARTED, "epochs": 1}, weights=str(out))
    # under another name, of another patient, it is the same section
    renamed = [replace(sections[0], name="X7", patient="Y", study="elsewhere"), sections[1]]
    with pytest.raises(SectionError, match=r"X7.*allow_seen"):
        tcgn_hub.finetune(renamed, genes=PANEL, test=["X7"], split="section", out=tmp_path / "no", recipe=recipe)
    with pytest.raises(SectionError, match=r"X7"):
        tcgn_hub.crossval(renamed, genes=PANEL, by="section", out=tmp_path / "folds", recipe=recipe)
    assert not (tmp_path / "no").exists()
    options = {"genes": PANEL, "test": ["X7"], "split": "section", "allow_seen": ["X7"], "recipe": recipe}
    metrics = tcgn_hub.finetune(renamed, out=tmp_path / "child", **options)
    assert metrics["held_out"]["allowed_seen"] == ["X7"]
    assert metrics["weights"] == {"name": out.name, "sha256": sha256_of(out / "model.safetensors")}
    child = read_info(tmp_path / "child", name="child")
    assert [parent.sha256 for parent in child.parents] == [metrics["weights"]["sha256"]]
    assert [s.section for s in child.seen] == ["A1", "B1"]
    assert (
        "Measured on sections that the weights or their parents have seen: X7"
        in (tmp_path / "child/README.md").read_text()
    )
    with pytest.raises(SectionError, match="A1"):
        tcgn_hub.evaluate(sections[:1], weights=tmp_path / "child", crop_px=112)


def test_a_cross_validation_of_other_data_is_not_resumed(sections, tmp_path):
    recipe = Recipe(**{**SMALL, "epochs": 1})
    options = {"genes": PANEL, "by": "section", "out": tmp_path, "recipe": recipe}
    tcgn_hub.crossval(sections, **options)
    swapped = [replace(a, name=b.name, patient=b.patient) for a, b in zip(sections, sections[::-1], strict=True)]
    with pytest.raises(TrainingError, match="another section"):
        tcgn_hub.crossval(swapped, resume=True, **options)
    with pytest.raises(TrainingError, match="another panel"):
        tcgn_hub.crossval(sections, resume=True, **{**options, "genes": PANEL[:5]})


def test_folds_have_folders_of_their_own_below_the_output():
    names = ["a b", "a_b", "../../x", "..", "final", "A_B", "patient C", "C6", "a/b"]
    folders = _folders(names)
    assert len({folder.casefold() for folder in folders.values()}) == len(names)
    assert not {"final", "crops", "figures"} & set(folders.values())
    for folder in folders.values():
        assert Path("out", folder).resolve().parent == Path("out").resolve()
    assert (folders["C6"], folders["patient C"]) == ("C6", "patient_C")


def test_norms_stay_frozen_where_processes_share_their_statistics(sections, monkeypatch):
    """Several GPUs convert norms; what is frozen has to be chosen afterwards."""
    monkeypatch.setattr(Processes, "prepared", lambda self, model: convert_sync_batchnorm(model))
    trainer = Trainer(sections, Recipe(**{**SMALL, "freeze_norm": True}), panel=PANEL, split=Split(("A1", "B1")))
    trainer._start_epoch()
    norms = [m for m in trainer.state.model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) and not norm.training for norm in norms)
