"""How far a long run is, by a clock that the test sets."""

import logging
import sys

import pytest

from tcgn_hub import progress
from tcgn_hub.progress import Progress, duration


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, to be changed."""
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="tcgn_hub")
    return caplog


def test_a_line_a_minute_where_there_is_no_terminal(clock, said, capsys):
    with Progress(1000, "tile", name="a.svs", done=100) as bar:
        for second in range(0, 181, 20):
            clock[0] = second
            bar.update(10)
    assert said.messages == [
        "a.svs: 140 of 1000 tiles, about 22 min left",
        "a.svs: 170 of 1000 tiles, about 24 min left",
        "a.svs: 200 of 1000 tiles, about 24 min left",
    ]
    assert capsys.readouterr().err == ""


def test_what_is_short_hidden_or_done_says_nothing(clock, said, monkeypatch):
    def run(total, seconds, **options):
        clock[0] = 0
        with Progress(total, "image", **options) as bar:
            for _ in range(5):
                clock[0] += seconds
                bar.update()

    run(10, 10)
    run(10, 100, shown=False)
    monkeypatch.setattr("huggingface_hub.utils.are_progress_bars_disabled", lambda: True)
    run(10, 100)
    assert said.messages == []
    monkeypatch.undo()
    clock[0] = 0
    with Progress(1, "image") as bar:
        clock[0] = 100
        bar.update()
    assert said.messages == []


def test_items_are_counted_and_bytes_are_megabytes(clock, said):
    for item in Progress(3, "crop", name="A1").over([0, 1, 2]):
        clock[0] += 70
        assert item in (0, 1, 2)
    assert said.messages == ["A1: 1 of 3 crops, about 2 min left", "A1: 2 of 3 crops, about 70 s left"]
    with Progress(60_000_000, "B", name="x.safetensors") as bar:
        clock[0] += 61
        bar.update(20_000_000)
        assert said.messages[-1].startswith("x.safetensors: 20 of 60 MB, about")
        bar.update(-20_000_000)
        clock[0] += 61
        bar.update(0)
    assert said.messages[-1] == "x.safetensors: 0 of 60 MB"


def test_a_terminal_sees_a_bar_and_no_lines(clock, said, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(2, "image") as bar:
        for _ in range(2):
            clock[0] += 100
            bar.update()
    assert "100%" in capsys.readouterr().err
    assert said.messages == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0.2 s"), (8.3, "8 s"), (99, "99 s"), (200, "3 min"), (7800, "2 h 10 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
