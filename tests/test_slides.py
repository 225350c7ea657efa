"""Slides: scale, regions, tissue, tiles and spots; real files where users have files."""

import gzip
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from tcgn_hub.data.spots import read_spots
from tcgn_hub.errors import ImageError, SectionError
from tcgn_hub.images import slides
from tcgn_hub.images.readers import is_slide_file, open_slide, picture, size_and_scale
from tcgn_hub.images.scale import given_scale, scale_of_properties
from tcgn_hub.images.tiles import grid_tiles
from tcgn_hub.images.tissue import shows_tissue, tissue_fraction, tissue_mask

ROOT = Path(__file__).resolve().parents[1]
SVS = ROOT / "examples" / "cmu_small_region.svs"
OME = Path(__file__).parent / "fixtures" / "slides" / "OS-1-detail.ome.tif"


# scale


@pytest.mark.parametrize(
    ("path", "mpp", "source", "size"),
    [
        (SVS, 0.499, "openslide.mpp-x", (2220, 2967)),
        (OME, (0.2270972430394695 + 0.22710240047237298) / 2, "OME-XML PhysicalSizeX", (1101, 1101)),
        (ROOT / "examples" / "patch.png", 0.687, "resolution in the file", (224, 224)),
    ],
)
def test_scale_of_real_files(path, mpp, source, size):
    with open_slide(path) as slide:
        assert slide.scale.mpp == pytest.approx(mpp)
        assert slide.scale.source == source
        assert not slide.scale.nominal
        assert slide.size == size


@pytest.mark.parametrize(
    ("properties", "mpp", "source"),
    [
        ({"openslide.mpp-x": "0.25", "openslide.objective-power": "20"}, 0.25, "openslide.mpp-x"),
        ({"openslide.mpp-x": "352.8", "openslide.objective-power": "40"}, 0.25, "openslide.objective-power"),
        ({"tiff.XResolution": "20000", "tiff.ResolutionUnit": "centimeter"}, 0.5, "tiff.XResolution"),
        ({"tiff.XResolution": "50800", "tiff.ResolutionUnit": "inch"}, 0.5, "tiff.XResolution"),
    ],
)
def test_scale_of_properties(properties, mpp, source):
    scale = scale_of_properties(properties)
    assert (scale.mpp, scale.source) == (pytest.approx(mpp), source)
    assert scale.nominal == ("power" in source)


@pytest.mark.parametrize(
    "properties", [{}, {"openslide.mpp-x": "x"}, {"tiff.XResolution": "72", "tiff.ResolutionUnit": "inch"}]
)
def test_no_scale_is_none(properties):
    assert scale_of_properties(properties) is None


@pytest.mark.parametrize(("height", "refused"), [("0.509", False), ("0.511", True), ("0.45", True)])
def test_pixels_of_openslide_that_are_not_square_are_refused(height, refused):
    properties = {"openslide.mpp-x": "0.5", "openslide.mpp-y": height, "openslide.objective-power": "20"}
    if refused:
        with pytest.raises(ImageError, match="not square"):
            scale_of_properties(properties)
    else:
        assert scale_of_properties(properties).mpp == pytest.approx(0.5045)


def test_pictures_state_their_resolution_or_nothing(tmp_path):
    image = Image.new("RGB", (8, 8))
    for name, options, mpp in (
        ("a.tif", {"dpi": (50800, 50800)}, 0.5),
        ("b.tif", {"dpi": (72, 72)}, None),
        ("c.png", {}, None),
        ("d.jpg", {"dpi": (96, 96)}, None),
    ):
        image.save(tmp_path / name, **options)
        with open_slide(tmp_path / name) as slide:
            assert (slide.scale and slide.scale.mpp) == (mpp and pytest.approx(mpp)), name


def test_given_scales():
    assert given_scale(None, None) is None
    assert given_scale(0.4, None).patch_um(77) == 77
    assert given_scale(None, 20).patch_um(77) == 56
    assert given_scale(None, 20).patch_um(154, 112) == 112
    assert given_scale(None, 20).mpp == 0.5
    for mpp, magnification in (
        (0.5, 20),
        (0, None),
        (-1, None),
        (1e-5, None),
        (1e5, None),
        (None, 0),
        (None, float("nan")),
    ):
        with pytest.raises(ImageError):
            given_scale(mpp, magnification)


# regions


def test_regions_are_openslides(tmp_path):
    raw = openslide.OpenSlide(str(SVS))
    with open_slide(SVS) as slide:
        want = np.asarray(raw.read_region((700, 900), 0, (64, 48)))[..., :3]
        assert np.array_equal(slide.read(700, 900, 64, 48), want)
        beyond = slide.read(-10, -20, 30, 30)
        assert (beyond[:20] == 255).all()
        assert (beyond[:, :10] == 255).all()
        assert np.array_equal(beyond[20:, 10:], slide.read(0, 0, 20, 10))


def test_edges_are_white_for_every_reader(tmp_path):
    pixels = np.asarray(Image.effect_noise((60, 50), 80).convert("RGB"))
    Image.fromarray(pixels).save(tmp_path / "x.png")
    for path in (tmp_path / "x.png", OME):
        with open_slide(path) as slide:
            width, height = slide.size
            corner = slide.read(width - 10, height - 5, 20, 20)
            assert (corner[5:] == 255).all(), path
            assert (corner[:, 10:] == 255).all(), path
            assert np.array_equal(corner[:5, :10], slide.read(width - 10, height - 5, 10, 5)), path


def test_tiff_is_read_as_by_tifffile():
    import tifffile

    want = tifffile.imread(OME)
    with open_slide(OME) as slide:
        assert np.array_equal(slide.read(200, 300, 50, 40), want[300:340, 200:250])


def pyramid(path, size, *, blank=False):
    """A pyramidal TIFF of three levels, 0.5 um/px, with a square of tissue unless blank."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for level in (1, 4, 16):
            pixels = np.full((size // level, size // level, 3), 245, np.uint8)
            if not blank:
                side = slice(size // level // 4, size // level // 2)
                pixels[side, side] = (200, 90, 160)
            out.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(level > 1),
                resolution=(20000 / level, 20000 / level),
                resolutionunit="CENTIMETER",
            )
    return path


def test_levels(tmp_path):
    with open_slide(pyramid(tmp_path / "p.tif", 4096)) as slide:
        assert slide.downsamples == (1.0, 4.0, 16.0)
        assert slide.scale.mpp == pytest.approx(0.5)
        assert [slide.level_for(d) for d in (0.5, 1, 3.9, 4, 15, 16, 100)] == [0, 0, 0, 1, 1, 2, 2]
        overview, downsample, _ = slide.overview(256)
        assert overview.shape == (256, 256, 3)
        assert downsample == 16
        assert abs(overview[80, 80].astype(int) - (200, 90, 160)).max() < 12


def test_an_overview_is_the_same_in_parts(monkeypatch):
    with open_slide(SVS) as slide:
        whole, _, _ = slide.overview(300)
        monkeypatch.setattr(slides, "_BLOCK_PX", 400)
        parts, _, lost = slide.overview(300)
    assert whole.shape == parts.shape
    assert not lost.any()
    assert np.abs(whole.astype(int) - parts).mean() < 0.5


# tissue


def drawn(colour):
    overview = np.full((200, 300, 3), 240, np.uint8)
    overview[50:150, 60:160] = colour
    return overview


@pytest.mark.parametrize("colour", [(235, 170, 205), (150, 90, 160), (90, 60, 130), (60, 60, 120), (220, 130, 180)])
def test_stained_tissue_is_found(colour):
    mask = tissue_mask(drawn(colour), um_per_px=8)
    assert mask[60:140, 70:150].all()
    assert not mask[:40].any()
    assert not mask[:, 170:].any()


@pytest.mark.parametrize(
    "colour", [(20, 20, 20), (40, 60, 200), (30, 140, 60), (200, 40, 40), (200, 200, 200), (250, 250, 250)]
)
def test_pens_and_glass_are_not_tissue(colour):
    assert not tissue_mask(drawn(colour), um_per_px=8).any()


def test_noise_and_a_cast_are_not_tissue():
    rng = np.random.default_rng(0)
    assert not tissue_mask(rng.integers(0, 255, (600, 600, 3), dtype=np.uint8), um_per_px=0.5).any()
    cast = (np.array((228, 216, 226)) + rng.integers(-2, 3, (600, 600, 3))).astype(np.uint8)
    assert not tissue_mask(cast, um_per_px=8).any()
    cast[300:340, 300:340] = (200, 90, 160)
    assert tissue_mask(cast, um_per_px=8)[310:330, 310:330].all()


def test_pen_beside_tissue():
    overview = drawn((200, 110, 170))
    overview[20:180, 220:240] = (30, 50, 200)
    mask = tissue_mask(overview, um_per_px=8)
    assert mask[60:140, 70:150].all()
    assert not mask[:, 200:].any()


def test_specks_and_small_holes_are_no_matter():
    colour = (200, 110, 170)
    overview = drawn(colour)
    overview[20:28, 220:228] = overview[160:184, 220:244] = colour
    overview[60:68, 70:78] = overview[100:124, 100:124] = 240
    mask = tissue_mask(overview, um_per_px=8)  # 0.01 mm^2 are 156 pixels
    assert not mask[10:40, 210:240].any()
    assert mask[60:68, 70:78].all()
    assert mask[165:180, 225:240].all()
    assert not mask[105:119, 105:119].any()


def test_the_real_slide():
    with open_slide(SVS) as slide:
        overview, downsample, _ = slide.overview(500)
    mask = tissue_mask(overview, um_per_px=0.499 * downsample)
    assert 0.3 < mask.mean() < 0.5
    assert not mask[:, -40:].any()


@pytest.mark.parametrize(("section", "share"), [("B4", 0.26), ("C3", 0.175)])
def test_stained_glass_is_no_tissue_and_dense_nuclei_are(section, share):
    path = Path(__file__).parent / f"fixtures/slides/her2st_{section}_overview.jpg"
    mask = tissue_mask(np.asarray(Image.open(path)), um_per_px=17.1)
    assert mask.mean() == pytest.approx(share, abs=0.015)
    dense = {"B4": mask[250:290, 60:90], "C3": mask[140:200, 160:230]}[section]
    assert dense.mean() > 0.97
    glass = {"B4": mask[:100], "C3": mask[:, 300:]}[section]
    assert not glass.any()


@pytest.mark.parametrize(("dark", "shown"), [((50, 50, 110), True), ((20, 22, 24), False), ((20, 40, 160), False)])
def test_a_patch_of_dense_nuclei_shows_tissue_and_one_of_ink_does_not(dark, shown):
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 30, (14, 14, 1)).repeat(16, axis=0).repeat(16, axis=1)
    assert shows_tissue((np.array(dark) + shades).astype(np.uint8)) is shown


def test_tissue_fraction_counts():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 60)) < 0.4
    xy = rng.integers(5, 35, (20, 2)).astype(float)
    got = tissue_fraction(mask, xy, 6)
    want = [mask[int(y) - 3 : int(y) + 3, int(x) - 3 : int(x) + 3].mean() for x, y in xy]
    assert got == pytest.approx(want)
    assert tissue_fraction(np.ones((10, 10), bool), np.array([[0.0, 0.0]]), 4) == pytest.approx([0.25])


# tiles and spots


def test_the_grid_is_inside_and_regular():
    tiles = grid_tiles((1000, 700), side=150, stride=100)
    assert len(tiles) == 9 * 6
    assert (tiles.xy - 75 >= 0).all()
    assert (tiles.xy + 75 <= (1000, 700)).all()
    assert tiles.xy.mean(axis=0) == pytest.approx((500, 350))
    for name, row, col, (x, y) in zip(tiles.names, tiles.array_row, tiles.array_col, tiles.xy, strict=True):
        assert name == f"{row}x{col}"
        assert (x, y) == pytest.approx((100 + 100 * col, 100 + 100 * row))
    with pytest.raises(ImageError, match="smaller than a tile"):
        grid_tiles((100, 700), side=150, stride=100)


VISIUM = [("AAAC-1", 1, 0, 16, 1000, 2000), ("AAAG-1", 0, 1, 1, 1100, 2100), ("AAAT-1", 1, 2, 4, 1200, 2200)]


def visium(path, header):
    lines = [",".join(map(str, row)) for row in VISIUM]
    if header:
        lines.insert(0, "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_spots_of_space_ranger(tmp_path):
    import pyarrow.csv
    import pyarrow.parquet

    new = visium(tmp_path / "tissue_positions.csv", True)
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(new), tmp_path / "tissue_positions.parquet")
    for path in (new, visium(tmp_path / "tissue_positions_list.csv", False), tmp_path / "tissue_positions.parquet"):
        tiles = read_spots(path)
        assert tiles.names == ["AAAC-1", "AAAT-1"]
        assert tiles.xy.tolist() == [[2000, 1000], [2200, 1200]]
        assert (tiles.array_row.tolist(), tiles.array_col.tolist()) == ([0, 2], [16, 4])


def test_spots_of_her2st(tmp_path):
    path = tmp_path / "C6_selection.tsv"
    path.write_text(
        "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\n7\t10\t7.1\t10.2\t1875.5\t2811.0\n8\t10\t8.0\t10.1\t2166.0\t2810.0\n"
    )
    tiles = read_spots(path)
    assert tiles.names == ["7x10", "8x10"]
    assert tiles.xy.tolist() == [[1875.5, 2811.0], [2166.0, 2810.0]]
    assert (tiles.array_row.tolist(), tiles.array_col.tolist()) == ([10, 10], [7, 8])


def test_spots_of_h5ad(tmp_path):
    import anndata
    import pandas as pd

    obs = pd.DataFrame({"in_tissue": [1, 0], "array_row": [3, 4], "array_col": [5, 6]}, index=["a", "b"])
    anndata.AnnData(np.zeros((2, 1)), obs=obs, obsm={"spatial": np.array([[10.0, 20], [30, 40]])}).write_h5ad(
        tmp_path / "spots.h5ad"
    )
    tiles = read_spots(tmp_path / "spots.h5ad")
    assert (tiles.names, tiles.xy.tolist(), tiles.array_row.tolist()) == (["a"], [[10, 20]], [3])


def test_bad_spots_are_refused(tmp_path):
    (tmp_path / "text.csv").write_text("hello\n")
    (tmp_path / "empty.csv").write_text("barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n")
    (tmp_path / "nan.tsv").write_text("x\ty\tpixel_x\tpixel_y\n1\t1\tnan\t5\n")
    (tmp_path / "cut.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "binary.csv").write_bytes(gzip.compress(b"x" * 100))
    for name, says in (
        ("text.csv", "is not a file of spots"),
        ("empty.csv", "no spot in tissue"),
        ("nan.tsv", "not a number"),
        ("cut.h5ad", "no .h5ad file that can be read"),
        ("binary.csv", "cannot be read as a table"),
        ("absent.csv", "does not exist"),
    ):
        with pytest.raises(SectionError, match=says) as raised:
            read_spots(tmp_path / name)
        assert "\n" not in str(raised.value)


# files that are not what they should be


def test_formats_by_name():
    assert is_slide_file("x.SVS")
    assert is_slide_file("a/b.ome.tif")
    assert not is_slide_file("patch.tif")


def test_dicom_is_known_without_its_suffix(tmp_path):
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "README").write_text("no slide")
    assert is_slide_file(tmp_path / "IM0001")
    assert not is_slide_file(tmp_path / "README")


def test_bad_slides_are_refused(tmp_path, monkeypatch):
    whole = SVS.read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "text.svs").write_text("no slide")
    (tmp_path / "text.tif").write_text("no slide")
    (tmp_path / "empty.png").touch()
    ome = OME.read_bytes()
    (tmp_path / "cut.ome.tif").write_bytes(ome[: len(ome) // 3])
    Image.effect_noise((300, 300), 50).convert("RGB").save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "float.tif")
    for name in (
        "cut.svs",
        "text.svs",
        "text.tif",
        "empty.png",
        "cut.ome.tif",
        "cut.jpg",
        "float.tif",
        "absent.svs",
        ".",
    ):
        with pytest.raises(ImageError) as raised, open_slide(tmp_path / name) as slide:
            slide.read(0, 0, *slide.size)
        assert str(tmp_path) in str(raised.value), name
        assert "\n" not in str(raised.value), name
    with pytest.raises(ImageError, match=r"300 x 300 px, more than the limit of 1,000.*max_pixels"):
        open_slide(tmp_path / "whole.jpg", max_pixels=1000)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "bmp", "gif"])
def test_the_limit_of_pillow_is_not_in_the_way(tmp_path, monkeypatch, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)
    path = tmp_path / f"whole.{suffix}"
    Image.fromarray(pixels).save(path, exif=Image.Exif() if suffix == "tif" else b"")
    with open_slide(path) as slide:
        want = slide.read(0, 0, 200, 120)
    # of which Pillow warns; twice as much is too much for WebP since Pillow 13, whatever is asked for
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 13000)
    with open_slide(path) as slide:
        assert slide.size == size_and_scale(path)[0] == (200, 120)
        assert np.array_equal(slide.read(0, 0, 200, 120), want)
    if suffix == "png":
        assert np.array_equal(want, pixels)


def test_what_is_too_large_for_pillow_is_said_to_be(tmp_path, monkeypatch):
    def refuse(path):
        raise Image.DecompressionBombError("Image size (24000 pixels) exceeds limit of 2000 pixels")

    monkeypatch.setattr("tcgn_hub.images.readers.picture.open_picture", refuse)
    (tmp_path / "large.webp").write_bytes(b"RIFF")
    with pytest.raises(ImageError, match=r"large\.webp has more pixels than Pillow reads.*save it as a TIFF"):
        open_slide(tmp_path / "large.webp")


def test_two_threads_that_open_slides_leave_the_limit_of_pillow(tmp_path, monkeypatch):
    path = tmp_path / "whole.png"
    Image.new("RGB", (30, 20)).save(path)
    limit = Image.MAX_IMAGE_PIXELS
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    seen = []

    def paused(*args, **options):
        seen.append(Image.MAX_IMAGE_PIXELS)
        if threading.current_thread().name == "first":
            first_is_in.set()
            assert second_is_in.wait(20)
        else:
            second_is_in.set()
            assert first_is_out.wait(20)

    monkeypatch.setattr(picture, "scale_of_density", paused)
    filters = list(warnings.filters)
    first = threading.Thread(target=open_slide, args=(path,), name="first")
    second = threading.Thread(target=open_slide, args=(path,), name="second")
    first.start()
    assert first_is_in.wait(20)
    second.start()
    first.join()
    first_is_out.set()
    second.join()
    assert [*seen, Image.MAX_IMAGE_PIXELS] == [limit] * 3
    assert warnings.filters == filters


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "1", "I;16"])
def test_every_mode_of_pictures(tmp_path, mode):
    gray = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)))
    image = Image.fromarray(np.asarray(gray).astype(np.uint16) * 256) if mode == "I;16" else gray.convert(mode)
    image.save(tmp_path / "x.tif")
    with open_slide(tmp_path / "x.tif") as slide:
        pixels = slide.read(0, 0, 32, 32).astype(int)
    if mode != "1":
        assert np.abs(pixels - np.asarray(gray)[..., None]).max() <= 2


def test_odd_names_and_read_only(tmp_path):
    path = tmp_path / "срез №1 (копия).svs"
    shutil.copy(SVS, path)
    path.chmod(0o444)
    with open_slide(path) as slide:
        assert slide.read(1000, 1000, 8, 8).shape == (8, 8, 3)


def test_without_the_extra(monkeypatch, tmp_path):
    import sys

    from tcgn_hub.errors import ExtraError

    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(ExtraError, match=r"pip install 'tcgn_hub\[slides\]'"):
        open_slide(SVS)
    # a plain picture needs nothing
    Image.new("RGB", (8, 8)).save(tmp_path / "x.tif")
    with open_slide(tmp_path / "x.tif") as slide:
        assert slide.size == (8, 8)
