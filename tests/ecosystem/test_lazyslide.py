"""LazySlide and its zoo of models, unmodified, on a real slide."""

import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import lazyslide as zs
import lazyslide_models
import numpy as np
import openslide
import pytest
import timm
import torch
from PIL import Image
from tiny import Small

import tcgn_hub
from tcgn_hub.prediction.backends.torch import TorchBackend

ROOT = Path(__file__).parents[2]
CARD = ROOT / "examples/lazyslide"
SVS = ROOT / "examples/cmu_small_region.svs"

pytestmark = pytest.mark.filterwarnings("ignore::pandas.errors.PerformanceWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def predictor():
    return tcgn_hub.load(device="cpu", compile="off")


@pytest.fixture
def wsi():
    """Three tiles of 154 µm on tissue."""
    slide = zs.open_wsi(str(SVS))
    zs.pp.find_tissues(slide)
    zs.pp.tile_tissues(slide, 308, mpp=0.5, stride_px=924)
    assert len(slide["tiles"]) == 3
    return slide


@pytest.fixture
def pixels(wsi):
    """What those tiles show, read by OpenSlide: uint8, shape (3, 308, 308, 3)."""
    bounds = wsi["tiles"].bounds.to_numpy().round().astype(int)
    with openslide.OpenSlide(SVS) as slide:
        tiles = [slide.read_region((x, y), 0, (right - x, bottom - y)) for x, y, right, bottom in bounds]
    return np.stack([np.asarray(tile.convert("RGB")) for tile in tiles])


@pytest.fixture(scope="module")
def card():
    """The class of `examples/lazyslide`, registered as the zoo would register it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CARD)
        from tcgn import TCGN

        yield TCGN
    del lazyslide_models.MODEL_REGISTRY["tcgn"]


def predicted(wsi, model, **options) -> np.ndarray:
    """What LazySlide adds to its table of tiles, shape (3, genes)."""
    before = list(wsi["tiles"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zs.tl.tile_prediction(wsi, model, **{"batch_size": 2, "device": "cpu", "pbar": False, **options})
    return wsi["tiles"].drop(columns=before).to_numpy()


@pytest.mark.parametrize(
    "options",
    [{}, {"amp": True}, {"amp": True, "autocast_dtype": torch.bfloat16}, {"num_workers": 1}],
    ids=["plain", "amp", "amp-bfloat16", "num_workers"],
)
def test_tile_prediction_is_what_the_predictor_says(wsi, pixels, predictor, options):
    values = predicted(wsi, predictor, **options)
    assert list(wsi["tiles"])[-len(predictor.columns) :] == list(predictor.info.genes)
    assert values.std(axis=0).mean() > 0.02
    np.testing.assert_allclose(values, predictor.run(pixels)["values"], atol=1e-5)
    np.testing.assert_allclose(values, predictor.patches(list(pixels), mpp=0.5).X, atol=1e-5)


def test_it_is_what_tcgn_predict_gives_for_the_same_places(wsi, predictor, tmp_path):
    values = predicted(wsi, predictor)
    centres = wsi["tiles"].geometry.centroid
    (tmp_path / "spots.csv").write_text(
        "x,y\n" + "".join(f"{x},{y}\n" for x, y in zip(centres.x, centres.y, strict=True))
    )
    ours = predictor.slide(SVS, spots=tmp_path / "spots.csv", workers=0)
    # the slide has 0.499 um/px, so that 154 um are 309 px and not 308
    np.testing.assert_allclose(values, ours.X, atol=0.05)
    assert np.abs(values - ours.X).mean() < 0.01
    np.testing.assert_allclose(ours.obsm["spatial"], np.stack([centres.x, centres.y], 1), atol=1)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compile_compiles(wsi, predictor):
    torch.manual_seed(0)
    genes = predictor.info.genes[:5]
    info = replace(predictor.info, genes=genes, held_out={}, typical=None, ood=None)
    small = tcgn_hub.Predictor(TorchBackend(Small(), sha256="small"), info)
    plain = predicted(wsi, small)
    wsi["tiles"] = wsi["tiles"].drop(columns=list(genes))
    compiled = predicted(wsi, small, compile=True, compile_kws={"mode": "reduce-overhead"})
    assert small.backend.compiled
    assert plain.std(axis=0).min() > 0
    np.testing.assert_allclose(compiled, plain, atol=1e-3)


def test_features_by_timm(wsi, pixels):
    zs.tl.feature_extraction(wsi, "tcgn_base", device="cpu", batch_size=2, pbar=False)
    features = wsi["tcgn_base_tiles"].X
    model = timm.create_model("tcgn_base", pretrained=True, num_classes=0).eval()
    assert features.shape == (3, model.head_hidden_size)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        wanted = model(torch.stack([transform(Image.fromarray(tile)) for tile in pixels])).numpy()
    # Pillow rounds what it resizes to whole levels, PyTorch does not
    assert np.abs(features - wanted).max() < 0.05 * np.abs(wanted).max()
    for ours, theirs in zip(features, wanted, strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.999


def test_a_predictor_has_the_protocol(predictor):
    assert isinstance(predictor, lazyslide_models.TilePredictionModelProtocol)
    assert predictor.columns == predictor.info.genes


def test_the_card_predicts(wsi, predictor, card):
    values = predicted(wsi, "tcgn")
    wsi["tiles"] = wsi["tiles"].drop(columns=list(predictor.columns))
    np.testing.assert_array_equal(values, predicted(wsi, predictor))
    wsi["tiles"] = wsi["tiles"].drop(columns=list(predictor.columns))
    few = card(genes=["FASN", "gnas"])
    assert few.columns == ("FASN", "GNAS")
    some = predicted(wsi, few)
    assert list(wsi["tiles"])[-2:] == ["FASN", "GNAS"]
    np.testing.assert_array_equal(some, values[:, [predictor.columns.index(gene) for gene in few.columns]])


def test_the_card_states_what_is_true(card, predictor):
    model = card()
    assert isinstance(model, lazyslide_models.TilePredictionModelProtocol)
    assert lazyslide_models.list_models("tile_prediction").count("tcgn") == 1
    assert model.columns == predictor.columns
    assert f"{model.estimate_param_size() / 1e6:.1f}M" == card.param_size
    assert f"{model.estimate_flops(torch.zeros(1, 3, 224, 224)) / 1e9:.2f}G" == card.flops
    assert f"{len(predictor.columns)} genes" in card.description
    assert card.tile_px * card.mpp == predictor.info.patch_um
    assert (card.license, card.units) == (predictor.info.license, predictor.info.units)
    assert card.bib_key in (CARD / "references.bib").read_text()


def test_the_card_asks_for_the_package(card, monkeypatch):
    monkeypatch.setitem(sys.modules, "tcgn_hub", None)
    with pytest.raises(ImportError, match="you need to install tcgn_hub"):
        card()


def test_the_card_passes_the_tests_of_the_zoo(tmp_path):
    """Those of the release that is installed, of the source distribution LAZYSLIDE_MODELS: what needs no weights."""
    with tarfile.open(os.environ["LAZYSLIDE_MODELS"]) as archive:
        archive.extractall(tmp_path, filter="data")
    zoo = tmp_path / f"lazyslide_models-{version('lazyslide-models')}"
    with (zoo / "references.bib").open("a") as file:
        file.write("\n" + (CARD / "references.bib").read_text())
    run = {"cwd": zoo, "env": {**os.environ, "PYTHONPATH": f"{CARD}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}}
    tests = ["tests/test_models.py", "tests/test_prediction_protocols.py", "-p", "tcgn", "-k", "tcgn", "-q", "-ra"]
    done = subprocess.run([sys.executable, "-m", "pytest", *tests], **run, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
    for name in ("test_model_attributes", "test_model_eval_mode", "test_predict", "test_predict_sizes"):
        assert name in (zoo / "tests/test_models.py").read_text()
    subprocess.run([sys.executable, "scripts/check_bib.py"], **run, check=True)
