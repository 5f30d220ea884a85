"""The app in Chromium, as a visitor uses it. `make test-browser` runs this, and installs Chromium where it may."""

import os
import shutil
import time
from pathlib import Path

import pytest
from helpers import radiograph
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is absent: pip install -e '.[dev]'")
pytest.importorskip("gradio", reason="Gradio is absent: pip install -e '.[app]'")

from serving_app import SECRET, app_of, dicom_bytes, left_in, pipe_of  # noqa: E402

SHOTS = os.environ.get("HF_CXR_SCREENSHOTS")  # a folder: keep screenshots to look at
WAIT = 60_000  # milliseconds, of a busy machine
expect = playwright.expect
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def chromium():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not found:
        pytest.skip("no Chromium here: as root, apt-get install chromium (make test-browser tries)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    return pipe_of(folder), folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("disk") / "tmp"


@pytest.fixture(scope="module")
def address(pipe, place):
    with pytest.MonkeyPatch.context() as patch, app_of(pipe[1], pipe[0], patch, place) as address:
        yield address


@pytest.fixture
def visit(chromium, address, place):
    """Opens the app; afterwards no other host was asked and nothing is on the disk."""
    asked, contexts = set(), []

    def visit(width=1280, scheme="light"):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: asked.add(request.url))
        page.goto(address)
        expect(page.get_by_role("button", name="Write the text")).to_be_visible()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert left_in(place) == []


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    paths = {view: folder / f"{view}.{kind}" for view, kind in (("frontal", "png"), ("lateral", "jpg"))}
    for number, path in enumerate(paths.values()):
        Image.fromarray(radiograph(number)).save(path)
    return paths


def drop(page, view, path):
    page.locator("input[type=file]").nth(("frontal", "lateral").index(view)).set_input_files(path)


def given(page, view):
    """Wait until an image is shown."""
    expect(page.locator(f"#{view}-image img")).to_be_visible()


def written(page):
    """The text of the answer."""
    expect(page.locator("#answer .text")).to_be_visible()
    return page.locator("#answer .text").inner_text()


def write(page):
    page.get_by_role("button", name="Write the text").click()
    return written(page)


def shot(page, name):
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def test_both_images_give_the_text_of_the_pipeline_and_each_word_where_it_looked(visit, images, pipe):
    page = visit()
    for view, path in images.items():
        drop(page, view, path)
        given(page, view)
    (expected,) = pipe[0]({view: str(path) for view, path in images.items()})
    assert write(page).split() == expected["impression"].split()
    expect(page.locator("#answer")).to_contain_text(f"{expected['score']:.2f}")
    assert page.locator("#answer figure").count() == 2
    maps = page.locator("#answer .m0")
    assert not maps.first.is_visible()
    page.locator("#answer .w0").hover()
    expect(maps.first).to_be_visible()
    expect(page.locator("#answer .cxr-note")).to_contain_text("Research use only")
    page.get_by_role("button", name="JSON").click()
    expect(page.locator("#row")).to_contain_text("impression")
    shot(page, "both-1280-light")
    page.get_by_role("tab", name="This model").click()
    expect(page.get_by_text("brings no report")).to_be_visible()


def test_one_image_on_a_phone_in_the_dark(visit, images, pipe):
    page = visit(390, "dark")
    drop(page, "lateral", images["lateral"])
    given(page, "lateral")
    assert write(page).split() == pipe[0](lateral=str(images["lateral"]))[0]["impression"].split()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.mouse.wheel(0, 3000)
    expect(page.get_by_role("note")).to_be_in_viewport()
    shot(page, "one-390-dark")
    page.get_by_role("button", name="Remove lateral").click()
    expect(page.locator("#lateral-image img")).to_have_count(0)
    page.get_by_role("button", name="Write the text").click()
    expect(page.locator("#answer [role=alert]")).to_contain_text("no image is given")


def test_a_dicom_image_is_shown_and_no_word_of_its_header(visit, tmp_path):
    (tmp_path / "image.dcm").write_bytes(dicom_bytes(tmp_path))
    page = visit()
    drop(page, "frontal", tmp_path / "image.dcm")
    given(page, "frontal")
    assert write(page)
    assert SECRET.decode() not in page.content()


def test_a_broken_and_a_huge_file_are_told_and_the_next_one_works(visit, images, tmp_path):
    (tmp_path / "broken.png").write_bytes(images["frontal"].read_bytes()[:900])
    with (tmp_path / "huge.png").open("wb") as huge:
        huge.truncate(70 << 20)
    page = visit()
    drop(page, "frontal", tmp_path / "broken.png")
    expect(page.locator("#frontal-image [role=alert]")).to_contain_text("frontal: ")
    drop(page, "frontal", tmp_path / "huge.png")
    expect(page.get_by_text("exceed the maximum allowed size").first).to_be_visible()
    shot(page, "huge")
    drop(page, "frontal", images["frontal"])
    given(page, "frontal")
    assert write(page)


def test_by_keyboard_alone(visit, images):
    page = visit(390)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Click to upload or drop files").first.press("Enter")
    chooser.value.set_files(images["frontal"])
    given(page, "frontal")
    page.get_by_role("button", name="Write the text").press("Enter")
    assert written(page)
    page.locator("#answer .w0").focus()
    expect(page.locator("#answer .m0").first).to_be_visible()
    page.get_by_role("slider").press("End")
    expect(page.locator("#answer .text")).to_contain_text("Withheld")


def test_a_synthetic_study_is_one_click_and_its_text_can_be_copied(visit):
    page = visit(1280, "dark")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Pleural effusion").click()
    text = written(page)
    for view in ("frontal", "lateral"):
        given(page, view)
    page.get_by_role("button", name="Copy the text").click()
    for _ in range(100):
        if copied := page.evaluate("navigator.clipboard.readText()"):
            break
        time.sleep(0.05)
    assert copied.split() == text.split()
    shot(page, "example-1280-dark")
