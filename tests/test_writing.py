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
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from results import DOWNSAMPLE, GENES, HELD_OUT, MPP, PATCH_UM, make, make_patches, some
from tcgn_hub.errors import ExtraError, OutputError, PanelError
from tcgn_hub.files import write_bytes
from tcgn_hub.units import UNITS
from tcgn_hub.writing.bulk import BulkTable
from tcgn_hub.writing.figures import draw_gene, draw_mask
from tcgn_hub.writing.report import mapped_genes, write_report
from tcgn_hub.writing.tables import to_csv, to_json, to_table

SURE = {**HELD_OUT, "interval_radius": [0.5, 0.25, None, 1.0], "interval_level": 0.8}
RADIUS = {"GNAS": 0.5, "FASN": 0.25, "HLA-DRA": None, "ACTB": 1.0}


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def prediction() -> SlidePrediction:
    return make()


# ---------------------------------------------------------------------------------------------------------- AnnData


def test_h5ad_comes_back_as_it_was(prediction, tmp_path):
    anndata = pytest.importorskip("anndata")
    write_h5ad(tmp_path / "slide.h5ad", prediction)
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    assert back.X.dtype == np.float32
    np.testing.assert_array_equal(back.X, prediction.values)
    assert list(back.var_names) == GENES
    assert list(back.obs_names) == prediction.tiles
    assert back.var["significant"].tolist() == ["yes", "yes", "yes", "no"]
    assert back.var["held_out_pcc"].tolist() == [0.42, 0.31, 0.55, 0.01]
    np.testing.assert_array_equal(back.obsm["spatial"], prediction.xy)
    np.testing.assert_array_equal(back.obsm["X_tcgn"], prediction.features)
    assert set(back.obs["in_tissue"]) == {1}
    assert back.obs["array_col"].tolist() == prediction.array_col.tolist()
    library = back.uns["spatial"]["slide 1"]
    assert library["scalefactors"]["spot_diameter_fullres"] == FIELD_UM / MPP
    np.testing.assert_array_equal(library["images"]["hires"], prediction.thumbnail)
    assert library["scalefactors"]["tissue_hires_scalef"] == 1 / DOWNSAMPLE
    facts = back.uns["tcgn"]
    assert (facts["mpp"], facts["units"], facts["sha256"]) == (MPP, UNITS, "0" * 64)
    assert json.loads(facts["failed"]) == prediction.failed
    np.testing.assert_array_equal(facts["mask"].astype(bool), prediction.mask)
    assert facts["mask_downsample"] == DOWNSAMPLE
    assert [p.name for p in tmp_path.iterdir()] == ["slide.h5ad"]


def test_h5ad_of_what_is_not_known(prediction, tmp_path):
    anndata = pytest.importorskip("anndata")
    bare = replace(
        some(prediction, [0, 0]),
        model=replace(prediction.model, pcc=None, significant=None),
        mask=None,
        features=None,
        stride_um=None,
        failed={},
    )
    write_h5ad(tmp_path / "slide.h5ad", bare)
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    assert set(back.var["significant"]) == {"unknown"}
    assert back.var["held_out_pcc"].isna().all()
    assert list(back.obs_names) == [bare.tiles[0], f"{bare.tiles[0]}-1"]
    assert np.isnan(back.uns["tcgn"]["stride_um"])
    assert "mask" not in back.uns["tcgn"]
    assert "X_tcgn" not in back.obsm


def test_large_overviews_are_shrunk_and_the_factors_with_them(prediction):
    pytest.importorskip("anndata")
    thumbnail = np.full((1000, 2500, 3), 200, np.uint8)
    large = replace(prediction, thumbnail=thumbnail, mask=None, thumbnail_downsample=2.56)
    library = to_anndata(large).uns["spatial"]["slide 1"]
    assert library["images"]["hires"].shape == (800, 2000, 3)
    assert library["images"]["lowres"].shape == (240, 600, 3)
    assert library["scalefactors"]["tissue_hires_scalef"] == pytest.approx(2000 / 6400)
    assert library["scalefactors"]["tissue_lowres_scalef"] == pytest.approx(600 / 6400)


def test_work_on_the_anndata_leaves_the_prediction(prediction):
    pytest.importorskip("anndata")
    before = prediction.values.copy()
    adata = to_anndata(prediction)
    adata.X[:] = 0
    adata.obsm["spatial"][:] = 0
    np.testing.assert_array_equal(prediction.values, before)
    assert prediction.xy.all()


def test_scanpy_draws_it(prediction):
    pytest.importorskip("matplotlib").use("Agg")
    sc = pytest.importorskip("scanpy")
    axes = sc.pl.spatial(to_anndata(prediction), color="GNAS", show=False)
    spots = axes[0].collections[0]
    assert len(spots.get_array()) == len(prediction.tiles)
    assert axes[0].images


def test_squidpy_draws_it(prediction):
    pytest.importorskip("matplotlib").use("Agg")
    sq = pytest.importorskip("squidpy")
    axes = sq.pl.spatial_scatter(to_anndata(prediction), color="GNAS", return_ax=True)
    assert axes.images
    assert axes.get_title() == "GNAS"


# ------------------------------------------------------------------------------------------------- GeoJSON and tables


def test_geojson(prediction):
    document = json.loads(to_geojson(prediction))
    assert document["type"] == "FeatureCollection"
    assert document["tcgn"]["units"] == UNITS
    assert len(document["features"]) == len(prediction.tiles)
    for i, feature in enumerate(document["features"]):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        corners = np.array(ring[:4])
        assert len({tuple(corner) for corner in ring}) == 4
        np.testing.assert_allclose(corners.mean(axis=0), prediction.xy[i])
        np.testing.assert_allclose(np.ptp(corners, axis=0), FIELD_UM / MPP)
        properties = feature["properties"]
        assert (properties["objectType"], properties["name"]) == ("tile", prediction.tiles[i])
        assert list(properties["measurements"]) == GENES
        np.testing.assert_allclose(list(properties["measurements"].values()), prediction.values[i], atol=5e-5)


def test_csv_and_parquet_hold_the_same(prediction, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = list(csv.reader(io.StringIO(to_csv(prediction))))
    assert rows[0] == ["tile", "x", "y", "array_row", "array_col", *GENES]
    write_parquet(tmp_path / "slide.parquet", prediction)
    table = parquet.read_table(tmp_path / "slide.parquet")
    assert table.column_names == rows[0]
    assert [row[0] for row in rows[1:]] == table["tile"].to_pylist() == prediction.tiles
    read = np.array([row[1:] for row in rows[1:]], float)
    stored = np.stack([table[name].to_numpy() for name in rows[0][1:]], axis=1)
    np.testing.assert_allclose(read, stored, rtol=1e-5)
    np.testing.assert_array_equal(stored[:, :2], prediction.xy)
    np.testing.assert_array_equal(stored[:, 4:].astype(np.float32), prediction.values)
    assert {str(table.schema.field(gene).type) for gene in GENES} == {"float"}
    facts = json.loads(table.schema.metadata[b"tcgn"])
    assert (facts["weights"], facts["scale_source"]) == ("tcgn_base.test", "openslide.mpp-x")
    assert facts["failed"] == prediction.failed


def test_what_is_known_of_sureness_goes_with_every_table(prediction, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    widths = {"GNAS": 0.5, "FASN": 0.25, "HLA-DRA": float("nan"), "ACTB": 1.0}
    distance = np.linspace(0.1, 1.4, len(prediction.tiles)).astype(np.float32)
    sure = replace(prediction, model=replace(prediction.model, interval_radius=widths), distance=distance)
    written = {"GNAS": 0.5, "FASN": 0.25, "HLA-DRA": None, "ACTB": 1.0}

    rows = list(csv.reader(io.StringIO(to_csv(sure))))
    assert rows[0][5:] == ["tissue_distance", *GENES]
    np.testing.assert_allclose([float(row[5]) for row in rows[1:]], distance, rtol=1e-5)
    np.testing.assert_allclose(np.array([row[6:] for row in rows[1:]], float), prediction.values, rtol=1e-5)
    assert json.loads(facts_json(sure))["interval_radius"] == written
    assert json.loads(facts_json(prediction))["interval_radius"] is None

    write_parquet(tmp_path / "slide.parquet", sure)
    table = parquet.read_table(tmp_path / "slide.parquet")
    assert table.column_names == rows[0]
    np.testing.assert_array_equal(table["tissue_distance"].to_numpy(), distance)
    assert json.loads(table.schema.metadata[b"tcgn"])["interval_radius"] == written

    document = json.loads(to_geojson(sure))
    assert document["tcgn"]["interval_radius"] == written
    measured = [feature["properties"]["measurements"] for feature in document["features"]]
    np.testing.assert_allclose([m["tissue_distance"] for m in measured], distance, atol=5e-5)
    np.testing.assert_allclose([m["GNAS"] for m in measured], prediction.values[:, 0], atol=5e-5)


def test_summary(prediction):
    gnas, fasn, _, actb = summarise(prediction)
    assert (gnas.gene, gnas.significant, gnas.pcc) == ("GNAS", "yes", 0.42)
    assert gnas.max == 1
    assert gnas.mean == pytest.approx(prediction.values[:, 0].mean(), rel=1e-5)
    assert (fasn.mean, fasn.sd, fasn.min, fasn.max) == (0.5, 0, 0.5, 0.5)
    assert actb.significant == "no"


# ----------------------------------------------------------------------------------------------------------- figures


def test_a_map_shows_the_values(prediction, tmp_path):
    pytest.importorskip("matplotlib")
    gene_map(prediction, "GNAS", tmp_path / "map.png")
    image = pixels((tmp_path / "map.png").read_bytes())
    assert max(image.shape[:2]) <= 1200
    # viridis goes from purple to yellow, and GNAS from left to right
    row = image[image.shape[0] // 2]
    low, high = row[round(0.15 * len(row))], row[round(0.8 * len(row))]
    assert low[2] > low[1]
    assert high[0] > high[2] + 60
    assert high[1] > high[2] + 60
    with pytest.raises(PanelError, match="NOGENE is not among"):
        draw_gene(prediction, "NOGENE")


def test_the_mask_is_drawn(prediction, tmp_path):
    pytest.importorskip("matplotlib")
    mask_figure(prediction, tmp_path / "mask.png")
    drawn = (pixels((tmp_path / "mask.png").read_bytes()) == (0, 0x57, 0xB8)).all(axis=2)
    assert drawn.any()
    for mask in (None, np.zeros_like(prediction.mask)):
        without = pixels(draw_mask(replace(prediction, mask=mask)))
        assert not (without == (0, 0x57, 0xB8)).all(axis=2).any()
    everywhere = pixels(draw_mask(replace(prediction, mask=np.ones_like(prediction.mask))))
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
    for prediction in (odd, some(odd, [0]), replace(odd, values=np.zeros_like(odd.values))):
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
    assert not re.search(r"(?i)https?://|<script|<link|src=\"(?!data:image/png;base64,)|url\(", page)
    assert not re.search(r"<[biu]>", page)
    assert "&lt;b&gt;.svs" in page
    assert "5 &gt; 4 &amp; 3" in page
    assert "not for diagnosis" in page
    assert re.findall(r'alt="Map of (.*?)"', page) == ["HLA-DRA", "GNAS", "FASN"]
    for data in re.findall(r"base64,([^\"]+)", page):
        Image.open(io.BytesIO(base64.b64decode(data))).load()
    for gene in GENES:
        assert f"<td>{gene}</td>" in page
    for fact in (UNITS.replace("'", "&#x27;"), "0" * 64, "0.5 µm/px", "128 µm", "6400 x 4800 px"):
        assert fact in page


def test_the_genes_of_a_report(prediction, tmp_path):
    pytest.importorskip("matplotlib")

    def mapped(prediction, **options):
        write_report(tmp_path / "report.html", prediction, **options)
        return re.findall(r'alt="Map of (.*?)"', (tmp_path / "report.html").read_text(encoding="utf-8"))

    assert mapped(prediction, top=1) == ["HLA-DRA"]
    assert mapped(prediction, genes=["ACTB", "GNAS"]) == ["ACTB", "GNAS"]
    assert mapped(replace(prediction, model=replace(prediction.model, significant=frozenset()))) == []
    unknown = replace(prediction, model=replace(prediction.model, pcc=None, significant=None))
    assert mapped(unknown)[-1] == "FASN"
    assert "was not measured" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(PanelError, match="NOGENE"):
        mapped(prediction, genes=["NOGENE"])


# -------------------------------------------------------------------------------------------------------------- bulk


def test_pseudo_bulk(prediction):
    bulk = pseudo_bulk(prediction)
    assert bulk.dtype == np.float32
    assert bulk[1] == pytest.approx(0.5, rel=1e-6)
    linear = 10 ** prediction.values.astype(float) - 1
    np.testing.assert_allclose(bulk, np.log10(1 + linear.mean(axis=0)), rtol=1e-6)
    order = np.random.default_rng(1).permutation(len(prediction.tiles))
    np.testing.assert_allclose(pseudo_bulk(some(prediction, order)), bulk, rtol=1e-6)
    np.testing.assert_allclose(pseudo_bulk(some(prediction, [3])), prediction.values[3], rtol=1e-6)
    with pytest.raises(OutputError, match=r"are in not stated\."):
        pseudo_bulk(replace(prediction, units="not stated"))


def test_bulk_csv(prediction):
    one = some(prediction, [0])
    rows = list(csv.reader(io.StringIO(bulk_csv([prediction, one]))))
    assert rows[0] == ["slide", "tiles", *GENES]
    assert rows[1][:2] == [str(prediction.slide), str(len(prediction.tiles))]
    np.testing.assert_allclose(np.array(rows[2][2:], float), one.values[0], rtol=1e-5)
    for wrong in ([], [prediction, replace(one, genes=GENES[:2], values=one.values[:, :2])]):
        with pytest.raises(OutputError, match="the same genes"):
            bulk_csv(wrong)


# ------------------------------------------------------------------------------------------ what may stand in the way


WRITERS = {
    "h5ad": write_h5ad,
    "parquet": write_parquet,
    "png": lambda path, prediction: gene_map(prediction, "GNAS", path),
    "html": write_report,
    "txt": lambda path, prediction: write_text(path, to_csv(prediction)),
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
@pytest.mark.parametrize("kind", ["h5ad", "parquet", "txt"])
def test_a_disk_that_fills_while_writing(tmp_path, kind):
    code = (
        "import resource, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_outputs import WRITERS, make\n"
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


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted():
        with writing(tmp_path / "out") as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
