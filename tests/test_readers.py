"""Readers of sections, every format as its makers write it."""

import gzip
import json
import shutil
import tracemalloc
import warnings

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse
from sections import (
    PANEL,
    picture,
    visium_array,
    write_10x,
    write_bulk,
    write_h5ad,
    write_patches,
    write_section,
    write_visium,
)

from tcgn_hub.data.readers import read_sections
from tcgn_hub.data.readers.bulk import read_bulk
from tcgn_hub.data.readers.genes import SUMMED, are_ensembl, tidy
from tcgn_hub.data.readers.h5ad import read_h5ad, read_hest
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.data.readers.patches import read_patches
from tcgn_hub.data.readers.visium import read_visium
from tcgn_hub.data.sections import Section, expression_targets, panel_counts
from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.scale import Scale
from tcgn_hub.prediction.slides import _choose

ENSEMBL = [f"ENSG{i:011d}" for i in range(len(PANEL))]


def refuses(source, match, **options):
    with pytest.raises(SectionError, match=match) as caught:
        read_sections(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def dense(section):
    return panel_counts(section, section.genes)


# her2st


@pytest.fixture
def her2st(tmp_path):
    write_section(tmp_path, "A1", zero=2, unmatched=1)
    write_section(tmp_path, "B1", seed=1)
    return tmp_path


def test_her2st_layout(her2st):
    a, b = read_her2st(her2st)
    assert (a.name, a.patient, b.name, b.patient) == ("A1", "A", "B1", "B")
    assert (a.study, b.study) == ("her2st", "her2st")
    assert len(a.spots) == len(a.xy) == len(a.counts) == 12
    assert a.left_out == {"spots without counts or position": 1}
    assert b.left_out == {}
    assert a.genes == [*PANEL, "OTHER"]
    assert a.xy[0] % 1 == pytest.approx([0.2, 0.7])
    # the fixture's spots have no neighbours to tell the scale by
    assert a.mpp is None
    assert [s.name for s in read_her2st(her2st, ["B1"])] == ["B1"]


def test_her2st_folder_above_data(her2st, tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("ST-cnts", "ST-imgs", "ST-spotfiles"):
        shutil.move(her2st / name, clone / "data" / name)
    assert [s.name for s in read_sections(clone)] == ["A1", "B1"]


def test_her2st_scale_follows_from_the_spots(tmp_path):
    write_section(tmp_path, "A1", spots=16)
    lines = ["x\ty\tpixel_x\tpixel_y"]
    lines += [f"{i}\t{i + 1}\t{50 * i}\t{50 * (i + 1)}" for i in range(16)]
    # the lower neighbours, which have no counts; one of them is far off its place
    lines += [f"{i}\t{i + 2}\t{50 * i}\t{50 * (i + 2) + (400 if i == 3 else 0)}" for i in range(16)]
    (tmp_path / "ST-spotfiles/A1_selection.tsv").write_text("\n".join(lines))
    (section,) = read_her2st(tmp_path)
    assert section.mpp == pytest.approx(200 / 50)
    assert section.left_out == {"spots without counts or position": 16}


@pytest.mark.parametrize("missing", ["ST-cnts/A1.tsv.gz", "ST-spotfiles/A1_selection.tsv", "ST-imgs/A/A1/HE.jpg"])
def test_her2st_missing_files_are_named(her2st, missing):
    (her2st / missing).unlink()
    with pytest.raises(SectionError, match="A1"):
        read_her2st(her2st, ["A1"])


def test_her2st_malformed_files_are_named(her2st, tmp_path):
    counts = her2st / "ST-cnts/A1.tsv.gz"
    whole = counts.read_bytes()
    for content in (b"no gzip", whole[: len(whole) // 2], whole[:20] + b"\0" * 60 + whole[80:], gzip.compress(b"")):
        counts.write_bytes(content)
        refuses(her2st, r"A1\.tsv\.gz", names=["A1"])
    for text, why in (
        ("\tG0\tG1\n1x1\t1\n", "Row 1x1"),
        ("\tG0\n1x1\tmany\n", "not a number"),
        ("\tG0\n1x1\t1\n1x1\t2\n", "more than one row of 1x1"),
        ("\tG0\n99x99\t1\n", "names a spot of"),
    ):
        counts.write_bytes(gzip.compress(text.encode()))
        refuses(her2st, why, names=["A1"])
    spots = her2st / "ST-spotfiles/B1_selection.tsv"
    for text, why in (("x\ty\n1\t2\n", "without x, y, pixel_x"), ("x\ty\npixels\t2\n", "pixels"), ("", "no rows")):
        spots.write_text(text)
        assert "B1_selection" in refuses(her2st, why, names=["B1"])
    shutil.rmtree(her2st / "ST-cnts")
    (her2st / "ST-cnts").mkdir()
    refuses(her2st, r"no \.tsv\.gz")
    with pytest.raises(SectionError, match="ST-cnts"):
        read_her2st(tmp_path / "ST-imgs")


# Space Ranger


@pytest.mark.parametrize(
    ("positions", "counts"), [("v1", "mtx"), ("v2", "h5"), ("parquet", "mtx.gz"), ("v2", "mtx.gz")]
)
def test_visium(tmp_path, positions, counts):
    outs = tmp_path / "run7" / "outs"
    matrix = write_visium(outs, positions=positions, counts=counts, lone=2)
    names, _, xy = visium_array()
    for path in (outs, outs.parent):
        (section,) = read_sections(path)
        assert (section.name, section.patient, section.image.name) == ("run7", "run7", "image.tif")
        assert section.genes == PANEL
        assert np.array_equal(dense(section), matrix)
        assert section.counts.dtype == np.float32
        assert sparse.issparse(section.counts)
        assert section.spots == names[:-3]
        assert section.xy == pytest.approx(xy[:-3], abs=0.01)
        assert section.left_out == {"spots without counts or position": 2}
        assert section.mpp == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("form", ["h5", "mtx.gz"])
def test_scanpy_reads_the_same_visium(tmp_path, form):
    import scanpy as sc

    write_visium(tmp_path / "outs", counts=form, genes=[*PANEL[:-1], PANEL[0]], extra=2)
    section = read_visium(tmp_path / "outs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "h5":
            other = sc.read_10x_h5(tmp_path / "outs" / "filtered_feature_bc_matrix.h5")
        else:
            other = sc.read_10x_mtx(tmp_path / "outs" / "filtered_feature_bc_matrix", make_unique=False)
    assert list(other.obs_names) == section.spots
    assert list(other.var_names[:-1]) == section.genes
    theirs = other.X.toarray()
    assert np.array_equal(theirs[:, 1:-1], dense(section)[:, 1:])
    assert np.array_equal(theirs[:, 0] + theirs[:, -1], dense(section)[:, 0])
    assert section.left_out == {"features that are no genes": 2, SUMMED: 1}


def test_squidpy_reads_the_same_visium(tmp_path):
    sq = pytest.importorskip("squidpy")
    write_visium(tmp_path / "outs", positions="v1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = sq.read.visium(tmp_path / "outs", library_id="x")
    section = read_visium(tmp_path / "outs")
    assert np.array_equal(other.X.toarray(), dense(section))
    assert other.obsm["spatial"] == pytest.approx(section.xy)


def test_visium_finds_its_image_or_says_how(tmp_path):
    outs = tmp_path / "run" / "outs"
    write_visium(outs, image=False)
    refuses(outs, "no full-resolution image.*sample sheet")
    picture(tmp_path / "run" / "slide.png")
    assert read_visium(outs).image.name == "slide.png"
    picture(tmp_path / "run" / "other.png")
    refuses(outs, "2 images.*sample sheet")
    picture(outs / "fullres.png")
    picture(outs / "thing.png")
    assert read_visium(outs).image.name == "fullres.png"
    # beside a folder of another name lie the images of others
    shutil.move(outs, tmp_path / "sample")
    (tmp_path / "sample/fullres.png").unlink()
    (tmp_path / "sample/thing.png").unlink()
    picture(tmp_path / "stranger.png")
    refuses(tmp_path / "sample", "no full-resolution image")


def test_visium_scale(tmp_path):
    write_visium(tmp_path / "outs")
    assert read_visium(tmp_path / "outs", mpp=0.9).mpp == 0.9
    assert read_visium(tmp_path / "outs", mpp=0.3, force_scale=True).mpp == 0.3
    (tmp_path / "outs/spatial/scalefactors_json.json").write_text('{"microns_per_pixel": 0.97}')
    assert read_visium(tmp_path / "outs").mpp == 0.97
    (tmp_path / "outs/spatial/scalefactors_json.json").unlink()
    assert read_visium(tmp_path / "outs").mpp == pytest.approx(1.0, rel=0.01)
    (tmp_path / "outs/spatial/scalefactors_json.json").write_text("{")
    refuses(tmp_path / "outs", "scalefactors_json")


def test_visium_malformed_files_are_named(tmp_path):
    def fresh(**options):
        shutil.rmtree(tmp_path / "outs", ignore_errors=True)
        write_visium(tmp_path / "outs", **options)
        return tmp_path / "outs"

    outs = fresh()
    (outs / "spatial/tissue_positions.csv").unlink()
    refuses(outs, "no file of positions")
    (outs / "spatial/tissue_positions.csv").write_text("barcode,in_tissue\nA,1\n")
    refuses(outs, "tissue_positions.csv is not a file of spots")
    outs = fresh()
    h5 = outs / "filtered_feature_bc_matrix.h5"
    with h5py.File(h5, "a") as file:
        file["matrix/indices"][0] = 10**6
    refuses(outs, "bc_matrix.h5 is no matrix")
    h5.write_bytes(h5.read_bytes()[:500])
    refuses(outs, "bc_matrix.h5 is no matrix")
    h5.unlink()
    refuses(outs, "neither")
    write_10x(outs, "h5", np.ones((2, 3)), ["X-1", "Y-1"], PANEL[:3])
    refuses(outs, "No row of .*X-1, names a spot of .*same section")
    for name in ("barcodes.tsv.gz", "features.tsv.gz", "matrix.mtx.gz"):
        outs = fresh(counts="mtx.gz")
        path = outs / "filtered_feature_bc_matrix" / name
        path.write_bytes(path.read_bytes()[:-12])
        refuses(outs, name)
        path.unlink()
        refuses(outs, f"has no {name}")
    outs = fresh(counts="mtx")
    folder = outs / "filtered_feature_bc_matrix"
    features = (folder / "features.tsv").read_text()
    (folder / "features.tsv").write_text(features.replace("\t", " "))
    refuses(outs, "without the symbol")
    (folder / "features.tsv").write_text(features + features)
    refuses(outs, "names 24 genes")
    outs = fresh()
    (outs / "image.tif").write_bytes(b"no image")
    (outs / "spatial/tissue_positions.csv").write_text(
        "".join((outs / "spatial/tissue_positions.csv").read_text().splitlines(keepends=True)[:4])
    )
    # too few spots to tell the scale by, so that the image is asked
    refuses(outs, "image of section")


# h5ad


def test_h5ad(tmp_path):
    data = write_h5ad(tmp_path / "s.h5ad", obs={"patient": "P7"})
    (section,) = read_sections(tmp_path / "s.h5ad")
    assert (section.name, section.patient, section.image.name, section.mpp) == ("s", "P7", "s.png", None)
    assert (section.spots, section.genes) == (list(data.obs_names), PANEL)
    assert np.array_equal(dense(section), data.X.toarray())
    assert type(section.counts) is sparse.csr_matrix  # and no view that keeps the file's content
    assert np.array_equal(section.xy, data.obsm["spatial"])
    assert section.left_out == {}


def test_h5ad_of_normalised_x_with_counts_in_a_layer(tmp_path):
    raw = np.random.default_rng(5).poisson(2, (20, len(PANEL))).astype(np.float64)
    data = write_h5ad(tmp_path / "s.h5ad", counts=np.log1p(raw), layers={"counts": sparse.csc_matrix(raw)})
    assert np.array_equal(dense(read_h5ad(tmp_path / "s.h5ad")), raw)
    del data.layers["counts"]
    data.write_h5ad(tmp_path / "s.h5ad")
    assert "s.h5ad" in refuses(tmp_path / "s.h5ad", "normalised or logged")


def test_h5ad_patient_scale_image_and_tissue(tmp_path):
    path = tmp_path / "s.h5ad"
    write_h5ad(path, obs={"donor": "D", "in_tissue": [0] * 3 + [1] * 17}, uns={"tcgn": {"mpp": 0.8}})
    section = read_h5ad(path)
    assert (section.patient, section.mpp, len(section.spots)) == ("D", 0.8, 17)
    assert section.left_out == {"spots not in tissue": 3}
    there = picture(tmp_path / "elsewhere" / "big.png")
    library = {"metadata": {"source_image_path": str(there), "chemistry_description": "Spatial 3' v1"}}
    write_h5ad(path, image=False, uns={"patient": "U", "spatial": {"lib": library}})
    section = read_h5ad(path)
    assert (section.patient, section.image) == ("U", there)
    assert section.mpp == pytest.approx(1.0, rel=0.01)
    # places in another array say nothing of the scale
    write_h5ad(path, image=False, uns={"spatial": {"lib": {"metadata": {"source_image_path": str(there)}}}})
    section = read_h5ad(path)
    assert (section.patient, section.mpp) == ("s", None)
    there.unlink()
    assert read_h5ad(path).image == tmp_path / "s.png"


def test_h5ad_ensembl_ids_take_symbols_where_there_are_some(tmp_path):
    path = tmp_path / "s.h5ad"
    versions = [f"{gene}.{i}" for i, gene in enumerate(ENSEMBL)]
    write_h5ad(path, var=pd.DataFrame(index=versions))
    assert read_h5ad(path).genes == ENSEMBL
    for column in ("gene_name", "gene_symbols", "feature_name", "symbol"):
        write_h5ad(path, var=pd.DataFrame({column: pd.Categorical([*PANEL[:-1], None])}, index=versions))
        assert read_h5ad(path).genes == [*PANEL[:-1], ENSEMBL[-1]]
    # names that are symbols stay
    write_h5ad(path, var=pd.DataFrame({"gene_name": PANEL[::-1]}, index=PANEL))
    assert read_h5ad(path).genes == PANEL


def test_h5ad_malformed_files_are_named(tmp_path):
    path = tmp_path / "s.h5ad"
    data = write_h5ad(path, image=False)
    refuses(path, "no images beside it.*sample sheet")
    picture(tmp_path / "s2.png")
    refuses(path, "no images beside it.*sample sheet")
    picture(tmp_path / "s.png")
    two = {"spatial": {"a": {"metadata": {}}, "b": {"metadata": {}}}}
    for change, why in (
        ({"obs": {"patient": ["P1"] * 10 + ["P2"] * 10}}, "2 patients"),
        ({"uns": two}, "2 sections"),
        ({"xy": np.zeros((20, 1))}, r"shape \(20, 1\)"),
    ):
        write_h5ad(path, **change)
        assert str(path) in refuses(path, why)
    del data.obsm["spatial"]
    data.write_h5ad(path)
    refuses(path, "no obsm")
    data.obsm["spatial"] = np.zeros((20, 2))
    data.X = None
    data.write_h5ad(path)
    refuses(path, "neither layers")
    path.write_bytes(b"no HDF5")
    refuses(path, "no .h5ad file")


@pytest.fixture
def hest(tmp_path):
    for name in ("INT1", "INT2", "NCBI3"):
        write_h5ad(tmp_path / "st" / f"{name}.h5ad", image=False)
        picture(tmp_path / "wsis" / f"{name}.tif")
    (tmp_path / "metadata").mkdir()
    facts = {"id": "INT1", "patient": "Patient 4", "pixel_size_um_estimated": 0.96, "pixel_size_um_embedded": 9}
    (tmp_path / "metadata/INT1.json").write_text(json.dumps(facts))
    (tmp_path / "metadata/INT2.json").write_text('{"patient": NaN, "pixel_size_um_estimated": null}')
    (tmp_path / "HEST_v1_1_0.csv").write_text(
        "dataset_title,id,patient,pixel_size_um_estimated\nSome study,NCBI3,P3,1.05\nOther,INT1,no,9\n"
    )
    return tmp_path


def test_hest(hest):
    sections = read_sections(hest)
    assert [(s.name, s.patient, s.mpp) for s in sections] == [
        ("INT1", "Patient 4", 0.96),
        ("INT2", "INT2", None),
        ("NCBI3", "P3", 1.05),
    ]
    assert [s.image.name for s in sections] == ["INT1.tif", "INT2.tif", "NCBI3.tif"]
    assert [s.study for s in sections] == ["hest", "hest", "Some study"]
    assert [s.name for s in read_hest(hest, ["NCBI3"])] == ["NCBI3"]


def test_hest_malformed_files_are_named(hest):
    (hest / "HEST_v1_1_0.csv").write_text("id,patient,pixel_size_um_estimated\nNCBI3,P3,fine\n")
    refuses(hest, "HEST_v1_1_0.csv has 'fine'", names=["NCBI3"])
    (hest / "metadata/INT1.json").write_text('{"pixel_size_um_estimated": "fine"}')
    refuses(hest, "INT1.json", names=["INT1"])
    (hest / "HEST_v1_1_0.csv").unlink()
    assert read_sections(hest, names=["NCBI3"])[0].patient == "NCBI3"
    (hest / "wsis/NCBI3.tif").unlink()
    refuses(hest, "NCBI3.tif", names=["NCBI3"])
    shutil.rmtree(hest / "st")
    (hest / "st").mkdir()
    refuses(hest, r"no \.h5ad")


# patches


@pytest.mark.parametrize("header", ["patch,section,patient,mpp", "patch,section,patient,x"])
def test_patches(tmp_path, header):
    write_patches(tmp_path, header=header)
    one, two = read_sections(tmp_path / "patches.csv", expression=tmp_path / "expression.csv")
    assert (one.name, one.patient, one.image, two.name, two.patient) == ("S1", "P1", None, "S2", "P2")
    assert one.spots == ["p0", "p2", "p4"]
    assert one.patches == [tmp_path / f"p{i}.png" for i in (0, 2, 4)]
    table = pd.read_csv(tmp_path / "expression.csv", index_col=0)
    assert np.array_equal(two.counts, table.loc[["p1", "p3", "p5"]])
    assert one.mpp == (0.5 if header.endswith("mpp") else None)
    assert np.isnan(one.xy[:, 1]).all()
    assert (one.xy[:, 0] == 0.5).all() == header.endswith("x")


def test_patches_are_named_by_spot_file_or_stem(tmp_path):
    write_patches(tmp_path)
    table = pd.read_csv(tmp_path / "expression.csv", index_col=0)
    whole = read_patches(tmp_path / "patches.csv", tmp_path / "expression.csv")
    table.rename(index=lambda name: f"{name}.png").to_csv(tmp_path / "files.tsv.gz", sep="\t")
    files = read_patches(tmp_path / "patches.csv", tmp_path / "files.tsv.gz")
    assert np.array_equal(files[0].counts, whole[0].counts)
    rows = pd.read_csv(tmp_path / "patches.csv")
    rows.assign(spot=[f"p{5 - i}" for i in range(6)]).to_csv(tmp_path / "dihedral.csv")
    dihedral = read_patches(tmp_path / "dihedral.csv", tmp_path / "expression.csv")
    assert np.array_equal(dihedral[0].counts, whole[1].counts[::-1])
    # R leaves out the name of the first column
    text = (tmp_path / "expression.csv").read_text()
    (tmp_path / "r.csv").write_text(text.removeprefix(","))
    assert read_patches(tmp_path / "patches.csv", tmp_path / "r.csv")[0].genes == PANEL
    table.iloc[1:].to_csv(tmp_path / "fewer.csv")
    fewer = read_patches(tmp_path / "patches.csv", tmp_path / "fewer.csv")
    assert fewer[0].left_out == {"patches without counts": 1}


def test_patches_malformed_files_are_named(tmp_path):
    write_patches(tmp_path)
    table, expression = tmp_path / "patches.csv", tmp_path / "expression.csv"
    refuses(table, "give the expression")
    frame = pd.read_csv(expression, index_col=0)
    frame.T.to_csv(tmp_path / "dihedral.csv")
    refuses(table, "transposed", expression=tmp_path / "dihedral.csv")
    frame.rename(index=lambda name: f"other{name}").to_csv(tmp_path / "other.csv")
    assert "transposed" not in refuses(table, "names a patch", expression=tmp_path / "other.csv")
    frame.iloc[[0]].to_csv(tmp_path / "first.csv")
    refuses(table, "Section S2 .* no patch", expression=tmp_path / "first.csv")
    rows = pd.read_csv(table)
    for change, why in (
        ({"spot": ["p0"] * 6}, r"p0.png and p1.png the spot p0"),
        ({"mpp": [0.5, 0.5, 0.6, 0.5, 0.5, 0.5]}, "S1 2 scales"),
        ({"patient": ["P1", "P1", "P2", "P1", "P1", "P1"]}, "S1 2 patients"),
        ({"patient": ["P1", None, "P2", "P1", "P1", "P1"]}, "without patch, section or patient"),
        ({"mpp": ["fine"] * 6}, "'fine'"),
    ):
        rows.assign(**change).to_csv(tmp_path / "bad.csv", index=False)
        assert "bad.csv" in refuses(tmp_path / "bad.csv", why, expression=expression)
    (tmp_path / "p3.png").unlink()
    refuses(table, "p3.png, which does not exist", expression=expression)
    write_section(tmp_path / "her2st", "A1")
    refuses(tmp_path / "her2st", "no table of patches", expression=expression)


# bulk


def test_bulk(tmp_path):
    write_bulk(tmp_path)
    sections = read_sections(tmp_path / "bulk.csv", mpp=0.7, tiles_um=70)
    assert [(s.name, s.patient, s.bulk, s.mpp) for s in sections] == [
        ("slide0", "P0", True, 0.7),
        ("slide1", "P1", True, 0.7),
    ]
    assert sections[1].counts.shape == (1, len(PANEL))
    assert sections[1].counts[0, 0] == pytest.approx(1.1)
    # tiles of 100 px on a square of 700 px
    assert 36 <= len(sections[0].spots) <= 64
    assert ((sections[0].xy > 200) & (sections[0].xy < 900)).all()
    assert np.ptp(np.unique(sections[0].xy[:, 0])[:2]) == pytest.approx(100)
    assert expression_targets(sections[0], PANEL).shape == (1, len(PANEL))


def test_bulk_tiles_are_those_of_a_prediction(tmp_path):
    write_bulk(tmp_path, slides=1)
    (section,) = read_bulk(tmp_path / "bulk.csv", mpp=0.7, patch_um=70)
    with open_slide(tmp_path / "slide0.png") as slide:
        tiles, _, _ = _choose(slide, Scale(0.7, "--mpp"), 70, 70, None, None, 0.5, False, *slide.overview(2000))
    assert tiles.names == section.spots
    assert np.array_equal(tiles.xy, section.xy)


def test_bulk_malformed_tables_are_named(tmp_path):
    write_bulk(tmp_path, slides=1)
    table = tmp_path / "bulk.csv"
    refuses(table, "states no micrometres")
    refuses(table, "smaller than a tile", mpp=0.7, tiles_um=900)
    whole = pd.read_csv(table)
    for change, why in (
        ({"G0": -1}, "G0 in slide0.png is negative"),
        ({"G0": np.inf}, "not a finite"),
        ({gene: np.log1p(whole[gene]) for gene in PANEL}, "looks logged"),
        ({"patient": ""}, "names no patient"),
        ({"slide": "absent.png"}, "absent.png does not exist"),
    ):
        whole.assign(**change).to_csv(tmp_path / "bad.csv", index=False)
        refuses(tmp_path / "bad.csv", why, mpp=0.7)
    pd.concat([whole, whole.assign(slide="sub/slide0.png")]).to_csv(tmp_path / "bad.csv", index=False)
    refuses(tmp_path / "bad.csv", "more than one slide named slide0", mpp=0.7)
    Image.new("RGB", (1200, 1200), (245, 245, 245)).save(tmp_path / "slide0.png")
    refuses(table, "shows no tissue", mpp=0.7)


# genes and counts


def test_counts_that_are_no_raw_counts_are_refused(tmp_path):
    good = np.random.default_rng(0).poisson(3, (20, len(PANEL))).astype(float)
    for value, why in ((np.nan, "not a finite"), (np.inf, "not a finite"), (-1, "negative")):
        bad = good.copy()
        bad[4, 3] = value
        write_h5ad(tmp_path / "s.h5ad", counts=bad)
        assert f"G3 in {visium_array()[0][4]}" in refuses(tmp_path / "s.h5ad", why)
    write_h5ad(tmp_path / "s.h5ad", counts=good / good.sum(1, keepdims=True) * 1e4)
    refuses(tmp_path / "s.h5ad", "normalised or logged")
    # one spot of a hundred entries may be mended by hand
    good[0, 0] += 0.5
    assert tidy(good, PANEL, rows=[""] * 20, source=tmp_path)[1][0, 0] == good[0, 0]


def test_gene_names(tmp_path):
    counts = np.arange(8).reshape(2, 4)
    genes, summed, left_out = tidy(counts, ["A", "B", "A", "A"], rows=["s", "t"], source=tmp_path)
    assert (genes, summed.tolist(), left_out) == (["A", "B"], [[5, 1], [17, 5]], {SUMMED: 1})
    ids = ["ENSG00000000001.2", "ENSG00000000001.3", "ENSMUSG00000000002", "TP53.1"]
    genes, _, left_out = tidy(sparse.csr_matrix(counts), ids, rows=["s", "t"], source=tmp_path)
    assert (genes, left_out) == (["ENSG00000000001", "ENSMUSG00000000002", "TP53.1"], {SUMMED: 1})
    assert are_ensembl(ids)
    assert not are_ensembl([])


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix])
def test_sparse_counts_stay_sparse_and_are_checked_as_others_are(tmp_path, form):
    counts = np.random.default_rng(0).poisson(0.5, (20, len(PANEL))).astype(np.float64)
    names = [*PANEL[:-2], "G0", "G3"]
    rows = [f"s{i}" for i in range(20)]
    genes, want, left_out = tidy(counts, names, rows=rows, source=tmp_path)
    genes_too, got, left_out_too = tidy(form(counts), names, rows=rows, source=tmp_path)
    assert (genes_too, left_out_too) == (genes, left_out)
    assert got.format == "csr"
    assert got.dtype == np.float32
    assert np.array_equal(got.toarray(), want)
    for bad in (np.nan, np.inf, -1):
        counts[3, 5] = bad
        messages = set()
        for matrix in (counts, form(counts)):
            with pytest.raises(SectionError, match="count of G5 in s3 is") as caught:
                tidy(matrix, PANEL, rows=rows, source=tmp_path)
            messages.add(str(caught.value))
        assert len(messages) == 1


def test_the_memory_of_sparse_counts_does_not_grow_with_spots_times_genes(tmp_path):
    matrix = sparse.random_array((3000, 20_000), density=0.005, format="csr", rng=0, dtype=np.float32)
    matrix.data = np.ceil(matrix.data * 5)
    genes = [f"G{i}" for i in range(20_000)]
    genes[7] = "G3"
    spots = [f"s{i}" for i in range(3000)]
    tracemalloc.start()
    names, counts, _ = tidy(matrix, genes, rows=spots, source=tmp_path)
    section = Section("A1", "A", None, spots, np.zeros((3000, 2)), names, counts)
    part = section.at(np.arange(2000))
    targets = expression_targets(part, ["G3", "G5", "NONE"])
    part.seen()
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # as an array it had 240 MB
    assert used < 30e6
    want = matrix[:2000, [3, 5]].toarray()
    want[:, 0] += matrix[:2000, [7]].toarray()[:, 0]
    assert np.array_equal(panel_counts(part, ["G3", "G5"]), want)
    assert targets.shape == (2000, 3)


# sheets and sources


@pytest.fixture
def sheet(tmp_path):
    write_section(tmp_path / "her2st", "A1")
    write_section(tmp_path / "her2st", "B1")
    write_visium(tmp_path / "v" / "outs", image=False)
    write_h5ad(tmp_path / "h.h5ad", image=False, obs={"patient": ["P1"] * 10 + ["P2"] * 10})
    picture(tmp_path / "images" / "big.png")
    (tmp_path / "sheet.csv").write_text(
        "section,patient,data,image,mpp\none,P1,v,images/big.png,\ntwo,P1,h.h5ad,images/big.png,1.2\nA1,P2,her2st,,\n"
    )
    return tmp_path / "sheet.csv"


def test_sheet(sheet):
    sections = read_sections(sheet)
    assert [(s.name, s.patient, s.image.name, s.mpp and round(s.mpp, 2)) for s in sections] == [
        ("one", "P1", "big.png", 1.0),
        ("two", "P1", "big.png", 1.2),
        ("A1", "P2", "HE.jpg", None),
    ]
    assert [s.mpp for s in read_sections(sheet, mpp=0.9)] == [0.9] * 3
    assert [s.study for s in sections] == ["own", "own", "her2st"]
    assert [s.study for s in read_sections(sheet, study="mine")] == ["mine"] * 3
    rows = [line.split(",") for line in sheet.read_text().split()]
    sheet.write_text("\n".join(",".join([*row, "study" if i == 0 else "s" * (i > 1)]) for i, row in enumerate(rows)))
    assert [s.study for s in read_sections(sheet)] == ["own", "s", "s"]


def test_sheets_that_cannot_be_right_are_refused(sheet):
    for line, why in (
        ("one,P1,v", "sample sheet"),
        ("one,P1,v,absent.png", "absent.png, which does not exist"),
        ("one,,v,images/big.png", "without section, patient or data"),
        ("one,P1,absent", "absent does not exist"),
        ("one,P1,images", "nothing that sections can be read from"),
        ("one,P1,her2st", "no section one; there are A1, B1"),
        ("one,P1,sheet.csv", "a table; give a folder"),
        ("A1,P1,her2st,,fine", "'fine'"),
        ("A1,P1,her2st,,50", "bad.csv, column mpp: 50 um/px cannot be"),
        ("A1,P1,her2st\nA1,P2,her2st", "A1 more than once"),
        ("", "no rows"),
    ):
        (sheet.parent / "bad.csv").write_text(f"section,patient,data,image,mpp\n{line}\n")
        refuses(sheet.parent / "bad.csv", why)


def test_several_sources_and_names(sheet, tmp_path):
    refuses([tmp_path / "her2st", sheet], "Two sections are named A1")
    (tmp_path / "less.csv").write_text("section,patient,data,image\ntwo,P1,h.h5ad,images/big.png\n")
    sections = read_sections([tmp_path / "her2st", tmp_path / "less.csv"], names=["two", "B1"])
    assert [s.name for s in sections] == ["two", "B1"]
    refuses(tmp_path / "her2st", "no section Z9 in .* there are A1, B1", names=["Z9"])
    # what is not asked for is not read
    (tmp_path / "her2st/ST-cnts/A1.tsv.gz").write_bytes(b"broken")
    assert [s.name for s in read_sections(str(tmp_path / "her2st"), names=["B1"], mpp=0.5)] == ["B1"]


def test_what_is_no_source_is_refused(tmp_path):
    refuses(tmp_path / "absent", "does not exist; give a folder")
    refuses(tmp_path, "nothing that sections")
    for name, text in (("a.csv", "a,b\n1,2\n"), ("b.csv", ""), ("c.xlsx", "x")):
        (tmp_path / name).write_text(text)
        refuses(tmp_path / name, f"{name} is nothing")
    (tmp_path / "d.csv").write_bytes(b"\xff\xfe\x00")
    refuses(tmp_path / "d.csv", "cannot be read as a table")
    with pytest.raises(ImageError, match="cannot be the scale"):
        read_sections(tmp_path, mpp=50)
