"""The notebooks run from first to last cell, in order, on a small synthetic collection. Git holds them with the
outputs of `make notebooks`."""

import base64
import io
import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from helpers import ROOT, copy_folder
from nbclient import NotebookClient
from PIL import Image

from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources.phantom import draw

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IMAGES = {"1_explore": 6, "2_finetune": 2, "3_pipeline": 2, "4_read_the_report": 4, "5_real_radiographs": 3}
SMALL = {"HF_CXR_NUM_STUDIES": "600", "HF_CXR_EPOCHS": "1", "HF_CXR_PRETRAINING_EPOCHS": "1"}


def images(notebook) -> list[bytes]:
    """The PNG images among the outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    return [base64.b64decode(image) for image in shown]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_its_images(path, desk, monkeypatch):
    """In the order of their numbers, in one folder: the second trains what the third and fourth use."""
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(desk)}}).execute()
    assert "seem to have been set" not in json.dumps(notebook), "generate warns at each call"
    shown = images(notebook)
    assert len(shown) >= IMAGES[path.stem]
    for content in shown:
        assert np.asarray(Image.open(io.BytesIO(content)).convert("L")).std() > 5, "not an empty image"


@pytest.mark.slow
def test_a_run_of_ones_own_is_read_with_its_own_dataset(run_folder, tmp_path, monkeypatch):
    """Its predictions in another order, in a folder where the other notebooks never ran."""
    run = copy_folder(run_folder, tmp_path / "mine")
    lines = (run / "predictions.jsonl").read_text().splitlines(keepends=True)
    (run / "predictions.jsonl").write_text("".join(reversed(lines)))
    monkeypatch.setenv("HF_CXR_RUN", str(run))
    notebook = nbformat.read(NOTEBOOKS[3], as_version=4)
    same = "assert wrong and [study['impression'] for study in studies] == [row['impression'] for row in wrong]"
    notebook.cells.append(nbformat.v4.new_code_cell(same))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(images(notebook)) == 3  # without that of the calibration, which so few studies do not have
    monkeypatch.setenv("HF_CXR_DATASET", str(tmp_path / "absent"))
    with pytest.raises(Exception, match=r"absent"):
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.slow
def test_a_table_of_ones_own_is_learned_from_its_own_texts(tmp_path, monkeypatch):
    """Frontals alone, with PA or AP and an impression, as the notebook on real radiographs is told to take them."""
    texts = ["No acute disease.", "Cardiomegaly.", "Small left pleural effusion."]
    rows = ["uid,patient,frontal,view,labels,impression"]
    for index in range(40):
        draw(0, index, "frontal", size=32).save(tmp_path / f"{index}.png")
        rows.append(f"u{index},p{index // 2},{index}.png,{('PA', 'AP')[index % 2]},Mass,{texts[index % 3]}")
    (tmp_path / "mine.csv").write_text("\n".join(rows), encoding="utf-8")
    given = {"HF_CXR_TABLE": str(tmp_path / "mine.csv"), "HF_CXR_PRETRAINING_EPOCHS": "0"}
    for name, value in (SMALL | given).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOKS[4], as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kept = load_prepared(tmp_path / "work" / "own" / "dataset")
    studies = [row for split in kept.values() for row in split]
    assert sorted(row["impression"] for row in studies) == sorted(texts[index % 3] for index in range(40))
    assert {(row["lateral"], *row["tags"]) for row in studies} == {(None, "mass")}
    assert {row["projection"] for row in studies} == {"PA", "AP"}
    assert (tmp_path / "work" / "own" / "run" / "report.json").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_one_run_from_first_to_last_cell_left_it(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "`make notebooks` fills them"
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    assert not [cell for cell in notebook.cells if set(cell.metadata) - {"tags"}], "no times, no widgets"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    shown = images(notebook)
    assert len(shown) >= IMAGES[path.stem]
    assert max(map(len, shown)) <= 200_000, "bytes of an image"


def test_notebooks_hold_no_trace_of_a_machine_and_are_small():
    assert [path.stem for path in NOTEBOOKS] == sorted(IMAGES)
    for path in NOTEBOOKS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/home/|/root/|/Users/|/tmp/|/work/|site-packages|[A-Z]:\\\\", text), path.name
        assert not re.search(r"\d\d:\d\d<|it/s\]", text), f"{path.name}: a progress bar"
    assert sum(path.stat().st_size for path in NOTEBOOKS) <= 3_000_000


def test_every_notebook_installs_the_kit_first_and_says_what_it_is_not_for():
    firsts = set()
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        firsts.add(next(cell.source for cell in notebook.cells if cell.cell_type == "code"))
        assert "Research use only" in notebook.cells[0].source, path.name
    assert len(firsts) == 1, "the installing cell is the same everywhere"
    assert "%pip install" in firsts.pop()


def test_the_installing_cell_says_what_it_needs_where_it_finds_no_source(tmp_path, monkeypatch):
    """As in Colab, where neither the kit nor a checkout is: one clear error, not a broken import later."""
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    hidden = "import importlib.util\nfound = importlib.util.find_spec\nimportlib.util.find_spec = lambda name: None"
    alone = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(hidden), cell], metadata=notebook.metadata)
    monkeypatch.delenv("HF_CXR_SOURCE", raising=False)
    with pytest.raises(Exception, match="where is hf_cxr") as error:
        NotebookClient(alone, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "HF_CXR_SOURCE" in str(error.value)
