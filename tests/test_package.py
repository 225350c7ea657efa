"""The package as it is installed: import orders, and a wheel in a fresh environment."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import tcgn_hub

ROOT = Path(__file__).resolve().parent.parent


def _python(code: str, *, executable: str = sys.executable, cwd: Path | None = None, env=None) -> str:
    done = subprocess.run([executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import tcgn_hub; import timm",
        "import timm; import tcgn_hub",
        "import tcgn_hub, timm.models",
        "import tcgn_hub.models.censnet",
        "from tcgn_hub.models.tcgn import TCGN",
        "from tcgn_hub import load_model",
    ],
)
def test_either_order_registers(imports):
    assert _python(f"{imports}; import timm; print(timm.is_model('tcgn_base'))") == "True"


def test_importing_the_package_alone_is_light():
    assert _python("import sys, tcgn_hub; print({'torch', 'timm', 'numpy'} & set(sys.modules))") == "set()"


def test_public_names():
    for name in tcgn_hub.__all__:
        assert getattr(tcgn_hub, name).__name__ == name
        assert name in dir(tcgn_hub)
    # a module of the same name would replace the function as soon as something imports it
    code = "import tcgn_hub.training, tcgn_hub.prediction.patches; print(callable(tcgn_hub.finetune), callable(tcgn_hub.predict))"
    assert _python(code) == "True True"
    with pytest.raises(AttributeError, match="nothing"):
        tcgn_hub.nothing  # noqa: B018


def test_models_import_nothing_of_the_package_but_errors():
    source = (ROOT / "tcgn_hub/models/tcgn.py").read_text() + (ROOT / "tcgn_hub/models/censnet.py").read_text()
    imports = {line for line in source.splitlines() if line.startswith(("from .", "from tcgn_hub", "import tcgn_hub"))}
    assert imports == {"from ..errors import CheckpointError", "from .censnet import GraphEmbed"}


def test_the_wheel_in_a_fresh_environment(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", "build", "dist", "*.egg-info", "__pycache__", "runs", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(source)],
        check=True,
        capture_output=True,
    )
    wheel = next((tmp_path / "dist").glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "tcgn_hub/weights_manifest.json" in names
    assert "tcgn_hub/weights/bundled/tcgn_base.her2st/model.safetensors" in names
    assert not [name for name in names if name.startswith("tests")]

    # the dependencies of this environment, the package from the wheel alone
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    bin_folder = environment / ("Scripts" if os.name == "nt" else "bin")
    inside = str(bin_folder / "python")
    site = Path(_python("import site; print(site.getsitepackages()[0])", executable=inside))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", inside, "install", "--no-deps", "--no-index", "-q", str(wheel)],
        check=True,
        env=clean,
    )
    import torch

    (site / "dependencies.pth").write_text(str(Path(torch.__file__).parent.parent) + "\n")
    home = _python("import tcgn_hub; print(tcgn_hub.__file__)", executable=inside, cwd=tmp_path, env=clean)
    assert Path(home).is_relative_to(environment)
    done = subprocess.run(
        [str(bin_folder / "tcgn-predict"), str(ROOT / "examples/patch.png"), "--top", "3"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean,
    )
    assert done.returncode == 0, done.stderr
    assert "values in log10" in done.stdout
    listed = subprocess.run([str(bin_folder / "tcgn"), "weights", "list"], capture_output=True, text=True, env=clean)
    assert "in this package" in listed.stdout
