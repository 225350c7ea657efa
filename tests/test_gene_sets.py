"""Gene sets: how files of them are read, how much of each may be used, and what decoupler makes of it."""

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import anndata
import decoupler
import numpy as np
import pandas as pd
import pytest
from golden import PATCHES, SVS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from results import some
from sections import PANEL

import tcgn_hub
from tcgn_hub.cli.predict import main as tcgn_predict
from tcgn_hub.errors import PanelError
from tcgn_hub.panels.gene_sets import (
    LEAST_GENES,
    Signature,
    enough,
    load_gene_sets,
    mean_scores,
    signatures_of,
)
from tcgn_hub.prediction.cohort.ledger import Ledger
from tcgn_hub.prediction.cohort.summary import concatenate
from tcgn_hub.result import Result, gene_table, scorable
from tcgn_hub.units import UNITS
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.typical import describe_predictions
from tcgn_hub.writing.figures import draw_signature
from tcgn_hub.writing.report import write_report
from tcgn_hub.writing.tables import facts, to_json, to_table

GENES = ["GNAS", "FASN", "HLA-DRA", "AES", "CD74", "PTPRC", "VIM", "BGN", "TIMP1", "SCD"]
SIGNIFICANT = GENES[:9]  # all but SCD
SETS = {
    "FIRST": ["GNAS", "FASN", "HLA-DRA", "TLE5", "CD45", "KRT8"],
    "SECOND": ["CD74", "PTPRC", "VIM", "BGN", "TIMP1", "SCD", "GNAS"],
    "FEW": ["CD74", "VIM", "MKI67", "ESR1"],
}
USED = {"FIRST": ["GNAS", "FASN", "HLA-DRA", "AES", "PTPRC"], "SECOND": ["GNAS", *GENES[4:9]]}


def weights(**known) -> WeightsInfo:
    """Weights of ten genes whose predictions for training tissue rise with depth."""
    rng = np.random.default_rng(0)
    depth = rng.normal(size=200)
    values = 1 + 0.2 * depth[:, None] + rng.normal(scale=0.3, size=(200, len(GENES)))
    typical = describe_predictions(values, 3 + 0.1 * depth).to_json()
    stated = {"held_out": {"significant": SIGNIFICANT}, "typical": typical, **known}
    return WeightsInfo(name="tcgn_base.sets", genes=tuple(GENES), units=UNITS, **stated)


def made(count: int = 12, *, ood: np.ndarray | None = None, genes=GENES, seed: int = 0, **known) -> Result:
    """Patches of the weights."""
    info = weights(**known)
    x = np.random.default_rng(seed).uniform(0, 2, (count, len(GENES))).astype(np.float32)
    obs = {"name": np.array([f"{i}.png" for i in range(count)], object), "predicted_depth": 3 + x[:, 0] / 10}
    typical = info.predicted_in_training
    if typical is not None:
        obs["predicted_depth"] = typical.depth(typical.modules(x))
    if ood is not None:
        obs["ood"] = ood
    columns = [GENES.index(gene) for gene in genes]
    return Result(
        X=x[:, columns], obs=obs, var=gene_table(info, columns), uns={"weights": info, "failed": {}, "asked": False}
    )


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# ------------------------------------------------------------------------------------------------------------ reading


def test_the_three_kinds_of_files_say_the_same(tmp_path):
    gmt = "".join("\t".join([name, "http://where", *genes]) + "\n" for name, genes in SETS.items())
    msigdb = {name: {"systematicName": "M1", "geneSymbols": genes, "pmid": ""} for name, genes in SETS.items()}
    for name, text in (("a.gmt", f"\ufeff{gmt}\n"), ("b.json", json.dumps(msigdb)), ("c.json", json.dumps(SETS))):
        assert load_gene_sets(written(tmp_path / name, text)) == SETS
    assert load_gene_sets(SETS) == SETS
    crlf = written(tmp_path / "d.gmt", "")
    crlf.write_bytes(gmt.replace("\n", "\t\r\n").encode())
    assert load_gene_sets(crlf) == SETS


def test_names_are_such_as_files_can_have(tmp_path):
    assert list(load_gene_sets({"a/b": ["X"], " IL-2\\STAT5 ": ["Y"], "GO: x (y)\n": ["Z"]})) == [
        "a_b",
        "IL-2_STAT5",
        "GO: x (y)",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "There are no gene sets in"),
        ("{}", "There are no gene sets in"),
        ("GNAS\nFASN\n", "line 1: no gene set; a line of a GMT is a name, a description and genes, tabs between"),
        ("A\tx\tGNAS\nB\tx\n", "The gene set B in .* has no genes"),
        ("A\tx\tGNAS\nA\tx\tFASN\n", "names A more than once"),
        ("A/B\tx\tGNAS\nA_B\tx\tFASN\n", "names A_B more than once"),
        ("_index\tx\tGNAS\n", "calls a gene set _index, which files keep for themselves; give it another name"),
        ('{"zarr.json": ["GNAS"]}', "calls a gene set zarr.json, which files keep"),
        ("\tx\tGNAS\n", "has a gene set without a name"),
        ('{"A": ["GNAS"], "A": ["FASN"]}', "names A more than once"),
        ('{"A": "GNAS"}', "The gene set A in .* is no list of symbols, nor has it one as geneSymbols"),
        ('{"A": {"genes": ["GNAS"]}}', "The gene set A in .* is no list of symbols"),
        ('{"A": [1, 2]}', "The gene set A in .* is no list of symbols"),
        ('["GNAS"]', "are no JSON object of sets by name"),
        ('{"A": ', "are no JSON"),
        ("[" * 100_000, "are no JSON"),
    ],
)
def test_what_is_no_file_of_gene_sets_is_refused(text, said, tmp_path):
    with pytest.raises(PanelError, match=said):
        load_gene_sets(written(tmp_path / "sets", text))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "sets.gmt").write_bytes(b"\x93\xff\x00\x01")
    for name in ("sets.gmt", "gone.gmt", "."):
        with pytest.raises(PanelError, match=r"could not be read .*; give a GMT or a JSON file"):
            load_gene_sets(tmp_path / name)


# -------------------------------------------------------------------------------------------------------------- shares


def test_genes_are_found_by_any_name_and_counted_once():
    names = ["TLE5", "AES", "aes", "CD45", "ENSG00000087460.12", "KRT8", "krt8", "SCD"]
    (found,) = signatures_of({"A": names}, GENES, SIGNIFICANT)
    assert found == Signature("A", ("GNAS", "AES", "PTPRC"), 5)
    assert str(found) == "A: 3 of 5 genes (60 %)"


@pytest.mark.parametrize(
    ("used", "size", "share", "scored"),
    [(5, 50, 0.1, True), (5, 51, 0.1, False), (4, 8, 0.1, False), (3, 3, 0.1, True), (5, 5000, 0.0, True)],
)
def test_a_score_takes_a_share_and_five_genes_or_all_of_a_smaller_set(used, size, share, scored):
    assert LEAST_GENES == 5
    full = Signature("FULL", tuple(GENES), 10)
    one = Signature("A", tuple(GENES[:used]), size)
    assert enough([full, one], share, of="W") == (([full, one], []) if scored else ([full], [one]))


def test_where_nothing_can_be_scored_it_says_how_near_it_was():
    with pytest.raises(PanelError, match=r"too few genes of 2 gene sets better than chance, most of B: 4 of 8 genes"):
        scorable(weights(), {"A": ["GNAS", "X"], "B": [*GENES[:4], "W", "X", "Y", "Z"]})
    with pytest.raises(PanelError, match="a score takes 5 genes and 90 % of a set, or the share that min_share says"):
        scorable(weights(), SETS, min_share=0.9)


def test_without_what_scores_rest_on_there_are_none():
    with pytest.raises(PanelError, match=r"Which genes tcgn_base.sets predicts better than chance was not measured"):
        made(held_out={}).score(SETS)
    with pytest.raises(PanelError, match="does not state what depth it predicts for its training tissue"):
        made(typical=None).score(SETS)


# -------------------------------------------------------------------------------------------------------------- scores


def test_scores_are_means_of_standardised_values_given_depth():
    result = made()
    scored = result.score(SETS)
    assert [s.name for s in scored.signatures] == ["FIRST", "SECOND"]
    assert [s.name for s in scored.uns["signatures_refused"]] == ["FEW"]
    typical = result.info.predicted_in_training
    for i, name in enumerate(USED):
        assert sorted(scored.signatures[i].genes) == sorted(USED[name])
        columns = [GENES.index(gene) for gene in USED[name]]
        given = result.X - (result.depth[:, None] - typical.depth.mean) * typical.depth.slope
        sd = np.sqrt(typical.sd**2 - (typical.depth.slope * typical.depth.sd) ** 2)
        by_hand = ((given - typical.mean) / sd)[:, columns].mean(axis=1)
        np.testing.assert_allclose(scored.obsm["signatures"][:, i], by_hand, atol=1e-5)
    assert scored.obsm["signatures"].dtype == np.float32
    assert "signatures" not in result.obsm


@settings(max_examples=30)
@given(
    values=st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(size=(7, len(GENES)))),
    sets=st.lists(st.sets(st.sampled_from(GENES), min_size=1).map(sorted), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_neither_the_order_of_tiles_nor_of_sets_nor_of_genes_matters(values, sets, order):
    signatures = [Signature(f"S{i}", tuple(genes), len(genes)) for i, genes in enumerate(sets)]
    scores = mean_scores(values, GENES, signatures)
    rows, columns, shuffled = list(range(7)), list(range(len(GENES))), list(range(len(sets)))
    for each in (rows, columns, shuffled):
        order.shuffle(each)
    turned = [replace(signatures[i], genes=tuple(reversed(signatures[i].genes))) for i in shuffled]
    again = mean_scores(values[rows][:, columns], [GENES[i] for i in columns], turned)
    np.testing.assert_allclose(again, scores[rows][:, shuffled], atol=1e-6)
    by_hand = [values[:, [GENES.index(gene) for gene in genes]].mean(axis=1) for genes in sets]
    np.testing.assert_allclose(scores, np.stack(by_hand, axis=1), atol=1e-6)


def test_a_score_does_not_depend_on_other_tiles_sets_or_genes():
    whole = made().score(SETS).obsm["signatures"]
    part = some(made(), [3, 1]).score({"SECOND": SETS["SECOND"]})
    np.testing.assert_allclose(part.obsm["signatures"][:, 0], whole[[3, 1], 1], atol=1e-6)
    fewer = made(genes=USED["FIRST"][::-1]).score({"FIRST": SETS["FIRST"]})
    np.testing.assert_allclose(fewer.obsm["signatures"][:, 0], whole[:, 0], atol=1e-6)


def test_many_tiles_are_scored_in_parts():
    result = made(3000).score(SETS)
    np.testing.assert_allclose(
        result.obsm["signatures"][2990:], some(made(3000), np.arange(2990, 3000)).score(SETS).obsm["signatures"]
    )
    assert 1 < result.different_signatures() <= 2


def test_scores_are_withheld_where_significance_is():
    ood = np.linspace(0.5, 1.2, 12)
    scored = made(ood=ood).score(SETS)
    assert np.isnan(scored.obsm["signatures"]).all(axis=1).tolist() == (ood > 1).tolist()
    known = np.isfinite(scored.obsm["signatures"][:, 0])
    np.testing.assert_array_equal(scored.obsm["signatures"][known], made().score(SETS).obsm["signatures"][known])
    most = made(ood=ood + 0.3)
    assert most.withheld()
    assert np.isfinite(most.score(SETS).obsm["signatures"][:, 0]).tolist() == [not most.withheld(i) for i in range(12)]
    foreign = made(ood=ood + 0.6).score(SETS)
    assert np.isnan(foreign.obsm["signatures"]).all()
    assert foreign.different_signatures() is None
    assert facts(foreign)[-1] == "scores are withheld of 12 of 12 patches, which are unlike the training tissue"
    document = json.loads("".join(to_json(scored)))
    assert [row["FIRST.score"] is None for row in document["predictions"]] == (ood > 1).tolist()
    assert document["signatures"]["withheld"] == (ood > 1).sum()


# ------------------------------------------------------------------------------------------------------------- written


@pytest.fixture(scope="module")
def slide(tiny_weights) -> Result:
    """A slide by the tiny weights, as if it were tissue that these know."""
    predicted = tcgn_hub.load(path=tiny_weights, device="cpu").slide(SVS, stride_um=250, workers=0)
    return replace(predicted, obs={**predicted.obs, "ood": np.linspace(0.1, 1.2, len(predicted))})


TINY = {"ONE": PANEL[4:10], "TWO/2": PANEL[5:], "NONE": [*PANEL[:4], *PANEL[4:6]]}


def test_a_slide_is_written_with_its_scores(slide, tmp_path):
    scored = slide.score(TINY)
    scores = scored.obsm["signatures"]
    assert np.isnan(scores[:, 0]).sum() == (slide.obs["ood"] > 1).sum() > 0
    for kind in ("h5ad", "csv", "json", "parquet", "geojson", "txt"):
        scored.write(tmp_path / f"x.{kind}")
    names = ["ONE", "TWO_2"]
    adata = anndata.read_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_frame_equal(
        adata.obsm["signatures"], pd.DataFrame(scores, index=adata.obs_names, columns=names), check_names=False
    )
    pd.testing.assert_frame_equal(scored.to_anndata().obsm["signatures"], adata.obsm["signatures"], check_names=False)
    known = {"scored": {"ONE": {"genes": PANEL[4:10], "size": 6}, "TWO_2": {"genes": PANEL[5:], "size": 7}}}
    known |= {"refused": {"NONE": {"genes": PANEL[4:6], "size": 6}}, "withheld": int(np.isnan(scores[:, 0]).sum())}
    known["different"] = scored.different_signatures()
    assert json.loads(adata.uns["tcgn"]["signatures"]) == scored.metadata()["signatures"] == known
    for table in (pd.read_csv(tmp_path / "x.csv"), pd.read_parquet(tmp_path / "x.parquet")):
        at = list(table).index("ONE.score")
        assert list(table)[at - 1 : at + 3] == ["stain_distance", "ONE.score", "TWO_2.score", PANEL[0]]
        np.testing.assert_allclose(table[["ONE.score", "TWO_2.score"]], scores, rtol=1e-5)
    assert "nan" not in (tmp_path / "x.csv").read_text()
    rows = json.loads((tmp_path / "x.json").read_text())["predictions"]
    assert [row["ONE.score"] for row in rows] == [None if v != v else float(v) for v in scores[:, 0]]
    tiles = json.loads((tmp_path / "x.geojson").read_text(), parse_constant=pytest.fail)["features"]
    assert ["ONE.score" in tile["properties"]["measurements"] for tile in tiles] == np.isfinite(scores[:, 0]).tolist()
    text = (tmp_path / "x.txt").read_text()
    assert re.search(r"^TWO_2 +7 of 7 ( +-?[0-9.]+){4}$", text, re.M)
    assert "the scores of 2 gene sets are worth 1." in text


def test_without_gene_sets_nothing_is_said_of_them(slide, tmp_path):
    slide.write(tmp_path / "x.h5ad")
    adata = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert "signatures" not in adata.obsm
    assert slide.metadata()["signatures"] is None
    assert "gene set" not in to_table(slide)


def test_decoupler_and_scanpy_take_the_scores_as_their_own(slide):
    scanpy = pytest.importorskip("scanpy")
    adata = slide.score(TINY).to_anndata()
    own = decoupler.pp.get_obsm(adata, key="signatures")
    assert list(own.var_names) == ["ONE", "TWO_2"]
    scanpy.pl.embedding(own, basis="spatial", color="ONE", show=False)


def test_decoupler_gives_the_same_of_what_is_in_the_h5ad(slide, tmp_path):
    """The scores by whoever has the file and decoupler alone."""
    slide.score(TINY).write(tmp_path / "x.h5ad")
    adata = anndata.read_h5ad(tmp_path / "x.h5ad")
    typical = slide.info.predicted_in_training
    z = (adata.layers["given_depth"] - typical.mean) / typical.given_depth_sd
    table = pd.DataFrame(z, index=adata.obs_names, columns=adata.var_names)[PANEL[4:]]
    net = pd.DataFrame([("ONE", gene) for gene in PANEL[4:10]], columns=["source", "target"])
    again, _ = decoupler.mt.waggr(table, net, fun="wmean", times=0)
    known = adata.obsm["signatures"]["ONE"].dropna()
    np.testing.assert_allclose(again.loc[known.index, "ONE"], known, atol=1e-4)


def test_maps_and_the_report_show_the_scores(slide, tmp_path):
    scored = slide.score({**TINY, "SAME": PANEL[4:10]})
    picture = Image.open(io.BytesIO(draw_signature(scored, "ONE")))
    assert picture.width >= 620
    write_report(tmp_path / "report.html", scored, genes=PANEL[:1])
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r'alt="Map of the gene set (.*?)"', page) == ["ONE", "TWO_2"][: page.count("Map of the gene set")]
    assert "the same map: SAME" in page or "SAME" in page.split("the same map: ")[1]
    assert "Too few genes to score: NONE: 2 of 6 genes (33 %)" in page


def test_what_is_withheld_is_not_drawn(slide, tmp_path):
    most = np.linspace(0.5, 1.8, len(slide))
    foreign = replace(slide, obs={**slide.obs, "ood": most}).score(TINY)
    assert foreign.metadata()["signatures"]["withheld"] == len(slide) > (most > 1).sum()
    assert draw_signature(foreign, "ONE") is None
    write_report(tmp_path / "report.html", foreign, genes=PANEL[:1])
    assert "Map of the gene set" not in (tmp_path / "report.html").read_text()
    assert re.search(r"^ONE +6 of 6 ( +withheld){4}$", to_table(foreign), re.M)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def gmt(tmp_path) -> Path:
    return written(tmp_path / "sets.gmt", "".join("\t".join([k, "", *genes]) + "\n" for k, genes in TINY.items()))


def test_shares_are_said_before_anything_is_predicted(gmt, tiny_weights, capsys):
    arguments = [PATCHES[0], "--weights", str(tiny_weights), "--signatures", str(gmt)]
    assert tcgn_predict(arguments) == 0
    out, said = capsys.readouterr()
    lines = said.splitlines()
    assert lines[0] == "tcgn-predict: ONE: 6 of 6 genes (100 %)"
    assert lines[2] == "tcgn-predict: too few genes to score: NONE: 2 of 6 genes (33 %)"
    assert re.search(r"^ONE +6 of 6  (withheld|[+-]\d+\.\d\d)$", out, re.M)
    assert tcgn_predict([*arguments, "--min-share", "1", "--genes", ",".join(PANEL[:9])]) == 2
    _, said = capsys.readouterr()
    assert said.count("\n") == 1
    assert f"Of the 9 genes asked for {tiny_weights} predicts too few genes of 3 gene sets better than chance" in said
    assert "most of ONE: 5 of 6 genes (83 %)" in said


def test_maps_of_gene_sets_are_drawn_where_they_are_named(gmt, tiny_weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Result, "withheld", lambda *_: "")
    monkeypatch.setattr(Result, "is_ood", None)
    arguments = [str(SVS), "--stride-um", "300", "--weights", str(tiny_weights), "--signatures", str(gmt)]
    assert tcgn_predict([*arguments, "-o", str(tmp_path / "x.csv"), "--plot", f"{PANEL[0]},ONE"]) == 0
    assert {path.name for path in tmp_path.glob("x.*.png")} == {f"x.{PANEL[0]}.png", "x.ONE.png", "x.tissue.png"}
    capsys.readouterr()
    assert tcgn_predict([*arguments, "-o", str(tmp_path / "y.csv"), "--plot", "NONE"]) == 2
    assert "NONE is to be drawn, but not among the genes that are predicted or sets scored" in capsys.readouterr().err


def test_a_cohort_is_scored_and_another_file_is_another_run(gmt, tiny_weights, tmp_path):
    predictor, out = tcgn_hub.load(path=tiny_weights, device="cpu"), tmp_path / "out"
    options = {"stride_um": 300, "workers": 0}
    first = predictor.slides([SVS], out, signatures=gmt, **options)
    assert predictor.slides([SVS], out, signatures=TINY, **options) == first
    assert concatenate(Ledger(out), tmp_path / "all.h5ad") == 1
    kept = anndata.read_h5ad(tmp_path / "all.h5ad").obsm["signatures"]
    assert list(kept) == ["ONE", "TWO_2"]
    assert len(kept) == first[0].tiles
    fewer = predictor.slides([SVS], out, signatures={"ONE": TINY["ONE"]}, **options)
    assert fewer[0].run != first[0].run
    with pytest.raises(PanelError, match="too few genes"):
        predictor.slides([SVS], out, signatures={"NONE": TINY["NONE"]}, **options)
    assert list(anndata.read_h5ad(out / f"{SVS.name}.h5ad").obsm["signatures"]) == ["ONE"]


def test_without_decoupler_the_extra_is_named(tiny_weights, gmt, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "decoupler", None)
    assert tcgn_predict([PATCHES[0], "--weights", str(tiny_weights), "--signatures", str(gmt)]) == 2
    assert "To score gene sets, install decoupler: pip install 'tcgn_hub[signatures]'." in capsys.readouterr().err
