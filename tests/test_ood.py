"""Which patches count as unlike the training tissue: numbers of a picture, what they are described by, and limits."""

import json
from dataclasses import replace

import golden
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import tcgn_hub
from tcgn_hub.images.transforms import to_input, to_input_array
from tcgn_hub.prediction import ood
from tcgn_hub.prediction.backends.torch import TorchBackend
from tcgn_hub.prediction.ood import Gaussian, TissueModel, describe
from tcgn_hub.prediction.picture import picture_features

PATCH = np.asarray(Image.open(golden.PATCHES[0]).convert("RGB").resize((224, 224)))
WIDTH = 64


class World:
    """Features of sections whose neighbours are alike, and of other tissue."""

    def __init__(self, seed: int, alike: float = 0.9) -> None:
        self.rng, self.alike = np.random.default_rng(seed), alike
        self.basis = self.rng.normal(size=(8, WIDTH)) * 0.7 ** np.arange(8)[:, None]
        self.other = self.rng.normal(size=WIDTH)

    def section(self, n: int) -> np.ndarray:
        factors = self.rng.normal(size=(n, 8))
        for i in range(1, n):
            factors[i] = self.alike * factors[i - 1] + np.sqrt(1 - self.alike**2) * factors[i]
        return (4 + factors @ self.basis + 0.3 * self.rng.normal(size=(n, WIDTH))).astype(np.float32)

    def foreign(self, n: int) -> np.ndarray:
        return self.section(n) + self.other.astype(np.float32)


@pytest.mark.parametrize(
    "sizes",
    [(600, 5), (5, 600), (300, 300), (470, 130), (500, 60), (200,) * 6, (600,), (2,) * 150],
    ids=lambda sizes: f"{len(sizes)} of {sizes[0]}",
)
def test_the_limit_holds_whatever_the_sizes_of_sections(sizes):
    false, found = [], []
    for seed in range(6):
        world = World(seed)
        known = describe([world.section(n) for n in sizes])
        false.append(np.mean([known.distance(world.section(200)) > 1 for _ in range(4)]))
        found.append((known.distance(world.foreign(200)) > 1).mean())
    assert min(found) > 0.99
    assert np.mean(false) < 0.05


def test_one_odd_section_does_not_lift_the_limit():
    world = World(0)
    usual = [world.section(150) for _ in range(5)]
    odd = world.section(150) + 0.5 * np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)
    with_it = describe([*usual, odd])
    assert (with_it.distance(odd) > 1).mean() < 0.05  # it is described
    assert (with_it.distance(world.foreign(200)) > 1).mean() > 0.99
    spots = np.concatenate([world.section(200) for _ in range(5)])
    assert 0 < (with_it.distance(spots) > 1).mean() < 0.06


def test_a_single_section_is_left_out_in_pieces_of_neighbours():
    """Pieces at random would be described by their own neighbours, and the limit would be too low."""
    section = World(3, alike=0.98).section(300)
    order = np.random.default_rng(0).permutation(300)
    places = np.stack([np.arange(300), np.zeros(300)], axis=1)
    by_place, ordered, shuffled = (
        describe([section[order]], places=[places[order]]).features.limit,
        describe([section]).features.limit,
        describe([section[order]]).features.limit,
    )
    assert by_place == pytest.approx(ordered, rel=1e-5)
    assert shuffled < 0.97 * ordered
    unknown = describe([section], places=[np.full((300, 2), np.nan)]).features.limit
    assert unknown == pytest.approx(ordered, rel=1e-5)


def test_directions_are_as_many_as_spots_allow():
    world = World(1)
    counts = [len(describe([world.section(n)]).features.variances) for n in (40, 75, 110, 400)]
    assert counts == [4, 8, 11, 12]


def test_the_distance_is_that_of_mahalanobis():
    known = Gaussian(np.ones(3, np.float32), np.eye(3, dtype=np.float32)[:1], np.array([4.0]), rest=0.25, limit=2.0)
    features = 1 + np.array([[0, 0, 0], [2, 0, 0], [0, 3, 4], [2, 3, 4]], np.float32)
    np.testing.assert_allclose(known.distance(features), np.sqrt([0, 1, 100, 101]) / 2, rtol=1e-6)
    both = TissueModel(known, replace(known, limit=1.0))
    np.testing.assert_array_equal(both.distance(features), known.distance(features))
    np.testing.assert_array_equal(both.distance(features, features[::-1]), np.sqrt([101, 100, 25, 25.25], dtype="f4"))


def test_what_is_stored_is_read_again():
    world = World(2)
    features = [world.section(n) for n in (80, 60)]
    pictures = [world.section(n)[:, :32] for n in (80, 60)]
    known = describe(features, pictures)
    again = TissueModel.from_json(json.loads(json.dumps(known.to_json())))
    np.testing.assert_array_equal(again.distance(features[0], pictures[0]), known.distance(features[0], pictures[0]))
    # earlier versions described the features alone, and read what they know of
    earlier = {key: value for key, value in known.to_json().items() if key != "picture"}
    assert set(earlier) == {"mean", "directions", "variances", "rest", "limit"}
    old = TissueModel.from_json(earlier)
    assert old.picture is None
    np.testing.assert_array_equal(old.distance(features[0], pictures[0]), known.distance(features[0]))
    many = [world.rng.normal(size=(300, 1280)) for _ in range(2)]
    wide = describe(many, [world.section(300)[:, :32] for _ in range(2)])
    assert len(json.dumps(wide.to_json())) < 60_000
    read = TissueModel.from_json(wide.to_json())
    np.testing.assert_array_equal(read.distance(many[0]), wide.distance(many[0]))


def test_few_spots_and_features_that_never_vary():
    world = World(4)
    assert describe([world.section(20), world.section(19)]) is None
    assert describe([]) is None
    assert np.isfinite(describe([world.section(38), world.section(1), world.section(1)]).distance(np.zeros((1, 64))))
    dead = world.section(60)
    dead[:, 5:] = 0
    assert np.isfinite(describe([dead], [dead[:, :32]]).distance(dead, dead[:, :32])).all()


def test_pictures_are_the_same_for_every_backend_and_size():
    rng = np.random.default_rng(0)
    crops = [PATCH, np.rot90(PATCH).copy(), rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)]
    crops += [np.asarray(Image.fromarray(PATCH).resize((309, 309))), np.full((224, 224, 3), 255, np.uint8)]
    arrays = to_input_array(crops)
    tensors = torch.cat([to_input(crop) for crop in crops])
    found = picture_features(arrays)
    assert found.shape == (5, 32)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(picture_features(tensors), found, atol=2e-3)
    # what another device computes at once is what the CPU does patch by patch
    np.testing.assert_allclose(picture_features(OnDevice(tensors)), found, atol=2e-3)


class OnDevice:
    """A tensor that says it is elsewhere."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.device = x, torch.device("meta")

    def __getitem__(self, key: object) -> torch.Tensor:
        return self.x[key]


def test_pictures_see_what_is_done_to_them():
    turned = np.stack([np.rot90(PATCH, k) for k in range(4)] + [PATCH[:, ::-1]])
    found = picture_features(to_input_array(turned))
    off = abs(found[1:] - found[0]).max(axis=0)
    assert (off[28:30] < 0.5).all()  # blocks of steps begin elsewhere
    assert (np.delete(off, [28, 29]) < 0.01).all()
    blurred = np.asarray(Image.fromarray(PATCH).filter(ImageFilter.GaussianBlur(3)))
    before, after, darker = picture_features(to_input_array([PATCH, blurred, PATCH // 2]))
    assert after[9] < before[9] - 1  # weaker steps
    assert after[10] < before[10] - 1  # second differences even more so
    np.testing.assert_allclose(after[:3], before[:3], atol=0.01)  # of the same mean colours
    assert (darker[:3] > before[:3] + 0.3).all()
    np.testing.assert_allclose(darker[6:9], before[6:9], atol=0.05)  # as correlated as they were


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_predictor_flags_what_its_features_do_not_see(tiny_weights, precision):
    tiny = tcgn_hub.load(path=tiny_weights)
    predictor = tcgn_hub.Predictor(TorchBackend(tiny.model, precision), replace(tiny.info, ood=None))
    rng = np.random.default_rng(0)
    bright = rng.uniform(0.9, 1.1, (60, 1, 1, 1))
    tissue = np.stack([np.rot90(PATCH, k % 4) for k in range(60)]) * bright + rng.normal(0, 3, (60, 224, 224, 3))
    tissue = tissue.clip(0, 255).astype(np.uint8)
    features = predictor.run(tissue, features=True)["features"]
    known = describe([features], [picture_features(predictor.backend.prepare(tissue))])
    own = tcgn_hub.Predictor(predictor.backend, replace(tiny.info, ood=known.to_json()))
    assert (own.run(tissue)["ood"] > 1).mean() < 0.1
    swapped = tissue[:8, ..., ::-1]  # red for blue
    assert (own.run(swapped)["ood"] > 1).all()


def test_small_sections_have_one_tail_together():
    spots = np.random.default_rng(0).permutation(400)
    assert ood._limit(np.arange(400.0), np.array_split(spots, 20)) == pytest.approx(396, abs=3)
