import json
import math
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from tcgn_hub.correlation import pearson, spearman
from tcgn_hub.data.targets import pearson_residuals
from tcgn_hub.errors import SectionError
from tcgn_hub.evaluation import spots
from tcgn_hub.evaluation.baselines import (
    PENALTIES,
    color_texture_features,
    depth_predict,
    mean_predict,
    ridge_predict,
)
from tcgn_hub.evaluation.ceiling import noise_ceiling
from tcgn_hub.evaluation.evaluate import summarise
from tcgn_hub.evaluation.intervals import block_bootstrap, bootstrap_pearson
from tcgn_hub.evaluation.metrics import nrmse, rmse
from tcgn_hub.evaluation.tables import section_table, tables
from tcgn_hub.result import Measured


def ends(samples):
    """Of the interval that 95 % of bootstrap samples lie in."""
    return np.quantile(samples, [0.025, 0.975], axis=0)


def grid(side, pitch=287.0):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * pitch


@contextmanager
def peak():
    """Tells how many bytes were used at most."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def times(xy, **options):
    """How often each spot is drawn in each repeat, shape (repeats, spots)."""
    of_spot, drawn = block_bootstrap(xy, **options)
    return drawn[:, of_spot].astype(float)


# ----------------------------------------------------------------------------------------------------------- metrics


def test_pearson_equals_numpy():
    rng = np.random.default_rng(0)
    p, m = rng.normal(size=(2, 30, 5))
    want = [np.corrcoef(p[:, i], m[:, i])[0, 1] for i in range(5)]
    assert pearson(p, m) == pytest.approx(want)
    assert pearson(3 * p + 1, m) == pytest.approx(want)


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_spearman_equals_scipy(levels):
    p, m = np.random.default_rng(levels).integers(0, levels, (2, 30, 5)).astype(np.float32)
    assert spearman(p, m) == pytest.approx([stats.spearmanr(p[:, i], m[:, i]).statistic for i in range(5)])


@pytest.mark.parametrize("correlation", [pearson, spearman])
# the mean of many times 0.1 is not 0.1
@pytest.mark.parametrize("constant", [1.0, 0.1, np.float32(0.1)])
def test_constant_gene_has_no_correlation(correlation, constant):
    other = np.random.default_rng(0).normal(size=(37, 1))
    assert correlation(np.full((37, 1), constant), other).tolist() == [0]
    assert correlation(other, np.full((37, 1), constant)).tolist() == [0]


def test_errors_are_in_units_of_the_measurement_and_of_its_spread():
    m = np.random.default_rng(0).normal(3, 2, (50, 4))
    assert rmse(m + 0.5, m) == pytest.approx(0.5)
    assert nrmse(np.tile(m.mean(axis=0), (50, 1)), m) == pytest.approx(1)
    assert nrmse(m + 0.5, m) == pytest.approx(0.5 / m.std(axis=0))
    assert np.isnan(nrmse(m, np.ones((50, 4)))).all()


@pytest.mark.parametrize("metric", [pearson, spearman, rmse, nrmse])
def test_genes_that_were_not_measured(metric):
    p, m = np.random.default_rng(0).normal(size=(2, 20, 3))
    want = metric(p, m)
    m[:, 1] = np.nan
    got = metric(p, m)
    assert np.isnan(got).tolist() == [False, True, False]
    assert got[[0, 2]] == pytest.approx(want[[0, 2]])


# --------------------------------------------------------------------------------------------------------- bootstrap


@pytest.mark.parametrize("block", [1, 2])
def test_correlations_are_those_of_the_drawn_spots(monkeypatch, block):
    monkeypatch.setattr(spots, "_VALUES_AT_ONCE", 50)
    rng = np.random.default_rng(0)
    p, m = rng.normal(5, 1, (2, 49, 5)).astype(np.float32)
    m[:, 1] = np.nan
    m[:, 2] = 0
    # measured in one spot only, and so constant among the drawn where that is not drawn
    m[:, 4] = np.eye(49)[0]
    mixed = rng.permutation(49)
    of_spot, drawn = block_bootstrap(grid(7)[mixed], repeats=20, block=block)
    assert drawn.shape == (20, {1: 49, 2: 16}[block])
    rows = [np.repeat(np.arange(49), number) for number in drawn[:, of_spot]]
    got = bootstrap_pearson(p, m, of_spot, drawn)
    assert got == pytest.approx(np.array([pearson(p[i], m[i]) for i in rows]), nan_ok=True, abs=1e-9)
    assert (got[:, 4] == 0).any()
    assert np.isnan(got[:, 1]).all()


def test_parts_change_nothing(monkeypatch):
    xy = grid(30) + np.random.default_rng(0).uniform(-40, 40, (900, 2))
    want = block_bootstrap(xy, repeats=50, seed=(1, 2))
    monkeypatch.setattr(spots, "_VALUES_AT_ONCE", 700)
    for got, array in zip(block_bootstrap(xy, repeats=50, seed=(1, 2)), want, strict=True):
        assert np.array_equal(got, array)
    # blocks are 3 pitches wide, and the pitch is the median distance of nearest neighbours
    nearest, _ = KDTree(xy).query(xy[np.linspace(0, 899, 500).astype(int)], 2)
    assert spots.spot_pitch(xy) == pytest.approx(np.median(nearest[:, 1]), rel=1e-12)


def test_the_memory_of_the_bootstrap_does_not_grow_with_spots_times_repeats():
    spots, repeats = 40_000, 300
    p, m = np.random.default_rng(0).normal(size=(2, spots, 3)).astype(np.float32)
    xy = grid(200)
    with peak() as used:
        of_spot, drawn = block_bootstrap(xy, repeats=repeats)
        samples = bootstrap_pearson(p + m, m, of_spot, drawn)
    assert samples.shape == (repeats, 3)
    # as a matrix of spots it had 96 MB, and the distances of 500 spots to all 640 MB
    assert used() < 60e6


def test_blocks_are_drawn_whole():
    side = 12
    weights = times(grid(side), repeats=50).reshape(50, side, side)
    assert weights.sum(axis=(1, 2)).tolist() == [side**2] * 50
    blocks = weights.reshape(50, 4, 3, 4, 3).swapaxes(2, 3).reshape(50, 16, 9)
    assert (blocks == blocks[..., :1]).all()
    assert blocks[..., 0].std() > 0.5


def test_blocks_of_a_grid_do_not_depend_on_units_and_jitter():
    want = times(grid(12)).tolist()
    jitter = np.random.default_rng(0).uniform(-4, 4, (144, 2))
    assert times(grid(12) + jitter).tolist() == want
    assert times(grid(12, pitch=0.1) + 0.7).tolist() == want


@pytest.mark.parametrize(
    "xy", [np.full((20, 2), np.nan), np.zeros((20, 2)), np.where(np.eye(20)[:, :2] > 0, np.nan, grid(20)[:20])]
)
def test_single_spots_are_drawn_where_positions_are_unknown(xy):
    weights = times(xy, repeats=200)
    assert np.corrcoef(weights.T)[~np.eye(20, dtype=bool)].max() < 0.4


@pytest.mark.parametrize("spots", [1, 2, 4, 16])
def test_few_spots_give_smaller_blocks(spots):
    weights = times(grid(4)[:spots], repeats=20)
    assert weights.shape == (20, spots)
    assert len(np.unique(weights, axis=1)[0]) >= min(spots, 2)
    # 16 spots are 4 blocks of 3 x 3 or of 2 x 2, so single spots are drawn
    assert spots == 1 or len({tuple(row) for row in weights.tolist()}) > 1


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shared, p, m = rng.normal(size=(3, 196, 800))
    low, high = ends(bootstrap_pearson(p + shared, m + shared, *block_bootstrap(grid(14), repeats=400)))
    assert ((low < 0.5) & (high > 0.5)).mean() == pytest.approx(0.94, abs=0.025)


def test_blocks_know_that_neighbours_are_alike():
    rng = np.random.default_rng(0)
    p, m = (gaussian_filter(rng.normal(size=(18, 18, 300)), (1, 1, 0)).reshape(324, 300) for _ in range(2))
    covered = []
    for xy in (grid(18), np.full((324, 2), np.nan)):
        low, high = ends(bootstrap_pearson(p, m, *block_bootstrap(xy, repeats=300)))
        covered.append(((low < 0) & (high > 0)).mean())
    assert covered[0] > 0.8 > 0.65 > covered[1]


# ----------------------------------------------------------------------------------------------------- noise ceiling


def poisson_section(rng, side=16, genes=60, depth=600):
    """Counts of a known expression, and the targets of both."""
    level = rng.lognormal(0, 1, genes)
    truth = level * np.exp(rng.uniform(0, 0.8, genes) * rng.normal(size=(side**2, genes)))
    share = truth / truth.sum(axis=1, keepdims=True)
    counts = rng.poisson(share * depth * rng.lognormal(0, 0.3, (side**2, 1))).astype(np.float64)
    return share, counts, np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("depth", "agreement"), [(3000, 0.97), (600, 0.9)])
def test_the_ceiling_is_what_the_truth_reaches(depth, agreement):
    share, counts, targets = poisson_section(np.random.default_rng(0), side=30, depth=depth)
    reached = pearson(np.log10(1 + 1e4 * share), targets)
    ceiling = noise_ceiling(counts)
    assert np.median(ceiling - reached) == pytest.approx(0, abs=0.02)
    assert np.corrcoef(ceiling, reached)[0, 1] > agreement
    assert np.ptp(reached) > 0.5


def test_the_ceiling_of_nothing_is_0_and_of_many_counts_1():
    rng = np.random.default_rng(0)
    counts = np.stack([rng.integers(1, 9, 400) * 1e6, np.full(400, 1e6), rng.poisson(0.01, 400)], axis=1)
    ceiling = noise_ceiling(counts)
    assert ceiling[:2] == pytest.approx(1, abs=0.01)
    assert noise_ceiling(rng.poisson(3.0, (2000, 50)).astype(float)).mean() < 0.15
    assert noise_ceiling(np.array([[5.0, 0], [3, 0], [9, 0], [4, 0]])).tolist() == [0, 0]


def test_the_ceiling_needs_counts():
    _, counts, _ = poisson_section(np.random.default_rng(0), genes=5)
    want = noise_ceiling(counts)
    with_gap = np.insert(counts, 2, np.nan, axis=1)
    assert noise_ceiling(with_gap) == pytest.approx(np.insert(want, 2, np.nan), nan_ok=True)
    # a spot with one molecule leaves a half without counts
    assert noise_ceiling(np.vstack([counts, [1, 0, 0, 0, 0]])) == pytest.approx(want, abs=0.05)
    for bad in (counts + 0.5, counts - 1e6, counts * np.nan, np.eye(5)):
        assert np.isnan(noise_ceiling(bad)).all()


# --------------------------------------------------------------------------------------------------------- baselines


def test_ridge_finds_a_linear_relation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * 5 + 3
    y = x @ rng.normal(size=(6, 3)) + 2
    assert pearson(ridge_predict(x[:150], y[:150], x[150:], penalty=0.1), y[150:]) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("shape", [(200, 6), (40, 90)])
@pytest.mark.parametrize("penalty", [1.0, 1e4])
def test_ridge_is_that_of_scikit_learn(shape, penalty):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x, test = rng.normal(3, 2, shape).astype(np.float32), rng.normal(3, 2, (20, shape[1])).astype(np.float32)
    y = rng.normal(size=(shape[0], 4))
    mean, std = x.mean(axis=0), x.std(axis=0)
    want = linear_model.Ridge(alpha=penalty).fit((x - mean) / std, y).predict((test - mean) / std)
    assert ridge_predict(x, y, test, penalty=penalty) == pytest.approx(want, abs=1e-5)


def test_the_penalty_is_the_one_that_predicts_parts_left_out_best():
    rng = np.random.default_rng(0)
    parts = np.repeat([0, 1, 2], 40)
    x, test = rng.normal(size=(120, 200)), rng.normal(size=(60, 200))
    chosen = {}
    for noise in (0.1, 30.0):
        weights = rng.normal(size=(200, 5))
        y = x @ weights + noise * rng.normal(size=(120, 5))
        y[40:80, 2] = np.nan
        scores = []
        for penalty in PENALTIES:
            left_out = [
                pearson(ridge_predict(x[parts != i], y[parts != i], x[parts == i], penalty=penalty), y[parts == i])
                for i in range(3)
            ]
            scores.append(sum(np.nanmedian(pcc) for pcc in left_out))
        chosen[noise] = PENALTIES[int(np.argmax(scores))]
        want = ridge_predict(x, y, test, penalty=chosen[noise])
        assert ridge_predict(x, y, test, parts=parts) == pytest.approx(want, abs=1e-9)
        # what a part is called, and the order of the spots, change nothing
        mixed = rng.permutation(120)
        assert ridge_predict(x[mixed], y[mixed], test, parts=7 - parts[mixed]) == pytest.approx(want, abs=1e-7)
    assert chosen[0.1] < chosen[30.0]


def test_a_penalty_can_be_chosen_without_parts_to_leave_out():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 3))
    want = ridge_predict(x, y, x, penalty=PENALTIES[len(PENALTIES) // 2])
    assert ridge_predict(x, y, x, parts=np.zeros(30)) == pytest.approx(want)


def test_depth_predicts_what_follows_it_and_nothing_else():
    rng = np.random.default_rng(0)
    depth, other = rng.normal(3, 0.5, 300), rng.normal(3, 0.5, 200)
    slopes = np.array([1.0, -2.0, 0.0])
    noise = rng.normal(size=(300, 3))
    predicted = depth_predict(depth, depth[:, None] * slopes + 0.1 * noise, other)
    assert predicted == pytest.approx(other[:, None] * slopes, abs=0.1)
    want = [
        np.polyval(np.polyfit(depth, depth * slope + 0.1 * noise[:, i], 1), other) for i, slope in enumerate(slopes)
    ]
    assert predicted == pytest.approx(np.stack(want, axis=1), abs=1e-6)
    gaps = np.where(np.arange(300) % 3 == 0, np.nan, depth)
    targets = depth[:, None] * slopes
    targets[:100, 1] = np.nan
    with_gaps = depth_predict(gaps, targets, np.append(other, np.nan))
    assert with_gaps[:-1] == pytest.approx(other[:, None] * slopes, abs=1e-5)
    assert np.isnan(with_gaps[-1]).all()


def test_residuals_of_counts_are_of_mean_0_and_variance_1_where_only_chance_varies():
    rng = np.random.default_rng(0)
    depth = rng.lognormal(0, 0.5, (500, 1))
    counts = rng.poisson(depth * rng.lognormal(1, 1, 80)).astype(float)
    counts[:, 3] = np.nan
    counts[:, 4] = 0
    residuals = pearson_residuals(counts)
    assert np.isnan(residuals[:, 3]).all()
    assert (residuals[:, 4] == 0).all()
    usual = np.delete(residuals, [3, 4], axis=1)
    assert usual.mean(axis=0) == pytest.approx(0, abs=0.1)
    assert np.median(usual.var(axis=0)) == pytest.approx(1, abs=0.1)
    # counts ten times as many spread more than chance has it
    assert pearson_residuals(10 * np.nan_to_num(counts)).var(axis=0).mean() > 2


def test_baselines_fit_a_gene_on_the_spots_that_have_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 5))
    y[:, :2] += x[:, :2]
    gaps = y.copy()
    gaps[:20, 1] = gaps[:20, 4] = gaps[:, 3] = np.nan
    ridge, mean = ridge_predict(x, gaps, x), mean_predict(gaps, 7)
    assert mean.shape == (7, 5)
    for genes, rows in (([0, 2], slice(None)), ([1, 4], slice(20, None))):
        assert ridge[:, genes] == pytest.approx(ridge_predict(x[rows], y[rows][:, genes], x))
        assert mean[0, genes] == pytest.approx(y[rows][:, genes].mean(axis=0))
    assert np.isnan(ridge[:, 3]).all()
    assert np.isnan(mean[:, 3]).all()


def test_features_see_colour_but_not_rotation_of_a_flat_crop():
    flat = np.full((1, 3, 112, 112), 100, np.uint8)
    red = flat.copy()
    red[:, 0] = 200
    assert color_texture_features(flat).shape == (1, 32)
    assert not np.allclose(color_texture_features(flat), color_texture_features(red))


# ----------------------------------------------------------------------------------------------------------- summary

GENES = [f"G{i}" for i in range(60)]


def section(name, *, seed, side=12, patient=None, noise=1.0, blind=20, **changes):
    """Predictions that follow the truth, but for the last ``blind`` genes; ridge is noisier, the mean off by 1."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(3, 1, (side**2, len(GENES))).astype(np.float32)
    seen = targets - 3
    seen[:, len(GENES) - blind :] = 0
    values = {
        "name": name,
        "patient": patient or name[0],
        "xy": grid(side),
        "targets": targets,
        "predicted": 3 + seen + noise * rng.normal(size=targets.shape),
        "baselines": {"ridge": 3 + seen + 3 * rng.normal(size=targets.shape), "mean": np.full(targets.shape, 4.0)},
        "counts": rng.poisson(50, targets.shape).astype(float),
    }
    return Measured(**{**values, **changes})


@pytest.fixture(scope="module")
def evaluation():
    return summarise([section("B1", seed=1), section("C1", seed=2), section("C2", seed=3, side=9)], GENES, repeats=300)


def test_the_summary_knows_what_was_simulated(evaluation):
    for values in (evaluation.summary, *evaluation.summary["sections"].values()):
        low, high = values["median_pcc_interval"]
        assert low < values["median_pcc"] < high
        assert values["median_spearman"] == pytest.approx(values["median_pcc"], abs=0.1)
        ridge, mean = values["methods"]["ridge"], values["methods"]["mean"]
        low, high = ridge["gain_interval"]
        assert 0 < low < ridge["gain"] < high
        assert ridge["gain"] == pytest.approx(values["median_pcc"] - ridge["median_pcc"])
        assert mean["median_rmse"] == pytest.approx(math.sqrt(2), abs=0.1)
        assert mean["median_pcc"] == mean["significant_genes"] == 0
        assert values["median_nrmse"] == pytest.approx(values["median_rmse"], abs=0.1)
        # nothing but chance is in the counts
        assert values["median_ceiling"] < 0.4
        assert values["share_significant"] == values["significant_genes"] / 60
    assert evaluation.summary["spots"] == 144 + 144 + 81
    assert evaluation.summary["sections"]["C2"]["patient"] == "C"
    rows = evaluation.per_gene
    assert [row["gene"] for row in rows] == GENES
    # 1 / sqrt(2) of signal and noise of the same size
    assert np.mean([row["pcc"] for row in rows[:40]]) == pytest.approx(math.sqrt(0.5), abs=0.02)
    assert np.mean([row["pcc"] for row in rows[40:]]) == pytest.approx(0, abs=0.03)
    assert all(row["pcc_low"] < row["pcc"] < row["pcc_high"] for row in rows)
    assert set(GENES[:40]) <= set(evaluation.summary["significant"])
    assert len(evaluation.summary["significant"]) <= 43
    assert evaluation.summary["significant"] == [row["gene"] for row in rows if row["significant"]]


def test_a_gene_is_the_mean_over_sections(evaluation):
    values = [
        summarise([section(name, seed=seed, side=side)], GENES, repeats=2).per_gene
        for name, seed, side in (("B1", 1, 12), ("C1", 2, 12), ("C2", 3, 9))
    ]
    for key in ("pcc", "spearman", "rmse", "nrmse", "pcc ridge", "one_factor", "pcc_given_depth", "ceiling"):
        want = [np.mean([rows[i][key] for rows in values]) for i in range(60)]
        assert [row[key] for row in evaluation.per_gene] == pytest.approx(want)
    # more sections, less chance
    width = [
        np.mean([row["pcc_high"] - row["pcc_low"] for row in each.per_gene])
        for each in (evaluation, summarise([section("B1", seed=1)], GENES, repeats=300))
    ]
    assert width[0] < 0.75 * width[1]


def test_each_section_has_draws_of_its_own():
    twins = summarise([section("B1", seed=1), section("C1", seed=1)], GENES, repeats=50).summary["sections"]
    assert twins["B1"]["median_pcc"] == twins["C1"]["median_pcc"]
    assert twins["B1"]["median_pcc_interval"] != twins["C1"]["median_pcc_interval"]


def test_the_gain_is_paired():
    one = section("C6", seed=0)
    same = summarise([section("C6", seed=0, baselines={"ridge": one.predicted})], GENES, repeats=50).summary
    assert same["methods"]["ridge"]["gain"] == 0
    assert same["methods"]["ridge"]["gain_interval"] == [0, 0]
    assert same["ranking"][1]["behind_interval"] == [0, 0]
    assert same["median_pcc_interval"][0] < same["median_pcc_interval"][1]


def test_whoever_predicts_easy_genes_alone_is_not_ranked_first():
    one = section("C6", seed=0)
    easy = np.full_like(one.predicted, np.nan)
    best = np.argsort(-pearson(one.predicted, one.targets))[:10]
    easy[:, best] = one.predicted[:, best] + 0.5 * np.random.default_rng(0).normal(size=(len(easy), 10))
    few = section("C6", seed=0, predictions={"few": easy})
    evaluation = summarise([few], GENES, repeats=50)
    summary = evaluation.summary
    assert summary["methods"]["few"]["median_pcc"] > summary["median_pcc"]
    first = next(row for row in summary["ranking"] if row["label"] == "TCGN")
    second = next(row for row in summary["ranking"] if row["label"] == "few")
    assert summary["ranking"].index(first) < summary["ranking"].index(second)
    assert (first["genes"], second["genes"], second["shared_genes"]) == (60, 10, 10)
    assert all(row["behind"] >= 0 for row in summary["ranking"][1:])
    assert "by the 10 genes that all of them predict" in tables(evaluation).replace("\n", " ")


def test_without_counts_significance_is_said_to_be_of_the_pcc():
    note = "not given depth"
    assert note not in tables(summarise([section("C6", seed=0)], GENES, repeats=20))
    unknown = summarise([replace(section("C6", seed=0), counts=None)], GENES, repeats=20)
    assert unknown.summary["significant_genes"] == unknown.summary["significant_genes_pcc"] > 0
    assert note in tables(unknown)


def test_depth_that_is_predicted_is_measured():
    rng = np.random.default_rng(0)
    sections, drawn = [], {}
    for name, noise in (("A1", 0.5), ("B1", 2.0)):
        own = section(name, seed=1, blind=0)
        level, biology = rng.normal(size=(144, 1)), rng.normal(size=(144, len(GENES)))
        counts = rng.multinomial(1000, np.full(60, 1 / 60), 144) * np.round(10 + 3 * level).clip(1)
        measured = np.log10(1 + counts.sum(axis=1))
        targets = biology + 2 * (measured - measured.mean())[:, None] / measured.std()
        targets[:, 3] = np.nan if name == "A1" else targets[:, 3]
        slope = rng.uniform(1, 3, len(GENES))
        predicted_depth = level[:, 0] + noise * rng.normal(size=144)
        predicted = biology + slope * predicted_depth[:, None]
        own = replace(own, targets=targets, predicted=predicted, counts=counts.astype(float))
        sections.append(replace(own, predicted_depth=predicted_depth, depth_slope=slope))
        drawn[name] = np.corrcoef(predicted_depth, measured)[0, 1]
    found = summarise(sections, GENES, repeats=2).summary
    assert {name: part["depth_pcc"] for name, part in found["sections"].items()} == pytest.approx(drawn)
    assert found["depth_pcc"] == pytest.approx(np.mean(list(drawn.values())))
    # what is left of the predictions is what is left of the measurement
    assert found["median_pcc_of_given_depth"] > 0.99
    assert found["median_pcc"] < 0.9
    unknown = summarise([replace(sections[0], predicted_depth=None)], GENES, repeats=2).summary
    assert unknown["depth_pcc"] is unknown["median_pcc_of_given_depth"] is None


def test_genes_and_spots_without_measurement():
    part = section("B1", seed=1)
    part.targets[:, 0] = part.counts[:, 0] = np.nan
    part.targets[:, 1] = np.nan
    part.baselines["ridge"][:, 2] = np.nan
    part.targets[5] = np.nan
    full = section("C1", seed=2)
    full.targets[:, 1] = np.nan
    evaluation = summarise([part, full], GENES, repeats=20)
    alone = summarise([full], GENES, repeats=20)
    assert evaluation.per_gene[0]["pcc"] == alone.per_gene[0]["pcc"]
    assert evaluation.per_gene[0]["p"] is not None
    unknown = evaluation.per_gene[1]
    assert {key for key, value in unknown.items() if value is None} >= {"pcc", "pcc_low", "rmse", "nrmse", "p"}
    assert unknown["significant"] is False
    assert evaluation.summary["sections"]["B1"]["spots"] == 143
    assert evaluation.summary["spots"] == 143 + 144
    assert evaluation.summary["sections"]["B1"]["median_pcc"] > 0.3
    assert np.isnan(evaluation.pcc["B1"]["TCGN"]).sum() == 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"baselines": {}, "counts": None, "xy": np.full((144, 2), np.nan)},
        {"targets": np.full((144, 60), np.nan)},
        {"targets": np.ones((144, 60))},
        {"predicted": np.ones((144, 60)), "counts": np.zeros((144, 60))},
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_summary_is_json_without_nan(changes):
    evaluation = summarise([section("B1", seed=1, **changes), section("C1", seed=1, **changes)], GENES, repeats=20)
    for value in (evaluation.summary, evaluation.per_gene):
        assert json.loads(json.dumps(value, allow_nan=False)) == value


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("spots", [0, 1, 3])
def test_a_few_spots_have_no_correlations(spots):
    small, large = section("B1", seed=1), section("C1", seed=2)
    small.targets[spots:] = np.nan
    evaluation = summarise([small, large], GENES, repeats=20)
    values = evaluation.summary["sections"]["B1"]
    assert "fewer than 4 spots" in values["note"]
    assert values["median_pcc"] is values["median_pcc_interval"] is values["share_significant"] is None
    assert (values["median_rmse"] is None) == (spots == 0)
    assert evaluation.summary["median_pcc"] == evaluation.summary["sections"]["C1"]["median_pcc"]
    assert "B1: fewer than 4 spots" in section_table(evaluation)
    assert summarise([small], GENES, repeats=20).summary["median_pcc"] is None


def test_sections_are_given_once():
    with pytest.raises(SectionError, match="There is no section"):
        summarise([], GENES)
    with pytest.raises(SectionError, match="C6 is to be measured twice"):
        summarise([section("C6", seed=0), section("B1", seed=1), section("C6", seed=2)], GENES)


def test_the_table_is_aligned_and_the_same_in_markdown(evaluation):
    table, markdown = section_table(evaluation).split("\n\n"), section_table(evaluation, markdown=True).split("\n\n")
    lines = table[0].splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines] == ["section", "B1", "C1", "C2", "all"]
    assert "2 patients" in lines[-1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown[0].splitlines()]
    assert {len(row) for row in rows} == {12}
    for line, row in zip(lines, [rows[0], *rows[2:]], strict=True):
        assert "".join(row).replace(" ", "") == line.replace(" ", "")
    assert table[1] == markdown[1]
    low, high = evaluation.summary["median_pcc_interval"]
    assert f"{evaluation.summary['median_pcc']:.3f} [{low:.3f}, {high:.3f}]" in lines[-1]
    low, high = evaluation.summary["median_pcc_given_depth_interval"]
    assert f"{evaluation.summary['median_pcc_given_depth']:.3f} [{low:.3f}, {high:.3f}]" in lines[-1]
    assert f"in {evaluation.summary['interval_simulated']:.0%} of simulated sections" in table[1]


# ------------------------------------------------------------------------------------------------------------ marking


def test_nothing_is_marked_where_training_was_too_short():
    """Ridge predicts better, and errors are several times the spread: all genes would be called significant."""
    one = section("B1", seed=1)
    rng = np.random.default_rng(3)
    short = replace(one, predicted=one.targets * 0.5 + rng.normal(size=one.targets.shape) * 2 - 2.5)
    ridge = replace(short, baselines={**one.baselines, "ridge": one.predicted})
    rows = summarise([replace(short, baselines={})], GENES, repeats=50).per_gene
    assert np.median([row["pcc"] for row in rows]) > 0.2
    assert np.median([row["nrmse"] for row in rows]) > 4
    assert np.mean([row["p"] < 0.01 for row in rows]) > 0.5
    for measured, why in (
        (ridge, "ridge regression on colour and texture predicts better (median PCC 0."),
        (ridge, " and the mean of the training spots is nearer"),
        (replace(short, baselines={}), "errors are 4."),
        (replace(one, baselines={**one.baselines, "ridge": one.targets}), "ridge regression"),
    ):
        evaluation = summarise([measured, replace(measured, name="C1")], GENES, repeats=50)
        summary = evaluation.summary
        assert why in summary["not_marked_because"]
        assert summary["significant"] == []
        assert not any(row["significant"] for row in evaluation.per_gene)
        for values in (summary, *summary["sections"].values()):
            assert values["significant_genes"] == values["share_significant"] == 0
        for markdown in (False, True):
            line = section_table(evaluation, markdown=markdown).splitlines()[-1]
            assert line == f"No gene is marked significant: {summary['not_marked_because']}."


def test_a_level_that_nobody_could_know_is_no_reason_against_marking():
    one = section("B1", seed=1)
    # off by as much as the mean of the training spots is
    shifted = replace(
        one, predicted=one.predicted + 0.4, baselines={**one.baselines, "mean": one.baselines["mean"] + 0.4}
    )
    evaluation = summarise([shifted], GENES, repeats=50)
    assert evaluation.summary["median_nrmse"] > 1
    assert evaluation.summary["not_marked_because"] is None
    assert len(evaluation.summary["significant"]) > 30


@pytest.mark.parametrize("curve", [lambda d: -((d - d.mean()) ** 2), lambda d: -(10.0**-d)])
def test_no_curve_of_depth_is_significant(curve):
    """Counts without any biology: a share of each gene, and totals that differ from spot to spot.

    With a line of depth held fixed, 30 and 24 of the 60 genes would be called.
    """
    rng = np.random.default_rng(5)
    totals = np.round(10 ** (gaussian_filter(rng.normal(size=(18, 18)), 1.5).ravel() * 2.5) * 300).astype(int) + 20
    shares = rng.dirichlet(np.full(60, 0.4))
    counts = np.stack([rng.multinomial(total, shares) for total in totals]).astype(float)
    targets = np.log10(1 + 1e4 * counts / counts.sum(axis=1, keepdims=True))
    drawn = curve(np.log10(1 + counts.sum(axis=1)))
    # in units of the measurement, so that its errors are no reason against marking
    predicted = targets.mean(axis=0) + 0.1 * targets.std(axis=0) * ((drawn - drawn.mean()) / drawn.std())[:, None]
    found = summarise([Measured("S", "P", grid(18), targets, predicted, {}, counts=counts)], GENES, repeats=20).summary
    assert found["significant_genes"] <= 1
