"""Files as users have them: a test a kind with its right value, and the siblings of each kind."""

import shutil
import struct

import cases
import imagecodecs
import numpy as np
import pytest
import tifffile
from cases import CASES, CM, Files, microns, tissue
from PIL import Image, ImageCms

from tcgn_hub.errors import ImageError
from tcgn_hub.images.finding import find_images
from tcgn_hub.images.readers import open_slide
from tcgn_hub.prediction.patches import cut_image
from tcgn_hub.weights.info import WeightsInfo

INFO = WeightsInfo("x", crop={"patch_um": 20})


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_weights) -> Files:
    return Files(cases.write_all(tmp_path_factory.mktemp("cases")), tiny_weights)


@pytest.mark.parametrize("known", CASES, ids=[known.kind for known in CASES])
def test_every_kind_has_its_right_value(known, files):
    said, fits = known.today(files)
    assert fits, said


def test_there_are_sixteen_kinds():
    assert len({known.kind for known in CASES}) == 16


# siblings

SMALL = (96, 80)


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return tissue(*SMALL)


def opened(path, **options):
    """Pixels, size, scale and what is said of a file; its size is that of its pixels."""
    with open_slide(path, **options) as slide:
        return slide.read(0, 0, *slide.size), slide.scale, slide.chosen


def pixels_of(path, **options):
    return opened(path, **options)[0]


def scale_of(path):
    scale = opened(path)[1]
    return scale and scale.mpp


def refused(path, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        opened(path, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert path.name in said
    assert said.endswith(".")
    return said


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", **options})
    return path


# scale


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (0.5, "µm"),
        (0.5, "μm"),
        (0.5, "um"),
        (0.5, None),
        (500, "nm"),
        (5e-4, "mm"),
        (5e-5, "cm"),
        (5e-7, "m"),
        (5000, "Å"),
        (5e5, "pm"),
        (0.5 / 25400, "in"),
    ],
)
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_ome_scale_in_any_unit(tmp_path, rgb, value, unit, tile):
    path = write(tmp_path / "x.ome.tif", rgb, ome=True, tile=tile, metadata=microns(value, unit))
    assert scale_of(path) == pytest.approx(0.5)


def patched(path, old, new):
    """A file whose OME-XML says something else, of any length."""
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata
    assert old in text
    tifffile.tiffcomment(path, text.replace(old, new).encode())
    return path


@pytest.mark.parametrize("written", ["&#181;m", "&#xB5;m", "&#956;m", "Âµm"])
def test_ome_scale_whose_sign_is_written_in_another_way(tmp_path, rgb, written):
    path = write(tmp_path / "x.ome.tif", rgb, ome=True, metadata=microns(0.5))
    assert scale_of(patched(path, "µm", written)) == pytest.approx(0.5)


def test_ome_scale_of_units_that_are_no_length(tmp_path, rgb):
    for unit in ("pixel", "reference frame"):
        assert scale_of(write(tmp_path / "x.ome.tif", rgb, ome=True, metadata=microns(0.5, unit))) is None


def test_ome_scale_whose_unit_is_stated_once(tmp_path, rgb):
    # a side without a unit is in micrometres, by the schema; one that says nothing is that of the other
    facts = microns(0.5, "µm")
    del facts["PhysicalSizeYUnit"]
    assert scale_of(write(tmp_path / "a.ome.tif", rgb, ome=True, metadata=facts)) == pytest.approx(0.5)
    facts = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}
    assert scale_of(write(tmp_path / "b.ome.tif", rgb, ome=True, metadata=facts)) == pytest.approx(0.5)
    facts = {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 500}
    assert scale_of(write(tmp_path / "c.ome.tif", rgb, ome=True, metadata=facts)) == pytest.approx(0.5)


@pytest.mark.parametrize("unit", ["micron", "\\u00B5m", "um", "nm", "cm", "inch"])
def test_imagej_scale(tmp_path, rgb, unit):
    size = 0.5 / {"nm": 1e-3, "cm": 1e4, "inch": 25400}.get(unit, 1)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, rgb, imagej=True, resolution=(1 / size, 1 / size), metadata={"unit": unit, "axes": "YXS"})
    assert scale_of(path) == pytest.approx(0.5, rel=1e-3)
    assert np.array_equal(pixels_of(path), rgb)


@pytest.mark.parametrize(("unit", "density"), [("CENTIMETER", 2e4), ("INCH", 50800), (None, 50800), ("NONE", 2e4)])
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_scale_of_the_tags(tmp_path, rgb, unit, density, tile):
    path = write(tmp_path / "x.tif", rgb, resolution=(density, density), resolutionunit=unit, tile=tile)
    assert scale_of(path) == (None if unit == "NONE" else pytest.approx(0.5))


def test_pixels_that_are_nearly_square_have_one_scale(tmp_path, rgb):
    path = write(tmp_path / "x.tif", rgb, resolution=(2e4, 2e4 / 1.015), resolutionunit="CENTIMETER")
    assert scale_of(path) == pytest.approx(0.5 * (1 + 1.015) / 2)
    path = write(tmp_path / "y.ome.tif", rgb, ome=True, metadata=microns(0.5, y=0.5 * 1.015))
    assert scale_of(path) == pytest.approx(0.5 * (1 + 1.015) / 2)


def test_pixels_that_are_not_square_are_refused_wherever_it_is_stated(tmp_path, rgb):
    for name, options in (
        ("tags.tif", {"resolution": (2e4, 2e4 / 1.03), "resolutionunit": "CENTIMETER"}),
        ("tiled.tif", {"resolution": (2e4, 2e4 / 1.03), "resolutionunit": "CENTIMETER", "tile": (32, 32)}),
        ("x.ome.tif", {"ome": True, "metadata": microns(0.5, y=0.515)}),
        ("units.ome.tif", {"ome": True, "metadata": microns(0.5, y=500) | {"PhysicalSizeYUnit": "um"}}),
    ):
        refused(write(tmp_path / name, rgb, **options), "not square")
    Image.fromarray(rgb).save(tmp_path / "x.png", dpi=(50800, 25400))
    refused(tmp_path / "x.png", "not square")


# colours


@pytest.mark.parametrize(
    "names", ["Red Green Blue", "Blue Green Red", "green red blue", "R G B", "b g r", "RED Blue GREEN"]
)
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_planes_by_their_names(tmp_path, rgb, names, tile):
    order = ["rgb".index(name[0].lower()) for name in names.split()]
    planes = np.moveaxis(rgb, -1, 0)[order]
    facts = microns(0.5, axes="CYX", Channel={"Name": names.split()})
    path = write(tmp_path / "x.ome.tif", planes, photometric="minisblack", ome=True, metadata=facts, tile=tile)
    assert np.array_equal(pixels_of(path), rgb)


@pytest.mark.parametrize("names", [None, ["Channel 0", "Channel 1", "Channel 2"], ["C1", "C2", "C3"], ["0", "1", "2"]])
def test_planes_by_their_colours_alone(tmp_path, rgb, names):
    colours = np.array([0x0000FFFF, 0x00FF00FF, 0xFF0000FF], np.uint32).astype(np.int32).tolist()
    channel = {"Color": colours, **({"Name": names} if names else {})}
    planes = np.moveaxis(rgb, -1, 0)[::-1]
    facts = microns(0.5, axes="CYX", Channel=channel)
    path = write(tmp_path / "x.ome.tif", planes, photometric="minisblack", ome=True, metadata=facts)
    assert np.array_equal(pixels_of(path), rgb)


@pytest.mark.parametrize(
    "channel",
    [
        {"Name": ["DAPI", "FITC", "TRITC"], "Color": [0x0000FFFF, 0x00FF00FF, -16776961]},
        {"Name": ["DAPI", "FITC", "TRITC"]},
        {"Name": ["Red", "Green", "DAPI"]},
        {"Name": ["Red", "Red", "Blue"]},
        {},
        {"Name": ["H", "E"]},
        {"Name": ["Red", "Green", "Blue", "IR"]},
    ],
)
@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_channels_that_are_no_colours_are_refused(tmp_path, rgb, channel, tile):
    count = len(channel.get("Name", "abc"))
    planes = np.moveaxis(np.concatenate([rgb, rgb], axis=2)[..., :count], -1, 0)
    facts = microns(0.5, axes="CYX", Channel=channel)
    path = write(tmp_path / "x.ome.tif", planes, photometric="minisblack", ome=True, metadata=facts, tile=tile)
    refused(path, f"holds {count} channels .* save it as RGB")


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("layout", ["contig", "separate", "planes"])
@pytest.mark.parametrize("parts", [{"tile": (32, 48)}, {"rowsperstrip": 7}, {}])
def test_depth_layout_and_parts_change_nothing(tmp_path, rgb, depth, layout, parts):
    pixels = rgb if depth == 8 else rgb.astype(np.uint16) * 257
    if layout == "contig":
        path = write(tmp_path / "x.tif", pixels, **parts)
    elif layout == "separate":
        path = write(
            tmp_path / "x.tif", np.moveaxis(pixels, -1, 0), planarconfig="separate", compression="zlib", **parts
        )
        with tifffile.TiffFile(path) as file:
            assert file.pages[0].planarconfig == 2
    else:
        facts = microns(0.5, axes="CYX", Channel={"Name": ["Red", "Green", "Blue"]})
        path = tmp_path / "x.ome.tif"
        write(path, np.moveaxis(pixels, -1, 0), photometric="minisblack", ome=True, metadata=facts, **parts)
    assert np.array_equal(pixels_of(path), rgb)


def test_twelve_significant_bits(tmp_path, rgb):
    facts = microns(0.5) | {"SignificantBits": 12}
    path = write(tmp_path / "x.ome.tif", rgb.astype(np.uint16) * 16 + 15, ome=True, metadata=facts)
    assert np.array_equal(pixels_of(path), rgb)


@pytest.mark.parametrize("dtype", ["float32", "uint32", "float64", "int16", "int8", "float16"])
@pytest.mark.parametrize("parts", [{}, {"tile": (32, 32)}])
def test_samples_of_unknown_range_are_refused(tmp_path, rgb, dtype, parts):
    refused(write(tmp_path / "x.tif", (rgb / 4).astype(dtype), **parts), "stored as .*, whose range is unknown")


@pytest.mark.parametrize("parts", [{}, {"tile": (32, 32)}])
def test_grey_white_is_zero_and_palette(tmp_path, rgb, parts):
    grey = rgb[..., 1]
    want = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(pixels_of(write(tmp_path / "a.tif", grey, photometric="minisblack", **parts)), want)
    assert np.array_equal(pixels_of(write(tmp_path / "b.tif", 255 - grey, photometric="miniswhite", **parts)), want)
    deep = grey.astype(np.uint16) * 257
    assert np.array_equal(pixels_of(write(tmp_path / "c.tif", deep, photometric="minisblack", **parts)), want)
    assert np.array_equal(pixels_of(write(tmp_path / "d.tif", 65535 - deep, photometric="miniswhite", **parts)), want)
    table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    path = write(tmp_path / "e.tif", grey, photometric="palette", colormap=table * 257, **parts)
    assert np.array_equal(pixels_of(path), table.astype(np.uint8).T[grey])


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("parts", [{}, {"tile": (32, 32)}])
def test_alpha_is_over_white(tmp_path, rgb, parts, depth):
    alpha = np.random.default_rng(0).integers(0, 256, (*rgb.shape[:2], 1)).astype(np.uint8)
    over = rgb * (alpha / 255) + 255 - alpha
    straight = np.concatenate([rgb, alpha], axis=2)
    associated = np.concatenate([np.round(rgb * (alpha / 255)).astype(np.uint8), alpha], axis=2)
    for kind, pixels in (("unassalpha", straight), ("assocalpha", associated)):
        pixels = pixels if depth == 8 else pixels.astype(np.uint16) * 257
        path = write(tmp_path / f"{kind}.tif", pixels, extrasamples=[kind], **parts)
        assert np.abs(pixels_of(path) - over).max() <= 1.01, kind
    # a sample of which nothing is said is no alpha
    path = write(tmp_path / "unspecified.tif", straight, extrasamples=["unspecified"], **parts)
    assert np.array_equal(pixels_of(path), rgb)


# codecs

LOSSLESS = {
    "none": {},
    "lzw": {"compression": "lzw"},
    "lzw and predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "deflate"},
    "adobe_deflate": {"compression": "adobe_deflate"},
    "zlib and predictor": {"compression": "zlib", "predictor": True},
    "packbits": {"compression": "packbits"},
    "lzma": {"compression": "lzma"},
    "zstd": {"compression": "zstd"},
    "png": {"compression": "png"},
    "lerc": {"compression": "lerc"},
    "lerc and zstd": {"compression": "lerc", "compressionargs": {"compression": "zstd"}},
    "webp": {"compression": "webp", "compressionargs": {"lossless": True}},
    "jpeg2000": {"compression": "jpeg2000"},
    "jpegxl": {"compression": "jpegxl", "compressionargs": {"lossless": True}},
}
LOSSY = {
    "jpegxr": {"compression": "jpegxr", "compressionargs": {"level": 0.95}},
    "jpeg": {"compression": "jpeg", "compressionargs": {"level": 95}},
    "jpeg 4:2:0": {"compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": (2, 2)},
    "jpeg 4:2:2": {"compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": (2, 1)},
    "jpeg of RGB": {"compression": "jpeg", "compressionargs": {"level": 95, "outcolorspace": "rgb"}},
    "webp": {"compression": "webp", "compressionargs": {"level": 90}},
    "jpegxl": {"compression": "jpegxl", "compressionargs": {"distance": 0.5}},
}


@pytest.mark.parametrize("parts", [{"tile": (32, 48)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_codecs(tmp_path, rgb, codec, parts):
    path = write(tmp_path / "x.tif", rgb, **LOSSLESS[codec], **parts)
    assert np.array_equal(pixels_of(path), rgb)


@pytest.mark.parametrize("parts", [{"tile": (32, 48)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
@pytest.mark.parametrize("codec", LOSSY)
def test_lossy_codecs(tmp_path, rgb, codec, parts):
    path = write(tmp_path / "x.tif", rgb, **LOSSY[codec], **parts)
    # colours that are taken for others, or planes that are swapped, are tens of levels off
    assert np.abs(pixels_of(path).astype(int) - rgb).mean() < 6


@pytest.mark.parametrize("sampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("parts", [{"tile": (32, 48)}, {"rowsperstrip": 16}], ids=["tiles", "strips"])
def test_jpeg_with_tables(tmp_path, rgb, sampling, parts):
    """As libtiff writes it: tables once a page, abbreviated streams."""
    path = tmp_path / "x.tif"
    side, rows = (48, 32) if "tile" in parts else (SMALL[0], 16)
    streams = []
    for y in range(0, SMALL[1], rows):
        for x in range(0, SMALL[0], side):
            full = np.zeros((rows, side, 3), np.uint8)
            part = rgb[y : y + rows, x : x + side]
            full[: part.shape[0], : part.shape[1]] = part
            streams.append(imagecodecs.jpeg8_encode(full, level=95, subsampling=sampling))
    tables, bodies = zip(*(_split(stream) for stream in streams), strict=True)
    assert len(set(tables)) == 1
    tifffile.imwrite(
        path,
        iter(bodies),
        shape=rgb.shape,
        dtype=np.uint8,
        photometric="ycbcr",
        subsampling=sampling,
        compression="jpeg",
        jpegtables=tables[0],
        **parts,
    )
    with tifffile.TiffFile(path) as file:
        assert file.pages[0].jpegtables is not None
    assert np.abs(pixels_of(path).astype(int) - rgb).mean() < 6


def _split(stream):
    """Tables, and what is left, of a stream of JPEG."""
    at, tables, rest = 2, b"\xff\xd8", b"\xff\xd8"
    while True:
        marker, length = stream[at + 1], struct.unpack(">H", stream[at + 2 : at + 4])[0]
        segment = stream[at : at + 2 + length]
        if marker == 0xDA:
            return tables + b"\xff\xd9", rest + stream[at:]
        if marker in (0xDB, 0xC4):
            tables += segment
        else:
            rest += segment
        at += 2 + length


@pytest.mark.parametrize("compression", [33003, 33005])
@pytest.mark.parametrize("vendor", [False, True])
def test_jpeg2000_of_aperio(tmp_path, compression, vendor):
    pixels = tissue(300, 260)
    path = tmp_path / ("x.svs" if vendor else "x.tif")
    streams = []
    for y in range(0, 260, 240):
        for x in range(0, 300, 240):
            full = np.zeros((240, 240, 3), np.uint8)
            part = pixels[y : y + 240, x : x + 240]
            full[: part.shape[0], : part.shape[1]] = part
            if compression == 33003:
                full = np.asarray(Image.fromarray(full).convert("YCbCr"))
            streams.append(imagecodecs.jpeg2k_encode(full, codecformat="j2k", mct=False, reversible=True))
    text = "Aperio Image Library v10\r\n300x260 [0,0 300x260] (240x240) J2K/YUV16 Q=70|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(
        path,
        iter(streams),
        shape=pixels.shape,
        dtype=np.uint8,
        photometric="rgb",
        compression="jpeg2000",
        tile=(240, 240),
        description=text if vendor else None,
        metadata=None,
    )
    _overwrite_tag(path, 259, compression)
    got = pixels_of(path)
    assert np.abs(got.astype(int) - pixels).mean() < 3
    if vendor:
        assert scale_of(path) == pytest.approx(0.5)


def _overwrite_tag(path, code, value):
    """Give every page another value of a tag."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        places = [page.tags[code].valueoffset for page in file.pages]
        order = file.byteorder
    with open(path, "r+b") as handle:
        for place in places:
            handle.seek(place)
            handle.write(struct.pack(f"{order}H", value))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("depth", [8, 16])
def test_order_of_bytes_and_big_tiff(tmp_path, rgb, order, big, depth):
    pixels = rgb if depth == 8 else rgb.astype(np.uint16) * 257
    for parts in ({"tile": (32, 32)}, {}):
        path = write(tmp_path / "x.tif", pixels, byteorder=order, bigtiff=big, **CM, **parts)
        assert np.array_equal(pixels_of(path), rgb)
        assert scale_of(path) == pytest.approx(0.5)


# images of a file


def several(path, parts):
    """An OME-TIFF of images, each (name, downsampling, whether it states its scale)."""
    pixels = tissue(320, 256)
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, downsample, stated in parts:
            facts = microns(0.5 * downsample) if stated else {"axes": "YXS"}
            file.write(
                pixels[::downsample, ::downsample].copy(),
                photometric="rgb",
                tile=(64, 64),
                metadata={**facts, "Name": name},
            )
    return path


@pytest.mark.parametrize(
    ("parts", "taken"),
    [
        ([("macro", 8, True), ("scan", 1, True)], 1),
        ([("scan", 1, True), ("macro", 8, True)], 0),
        ([("label", 8, False), ("scan", 1, True), ("macro", 4, False)], 1),
        ([("label", 1, False), ("scan", 2, True)], 1),
        ([("thumbnail", 1, True), ("a", 2, True)], 1),
        ([("a", 4, True), ("b", 1, False)], 1),
        ([("a", 4, False), ("b", 1, True), ("c", 2, True)], 1),
        ([("a", 1, True), ("b", 1, True)], 0),
        ([("x", 8, True), ("y", 2, True), ("z", 4, True)], 1),
        ([("slide_macro", 1, True), ("slide_scan", 2, True)], 1),
        ([("Label_image", 1, True), ("region1", 2, True)], 1),
    ],
)
def test_the_scan_is_found_wherever_it_stands(tmp_path, parts, taken):
    path = several(tmp_path / "x.ome.tif", parts)
    with open_slide(path) as slide:
        assert slide.series == taken
        assert f"image {taken} of 0 to {len(parts) - 1} is taken" in slide.chosen
        downsample = parts[taken][1]
        assert slide.size == (320 // downsample, 256 // downsample)
    for i, (_, downsample, _) in enumerate(parts):
        assert pixels_of(path, series=i).shape == (256 // downsample, 320 // downsample, 3)
    refused(path, f"holds {len(parts)} images", series=len(parts))


@pytest.mark.parametrize("layout", ["subifds", "pages", "ome subifds"])
def test_pyramids(tmp_path, layout):
    pixels = tissue(640, 512)
    path = tmp_path / ("x.ome.tif" if "ome" in layout else "x.tif")
    with tifffile.TiffWriter(path, ome="ome" in layout) as file:
        inner = "subifds" in layout
        facts = {"metadata": microns(0.5)} if "ome" in layout else {"metadata": None, **CM}
        file.write(pixels, subifds=2 if inner else None, tile=(128, 128), photometric="rgb", **facts)
        for n in (2, 4):
            file.write(pixels[::n, ::n].copy(), subfiletype=1, tile=(128, 128), photometric="rgb", metadata=None)
    with open_slide(path) as slide:
        assert slide.downsamples == (1, 2, 4)
        assert slide.chosen == ""
        assert slide.scale.mpp == pytest.approx(0.5)
        for level, n in enumerate((1, 2, 4)):
            assert np.array_equal(slide.read(64, 128, 60, 50, level=level), pixels[128::n, 64::n][:50, :60])


@pytest.mark.parametrize("axes", ["ZYXS", "TYXS"])
def test_of_a_stack_the_middle_and_of_times_the_first(tmp_path, rgb, axes):
    stack = np.stack([255 - rgb, rgb, rgb // 2] if axes[0] == "Z" else [rgb, rgb // 2])
    path = write(tmp_path / "x.ome.tif", stack, ome=True, metadata=microns(0.5, axes=axes))
    got, _, said = opened(path)
    assert np.array_equal(got, rgb)
    assert ("plane 1 of 0 to 2 of the stack is taken" in said) == (axes[0] == "Z")


# what is missing


def _empty(path, index, *, offset, count):
    """Overwrite where a tile lies and how long it is."""
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        order = file.byteorder
        places = []
        for codes, value in (((324, 273), offset), ((325, 279), count)):
            tag = next(tags[code] for code in codes if code in tags)
            places.append(
                (tag.valueoffset + index * (tag.valuebytecount // tag.count), tag.valuebytecount // tag.count, value)
            )
    with open(path, "r+b") as handle:
        for place, size, value in places:
            if value is not None:
                handle.seek(place)
                handle.write(struct.pack(order + {2: "H", 4: "I", 8: "Q"}[size], value))
    return path


@pytest.mark.parametrize(("offset", "count"), [(0, 0), (None, 0), (0, None)])
@pytest.mark.parametrize("compression", [None, "jpeg", "deflate"])
@pytest.mark.parametrize("layout", ["tiles", "planes"])
def test_tiles_that_are_missing_are_white(tmp_path, offset, count, compression, layout):
    pixels = tissue(128, 96)
    path = tmp_path / "x.tif"
    if layout == "planes":
        options = {
            "photometric": "minisblack",
            "ome": True,
            "metadata": microns(0.5, axes="CYX", Channel={"Name": list("RGB")}),
        }
        path = tmp_path / "x.ome.tif"
        write(path, np.moveaxis(pixels, -1, 0), tile=(32, 32), compression=compression, **options)
    else:
        write(path, pixels, tile=(32, 32), compression=compression)
    whole = pixels_of(path)
    got = pixels_of(_empty(path, 5, offset=offset, count=count))
    assert (got[32:64, 32:64] == 255).all()
    got[32:64, 32:64] = whole[32:64, 32:64]
    assert np.array_equal(got, whole)


def test_a_file_whose_data_lie_beyond_four_gibibytes(tmp_path):
    pixels = tissue(128, 96)
    path = write(tmp_path / "x.tif", pixels, tile=(32, 32), bigtiff=True, **CM)
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags[324]
        offsets = np.array(file.pages[0].dataoffsets)
        counts = np.array(file.pages[0].databytecounts)
    far = (5 << 30) - offsets[0]
    with open(path, "r+b") as handle:
        for offset, count in zip(offsets, counts, strict=True):
            handle.seek(offset)
            data = handle.read(count)
            handle.seek(offset + far)
            handle.write(data)
        handle.seek(tag.valueoffset)
        handle.write((offsets + far).astype("<u8").tobytes())
    assert path.stat().st_size > 5 << 30
    assert path.stat().st_blocks * 512 < 1 << 24
    assert np.array_equal(pixels_of(path), pixels)


def test_a_multi_file_slide_without_its_folder(tmp_path):
    (tmp_path / "x.mrxs").write_bytes(b"\xff\xd8\xff\xe0" + b"\0" * 64)
    assert "needs the folder x beside it" in refused(tmp_path / "x.mrxs", "beside it")


# names


@pytest.mark.parametrize(
    "name", ["a#1", "new\nline", "срез №1", "a b", "a%20b", "q?", "x[1]", "\U0001f52c", "-o", "it's"]
)
def test_names(tmp_path, rgb, name):
    for suffix, options in ((".tif", {"tile": (32, 32)}), (".ome.tif", {"ome": True}), (".png", None)):
        path = tmp_path / f"{name}{suffix}"
        if options is None:
            Image.fromarray(rgb).save(path)
        else:
            write(path, rgb, **options)
        assert np.array_equal(pixels_of(path), rgb), path
        assert path in find_images([tmp_path])
    path = tmp_path / f"{name}.svs"
    path.symlink_to(cases.SVS)
    with open_slide(path) as slide:
        assert slide.size == (2220, 2967)


def test_an_error_is_one_sentence_whatever_the_name(tmp_path):
    path = tmp_path / "new\nline.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    with pytest.raises(ImageError) as caught:
        opened(path)
    assert str(caught.value).count("new\\nline.png") == 1
    assert str(caught.value).isprintable()


def test_links_and_folders_that_cannot_be_written(tmp_path, rgb):
    real = tmp_path / "real"
    real.mkdir()
    write(real / "x.tif", rgb, tile=(32, 32), **CM)
    links = tmp_path / "links"
    links.mkdir()
    (links / "link.tif").symlink_to(real / "x.tif")
    (links / "gone.tif").symlink_to(real / "gone.tif")
    (tmp_path / "folder").symlink_to(real)
    assert np.array_equal(pixels_of(links / "link.tif"), rgb)
    assert [path.name for path in find_images([tmp_path / "folder"])] == ["x.tif"]
    refused(links / "gone.tif", "does not exist")
    real.chmod(0o555)
    try:
        assert np.array_equal(pixels_of(real / "x.tif"), rgb)
    finally:
        real.chmod(0o755)


# pictures

TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
"""How upright pixels are stored, by the EXIF orientation that says so."""


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_pictures_are_turned_upright(tmp_path, rgb, orientation, suffix):
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](rgb)))
    path = tmp_path / f"x.{suffix}"
    if suffix == "tif":
        stored.save(path, tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        stored.save(
            path, exif=exif, **{"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
        )
    got = pixels_of(path)
    assert got.shape == rgb.shape
    assert np.abs(got.astype(int) - rgb).max() <= (12 if suffix == "jpg" else 0)
    with open_slide(path) as slide:
        assert slide.size == SMALL


def test_cmyk_of_adobe(tmp_path, rgb):
    path = tmp_path / "x.jpg"
    Image.fromarray(rgb).convert("CMYK").save(path, quality=100)
    assert b"Adobe" in path.read_bytes()
    assert np.abs(pixels_of(path).astype(int) - rgb).mean() < 4
    with Image.open(path) as image:
        assert np.array_equal(pixels_of(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_a_profile_is_not_applied(tmp_path, rgb, suffix):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = Image.fromarray(rgb)
    image.save(tmp_path / f"plain.{suffix}")
    image.save(tmp_path / f"profile.{suffix}", icc_profile=profile)
    assert np.array_equal(pixels_of(tmp_path / f"profile.{suffix}"), pixels_of(tmp_path / f"plain.{suffix}"))


# DICOM


def test_dicom_by_series(files, tmp_path):
    folder = cases.write_dicom(tmp_path, "one").parent / "both"
    cases.write_dicom(tmp_path, "two", suffix="")
    folder.mkdir()
    for path in (tmp_path / "dicom").glob("[ot]*/*"):
        shutil.copy(path, folder / path.name)
    found = find_images([folder])
    assert [path.name for path in found] == ["one_1_volume.dcm", "two_1_volume"]
    for path in found:
        assert cases._described(path) == cases.FULL
    # any instance is the slide
    want = pixels_of(found[0])
    for path in sorted(folder.glob("one_[12]*")):
        assert np.array_equal(pixels_of(path), want)
    # and one that is given with the rest is named once
    assert len(find_images(sorted(folder.iterdir()))) == 2


# what is not read is not called damaged


@pytest.mark.parametrize(
    ("tag", "value", "says"),
    [(259, 34661, "compression JBIG"), (259, 60123, "60123"), (262, 32803, "photometric CFA")],
)
@pytest.mark.parametrize("parts", [{}, {"tile": (32, 32)}])
def test_what_is_sound_but_not_read_is_not_called_damaged(tmp_path, rgb, tag, value, says, parts):
    path = write(tmp_path / "x.tif", rgb, **parts)
    _overwrite_tag(path, tag, value)
    assert "damaged" not in refused(path, says)


@pytest.mark.parametrize("parts", [{}, {"tile": (32, 32)}])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_luma_and_chroma_that_no_jpeg_stores(tmp_path, rgb, compression, parts):
    stored = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    path = write(tmp_path / "x.tif", stored, photometric="ycbcr", subsampling=(1, 1), compression=compression, **parts)
    assert np.abs(pixels_of(path).astype(int) - rgb).max() <= 3


def test_a_name_of_a_vendor_does_not_make_a_file_the_vendors(tmp_path, rgb):
    path = write(tmp_path / "x.ome.tif", rgb, ome=True, metadata=microns(500, "nm"), tile=(32, 32))
    for suffix in (".svs", ".scn", ".bif"):
        got, scale, _ = opened(shutil.copy(path, tmp_path / f"x{suffix}"))
        assert np.array_equal(got, rgb)
        assert scale.mpp == pytest.approx(0.5)
    # nor does another name make it another's
    for name in ("x.tif", "x", "x.png"):
        with open_slide(shutil.copy(cases.SVS, tmp_path / name)) as slide:
            assert slide.size == (2220, 2967)
            assert slide.scale.source == "openslide.mpp-x"


# what an attack found


def test_sixteen_bits_of_which_fewer_are_used(tmp_path, rgb):
    deep = rgb.astype(np.uint16) << 4
    refused(write(tmp_path / "x.tif", deep), r"samples of 16 bits are at most .* of 65,535.*save it as 8-bit RGB")
    stated = write(tmp_path / "y.tif", deep, extratags=[(281, "H", 3, (4095, 4095, 4095), True)])
    assert np.array_equal(pixels_of(stated), rgb)
    # such as the brightest that ImageJ was set to show
    less = write(tmp_path / "z.tif", deep, extratags=[(281, "H", 3, (1023, 1023, 1023), True)])
    refused(less, "are as large as .*, above what the file says of their range")


def test_a_picture_of_the_glass_is_no_level(tmp_path, rgb):
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(rgb, photometric="rgb", tile=(32, 32))
        file.write(rgb[::2, ::2].copy(), photometric="rgb", tile=(32, 32), subfiletype=1)
        file.write(np.full_like(rgb[::4, ::4], 200), photometric="rgb", tile=(32, 32), subfiletype=9)
    with open_slide(path) as slide:
        assert slide.downsamples == (1.0, 2.0)


def test_pictures_in_memory_are_turned_and_scaled_as_their_files(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "x.png"
    Image.fromarray(rgb).save(path, exif=exif, dpi=(50800, 50800))
    cuts = [cut_image(image, "x", None, 20, INFO, force=True) for image in (path, Image.open(path))]
    assert np.array_equal(cuts[0][1], cuts[1][1])
    assert cuts[0][0].scale == cuts[1][0].scale
    assert cuts[0][0].scale is not None


def test_a_png_is_not_decoded_to_learn_its_size(tmp_path, monkeypatch, rgb):
    Image.fromarray(rgb).save(tmp_path / "x.png")

    def decoded(self):
        raise AssertionError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decoded)
    with open_slide(tmp_path / "x.png") as slide:
        assert slide.size == rgb.shape[1::-1]
