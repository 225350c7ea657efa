"""A head in closed form, and epochs of a head, on features of a frozen trunk that are computed once."""

import copy
import csv
import logging
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from encoders import write_encoder
from safetensors.torch import load_file
from sections import PANEL, write_bulk, write_section

import tcgn_hub
from tcgn_hub import Recipe
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.readers import read_sections
from tcgn_hub.data.sections import Section, expression_targets
from tcgn_hub.data.targets import TrainingTargets, training_targets
from tcgn_hub.errors import OutputError, TrainingError, WeightsError
from tcgn_hub.evaluation.measuring import pooled_features, predict_crops
from tcgn_hub.evaluation.splits import Split
from tcgn_hub.models.loading import load_model
from tcgn_hub.models.tcgn import TCGN
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.prediction.predictor import Predictor
from tcgn_hub.ridge import fit_ridge
from tcgn_hub.training.distributed import Processes
from tcgn_hub.training.features import PooledHead, TrunkFeatures, keys_of
from tcgn_hub.training.optimisation import freeze
from tcgn_hub.training.probe import VIEWS, fit_probe, write_probe
from tcgn_hub.training.trainer import Trainer
from tcgn_hub.units import UNITS
from tcgn_hub.weights.info import WeightsInfo

SMALL = {"components": 3, "crop_px": 112, "batch_size": 8, "precision": "float32"}
EPOCHS = {"head": 3, "probe+all": 2}


@pytest.fixture(scope="session")
def recipe(tiny_weights):
    """Recipes by what they tune; from weights whose features tell patches apart."""

    def of(tune, **more):
        return Recipe(**{"weights": str(tiny_weights), "epochs": EPOCHS.get(tune), **SMALL, **more}, tune=tune)

    return of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("her2st")
    for seed, (name, spots) in enumerate((("A1", 9), ("A2", 7), ("B1", 6))):
        write_section(root, name, spots=spots, seed=seed)
    return root


@pytest.fixture(scope="module")
def sections(root) -> list[Section]:
    return read_sections(root)


@pytest.fixture(scope="module")
def run(sections, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "model"
    return out, tcgn_hub.finetune(sections, genes=PANEL, test=["B"], out=out, recipe=recipe("probe"))


@pytest.fixture
def forwards(monkeypatch):
    """How many patches went through a trunk so far."""
    seen = []
    real = TCGN.forward_features

    def counted(model, x):
        seen.append(len(x))
        return real(model, x)

    monkeypatch.setattr(TCGN, "forward_features", counted)
    return seen


def trainer_of(sections, recipe, *, train=("A1", "A2"), val=(), panel=PANEL, **options):
    return Trainer(sections, recipe, panel=panel, split=Split(tuple(train), tuple(val)), **options)


def stored(out):
    return load_file(out / "model.safetensors")


def same(a, b):
    first, second = stored(a), stored(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# --- the head -------------------------------------------------------------------------------------------------------


def drawn_targets(features, genes, *, unknown=None):
    y = features[0] @ np.random.default_rng(1).normal(size=(features[0].shape[1], genes)) + 2
    y = y.astype(np.float32)
    if unknown is not None:
        y[:, unknown] = np.nan
    return TrainingTargets(np.nan_to_num(y.mean(0)), np.ones(genes), [y])


def test_the_head_computes_the_map_exactly(sections):
    """GELU(t) - GELU(-t) = t, whatever the features; and what else the hidden layer has says nothing yet."""
    model = timm.create_model("test_tcgn", num_classes=5).eval()
    d = model.num_features
    before = model.head.pre_logits.fc.weight.detach().clone()
    x = np.random.default_rng(0).normal(3, 2, (9, d)).astype(np.float32) * np.geomspace(1e-3, 1e3, d, dtype=np.float32)
    probe = fit_probe([x[None]], drawn_targets([x], 5), [drawn_targets([x], 5).targets[0]], [sections[0]])
    write_probe(model, probe)
    with torch.inference_mode():
        said = PooledHead(model)(torch.from_numpy(x)).numpy()
    assert said == pytest.approx(probe.linear(x), abs=1e-4 * np.abs(probe.linear(x)).max())
    assert torch.equal(model.head.pre_logits.fc.weight[2 * d :], before[2 * d :])
    assert not model.get_classifier().weight[:, 2 * d :].any()


def test_a_hidden_layer_that_is_too_narrow_is_said(sections):
    model = timm.create_model("test_tcgn", num_classes=5, head_hidden_size=63).eval()
    x = np.random.default_rng(0).normal(size=(9, 32)).astype(np.float32)
    probe = fit_probe([x[None]], drawn_targets([x], 5), [drawn_targets([x], 5).targets[0]], [sections[0]])
    with pytest.raises(TrainingError, match=r"has 63 units, and a probe of 32 features takes 64"):
        write_probe(model, probe)


def test_what_is_predicted_is_the_ridge_of_the_features_of_four_views(sections, recipe, monkeypatch):
    # the counts are drawn without a look at the pictures, so that the best penalties would leave nothing to compare
    monkeypatch.setattr("tcgn_hub.training.probe.PENALTIES", (1.0, 3.0))
    trainer = trainer_of(sections, recipe("probe"))
    model = trainer.fit()
    seen, targets = [], []
    for section in sections[:2]:
        crops = trainer.crops[section.name]
        seen.append([_pooled(model, crops, view) for view in range(VIEWS)])
        targets.append(expression_targets(section, PANEL))
    of = training_targets(targets, 3)
    scores = np.tile(np.concatenate(of.scores), (VIEWS, 1))
    everything = np.concatenate([np.concatenate(of_section) for of_section in seen])
    x = np.concatenate([np.concatenate([s[view] - np.mean(s, axis=(0, 1)) for s in seen]) for view in range(VIEWS)])
    each = [fit_ridge(x, scores[:, [i]], (penalty,))[0] for i, penalty in enumerate(trainer.probe.penalties)]
    assert len(each) == 3
    own = trainer.crops["B1"]
    predicted = predict_crops(Predictor(TorchBackend(model), WeightsInfo("w", tuple(PANEL), UNITS)), own)
    # the head is rounded to float16, as it is stored
    pooled = _pooled(model, own, 0) - everything.mean(axis=0)
    expected = np.hstack([linear(pooled) for linear in each]) @ of.axes + of.mean
    assert predicted == pytest.approx(np.maximum(expected, 0), abs=5e-3)
    assert predicted.std(axis=0).max() > 0.05


def _pooled(model, crops, view):
    from tcgn_hub.images.transforms import dihedral, to_input

    (patches,) = crops.patches(100)
    with torch.inference_mode():
        return model.forward_features(dihedral(to_input(torch.from_numpy(patches)), view)).mean((2, 3)).numpy()


def test_the_model_directory_is_that_of_any_model(run, sections, root):
    out, metrics = run
    assert metrics["epochs"] == 0
    assert metrics["recipe"]["epochs"] == 0
    assert min(metrics["probe"]["penalties"]) > 0
    assert -1 < metrics["probe"]["median_pcc"] < 1
    assert not (out / "history.csv").exists()
    assert not list(out.glob("checkpoint*")) + list(out.glob("crops"))
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    patches = np.random.default_rng(0).integers(0, 255, (5, 224, 224, 3), dtype=np.uint8)
    predictor = tcgn_hub.load(path=out)
    at_once = predictor.run(patches)["values"]
    assert at_once == pytest.approx(np.concatenate([predictor.run(p[None])["values"] for p in patches]), abs=1e-5)
    with torch.inference_mode():
        assert model(predictor.backend.prepare(patches)).numpy().clip(0) == pytest.approx(at_once, abs=1e-4)
    again = tcgn_hub.evaluate(sections, weights=out, crop_px=112)
    measured = metrics["held_out"]["methods"]["TCGN"]
    assert again.summary["methods"]["TCGN"]["median_pcc"] == pytest.approx(measured["median_pcc"], abs=1e-4)


def test_genes_not_measured(sections, recipe):
    """In one training section: fitted on the others. In none: where a model would begin."""
    gone = [
        replace(s, genes=[{"G2": "X2", "G5": "X5"}.get(g, g) for g in s.genes]) if s.name == "A1" else s
        for s in sections
    ]
    probe = trainer_of(gone, recipe("probe")).probe
    assert np.isfinite(probe.linear.weight).all()
    assert np.isfinite(probe.linear.bias).all()
    assert probe.linear.weight[:, [2, 5]].any(axis=0).all()
    alone = trainer_of(gone, recipe("probe"), train=["A1"])
    assert not alone.probe.linear.weight[:, [2, 5]].any()
    assert np.isfinite(alone.probe.linear.bias).all()
    assert all(torch.isfinite(value).all() for value in alone.fit().state_dict().values())


def test_sections_may_be_stained_and_sequenced_otherwise(sections):
    """What is added to all features or all targets of a section changes no coefficient; a bulk slide has no mean."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(2, len(s.spots), 5)) for s in sections]
    y = [of[0] @ rng.normal(size=(5, 3)) + 4 for of in x]
    want = fit_probe(x, training_targets(y, 3), y, sections)
    moved = [of + i * np.arange(5) for i, of in enumerate(x)], [of + i for i, of in enumerate(y)]
    probe = fit_probe(moved[0], training_targets(moved[1], 3), moved[1], sections)
    assert probe.linear.weight == pytest.approx(want.linear.weight, abs=1e-6)
    assert probe.median_pcc == pytest.approx(want.median_pcc, abs=1e-6)
    everything = np.concatenate([of.reshape(-1, 5) for of in moved[0]])
    assert probe.linear(everything).mean(axis=0) == pytest.approx(np.concatenate(moved[1]).mean(axis=0), abs=1e-5)
    slides = [replace(s.at(np.arange(4)), bulk=True) for s in sections]
    tiles = [of[:, :4] for of in x]
    single = [of[:1] for of in y]
    assert fit_probe(tiles, training_targets(single, 3), single, slides).linear.weight.any()


def test_one_section_is_divided_into_strips(sections, recipe):
    trainer = trainer_of(sections, recipe("probe"), train=["A1"])
    assert trainer.probe.median_pcc is not None
    assert min(trainer.probe.penalties) > 0


def test_one_spot_is_refused(sections, tmp_path, recipe):
    with pytest.raises(TrainingError, match="There is one spot to train on; at least 2 are needed"):
        tcgn_hub.finetune(
            [sections[0].at(np.array([0]))], genes=PANEL, split="none", out=tmp_path, recipe=recipe("probe")
        )


def test_bulk_slides(tmp_path, recipe):
    write_bulk(tmp_path, slides=3)
    slides = [slide.at(np.arange(4)) for slide in read_sections(tmp_path / "bulk.csv", mpp=0.5)]
    for own in (recipe("probe"), recipe("head", epochs=2, tiles_per_slide=3)):
        trainer = trainer_of(slides, own, train=[s.name for s in slides])
        assert all(torch.isfinite(value).all() for value in trainer.fit().state_dict().values())
    # one part, from which nothing can be left out
    assert trainer_of(slides, recipe("probe"), train=[s.name for s in slides]).probe.median_pcc is None


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_weights):
    return load_model(str(tiny_weights))[0]


def features(sections, model, cache):
    crops = SpotCrops(spot_crops(sections[0], crop_px=112).pixels, 112)
    return TrunkFeatures(model, Processes("cpu").__enter__(), cache=cache), crops


def test_features_are_computed_once(sections, model, tmp_path, forwards):
    of, crops = features(sections, model, tmp_path)
    first = of.of("A1", crops)
    assert first.shape == (9, 32)
    number = len(forwards)
    again, _ = features(sections, model, tmp_path)
    assert np.array_equal(again.of("A1", crops), first)
    # some of them, in another order
    some = type(crops)(crops.pixels[[4, 1]], crops.patch_px)
    assert np.array_equal(again.of("A1", some), first[[4, 1]])
    assert len(forwards) == number
    assert not np.array_equal(again.of("A1", crops, 1), first)
    moved = copy.deepcopy(model)
    moved.final_conv[0].bias.data += 0.1
    other, _ = features(sections, moved, tmp_path)
    assert np.abs(other.of("A1", crops) - first).max() > 1e-3
    assert len(forwards) == number + 2
    # the head has no say
    moved = copy.deepcopy(model)
    moved.reset_classifier(5)
    other, _ = features(sections, moved, tmp_path)
    assert np.array_equal(other.of("A1", crops), first)
    assert len(forwards) == number + 2
    # a batch of another size would round otherwise
    assert set(forwards) == {16}


def test_a_spot_has_the_same_features_whatever_stands_beside_it(sections, model, tmp_path):
    of, crops = features(sections, model, tmp_path)
    some = type(crops)(crops.pixels[:3], crops.patch_px)
    of.of("A1", some)
    whole = of.of("A1", crops)
    fresh, _ = features(sections, model, None)
    assert np.array_equal(fresh.of("A1", crops), whole)
    one = type(crops)(crops.pixels[5:6], crops.patch_px)
    assert np.array_equal(fresh.of("A1", one)[0], whole[5])


def test_processes_share_what_is_missing(sections, model, tmp_path, monkeypatch):
    """Each computes its part, and the sum of the parts is the whole; the first one writes."""
    whole, crops = features(sections, model, None)
    parts = []
    monkeypatch.setattr(Processes, "sums", lambda self, values: values)
    for rank in (1, 0):
        processes = Processes("cpu").__enter__()
        processes.count, processes.rank, processes.first = 2, rank, rank == 0
        parts.append(TrunkFeatures(model, processes, cache=tmp_path / str(rank)).of("A1", crops))
    assert np.array_equal(sum(parts), whole.of("A1", crops))
    assert not parts[0][::2].any()
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def _written(change):
    def damage(path):
        with np.load(path) as file:
            arrays = change(dict(file))
        np.savez(path, **arrays)

    return damage


DAMAGE = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit": lambda path: path.write_bytes(bytes(b ^ (i == 700) for i, b in enumerate(path.read_bytes()))),
    "float64": _written(lambda a: a | {"features": a["features"].astype(float)}),
    "narrow": _written(lambda a: a | {"features": a["features"][:, :-1]}),
    "short": _written(lambda a: a | {"features": a["features"][:-1]}),
    "other keys": _written(lambda a: a | {"keys": a["keys"][:, :16]}),
    "wide keys": _written(lambda a: a | {"keys": a["keys"].astype(np.int64)}),
    "no keys": _written(lambda a: {"features": a["features"]}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_computed_again(sections, model, tmp_path, damage, forwards):
    of, crops = features(sections, model, tmp_path)
    first = of.of("A1", crops)
    (path,) = tmp_path.iterdir()
    whole, number = path.read_bytes(), len(forwards)
    DAMAGE[damage](path)
    assert np.array_equal(of.of("A1", crops), first)
    assert len(forwards) == number + 1
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == whole


def test_a_full_disk_is_said_and_training_goes_on(sections, model, tmp_path, monkeypatch, caplog):
    of, crops = features(sections, model, tmp_path)

    def full(path, arrays):
        raise OutputError(f"{path} cannot be written (No space left on device).")

    monkeypatch.setattr("tcgn_hub.training.features.write_npz", full)
    with caplog.at_level(logging.WARNING):
        first = of.of("A1", crops)
    assert "Features are not kept" in caplog.text
    fresh, _ = features(sections, model, None)
    assert np.array_equal(first, fresh.of("A1", crops))
    (tmp_path / "file").write_text("")
    monkeypatch.undo()
    of, _ = features(sections, model, tmp_path / "file")
    assert np.array_equal(of.of("A1", crops), first)


def test_another_panel_needs_no_trunk(sections, tmp_path, forwards, recipe):
    cache = tmp_path / "cache"
    options = {"split": "none", "recipe": recipe("probe"), "cache": cache}
    tcgn_hub.finetune(sections, genes=PANEL, out=tmp_path / "one", **options)
    # nothing is described with the trunk
    assert forwards.count(16) == 3 * VIEWS
    assert sum(forwards) < 16 * (3 * VIEWS + 1)
    tcgn_hub.finetune(sections, genes=PANEL[:4], out=tmp_path / "two", **options)
    tcgn_hub.finetune(sections, genes=PANEL, out=tmp_path / "again", **options)
    assert forwards.count(16) == 3 * VIEWS
    assert same(tmp_path / "one", tmp_path / "again")
    tcgn_hub.finetune(sections, genes=PANEL[:4], out=tmp_path / "fresh", **options | {"cache": None})
    assert same(tmp_path / "two", tmp_path / "fresh")


def test_known_features_are_those_of_the_stored_model(run, sections, recipe):
    """What is measured by the head alone is what the weights say."""
    trainer = trainer_of(sections, recipe("probe"))
    model = trainer.fit()
    short, whole = trainer.predictor(model), Predictor(TorchBackend(model), WeightsInfo("w", tuple(PANEL), UNITS))
    for crops in trainer.crops.values():
        assert predict_crops(short, crops) == pytest.approx(predict_crops(whole, crops), abs=1e-5)
        assert pooled_features(short, crops) == pytest.approx(pooled_features(whole, crops), abs=1e-5)
    # and of patches that are not known, or turned, the trunk is asked
    patches = np.random.default_rng(0).integers(0, 255, (2, 112, 112, 3), dtype=np.uint8)
    assert short.run(patches, tta=3)["values"] == pytest.approx(whole.run(patches, tta=3)["values"], abs=1e-5)
    (own,) = trainer.crops["B1"].patches()
    own = own.transpose(0, 2, 3, 1)
    assert short.run(own, tta=2)["tta_std"] == pytest.approx(whole.run(own, tta=2)["tta_std"], abs=1e-5)
    assert len(set(keys_of(own.transpose(0, 3, 1, 2)))) == len(own)


# --- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["head", "probe+all"])
def test_resumed_equals_uninterrupted(sections, tmp_path, stop_after, recipe, tune):
    options = {"genes": PANEL, "split": "none", "recipe": recipe(tune)}
    tcgn_hub.finetune(sections, out=tmp_path / "whole", **options)
    stop_after(3)
    with pytest.raises(KeyboardInterrupt):
        tcgn_hub.finetune(sections, out=tmp_path / "parts", **options)
    stop_after(1000)
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    only_head = all(key.startswith("head.") for part in ("model", "ema") for key in state[part] or {})
    assert only_head == (tune == "head")
    tcgn_hub.finetune(sections, out=tmp_path / "parts", resume=True, **options)
    assert same(tmp_path / "whole", tmp_path / "parts")
    losses = [
        [row["loss"] for row in csv.DictReader((tmp_path / n / "history.csv").open())] for n in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == EPOCHS[tune]


def test_killed_while_features_are_computed(sections, run, recipe, tmp_path, monkeypatch):
    """What was finished is read, the rest is computed, and the weights are those of an uninterrupted run."""
    options = {"genes": PANEL, "test": ["B"], "out": tmp_path, "recipe": recipe("probe")}
    calls = iter(range(100))
    real = TCGN.forward_features

    def killed(model, x):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(model, x)

    monkeypatch.setattr(TCGN, "forward_features", killed)
    with pytest.raises(KeyboardInterrupt):
        tcgn_hub.finetune(sections, **options)
    assert len(list((tmp_path / "crops").glob("*.npz"))) == 5
    tcgn_hub.finetune(sections, resume=True, **options)
    assert next(calls) < 14
    assert same(run[0], tmp_path)


def test_a_head_is_trained_on_features_alone(sections, forwards, recipe):
    trainer = trainer_of(sections, recipe("head"), val=["B1"])
    before = {k: v.clone() for k, v in trainer.whole(trainer.state.kept).state_dict().items()}
    number = len(forwards)
    model = trainer.fit()
    assert trainer.validate()
    assert len(forwards) == number
    assert trainer.features["A1"].shape == (3, 9, 32)
    assert trainer.features["B1"].shape == (1, 6, 32)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert "head.fc.weight" in moved
    assert all(key.startswith("head.") for key in moved)
    assert trainer.state.history[-1]["loss"] < trainer.state.history[0]["loss"]


def test_a_trunk_from_scratch_is_rounded_before_it_is_asked(sections):
    """So that the head was trained on what the stored weights see."""
    scratch = Recipe(**SMALL, weights="scratch", architecture="test_tcgn", tune="head", epochs=1)
    trainer = trainer_of(sections, scratch)
    again = TrunkFeatures(trainer.fit(), trainer.processes)
    for name, crops in trainer.crops.items():
        assert np.array_equal(again.of(name, crops), trainer.features[name][0])


def test_early_stopping_of_a_head_keeps_the_best_epoch(sections, recipe):
    trainer = trainer_of(sections, recipe("head", epochs=6, patience=6, lr=0.02), val=["B1"])
    model = trainer.fit()
    best = max(row["val_pcc"] for row in trainer.state.history)
    kept = trainer.state.best["model"]
    assert torch.equal(model.head.fc.weight, kept["head.fc.weight"].half().float())
    trainer.state.kept.load_state_dict(kept)
    assert trainer.validate()["val_pcc"] == pytest.approx(best, abs=1e-6)


def test_all_goes_on_from_the_probe(sections, recipe):
    """With a rate of nearly 0, what is kept is the probe; norms and branches are gentle."""
    trainer = trainer_of(sections, recipe("probe+all", epochs=1, lr=1e-12, weight_decay=0, norm_momentum=0))
    start = {key: value.clone() for key, value in trainer.state.model.state_dict().items()}
    model = trainer.fit()
    assert all(
        torch.equal(model.state_dict()[key], v.half().float()) for key, v in start.items() if v.is_floating_point()
    )
    probe = trainer_of(sections, recipe("probe"))
    assert trainer.probe.penalties == probe.probe.penalties
    assert torch.equal(model.head.fc.bias, probe.fit().head.fc.bias)
    moved = trainer_of(sections, recipe("probe+all", epochs=1, lr=1e-2)).fit()
    assert not torch.equal(moved.stem.conv1.weight, model.stem.conv1.weight)


def test_defaults_of_a_recipe_follow_from_what_is_tuned(recipe):
    assert (Recipe().epochs, Recipe().lr, Recipe().norm_momentum, Recipe().drop_path) == (14, 2.5e-4, 0.1, 0.0)
    gentle = Recipe(tune="probe+all")
    assert (gentle.epochs, gentle.lr, gentle.ema, gentle.drop_path, gentle.norm_momentum) == (3, 1e-4, 0, 0.1, 0.02)
    assert Recipe(tune="probe+all", lr=1e-3, epochs=14).to_dict().items() >= {"lr": 1e-3, "epochs": 14}.items()
    assert recipe("probe").epochs == 0
    assert recipe("probe", seed=3).epochs == 0
    for tune, given, said in (
        ("probe", {"epochs": 3}, "A probe has no epochs"),
        ("probe", {"patience": 3}, "A probe has no epochs: leave patience out"),
        ("all", {"epochs": 0}, "epochs is 0, but has to be 1"),
    ):
        with pytest.raises(TrainingError, match=said):
            Recipe(tune=tune, **given)


def test_branches_drop_and_norms_follow_as_the_recipe_says():
    model = timm.create_model("test_tcgn", num_classes=3)
    freeze(model, Recipe(tune="probe+all"))
    rates = [getattr(block.drop_path, "drop_prob", 0) for stage in model.stages for block in stage.blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.02}


# --- other networks -------------------------------------------------------------------------------------------------


def test_frozen_networks_stand_beside_the_trunk(sections, tmp_path, caplog, recipe):
    encoder = write_encoder(tmp_path / "net")
    options = {"genes": PANEL, "test": ["B"], "recipe": recipe("probe"), "encoders": [encoder], "encoder_um": [60, 120]}
    options["cache"] = tmp_path / "cache"
    known = [replace(section, mpp=0.5) for section in sections]
    with caplog.at_level(logging.INFO):
        metrics = tcgn_hub.finetune(known, out=tmp_path / "out", **options)
    labels = ["ridge net", "ridge net + TCGN"]
    assert set(labels) < set(metrics["held_out"]["methods"])
    compared = metrics["probe"]["compared"]
    assert list(compared) == ["TCGN", *labels]
    assert metrics["probe"]["best"] == max(compared, key=compared.get)
    assert sum("are best (median PCC: TCGN" in record.message for record in caplog.records) == 1
    alone = tcgn_hub.finetune(known, out=tmp_path / "alone", **options | {"encoders": [], "encoder_um": None})
    assert same(tmp_path / "alone", tmp_path / "out")
    assert set(alone["probe"]) == {"penalties", "median_pcc"}
    # the test has no say in which is best
    other = [replace(s, counts=s.counts[::-1]) if s.name == "B1" else s for s in known]
    again = tcgn_hub.finetune(other, out=tmp_path / "other", **options)
    assert again["probe"] == metrics["probe"]
    assert again["held_out"]["methods"]["ridge net"] != metrics["held_out"]["methods"]["ridge net"]


def test_what_cannot_be_compared_is_refused_before_anything_is_read(tmp_path):
    for tune in ("head", "probe+all"):
        with pytest.raises(TrainingError, match="say tune='probe'"):
            tcgn_hub.finetune("nowhere", genes=PANEL, out=tmp_path, recipe=Recipe(tune=tune), encoders=["x"])
    with pytest.raises(TrainingError, match="encoder_um is of patches that frozen networks see"):
        tcgn_hub.finetune("nowhere", genes=PANEL, out=tmp_path, recipe=Recipe(tune="probe"), encoder_um=[100.0])


def test_a_network_that_cannot_be_had_is_said_before_features_are_computed(sections, tmp_path, forwards, recipe):
    options = {"genes": PANEL, "test": ["B"], "recipe": recipe("probe"), "encoders": ["no_such_network"]}
    with pytest.raises(WeightsError, match="no_such_network cannot be had"):
        tcgn_hub.finetune(sections, out=tmp_path / "out", **options)
    assert not forwards


@pytest.mark.parametrize(
    ("tune", "values"),
    [("probe", {"lr": 1e-3}), ("probe", {"zoom": 1.5}), ("head", {"zoom": 1.5}), ("head", {"color_jitter": 0.0})],
)
def test_what_would_do_nothing_is_refused(tune, values):
    with pytest.raises(TrainingError, match=f"{next(iter(values))} would do nothing with tune='{tune}'"):
        Recipe(tune=tune, **values)
    Recipe(tune="probe+all", **values)
