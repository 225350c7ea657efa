"""evaluate() and measure(): weights and baselines on sections that were held out, with a model of one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sections import PANEL, write_section

from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation.heldout import evaluate
from tcgn_hub.evaluation.tables import section_table
from tcgn_hub.prediction.predictor import Predictor
from tcgn_hub.weights.info import WeightsInfo


class Brightness:
    """A backend that takes the brightness of a patch for the expression of every gene."""

    device = "cpu"

    def prepare(self, pixels):
        return pixels.astype(np.float32)

    def forward(self, x, index=0):
        mean = x.mean(axis=(1, 2, 3), keepdims=False)[:, None] / 255
        return np.repeat(mean, len(PANEL), axis=1), np.repeat(mean, 4, axis=1)


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
    with pytest.raises(SectionError, match=r"X7 \(it is B1 of study her2st\).*--allow-seen X7"):
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
    assert evaluation.summary["median_pcc_ridge"] is None
    assert "No baselines" in caplog.text


def test_baselines_are_fitted_on_sections_that_were_seen_and_no_others(sections, predictor):
    evaluation = measured(sections, predictor, test=["C2"])
    assert evaluation.summary["median_pcc_ridge"] is not None
    own = replace(sections[1], name="A1", patient="Z", study="own")
    with_other = measured([own, *sections[2:]], predictor, test=["C2"])
    assert with_other.per_gene == measured(sections[2:], predictor, test=["C2"]).per_gene
    assert with_other.per_gene != evaluation.per_gene


def test_two_sections_of_one_name_are_refused(sections, predictor):
    with pytest.raises(SectionError, match="Two sections are named C2"):
        measured([*sections, replace(sections[1], name="C2")], predictor)
