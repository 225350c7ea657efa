"""The page as someone uses it, in a real browser."""

import re
import shutil
import socket

import golden
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tcgn_hub.cli.main import main
from tcgn_hub.demo import build_demo, launch_demo
from tcgn_hub.errors import ExtraError, WeightsError

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WAIT = 60_000  # ms; a busy machine takes its time


@pytest.fixture(scope="module")
def address(tiny_weights):
    import gradio as gr

    yield launch_demo(tiny_weights, port=0, max_mb=5, block=False)
    gr.close_all()


@pytest.fixture(scope="module")
def browser():
    assert BROWSER is not None, "these tests need Chromium: install Debian's chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(address, browser):
    with browser.new_context(viewport={"width": 1400, "height": 1100}) as context:
        page = context.new_page()
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Predict").wait_for(timeout=WAIT)
        yield page
        # nothing is fetched from anywhere else
        assert {re.match(r"\w+:/*[^/]*", url)[0] for url in asked if not url.startswith(("data:", "blob:"))} == {
            address.rstrip("/")
        }


def upload(page, path) -> None:
    page.locator("#image input[type=file]").set_input_files(path)
    page.locator("#image").get_by_text(re.compile(r"\d\s*[KM]?B\b")).first.wait_for(timeout=WAIT)


def test_upload_a_patch_pick_a_gene_see_the_picture(page):
    upload(page, golden.PATCHES[0])
    page.locator("#genes input").fill("G3")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")  # closes the list
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#message")).to_contain_text("patch_0.png: central 154 µm", timeout=WAIT)
    expect(page.locator("#values")).to_contain_text("G3")
    picture = page.locator("#pictures img").first
    picture.wait_for(timeout=WAIT)
    expect(picture).to_have_js_property("complete", True, timeout=WAIT)
    assert picture.evaluate("image => image.naturalWidth") > 1200


def test_a_bad_file_gives_a_message(page, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    upload(page, str(tmp_path / "broken.png"))
    page.get_by_role("button", name="Predict").click()
    message = page.locator("#message")
    expect(message).to_contain_text("Not predicted. broken.png is no image that can be read.", timeout=WAIT)
    assert page.locator("#pictures img").count() == 0


def test_without_a_scale_the_page_says_what_it_takes_a_patch_for(page, tmp_path):
    Image.open(golden.PATCHES[0]).save(tmp_path / "plain.png")
    upload(page, str(tmp_path / "plain.png"))
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#message")).to_contain_text("all of it, taken for 154 µm", timeout=WAIT)
    page.locator("#mpp textarea, #mpp input").first.fill("0.687")
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#message")).to_contain_text("central 154 µm", timeout=WAIT)


def test_nothing_given(page):
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#message")).to_contain_text("Give an image first.", timeout=WAIT)


def test_a_slide(page):
    upload(page, str(golden.SVS))
    page.get_by_role("button", name="Predict").click()
    expect(page.locator("#message")).to_contain_text(re.compile(r"\d+ tiles of 154 µm"), timeout=WAIT)
    page.locator("#pictures img").nth(3).wait_for(timeout=WAIT)


def test_an_upload_that_is_too_large_is_refused(page, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(6_000_000))
    page.locator("#image input[type=file]").set_input_files(str(tmp_path / "large.png"))
    page.get_by_text(re.compile("maximum allowed size|exceeds", re.I)).first.wait_for(timeout=WAIT)


def test_weights_are_read_once_and_not_at_each_request(tiny_weights, monkeypatch):
    reads = []
    from tcgn_hub.prediction import predictor

    load = predictor.load
    monkeypatch.setattr(predictor, "load", lambda *args, **options: reads.append(options) or load(*args, **options))
    page = build_demo(tiny_weights)
    (predict,) = [function.fn for function in page.fns.values() if function.api_name == "predict"]
    for genes in (["G1"], ["G2", "G3"]):
        message, rows, pictures = predict(golden.PATCHES[0], genes, "", False)
        assert "central 154 µm" in message
        assert [row[0] for row in rows] == genes
        assert pictures.startswith("<img")
    assert len(reads) == 1


def test_only_this_machine_is_listened_to(address):
    assert address.startswith("http://127.0.0.1:")


def test_errors_are_one_sentence_and_exit_2(capsys, tiny_weights):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["demo", "--weights", str(tiny_weights), "--port", str(taken.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "cannot be listened on" in error
    assert len(error.splitlines()) == 1
    with pytest.raises(WeightsError):
        launch_demo("gone")


def test_a_missing_extra_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ExtraError, match=r"install gradio: pip install 'tcgn_hub\[demo\]'"):
        launch_demo()
