"""Crops of spots: what the model sees in training is what it sees in prediction, cached or not."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sections import picture, write_section
from test_slides import SVS, pyramid

from tcgn_hub.data import crops
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.data.sections import Section
from tcgn_hub.errors import ImageError, OutputError, SectionError
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.readers.picture import PictureReader
from tcgn_hub.images.tiles import TileReader
from tcgn_hub.images.transforms import IMAGENET_MEAN, IMAGENET_STD, CropMicrons, to_input


def section(image=None, xy=None, **options):
    """A section without counts."""
    xy = np.array([[200.4, 300.5], [400, 350.2], [10, 690], [799, 0]]) if xy is None else np.array(xy, float)
    spots = [f"s{i}" for i in range(len(xy))]
    return Section("S/1", "P", image, spots, xy, ["G"], np.ones((len(xy), 1), np.float32), **options)


@pytest.fixture
def noise(tmp_path):
    return section(picture(tmp_path / "noise.png"), mpp=0.5)


def test_pixels_are_those_of_the_image(noise):
    pixels = np.asarray(Image.open(noise.image))
    for side in (112, 113, 224):
        found = spot_crops(noise, crop_px=side)
        assert found.patch_px == side
        assert found.pixels.dtype == np.uint8
        assert found.pixels.shape == (4, 3, side, side)
        for crop, (x, y) in zip(found.pixels[:2], ((200, 300), (400, 350)), strict=True):
            left, top = x - side // 2, y - side // 2
            assert np.array_equal(crop.transpose(1, 2, 0), pixels[top : top + side, left : left + side])


def test_white_beyond_the_edge(noise):
    low, high = spot_crops(noise, crop_px=112).pixels[2:]
    pixels = np.asarray(Image.open(noise.image)).transpose(2, 0, 1)
    assert (low[:, :, :46] == 255).all()
    assert (low[:, 66:] == 255).all()
    assert np.array_equal(low[:, :66, 46:], pixels[:, 634:, :66])
    assert (high[:, :56] == 255).all()
    assert np.array_equal(high[:, 56:, :57], pixels[:, :56, 743:])


def test_margin_lies_around_the_patch(noise):
    patch, wide = spot_crops(noise, crop_px=112), spot_crops(noise, crop_px=112, margin=0.25)
    assert wide.patch_px == 112
    assert wide.pixels.shape[2:] == (168, 168)
    assert np.array_equal(wide.pixels[:, :, 28:140, 28:140], patch.pixels)


def test_micrometres_and_pixels_agree(noise):
    by_um, by_px = spot_crops(noise, patch_um=56, margin=0.1), spot_crops(noise, crop_px=112, margin=0.1)
    assert np.array_equal(by_um.pixels, by_px.pixels)
    assert by_um.patch_px == by_px.patch_px
    # the same tissue at half the scale
    assert spot_crops(replace(noise, mpp=1.0), patch_um=56).patch_px == 56


def test_the_scale_has_to_be_known_only_for_micrometres(noise):
    unknown = replace(noise, mpp=None)
    assert spot_crops(unknown, crop_px=50).patch_px == 50
    with pytest.raises(SectionError, match=r"S/1 has no known micrometres per pixel to crop 77 um by; give them"):
        spot_crops(unknown, patch_um=77)
    for options in ({}, {"patch_um": 1, "crop_px": 2}):
        with pytest.raises(ValueError, match="either"):
            spot_crops(noise, **options)


def as_seen(pixels):
    """Model input back in 0 to 255."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((to_input(pixels) * std + mean) * 255).numpy()


@pytest.fixture(scope="module")
def texture(tmp_path_factory):
    """Levels of 1, 2 and 8, of a texture that looks alike at none of them."""
    import tifffile

    path = tmp_path_factory.mktemp("texture") / "p.tif"
    rng = np.random.default_rng(0)
    whole = Image.fromarray(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8)).resize((4096, 4096))
    with tifffile.TiffWriter(path) as out:
        for level in (1, 2, 8):
            pixels = np.asarray(whole.resize((4096 // level,) * 2, Image.Resampling.BOX))
            out.write(pixels, tile=(256, 256), photometric="rgb", subfiletype=int(level > 1))
    return path


@pytest.mark.parametrize("native", [112, 150, 225, 448, 700, 1800])
@pytest.mark.parametrize("margin", [0, 0.2])
def test_training_sees_what_a_prediction_sees(texture, native, margin):
    path = texture
    data = section(path, [[2000.3, 1999.8], [1500, 2101]], mpp=0.25)
    found = spot_crops(data, patch_um=native * 0.25, margin=margin)
    edge = (found.pixels.shape[-1] - found.patch_px) // 2
    assert found.patch_px == min(native, 224)
    assert edge == round(margin * found.patch_px)
    central = found.pixels[:, :, edge : edge + found.patch_px, edge : edge + found.patch_px]
    with open_slide(path) as slide:
        level = slide.level_for(native / 224)
        assert level == {112: 0, 150: 0, 225: 0, 448: 1, 700: 1, 1800: 2}[native]
        reader = TileReader(slide, data.xy, native)
        read = np.stack([reader[i][1] for i in range(2)])
    difference = np.abs(as_seen(torch.from_numpy(central.copy())) - as_seen(read))
    # where a patch is resized, what is around it reaches into its edge
    inside = slice(2, -2) if margin else slice(None)
    assert difference[:, :, inside, inside].max() < 1.01


def test_a_real_slide_is_cut_as_it_is_read(tmp_path):
    data = section(SVS, [[900, 1000], [1500.6, 2000.2]], mpp=0.499)
    found = spot_crops(data, patch_um=77)
    side = round(77 / 0.499)
    with open_slide(SVS) as slide:
        for crop, (x, y) in zip(found.pixels, ((900, 1000), (1501, 2000)), strict=True):
            assert np.array_equal(crop.transpose(1, 2, 0), slide.read(x - side // 2, y - side // 2, side, side))


# patches


@pytest.fixture
def patches(tmp_path):
    files = [picture(tmp_path / f"p{i}.png", size=size, seed=i) for i, size in enumerate([(120, 120), (151, 130)])]
    return section(xy=np.full((2, 2), np.nan), patches=files, mpp=0.5)


@pytest.mark.parametrize("side", [120, 101, 50])
def test_patches_are_cut_as_a_prediction_cuts_them(patches, side):
    found = spot_crops(patches, patch_um=side / 2)
    assert found.patch_px == side
    for crop, file in zip(found.pixels, patches.patches, strict=True):
        expected = CropMicrons(mpp=0.5, patch_um=side / 2)(Image.open(file))
        assert np.array_equal(crop.transpose(1, 2, 0), expected)


def test_the_margin_of_a_patch_is_white_where_it_ends(patches):
    found = spot_crops(patches, crop_px=112, margin=0.25).pixels
    assert (found[0, :, :24] == 255).all()
    assert (found[0, :, :, -24:] == 255).all()
    assert np.array_equal(found[0, :, 24:-24, 24:-24].transpose(1, 2, 0), np.asarray(Image.open(patches.patches[0])))


def test_large_patches_are_resized(tmp_path):
    file = picture(tmp_path / "p.png", size=(448, 448))
    found = spot_crops(section(xy=[[0, 0]], patches=[file]), crop_px=448)
    whole = np.asarray(Image.open(file).resize((224, 224), Image.Resampling.BILINEAR))
    assert np.array_equal(found.pixels[0].transpose(1, 2, 0), whole)


def test_patches_that_cannot_be_used_are_named(patches):
    with pytest.raises(SectionError, match=r"spot s0 of section S/1, .*p0.png, is 120 x 120 px, smaller .* 130 px"):
        spot_crops(patches, crop_px=130)
    patches.patches[1].write_bytes(b"no picture")
    with pytest.raises(SectionError, match=r"patch of spot s1 .*p1.png"):
        spot_crops(patches, crop_px=100)


# errors


def test_images_that_cannot_be_decoded_are_named(noise, tmp_path, monkeypatch):
    with pytest.raises(SectionError, match=r"image of section S/1 cannot be read: .*absent.png"):
        spot_crops(replace(noise, image=tmp_path / "absent.png"), crop_px=50)
    with pytest.raises(SectionError, match=r"image of section S/1 cannot be read: .*absent.png"):
        spot_crops(replace(noise, image=tmp_path / "absent.png"), crop_px=50, cache=tmp_path / "cache")
    with pytest.raises(SectionError, match="neither an image nor patches"):
        spot_crops(replace(noise, image=None), crop_px=50)

    def damaged(self, x, y, *args, **options):
        if x > 300:
            raise ImageError("damaged")
        return np.zeros((50, 50, 3), np.uint8)

    monkeypatch.setattr(PictureReader, "read", damaged)
    with pytest.raises(SectionError, match="Spot s1 of section S/1 cannot be cut out: damaged"):
        spot_crops(noise, crop_px=50)


# cache


def no_decoding(*args, **options):
    raise AssertionError("the image was opened")


def test_a_cache_changes_nothing_and_opens_nothing(noise, patches, tmp_path, monkeypatch):
    cache = tmp_path / "a" / "cache"
    for data in (noise, patches):
        plain = spot_crops(data, crop_px=100, margin=0.1)
        first = spot_crops(data, crop_px=100, margin=0.1, cache=cache)
        with monkeypatch.context() as patch:
            patch.setattr(crops, "open_slide", no_decoding)
            again = spot_crops(data, crop_px=100, margin=0.1, cache=str(cache))
        for other in (first, again):
            assert np.array_equal(plain.pixels, other.pixels)
            assert other.patch_px == plain.patch_px == 100
            assert isinstance(other.pixels, np.memmap)
            assert not other.pixels.flags.writeable
    assert len(list(cache.iterdir())) == 2
    assert all(path.name.startswith("S_1-") for path in cache.iterdir())


def test_what_changes_the_pixels_is_cut_anew(noise, patches, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    spot_crops(noise, crop_px=100, cache=cache)
    spot_crops(noise, crop_px=300, cache=cache)
    spot_crops(patches, crop_px=100, cache=cache)
    moved = noise.xy.copy()
    moved[0, 0] += 3
    for data, options in (
        (replace(noise, xy=moved), {"crop_px": 100}),
        (noise.at(np.array([0, 1])), {"crop_px": 100}),
        (noise, {"crop_px": 101}),
        (noise, {"crop_px": 301}),
        (noise, {"crop_px": 100, "margin": 0.1}),
        (noise, {"patch_um": 50.4}),
        (patches.at(np.array([1])), {"crop_px": 100}),
        (replace(patches, patches=patches.patches[::-1]), {"crop_px": 100}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(crops, "open_slide", no_decoding)
            with pytest.raises(AssertionError, match="opened"):
                spot_crops(data, cache=cache, **options)
    old = spot_crops(noise, crop_px=100, cache=cache).pixels[0].copy()
    picture(noise.image, seed=9)
    assert not np.array_equal(spot_crops(noise, crop_px=100, cache=cache).pixels[0], old)
    os.utime(patches.patches[1], ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(crops, "open_slide", no_decoding)
        with pytest.raises(AssertionError, match="opened"):
            spot_crops(patches, crop_px=100, cache=cache)


def test_an_interrupted_cache_is_never_taken(noise, tmp_path, monkeypatch):
    cache, real = tmp_path / "cache", PictureReader.read

    def interrupted(self, x, *args, **options):
        if x > 300:
            raise KeyboardInterrupt
        return real(self, x, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PictureReader, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spot_crops(noise, crop_px=100, cache=cache)
    assert not list(cache.iterdir())
    assert np.array_equal(spot_crops(noise, crop_px=100, cache=cache).pixels, spot_crops(noise, crop_px=100).pixels)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:40],
        lambda whole: b"",
        lambda whole: b"\x80" + whole[1:],
        lambda whole: whole.replace(b"(4, 3,", b"(2, 6,"),
        lambda whole: whole.replace(b"|u1", b"|i1"),
    ],
)
def test_a_damaged_cache_is_cut_anew(noise, tmp_path, damage):
    whole = spot_crops(noise, crop_px=100, cache=tmp_path / "cache").pixels.copy()
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    assert damage(content) != content
    file.write_bytes(damage(content))
    assert np.array_equal(spot_crops(noise, crop_px=100, cache=tmp_path / "cache").pixels, whole)
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_is_one_sentence(noise, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file cannot be made a folder"):
        spot_crops(noise, crop_px=50, cache=tmp_path / "file")

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(crops.np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OutputError, match=r"\.npy cannot be written \(No space left on device\)\.$"):
        spot_crops(noise, crop_px=50, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_full_disk_is_an_error_and_not_the_end(noise):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    shape = len(noise.spots), 3, 100, 100
    with pytest.raises(OSError, match="No space"):
        crops._write(Path("/dev/full"), crops._cut(noise, crops._Plan(100, 100, 100, 224), False), shape)


def test_crops_of_her2st_are_those_of_its_spots(tmp_path):
    write_section(tmp_path, "B1", seed=1)
    (data,) = read_her2st(tmp_path)
    pixels = spot_crops(data, crop_px=112).pixels
    assert pixels.shape == (12, 3, 112, 112)
    assert abs(int(pixels[-1, 1, 56, 56]) - 120) < 10


def test_the_scale_of_a_pyramid_does_not_change_its_spots(tmp_path):
    # the square of tissue is red from 1024 to 2048
    data = section(pyramid(tmp_path / "p.tif", 4096), [[1536, 1536], [3000, 3000]], mpp=0.5)
    for patch_um in (50, 200, 400):
        tissue, glass = spot_crops(data, patch_um=patch_um).pixels
        assert np.abs(tissue.mean(axis=(1, 2)) - (200, 90, 160)).max() < 5
        assert np.abs(glass.mean(axis=(1, 2)) - 245).max() < 2
