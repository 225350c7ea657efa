import sys

import numpy as np
import pytest
from PIL import Image

from tcgn_hub.errors import ExtraError, OutputError
from tcgn_hub.writing.training_figures import curve_figure, violin_figure

HISTORY = [{"epoch": i + 1, "loss": 1 / (i + 1), "val_pcc": 0.1 * i} for i in range(5)]
BLUE, ORANGE = (0, 114, 178), (230, 159, 0)


def values(seed, centre=0.2):
    rng = np.random.default_rng(seed)
    return {
        "TCGN": rng.normal(centre, 0.1, 300),
        "ridge": rng.normal(0.1, 0.1, 300),
        "ceiling": rng.uniform(0.2, 0.8, 300),
    }


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def close_to(pixels, colour, least=60):
    return np.abs(pixels - colour).sum(axis=2) < least


def test_the_curve_falls_where_the_loss_does(tmp_path):
    curve_figure([{"epoch": row["epoch"], "loss": row["loss"]} for row in HISTORY], tmp_path / "loss.png")
    y, x = np.nonzero(close_to(picture(tmp_path / "loss.png"), BLUE))
    assert np.median(y[x < np.quantile(x, 0.1)]) < np.median(y[x > np.quantile(x, 0.9)])


def test_validation_is_drawn_where_it_was_measured(tmp_path):
    some = [row if i % 2 else {**row, "val_pcc": None} for i, row in enumerate(HISTORY)]
    heights = []
    for name, history in (("with", HISTORY), ("some", some), ("without", [{"epoch": 1, "loss": 2.0}])):
        curve_figure(history, tmp_path / f"{name}.png")
        heights.append(len(picture(tmp_path / f"{name}.png")))
    assert heights[0] == heights[1] > heights[2]


def test_violins_stand_where_the_values_are(tmp_path):
    violin_figure({"B4": values(0, centre=0.6), "C2": values(1, centre=-0.3)}, tmp_path / "violin.png")
    pixels = picture(tmp_path / "violin.png")[120:]
    y, x = np.nonzero(close_to(pixels, BLUE, least=120))
    middle = pixels.shape[1] / 2
    assert np.median(y[x < middle]) < np.median(y[x > middle]) - 100
    assert close_to(pixels, ORANGE, least=120).any()


@pytest.mark.parametrize(
    "per_section",
    [
        {"C6": values(0)},
        {rf"a section in $\dollars$ {i}": values(i) for i in range(7)},
        {"C6": {"TCGN": np.full(4, np.nan)}, "C7": {"TCGN": np.zeros(4), "ridge": np.array([0.3])}},
        {},
    ],
)
@pytest.mark.filterwarnings("error")
def test_violins_of_any_sections(per_section, tmp_path):
    violin_figure(per_section, tmp_path / "violin.png")
    assert picture(tmp_path / "violin.png").std() > 1


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: curve_figure(HISTORY, tmp_path / "a.png"), lambda: violin_figure({}, tmp_path / "a.png")):
        with pytest.raises(ExtraError, match=r"To draw figures, install matplotlib: pip install 'tcgn_hub\[plot\]'"):
            draw()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        curve_figure(HISTORY, tmp_path / "none" / "a.png")
