"""What weights predict for their training tissue, and what is said of other tissue by it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from results import GENES, make, make_patches, some, typical
from sections import PANEL, write_section
from tiny import write_tiny_weights

import tcgn_hub
from tcgn_hub.correlation import effective_rank
from tcgn_hub.data.sections import panel_depth
from tcgn_hub.errors import WeightsError
from tcgn_hub.weights.arrays import from_text, to_text
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.typical import Typical, describe_predictions
from tcgn_hub.writing.bulk import BulkTable, bulk_row
from tcgn_hub.writing.geojson import to_geojson
from tcgn_hub.writing.tables import to_json, to_table

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


def drawn(spots=400, features=60, genes=12, noise=0.1):
    """Values, depth, features and parts: depth is in features that no gene follows, and half of the genes in depth."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(spots, features)) * 10 ** rng.uniform(-1, 2, features) + 50
    own = (x - 50) / (x - 50).std(axis=0)
    depth = 3 + 0.1 * own[:, :4].sum(axis=1) + noise * rng.normal(size=spots)
    values = 1 + 0.1 * own[:, 20 : 20 + genes] + 0.5 * (np.arange(genes) % 2) * (depth - 3)[:, None]
    values[:, -1] = 0.5
    return values.astype(np.float32), depth, x.astype(np.float32), np.arange(spots) // 100


def test_depth_is_learned_from_the_features():
    values, depth, features, parts = drawn()
    train, test = parts < 3, parts == 3
    found = describe_predictions(values[train], depth[train], features=features[train], parts=parts[train])
    assert found.depth is found.learned_depth
    assert found.depth.of == "features"
    own = found.depth(features)
    # noise of half of the standard deviation of depth leaves a PCC of 0.89
    assert np.corrcoef(own[test], depth[test])[0, 1] > 0.85
    # in log10 of the counts, however much the regression was held back
    assert np.polyfit(own[test], depth[test], 1) == pytest.approx([1, 0], abs=0.25)
    assert (found.depth.mean, found.depth.sd) == pytest.approx((own[train].mean(), own[train].std()), rel=1e-3)
    alone = np.concatenate([found.depth(features[[i]]) for i in range(5)])
    np.testing.assert_array_equal(found.depth(features[:5]), alone)
    low, high = found.depth.limits()
    assert (own < low).mean() < 0.05 > (own > high).mean()


def test_what_is_given_depth_has_nothing_to_do_with_it_over_the_training_tissue():
    values, depth, features, parts = drawn()
    learned = describe_predictions(values, depth, features=features, parts=parts)
    axes = describe_predictions(values, depth)
    for found, numbers, most in ((learned, features, 1e-3), (axes, axes.modules(values), 0.02)):
        own = found.depth(numbers)
        given = values - (own - found.depth.mean)[:, None] * found.depth.slope
        plain, left = (np.corrcoef(np.column_stack([own, v[:, :-1]]).T)[0, 1:] for v in (values, given))
        assert np.abs(plain).max() > 0.3
        assert np.abs(left).max() < most
        np.testing.assert_allclose(given.mean(axis=0), found.mean, atol=1e-3)
        np.testing.assert_array_equal(given[:, -1], values[:, -1])
        for gene in range(11):
            low, high = found.given_depth_limits(gene)
            assert 0.001 < np.mean((given[:, gene] < low) | (given[:, gene] > high)) < 0.05


def test_a_feature_that_hardly_differs_does_not_count():
    values, depth, features, parts = drawn()
    features[:, -1] = 50 + 1e-4 * (depth - depth.mean())
    found = describe_predictions(values, depth, features=features.astype(np.float32), parts=parts)
    assert found.depth.weight[-1] == 0
    assert (found.depth.weight[:-1] != 0).sum() > 40


def test_depth_is_learned_where_it_is_known_of_enough_spots():
    values, depth, features, parts = drawn()
    known = np.where(np.arange(400) % 2, depth, np.nan)
    found = describe_predictions(values, known, features=features, parts=parts)
    assert np.corrcoef(found.depth(features), depth)[0, 1] > 0.8
    few = np.where(np.arange(400) < 39, depth, np.nan)
    assert describe_predictions(values, few, features=features, parts=parts).depth.of == "modules"
    nothing = describe_predictions(values, depth, features=np.ones_like(features), parts=parts)
    assert nothing.depth.of == "modules"
    # what one part says is the contrary of what the other says
    turned = describe_predictions(values, depth * (2 * (parts > 1) - 1), features=features, parts=parts > 1)
    assert turned.depth.of == "modules"


def test_what_is_stored_says_the_same():
    values = RNG.normal(size=(100, 785)).astype(np.float32)
    features, parts = (
        (3 + RNG.normal(size=(100, 4)) @ RNG.normal(size=(4, 1280))).astype(np.float32),
        np.arange(100) // 50,
    )
    for depth in (None, features[:, 0]):
        found = describe_predictions(values, depth, features=features, parts=parts)
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
            np.testing.assert_array_equal(back.depth(features), found.depth(features))
            np.testing.assert_array_equal(back.depth.slope, found.depth.slope)
            assert (back.depth.mean, back.depth.sd) == (found.depth.mean, found.depth.sd)
            # an earlier version has no more than the axes
            before = Typical.from_json({k: v for k, v in json.loads(text).items() if k != "depth"}, 785)
            np.testing.assert_array_equal(before.to_depth, found.to_depth)
            assert before.depth.of == "modules"


@pytest.mark.parametrize(
    "change", [{"mean": ""}, {"axes": "AAAA"}, {"sd": "?"}, {"to_depth": "AACAPw=="}, {"shares": None}, None]
)
def test_malformed_descriptions_are_refused(change):
    document = typical().to_json()
    if change is None:
        del document["effective_rank"]
    with pytest.raises(WeightsError, match=r"^What is stated of w is malformed \(.*\)\.$"):
        WeightsInfo.from_json({"typical": {**document, **(change or {})}}, name="w", genes=tuple(GENES))


@pytest.mark.parametrize(
    "change",
    [
        {"of": "counts"},
        {"of": "modules"},
        {"slope": "AACAPw=="},
        {"weight": "?"},
        {"weight": "AADAfw=="},
        {"sd": 0},
        {"mean": None},
        {"mean": float("nan")},
        None,
    ],
)
def test_a_malformed_depth_is_refused(change):
    values, depth, features, parts = drawn(genes=4)
    document = describe_predictions(values, depth, features=features, parts=parts).to_json()
    assert Typical.from_json(document, 4).depth.of == "features"
    if change is None:
        del document["depth"]["offset"]
    document["depth"].update(change or {})
    with pytest.raises(WeightsError, match=r"^What is stated of w is malformed \(.*\)\.$"):
        WeightsInfo.from_json({"typical": document}, name="w", genes=tuple(GENES))


def test_a_depth_of_other_features_is_refused(tmp_path):
    config = write_tiny_weights(tmp_path) / "config.json"
    document = json.loads(config.read_text())
    depth = document["tcgn"]["typical"]["depth"]
    depth["weight"] = to_text(from_text(depth["weight"], "<f4")[:-1], "<f4")
    config.write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="is of 31 features, where there are 32"):
        tcgn_hub.load(path=tmp_path).run(np.zeros((1, 224, 224, 3), np.uint8))


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
    deep = replace(better, held_out={**better.held_out, "depth_pcc": 0.634})
    assert deep.skill.endswith("0.15 is left given depth; predicted depth has a PCC of 0.63)")
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


def test_values_given_depth_are_in_what_is_written(tmp_path):
    slide, patches = make(described=True), make_patches(described=True)
    for result in (slide, patches):
        depth, given = result.info.predicted_in_training.depth, result.given_depth()
        want = result.X - np.outer(result.depth - depth.mean, result.var["depth_slope"])
        np.testing.assert_allclose(given, want, atol=1e-6)
        assert given.dtype == np.float32
        assert np.abs(given - result.X).max() > 0.01
        np.testing.assert_array_equal(result.given_depth(slice(1, 3)), given[1:3])
        np.testing.assert_array_equal(result.select(["ACTB", "GNAS"]).given_depth(), given[:, [3, 0]])
        np.testing.assert_array_equal(result.to_anndata().layers["given_depth"], given)
        document = json.loads("".join(to_json(result)))
        assert [row["predicted_depth"] for row in document["predictions"]] == pytest.approx(result.depth.tolist())
        written = [[gene["given_depth"] for gene in row["genes"]] for row in document["predictions"]]
        np.testing.assert_allclose(written, given, atol=1e-6)
        # a table of values tells it by the slopes that go with it
        result.write(tmp_path / "table.csv")
        beside = json.loads((tmp_path / "table.csv.json").read_text())
        rows = list(csv.DictReader((tmp_path / "table.csv").open(encoding="utf-8")))
        for gene, slope in beside["depth_slope"].items():
            again = [
                float(row[gene]) - slope * (float(row["predicted_depth"]) - beside["runs"][0]["trained_depth"])
                for row in rows
            ]
            np.testing.assert_allclose(again, given[:, result.column(gene)], atol=1e-4)
    own = [tile["properties"]["measurements"] for tile in json.loads("".join(to_geojson(slide)))["features"]]
    np.testing.assert_allclose([tile["predicted_depth"] for tile in own], slide.depth, atol=5e-5)
    head, columns, *lines = to_table(patches).splitlines()
    assert head.endswith(f", predicted depth {patches.depth[0]:.2f}")
    at = columns.index("at mean depth")
    shown = {line.split()[0]: float(line[at:].split()[0]) for line in lines[:4]}
    assert shown == pytest.approx(dict(zip(GENES, patches.given_depth()[0].tolist(), strict=True)), abs=5e-4)
    for result in (make(), make_patches()):
        assert result.given_depth() is result.depth is result.metadata()["trained_depth"] is None
        assert "given_depth" not in result.to_anndata().layers
        assert "predicted_depth" not in result.to_anndata().obs
        assert "depth" not in to_table(result)
        assert json.loads("".join(to_json(result)))["predictions"][0]["genes"][0]["given_depth"] is None


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
            bulk.add(bulk_row(result))
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


def test_depth_is_that_of_each_patch_alone(tiny):
    noise = [RNG.integers(0, 255, (224, 224, 3), dtype=np.uint8) // (1 + i) for i in range(3)]
    learned = tiny.info.predicted_in_training.depth
    assert learned.of == "features"
    together = tiny.patches(noise, force=True)
    np.testing.assert_allclose(together.depth, learned(tiny.embed(noise)), atol=1e-5)
    for tta in (1, 3):
        together = tiny.patches(noise, force=True, tta=tta, batch_size=2)
        for i, image in enumerate(noise):
            alone = tiny.patches([image], force=True, tta=tta)
            np.testing.assert_allclose(alone.depth, together.depth[[i]], atol=1e-4)
            np.testing.assert_allclose(alone.given_depth(), together.given_depth()[[i]], atol=1e-4)
    views = [learned(tiny.backend.forward(tiny.backend.prepare(noise), i)[1]) for i in range(3)]
    np.testing.assert_allclose(together.depth, np.mean(views, axis=0), atol=1e-4)
    assert np.ptp(views, axis=0).max() > 1e-3


def test_weights_of_an_earlier_version_read_depth_off_their_axes(tiny):
    noise = [RNG.integers(0, 255, (224, 224, 3), dtype=np.uint8) for _ in range(2)]
    before = {key: value for key, value in tiny.info.typical.items() if key != "depth"}
    own = tcgn_hub.Predictor(tiny.backend, replace(tiny.info, typical=before))
    result = own.patches(noise, force=True)
    np.testing.assert_array_equal(result.depth, result.info.predicted_in_training.depth(result.obsm["modules"]))
    assert np.isfinite(result.given_depth()).all()
    none = tcgn_hub.Predictor(tiny.backend, replace(tiny.info, typical={**before, "to_depth": None}))
    result = none.patches(noise, force=True)
    assert result.depth is result.given_depth() is None
    assert "depth_slope" not in result.var
    assert result.z() is not None


def test_axes_of_a_slide_survive_an_interruption(tiny, tmp_path):
    Image.fromarray(RNG.integers(0, 255, (600, 600, 3), dtype=np.uint8)).save(tmp_path / "slide.png")
    options = {"mpp": 0.6875, "stride_um": 154, "min_tissue": 0, "workers": 0, "resume": tmp_path / "state"}
    first = tiny.slide(tmp_path / "slide.png", **options)
    again = tiny.slide(tmp_path / "slide.png", **options)
    assert np.isfinite(first.obsm["modules"]).all()
    np.testing.assert_array_equal(again.obsm["modules"], first.obsm["modules"])
    assert np.isfinite(first.depth).all()
    np.testing.assert_array_equal(again.given_depth(), first.given_depth())


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
