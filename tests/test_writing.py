"""Results as files: what other programs read back is what was predicted."""

import base64
import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from html import escape
from pathlib import Path
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np
import pytest
from PIL import Image
from results import DOWNSAMPLE, GENES, HELD_OUT, MPP, PATCH_UM, make, make_patches, some

from tcgn_hub.data.sections import Section, beside
from tcgn_hub.errors import ExtraError, OutputError, PanelError
from tcgn_hub.files import write_bytes
from tcgn_hub.panels import load_panel
from tcgn_hub.result import Result, gene_table
from tcgn_hub.text import printable
from tcgn_hub.units import UNITS
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.typical import describe_predictions
from tcgn_hub.writing.bulk import BulkTable, bulk_row
from tcgn_hub.writing.figures import _SlideFigure, draw_gene, draw_mask, layer_values
from tcgn_hub.writing.geojson import to_geojson
from tcgn_hub.writing.report import mapped_genes, write_report
from tcgn_hub.writing.tables import describe, to_csv, to_json, to_table

QUALITY = ["tissue_share", "quality", "focus", "pen", "fold", "saturation", "stain_distance"]
SURE = {**HELD_OUT, "interval_radius": [0.5, 0.25, None, 1.0], "interval_level": 0.8}
RADIUS = {"GNAS": 0.5, "FASN": 0.25, "HLA-DRA": None, "ACTB": 1.0}
IDS = {"GNAS": "ENSG00000087460", "FASN": "ENSG00000169710", "HLA-DRA": "ENSG00000204287", "ACTB": "ENSG00000075624"}


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def prediction() -> Result:
    return make()


def changed(result: Result, **of_info) -> Result:
    """The same of weights of which something else is stated."""
    info = replace(result.info, **of_info)
    return replace(result, var=gene_table(info, range(len(GENES))), uns={**result.uns, "weights": info})


def on(result: Result, **of_slide) -> Result:
    """The same of a slide of which something else is known."""
    return replace(result, uns={**result.uns, "slide": replace(result.slide, **of_slide)})


def lines(table) -> list[list[str]]:
    return list(csv.reader(io.StringIO("".join(table))))


# ---------------------------------------------------------------------------------------------------------- AnnData


def test_h5ad_comes_back_as_it_was(tmp_path):
    anndata = pytest.importorskip("anndata")
    prediction = make(held_out=SURE, sure=True)
    prediction.write(tmp_path / "slide.h5ad")
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    assert back.X.dtype == np.float32
    np.testing.assert_array_equal(back.X, prediction.X)
    assert list(back.var_names) == GENES
    assert list(back.obs_names) == prediction.names
    assert back.var["significant"].dtype == bool
    assert list(back[:, back.var["significant"]].var_names) == ["GNAS", "FASN", "HLA-DRA"]
    assert back.var["held_out_pcc"].tolist() == [0.42, 0.31, 0.55, 0.01]
    np.testing.assert_array_equal(back.obsm["spatial"], prediction.obsm["spatial"])
    np.testing.assert_array_equal(back.obsm["X_tcgn"], prediction.obsm["features"])
    np.testing.assert_array_equal(back.layers["tta_std"], prediction.layers["tta_std"])
    for key, end in zip(("interval_low", "interval_high"), prediction.interval(), strict=True):
        np.testing.assert_array_equal(back.layers[key], end)
    np.testing.assert_array_equal(back.obs["ood"], prediction.obs["ood"])
    assert set(back.obs["in_tissue"]) == {1}
    assert back.obs["is_ood"].dtype == bool
    np.testing.assert_array_equal(back.obs["is_ood"], prediction.obs["ood"] > 1)
    assert back[~back.obs["is_ood"]].n_obs == (prediction.obs["ood"] <= 1).sum()
    assert back.obs["slide"].dtype == "category"
    assert set(back.obs["slide"]) == {"slide 1.svs"}
    assert back.var["gene_ids"].to_dict() == IDS
    assert back.uns["log1p"] == {"base": 10}
    assert back.obs["array_col"].tolist() == prediction.obs["array_col"].tolist()
    library = back.uns["spatial"]["slide 1"]
    assert library["scalefactors"]["spot_diameter_fullres"] == PATCH_UM / MPP
    np.testing.assert_array_equal(library["images"]["hires"], prediction.slide.thumbnail)
    assert library["scalefactors"]["tissue_hires_scalef"] == 1 / DOWNSAMPLE
    metadata = back.uns["tcgn"]
    assert (metadata["mpp"], metadata["units"], metadata["sha256"]) == (MPP, UNITS, "0" * 64)
    assert metadata["out_of_distribution"] == (prediction.obs["ood"] > 1).sum() > 0
    assert json.loads(metadata["failed"]) == prediction.failed
    np.testing.assert_array_equal(metadata["mask"].astype(bool), prediction.slide.mask)
    assert metadata["mask_downsample"] == DOWNSAMPLE
    assert [p.name for p in tmp_path.iterdir()] == ["slide.h5ad"]


def test_h5ad_of_what_is_not_known(tmp_path):
    anndata = pytest.importorskip("anndata")
    bare = on(some(make(held_out=None, failed={}), [0, 0]), mask=None, stride_um=None)
    replace(bare, obsm={"spatial": bare.obsm["spatial"]}).write(tmp_path / "slide.h5ad")
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    assert list(back.var.columns) == ["gene_ids"]
    assert not set(back.layers)
    assert not {"ood", "is_ood"} & set(back.obs)
    assert list(back.obs_names) == [bare.names[0], f"{bare.names[0]}-1"]
    assert np.isnan(back.uns["tcgn"]["stride_um"])
    assert "mask" not in back.uns["tcgn"]
    assert "X_tcgn" not in back.obsm


def test_patches_as_h5ad(tmp_path):
    anndata = pytest.importorskip("anndata")
    patches = make_patches(sure=True)
    patches.write(tmp_path / "patches.h5ad")
    back = anndata.read_h5ad(tmp_path / "patches.h5ad")
    np.testing.assert_array_equal(back.X, patches.X)
    assert back.obs["mpp"].tolist() == [0.6875] * 3
    assert "spatial" not in back.uns
    assert not {"slide", "in_tissue"} & set(back.obs)
    assert back.obs["is_ood"].tolist() == [False, False, True]
    assert json.loads(back.uns["tcgn"]["failed"]) == patches.failed


def test_large_overviews_are_shrunk_and_the_factors_with_them(prediction):
    pytest.importorskip("anndata")
    thumbnail = np.full((1000, 2500, 3), 200, np.uint8)
    large = on(prediction, thumbnail=thumbnail, mask=None, thumbnail_downsample=2.56)
    library = large.to_anndata().uns["spatial"]["slide 1"]
    assert library["images"]["hires"].shape == (800, 2000, 3)
    assert library["images"]["lowres"].shape == (240, 600, 3)
    assert library["scalefactors"]["tissue_hires_scalef"] == pytest.approx(2000 / 6400)
    assert library["scalefactors"]["tissue_lowres_scalef"] == pytest.approx(600 / 6400)


def test_work_on_the_anndata_leaves_the_prediction(prediction):
    pytest.importorskip("anndata")
    before = prediction.X.copy()
    adata = prediction.to_anndata()
    adata.X[:] = 0
    adata.obsm["spatial"][:] = 0
    np.testing.assert_array_equal(prediction.X, before)
    assert prediction.obsm["spatial"].all()


def test_scanpy_draws_it(prediction):
    pytest.importorskip("matplotlib").use("Agg")
    sc = pytest.importorskip("scanpy")
    axes = sc.pl.spatial(prediction.to_anndata(), color="GNAS", show=False)
    spots = axes[0].collections[0]
    assert len(spots.get_array()) == len(prediction)
    assert axes[0].images


def test_squidpy_draws_it(prediction):
    pytest.importorskip("matplotlib").use("Agg")
    sq = pytest.importorskip("squidpy")
    axes = sq.pl.spatial_scatter(prediction.to_anndata(), color="GNAS", return_ax=True)
    assert axes.images
    assert axes.get_title() == "GNAS"


def test_squidpy_finds_the_neighbours_of_tiles(tmp_path):
    anndata = pytest.importorskip("anndata")
    sq = pytest.importorskip("squidpy")
    make(stride_um=PATCH_UM / 2).write(tmp_path / "slide.h5ad")
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    sq.gr.spatial_neighbors(back, coord_type="grid", n_neighs=4)
    place = {(row, col): i for i, (row, col) in enumerate(back.obs[["array_row", "array_col"]].to_numpy().tolist())}
    joined = back.obsp["spatial_connectivities"].tolil().rows
    inner = 0
    for (row, col), i in place.items():
        beside = [place.get(at) for at in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1))]
        there = sorted(at for at in beside if at is not None)
        assert joined[i] == there
        inner += len(there) == 4
    assert inner > len(back) / 2


def test_scanpy_ranks_genes_of_tiles_by_logarithms_of_ten(prediction):
    pytest.importorskip("anndata")
    sc = pytest.importorskip("scanpy")
    adata = prediction.to_anndata()
    half = adata.obsm["spatial"][:, 0] > np.median(adata.obsm["spatial"][:, 0])
    adata.obs["half"] = np.where(half, "right", "left")
    adata.obs["half"] = adata.obs["half"].astype("category")
    sc.tl.rank_genes_groups(adata, "half", groups=["right"], reference="left", method="t-test")
    ranked = sc.get.rank_genes_groups_df(adata, "right").set_index("names")
    assert ranked.index[0] == "GNAS"
    right, left = (10 ** prediction.X[part].mean(axis=0, dtype=float) - 1 for part in (half, ~half))
    np.testing.assert_allclose(ranked.loc[GENES, "logfoldchanges"], np.log2(right / left), rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------- GeoJSON and tables


def test_geojson(prediction):
    document = json.loads("".join(to_geojson(prediction)))
    assert document["type"] == "FeatureCollection"
    assert document["tcgn"]["units"] == UNITS
    assert len(document["features"]) == len(prediction)
    for i, feature in enumerate(document["features"]):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        corners = np.array(ring[:4])
        assert len({tuple(corner) for corner in ring}) == 4
        np.testing.assert_allclose(corners.mean(axis=0), prediction.obsm["spatial"][i])
        np.testing.assert_allclose(np.ptp(corners, axis=0), PATCH_UM / MPP)
        properties = feature["properties"]
        assert (properties["objectType"], properties["name"]) == ("tile", prediction.names[i])
        assert list(properties["measurements"]) == GENES[:3]
        np.testing.assert_allclose(list(properties["measurements"].values()), prediction.X[i, :3], atol=5e-5)
    with pytest.raises(OutputError, match="places tiles on a slide"):
        list(to_geojson(make_patches()))


def _measured(result: Result) -> tuple[list[str], dict]:
    document = json.loads("".join(to_geojson(result)))
    measured = {tuple(feature["properties"]["measurements"]) for feature in document["features"]}
    (names,) = measured
    return [name for name in names if name not in ("ood", "predicted_depth", *QUALITY)], document["tcgn"]


def test_geojson_has_the_significant_genes_or_those_asked_for(prediction):
    genes, told = _measured(prediction)
    assert genes == GENES[:3]
    assert told["genes_left_out"] == 1
    assert told["significant"] == dict.fromkeys(GENES[:3], True)
    assert told["gene_ids"] == {gene: IDS[gene] for gene in GENES[:3]}
    asked = replace(prediction, uns={**prediction.uns, "asked": True})
    sure = make(sure=True)
    unlike = some(sure, sure.obs["ood"] > 0.8)
    assert unlike.withheld()
    none = changed(prediction, held_out={**HELD_OUT, "significant": []})
    for result, because in (
        (asked, "asked for"),
        (make(held_out=None), "not known"),
        (unlike, "withheld"),
        (none, "none is significant"),
    ):
        genes, told = _measured(result)
        assert (genes, told["genes_left_out"]) == (GENES, 0), because
    genes, told = _measured(prediction.select(["ACTB", "GNAS"]))
    assert (genes, told["genes_left_out"]) == (["ACTB", "GNAS"], 0)
    assert told["significant"] == {"ACTB": False, "GNAS": True}


def _ids(result: Result) -> list[str]:
    return [feature["id"] for feature in json.loads("".join(to_geojson(result)))["features"]]


def test_tiles_of_geojson_are_the_same_in_every_run(prediction):
    ids = _ids(prediction)
    assert len(set(ids)) == len(prediction)
    assert [str(UUID(tile)) for tile in ids] == ids
    assert {UUID(tile).version for tile in ids} == {5}
    # known from the names alone, so also in a run of other tiles or genes, or another process
    assert _ids(some(prediction, [3, 0])) == [ids[3], ids[0]]
    assert _ids(make(held_out=None)) == ids
    assert ids[0] == str(uuid5(uuid5(NAMESPACE_URL, "tcgn_hub"), f"slide 1.svs/0/{prediction.names[0]}"))
    assert not set(ids) & {*_ids(make(name="slide 2.svs")), *_ids(make(series=1))}


@pytest.mark.parametrize("sure", [False, True])
@pytest.mark.parametrize("kind", [make, make_patches])
def test_csv_and_parquet_hold_the_same(kind, sure, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    result = kind(held_out=SURE if sure else HELD_OUT, sure=sure, described=sure)
    before = list(describe(result))
    assert before[:6] == ["name", "x", "y", "array_row", "array_col", "mpp"]
    assert before[6:12] == ["scale_source", "patch_um", "trained_um", "patch_px", "ood", "predicted_depth"]
    assert before[12:] == QUALITY
    rows = lines(to_csv(result))
    assert rows[0] == [*before, *GENES, *(f"{gene}.tta_std" for gene in GENES if sure)]
    result.write(tmp_path / "table.parquet")
    result.write(tmp_path / "table.csv")
    assert lines([(tmp_path / "table.csv").read_text(encoding="utf-8")]) == rows
    table = parquet.read_table(tmp_path / "table.parquet")
    assert table.column_names == rows[0]
    unknown = [name for name in before if table[name].null_count]
    assert unknown == [
        *["array_row", "array_col"] * (kind is make_patches),
        *["ood", "predicted_depth"] * (not sure),
        *(name for name in QUALITY if not sure or (name == "tissue_share" and kind is make_patches)),
    ]
    assert [str(table.schema.field(name).type) for name in before[1:5]] == ["double", "double", "int64", "int64"]
    assert [row[0] for row in rows[1:]] == table["name"].to_pylist() == result.names
    for column, name in enumerate(rows[0][1:], 1):
        stored = table[name].to_pylist()
        if name == "scale_source":
            assert [row[column] for row in rows[1:]] == stored
        else:
            written = [float(row[column]) if row[column] else None for row in rows[1:]]
            assert written == (stored if name in unknown else pytest.approx(stored, rel=1e-5))
    np.testing.assert_array_equal(np.stack([table[gene].to_numpy() for gene in GENES], axis=1), result.X)
    assert {str(table.schema.field(gene).type) for gene in GENES} == {"float"}
    metadata = json.loads(table.schema.metadata[b"tcgn"])
    assert metadata["weights"] == "tcgn_base.test"
    assert metadata["failed"] == result.failed
    assert metadata["interval_radius"] == (RADIUS if sure else None)
    beside = json.loads((tmp_path / "table.csv.json").read_text(encoding="utf-8"))
    assert beside["runs"] == [result.metadata()]
    assert beside["interval_radius"] == metadata["interval_radius"]
    assert beside["significant"] == {gene: gene != "ACTB" for gene in GENES}
    assert beside["gene_ids"] == metadata["gene_ids"] == IDS


def test_what_is_known_of_sureness_is_in_the_geojson():
    sure = make(held_out=SURE, sure=True)
    document = json.loads("".join(to_geojson(sure)))
    assert document["tcgn"]["interval_radius"] == {gene: RADIUS[gene] for gene in GENES[:3]}
    measured = [feature["properties"]["measurements"] for feature in document["features"]]
    for key in ("ood", *QUALITY):
        np.testing.assert_allclose([m[key] for m in measured], sure.obs[key], atol=5e-5)
    np.testing.assert_allclose([m["GNAS"] for m in measured], sure.X[:, 0], atol=5e-5)


@pytest.mark.parametrize("sure", [False, True])
@pytest.mark.parametrize("kind", [make, make_patches])
def test_json_holds_everything(kind, sure):
    result = kind(held_out=SURE if sure else None, sure=sure)
    document = json.loads("".join(to_json(result)))
    assert document.pop("predictions")
    assert document == {**result.metadata(), "gene_ids": IDS}
    rows = json.loads("".join(to_json(result)))["predictions"]
    ends = result.interval()
    for i, row in enumerate(rows):
        assert row["name"] == result.names[i]
        assert list(row) == [*describe(result), "significance_withheld", "genes"]
        unlike = sure and result.obs["ood"][i] > 1
        assert (row["significance_withheld"] or "").endswith("trained on") == unlike
        assert row.get("ood") == (pytest.approx(float(result.obs["ood"][i])) if sure else None)
        for j, gene in enumerate(row["genes"]):
            assert gene["gene"] == GENES[j]
            assert gene["value"] == pytest.approx(float(result.X[i, j]))
            assert gene["tta_std"] == (pytest.approx(float(result.layers["tta_std"][i, j])) if sure else None)
            assert gene["significant"] == ((GENES[j] != "ACTB") if sure and not unlike else None)
            assert gene["z"] is gene["held_out_pcc_given_depth"] is None
            assert gene["held_out_pcc"] == (SURE["pcc"][j] if sure else None)
            known = sure and RADIUS[GENES[j]] is not None
            assert gene["interval_low"] == (pytest.approx(float(ends[0][i, j])) if known else None)
            assert gene["interval_high"] == (pytest.approx(float(ends[1][i, j])) if known else None)


def test_the_table_of_patches_can_be_read():
    patches = make_patches(held_out=SURE, sure=True)
    text = to_table(patches.top(2))
    blocks = text.split("patches/")[1:]
    assert len(blocks) == 3
    for i, block in enumerate(blocks):
        shown = [line.split()[0] for line in block.splitlines()[1:] if line.split() and line.split()[0] in GENES]
        # one rule in every format: the highest means over the patches, not those of each
        assert shown == [GENES[j] for j in np.argsort(-patches.X.mean(axis=0, dtype=np.float64))[:2]], i
    assert "0.6875 um/px by --mpp, weights tcgn_base.test" in text
    assert text.count("out of distribution (distance from the training tissue 1.2") == 1
    assert "80% interval" in text
    assert "80% of the measurements" in text
    assert text.rstrip().splitlines()[-4].startswith("values in log10")
    assert text.rstrip().splitlines()[-1] == "significant: better than chance on held-out tissue"
    assert text.count("withheld") == 2 + text.count("which genes are significant is withheld") == 3
    bare = to_table(make_patches(held_out=None))
    assert "unknown" in bare
    assert "no intervals" in bare
    assert "tta_std" not in bare


def test_the_table_of_a_slide_can_be_read(prediction):
    text = to_table(prediction.top(2))
    means = prediction.X.mean(axis=0, dtype=np.float64)
    shown = [line.split()[0] for line in text.splitlines() if line.split() and line.split()[0] in GENES]
    assert shown == [GENES[j] for j in np.argsort(-means)[:2]]
    assert text.startswith(f"{prediction.slide.path}: {len(prediction)} tiles of 128 um, 0.5 um/px by openslide.mpp-x")


def test_the_suffix_says_the_format(prediction, tmp_path):
    prediction.write(tmp_path / "OUT.CSV")
    assert lines([(tmp_path / "OUT.CSV").read_text(encoding="utf-8")])[0][0] == "name"
    prediction.write(tmp_path / "out.data", format="json")
    assert json.loads((tmp_path / "out.data").read_text(encoding="utf-8"))["tiles"] == len(prediction)
    with pytest.raises(
        OutputError, match=r"out\.docx is of no format.*\.csv, \.geojson, \.h5ad, \.json, \.parquet, \.txt"
    ):
        prediction.write(tmp_path / "out.docx")


def test_large_tables_are_written_in_parts(tmp_path):
    small = make()
    many = some(small, np.arange(5_000) % len(small))
    tracemalloc.start()
    try:
        for suffix in (".csv", ".json", ".geojson"):
            many.write(tmp_path / f"many{suffix}")
            assert tracemalloc.get_traced_memory()[1] < 5e6, suffix
    finally:
        tracemalloc.stop()
    assert len(lines([(tmp_path / "many.csv").read_text()])) == 5_001


def test_summary(prediction):
    gnas, fasn, _, actb = prediction.summary()
    assert (gnas.gene, gnas.significant, gnas.pcc) == ("GNAS", "yes", 0.42)
    assert gnas.max == 1
    assert gnas.mean == pytest.approx(prediction.X[:, 0].mean(), rel=1e-5)
    assert (fasn.mean, fasn.sd, fasn.min, fasn.max) == (0.5, 0, 0.5, 0.5)
    assert actb.significant == "no"


# ----------------------------------------------------------------------------------------------------------- figures


def test_a_map_shows_the_values(prediction):
    pytest.importorskip("matplotlib")
    image = pixels(draw_gene(prediction, "GNAS"))
    assert max(image.shape[:2]) <= 1200
    # viridis goes from purple to yellow, and GNAS from left to right
    row = image[image.shape[0] // 2]
    low, high = row[round(0.15 * len(row))], row[round(0.8 * len(row))]
    assert low[2] > low[1]
    assert high[0] > high[2] + 60
    assert high[1] > high[2] + 60
    with pytest.raises(PanelError, match="NOGENE is not among"):
        draw_gene(prediction, "NOGENE")


def test_colours_mean_the_same_on_every_slide():
    """A map that hardly differs looks flat where it is known how much maps differ, and what lies beyond is clipped."""
    pytest.importorskip("matplotlib")
    slide, other = make(described=True), make()
    flat = 1 + 0.01 * slide.X

    def colours(result) -> float:
        image = pixels(draw_gene(replace(result, X=flat), "GNAS"))[100:-120]
        return float(image[image.std(axis=2) > 20].std(axis=0).max())

    assert 2 * colours(slide) < colours(other)
    canvas = _SlideFigure(slide.slide, "", "", side=700)
    canvas.add_tiles(slide.obsm["spatial"], slide.X[:, 0], "", (0.2, 0.4))
    assert canvas._axes.collections[0].get_clim() == (0.2, 0.4)
    count = ((slide.X[:, 0] < 0.2) | (slide.X[:, 0] > 0.4)).sum()
    assert any(text.get_text().endswith(f"; {count} tiles beyond") for text in canvas.figure.texts)


def test_the_mask_is_drawn(prediction):
    pytest.importorskip("matplotlib")
    drawn = (pixels(draw_mask(prediction)) == (0, 0x57, 0xB8)).all(axis=2)
    assert drawn.any()
    for mask in (None, np.zeros_like(prediction.slide.mask)):
        without = pixels(draw_mask(on(prediction, mask=mask)))
        assert not (without == (0, 0x57, 0xB8)).all(axis=2).any()
    everywhere = pixels(draw_mask(on(prediction, mask=np.ones_like(prediction.slide.mask))))
    assert (everywhere == (0, 0x57, 0xB8)).all(axis=2).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 40, "width": 800},
        {"height": 800, "width": 40},
        {"name": "a $x$ _name^.svs"},
        {"stride_um": 64.0},
        {"units": "counts"},
    ],
    ids=["wide", "tall", "dollars", "overlapping", "other units"],
)
@pytest.mark.parametrize("side", [400, 1200])
def test_slides_of_any_shape(changes, side):
    pytest.importorskip("matplotlib")
    odd = make(**changes)
    for prediction in (odd, some(odd, [0]), replace(odd, X=np.zeros_like(odd.X))):
        for png in (draw_gene(prediction, "GNAS", side=side), draw_mask(prediction, side=side)):
            assert pixels(png).std() > 1


def test_the_scale_bar_is_as_long_as_it_says(prediction):
    pytest.importorskip("matplotlib")
    image = pixels(draw_mask(prediction))
    # 6400 px of 0.5 um over 1160 px or less; the bar is at the lower left, 200 px at most
    black = (image[-56, :] == 0).all(axis=1)
    px_per_um = (image.shape[1] - 40) / (6400 * MPP)
    assert black.sum() / px_per_um == pytest.approx(500, rel=0.03)


# ------------------------------------------------------------------------------------------------------------ report


def test_report(tmp_path):
    pytest.importorskip("matplotlib")
    hostile = make(name="<b>.svs", scale_source="<i>", failed={"<u>": "5 > 4 & 3"})
    write_report(tmp_path / "report.html", hostile)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?i)https?://|<script |<link|src=\"(?!data:image/jpeg;base64,)|url\(", page)
    assert not re.search(r"<[biu]>", page)
    assert "&lt;b&gt;.svs" in page
    assert "5 &gt; 4 &amp; 3" in page
    assert "not for diagnosis" in page
    assert re.findall(r'alt="Map of (.*?)"', page) == ["HLA-DRA", "GNAS", "FASN", "ACTB"]
    assert re.findall(r'class="dull"><img alt="(.*?)"', page) == ["Map of ACTB"]
    assert page.count('<tr class="dull">') == 1
    for data in re.findall(r"base64,([^\"]+)", page):
        Image.open(io.BytesIO(base64.b64decode(data))).load()
    for gene in GENES:
        assert f"<td>{gene}</td>" in page
    for fact in (UNITS.replace("'", "&#39;"), "0" * 64, "0.5 µm/px", "128 µm", "6400 x 4800 px"):
        assert fact in page


def test_a_report_maps_the_quality_and_says_by_what_tiles_are_poor(tmp_path):
    pytest.importorskip("matplotlib")
    sure = make(sure=True)
    half = len(sure) // 2
    write_report(tmp_path / "report.html", replace(sure, uns={**sure.uns, "left_out": {"0/0": "quality 0.10 (pen)"}}))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('alt="Quality of the tiles"') == 1
    poor = f"{half + 1} of {len(sure)} tiles ({half} by focus, 1 by pen)"
    assert f"poor: {poor}; 1 tile left out" in page
    assert f"<td>{poor}</td>" in page
    assert f"poor quality: {poor}" in to_table(sure)
    assert "poor quality: 0.00 of 1, by its pen" in to_table(make_patches(sure=True))
    assert sure.metadata()["poor"] == {"focus": half, "pen": 1}


def test_the_genes_of_a_report(prediction, tmp_path):
    pytest.importorskip("matplotlib")

    def mapped(prediction, **options):
        write_report(tmp_path / "report.html", prediction, **options)
        return re.findall(r'alt="Map of (.*?)"', (tmp_path / "report.html").read_text(encoding="utf-8"))

    assert mapped(prediction, top=1) == ["HLA-DRA"]
    assert mapped(prediction, genes=["ACTB", "GNAS"]) == ["ACTB", "GNAS"]
    given = {**HELD_OUT, "pcc_given_depth": [0.1, 0.3, None, 0.4]}
    assert mapped(changed(prediction, held_out=given)) == ["FASN", "GNAS", "HLA-DRA", "ACTB"]
    unknown = make(held_out=None)
    assert mapped(unknown)[-1] == "FASN"
    assert "was not measured" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(PanelError, match="NOGENE"):
        mapped(prediction, genes=["NOGENE"])


def test_maps_that_are_one_picture_are_drawn_once(prediction, tmp_path):
    pytest.importorskip("matplotlib")
    values = prediction.X.copy()
    values[:, 2], values[:, 3] = 3 - values[:, 0], 2 * values[:, 0] + 1
    write_report(tmp_path / "report.html", replace(prediction, X=values))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'alt="Map of (.*?)"', page) == ["HLA-DRA", "FASN"]
    assert "<figcaption>the inverse: GNAS, ACTB</figcaption>" in page
    assert "2 different maps of 4 genes" in page
    assert mapped_genes(replace(prediction, X=values)) == ["HLA-DRA", "FASN"]
    shown = dict(re.findall(r"<tr[^>]*><td>([^<]*)</td>.*?<td>([^<]*)</td></tr>", page, re.DOTALL))
    assert shown == {"HLA-DRA": "HLA-DRA", "GNAS": "inverse of HLA-DRA", "FASN": "FASN", "ACTB": "inverse of HLA-DRA"}
    # of three tiles any two maps may agree
    assert len(mapped_genes(some(replace(prediction, X=values), [0, 1, 2]))) == 4


def test_a_report_says_first_how_little_is_told_apart(tmp_path):
    pytest.importorskip("matplotlib")
    known = {"effective_rank": 1.2, "median_pcc": 0.3, "median_one_factor": 0.25, "median_pcc_given_depth": 0.1}
    slide = make(held_out={**SURE, **known, "sections": {"C6": {"patient": "C"}}}, described=True)
    write_report(tmp_path / "report.html", slide)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<li>tcgn_base.test tells about 1 gene apart (effective rank 1.2 of 4;" in page
    sd = np.median(slide.X[:, [0, 1, 3]].std(axis=0))
    differ = f"0 of 3 genes the tiles differ by more than the interval: median sd {sd:.2f}, half-width 0.50<"
    assert differ in page
    assert "<li>significant: better than chance on patient C</li>" in page
    maps = re.findall(r'alt="Map of (.*?)"', page)
    assert maps[:3] == ["predicted depth", "axis 1", "axis 2"]
    assert maps[3:] == ["HLA-DRA", "GNAS", "FASN", "ACTB"]
    foreign = replace(slide, obs={**slide.obs, "ood": np.full(len(slide), 2.0)})
    write_report(tmp_path / "report.html", foreign)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    reason = f"{len(slide)} of {len(slide)} tiles are unlike the tissue that the weights were trained on"
    assert f"<li>significance is withheld: {reason}</li>" in page
    assert page.count("<td>withheld</td>") == 4
    assert 'class="dull"' not in page


def test_a_report_of_genes_given_depth(tmp_path):
    pytest.importorskip("matplotlib")
    slide = make(held_out={**SURE, "depth_pcc": 0.634, "effective_rank": 2.0}, described=True)
    # a map of nothing but depth is no map given depth
    slope, above = slide.var["depth_slope"], slide.depth - slide.info.predicted_in_training.depth.mean
    values = slide.X.copy()
    values[:, [0, 2]] = above[:, None] * slope[[0, 2]] + np.array([slide.X[:, 1], slide.X[:, 3]]).T
    slide = replace(slide, X=values)
    pages = {}
    for layer in ("value", "given_depth"):
        write_report(tmp_path / "report.html", slide, layer=layer)
        pages[layer] = (tmp_path / "report.html").read_text(encoding="utf-8")
    says = "The maps show each gene given depth: its value without what, over the training tissue"
    assert [says in page for page in pages.values()] == [False, True]
    # maps that are one picture are named together as they are drawn
    drawn = {layer: re.findall(r'alt="Map of ([A-Z].*?)(?:, given depth)?"', page) for layer, page in pages.items()}
    assert [page.count(', given depth"') for page in pages.values()] == [0, len(drawn["given_depth"])]
    assert drawn == {layer: mapped_genes(slide, layer=layer) for layer in pages}
    assert len(drawn["value"]) != len(drawn["given_depth"])
    first = [re.search(r'alt="Map of HLA-DRA.*?" src="(.*?)"', page)[1] for page in pages.values()]
    assert first[0] != first[1]
    assert "predicted depth has a PCC of 0.63" in pages["value"]
    np.testing.assert_allclose(layer_values(slide, "given_depth")[:, 0], slide.X[:, 1], atol=1e-5)
    with pytest.raises(OutputError, match=r"tcgn_base\.test predicts no depth"):
        write_report(tmp_path / "none.html", make(), layer="given_depth")
    assert not (tmp_path / "none.html").exists()


def test_what_was_measured_is_shown_beside_what_is_predicted(prediction, tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    counts = rng.poisson(20, (len(prediction), 4)).astype(np.float32)
    counts[:, 0] += np.round(60 * prediction.X[:, 0])
    order = rng.permutation(len(prediction))[5:]
    section = Section(
        name="S",
        patient="P",
        image=None,
        spots=[prediction.names[i] for i in order],
        xy=prediction.obsm["spatial"][order],
        genes=["GNAS", "OTHER", "HLA-DRA", "ACTB"],
        counts=counts[order],
    )
    result = beside(prediction, section)
    measured, depth = result.layers["measured"], result.obs["measured_depth"]
    known = np.isin(np.arange(len(prediction)), order)
    total = counts[:, [0, 2, 3]].sum(axis=1)
    np.testing.assert_allclose(depth[known], np.log10(1 + total[known]), rtol=1e-5)
    np.testing.assert_allclose(measured[known, 0], np.log10(1 + 1e4 * counts[:, 0] / total)[known], rtol=1e-5)
    assert np.isnan(measured[~known]).all()
    assert np.isnan(depth[~known]).all()
    assert np.isnan(measured[:, 1]).all()
    write_report(tmp_path / "report.html", result)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'alt="(Measured .*?)"', page)
    assert shown == [
        f"Measured {of}{gene}" for gene in ("HLA-DRA", "GNAS", "ACTB") for of in ("", "against predicted ")
    ]
    assert "nothing was measured" not in page
    write_report(tmp_path / "report.html", prediction)
    assert "nothing was measured" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_of_a_large_panel_is_small(tmp_path):
    pytest.importorskip("matplotlib")
    slide = make(stride_um=64.0)
    rng = np.random.default_rng(0)
    noise = rng.normal(215, 15, (*slide.slide.thumbnail.shape[:2], 3)).clip(0, 255).astype(np.uint8)
    genes = tuple(load_panel("her2st_785"))
    along = slide.X[:, [0, 2]] @ rng.normal(size=(2, len(genes)))
    values = (along + rng.normal(scale=0.1, size=along.shape)).astype(np.float32)
    info = WeightsInfo("many", genes, UNITS, typical=describe_predictions(values, values[:, 0]).to_json())
    many = replace(
        on(slide, thumbnail=noise),
        X=values,
        var=gene_table(info, range(len(genes))),
        obsm={"spatial": slide.obsm["spatial"], "modules": info.predicted_in_training.modules(values)},
    )
    many.uns["weights"] = info
    assert len(many) > 800
    write_report(tmp_path / "report.html", many)
    assert (tmp_path / "report.html").stat().st_size < 5e6


# -------------------------------------------------------------------------------------------------------------- bulk


def test_bulk_is_the_mean_of_counts_and_not_of_their_logarithms(prediction):
    bulk = prediction.bulk()
    assert bulk.dtype == np.float32
    assert bulk[1] == pytest.approx(0.5, rel=1e-6)
    linear = 10 ** prediction.X.astype(float) - 1
    np.testing.assert_allclose(bulk, np.log10(1 + linear.mean(axis=0)), rtol=1e-6)
    order = np.random.default_rng(1).permutation(len(prediction))
    np.testing.assert_allclose(some(prediction, order).bulk(), bulk, rtol=1e-6)
    np.testing.assert_allclose(some(prediction, [3]).bulk(), prediction.X[3], rtol=1e-6)
    with pytest.raises(OutputError, match=r"are in not stated\."):
        make(units="not stated").bulk()


def test_a_table_of_slides(prediction, tmp_path):
    table, one = BulkTable(tmp_path / "bulk.csv"), some(prediction, [0])
    with pytest.raises(OutputError, match="there are none"):
        table.write()
    table.add(bulk_row(prediction))
    table.add(bulk_row(one))
    with pytest.raises(OutputError, match="the same genes"):
        table.add(bulk_row(one.select(GENES[:2])))
    table.write()
    rows = lines([(tmp_path / "bulk.csv").read_text(encoding="utf-8")])
    assert rows[0] == ["slide", "tiles", *GENES]
    assert rows[1][:2] == [str(prediction.slide.path), str(len(prediction))]
    np.testing.assert_allclose(np.array(rows[2][2:], float), one.X[0], rtol=1e-5)
    beside = json.loads((tmp_path / "bulk.csv.json").read_text(encoding="utf-8"))
    assert [run["tiles"] for run in beside["runs"]] == [len(prediction), 1]
    assert "interval_radius" not in beside


# ------------------------------------------------------------------------------------------ what may stand in the way


WRITERS = {
    "h5ad": lambda path, result: result.write(path, format="h5ad"),
    "parquet": lambda path, result: result.write(path, format="parquet"),
    "geojson": lambda path, result: result.write(path, format="geojson"),
    "json": lambda path, result: result.write(path, format="json"),
    "png": lambda path, result: write_bytes(path, draw_gene(result, "GNAS")),
    "html": write_report,
}


@pytest.mark.parametrize(
    ("module", "kind", "extra"),
    [("anndata", "h5ad", "h5ad"), ("pyarrow", "parquet", "parquet"), ("matplotlib.figure", "png", "plot")],
)
def test_a_missing_extra_is_named(prediction, tmp_path, monkeypatch, module, kind, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraError, match=rf"install \w+: pip install 'tcgn_hub\[{extra}\]'\.$"):
        WRITERS[kind](tmp_path / "out", prediction)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_is_not_there(prediction, tmp_path, kind):
    with pytest.raises(OutputError, match=r"out.* cannot be written \(No such file or directory\)\.$"):
        WRITERS[kind](tmp_path / "absent" / "out", prediction)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_was_there_survives_a_full_disk(prediction, tmp_path, monkeypatch, kind):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "out").write_text("before")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match=r"cannot be written \(No space left on device\)\.$"):
        WRITERS[kind](tmp_path / "out", prediction)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("out", "before")]


@pytest.mark.skipif(os.name == "nt", reason="no limit on the size of files")
@pytest.mark.parametrize("kind", ["h5ad", "parquet", "geojson"])
def test_a_disk_that_fills_while_writing(tmp_path, kind):
    code = (
        "import resource, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_writing import WRITERS, make\n"
        "from tcgn_hub.errors import OutputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        f"    WRITERS[{kind!r}](sys.argv[1], make())\n"
        "except OutputError as err:\n"
        "    print(err)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*out cannot be written \(.+\)\.\n", done.stdout), done.stdout
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a\nb #1.svs", "q \"x, y'.svs", "препарат.svs", "bad\udcff.svs"])
def test_any_name_of_a_file_can_be_written(name, tmp_path):
    anndata = pytest.importorskip("anndata")
    slide, patches = make(name=name), make_patches()
    shown = name.replace("\udcff", "\\udcff")
    patches.obs["name"][0] = printable(name)
    for suffix in ("csv", "json", "geojson", "h5ad"):
        slide.write(tmp_path / f"slide.{suffix}")
    assert json.loads((tmp_path / "slide.csv.json").read_text())["runs"][0]["slide"] == shown
    assert json.loads((tmp_path / "slide.geojson").read_text())["tcgn"]["slide"] == shown
    assert list(anndata.read_h5ad(tmp_path / "slide.h5ad").uns["spatial"]) == [shown.removesuffix(".svs")]
    for suffix in ("csv", "json", "h5ad", "parquet"):
        patches.write(tmp_path / f"patches.{suffix}")
    with open(tmp_path / "patches.csv", encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["name", *patches.names]
    assert json.loads((tmp_path / "patches.json").read_text())["predictions"][0]["name"] == shown
    assert anndata.read_h5ad(tmp_path / "patches.h5ad").obs_names[0] == shown
    bulk = BulkTable(tmp_path / "bulk.csv")
    bulk.add(bulk_row(slide))
    bulk.write()
    with open(tmp_path / "bulk.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1][0].endswith(shown)
    write_report(tmp_path / "report.html", slide, genes=[])
    assert escape(shown).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )


def test_maps_of_overlapping_tiles_are_of_squares_that_touch():
    """Each pixel of the map shows one tile: what is drawn later covers nothing of what was drawn before."""
    for stride, side in ((64.0, 64.0), (128.0, 128.0), (300.0, 128.0)):
        slide = make(stride_um=stride)
        canvas = _SlideFigure(slide.slide, "", "", side=300)
        canvas.add_tiles(slide.obsm["spatial"], slide.X[:, 0], "")
        corners = canvas._axes.collections[0].get_paths()[0].vertices
        assert np.ptp(corners, axis=0).tolist() == [side / MPP, side / MPP]
