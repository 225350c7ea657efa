"""What makes a step: the order of spots, their parts, and how crops are varied."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tcgn_hub.data.crops import SpotCrops
from tcgn_hub.errors import TrainingError
from tcgn_hub.training.batches import TrainingSpots, _jitter_stains, batches, margin, steps_per_epoch
from tcgn_hub.training.recipe import Recipe

PLAIN = Recipe(shift=0, color_jitter=0, batch_size=4)


def numbered(n: int, side: int = 8, field: int = 8) -> SpotCrops:
    """Crops whose pixels are all the number of their spot."""
    return SpotCrops(np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 3, side, side)), field)


def spots_of(n: int, recipe: Recipe = PLAIN) -> TrainingSpots:
    return TrainingSpots([numbered(n)], [np.arange(n, dtype=np.float32)[:, None]], recipe)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(4, 40),
    batch_size=st.integers(1, 9),
    accumulate=st.integers(1, 2),
    processes=st.integers(1, 2),
    epoch=st.integers(0, 3),
)
def test_an_epoch_sees_every_spot_once_whoever_shares_it(n, batch_size, accumulate, processes, epoch):
    recipe = Recipe(batch_size=max(batch_size, accumulate * processes), accumulate=accumulate, shift=0)
    spots = spots_of(n, recipe)
    runs = [list(batches(spots, recipe, epoch=epoch, rank=rank, processes=processes)) for rank in range(processes)]
    assert {len(run) for run in runs} == {steps_per_epoch(n, recipe, processes=processes)}
    seen = []
    for steps in zip(*runs, strict=True):
        (size,) = {size for size, _ in steps}
        targets = [value for _, parts in steps for part in parts for value in part[2].flatten().tolist()]
        assert len(targets) == size
        assert all(len(parts) == accumulate for _, parts in steps)
        seen += targets
    assert sorted(seen) == list(range(n))


def test_crops_go_with_their_targets_and_a_skipped_epoch_goes_on_as_it_would_have():
    spots = spots_of(10)
    whole = list(batches(spots, PLAIN, epoch=1))
    for _, [(crops, index, targets)] in whole:
        assert torch.equal(crops[:, 0, 0, 0], targets[index, 0])
    rest = list(batches(spots, PLAIN, epoch=1, skip=2))
    assert [parts[0][2].tolist() for _, parts in rest] == [parts[0][2].tolist() for _, parts in whole[2:]]
    other = list(batches(spots, PLAIN, epoch=2))
    assert [parts[0][2].tolist() for _, parts in other] != [parts[0][2].tolist() for _, parts in whole]


def test_workers_change_nothing():
    recipe = Recipe(batch_size=4, stain_jitter=0.1, shift=0)
    crops = SpotCrops(np.random.default_rng(0).integers(0, 255, (6, 3, 12, 12), dtype=np.uint8), 8)
    spots = TrainingSpots([crops], [np.zeros((6, 2), np.float32)], recipe)
    alone, helped = (list(batches(spots, recipe, epoch=0, workers=workers)) for workers in (0, 1))
    for (_, [a]), (_, [b]) in zip(alone, helped, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_variation_moves_turns_and_colours_within_its_limits():
    crop = np.random.default_rng(0).integers(60, 180, (1, 3, 12, 12), dtype=np.uint8)
    still = TrainingSpots([SpotCrops(crop[..., :8, :8], 8)], [np.zeros((1, 1), np.float32)], PLAIN)
    views = {still[epoch, 0][0].numpy().tobytes() for epoch in range(60)}
    assert len(views) == 8  # four rotations, with and without a flip
    assert all(sorted(np.frombuffer(v, np.float32)) == sorted(crop[0, :, :8, :8].ravel()) for v in views)
    moved = TrainingSpots([SpotCrops(crop, 8)], [np.zeros((1, 1), np.float32)], PLAIN)
    assert len({moved[epoch, 0][0].numpy().tobytes() for epoch in range(300)}) > 100
    coloured = TrainingSpots(
        [SpotCrops(crop[..., :8, :8], 8)], [np.zeros((1, 1), np.float32)], Recipe(shift=0, color_jitter=0.1)
    )
    means = np.array([coloured[epoch, 0][0].mean((0, 2, 3)).numpy() for epoch in range(50)])
    mean = crop[0, :, :8, :8].mean((1, 2))
    assert (abs(means - mean) <= 0.1 * mean + 12.01).all()
    assert means.std(axis=0).min() > 3


def test_the_largest_zoom_shows_all_of_a_crop_and_no_more():
    recipe = Recipe(shift=0, color_jitter=0, zoom=1.5)
    side = 10 + 2 * round(margin(recipe) * 10)  # less than 10 * 1.5, for it is rounded
    spots = TrainingSpots([numbered(1, side, 10)], [np.zeros((1, 1), np.float32)], recipe)
    seen = {spots._vary(np.zeros((3, side, side)), 10, np.random.default_rng(i)).shape[1:] for i in range(300)}
    assert seen == {(size, size) for size in range(7, side + 1)}


def test_stains_are_taken_apart_and_put_together():
    crop = np.random.default_rng(0).integers(0, 256, (3, 9, 9)).astype(np.float32)
    none = np.zeros(3)
    assert np.allclose(_jitter_stains(crop, none, none), crop, atol=1e-2)
    assert (_jitter_stains(crop, none, np.array([0.1, 0, 0])) <= crop + 1e-3).all()  # more haematoxylin is darker


def test_sections_of_other_resolution_are_brought_to_one_size():
    spots = TrainingSpots(
        [numbered(2), numbered(2, 16, 16)], [np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)], PLAIN
    )
    [(size, [(crops, _, _)])] = batches(spots, PLAIN, epoch=0)
    assert size == 4
    assert crops.shape == (4, 3, 224, 224)


def test_a_bulk_measurement_is_compared_to_tiles_drawn_anew_each_epoch():
    recipe = Recipe(tiles_per_slide=5, shift=0, color_jitter=0, batch_size=4)
    spots = TrainingSpots([numbered(20), numbered(3)], [np.ones((1, 2), np.float32)] * 2, recipe)
    assert len(spots) == 2
    [(size, [(_, index, targets)])] = batches(spots, recipe, epoch=0)
    assert size == len(targets) == 2
    assert sorted(torch.bincount(index).tolist()) == [3, 5]  # a small slide gives all its tiles
    drawn = [set(spots[epoch, 0][0][:, 0, 0, 0].tolist()) for epoch in range(10)]
    assert {len(tiles) for tiles in drawn} == {5}  # none of them twice
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("lr", -1.0), ("tune", "some"), ("precision", "fp8"), ("ema", 1.0), ("crop_px", 1), ("seed", -1)],
)
def test_recipes_that_cannot_be_meant_are_refused(field, value):
    with pytest.raises(TrainingError, match=field):
        Recipe(**{field: value})


def test_residuals_without_components_say_nothing():
    with pytest.raises(TrainingError, match="residuals says what components are"):
        Recipe(components=0, residuals=1.0)
