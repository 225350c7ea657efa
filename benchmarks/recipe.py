"""What moves the result, told by ridge regression, which takes seconds where a network takes hours.

    python benchmarks/recipe.py --data her2st --sections B4 C2 C3 C4 C5

Ridge regression on colour and texture is fitted on all sections but one and measured on that one, for every section.
Each row changes one thing: how noise is removed from the targets it is fitted on, or how large the crop is that it
sees. The measurement is always the raw targets. Sections that a model is to be tested on later are left out, so that
nothing is chosen on them.

Columns: median PCC over genes of each section held out, and their mean.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tcgn_hub.correlation import pearson
from tcgn_hub.data.checks import check_sections
from tcgn_hub.data.crops import spot_crops
from tcgn_hub.data.readers.her2st import read_her2st
from tcgn_hub.data.sections import Section, expression_targets
from tcgn_hub.data.targets import training_targets
from tcgn_hub.evaluation.baselines import color_texture_features, ridge_predict
from tcgn_hub.panels import load_panel

FIELDS = (40, 56, 77, 150, 230)
Targets = Callable[[Sequence[Section], list[np.ndarray]], list[np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", nargs="+")
    args = parser.parse_args()
    panel = load_panel("her2st_785")
    sections, _ = check_sections(read_her2st(args.data, args.sections), panel)
    raw = [expression_targets(section, panel) for section in sections]
    features = {
        field: [color_texture_features(spot_crops(section, patch_um=field).pixels) for section in sections]
        for field in FIELDS
    }
    rows: dict[str, tuple[list[np.ndarray], Targets]] = {"raw targets, 77 um": (features[77], as_measured)}
    rows["sections centred"] = (features[77], centred)
    for number in (5, 10, 20, 50, 100):
        rows[f"centred, {number} components"] = (features[77], components(number))
    for neighbours in (2, 4, 8):
        rows[f"mean with {neighbours} neighbours"] = (features[77], smoothed(neighbours))
    for field in FIELDS:
        if field != 77:
            rows[f"crop of {field} um, 20 components"] = (features[field], components(20))
    joined = [np.concatenate(views, axis=1) for views in zip(features[77], features[230], strict=True)]
    rows["crops of 77 and 230 um, 20 components"] = (joined, components(20))

    names = [section.name for section in sections]
    print(f"{'':40}" + "".join(f"{name:>8}" for name in names) + "    mean")
    for title, (views, targets) in rows.items():
        scores = [fold(sections, raw, views, targets, held_out) for held_out in range(len(sections))]
        print(f"{title:40}" + "".join(f"{score:8.3f}" for score in scores) + f"{np.mean(scores):8.3f}", flush=True)


def fold(
    sections: Sequence[Section], raw: list[np.ndarray], views: list[np.ndarray], targets: Targets, held_out: int
) -> float:
    """Median PCC of a section, of ridge regression that was fitted on the others."""
    train = [i for i in range(len(sections)) if i != held_out]
    wanted = np.concatenate(targets([sections[i] for i in train], [raw[i] for i in train]))
    predicted = ridge_predict(np.concatenate([views[i] for i in train]), wanted, views[held_out])
    return float(np.median(pearson(predicted, raw[held_out])))


def as_measured(_: Sequence[Section], raw: list[np.ndarray]) -> list[np.ndarray]:
    return raw


def centred(_: Sequence[Section], raw: list[np.ndarray]) -> list[np.ndarray]:
    return [targets - targets.mean(axis=0) for targets in raw]


def components(number: int) -> Targets:
    return lambda _, raw: training_targets(raw, number).targets


def smoothed(neighbours: int) -> Targets:
    """The mean of a spot and of its nearest spots, as a target."""

    def smooth(sections: Sequence[Section], raw: list[np.ndarray]) -> list[np.ndarray]:
        out = []
        for section, targets in zip(sections, centred(sections, raw), strict=True):
            distance = np.linalg.norm(section.xy[:, None] - section.xy[None], axis=2)
            nearest = np.argsort(distance, axis=1)[:, : neighbours + 1]
            out.append(targets[nearest].mean(axis=1))
        return out

    return smooth


if __name__ == "__main__":
    main()
