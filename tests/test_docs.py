"""Every block of code in the documentation runs, and the documentation builds without a warning."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import golden
import pytest
from sections import PANEL, write_section
from test_slides import SVS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "```python" in path.read_text() or "```bash" in path.read_text())
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.M | re.S)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What the page on publishing starts from: a model directory."""
    folder = tmp_path_factory.mktemp("trained") / "my_model"
    shutil.copytree(ROOT / "tcgn_hub/weights/bundled/tcgn_base.her2st", folder)
    return folder


@pytest.fixture
def place(tmp_path, trained) -> Path:
    """A folder with what a reader is assumed to have, and the commands as an installation gives them."""
    shutil.copy(golden.PATCHES[0], tmp_path / "patch.png")
    shutil.copy(SVS, tmp_path / "slide.svs")
    (tmp_path / "panel.txt").write_text("\n".join(PANEL))
    _samples(tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, module in (("tcgn", "main"), ("tcgn-predict", "predict")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tcgn_hub.cli.{module} "$@"\n')
        (commands / name).chmod(0o755)
    return tmp_path


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_block_runs(page, place, trained):
    if page.stem == "publish":
        shutil.copytree(trained, place / "my_model")
    env = {**os.environ, "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env["HF_HOME"] = str(place / "hf")
    python = ""
    for kind, code in BLOCK.findall(page.read_text()):
        if kind == "bash":
            command = ["bash", "-euc", code]
        else:
            python += code  # a page goes on where its last block ended
            command = [sys.executable, "-c", python]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    assert len(BLOCK.findall(page.read_text())) == len(re.findall(r"^```(?:python|bash)$", page.read_text(), re.M))


def test_the_pages_that_have_blocks_are_there():
    names = {page.stem for page in PAGES}
    assert {"quickstart", "slide", "finetune", "publish", "offline", "export"} <= names


def test_the_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text()
    for name in ("predict", "explain", "finetune", "export_model", "interval_radius"):
        assert f'id="tcgn_hub.{name}"' in page or f".{name}" in page
