import os
import signal
from pathlib import Path

# tests run in several processes, which would otherwise take each other's cores; before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import golden
import pytest
import timm
import torch
from safetensors.torch import save_file

import tcgn_hub  # noqa: F401
from tcgn_hub.training.distributed import Processes

# a runner in the background of a shell ignores Ctrl-C, and the programs that tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def golden_file(tmp_path_factory) -> Path:
    """The generated checkpoint with the published key names."""
    path = tmp_path_factory.mktemp("golden") / "published.safetensors"
    save_file(golden.published_state_dict(), path)
    return path


@pytest.fixture(scope="session")
def golden_model(golden_file) -> torch.nn.Module:
    """tcgn_base with the golden weights, in eval mode. Tests that change it work on a copy."""
    return timm.create_model("tcgn_base", pretrained=True, pretrained_cfg_overlay={"file": str(golden_file)}).eval()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """See `tiny.write_tiny_weights`."""
    from tiny import write_tiny_weights

    return write_tiny_weights(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture(autouse=True, scope="session")
def _any_processor():
    """What is computed by default is the same wherever the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tcgn_hub.devices.cpu_has_bfloat16", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory):
    """No test sees the imports and downloads of whoever runs it."""
    from tcgn_hub.weights.manifest import reload_manifest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))
        patch.delenv("TCGN_MANIFEST", raising=False)
        reload_manifest()
        yield
    reload_manifest()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In CI a test that is skipped promises nothing, and so it fails."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture
def stop_after(monkeypatch):
    """Let training be asked to stop after so many steps."""

    def stop(steps: int) -> None:
        asked = iter([False] * (steps - 1))
        monkeypatch.setattr(Processes, "stop_asked", lambda _: next(asked, True))

    yield stop
    monkeypatch.undo()
