"""What the benchmarks rely on, where they reach into the package; how fast anything is, no test says."""

from argparse import Namespace
from pathlib import Path

import pytest

from tcgn_hub.progress import Progress

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def user(monkeypatch):
    """benchmarks/user.py; the progress bar that it watches is as before afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(Progress, "update", Progress.update)
    monkeypatch.setenv("HF_ASSETS_CACHE", "")
    import user

    return user


def test_tiles_of_a_user_are_counted_as_they_are_done(user, tmp_path):
    slide = str(ROOT / "examples" / "cmu_small_region.svs")
    job = {"name": user.DEFAULT, "slide": slide, "stride": 300.0, "device": "cpu", "kept": str(tmp_path)}
    found = user.run_child({**job, "out": str(tmp_path / "out")})
    anndata = pytest.importorskip("anndata")
    assert found["tiles"] == anndata.read_h5ad(tmp_path / "out.h5ad").n_obs > 0
    assert found["main"] > 100


def test_few_tiles_stand_for_many(user, monkeypatch):
    """Whatever an encoder needs to start is paid once, and not once for each of its few tiles."""
    import slide

    monkeypatch.setattr(slide, "in_child", lambda job, script: {"tiles": 10, "streaming": 2.0})
    monkeypatch.setattr(user.time, "perf_counter", iter([0.0, 15.0] * 2).__next__)
    assert user.in_child({}, 10)["whole"] == pytest.approx(10 / 15)
    assert user.in_child({}, 110)["whole"] == pytest.approx(110 / (15 + 50))


def test_goals_are_judged_by_the_median_of_rounds(user, capsys):
    def command(name, whole, streaming):
        runs = [{"whole": a, "streaming": b} for a, b in zip(whole, streaming, strict=True)]
        for run in runs:
            run.update({"whole of model": run["whole"] / 40, "of model": run["streaming"] / 40})
        return user.Command(name, runs)

    ours = command(user.DEFAULT, [36, 36, 9], [30, 30, 30])
    plain = command(user.PLAIN, [20, 20, 20], [20, 20, 20])
    user.print_goals([ours, plain], Namespace(mode="compiled", dtype="bf16"), None)
    _, model, other, cuda = capsys.readouterr().out.strip().splitlines()
    assert model.split()[-1] == "whole"
    assert "0.90x [0.23, 0.90]" in model
    assert other.split()[-1] == "whole"
    assert "1.80x [0.45, 1.80]" in other
    assert cuda.endswith("not measured, for it needs a GPU.")
    user.print_goals([ours, plain], Namespace(mode="compiled", dtype="bf16"), 61.0)
    assert capsys.readouterr().out.strip().endswith("61x, goal 60x: reached")


def test_the_trip_of_tiles_needs_no_model(user):
    import slide

    result = slide.no_model().slide(ROOT / "examples" / "cmu_small_region.svs", stride_um=300, workers=0)
    assert result.X.shape == (len(result), 785)
    assert "quality" in result.obs
