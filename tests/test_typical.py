"""What weights predict for their training tissue, and what is said of other tissue by it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from results import GENES, make, make_patches, some, typical
from sections import PANEL, write_section

import tcgn_hub
from tcgn_hub.data.sections import panel_depth
from tcgn_hub.errors import WeightsError
from tcgn_hub.evaluation.skill import effective_rank
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.typical import Typical, describe_predictions
from tcgn_hub.writing.bulk import BulkTable
from tcgn_hub.writing.tables import to_table

RNG = np.random.default_rng(0)
KNOWN = {
    "effective_rank": 2.24,
    "median_pcc": 0.17,
    "median_one_factor": 0.15,
    "median_pcc_given_depth": 0.08,
    "pcc_given_depth": [0.3, 0.1, None, 0.2],
    "pcc": [0.42, 0.31, 0.55, 0.01],
    "significant": ["GNAS", "HLA-DRA"],
    "sections": {"B4": {"patient": "B"}, "C5": {"patient": "C"}, "C6": {"patient": "C"}},
}


@pytest.fixture(scope="module")
def tiny(tiny_weights):
    return tcgn_hub.load(path=tiny_weights)


# ---------------------------------------------------------------------------------------------------------- the axes


def test_the_effective_rank_is_that_of_the_evaluation():
    for k in (1, 3, 12):
        values = RNG.normal(size=(50, k)) @ RNG.normal(size=(k, 20)) + 7
        values[:, 4] = 1.0
        assert describe_predictions(values).effective_rank == pytest.approx(effective_rank(values))


def test_training_tissue_has_mean_0_and_standard_deviation_1():
    axes = RNG.normal(size=(3, 30))
    values = (RNG.normal(size=(500, 3)) * [3, 2, 1] @ axes + RNG.normal(size=(500, 30))).astype(np.float32)
    values[:, 7] = 0.25
    found = describe_predictions(values)
    z, modules = found.z(values), found.modules(values)
    differs = np.arange(30) != 7
    assert np.isnan(z[:, 7]).all()
    np.testing.assert_allclose(z[:, differs].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z[:, differs].std(axis=0), 1, atol=1e-4)
    assert len(found.shares) == min(int(np.ceil(found.effective_rank)), 8) > 2
    np.testing.assert_allclose(modules.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(modules.T), np.eye(len(found.shares)), atol=0.02)
    assert ((found.axes > 0).sum(axis=1) >= (found.axes < 0).sum(axis=1)).all()
    low, high = ((values < end).mean(axis=0) for end in (found.low, found.high))
    np.testing.assert_allclose(low[differs], 0.01, atol=0.003)
    np.testing.assert_allclose(high[differs], 0.99, atol=0.003)
    rising, falling = found.leading(0, tuple(map(str, range(30))), 3)
    assert rising[0] == str(found.axes[0].argmax())
    assert falling[0] == str(found.axes[0].argmin())
    assert found.to_depth is found.depth is found.given_depth_limits(0) is None


def test_depth_is_read_off_the_axes():
    along = RNG.normal(size=(300, 2))
    values = along @ RNG.normal(size=(2, 20))
    depth = 3 + 0.2 * along[:, 0] - 0.1 * along[:, 1]
    holes = np.where(np.arange(300) % 3 == 0, np.nan, depth)
    found = describe_predictions(values, holes)
    assert found.depth.of == "modules"
    np.testing.assert_allclose(found.depth(found.modules(values)), depth, atol=0.01)
    low, high = found.depth.limits()
    assert (depth < low).mean() < 0.05 > (depth > high).mean()
    assert high - low == pytest.approx(2 * 2.326 * depth.std(), rel=0.1)
    assert describe_predictions(values, np.full(300, np.nan)).to_depth is None
    assert describe_predictions(np.ones((300, 5)), depth) is None


def test_what_is_stored_says_the_same():
    values = RNG.normal(size=(100, 785)).astype(np.float32)
    for depth in (None, values[:, 0]):
        found = describe_predictions(values, depth)
        text = json.dumps(found.to_json())
        assert len(text) < 60e3
        back = Typical.from_json(json.loads(text), 785)
        np.testing.assert_array_equal(back.z(values), found.z(values))
        modules = found.modules(values)
        np.testing.assert_array_equal(back.modules(values), modules)
        assert back.effective_rank == found.effective_rank
        if depth is None:
            assert back.to_depth is None
        else:
            np.testing.assert_array_equal(back.depth(modules), found.depth(modules))


@pytest.mark.parametrize(
    "change", [{"mean": ""}, {"axes": "AAAA"}, {"sd": "?"}, {"to_depth": "AACAPw=="}, {"shares": None}, None]
)
def test_malformed_descriptions_are_refused(change):
    document = typical().to_json()
    if change is None:
        del document["effective_rank"]
    with pytest.raises(WeightsError, match=r"^What is stated of w is malformed \(.*\)\.$"):
        WeightsInfo.from_json({"typical": {**document, **(change or {})}}, name="w", genes=tuple(GENES))


# ------------------------------------------------------------------------------------------------- what is said of it


def test_skill_in_one_line():
    info = WeightsInfo("w", tuple(GENES), held_out=KNOWN, training_data={"organ": "breast"})
    assert info.skill == (
        "tells about 2 genes apart (effective rank 2.2 of 4; 0.15 of 0.17 of the median PCC is one picture; 0.08 is"
        " left given depth); most maps follow tissue density"
    )
    assert info.tissue == "breast, patients B and C"
    assert info.significance == "better than chance, given depth, on breast, patients B and C"
    assert info.pcc_given_depth == {"GNAS": 0.3, "FASN": 0.1, "HLA-DRA": None, "ACTB": 0.2}
    better = replace(info, held_out={**KNOWN, "median_pcc_given_depth": 0.15})
    assert better.skill.endswith("0.15 is left given depth)")
    bare = WeightsInfo("w", tuple(GENES))
    assert bare.skill == bare.tissue == ""
    assert bare.significance == "better than chance on held-out tissue"
    stated = {"significant_genes": 1, "sections": {"C6": {"patient": "C"}}}
    assert replace(bare, held_out=stated).significance == (
        "better than chance on patient C, by the test of an earlier version, which marks too many genes"
    )
    new = replace(bare, held_out={**stated, "significant_genes_pcc": 1})
    assert new.significance == "better than chance on patient C"
    assert replace(bare, held_out={"effective_rank": 1.1}).skill == "tells about 1 gene apart (effective rank 1.1 of 4)"
    with pytest.raises(WeightsError, match=r"held_out\.pcc_given_depth has 1 values for 4 genes"):
        WeightsInfo.from_json({"held_out": {"pcc_given_depth": [0.1]}}, name="w", genes=tuple(GENES))


def test_genes_are_ordered_by_how_far_they_are_from_training_tissue():
    patch = make_patches(1, described=True)
    patch.X[0] = [1.0, 0.2, 1.3, 9.0]
    z = patch.z()[0]
    assert np.abs(z[1]) > np.abs(z[2]) > np.abs(z[0])
    assert np.isnan(z[3])
    assert patch.top().genes == ["FASN", "HLA-DRA", "GNAS", "ACTB"]
    assert patch.top(1).genes == ["FASN"]
    assert make_patches(1).top(1).genes == [GENES[int(make_patches(1).X[0].argmax())]]
    lines = to_table(patch).splitlines()
    assert lines[1].split()[:3] == ["gene", "value", "z"]
    assert [line.split()[0] for line in lines[2:6]] == patch.top().genes
    assert [line.split()[2] for line in lines[2:5]] == [f"{z[i]:+.1f}" for i in (1, 2, 0)]
    assert lines[5].split()[2] == "unknown"
    assert any(line.startswith("z: standard deviations from what is predicted") for line in lines)
    table = patch.to_anndata()
    np.testing.assert_array_equal(table.layers["z"], patch.z())


def test_deviation_is_the_mean_of_z():
    slide = make(described=True)
    np.testing.assert_allclose(slide.deviation()[:3], slide.z().mean(axis=0)[:3], rtol=1e-4)
    np.testing.assert_array_equal(slide.z(slice(3, 5)), slide.z()[3:5])
    assert [gene.z for gene in slide.summary()][:3] == slide.deviation()[:3].tolist()
    few = slide.select(["ACTB", "GNAS"])
    np.testing.assert_array_equal(few.z()[:, 1], slide.z()[:, 0])
    assert make().z() is make().deviation() is make().depth is None
    text = to_table(slide)
    head = text.splitlines()[1].split()
    assert head[:4] == ["gene", "mean", "z", "sd"]


def test_axes_and_depth_are_in_what_is_written(tmp_path):
    anndata = pytest.importorskip("anndata")
    slide = make(held_out=KNOWN, described=True)
    slide.write(tmp_path / "slide.h5ad")
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    np.testing.assert_array_equal(back.obsm["modules"], slide.obsm["modules"])
    np.testing.assert_array_equal(back.obs["predicted_depth"], slide.depth)
    np.testing.assert_array_equal(back.layers["z"], slide.z())
    assert back.var["held_out_pcc_given_depth"].tolist()[:2] == [0.3, 0.1]
    modules = json.loads(back.uns["tcgn"]["modules"])
    assert modules == slide.metadata()["modules"]
    assert [len(module["rising"]) > 0 for module in modules] == [True] * slide.obsm["modules"].shape[1]
    assert back.uns["tcgn"]["skill"] == slide.info.skill
    assert back.uns["tcgn"]["significance"] == "better than chance, given depth, on patients B and C"
    # depth rises with what GNAS and its like share
    assert np.corrcoef(slide.depth, slide.obsm["modules"][:, 0])[0, 1] > 0.9


def test_significance_is_withheld_of_foreign_tissue(tmp_path):
    slide = make(held_out=KNOWN, sure=True)
    assert not slide.withheld()
    assert slide.significance("GNAS") == "yes"
    assert slide.significance("GNAS", len(slide) - 1) == "withheld"
    foreign = some(slide, slide.obs["ood"] > 0.8)
    count = int((foreign.obs["ood"] > 1).sum())
    reason = f"{count} of {len(foreign)} tiles are unlike the tissue that the weights were trained on"
    assert foreign.withheld() == foreign.withheld(0) == foreign.metadata()["significance_withheld"] == reason
    assert {foreign.significance(gene) for gene in GENES} == {"withheld"}
    assert foreign.gene_metadata()["significant"] is None
    assert "significant" not in foreign.to_anndata().var
    assert "significant" in slide.to_anndata().var
    assert f"significance is withheld: {reason}" in to_table(foreign)
    patches = make_patches(held_out=KNOWN, sure=True)
    assert [patches.significance("GNAS", row) for row in range(3)] == ["yes", "yes", "withheld"]
    assert patches.withheld(2) == "this patch is unlike the tissue that the weights were trained on"
    assert not patches.withheld()
    for order in ((slide, foreign), (foreign, slide)):
        bulk = BulkTable(tmp_path / "bulk.csv")
        for result in order:
            bulk.add(result)
        bulk.write()
        beside = json.loads((tmp_path / "bulk.csv.json").read_text())
        assert beside["significant"] == {"GNAS": True, "FASN": False, "HLA-DRA": True, "ACTB": False}
        assert sorted(str(run["significance_withheld"]) for run in beside["runs"]) == sorted([reason, "None"])


def test_spread_is_compared_with_the_interval():
    slide = make(held_out={**KNOWN, "interval_radius": [0.01, 0.01, None, 5.0]})
    spread, sd = slide.spread(), slide.X.std(axis=0, dtype=np.float64)
    assert (spread["genes"], spread["of"]) == (1, 3)  # FASN is the same everywhere
    assert spread["median_sd"] == pytest.approx(np.median(sd[[0, 1, 3]]), rel=1e-4)
    assert spread["median_interval_radius"] == pytest.approx(0.01)
    assert "for 1 of 3 genes the tiles differ by more than the interval: median sd" in to_table(slide)
    assert some(slide, [0]).spread() is make().spread() is None


# ------------------------------------------------------------------------------------------------ weights that state it


def test_axes_are_of_all_genes_whichever_are_asked_for(tiny):
    noise = [RNG.integers(0, 255, (224, 224, 3), dtype=np.uint8) for _ in range(3)]
    every = tiny.patches(noise, force=True)
    one = tiny.patches(noise, force=True, genes=[PANEL[3]])
    np.testing.assert_array_equal(one.obsm["modules"], every.obsm["modules"])
    np.testing.assert_array_equal(one.obsm["modules"], tiny.info.predicted_in_training.modules(every.X))
    np.testing.assert_array_equal(one.z()[:, 0], every.z()[:, 3])
    assert one.depth.shape == (3,)


def test_axes_of_a_slide_survive_an_interruption(tiny, tmp_path):
    Image.fromarray(RNG.integers(0, 255, (600, 600, 3), dtype=np.uint8)).save(tmp_path / "slide.png")
    options = {"mpp": 0.6875, "stride_um": 154, "min_tissue": 0, "workers": 0, "resume": tmp_path / "state"}
    first = tiny.slide(tmp_path / "slide.png", **options)
    again = tiny.slide(tmp_path / "slide.png", **options)
    assert np.isfinite(first.obsm["modules"]).all()
    np.testing.assert_array_equal(again.obsm["modules"], first.obsm["modules"])


def test_depth_is_the_sum_of_the_panels_counts(tmp_path):
    write_section(tmp_path, "A1", zero=2)
    (section,) = tcgn_hub.read_sections(tmp_path)
    counts = section.counts.toarray() if hasattr(section.counts, "toarray") else section.counts
    total = counts[:, [section.genes.index(gene) for gene in PANEL if gene in section.genes]].sum(axis=1)
    known = total > 0
    depth = panel_depth(section, PANEL)
    np.testing.assert_allclose(depth[known], np.log10(1 + total[known]), rtol=1e-6)
    assert np.isnan(depth[~known]).all()
    assert np.isnan(panel_depth(replace(section, bulk=True, counts=counts[:1]), PANEL)).all()
