"""Frozen networks of timm: features of a spot do not depend on its neighbours, and are kept as long as they hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from encoders import write_encoder
from PIL import Image
from sections import write_section

from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.errors import SectionError, WeightsError
from tcgn_hub.evaluation import encoders
from tcgn_hub.evaluation.encoders import encoder_features, load_encoder


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def encoder(name):
    return load_encoder(name, device="cpu")


@pytest.fixture
def section(tmp_path):
    write_section(tmp_path, "C6")
    return replace(read_her2st(tmp_path)[0], mpp=0.5)


def noise(number, side):
    return np.random.default_rng(0).integers(0, 255, (number, 3, side, side), dtype=np.uint8)


@pytest.mark.parametrize("side", [40, 160, 300])
def test_spots_one_by_one_are_spots_at_once(encoder, side):
    patches = noise(5, side)
    features = encoder(patches)
    assert features.dtype == np.float32
    assert features.shape[0] == 5
    assert features.std(axis=0).max() > 1e-3
    one_by_one = np.concatenate([encoder(patch[None]) for patch in patches])
    assert features == pytest.approx(one_by_one, abs=1e-5)
    assert encoder(patches[::-1].copy()) == pytest.approx(features[::-1], abs=1e-5)


def test_an_image_is_prepared_as_timm_prepares_it(encoder, name):
    """But for the rest of a patch, of which timm would cut off a margin."""
    config = timm.data.resolve_model_data_config(encoder.model) | {"crop_pct": 1.0}
    transform = timm.data.create_transform(**config, is_training=False)
    patches = noise(2, 220)
    images = torch.stack([transform(Image.fromarray(patch.transpose(1, 2, 0))) for patch in patches])
    with torch.inference_mode():
        want = timm.create_model(name, pretrained=True, num_classes=0).eval()(images).numpy()
    assert encoder(patches) == pytest.approx(want, abs=1e-4)
    assert encoder.mean == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("architecture", ["test_vit", "test_efficientnet"])
def test_any_network_gives_a_row_a_spot(tmp_path, architecture):
    encoder = load_encoder(write_encoder(tmp_path, architecture), device="cpu")
    features = encoder(noise(3, 100))
    assert features.shape[0] == 3
    assert features.ndim == 2
    for shape, pooled in (((3, 8, 2, 2), (2, 3)), ((3, 5, 8), 1)):
        maps = torch.rand(shape)
        without = encoders.Encoder(**{**vars(encoder), "model": lambda _, maps=maps: maps})
        assert without(noise(3, 100)) == pytest.approx(maps.mean(dim=pooled).numpy())


def test_sizes_stand_side_by_side(encoder, section):
    both = encoder_features(encoder, section, patch_um=[60, 120])
    assert both.shape[0] == len(section.spots)
    assert both == pytest.approx(
        np.concatenate([encoder_features(encoder, section, patch_um=[um]) for um in (60, 120)], axis=1), abs=1e-5
    )
    width = both.shape[1] // 2
    assert np.abs(both[:, :width] - both[:, width:]).max() > 1e-3
    crops = spot_crops(section, patch_um=60, most_px=encoder.size)
    assert both[:, :width] == pytest.approx(encoder(np.array(crops.pixels)), abs=1e-5)
    px = round(60 / section.mpp)
    assert encoder_features(encoder, section, crop_px=px) == pytest.approx(both[:, :width], abs=1e-5)


def test_a_patch_is_not_shrunk_below_what_the_network_sees(section, tmp_path):
    large = load_encoder(write_encoder(tmp_path / "large", input_size=(3, 320, 320)), device="cpu")
    assert large.size == 320
    crops = spot_crops(section, crop_px=300, most_px=large.size)
    assert crops.pixels.shape[-1] == crops.patch_px == 300
    assert encoder_features(large, section, crop_px=300) == pytest.approx(large(np.array(crops.pixels)), abs=1e-5)
    assert spot_crops(section, crop_px=400, most_px=320).pixels.shape[-1] == 320
    assert spot_crops(section, crop_px=300).pixels.shape[-1] == 224


def counting(monkeypatch):
    calls = []
    real = encoders._encode
    monkeypatch.setattr(encoders, "_encode", lambda *args: (calls.append(args[2]), real(*args))[1])
    return calls


def test_features_are_kept_until_something_changes(encoder, section, tmp_path, monkeypatch):
    calls, cache = counting(monkeypatch), tmp_path / "cache"

    def features(own=encoder, of=section, **options):
        return encoder_features(own, of, cache=cache, **{"patch_um": [60], **options})

    first = features()
    assert np.array_equal(features(), first)
    assert len(calls) == 1
    features(patch_um=[60, 120])
    assert len(calls) == 2
    part = features(of=section.at(np.arange(5)))
    assert part == pytest.approx(first[:5], abs=1e-5)
    assert len(calls) == 3
    other = load_encoder(write_encoder(tmp_path / "other", seed=1, mean=encoder.mean, std=encoder.std), device="cpu")
    # of the same name, too
    other = replace(other, name=encoder.name)
    assert np.abs(features(own=other) - first).max() > 1e-3
    again = load_encoder(write_encoder(tmp_path / "same", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)), device="cpu")
    assert again.fingerprint == encoder.fingerprint != other.fingerprint
    stated = load_encoder(write_encoder(tmp_path / "stated", mean=(0.5, 0.5, 0.6), std=(0.2, 0.3, 0.4)), device="cpu")
    assert stated.fingerprint != encoder.fingerprint
    number = len(calls)
    Image.new("RGB", (800, 700), "white").save(section.image)
    assert np.abs(features() - first).max() > 1e-3
    assert len(calls) == number + 1


@pytest.mark.parametrize("damage", [lambda b: b[:50], lambda b: b"", lambda b: b[:-8]])
def test_a_damaged_file_is_computed_again(encoder, section, tmp_path, damage):
    first = encoder_features(encoder, section, patch_um=[60], cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert np.array_equal(encoder_features(encoder, section, patch_um=[60], cache=tmp_path / "cache"), first)
    assert kept.read_bytes() == whole
    assert list((tmp_path / "cache").iterdir()) == [kept]


def test_what_cannot_be_had_is_one_sentence(tmp_path, section, encoder, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    bad = tmp_path / "bad"
    write_encoder(bad)
    (bad / "model.safetensors").write_bytes(b"no parameters")
    other = tmp_path / "other"
    write_encoder(other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"architecture": "test_vit"}))
    cases = {
        f"local-dir:{tmp_path / 'absent'}": "Config file not found",
        f"local-dir:{bad}": "cannot be had",
        f"local-dir:{other}": "cannot be had",
        "no_such_network": "Unknown model",
        "hf-hub:bad//name": "Repo id must be",
        "hf-hub:nobody/nothing": "nobody/nothing is not on this machine, and HF_HUB_OFFLINE",
        "test_resnet": "timm/test_resnet is not on this machine, and HF_HUB_OFFLINE",
    }
    for wanted, said in cases.items():
        with pytest.raises(WeightsError, match=said) as caught:
            load_encoder(wanted, device="cpu")
        assert len(str(caught.value)) < 560
        assert "\n" not in str(caught.value)
    unknown = replace(section, mpp=None)
    with pytest.raises(SectionError, match="no known micrometres"):
        encoder_features(encoder, unknown, patch_um=[60])
