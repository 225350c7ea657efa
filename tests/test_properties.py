"""What holds for any picture: places, formats and files agree. Drawn by hypothesis, the same every time in CI."""

import io
import json
import os
from pathlib import Path
from unittest import mock

import cases
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

import tcgn_hub
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.scale import given_scale
from tcgn_hub.images.tiles import TileReader, grid_tiles
from tcgn_hub.images.transforms import patch_px
from tcgn_hub.prediction.patches import cut_image
from tcgn_hub.writing.geojson import to_geojson

settings.register_profile(
    "tcgn",
    deadline=None,
    derandomize="CI" in os.environ,
    # to look for a smaller picture that fails takes minutes
    phases=[Phase.explicit, Phase.generate],
    # what is drawn is written to a folder of the test, over what was there
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
settings.load_profile("tcgn")


@pytest.fixture(scope="module")
def predictor(tiny_weights):
    return tcgn_hub.load(path=tiny_weights, device="cpu")


def _cm(mpp: float) -> dict:
    return {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}


# where tiles lie


def numbered(width: int, height: int) -> np.ndarray:
    """A picture each of whose pixels says where it is, uint8, shape (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], axis=2).astype(np.uint8)


def place(pixel: np.ndarray) -> np.ndarray:
    """(x, y) of a pixel of `numbered`."""
    x, y, high = (int(value) for value in pixel)
    return np.array([x + high // 16 * 256, y + high % 16 * 256])


def write_levels(path: Path, pixels: np.ndarray, factors: list[int], side: int, mpp: float, compression) -> Path:
    """A pyramid in tiles; if named so, as Aperio writes it."""
    height, width = pixels.shape[:2]
    text = f"Aperio Image Library v10\r\n{width}x{height} ({side}x{side}) LZW|AppMag = 20|MPP = {mpp}"
    options = {"tile": (side, side), "photometric": "rgb", "compression": compression, "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=path.suffix != ".svs") as file:
        for factor in factors:
            level = np.ascontiguousarray(pixels[::factor, ::factor])
            if path.suffix == ".svs":
                file.write(level, description=text, **options)
            else:
                file.write(level, subfiletype=int(factor > 1), **_cm(mpp * factor), **options)
    return path


@settings(max_examples=20)
@given(data=st.data())
def test_tiles_lie_where_openslide_and_tifffile_find_the_same_pixels(tmp_path, data):
    width, height = (data.draw(st.integers(200, 1100), label=name) for name in ("width", "height"))
    side = 16 * data.draw(st.integers(2, 12), label="side of the tiles of the file / 16")
    factors = data.draw(st.sampled_from([[1], [1, 2], [1, 4], [1, 2, 4], [1, 3, 9]]), label="levels")
    suffix = data.draw(st.sampled_from([".svs", ".tif"]))
    compression = data.draw(st.sampled_from(["lzw", "adobe_deflate", "deflate"]))
    if suffix == ".svs":
        # between the pixels of a level OpenSlide interpolates, and these numbers do not bear that
        width, height = (length // factors[-1] * factors[-1] for length in (width, height))
    mpp = data.draw(st.floats(0.2, 2), label="um/px")
    tile_px = data.draw(st.floats(8, min(width, height) - 1), label="side of a tile in pixels")
    stride = data.draw(st.floats(max(10, tile_px / 8), 3 * tile_px), label="stride in pixels")
    for old in tmp_path.iterdir():
        old.unlink()
    path = write_levels(tmp_path / f"x{suffix}", numbered(width, height), factors, side, mpp, compression)
    tiles = grid_tiles((width, height), side=tile_px, stride=stride)
    # as if the model took smaller pictures, so that more than the finest level is read
    input_px = data.draw(st.sampled_from([16, 64]), label="side of what the model takes")
    with open_slide(path) as slide, openslide.OpenSlide(str(path)) as other, tifffile.TiffFile(path) as file:
        assert slide.size == (width, height)
        assert slide.scale.mpp == pytest.approx(mpp)
        with mock.patch("tcgn_hub.images.tiles.INPUT_PX", input_px):
            reader = TileReader(slide, tiles.xy, tile_px)
        own, n = reader.downsample, factors[reader.level]
        level = (
            file.series[0].levels[reader.level].asarray() if suffix == ".tif" else file.pages[reader.level].asarray()
        )
        for index in np.unique(np.linspace(0, len(tiles) - 1, 6).astype(int)):
            _, pixels, why = reader[index]
            assert not why
            assert pixels.shape == (reader.side, reader.side, 3)
            # the grid is within the slide, so that only rounding can go beyond it
            inner = pixels[2:-2, 2:-2]
            corner = place(inner[0, 0])
            want = tiles.xy[index] - reader.side * own / 2 + 2 * n
            # half a pixel of the level, that a level of a side that is no multiple is rounded up, and that OpenSlide
            # states one number for both sides of a level, the mean
            drift = corner / n * abs(own - n)
            most = (0.5 if (width % n, height % n) == (0, 0) else 1.5) * n + drift
            assert (np.abs(corner - want) <= most + 1e-6).all()
            left, top = corner // n
            assert np.array_equal(inner, level[top : top + len(inner), left : left + len(inner)])
            if n == 1:
                region = other.read_region(tuple(int(v) for v in corner), 0, inner.shape[1::-1])
                assert np.array_equal(inner, np.asarray(region)[..., :3])
            # OpenSlide finds the centre at full resolution
            middle = np.floor(tiles.xy[index]).astype(int)
            found = np.asarray(other.read_region(tuple(int(v) for v in middle), 0, (1, 1)))[0, 0, :3]
            assert place(found).tolist() == middle.tolist()
            shown = place(pixels[reader.side // 2, reader.side // 2])
            assert (np.abs(shown - middle) <= 2 * n + drift).all()


# formats


def drawn_picture(width: int, height: int, seed: int) -> np.ndarray:
    """Colours of tissue that vary as smoothly as tissue does, uint8, shape (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(
        (120, 40, 110), (240, 180, 220), (max(2, height // 12), max(2, width // 12), 3), dtype=np.uint8
    )
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def _sixteen_png(pixels: np.ndarray) -> bytes:
    return imagecodecs.png_encode(pixels.astype(np.uint16) * 257)


def _webp(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "webp", lossless=True)
    return content.getvalue()


CODECS = [None, "lzw", "adobe_deflate", "deflate", "packbits", "lzma", "zstd", "png", "lerc", "jpeg2000"]
FORMATS = [
    "png",
    "bmp",
    "gray alpha png",
    "png of 16 bits",
    "webp",
    "tif",
    "planes.ome.tif",
    "separate.tif",
    "rgba.tif",
]


def write_lossless(folder: Path, pixels: np.ndarray, kind: str, codec, deep: bool, parts: dict) -> Path:
    """The same pixels in a format that keeps them."""
    name = kind.rsplit(" ", 1)[-1]
    path = folder / f"x.{'png' if 'png' in kind else name}"
    stored = pixels.astype(np.uint16) * 257 if deep and codec != "lerc" else pixels
    options = {"photometric": "rgb", "compression": codec, "metadata": None, **parts}
    planes = np.ascontiguousarray(np.moveaxis(stored, -1, 0))
    if kind in ("png", "bmp"):
        Image.fromarray(pixels).save(path)
    elif kind == "gray alpha png":
        Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])).save(path)
    elif kind == "png of 16 bits":
        path.write_bytes(_sixteen_png(pixels))
    elif kind == "webp":
        path.write_bytes(_webp(pixels))
    elif kind == "planes.ome.tif":
        facts = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
        tifffile.imwrite(path, planes, **options | {"photometric": "minisblack", "metadata": facts}, ome=True)
    elif kind == "separate.tif":
        tifffile.imwrite(path, planes, **options, planarconfig="separate")
    elif kind == "rgba.tif":
        opaque = np.full((*stored.shape[:2], 1), np.iinfo(stored.dtype).max, stored.dtype)
        tifffile.imwrite(path, np.concatenate([stored, opaque], axis=2), **options, extrasamples=["unassalpha"])
    else:
        tifffile.imwrite(path, stored, **options)
    return path


st_parts = st.one_of(
    st.builds(lambda w, h: {"tile": (16 * h, 16 * w)}, st.integers(1, 8), st.integers(1, 8)),
    st.builds(lambda rows: {"rowsperstrip": rows}, st.integers(1, 400)),
)


def st_written(kinds=FORMATS):
    return st.tuples(st.sampled_from(kinds), st.sampled_from(CODECS), st.booleans(), st_parts)


@settings(max_examples=60)
@given(
    width=st.integers(16, 420),
    height=st.integers(16, 420),
    seed=st.integers(0, 99),
    mpp=st.floats(0.2, 2),
    patch_um=st.floats(60, 200),
    written=st_written(),
)
def test_what_is_cut_does_not_depend_on_the_format(tmp_path, predictor, width, height, seed, mpp, patch_um, written):
    pixels = drawn_picture(width, height, seed)
    path = write_lossless(tmp_path, pixels, *written)
    cut, got = cut_image(path, str(path), given_scale(mpp, None), patch_um, predictor.info, force=True)
    side = min(patch_px(mpp, patch_um), width, height)
    assert cut.side == side
    left, top = (width - side) // 2, (height - side) // 2
    assert np.array_equal(got, pixels[top : top + side, left : left + side])


@settings(max_examples=20)
@given(
    width=st.integers(32, 420),
    height=st.integers(32, 420),
    seed=st.integers(0, 99),
    mpp=st.floats(0.2, 2),
    suffix=st.sampled_from(["jpg", "webp", "jpeg.tif", "strips.tif"]),
)
def test_what_is_cut_of_a_lossy_format_is_nearly_the_same(tmp_path, predictor, width, height, seed, mpp, suffix):
    pixels = drawn_picture(width, height, seed)
    path = tmp_path / f"x.{suffix}"
    if suffix.endswith("tif"):
        parts = {"tile": (64, 64)} if suffix == "jpeg.tif" else {"rowsperstrip": 16}
        tifffile.imwrite(path, pixels, photometric="rgb", compression="jpeg", compressionargs={"level": 95}, **parts)
    else:
        Image.fromarray(pixels).save(path, quality=95)
    want, got = (
        cut_image(image, "x", given_scale(mpp, None), 60.0, predictor.info, force=True)[1] for image in (pixels, path)
    )
    assert got.shape == want.shape
    # the red and the blue of tissue are further apart
    assert np.abs(got.astype(int) - want).mean() < 4
    assert np.abs(got.astype(int) - want[..., ::-1]).mean() > 8


@settings(max_examples=6)
@given(
    width=st.integers(200, 420),
    height=st.integers(200, 420),
    seed=st.integers(0, 99),
    mpp=st.floats(0.4, 1),
    written=st.lists(st_written(), min_size=3, max_size=3),
)
def test_predictions_do_not_depend_on_the_format(tmp_path, predictor, width, height, seed, mpp, written):
    pixels = drawn_picture(width, height, seed)
    paths = []
    for i, one in enumerate(written):
        (tmp_path / str(i)).mkdir(exist_ok=True)
        paths.append(write_lossless(tmp_path / str(i), pixels, *one))
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        decoded = np.asarray(image)
    values = predictor.patches([pixels, *paths, tmp_path / "x.jpg", decoded], mpp=mpp).X
    assert np.abs(values[1:-2] - values[0]).max() < 1e-5
    assert np.abs(values[-1] - values[-2]).max() < 1e-5
    assert np.abs(values[-1] - values[0]).max() < JPEG_APART


JPEG_APART = 0.3
"""How far the values of JPEG at quality 95 may be off; 0.19 was the most of 30 pictures, with values from 2 to 5."""


# places in the files that are written

GLASS, STAIN = 245, (200, 90, 160)


def share(self, pixels, *_):
    """In place of the model: the share of each tile that is stained."""
    stained = np.stack([(tile[..., 0].astype(int) - tile[..., 1] > 50).mean() for tile in np.asarray(pixels)])
    genes = len(self.info.genes)
    told = {"values": genes, "measures": 6}
    return lambda: {key: np.repeat(stained[:, None], side, axis=1).astype(np.float32) for key, side in told.items()}


def bounds_of(mask: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom of what is set."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def check_places(result, pixels, square, origin, tile_px):
    """GeoJSON, h5ad, picture and mask of a result point to the square (left, top, right, bottom) of the pixels.

    ``origin``: upper left corner of the pixels on the slide.
    """
    stained = np.zeros(pixels.shape[:2], bool)
    stained[square[1] : square[3], square[0] : square[2]] = True
    on_slide = np.add(square, (*origin, *origin))
    data = result.to_anndata()
    library = next(iter(data.uns["spatial"].values()))
    factor, picture = library["scalefactors"]["tissue_hires_scalef"], library["images"]["hires"]
    downsample = 1 / factor
    # the picture and the mask show the square
    shown = picture[..., 0].astype(int) - picture[..., 1] > 50
    # within a pixel, and half of one by which the threshold of smoothed edges may move them
    assert np.abs(bounds_of(shown) * downsample - on_slide).max() <= 1.5 * downsample + 1e-6
    mask = data.uns["tcgn"]["mask"]
    assert mask.shape == shown.shape
    assert data.uns["tcgn"]["mask_downsample"] == pytest.approx(downsample)
    around = bounds_of(mask)
    # it is smoothed, by as much on every side
    centre = (around[:2] + around[2:]) / 2 * downsample
    assert np.abs(centre - (on_slide[:2] + on_slide[2:]) / 2).max() <= downsample + 1e-6
    # what is predicted of a tile is what lies in its polygon, in the frame of what was scanned
    written = json.loads("".join(to_geojson(result)))
    stated = np.array(written["tcgn"].get("origin_px", (0, 0)))
    assert stated.tolist() == list(origin)
    assert len(written["features"]) == len(result)
    assert np.array_equal(data.obs_names, [feature["properties"]["name"] for feature in written["features"]])
    for feature, xy in zip(written["features"], data.obsm["spatial"], strict=True):
        corners = np.array(feature["geometry"]["coordinates"][0])
        low, high = corners.min(axis=0), corners.max(axis=0)
        assert high - low == pytest.approx(tile_px, abs=0.02)
        assert (low + high) / 2 + stated == pytest.approx(xy, abs=0.02)
        x0, y0, x1, y1 = *np.round(low).astype(int), *np.round(high).astype(int)
        inside = stained[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)].sum() / ((x1 - x0) * (y1 - y0))
        value = list(feature["properties"]["measurements"].values())[-1]  # of a gene
        # a pixel on every side
        assert value == pytest.approx(inside, abs=4 / tile_px)
        # and the centre in the picture is as it is on the slide, unless it lies on the edge of the square
        px, py = np.floor(xy * factor).astype(int)
        within = min(*(xy - on_slide[:2]), *(on_slide[2:] - xy))
        if abs(within) > 2 * downsample:
            assert shown[py, px] == (within > 0)


@settings(max_examples=12)
@given(data=st.data())
def test_files_that_are_written_point_to_the_same_pixels(tmp_path, predictor, data):
    width, height = (data.draw(st.integers(500, 900), label=name) for name in ("width", "height"))
    across, down = (data.draw(st.integers(220, 320), label=name) for name in ("across", "down"))
    left, top = (data.draw(st.integers(60, whole - part - 60)) for whole, part in ((width, across), (height, down)))
    mpp = data.draw(st.floats(0.8, 1.2), label="um/px")
    patch_um = data.draw(st.floats(80, 150), label="um")
    kind = data.draw(st.sampled_from(["svs", "tif", "ome.tif", "png"]))
    overview = data.draw(st.integers(200, 1200), label="side of the overview")
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    pixels[top : top + down, left : left + across] = STAIN
    path = tmp_path / f"x.{kind}"
    if kind == "png":
        Image.fromarray(pixels).save(path)
    elif kind == "ome.tif":
        tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), metadata=cases.microns(mpp))
    else:
        write_levels(path, pixels, data.draw(st.sampled_from([[1], [1, 2], [1, 4]])), 128, mpp, "lzw")
    options = {"mpp": mpp} if kind == "png" else {}
    with (
        mock.patch.object(tcgn_hub.Predictor, "_begin", share),
        mock.patch("tcgn_hub.prediction.slides.OVERVIEW_PX", overview),
    ):
        result = predictor.slide(path, patch_um=patch_um, min_tissue=0.4, workers=0, **options)
    assert result.slide.mpp == pytest.approx(mpp, rel=1e-4)
    check_places(result, pixels, (left, top, left + across, top + down), (0, 0), patch_um / mpp)


@settings(max_examples=4)
@given(data=st.data())
def test_files_of_a_scan_off_the_origin_point_to_the_same_pixels(tmp_path, predictor, data):
    across, down = (data.draw(st.integers(240, 300), label=name) for name in ("across", "down"))
    left, top = (data.draw(st.integers(40, whole - part - 40)) for whole, part in ((640, across), (512, down)))
    overview = data.draw(st.integers(600, 2000), label="side of the overview")
    patch_um = data.draw(st.floats(40, 70), label="um")
    pixels = np.full((512, 640, 3), GLASS, np.uint8)
    pixels[top : top + down, left : left + across] = STAIN
    path = cases.write_scn(tmp_path, pixels)
    with (
        mock.patch.object(tcgn_hub.Predictor, "_begin", share),
        mock.patch("tcgn_hub.prediction.slides.OVERVIEW_PX", overview),
    ):
        result = predictor.slide(path, patch_um=patch_um, min_tissue=0.4, workers=0)
    check_places(result, pixels, (left, top, left + across, top + down), cases.OFFSET, patch_um / 0.5)
