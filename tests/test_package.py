"""The package as it is installed: import orders, and a wheel in a fresh environment."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
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
    ["import tcgn_hub; import timm", "import timm; import tcgn_hub", "from tcgn_hub.models.tcgn import TCGN"],
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
    modules = {path.stem for path in Path(tcgn_hub.__file__).parent.iterdir()}
    assert not modules & set(tcgn_hub.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        tcgn_hub.nothing  # noqa: B018


def _texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a module but for docstrings, what is filled in as {}."""
    others = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            others.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            others.update(node.values)
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in others:
            yield node.value


def test_messages_speak_the_language_of_who_reads_them():
    """Options go through `tcgn_hub.text.option`: as Python has them for who calls from Python."""
    package = Path(tcgn_hub.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.parent.name == "cli":
            continue
        for text in _texts(ast.parse(path.read_text(encoding="utf-8"))):
            # a whole command is a command for both, and where a scale is from is said so in the files
            text = "" if text in ("--mpp", "--magnification") else re.sub(r"`[^`]*`", "", text)
            if re.search(r"--[a-z]|\b(split|by|genes|resume|weights|allow_seen)=", text):
                found.append(f"{path.relative_to(package)}: {text}")
    assert not found


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
    data = (
        "weights_manifest.json",
        "weights/card.md.jinja",
        "writing/report.html.jinja",
        "writing/picker.html.jinja",
        "writing/view.js",
        "panels/her2st_785.txt",
        "panels/aliases.tsv",
    )
    assert {f"tcgn_hub/{name}" for name in data} <= set(names)
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


def test_a_command_reads_weights_once_and_imports_no_compiler():
    """Where the time to the first prediction went; `benchmarks/start.py` measures it."""
    patch = next((ROOT / "tests" / "fixtures" / "patches").glob("*.png"))
    told = _python(
        "import io, json, sys, torch, safetensors.torch\n"
        "from contextlib import redirect_stdout\n"
        "opened, read, seed = [], [], torch.get_rng_state()\n"
        "load_file = safetensors.torch.load_file\n"
        "safetensors.torch.load_file = lambda *a, **k: (read.append(a), load_file(*a, **k))[1]\n"
        "sys.addaudithook(lambda event, a: event == 'open' and opened.append(str(a[0])))\n"
        "from tcgn_hub.cli.predict import main\n"
        "with redirect_stdout(io.StringIO()):\n"
        f"    code = main([{str(patch)!r}])\n"
        "hashed = sum(name.endswith('model.safetensors') for name in opened)\n"
        "compiler = sorted({'torch._dynamo', 'torch._inductor', 'sympy', 'triton'} & set(sys.modules))\n"
        "print(json.dumps([code, hashed, len(read), compiler, torch.equal(seed, torch.get_rng_state())]))"
    )
    # the exit code, how often the file was hashed and read, what was imported, and that nothing random was drawn
    # PyTorch 2.6 wants sympy for its checkpoints, which torchvision imports
    by_torch = ["sympy"] if version("torch").startswith("2.6.") else []
    assert json.loads(told) == [0, 1, 1, by_torch, True]


def test_the_compiler_is_there_when_it_is_asked_for():
    """What `tcgn_hub._timm_hook` leaves out on the command line."""
    told = _python(
        "import atexit, sys, torch\n"
        "from tcgn_hub.text import on_command_line\n"
        "import tcgn_hub\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "disable, _ = torch.compiler.disable, on_command_line.set(True)\n"
        "import timm, gc\n"
        "from torchvision.ops import roi_align\n"
        "left_out = 'torch._dynamo' not in sys.modules and gc.isenabled() and torch.compiler.disable is disable\n"
        "model = timm.create_model('naflexvit_base_patch16_gap', depth=1, embed_dim=32, num_heads=2).eval()\n"
        "model.forward(torch.zeros(1, 3, 64, 64))\n"
        "pooled = roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2)\n"
        "import torch._dynamo.utils\n"
        "doubled = torch.compile(lambda x: 2 * x, backend='eager')(torch.ones(2))\n"
        "print(left_out, pooled.sum().item(), doubled.sum().item(), torch._dynamo.utils.__file__ is not None)"
    )
    assert told == "True 4.0 4.0 True\nTrue"
