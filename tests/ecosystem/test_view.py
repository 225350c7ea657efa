"""`tcgn view` in TissUUmaps itself, by a browser."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from results import HELD_OUT, make

from tcgn_hub.errors import OutputError
from tcgn_hub.writing.view import serving

WEBGL = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        yield play.chromium.launch(executable_path=path, args=WEBGL)


@pytest.fixture
def written(tmp_path):
    """A result of a white slide, which lies beside it."""
    result = make(name="slide.png", height=96, width=128, sure=True, described=True, held_out=HELD_OUT)
    Image.new("RGB", result.slide.size, "white").save(tmp_path / "slide.png")
    result.write(tmp_path / "slide.h5ad")
    result.write(tmp_path / "slide.csv")
    return tmp_path, result


def at(page, result, tile):
    """Where a tile is on the screen."""
    x, y = result.obsm["spatial"][tile]
    place = page.evaluate(
        """([x, y]) => {
          const viewer = tmapp["ISS_viewer"], box = viewer.container.getBoundingClientRect();
          const at = viewer.world.getItemAt(0).imageToViewerElementCoordinates(new OpenSeadragon.Point(x, y));
          return [at.x + box.left, at.y + box.top];
        }""",
        [float(x), float(y)],
    )
    return [round(value) for value in place]


def picked(page, gene):
    option = page.locator(".select2-results__option", has_text=gene)
    while not option.is_visible():  # what is still loading closes the list
        page.locator(".select2-selection").first.click()
        page.wait_for_timeout(500)
    option.click()
    page.wait_for_function("gene => document.getElementById('tiles_marker-tab-name')?.textContent === gene", arg=gene)
    page.wait_for_timeout(1500)


@pytest.mark.parametrize("suffix", [".h5ad", ".csv"])
def test_a_slide_opens_with_its_genes_and_nothing_is_fetched_from_elsewhere(browser, written, suffix):
    folder, result = written
    before = sorted(folder.iterdir())
    with serving(folder / f"slide{suffix}") as (url, _):
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("response", lambda response: response.status < 400 or pytest.fail(f"{response.status} {response.url}"))
        page.goto(url)
        page.wait_for_function("glUtils._numPoints?.tiles > 0", timeout=60_000)
        page.locator("#tcgn_tip").wait_for(state="attached")
        assert page.locator("#project_title_top").inner_text() == "slide.png"
        picked(page, "GNAS")
        tile, tip = len(result) // 2, page.locator("#tcgn_tip")
        page.mouse.move(*at(page, result, tile))
        assert tip.inner_text().splitlines() == [
            f"tile {result.names[tile]}",
            f"GNAS: {result.X[tile, 0]:.2f} {result.units}",
            "significant, PCC 0.42",
            f"ood: {result.obs['ood'][tile]:.2f}",
            f"predicted depth: {result.obs['predicted_depth'][tile]:.2f}",
        ]
        low, high = page.evaluate("glUtils._markerScalarRange.tiles")
        expected = [result.var[f"trained_{end}"][0] for end in ("low", "high")]
        if suffix == ".csv":
            expected = [result.X[:, 0].min(), result.X[:, 0].max()]
        np.testing.assert_allclose([low, high], expected, rtol=1e-4)
        page.mouse.move(5, 400)
        picked(page, "ACTB")
        page.mouse.move(*at(page, result, tile))
        assert tip.inner_text().splitlines()[1:3] == [
            f"ACTB: {result.X[tile, 3]:.2f} {result.units}",
            "not significant, PCC 0.01",
        ]
        page.close()
    root = url.removesuffix("view.tmap")
    assert [address for address in asked if not address.startswith((root, "data:", "blob:"))] == []
    assert sorted(folder.iterdir()) == before
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)


def test_squares_lie_on_their_tiles_in_their_size(browser, written):
    """On a white slide that the squares cover, their colours are where the tiles are and nowhere else."""
    folder, result = written
    with serving(folder / "slide.h5ad") as (url, _):
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(url)
        page.wait_for_function("glUtils._numPoints?.tiles > 0", timeout=60_000)
        picked(page, "HLA-DRA")
        page.wait_for_timeout(1000)
        shot = folder / "shot.png"
        page.screenshot(path=shot)
        image = np.asarray(Image.open(shot).convert("RGB")).astype(int)
        half = result.slide.tile_px / 2
        centres = result.obsm["spatial"]
        scale = np.hypot(*np.subtract(at(page, result, 0), at(page, result, len(result) - 1)))
        scale /= np.hypot(*(centres[0] - centres[-1]))
        inside, outside = [], []
        for tile, (x, y) in enumerate(centres):
            px, py = at(page, result, tile)
            inside.append(np.ptp(image[py, px]))
            for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                edge = round(half * scale) - 3
                inside.append(np.ptp(image[py + dy * edge, px + dx * edge]))
                beside = np.abs(centres - (x + dx * 2 * half, y + dy * 2 * half)).max(axis=1) < half
                if not beside.any():
                    outside.append(np.ptp(image[py + dy * (edge + 6), px + dx * (edge + 6)]))
        page.close()
    assert min(inside) > 20
    assert len(outside) > 8
    assert np.mean(np.array(outside) < 10) > 0.8  # some of it is below what TissUUmaps lays over the slide


def test_nothing_but_the_view_is_served(written):
    folder, _ = written
    (folder / "secret.csv").write_text("name,x,y\n")

    def status(path, **headers):
        request = urllib.request.Request(root + path, headers=headers)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status
        except urllib.error.HTTPError as err:
            return err.code

    with serving(folder / "slide.h5ad") as (url, _):
        root = url.removesuffix("/view.tmap")
        assert [status(path) for path in ("/view.tmap", "/tiles.json", "/slide.dzi", "/slide_files/0/0_0.jpeg")] == [
            200
        ] * 4
        for path in (
            f"/..{folder}/secret.csv",
            f"/%2e%2e/%2e%2e{folder}/secret.csv",
            f"/{folder}/secret.csv",
            f"/secret.csv?path={folder}",
            f"/slide.h5ad?path={folder}",
            "/get_file_tree?root=/",
            "/plugins/os/system",
            "/slide_files/0/9_9.jpeg",
            "/slide_files/99/0_0.jpeg",
        ):
            assert status(path) == 404, path
        assert status("/view.tmap", Host="evil.example") == 404
        assert status("/view.tmap", Host="127.0.0.1") == 200  # as browsers say where the port is 80
        with (
            pytest.raises(OutputError, match="is not free"),
            serving(folder / "slide.csv", port=int(root.rpartition(":")[2])),
        ):
            pass


def test_the_log_of_the_process_stays_as_it_was(written):
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    with serving(written[0] / "slide.csv"):
        assert (root.level, list(root.handlers)) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_the_command_and_leaves_nothing(written, number):
    folder, _ = written
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "tcgn_hub.cli.main", "view", "slide.h5ad", "--no-browser"]
    process = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder / "tmp")}
    )
    line = process.stderr.readline()
    assert line.startswith("slide.h5ad is open at http://127.0.0.1:")
    assert list((folder / "tmp").iterdir())
    address = line.split()[4].removesuffix("/view.tmap;")
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
        process.send_signal(number)
        assert process.wait(30) == 0
    assert process.stderr.read() == ""
    assert not list((folder / "tmp").iterdir())
