import numpy as np
import pytest

from tcgn_hub.evaluation import color_texture_features, pearson, reliable, ridge_predict


def test_pearson_equals_numpy():
    rng = np.random.default_rng(0)
    p, m = rng.normal(size=(2, 30, 5))
    want = [np.corrcoef(p[:, i], m[:, i])[0, 1] for i in range(5)]
    assert pearson(p, m) == pytest.approx(want)
    assert pearson(3 * p + 1, m) == pytest.approx(want)


def test_constant_gene_has_no_correlation():
    assert pearson(np.ones((4, 1)), np.arange(4.0)[:, None]).tolist() == [0]


def test_reliable_controls_the_false_discovery_rate():
    rng = np.random.default_rng(0)
    noise = np.tanh(rng.normal(size=2000) / np.sqrt(97))
    assert reliable(noise, 100).sum() <= 3
    signal = np.concatenate([noise, np.full(200, 0.6)])
    passed = reliable(signal, 100)
    assert passed[2000:].all()
    assert passed[:2000].sum() <= 25
    assert not reliable(-np.full(10, 0.9), 100).any()
    assert not reliable(np.full(10, 0.9), 2).any()


def test_ridge_finds_a_linear_relation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)) * 5 + 3
    y = x @ rng.normal(size=(6, 3)) + 2
    assert pearson(ridge_predict(x[:150], y[:150], x[150:], penalty=0.1), y[150:]) == pytest.approx(1, abs=1e-3)


def test_features_see_colour_but_not_rotation_of_a_flat_crop():
    flat = np.full((1, 3, 112, 112), 100, np.uint8)
    red = flat.copy()
    red[:, 0] = 200
    assert color_texture_features(flat).shape == (1, 32)
    assert not np.allclose(color_texture_features(flat), color_texture_features(red))
