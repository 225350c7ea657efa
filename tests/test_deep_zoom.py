"""The squares of a slide that a viewer asks for."""

import io
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcgn_hub.errors import ImageError
from tcgn_hub.images import deep_zoom
from tcgn_hub.images.deep_zoom import DeepZoom
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.readers.picture import ArraySlide

SVS = Path(__file__).parents[1] / "examples/cmu_small_region.svs"


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Pictures that JPEG changes little."""
    monkeypatch.setattr(deep_zoom, "_QUALITY", 98)


def picture(width=1300, height=700):
    """Broad waves, each channel other ones."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [np.sin(x / 90 + k) + np.cos(y / (60 + 20 * k)) for k in range(3)]
    return (127 + 60 * np.stack(waves, axis=2)).astype(np.uint8)


def level_of(zoom, level):
    """All squares of a level, put together, and how many there are."""
    finest = math.ceil(math.log2(max(zoom.size)))
    width, height = (math.ceil(side / 2 ** (finest - level)) for side in zoom.size)
    out, squares = np.zeros((height, width, 3), np.uint8), 0
    for row in range(math.ceil(height / 512)):
        for column in range(math.ceil(width / 512)):
            part = np.asarray(Image.open(io.BytesIO(zoom.square(level, column, row))))
            out[row * 512 : row * 512 + part.shape[0], column * 512 : column * 512 + part.shape[1]] = part
            squares += 1
    return out, squares


@pytest.mark.parametrize("size", [(1300, 700), (512, 512), (513, 1024), (1, 1)])
def test_every_level_is_the_whole_slide_at_half_of_the_next(size):
    pixels = picture(*size)
    zoom = DeepZoom(ArraySlide(Path("x.png"), pixels), size)
    finest = math.ceil(math.log2(max(size)))
    for level in range(finest + 1):
        found, squares = level_of(zoom, level)
        assert squares == math.prod(math.ceil(n / 512) for n in found.shape[:2])
        expected = Image.fromarray(pixels).resize(found.shape[1::-1], Image.Resampling.BOX)
        # of the smallest levels JPEG keeps hardly any colour
        assert min(found.shape[:2]) < 32 or np.abs(found - np.asarray(expected, int)).mean() < 4
    info = ElementTree.fromstring(zoom.xml)
    assert (info[0].get("Width"), info[0].get("Height"), info.get("Overlap")) == (str(size[0]), str(size[1]), "0")


def test_what_is_not_there_is_a_key_error():
    zoom = DeepZoom(ArraySlide(Path("x.png"), picture()), (1300, 700))
    for place in ((11, 3, 0), (11, 0, 2), (12, 0, 0), (10, 2, 0), (-1, 0, 0)):
        with pytest.raises(KeyError):
            zoom.square(*place)
    zoom.square(11, 2, 1)


def test_a_slide_is_read_from_its_levels():
    with open_slide(SVS) as slide:
        zoom = DeepZoom(slide, slide.size)
        finest = math.ceil(math.log2(max(slide.size)))
        whole = Image.fromarray(slide.read(0, 0, *slide.size))
        for level in (finest, finest - 3):
            found, _ = level_of(zoom, level)
            expected = np.asarray(whole.resize(found.shape[1::-1], Image.Resampling.BOX)).astype(int)
            assert np.abs(found - expected).mean() < 4


def test_the_overview_stands_in_for_the_slide_and_for_levels_that_it_lacks(monkeypatch):
    pixels = picture()
    coarse = np.asarray(Image.fromarray(pixels).resize((650, 350), Image.Resampling.BOX))
    alone = DeepZoom(None, (1300, 700), coarse)
    for level in (11, 9, 5):
        found, _ = level_of(alone, level)
        whole, _ = level_of(DeepZoom(ArraySlide(Path("x.png"), pixels), (1300, 700)), level)
        assert np.abs(found.astype(int) - whole).mean() < 3
    read = []

    class Recorded(ArraySlide):
        def read(self, x, y, width, height, *, level=0):
            read.append(width * height)
            return super().read(x, y, width, height, level=level)

    monkeypatch.setattr(deep_zoom, "_MOST_PIXELS", 512 * 512)
    level_of(DeepZoom(Recorded(Path("x.png"), pixels), (1300, 700), coarse), 8)
    assert read == []
    level_of(DeepZoom(Recorded(Path("x.png"), pixels), (1300, 700), coarse), 11)
    assert max(read) == 512 * 512


def test_what_cannot_be_decoded_is_white():
    class Damaged(ArraySlide):
        def read(self, x, y, width, height, *, level=0):
            raise ImageError("damaged")

    found, _ = level_of(DeepZoom(Damaged(Path("x.png"), picture()), (1300, 700)), 11)
    assert (found == 255).all()
