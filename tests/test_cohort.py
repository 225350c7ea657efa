"""Many slides: each done once, by whichever process comes to it, and a ledger that is true."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata
import numpy as np
import pandas
import pytest
import tifffile
import torch
from sections import PANEL
from test_slides import SVS

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.errors import DeviceError, ExtraError, ImageError, OutputError, WeightsError
from tcgn_hub.images.readers import open_slide
from tcgn_hub.prediction.cohort import claims as claims_home
from tcgn_hub.prediction.cohort.claims import Claims
from tcgn_hub.prediction.cohort.ledger import HIDDEN, Ledger, Record, check_outputs
from tcgn_hub.prediction.cohort.outputs import Outputs
from tcgn_hub.prediction.cohort.shards import in_order, parse_shard, shard_of_job
from tcgn_hub.prediction.cohort.summary import concatenate, outliers, write_summary

OPTIONS = {"stride_um": 40.0}
ARGUMENTS = ["--stride-um", "40"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums are rounded by how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # of programs that are started
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def predictor(tiny_weights):
    return tcgn_hub.load(path=tiny_weights, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Six small slides, each another part of one, and one that is none."""
    folder = tmp_path_factory.mktemp("slides")
    with open_slide(SVS) as slide:
        for number in range(6):
            pixels = slide.read(1120, 640 + 240 * number, 480, 480)
            resolution = {"resolution": (1e4 / 0.499,) * 2, "resolutionunit": "CENTIMETER"}
            tifffile.imwrite(folder / f"s{number}.svs", pixels, tile=(256, 256), **resolution)
    (folder / "bad.svs").write_bytes(b"no slide")
    return folder


@pytest.fixture(scope="module")
def serial(slides, predictor, one_thread, tmp_path_factory) -> Path:
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("serial") / "out"
    predictor.slides(sorted(slides.iterdir()), out, **OPTIONS)
    return out


def files(folder: Path) -> dict[str, bytes]:
    """The outputs of a folder, as they are."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".h5ad"}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "cohort.jsonl").read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def assert_as_serial(folder: Path, serial: Path) -> None:
    """Outputs equal those of one process, each slide was done once, nothing is half-written, and the ledger is true."""
    for name in files(serial):
        ours, theirs = anndata.read_h5ad(folder / name), anndata.read_h5ad(serial / name)
        np.testing.assert_array_equal(ours.X, theirs.X)
        for tables in ("layers", "obsm"):
            assert set(getattr(ours, tables)) == set(getattr(theirs, tables))
            for key, values in getattr(theirs, tables).items():
                np.testing.assert_array_equal(getattr(ours, tables)[key], values)
        pandas.testing.assert_frame_equal(ours.obs, theirs.obs)
        pandas.testing.assert_frame_equal(ours.var, theirs.var)
    assert set(files(folder)) == set(files(serial))
    done = [line["output"] for line in lines(folder) if line["state"] == "done"]
    assert sorted(done) == sorted(files(serial))
    assert [why for _, why in check_outputs(Ledger(folder))] == [""] * len(done)
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".claim"))]
    assert not list((folder / HIDDEN / "partial").iterdir())


def command(slides: Path, out: Path, weights: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tcgn_hub.cli.main", "predict", str(slides), "-o", str(out)),
        *("--weights", str(weights), "--precision", "float32", *ARGUMENTS, *map(str, arguments)),
    ]


# --------------------------------------------------------------------------------------------------- one process


def test_what_became_of_each_slide(serial, slides, predictor):
    ended = {line["output"]: line for line in lines(serial)}
    assert len(ended) == 7
    bad, good = ended["bad.svs.h5ad"], ended["s0.svs.h5ad"]
    assert (bad["state"], bad["files"]) == ("failed", {})
    assert "bad.svs is no image that can be read" in bad["error"]
    assert (good["state"], good["attempt"], good["error"]) == ("done", 1, "")
    assert good["tiles"] == anndata.read_h5ad(serial / "s0.svs.h5ad").n_obs > 3
    assert good["sha256"] == predictor.info.sha256
    assert good["slide"] == str(slides / "s0.svs")
    assert good["size"] == (slides / "s0.svs").stat().st_size
    assert set(good["versions"]) == {"tcgn_hub", "torch"}
    assert good["how"] == {"backend": "torch", "precision": "float32", "compiled": False}
    assert 0 < good["quality"]["tissue"] <= 1


def test_what_ended_is_not_done_again(serial, slides, predictor, tmp_path, monkeypatch):
    shutil.copytree(serial, tmp_path / "out")
    before = (tmp_path / "out" / "cohort.jsonl").read_text()
    some = sorted(slides.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(tcgn_hub.Predictor, "slide", None)
        records = predictor.slides(some, tmp_path / "out", **OPTIONS)
    assert [record.state for record in records] == ["failed", *["done"] * 6]
    assert (tmp_path / "out" / "cohort.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda out, slides: (out / "s1.svs.h5ad").unlink(), ["s1.svs"]),
        (lambda out, slides: os.utime(slides / "s2.svs", ns=(1, 1)), ["s2.svs"]),
        (lambda out, slides: shutil.copy(slides / "s0.svs", slides / "bad.svs"), ["bad.svs"]),
        ({"retry_failed": True}, ["bad.svs"]),
        ({"genes": [PANEL[1]]}, ["bad.svs", *(f"s{n}.svs" for n in range(6))]),
        ({"format": "csv"}, ["bad.svs", *(f"s{n}.svs" for n in range(6))]),
    ],
    ids=["output gone", "slide changed", "slide mended", "retried", "other genes", "other format"],
)
def test_what_has_to_be_done_again(serial, slides, predictor, tmp_path, change, again):
    shutil.copytree(serial, tmp_path / "out")
    shutil.copytree(slides, tmp_path / "slides")
    for path in slides.iterdir():  # where the ledger says they are
        os.utime(tmp_path / "slides" / path.name, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    ledger = (tmp_path / "out" / "cohort.jsonl").read_text().replace(str(slides), str(tmp_path / "slides"))
    (tmp_path / "out" / "cohort.jsonl").write_text(ledger)
    options = change if isinstance(change, dict) else {}
    if not options:
        change(tmp_path / "out", tmp_path / "slides")
    told = []
    predictor.slides(
        sorted((tmp_path / "slides").iterdir()), tmp_path / "out", told=told.append, **{**OPTIONS, **options}
    )
    assert [Path(record.slide).name for record in told] == again
    if options.get("retry_failed"):
        assert told[0].attempt == 2


def test_a_geojson_of_all_genes_is_another(slides, predictor, tmp_path):
    def told(**options):
        records = []
        predictor.slides([slides / "s0.svs"], tmp_path / "out", told=records.append, **OPTIONS, **options)
        return len(records)

    assert told() == 1
    assert told(genes="all") == 0  # of which the h5ad is
    assert [told(format="geojson", **genes) for genes in ({}, {}, {"genes": "all"}, {"genes": "all"})] == [1, 0, 1, 0]


def test_a_fault_of_the_machine_ends_the_run_and_is_tried_again(slides, predictor, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OutputError("The disk is full.")

    some = [slides / "s0.svs", slides / "s1.svs"]
    with monkeypatch.context() as patch:
        patch.setattr("tcgn_hub.prediction.cohort.outputs.Outputs.write", full)
        with pytest.raises(OutputError, match="The disk is full"):
            predictor.slides(some, tmp_path, **OPTIONS)
    assert [(line["state"], line["error"]) for line in lines(tmp_path)] == [("stopped", "The disk is full.")]
    records = predictor.slides(some, tmp_path, **OPTIONS)
    assert [(record.state, record.attempt) for record in records] == [("done", 2), ("done", 1)]


def test_ctrl_c_says_nothing_of_the_slide(slides, predictor, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tcgn_hub.prediction.cohort.outputs.Outputs.write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predictor.slides([slides / "s0.svs"], tmp_path, **OPTIONS)
    assert not (tmp_path / "cohort.jsonl").exists()
    assert not list((tmp_path / HIDDEN / "claims").iterdir())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"spots": "x.csv"}, TypeError, "spots is no option for many slides"),
        ({"strides": 1}, TypeError, "strides is no option"),
        ({"shard": (2, 2)}, ValueError, r"shard is \(2, 2\)"),
        ({"shard": (0, 2), "local_workers": 2}, DeviceError, "three ways to share the work"),
        ({"map": "given_depth"}, OutputError, "map says what plot and report draw"),
        ({"format": "docx"}, OutputError, "of no format that is known"),
        ({"client": "nowhere.json"}, DeviceError, "There is no scheduler file nowhere.json"),
    ],
)
def test_refusals(slides, predictor, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        predictor.slides([slides / "s0.svs"], tmp_path / "out", **options)
    assert not list(tmp_path.rglob("*.h5ad"))


def test_two_slides_of_one_name_and_none(slides, predictor, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(slides / "s0.svs", tmp_path / "other" / "s0.svs")
    with pytest.raises(OutputError, match=r"Two of the slides are named s0\.svs"):
        predictor.slides([slides / "s0.svs", tmp_path / "other" / "s0.svs"], tmp_path / "out")
    with pytest.raises(ImageError, match="no slides to predict"):
        predictor.slides([], tmp_path / "out")


def test_what_a_process_leaves_that_is_killed_once_a_slide_has_ended(serial, slides, predictor, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(serial, out)
    of_the_dead(Claims(out / HIDDEN / "claims").take("s0.svs.h5ad"))
    (out / HIDDEN / "partial" / "s1.svs.h5ad.01234567").mkdir()
    predictor.slides(sorted(slides.iterdir()), out, **OPTIONS)
    assert_as_serial(out, serial)


def test_maps_among_the_slides_are_no_slides(slides, tiny_weights, tmp_path, capsys):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("s0.svs", "s1.svs"):
        shutil.copy(slides / name, folder)
    for more in (["--plot", PANEL[0]], []):
        asked = [str(folder), "-o", str(folder), "--weights", str(tiny_weights), *ARGUMENTS, *more]
        assert main(["predict", *asked]) == 0
    assert main(["predict", *asked]) == 0
    assert len(list(folder.glob("*.png"))) == 4  # two maps, two of the tissue
    assert {line["slide"] for line in lines(folder)} == {str(folder / name) for name in ("s0.svs", "s1.svs")}


def test_a_name_that_is_too_long(slides, predictor, tmp_path):
    (tmp_path / ("ß" * 120)).symlink_to(slides / "s0.svs")
    with pytest.raises(OutputError, match="is too long to name files after"):
        predictor.slides([slides / "s0.svs", tmp_path / ("ß" * 120)], tmp_path / "out")


def test_a_slide_by_another_path_is_the_same(slides, predictor, tmp_path):
    (tmp_path / "link").symlink_to(slides)
    told = []
    for folder in (slides, tmp_path / "link"):
        predictor.slides([folder / "s0.svs"], tmp_path / "out", told=told.append, **OPTIONS)
    assert len(told) == 1


def test_weights_that_were_not_loaded_cannot_travel(slides, predictor, tmp_path):
    own = tcgn_hub.Predictor(predictor.backend, predictor.info)
    with pytest.raises(WeightsError, match=r"cannot be sent to a cluster, as tcgn_hub\.load has not loaded it"):
        own.slides([slides / "s0.svs"], tmp_path, client="tcp://127.0.0.1:1")


def interrupt(patch, *, after: bool) -> None:
    """Let the writing of outputs be interrupted as it begins, or as it ends."""
    real = Outputs.write

    def write(*given, **options):
        if after:
            real(*given, **options)
        raise KeyboardInterrupt

    patch.setattr(Outputs, "write", write)


def changed_run(folder: Path, **change) -> None:
    said = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**said, "run": {**said["run"], **change}}))


@pytest.mark.parametrize(
    "change",
    [
        lambda slide, partial: os.utime(slide, ns=(1, 1)),
        lambda slide, partial: changed_run(partial, precision="bfloat16"),
        lambda slide, partial: (partial / "run.json").write_text(""),
    ],
    ids=["slide changed", "other precision of another machine", "loss of power"],
)
def test_what_cannot_be_continued_is_begun_anew(slides, serial, predictor, tmp_path, monkeypatch, change):
    slide = tmp_path / "s0.svs"
    shutil.copy(slides / "s0.svs", slide)
    with monkeypatch.context() as patch:
        interrupt(patch, after=False)
        with pytest.raises(KeyboardInterrupt):
            predictor.slides([slide], tmp_path / "out", **OPTIONS)
    (partial,) = (tmp_path / "out" / HIDDEN / "partial").iterdir()
    change(slide, partial)
    (record,) = predictor.slides([slide], tmp_path / "out", **OPTIONS)
    assert record.state == "done"
    ours, theirs = (anndata.read_h5ad(where / "s0.svs.h5ad") for where in (tmp_path / "out", serial))
    np.testing.assert_array_equal(ours.X, theirs.X)


def test_a_run_that_is_killed_while_it_replaces_another(slides, serial, predictor, tmp_path, monkeypatch):
    some = [slides / "s0.svs"]
    predictor.slides(some, tmp_path, **OPTIONS)
    with monkeypatch.context() as patch:
        interrupt(patch, after=True)
        with pytest.raises(KeyboardInterrupt):
            predictor.slides(some, tmp_path, stride_um=100)
    assert anndata.read_h5ad(tmp_path / "s0.svs.h5ad").n_obs != anndata.read_h5ad(serial / "s0.svs.h5ad").n_obs
    predictor.slides(some, tmp_path, **OPTIONS)
    assert anndata.read_h5ad(tmp_path / "s0.svs.h5ad").n_obs == anndata.read_h5ad(serial / "s0.svs.h5ad").n_obs


def test_a_slide_that_was_refused_is_tried_with_the_option_that_allows_it(slides, predictor, tmp_path):
    options = {**OPTIONS, "mpp": 0.9}
    (record,) = predictor.slides([slides / "s0.svs"], tmp_path, **options)
    assert record.state == "failed"
    assert "force_scale" in record.error
    (record,) = predictor.slides([slides / "s0.svs"], tmp_path, force_scale=True, **options)
    assert record.state == "done"


def test_genes_of_a_file_are_those_it_had(slides, predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("panel.txt").write_text("\n".join(PANEL[:2]))
    asked = []
    real = tcgn_hub.Predictor.slide
    monkeypatch.setattr(
        tcgn_hub.Predictor, "slide", lambda *given, **options: asked.append(options["genes"]) or real(*given, **options)
    )
    predictor.slides([slides / "s0.svs"], "out", genes="panel.txt", **OPTIONS)
    assert asked == [PANEL[:2]]


def failing(patch, name: str, error: Exception) -> None:
    """Let one slide raise what is no fault of it."""
    real = tcgn_hub.Predictor.slide

    def slide(self, path, **options):
        if path.name == name:
            raise error
        return real(self, path, **options)

    patch.setattr(tcgn_hub.Predictor, "slide", slide)


def test_a_package_that_one_slide_needs_does_not_stop_the_others(slides, predictor, tmp_path, monkeypatch):
    some = [slides / f"s{n}.svs" for n in range(3)]
    with monkeypatch.context() as patch:
        failing(patch, "s0.svs", ExtraError("Install it."))
        records = predictor.slides(some, tmp_path, **OPTIONS)
    assert [(record.state, record.error) for record in records] == [("stopped", "Install it."), *[("done", "")] * 2]
    assert [record.state for record in predictor.slides(some, tmp_path, **OPTIONS)] == ["done"] * 3


def test_what_has_stopped_a_run_is_tried_after_the_others(slides, predictor, tmp_path, monkeypatch):
    some = [slides / f"s{n}.svs" for n in range(3)]
    failing(monkeypatch, "s0.svs", MemoryError("too large"))
    for done in (0, 2):
        with pytest.raises(MemoryError):
            predictor.slides(some, tmp_path, **OPTIONS)
        assert [line["state"] for line in lines(tmp_path)].count("done") == done


@pytest.mark.parametrize("name", ["cohort.csv", "bulk.csv"])
def test_tables_of_somebody_else_are_left_alone(slides, predictor, tmp_path, name):
    (tmp_path / name).write_text("patient,survival\n")
    with pytest.raises(OutputError, match=f"holds {name}, which no run has written"):
        predictor.slides([slides / "s0.svs"], tmp_path, **OPTIONS)
    assert (tmp_path / name).read_text() == "patient,survival\n"


# --------------------------------------------------------------------------------------------------------- claims


def test_a_claim_is_held_by_one(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        claim = first.take("a")
        assert claim is not None
        assert second.take("a") is None
        assert second.take("b") is not None
        assert second.holder("a")["pid"] == os.getpid()
        assert second.is_alive("a")
        first.release(claim)
        assert second.take("a") is not None
    assert not list(tmp_path.iterdir())


_TAKES = """
import sys, time
from pathlib import Path
from tcgn_hub.prediction.cohort.claims import Claims
with Claims(Path(sys.argv[1])) as claims:
    print("yes" if claims.take("a") else "no", flush=True)
    sys.stdin.read()
"""


def test_a_claim_of_a_process_that_is_gone_is_taken_over(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", _TAKES, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "yes\n"
    with Claims(tmp_path) as claims:
        assert claims.take("a") is None
        holder.kill()
        holder.communicate()
        claim = claims.take("a")
        assert claim.path.name == "a.1.claim"  # the generation after
        assert claims.holds(claim)
    assert not list(tmp_path.iterdir())


def other_machine(monkeypatch) -> None:
    """Claims that were made from now on look as those of another machine do once this is undone."""
    monkeypatch.setattr(claims_home, "_machine", lambda: "another")


def test_a_claim_of_another_machine_is_taken_over_once_nobody_touches_it(tmp_path, monkeypatch):
    clock = itertools.count(0, 20)
    far = Claims(tmp_path)
    with monkeypatch.context() as patch:
        other_machine(patch)
        claim = far.take("a")
    monkeypatch.setattr(claims_home, "monotonic", lambda: float(next(clock)))
    with Claims(tmp_path) as near:
        assert near.take("a") is None
        assert not near.is_alive("a")  # nothing is known of it yet
        os.utime(claim.path, ns=(0, 1))  # as its process does from time to time
        assert near.take("a") is None
        assert near.is_alive("a")
        assert near.take("a") is None
        for _ in range(20):
            taken = near.take("a")
            if taken:
                break
        assert taken is not None
        assert not far.holds(claim)
        far.release(claim)  # takes nothing from who has it now
        assert near.holds(taken)


def test_of_many_who_try_one_takes_over(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for round in range(20):
        with Claims(tmp_path / str(round)) as dead:
            claim = dead.take("a")
            said = json.loads(claim.path.read_text())
            claim.path.write_text(json.dumps({**said, "pid": gone.pid, "token": "of another"}))
            crowd = [Claims(tmp_path / str(round)) for _ in range(8)]
            with ThreadPoolExecutor(8) as pool:
                taken = list(pool.map(lambda one: one.take("a"), crowd))
            held = [claim for claim in taken if claim is not None]
            assert [claim.path.name for claim in held] == ["a.1.claim"], round
            assert crowd[0].holds(held[0])


def of_the_dead(claim) -> None:
    """Let a claim be that of a process that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    said = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps({**said, "pid": gone.pid, "token": "of another"}))


def test_a_claim_is_given_back_while_another_finds_that_it_was_too_late(tmp_path):
    own = Claims(tmp_path)
    claim = own.take("a")
    (tmp_path / "a.1.claim").write_text("{}")  # which it will delete
    own.release(claim)
    assert [path.name for path in tmp_path.iterdir()] == ["a.1.claim"]


def test_who_looked_at_a_dead_claim_does_not_take_over_the_one_after_it(tmp_path, monkeypatch):
    late, quick = Claims(tmp_path), Claims(tmp_path)
    of_the_dead(quick.take("a"))
    held = []
    judge = late._is_gone

    def while_others_go_on(*seen):
        gone = judge(*seen)
        if not held:
            quick.release(quick.take("a"))
            held.append(quick.take("a"))
            assert held[0].path.name == "a.0.claim"
        return gone

    monkeypatch.setattr(late, "_is_gone", while_others_go_on)
    assert late.take("a") is None
    assert quick.holds(held[0])


@pytest.mark.parametrize(
    ("fault", "error"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "full"), OutputError)]
)
def test_nothing_is_left_of_a_claim_that_was_not_made(tmp_path, monkeypatch, fault, error):
    def no(*_):
        raise fault

    monkeypatch.setattr(claims_home, "_identity", no)
    with pytest.raises(error):
        Claims(tmp_path).take("a")
    assert not list(tmp_path.iterdir())


def test_a_process_of_another_user_that_is_not_shown_is_not_gone(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    of_the_dead(Claims(tmp_path).take("a"))
    monkeypatch.setattr(os, "kill", refused)
    assert Claims(tmp_path).take("a") is None


_COUNTS = """
import sys
from pathlib import Path
from tcgn_hub.prediction.cohort.claims import Claims
from tcgn_hub.prediction.cohort.ledger import Ledger, Record
out = Path(sys.argv[1])
with Claims(out / "claims") as claims:
    for i in range(40):
        record = Record("s", 1, 1, f"{sys.argv[2]}-{i}", "r", "done", notes=["x" * 3000])
        Ledger(out).append(record, claims)
"""


def test_no_line_of_the_ledger_is_lost(tmp_path):
    run = [subprocess.Popen([sys.executable, "-c", _COUNTS, str(tmp_path), str(n)]) for n in range(4)]
    assert [one.wait() for one in run] == [0] * 4
    assert sorted(line["output"] for line in lines(tmp_path)) == sorted(f"{n}-{i}" for n in range(4) for i in range(40))


def test_what_a_loss_of_power_leaves_of_a_line(tmp_path, caplog):
    with Claims(tmp_path / "c") as claims:
        Ledger(tmp_path).append(Record("s", 1, 1, "a", "r", "done"), claims)
        with open(tmp_path / "cohort.jsonl", "a") as file:
            file.write('{"slide": "s", "si\n{"state": "unheard of"}\n')
        Ledger(tmp_path).append(Record("s", 1, 1, "b", "r", "failed"), claims)
    ledger = Ledger(tmp_path)
    assert [record.output for record in ledger.records] == ["a", "b"]
    assert "cohort.jsonl, line 2, is left out" in caplog.text
    with open(tmp_path / "cohort.jsonl", "a") as file:
        file.write('{"slide": "s", ')  # being written
    ledger.refresh()
    assert len(ledger.records) == 2


def test_a_line_without_an_end_does_not_spoil_the_next(tmp_path):
    with Claims(tmp_path / "c") as claims:
        early = Ledger(tmp_path)
        (tmp_path / "cohort.jsonl").write_text('{"slide": "s", "si')
        early.refresh()
        early.append(Record("s", 1, 1, "b", "r", "failed"), claims)
    early.refresh()
    for ledger in (early, Ledger(tmp_path)):
        assert [record.output for record in ledger.records] == ["b"]


# --------------------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
def test_shards_begin_apart_and_each_gets_round_to_all(count):
    items = list(range(11))
    orders = [in_order(items, (index, count)) for index in range(count)]
    assert all(sorted(order) == items for order in orders)
    own = [order[: len(items[index::count])] for index, order in enumerate(orders)]
    assert sorted(itertools.chain(*own)) == items


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/2", "1/2/3"])
def test_what_is_no_shard(text):
    with pytest.raises(ValueError, match="is no shard"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("environ", "shard"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8"}, (2, 8)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "7"}, (0, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_MIN": "2",
                "SLURM_ARRAY_TASK_MAX": "10",
                "SLURM_ARRAY_TASK_STEP": "4",
            },
            (1, 3),
        ),
        ({"SGE_TASK_ID": "2", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "4", "SGE_TASK_STEPSIZE": "1"}, (1, 4)),
        ({"SGE_TASK_ID": "undefined", "SGE_TASK_FIRST": "undefined", "SGE_TASK_LAST": "undefined"}, None),
        ({"LSB_JOBINDEX": "4", "LSB_JOBINDEX_END": "4"}, (3, 4)),
        ({"LSB_JOBINDEX": "0", "LSB_JOBINDEX_END": "0"}, None),
    ],
)
def test_the_shard_of_a_job(environ, shard):
    assert shard_of_job(environ) == shard


def test_shards_that_begin_together_do_each_slide_once(slides, serial, tiny_weights, tmp_path):
    """Two of them are the same shard, as after a job that was believed dead is started anew."""
    run = [
        subprocess.Popen(command(slides, tmp_path, tiny_weights, "--shard", shard), stderr=subprocess.PIPE, text=True)
        for shard in ("1/2", "1/2", "2/2")
    ]
    said = [one.communicate(timeout=300)[1] for one in run]
    assert [one.returncode for one in run] == [1, 1, 1], said  # one slide is none
    assert not [text for text in said if "Traceback" in text]
    assert_as_serial(tmp_path, serial)
    assert len(table(tmp_path / "cohort.csv")) == 7


def test_a_shard_that_is_killed_loses_nothing(slides, serial, tiny_weights, tmp_path):
    process = subprocess.Popen(command(slides, tmp_path, tiny_weights, "--shard", "1/2"), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / HIDDEN / "claims").is_dir() or not list((tmp_path / HIDDEN / "claims").glob("*.svs.*")):
        time.sleep(0.01)
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / HIDDEN / "claims").iterdir())
    assert main(command(slides, tmp_path, tiny_weights, "--shard", "2/2")[3:]) == 1
    assert_as_serial(tmp_path, serial)


def test_a_job_of_an_array_is_a_shard(slides, tiny_weights, tmp_path, monkeypatch, capsys):
    for name, value in (("ID", "2"), ("MIN", "1"), ("MAX", "3")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert main(command(slides, tmp_path, tiny_weights)[3:]) == 1
    said = capsys.readouterr().err
    assert "job 2 of 3 of an array begins with its part of the slides" in said
    assert [line["output"] for line in lines(tmp_path)][:2] == ["s0.svs.h5ad", "s3.svs.h5ad"]


def test_the_part_of_a_shard_is_the_same_whenever_it_begins(slides, predictor, tmp_path):
    some, told = [slides / f"s{number}.svs" for number in range(6)], []
    predictor.slides(some[:1], tmp_path, **OPTIONS)
    predictor.slides(some, tmp_path, shard=(1, 3), told=told.append, **OPTIONS)
    assert [Path(record.slide).name for record in told][:2] == ["s1.svs", "s4.svs"]


# -------------------------------------------------------------------------------------------- the cohort as a whole


def test_the_commands(serial, slides, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(serial, out)
    assert main(["cohort", "status", str(out)]) == 1
    told = capsys.readouterr()
    assert "bad.svs is no image that can be read" in told.out
    assert "7 slides: 6 done, 1 failed" in told.err
    assert main(["cohort", "status", str(out), "--json"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 7
    assert main(["cohort", "verify", str(out)]) == 0
    assert "6 slides of 6 as written" in capsys.readouterr().err
    with open(out / "s1.svs.h5ad", "r+b") as file:
        file.seek(100)
        file.write(b"x")
    (out / "s2.svs.h5ad").unlink()
    assert main(["cohort", "verify", str(out)]) == 1
    told = capsys.readouterr().err
    assert "s1.svs.h5ad is not what was written" in told
    assert "s2.svs.h5ad cannot be read (No such file or directory)" in told
    assert "4 slides of 6 as written" in told
    assert main(["cohort", "status", str(tmp_path)]) == 2
    assert "cohort.jsonl does not exist or names no slide" in capsys.readouterr().err


def test_tables_of_all_slides(serial, predictor, slides):
    all_rows = table(serial / "cohort.csv")
    assert [row["state"] for row in all_rows].count("done") == 6
    bulk = table(serial / "bulk.csv")
    assert [Path(row["slide"]).name for row in bulk] == [f"s{n}.svs" for n in range(6)]
    result = predictor.slide(slides / "s3.svs", **OPTIONS)
    np.testing.assert_allclose([float(bulk[3][gene]) for gene in result.genes], result.bulk(), rtol=1e-5)
    profiles = np.array([[float(row[gene]) for gene in PANEL] for row in bulk])
    wanted = [np.corrcoef(profile, np.median(profiles, axis=0))[0, 1] for profile in profiles]
    told = [float(row["bulk_pcc"]) for row in all_rows if row["state"] == "done"]
    np.testing.assert_allclose(told, wanted, atol=2e-3)


def test_outliers_are_those_far_from_the_others():
    values = [0.1, 0.11, 0.09, 0.1, 0.12, 0.08, 0.1, 0.11, 0.9, None]
    same = [5.0] * 9 + [6.0]
    found = outliers([values, same, [None] * 10, [1.0] * 10])
    assert found[0].tolist() == [False] * 8 + [True, False]
    assert found[1].tolist() == [False] * 9 + [True]
    assert not found[2:].any()
    assert not outliers([[0.1, 0.1, 0.1, 9.0]]).any()  # of so few none is


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_all_tiles_in_one_file(serial, tmp_path, suffix):
    path = tmp_path / f"all{suffix}"
    assert concatenate(Ledger(serial), path) == 6
    joined = anndata.read_h5ad(path) if suffix == ".h5ad" else anndata.read_zarr(path)
    single = [anndata.read_h5ad(serial / f"s{n}.svs.h5ad") for n in range(6)]
    np.testing.assert_array_equal(joined.X, np.concatenate([one.X for one in single]))
    np.testing.assert_array_equal(joined.layers["z"], np.concatenate([one.layers["z"] for one in single]))
    assert joined.obs["slide"].value_counts()["s2.svs"] == single[2].n_obs
    assert joined.obs_names.is_unique
    assert list(joined.var["significant"]) == list(single[0].var["significant"])
    with pytest.raises(OutputError, match="is there"):
        concatenate(Ledger(serial), path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_put_into_one_file(serial, tmp_path):
    with pytest.raises(OutputError, match=r"neither \.h5ad nor \.zarr"):
        concatenate(Ledger(serial), tmp_path / "all.csv")
    with pytest.raises(OutputError, match="has no slide that is done"):
        concatenate(Ledger(tmp_path), tmp_path / "all.h5ad")


def test_bulk_of_a_cohort_where_it_is_asked_for(serial, tmp_path):
    ledger = Ledger(serial)
    write_summary(ledger, ledger.records, bulk=tmp_path / "b.csv")
    assert (tmp_path / "b.csv").read_text() == (serial / "bulk.csv").read_text()
    assert len(json.loads((tmp_path / "b.csv.json").read_text())["runs"]) == 6


def test_a_look_before_the_night(slides, serial, tiny_weights, tmp_path, capsys):
    assert main(command(slides, tmp_path / "out", tiny_weights, "--dry-run")[3:]) == 1
    told = capsys.readouterr()
    rows = told.out.splitlines()
    assert "bad.svs is no image that can be read" in rows[1]
    tiles = {Path(row.split()[0]).name: int(row.split()[1]) for row in rows[2:]}
    assert tiles == {
        f"s{n}.svs": len(tcgn_hub.load(path=tiny_weights).slide(slides / f"s{n}.svs", **OPTIONS)) for n in range(6)
    }
    assert f"6 of 7 slides, {sum(tiles.values())} tiles: about" in told.err
    most = 1e6 * int(re.search(r"at most (\d+) MB", told.err)[1])
    assert most / 20 < sum(map(len, files(serial).values())) < most
    assert not (tmp_path / "out").exists()


def test_slides_of_two_runs_are_not_put_together(slides, predictor, tmp_path, capsys):
    predictor.slides([slides / "s0.svs"], tmp_path, **OPTIONS)
    predictor.slides([slides / "s1.svs"], tmp_path, stride_um=100)
    with pytest.raises(OutputError, match="were predicted by different weights or options"):
        concatenate(Ledger(tmp_path), tmp_path / "all.h5ad")
    assert main(["cohort", "summary", str(tmp_path)]) == 0
    assert "these slides are of 2 runs" in capsys.readouterr().err


def test_bulk_of_no_slide(slides, predictor, tmp_path):
    records = predictor.slides([slides / "bad.svs"], tmp_path, **OPTIONS)
    with pytest.raises(OutputError, match="as there are none"):
        write_summary(Ledger(tmp_path), records, bulk=tmp_path / "b.csv")


@pytest.mark.parametrize("shard", [["--shard", "1/2"], []])
def test_one_slide_that_several_jobs_share(slides, tiny_weights, tmp_path, monkeypatch, shard):
    for name, value in (("ID", "2"), ("MIN", "1"), ("MAX", "3")) if not shard else ():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    for _ in range(2):
        assert main(command(slides / "s0.svs", tmp_path / "out", tiny_weights, *shard)[3:]) == 0
    assert [line["state"] for line in lines(tmp_path / "out")] == ["done"]


def test_shards_of_one_file(slides, tiny_weights, tmp_path, capsys):
    assert main(command(slides / "s0.svs", tmp_path / "a.h5ad", tiny_weights, "--shard", "1/2")[3:]) == 2
    assert "--shard is for slides that go into a folder" in capsys.readouterr().err
