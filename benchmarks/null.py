"""How often maps that have nothing to do with each other are called significant, what is found, what intervals hold.

    python benchmarks/null.py --plot docs/null.png > docs/results/null.txt

Predictions and measurements are simulated: 300 genes that are sums of four Gaussian maps, half of the measurement
noise of its own; a smoothness of 2 is white noise smoothed by a Gaussian of standard deviation 2 spots. Given depth,
one more map, as smooth, is added to both sides of every gene and held fixed in the test. No data are read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tcgn_hub.correlation import pearson, standardised
from tcgn_hub.evaluation.intervals import (
    block_bootstrap,
    bootstrap_pearson,
    fisher_interval,
    interval_of,
    simulated_coverage,
    widening,
)
from tcgn_hub.evaluation.significance import benjamini_hochberg, effective_spots, spatial_test

SMOOTHNESS = (0, 1, 2, 2.5, 3, 4)
GENES = 300
STRENGTHS = (0.2, 0.3, 0.4)
SURROGATES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", type=int, default=12, help="simulated for each number (default: 12)")
    tables = ("power", "surrogates", "coverage")
    parser.add_argument("--tables", nargs="*", choices=tables, default=tables, help="printed after the first one")
    parser.add_argument("--plot", type=Path, help="where to write the figure")
    args = parser.parse_args()
    shares = null_table(args.sections)
    for name, table in {"power": power_table, "surrogates": surrogate_table, "coverage": coverage_table}.items():
        if name in args.tables:
            print()
            table(args.sections)
    if args.plot:
        plot(shares, args.plot)


def null_table(sections: int) -> dict[str, dict[str, list[float]]]:
    """Prints and returns shares of null genes below p = 0.05, by test and layout, for each smoothness."""
    print(f"Null genes with p < 0.05 (at most 0.08 is wanted); {sections} sections of {GENES} genes each")
    print(f"{'test':30}{'layout':10}" + "".join(f"{smoothness:>8}" for smoothness in SMOOTHNESS))
    tests = ("independent spots", "effective spots", "effective spots, given depth", "called at 5 % false discovery")
    shares: dict[str, dict[str, list[float]]] = {test: {layout: [] for layout in layouts()} for test in tests}
    for layout, xy in layouts().items():
        for smoothness in SMOOTHNESS:
            kernel = smoothing(xy, smoothness)
            passed: dict[str, list[float]] = {test: [] for test in tests}
            for seed in range(sections):
                rng = np.random.default_rng(seed)
                predicted, measured, depth = maps(rng, kernel), noisy(rng, maps(rng, kernel)), maps(rng, kernel, 1)
                driven = [side + depth * rng.normal(1, 0.3, GENES) for side in (predicted, measured)]
                p = spatial_test(predicted, measured, xy).p
                passed[tests[0]].append(np.mean(spatial_test(predicted, measured, xy * np.nan).p < 0.05))
                passed[tests[1]].append(np.mean(p < 0.05))
                passed[tests[2]].append(np.mean(spatial_test(*driven, xy, given=depth[:, 0]).p < 0.05))
                passed[tests[3]].append(np.mean(benjamini_hochberg(p)))
            for test in tests:
                shares[test][layout].append(float(np.mean(passed[test])))
    for test in tests:
        for layout, row in shares[test].items():
            print(f"{test:30}{layout:10}" + "".join(f"{share:8.3f}" for share in row), flush=True)
    return shares


def power_table(sections: int) -> None:
    """Prints shares of genes found, against who knows the true correlations between spots."""
    xy = layouts()["grid"]
    print("Genes of a true correlation found at p < 0.05, grid; in brackets, with the true number of effective spots")
    print(f"{'correlation':14}" + "".join(f"{smoothness:>16}" for smoothness in SMOOTHNESS))
    for strength in STRENGTHS:
        cells = []
        for smoothness in SMOOTHNESS:
            kernel = smoothing(xy, smoothness)
            effective, found, known = true_effective(kernel), [], []
            for seed in range(sections):
                rng = np.random.default_rng(seed)
                predicted = maps(rng, kernel)
                measured = strength * predicted + np.sqrt(1 - strength**2) * noisy(rng, maps(rng, kernel))
                test = spatial_test(predicted, measured, xy)
                found.append(np.mean(test.p < 0.05))
                # where the t-test with that many spots passes
                least = 1.645 / np.sqrt(effective - 2 + 1.645**2)
                known.append(np.mean(test.r > least))
            cells.append(f"{np.mean(found):9.2f} ({np.mean(known):.2f})")
        print(f"{strength:<14}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def surrogate_table(sections: int) -> None:
    """Prints the share of null genes called by surrogates of the prediction with its variogram, on ragged tissue."""
    xy = layouts()["ragged"]
    print(
        f"Null genes with p < 0.05 on ragged tissue, 20 genes, by {SURROGATES} surrogates: random maps, smoothed as"
        " makes their variogram fit that of the prediction best (Viladomat et al. 2014)"
    )
    print(f"{'smoothness':14}" + "".join(f"{smoothness:>8}" for smoothness in SMOOTHNESS))
    rows: dict[str, list[float]] = {"surrogates": [], "this test": []}
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    classes = [np.triu(np.round(distance) == k, 1) for k in range(1, 13)]
    widths = (0.5, 1, 1.5, 2, 2.5, 3, 4, 5)
    kernels = [np.exp(-(distance**2) / (2 * width**2)) for width in widths]
    kernels = [kernel / np.sqrt((kernel**2).sum(axis=1, keepdims=True)) for kernel in kernels]
    for smoothness in SMOOTHNESS:
        kernel = smoothing(xy, smoothness)
        surrogate, ours = [], []
        for seed in range(sections):
            rng = np.random.default_rng(seed)
            predicted, measured = maps(rng, kernel, 20), noisy(rng, maps(rng, kernel, 20))
            r = pearson(predicted, measured)
            ours.append(np.mean(spatial_test(predicted, measured, xy).p < 0.05))
            for i in range(20):
                drawn = surrogates(rng, predicted[:, i], kernels, classes)
                null = pearson(drawn, np.tile(measured[:, i : i + 1], SURROGATES))
                surrogate.append((1 + np.sum(null >= r[i])) / (SURROGATES + 1) < 0.05)
        rows["surrogates"].append(float(np.mean(surrogate)))
        rows["this test"].append(float(np.mean(ours)))
    for name, row in rows.items():
        print(f"{name:14}" + "".join(f"{share:8.3f}" for share in row), flush=True)


def surrogates(
    rng: np.random.Generator, values: np.ndarray, kernels: list[np.ndarray], classes: list[np.ndarray]
) -> np.ndarray:
    """Permuted values, smoothed, plus noise, with weights by regression of variograms, shape (spots, SURROGATES)."""

    def variogram(columns: np.ndarray) -> np.ndarray:
        # of few pairs, which are enough
        return np.array([((columns[i] - columns[j]) ** 2).mean(axis=0) / 2 for i, j in pairs])

    pairs = [tuple(rng.permutation(np.argwhere(each))[:300].T) for each in classes]
    want = variogram(values[:, None])[:, 0]
    white = np.stack([rng.permutation(values) for _ in range(SURROGATES)], axis=1)
    best, least = white, np.full(SURROGATES, np.inf)
    noise = rng.normal(size=white.shape)
    for kernel in kernels:
        smooth = kernel @ white
        shape = variogram(smooth)
        slope = np.maximum(
            ((shape - shape.mean(axis=0)) * (want - want.mean())[:, None]).sum(axis=0)
            / ((shape - shape.mean(axis=0)) ** 2).sum(axis=0),
            0,
        )
        nugget = np.maximum(want.mean() - slope * shape.mean(axis=0), 0)
        error = ((nugget + slope * shape - want[:, None]) ** 2).sum(axis=0)
        candidate = np.sqrt(slope) * smooth + np.sqrt(nugget) * noise
        best = np.where(error < least, candidate, best)
        least = np.minimum(error, least)
    return best


def coverage_table(sections: int) -> None:
    """Prints how often 95 % intervals hold the truth, on a grid of 18 x 18 spots."""
    xy, sections = grid(18), 5 * sections
    print(f"95 % intervals that hold the truth, 18 x 18 spots, true correlations 0 to 0.5, {sections} sections")
    print(f"{'of':46}" + "".join(f"{smoothness:>8}" for smoothness in SMOOTHNESS))
    rows: dict[str, list[float]] = {}
    strength = np.linspace(0, 0.5, 60)
    for smoothness in SMOOTHNESS:
        rng = np.random.default_rng(int(10 * smoothness))
        kernel = smoothing(xy, smoothness)
        loadings = rng.normal(size=(2, 4, 60))
        loadings /= np.sqrt((loadings**2).sum(axis=1, keepdims=True))
        drawn = []
        for _ in range(sections):
            predicted, rest = (kernel @ rng.normal(size=(kernel.shape[1], 4)) @ each for each in loadings)
            drawn.append((predicted, strength * predicted + np.sqrt(1 - strength**2) * noisy(rng, rest)))
        scores = np.array([pearson(*section) for section in drawn])
        medians = np.median(scores, axis=1)
        blocks = block_bootstrap(xy)
        held: dict[str, list[float]] = {}
        for section, score, median in zip(drawn, scores, medians, strict=True):
            effective, samples = effective_spots(*section, xy), bootstrap_pearson(*section, *blocks)
            low, high = fisher_interval(score, effective)
            truth = scores.mean(axis=0)
            held.setdefault("a gene, by effective spots", []).append(np.mean((low <= truth) & (truth <= high)))
            for name, widen in (
                ("the median, by blocks alone", 1.0),
                ("the median, by blocks, widened", widening(samples, effective)),
            ):
                low, high = interval_of(np.median(samples, axis=1), median, widen)
                held.setdefault(name, []).append(low <= medians.mean() <= high)
        held["the same, as stated for each of 5 sections"] = [
            simulated_coverage(xy, *section, seed=seed) or 0.0 for seed, section in enumerate(drawn[:5])
        ]
        for name, each in held.items():
            rows.setdefault(name, []).append(float(np.mean(each)))
    for name, row in rows.items():
        print(f"{name:46}" + "".join(f"{share:8.2f}" for share in row), flush=True)


def layouts() -> dict[str, np.ndarray]:
    """Spot centres in pitches, shape (n, 2): two of 24 x 24 spots, and a blob of 323 with a hole."""
    square = grid(24)
    hexagons = np.stack([square[:, 0] + 0.5 * (square[:, 1] % 2), square[:, 1] * np.sqrt(0.75)], axis=1)
    blob = grid(26) - 12.5
    angle, distance = np.arctan2(blob[:, 1], blob[:, 0]), np.hypot(*blob.T)
    inside = distance < 10.5 + 1.8 * np.sin(3 * angle) + 1.2 * np.cos(5 * angle + 1)
    hole = np.hypot(blob[:, 0] - 3, blob[:, 1] + 2) < 3
    ragged = blob[inside & ~hole]
    jitter = np.random.default_rng(5).uniform(-0.1, 0.1, ragged.shape)
    return {"grid": square, "hexagons": hexagons, "ragged": ragged + jitter}


def grid(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side)), axis=-1).reshape(-1, 2).astype(float)


def smoothing(xy: np.ndarray, smoothness: float) -> np.ndarray:
    """Turns white noise on a fine lattice that reaches beyond the spots into maps of variance 1."""
    if smoothness == 0:
        return np.eye(len(xy))
    ends = zip(xy.min(axis=0) - 3 * smoothness, xy.max(axis=0) + 3 * smoothness, strict=True)
    lattice = np.stack(np.meshgrid(*(np.arange(*end, 0.5) for end in ends)), axis=-1).reshape(-1, 2)
    square = (xy**2).sum(axis=1)[:, None] + (lattice**2).sum(axis=1) - 2 * xy @ lattice.T
    kernel = np.exp(-square / (2 * smoothness**2))
    return kernel / np.sqrt((kernel**2).sum(axis=1, keepdims=True))


def maps(rng: np.random.Generator, kernel: np.ndarray, genes: int = GENES) -> np.ndarray:
    """Standardised maps of genes that are sums of four, shape (spots, genes)."""
    return standardised(kernel @ rng.normal(size=(kernel.shape[1], 4)) @ rng.normal(size=(4, genes)))


def noisy(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    return np.sqrt(0.5) * (values + rng.normal(size=values.shape))


def true_effective(kernel: np.ndarray) -> float:
    """Effective spots of a smooth map and of one that is half noise, by the true correlations between spots."""
    n = len(kernel)
    centre = np.eye(n) - 1 / n
    smooth = centre @ kernel @ kernel.T @ centre
    half = (smooth + centre) / 2
    return float(1 + np.trace(smooth) * np.trace(half) / np.trace(smooth @ half))


def plot(shares: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Share called against smoothness, a line for each test and layout."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    colors = {
        "independent spots": "#b2182b",
        "effective spots": "#2166ac",
        "effective spots, given depth": "#1b9e77",
    }
    styles = {"grid": "-", "hexagons": "--", "ragged": ":"}
    for test, color in colors.items():
        for layout, row in shares[test].items():
            label = test if layout == "grid" else None
            axes.plot(SMOOTHNESS, row, styles[layout], color=color, marker="o", markersize=3, label=label)
    for layout, style in styles.items():
        axes.plot([], [], style, color="black", label=layout)
    for level in (0.05, 0.08):
        axes.axhline(level, color="0.6", linewidth=0.8)
        axes.annotate(f"{level:.0%}", (4.3, level), (-1, 1), textcoords="offset points", fontsize=8, color="0.4")
    axes.set(
        xlabel="smoothness of the maps (spots)", ylabel="null genes with p < 0.05", xlim=(-0.2, 4.5), ylim=(0, None)
    )
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
