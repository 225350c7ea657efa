"""Slides from end to end: Predictor.slide, and tcgn predict on slides."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import onnx_file
import pandas
import pytest
import tifffile
import torch
from PIL import Image
from sections import PANEL, visium_array, write_h5ad
from test_slides import OME, SVS, pyramid

import tcgn_hub
from tcgn_hub import rows
from tcgn_hub.cli.main import main
from tcgn_hub.data.spots import read_spots
from tcgn_hub.errors import ImageError, NoTissueError, OutputError, PanelError, SectionError
from tcgn_hub.images.readers import open_slide
from tcgn_hub.images.tiles import TileReader
from tcgn_hub.images.transforms import to_input
from tcgn_hub.prediction import slides

GENES = [PANEL[5], PANEL[2]]


@pytest.fixture(scope="module")
def predictor(tiny_weights):
    return tcgn_hub.load(path=tiny_weights, device="cpu")


@pytest.fixture(scope="module")
def cmu(predictor):
    """The bundled slide, on a wide grid to be quick."""
    return predictor.slide(SVS, stride_um=200)


@pytest.fixture
def predicted(monkeypatch):
    """How many tiles are predicted while the test runs."""
    seen = []
    real = tcgn_hub.Predictor._begin

    def begin(self, pixels, *options):
        seen.append(len(pixels))
        return real(self, pixels, *options)

    monkeypatch.setattr(tcgn_hub.Predictor, "_begin", begin)
    return seen


@pytest.fixture(params=[rows.IN_MEMORY, 0], ids=["memory", "disk"])
def kept(request, monkeypatch):
    """Where results are, as it should make no difference."""
    monkeypatch.setattr(rows, "IN_MEMORY", request.param)


def damaged(path: Path) -> Path:
    """The bundled slide, with one of its parts overwritten."""
    shutil.copy(SVS, path)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        middle = len(page.dataoffsets) // 2
        offset, count = page.dataoffsets[middle], page.databytecounts[middle]
    with open(path, "r+b") as handle:
        handle.seek(offset)
        handle.write(b"\xff" * count)
    return path


# values


def test_values_are_those_of_the_patches(cmu, predictor):
    slide = cmu.slide
    assert slide.patch_um == 154
    assert (slide.mpp, slide.scale_source, slide.stride_um) == (0.499, "openslide.mpp-x", 200)
    assert len(cmu.names) == len(cmu.obsm["spatial"]) == len(cmu.X) > 10
    side = round(154 / 0.499)
    with open_slide(SVS) as opened, torch.inference_mode():
        for i in (0, 7):
            x, y = np.round(cmu.obsm["spatial"][i] - side / 2).astype(int)
            tile = to_input(opened.read(x, y, side, side))
            assert predictor.model(tile)[0].numpy() == pytest.approx(cmu.X[i], abs=1e-4)
    assert cmu.X.std(axis=0).min() > 0.01
    assert cmu.genes == list(predictor.info.genes)
    assert slide.mask.shape == slide.thumbnail.shape[:2]
    assert cmu.X.dtype == np.float32
    assert (cmu.uns["tta"], cmu.uns["backend"], cmu.uns["precision"]) == (1, "torch", "float32")
    assert cmu.obs["ood"].shape == cmu.obs["array_row"].shape == (len(cmu),)


def test_the_convenience_is_the_method(cmu, tiny_weights):
    result = tcgn_hub.predict_slide(SVS, weights=tiny_weights, device="cpu", stride_um=200, workers=0)
    np.testing.assert_allclose(result.X, cmu.X, atol=1e-4)


def test_workers_batches_and_order_change_nothing(cmu, predictor, tmp_path):
    other = predictor.slide(SVS, stride_um=200, workers=0, batch_size=5, genes=GENES)
    columns = [cmu.genes.index(gene) for gene in GENES]
    assert other.names == cmu.names
    assert pytest.approx(cmu.X[:, columns], abs=1e-4) == other.X
    # the same tiles as spots, in another order
    order = np.random.default_rng(0).permutation(len(cmu))
    xy, rows, cols = cmu.obsm["spatial"], cmu.obs["array_row"], cmu.obs["array_col"]
    lines = [f"{cmu.names[i]},1,{rows[i]},{cols[i]},{xy[i][1]},{xy[i][0]}" for i in order]
    (tmp_path / "spots.csv").write_text("\n".join(lines))
    spots = predictor.slide(SVS, spots=tmp_path / "spots.csv", genes=GENES, workers=2)
    assert spots.names == [cmu.names[i] for i in order]
    assert pytest.approx(other.X[order], abs=1e-4) == spots.X
    assert (spots.slide.mask, spots.slide.stride_um) == (None, None)


def test_features_lead_to_the_values(predictor):
    kept = predictor.slide(SVS, stride_um=400, features=True)
    assert kept.obsm["features"].shape == (len(kept), predictor.model.num_features)
    with torch.inference_mode():
        maps = torch.from_numpy(kept.obsm["features"])[:, :, None, None]
        assert predictor.model.forward_head(maps).numpy() == pytest.approx(kept.X, abs=1e-4)


def test_magnification_is_the_rule(predictor):
    nominal = predictor.slide(SVS, stride_um=300, magnification=20, genes=GENES)
    assert (nominal.slide.patch_um, nominal.slide.mpp, nominal.slide.scale_source) == (112, 0.5, "--magnification")
    assert nominal.slide.tile_px == 224


def test_levels_agree(predictor, tmp_path):
    # the same field read from full resolution, and from a level that is enough for it
    path = pyramid(tmp_path / "p.tif", 4096)
    with open_slide(path) as slide:
        assert slide.level_for(512 / 0.5 / 224) == 1
    wide = predictor.slide(path, patch_um=512, stride_um=256, genes=GENES, min_tissue=0.9)
    flat = tmp_path / "flat.png"
    with open_slide(path) as slide:
        Image.fromarray(slide.read(0, 0, 4096, 4096)).save(flat, compress_level=1)
    plain = predictor.slide(flat, mpp=0.5, patch_um=512, stride_um=256, genes=GENES, min_tissue=0.9)
    assert wide.names == plain.names
    assert pytest.approx(plain.X, abs=0.05) == wide.X
    assert wide.X.std() > 0.1


def test_ome_tiff(predictor):
    result = predictor.slide(OME, genes=GENES, min_tissue=0, workers=1, patch_um=77, stride_um=77)
    assert len(result) == 9
    assert result.slide.mpp == pytest.approx(0.2271, abs=1e-4)


# refusals


def test_no_tissue_no_scale_and_other_refusals(predictor, tmp_path):
    blank = pyramid(tmp_path / "blank.tif", 1024, blank=True)
    Image.new("RGB", (600, 600), "white").save(tmp_path / "x.png")
    far = tmp_path / "far.csv"
    far.write_text("A-1,1,0,0,10,-5\nB-1,1,0,1,10,99999\n")
    for path, options, error, says in (
        (blank, {}, ImageError, "shows no tissue"),
        (tmp_path / "x.png", {}, ImageError, "does not say how large its pixels are"),
        (tmp_path / "x.png", {"mpp": 0.06}, ImageError, "smaller than a tile"),
        (tmp_path / "x.png", {"mpp": 0.5, "max_pixels": 100}, ImageError, "max_pixels"),
        (SVS, {"spots": far}, SectionError, "2 of the 2 spots .* such as A-1, lie outside .*2220 x 2967"),
        (SVS, {"genes": ["NOGENE"]}, PanelError, "NOGENE"),
    ):
        with pytest.raises(error, match=says) as raised:
            predictor.slide(path, **options)
        assert "\n" not in str(raised.value)


def test_a_slide_without_tissue_has_no_values_unless_forced(tcgn, predictor, tmp_path, capsys):
    Image.new("RGB", (700, 700), "white").save(tmp_path / "blank.png")
    arguments = [tmp_path / "blank.png", "-o", tmp_path / "out.h5ad", "--mpp", "0.5"]
    assert tcgn(*arguments) == 1
    assert "blank.png shows no tissue, so that nothing is predicted; if it does" in capsys.readouterr().err
    assert not (tmp_path / "out.h5ad").exists()
    assert tcgn(*arguments, "--force") == 0
    with pytest.raises(NoTissueError):
        predictor.slide(tmp_path / "blank.png", mpp=0.5)


def test_spots_that_are_off_the_slide_are_left_out_and_listed(predictor, tmp_path):
    spots = tmp_path / "spots.csv"
    spots.write_text("A-1,1,0,0,10,10\nB-1,1,0,1,10,2223\nC-1,1,1,0,900,900\n")
    result = predictor.slide(SVS, spots=spots, genes=GENES, workers=0)
    assert result.names == ["A-1", "C-1"]
    assert list(result.failed) == ["B-1"]
    assert "spot B-1 of" in result.failed["B-1"]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"path": "gone.svs"}, ImageError, r"gone\.svs does not exist"),
        ({"mpp": 1e-6}, ImageError, "cannot be the scale"),
        ({"spots": "gone.csv"}, SectionError, r"gone\.csv does not exist"),
        ({"min_tissue": 1.5}, ValueError, "min_tissue is 1.5, but must be from 0 to 1"),
        ({"min_tissue": -0.1}, ValueError, "min_tissue is -0.1, but must be from 0 to 1"),
        ({"stride_um": 0}, ValueError, "stride_um is 0, but must be above 0"),
        ({"workers": -1}, ValueError, "workers is -1, but must be at least 0"),
        ({"tta": 9}, ValueError, "tta is 9"),
        ({"view": 2}, TypeError, "view"),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_are_read(options, error, says, monkeypatch):
    monkeypatch.setattr("tcgn_hub.prediction.predictor.load", None)
    with pytest.raises(error, match=says):
        tcgn_hub.predict_slide(**{"path": SVS, **options})


@pytest.mark.parametrize(("workers", "min_tissue"), [(0, 0), (1, 0.5)])
def test_corrupt_tiles_are_recorded(predictor, tmp_path, workers, min_tissue):
    options = {"genes": GENES, "min_tissue": min_tissue, "workers": workers, "stride_um": 120}
    result, sound = (predictor.slide(path, **options) for path in (damaged(tmp_path / "damaged.svs"), SVS))
    assert 0 < len(result.failed) < len(sound) / 2
    assert all("cannot be decoded" in why for why in result.failed.values())
    both = [tile for tile in result.names if tile in sound.names]
    # the mask moves a little where a part of the picture is missing
    assert len(set(sound.names) - set(both) - set(result.failed)) <= (2 if min_tissue else 0)
    kept = [sound.names.index(tile) for tile in both]
    assert result.X[[result.names.index(tile) for tile in both]] == pytest.approx(sound.X[kept], abs=1e-4)
    assert len(result) == len(result.obsm["spatial"]) == len(result.obs["ood"])


def test_a_slide_of_which_nothing_can_be_read(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(TileReader, "__getitem__", lambda self, i: (i, None, "lost"))
    with pytest.raises(ImageError, match=rf"None of the 2 tiles of {SVS} could be read: lost"):
        predictor.slide(SVS, spots=_spots(tmp_path / "spots.csv"), workers=0)


def _spots(path: Path, *places: tuple[int, int]) -> Path:
    places = places or ((500, 500), (1000, 1000))
    path.write_text("".join(f"S{i},1,{i},{i},{y},{x}\n" for i, (x, y) in enumerate(places)))
    return path


# spots


def test_spots_off_the_slide_are_left_out_and_listed(predictor, tmp_path):
    (tmp_path / "spots.csv").write_text("name,x,y\na,500,500\nb,-3,900\nc,1000,1000\nd,600,2967\ne,700,700\n")
    result = predictor.slide(SVS, spots=tmp_path / "spots.csv", workers=0, genes=GENES)
    assert result.names == ["a", "c", "e"]
    assert result.obsm["spatial"].tolist() == [[500, 500], [1000, 1000], [700, 700]]
    assert list(result.failed) == ["b", "d"]
    assert "spot b of" in result.failed["b"]
    assert "2220 x 2967" in result.failed["d"]
    inside = _spots(tmp_path / "inside.csv", (500, 500), (1000, 1000), (700, 700))
    np.testing.assert_allclose(predictor.slide(SVS, spots=inside, workers=0, genes=GENES).X, result.X, atol=1e-5)


@pytest.mark.parametrize(("pitch", "refused"), [(200.4, False), (186, False), (135, True), (40.5, True)])
def test_spots_of_another_resolution_are_refused(predictor, tmp_path, predicted, pitch, refused):
    spots = tmp_path / "spots.h5ad"
    write_h5ad(spots, image=False, xy=visium_array(pitch=pitch)[2] + 200)
    if refused:
        with pytest.raises(SectionError, match=r"spots.h5ad are .* px apart, .*100 um at .* 0.499 .*force_scale=True"):
            predictor.slide(SVS, spots=spots, workers=0)
        assert not predicted
    result = predictor.slide(SVS, spots=spots, workers=0, force_scale=refused, genes=GENES)
    assert len(result) == 20
    assert any("px apart" in note for note in result.notes) == (pitch != 200.4)


def test_one_of_several_sections_of_spots(predictor, tmp_path, tcgn, capsys, monkeypatch):
    data = write_h5ad(tmp_path / "two.h5ad", image=False, obs={"library_id": ["S1"] * 4 + ["S2"] * 16})
    result = predictor.slide(SVS, spots=tmp_path / "two.h5ad", library="S1", workers=0, force_scale=True)
    assert result.names == list(data.obs_names[:4])
    with pytest.raises(SectionError, match="library is of a file of spots"):
        predictor.slide(SVS, library="S1")
    out = ["-o", tmp_path / "o.csv", "--genes", GENES[0], "--workers", "0", "--force-scale"]
    assert tcgn(SVS, *out, "--spots", tmp_path / "two.h5ad", "--library", "S1") == 0
    assert len((tmp_path / "o.csv").read_text().splitlines()) == 5
    monkeypatch.setattr("tcgn_hub.prediction.predictor.load", None)
    for options, says in (
        (["--spots", tmp_path / "two.h5ad"], "holds 2 sections (S1, S2); choose one with --library NAME"),
        (["--spots", tmp_path / "two.h5ad", "--library", "S3"], "has no section S3; there are S1, S2"),
        (["--library", "S1"], "--library is of a file of spots"),
        (["--spots", tmp_path], "is a folder; give a file of spots"),
    ):
        capsys.readouterr()
        assert tcgn(SVS, *out, *options) == 2
        assert says in capsys.readouterr().err


# processes


_UNDER = """
import multiprocessing, sys
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    import numpy as np
    import tcgn_hub
    predictor = tcgn_hub.load(path=sys.argv[2], device="cpu")
    for path in sys.argv[3:]:
        options = {"stride_um": 400, "mpp": 0.5, "min_tissue": 0}
        here, there = (predictor.slide(path, workers=workers, **options) for workers in (0, 1))
        assert len(here) > 1 and not there.failed, there.failed
        np.testing.assert_allclose(there.X, here.X, atol=1e-5)
    assert multiprocessing.get_start_method() == sys.argv[1]
"""


def test_slides_are_read_where_processes_are_spawned(tiny_weights, tmp_path):
    (tmp_path / "under.py").write_text(_UNDER)
    picture = tmp_path / "picture.png"
    with open_slide(SVS) as slide:
        Image.fromarray(slide.read(0, 0, 1200, 1200)).save(picture, compress_level=1)
    command = [sys.executable, str(tmp_path / "under.py"), "spawn", str(tiny_weights), str(SVS), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, env=_env())
    assert done.returncode == 0, done.stderr


def test_a_reader_of_tiles_is_pickled_without_what_is_open(tmp_path):
    picture = tmp_path / "picture.png"
    Image.effect_noise((600, 600), 60).convert("RGB").save(picture)
    for path in (SVS, picture):
        with open_slide(path) as slide:
            reader = TileReader(slide, np.array([[300.0, 300]]), 200.0)
            stored = pickle.dumps(reader)
            assert len(stored) < 1000
            np.testing.assert_array_equal(pickle.loads(stored)[0][1], reader[0][1])


def test_a_daemonic_process_reads_tiles_itself(predictor, monkeypatch):
    """It may start no processes of its own."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    assert multiprocessing.current_process().daemon
    assert len(predictor.slide(SVS, stride_um=400, workers=2))


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(tcgn_hub.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


# memory


def test_results_are_held_once(predictor, monkeypatch):
    """The columns that are asked for, in arrays that are made once; no copy where tiles have failed."""
    count, wide = 3000, 400
    monkeypatch.setattr(slides, "read_spots", lambda path, **_: slides.Tiles(*_many(count)))
    failing = set(range(0, count, 7))
    tile = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(TileReader, "__getitem__", lambda self, i: (i, None, "lost") if i in failing else (i, tile, ""))
    values = np.random.default_rng(0).normal(size=(64, wide)).astype(np.float32)

    def begin(self, pixels, *_):
        said = {"values": values[:, : len(PANEL)], "features": values, "measures": values[:, :6]}
        return lambda: {key: rows[: len(pixels)] for key, rows in said.items()}

    monkeypatch.setattr(tcgn_hub.Predictor, "_begin", begin)
    options = {"spots": __file__, "workers": 0, "genes": GENES, "features": True, "batch_size": 64}
    predictor.slide(SVS, **options)
    tracemalloc.start()
    try:
        result = predictor.slide(SVS, **options)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(result), len(result.failed)) == (count - len(failing), len(failing))
    assert result.obsm["features"].shape == (len(result), wide)
    table = count * (wide + len(GENES)) * 4
    overview = result.slide.thumbnail.nbytes
    assert peak < 1.4 * table + 6 * overview
    assert result.X.base is not None
    np.testing.assert_array_equal(result.X[0], values[0, [5, 2]])


def test_results_on_disk_are_written_as_those_in_memory(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "_CHUNK", 8)
    # of many chunks in the file, the last of which is not full
    monkeypatch.setattr("tcgn_hub.writing.anndata._CHUNK_BYTES", 1500)
    lost, real = {3, 4, 11}, TileReader.__getitem__
    monkeypatch.setattr(TileReader, "__getitem__", lambda self, i: (i, None, "lost") if i in lost else real(self, i))
    found = {}
    for place, limit in (("memory", 1 << 30), ("disk", 0)):
        monkeypatch.setattr(rows, "IN_MEMORY", limit)
        monkeypatch.setattr(rows, "AT_ONCE", 10 if place == "disk" else 1024)
        folder = tmp_path / place
        folder.mkdir()
        result = predictor.slide(SVS, stride_um=200, features=True, tta=2, workers=0)
        assert result.failed == dict.fromkeys(result.failed, "lost")
        assert len(result.failed) == len(lost)
        for suffix in ("h5ad", "csv", "json", "parquet", "geojson", "txt"):
            result.write(folder / f"cmu.{suffix}")
        found[place] = result, result.to_anndata(), anndata.read_h5ad(folder / "cmu.h5ad")
    for key in ("csv", "csv.json", "json", "parquet", "geojson", "txt"):
        assert (tmp_path / "disk" / f"cmu.{key}").read_bytes() == (tmp_path / "memory" / f"cmu.{key}").read_bytes(), key
    held = found["memory"][1]
    assert set(held.layers) >= {"z", "tta_std"}
    assert set(held.obsm) >= {"spatial", "X_tcgn"}
    for other in (found["memory"][2], found["disk"][1], found["disk"][2]):
        np.testing.assert_array_equal(other.X, held.X)
        assert other.X.dtype == held.X.dtype
        for part in ("layers", "obsm"):
            assert set(getattr(other, part)) == set(getattr(held, part))
            for name, table in getattr(other, part).items():
                np.testing.assert_array_equal(table, getattr(held, part)[name])
                assert table.dtype == getattr(held, part)[name].dtype
        for part in ("obs", "var"):
            pandas.testing.assert_frame_equal(getattr(other, part), getattr(held, part), check_dtype=False)
        assert set(other.uns) == set(held.uns)
    np.testing.assert_array_equal(found["disk"][0].bulk(), found["memory"][0].bulk())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_tiles(tiny_weights, tmp_path):
    """From a picture to the written .h5ad, with a model that costs nothing and 1280 features a tile."""
    noise = np.random.default_rng(0).integers(90, 250, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    code = """
import sys
import numpy as np, tcgn_hub, tcgn_hub.rows

tcgn_hub.rows.IN_MEMORY = 1 << 20
weights, image, out, stride = sys.argv[1:]
predictor = tcgn_hub.load(path=weights, device="cpu", compile="off")
sides = {"values": len(predictor.info.genes), "features": 1280, "measures": 6}
said = {key: np.ones((256, side), np.float32) for key, side in sides.items()}
tcgn_hub.Predictor._begin = lambda self, x, *_: lambda: {key: values[: len(x)] for key, values in said.items()}
scale = {"mpp": 1, "force_scale": True, "patch_um": 40, "stride_um": float(stride), "min_tissue": 0}
result = predictor.slide(image, **scale, features=True, batch_size=256, resume=f"{out}.partial")
result.write(out)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(len(result), int(peak.split()[1]) / 1024)
"""
    seen = []
    for stride in ("6", "2"):
        paths = [str(tiny_weights), str(tmp_path / "noise.png"), str(tmp_path / f"{stride}.h5ad"), stride]
        done = subprocess.run(
            [sys.executable, "-c", code, *paths], capture_output=True, text=True, env=_env(), check=False
        )
        assert done.returncode == 0, done.stderr
        seen.append([float(number) for number in done.stdout.split()])
    (few, before), (many, after) = seen
    assert (few, many) == (61**2, 181**2)
    table = (many - few) * 1280 * 4 / 2**20
    assert after - before < 30 < table / 4, (before, after, table)


def test_batches_and_workers_are_chosen(predictor, predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor.backend, "batch_size", 5)
    asked = []
    real = slides._Table.fill

    def fill(self, predictor, reader, tta, features, batch_size, workers, shown):
        asked.append((batch_size, workers))
        return real(self, predictor, reader, tta, features, batch_size, 0, shown)

    monkeypatch.setattr(slides._Table, "fill", fill)
    monkeypatch.setattr(slides, "usable_cores", lambda: 96)
    predictor.slide(SVS, stride_um=200)
    assert set(predicted[:-1]) == {5}
    with open_slide(SVS) as opened:
        Image.fromarray(opened.read(0, 0, 1200, 900)).save(tmp_path / "picture.png")
        on_cpus, on_gpus = {1: 1, 2: 1, 32: 4}, {2: 1, 8: 7, 96: 16}
        for gpu, cores, want in [(gpu, *pair) for gpu, of in enumerate((on_cpus, on_gpus)) for pair in of.items()]:
            monkeypatch.setattr(slides, "usable_cores", lambda n=cores: n)
            backend = type("Backend", (), {"device": torch.device("cuda" if gpu else "cpu")})()
            chosen = partial(slides._workers, type("Predictor", (), {"backend": backend})(), opened)
            assert (chosen(100), chosen(3), chosen(1)) == (want, 1, 0)
    # what is in memory is read by no process
    predictor.slide(tmp_path / "picture.png", mpp=0.5, stride_um=200)
    assert [workers for _, workers in asked] == [12, 0]


def _many(count: int):
    index = np.arange(count)
    return [f"t{i}" for i in index], np.full((count, 2), 500.0), index, index


# resuming


def test_an_interruption_costs_at_most_a_chunk(kept, predictor, predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "_CHUNK", 8)
    options = {"genes": GENES, "stride_um": 150, "batch_size": 4}
    want = predictor.slide(SVS, **options)
    real = tcgn_hub.Predictor._begin
    predicted.clear()

    def fails_later(self, pixels, *options):
        if sum(predicted) >= 20:
            raise KeyboardInterrupt
        return real(self, pixels, *options)

    state = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(tcgn_hub.Predictor, "_begin", fails_later)
        with pytest.raises(KeyboardInterrupt):
            predictor.slide(SVS, resume=state, **options)
    assert sorted(path.name for path in state.iterdir()) == ["0.npz", "8.npz", "run.json"]
    predicted.clear()
    got = predictor.slide(SVS, resume=state, **options)
    assert np.array_equal(got.X, want.X)
    assert np.array_equal(got.obs["ood"], want.obs["ood"])
    assert sum(predicted) == len(want) - 16
    # one number, however it is written, is one run
    predicted.clear()
    same = predictor.slide(SVS, resume=state, **{**options, "stride_um": 150.0})
    assert np.array_equal(same.X, want.X)
    assert not predicted
    # a damaged chunk is computed again
    predicted.clear()
    (state / "8.npz").write_bytes(b"PK damaged")
    again = predictor.slide(SVS, resume=state, **options)
    assert np.array_equal(again.X, want.X)
    assert sum(predicted) == 8


def test_what_could_not_be_read_is_tried_again(kept, predictor, predicted, tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "_CHUNK", 8)
    options = {"stride_um": 150, "batch_size": 4, "workers": 0, "resume": tmp_path / "state", "tta": 2}
    want = predictor.slide(SVS, **{**options, "resume": None})
    lost = {1, 2, 9, len(want) - 1}
    real = TileReader.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(TileReader, "__getitem__", lambda self, i: (i, None, "lost") if i in lost else real(self, i))
        part = predictor.slide(SVS, **options)
    assert part.failed == {want.names[i]: "lost" for i in sorted(lost)}
    np.testing.assert_allclose(part.X, np.delete(want.X, sorted(lost), axis=0), atol=1e-5)
    predicted.clear()
    whole = predictor.slide(SVS, **options)
    assert (whole.failed, whole.names, sum(predicted)) == ({}, want.names, len(lost))
    np.testing.assert_allclose(whole.X, want.X, atol=1e-5)
    np.testing.assert_allclose(whole.layers["tta_std"], want.layers["tta_std"], atol=1e-5)
    predicted.clear()
    predictor.slide(SVS, **options)
    assert not predicted


@pytest.mark.parametrize("name", ["results.npz", "0.npz", "notes.txt", "run.json"])
def test_a_folder_with_files_of_others_is_refused_and_left_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr("tcgn_hub.prediction.predictor.load", None)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(OutputError, match=rf"mine holds {name}, which no run has written there; give another folder"):
        tcgn_hub.predict_slide(SVS, resume=folder)
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_text() == "{}"


def test_a_foreign_file_among_our_own_is_refused(predictor, tmp_path):
    state = tmp_path / "state"
    predictor.slide(SVS, stride_um=400, resume=state)
    (state / "thesis.npz").write_bytes(b"years of work")
    with pytest.raises(OutputError, match=r"state holds thesis\.npz, which no run has written there"):
        predictor.slide(SVS, stride_um=400, resume=state)
    (state / "thesis.npz").unlink()
    # one of the name of a chunk is that of another run
    np.savez(state / "256.npz", mine=np.ones(3))
    with pytest.raises(OutputError, match=r"256\.npz is of another run; give another folder, or delete this one"):
        predictor.slide(SVS, stride_um=400, resume=state)
    assert sorted(path.name for path in state.iterdir()) == ["0.npz", "256.npz", "run.json"]


def test_a_folder_of_another_run_is_refused_before_weights_are_read(predictor, tiny_weights, tmp_path, monkeypatch):
    state, spots = tmp_path / "state", _spots(tmp_path / "spots.csv")
    options = {"weights": tiny_weights, "device": "cpu", "workers": 0, "spots": spots, "resume": state}
    first = tcgn_hub.predict_slide(SVS, **options)
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    monkeypatch.setattr("tcgn_hub.prediction.predictor.load", None)
    other = tmp_path / "other.svs"
    shutil.copy(SVS, other)
    for path, change, key in (
        (SVS, {"tta": 2}, "tta"),
        (SVS, {"features": True}, "features"),
        (SVS, {"genes": GENES}, "genes"),
        (SVS, {"mpp": 0.5}, "mpp"),
        (SVS, {"precision": "bfloat16"}, "precision"),
        (SVS, {"weights": "tcgn_base.her2st"}, "weights"),
        (SVS, {"backend": "onnx"}, "backend"),
        (SVS, {"spots": _spots(tmp_path / "more.csv", (500, 500), (900, 900))}, "spots"),
        (other, {}, "slide"),
    ):
        with pytest.raises(OutputError, match=f"state holds a run with other .*{key}.*; give another folder, or del"):
            tcgn_hub.predict_slide(path, **{**options, **change})
    assert {path.name: path.read_bytes() for path in state.iterdir()} == before
    monkeypatch.undo()
    # how it is computed is no other run
    again = tcgn_hub.predict_slide(SVS, **{**options, "workers": 1, "batch_size": 1})
    assert np.array_equal(again.X, first.X)


def test_a_full_disk_keeps_what_was_done(predictor, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(slides.np, "savez", full)
    with pytest.raises(OutputError, match=r"No space left on device.*run again to continue"):
        predictor.slide(SVS, genes=GENES, stride_um=400, resume=tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["run.json"]


def test_no_room_for_what_is_predicted(predictor, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    monkeypatch.setattr(rows.tempfile, "TemporaryFile", full)
    options = {"genes": GENES, "stride_um": 400, "workers": 0}
    with pytest.raises(OutputError, match=r"cannot hold what is predicted \(No space left on device\)\.$"):
        predictor.slide(SVS, **options)
    with pytest.raises(OutputError, match=r"No space left on device\); what was done before is kept, run again to"):
        predictor.slide(SVS, **options, resume=tmp_path / "state")


def test_a_folder_below_what_can_only_be_read(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "IN_MEMORY", 0)
    above = tmp_path / "above"
    real, places = rows.tempfile.TemporaryFile, []
    monkeypatch.setattr(slides.os, "access", lambda path, mode: Path(path) != above)
    monkeypatch.setattr(rows.tempfile, "TemporaryFile", lambda dir: places.append(dir) or real(dir=dir))
    assert len(predictor.slide(SVS, stride_um=400, workers=0, resume=above / "state"))
    assert places
    assert above not in places


def test_threads_predict_slides_at_once(predictor, cmu):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(predictor.slide(SVS, stride_um=200, workers=0)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_allclose(result.X, cmu.X, atol=1e-4)
    assert len(results) == 2


# the command


@pytest.fixture
def tcgn(tiny_weights):
    return lambda *arguments: main(["predict", *map(str, arguments), "--weights", str(tiny_weights)])


@pytest.mark.parametrize("suffix", ["h5ad", "csv", "parquet", "geojson"])
def test_command_writes_formats(tcgn, tmp_path, suffix):
    out = tmp_path / f"å file.{suffix}"
    assert tcgn(SVS, "-o", out, "--stride-um", "300", "--genes", ",".join(GENES)) == 0
    beside = [f"{out.name}.json"] if suffix == "csv" else []
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name, *beside]
    if suffix == "h5ad":
        import anndata

        data = anndata.read_h5ad(out)
        assert list(data.var_names) == GENES
        assert data.uns["tcgn"]["mpp"] == 0.499
        assert read_spots(out).xy.tolist() == data.obsm["spatial"].tolist()
    elif suffix == "geojson":
        assert len(json.loads(out.read_text())["features"]) > 5
    elif suffix == "csv":
        assert out.read_text().splitlines()[0].endswith(",".join(GENES))
        metadata = json.loads(Path(f"{out}.json").read_text())
        assert metadata["runs"][0]["mpp"] == 0.499
        assert metadata["significant"] == {GENES[0]: True, GENES[1]: False}


def test_geojson_has_all_genes_if_they_are_asked_for(tcgn, tmp_path):
    for genes, want in (((), PANEL[4:]), (("--genes", "all"), PANEL), (("--genes", ",".join(GENES)), GENES)):
        out = tmp_path / "slide.geojson"
        assert tcgn(SVS, "-o", out, "--stride-um", "300", *genes) == 0
        measured = json.loads(out.read_text())["features"][0]["properties"]["measurements"]
        assert [name for name in measured if name in PANEL] == want


def test_all_genes_are_those_of_no_list(predictor, tmp_path):
    options = {"stride_um": 400, "workers": 0, "resume": tmp_path / "state"}
    first = predictor.slide(SVS, **options)
    again = predictor.slide(SVS, genes="all", **options)
    assert first.genes == again.genes == PANEL
    np.testing.assert_array_equal(first.X, again.X)
    assert (first.uns["asked"], again.uns["asked"]) == (False, True)
    with pytest.raises(PanelError, match="all: not among the 12 genes"):
        predictor.info.columns(["all"])


def test_command_with_everything(tcgn, tmp_path, predictor, capsys):
    drawn = ["--plot", "G5,G6", "--report", "--bulk", tmp_path / "bulk.csv", "--features", "--significant-only"]
    assert tcgn(SVS, OME, "-o", tmp_path / "out", "--stride-um", "300", "--min-tissue", "0.2", *drawn) == 0
    *slides, whole = [line for line in capsys.readouterr().err.splitlines() if " written to " in line]
    assert [re.findall(r"(\S+): \d+ tiles? in [\d.]+ s, ", line) for line in slides] == [[str(SVS)], [str(OME)]]
    named = re.findall(r"written to (.*)", slides[0])[0].split(", ")
    drawn = ["G5.png", "G6.png", "tissue.png"]
    assert [name.split("cmu_small_region.svs.")[1] for name in named] == ["h5ad", *drawn, "html"]
    assert all(Path(name).is_file() for name in named)
    assert re.search(r"predict: 2 of 2 slides, \d+ tiles in .* written to .*bulk.csv, .*bulk.csv.json$", whole)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"cmu_small_region.svs.h5ad", "cmu_small_region.svs.html", "cmu_small_region.svs.G5.png"} <= names
    assert {"cmu_small_region.svs.tissue.png", "OS-1-detail.ome.tif.h5ad"} <= names
    assert not [name for name in names if "partial" in name]
    bulk = (tmp_path / "bulk.csv").read_text().splitlines()
    assert len(bulk) == 3
    assert len(json.loads((tmp_path / "bulk.csv.json").read_text())["runs"]) == 2
    import anndata

    data = anndata.read_h5ad(tmp_path / "out" / "cmu_small_region.svs.h5ad")
    assert data.obsm["X_tcgn"].shape == (data.n_obs, predictor.model.num_features)
    assert data.n_vars == len(predictor.info.significant)


def test_command_draws_and_reports_by_an_exported_file(predictor, tmp_path, capsys):
    """Columns of exported weights are theirs; only the tiles that would explain them are left out, and that is said."""
    model = onnx_file.write(tmp_path / "model.onnx", predictor.info)
    arguments = ["-o", tmp_path / "o.csv", "--stride-um", "400", "--plot", "G5", "--report", "--weights", model]
    assert main(["predict", str(SVS), *map(str, arguments)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"o.csv", "o.csv.json", "o.G5.png", "o.html", "o.tissue.png"} <= names
    error = capsys.readouterr().err
    assert "weights_only" not in error
    assert "Traceback" not in error


def test_command_keeps_going_over_bad_slides(tcgn, tmp_path, capsys):
    (tmp_path / "slides").mkdir()
    shutil.copy(SVS, tmp_path / "slides" / "a.svs")
    (tmp_path / "slides" / "b.svs").write_text("no slide")
    options = ["-o", tmp_path / "out", "--stride-um", "400", "--genes", "G5"]
    assert tcgn(tmp_path / "slides", *options) == 1
    assert "b.svs is no image that can be read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.h5ad*")] == ["a.svs.h5ad"]
    assert tcgn(tmp_path / "slides" / "*.svs", *options) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SVS, "-o", "out.csv", "--format", "h5ad"], "--format h5ad does not go with out.csv"),
        ([SVS, "-o", "out.h5ad", "--genes", "G5", "--plot", "G6"], "G6 is to be drawn, but not among"),
        ([SVS, "-o", "out.h5ad", "--plot", "NOGENE"], "NOGENE"),
        ([SVS, OME, "-o", "out", "--spots", "absent.csv"], "--spots belongs to one slide"),
        (["absent.svs", "-o", "out.h5ad"], "absent.svs does not exist"),
        (["blank.png", "-o", "out.h5ad"], "does not say how large its pixels are"),
    ],
)
def test_errors_of_the_command_are_one_sentence_and_leave_nothing(
    tcgn, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (500, 500), "white").save("blank.png")
    assert tcgn(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"blank.png", "out"}


@pytest.mark.parametrize(
    ("module", "name", "options", "extra"),
    [
        ("anndata", "o.h5ad", [], "h5ad"),
        ("pyarrow", "o.parquet", [], "parquet"),
        ("matplotlib", "o.csv", ["--report"], "plot"),
    ],
)
def test_a_missing_extra_is_told_before_the_command_predicts(
    tcgn, module, name, options, extra, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("tcgn_hub.prediction.predictor.load", None)
    assert tcgn(SVS, "-o", tmp_path / name, *options) == 2
    assert f"pip install 'tcgn_hub[{extra}]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_no_process(tiny_weights, tmp_path):
    out = tmp_path / "o.csv"
    arguments = ["predict", str(SVS), "-o", str(out), "--stride-um", "5", "--weights", str(tiny_weights)]
    command = [sys.executable, "-m", "tcgn_hub.cli.main", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=_env())
    # tiles are being read and predicted once there is a chunk
    while not list(tmp_path.glob("o.csv.partial/*.npz")):
        time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "tcgn predict: interrupted"
    assert not out.exists()
    deadline = time.monotonic() + 20
    while (alive := _alive(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
