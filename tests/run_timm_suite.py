"""Run timm's own tests/test_models.py on the architectures of this package.

    python tests/run_timm_suite.py [pytest arguments]

The file comes from the source distribution of the installed timm, fetched with pip. Selected is every test that timm
runs over its registry, narrowed to our names; also those that timm limits to a list of its own files with
`forward_intermediates`, which ours has too, and the one on what pruning leaves, which names its models. Deselected are
the other tests that name models, for they do not run ours, and nothing else.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import timm

import tcgn_hub  # noqa: F401

OURS = ("tcgn_base", "test_tcgn")
NAMES_ITS_MODELS = "test_prune_intermediate_layers_params_used"


def ours(name: object) -> bool:
    """Whether it is a name of ours, with a tag or without one."""
    return isinstance(name, str) and name.split(".")[0] in OURS


def fetch(folder: Path) -> Path:
    """timm's tests/test_models.py, of the version that is installed."""
    source = f"timm=={timm.__version__}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "timm", "-d", str(folder)]
    subprocess.run([*command, source], check=True)
    with tarfile.open(next(folder.glob("timm-*.tar.gz"))) as archive:
        member = f"timm-{timm.__version__}/tests/test_models.py"
        # pytest must not take timm's conftest or ours for it
        target = folder / "suite" / "test_timm_models.py"
        target.parent.mkdir()
        target.write_bytes(archive.extractfile(member).read())
    return target


class Narrow:
    """Keeps the tests that are parametrised with one of our models."""

    def __init__(self) -> None:
        self.outcomes = {"passed": 0, "failed": 0, "skipped": 0}

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc):
        if metafunc.definition.originalname == NAMES_ITS_MODELS:
            for mark in metafunc.definition.iter_markers("parametrize"):
                mark.args[1][:] = OURS

    def pytest_collection_modifyitems(self, config, items):
        params = [getattr(item, "callspec", None) and item.callspec.params.get("model_name") for item in items]
        kept = [item for item, name in zip(items, params, strict=True) if ours(name)]
        config.hook.pytest_deselected(items=[item for item, name in zip(items, params, strict=True) if not ours(name)])
        items[:] = kept

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
            self.outcomes[report.outcome] += 1


def main() -> int:
    list_models = timm.list_models

    def list_ours(*args, **kwargs):
        kwargs.pop("module", None)
        return [name for name in list_models(*args, **kwargs) if ours(name)]

    timm.list_models = list_ours
    os.environ.pop("GITHUB_ACTIONS", None)  # there timm leaves tests out
    narrow = Narrow()
    with tempfile.TemporaryDirectory() as folder:
        suite = fetch(Path(folder))
        arguments = [str(suite), "--rootdir", str(suite.parent), "-c", os.devnull, "-q", "-rs", "-W", "ignore"]
        code = pytest.main([*arguments, "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[narrow])
    if not narrow.outcomes["passed"] or narrow.outcomes["skipped"]:
        print("timm's suite ran no test of ours, or skipped one")
        return 1
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
