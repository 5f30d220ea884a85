"""What all pages share: they load nothing, run no script but the one that their policy names, and say so."""

import base64
import hashlib
import re
import shutil
import subprocess

import pytest

from hf_cxr.explore import explore

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline';{} base-uri 'none'; form-action 'none'"


@pytest.fixture(scope="module")
def pages(run_folder, phantom_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    explore(str(phantom_folder), out)
    return [run_folder / "report.html", out / "index.html"]


def test_every_page_has_a_policy_before_anything_that_it_governs(pages):
    for page in pages:
        text = page.read_text(encoding="utf-8")
        scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        assert len(scripts) == (page.name == "report.html"), "a dataset's page has none"
        digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
        policy = POLICY.format("".join(f" script-src 'sha256-{digest}';" for digest in digests))
        head, _, rest = text.partition(f'<meta http-equiv="Content-Security-Policy" content="{policy}">')
        assert rest, page
        assert not re.search(r"<(style|link|script|img)", head)
        assert rest.count("<script") == len(scripts)
        assert not re.search(r"<(iframe|object|form|base)|\\son\\w+=", rest)
        sources = re.findall(r'(?:src|xlink:href)="([^"]*)"', rest)
        assert all(source.startswith("data:") for source in sources)


def test_a_browser_shows_the_pages_and_blocks_nothing(pages, tmp_path):
    if not (browser := shutil.which("chromium")):
        pytest.skip("chromium is not installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--enable-logging=stderr"]
    flags += ["--v=0", "--virtual-time-budget=2000", "--window-size=1000,2000"]
    for page in pages:
        shot = tmp_path / f"{page.stem}.png"
        words = [browser, *flags, f"--screenshot={shot}", page.as_uri()]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            pytest.skip("chromium does not start here")
        assert "Content Security Policy" not in done.stderr
        if done.returncode:
            pytest.skip("chromium does not start here")
        assert shot.stat().st_size > 20_000
