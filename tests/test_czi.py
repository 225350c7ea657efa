"""CZI that OpenSlide does not read. No writer that can be had stores a pyramid."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cases import tissue

from tcgn_hub.errors import ExtraError, ImageError
from tcgn_hub.images.readers import is_slide_file, open_slide
from tcgn_hub.images.readers.czi import CziReader

czi = pytest.importorskip("pylibCZIrw.czi", reason="needs the extra czi")
WIDTH, HEIGHT = 640, 512


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return tissue(WIDTH, HEIGHT)


def write(path, pixels, *, scale=(0.5e-6, 0.5e-6), planes=1, channels=1, options=None):
    """A CZI in two parts, left of and below the origin; all planes but the middle are black."""
    with czi.create_czi(str(path), exist_ok=True, compression_options=options) as out:
        for z in range(planes):
            for c in range(channels):
                plane = pixels if z == planes // 2 else np.zeros_like(pixels)
                for x in (0, 400):
                    part = np.ascontiguousarray(plane[:, x : x + 400, ::-1])
                    out.write(part, location=(x - 50, 10), plane={"Z": z, "C": c, "T": 0})
        if scale:
            out.write_metadata("a", scale_x=scale[0], scale_y=scale[1])
    return path


def refused(path, match):
    with pytest.raises(ImageError, match=match) as caught, open_slide(path) as slide:
        slide.read(0, 0, *slide.size)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [None, "zstd1:ExplicitLevel=2", "uncompressed:"])
def test_pixels_and_scale(tmp_path, rgb, options):
    path = write(tmp_path / "a.czi", rgb, options=options)
    assert is_slide_file(path)
    with open_slide(path) as slide:
        assert isinstance(slide, CziReader)
        assert slide.size == (WIDTH, HEIGHT)
        assert slide.scale.mpp == pytest.approx(0.5)
        assert slide.downsamples == (1.0,)
        assert slide.chosen == ""
        assert np.array_equal(slide.read(0, 0, WIDTH, HEIGHT), rgb)
        assert np.array_equal(slide.read(390, 70, 30, 20), rgb[70:90, 390:420])
        beyond = slide.read(-10, HEIGHT - 5, 30, 20)
        assert (beyond[:, :10] == 255).all()
        assert (beyond[5:] == 255).all()
        assert np.array_equal(beyond[:5, 10:], rgb[-5:, :20])
        assert slide.overview(100)[0].shape == (80, 100, 3)
    with pytest.raises(ImageError, match="holds one image"):
        open_slide(path, series=1)


def test_levels_are_those_that_are_stored(tmp_path, rgb):
    with open_slide(write(tmp_path / "a.czi", rgb)) as slide:
        parts = [(400, 400), (800, 400), (1600, 400), (1601, 400), (400, 0), (200, 400)]

        def enumerate_subblocks(look):
            for logical, stored in parts:
                look(0, SimpleNamespace(logicalRect=SimpleNamespace(w=logical), physicalSize=SimpleNamespace(w=stored)))

        real, slide._czi = slide._czi, SimpleNamespace(enumerate_subblocks=enumerate_subblocks)
        slide.downsamples = slide._stored()
        slide._czi = real
        assert slide.downsamples == (1.0, 2.0, 4.0)
        # of a file without a pyramid libCZI leaves pixels out
        assert np.array_equal(slide.read(100, 60, 50, 40, level=1), rgb[60:140:2, 100:200:2])
        assert slide.read(600, 500, 50, 40, level=2).shape == (40, 50, 3)


def test_the_middle_of_a_stack(tmp_path, rgb):
    with open_slide(write(tmp_path / "a.czi", rgb, planes=5)) as slide:
        assert np.array_equal(slide.read(0, 0, WIDTH, HEIGHT), rgb)
        assert slide.chosen == "plane 2 of 0 to 4 of the stack is taken"


def test_scales(tmp_path, rgb):
    for name, scale in (("none", None), ("large", (1.0, 1.0))):
        with open_slide(write(tmp_path / f"{name}.czi", rgb, scale=scale)) as slide:
            assert slide.scale is None
    refused(write(tmp_path / "a.czi", rgb, scale=(0.5e-6, 1e-6)), r"0\.5 x 1 um .*not square")


def test_what_is_no_colour_is_refused(tmp_path, rgb):
    grey = rgb[..., :1]
    refused(write(tmp_path / "grey.czi", grey), "its channels are 1 of Gray8.*save it as RGB")
    refused(write(tmp_path / "deep.czi", grey.astype(np.uint16)), "1 of Gray16")
    refused(write(tmp_path / "two.czi", rgb, channels=2), "2 of Bgr24")


def test_damage(tmp_path, rgb):
    whole = write(tmp_path / "a.czi", rgb).read_bytes()
    for share in (0.001, 0.3, 0.9):
        (tmp_path / "cut.czi").write_bytes(whole[: int(len(whole) * share)])
        refused(tmp_path / "cut.czi", "damaged|cannot be decoded")


def test_without_the_library(tmp_path, rgb, monkeypatch):
    path = write(tmp_path / "a.czi", rgb)
    monkeypatch.setitem(sys.modules, "pylibCZIrw.czi", None)
    with pytest.raises(ExtraError, match=r"install pylibCZIrw: pip install 'tcgn_hub\[czi\]'"):
        open_slide(path)
