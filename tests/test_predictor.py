"""load() and the Predictor: weights read once, patches in, values out, and the protocol of other packages."""

import copy
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import golden
import numpy as np
import onnx_file
import pytest
import torch
from PIL import Image
from sections import PANEL

import tcgn_hub
from tcgn_hub.errors import DeviceError, ExtraError, ImageError, NoTissueError, PanelError, WeightsError
from tcgn_hub.images.transforms import to_input
from tcgn_hub.models import loading
from tcgn_hub.models.loading import load_model
from tcgn_hub.prediction import predictor as home
from tcgn_hub.prediction.backends import openvino
from tcgn_hub.prediction.backends.onnx import exported_path
from tcgn_hub.prediction.backends.torch import TorchBackend

PATCH = golden.PATCHES[0]
GENES = [PANEL[5], PANEL[2]]


@pytest.fixture(scope="module")
def tiny(tiny_weights) -> tcgn_hub.Predictor:
    return tcgn_hub.load(path=tiny_weights, device="cpu")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.asarray(Image.open(PATCH).convert("RGB"))


@pytest.fixture
def reads(monkeypatch) -> list:
    """What is read while the test runs, and nothing from before."""
    seen = []
    monkeypatch.setattr(home, "_loaded", type(home._loaded)())
    real = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *args, **options: seen.append(args) or real(*args, **options))
    return seen


# reading weights


def test_weights_are_read_once_per_process(tiny_weights, reads):
    first = tcgn_hub.predict([PATCH], weights=tiny_weights, device="cpu")
    second = tcgn_hub.predict([PATCH], weights=str(tiny_weights), device="cpu")
    third = tcgn_hub.load(path=tiny_weights)
    tcgn_hub.explain(PATCH, weights=tiny_weights, genes=GENES)
    assert len(reads) == 1
    np.testing.assert_array_equal(first.X, second.X)
    assert third.backend is tcgn_hub.load(path=tiny_weights, precision="float32").backend
    tcgn_hub.load(path=tiny_weights, precision="bfloat16")
    assert len(reads) == 2


def test_threads_that_load_at_once_read_once(tiny_weights, reads):
    start, found = threading.Barrier(4), []

    def run():
        start.wait()
        found.append(tcgn_hub.load(path=tiny_weights).backend)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len(set(map(id, found))) == 1


def test_other_weights_at_the_same_place_are_read(tiny_weights, reads, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_weights, folder)
    before = tcgn_hub.load(path=folder)
    model, info = load_model(folder)
    reads.clear()
    with torch.no_grad():
        model.head.fc.bias += 1
    tcgn_hub.weights.model_dir.save_model_dir(model, folder, info)
    after = tcgn_hub.load(path=folder)
    assert len(reads) == 1
    assert after.info.sha256 != before.info.sha256
    assert after.patches([PATCH]).X.mean() > before.patches([PATCH]).X.mean() + 0.9


def test_few_models_are_kept(tiny_weights, reads, monkeypatch):
    monkeypatch.setattr(home, "_KEPT", 2)
    for precision in ("float32", "bfloat16", "float16", "float16", "bfloat16", "float32"):
        tcgn_hub.load(path=tiny_weights, precision=precision)
    assert len(reads) == 4
    assert len(home._loaded) == 2


def test_what_load_refuses(tiny_weights, tmp_path, monkeypatch):
    for options, why in (
        ({"backend": "tensorrt"}, "backend is 'tensorrt', but has to be one of torch, onnx, openvino"),
        ({"precision": "int4"}, "precision is 'int4', but has to be one of auto"),
        ({"tag": "tcgn_base.her2st"}, "give a tag or a path, not both"),
    ):
        with pytest.raises(ValueError, match=why):
            tcgn_hub.load(**{"path": tiny_weights, **options})
    with pytest.raises(DeviceError, match="Device 'tpu9' cannot be used here"):
        tcgn_hub.load(path=tiny_weights, device="tpu9")
    with pytest.raises(WeightsError, match="gone does not exist"):
        tcgn_hub.load(path=tmp_path / "gone")


def test_a_folder_of_the_name_of_a_tag_is_not_loaded(tiny_weights, tmp_path, monkeypatch):
    shutil.copytree(tiny_weights, tmp_path / "tcgn_base.her2st")
    monkeypatch.chdir(tmp_path)
    for predictor in (tcgn_hub.load(), tcgn_hub.load("tcgn_base.her2st")):
        assert len(predictor.info.genes) == 785
    assert len(tcgn_hub.load(path="tcgn_base.her2st").info.genes) == len(PANEL)


# what is computed


def test_values_are_those_of_the_model(tiny, tiny_weights):
    model, info = load_model(tiny_weights)
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in golden.PATCHES])
    with torch.inference_mode():
        want = model(to_input(pictures)).numpy()
    result = tiny.patches(golden.PATCHES, batch_size=3)
    np.testing.assert_allclose(result.X, want, atol=1e-4)
    assert want.std(axis=0).min() > 0.01
    assert (result.genes, result.names) == (list(info.genes), golden.PATCHES)
    assert (result.X.dtype, result.failed, result.slide) == (np.float32, {}, None)
    assert result.uns == {
        "failed": {},
        "left_out": {},
        "notes": {},
        "weights": tiny.info,
        "tta": 1,
        "backend": "torch",
        "precision": "float32",
        "compiled": False,
    }
    assert result.obs["scale_source"].tolist() == ["resolution in the file"] * 4
    assert result.obs["patch_px"].tolist() == [224] * 4
    np.testing.assert_allclose(result.obs["patch_um"], 154, rtol=0.01)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_is_that_of_autocast(tiny, tiny_weights, precision):
    lower = tcgn_hub.predict(golden.PATCHES, weights=tiny_weights, device="cpu", precision=precision)
    exact = tiny.patches(golden.PATCHES)
    assert lower.uns["precision"] == precision
    assert lower.X.dtype == np.float32
    difference = np.abs(lower.X - exact.X).max()
    assert 0 < difference < 0.1 * np.abs(exact.X).max()


def test_features_lead_to_the_values(tiny):
    embedded = tiny.embed(golden.PATCHES)
    with torch.inference_mode():
        values = tiny.model.forward_head(torch.from_numpy(embedded)[:, :, None, None])
    np.testing.assert_allclose(values.numpy(), tiny.patches(golden.PATCHES).X, atol=1e-4)


# patches


def test_genes_keep_the_asked_order(tiny, tmp_path):
    (tmp_path / "genes.txt").write_text("\n".join(GENES))
    all_of_them = tiny.patches([PATCH])
    for genes in (GENES, tmp_path / "genes.txt"):
        result = tiny.patches([PATCH], genes=genes)
        assert result.genes == GENES
        np.testing.assert_array_equal(result.X[0], [all_of_them.X[0, all_of_them.column(gene)] for gene in GENES])


def test_what_a_gene_is_taken_for_is_said(tiny):
    info = replace(tiny.info, name="w", genes=("ERBB2", "AES", *tiny.info.genes[2:]), held_out={})
    named = tcgn_hub.Predictor(tiny.backend, info)
    result = named.patches([PATCH], genes=["tle5", "HER2", "G5", "g6"])
    assert result.genes == ["AES", "ERBB2", "G5", "G6"]
    assert list(named.info.columns(["HER2", "AES"]).values()) == [0, 1]
    taken = {"tle5 is taken for AES": ["w"], "HER2 is taken for ERBB2": ["w"]}
    assert taken.items() <= result.notes.items()
    assert not [note for note in result.notes if "G6" in note]
    with pytest.raises(PanelError, match="HER2 and erbb2 are one gene"):
        named.patches([PATCH], genes=["HER2", "erbb2"])


def test_only_significant_genes(tiny):
    assert tiny.patches([PATCH], significant_only=True).genes == list(PANEL[4:])
    assert tiny.patches([PATCH], genes=[PANEL[0], PANEL[6]], significant_only=True).genes == [PANEL[6]]
    with pytest.raises(PanelError, match="predicts none of these genes better than chance"):
        tiny.info.columns(PANEL[:2], significant_only=True)
    unmeasured = tcgn_hub.Predictor(tiny.backend, replace(tiny.info, held_out={}))
    with pytest.raises(PanelError, match="was not measured"):
        unmeasured.info.columns(significant_only=True)


@pytest.mark.parametrize(("magnification", "size"), [(10, 56), (20, 112), (40, 224)])
@pytest.mark.parametrize("factor", [1, 2])
def test_magnification_is_the_crop(tiny, magnification, size, factor):
    """By the rule of the paper, and of weights whose patches are twice as wide."""
    size *= factor
    crop = np.asarray(golden.tissue(size))
    framed = np.zeros((500, 500, 3), np.uint8)
    start = (500 - size) // 2
    framed[start : start + size, start : start + size] = crop
    info = replace(tiny.info, crop={"patch_um": 77 * factor, "nominal_patch_um": 56 * factor})
    result = tcgn_hub.Predictor(tiny.backend, info).patches([crop, framed], magnification=magnification)
    assert result.obs["patch_px"].tolist() == [size, size]
    assert result.obs["scale_source"].tolist() == ["--magnification"] * 2
    assert result.X[0] == pytest.approx(result.X[1], abs=1e-5)


def test_patches_are_cut_by_micrometres(tiny):
    image = golden.tissue(320)
    for options, side in (({}, 308), ({"patch_um": 56}, 112), ({"patch_um": 100}, 200)):
        assert tiny.patches([image], mpp=0.5, **options).obs["patch_px"].tolist() == [side]


def test_tables_say_where_in_the_picture_a_patch_is(tiny):
    noise = np.random.default_rng(0).integers(0, 255, (331, 400, 3), dtype=np.uint8)
    result = tiny.patches([noise, noise[:, :331]], mpp=0.5, force=True)
    at = zip(*(result.obs[key].tolist() for key in ("x", "y", "patch_px")), strict=True)
    for i, (x, y, side) in enumerate(at):
        left, top = int(x - side / 2), int(y - side / 2)
        assert (x - side / 2, y - side / 2, side) == (left, top, 308)
        alone = noise[:, : 400 if i == 0 else 331][top : top + side, left : left + side]
        assert tiny.patches([alone], mpp=0.5, force=True).X[0] == pytest.approx(result.X[i], abs=1e-6)
    assert (result.obs["x"].tolist(), result.obs["y"].tolist()) == ([200.0, 165.0], [165.0, 165.0])


def test_images_of_different_scales_go_in_one_batch(tiny, tmp_path):
    for i, (size, dpi) in enumerate(((224, 36972), (448, 73944))):
        Image.open(PATCH).resize((size, size)).save(tmp_path / f"{i}.png", dpi=(dpi, dpi))
    paths = sorted(tmp_path.iterdir())
    together = tiny.patches(paths)
    assert together.obs["patch_px"].tolist() == [224, 448]
    for row, path in zip(together.X, paths, strict=True):
        np.testing.assert_allclose(row, tiny.patches([path]).X[0], atol=1e-5)


def test_arrays_and_pictures_of_any_mode(tiny, pixels):
    picture = Image.fromarray(pixels)
    result = tiny.patches([pixels, picture, picture.convert("RGBA")], mpp=0.687)
    assert result.names == ["image 0", "image 1", "image 2"]
    np.testing.assert_array_equal(result.X[0], result.X[1])
    np.testing.assert_array_equal(result.X[0], result.X[2])
    with pytest.raises(ImageError, match="image 0 is an array of float64"):
        tiny.patches([pixels / 255], mpp=0.687)


def test_no_scale_is_not_guessed(tiny, pixels):
    with pytest.raises(ImageError, match="image 0 does not say how large its pixels are: give mpp with"):
        tiny.patches([pixels], scale="strict")
    large = np.tile(pixels, (5, 5, 1))
    with pytest.raises(ImageError, match=r"give mpp .*; if it is a slide, predict its tissue with predict_slide\."):
        tiny.patches([large])
    whole = tiny.patches([pixels])
    np.testing.assert_array_equal(whole.X, tiny.patches([pixels], mpp=154 / len(pixels)).X)
    assert np.isnan([whole.obs["mpp"][0], whole.obs["patch_um"][0]]).all()
    assert whole.obs["scale_source"].tolist() == ["unknown"]
    assert [names for note, names in whole.notes.items() if "taken for one patch of 154 um" in note] == [["image 0"]]


def test_a_picture_smaller_than_a_patch_is_taken_as_a_whole(tiny, pixels):
    small = tiny.patches([pixels], mpp=0.5)
    assert list(small.notes) == ["shows 112 of the 154 um the weights were trained on"]
    assert (small.obs["patch_um"][0], small.obs["trained_um"][0], small.obs["patch_px"][0]) == (112, 154, 224)
    with pytest.raises(ImageError, match="smaller than a patch of 308 px"):
        tiny.patches([pixels], mpp=0.5, scale="strict")
    oblong = np.concatenate(
        [np.full((224, 31, 3), 255, np.uint8), pixels, np.full((224, 31, 3), 255, np.uint8)], axis=1
    )
    np.testing.assert_array_equal(tiny.patches([oblong], mpp=0.5).X, small.X)


def test_a_slide_among_patches_is_refused(tiny, pixels):
    with pytest.raises(
        ImageError, match=r"is a slide, 1\.1 x 1\.1 mm, and no patch: predict its tissue with predict_sl"
    ):
        tiny.patches([np.tile(pixels, (10, 10, 1))], mpp=0.5)


def test_what_shows_no_tissue_has_no_values_unless_forced(tiny, pixels):
    noise = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    for blank in (np.full_like(pixels, 255), np.zeros_like(pixels), noise, np.full_like(pixels, 190)):
        with pytest.raises(NoTissueError, match=r"image 0 shows no tissue in its central 224 px.*force=True"):
            tiny.patches([blank])
        assert len(tiny.patches([blank], force=True)) == 1
        assert len(tiny.patches([blank, pixels], on_error="skip")) == 1


def test_values_are_never_below_0(tiny_weights, pixels):
    own = tcgn_hub.load(path=tiny_weights)
    lowered = copy.deepcopy(own.model)
    with torch.no_grad():
        lowered.head.fc.bias -= 4
    low = tcgn_hub.Predictor(TorchBackend(lowered), own.info)
    raw = own.patches([pixels]).X - 4
    assert raw.min() < 0 < raw.max()
    np.testing.assert_allclose(low.patches([pixels]).X, np.maximum(raw, 0), atol=1e-5)
    assert min(values.min() for values in low.predict(pixels).values()) == 0


def test_a_scale_that_contradicts_the_file(tiny):
    assert tiny.patches([PATCH], mpp=0.7).notes == {}
    (note,) = tiny.patches([PATCH], mpp=0.75).notes
    assert note == "the file states 0.687 um/px (resolution in the file), but 0.75 is given (mpp)"
    with pytest.raises(ImageError, match=r"patch_0\.png: the file states 0\.687.* 0\.25 is given.*force_scale=True"):
        tiny.patches([PATCH], mpp=0.25)
    assert len(tiny.patches([PATCH], mpp=0.25, force_scale=True)) == 1


def test_a_bad_file_is_noted_and_the_rest_predicted(tiny, tmp_path):
    Image.open(PATCH).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("text")
    golden.tissue(50).save(tmp_path / "c.png")
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    options = {"magnification": 20, "scale": "strict"}
    result = tiny.patches(paths, on_error="skip", **options)
    assert result.names == [str(paths[0])]
    assert list(result.failed) == [str(path) for path in paths[1:]]
    assert "50 x 50 px, smaller than a patch of 224 px" in result.failed[str(paths[2])]
    with pytest.raises(ImageError, match=r"b\.png is no image that can be read"):
        tiny.patches(paths, **options)
    with pytest.raises(ImageError, match="None of 2 images is usable"):
        tiny.patches(paths[1:], on_error="skip", **options)
    empty = tiny.patches([])
    assert (len(empty), empty.X.shape) == (0, (0, len(PANEL)))


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"tta": 0}, ValueError, "tta is 0, but must be from 1 to 8"),
        ({"tta": 9}, ValueError, "tta is 9, but must be from 1 to 8"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"patch_um": -1}, ValueError, "patch_um is -1, but must be above 0"),
        ({"on_error": "warn"}, ValueError, "on_error is 'warn'"),
        ({"mpp": 0.5, "magnification": 20}, ImageError, "Give the scale once"),
        ({"mpp": 1e-5}, ImageError, "1e-05 um/px cannot be the scale"),
        ({"genes": Path("absent.txt")}, PanelError, "absent.txt"),
        ({"views": 2}, TypeError, "views"),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_are_read(options, error, why, monkeypatch):
    monkeypatch.setattr(home, "load", None)
    with pytest.raises(error, match=why):
        tcgn_hub.predict([PATCH], **options)


# the protocol of other packages


def test_tiles_of_another_package(tiny, pixels):
    result = tiny.patches([PATCH])
    tensor = torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())
    for image in (pixels, pixels / 255, tensor[None], tensor / 255, (tensor / 255).double()):
        values = tiny.predict(image)
        assert list(values) == result.genes
        assert np.concatenate(list(values.values())) == pytest.approx(result.X[0], abs=1e-4)
    for bad in (pixels * 1.0, pixels[..., :2], tensor[:2], tensor[0], pixels / 255 - 0.5):
        with pytest.raises(ImageError, match="Tiles of"):
            tiny.predict(bad)


def test_the_protocol_of_lazyslide(tiny, pixels):
    assert tiny.to(device=torch.device("cpu")) is tiny
    transform = pickle.loads(pickle.dumps(tiny.get_transform()))
    picture = Image.fromarray(pixels)
    tiles = [pixels, picture, picture.convert("RGBA"), torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())]
    batch = torch.utils.data.default_collate([transform(tile) for tile in tiles])
    want = tiny.patches([PATCH]).X[0]
    with torch.inference_mode():
        values = tiny.predict(batch)
        assert np.stack(list(values.values()), 1) == pytest.approx(np.stack([want] * 4), abs=1e-4)
        exact = np.stack(list(values.values()), 1)
        for dtype in (torch.float16, torch.bfloat16):
            with torch.autocast("cpu", dtype):
                np.testing.assert_array_equal(np.stack(list(tiny.predict(batch).values()), 1), exact)
    assert exact.dtype == np.float32
    assert tiny.name == tiny.info.name
    assert tiny.columns == tuple(values)


def test_moving_one_predictor_leaves_others_where_they_are(tiny_weights):
    moved, stays = (tcgn_hub.load(path=tiny_weights, device="cpu") for _ in range(2))
    assert moved.backend is stays.backend
    moved.to("meta")
    assert moved.backend.device.type == "meta"
    assert stays.backend.device.type == "cpu"
    with pytest.raises(DeviceError, match="Device 'tpu9' cannot be used here"):
        stays.to("tpu9")


def test_a_model_of_ones_own(tiny):
    """Training measures a model that is in no file."""
    own = tcgn_hub.Predictor(TorchBackend(tiny.model), replace(tiny.info, sha256="", ood=None, typical=None))
    out = own.run(np.zeros((2, 56, 56, 3), np.uint8), tta=2, features=True)
    assert {key: array.shape[0] for key, array in out.items()} == {
        "values": 2,
        "tta_std": 2,
        "measures": 2,
        "features": 2,
    }


# exported weights


def test_exported_weights_answer_without_torch(tiny, tmp_path):
    """`--plot` and `--report` ask for columns and for explanations, whatever computes."""
    path = onnx_file.write(tmp_path / "model.onnx", tiny.info)
    predictor = tcgn_hub.load(path=path)
    assert predictor.info == tiny.info
    assert predictor.columns == tiny.columns
    result = predictor.patches([PATCH], tta=2, genes=GENES)
    assert (result.uns["backend"], result.genes) == ("onnx", GENES)
    for ask in (lambda: predictor.explain(PATCH, genes=GENES), lambda: predictor.export(tmp_path / "again.onnx")):
        with pytest.raises(WeightsError, match="an exported file, which gives values alone; load the weights"):
            ask()
    pixels = np.asarray(Image.open(PATCH).convert("RGB"))
    tensor = torch.from_numpy(np.moveaxis(pixels, -1, 0).copy()) / 255
    assert predictor.to("cpu") is predictor
    for tile in (pixels, tensor):
        values = np.concatenate(list(predictor.predict(tile).values()))
        assert values == pytest.approx(predictor.patches([PATCH]).X[0], abs=1e-4)


def test_a_file_for_a_fixed_batch_takes_any_number(tiny, tmp_path):
    wanted = tcgn_hub.predict(golden.PATCHES, weights=onnx_file.write(tmp_path / "any.onnx", tiny.info))
    two = tcgn_hub.predict(golden.PATCHES[:3], weights=onnx_file.write(tmp_path / "two.onnx", tiny.info, batch=2))
    np.testing.assert_allclose(two.X, wanted.X[:3], atol=1e-6)


def test_what_was_exported_is_found_by_its_weights(tiny_weights, tiny):
    with pytest.raises(WeightsError, match="was not exported for ONNX Runtime; run `tcgn export --weights"):
        tcgn_hub.load(path=tiny_weights, backend="onnx")
    kept = exported_path(tiny.info.sha256)
    kept.parent.mkdir(parents=True)
    onnx_file.write(kept, tiny.info)
    assert tcgn_hub.load(path=tiny_weights, backend="onnx").info.sha256 == tiny.info.sha256


def test_what_the_onnx_backend_refuses(tiny, tmp_path):
    path = onnx_file.write(tmp_path / "model.onnx", tiny.info, precision="float16")
    assert tcgn_hub.load(path=path).backend.precision == "float16"
    with pytest.raises(WeightsError, match="ONNX Runtime computes in float32, not in bfloat16"):
        tcgn_hub.load(path=path, precision="bfloat16")
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match=f"computes on the CPU, not on '{device}'"):
            tcgn_hub.load(path=path, device=device)
        with pytest.raises(DeviceError, match=f"computes on the CPU, not on '{device}'"):
            tcgn_hub.load(path=path).to(device)
    with pytest.raises(WeightsError, match=r"gone\.onnx does not exist"):
        tcgn_hub.load(path=tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    foreign = onnx_file.onnx_without_metadata(path, tmp_path / "foreign.onnx")
    for file in (tmp_path / "text.onnx", foreign):
        with pytest.raises(WeightsError, match=rf"{file.name} is not a model that `tcgn export` wrote"):
            tcgn_hub.load(path=file)


@pytest.mark.parametrize("batch", ["batch", 2])
def test_openvino_answers_as_onnx_runtime_does(tiny, tmp_path, batch):
    pytest.importorskip("openvino")
    path = onnx_file.write(tmp_path / "model.onnx", tiny.info, batch=batch)
    wanted = tcgn_hub.predict(golden.PATCHES[:3], weights=path, tta=2)
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 0.02), ("auto", 0.02)):
        where = {"path": path, "backend": "openvino", "precision": precision}
        predictor = tcgn_hub.load(**where)
        result = predictor.patches(golden.PATCHES[:3], tta=2)
        assert predictor.info == tiny.info
        np.testing.assert_allclose(result.X, wanted.X, atol=tolerance * np.abs(wanted.X).max())
        assert result.uns["backend"] == "openvino"
        assert result.uns["precision"] in (("float32", "bfloat16") if precision == "auto" else (precision,))
        assert predictor.to("cpu") is predictor


def test_threads_share_a_model_of_openvino(tiny, tmp_path):
    pytest.importorskip("openvino")
    predictor = tcgn_hub.load(path=onnx_file.write(tmp_path / "model.onnx", tiny.info), backend="openvino")
    tiles = np.random.default_rng(0).integers(0, 255, (8, 4, 56, 56, 3), np.uint8)
    wanted = [predictor.run(tile)["values"] for tile in tiles]
    with ThreadPoolExecutor(8) as pool:
        for values, expected in zip(pool.map(predictor.run, [*tiles] * 4), wanted * 4, strict=True):
            np.testing.assert_array_equal(values["values"], expected)


_SIGNALS = """
import ctypes, gc, signal, subprocess, sys
from tcgn_hub.prediction.backends.openvino import OpenvinoBackend
from pathlib import Path

signal.signal(signal.SIGCHLD, lambda *_: None)  # as a DataLoader with workers does
loaded = [OpenvinoBackend(Path(sys.argv[1]), "float32") for _ in range(3)]
while loaded:
    del loaded[0]
    gc.collect()
    subprocess.run([sys.executable, "-c", ""], check=True)
print("alive")
"""


def test_openvino_leaves_a_stack_for_signals(tiny, tmp_path):
    pytest.importorskip("openvino")
    path = onnx_file.write(tmp_path / "model.onnx", tiny.info)
    done = subprocess.run([sys.executable, "-c", _SIGNALS, str(path)], capture_output=True, text=True)
    assert done.stdout == "alive\n", (done.returncode, done.stderr)


def test_what_openvino_refuses(tiny, tiny_weights, tmp_path, monkeypatch):
    path = onnx_file.write(tmp_path / "model.onnx", tiny.info)
    with pytest.raises(WeightsError, match="OpenVINO computes in float32 or bfloat16, not in float16"):
        tcgn_hub.load(path=path, backend="openvino", precision="float16")
    with pytest.raises(DeviceError, match="computes on the CPU, not on 'cuda'"):
        tcgn_hub.load(path=path, backend="openvino", device="cuda")
    with pytest.raises(WeightsError, match=r"was not exported for ONNX Runtime; run `tcgn export --weights"):
        tcgn_hub.load(path=tiny_weights, backend="openvino")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        patch.setattr(openvino, "_core", openvino._core.__wrapped__)
        with pytest.raises(ExtraError, match=r"install openvino: pip install 'tcgn_hub\[openvino\]'"):
            tcgn_hub.load(path=path, backend="openvino")
    pytest.importorskip("openvino")
    (tmp_path / "text.onnx").write_text("no model")
    for file in (tmp_path / "text.onnx", onnx_file.onnx_without_metadata(path, tmp_path / "foreign.onnx")):
        with pytest.raises(WeightsError, match=rf"{file.name} is not a model that `tcgn export` wrote"):
            tcgn_hub.load(path=file, backend="openvino")


def test_a_patch_of_a_few_pixels_is_refused(tiny):
    with pytest.raises(ImageError, match=r"a patch of 5 um is 7 px of .*, too small to show tissue"):
        tiny.patches([PATCH], patch_um=5)
