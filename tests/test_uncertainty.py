"""How sure a prediction is: intervals that hold what they promise, tissue that is unlike, rotations."""

import json
import math

import golden
import numpy as np
import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sections import PANEL, write_section
from test_slides import SVS

import tcgn_hub
from tcgn_hub.cli.predict import main
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.sections import panel_depth
from tcgn_hub.errors import WeightsError
from tcgn_hub.evaluation.conformal import coverage, coverage_across, interval_radius
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.measuring import pooled_features, predict_crops
from tcgn_hub.models.loading import load_model
from tcgn_hub.prediction import ood
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.prediction.ood import TissueModel, describe
from tcgn_hub.prediction.picture import picture_features
from tcgn_hub.prediction.predictor import Predictor
from tcgn_hub.result import Measured
from tcgn_hub.training.results import held_out_of
from tcgn_hub.units import UNITS
from tcgn_hub.weights import typical
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.model_dir import read_info, save_model_dir
from tcgn_hub.weights.typical import describe_predictions
from tcgn_hub.writing.report import write_report
from tcgn_hub.writing.tables import to_table

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
    patches = crops.clip(0, 255).astype(np.uint8)
    predictor = Predictor(TorchBackend(model), info)
    features, pictures = (
        [part[:24], part[24:]]
        for part in (
            predictor.run(patches, features=True)["features"],
            picture_features(predictor.backend.prepare(patches)),
        )
    )
    stated = {
        "units": UNITS,
        "crop": {"patch_um": 154},
        "training_data": {"name": "test"},
        "ood": describe(features, pictures).to_json(),
        "held_out": {
            "pcc": [0.3] * len(info.genes),
            "significant": list(info.genes[:2]),
            "interval_radius": [WIDTH] * (len(info.genes) - 1) + [None],
            "interval_level": 0.8,
        },
    }
    save_model_dir(model, folder, WeightsInfo.from_json(stated, name="sure", genes=info.genes))
    return str(folder)


def test_radii_of_intervals_are_the_ranks_of_the_errors():
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


def test_an_evaluation_states_intervals_and_their_coverage():
    rng = np.random.default_rng(1)
    measured = [
        Measured(name, "P", np.full((n, 2), np.nan), y := rng.uniform(1, 2, (n, 3)), y + rng.normal(size=(n, 3)), {})
        for name, n in (("A", 40), ("B", 50))
    ]
    evaluation = summarise(measured, ["a", "b", "c"], repeats=10)
    errors = np.concatenate([m.predicted - m.targets for m in measured])
    facts = held_out_of(evaluation)
    np.testing.assert_allclose(facts["interval_radius"], interval_radius(errors), atol=1e-4)
    assert facts["interval_level"] == 0.9
    assert set(facts["interval_coverage"]) == {"A", "B"}
    few = [Measured("A", "P", np.full((5, 2), np.nan), rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), {})]
    assert "interval_radius" not in held_out_of(summarise(few, ["a", "b", "c"], repeats=10))


def test_eight_turns_make_a_prediction_that_turning_the_patch_does_not_change():
    patch = np.asarray(Image.open(PATCHES[0]).convert("RGB"))
    options = {"genes": ["GNAS", "FASN"], "mpp": 0.6875}
    upright, dihedral, mirrored = (
        tcgn_hub.predict([np.ascontiguousarray(p)], tta=8, **options) for p in (patch, np.rot90(patch), patch[:, ::-1])
    )
    for other in (dihedral, mirrored):
        np.testing.assert_allclose(other.X, upright.X, atol=2e-5)
        np.testing.assert_allclose(other.layers["tta_std"], upright.layers["tta_std"], atol=2e-5)
    one = tcgn_hub.predict([patch], **options)
    assert "tta_std" not in one.layers
    turns = [np.ascontiguousarray(np.rot90(p, k)) for p in (patch, patch[:, ::-1]) for k in range(4)]
    each = tcgn_hub.predict(turns, **options).X
    np.testing.assert_allclose(upright.X[0], each.mean(0), atol=2e-5)
    np.testing.assert_allclose(upright.layers["tta_std"][0], each.std(0, ddof=1), atol=2e-5)
    assert (upright.layers["tta_std"] > 0.001).all()
    for tta in (0, 9):
        with pytest.raises(ValueError, match=f"tta is {tta}, but must be from 1 to 8"):
            tcgn_hub.predict([patch], tta=tta, **options)


def test_a_model_that_states_its_errors_gives_intervals(sure):
    result = tcgn_hub.predict(PATCHES, weights=sure)
    low, high = result.interval()
    np.testing.assert_allclose(high - result.X, np.where(np.isnan(high), np.nan, WIDTH), atol=1e-6)
    np.testing.assert_allclose(low, np.where(np.isnan(low), np.nan, np.maximum(result.X - WIDTH, 0)), atol=1e-6)
    assert np.isnan(low[:, -1]).all()
    assert not np.isnan(low[:, :-1]).any()
    assert result.info.training_data == {"name": "test"}
    last, first = result.genes[-1], result.genes[0]
    table = to_table(tcgn_hub.predict(PATCHES[:1], weights=sure, genes=[first, last], tta=3))
    assert "80% interval" in table
    assert "interval: where 80% of the measurements of held-out tissue would lie" in table
    assert f"{low[0, 0]:.2f} to" in table or f"{low[0, 0] + 0.01:.2f} to" in table
    assert "unknown" in next(line for line in table.splitlines() if line.startswith(last))


def test_what_is_not_known_is_not_invented(sure, tmp_path):
    model, info = load_model(sure)
    save_model_dir(model, tmp_path / "bare", WeightsInfo("bare", info.genes, "counts", crop={"patch_um": 154}))
    result = tcgn_hub.predict(PATCHES[:1], weights=tmp_path / "bare", genes=["GNAS"])
    assert result.interval() is result.is_ood is None
    assert set(result.var) == {"gene", "gene_ids"}
    table = to_table(result)
    assert "no intervals: these weights state no errors on held-out tissue" in table
    assert "80%" not in table


def test_a_patch_that_is_out_of_distribution_is_flagged(sure, capsys, tmp_path):
    rng = np.random.default_rng(0)
    others = [np.full((224, 224, 3), 255, np.uint8), rng.integers(0, 255, (224, 224, 3), dtype=np.uint8)]
    # as bright as the tissue that was described, see `sure`
    own = [(np.asarray(Image.open(path).convert("RGB")) + 3.0).clip(0, 255).astype(np.uint8) for path in PATCHES]
    result = tcgn_hub.predict([*own, *others], weights=sure, mpp=0.6875, force=True)
    assert result.is_ood.tolist() == [False] * 3 + [True] * 2
    Image.fromarray(others[1]).save(tmp_path / "noise.png")
    command = [str(tmp_path / "noise.png"), "--mpp", "0.6875", "--weights", sure, "--genes", "GNAS"]
    assert main([*command, "--force"]) == 0
    assert "out of distribution (distance from the training tissue" in capsys.readouterr().out
    assert main([PATCHES[0], "--weights", sure, "--genes", "GNAS", "--tta", "2"]) == 0
    out = capsys.readouterr().out
    assert "out of distribution" not in out
    assert "tta_std: standard deviation over rotations" in out


def test_malformed_statements_are_one_sentence(tmp_path):
    model = timm.create_model("test_tcgn", num_classes=len(PANEL)).eval()
    good = describe([np.random.default_rng(0).normal(size=(50, 32))]).to_json()
    save_model_dir(model, tmp_path, WeightsInfo("x", tuple(PANEL)))
    config = json.loads((tmp_path / "config.json").read_text())
    for stated in (
        {"ood": {**good, "rest": 0}},
        {"ood": {"mean": good["mean"]}},
        {"ood": {**good, "picture": {**good, "limit": 0}}},
        {"ood": {**good, "picture": 3}},
        {"ood": [3]},
        {"ood": {**good, "mean": "?"}},
        {"held_out": {"interval_radius": [1.0]}},
        {"held_out": {"pcc": [1.0]}},
        {"seen": [{"section": "A"}]},
        {"crop": 3},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "tcgn": stated}))
        with pytest.raises(WeightsError, match=r"What is stated of .* is malformed \(") as raised:
            tcgn_hub.load(path=tmp_path)
        assert "\n" not in str(raised.value)


def test_a_training_states_them(tmp_path, monkeypatch):
    monkeypatch.setattr(ood, "_LEAST_SPOTS", 8)
    monkeypatch.setattr(typical, "_LEAST_SPOTS", 8)
    write_section(tmp_path, "A1", spots=10)
    write_section(tmp_path, "B1", spots=12, seed=1)
    recipe = tcgn_hub.Recipe(
        architecture="test_tcgn", weights="scratch", epochs=1, batch_size=5, components=3, crop_px=112
    )
    tcgn_hub.finetune(tmp_path, genes=PANEL, test=["B"], out=tmp_path / "model", recipe=recipe)
    info = read_info(tmp_path / "model", name="model")
    with np.load(tmp_path / "model/held_out.npz", allow_pickle=False) as arrays:
        errors = arrays["0.predicted"] - arrays["0.targets"]
    np.testing.assert_allclose([info.interval_radius[gene] for gene in PANEL], interval_radius(errors), atol=1e-4)
    assert TissueModel.from_json(info.ood).features.mean.shape == (32,)
    assert TissueModel.from_json(info.ood).picture.mean.shape == (32,)
    section = next(section for section in tcgn_hub.read_sections(tmp_path) if section.name == "A1")
    crops = spot_crops(section, crop_px=112)
    values = predict_crops(tcgn_hub.load(path=tmp_path / "model"), crops)
    expected = describe_predictions(values, panel_depth(section, PANEL))
    np.testing.assert_allclose(info.predicted_in_training.mean, expected.mean, atol=1e-4)
    np.testing.assert_allclose(info.predicted_in_training.sd, expected.sd, atol=1e-4)
    np.testing.assert_allclose(info.predicted_in_training.to_depth[0], expected.to_depth[0], atol=1e-3)
    learned = info.predicted_in_training.depth
    assert learned.of == "features"
    model = tcgn_hub.load(path=tmp_path / "model")
    np.testing.assert_allclose(learned.mean, learned(pooled_features(model, crops)).mean(), atol=1e-3)
    # on the section held out, as measured
    with np.load(tmp_path / "model/held_out.npz", allow_pickle=False) as arrays:
        predicted, counts = arrays["0.predicted_depth"], arrays["0.counts"]
    held_out = info.held_out["depth_pcc"]
    assert held_out == pytest.approx(np.corrcoef(predicted, np.log10(1 + counts.sum(axis=1)))[0, 1], abs=1e-4)
    assert held_out == info.held_out["sections"]["B1"]["depth_pcc"]
    assert "directions" not in (tmp_path / "model/README.md").read_text()


def test_slides_say_how_sure_they_are(sure, tmp_path):
    options = {"weights": sure, "genes": ["GNAS", "FASN"], "stride_um": 500, "tta": 2}
    result = tcgn_hub.predict_slide(SVS, resume=tmp_path / "state", **options)
    assert result.layers["tta_std"].shape == result.X.shape
    assert result.obs["ood"].shape == (len(result),)
    again = tcgn_hub.predict_slide(SVS, resume=tmp_path / "state", **options)  # from the folder
    np.testing.assert_array_equal(again.layers["tta_std"], result.layers["tta_std"])
    np.testing.assert_array_equal(again.obs["ood"], result.obs["ood"])
    single = tcgn_hub.predict_slide(SVS, **{**options, "tta": 1})
    assert "tta_std" not in single.layers
    assert not np.array_equal(single.X, result.X)

    adata = result.to_anndata()
    for name, values in zip(("interval_low", "interval_high"), result.interval(), strict=True):
        np.testing.assert_array_equal(adata.layers[name], values)
    assert adata.uns["tcgn"]["interval_level"] == 0.8
    assert result.metadata()["out_of_distribution"] == int(result.is_ood.sum())

    write_report(tmp_path / "report.html", result)
    page = (tmp_path / "report.html").read_text()
    assert f"± {WIDTH:.3f}" in page
    assert "in 80% of the cases on held-out tissue" in page
    assert f"{int(result.is_ood.sum())} of {len(result)} tiles" in page
    assert "tta_std: standard deviation" in page.replace("<code>", "").replace("</code>", "")
