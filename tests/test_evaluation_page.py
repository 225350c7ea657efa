"""Results of several methods as tables, a page and files; the numbers are made up."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from playwright.sync_api import sync_playwright

from tcgn_hub.evaluation.tables import method_table, section_table, tables
from tcgn_hub.result import Evaluation, Measured
from tcgn_hub.writing import evaluations
from tcgn_hub.writing.evaluation_page import UNSEEN
from tcgn_hub.writing.evaluations import read_measured, write_evaluation, write_measured

METHODS = {"TCGN": 0.2, "<b>other</b>": 0.25, "ridge hf-hub:A/B": 0.15}
RANKING = ["<b>other</b>", "TCGN", "ridge hf-hub:A/B"]


def of_method(value):
    keys = ("median_pcc", "median_pcc_given_depth", "median_one_factor", "median_beyond_one_factor", "hvg50")
    ends = {f"{key}_interval": [value - 0.05, value + 0.05] for key in keys}
    return {**dict.fromkeys(keys, value), **ends, "effective_rank": 2.25, "median_nrmse": None, "significant_genes": 7}


def make_evaluation(genes=4, **changes):
    of = {label: of_method(value) for label, value in METHODS.items()}
    known = {**of["TCGN"], "methods": of, "spots": 30, "effective_rank_measured": 131.4, "median_ceiling": 0.5}
    ranking = [
        {"label": label, "behind": i and 0.05, "behind_interval": [0.01, 0.09] if i else None}
        for i, label in enumerate(RANKING)
    ]
    ranking[0]["behind"] = None
    summary = {
        **known,
        "sections": {"C6": {"patient": "C", **known}, "B4": {"patient": "B", "note": "a note", **known}},
        "main": "TCGN",
        "ranking": ranking,
        "protocols": {"pooled, raw labels": dict.fromkeys(METHODS, 0.31)},
        "interval_simulated": 0.91,
        "notes": ["<b>other</b>: 3 of 9 genes are missing (A & B)"],
        "predictions": {"<b>other</b>": {"missing_genes": ["A"]}},
        **changes,
    }
    rows = [
        {
            "gene": f"G{i}",
            "pcc": i / 10,
            "pcc_low": -0.1,
            "pcc_high": 0.9,
            "pcc_given_depth": None,
            "significant": i > 1,
        }
        | {f"pcc {label}": 0.5 for label in RANKING[:1]}
        for i in range(genes)
    ]
    pcc = {name: {label: np.linspace(-0.1, 0.5, genes) for label in METHODS} for name in summary["sections"]}
    return Evaluation(summary=summary, per_gene=rows, pcc=pcc, given_depth=dict(pcc))


def make_measured(**changes):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 30, 4))
    return Measured(
        **{
            "name": "C6",
            "patient": "C",
            "xy": rng.normal(size=(30, 2)),
            "targets": values[0],
            "predicted": values[1],
            "baselines": {"ridge hf-hub:A/B": values[2]},
            "predictions": {"<b>other</b>": np.where(np.arange(4) == 2, np.nan, values[3])},
            "counts": rng.poisson(9, (30, 4)).astype(float),
            "in_units": frozenset({"<b>other</b>"}),
            "train_pcc": {"TCGN": np.arange(4.0)},
            "train_variance": np.ones(4),
            "predicted_depth": np.arange(30.0),
            "depth_slope": np.arange(4.0),
            **changes,
        }
    )


class Page(HTMLParser):
    """The cells of the tables of a page, and what it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.fetched, self._open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for key, value in attrs if key in ("src", "href") and not value.startswith("data:")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.tables[-1][-1][-1] += data.strip()


def test_methods_are_listed_by_rank_with_what_they_lack():
    evaluation = make_evaluation()
    lines = method_table(evaluation).splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["<b>other</b>", "TCGN", "ridge", "measured"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert "0.200 [0.150, 0.250]" in lines[2]
    assert lines[2].endswith("0.050 [0.010, 0.090]")
    assert lines[1].endswith(" -")
    assert "131.4" in lines[4]
    assert lines[-2:] == ["<b>other</b>: 3 of 9 genes are missing (A & B).", UNSEEN]
    assert "held the truth in 91% of simulated sections" in section_table(evaluation)
    assert tables(evaluation) == section_table(evaluation) + "\n" + method_table(evaluation)
    alone = make_evaluation(ranking=[{"label": "TCGN"}], notes=[], predictions={}, interval_simulated=None)
    assert method_table(alone) == ""
    assert tables(alone) == section_table(alone)
    assert "could not be simulated" in section_table(alone)


def test_how_well_depth_is_predicted_is_told_with_the_skill(tmp_path):
    evaluation = make_evaluation(depth_pcc=0.6543, median_pcc_of_given_depth=0.1)
    evaluation.summary["sections"]["C6"]["depth_pcc"] = 0.7
    note = (
        "the predicted depth has a PCC of 0.654 with that of the spots (C6 0.700, B4 -); genes given the predicted"
        " depth have a PCC of 0.100 with what is measured"
    )
    assert f"T{note[1:]}." in section_table(evaluation)
    write_evaluation(evaluation, [make_measured()], tmp_path, metadata={})
    assert f"<li>{note}</li>" in (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    assert "predicted depth" not in section_table(make_evaluation())


def test_the_page_needs_nothing_beside_it_and_holds_all_tables(tmp_path):
    write_evaluation(make_evaluation(), [make_measured()], tmp_path, metadata={"weights": "mine", "tta": 1})
    text = (tmp_path / "evaluation.html").read_text(encoding="utf-8")
    page = Page(text)
    ranking, protocols, sections, genes, run = page.tables
    assert [row[0] for row in ranking] == ["method", *RANKING, "measured"]
    assert [row[:2] for row in ranking[1:3]] == [[RANKING[0], "0.250[0.200, 0.300]"], ["TCGN", "0.200[0.150, 0.250]"]]
    assert {len(row) for row in ranking} == {len(ranking[0])}
    assert protocols[1] == ["pooled, raw labels", "0.310", "0.310", "0.310"]
    assert [row[:4] for row in sections[1:]] == [
        [name, name[0], "30", label] for name in ("C6", "B4") for label in RANKING
    ]
    assert [row[0] for row in genes] == ["gene", "G3", "G2", "G1", "G0"]
    assert genes[0][1] == "PCC of TCGN"
    assert genes[1] == ["G3", "0.300[-0.10, 0.90]", "yes", "0.500"]
    assert ["weights", "mine"] in run
    assert page.fetched == []
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text)
    assert text.count("<b>other</b>") == 0
    assert UNSEEN in text
    assert "A &amp; B" in text
    assert json.loads((tmp_path / "metrics.json").read_text())["held_out"]["predictions"]


def test_a_page_of_many_genes_stays_small(tmp_path):
    write_evaluation(make_evaluation(genes=20_000), [make_measured()], tmp_path, metadata={})
    assert (tmp_path / "evaluation.html").stat().st_size < 2e6
    assert (
        "The 12000 of the lowest correlations are in per_gene.csv alone" in (tmp_path / "evaluation.html").read_text()
    )


@pytest.mark.parametrize("before", [False, True])
def test_without_matplotlib_the_page_has_no_figure(tmp_path, monkeypatch, caplog, before):
    """That of an earlier run in the same folder neither."""
    if before:
        write_evaluation(make_evaluation(), [make_measured()], tmp_path, metadata={})
        (tmp_path / "figures/curve.png").write_bytes(b"of the training")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_evaluation(make_evaluation(), [make_measured()], tmp_path, metadata={})
    assert "No figures are drawn" in caplog.text
    assert "<img" not in (tmp_path / "evaluation.html").read_text()
    assert not (tmp_path / "figures/methods.png").exists()
    assert (tmp_path / "figures/curve.png").exists() == before


def test_an_earlier_run_is_not_taken_for_one_that_was_interrupted(tmp_path, monkeypatch):
    write_evaluation(make_evaluation(), [make_measured()], tmp_path, metadata={})

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluations, "write_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_evaluation(make_evaluation(), [make_measured()], tmp_path, metadata={})
    assert not (tmp_path / "metrics.json").exists()


def test_the_page_sorts_and_filters(tmp_path):
    write_evaluation(make_evaluation(), [make_measured()], tmp_path, metadata={})
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto((tmp_path / "evaluation.html").as_uri())
        rows = page.locator("#genes tbody tr:visible td:first-child")
        page.locator("#genes th").nth(1).click()
        assert rows.all_inner_texts() == ["G3", "G2", "G1", "G0"]
        page.locator("#genes th").nth(1).click()
        assert rows.all_inner_texts() == ["G0", "G1", "G2", "G3"]
        page.get_by_label("filter by gene").fill("g2")
        assert rows.all_inner_texts() == ["G2"]
        browser.close()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"predicted": None, "predicted_depth": None, "depth_slope": None},
        {"counts": None, "train_variance": None, "train_pcc": {}, "predictions": {}},
    ],
)
def test_what_was_measured_is_read_again(changes, tmp_path):
    sections = [make_measured(**changes), make_measured(name="B4", baselines={}, in_units=frozenset())]
    write_measured(tmp_path / "a.npz", sections)
    for one, again in zip(sections, read_measured(tmp_path / "a.npz"), strict=True):
        assert (again.name, again.patient) == (one.name, one.patient)
        assert again.in_units == {label for section in sections for label in section.in_units}
        assert list(again.methods) == list(one.methods)
        for key in ("xy", "targets", "predicted", "counts", "train_variance", "predicted_depth", "depth_slope"):
            value = getattr(one, key)
            assert (getattr(again, key) is None) == (value is None)
            if value is not None:
                np.testing.assert_array_equal(getattr(again, key), np.float32(value))
        for key in ("baselines", "predictions", "train_pcc"):
            for label, value in getattr(one, key).items():
                np.testing.assert_array_equal(getattr(again, key)[label], np.float32(value))


def test_the_figure_is_of_all_methods_in_the_order_of_the_ranking():
    evaluation = make_evaluation()
    pcc = {label: np.array([0.1, np.nan, i]) for i, label in enumerate([*METHODS, "ceiling"])}
    evaluation.pcc.update(C6=pcc, B4={label: 3 * values for label, values in pcc.items()})
    evaluation.given_depth.clear()
    evaluation.given_depth["C6"] = {"TCGN": np.zeros(3)}
    drawn = evaluations._by_method(evaluation)
    assert list(drawn) == [*RANKING, "ceiling"]
    np.testing.assert_allclose(drawn["<b>other</b>"]["pcc"], [0.2, np.nan, 2])
    assert drawn["TCGN"]["pcc_interval"] == [0.2 - 0.05, 0.25]
    assert drawn["TCGN"]["pcc_given_depth"].tolist() == [0, 0, 0]
    assert "pcc_given_depth" not in drawn["ceiling"]
