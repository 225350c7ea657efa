"""adapt(): weights fitted to few spots of a section, and what that gains on the others."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sections import PANEL, write_section
from timm.models import save_for_hf

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.correlation import pearson
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.data.sections import Section
from tcgn_hub.errors import SectionError, TrainingError, WeightsError
from tcgn_hub.evaluation.measuring import predict_crops
from tcgn_hub.evaluation.splits import spatial_parts
from tcgn_hub.models.loading import load_model
from tcgn_hub.prediction.predictor import load
from tcgn_hub.ridge import Linear
from tcgn_hub.training import adapt as module
from tcgn_hub.training.adapt import BEFORE, LEAST_SPOTS, Spots, _verdict, choose_spots, fit
from tcgn_hub.writing.evaluations import read_measured

GRID = np.stack(np.meshgrid(np.arange(20.0), np.arange(15.0)), axis=-1).reshape(-1, 2)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    root = tmp_path_factory.mktemp("her2st")
    write_section(root, "A1", spots=24)
    return replace(read_her2st(root)[0], mpp=1.0)


@pytest.fixture(scope="module")
def adapted(section, tiny_weights, tmp_path_factory):
    """A model directory, and the results."""
    out = tmp_path_factory.mktemp("adapted") / "mine"
    return out, tcgn_hub.adapt([section], weights=tiny_weights, out=out, spots=10)


def tissue(*, noise=0.3, moved=1.0, seed=0):
    """Spots on a grid whose genes follow the hidden layer; ``moved``: how far from what the classifier has it."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(len(GRID), 40)).astype(np.float32)
    hidden[:, 0] = 0.1  # a unit that says nothing here
    weight = rng.normal(size=(40, 12))
    shared = moved * rng.normal(size=(40, 2)) @ rng.normal(size=(2, 12))
    targets = hidden @ (weight + shared) + 20 + noise * rng.normal(size=(len(GRID), 12))
    section = Section("A1", "A", None, [f"s{i}" for i in range(len(GRID))], GRID, PANEL, np.ones((len(GRID), 12)))
    return Spots(
        section=section,
        genes=tuple(PANEL),
        targets=targets,
        counts=np.ones_like(targets),
        colours=np.zeros((len(GRID), 32)),
        hidden=hidden,
        features=hidden,
        classifier=Linear(weight, np.full(12, 20.0)),
    )


def error(tissue, used, found):
    return ((found(tissue.hidden[~used]) - tissue.targets[~used]) ** 2).mean()


def test_what_the_weights_miss_is_learned_from_few_spots():
    of = tissue()
    errors = []
    for number in (10, 30, 100):
        used = choose_spots(of.section, number)
        penalty, found = fit(of, used)
        assert penalty in module.PENALTIES
        errors.append(error(of, used, found) / error(of, used, of.classifier))
    assert errors[0] < 0.9
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_weights_that_miss_nothing_but_noise_hardly_change(seed):
    of = tissue(moved=0, noise=3, seed=seed)
    used = choose_spots(of.section, 30, seed=seed)
    penalty, found = fit(of, used)
    if found is None:
        assert penalty == math.inf
    else:
        assert error(of, used, found) < 1.1 * error(of, used, of.classifier)


def test_where_no_strength_is_better_the_weights_stay():
    of = tissue(moved=0, noise=0)
    assert fit(of, choose_spots(of.section, 20)) == (math.inf, None)


def test_genes_that_were_not_measured_or_do_not_differ_keep_their_coefficients(caplog):
    of = tissue()
    used = choose_spots(of.section, 30)
    targets = of.targets.copy()
    targets[:, 3] = np.nan
    targets[used, 5] = 1.5
    _, found = fit(replace(of, targets=targets), used)
    kept = np.isin(np.arange(12), [3, 5])
    assert np.array_equal(found.weight[:, kept], of.classifier.weight[:, kept])
    assert np.array_equal(found.bias[kept], of.classifier.bias[kept])
    assert (found.weight[1:, ~kept] != of.classifier.weight[1:, ~kept]).all()
    assert "1 gene is the same in all spots used" in caplog.text
    assert np.isfinite(found.weight).all()
    targets[used] = 1.5
    with pytest.raises(SectionError, match="All genes are the same in all 30 spots of A1"):
        fit(replace(of, targets=targets), used)


def test_a_unit_that_is_silent_in_the_section_is_not_blown_up():
    of = tissue()
    of.hidden[:, 0] += np.random.default_rng(0).normal(size=len(GRID), scale=1e-4).astype(np.float32)
    used = choose_spots(of.section, 30)
    _, found = fit(of, used)
    changed = np.abs(found.weight - of.classifier.weight)
    assert changed[0].max() < 0.01 * changed[1:].max()


def test_spots_are_spread_by_seed():
    of = tissue().section
    used = choose_spots(of, 20, seed=3)
    assert used.sum() == 20
    assert np.array_equal(used, choose_spots(of, 20, seed=3))
    assert not np.array_equal(used, choose_spots(of, 20, seed=4))
    # each quarter of the section has its share
    quarter = (GRID[:, 0] < 10) * 2 + (GRID[:, 1] < 7.5)
    assert np.bincount(quarter[used]).tolist() == pytest.approx([5] * 4, abs=1)


@pytest.mark.parametrize("number", [1, 2, 5, 7, 30, 300])
def test_spatial_parts_are_of_one_size_and_compact(number):
    part = spatial_parts(GRID, number)
    sizes = np.bincount(part, minlength=number)
    assert sizes.max() - sizes.min() <= 1
    spread = [np.ptp(GRID[part == i], axis=0).max() for i in range(number)]
    assert max(spread) <= 3.5 * math.sqrt(len(GRID) / number)
    moved = np.random.default_rng(0).permutation(len(GRID))
    assert np.array_equal(spatial_parts(GRID[moved], number), part[moved])
    unknown = spatial_parts(np.full((11, 2), np.nan), 3)
    assert unknown.tolist() == sorted(unknown.tolist())


def test_the_folder_is_a_model_that_predicts_what_was_measured(adapted, section, tiny_weights):
    out, evaluation = adapted
    names = (out / "spots.txt").read_text().split()
    assert len(names) == 10
    rest = section.at(np.array([name not in names for name in section.spots]))
    rest = rest.at(np.lexsort((rest.xy[:, 1], rest.xy[:, 0])))
    (measured,) = read_measured(out / "held_out.npz")
    assert np.array_equal(measured.xy, rest.xy.astype(np.float32))
    crops = spot_crops(rest, patch_um=154)
    assert np.abs(predict_crops(load(path=out), crops) - measured.predicted).max() < 1e-5
    assert np.abs(predict_crops(load(path=tiny_weights), crops) - measured.predictions[BEFORE]).max() < 1e-5
    assert np.abs(measured.predicted - measured.predictions[BEFORE]).max() > 0.01
    for file in ("README.md", "metrics.json", "evaluation.html", "per_gene.csv"):
        assert (out / file).stat().st_size > 0
    assert set(evaluation.summary["methods"]) == {"TCGN", BEFORE, "mean", "depth", "ridge"}
    assert evaluation.summary["spots"] == 14


def test_what_is_stated_of_adapted_weights(adapted, section, tiny_weights):
    out, evaluation = adapted
    info, before = load(path=out).info, load(path=tiny_weights).info
    assert (info.genes, info.units, info.license, info.ood) == (before.genes, before.units, "MIT", before.ood)
    assert [parent.sha256 for parent in info.parents] == [before.sha256]
    assert info.seen == (*before.seen, section.seen())
    assert info.held_out["median_pcc"] == evaluation.summary["median_pcc"]
    assert "14 spots of section A1 that were not used" in info.held_out["protocol"]
    assert info.training_data["sections"] == ["Z1", "A1"]
    assert info.typical != before.typical
    card = (out / "README.md").read_text()
    assert "Held out: 14 of the 24 spots of A1" in card
    assert "trained on all of it" not in card
    document = json.loads((out / "metrics.json").read_text())
    assert (document["spots"], document["seed"], document["section"]) == (10, 0, "A1")
    assert document["penalty"] in module.PENALTIES
    assert document["held_out"]["methods"][BEFORE]["gain_interval"]
    # adapted weights have seen the section
    with pytest.raises(SectionError, match="Already seen"):
        tcgn_hub.evaluate([section], weights=out, test=["A1"])


def test_depth_is_predicted_as_before_and_what_goes_with_it_anew(adapted, section, tiny_weights):
    before, after = load(path=tiny_weights), load(path=adapted[0])
    pixels = np.concatenate(list(spot_crops(section, patch_um=154).patches())).transpose(0, 2, 3, 1)
    old, new = before.run(pixels), after.run(pixels)
    assert np.allclose(old["predicted_depth"], new["predicted_depth"], atol=1e-5)
    learned = after.info.predicted_in_training.learned_depth
    assert learned.of == "features"
    given = new["values"] - np.outer(new["predicted_depth"] - learned.mean, learned.slope)
    assert np.abs(pearson(given, new["predicted_depth"][:, None] * np.ones(len(PANEL)))).max() < 1e-3
    assert np.allclose(given.mean(axis=0), new["values"].mean(axis=0), atol=1e-3)


def test_the_order_of_spots_changes_nothing_and_spots_txt_names_them(adapted, section, tiny_weights, tmp_path):
    out, evaluation = adapted
    moved = section.at(np.random.default_rng(0).permutation(len(section.spots)))
    again = tcgn_hub.adapt([moved], weights=tiny_weights, out=tmp_path / "mine", spots=10)
    assert again.per_gene == evaluation.per_gene
    for file in ("model.safetensors", "config.json", "per_gene.csv", "spots.txt", "metrics.json"):
        assert (tmp_path / "mine" / file).read_bytes() == (out / file).read_bytes()
    named = np.array(moved.spots)[choose_spots(moved, out / "spots.txt")]
    assert sorted(named) == sorted((out / "spots.txt").read_text().split())


def test_kept_weights_are_those_before_bit_for_bit(section, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit", lambda tissue, used: (math.inf, None))
    precise = tmp_path / "precise"  # of which float16 would lose something
    model, _ = load_model(tiny_weights)
    with torch.no_grad():
        model.head.fc.weight.add_(1e-6)
    precise.mkdir()
    save_for_hf(
        model, precise, safe_serialization=True, model_config=json.loads((tiny_weights / "config.json").read_text())
    )
    for weights in (tiny_weights, precise):
        out = tmp_path / f"from {weights.name}"
        evaluation = tcgn_hub.adapt([section], weights=weights, out=out, spots=10)
        before, after = (load_model(folder)[0].state_dict() for folder in (weights, out))
        assert all(torch.equal(values, after[key]) for key, values in before.items())
        assert "nothing is gained" in evaluation.summary["notes"][0]
        assert json.loads((out / "metrics.json").read_text())["penalty"] is None
        (measured,) = read_measured(out / "held_out.npz")
        assert np.array_equal(measured.predicted, measured.predictions[BEFORE])


def test_a_gain_is_claimed_only_where_its_interval_says_so(adapted):
    _, evaluation = adapted
    for ends, given, said in (
        ([0.01, 0.05], [0.01, 0.05], r"\[\+0.010, \+0.050\] and .*\]$"),
        ([0.01, 0.05], [-0.01, 0.05], "only the first is a gain"),
        ([-0.01, 0.05], [0.01, 0.05], "only the second is a gain"),
        ([-0.01, 0.05], [-0.01, 0.05], "no gain, for the intervals hold 0"),
        ([-0.05, -0.01], [0.01, 0.05], "a loss, so keep"),
    ):
        methods = {BEFORE: {"gain": 0.0, "gain_interval": ends, "gain_given_depth": 0.0}}
        methods[BEFORE]["gain_given_depth_interval"] = given
        changed = replace(evaluation, summary={**evaluation.summary, "methods": methods})
        assert re.search(said, _verdict(changed, True))


def test_genes_that_the_weights_do_not_know_are_counted_once(section, tiny_weights, tmp_path, caplog):
    genes = [gene for gene in section.genes if gene != "G3"]
    fewer = replace(section, genes=[*genes, "NEW1"], counts=section.counts[:, [*range(len(genes)), 0]])
    out = tmp_path / "out"
    tcgn_hub.adapt([fewer], weights=tiny_weights, out=out, spots=10)
    said = [record.getMessage() for record in caplog.records if "does not predict" in record.getMessage()]
    assert said == [f"2 genes of section A1 are left out, which {tiny_weights} does not predict."]
    before, after = (load_model(folder)[0].head.fc.weight for folder in (tiny_weights, out))
    assert (before == after).all(dim=1).tolist() == [gene == "G3" for gene in PANEL]


def _trunk(folder, tiny_weights):
    folder.mkdir()
    config = json.loads((tiny_weights / "config.json").read_text())
    config["tcgn"]["scope"] = "trunk"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((tiny_weights / "model.safetensors").read_bytes())
    return folder


def _in_other_units(folder, tiny_weights):
    _trunk(folder, tiny_weights)
    config = json.loads((folder / "config.json").read_text())
    config["tcgn"] |= {"scope": "model", "units": "TPM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("spots", "message"),
    [
        (1, f"1 spot is too few to adapt weights to; give at least {LEAST_SPOTS}"),
        (-3, "at least 5"),
        (["5x6"], "1 spot is too few"),
        (21, "21 spots are to be used, but section A1 has 24 .* give at most 20"),
        (1000, "give at most 20"),
        (["5x6", "9x9"], "9x9: not among the 24 spots of section A1 that can be used, such as"),
    ],
)
def test_spots_that_will_not_do(spots, message, section, tiny_weights, tmp_path):
    with pytest.raises(SectionError, match=message):
        tcgn_hub.adapt([section], weights=tiny_weights, out=tmp_path / "out", spots=spots)
    assert not (tmp_path / "out").exists()


def test_a_table_of_places(section, tmp_path):
    lines = [f"{x + 3},{y - 2}" for x, y in section.xy[4:12]]
    (tmp_path / "mine.csv").write_text("\n".join(["x,y", *lines]) + "\n")
    assert np.flatnonzero(choose_spots(section, tmp_path / "mine.csv")).tolist() == list(range(4, 12))
    (tmp_path / "mine.csv").write_text("x,y\n4000,4000\n")
    with pytest.raises(SectionError, match=r"mine.csv has spots where section A1 has none that can be used: 0"):
        choose_spots(section, tmp_path / "mine.csv")
    with pytest.raises(SectionError, match=r"gone.txt cannot be read as names of spots"):
        choose_spots(section, tmp_path / "gone.txt")
    with pytest.raises(SectionError, match=r"have no places; name them in a \.txt file"):
        choose_spots(replace(section, xy=section.xy * np.nan), tmp_path / "mine.csv")


def test_weights_that_cannot_be_adapted(section, tiny_weights, tmp_path):
    for weights, message in (
        (tmp_path / "mine.onnx", "is exported, and cannot be adapted"),
        (_trunk(tmp_path / "trunk", tiny_weights), "predicts no genes"),
        ("tcgn_base.cmt_tiny", "predicts no genes|not redistributed"),
        (_in_other_units(tmp_path / "units", tiny_weights), r"in other units \(TPM\)"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        with pytest.raises(WeightsError, match=message):
            tcgn_hub.adapt([section], weights=weights, out=tmp_path / "out")


def test_sections_that_cannot_be_adapted_to(section, tiny_weights, tmp_path):
    for data, message in (
        ([section, replace(section, name="A2")], r"one section, but there are A1, A2; name one"),
        ([replace(section, genes=[f"X{gene}" for gene in section.genes])], "has no gene that .*, such as G0"),
        ([replace(section, image=None)], "has no image"),
        ([replace(section, mpp=None)], "no known micrometres per pixel to crop 154 um by"),
        ([replace(section, bulk=True, counts=section.counts[:1])], "is one bulk measurement"),
        ([replace(section, counts=section.counts * 0)], "No spot of section A1"),
        ([replace(section, study="drawn", patient="Z")], r"Already seen .* A1 \(patient Z of study drawn, as Z1 is\)"),
        ([replace(section, study="drawn", name="Z1")], r"Already seen .* Z1 \(it is Z1 of study drawn\)"),
    ):
        with pytest.raises(SectionError, match=message):
            tcgn_hub.adapt(data, weights=tiny_weights, out=tmp_path / "out", spots=10)
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").touch()
    with pytest.raises(TrainingError, match=r"holds config.json of something else"):
        tcgn_hub.adapt([section], weights=tiny_weights, out=tmp_path / "taken")


def test_the_command(tmp_path, tiny_weights, capsys):
    write_section(tmp_path / "data", "A1", spots=16)
    write_section(tmp_path / "data", "B1", spots=16)
    (tmp_path / "names.txt").write_text("\n".join(f"{i}x{i + 1}" for i in range(8)))
    asked = ["adapt", str(tmp_path / "data"), "--weights", str(tiny_weights), "-o", str(tmp_path / "out")]
    assert main([*asked, "--mpp", "1"]) == 2
    assert "name one (--sections)" in capsys.readouterr().err
    asked += ["--sections", "B1", "--mpp", "1"]
    assert main([*asked, "--spots", "3"]) == 2
    assert "give at least 5" in capsys.readouterr().err
    assert main([*asked, "--spots", str(tmp_path / "names.txt"), "--device", "cpu"]) == 0
    assert "On the 8 spots not used" in capsys.readouterr().out
    assert len((tmp_path / "out" / "spots.txt").read_text().split()) == 8
