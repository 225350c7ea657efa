"""Finding weights: the resolver against a hub on loopback, one that behaves and one that does not.

The client is the real one of huggingface_hub, and timm's. In every case the answer is the right bits or one sentence.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from hub_server import TOKEN, Faults, Hub
from safetensors.torch import load_file

import tcgn_hub
from tcgn_hub.errors import ManifestError, WeightsError
from tcgn_hub.models.loading import load_model
from tcgn_hub.weights import hub as resolver
from tcgn_hub.weights.hub import cached_path, clear_cache, downloads_folder, pull, resolve, sha256_of, where
from tcgn_hub.weights.manifest import find_weights, load_manifest, reload_manifest
from tcgn_hub.weights.model_dir import save_model_dir

REPO, TAG = "lab/tcgn", "tcgn_base.lab"
BUNDLED = "tcgn_base.her2st"
DATA = random.Random(0).randbytes(1_000_000)


def write_manifest(path, revision, files, **changes):
    """A lab's manifest of one entry; files: name -> (size, sha256)."""
    entry = {
        "tag": TAG,
        "panel": ["GNAS", "FASN"],
        "units": "counts",
        "crop": {"px": 112, "magnification": 20},
        "training_data": {"name": "lab"},
        "held_out": {"pcc": [0.5, 0.1], "median_pcc": 0.3, "significant": ["GNAS"]},
        "files": [{"name": name, "size": size, "sha256": digest} for name, (size, digest) in files.items()],
        "bundled": False,
        "hub": {"repo_id": REPO, "revision": revision},
        "license": "MIT",
        "origin": "a test",
        **changes,
    }
    path.write_text(json.dumps({"schema": 1, "models": [entry]}))


def facts_of(data: bytes):
    import hashlib

    return len(data), hashlib.sha256(data).hexdigest()


def use_endpoint(monkeypatch, url):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has the weights of a lab's manifest."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with Hub() as hub:
        revision = hub.add(REPO, {"model.safetensors": DATA})
        write_manifest(tmp_path / "lab.json", revision, {"model.safetensors": facts_of(DATA)})
        monkeypatch.setenv("TCGN_MANIFEST", str(tmp_path / "lab.json"))
        use_endpoint(monkeypatch, hub.url)
        reload_manifest()
        # no waiting between tries; what the waits add up to is measured in test_a_dead_server
        monkeypatch.setattr(resolver, "time", SimpleNamespace(sleep=lambda s: None, monotonic=time.monotonic))
        yield hub


def run(code, hub, home, **env):
    """A new process that resolves; the tests that ask what survives a process."""
    names = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    env = {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "TCGN_MANIFEST": os.environ["TCGN_MANIFEST"], **env}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home
    )


RESOLVE = f"from tcgn_hub.weights.hub import resolve; print(resolve('{TAG}').path)"


def refused(match):
    return pytest.raises(WeightsError, match=match)


def nothing_is_believed(cache_dir=None):
    folder = downloads_folder(cache_dir)
    return not [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".part", ".lock")]


# what should happen


def test_the_order_explicit_bundled_cache_hub(hub, tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(DATA)
    assert resolve(str(path)).source == resolve(path).source == "path"
    assert resolve(BUNDLED).source == resolve("tcgn_base").source == "bundled"
    assert resolve("tcgn_base").entry.tag == BUNDLED
    assert not hub.log

    first = resolve(TAG)
    assert (first.source, first.path.read_bytes() == DATA, first.sha256) == ("hub", True, facts_of(DATA)[1])
    asked = len(hub.log)
    assert resolve(TAG).source == "cache"
    assert len(hub.log) == asked
    assert [path.split("/")[4] for _, path, _ in hub.log if "/resolve/" in path] == [find_weights(TAG).hub["revision"]]


def test_a_tag_is_a_tag_whatever_lies_around(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (TAG, BUNDLED, "tcgn_base"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"other")
    assert resolve(TAG).source == "hub"
    assert resolve(BUNDLED).source == resolve("tcgn_base").source == "bundled"
    assert tcgn_hub.load().info.sha256 == find_weights(BUNDLED).info.sha256
    assert tcgn_hub.load("tcgn_base").info == tcgn_hub.load().info
    for meant in (Path(BUNDLED), f"./{BUNDLED}"):
        assert resolve(meant).path.read_bytes() == b"other"
    with refused("cannot be read as parameters"):
        tcgn_hub.load(path=BUNDLED)


def test_cache_dir(hub, tmp_path):
    resolved = resolve(TAG, cache_dir=tmp_path / "here")
    assert tmp_path / "here" in resolved.path.parents
    assert where(find_weights(TAG)) == "hub"
    assert where(find_weights(TAG), cache_dir=tmp_path / "here") == "cached"
    assert clear_cache(cache_dir=tmp_path / "here") >= len(DATA)
    assert where(find_weights(TAG), cache_dir=tmp_path / "here") == "hub"


def test_the_environment_is_respected(hub, tmp_path):
    hub.token = TOKEN
    hub.faults = Faults(status=401, error_code="GatedRepo", times=0)
    process = run(RESOLVE, hub, tmp_path, HF_TOKEN="expired")
    assert "refused your token" in process.communicate()[1]
    process = run(RESOLVE, hub, tmp_path, HF_TOKEN=TOKEN)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert Path(out.strip()).read_bytes() == DATA
    assert tmp_path in Path(out.strip()).parents


def test_a_terminal_sees_a_progress_bar(hub, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    resolve(TAG)
    assert "model.safetensors: 100%" in capsys.readouterr().err
    clear_cache()
    resolve(TAG, progress=False)
    assert capsys.readouterr().err == ""


def test_two_processes_at_once(hub, tmp_path):
    hub.faults.slow = 0.05
    processes = [run(RESOLVE, hub, tmp_path) for _ in range(3)]
    paths = {process.communicate()[0].strip() for process in processes}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == DATA
    assert len(hub.gets("model.safetensors")) == 1


def test_a_killed_download_is_continued(hub, tmp_path):
    hub.faults.slow = 0.2
    process = run(RESOLVE, hub, tmp_path)
    part = None
    while part is None or part.stat().st_size < 200_000:
        time.sleep(0.05)
        part = next(tmp_path.rglob("*.part"), None)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(tmp_path.rglob("model.safetensors"))

    hub.faults.slow = 0
    process = run(RESOLVE, hub, tmp_path)
    assert Path(process.communicate()[0].strip()).read_bytes() == DATA
    begin = int(hub.gets("model.safetensors")[-1].removeprefix("bytes=").rstrip("-"))
    assert 200_000 <= begin < len(DATA)


def test_ctrl_c_is_one_line(hub, tmp_path):
    hub.faults.slow = 0.2
    code = f"import sys; from tcgn_hub.cli.main import main; sys.exit(main(['weights', 'pull', '{TAG}']))"
    process = run(code, hub, tmp_path)
    while not list(tmp_path.rglob("*.part")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "tcgn weights: interrupted"
    assert "Traceback" not in err


def test_a_changed_cache_is_noticed_and_mended(hub):
    path = resolve(TAG).path
    path.write_bytes(bytes(len(DATA)))
    with refused(r"damaged.*tcgn weights pull"):
        resolve(TAG, download=False)
    assert resolve(TAG).source == "hub"
    assert path.read_bytes() == DATA


def test_lab_manifests(hub, tmp_path, monkeypatch):
    assert TAG in load_manifest()
    monkeypatch.setenv("TCGN_MANIFEST", os.pathsep.join([str(tmp_path / "lab.json"), str(tmp_path / "no.json")]))
    load_manifest.cache_clear()
    with pytest.raises(ManifestError, match=r"no\.json cannot be read"):
        load_manifest()
    write_manifest(tmp_path / "no.json", "0" * 40, {"model.safetensors": facts_of(DATA)}, tag=BUNDLED)
    text = (tmp_path / "no.json").read_text()
    with pytest.raises(ManifestError, match=r"her2st, which is taken"):
        load_manifest()
    (tmp_path / "no.json").write_text(text.replace('"units"', '"unit"'))
    with pytest.raises(ManifestError, match=r"no\.json: \$\.models\[0\]\.units is missing"):
        load_manifest()
    monkeypatch.undo()


def test_files_beside_a_labs_manifest(tmp_path, monkeypatch):
    write_manifest(
        tmp_path / "lab.json",
        None,
        {"model.safetensors": facts_of(DATA)},
        bundled=True,
        hub={"repo_id": None, "revision": None},
    )
    (tmp_path / TAG).mkdir()
    (tmp_path / TAG / "model.safetensors").write_bytes(DATA)
    monkeypatch.setenv("TCGN_MANIFEST", str(tmp_path / "lab.json"))
    reload_manifest()
    assert resolve(TAG).path == tmp_path / TAG / "model.safetensors"


# what goes wrong


@pytest.mark.parametrize(
    ("status", "code", "message", "token", "says"),
    [
        (404, "EntryNotFound", None, None, "has no file model.safetensors"),
        (404, "RepoNotFound", None, None, "no repository lab/tcgn .* or it is private"),
        (401, "RepoNotFound", None, None, "no repository lab/tcgn .* or it is private"),
        (404, "RevisionNotFound", None, None, "no longer has the revision"),
        (403, "GatedRepo", None, TOKEN, "is gated: accept its terms at http.*/lab/tcgn, then log in"),
        (401, "GatedRepo", None, None, "is gated: accept its terms"),
        (401, None, "Invalid credentials in Authorization header", TOKEN, "refused your token .*expired"),
        (403, None, None, TOKEN, "refused access to lab/tcgn"),
        (404, None, None, None, "no repository"),
        (418, None, None, None, "answered 418"),
    ],
)
def test_refusals_are_told_once(hub, monkeypatch, status, code, message, token, says):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.faults = Faults(status=status, error_code=code, message=message)
    with refused(says) as raised:
        resolve(TAG)
    assert "\n" not in str(raised.value)
    assert len(hub.gets("model.safetensors")) == 1
    assert nothing_is_believed()


def test_a_revision_that_is_gone(hub):
    hub.repos[REPO].commits.clear()
    with refused("no longer has the revision"):
        resolve(TAG)


def test_a_branch_that_moved_does_not_matter(hub):
    hub.add(REPO, {"model.safetensors": b"new weights"})
    assert resolve(TAG).path.read_bytes() == DATA


def test_server_errors_are_tried_again_a_few_times(hub):
    hub.faults = Faults(status=500, times=2)
    assert resolve(TAG).path.read_bytes() == DATA
    clear_cache()
    hub.log.clear()
    hub.faults = Faults(status=503)
    with refused("answered 503"):
        resolve(TAG)
    assert len(hub.gets("model.safetensors")) == 4


@pytest.mark.parametrize("tenth", range(10))
def test_a_connection_cut_at_every_tenth(hub, tenth):
    hub.faults = Faults(cut_after=tenth * len(DATA) // 10, cuts=1)
    assert resolve(TAG).path.read_bytes() == DATA
    expected = [None, f"bytes={tenth * len(DATA) // 10}-" if tenth else None]
    assert hub.gets("model.safetensors") == expected


def test_a_connection_cut_again_and_again(hub):
    hub.faults = Faults(cut_after=70_000)
    assert resolve(TAG).path.read_bytes() == DATA
    clear_cache()
    hub.faults = Faults(cut_after=0)
    with refused("cannot be reached, or broke off"):
        resolve(TAG)


def test_a_server_that_ignores_ranges(hub):
    hub.faults = Faults(cut_after=300_000, cuts=1, ignore_range=True)
    assert resolve(TAG).path.read_bytes() == DATA
    assert hub.gets("model.safetensors")[1] == "bytes=300000-"


def test_same_size_corruption(hub):
    hub.faults = Faults(corrupt=True)
    with refused("is not the file the manifest lists"):
        resolve(TAG)
    assert nothing_is_believed()
    assert not list(downloads_folder().rglob("*.part"))


@pytest.mark.parametrize("left", [b"other bits", DATA[:-1] + b"?", DATA + b"more"])
def test_a_part_of_something_else_is_started_over(hub, left):
    path = cached_path(find_weights(TAG).model_file)
    path.parent.mkdir(parents=True)
    path.with_name("model.safetensors.part").write_bytes(left)
    assert resolve(TAG).path.read_bytes() == DATA


def test_a_whole_part_needs_no_network(hub):
    path = cached_path(find_weights(TAG).model_file)
    path.parent.mkdir(parents=True)
    path.with_name("model.safetensors.part").write_bytes(DATA)
    assert resolve(TAG).path.read_bytes() == DATA
    assert not hub.log


def test_a_wrong_etag_does_not_matter(hub):
    hub.faults = Faults(etag="0" * 64)
    assert resolve(TAG).path.read_bytes() == DATA


def test_more_or_less_than_was_promised(hub, tmp_path):
    for served in (DATA + b"more", DATA[:-10]):
        revision = hub.add(REPO, {"model.safetensors": served})
        write_manifest(tmp_path / "lab.json", revision, {"model.safetensors": facts_of(DATA)})
        reload_manifest()
        with refused("is not the file the manifest lists|broke off"):
            resolve(TAG)
        assert nothing_is_believed()
        clear_cache()


def test_offline(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(r"HF_HUB_OFFLINE forbids to fetch it: run `tcgn weights pull tcgn_base\.lab`"):
        resolve(TAG)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    resolve(TAG)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve(TAG).source == "cache"


@pytest.mark.parametrize("name", ["hf-hub:lab/none", "hf-hub:lab/tcgn@" + "0" * 40])
def test_offline_is_named_as_the_cause(hub, monkeypatch, tmp_path, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("HF_HUB_OFFLINE forbids to fetch it"):
        resolve(name, cache_dir=tmp_path)


def test_a_dead_server(hub, monkeypatch):
    monkeypatch.setattr(resolver, "time", time)
    use_endpoint(monkeypatch, "http://127.0.0.1:9")
    start = time.monotonic()
    with refused("cannot be reached"):
        resolve(TAG)
    assert time.monotonic() - start < 30


def test_a_server_that_says_nothing(hub, monkeypatch):
    monkeypatch.setattr(resolver, "time", time)
    # a third of the real ones
    monkeypatch.setattr(resolver, "_PATIENCE", 5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 3)
    hub.faults.delay = 60
    start = time.monotonic()
    with refused("cannot be reached, or broke off"):
        resolve(TAG)
    assert time.monotonic() - start < 30


def test_a_proxy_that_is_not_there(hub, tmp_path):
    process = run(RESOLVE, hub, tmp_path, HTTP_PROXY="http://127.0.0.1:9")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the proxy settings" in err.splitlines()[-1]
    assert not hub.log


def test_a_lock_that_is_never_given_back(hub, monkeypatch):
    monkeypatch.setattr(resolver, "_PATIENCE", 1)
    path = cached_path(find_weights(TAG).model_file)
    path.parent.mkdir(parents=True)
    with huggingface_hub.utils.WeakFileLock(path.with_name(f"{path.name}.lock")), refused("Another process holds"):
        resolve(TAG)


def test_disk_full(hub):
    # the kernel refuses to let a file of this process grow further
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with refused(r"cannot be written \(File too large\); make room or give another folder") as raised:
            resolve(TAG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(raised.value)
    assert nothing_is_believed()
    assert resolve(TAG).path.read_bytes() == DATA


@contextmanager
def unprivileged():
    """Root may write everywhere; as nobody the tests see what other users see."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.fixture
def shared_folder():
    # not tmp_path, whose parents only its owner may enter
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_cache_that_cannot_be_written(hub, shared_folder, tmp_path):
    resolve(TAG)  # imports what an unprivileged user of this checkout might not be able to
    shared_folder.chmod(0o555)
    with unprivileged(), refused(r"cannot be written \(Permission denied\).*HF_HOME or cache_dir"):
        resolve(TAG, cache_dir=shared_folder)


def test_a_read_only_cache_is_enough_to_read(hub, shared_folder):
    path = resolve(TAG, cache_dir=shared_folder).path
    for folder in (path.parent, path.parent.parent, shared_folder):
        folder.chmod(0o555)
    with unprivileged():
        assert resolve(TAG, cache_dir=shared_folder, force=True).source == "cache"


def test_a_cache_of_another_user(hub, shared_folder):
    path = resolve(TAG, cache_dir=shared_folder).path
    path.chmod(0o000)
    with unprivileged(), refused(r"cannot be read \(Permission denied\)"):
        resolve(TAG, cache_dir=shared_folder, force=True)


# timm's names


@pytest.fixture(scope="module")
def real_files(tmp_path_factory):
    return {path.name: path.read_bytes() for path in bundled_folder(tmp_path_factory.mktemp("real")).iterdir()}


def bundled_folder(folder):
    """The weights of the package as a model directory."""
    model, info = load_model(BUNDLED)
    save_model_dir(model, folder, info)
    return folder


def equal_to_bundled(model):
    file = load_file(find_weights(BUNDLED).folder / "model.safetensors")
    return all(torch.equal(model.state_dict()[key], value.float()) for key, value in file.items() if value.dim())


def test_a_manifest_entry_is_all_that_timm_needs(hub, real_files, tmp_path):
    revision = hub.add(REPO, real_files)
    files = {name: facts_of(data) for name, data in real_files.items()}
    write_manifest(tmp_path / "lab.json", revision, files, panel="her2st_785", held_out={})
    code = f"""
import timm, tcgn_hub
assert "{TAG}" in timm.list_models("tcgn_*", pretrained=True)
model = timm.create_model("{TAG}", pretrained=True, cache_dir="{tmp_path}/cache")
print(model.pretrained_cfg["label_names"][0], model.pretrained_cfg["hf_hub_id"])
model = tcgn_hub.create_model("{TAG}", pretrained=True, num_classes=3, cache_dir="{tmp_path}/cache")
assert "label_names" not in model.pretrained_cfg
"""
    process = run(code, hub, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.split() == [find_weights(BUNDLED).info.genes[0], f"{REPO}@{revision}"]
    assert len(hub.gets("model.safetensors")) == 1


def test_hub_names_are_verified(hub, real_files, tmp_path):
    revision = hub.add(REPO, real_files)
    model = tcgn_hub.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path)
    assert equal_to_bundled(model)
    assert model.pretrained_cfg["label_names"][0] == find_weights(BUNDLED).info.genes[0]
    _, info = load_model(f"hf-hub:{REPO}@{revision}", cache_dir=tmp_path)
    assert info.significant == find_weights(BUNDLED).info.significant
    blob = next(path for path in tmp_path.rglob("blobs/*") if path.stat().st_size > 1_000_000)
    blob.write_bytes(b"x" * blob.stat().st_size)
    with refused("is damaged"):
        tcgn_hub.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path)
    assert sha256_of(blob) != blob.name


def test_a_cache_without_links_is_hashed_too(hub, real_files, tmp_path, monkeypatch):
    """Where links are not supported, as on Windows, the name of a file does not tell its sha256."""
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda cache_dir=None: False)
    hub.add(REPO, real_files)
    assert equal_to_bundled(tcgn_hub.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path))
    (file,) = tmp_path.rglob("model.safetensors")
    assert not file.is_symlink()
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with refused("is damaged"):
            tcgn_hub.create_model(f"hf-hub:{REPO}", pretrained=True, cache_dir=tmp_path)


def test_hub_names_that_cannot_be_had(hub, tmp_path):
    for name, says in (
        ("hf-hub:lab/none", "no repository lab/none"),
        ("hf-hub:lab/tcgn@" + "0" * 40, "no longer has the revision"),
        ("hf-hub:lab/tcgn", r"has no file config\.json"),
        ("hf-hub:no name", "is not the name of a repository"),
    ):
        with refused(says) as raised:
            tcgn_hub.create_model(name, pretrained=True, cache_dir=tmp_path)
        assert "\n" not in str(raised.value)


def test_pull_takes_all_files(hub, tmp_path):
    revision = hub.add(REPO, {"config.json": b"{}"})
    write_manifest(
        tmp_path / "lab.json", revision, {"model.safetensors": facts_of(DATA), "config.json": facts_of(b"{}")}
    )
    reload_manifest()
    entry = find_weights(TAG)
    assert [pull(entry, file).read_bytes() for file in entry.files] == [DATA, b"{}"]
