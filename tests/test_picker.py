"""The maps that a report draws in the browser of who reads it."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from results import GENES, PATCH_UM, make

from tcgn_hub.images.quality import MEASURES
from tcgn_hub.result import gene_table
from tcgn_hub.weights.info import WeightsInfo
from tcgn_hub.writing import picker as module
from tcgn_hub.writing.figures import draw_gene, gene_limits
from tcgn_hub.writing.picker import picker
from tcgn_hub.writing.report import write_report


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as play:
        yield play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=["--no-sandbox"]
        )


def opened(browser, path, result, **options):
    """A page of a report whose errors, and what it fetches, fail the test."""
    write_report(path, result, top=1, **options)
    page = browser.new_page()
    page.on("pageerror", lambda err: pytest.fail(str(err)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or pytest.fail(request.url))
    page.goto(path.as_uri())
    page.locator(".picker option").first.wait_for(state="attached")
    return page


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def values_of(data):
    """What the page takes the values of genes for, shape (squares, genes)."""
    levels = np.stack([unpacked(text, np.uint8) for text in data["levels"]], axis=1)
    return np.array(data["first"]) + levels * np.array(data["step"])


def white(result):
    """The same on a slide without a picture, which JPEG would change."""
    slide = result.slide
    return replace(result, uns={**result.uns, "slide": replace(slide, thumbnail=np.full_like(slide.thumbnail, 255))})


def colours_at(image, result, left, top, scale):
    """The colours in the middle of each tile, int, shape (n, 3), of a picture that the slide is at a place of."""
    x, y = (result.obsm["spatial"] * scale + (left, top)).astype(int).T
    return image[y, x, :3].astype(int)


def of_canvas(page, result):
    text = page.locator(".map canvas").evaluate("canvas => canvas.toDataURL()")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGB"))
    return colours_at(image, result, 0, 0, image.shape[1] / result.slide.size[0])


def of_png(png, result):
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    # the slide has a margin of 20 px on both sides, and is below 72 px of title
    return colours_at(image, result, 20, 72, (image.shape[1] - 40) / result.slide.size[0])


@pytest.mark.parametrize(
    ("described", "layer", "stride_um"),
    [(False, "value", PATCH_UM), (True, "given_depth", PATCH_UM / 2)],
)
def test_it_draws_what_the_maps_of_files_show(browser, tmp_path, described, layer, stride_um):
    result = white(make(described=described, stride_um=stride_um))
    page = opened(browser, tmp_path / "report.html", result, layer=layer)
    for gene in ("GNAS", "FASN", "HLA-DRA"):
        page.get_by_label("find a gene").fill(gene)
        # a step of the 255 of a value moves a colour by a few of its levels at most
        difference = of_canvas(page, result) - of_png(draw_gene(result, gene, layer=layer), result)
        assert np.abs(difference).max() <= 6
        assert np.abs(difference).mean() < 1
    other = of_png(draw_gene(result, "GNAS", layer=layer), result)
    assert np.abs(of_canvas(page, result) - other).max() > 50
    page.close()


def ungraded(result):
    """Without what is known of the quality of its tiles."""
    known = ("tissue_share", "quality", *MEASURES)
    return replace(result, obs={key: values for key, values in result.obs.items() if key not in known})


def test_a_gene_is_found_by_keyboard_and_its_values_by_the_pointer(browser, tmp_path):
    result = ungraded(make(sure=True))
    page = opened(browser, tmp_path / "report.html", result)
    names, gene, said = (page.locator(f".picker {part}") for part in ("option", ".gene", ".said"))
    assert names.all_inner_texts() == ["HLA-DRA", "GNAS", "FASN", "ACTB"]
    assert gene.inner_text() == "HLA-DRA"
    page.get_by_label("find a gene").press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert gene.inner_text() == "FASN"
    page.get_by_label("find a gene").fill("a")
    assert names.all_inner_texts() == ["ACTB", "HLA-DRA", "GNAS", "FASN"]
    page.get_by_label("find a gene").fill(" ensg00000087460")
    assert names.all_inner_texts() == ["GNAS"]
    assert said.inner_text() == "ENSG00000087460; significant on held-out tissue: yes; PCC 0.42"
    figure = page.locator(".picker figure")
    assert figure.get_attribute("class") == ""
    page.get_by_label("find a gene").fill("nothing")
    assert names.count() == 0
    assert gene.inner_text() == "GNAS"

    tile, tip = len(result) // 3, page.locator(".tip")
    canvas = page.locator(".map canvas")
    canvas.scroll_into_view_if_needed()
    box, at = canvas.bounding_box(), result.obsm["spatial"][tile] / result.slide.size
    assert not tip.is_visible()
    page.mouse.move(box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"])
    assert tip.inner_text() == f"{result.names[tile]}: {result.X[tile, 0]:.2f}, ood {result.obs['ood'][tile]:.2f}"
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    assert not tip.is_visible()

    page.locator(".genes td", has_text="ACTB").first.click()
    assert gene.inner_text() == "ACTB"
    assert figure.get_attribute("class") == "dull"
    assert page.locator(".picker option.dull").all_inner_texts() == ["ACTB"]
    page.close()


@pytest.mark.parametrize("described", [False, True])
def test_values_are_known_to_half_a_step(described):
    result = make(sure=True, described=described)
    data = picker(result, ["FASN", "GNAS", "ACTB"])
    values = result.X[:, [1, 0, 3]]
    assert (np.abs(values_of(data) - values) <= np.array(data["step"]) / 2 + 1e-5).all()
    step = np.ptp(values, axis=0) / 255
    np.testing.assert_allclose(data["step"], np.where(step > 0, step, 1), rtol=1e-5)
    np.testing.assert_allclose(unpacked(data["centres"], "<f4").reshape(2, -1).T, result.obsm["spatial"])
    np.testing.assert_array_equal(unpacked(data["facts"]["ood"], "<f4"), result.obs["ood"])
    assert data["names"] == result.names
    assert data["joined"] == ""
    low, high = np.array(data["low"]), np.array(data["high"])
    limits = gene_limits(result, data["genes"], "value")
    if described:
        # of a gene that is the same everywhere colours have to span something all the same
        np.testing.assert_allclose(np.stack([low, high], axis=1), [*limits[:2], (0.49, 0.51)], rtol=1e-5)
        assert data["below"] == (values < np.array(limits)[:, 0]).sum(axis=0).tolist()
        assert data["above"] == (values > np.array(limits)[:, 1]).sum(axis=0).tolist()
        assert max(data["below"]) > 0
    else:
        assert limits == [None] * 3
        assert (low[0], high[0]) == (0.49, 0.51)
        np.testing.assert_allclose(
            [low[1:], high[1:]], [values[:, 1:].min(axis=0), values[:, 1:].max(axis=0)], rtol=1e-5
        )


def test_tiles_are_joined_where_they_are_too_many(browser, tmp_path, monkeypatch):
    result = ungraded(make(sure=True, stride_um=PATCH_UM / 2))
    monkeypatch.setattr(module, "_MOST_BYTES", 4000)
    data = picker(result, GENES)
    assert data["joined"] == "squares of 3 x 3 tiles, 192 µm"
    centres = unpacked(data["centres"], "<f4").reshape(2, -1).T
    assert data["side"] == 3 * PATCH_UM
    away = np.abs(result.obsm["spatial"][:, None] - centres).max(axis=2)
    square = away.argmin(axis=1)
    assert (away.min(axis=1) < data["side"] / 2).all()
    assert sorted(set(square)) == list(range(len(centres)))
    means = np.stack([result.X[square == i].mean(axis=0) for i in range(len(centres))])
    np.testing.assert_allclose(values_of(data), means, atol=max(data["step"][:3]) / 2 + 1e-5)
    ood = [result.obs["ood"][square == i].mean() for i in range(len(centres))]
    np.testing.assert_allclose(unpacked(data["facts"]["ood"], "<f4"), ood, rtol=1e-5)
    first = [result.names[int(np.flatnonzero(square == i)[0])] for i in range(len(centres))]
    sizes = np.bincount(square)
    assert sizes.max() == 9
    assert data["names"] == [
        name if size == 1 else f"{name} and {size - 1} other tile{'s' if size > 2 else ''}"
        for name, size in zip(first, sizes, strict=True)
    ]
    # of the tiles, as the maps of files count them
    assert (data["low"][2], data["high"][2]) == pytest.approx((result.X[:, 2].min(), result.X[:, 2].max()), rel=1e-5)
    page = opened(browser, tmp_path / "report.html", result)
    assert (
        "squares of 3 x 3 tiles, 192 µm, and values are means over the tiles" in page.locator(".picker p").inner_text()
    )
    page.close()


def test_a_report_stays_below_15_mb_whatever_the_tiles(tmp_path):
    slide, genes = make(stride_um=8.0, held_out=None), 785
    rng = np.random.default_rng(0)
    info = WeightsInfo("many", tuple(f"G{i}" for i in range(genes)), slide.units)
    values = (slide.X[:, :1] + rng.normal(size=genes)).astype(np.float32)
    uns = {**slide.uns, "weights": info}
    many = replace(
        slide, X=values, var=gene_table(info, range(genes)), uns=uns, obsm={"spatial": slide.obsm["spatial"]}
    )
    write_report(tmp_path / "report.html", many, top=1)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There are too many tiles" in page
    assert 6e6 < len(page.encode()) < 15e6


def test_names_that_are_no_html_stay_text(browser, tmp_path):
    result = make()
    names = np.array(["</script><b id=x>" for _ in result.names], object)
    page = opened(browser, tmp_path / "report.html", replace(result, obs={**result.obs, "name": names}))
    assert page.locator("#x").count() == 0
    data = re.search(r"const data = (\{.*\});", (tmp_path / "report.html").read_text(encoding="utf-8"))[1]
    assert json.loads(data)["names"] == names.tolist()
    page.close()
