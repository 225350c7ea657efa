import golden
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from tcgn_hub.errors import ImageError
from tcgn_hub.images.finding import find_images
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.transforms import (
    CROP_PX,
    IMAGENET_MEAN,
    IMAGENET_STD,
    CropMagnification,
    CropMicrons,
    center_crop,
    to_input,
    to_rgb,
)


def read_image(path) -> Image.Image:
    with open_slide(path) as slide:
        return Image.fromarray(slide.read(0, 0, *slide.size))


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def test_golden_input():
    patches = [_pixels(read_image(golden.FOLDER / f"patch_{i}.png")) for i in range(4)]
    torch.testing.assert_close(to_input(torch.cat(patches)), golden.expected()["input"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [56, 112, 224, 300])
def test_equals_torchvision(size):
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    want = tv.resize(pixels.float() / 255, [224, 224], antialias=True)
    want = tv.normalize(want, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(to_input(pixels), want, atol=1e-4, rtol=0)


def test_batch_equals_one_by_one():
    pixels = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    assert torch.equal(to_input(pixels), torch.cat([to_input(p[None]) for p in pixels]))


@pytest.mark.parametrize(("magnification", "size"), CROP_PX.items())
def test_crop_is_central(magnification, size):
    image = Image.new("RGB", (301, 401))
    image.putpixel((150, 200), (255, 0, 0))
    crop = np.array(center_crop(image, size))
    assert crop.shape == (size, size, 3)
    assert crop[size // 2, size // 2, 0] == 255


def test_too_small_is_refused():
    with pytest.raises(ImageError, match="100 x 300 px, smaller than the crop of 112 x 112"):
        center_crop(Image.new("RGB", (100, 300)), 112)


@pytest.mark.parametrize(
    ("crop", "side"),
    [(CropMagnification(10), 56), (CropMagnification(20), 112), (CropMicrons(0.5), 112), (CropMicrons(0.25, 77), 308)],
)
def test_kinds_of_pictures_agree(crop, side):
    array = np.random.default_rng(0).integers(0, 256, (320, 333, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    batch = torch.stack([tensor, tensor.flip(1)])
    want = np.asarray(crop(image))
    assert want.shape == (side, side, 3)
    assert np.array_equal(crop(array), want)
    assert np.array_equal(crop(np.stack([array, array]))[1], want)
    assert np.array_equal(crop(tensor).permute(1, 2, 0), want)
    assert torch.equal(crop(batch)[1], crop(tensor).flip(1)) or side % 2
    for kind in (crop(image), crop(array), crop(tensor)[None], crop(tensor)[None].float()):
        torch.testing.assert_close(to_input(kind), to_input(crop(tensor)[None]))
    assert crop(batch.to("meta")).shape == (2, 3, side, side)


def test_composes_with_timm():
    import timm

    image = read_image(golden.FOLDER / "patch_0.png").resize((300, 300))
    model = timm.create_model("tcgn_base")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    crop = CropMagnification(20)
    # timm resizes 8-bit pixels and rounds, which is at most 0.5 / 255 / 0.224
    torch.testing.assert_close(transform(crop(image))[None], to_input(crop(image)), atol=0.02, rtol=0)


def test_magnifications_without_a_rule_are_refused():
    with pytest.raises(ImageError, match="Magnification 5 has no crop; give one of 10, 20, 40"):
        CropMagnification(5)


def test_modes_agree_on_the_same_picture():
    gray = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    want = np.repeat(gray[..., None], 3, axis=2)
    rgb = Image.fromarray(want)
    for image in (
        rgb,
        Image.fromarray(gray),
        rgb.convert("RGBA"),
        Image.fromarray(gray).convert("LA"),
        Image.fromarray(gray).convert("P"),
        Image.fromarray(gray.astype(np.uint16) * 256),
    ):
        assert np.array_equal(np.array(to_rgb(image)), want), image.mode
    assert np.array(to_rgb(rgb.convert("CMYK"))).shape == want.shape
    assert np.array(to_rgb(rgb.convert("1"))).shape == want.shape


def test_transparent_is_glass():
    assert np.array(to_rgb(Image.new("RGBA", (4, 4), (0, 0, 0, 0)))).min() == 255


def test_unknown_ranges_are_refused():
    with pytest.raises(ImageError, match="range is unknown"):
        to_rgb(Image.new("F", (4, 4)))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_reads_formats_and_odd_names(tmp_path, suffix):
    path = tmp_path / f"пятно №1 {suffix}"
    Image.new("RGB", (8, 8), "white").save(path)
    assert read_image(path).size == (8, 8)


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.effect_noise((300, 300), 50).convert("RGB").save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    for name in ("text.png", "cut.jpg", "empty.png", "absent.png", "."):
        with pytest.raises(ImageError) as raised:
            read_image(tmp_path / name)
        assert str(tmp_path) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_folders_are_searched(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert [p.name for p in find_images([tmp_path, "x.png"])] == ["a.JPG", "b.png", "x.png"]
    with pytest.raises(ImageError, match="holds no image"):
        find_images([tmp_path / "empty"])
