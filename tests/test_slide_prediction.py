"""Slides from end to end: predict_slide and tcgn predict on them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_slides import OME, SVS, pyramid

import tcgn_hub
from tcgn_hub import slide_prediction
from tcgn_hub.cli.main import main
from tcgn_hub.errors import ImageError, OutputError, SectionError
from tcgn_hub.images.slides import open_slide
from tcgn_hub.images.tiles import read_spots
from tcgn_hub.images.transforms import to_input
from tcgn_hub.prediction.backends import pytorch
from tcgn_hub.prediction.slides import predict_slide

GENES = ["GNAS", "FASN"]


@pytest.fixture(scope="module")
def cmu():
    """The bundled slide, on a wide grid to be quick."""
    return predict_slide(SVS, stride_um=200)


def test_values_are_those_of_the_patches(cmu):
    assert cmu.patch_um == 154
    assert (cmu.mpp, cmu.scale_source, cmu.stride_um) == (0.499, "openslide.mpp-x", 200)
    assert len(cmu.tiles) == len(cmu.xy) == len(cmu.values) > 10
    model, info = tcgn_hub.load_model()
    side = round(154 / 0.499)
    with open_slide(SVS) as slide, torch.inference_mode():
        for i in (0, 7):
            x, y = np.round(cmu.xy[i] - side / 2).astype(int)
            assert model(to_input(slide.read(x, y, side, side)))[0].numpy() == pytest.approx(cmu.values[i], abs=1e-4)
    assert cmu.genes == list(info.genes)
    assert cmu.mask.shape == cmu.thumbnail.shape[:2]
    assert cmu.values.dtype == np.float32


def test_workers_batches_and_order_change_nothing(cmu, tmp_path):
    other = predict_slide(SVS, stride_um=200, workers=0, batch_size=5, genes=GENES)
    columns = [cmu.genes.index(gene) for gene in GENES]
    assert other.tiles == cmu.tiles
    assert other.values == pytest.approx(cmu.values[:, columns], abs=1e-4)
    # the same tiles as spots, in another order
    order = np.random.default_rng(0).permutation(len(cmu.tiles))
    lines = [f"{cmu.tiles[i]},1,{cmu.array_row[i]},{cmu.array_col[i]},{cmu.xy[i][1]},{cmu.xy[i][0]}" for i in order]
    (tmp_path / "spots.csv").write_text("\n".join(lines))
    spots = predict_slide(SVS, spots=tmp_path / "spots.csv", genes=GENES, workers=2)
    assert spots.tiles == [cmu.tiles[i] for i in order]
    assert spots.values == pytest.approx(other.values[order], abs=1e-4)
    assert (spots.mask, spots.stride_um) == (None, None)


def test_features_lead_to_the_values(cmu):
    kept = predict_slide(SVS, stride_um=400, features=True)
    assert kept.features.shape == (len(kept.tiles), 1280)
    model, _ = tcgn_hub.load_model()
    with torch.inference_mode():
        maps = torch.from_numpy(kept.features)[:, :, None, None]
        assert model.forward_head(maps).numpy() == pytest.approx(kept.values, abs=1e-4)


def test_magnification_is_the_rule():
    nominal = predict_slide(SVS, stride_um=300, magnification=20, genes=GENES)
    assert (nominal.patch_um, nominal.mpp, nominal.scale_source) == (112, 0.5, "--magnification")
    assert nominal.tile_px == 224


def test_levels_agree(tmp_path):
    # the same field read from full resolution, and from a level that is enough for it
    path = pyramid(tmp_path / "p.tif", 4096)
    with open_slide(path) as slide:
        assert slide.level_for(512 / 0.5 / 224) == 1
    wide = predict_slide(path, patch_um=512, stride_um=256, genes=GENES, min_tissue=0.9)
    flat = tmp_path / "flat.png"
    with open_slide(path) as slide:
        Image.fromarray(slide.read(0, 0, 4096, 4096)).save(flat)
    plain = predict_slide(flat, mpp=0.5, patch_um=512, stride_um=256, genes=GENES, min_tissue=0.9)
    assert wide.tiles == plain.tiles
    assert wide.values == pytest.approx(plain.values, abs=0.05)


def test_ome_tiff():
    result = predict_slide(OME, genes=GENES, min_tissue=0, workers=1, patch_um=77)
    assert len(result.tiles) == 9
    assert result.mpp == pytest.approx(0.2271, abs=1e-4)


def test_no_tissue_no_scale_and_other_refusals(tmp_path):
    blank = pyramid(tmp_path / "blank.tif", 1024, blank=True)
    Image.new("RGB", (600, 600), "white").save(tmp_path / "x.png")
    far = tmp_path / "far.csv"
    far.write_text("A-1,1,0,0,10,10\nB-1,1,0,1,10,99999\n")
    for path, options, error, says in (
        (blank, {}, ImageError, "shows no tissue"),
        (tmp_path / "x.png", {}, ImageError, "does not say how large its pixels are"),
        (tmp_path / "x.png", {"mpp": 1e-6}, ImageError, "cannot be the scale"),
        (tmp_path / "x.png", {"mpp": 0.06}, ImageError, "smaller than a tile"),
        (tmp_path / "x.png", {"mpp": 0.5, "max_pixels": 100}, ImageError, "--max-pixels"),
        (SVS, {"spots": far}, SectionError, "1 of the 2 spots .* such as B-1, lie outside .*2220 x 2967"),
        (SVS, {"genes": ["NOGENE"]}, ValueError, "NOGENE"),
    ):
        with pytest.raises(error, match=says) as raised:
            predict_slide(path, **options)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("workers", "min_tissue"), [(0, 0), (1, 0.5)])
def test_corrupt_tiles_are_recorded(tmp_path, workers, min_tissue):
    path = tmp_path / "damaged.svs"
    shutil.copy(SVS, path)
    import tifffile

    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        offsets = [(page.dataoffsets[i], page.databytecounts[i]) for i in (len(page.dataoffsets) // 2,)]
    with open(path, "r+b") as handle:
        for offset, count in offsets:
            handle.seek(offset)
            handle.write(b"\xff" * count)
    result = predict_slide(path, genes=GENES, min_tissue=min_tissue, workers=workers, stride_um=120)
    sound = predict_slide(SVS, genes=GENES, min_tissue=min_tissue, workers=workers, stride_um=120)
    assert 0 < len(result.failed) < len(sound.tiles) / 2
    assert all("cannot be decoded" in why for why in result.failed.values())
    both = [tile for tile in result.tiles if tile in sound.tiles]
    # the mask moves a little where a part of the picture is missing
    assert len(set(sound.tiles) - set(both) - set(result.failed)) <= (2 if min_tissue else 0)
    kept = [sound.tiles.index(tile) for tile in both]
    assert result.values[[result.tiles.index(tile) for tile in both]] == pytest.approx(sound.values[kept], abs=1e-4)


def test_an_interruption_costs_at_most_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(slide_prediction, "_CHUNK", 8)
    want = predict_slide(SVS, genes=GENES, stride_um=150, batch_size=4)
    real, seen = pytorch.to_input, []

    def fails_later(pixels):
        seen.append(len(pixels))
        if sum(seen) > 20:
            raise KeyboardInterrupt
        return real(pixels)

    monkeypatch.setattr(pytorch, "to_input", fails_later)
    with pytest.raises(KeyboardInterrupt):
        predict_slide(SVS, genes=GENES, stride_um=150, batch_size=4, resume=tmp_path / "state")
    assert len(list((tmp_path / "state").glob("*.npz"))) == 2
    seen.clear()
    monkeypatch.setattr(pytorch, "to_input", lambda pixels: seen.append(len(pixels)) or real(pixels))
    got = predict_slide(SVS, genes=GENES, stride_um=150, batch_size=4, resume=tmp_path / "state")
    assert np.array_equal(got.values, want.values)
    assert sum(seen) == len(want.tiles) - 16
    # a damaged chunk is computed again
    seen.clear()
    (tmp_path / "state" / "8.npz").write_bytes(b"PK damaged")
    again = predict_slide(SVS, genes=GENES, stride_um=150, batch_size=4, resume=tmp_path / "state")
    assert np.array_equal(again.values, want.values)
    assert sum(seen) == 8
    # other settings do not take what is there for theirs
    seen.clear()
    predict_slide(SVS, genes=GENES, stride_um=300, batch_size=4, resume=tmp_path / "state")
    assert sum(seen) > 0


def tcgn(*arguments):
    return main(["predict", *map(str, arguments)])


@pytest.mark.parametrize("suffix", ["h5ad", "csv", "parquet", "geojson"])
def test_command_writes_formats(tmp_path, suffix, capsys):
    out = tmp_path / f"å file.{suffix}"
    assert tcgn(SVS, "-o", out, "--stride", "300", "--genes", "GNAS,FASN") == 0
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
        assert out.read_text().splitlines()[0].endswith("GNAS,FASN")
        facts = json.loads(Path(f"{out}.json").read_text())
        assert facts["runs"][0]["mpp"] == 0.499
        assert facts["significant"] == {"GNAS": "yes", "FASN": "yes"}


def test_command_with_everything(tmp_path):
    arguments = ["--plot", "GNAS,FASN", "--report", "--bulk", tmp_path / "bulk.csv", "--features", "--significant-only"]
    assert tcgn(SVS, OME, "-o", tmp_path / "out", "--stride", "300", "--min-tissue", "0.2", *arguments) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"cmu_small_region.svs.h5ad", "cmu_small_region.svs.html", "cmu_small_region.svs.GNAS.png"} <= names
    assert {"cmu_small_region.svs.tissue.png", "OS-1-detail.ome.tif.h5ad"} <= names
    assert not [name for name in names if "partial" in name]
    bulk = (tmp_path / "bulk.csv").read_text().splitlines()
    assert len(bulk) == 3
    assert len(json.loads((tmp_path / "bulk.csv.json").read_text())["runs"]) == 2
    import anndata

    data = anndata.read_h5ad(tmp_path / "out" / "cmu_small_region.svs.h5ad")
    assert data.obsm["X_tcgn"].shape == (data.n_obs, 1280)
    assert data.n_vars == len(tcgn_hub.load_model()[1].significant)


def test_command_keeps_going_over_bad_slides(tmp_path, capsys):
    (tmp_path / "slides").mkdir()
    shutil.copy(SVS, tmp_path / "slides" / "a.svs")
    (tmp_path / "slides" / "b.svs").write_text("no slide")
    assert tcgn(tmp_path / "slides", "-o", tmp_path / "out", "--stride", "400", "--genes", "GNAS") == 1
    assert "b.svs is no slide that can be read" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.svs.h5ad"]
    assert tcgn(tmp_path / "slides" / "*.svs", "-o", tmp_path / "out", "--stride", "400", "--genes", "GNAS") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SVS], "Say where to write the tiles"),
        ([SVS, "-o", "out.xlsx"], "'xlsx' is no format for slides"),
        ([SVS, "-o", "out", "--format", "table"], "'table' is no format for slides"),
        ([SVS, "--bulk", "b.csv", "--report"], "say where with -o"),
        ([SVS, "-o", "out.csv", "--features"], "--features are kept in an .h5ad only"),
        ([SVS, "-o", "out.h5ad", "--genes", "FASN", "--plot", "GNAS"], "GNAS is to be drawn, but not among"),
        ([SVS, "-o", "no/folder/out.h5ad"], "there is no folder no/folder"),
        ([SVS, "-o", "out.h5ad", "--plot", "NOGENE"], "NOGENE"),
        ([SVS, "-o", "out.h5ad", "--spots", "absent.csv"], "absent.csv does not exist"),
        ([SVS, OME, "-o", "out", "--spots", "absent.csv"], "--spots belongs to one slide"),
        (["absent.svs", "-o", "out.h5ad"], "absent.svs does not exist"),
        (["blank.png", "-o", "out.h5ad", "--mpp", "0.5"], "shows no tissue"),
        (["blank.png", "-o", "out.h5ad"], "does not say how large its pixels are"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(arguments, message, tmp_path, monkeypatch, capsys):
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
def test_a_missing_extra_is_told_before_anything_is_predicted(
    module, name, options, extra, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(slide_prediction, "predict_slide", None)
    assert tcgn(SVS, "-o", tmp_path / name, *options) == 2
    assert f"pip install 'tcgn_hub[{extra}]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_was_done(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(slide_prediction.np, "savez", full)
        with pytest.raises(OutputError, match=r"No space left on device.*run again to continue"):
            predict_slide(SVS, genes=GENES, stride_um=400, resume=tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["run.json"]


def test_ctrl_c_leaves_no_process(tmp_path):
    arguments = ["predict", str(SVS), "-o", str(tmp_path / "o.h5ad"), "--stride", "10"]
    root = str(Path(tcgn_hub.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-m", "tcgn_hub.cli.main", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env)
    while not list(tmp_path.glob("o.h5ad.partial/run.json")):
        time.sleep(0.1)
        assert process.poll() is None, process.stderr.read()
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "tcgn predict: interrupted"
    assert not (tmp_path / "o.h5ad").exists()
    deadline = time.monotonic() + 10
    while (alive := _alive(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
