"""Exported weights give the values of the model, and need no PyTorch."""

import json
import subprocess
import sys

import golden
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_slides import SVS

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.errors import CheckpointError, DeviceError, ExtraError, OutputError, WeightsError
from tcgn_hub.images.transforms import to_input, to_input_array
from tcgn_hub.models.loading import load_model
from tcgn_hub.prediction.backends import load_backend
from tcgn_hub.prediction.backends.onnx import exported_path
from tcgn_hub.prediction.export import _known, write_onnx
from tcgn_hub.weights.info import model_info
from tcgn_hub.weights.manifest import exports_folder

PATCHES = golden.PATCHES[:3]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The golden checkpoint, as a file of a published panel."""
    path = tmp_path_factory.mktemp("golden") / "published.safetensors"
    save_file(golden.published_state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory, published):
    """The golden checkpoint in float32, for any batch."""
    out = tmp_path_factory.mktemp("exported") / "golden.onnx"
    assert tcgn_hub.export_model(published, out=out).difference < 1e-4
    return out


@pytest.fixture
def traced(exported, monkeypatch):
    """Export takes a minute: the rest of it is tested on a graph that was traced before."""

    def graph_of(model, x, *, dynamic):
        proto = onnx.load(exported)
        if not dynamic:
            proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(x)
        return proto

    monkeypatch.setattr("tcgn_hub.prediction.export._graph_of", graph_of)


def test_onnx_gives_the_golden_values(exported):
    onnx.checker.check_model(exported)
    session = onnxruntime.InferenceSession(exported)
    x = golden.expected()["input"]
    for batch in (1, 4, 64):
        pixels = x.repeat(batch // 4 + 1, 1, 1, 1)[:batch].numpy()
        values, features = session.run(["values", "features"], {"pixels": pixels})
        wanted = golden.expected()
        for i in range(0, batch, 4):
            number = min(4, batch - i)
            np.testing.assert_allclose(values[i : i + number], wanted["logits"][:number], atol=1e-4)
            np.testing.assert_allclose(features[i : i + number], wanted["features"][:number], atol=1e-4)


def test_a_program_of_torch_export(tmp_path, published):
    exported = tcgn_hub.export_model(published, out=tmp_path / "model.pt2", format="torch-export", batch_size=2)
    extra = {"tcgn.json": ""}
    program = torch.export.load(exported.path, extra_files=extra).module()
    with torch.inference_mode():
        values, _ = program(golden.expected()["input"][:2])
    torch.testing.assert_close(values, golden.expected()["logits"][:2], atol=1e-4, rtol=0)
    assert json.loads(extra["tcgn.json"])["genes"] == list(load_model(published)[1].genes)


def test_predictions_are_those_of_torch(published, exported):
    options = {"genes": ["GNAS", "FASN"], "views": 8}
    ours, theirs = (tcgn_hub.predict(PATCHES, weights=weights, **options) for weights in (published, exported))
    np.testing.assert_allclose(theirs.values, ours.values, atol=2e-4)
    np.testing.assert_allclose(theirs.spread, ours.spread, atol=2e-4)
    assert (theirs.units, theirs.crop_px, theirs.scales) == (ours.units, ours.crop_px, ours.scales)
    for what in (
        "name",
        "genes",
        "sha256",
        "pcc",
        "significant",
        "patch_um",
        "nominal_patch_um",
        "interval_radius",
        "level",
    ):
        assert getattr(theirs.model, what) == getattr(ours.model, what), what
    assert theirs.model.training_data == ours.model.training_data


def test_what_is_known_of_a_model_survives():
    info = load_model()[1]
    known = json.loads(json.dumps(_known(info)))
    again = model_info(known["name"], tuple(known["genes"]), known["units"], known["sha256"], known["facts"])
    for what in (
        "name",
        "genes",
        "sha256",
        "pcc",
        "significant",
        "patch_um",
        "interval_radius",
        "level",
        "training_data",
    ):
        assert getattr(again, what) == getattr(info, what), what
    features = np.random.default_rng(0).normal(size=(3, 1280))
    np.testing.assert_array_equal(again.ood.distance(features), info.ood.distance(features))


def test_float16_is_half_as_large(published, exported, traced, tmp_path):
    found = tcgn_hub.export_model(published, out=tmp_path / "half.onnx", precision="float16")
    assert 0 < found.difference < 0.01
    assert 0.45 < found.path.stat().st_size / exported.stat().st_size < 0.55


def test_resizing_is_that_of_torch():
    rng = np.random.default_rng(0)
    for side in (56, 112, 224, 300, 517):
        pixels = rng.integers(0, 255, (2, side, side, 3), dtype=np.uint8)
        np.testing.assert_allclose(to_input_array(pixels), to_input(pixels).numpy(), atol=1e-4)


def test_predicting_needs_no_torch(published, exported):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('torch', 'timm', 'torchvision'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from tcgn_hub.cli.predict import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *PATCHES, "--backend", "onnx", "--weights", str(exported), "--genes", "GNAS"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = [image["genes"][0]["value"] for image in json.loads(done.stdout)["predictions"]]
    assert values == pytest.approx(
        tcgn_hub.predict(PATCHES, weights=published, genes=["GNAS"]).values[:, 0].tolist(), abs=2e-4
    )


def test_what_was_exported_is_found_again(traced, capsys):
    with pytest.raises(
        WeightsError, match=r"tcgn_base.* was not exported for ONNX Runtime; run `tcgn export --weights"
    ):
        tcgn_hub.predict(PATCHES, backend="onnx")
    # values of other weights: only where the file is kept is looked at
    sha256 = load_model()[1].sha256
    exports_folder().mkdir(parents=True)
    write_onnx(
        None, [], exported_path(sha256), precision="float32", dynamic=True, facts=json.dumps(_known(load_model()[1]))
    )
    assert load_backend(backend="onnx").info.sha256 == sha256
    assert main(["predict", PATCHES[0], "--backend", "onnx", "--genes", "GNAS"]) == 0
    assert "GNAS" in capsys.readouterr().out


def test_the_command(published, traced, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    assert main(["export", "--weights", str(published), "--int8", "--batch-size", "2", "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    # three patches to a file that takes two at once
    ours, theirs = (tcgn_hub.predict(PATCHES, weights=weights) for weights in (published, out))
    assert theirs.values.shape == ours.values.shape
    scale = ours.values.std(axis=0).mean()
    assert 0 < np.abs(theirs.values - ours.values).mean() < 0.2 * scale
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.pt"], "x.pt does not end in .onnx, as onnx does"),
        (["-o", "gone/x.onnx"], "there is no folder gone"),
        (["--format", "torch-export"], "Say where to write the program: a file that ends in .pt2"),
        (["--format", "torch-export", "--int8", "-o", "x.pt2"], "int8 is for ONNX"),
        (["--weights", "nope", "-o", "x.onnx"], "There is no folder or file nope"),
    ],
)
def test_errors_are_one_sentence_and_exit_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_not_ours(tmp_path, exported, capsys):
    (tmp_path / "text.onnx").write_text("no model")
    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    for name in ("text", "foreign"):
        with pytest.raises(WeightsError, match=rf"{name}.onnx is not a model that `tcgn export` wrote"):
            load_backend(tmp_path / f"{name}.onnx")
    with pytest.raises(WeightsError, match=r"gone.onnx does not exist"):
        load_backend("gone.onnx")
    assert main(["predict", PATCHES[0], "--weights", str(exported), "--device", "cuda"]) == 2
    assert "The ONNX backend computes on the CPU" in capsys.readouterr().err
    with pytest.raises(DeviceError, match="computes on the CPU, not on 'cuda'"):
        tcgn_hub.evaluate("data", weights=exported, device="cuda")
    with pytest.raises(ValueError, match="backend is 'tensorrt'"):
        load_backend(backend="tensorrt")


def test_a_wrong_export_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tcgn_hub.prediction.export.write_onnx", lambda *args, **options: None)
    monkeypatch.setattr(
        "tcgn_hub.prediction.export._run_onnx", lambda path, x: np.full((len(x), 785), np.nan, np.float32)
    )
    with pytest.raises(CheckpointError, match="differs by nan"):
        tcgn_hub.export_model(out=tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="exports cannot be made a folder"):
        tcgn_hub.export_model()


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_one_sentence(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraError, match=rf"install {module}: pip install 'tcgn_hub\[onnx\]'"):
        tcgn_hub.export_model(out=tmp_path / "x.onnx")


def test_slides(published, exported):
    options = {"genes": ["GNAS"], "stride_um": 400, "workers": 0}
    ours, theirs = (tcgn_hub.predict_slide(SVS, weights=weights, **options) for weights in (published, exported))
    np.testing.assert_allclose(theirs.values, ours.values, atol=5e-4)


def test_pictures_of_any_mode(exported, tmp_path):
    Image.open(PATCHES[0]).convert("RGBA").save(tmp_path / "rgba.png")
    result = tcgn_hub.predict([tmp_path / "rgba.png"], weights=exported, mpp=0.6875)
    assert np.isfinite(result.values).all()
