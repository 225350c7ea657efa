"""Ridge regression: what follows from what it minimises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcgn_hub.ridge import Linear, choose_penalty, fit_each, fit_ridge, predict_ridge

PENALTIES = (0.1, 3.0, 100.0)


def drawn(rows, features, outputs=3, *, seed=0, unknown=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (rows, features)) * rng.uniform(0.01, 50, features)
    y = x / x.std(axis=0) @ rng.normal(size=(features, outputs)) + rng.normal(size=(rows, outputs)) + 7
    y[rng.random(y.shape) < unknown] = np.nan
    prior = Linear(rng.normal(size=(features, outputs)), rng.normal(size=outputs))
    return x, y, prior


def loss_slope(x, y, linear, penalty, prior=None):
    """Slopes of what is to be minimised, of the coefficients of standardised features and of the intercept."""
    std = x.std(axis=0)
    rest = x @ linear.weight + linear.bias - y
    start = 0 if prior is None else prior.weight
    return ((x - x.mean(axis=0)) / std).T @ rest + penalty * (linear.weight - start) * std[:, None], rest.sum(axis=0)


@given(st.integers(2, 30), st.integers(1, 30), st.booleans(), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_it_is_the_minimum(rows, features, with_prior, seed):
    """More rows than features or fewer: nothing else has a slope of 0."""
    x, y, prior = drawn(rows, features, seed=seed)
    prior = prior if with_prior else None
    for penalty, linear in zip(PENALTIES, fit_ridge(x, y, PENALTIES, prior=prior), strict=True):
        slope, rest = loss_slope(x, y, linear, penalty, prior)
        scale = 1 + np.abs(y).max() * rows + (0 if prior is None else np.abs(x @ prior.weight).max() * rows)
        assert np.abs(slope).max() < 1e-5 * scale
        assert np.abs(rest).max() < 1e-5 * scale


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_rows_in_another_order_or_twice(shape):
    x, y, prior = drawn(*shape)
    order = np.random.default_rng(1).permutation(len(x))
    (want,) = fit_ridge(x, y, (3.0,), prior=prior)
    for again, penalty in ((order, 3.0), (np.tile(order, 2), 6.0)):
        (linear,) = fit_ridge(x[again], y[again], (penalty,), prior=prior)
        assert linear.weight == pytest.approx(want.weight, abs=1e-8)
        assert linear.bias == pytest.approx(want.bias, abs=1e-6)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_features_in_other_units_and_outputs_alone(shape):
    x, y, prior = drawn(*shape)
    units = np.random.default_rng(1).uniform(0.1, 10, shape[1])
    (want,) = fit_ridge(x, y, (3.0,), prior=prior)
    (linear,) = fit_ridge(x * units, y, (3.0,), prior=Linear(prior.weight / units[:, None], prior.bias))
    assert linear.weight * units[:, None] == pytest.approx(want.weight, abs=1e-7)
    assert linear(x * units) == pytest.approx(want(x), abs=1e-7)
    (alone,) = fit_ridge(x, y[:, 1:2], (3.0,), prior=Linear(prior.weight[:, 1:2], prior.bias[1:2]))
    assert alone.weight[:, 0] == pytest.approx(want.weight[:, 1])


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_a_penalty_without_end_gives_the_prior_and_the_mean(shape):
    x, y, prior = drawn(*shape)
    for start in (None, prior):
        (linear,) = fit_ridge(x, y, (1e14,), prior=start)
        weight = np.zeros_like(linear.weight) if start is None else start.weight
        assert linear.weight == pytest.approx(weight, abs=1e-8)
        assert linear(x).mean(axis=0) == pytest.approx(y.mean(axis=0))


def test_a_prior_that_is_right_is_kept():
    x, _, prior = drawn(8, 40)
    for linear in fit_ridge(x, prior(x), PENALTIES, prior=prior):
        assert linear.weight == pytest.approx(prior.weight, abs=1e-8)
        assert linear.bias == pytest.approx(prior.bias, abs=1e-6)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_what_was_not_measured_is_left_out_of_its_output_alone(shape):
    x, y, prior = drawn(*shape, outputs=6, unknown=0.2)
    y[:, 2], y[:, 4] = np.nan, y[:, 5]
    for start in (None, prior):
        (linear,) = fit_ridge(x, y, (3.0,), prior=start)
        for output in (0, 1, 3, 4, 5):
            rows = ~np.isnan(y[:, output])
            own = None if start is None else Linear(start.weight[:, [output]], start.bias[[output]])
            (alone,) = fit_ridge(x[rows], y[rows][:, [output]], (3.0,), prior=own)
            assert linear.weight[:, output] == pytest.approx(alone.weight[:, 0])
            assert linear.bias[output] == pytest.approx(alone.bias[0])
        if start is None:
            assert np.isnan(linear(x)[:, 2]).all()
        else:
            assert linear(x)[:, 2] == pytest.approx(prior(x)[:, 2])
        assert np.isfinite(np.delete(linear(x), 2, axis=1)).all()


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_predicting_needs_no_maps(shape):
    x, y, prior = drawn(*shape, unknown=0.2)
    y[:, 1] = np.nan
    other = drawn(5, shape[1], seed=2)[0]
    for start in (None, prior):
        want = [linear(other) for linear in fit_ridge(x, y, PENALTIES, prior=start)]
        assert predict_ridge(x, y, other, PENALTIES, prior=start) == pytest.approx(np.array(want), nan_ok=True)


def test_constant_features_and_targets_and_one_row():
    x, y, _ = drawn(12, 5)
    x[:, 2], y[:, 1] = 5.0, 4.0
    linear = fit_ridge(x, y, (3.0,))[0]
    assert linear.weight[2] == pytest.approx(0, abs=1e-6)
    assert linear(x)[:, 1] == pytest.approx(4)
    (one,) = fit_ridge(x[:1], y[:1], (3.0,))
    assert one(x[:1]) == pytest.approx(y[:1])


def squared(predicted, measured):
    return -np.mean((predicted - measured) ** 2)


def test_the_penalty_is_that_which_predicts_parts_left_out():
    rng = np.random.default_rng(0)
    x, parts = rng.normal(size=(60, 40)), np.arange(60) % 3
    signal = x @ rng.normal(size=(40, 2))
    grid = (1e-3, 10.0, 1e5)
    chosen = [
        choose_penalty(x, signal * strength + rng.normal(size=(60, 2)), parts, grid, score=squared)
        for strength in (10.0, 0.0)
    ]
    assert chosen == [1e-3, 1e5]
    # by hand
    y = signal * 0.3 + rng.normal(size=(60, 2))
    means = [
        np.mean(
            [squared(fit_ridge(x[parts != k], y[parts != k], (p,))[0](x[parts == k]), y[parts == k]) for k in range(3)]
        )
        for p in grid
    ]
    assert choose_penalty(x, y, parts, grid, score=squared) == grid[int(np.argmax(means))]
    assert choose_penalty(x, y, np.zeros(60), grid, score=squared) == 10.0


def test_each_output_has_the_penalty_that_predicts_it_where_parts_are_left_out():
    rng = np.random.default_rng(0)
    x, parts = rng.normal(size=(60, 40)), np.arange(60) % 3
    noise = rng.normal(size=(60, 3))
    y = np.stack([x @ rng.normal(size=40) * strength for strength in (10.0, 0.3, 0.0)], axis=1) + noise
    grid = (1e-3, 10.0, 1e5)
    linear, chosen, left_out = fit_each(x, y, parts, grid)
    assert (chosen[0], chosen[2]) == (1e-3, 1e5)
    for output, penalty in enumerate(chosen):
        one = y[:, [output]]
        assert penalty == choose_penalty(x, one, parts, grid, score=squared)
        (alone,) = fit_ridge(x, one, (penalty,))
        assert linear(x)[:, [output]] == pytest.approx(alone(x))
        for part in range(3):
            out = parts == part
            assert left_out[out][:, [output]] == pytest.approx(predict_ridge(x[~out], one[~out], x[out], [penalty])[0])
    _, middle, unknown = fit_each(x, y, np.zeros(60), grid)
    assert middle == [10.0] * 3
    assert np.isnan(unknown).all()


def test_a_part_without_a_score_does_not_count():
    x, y, _ = drawn(30, 10)
    parts = np.repeat([0, 1, 2], 10)

    def score(predicted, measured):
        return np.nan if np.array_equal(measured, y[:10]) else squared(predicted, measured)

    first = choose_penalty(x, y, parts, PENALTIES, score=score)
    assert first in PENALTIES


def test_a_prior_counts_when_the_penalty_is_chosen():
    x, y, prior = drawn(30, 10)
    parts = np.repeat([0, 1, 2], 10)
    grid = (1e-3, 1e9)
    noise = np.random.default_rng(1).normal(size=y.shape)
    assert choose_penalty(x, prior(x) + noise, parts, grid, score=squared, prior=prior) == 1e9
    assert choose_penalty(x, prior(x) + noise, parts, grid, score=squared) == 1e-3


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_a_scale_stands_for_the_standard_deviation(shape):
    x, y, prior = drawn(*shape)
    (want,) = fit_ridge(x, y, (3.0,), prior=prior)
    (same,) = fit_ridge(x, y, (3.0,), prior=prior, scale=x.std(axis=0))
    assert same.weight == pytest.approx(want.weight, abs=1e-9)
    # twice the scale is four times the penalty
    twice, other = 2 * x.std(axis=0), x[:5] + 1
    assert fit_ridge(x, y, (3.0,), prior=prior, scale=twice)[0](other) == pytest.approx(
        fit_ridge(x, y, (12.0,), prior=prior)[0](other), abs=1e-6
    )
    predicted = predict_ridge(x, y, other, (3.0,), prior=prior, scale=twice)[0]
    assert predicted == pytest.approx(fit_ridge(x, y, (3.0,), prior=prior, scale=twice)[0](other), abs=1e-6)
