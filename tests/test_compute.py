"""How a prediction is computed: precision, compilation, batches, memory, and what is in flight."""

import logging
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import golden
import numpy as np
import onnx_file
import pytest
import torch
from PIL import Image
from tiny import Small

import tcgn_hub
from tcgn_hub import devices
from tcgn_hub.errors import DeviceError, WeightsError
from tcgn_hub.models.censnet import GraphEmbed, select_edges
from tcgn_hub.prediction import predictor as home
from tcgn_hub.prediction.backends import compiled as cache
from tcgn_hub.prediction.backends import torch as backends
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.prediction.predictor import check_resume, load_weights

PATCHES = golden.PATCHES
HAS_COMPILER = shutil.which("g++") is not None


@pytest.fixture
def pixels() -> np.ndarray:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in PATCHES])


@pytest.fixture
def fresh(tiny_weights, monkeypatch):
    """What loads the tiny weights anew."""

    def load(**options) -> tcgn_hub.Predictor:
        monkeypatch.setattr(home, "_loaded", type(home._loaded)())
        return tcgn_hub.load(path=tiny_weights, device="cpu", **options)

    return load


@pytest.fixture
def has_bfloat16(monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)


# precision


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 clzero", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx512f avx512_vnni", False),
        ("model name\t: bf16x", False),
    ],
)
def test_what_a_processor_multiplies_in_is_what_linux_says(flags, has, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\n")
    monkeypatch.undo()
    monkeypatch.setattr(devices, "_CPU_INFO", tmp_path / "cpuinfo")
    assert _asked_anew(monkeypatch) is has


def test_and_elsewhere_what_pytorch_says(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_CPU_INFO", tmp_path / "gone")
    for told, has in (({"avx512_bf16": True}, True), ({"avx512_f": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert _asked_anew(monkeypatch) is has
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert _asked_anew(monkeypatch) is False


def _asked_anew(monkeypatch) -> bool:
    """What the rule itself says, which the tests replace."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("devices_as_written", devices.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._CPU_INFO = devices._CPU_INFO
    return module.cpu_has_bfloat16()


def test_auto_is_bfloat16_where_the_device_has_it(monkeypatch):
    for has, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda has=has: has)
        assert devices.pick_precision("auto", "cpu") == precision
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: True)
    assert devices.pick_precision("auto", "mps") == "float32"
    for capability, precision in (((8, 0), "bfloat16"), ((7, 5), "float32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert devices.pick_precision("auto", "cuda:0") == precision
    assert devices.pick_precision("float16", "cpu") == "float16"


def test_of_the_cpu_it_is_known_without_pytorch():
    code = "import sys; from tcgn_hub.devices import pick_precision; pick_precision('auto', 'cpu'); "
    done = subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"])
    assert done.returncode == 0


def test_a_predictor_computes_in_it_and_says_so(fresh, has_bfloat16, tiny_weights, tmp_path):
    predictor = fresh()
    assert predictor.backend.precision == "bfloat16"
    uns = predictor.patches([PATCHES[0]]).uns
    assert (uns["precision"], uns["compiled"]) == ("bfloat16", False)
    assert predictor.patches([PATCHES[0]]).metadata()["compiled"] is False
    # the words of a folder to resume from are those of what computed
    slide = Path(__file__).parents[1] / "examples" / "cmu_small_region.svs"
    options = {"stride_um": 400, "workers": 0, "genes": ["G1"], "resume": tmp_path / "state"}
    predictor.slide(slide, **options)
    for same in ("auto", "bfloat16"):
        check_resume(slide, weights=tiny_weights, device="cpu", precision=same, **options)
    with pytest.raises(tcgn_hub.errors.OutputError, match="precision"):
        check_resume(slide, weights=tiny_weights, device="cpu", precision="float32", **options)


def test_bfloat16_costs_little_on_real_patches():
    exact, lower = (
        load_weights(device="cpu", precision=precision, compile="off").patches(PATCHES).X
        for precision in ("float32", "bfloat16")
    )
    assert 0 < np.abs(lower - exact).max() < 2e-2
    # values that were rounded to bfloat16 would be few
    assert len(np.unique(lower)) > 0.9 * lower.size


def test_edges_are_chosen_in_float32_whatever_the_views_are_in():
    torch.manual_seed(0)
    block = GraphEmbed(16, grid_size=7, out_dim=16).eval()
    views = [torch.randn(2, 49, 16).bfloat16() for _ in range(2)]
    scores = []
    with torch.inference_mode():
        wanted = block.edges(block.attention(*(view.float() for view in views)))
        real = block.edges
        block.edges = lambda attention: scores.append(attention) or real(attention)
        with torch.autocast("cpu", torch.bfloat16):
            block(*views)
    (attention,) = scores
    assert attention.dtype == torch.float32
    assert torch.equal(select_edges(attention.mean(dim=1).flatten(1), block.num_edges), wanted)


def test_an_explanation_has_the_values_of_the_prediction_and_the_maps_of_float32(fresh, tiny_weights):
    options = {"genes": ["G1", "G2"]}
    exact = fresh(precision="float32").explain(PATCHES[0], **options)
    predictor = fresh(precision="bfloat16")
    lower = predictor.explain(PATCHES[0], **options)
    np.testing.assert_array_equal(lower.result.X, predictor.patches([PATCHES[0]], tta=8, **options).X)
    assert np.abs(lower.result.X - exact.result.X).max() > 0
    for layer, maps in exact.maps.items():
        np.testing.assert_allclose(lower.maps[layer], maps, atol=1e-6)
    asked = tcgn_hub.explain(PATCHES[0], weights=tiny_weights, device="cpu", precision="bfloat16", **options)
    assert asked.result.uns["precision"] == "bfloat16"


# batches


def test_a_stream_gives_what_batches_give_in_their_order(fresh, pixels):
    predictor = fresh()
    batches = [("a", pixels[:2]), ("b", [pixels[2], pixels[3][:100, :100]]), ("c", pixels[3:])]
    for options in ({}, {"tta": 2, "features": True}):
        found = list(predictor.stream(iter(batches), **options))
        assert [key for key, _ in found] == ["a", "b", "c"]
        for (_, said), (_, batch) in zip(found, batches, strict=True):
            wanted = predictor.run(batch, **options)
            assert said.keys() == wanted.keys()
            for key, array in wanted.items():
                np.testing.assert_array_equal(said[key], array)
    assert list(predictor.stream([])) == []


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_batch_is_begun_before_the_one_before_is_waited_for(fresh, pixels, monkeypatch, in_flight):
    predictor, seen = fresh(), []
    real = TorchBackend.start

    def start(self, x, index=0):
        number = len([event for event in seen if event[0] == "begin"])
        seen.append(("begin", number))
        said = real(self, x, index)
        return lambda: seen.append(("wait", number)) or said()

    monkeypatch.setattr(TorchBackend, "start", start)
    monkeypatch.setattr(TorchBackend, "in_flight", in_flight)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    assert len(predictor.patches(PATCHES[:3], batch_size=1)) == 3
    in_turn = [(what, number) for number in range(3) for what in ("begin", "wait")]
    ahead = [("begin", 0), ("begin", 1), ("wait", 0), ("begin", 2), ("wait", 1), ("wait", 2)]
    assert seen == (ahead if in_flight else in_turn)


def test_batches_are_what_suits_the_device_unless_given(fresh, pixels, monkeypatch):
    sizes = []
    real = TorchBackend.prepare
    monkeypatch.setattr(TorchBackend, "prepare", lambda self, x: sizes.append(len(x)) or real(self, x))
    monkeypatch.setattr(backends, "_BATCH", {"cpu": 3})
    predictor = fresh()
    predictor.patches(PATCHES, mpp=0.687)
    predictor.patches(PATCHES, mpp=0.687, batch_size=2)
    assert [size for size in sizes if size > 1] == [3, 2, 2]
    monkeypatch.setattr(backends, "free_memory", lambda device: 4 * backends._PATCH_BYTES)
    assert fresh().backend.batch_size == 2
    monkeypatch.setattr(backends, "free_memory", lambda device: 0)
    assert fresh().backend.batch_size == 1


def test_batches_are_halved_until_memory_suffices(fresh, pixels, caplog):
    predictor = fresh()
    wanted = predictor.run(pixels)["values"]
    whole, sizes = predictor.backend.whole, []

    def forward(x):
        sizes.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return type(whole).forward(whole, x)

    most = 1
    whole.forward = forward
    with caplog.at_level(logging.INFO, "tcgn_hub"):
        np.testing.assert_allclose(predictor.run(pixels)["values"], wanted, atol=1e-5)
        predictor.run(pixels[:1])
        predictor.run(pixels)
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert predictor.backend.batch_size == 1
    assert caplog.messages == ["Memory is full: batches of 4 are halved until they fit."]
    most = 0
    with pytest.raises(DeviceError, match="cpu has not enough memory for one patch"):
        predictor.run(pixels)


def test_how_is_said_once_where_there_are_several_batches(fresh, caplog):
    predictor = fresh()
    with caplog.at_level(logging.INFO, "tcgn_hub"):
        predictor.patches(PATCHES[:2], batch_size=2)
        assert caplog.messages == []
        for _ in range(2):
            predictor.patches(PATCHES, batch_size=2)
    assert caplog.messages == ["float32, eager, batches of 2"]


# compilation


@pytest.fixture
def compiler(monkeypatch):
    """Stands for the compiler: what it made, and how often what was made was loaded."""
    seen = {"made": 0, "loaded": 0}
    module: list = []

    def write(whole, path, device, batch):
        seen["made"] += 1
        module[:] = [whole]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def read(path):
        seen["loaded"] += 1

        def run(x):
            assert x.shape == (backends._BATCH["cpu"], 3, 224, 224)
            assert x.is_contiguous(memory_format=torch.channels_last)
            return module[0](x)

        return run

    monkeypatch.setattr(backends, "write_compiled", write)
    monkeypatch.setattr(backends, "read_compiled", read)
    monkeypatch.setattr(backends, "_SAVED_S", {"float32": 1.0 * torch.get_num_threads()})
    monkeypatch.setattr(backends, "_COMPILE_S", 9.5)
    monkeypatch.setattr(backends, "_LOAD_S", 1.5)
    monkeypatch.setattr(backends, "_BATCH", {"cpu": 3})
    return seen


def test_many_patches_are_worth_compiling_for(fresh, compiler, caplog):
    predictor = fresh()
    caplog.set_level(logging.INFO, "tcgn_hub")
    assert predictor.patches(PATCHES).uns["compiled"] is False
    assert predictor.patches(PATCHES).uns["compiled"] is False
    assert compiler == {"made": 0, "loaded": 0}
    # twelve by now
    assert predictor.patches(PATCHES).uns["compiled"] is True
    predictor.patches(PATCHES, tta=2)
    assert compiler == {"made": 1, "loaded": 1}
    assert caplog.messages[1:] == [
        "Compiling the model, which takes minutes; it is kept for later runs.",
        "float32, compiled, batches of 3",
    ]
    # what is kept pays sooner, but not for fewer patches than a pass takes
    again = fresh()
    assert again.patches(PATCHES[:2]).uns["compiled"] is False
    assert again.patches(PATCHES[:2]).uns["compiled"] is False
    assert again.patches(PATCHES[:3]).uns["compiled"] is True
    assert compiler == {"made": 1, "loaded": 2}


def test_rotations_count(fresh, compiler):
    assert fresh().patches(PATCHES[:3], tta=3).uns["compiled"] is False
    assert fresh().patches(PATCHES[:3], tta=4).uns["compiled"] is True


def test_nothing_is_compiled_where_it_is_off_or_was_not_measured(fresh, compiler, pixels):
    assert fresh(compile="off").patches(PATCHES * 3).uns["compiled"] is False
    assert fresh(precision="float16").patches(PATCHES * 3).uns["compiled"] is False
    predictor = fresh()
    predictor.run(np.concatenate([pixels] * 3))
    assert not predictor.backend.compiled
    assert compiler == {"made": 0, "loaded": 0}


def test_a_compiled_model_gives_the_same_for_any_number_of_patches(fresh, compiler, pixels):
    eager, predictor = fresh(compile="off"), fresh(compile="on")
    assert predictor.backend.compiled
    wanted = eager.run(pixels, tta=2)
    for key, array in predictor.run(pixels, tta=2).items():
        np.testing.assert_allclose(array, wanted[key], atol=1e-4)
    one = np.concatenate([predictor.run(pixels[i : i + 1])["values"] for i in range(4)])
    np.testing.assert_allclose(one, predictor.run(pixels)["values"], atol=1e-5)


def test_other_weights_precisions_and_processors_have_files_of_their_own(monkeypatch):
    def path(sha256="a", precision="float32", batch=8):
        return cache.compiled_path(sha256, precision, torch.device("cpu"), batch)

    paths = [path(), path(sha256="b"), path(precision="bfloat16"), path(batch=9)]
    for name, told in (("processor", lambda: "another"), ("_source", lambda: "changed")):
        with monkeypatch.context() as patch:
            patch.setattr(cache, name, told)
            paths.append(path())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9")
        paths.append(path())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    paths.append(path())
    assert len(set(paths)) == len(paths)


def test_what_cannot_be_compiled_is_computed_all_the_same(fresh, compiler, monkeypatch, caplog):
    def fail(*args):
        raise error

    caplog.set_level(logging.INFO, "tcgn_hub")
    monkeypatch.setattr(backends, "write_compiled", fail)
    for error, said in (
        (cache.NoCompilerError("there is none"), []),
        (DeviceError("It fails."), ["It fails. Going on without."]),
    ):
        caplog.clear()
        predictor = fresh()
        wanted = predictor.patches(PATCHES)
        for _ in range(3):
            result = predictor.patches(PATCHES)
        np.testing.assert_array_equal(result.X, wanted.X)
        assert [message for message in caplog.messages if "fail" in message or "none" in message] == said
        with pytest.raises(DeviceError, match=str(error)):
            fresh(compile="on")


def test_compiling_is_tried_where_others_ask_for_it(fresh, compiler, pixels, caplog):
    shared = fresh()
    predictor = tcgn_hub.Predictor(shared.backend, shared.info)
    wanted = predictor.run(pixels)["values"]
    for _ in range(2):
        predictor.try_compile(mode="max-autotune")
    assert compiler == {"made": 1, "loaded": 1}
    assert predictor.backend.compiled
    assert not shared.backend.compiled
    np.testing.assert_allclose(predictor.run(pixels)["values"], wanted, atol=1e-5)
    own = tcgn_hub.Predictor(TorchBackend(shared.model), shared.info)
    own.try_compile()
    assert not own.backend.compiled
    assert caplog.messages[-1] == "A model that was not loaded from a file is not compiled. Going on without."


def test_without_a_compiler_on_is_refused_in_a_sentence(fresh, monkeypatch, capsys, tiny_weights):
    from tcgn_hub.cli.predict import main

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: 1 / 0)
    with pytest.raises(DeviceError, match=r"no C\+\+ compiler.*leave compile='on' out"):
        fresh(compile="on")
    assert main([PATCHES[0], "--weights", str(tiny_weights), "--compile", "on"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tcgn-predict: The model cannot be compiled here: there is no C++ compiler.")
    assert last.endswith("leave --compile on out.")


def test_what_an_exported_model_says_of_it(fresh, tmp_path):
    path = onnx_file.write(tmp_path / "model.onnx", fresh().info)
    with pytest.raises(WeightsError, match="The backend onnx compiles no model; leave compile='on' out"):
        tcgn_hub.load(path=path, compile="on")
    for compile in ("auto", "off"):
        predictor = tcgn_hub.load(path=path, compile=compile)
        predictor.try_compile()
        assert predictor.patches(PATCHES).uns["compiled"] is False
    with pytest.raises(ValueError, match="compile is 'yes', but has to be one of auto, on, off"):
        fresh(compile="yes")


def test_few_compiled_models_are_kept(tmp_path):
    import os

    for i in range(6):
        (tmp_path / f"{i}.pt2").touch()
        os.utime(tmp_path / f"{i}.pt2", (i, i))
    cache._forget(tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["2", "3", "4", "5"]


def test_a_damaged_file_is_no_compiled_model(fresh, monkeypatch, tmp_path):
    file = tmp_path / "model.pt2"
    file.write_text("no package")
    with pytest.raises(DeviceError, match="A compiled model cannot be loaded"):
        cache.read_compiled(file)
    assert not file.exists()


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler")
def test_the_compiler_itself(pixels, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(backends, "_BATCH", {"cpu": 3})
    eager = TorchBackend(Small(), "bfloat16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = TorchBackend(eager.model, "bfloat16", compile="on", sha256="small")
    # another process would find it
    monkeypatch.setattr(backends, "write_compiled", None)
    found = TorchBackend(eager.model, "bfloat16", compile="on", sha256="small")
    assert made.compiled
    assert found.compiled
    x = eager.prepare(pixels)
    for index in (0, 5):
        for ours, theirs, wanted in zip(
            made.forward(x, index), found.forward(x, index), eager.forward(x, index), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
            np.testing.assert_allclose(ours, wanted, atol=0.02)
            assert ours.std(axis=0).min() > 0


_FAULTS = """
import os, resource, sys
os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
if len(sys.argv) == 1:
    os.execv(sys.executable, [sys.executable, __file__, "child"])
import torch
from tcgn_hub.devices import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(4 << 20)  # 16 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_memory_that_is_kept_is_not_asked_for_again(tmp_path):
    (tmp_path / "faults.py").write_text(_FAULTS)
    command = [sys.executable, str(tmp_path / "faults.py")]
    given_back, kept = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert given_back > 20 * 1000  # 4096 bytes a page
    assert kept < 500
