"""Stores of SpatialData: what is written, spatialdata reads; what spatialdata-io makes of an assay, is read."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stores
from results import DOWNSAMPLE, GENES, MPP, PATCH_UM, make, make_patches
from sections import PANEL, visium_array, write_h5ad

import tcgn_hub
import tcgn_hub.writing  # the formats
from tcgn_hub.cli.main import main
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.spatialdata import is_spatialdata
from tcgn_hub.data.spots import read_spots, spots_hash
from tcgn_hub.errors import ImageError, OutputError, SectionError
from tcgn_hub.images.lazy import pyramid
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.tissue import outlines
from tcgn_hub.prediction.cohort.ledger import Ledger, check_outputs

warnings.filterwarnings("ignore", module="spatialdata|zarr|xarray|anndata|dask")


@pytest.fixture(scope="module")
def spatialdata():
    import spatialdata

    return spatialdata


@pytest.fixture
def prediction(tmp_path):
    """A result whose slide is there, of noise, so that each pixel says where it is from."""
    import tifffile

    result = make(sure=True, described=True)
    width, height = result.slide.size
    path = tmp_path / "slides" / result.slide.path.name
    path.parent.mkdir()
    rng = np.random.default_rng(5)
    small = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
    pixels = small.repeat(16, axis=0).repeat(16, axis=1)
    path = path.with_suffix(".tif")
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(256, 256), photometric="rgb", compression="zlib")
    return replace(result, uns={**result.uns, "slide": replace(result.slide, path=path)})


# ---------------------------------------------------------------------------------------------------------------- out


def test_what_is_written_comes_back(tmp_path, spatialdata, prediction):
    prediction.write(tmp_path / "slide.zarr")
    back = spatialdata.read_zarr(tmp_path / "slide.zarr")
    table, expected = back["table"], prediction.to_anndata()
    np.testing.assert_array_equal(table.X, prediction.X)
    assert table.X.dtype == np.float32
    assert list(table.obs_names) == prediction.names
    assert list(table.var_names) == GENES
    assert set(table.layers) == set(expected.layers)
    for key in expected.layers:
        np.testing.assert_array_equal(table.layers[key], expected.layers[key])
    for key in expected.obsm:
        np.testing.assert_array_equal(table.obsm[key], expected.obsm[key])
    assert set(expected.obs) < set(table.obs)
    assert table.uns["tcgn"]["weights"] == "tcgn_base.test"
    assert back.attrs["tcgn"]["slide_path"] == str(prediction.slide.path)
    assert back.attrs["tcgn"]["mpp"] == MPP
    assert json.loads((tmp_path / "slide.zarr/zarr.json").read_text())["attributes"]["tcgn"]["tiles"] == len(prediction)
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


def test_the_table_annotates_the_tiles(tmp_path, spatialdata, prediction):
    prediction.write(tmp_path / "slide.zarr")
    back = spatialdata.read_zarr(tmp_path / "slide.zarr")
    matched = spatialdata.match_table_to_element(back, element_name="tiles", table_name="table")
    assert list(matched.obs_names) == prediction.names
    instances = spatialdata.get_element_instances(back["tiles"])
    assert instances.tolist() == back["table"].obs["tile_id"].tolist()
    centres = back["tiles"].geometry.centroid
    np.testing.assert_allclose(np.stack([centres.x, centres.y], axis=1), prediction.obsm["spatial"])
    np.testing.assert_allclose(back["tiles"].geometry.area, (PATCH_UM / MPP) ** 2)
    um = spatialdata.transform(back["tiles"], to_coordinate_system="microns")
    np.testing.assert_allclose(um.geometry.area, PATCH_UM**2)


@pytest.mark.parametrize("image", ["link", "copy", "lazy"])
def test_a_tile_is_what_the_image_shows_there(tmp_path, spatialdata, prediction, image):
    if image == "lazy":
        data = prediction.to_spatialdata()
    else:
        prediction.write(tmp_path / "slide.zarr", image=image)
        data = spatialdata.read_zarr(tmp_path / "slide.zarr")
    place = data["tiles"].geometry.iloc[7].bounds
    low, high = np.array(place[:2]), np.array(place[2:])
    seen = spatialdata.bounding_box_query(
        data["wsi"], axes=("x", "y"), min_coordinate=low, max_coordinate=high, target_coordinate_system="global"
    )
    pixels = (seen if image == "link" else seen["scale0"]["image"]).values
    x, y = low.astype(int)
    if image == "link":
        small = prediction.slide.thumbnail[y // 16 : y // 16 + 16, x // 16 : x // 16 + 16]
        np.testing.assert_array_equal(pixels.transpose(1, 2, 0), small)
    else:
        with open_slide(prediction.slide.path) as slide:
            np.testing.assert_array_equal(pixels.transpose(1, 2, 0), slide.read(x, y, 256, 256))
    # the same place in micrometres
    again = spatialdata.bounding_box_query(
        data["wsi"],
        axes=("x", "y"),
        min_coordinate=low * MPP,
        max_coordinate=high * MPP,
        target_coordinate_system="microns",
    )
    np.testing.assert_array_equal((again if image == "link" else again["scale0"]["image"]).values, pixels)


def test_every_level_shows_the_whole_slide(tmp_path, prediction):
    levels = pyramid(prediction.slide.path)
    assert [level.shape for level in levels] == [(3, 4800, 6400), (3, 1200, 1600), (3, 300, 400)]
    with open_slide(prediction.slide.path) as slide:
        whole = slide.read(0, 0, 6400, 4800)
    np.testing.assert_array_equal(np.asarray(levels[0]).transpose(1, 2, 0), whole)
    # squares of 16 px of one colour are one pixel of the last
    np.testing.assert_array_equal(np.asarray(levels[-1]).transpose(1, 2, 0), whole[::16, ::16])


def test_levels_of_the_file_are_read_as_they_are(tmp_path):
    import tifffile

    rng = np.random.default_rng(0)
    sizes = [(2051, 3001), (513, 750)]
    stored = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(stored[0], tile=(256, 256), photometric="rgb", subifds=1)
        file.write(stored[1], tile=(256, 256), photometric="rgb", subfiletype=1)
    levels = pyramid(tmp_path / "slide.tif")
    assert len(levels) == 2
    for level, pixels in zip(levels, stored, strict=True):
        got = np.asarray(level).transpose(1, 2, 0)
        assert np.abs(np.subtract(got.shape, pixels.shape)).max() <= 1
        shared = np.minimum(got.shape, pixels.shape)[:2]
        np.testing.assert_array_equal(got[: shared[0], : shared[1]], pixels[: shared[0], : shared[1]])


@pytest.mark.parametrize("level", [0, 1])
def test_any_part_of_a_level_may_be_asked_for(level, slide):
    lazy = pyramid(slide)[level]
    whole = lazy.compute()
    for place in (
        (0, 5, 7),
        (slice(None), 5, slice(3, 1100, 7)),
        ([0, 2], slice(None, None, 2), slice(None, None, 3)),
        (slice(None), slice(900, 100, -5), slice(None)),
        (slice(None), [1, 4, 9], slice(0, 9)),
    ):
        np.testing.assert_array_equal(lazy[place].compute(), whole[place])


def test_of_several_images_the_levels_are_of_the_one_that_was_predicted(tmp_path):
    import tifffile

    path = tmp_path / "two.tif"
    with tifffile.TiffWriter(path) as file:
        for side in (512, 1536):  # the second is what is taken if none is asked for
            file.write(np.full((side, side, 3), side // 16, np.uint8), photometric="rgb", tile=(256, 256))
    for series, side in ((0, 512), (1, 1536)):
        level = pyramid(path, series=series)[0]
        assert level.shape == (3, side, side)
        assert level[:, :8, :8].compute()[0, 0, 0] == side // 16


def test_a_plain_picture_and_processes(tmp_path):
    import pickle

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (level,) = pickle.loads(pickle.dumps(pyramid(tmp_path / "a.png")))
    np.testing.assert_array_equal(np.asarray(level).transpose(1, 2, 0), pixels)


def test_damage_is_white_and_counted_in_a_copy_and_an_error_where_it_is_looked_at(tmp_path, spatialdata, monkeypatch):
    import tifffile

    path = tmp_path / "slide.tif"
    pixels = np.full((2048, 2048, 3), 90, np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="jpeg")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + count] = bytes(count)
    path.write_bytes(content)
    result = make(height=128, width=128)
    result = replace(result, uns={**result.uns, "slide": replace(result.slide, path=path)})
    with pytest.raises(ImageError, match="cannot be decoded at 0, 0"):
        result.to_spatialdata()["wsi"]["scale0"]["image"].compute()
    result.write(tmp_path / "slide.zarr", image="copy")
    back = spatialdata.read_zarr(tmp_path / "slide.zarr")
    whole = back["wsi"]["scale0"]["image"].values
    assert (whole[:, :256, :256] == 255).all()
    assert np.abs(whole[:, 1024:].astype(int) - 90).max() < 3
    assert back.attrs["tcgn"]["image_parts_lost"] == 2  # of the whole, and of the level below


def test_tissue_is_outlined_with_its_holes(tmp_path, spatialdata, prediction):
    prediction.write(tmp_path / "slide.zarr")
    (piece,) = spatialdata.read_zarr(tmp_path / "slide.zarr")["region_of_interest"].geometry
    assert piece.area == pytest.approx(prediction.slide.mask.sum() * DOWNSAMPLE**2, rel=0.01)
    mask = np.zeros((60, 80), bool)
    mask[:30, :40] = True  # reaches the edges
    mask[10:20, 10:20] = False
    mask[13:16, 13:16] = True  # an island in the hole
    mask[40:50, 60:80] = True
    pieces = outlines(mask, downsample=4.0)
    assert [len(piece.interiors) for piece in pieces] == [1, 0, 0]
    assert sum(piece.area for piece in pieces) == pytest.approx(mask.sum() * 16, rel=0.01)
    assert pieces[0].bounds == (0, 0, 160, 120)
    assert outlines(np.zeros((5, 5), bool)) == []


def test_without_a_mask_there_is_no_tissue(tmp_path, spatialdata, prediction):
    slide = replace(prediction.slide, mask=None)
    replace(prediction, uns={**prediction.uns, "slide": slide}).write(tmp_path / "slide.zarr")
    assert set(spatialdata.read_zarr(tmp_path / "slide.zarr").shapes) == {"tiles"}


def test_patches_have_no_place(tmp_path):
    for call in (lambda: make_patches().write(tmp_path / "x.zarr"), lambda: make_patches().to_spatialdata()):
        with pytest.raises(OutputError, match=r"^SpatialData places tiles on a slide; write patches as"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_only_own_stores_are_replaced(tmp_path, prediction):
    (tmp_path / "theirs.zarr").mkdir()
    (tmp_path / "theirs.zarr" / "zarr.json").write_text('{"attributes": {}}')
    with pytest.raises(OutputError, match=r"theirs\.zarr cannot be written: it is a folder that tcgn_hub has not"):
        prediction.write(tmp_path / "theirs.zarr")
    prediction.write(tmp_path / "own.zarr")
    (tmp_path / "own.zarr" / "left").touch()
    prediction.write(tmp_path / "own.zarr")
    assert not (tmp_path / "own.zarr" / "left").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.zarr", "slides", "theirs.zarr"]


def test_what_others_have_added_to_a_store_is_not_replaced(tmp_path, spatialdata, prediction):
    prediction.write(tmp_path / "own.zarr")
    data = spatialdata.read_zarr(tmp_path / "own.zarr")
    data["cells"] = data["tiles"]
    data.write_element("cells")
    with pytest.raises(OutputError, match=r"own\.zarr cannot be written: it holds shapes/cells that tcgn_hub has not"):
        prediction.write(tmp_path / "own.zarr")
    assert "cells" in spatialdata.read_zarr(tmp_path / "own.zarr")


def test_a_store_is_not_written_over_the_slide_in_it(tmp_path, prediction, tiny_weights, capsys):
    prediction.write(tmp_path / "own.zarr", image="copy")
    wsi = tmp_path / "own.zarr/images/wsi"
    inside = replace(prediction, uns={**prediction.uns, "slide": replace(prediction.slide, path=wsi)})
    with pytest.raises(OutputError, match=r"own\.zarr cannot be written: it holds the slide, .*wsi; give another name"):
        inside.write(tmp_path / "own.zarr")
    out = ["-o", str(tmp_path / "own.zarr"), "--weights", str(tiny_weights)]
    for read in ([str(wsi)], [str(prediction.slide.path), "--spots", str(tmp_path / "own.zarr")]):
        assert main(["predict", *read, "--mpp", "0.5", *out]) == 2
        assert capsys.readouterr().err.endswith(
            f"own.zarr cannot be written: {read[-1]} is read from it; give another name.\n"
        )
    assert (wsi / "0").is_dir() or (wsi / "s0").is_dir()


def test_an_error_leaves_the_store_before_as_it_was(tmp_path, prediction, monkeypatch):
    prediction.write(tmp_path / "own.zarr")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tcgn_hub.writing.spatialdata._write_table", full)
    with pytest.raises(OutputError, match=r"own\.zarr cannot be written \(No space left on device\)\.$"):
        prediction.write(tmp_path / "own.zarr")
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_image_is_of_a_store(tmp_path, prediction):
    with pytest.raises(OutputError, match=r"image is of a \.zarr, and .*slide\.csv is none; leave it out\.$"):
        prediction.write(tmp_path / "slide.csv", image="copy")
    with pytest.raises(OutputError, match=r"image='all' is neither link nor copy\.$"):
        prediction.write(tmp_path / "slide.zarr", image="all")


def test_spatialdata_plot_draws_genes_over_the_slide(tmp_path, spatialdata, prediction):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401

    prediction.write(tmp_path / "slide.zarr")
    data = spatialdata.read_zarr(tmp_path / "slide.zarr")
    figure, axes = plt.subplots()
    layers = data.pl.render_images("wsi").pl.render_shapes("tiles", color="GNAS")
    layers.pl.show(coordinate_systems="microns", ax=axes)
    # GNAS rises from left to right, and the axes are in micrometres
    (tiles,) = axes.collections
    order = np.argsort(prediction.obsm["spatial"][:, 0])
    shade = np.asarray(tiles.get_facecolor())[order, 1]
    assert shade[-1] > shade[0] + 0.5
    assert axes.get_xlim()[1] == pytest.approx(prediction.slide.size[0] * MPP, rel=0.02)
    plt.close(figure)


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    return shutil.copy(Path("examples/cmu_small_region.svs"), tmp_path_factory.mktemp("slides"))


def test_the_command_writes_a_store_and_predicts_its_tiles_again(
    tmp_path, spatialdata, tiny_weights, slide, capsys, monkeypatch
):
    out = tmp_path / "slide.zarr"
    options = ["--weights", str(tiny_weights), "--stride-um", "400", "--workers", "0"]
    assert main(["predict", str(slide), "-o", str(out), "--image", "copy", *options]) == 0
    assert main(["predict", str(slide), "-o", str(out), *options]) == 0  # in place of the first
    back = spatialdata.read_zarr(out)
    # what was predicted are spots to predict
    again = ["--weights", str(tiny_weights), "--spots", str(out), "--workers", "0"]
    assert main(["predict", str(slide), "-o", str(tmp_path / "again.zarr"), *again]) == 0
    np.testing.assert_array_equal(spatialdata.read_zarr(tmp_path / "again.zarr")["table"].X, back["table"].X)
    (tmp_path / "other.zarr").mkdir()
    assert main(["predict", str(slide), "-o", str(tmp_path / "other.zarr"), *options]) == 2
    assert "is a folder that tcgn_hub has not written" in capsys.readouterr().err.splitlines()[-1]
    assert main(["predict", str(slide), "-o", str(tmp_path / "x.h5ad"), "--image", "copy", *options]) == 2
    assert "--image says what a .zarr holds of the slide" in capsys.readouterr().err.splitlines()[-1]


def test_a_cohort_goes_on_beside_what_others_have_added(tmp_path, tiny_weights, slide, capsys):
    slides = [str(slide), str(shutil.copy(slide, tmp_path / "b.svs"))]
    command = ["predict", *slides, "-o", str(tmp_path / "out"), "--format", "zarr", "--weights", str(tiny_weights)]
    command += ["--stride-um", "700", "--workers", "0"]
    assert main(command) == 0
    first = tmp_path / "out" / f"{Path(slide).name}.zarr"
    shutil.copytree(first / "shapes/tiles", first / "shapes/cells")
    assert main(command) == 0
    assert main([*command, "--stride-um", "600"]) == 2
    assert f"{first} cannot be written: it holds shapes/cells that" in capsys.readouterr().err.splitlines()[-1]
    assert (first / "shapes/cells").is_dir()


def test_a_cohort_of_stores(tmp_path, spatialdata, tiny_weights, slide):
    slides = [slide, shutil.copy(slide, tmp_path / "b.svs")]
    predictor = tcgn_hub.load(path=tiny_weights)
    options = {"stride_um": 400, "workers": 0, "format": "zarr"}
    records = predictor.slides(slides, tmp_path / "out", **options)
    assert [record.state for record in records] == ["done", "done"]
    ledger = Ledger(tmp_path / "out")
    assert [wrong for _, wrong in check_outputs(ledger)] == ["", ""]
    assert spatialdata.read_zarr(tmp_path / "out/b.svs.zarr")["table"].n_obs == records[1].tiles
    assert predictor.slides(slides, tmp_path / "out", **options)[1].attempt == 1  # nothing is done again
    half = tmp_path / "out" / f"b.svs.zarr.{'0' * 16}.part"
    shutil.copytree(tmp_path / "out/b.svs.zarr", half)
    changed = next((tmp_path / "out/b.svs.zarr/tables").rglob("zarr.json"))
    changed.write_text(changed.read_text() + " ")
    assert [bool(wrong) for _, wrong in check_outputs(ledger)] == [False, True]
    shutil.rmtree(tmp_path / "out/b.svs.zarr")
    assert predictor.slides(slides, tmp_path / "out", **options)[1].attempt == 2
    assert not half.exists()


# ----------------------------------------------------------------------------------------------------------------- in


@pytest.mark.parametrize("old", [False, True], ids=["zarr 3", "zarr 2"])
def test_visium(tmp_path, old):
    counts, xy = stores.write_visium(tmp_path / "S1.zarr", old=old)
    (section,) = tcgn_hub.read_sections(tmp_path / "S1.zarr")
    names, _, _ = visium_array()
    assert (section.name, section.patient, section.spots) == ("S1", "S1", names[:-1])
    np.testing.assert_allclose(section.xy, xy[:-1])
    np.testing.assert_array_equal(section.counts.toarray(), counts[:-1])
    assert section.genes == PANEL
    assert section.mpp == pytest.approx(1.0)
    assert section.image == tmp_path / "S1.zarr/images/S1_full_image"
    assert section.left_out == {"spots not in tissue": 1}


def test_patches_are_cut_where_the_spots_are_however_the_image_lies(tmp_path):
    stores.write_visium(tmp_path / "plain.zarr")
    stores.write_visium(tmp_path / "moved.zarr", shift=7.0)
    plain, moved = (tcgn_hub.read_sections(tmp_path / f"{name}.zarr")[0] for name in ("plain", "moved"))
    np.testing.assert_allclose(moved.xy, plain.xy - 7)
    crops = spot_crops(plain, patch_um=40)
    pixels = stores.tissue(500, 700)
    for (x, y), crop in zip(plain.xy.round().astype(int), crops.pixels, strict=True):
        np.testing.assert_array_equal(crop, pixels[:, y - 20 : y + 20, x - 20 : x + 20])


def test_bins_of_visium_hd_are_chosen_by_name_and_may_be_added_up(tmp_path):
    measured = stores.write_visium_hd(tmp_path / "HD.zarr")
    sheet = tmp_path / "samples.csv"
    sheet.write_text("section,patient,data,library,bin_um\na,p,HD.zarr,square_016um,\nb,q,HD.zarr,square_008um,16\n")
    large, added = tcgn_hub.read_sections(sheet)
    assert large.mpp == pytest.approx(0.5)
    np.testing.assert_array_equal(large.counts.toarray(), measured[16])
    np.testing.assert_allclose(added.xy, large.xy)
    np.testing.assert_array_equal(added.counts.toarray(), measured[16])
    with pytest.raises(
        SectionError,
        match=r"HD\.zarr holds 2 tables of spots \(square_008um, square_016um\); name one in the column library of a",
    ):
        tcgn_hub.read_sections(tmp_path / "HD.zarr")
    sheet.write_text("section,patient,data,library\na,p,HD.zarr,square_002um\n")
    with pytest.raises(SectionError, match=r"has no table square_002um; there are square_008um, square_016um\.$"):
        tcgn_hub.read_sections(sheet)


TURNED = [[0.0, -1.2, 950.0], [1.2, 0.0, -20.0], [0, 0, 1]]
"""H&E of 0.255 um/px, by a quarter turned against the fluorescence of Xenium."""


@pytest.mark.parametrize("circles", [True, False])
def test_cells_of_xenium_are_binned_in_the_frame_of_the_aligned_image(tmp_path, circles):
    counts, um = stores.write_xenium(tmp_path / "x.zarr", affine=TURNED, circles=circles)
    (section,) = tcgn_hub.read_sections(tmp_path / "x.zarr", bin_um=40)
    assert section.image == tmp_path / "x.zarr/images/he_image"
    assert section.mpp == pytest.approx(1.2 * 0.2125)
    # where each cell is in H&E, by hand
    px = np.c_[um / 0.2125, np.ones(len(um))] @ np.linalg.inv(TURNED).T
    inside = ((px[:, :2] >= 0) & (px[:, :2] < 1000)).all(axis=1)
    side = 40 / section.mpp
    expected = {}
    for (x, y, _), row in zip(px[inside], counts[inside], strict=True):
        key = f"{int(y // side)}x{int(x // side)}"
        expected[key] = expected.get(key, 0) + row
    assert set(section.spots) == set(expected)
    for spot, row in zip(section.spots, section.counts.toarray(), strict=True):
        np.testing.assert_array_equal(row, expected[spot])
    col, row = np.array([[int(n) for n in spot.split("x")[::-1]] for spot in section.spots]).T
    np.testing.assert_allclose(section.xy, (np.stack([col, row], axis=1) + 0.5) * side)
    assert section.counts.sum() == counts[inside].sum()


def test_cells_need_a_size_and_an_image_that_is_not_sheared(tmp_path):
    stores.write_xenium(tmp_path / "x.zarr", affine=TURNED)
    with pytest.raises(SectionError, match=r"is of 300 cells; say how large .* by bin_um=55\.$"):
        tcgn_hub.read_sections(tmp_path / "x.zarr")
    for side in (0, float("inf")):
        with pytest.raises(SectionError, match="cannot be the side of a spot"):
            tcgn_hub.read_sections(tmp_path / "x.zarr", bin_um=side)
    stores.write_xenium(tmp_path / "y.zarr", affine=[[1.0, 0.3, 0], [0, 1, 0], [0, 0, 1]])
    with pytest.raises(SectionError, match=r"cell_circles lies in .*he_image by a transformation that stretches or sh"):
        tcgn_hub.read_sections(tmp_path / "y.zarr", bin_um=40)
    write_h5ad(tmp_path / "z.h5ad")
    with pytest.raises(SectionError, match=r"z\.h5ad is no store of SpatialData, whose cells are binned; leave bin_um"):
        tcgn_hub.read_sections(tmp_path / "z.h5ad", bin_um=40)


def test_without_an_image_in_he_one_has_to_be_named(tmp_path):
    stores.write_xenium(tmp_path / "x.zarr", he=False)
    with pytest.raises(SectionError, match=r"x\.zarr has no image in H&E at full resolution; name one in the column"):
        tcgn_hub.read_sections(tmp_path / "x.zarr", bin_um=40)
    _, xy = stores.write_visium(tmp_path / "v.zarr", full=False)
    with pytest.raises(SectionError, match=r"no image in H&E .*such as .*v\.zarr/images/S1_hires_image"):
        tcgn_hub.read_sections(tmp_path / "v.zarr")
    sheet = tmp_path / "samples.csv"
    sheet.write_text("section,patient,data,image\na,p,v.zarr,v.zarr/images/S1_hires_image\n")
    (section,) = tcgn_hub.read_sections(sheet)
    np.testing.assert_allclose(section.xy, xy[:-1] / 10)
    assert section.mpp == pytest.approx(10)


def test_an_image_outside_is_in_the_pixels_of_the_spots_or_refused(tmp_path):
    from PIL import Image

    _, xy = stores.write_visium(tmp_path / "v.zarr", full=False)
    stores.write_xenium(tmp_path / "x.zarr")
    Image.fromarray(stores.tissue(500, 700).transpose(1, 2, 0)).save(tmp_path / "he.png")
    sheet = tmp_path / "samples.csv"
    sheet.write_text("section,patient,data,image\na,p,v.zarr,he.png\n")
    (section,) = tcgn_hub.read_sections(sheet)
    np.testing.assert_allclose(section.xy, xy[:-1])
    sheet.write_text("section,patient,data,image,bin_um\na,p,x.zarr,he.png,40\n")
    with pytest.raises(SectionError, match=r"cell_circles of .*x\.zarr is not in pixels of an image; give one of its"):
        tcgn_hub.read_sections(sheet)


def test_what_lies_as_it_is_in_micrometres_is_not_in_pixels_of_an_image_outside(tmp_path):
    from PIL import Image
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity, Scale

    um = np.random.default_rng(0).uniform(5, 115, (20, 2))
    systems = {"microns": Identity(), "global": Scale([4, 4], axes=("x", "y"))}
    shapes = {"cells": ShapesModel.parse(um, geometry=0, radius=np.linspace(2, 6, 20), transformations=systems)}
    table = stores.table_element(np.ones((20, len(PANEL))), "cells", np.arange(20), key="cell_id")
    stores.write(tmp_path / "m.zarr", shapes=shapes, tables={"table": table})
    Image.fromarray(stores.tissue(500, 700).transpose(1, 2, 0)).save(tmp_path / "he.png")
    with pytest.raises(SectionError, match=r"cells of .*m\.zarr is not in pixels of an image; give one of its own"):
        read_spots(tmp_path / "m.zarr", bin_um=20, image=tmp_path / "he.png", mpp=0.25)


def test_an_outline_without_points_is_no_spot(tmp_path):
    import geopandas
    import shapely
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    outlines = [*shapely.box([10, 30, 60], 10, [20, 40, 90], 40), shapely.Polygon()]
    where = {"global": Identity()}
    shapes = {"cells": ShapesModel.parse(geopandas.GeoDataFrame(geometry=outlines), transformations=where)}
    table = stores.table_element(np.ones((4, len(PANEL))), "cells", np.arange(4), key="cell_id")
    images = {"he": stores.image_element(stores.tissue(100, 100), where)}
    stores.write(tmp_path / "m.zarr", images=images, shapes=shapes, tables={"table": table})
    (section,) = tcgn_hub.read_sections(tmp_path / "m.zarr", bin_um=10, mpp=0.5)
    assert section.left_out == {"spots without a shape": 1}
    np.testing.assert_array_equal(section.xy, [[10, 30], [30, 30], [70, 30]])
    assert read_spots(tmp_path / "m.zarr", bin_um=10, image=section.image, mpp=0.5).names == section.spots


def test_spots_to_predict(tmp_path, tiny_weights, spatialdata):
    stores.write_xenium(tmp_path / "x.zarr", affine=TURNED)
    he = tmp_path / "x.zarr/images/he_image"
    (section,) = tcgn_hub.read_sections(tmp_path / "x.zarr", bin_um=40)
    tiles = read_spots(tmp_path / "x.zarr", bin_um=40, image=he, mpp=section.mpp)
    known = dict(zip(tiles.names, tiles.xy.tolist(), strict=True))
    assert all(known[name] == xy for name, xy in zip(section.spots, section.xy.tolist(), strict=True))
    out = tmp_path / "out.zarr"
    command = ["predict", str(he), "--spots", str(tmp_path / "x.zarr"), "-o", str(out), "--weights", str(tiny_weights)]
    assert main([*command, "--mpp", str(section.mpp), "--bin-um", "40", "--force", "--workers", "0"]) in (0, 1)
    assert set(section.spots) <= set(spatialdata.read_zarr(out)["table"].obs_names)


def test_what_belongs_together_is_said_in_one_sentence(tmp_path, capsys, slide):
    stores.write_xenium(tmp_path / "x.zarr")
    he = tmp_path / "x.zarr/images/he_image"
    command = [
        "predict",
        str(he),
        "--mpp",
        "0.2",
        "-o",
        str(tmp_path / "out.h5ad"),
        "--spots",
        str(tmp_path / "x.zarr"),
    ]
    for more, said in (
        ([], "is of 300 cells; say how large the square spots are that they are binned to, by --bin-um 55."),
        (["--library", "other"], "has no table other; there are table."),
    ):
        assert main([*command, *more]) == 2
        assert capsys.readouterr().err.rstrip().endswith(said)
    assert main(["predict", str(slide), "-o", str(tmp_path / "o.h5ad"), "--bin-um", "40"]) == 2
    assert "--bin-um is of a file of spots; give --spots, or leave it out." in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "x.zarr"), "-o", str(tmp_path / "o.h5ad")]) == 2
    said = capsys.readouterr().err
    assert "states no image of OME-Zarr, but holds some; give one of them: " in said
    assert str(he) in said


def test_spots_are_the_same_while_their_tables_and_shapes_are(tmp_path):
    stores.write_visium(tmp_path / "v.zarr")
    before = spots_hash(tmp_path / "v.zarr")
    (tmp_path / "v.zarr/images/S1_full_image/note").touch()
    assert spots_hash(tmp_path / "v.zarr") == before
    (tmp_path / "v.zarr/shapes/S1/shapes.parquet").write_bytes(b"other")
    assert spots_hash(tmp_path / "v.zarr") != before


def test_code_in_a_store_is_not_run(tmp_path):
    """zarr would unpickle an array whose codec says so."""
    stores.write_visium(tmp_path / "v.zarr")
    file = next((tmp_path / "v.zarr/tables/table/obs").glob("*/zarr.json"))
    stated = json.loads(file.read_text())
    stated["codecs"] = [{"name": "numcodecs.pickle"}]
    file.write_text(json.dumps(stated))
    with pytest.raises(SectionError, match=r"v\.zarr cannot be read \(the codec of .* is pickle\)\.$"):
        tcgn_hub.read_sections(tmp_path / "v.zarr")


@pytest.mark.parametrize(
    ("where", "content"),
    [
        ("shapes/S1/shapes.parquet", b"PAR1"),
        ("shapes/S1/zarr.json", b"{}"),
        ("shapes/S1/zarr.json", b"no json"),
        ("tables/table/zarr.json", b"[]"),
        ("tables/table/obs/zarr.json", b"{"),
        ("tables/table/X/zarr.json", b'{"node_type": "array"}'),
        ("images/S1_full_image/zarr.json", b'{"attributes": {"ome": {}}, "node_type": "group", "zarr_format": 3}'),
        ("shapes/S1/shapes.parquet", None),
        ("tables/table", None),
    ],
)
def test_a_damaged_store_is_one_sentence(tmp_path, where, content):
    stores.write_visium(tmp_path / "v.zarr")
    path = tmp_path / "v.zarr" / where
    if content is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    else:
        path.write_bytes(content)
    assert is_spatialdata(tmp_path / "v.zarr")
    with pytest.raises(SectionError, match=r"v\.zarr.*\.$") as told:
        tcgn_hub.read_sections(tmp_path / "v.zarr")
    assert len(str(told.value)) < 500
