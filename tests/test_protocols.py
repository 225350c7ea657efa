"""Scores by protocol, against packages that compute them in another way."""

import numpy as np
import pytest
from sections import PANEL, write_section

from tcgn_hub.correlation import pearson
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.data.sections import panel_counts
from tcgn_hub.evaluation.protocols import PROTOCOLS, hest_bench, hest_genes, hest_probes, protocol_scores
from tcgn_hub.result import Measured


def grid(side, pitch=100.0):
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2) * pitch


def measured(name, *, seed=0, side=8, genes=70, offset=0.0, **changes):
    """Noisy predictions of log values; ``offset`` is what a section has more of every gene."""
    rng = np.random.default_rng(seed)
    level = rng.lognormal(1, 1, genes)
    counts = rng.poisson(level * rng.lognormal(0, 0.5, (side**2, genes))).astype(float)
    targets = np.log10(1 + counts) + offset
    values = {
        "name": name,
        "patient": name[0],
        "xy": grid(side),
        "targets": targets,
        "predicted": targets + rng.normal(size=targets.shape) * 0.3,
        "baselines": {"mean": np.full(targets.shape, targets.mean())},
        "predictions": {"other": targets + rng.normal(size=targets.shape)},
        "counts": counts,
    }
    return Measured(**{**values, **changes})


def test_every_number_has_a_protocol_that_is_described():
    scores = protocol_scores([measured("A1")], probes={"TCGN": 0.2})
    assert set(scores) == set(PROTOCOLS)
    for values in scores.values():
        assert values.keys() <= {"TCGN", "other", "mean"}
    assert scores["HEST-Bench"] == {"TCGN": 0.2}
    assert all(len(text) > 60 for text in PROTOCOLS.values())


def test_one_section_is_pooled_or_not_the_same():
    scores = protocol_scores([measured("A1")])
    want = np.median(pearson(measured("A1").predicted, measured("A1").targets))
    assert scores["per section"]["TCGN"] == scores["pooled"]["TCGN"] == pytest.approx(want)
    assert scores["per section"]["TCGN"] > scores["per section"]["other"] > scores["per section"]["mean"] == 0


def test_spots_pooled_reward_knowing_the_section():
    sections = [measured("A1", seed=1), measured("B1", seed=2, offset=3.0)]
    knows = [np.full(section.targets.shape, offset) for section, offset in zip(sections, (0.0, 3.0), strict=True)]
    rng = np.random.default_rng(0)
    for section, values in zip(sections, knows, strict=True):
        section.predictions["section"] = values + 0.1 * rng.normal(size=values.shape)
    scores = protocol_scores(sections)
    assert scores["pooled"]["section"] > 0.9
    assert abs(scores["per section"]["section"]) < 0.1
    by_section = np.mean([pearson(s.predicted, s.targets) for s in sections], axis=0)
    assert scores["per section"]["TCGN"] == pytest.approx(np.median(by_section))


def test_smoothed_labels_are_means_of_3_by_3():
    section = measured("A1", side=6)
    shaped = np.pad(section.targets.reshape(6, 6, -1), ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    windows = [shaped[i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
    want = np.nanmean(windows, axis=0).reshape(36, -1)
    scores = protocol_scores([section])
    assert scores["per section, smoothed"]["TCGN"] == pytest.approx(np.median(pearson(section.predicted, want)))
    # neither order nor unit nor turning the tissue changes anything
    mixed = np.random.default_rng(1).permutation(36)
    turned = measured("A1", side=6, xy=(grid(6) @ np.array([[0, 1], [-1, 0]]) * 0.01)[mixed])
    for values in (turned.targets, turned.predicted, turned.counts, *turned.baselines.values()):
        values[:] = values[mixed]
    del turned.predictions["other"], section.predictions["other"]
    for name, values in protocol_scores([section]).items():
        assert protocol_scores([turned])[name] == pytest.approx(values), name


def test_a_hexagonal_spot_has_six_neighbours():
    rows, columns = np.divmod(np.arange(49), 7)
    xy = np.stack([columns + 0.5 * (rows % 2), rows * np.sqrt(3) / 2], axis=1)
    section = measured("A1", side=7, xy=xy)
    want = np.stack([section.targets[np.hypot(*(xy - place).T) < 1.01].mean(axis=0) for place in xy])
    scores = protocol_scores([section])["pooled, smoothed"]
    assert scores["TCGN"] == pytest.approx(np.median(pearson(section.predicted, want)))


def test_what_is_unknown_has_no_number():
    nowhere = measured("A1", xy=np.full((64, 2), np.nan), counts=None)
    assert set(protocol_scores([nowhere])) == {"per section", "pooled"}
    part = measured("A1")
    part.predictions["other"][:10] = np.nan
    part.predictions["other"][:, 3] = np.nan
    part.predicted[:, 5] = np.nan
    scores = protocol_scores([part])
    keep = [i for i in range(70) if i != 3]
    want = pearson(part.predictions["other"][10:][:, keep], part.targets[10:][:, keep])
    assert scores["per section"]["other"] == pytest.approx(np.median(want))
    # what another section lacks is no method
    second = measured("B1", seed=3)
    del second.predictions["other"]
    assert "other" not in protocol_scores([part, second])["pooled"]


# --------------------------------------------------------------------------------------------------------- HEST-Bench


def test_genes_are_those_of_scanpy():
    scanpy = pytest.importorskip("scanpy")
    anndata = pytest.importorskip("anndata")
    rng = np.random.default_rng(0)
    level = rng.lognormal(0, 1.5, 300)
    counts = [rng.poisson(level * rng.lognormal(0, rng.uniform(0, 1.5, 300), (n, 300))).astype(float) for n in (80, 60)]
    counts[0][:, 7] = 0
    counts[1][:55, 8] = 0
    kept = [i for i in range(300) if all((c[:, i] > 0).sum() >= np.ceil(0.1 * len(c)) for c in counts)]
    assert 60 < len(kept) < 300
    data = anndata.AnnData(np.concatenate(counts)[:, kept].astype(np.float32))
    scanpy.pp.log1p(data)
    scanpy.pp.highly_variable_genes(data, n_top_genes=50)
    assert hest_genes(counts).tolist() == np.array(kept)[data.var["highly_variable"].to_numpy()].tolist()


def test_regression_is_that_of_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    latent, other = rng.normal(size=(400, 5)), rng.normal(size=(80, 5))
    loads, genes = rng.normal(size=(5, 300)), rng.normal(size=(5, 50))
    x, test = (z @ loads * 3 + 7 + rng.normal(size=(len(z), 300)) for z in (latent, other))
    x[:, 4] = test[:, 4] = 1.0
    y, labels = (rng.poisson(np.exp(0.4 * z @ genes)).astype(float) for z in (latent, other))
    spread = np.where(x.std(axis=0) > 0, x.std(axis=0), 1)
    pca = decomposition.PCA(n_components=256).fit((x - x.mean(axis=0)) / spread)
    ridge = linear_model.Ridge(alpha=100 / (256 * 50), fit_intercept=False, solver="cholesky")
    ridge.fit(pca.transform((x - x.mean(axis=0)) / spread), np.log1p(y))
    want = pearson(ridge.predict(pca.transform((test - x.mean(axis=0)) / spread)), np.log1p(labels)).mean()
    assert hest_bench(x, y, test, labels) == pytest.approx(want, abs=1e-6)
    assert want > 0.3


def test_patients_are_held_out(tmp_path):
    for seed, name in enumerate(("A1", "A2", "B1", "C1")):
        write_section(tmp_path, name, seed=seed)
    sections = {section.name: section for section in read_her2st(tmp_path)}
    rng = np.random.default_rng(0)
    features = {"net": {name: rng.normal(size=(len(s.spots), 4)) for name, s in sections.items()}}
    counts = {name: panel_counts(section, PANEL) for name, section in sections.items()}

    def probes(train, test):
        return hest_probes([sections[n] for n in train], [sections[n] for n in test], PANEL, features)

    def by_hand(train, test, genes):
        of = features["net"]
        x, y = (np.concatenate([table[n] for n in train]) for table in (of, counts))
        x_test, y_test = (np.concatenate([table[n] for n in test]) for table in (of, counts))
        return hest_bench(x, y[:, genes], x_test, y_test[:, genes])

    genes, scores = probes(["A1", "B1"], ["A2"])
    assert scores["net"] == pytest.approx(by_hand(["B1"], ["A2"], genes))
    genes, scores = probes(["B1"], ["A1", "A2", "C1"])
    want = [by_hand(["B1"], ["A1", "A2"], genes), by_hand(["B1"], ["C1"], genes)]
    assert scores["net"] == pytest.approx(np.mean(want))
    assert probes(["A1"], ["A2"])[1] == {}
    assert probes([], ["A2"])[1] == {}


def test_the_metric_pools_the_spots_of_a_patient():
    sections = [measured("A1", seed=1), measured("A2", seed=2), measured("B1", seed=3)]
    genes = hest_genes([section.counts for section in sections])
    assert len(genes) == 50
    one = [np.concatenate([s.predicted for s in sections[:2]]), sections[2].predicted]
    two = [np.log1p(np.concatenate([s.counts for s in sections[:2]])), np.log1p(sections[2].counts)]
    want = np.mean([pearson(p[:, genes], c[:, genes]).mean() for p, c in zip(one, two, strict=True)])
    assert protocol_scores(sections)["metric of HEST-Bench"]["TCGN"] == pytest.approx(want)
