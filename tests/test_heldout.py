"""evaluate() and measure(): weights and baselines on sections that were held out, with a model of one line."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from encoders import write_encoder
from sections import PANEL, write_section

from tcgn_hub.correlation import pearson
from tcgn_hub.data.crops import SpotCrops, spot_crops
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.data.sections import expression_targets, panel_counts
from tcgn_hub.data.targets import pearson_residuals, training_targets
from tcgn_hub.errors import SectionError, WeightsError
from tcgn_hub.evaluation import heldout
from tcgn_hub.evaluation.baselines import color_texture_features, depth_predict, ridge_predict
from tcgn_hub.evaluation.encoders import encoder_labels
from tcgn_hub.evaluation.heldout import evaluate
from tcgn_hub.evaluation.measuring import measure, parts_of, predict_crops
from tcgn_hub.evaluation.tables import section_table
from tcgn_hub.prediction.predictor import Predictor
from tcgn_hub.result import Evaluation
from tcgn_hub.units import depth
from tcgn_hub.weights.info import WeightsInfo


class Brightness:
    """A backend that takes the brightness of a patch for the expression of every gene."""

    device, name, precision, batch_size, compiled, in_flight = "cpu", "test", "float32", 32, False, 0

    def __init__(self, scale=1):
        self.scale = scale

    def expect(self, count, batch_size, *, tta=1):
        pass

    def start(self, x, index=0):
        return lambda: self.forward(x, index)

    def fetch(self, array):
        return lambda: array

    def prepare(self, pixels):
        return pixels.transpose(0, 3, 1, 2).astype(np.float32)

    def forward(self, x, index=0):
        mean = x.mean(axis=(1, 2, 3))[:, None] / 255
        return np.repeat(self.scale * mean, len(PANEL), axis=1), np.repeat(mean, 4, axis=1)


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    root = tmp_path_factory.mktemp("her2st")
    for seed, name in enumerate(("A1", "A2", "B1", "C2")):
        write_section(root, name, seed=seed)
    return read_her2st(root)


@pytest.fixture
def predictor(sections):
    seen = tuple(section.seen() for section in sections if section.name in ("A1", "B1"))
    return Predictor(Brightness(), WeightsInfo("mine", genes=tuple(PANEL), seen=seen))


def measured(data, predictor, **options):
    return evaluate(data, weights=predictor, crop_px=112, **options)


def test_what_was_seen_is_left_out_or_refused(sections, predictor, tmp_path):
    evaluation = measured(sections, predictor, by="section", out=tmp_path)
    assert list(evaluation.summary["sections"]) == ["A2", "C2"]
    assert evaluation.summary["allowed_seen"] == []
    assert json.loads((tmp_path / "metrics.json").read_text())["allowed_seen"] == []
    with pytest.raises(SectionError, match=r"section A2 \(patient A of study her2st, as A1 is\)"):
        measured(sections, predictor)
    with pytest.raises(SectionError, match=r"section B1 \(it is B1 of study her2st\)"):
        measured(sections, predictor, test=["B1", "C2"], by="section")
    with pytest.raises(SectionError, match="No section is left"):
        measured(sections[2:3], predictor)


def test_what_was_allowed_is_recorded_everywhere(sections, predictor, tmp_path):
    evaluation = measured(sections, predictor, test=["B1", "C2"], allow_seen=["B1"], out=tmp_path)
    assert evaluation.summary["allowed_seen"] == ["B1"]
    document = json.loads((tmp_path / "metrics.json").read_text())
    assert document["allowed_seen"] == document["held_out"]["allowed_seen"] == ["B1"]
    assert "have seen B1" in section_table(evaluation)
    assert "have seen B1" in section_table(evaluation, markdown=True)
    assert "have seen" not in section_table(measured(sections[3:], predictor))


def test_a_renamed_section_is_refused(sections, predictor):
    renamed = replace(sections[2], name="X7", patient="X", study="own", image=None, mpp=0.5)
    with pytest.raises(SectionError, match=r"X7 \(it is B1 of study her2st\).*allow_seen=\['X7'\]"):
        measured([renamed], predictor, test=["X7"])


def test_sections_of_a_lab_may_have_any_names(sections, predictor, caplog):
    # named as sections that were seen, and of patients named as theirs
    own = [
        replace(section, name=name, patient=name[0], study="own")
        for section, name in zip((sections[1], sections[3]), ("B1", "A1"), strict=True)
    ]
    evaluation = measured(own, predictor)
    assert list(evaluation.summary["sections"]) == ["B1", "A1"]
    # and no baseline is fitted on them
    assert "ridge" not in evaluation.summary["methods"]
    assert "No baselines" in caplog.text


def test_baselines_are_fitted_on_sections_that_were_seen_and_no_others(sections, predictor):
    evaluation = measured(sections, predictor, test=["C2"])
    assert evaluation.summary["methods"]["ridge"]["median_pcc"] is not None
    own = replace(sections[1], name="A1", patient="Z", study="own")
    with_other = measured([own, *sections[2:]], predictor, test=["C2"])
    assert with_other.per_gene == measured(sections[2:], predictor, test=["C2"]).per_gene
    assert with_other.per_gene != evaluation.per_gene


def test_two_sections_of_one_name_are_refused(sections, predictor):
    with pytest.raises(SectionError, match="Two sections are named C2"):
        measured([*sections, replace(sections[1], name="C2")], predictor)


def test_bulk_is_the_mean_in_linear_space(predictor, sections):
    """The mean of logarithms of 1 and of 3 is 2, that of the values near 2.7."""
    slide = replace(sections[3], bulk=True, counts=sections[3].counts[:1])
    shades = np.repeat(np.array([85, 255], np.uint8), 6)
    crops = SpotCrops(np.broadcast_to(shades[:, None, None, None], (12, 3, 8, 8)), 8)
    tripled = Predictor(Brightness(scale=3), predictor.info)
    (measured,) = measure(tripled, train=[], test=[slide], panel=PANEL, crops={slide.name: crops})
    assert measured.predicted.shape == (1, len(PANEL))
    assert measured.predicted[0, 0] == pytest.approx(np.log10(1 + (9 + 999) / 2), abs=1e-6)


def test_the_memory_of_baselines_does_not_grow_with_the_spots(predictor, sections):
    spots = 300
    pixels = np.random.default_rng(0).integers(0, 255, (spots, 3, 80, 80), dtype=np.uint8)
    crops = SpotCrops(pixels, 64)
    section = replace(
        sections[3],
        spots=[f"s{i}" for i in range(spots)],
        xy=np.zeros((spots, 2)),
        counts=np.resize(sections[3].counts, (spots, sections[3].counts.shape[1])),
    )
    other = replace(section, name="A1")
    tracemalloc.start()
    (measured,) = measure(
        predictor, train=[other], test=[section], panel=PANEL, crops={"A1": crops, section.name: crops}
    )
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # in float32 the crops alone have 15 MB, and what was made of them at once 60 MB
    assert used < 12e6
    features = color_texture_features(pixels[:, :, 8:-8, 8:-8])
    targets = expression_targets(section, PANEL)
    assert measured.baselines["ridge"] == pytest.approx(ridge_predict(features, targets, features), abs=1e-5)


# ------------------------------------------------------------------------------------------------- baselines of measure


def test_baselines_and_what_they_reach_on_their_own_sections(sections, predictor):
    train, test = sections[:3], sections[3:]
    rng = np.random.default_rng(0)
    features = {"ridge net": {section.name: rng.normal(size=(12, 30)) for section in sections}}
    crops = {section.name: spot_crops(section, crop_px=112) for section in sections}
    (found,) = measure(predictor, train=train, test=test, panel=PANEL, crops=crops, features=features)
    assert list(found.baselines) == ["mean", "depth", "ridge", "ridge net"]
    targets = {section.name: expression_targets(section, PANEL) for section in sections}
    y = np.concatenate([targets[section.name] for section in train])
    depths = {section.name: depth(panel_counts(section, PANEL)) for section in sections}
    train_depth = np.concatenate([depths[section.name] for section in train])
    assert found.baselines["depth"] == pytest.approx(depth_predict(train_depth, y, depths["C2"]))
    x = np.concatenate([features["ridge net"][section.name] for section in train])
    clean = np.concatenate(training_targets([targets[section.name] for section in train], 20).targets)
    own = ridge_predict(x, clean, features["ridge net"]["C2"], parts=np.repeat([0, 1, 2], 12))
    assert found.baselines["ridge net"] == pytest.approx(own)
    assert found.train_pcc.keys() == {"TCGN", *found.baselines}
    fitted = ridge_predict(x, clean, x, parts=np.repeat([0, 1, 2], 12)).reshape(3, 12, -1)
    want = np.mean([pearson(fitted[i], targets[section.name]) for i, section in enumerate(train)], axis=0)
    assert found.train_pcc["ridge net"] == pytest.approx(want)
    shown = [pearson(predict_crops(predictor, crops[s.name]), targets[s.name]) for s in train]
    assert found.train_pcc["TCGN"] == pytest.approx(np.mean(shown, axis=0))
    variance = np.mean([pearson_residuals(panel_counts(s, PANEL)).var(axis=0) for s in train], axis=0)
    assert found.train_variance == pytest.approx(variance)
    alone = measure(predictor, train=[], test=test, panel=PANEL, crops=crops)[0]
    assert (alone.baselines, alone.train_pcc, alone.train_variance) == ({}, {}, None)
    assert np.array_equal(alone.predicted, found.predicted)


def test_one_training_section_is_left_out_in_strips(sections):
    parts = parts_of(sections[:1])
    along = sections[0].xy[:, np.argmax(np.ptp(sections[0].xy, axis=0))]
    assert np.bincount(parts).min() >= 2
    assert len(np.unique(parts)) == 5
    assert all(along[parts == i].max() < along[parts == i + 1].min() for i in range(4))
    slides = [replace(sections[0], bulk=True, counts=sections[0].counts[:1]) for _ in range(2)]
    slides = [replace(slide, name=f"S{i}") for i, slide in enumerate(slides)]
    assert parts_of([slides[0], sections[1], slides[1]]).tolist() == [3, *[1] * 12, 3]


def test_baselines_of_slides_and_of_spots(sections, predictor):
    slides = [replace(s, name=f"S{s.name}", bulk=True, counts=s.counts[:1]) for s in sections]
    crops = {slide.name: spot_crops(slide, crop_px=112) for slide in slides}
    (found,) = measure(predictor, train=slides[:2], test=slides[2:], panel=PANEL, crops=crops)
    assert list(found.baselines) == ["mean", "ridge"]
    assert found.predicted.shape == found.baselines["ridge"].shape == (2, len(PANEL))
    assert found.train_variance is None


def test_sections_to_fit_on_can_be_named(sections, predictor):
    unseen = Predictor(Brightness(), WeightsInfo("mine", genes=tuple(PANEL)))
    alone = measured(sections, unseen, test=["C2"])
    assert "ridge" not in alone.summary["methods"]
    fitted = measured(sections, unseen, test=["C2"], train=["A", "B1"])
    assert fitted.per_gene == measured(sections, unseen, test=["C2"], train=["A1", "A2", "B1"]).per_gene
    assert fitted.summary["methods"]["ridge"]["median_pcc"] is not None
    rest = measured(sections, unseen, train=["A", "B1"])
    assert list(rest.summary["sections"]) == ["C2"]
    with pytest.raises(SectionError, match=r"C2 is both to fit baselines on and to measure on"):
        measured(sections, unseen, test=["C2"], train=["A1", "C"])
    with pytest.raises(SectionError, match=r"no section or patient X9 to fit baselines on; the sections are A1, A2"):
        measured(sections, unseen, test=["C2"], train=["A1", "X9"])


def test_encoders_stand_beside_the_weights(sections, predictor, tmp_path):
    name = write_encoder(tmp_path / "net")
    sections = [replace(section, mpp=0.5) for section in sections]
    options = {"test": ["C2"], "encoders": [name], "cache": tmp_path / "cache", "out": tmp_path / "out"}
    first = measured(sections, predictor, **options)
    protocols = first.summary["protocols"]
    assert protocols["per section"].keys() == {"TCGN", "mean", "depth", "ridge", "ridge net"}
    assert protocols["HEST-Bench"].keys() == {"TCGN", "ridge net"}
    assert measured(sections, predictor, **options).summary == first.summary
    stated = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stated["baselines_fitted_on"] == ["A1", "B1"]
    assert (stated["encoders"], stated["encoder_um"]) == ([name], None)
    # one patch of 112 px is one of 56 um, and two patches are something else
    same = measured(sections, predictor, encoder_um=[56], **options).summary["protocols"]
    assert same["pooled"]["ridge net"] == pytest.approx(protocols["pooled"]["ridge net"], abs=1e-6)
    both = measured(sections, predictor, encoder_um=[56, 90], **options).summary["protocols"]
    assert both["pooled"]["ridge net"] != pytest.approx(protocols["pooled"]["ridge net"], abs=1e-6)
    assert both["pooled"]["ridge"] == protocols["pooled"]["ridge"]
    with pytest.raises(WeightsError, match="no_such_network"):
        measured(sections, predictor, test=["C2"], encoders=["no_such_network"])


def test_labels_of_encoders_leave_out_folders_where_they_can():
    names = ["hf-hub:org/net", "local-dir:/a/net", "resnet18"]
    assert encoder_labels(names) == {"ridge org/net": names[0], "ridge net": names[1], "ridge resnet18": names[2]}
    twins = ["local-dir:/a/net", "local-dir:/b/net"]
    assert encoder_labels(twins) == {f"ridge {name}": name for name in twins}


# -------------------------------------------------------------------------------------- predictions of other methods


@pytest.fixture
def seen_by_default(sections, predictor, monkeypatch):
    """The default weights are those of ``predictor``; returns what is summarised in place of a summary."""
    kept = []

    def keep(measured, genes, **options):
        kept[:] = [measured, list(genes)]
        return Evaluation(summary={"sections": {}}, per_gene=[], pcc={})

    monkeypatch.setattr(heldout, "summarise", keep)
    monkeypatch.setattr(heldout, "_default", lambda: predictor.info)
    monkeypatch.setattr(heldout, "load_weights", lambda weights, **options: predictor)
    return kept


def guesses(sections, scale=1.0):
    """Predictions of each section, a row a spot and a column a gene."""
    frames = [
        pd.DataFrame(scale * expression_targets(s, PANEL), s.spots, PANEL).assign(section=s.name) for s in sections
    ]
    return pd.concat(frames)


def test_predictions_stand_beside_weights_and_baselines(sections, predictor, seen_by_default):
    evaluation = measured(
        sections, predictor, test=["C2"], predictions={"a": guesses(sections), "b": guesses(sections)}
    )
    ((one,), _) = seen_by_default
    assert list(one.methods) == ["TCGN", "a", "b", "mean", "depth", "ridge"]
    np.testing.assert_allclose(one.predictions["a"], one.targets, rtol=1e-6)
    assert evaluation.summary["notes"] == [f"{label}: 36 rows are of no spot that is measured" for label in "ab"]
    assert evaluation.summary["predictions"]["a"]["missing_genes"] == []


def test_predictions_stand_alone_where_the_default_weights_have_seen_the_tissue(sections, seen_by_default, caplog):
    evaluate(sections, test=["A2"], predictions={"a": guesses(sections)}, crop_px=112)
    ((one,), genes) = seen_by_default
    assert one.predicted is None
    assert list(one.methods) == ["a"]
    assert genes == PANEL
    assert "The predictions stand without mine, as these weights have seen section A2, or the patient." in caplog.text
    assert "No baselines: there are no sections to fit them on." in caplog.text
    # by section, and where they have not seen it, ours stand beside
    for options in ({"test": ["A2"], "by": "section"}, {"test": ["C2"]}, {"test": ["A1"], "allow_seen": ["A1"]}):
        evaluate(sections, predictions={"a": guesses(sections)}, crop_px=112, **options)
        assert seen_by_default[0][0].predicted is not None
    # every section that is given is measured where there is nothing to have seen it
    evaluate(sections, predictions={"a": guesses(sections)}, genes=PANEL[:5])
    assert [section.name for section in seen_by_default[0]] == ["A1", "A2", "B1", "C2"]
    assert seen_by_default[1] == PANEL[:5]


def test_predictions_need_no_image_and_no_gene_that_was_not_measured(sections, seen_by_default):
    bare = [replace(section, image=None, genes=["H", *section.genes[1:]]) for section in sections]
    evaluate(bare, predictions={"a": guesses(sections)})
    assert seen_by_default[1] == PANEL[1:]
    # of which the targets are shares, too
    (one, *_), genes = seen_by_default
    np.testing.assert_array_equal(one.targets, expression_targets(sections[0], genes))


def test_predictions_are_refused_before_anything_is_cut_out(sections, predictor, seen_by_default, monkeypatch):
    monkeypatch.setattr(heldout, "spot_crops", None)
    for options, why in (
        ({"predictions": {"a": guesses(sections)[["section"]]}}, "predicts none of the 12 genes"),
        ({"predictions": {"a": guesses(sections, -1)}, "predictions_scale": "linear"}, "never negative"),
        ({"predictions": {"TCGN": guesses(sections)}}, "Predictions cannot be called 'TCGN'"),
        ({"predictions": {"a": guesses(sections)}, "genes": PANEL}, "weights are measured on those they have"),
        ({"genes": PANEL}, "weights are measured on those they have"),
    ):
        with pytest.raises(SectionError, match=why):
            measured(sections, predictor, test=["C2"], **options)
    assert seen_by_default == []
