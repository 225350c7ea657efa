"""The test of correlations and the intervals hold what they promise where neighbouring spots are alike."""

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter

from tcgn_hub.correlation import pearson, standardised
from tcgn_hub.evaluation import spots
from tcgn_hub.evaluation.intervals import (
    block_bootstrap,
    bootstrap_partial,
    bootstrap_pearson,
    fisher_interval,
    interval_of,
    simulated_coverage,
    widening,
)
from tcgn_hub.evaluation.significance import (
    SpatialTest,
    benjamini_hochberg,
    effective_spots,
    residuals,
    spatial_test,
    stouffer,
)
from tcgn_hub.evaluation.spots import spot_pitch

SMOOTHNESS = (0, 1, 2, 2.5, 3, 4)
SECTIONS = 75
GENES = 4


def grid(side):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2).astype(float)


def hexagons(side):
    xy = grid(side)
    return np.stack([xy[:, 0] + 0.5 * (xy[:, 1] % 2), xy[:, 1] * np.sqrt(0.75)], axis=1)


def ragged():
    """A blob with a hole, 323 spots, a little off their grid."""
    xy = grid(26) - 12.5
    angle, distance = np.arctan2(xy[:, 1], xy[:, 0]), np.hypot(*xy.T)
    inside = distance < 10.5 + 1.8 * np.sin(3 * angle) + 1.2 * np.cos(5 * angle + 1)
    hole = np.hypot(xy[:, 0] - 3, xy[:, 1] + 2) < 3
    kept = xy[inside & ~hole]
    return kept + np.random.default_rng(5).uniform(-0.1, 0.1, kept.shape)


LAYOUTS = {"grid": grid(24), "hexagons": hexagons(24), "ragged": ragged()}


def kernel(xy, smoothness):
    """Turns white noise on a fine lattice that reaches beyond the spots into smooth maps of variance 1."""
    if smoothness == 0:
        return np.eye(len(xy))
    ends = zip(xy.min(axis=0) - 3 * smoothness, xy.max(axis=0) + 3 * smoothness, strict=True)
    lattice = np.stack(np.meshgrid(*(np.arange(*end) for end in ends)), axis=-1).reshape(-1, 2)
    square = (xy**2).sum(axis=1)[:, None] + (lattice**2).sum(axis=1) - 2 * xy @ lattice.T
    weights = np.exp(-square / (2 * smoothness**2))
    return weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))


def maps(rng, weights, genes=GENES, factors=4):
    return standardised(weights @ rng.normal(size=(weights.shape[1], factors)) @ rng.normal(size=(factors, genes)))


def sections(rng, weights):
    """Low-rank maps of several sections with the same spots, side by side, shape (spots, sections * genes)."""
    return np.concatenate([maps(rng, weights) for _ in range(SECTIONS)], axis=1)


def true_effective(weights):
    """Independent spots of maps of which the measured one is half noise."""
    n = len(weights)
    centre = np.eye(n) - 1 / n
    smooth = centre @ weights @ weights.T @ centre
    half = (smooth + centre) / 2
    return 1 + np.trace(smooth) * np.trace(half) / np.trace(smooth @ half)


def noisy(rng, values):
    return np.sqrt(0.5) * (values + rng.normal(size=values.shape))


# --------------------------------------------------------------------------------------------------------------- null


@pytest.mark.parametrize("smoothness", SMOOTHNESS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_that_have_nothing_to_do_with_each_other_rarely_pass(layout, smoothness):
    """Also where depth, as smooth, drives both and is held fixed."""
    xy = LAYOUTS[layout]
    weights = kernel(xy, smoothness)
    rng = np.random.default_rng(int(10 * smoothness))
    predicted, measured = sections(rng, weights), noisy(rng, sections(rng, weights))
    p = spatial_test(predicted, measured, xy).p
    assert np.mean(p < 0.05) < 0.08
    assert benjamini_hochberg(p).sum() <= 3
    depth = maps(rng, weights, 1)
    driven = (side + depth * rng.uniform(0.3, 1.5, side.shape[1]) for side in (predicted, measured))
    assert np.mean(spatial_test(*driven, xy, given=depth[:, 0]).p < 0.05) < 0.08


def test_independent_spots_would_call_a_third_of_them():
    rng = np.random.default_rng(0)
    weights = kernel(LAYOUTS["grid"], 3)
    test = spatial_test(sections(rng, weights), noisy(rng, sections(rng, weights)), np.full((576, 2), np.nan))
    assert np.mean(test.p < 0.05) > 0.25


@pytest.mark.parametrize("smoothness", [1, 2.5])
def test_power_is_that_of_who_knows_how_smooth_the_maps_are(smoothness):
    """Of genes of true correlation 0.2, 0.3 and 0.4, about as many as with the true correlations between spots."""
    xy = LAYOUTS["grid"]
    weights = kernel(xy, smoothness)
    effective = true_effective(weights)
    rng = np.random.default_rng(0)
    predicted, rest = sections(rng, weights), noisy(rng, sections(rng, weights))
    shares, oracle = [], []
    for strength in (0.2, 0.3, 0.4):
        test = spatial_test(predicted, strength * predicted + np.sqrt(1 - strength**2) * rest, xy)
        shares.append(np.mean(test.p < 0.05))
        t = test.r * np.sqrt((effective - 2) / (1 - test.r**2))
        oracle.append(np.mean(stats.t.sf(t, effective - 2) < 0.05))
    assert (np.array(shares) > np.array(oracle) - 0.07).all()
    assert (np.diff(shares) > 0).all()
    assert shares[-1] > 0.7


# ---------------------------------------------------------------------------------------------------------- the number


def literal(predicted, measured, xy, given=None):
    """`effective_spots` of one gene, with n x n matrices."""
    n = len(xy)
    regressors = np.ones((n, 1)) if given is None else np.column_stack([np.ones(n), given])
    out = np.eye(n) - regressors @ np.linalg.pinv(regressors)
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1)) / spot_pitch(xy)
    classes = [np.eye(n)]
    classes += [(np.maximum(np.round(distance), 1) == k) & ~np.eye(n, dtype=bool) for k in range(1, 21)]
    classes = [each.astype(float) / np.sqrt(each.sum()) for each in classes if each.any()]
    p, m = (standardised(out @ side) for side in (predicted, measured))
    own = [out @ each @ out for each in classes]
    scale, axes = np.linalg.eigh([[np.sum(c * d) for d in own] for c in own])
    inverse = axes @ np.diag(1 / np.maximum(scale, 0.5)) @ axes.T
    trace = np.array([p @ c @ p for c in classes]) @ inverse @ np.array([m @ c @ m for c in classes])
    return 1 + n**2 / max(trace, n**2 / (n - 1))


@pytest.mark.parametrize("smoothness", [0, 1.5, 3])
def test_effective_spots_equal_their_definition(smoothness, monkeypatch):
    monkeypatch.setattr(spots, "_LEFT_AT_ONCE", 50)
    xy = ragged()[:120] * 287 + 1000
    rng = np.random.default_rng(0)
    weights = kernel(xy / 287, smoothness)
    predicted, measured, depth = maps(rng, weights, 3), noisy(rng, maps(rng, weights, 3)), maps(rng, weights, 1)[:, 0]
    want = [literal(predicted[:, i], measured[:, i], xy) for i in range(3)]
    assert effective_spots(predicted, measured, xy) == pytest.approx(want, rel=1e-4)
    want = [literal(predicted[:, i], measured[:, i], xy, depth) for i in range(3)]
    assert spatial_test(predicted, measured, xy, given=depth).effective == pytest.approx(want, rel=1e-4)


def test_effective_spots_know_the_true_correlations_between_spots():
    """Plain correlograms up to 12 pitches say a quarter more."""
    weights = kernel(LAYOUTS["grid"], 4)
    rng = np.random.default_rng(0)
    got = effective_spots(sections(rng, weights), noisy(rng, sections(rng, weights)), LAYOUTS["grid"])
    assert 1 + 1 / np.mean(1 / (got - 1)) == pytest.approx(true_effective(weights), rel=0.1)


def test_nothing_depends_on_the_order_of_spots_or_on_units():
    xy = hexagons(16)
    rng = np.random.default_rng(0)
    weights = kernel(xy, 2)
    predicted, measured, depth = maps(rng, weights, 8), maps(rng, weights, 8), maps(rng, weights, 1)[:, 0]
    mixed = rng.permutation(len(xy))
    for given in (None, depth):
        want = spatial_test(predicted, measured, xy, given=given)
        for same in (
            spatial_test(
                predicted[mixed], measured[mixed], xy[mixed], given=None if given is None else 9 * given[mixed] - 4
            ),
            spatial_test(3 * predicted + 7, 0.1 * measured - 2, 287 * xy[:, ::-1] - 1e4, given=given),
        ):
            np.testing.assert_allclose(same.p, want.p, rtol=1e-3)
            np.testing.assert_allclose(same.effective, want.effective, rtol=1e-3)
    assert spatial_test(-predicted, measured, xy).z == pytest.approx(-spatial_test(predicted, measured, xy).z)


def test_many_spots_are_sampled(monkeypatch):
    noise = np.random.default_rng(0).normal(size=(2, 40, 40, 20))
    predicted, measured = gaussian_filter(noise, (0, 2, 2, 0)).reshape(2, 1600, 20)
    some = effective_spots(predicted, measured, grid(40))
    monkeypatch.setattr(spots, "_MOST_LEFT", 1600)
    every = effective_spots(predicted, measured, grid(40))
    assert some == pytest.approx(every, rel=0.15)
    assert some.mean() == pytest.approx(every.mean(), rel=0.03)
    assert (some != every).all()


@pytest.mark.parametrize("n", [5, 12, 60, 400])
def test_independent_spots_give_the_t_test_of_scipy(n):
    rng = np.random.default_rng(n)
    predicted, measured = rng.normal(size=(2, n, 30))
    measured += 0.3 * predicted
    test = spatial_test(predicted, measured, np.full((n, 2), np.nan))
    want = [stats.pearsonr(predicted[:, i], measured[:, i], alternative="greater") for i in range(30)]
    assert test.r == pytest.approx([each.statistic for each in want])
    assert test.p == pytest.approx([each.pvalue for each in want], abs=0.003)
    assert test.effective.tolist() == [n] * 30


@pytest.mark.filterwarnings("error")
def test_columns_that_cannot_be_tested():
    xy = grid(5)
    predicted, measured = np.random.default_rng(0).normal(size=(2, 25, 6)).astype(np.float32)
    want = spatial_test(predicted, measured, xy)
    predicted[:, 0] = 0.1
    measured[:, 1] = 3
    predicted[:, 2] = measured[:, 3] = np.nan
    predicted[4, 4] = np.nan
    got = spatial_test(predicted, measured, xy)
    assert got.p[:2].tolist() == [1, 1]
    assert got.r[:2].tolist() == got.effective[:2].tolist() == [0, 0]
    for values in (got.r, got.effective, got.z, got.p):
        assert np.isnan(values).tolist() == [False, False, True, True, True, False]
    assert got.p[5] == pytest.approx(want.p[5], rel=1e-5)
    for n in (0, 3):
        assert np.isnan(spatial_test(predicted[:n], measured[:n], xy[:n], given=xy[:n, 0]).p).all()


def test_what_is_held_fixed_explains_nothing_more():
    xy = grid(12)
    rng = np.random.default_rng(0)
    depth = rng.normal(size=144)
    measured = depth[:, None] + 0.3 * rng.normal(size=(144, 5))
    alone = (5 + 0.1 * np.tile(depth[:, None], 5)).astype(np.float32)
    assert (spatial_test(alone, measured, xy).p < 1e-6).all()
    assert spatial_test(alone, measured, xy, given=depth).p.tolist() == [1] * 5
    helped = depth[:, None] + measured
    want = [stats.pearsonr(*(np.polyval(np.polyfit(depth, v, 1), depth) - v for v in (helped[:, 0], measured[:, 0])))]
    assert spatial_test(helped, measured, xy, given=depth).r[0] == pytest.approx(want[0].statistic)
    # one covariate twice is one, and a spot where it is unknown is left out
    both = spatial_test(helped, measured, xy, given=np.stack([depth, 2 * depth], axis=1))
    np.testing.assert_allclose(both.p, spatial_test(helped, measured, xy, given=depth).p)
    unknown = np.where(np.arange(144) == 7, -np.inf, depth)
    kept = np.arange(144) != 7
    want = spatial_test(helped[kept], measured[kept], xy[kept], given=depth[kept])
    np.testing.assert_allclose(spatial_test(helped, measured, xy, given=unknown).p, want.p)


def test_sections_add_up():
    z, effective = np.array([1.2, 0.3, np.nan, 0, 2]), np.array([90.0, 20, np.nan, 0, 50])
    one = SpatialTest(z, effective, z, stats.norm.sf(z))
    two = SpatialTest(z, effective, np.array([0.5, np.nan, np.nan, 0, -2]), z)
    p = stouffer([one, two])
    assert p[0] == pytest.approx(stats.norm.sf(1.7 / np.sqrt(2)))
    assert p[[1, 3, 4]] == pytest.approx([stats.norm.sf(0.3), 1, 0.5])
    assert np.isnan(p[2])
    want = stats.combine_pvalues([0.02, 0.4], "stouffer", weights=[3, 2]).pvalue
    small = [SpatialTest(*np.array([[0], [n], [stats.norm.isf(p)], [p]])) for n, p in ((9, 0.02), (4, 0.4))]
    assert stouffer(small)[0] == pytest.approx(want)


# ---------------------------------------------------------------------------------------------------------- intervals


def test_partial_correlations_are_those_of_the_drawn_spots():
    xy = grid(9)
    rng = np.random.default_rng(0)
    depth = rng.normal(size=81)
    predicted, measured = rng.normal(size=(2, 81, 4)) + depth[:, None]
    predicted[:, 2] = 3 * depth
    measured[:, 3] = np.nan
    of_spot, drawn = block_bootstrap(xy, repeats=20)
    got = bootstrap_partial(predicted, measured, depth, of_spot, drawn)
    for repeat, times in enumerate(drawn[:, of_spot]):
        rows = np.repeat(np.arange(81), times)
        want = pearson(*(residuals(side[rows][:, :2], depth[rows]) for side in (predicted, measured)))
        assert got[repeat, :2] == pytest.approx(want)
    assert (got[:, 2] == 0).all()
    assert np.isnan(got[:, 3]).all()


@pytest.mark.parametrize("smoothness", [0, 2.5])
def test_intervals_hold_the_truth(smoothness):
    """Of each gene and of the median; blocks alone hold the median in four of five sections at most."""
    xy, strength, number = grid(18), np.linspace(0, 0.5, 30), 50
    weights = kernel(xy, smoothness)
    rng = np.random.default_rng(1)
    loadings = rng.normal(size=(2, 4, 30))
    loadings /= np.sqrt((loadings**2).sum(axis=1, keepdims=True))
    drawn = []
    for _ in range(number):
        predicted, rest = (weights @ rng.normal(size=(weights.shape[1], 4)) @ each for each in loadings)
        drawn.append((predicted, strength * predicted + np.sqrt(1 - strength**2) * noisy(rng, rest)))
    scores = np.array([pearson(*section) for section in drawn])
    effective = effective_spots(*(np.concatenate(side, axis=1) for side in zip(*drawn, strict=True)), xy)
    effective = effective.reshape(number, 30)
    low, high = fisher_interval(scores, effective)
    assert np.mean((low <= scores.mean(axis=0)) & (scores.mean(axis=0) <= high)) == pytest.approx(0.95, abs=0.025)
    medians = np.median(scores, axis=1)
    blocks = block_bootstrap(xy, repeats=300)
    held = {"blocks": [], "widened": []}
    for section, median, own in zip(drawn, medians, effective, strict=True):
        samples = bootstrap_pearson(*section, *blocks)
        for name, widen in (("blocks", 1), ("widened", widening(samples, own))):
            low, high = interval_of(np.median(samples, axis=1), median, widen)
            held[name].append(low <= medians.mean() <= high)
    assert np.mean(held["widened"]) > 0.88
    assert smoothness == 0 or np.mean(held["blocks"]) < 0.85
    assert simulated_coverage(xy, *drawn[0]) == pytest.approx(np.mean(held["widened"]), abs=0.12)


def test_widening_is_the_ratio_of_two_standard_errors():
    samples = np.tanh(0.1 * np.random.default_rng(0).normal(size=(4000, 5)))
    assert widening(samples, np.full(5, 28.0)) == pytest.approx(2, rel=0.03)
    assert widening(samples, np.array([28.0, 28, 28, np.nan, 0])) == pytest.approx(2, rel=0.03)
    assert widening(samples, np.full(5, 1000.0)) == 1
    assert widening(np.zeros((9, 2)), np.full(2, 30.0)) == widening(samples[:, :0], np.empty(0)) == 1


def test_an_interval_is_about_its_value():
    samples = np.random.default_rng(0).normal(0.3, 0.1, 20_000)
    assert interval_of(samples, 0.2) == pytest.approx([0.2 - 0.196, 0.2 + 0.196], abs=0.01)
    assert interval_of(samples, 0.2, 2) == pytest.approx([0.2 - 0.392, 0.2 + 0.392], abs=0.02)
    assert interval_of(np.zeros(9), 0, 3) == [0, 0]
    low, high = fisher_interval(np.array([0.5, 0.5, np.nan]), np.array([28.0, 0, 28]))
    assert (low[0], high[0]) == pytest.approx((0.156, 0.736), abs=0.001)
    assert (low[1], high[1]) == pytest.approx((-1, 1))
    assert np.isnan(low[2])


def test_coverage_that_cannot_be_simulated_is_not_stated():
    values = np.random.default_rng(0).normal(size=(25, 3))
    assert simulated_coverage(np.full((25, 2), np.nan), values, values) is None
    assert simulated_coverage(grid(5), np.ones((25, 3)), values) is None
    assert simulated_coverage(grid(5), values * np.nan, values) is None
    assert simulated_coverage(grid(5)[:3], values[:3], values[:3]) is None
    # a perfect prediction leaves nothing to chance
    assert simulated_coverage(grid(5), values, values) == 1
