import sys

import numpy as np
import pytest
from PIL import Image

from tcgn_hub.errors import ExtraError, OutputError
from tcgn_hub.writing.training_figures import curve_figure, methods_figure

HISTORY = [{"epoch": i + 1, "loss": 1 / (i + 1), "val_pcc": 0.1 * i} for i in range(5)]
BLUE = (0, 114, 178)
LIGHT_BLUE, LIGHT_ORANGE = (102, 170, 209), (240, 197, 102)  # of surfaces that let white through


def values(seed, centre=0.2):
    return np.random.default_rng(seed).normal(centre, 0.1, 300)


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


def test_methods_stand_where_their_values_are(tmp_path):
    """The first on top, and what is larger on the right."""
    methods = {"TCGN": {"pcc": values(0, 0.6)}, "ridge resnet18": {"pcc": values(1, -0.3), "pcc_interval": [-0.5, 0.1]}}
    methods_figure(methods, tmp_path / "a.png")
    pixels = picture(tmp_path / "a.png")
    (y, x), (lower, left) = (np.nonzero(close_to(pixels, colour)) for colour in (LIGHT_BLUE, LIGHT_ORANGE))
    assert np.median(y) < np.median(lower) - 20
    assert np.median(x) > np.median(left) + 100


def test_a_panel_of_what_is_known_and_no_other(tmp_path):
    widths = []
    for given in ({}, {"pcc_given_depth": np.full(9, np.nan)}, {"pcc_given_depth": values(2), "pcc_interval": None}):
        methods_figure({"depth": {"pcc": values(0), **given}, "ceiling": {"pcc": values(3)}}, tmp_path / "a.png")
        widths.append(picture(tmp_path / "a.png").shape[1])
    assert widths[0] == widths[1] < widths[2]


@pytest.mark.parametrize(
    "methods",
    [
        {rf"a method in $\dollars$ {i}": {"pcc": values(i)} for i in range(7)},
        {"TCGN": {"pcc": np.full(4, np.nan)}, "mean": {"pcc": np.zeros(4)}, "other": {"pcc": np.array([0.3])}},
        {"ceiling": {"pcc": np.array([], float)}},
        {},
    ],
)
@pytest.mark.filterwarnings("error")
def test_any_methods(methods, tmp_path):
    methods_figure(methods, tmp_path / "a.png")
    assert picture(tmp_path / "a.png").std() > 1


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (lambda: curve_figure(HISTORY, tmp_path / "a.png"), lambda: methods_figure({}, tmp_path / "a.png")):
        with pytest.raises(ExtraError, match=r"To draw figures, install matplotlib: pip install 'tcgn_hub\[plot\]'"):
            draw()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        curve_figure(HISTORY, tmp_path / "none" / "a.png")
