"""Every block of code in the documentation runs, and the documentation builds without a warning."""

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import golden
import pytest
import stores
import torch
from encoders import write_encoder
from sections import PANEL, write_section

import tcgn_hub
from tcgn_hub.cli.main import main as tcgn
from tcgn_hub.cli.predict import main as tcgn_predict
from tcgn_hub.images.readers import open_slide

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "```python" in path.read_text() or "```bash" in path.read_text())
TESTED_ELSEWHERE = [DOCS / "howto/export.md", DOCS / "howto/timm.md"]  # by test_export, which has traced a graph; below
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.M | re.S)
COMMANDS = {"tcgn": tcgn, "tcgn-predict": tcgn_predict}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with what a reader is assumed to have."""
    shutil.copy(golden.PATCHES[0], tmp_path / "patch.png")
    _slide(tmp_path / "slide.svs")
    write_encoder(tmp_path / "teacher")
    (tmp_path / "panel.txt").write_text("\n".join(PANEL))
    _samples(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _slide(path: Path) -> None:
    """A corner of a slide, so that tiles which overlap are few."""
    import tifffile

    with open_slide(golden.SVS) as slide:
        pixels, scale = slide.read(960, 1000, 640, 640), slide.scale
    per_cm = 1e4 / scale.mpp
    tifffile.imwrite(path, pixels, tile=(256, 256), resolution=(per_cm, per_cm), resolutionunit="CENTIMETER")


def _samples(folder: Path) -> None:
    """A sample sheet of two patients; their sections are as h5ad, whose image and scale the sheet gives."""
    import anndata
    import numpy as np

    from tcgn_hub.data.readers import read_sections

    for name in ("A1", "B1"):
        write_section(folder / "own", name, spots=10, seed=ord(name[0]))
    rows = []
    for section in read_sections(folder / "own"):
        adata = anndata.AnnData(np.asarray(section.counts))
        adata.var_names, adata.obs_names = section.genes, section.spots
        adata.obsm["spatial"] = section.xy
        adata.write_h5ad(folder / f"{section.name}.h5ad")
        rows.append([section.name, section.patient, f"{section.name}.h5ad", section.image, 0.6])
    with open(folder / "samples.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([["section", "patient", "data", "image", "mpp"], *rows])


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in TESTED_ELSEWHERE], ids=lambda page: str(page.relative_to(DOCS))
)
def test_every_block_runs(page, place, tiny_weights):
    if page.stem in ("publish", "adapt"):
        shutil.copytree(tiny_weights, place / "my_model")  # which the page starts from
    if page.stem == "spatialdata":
        stores.write_visium(place / "visium.zarr")
        stores.write_xenium(place / "xenium.zarr")
    if page.stem == "coming_from_the_original":
        torch.save(golden.published_state_dict(), place / "A2-TCGN-her2-best.pth")
    run_page(page, place)


def test_with_timm(place):
    """Its programs are not distributed: `timm_programs` stand for them."""
    for program in ("train.py", "validate.py"):
        shutil.copy(ROOT / "tests/timm_programs" / program, place)
    for i, patch in enumerate(golden.PATCHES):
        for split in ("train", "validation"):
            folder = place / "tissues" / split / f"class{i % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(patch, folder)
    names = run_page(DOCS / "howto/timm.md", place)
    sizes = zip((46, 92, 184, 368), (56, 28, 14, 7), strict=True)
    assert [tuple(m.shape) for m in names["maps"]] == [(1, channels, side, side) for channels, side in sizes]
    before = dict(names["backbone"].model.named_parameters())
    after, average, trained = (
        dict(model.named_parameters()) for model in (names["model"], names["average"].module, names["trained"])
    )
    assert len(before) > 500
    for key, value in before.items():
        assert not torch.equal(after[key], value), key
        assert not torch.equal(average[key], after[key]), key
        assert not torch.equal(trained[key], value), key


def run_page(page: Path, place: Path) -> dict:
    """Run every block, and return what its Python has named."""
    blocks = BLOCK.findall(page.read_text())
    assert len(blocks) == len(re.findall(r"^```(?:python|bash)$", page.read_text(), re.M))
    names: dict = {}
    for kind, code in blocks:
        if kind == "python":
            exec(compile(code, str(page), "exec"), names)  # a page goes on where its last block ended
            continue
        for line in code.replace("\\\n", " ").splitlines():
            name, *arguments = shlex.split(line, comments=True) or ["true"]
            if name in COMMANDS:
                assert COMMANDS[name](arguments) == 0, line
            else:
                _run_in_a_shell(line, place)
    return names


def _run_in_a_shell(line: str, place: Path) -> None:
    """Run what is more than a command of ours, with these as an installation gives them."""
    commands = place / "bin"
    commands.mkdir(exist_ok=True)
    for name, module in (("tcgn", "main"), ("tcgn-predict", "predict")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tcgn_hub.cli.{module} "$@"\n')
        (commands / name).chmod(0o755)
    python = commands / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    env = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env["HF_HOME"] = str(place / "hf")
    done = subprocess.run(["bash", "-euc", line], env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_pages_that_have_blocks_are_there():
    names = {page.stem for page in PAGES}
    assert {"quickstart", "slide", "finetune", "publish", "offline", "export"} <= names


def test_the_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    described = set(re.findall(r'id="tcgn_hub\.(\w+)"', (tmp_path / "api.html").read_text()))
    assert set(tcgn_hub.__all__) - described == set()


def test_what_readme_says_of_options_is_so():
    """Each option of a command in the README is one of that command."""
    from importlib import import_module

    from tcgn_hub.cli.main import COMMANDS as KNOWN

    checked = 0
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples/train_her2st.sh", *DOCS.rglob("*.md")]
    for page in pages:
        for name, rest in re.findall(r"\btcgn[ -]([a-z]+)((?:[^`\n]|\\\n)*)", page.read_text()):
            if name in KNOWN and name != "weights":
                known = import_module(f"tcgn_hub.cli.{name}").build_parser("tcgn")._option_string_actions
                for option in re.findall(r"--[a-z][a-z0-9-]+", rest):
                    assert option in known, f"{page.name}: tcgn {name} {option}"
                    checked += 1
    assert checked > 30
