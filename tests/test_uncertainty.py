"""How sure a prediction is: intervals that hold what they promise, tissue that is unlike, rotations."""

import json
import math

import golden
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sections import PANEL, write_section
from tcgn_hub.writing.frames import run_facts
from test_slides import SVS

import tcgn_hub
from tcgn_hub.cli.predict import main
from tcgn_hub.data.sections import UNITS
from tcgn_hub.errors import WeightsError
from tcgn_hub.evaluation.conformal import coverage, coverage_across, interval_radius
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.images.transforms import to_input
from tcgn_hub.models.loading import load_model
from tcgn_hub.prediction import ood
from tcgn_hub.prediction.backends import run
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.prediction.ood import TissueModel, describe
from tcgn_hub.result import Measured
from tcgn_hub.training.results import facts_of_evaluation
from tcgn_hub.weights.model_dir import save_model_dir
from tcgn_hub.writing.anndata import to_anndata
from tcgn_hub.writing.report import write_report
from tcgn_hub.writing.tables import to_csv, to_json, to_table

PATCHES = golden.PATCHES[:3]
WIDTH = 0.25


@pytest.fixture(scope="module")
def sure(tmp_path_factory) -> str:
    """A model directory that states errors of all genes but the last, and the features of its training tissue."""
    folder = tmp_path_factory.mktemp("sure") / "model"
    model, info = load_model()
    rng = np.random.default_rng(0)
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in PATCHES]
    crops = np.stack([np.rot90(pixels[i % 3], i % 4) for i in range(48)]) + rng.integers(0, 8, (48, 1, 1, 3))
    features = run(TorchBackend(model, info), to_input(crops.clip(0, 255).astype(np.uint8)), features=True)["features"]
    facts = {
        "units": UNITS,
        "crop": {"patch_um": 154},
        "training_data": {"name": "test", "features": describe([features[:24], features[24:]]).to_json()},
        "held_out": {
            "pcc": [0.3] * len(info.genes),
            "significant": list(info.genes[:2]),
            "interval_radius": [WIDTH] * (len(info.genes) - 1) + [None],
            "interval_level": 0.8,
        },
    }
    save_model_dir(model, folder, genes=info.genes, facts=facts)
    return str(folder)


def test_half_widths_are_the_ranks_of_the_errors():
    errors = np.array([[-3.0, 1], [1, np.nan], [2, np.nan], [-4, 0]])
    np.testing.assert_equal(interval_radius(errors, 0.6), [3, 1])  # the 3rd of 4 and the 2nd of 2
    np.testing.assert_equal(interval_radius(errors, 0.9), [np.nan, np.nan])
    np.testing.assert_equal(interval_radius(np.empty((0, 2))), [np.nan, np.nan])


@given(st.integers(5, 60), st.sampled_from([0.5, 0.8, 0.9]), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_intervals_hold_what_they_promise(n, level, seed):
    """Over many draws of exchangeable spots the coverage is at least the level, and at most 1/(n + 1) above it."""
    rng = np.random.default_rng(seed)
    errors = rng.standard_t(3, (n + 1, 4000))
    widths = interval_radius(errors[:n], level)
    if math.ceil((n + 1) * level) > n:
        assert np.isnan(widths).all()
        return
    held = coverage(errors[n:], widths)
    assert level - 0.03 < held < level + 1 / (n + 1) + 0.03


def test_coverage_is_checked_on_sections_that_intervals_do_not_come_from():
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(200, 3)), 10 * rng.normal(size=(200, 3))
    assert coverage_across({"a": small}) == {}
    across = coverage_across({"a": small, "b": large})
    assert across["a"] == 1
    assert across["b"] < 0.2
    same = coverage_across({"a": small, "b": rng.normal(size=(300, 3))}, 0.7)
    assert all(abs(held - 0.7) < 0.05 for held in same.values())
    assert math.isnan(coverage(np.full((2, 3), np.nan), np.ones(3)))


def test_an_evaluation_states_half_widths_and_their_coverage():
    rng = np.random.default_rng(1)
    measured = [
        Measured(name, "P", np.full((n, 2), np.nan), y := rng.uniform(1, 2, (n, 3)), y + rng.normal(size=(n, 3)), {})
        for name, n in (("A", 40), ("B", 50))
    ]
    evaluation = summarise(measured, ["a", "b", "c"], repeats=10)
    errors = np.concatenate([m.predicted - m.targets for m in measured])
    facts = facts_of_evaluation(evaluation)
    np.testing.assert_allclose(facts["interval_radius"], interval_radius(errors), atol=1e-4)
    assert facts["interval_level"] == 0.9
    assert set(facts["interval_coverage"]) == {"A", "B"}
    few = [Measured("A", "P", np.full((5, 2), np.nan), rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), {})]
    assert "interval_radius" not in facts_of_evaluation(summarise(few, ["a", "b", "c"], repeats=10))


def test_the_distance_is_that_of_mahalanobis():
    known = TissueModel(np.ones(3, np.float32), np.eye(3, dtype=np.float32)[:1], np.array([4.0]), rest=0.25, limit=2.0)
    features = 1 + np.array([[0, 0, 0], [2, 0, 0], [0, 3, 4], [2, 3, 4]], np.float32)
    np.testing.assert_allclose(known.distance(features), np.sqrt([0, 1, 100, 101]) / 2, rtol=1e-6)


def test_familiar_features_are_near_and_others_far():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(5, 64)) * np.array([8, 5, 3, 2, 1])[:, None]

    def draw(n):
        return (rng.normal(size=(n, 5)) @ basis + 0.3 * rng.normal(size=(n, 64)) + 4).astype(np.float32)

    known = describe([draw(300), draw(200), draw(100)])
    assert (known.distance(draw(2000)) > 1).mean() == pytest.approx(0.01, abs=0.01)
    assert (known.distance(draw(50) + 3) > 1).all()  # off the directions that tissue varies in
    assert (known.distance(np.zeros((1, 64))) > 1).all()
    assert (known.distance(30 * basis[:1] + 4) > 1).all()  # along one of them, but too far
    again = TissueModel.from_json(json.loads(json.dumps(known.to_json())))
    np.testing.assert_array_equal(again.distance(draw(5)[:0]), [])
    sample = draw(20)
    np.testing.assert_allclose(again.distance(sample), known.distance(sample), rtol=1e-6)
    assert describe([draw(20), draw(19)]) is None
    assert (describe([draw(60)]).distance(sample) < 3).all()
    # features that never vary do not divide by 0
    dead = draw(60)
    dead[:, 5:] = 0
    assert np.isfinite(describe([dead]).distance(dead)).all()


def test_eight_views_make_a_prediction_that_turning_the_patch_does_not_change():
    patch = np.asarray(Image.open(PATCHES[0]).convert("RGB"))
    options = {"genes": ["GNAS", "FASN"], "mpp": 0.6875}
    upright, dihedral, mirrored = (
        tcgn_hub.predict([np.ascontiguousarray(p)], views=8, **options)
        for p in (patch, np.rot90(patch), patch[:, ::-1])
    )
    for other in (dihedral, mirrored):
        np.testing.assert_allclose(other.values, upright.values, atol=2e-5)
        np.testing.assert_allclose(other.spread, upright.spread, atol=2e-5)
    one = tcgn_hub.predict([patch], **options)
    assert one.spread is None
    turns = [np.ascontiguousarray(np.rot90(p, k)) for p in (patch, patch[:, ::-1]) for k in range(4)]
    each = tcgn_hub.predict(turns, **options).values
    np.testing.assert_allclose(upright.values[0], each.mean(0), atol=2e-5)
    np.testing.assert_allclose(upright.spread[0], each.std(0, ddof=1), atol=2e-5)
    assert (upright.spread > 0.001).all()
    for views in (0, 9):
        with pytest.raises(ValueError, match=f"views is {views}, but must be from 1 to 8"):
            tcgn_hub.predict([patch], views=views, **options)


def test_a_model_that_states_its_errors_gives_intervals(sure):
    result = tcgn_hub.predict(PATCHES, weights=sure)
    low, high = result.interval()
    np.testing.assert_allclose(high - result.values, np.where(np.isnan(high), np.nan, WIDTH), atol=1e-6)
    np.testing.assert_allclose(low, np.where(np.isnan(low), np.nan, np.maximum(result.values - WIDTH, 0)), atol=1e-6)
    assert np.isnan(low[:, -1]).all()
    assert not np.isnan(low[:, :-1]).any()
    assert "features" not in result.model.training_data
    last, first = result.genes[-1], result.genes[0]

    document = json.loads(to_json(result))
    assert document["interval_level"] == 0.8
    rows = {row["gene"]: row for row in document["predictions"][1]["genes"]}
    assert rows[last]["low"] is rows[last]["high"] is rows[first]["spread"] is None
    assert rows[first]["high"] == pytest.approx(high[1, 0])
    table = to_table(tcgn_hub.predict(PATCHES[:1], weights=sure, genes=[first, last], views=3))
    assert "spread  80% interval  significant" in table
    assert "interval: where 80% of the measurements of held-out tissue would lie" in table
    assert f"{low[0, 0]:.2f} to" in table or f"{low[0, 0] + 0.01:.2f} to" in table
    assert "unknown" in next(line for line in table.splitlines() if line.startswith(last))
    header, *lines = to_csv(result).splitlines()
    assert header.endswith(",weights,spread,low,high,tissue_distance")
    assert lines[0].split(",")[-4] == ""
    assert float(lines[0].split(",")[-2]) == pytest.approx(high[0, 0], rel=1e-4)


def test_what_is_not_known_is_not_invented(sure, tmp_path):
    model, info = load_model(sure)
    save_model_dir(model, tmp_path / "bare", genes=info.genes, facts={"units": "counts", "crop": {"patch_um": 154}})
    result = tcgn_hub.predict(PATCHES[:1], weights=tmp_path / "bare", genes=["GNAS"])
    assert (result.interval(), result.spread, result.distance, result.unlike) == (None, None, None, None)
    table = to_table(result)
    assert "no intervals: these weights state no errors on held-out tissue" in table
    assert "80%" not in table
    row = json.loads(to_json(result))["predictions"][0]
    assert row["tissue_distance"] is row["genes"][0]["low"] is None


def test_a_patch_unlike_the_training_tissue_is_flagged(sure, capsys, tmp_path):
    rng = np.random.default_rng(0)
    others = [np.full((224, 224, 3), 255, np.uint8), rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)]
    own = [np.asarray(Image.open(path).convert("RGB")) for path in PATCHES]
    result = tcgn_hub.predict([*own, *others], weights=sure, mpp=0.6875)
    assert result.unlike.tolist() == [False] * 3 + [True] * 2
    Image.fromarray(others[1]).save(tmp_path / "noise.png")
    command = [str(tmp_path / "noise.png"), "--mpp", "0.6875", "--weights", sure, "--genes", "GNAS"]
    assert main(command) == 0
    assert "unlike the training tissue (distance" in capsys.readouterr().out
    assert main([PATCHES[0], "--weights", sure, "--genes", "GNAS", "--views", "2"]) == 0
    out = capsys.readouterr().out
    assert "unlike" not in out
    assert "spread: standard deviation over rotations" in out


def test_malformed_statements_are_one_sentence(sure, tmp_path):
    model, info = load_model(sure)
    good = describe([np.random.default_rng(0).normal(size=(50, 1280))]).to_json()
    for changes in (
        {"features": {**good, "rest": 0}},
        {"features": {"mean": good["mean"]}},
        {"features": {**good, "mean": "?"}},
    ):
        save_model_dir(model, tmp_path, genes=info.genes, facts={"training_data": changes})
        with pytest.raises(WeightsError, match=r"What is stated of .* is malformed \("):
            load_model(tmp_path)
    for key in ("interval_radius", "pcc"):
        save_model_dir(model, tmp_path, genes=info.genes, facts={"held_out": {key: [1.0]}})
        with pytest.raises(WeightsError, match="malformed"):
            load_model(tmp_path)


def test_a_training_states_them(tmp_path, monkeypatch):
    monkeypatch.setattr(ood, "_LEAST_SPOTS", 8)
    write_section(tmp_path, "A1", spots=10)
    write_section(tmp_path, "B1", spots=12, seed=1)
    recipe = tcgn_hub.Recipe(weights="scratch", epochs=1, batch_size=5, components=3, crop_px=112, amp="off")
    tcgn_hub.finetune(tmp_path, genes=PANEL, test=["B"], out=tmp_path / "model", recipe=recipe)
    info = load_model(tmp_path / "model")[1]
    with np.load(tmp_path / "model/held_out.npz", allow_pickle=False) as arrays:
        errors = arrays["0.predicted"] - arrays["0.targets"]
    np.testing.assert_allclose([info.interval_radius[gene] for gene in PANEL], interval_radius(errors), atol=1e-4)
    assert info.ood.mean.shape == (1280,)
    assert "features" not in (tmp_path / "model/README.md").read_text()


def test_slides_say_how_sure_they_are(sure, tmp_path):
    options = {"weights": sure, "genes": ["GNAS", "FASN"], "stride_um": 300, "views": 2}
    slide = tcgn_hub.predict_slide(SVS, resume=tmp_path / "state", **options)
    assert slide.spread.shape == slide.values.shape
    assert slide.distance.shape == (len(slide.tiles),)
    again = tcgn_hub.predict_slide(SVS, resume=tmp_path / "state", **options)  # from the folder
    np.testing.assert_array_equal(again.spread, slide.spread)
    np.testing.assert_array_equal(again.distance, slide.distance)
    single = tcgn_hub.predict_slide(SVS, resume=tmp_path / "state", **{**options, "views": 1})
    assert single.spread is None
    assert not np.array_equal(single.values, slide.values)

    adata = to_anndata(slide)
    low, high = slide.interval()
    np.testing.assert_array_equal(adata.layers["interval_low"], low)
    np.testing.assert_array_equal(adata.layers["interval_high"], high)
    np.testing.assert_array_equal(adata.layers["spread"], slide.spread)
    np.testing.assert_array_equal(adata.obs["tissue_distance"], slide.distance)
    assert adata.uns["tcgn"]["interval_level"] == 0.8
    assert run_facts(slide)["unlike_training_tissue"] == int((slide.distance > 1).sum())

    write_report(tmp_path / "report.html", slide)
    page = (tmp_path / "report.html").read_text()
    assert f"± {WIDTH:.3f}" in page
    assert "in 80% of the cases on held-out tissue" in page
    assert f"{int((slide.distance > 1).sum())} of {len(slide.tiles)} tiles" in page
    assert "Spread: standard deviation" in page
