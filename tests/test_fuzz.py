"""Damaged and hostile files are refused in one sentence; benchmarks/fuzz.py tries many more."""

import json
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from sections import write_h5ad, write_visium

from tcgn_hub.cli.main import main
from tcgn_hub.data.readers import read_sections
from tcgn_hub.data.spots import read_spots
from tcgn_hub.errors import ImageError, ManifestError, OutputError, SectionError, TcgnError, WeightsError
from tcgn_hub.evaluation.splits import Split
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.slides import Slide
from tcgn_hub.prediction.slides import _Store
from tcgn_hub.weights.manifest import read_manifest
from tcgn_hub.weights.model_dir import read_model_dir

DEEP = "[" * 100_000


def test_a_message_is_one_line_whatever_a_file_puts_into_it():
    said = str(SectionError("spots.csv: '" + "a\nb\0\x1b[31m" * 1000 + "' is no number; mend it."))
    assert said.startswith("spots.csv: 'a\\nb\\x00\\x1b[31m")
    assert said.endswith("' is no number; mend it.")
    assert said.isprintable()
    assert len(said) < 600
    assert str(OutputError("µ")) == "µ"


def test_json_that_is_nested_without_end(tmp_path):
    for name in ("weights_manifest.json", "config.json", "run.json"):
        (tmp_path / name).write_text(DEEP)
    for error, read in (
        (ManifestError, lambda: read_manifest(tmp_path / "weights_manifest.json")),
        (WeightsError, lambda: read_model_dir(tmp_path)),
        (OutputError, lambda: _Store(tmp_path, {})),
        (SectionError, lambda: Split.from_json(DEEP)),
    ):
        with pytest.raises(error):
            read()


def _noise(side=128):
    return np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)


def test_directories_of_a_tiff_that_lead_back(tmp_path):
    """To go through the pages of such a file does not end."""
    path = tmp_path / "loop.tif"
    tifffile.imwrite(path, _noise(), photometric="rgb", tile=(64, 64))
    data = bytearray(path.read_bytes())
    first = struct.unpack_from("<I", data, 4)[0]
    number = struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<I", data, first + 2 + 12 * number, first)
    path.write_bytes(data)
    with open_slide(path) as slide:
        assert slide.size == (128, 128)


def test_a_tiff_of_more_pixels_than_it_lists_parts_of(tmp_path):
    """An overview of what it says would be of petabytes."""
    path = tmp_path / "huge.tif"
    tifffile.imwrite(path, _noise(), photometric="rgb", tile=(64, 64))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        places = [file.pages[0].tags[code].offset for code in (256, 257)]
    for place in places:
        struct.pack_into("<HII", data, place + 2, 4, 1, 2**31 - 1)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"huge\.tif"):
        open_slide(path)


def test_damage_is_not_told_by_other_libraries(tmp_path, capsys):
    """The command line says it in its own words; in Python the warnings of Pillow are Pillow's."""
    picture = tmp_path / "exif.jpg"
    Image.fromarray(_noise()).save(picture)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    picture.write_bytes(b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + picture.read_bytes()[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["predict", str(picture), "--strict"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("read", [read_sections, read_spots])
def test_an_h5ad_whose_heap_has_no_end(tmp_path, read):
    """HDF5 would look for it forever."""
    path = tmp_path / "section.h5ad"
    write_h5ad(path)
    data = bytearray(path.read_bytes())
    at = data.find(b"GCOL") + 16
    data[at : at + 16] = bytes(16)
    path.write_bytes(data)
    with pytest.raises(SectionError, match=r"heap of texts is damaged at byte \d+"):
        read(path)


def test_a_damaged_h5ad_and_matrix(tmp_path):
    """h5py raises errors of many types."""
    write_h5ad(tmp_path / "a.h5ad")
    write_visium(tmp_path / "outs")
    for path in (tmp_path / "a.h5ad", tmp_path / "outs" / "filtered_feature_bc_matrix.h5"):
        data = bytearray(path.read_bytes())
        for magic in (b"SNOD", b"TREE"):
            at = data.find(magic, len(data) // 4)
            data[at : at + 4] = b"XXXX"
        path.write_bytes(data)
    for source in (tmp_path / "a.h5ad", tmp_path / "outs"):
        with pytest.raises(SectionError, match=r"can be read \("):
            read_sections(source)


def test_a_thousand_kinds_of_damage_in_small(tmp_path, monkeypatch):
    """Some cases of the fuzz run, in this process."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import random

    import fuzz

    seeds = tmp_path / "seeds"
    (seeds / "tiff").mkdir(parents=True)
    fuzz._tiffs(seeds / "tiff", np.asarray(Image.fromarray(_noise(16)).resize((150, 120))))
    for kind, path in (("png", "a.png"), ("jpg", "a.jpg")):
        (seeds / kind).mkdir()
        Image.fromarray(_noise()).save(seeds / kind / path)
    write_h5ad(seeds / "spots_h5ad" / "a.h5ad")
    for kind, name, text in (
        ("spots", "xy.tsv", "x\ty\tpixel_x\tpixel_y\n1\t2\t3.5\t4.5\n2\t2\t9\t9\n"),
        ("panel", "panel.txt", "A\nB\nC\n"),
        ("split", "splits.json", '{"train": ["a"], "test": ["b"]}'),
        ("manifest", "weights_manifest.json", (Path(__file__).parents[1] / "weights_manifest.json").read_text()),
        ("config", "config.json", json.dumps({"label_names": ["A"], "num_classes": 1, "architecture": "test_tcgn"})),
    ):
        (seeds / kind).mkdir()
        (seeds / kind / name).write_text(text)
    kinds = tuple(path.name for path in seeds.iterdir())
    found = []
    for case in (fuzz.Case(0, number, kinds) for number in range(200)):
        name, inside, data, _ = case.made(seeds)
        path = tmp_path / name / inside
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        result = fuzz.tried(name, path, path.parent, seeds, random.Random(0), command=False)
        if result.startswith("FOUND"):
            found.append(f"{name} {case.number}: {result}")
        path.unlink()
    assert not found


def test_an_overview_of_a_picture_of_one_row(tmp_path):
    """One pixel of it is as high as wide, and would take gigabytes beyond the picture."""
    path = tmp_path / "row.png"
    Image.new("L", (2_000_000, 1), 9).save(path)
    with open_slide(path) as slide:
        overview, downsample, lost = slide.overview(20)
    assert downsample == 100_000
    assert (overview == 9).all()
    assert not lost.any()


def test_an_overview_of_a_slide_that_cannot_be_decoded_gives_up():
    """Around damage it looks at smaller and smaller parts, of which a large slide has many."""

    class Damaged(Slide):
        path, size, scale, downsamples, reopens = Path("a.svs"), (10**6, 10**6), None, (1.0,), False
        reads = 0

        def read(self, x, y, width, height, *, level=0):
            self.reads += 1
            raise ImageError("a.svs cannot be decoded")

        def close(self):
            pass

    slide = Damaged()
    with pytest.raises(ImageError, match=r"a\.svs"):
        slide.overview(2000)
    assert slide.reads < 1000


@pytest.mark.parametrize("said", ["something is damaged", "a.csv is damaged" + "x" * 700])
def test_a_finding_is_told(tmp_path, monkeypatch, said):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import fuzz

    path = tmp_path / "a.csv"
    fuzz._fair(TcgnError(f"{path} is damaged."), path)
    with pytest.raises(AssertionError, match=r"no file|characters"):
        fuzz._fair(Exception(said), Path("/elsewhere/b/a.csv") if "x" in said else Path("/elsewhere/b/c.csv"))


def test_a_name_that_no_file_can_have():
    with pytest.raises(ImageError, match="cannot be read"):
        open_slide("a\0b.png")
