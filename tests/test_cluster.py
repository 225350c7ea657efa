"""A cohort on real clusters of Dask: schedulers and workers in processes of their own, which may die."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distributed import Client
from sections import PANEL, write_section
from test_cohort import (  # noqa: F401 - fixtures
    OPTIONS,
    assert_as_serial,
    command,
    files,
    lines,
    one_thread,
    predictor,
    serial,
    slides,
)
from test_training import SMALL

import tcgn_hub
from tcgn_hub.cli.main import main
from tcgn_hub.errors import WeightsError
from tcgn_hub.prediction.cohort.cluster import ONE, OneAtATime, run_on
from tcgn_hub.prediction.cohort.ledger import HIDDEN, Ledger
from tcgn_hub.prediction.cohort.outputs import Outputs
from tcgn_hub.prediction.cohort.run import _job

ROOT = Path(__file__).resolve().parents[1]
# as an installation has them; what Dask waits for is made short
ENV = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s",
}


class Cluster:
    """A scheduler and its workers, as `dask scheduler` and `dask worker` start them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.scheduler = self.start("scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(self.file))
        self.workers: list[subprocess.Popen] = []

    def start(self, kind: str, *arguments: str, before=None) -> subprocess.Popen:
        log = open(self.folder / f"{kind}-{time.monotonic_ns()}.log", "w")  # noqa: SIM115 - the process has it
        own = ["--host", "127.0.0.1", *arguments]
        return subprocess.Popen(
            [sys.executable, "-m", "dask", kind, *own], stdout=log, stderr=log, env=ENV, preexec_fn=before
        )

    def worker(self, *arguments: str, before=None) -> subprocess.Popen:
        """Another one, without a nanny, which would start it anew."""
        places = ["--scheduler-file", str(self.file), "--local-directory", str(self.folder)]
        one = self.start(
            "worker", *places, "--nthreads", "1", "--no-nanny", "--no-dashboard", *arguments, before=before
        )
        self.workers.append(one)
        return one

    def client(self) -> Client:
        client = Client(scheduler_file=str(self.file))
        client.wait_for_workers(len([one for one in self.workers if one.poll() is None]), timeout=60)
        return client

    def close(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "dask").mkdir()
    with contextlib.closing(Cluster(tmp_path / "dask")) as own:
        yield own


def wait_until(what, *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def claimed(out: Path) -> dict[str, int]:
    """Slides that are being predicted, and by which process."""
    from tcgn_hub.prediction.cohort.claims import Claims

    if not (out / HIDDEN / "claims").is_dir():
        return {}
    held = Claims(out / HIDDEN / "claims").held()
    return {name: who.get("pid", 0) for name, who in held.items() if name != "ledger"}


def test_two_workers_give_what_one_process_gives(cluster, slides, serial, predictor, tmp_path):  # noqa: F811
    cluster.worker()
    cluster.worker()
    told = []
    with cluster.client() as client:
        records = predictor.slides(
            sorted(slides.iterdir()), tmp_path / "out", client=client, told=told.append, **OPTIONS
        )
        assert [record.state for record in records] == ["failed", *["done"] * 6]
        assert {record.pid for record in told} == {worker.pid for worker in cluster.workers}
        before = lines(tmp_path / "out")
        assert len(before) == 7
        # nothing is left of it on the cluster
        wait_until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)), seconds=10)
        again = predictor.slides(sorted(slides.iterdir()), tmp_path / "out", client=client, **OPTIONS)
        assert again == records
        assert lines(tmp_path / "out") == before
    assert_as_serial(tmp_path / "out", serial)


def test_a_worker_that_is_killed_in_the_middle_of_a_slide(cluster, slides, serial, tiny_weights, tmp_path):  # noqa: F811
    cluster.worker()
    cluster.worker()
    out = tmp_path / "out"
    arguments = command(slides, out, tiny_weights, "--scheduler", str(cluster.file))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=ENV)
    wait_until(lambda: process.poll() is not None or cluster.workers[0].pid in claimed(out).values())
    cluster.workers[0].send_signal(signal.SIGKILL)
    err = process.communicate(timeout=200)[1]
    assert process.returncode == 1, err
    assert "bad.svs is no image that can be read" in err
    assert "Traceback" not in err
    assert_as_serial(out, serial)


def test_a_scheduler_that_is_killed(cluster, slides, serial, tiny_weights, tmp_path):  # noqa: F811
    cluster.worker()
    out = tmp_path / "out"
    arguments = command(slides, out, tiny_weights, "--scheduler", str(cluster.file))
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=ENV)
    wait_until(lambda: process.poll() is not None or files(out) if out.is_dir() else False)
    cluster.scheduler.send_signal(signal.SIGKILL)
    err = process.communicate(timeout=200)[1]
    assert process.returncode == 2, err
    assert "was lost with" in err.splitlines()[-1]
    assert "what is done is kept, run again to continue" in err
    assert "Traceback" not in err
    cluster.close()
    cluster.file.unlink(missing_ok=True)
    with contextlib.closing(Cluster(tmp_path / "dask")) as another:
        another.worker()
        assert subprocess.run(arguments, stderr=subprocess.PIPE, env=ENV).returncode == 1
    assert_as_serial(out, serial)


def small_files() -> None:
    """A disk that is full for one process: none of its files may grow beyond what notes and claims take."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))


def test_a_full_disk_on_one_worker(cluster, slides, serial, predictor, tmp_path):  # noqa: F811
    cluster.worker(before=small_files)
    with cluster.client() as client:
        bad = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
        cluster.worker()
        client.wait_for_workers(2, timeout=60)
        # tiles that are read by processes go through files in shared memory, which are small here as well
        predictor.slides(sorted(slides.iterdir()), tmp_path / "out", client=client, workers=0, **OPTIONS)
        assert bad in client.scheduler_info(n_workers=-1)["workers"]
    stopped = [line for line in lines(tmp_path / "out") if line["state"] == "stopped"]
    assert all("File too large" in line["error"] for line in stopped)
    assert {line["pid"] for line in stopped} <= {cluster.workers[0].pid}
    assert_as_serial(tmp_path / "out", serial)


_FULL = """
from tcgn_hub.errors import OutputError
from tcgn_hub.prediction.cohort.outputs import Outputs

def full(*_, **__):
    raise OutputError("The disk is full.")

Outputs.write = full
"""
_SLOW = """
import time
from tcgn_hub.prediction.cohort.outputs import Outputs

Outputs.write = lambda *_, **__: time.sleep(1000)
"""


def preload(folder: Path, name: str, text: str) -> list[str]:
    """What lets a worker be another than it is."""
    (folder / name).write_text(text)
    return ["--preload", str(folder / name)]


def test_workers_that_were_to_do_what_one_could_not_leave(cluster, slides, predictor, tmp_path):  # noqa: F811
    cluster.worker(*preload(tmp_path, "full.py", _FULL))
    slow = cluster.worker(*preload(tmp_path, "slow.py", _SLOW))
    some, out = [slides / f"s{n}.svs" for n in range(4)], tmp_path / "out"
    with cluster.client() as client, ThreadPoolExecutor(1) as pool:
        run = pool.submit(predictor.slides, some, out, client=client, **OPTIONS)
        ledger = out / "cohort.jsonl"
        wait_until(lambda: ledger.exists() and len(lines(out)) == 3 and slow.pid in claimed(out).values())
        cluster.worker()
        client.wait_for_workers(3, timeout=60)
        slow.kill()
        assert [record.state for record in run.result(timeout=120)] == ["done"] * 4


def test_what_waits_for_a_first_worker(cluster):
    with Client(scheduler_file=str(cluster.file)) as client:
        client.register_plugin(OneAtATime())
        waits = client.submit(int, 1, resources={ONE: 1})
        cluster.worker()
        assert waits.result(timeout=60) == 1


def test_a_worker_that_comes_after_one_of_two_runs_has_ended(cluster, slides, predictor, tmp_path):  # noqa: F811
    cluster.worker()
    some = [slides / "s0.svs"]
    outputs = Outputs()
    job = _job(predictor, tmp_path / "out", outputs, OPTIONS, False)
    with cluster.client() as first, cluster.client() as second:
        todo = [(some[0], "s0.svs.h5ad")]
        other = run_on(second, job, [*todo, (slides / "s1.svs", "s1.svs.h5ad")], Ledger(job.out), progress=False)
        assert next(other).state == "done"
        list(run_on(first, job, todo, Ledger(job.out), progress=False))
        cluster.worker()
        second.wait_for_workers(2, timeout=60)
        known = lambda: second.scheduler_info(n_workers=-1)["workers"].values()  # noqa: E731
        wait_until(lambda: all(ONE in worker["resources"] for worker in known()), seconds=30)
        other.close()


def test_weights_that_are_others_on_a_worker(cluster, slides, predictor, tiny_weights, tmp_path):  # noqa: F811
    shutil.copytree(tiny_weights, tmp_path / "weights")
    own = tcgn_hub.load(path=tmp_path / "weights")
    content = bytearray((tmp_path / "weights" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights" / "model.safetensors").write_bytes(bytes(content))
    cluster.worker()
    with cluster.client() as client, pytest.raises(WeightsError, match="is another file on the machine of a worker"):
        own.slides([slides / "s0.svs"], tmp_path / "out", client=client, **OPTIONS)
    assert not files(tmp_path / "out")


def test_a_gpu_that_workers_declare_is_asked_for(cluster, slides, predictor, tmp_path):  # noqa: F811
    cluster.worker("--resources", "GPU=1")
    cluster.worker()
    told = []
    with cluster.client() as client:
        some = [slides / f"s{n}.svs" for n in range(3)]
        predictor.slides(some, tmp_path / "out", client=client, told=told.append, **OPTIONS)
    assert {record.pid for record in told} == {cluster.workers[0].pid}


def test_local_workers(slides, serial, tiny_weights, tmp_path, capsys):  # noqa: F811
    assert main(command(slides, tmp_path / "out", tiny_weights, "--local-workers", "2")[3:]) == 1
    said = capsys.readouterr().err
    assert "The dashboard of the cluster is at http://127.0.0.1:" in said
    assert "6 of 7 slides" in said.splitlines()[-1]
    assert_as_serial(tmp_path / "out", serial)


def test_nobody_answers(slides, tiny_weights, tmp_path, capsys, monkeypatch):  # noqa: F811
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        arguments = command(slides, tmp_path / "out", tiny_weights, "--scheduler", "tcp://127.0.0.1:9")
        assert main(arguments[3:]) == 2
    err = capsys.readouterr().err
    assert "No Dask scheduler answers at tcp://127.0.0.1:9" in err.splitlines()[-1]


def test_without_dask(slides, tiny_weights, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(command(slides, tmp_path / "out", tiny_weights, "--local-workers", "2")[3:]) == 2
    assert "install distributed: pip install 'tcgn_hub[cluster]'" in capsys.readouterr().err


def test_folds_on_a_cluster_are_those_of_one_process(cluster, tmp_path):
    for name in ("A1", "B1", "C1"):
        write_section(tmp_path / "data", name, spots=12, seed=ord(name[0]))
    recipe = tcgn_hub.Recipe(**SMALL)
    options = {"genes": PANEL, "recipe": recipe, "device": "cpu", "progress": False, "checkpoint_minutes": 0}
    alone = tcgn_hub.crossval(tmp_path / "data", out=tmp_path / "alone", **options)
    cluster.worker()
    cluster.worker()
    with cluster.client() as client:
        shared = tcgn_hub.crossval(tmp_path / "data", out=tmp_path / "shared", client=client, **options)
    assert shared.summary == alone.summary
    for fold in ("patient_A", "patient_B", "patient_C"):
        ours, theirs = (tmp_path / where / fold / "model.safetensors" for where in ("shared", "alone"))
        assert ours.read_bytes() == theirs.read_bytes()


# ------------------------------------------------------------------------------------------------------- examples

EXAMPLES = ROOT / "examples"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """`tcgn` among the commands, as an installation has it, and an `srun` that runs what it is given."""
    (tmp_path / "bin").mkdir()
    for name, line in (("tcgn", f'exec "{sys.executable}" -m tcgn_hub.cli.main "$@"'), ("srun", 'exec "$@"')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_the_array_of_jobs(installed, slides, tiny_weights, tmp_path):  # noqa: F811
    """Each job of it, one after the other, as SLURM would start them."""
    for job in (1, 2):
        array = {"SLURM_ARRAY_TASK_ID": str(job), "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "2"}
        more = ["--weights", str(tiny_weights), "--stride-um", "100"]
        script = [str(EXAMPLES / "slurm" / "array.sbatch"), str(slides), str(tmp_path / "out"), *more]
        done = subprocess.run(["bash", *script], env={**os.environ, **array}, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr  # one slide is none
        assert f"job {job} of 2 of an array begins with its part" in done.stderr
    assert "7 slides ended before, 1 failed; --retry-failed tries them again." in done.stderr
    assert len(files(tmp_path / "out")) == 6


def test_a_cluster_of_jobs(tmp_path):
    """What would be submitted."""
    script = [str(EXAMPLES / "slurm" / "dask_cluster.py"), str(tmp_path), str(tmp_path / "out"), "--show"]
    done = subprocess.run([sys.executable, *script], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gres=gpu:1" in done.stdout
    assert "--resources GPU=1" in done.stdout
    assert "export DASK_DISTRIBUTED__WORKER__DAEMON=False" in done.stdout


def test_rules_of_snakemake(installed, slides, tmp_path):  # noqa: F811
    (tmp_path / "some").mkdir()
    for name in ("s0.svs", "s1.svs"):
        shutil.copy(slides / name, tmp_path / "some")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(EXAMPLES / "snakemake" / "Snakefile")]
    config = ["--config", f"slides={tmp_path / 'some'}", f"out={tmp_path / 'out'}", "shards=2"]
    for more in (["--dry-run"], ["--cores", "2"]):
        done = subprocess.run([*command, *more, *config], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(files(tmp_path / "out")) == 2
    assert len((tmp_path / "out" / "cohort.csv").read_text().splitlines()) == 3
