"""Exported weights give the values of the model, and need no PyTorch."""

import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import golden
import numpy as np
import onnx
import onnx_file
import onnxruntime
import pytest
import torch
from PIL import Image
from test_docs import DOCS, place, run_page  # noqa: F401 - place is a fixture
from test_slides import SVS
from timm.models import save_for_hf

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.errors import CheckpointError, ExtraError, OutputError, WeightsError
from tcgn_hub.images.transforms import to_input, to_input_array
from tcgn_hub.prediction import export as exporting
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.weights.manifest import assets_folder

PATCHES = golden.PATCHES[:3]


@pytest.fixture(scope="module")
def exported(tmp_path_factory, golden_file):
    """The golden checkpoint in float32, for any batch; in the file of a published panel."""
    out = tmp_path_factory.mktemp("exported") / "golden.onnx"
    assert tcgn_hub.export(golden_file, out).difference < 1e-4
    return out


@pytest.fixture(scope="module")
def tiny(tiny_weights) -> tcgn_hub.Predictor:
    return tcgn_hub.load(path=tiny_weights, device="cpu")


@pytest.fixture
def traced(exported, monkeypatch):
    """Export takes a minute: the rest of it is tested on a graph that was traced before."""

    def graph_of(model, x, *, dynamic):
        proto = onnx.load(exported)
        if not dynamic:
            proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(x)
        return proto

    monkeypatch.setattr(exporting, "_graph_of", graph_of)


@pytest.fixture
def unwritten(monkeypatch, tiny):
    """Nothing is traced: the file that is written says what the model says."""

    def write(model, x, path, *, precision, dynamic, metadata):
        info = WeightsInfo.from_json(json.loads(metadata["tcgn"]))
        onnx_file.write(path, info, precision=precision, metadata=metadata)

    def values_of(path, x):
        with torch.inference_mode():
            return tiny.model(x).numpy()

    monkeypatch.setattr(exporting, "write_onnx", write)
    monkeypatch.setattr(exporting, "_run_onnx", values_of)


# values


def test_onnx_gives_the_golden_values(exported):
    onnx.checker.check_model(exported)
    session = onnxruntime.InferenceSession(exported)
    x = golden.expected()["input"]
    for batch in (1, 4, 10):
        pixels = x.repeat(batch // 4 + 1, 1, 1, 1)[:batch].numpy()
        values, features = session.run(["values", "features"], {"pixels": pixels})
        wanted = golden.expected()
        for i in range(0, batch, 4):
            number = min(4, batch - i)
            np.testing.assert_allclose(values[i : i + number], wanted["logits"][:number], atol=1e-4)
            np.testing.assert_allclose(features[i : i + number], wanted["features"][:number], atol=1e-4)


def test_a_program_of_torch_export(tmp_path, tiny, tiny_weights):
    exported = tcgn_hub.export(tiny_weights, tmp_path / "model.pt2")
    extra = {"tcgn.json": "", "tcgn_interface.json": ""}
    program = torch.export.load(exported.path, extra_files=extra).module()
    with torch.inference_mode():
        for x in (golden.expected()["input"][:1], golden.expected()["input"]):
            values, features = program(x)
            torch.testing.assert_close(values, tiny.model(x), atol=1e-5, rtol=0)
            assert features.shape == (len(x), tiny.model.num_features)
    assert WeightsInfo.from_json(json.loads(extra["tcgn.json"])) == tiny.info
    assert json.loads(extra["tcgn_interface.json"]) == json.loads(json.dumps(exporting.interface(tiny.info)))


def test_predictions_are_those_of_torch(golden_file, exported):
    options = {"genes": ["GNAS", "FASN"], "tta": 8}
    ours, theirs = (tcgn_hub.predict(PATCHES, weights=weights, **options) for weights in (golden_file, exported))
    np.testing.assert_allclose(theirs.X, ours.X, atol=2e-4)
    np.testing.assert_allclose(theirs.layers["tta_std"], ours.layers["tta_std"], atol=2e-4)
    assert theirs.info == ours.info
    for key, column in ours.obs.items():
        if column.dtype == np.float32:  # of pixels, which are resized by another library
            np.testing.assert_allclose(theirs.obs[key], column, rtol=1e-3, atol=1e-4, err_msg=key)
        else:
            np.testing.assert_array_equal(theirs.obs[key], column)
    assert (ours.uns["backend"], theirs.uns["backend"]) == ("torch", "onnx")


def test_openvino_gives_the_values_of_torch(tmp_path):
    """Of trained weights: the graph of drawn ones is so near to ties that any rounding changes its edges."""
    pytest.importorskip("openvino")
    path = tcgn_hub.export(path=tmp_path / "trained.onnx").path
    ours = tcgn_hub.predict(PATCHES, precision="float32").X
    for precision, tolerance in (("float32", 1e-4), ("bfloat16", 1e-2)):
        theirs = tcgn_hub.predict(PATCHES, weights=path, backend="openvino", precision=precision).X
        assert np.linalg.norm(theirs - ours) < tolerance * np.linalg.norm(ours)


@pytest.mark.parametrize("weights", ["tiny", "default"])
def test_what_is_known_of_weights_is_the_metadata(unwritten, tiny, tmp_path, weights):
    info = tiny.info if weights == "tiny" else tcgn_hub.load().info
    own = tcgn_hub.Predictor(tiny.backend, info)
    path = own.export(tmp_path / "model.onnx").path
    again = tcgn_hub.load(path=path)
    assert again.info == info
    stated = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(stated["tcgn"]) == json.loads(json.dumps(info.to_json()))
    used = json.loads(stated["tcgn_interface"])
    assert (used["genes"], used["units"], used["patch_um"]) == (list(info.genes), info.units, info.patch_um)
    assert (used["mean"], used["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (used["colour"], used["size"], used["least"]) == ("RGB", [224, 224], 0)
    if info.ood is not None:
        features = np.random.default_rng(0).normal(size=(3, len(own._tissue.features.mean)))
        np.testing.assert_array_equal(again._tissue.distance(features), own._tissue.distance(features))


def test_a_file_says_nothing_of_where_it_was_traced(exported):
    assert str(Path(tcgn_hub.__file__).parent).encode() not in exported.read_bytes()


def test_float16_is_half_as_large(golden_file, exported, traced, tmp_path):
    found = tcgn_hub.export(golden_file, tmp_path / "half.onnx", precision="float16")
    assert 0 < found.difference < 0.01
    assert 0.5 < found.path.stat().st_size / exported.stat().st_size < 0.53
    assert tcgn_hub.load(path=found.path).backend.precision == "float16"


def test_the_command(golden_file, traced, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    assert main(["export", "--weights", str(golden_file), "--fp16", "--batch-size", "2", "-o", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    # three patches to a file that takes two at once
    ours, theirs = (tcgn_hub.predict(PATCHES, weights=weights) for weights in (golden_file, out))
    assert theirs.X.shape == ours.X.shape
    assert 0 < np.abs(theirs.X - ours.X).max() < 0.02 * np.abs(ours.X).max()
    assert theirs.uns["precision"] == "float16"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.usefixtures("traced", "place")
def test_every_block_of_its_page_runs(golden_file, golden_model):
    pytest.importorskip("openvino")
    info = tcgn_hub.load(path=golden_file).info
    config = {"label_names": info.genes, "tcgn": info.to_json()}
    save_for_hf(golden_model, "my_model", model_config=config, safe_serialization=True)
    named = run_page(DOCS / "howto/export.md", Path.cwd())
    result = tcgn_hub.predict(["patch.png"], weights="model.onnx")
    # Pillow rounds to 8 bits what it has resized
    np.testing.assert_allclose(named["values"], result.X[0], atol=0.02)
    assert (named["stated"]["genes"], named["stated"]["units"]) == (list(info.genes), info.units)


def test_resizing_is_that_of_torch():
    rng = np.random.default_rng(0)
    for side in (56, 112, 224, 300, 517):
        pixels = rng.integers(0, 255, (2, side, side, 3), dtype=np.uint8)
        np.testing.assert_allclose(to_input_array(pixels), to_input(pixels).numpy(), atol=1e-4)


def test_slides(golden_file, exported):
    options = {"genes": ["GNAS"], "stride_um": 400, "workers": 0, "patch_um": 154}
    ours, theirs = (tcgn_hub.predict_slide(SVS, weights=weights, **options) for weights in (golden_file, exported))
    assert len(ours) > 1
    np.testing.assert_allclose(theirs.X, ours.X, atol=5e-4)


# what it needs


def test_predicting_needs_no_torch(tiny, tmp_path):
    model = onnx_file.write(tmp_path / "model.onnx", tiny.info)
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.partition('.')[0] in ('torch', 'timm', 'torchvision'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from tcgn_hub.cli.predict import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *PATCHES, "--backend", "onnx", "--weights", str(model), "--genes", "G5"]
    env = {**os.environ, "PYTHONPATH": str(Path(tcgn_hub.__file__).parents[1])}
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    values = [image["genes"][0]["value"] for image in json.loads(done.stdout)["predictions"]]
    assert values == pytest.approx(tcgn_hub.predict(PATCHES, weights=model, genes=["G5"]).X[:, 0].tolist(), abs=1e-5)


def test_what_was_exported_is_found_again(unwritten, tiny, tiny_weights, capsys):
    with pytest.raises(WeightsError, match=r"tcgn_base.* was not exported for ONNX Runtime; run `tcgn export --weig"):
        tcgn_hub.predict(PATCHES, backend="onnx")
    path = tcgn_hub.export(tiny_weights).path
    assert path == assets_folder("exports") / f"{tiny.info.sha256}.onnx"
    assert tcgn_hub.load(path=tiny_weights, backend="onnx").info == tiny.info
    arguments = ["predict", PATCHES[0], "--backend", "onnx", "--genes", "G5", "--weights", str(tiny_weights)]
    assert main(arguments) == 0
    assert "G5" in capsys.readouterr().out


# refusals


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"path": "x.pt"}, OutputError, r"x\.pt is of no format that is known; let it end in \.onnx or \.pt2"),
        ({"path": "gone/x.onnx"}, OutputError, "there is no folder gone"),
        ({"path": "x.pt2", "precision": "float16"}, OutputError, "float16 is for ONNX"),
        ({"precision": "int8"}, ValueError, "precision is 'int8'"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"format": "onnx"}, TypeError, "format"),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_are_read(options, error, why, monkeypatch):
    monkeypatch.setattr("tcgn_hub.prediction.predictor.load", None)
    with pytest.raises(error, match=why):
        tcgn_hub.export(**options)


def test_a_wrong_export_is_not_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "write_onnx", lambda *args, **options: None)
    monkeypatch.setattr(exporting, "_run_onnx", lambda path, x: np.full((len(x), 12), np.nan, np.float32))
    with pytest.raises(CheckpointError, match="differs by nan"):
        tiny.export(tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_is_one_sentence(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="exports cannot be made a folder"):
        tiny.export()


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_one_sentence(tiny, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraError, match=rf"install {module}: pip install 'tcgn_hub\[onnx\]'"):
        tiny.export(tmp_path / "x.onnx")


def test_pictures_of_any_mode(exported, tmp_path):
    Image.open(PATCHES[0]).convert("RGBA").save(tmp_path / "rgba.png")
    result = tcgn_hub.predict([tmp_path / "rgba.png"], weights=exported, mpp=0.6875)
    assert np.isfinite(result.X).all()


# the process


def _state():
    loggers = [logging.getLogger(name) for name in ("", "onnxscript", "onnxscript.optimizer._constant_folding")]
    described = [(log.level, log.disabled, list(log.handlers), list(log.filters)) for log in loggers]
    umask = os.umask(0)
    os.umask(umask)
    return described, list(warnings.filters), warnings.showwarning, sys.stdout, umask


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_exports_at_once_leave_the_process_as_it_was(tiny, tmp_path, monkeypatch, caplog, precision):
    """Two threads begin to export in turn, predict meanwhile, and end in the order that they began in."""
    noisy = logging.getLogger("onnxscript.optimizer._constant_folding")
    model = onnx.load(onnx_file.write(tmp_path / "traced.onnx", tiny.info))
    inside, began, errors = threading.Event(), threading.Event(), []

    class Program:
        model_proto = model

    def traced(*args, **options):
        noisy.warning("noise of an export")
        if inside.is_set():
            began.set()
        else:
            inside.set()
            assert began.wait(60)
        return Program

    def run(name):
        try:
            x = torch.zeros(2, 3, 224, 224)
            exporting.write_onnx(None, x, tmp_path / name, precision=precision, dynamic=True, metadata={})
            tiny.patches(PATCHES[:1])
        except BaseException as err:
            errors.append(err)
            raise

    monkeypatch.setattr(torch.onnx, "export", traced)
    before = _state()
    first, second = (threading.Thread(target=run, args=[name]) for name in ("a.onnx", "b.onnx"))
    first.start()
    assert inside.wait(60)
    noisy.warning("of another thread")
    second.start()
    first.join()
    second.join()
    assert not errors
    assert _state() == before
    assert [record.message for record in caplog.records] == ["of another thread"]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_one_export_at_a_time(tiny, tmp_path, monkeypatch):
    """PyTorch's exporter changes state of the process while it runs."""
    running, most = [], []

    def write(model, x, path, **options):
        running.append(path)
        most.append(len(running))
        tiny.embed(PATCHES)
        running.pop()

    def values_of(path, x):
        with torch.inference_mode():
            return tiny.model(x).numpy()

    monkeypatch.setattr(exporting, "write_onnx", write)
    monkeypatch.setattr(exporting, "_run_onnx", values_of)
    threads = [threading.Thread(target=tiny.export, args=[tmp_path / f"{i}.onnx"]) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
