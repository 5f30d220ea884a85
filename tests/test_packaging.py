"""The wheel is all that a user needs, in an environment that never saw the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT, copy_folder

pytestmark = pytest.mark.slow

PIP = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]

NOTEBOOK = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
assert sum("%pip install" in cell.source for cell in notebook.cells) == 1
where = "import hf_cxr, sys; assert hf_cxr.__file__.startswith(sys.prefix), hf_cxr.__file__"
notebook.cells.append(nbformat.v4.new_code_cell(where))
NotebookClient(notebook, timeout=180).execute()
"""

PACKAGED = """
import hf_cxr, sys
from hf_cxr.hub.model_card import card_template
from hf_cxr.config import recipe
from hf_cxr.data.sources.preset import names, read_preset
assert hf_cxr.__file__.startswith(sys.prefix), hf_cxr.__file__
assert "Research use only" in card_template()
assert recipe("demo").is_relative_to(sys.prefix)
assert recipe("iu_xray_vit_gpt2").is_file()
assert [read_preset(name).collection.name for name in names()][1:] == [
    "COVID-19 image data collection", "PadChest", "ReXGradient-160K"]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built as for a release, of a copy: a build leaves nothing in the checkout."""
    pytest.importorskip("hatchling", reason="hatchling is absent: pip install -e '.[dev]'")
    sources = tmp_path_factory.mktemp("sources")
    for name in ("hf_cxr", "configs"):
        copy_folder(ROOT / name, sources / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "model_card.md"):
        (sources / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*PIP, "--wheel-dir", sources / "dist", sources], check=True, capture_output=True, timeout=120)
    (built,) = (sources / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The Python of an environment with all dependencies and Jupyter, but without the kit: as Colab is."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if "hf_cxr" not in package.name and package.name != "__pycache__":
            (site / package.name).symlink_to(package)
    python = Path(sysconfig.get_path("scripts", vars={"base": str(folder)})) / "python"
    with pytest.raises(AssertionError, match="No module named 'hf_cxr'"):
        run(python, folder, "import hf_cxr")
    return python


def run(python: Path, folder: Path, code: str, *words: object, **environment: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_CXR_SOURCE")}
    command = [str(python), "-c", code, *map(str, words)]
    result = subprocess.run(
        command, env=clean | environment, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_notebook_installs_the_kit_where_it_is_not_and_runs_to_its_end(bare, wheel, run_folder, tmp_path):
    """The first cell as in Colab: SOURCE is a wheel, pip installs it into the environment of the kernel."""
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    notebook = copy_folder(ROOT / "notebooks", tmp_path / "alone") / "4_read_the_report.ipynb"
    run(bare, tmp_path, NOTEBOOK, notebook, HF_CXR_SOURCE=str(wheel), HF_CXR_RUN=str(run_folder), **offline)


def test_the_wheel_holds_the_kit_its_recipes_and_the_card_and_nothing_else(bare, wheel, tmp_path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"hf_cxr"}
    assert not [name for name in names if "test" in name or name.endswith((".pyc", ".png", ".csv"))]
    install = [
        str(bare),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--force-reinstall",
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    run(bare, tmp_path, PACKAGED)
