"""OME-Zarr as people have it, of both versions of Zarr, and what is damaged, hostile or no H&E."""

import json
import os
import shutil
import sys

import anndata
import numcodecs
import numpy as np
import pytest
import zarr
from cases import tissue
from numcodecs.pickles import Pickle

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.data.fields import read_tissues
from tcgn_hub.data.sections import file_hash
from tcgn_hub.errors import ExtraError, ImageError, OutputError
from tcgn_hub.images.finding import find_images
from tcgn_hub.images.readers import is_slide_file, open_slide, stat_of

WIDTH, HEIGHT = 300, 200
METADATA = {"0.4": ".zattrs", "0.5": "zarr.json"}
ARRAY = {"0.4": ".zarray", "0.5": "zarr.json"}
versions = pytest.mark.parametrize("version", ["0.4", "0.5"])


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return tissue(WIDTH, HEIGHT)


def write(
    path,
    pixels,
    *,
    version="0.4",
    axes="tczyx",
    mpp=0.5,
    unit="micrometer",
    steps=(1, 2, 4),
    chunk=64,
    omero=None,
    dtype=np.uint8,
    **options,
):
    """An image of the specification, each of its levels every nth pixel."""
    if path.exists():
        shutil.rmtree(path)
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    order, full = "yxc"[: pixels.ndim], pixels.astype(dtype)
    for axis in set(axes) - set(order):
        order, full = order + axis, full[..., None]
    full = full.transpose([order.index(axis) for axis in axes])
    chunks = [chunk if axis in "yx" else 1 for axis in axes]
    if version == "0.4":
        options = {"chunk_key_encoding": {"name": "v2", "separator": "/"}, **options}
    datasets = []
    for number, step in enumerate(steps):
        level = full[tuple(slice(None, None, step if axis in "yx" else 1) for axis in axes)]
        group.create_array(str(number), shape=level.shape, dtype=dtype, chunks=tuple(chunks), **options)[...] = level
        scale = [mpp * step if axis in "yx" else 1.0 for axis in axes]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    stated = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in stated:
        if axis["name"] in "yx" and unit:
            axis["unit"] = unit
    attributes = {"multiscales": [{"version": version, "axes": stated, "datasets": datasets}]}
    attributes |= {"omero": {"channels": omero}} if omero else {}
    group.attrs.update(attributes if version == "0.4" else {"ome": {"version": "0.5"} | attributes})
    return path


def change(path, version, edit):
    """Let a function edit what the group states."""
    file = path / METADATA[version]
    whole = json.loads(file.read_text())
    edit(whole if version == "0.4" else whole["attributes"]["ome"])
    file.write_text(json.dumps(whole))


def opened(path, **options):
    with open_slide(path, **options) as slide:
        return slide.read(0, 0, *slide.size), slide.scale, slide.chosen


def refused(path, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        opened(path, **options)
    said = str(caught.value)
    assert path.name in said
    assert "\n" not in said
    assert said.endswith(".")
    return said


# what is read


@versions
@pytest.mark.parametrize("axes", ["tczyx", "cyx", "czyx", "tcyx", "cxy", "yxc"])
def test_pixels_scale_and_levels(tmp_path, rgb, version, axes):
    path = write(tmp_path / "a.ome.zarr", rgb, version=version, axes=axes)
    with open_slide(path) as slide:
        assert slide.size == (WIDTH, HEIGHT)
        assert slide.scale.mpp == pytest.approx(0.5)
        assert slide.scale.source == "OME-Zarr coordinateTransformations"
        assert slide.downsamples == (1.0, 2.0, 4.0)
        assert slide.chosen == ""
        for level, step in enumerate((1, 2, 4)):
            part = slide.read(40 * step, 24 * step, 20, 17, level=level)
            assert np.array_equal(part, rgb[::step, ::step][24:41, 40:60])
        beyond = slide.read(WIDTH - 10, HEIGHT - 5, 30, 20)
        assert np.array_equal(beyond[:5, :10], rgb[-5:, -10:])
        assert (beyond[5:] == 255).all()
        assert (beyond[:, 10:] == 255).all()
        assert slide.overview(100)[0].shape == (67, 100, 3)


def test_shards(tmp_path, rgb):
    shards = (1, 3, 1, 256, 256)
    path = write(tmp_path / "a.ome.zarr", rgb, version="0.5", shards=shards)
    assert np.array_equal(opened(path)[0], rgb)


@pytest.mark.parametrize("codec", [numcodecs.Zlib(), numcodecs.BZ2(), numcodecs.LZ4(), numcodecs.Zstd(), None])
def test_codecs(tmp_path, rgb, codec):
    path = write(tmp_path / "a.ome.zarr", rgb, compressors=codec)
    assert np.array_equal(opened(path)[0], rgb)


@versions
def test_what_the_library_of_the_specification_writes(tmp_path, rgb, version):
    from ome_zarr.format import format_from_version
    from ome_zarr.writer import write_image

    path = tmp_path / "a.ome.zarr"
    scales = [[{"type": "scale", "scale": [1.0, 0.5 * 2**n, 0.5 * 2**n]}] for n in range(3)]
    write_image(
        np.moveaxis(rgb, -1, 0),
        str(path),
        scale_factors=[2, 4],
        fmt=format_from_version(version),
        axes=[
            {"name": "c", "type": "channel"},
            *({"name": name, "type": "space", "unit": "micrometer"} for name in "yx"),
        ],
        coordinate_transformations=scales,
    )
    pixels, scale, _ = opened(path)
    assert np.array_equal(pixels, rgb)
    assert scale.mpp == pytest.approx(0.5)
    with open_slide(path) as slide:
        assert slide.downsamples == (1.0, 2.0, 4.0)


def test_only_what_is_looked_at_is_read(tmp_path, rgb):
    path = write(tmp_path / "a.ome.zarr", rgb, axes="cyx", chunk=64, steps=(1,))
    for file in (path / "0").rglob("*"):
        if file.is_file() and file.relative_to(path / "0").as_posix().endswith("/4"):
            file.write_bytes(b"damage")
    with open_slide(path) as slide:
        assert np.array_equal(slide.read(0, 0, 200, HEIGHT), rgb[:, :200])
        with pytest.raises(ImageError, match=r"a\.ome\.zarr cannot be decoded at 250, 0 \(zarr: ") as caught:
            slide.read(250, 0, 50, 50)
    assert "\n" not in str(caught.value)


def test_what_is_not_stored_has_the_fill_value(tmp_path, rgb):
    path = write(tmp_path / "a.ome.zarr", rgb, axes="cyx", steps=(1,), fill_value=255)
    for channel in range(3):
        (path / "0" / str(channel) / "0" / "0").unlink()
    pixels, _, _ = opened(path)
    assert (pixels[:64, :64] == 255).all()
    assert np.array_equal(pixels[64:], rgb[64:])


# scale


@pytest.mark.parametrize(
    ("mpp", "unit", "want"),
    [
        *((0.5, "micrometer", 0.5), (500, "nanometer", 0.5), (0.0005, "millimeter", 0.5), (5000, "angstrom", 0.5)),
        *((0.5, None, None), (0.5, "pixel", None), (72, "micrometer", None), (-0.5, "micrometer", None)),
    ],
)
def test_the_scale_is_of_the_unit_of_its_axes(tmp_path, rgb, mpp, unit, want):
    scale = opened(write(tmp_path / "a.ome.zarr", rgb, mpp=mpp, unit=unit))[1]
    assert (scale and scale.mpp) == (want and pytest.approx(want))


@pytest.mark.parametrize(
    ("steps", "want"),
    [
        ([{"type": "scale", "scale": [1, 1, 1, 0.25, 0.25]}, {"type": "translation", "translation": [0] * 5}], 0.25),
        ([], None),
        (None, None),
        ([{"type": "identity"}], None),
        ([{"type": "scale", "scale": [0.5, 0.5]}], None),
        ([{"type": "scale", "scale": ["x"] * 5}], None),
        ([{"type": "scale", "scale": [10**400] * 5}], None),
        ([{"type": "scale", "path": "scale"}], None),
        (["x", 7], None),
    ],
)
def test_scales_as_they_are_stated(tmp_path, rgb, steps, want):
    path = write(tmp_path / "a.ome.zarr", rgb)

    def edit(stated):
        stated["multiscales"][0]["datasets"][0]["coordinateTransformations"] = steps

    change(path, "0.4", edit)
    scale = opened(path)[1]
    assert (scale and scale.mpp) == (want and pytest.approx(want))


def test_what_is_stated_for_all_levels_comes_on_top(tmp_path, rgb):
    path = write(tmp_path / "a.ome.zarr", rgb, mpp=1)
    steps = [{"type": "scale", "scale": [1, 1, 1, 0.25, 0.25]}]
    change(path, "0.4", lambda stated: stated["multiscales"][0].update(coordinateTransformations=steps))
    assert opened(path)[1].mpp == pytest.approx(0.25)


@versions
def test_pixels_that_are_not_square_are_refused(tmp_path, rgb, version):
    path = write(tmp_path / "a.ome.zarr", rgb, version=version, axes="cyx")
    for height, square in ((0.505, True), (0.52, False)):

        def edit(stated, height=height):
            steps = [{"type": "scale", "scale": [1, height, 0.5]}]
            stated["multiscales"][0]["datasets"][0]["coordinateTransformations"] = steps

        change(path, version, edit)
        if square:
            assert opened(path)[1].mpp == pytest.approx(0.5025)
        else:
            refused(path, r"0\.5 x 0\.52 um .*not square")


# channels


@pytest.mark.parametrize(
    "omero",
    [
        [{"label": label} for label in ("Blue", "Green", "Red")],
        [{"color": colour} for colour in ("0000FF", "00FF00", "FF0000")],
        [{"label": f"Channel {n}", "color": f"#{c}"} for n, c in enumerate(("0000FF", "00FF00", "FF0000"))],
    ],
)
def test_channels_are_taken_by_name_or_colour(tmp_path, rgb, omero):
    path = write(tmp_path / "a.ome.zarr", rgb[..., ::-1], omero=omero)
    assert np.array_equal(opened(path)[0], rgb)


@pytest.mark.parametrize(
    "omero",
    [None, [], [{}] * 3, [{"label": str(n), "color": "808080"} for n in range(3)], [{"label": None}] * 3, ["x"], "x"],
)
def test_channels_of_which_nothing_is_said_are_red_green_and_blue(tmp_path, rgb, omero):
    assert np.array_equal(opened(write(tmp_path / "a.ome.zarr", rgb, omero=omero))[0], rgb)


@versions
def test_what_is_no_colour_is_refused(tmp_path, rgb, version):
    path = tmp_path / "a.ome.zarr"
    stains = [{"label": name} for name in ("DAPI", "FITC", "TRITC")]
    mixed = [{"color": colour} for colour in ("FFFF00", "FF00FF", "00FFFF")]
    grey = rgb[..., 0]
    many = np.concatenate([rgb, rgb], axis=2)
    for pixels, more, match in (
        (rgb, {"omero": stains}, r"3 channels \(DAPI, FITC, TRITC\), and no red, green and blue.*save it as RGB"),
        (rgb, {"omero": mixed}, r"3 channels \(without names\)"),
        (grey, {"axes": "yx"}, "1 channel "),
        (grey, {"axes": "cyx"}, "1 channel "),
        (many, {}, "6 channels"),
        (many[..., :4], {}, "4 channels"),
        (rgb, {"dtype": np.uint16}, "stored as uint16"),
        (rgb, {"dtype": np.float32}, "stored as float32"),
        (rgb > 128, {"dtype": bool}, "stored as bool"),
    ):
        assert "damaged" not in refused(write(path, pixels, version=version, **more), match)


def test_the_middle_of_a_stack_and_the_first_of_times(tmp_path, rgb):
    path = write(tmp_path / "a.ome.zarr", np.zeros_like(rgb), steps=(1,))
    (path / "0" / ".zarray").unlink()
    stack = np.zeros((2, 3, 5, HEIGHT, WIDTH), np.uint8)
    stack[0, :, 2] = np.moveaxis(rgb, -1, 0)
    zarr.open_group(path).create_array("0", shape=stack.shape, dtype=np.uint8, chunks=(1, 1, 1, 64, 64))[...] = stack
    pixels, _, chosen = opened(path)
    assert np.array_equal(pixels, rgb)
    assert chosen == "plane 2 of 0 to 4 of the stack is taken; time 0 of 0 to 1 is taken"


# several images


@versions
@pytest.mark.parametrize("listed", [True, False])
def test_the_scan_among_the_images_of_bioformats2raw(tmp_path, rgb, version, listed):
    path = tmp_path / "a.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    several = {"bioformats2raw.layout": 3}
    root.attrs.update(several if version == "0.4" else {"ome": several})
    images = {"0": rgb[::8, ::8], "1": rgb, "10": rgb[::4, ::4]}
    for name, pixels in images.items():
        write(path / name, pixels, version=version, steps=(1,), mpp=0.5, unit="micrometer" if name == "1" else None)
    series = {"series": list(images)}
    if listed:
        root.create_group("OME").attrs.update(series if version == "0.4" else {"ome": series})
    pixels, scale, chosen = opened(path)
    assert np.array_equal(pixels, rgb)
    assert scale.mpp == pytest.approx(0.5)
    assert chosen.startswith("image 1 of 0 to 2 is taken: 300 x 200 px, 0.5 um/px; another one by series")
    for number, want in enumerate(images.values()):
        assert np.array_equal(opened(path, series=number)[0], want)
    refused(path, "holds 3 images, 0 to 2, and no number 3", series=3)


# damage


@versions
def test_levels_that_are_missing(tmp_path, rgb, version):
    path = write(tmp_path / "a.ome.zarr", rgb, version=version)
    shutil.rmtree(path / "1")
    with open_slide(path) as slide:
        assert slide.downsamples == (1.0, 4.0)
        assert slide.chosen == "levels that cannot be read are left out (1)"
        assert np.array_equal(slide.read(40, 40, 9, 9, level=1), rgb[::4, ::4][10:19, 10:19])
    shutil.rmtree(path / "0")
    refused(path, r"is damaged \(its level 0 is missing\)")


@versions
def test_levels_that_are_none(tmp_path, rgb, version):
    """Of another shape, as large as the whole, or out of order."""
    path = write(tmp_path / "a.ome.zarr", rgb, version=version, steps=(1, 4, 2))
    with open_slide(path) as slide:
        assert slide.downsamples == (1.0, 4.0)
    path = write(tmp_path / "a.ome.zarr", rgb, version=version, steps=(1, 1))
    shutil.rmtree(path / "1")
    group = zarr.open_group(path)
    group.create_array("1", shape=(1, 3, 1, HEIGHT // 2, WIDTH // 4), dtype=np.uint8)
    with open_slide(path) as slide:
        assert slide.downsamples == (1.0,)


@versions
def test_malformed_json(tmp_path, rgb, version):
    for text in ("", "{", "[]", "7", "null", "[" * 100_000, '{"a": "\udcff"}'):
        for file in (METADATA[version], f"0/{ARRAY[version]}"):
            path = write(tmp_path / "a.ome.zarr", rgb, version=version, steps=(1,))
            (path / file).write_text(text, errors="surrogateescape")
            refused(path, r"damaged \(.*(zattrs|zarray|zarr\.json)")
            assert find_images([tmp_path]) == [path]


@versions
def test_what_a_group_states_wrongly(tmp_path, rgb, version):
    path = write(tmp_path / "a.ome.zarr", rgb, version=version)
    kept = (path / METADATA[version]).read_text()

    def levels(value):
        return lambda stated: stated["multiscales"][0].update(datasets=value)

    def axes(value):
        return lambda stated: stated["multiscales"][0].update(axes=value)

    for edit, match in (
        (lambda stated: stated.update(multiscales=[]), "states no levels"),
        (lambda stated: stated.update(multiscales={"a": 1}), "states no levels"),
        (lambda stated: stated.update(multiscales=["x"]), "states no levels"),
        (lambda stated: stated.pop("multiscales"), "states no image of OME-Zarr; its groups are 0, 1, 2"),
        (levels([]), "states no levels"),
        (levels(["x"]), "no objects"),
        (levels([{}]), "no path"),
        (levels([{"path": 7}]), "no path"),
        (levels([{"path": "9"}]), "level 9 is missing"),
        (levels([{"path": "../b"}]), "leads out of it"),
        (levels([{"path": "/etc"}]), "leads out of it"),
        (levels([{"path": ""}]), "leads out of it"),
        (levels([{"path": "a\0b"}]), "no path"),
        (levels([{"path": "x" * 5000}]), "missing"),
        (axes(["t", "c", "z", "q", "x"]), "axes t, c, z, q, x, where y and x"),
        (axes(["t", "c", "x", "y", "x"]), "where y and x"),
        (axes(["t", "c", "z", "x"]), "where y and x"),
        (axes([{"name": "y"}, {"name": "x"}]), "its axes are y, x, but 0 has 5"),
        (axes([7, None]), "where y and x"),
        (axes(None), "OME-Zarr 0.* without axes"),
        (axes("tczyx"), "without axes"),
    ):
        (path / METADATA[version]).write_text(kept)
        change(path, version, edit)
        assert len(refused(path, match)) < 600


@versions
def test_arrays_that_are_none(tmp_path, rgb, version):
    chunks = "chunks" if version == "0.4" else "chunk_grid"

    def grid(*sides):
        return list(sides) if version == "0.4" else {"name": "regular", "configuration": {"chunk_shape": list(sides)}}

    for edit, match in (
        ({"shape": [1, 3, 1, 0, 0]}, "no pixels|damaged"),
        ({"shape": "x"}, "damaged"),
        ({"shape": [1, 3, 1, -5, 9]}, "damaged"),
        ({chunks: grid(1, 3, 1, 0, 64)}, "damaged"),
        ({chunks: None}, "damaged"),
        ({chunks: grid(1, 3, 1, 10**6, 10**6), "shape": [1, 3, 1, 10**6, 10**6]}, "more than the limit.*max_pixels"),
        ({"zarr_format": 9}, "damaged"),
    ):
        path = write(tmp_path / "a.ome.zarr", rgb, version=version)
        file = path / "0" / ARRAY[version]
        file.write_text(json.dumps(json.loads(file.read_text()) | edit))
        assert len(refused(path, match)) < 600


class Loud:
    """What runs code where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("place", ["compressor", "filters"])
def test_nothing_is_unpickled(tmp_path, rgb, place):
    path = write(tmp_path / "a.ome.zarr", rgb, steps=(1,), compressors=None)
    file = path / "0" / ".zarray"
    codec = Pickle().get_config()
    stated = json.loads(file.read_text()) | {place: [codec] if place == "filters" else codec}
    file.write_text(json.dumps(stated))
    for chunk in (path / "0").rglob("0/0"):
        if chunk.is_file():
            chunk.write_bytes(Pickle().encode(np.array([Loud(tmp_path / "was_here")], dtype=object)))
    assert "save it as 8-bit RGB" in refused(path, "its codec is pickle")
    assert not (tmp_path / "was_here").exists()


def test_codecs_that_are_not_known(tmp_path, rgb):
    path = write(tmp_path / "a.ome.zarr", rgb, version="0.5", shards=(1, 3, 1, 256, 256))
    file = path / "0" / "zarr.json"
    stated = json.loads(file.read_text())
    stated["codecs"][0]["configuration"]["codecs"].append({"name": "numcodecs.pickle", "configuration": {}})
    file.write_text(json.dumps(stated))
    refused(path, "its codec is pickle")


# folders that are slides


@versions
def test_which_folders_are_slides(tmp_path, rgb, version):
    slides = tmp_path / "slides"
    first = write(slides / "a.ome.zarr", rgb, version=version)
    second = write(slides / "b.zarr", rgb, version=version)
    write(slides / ".c.ome.zarr", rgb, version=version)
    anndata.AnnData(np.zeros((2, 3), np.float32)).write_zarr(slides / "cells.zarr")
    (slides / "lost.ome.zarr").mkdir()
    (slides / "notes").mkdir()
    lost = slides / "lost.ome.zarr"
    assert find_images([slides]) == [first, second, lost]
    assert find_images([first, slides / "cells.zarr"]) == [first, slides / "cells.zarr"]
    assert all(map(is_slide_file, (first, second, lost, slides / "cells.zarr")))
    assert not is_slide_file(slides)
    refused(slides / "cells.zarr", r"states no image of OME-Zarr; its groups are .*obs.*")
    refused(lost, "states no image of OME-Zarr")
    refused(slides, r"is a folder")
    refused(first / "0", "states no image of OME-Zarr")


@versions
def test_a_slide_that_was_changed_is_known(tmp_path, rgb, version):
    path = write(tmp_path / "a.ome.zarr", rgb, version=version)
    before, hashed = stat_of(path), file_hash(path)
    assert before.st_size == (path / METADATA[version]).stat().st_size
    assert file_hash(shutil.copytree(path, tmp_path / "b.zarr")) == hashed
    write(path, rgb[::-1], version=version)
    assert file_hash(path) != hashed
    assert stat_of(path).st_mtime_ns != before.st_mtime_ns
    (tmp_path / "a.svs").write_text("x")
    assert stat_of(tmp_path / "a.svs").st_size == 1


def test_without_zarr(tmp_path, rgb, monkeypatch):
    path = write(tmp_path / "a.ome.zarr", rgb)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ExtraError, match=r"To read OME-Zarr, install zarr: pip install 'tcgn_hub\[slides\]'"):
        open_slide(path)


def test_an_older_zarr_is_not_called_damage(tmp_path, rgb, monkeypatch):
    monkeypatch.setattr(zarr, "__version__", "2.18.7")
    assert np.array_equal(opened(write(tmp_path / "a.ome.zarr", rgb))[0], rgb)
    said = refused(write(tmp_path / "b.ome.zarr", rgb, version="0.5"), "needs zarr 3 .*here is zarr 2.18.7")
    assert "damaged" not in said


# predictions


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides of one tissue, of either version."""
    folder = tmp_path_factory.mktemp("zarrs") / "slides"
    pixels = tissue(640, 512)
    for name, version in (("a.ome.zarr", "0.4"), ("b.zarr", "0.5")):
        write(folder / name, pixels, version=version, chunk=128)
    return folder


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_values_are_those_of_the_same_pixels_in_a_tiff(tmp_path, slides, tiny_weights, workers):
    import tifffile

    tifffile.imwrite(
        tmp_path / "t.tif",
        tissue(640, 512),
        photometric="rgb",
        tile=(128, 128),
        resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    more = ["--weights", str(tiny_weights), "--stride-um", "80", "--workers", workers]
    for slide, name in ((tmp_path / "t.tif", "t"), (slides / "a.ome.zarr", "a"), (slides / "b.zarr", "b")):
        assert main(["predict", str(slide), "-o", str(tmp_path / f"{name}.h5ad"), *more]) == 0
    t, a, b = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in "tab")
    assert len(t) > 1
    for other in (a, b):
        assert np.array_equal(t.obsm["spatial"], other.obsm["spatial"])
        assert np.allclose(t.X, other.X, atol=1e-5)


def test_a_folder_of_them_is_a_cohort(tmp_path, slides, tiny_weights, capsys):
    out = tmp_path / "out"
    command = ["predict", str(slides), "-o", str(out), "--weights", str(tiny_weights), "--stride-um", "150"]
    assert main(command) == 0
    assert sorted(path.name for path in out.glob("*.h5ad")) == ["a.ome.zarr.h5ad", "b.zarr.h5ad"]
    first, second = (anndata.read_h5ad(out / f"{name}.h5ad") for name in ("a.ome.zarr", "b.zarr"))
    assert np.allclose(first.X, second.X, atol=1e-5)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.h5ad")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.h5ad")} == times
    os.utime(slides / "a.ome.zarr" / ".zattrs")
    assert main(command) == 0
    again = {path.name for path in out.glob("*.h5ad") if path.stat().st_mtime_ns != times[path]}
    assert again == {"a.ome.zarr.h5ad"}


def test_a_run_goes_on_only_with_the_slide_it_was_of(tmp_path, slides, tiny_weights):
    predictor = tcgn_hub.load(path=tiny_weights)
    slide = shutil.copytree(slides / "b.zarr", tmp_path / "b.zarr")
    options = {"stride_um": 150, "resume": tmp_path / "run", "workers": 0}
    first = predictor.slide(slide, **options)
    assert np.array_equal(predictor.slide(slide, **options).X, first.X)
    os.utime(slide / "zarr.json")
    with pytest.raises(OutputError, match="run with other slide"):
        predictor.slide(slide, **options)


def test_tissue_to_learn_from(slides):
    found = read_tissues([slides])
    assert [tissue.name for tissue in found] == ["a.ome", "b"]
    assert [tissue.mpp for tissue in found] == pytest.approx([0.5, 0.5])
