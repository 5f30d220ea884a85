"""`hf-cxr demo`: what it replaces and what it refuses, how long it trains, what it shows."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from helpers import copy_folder, radiograph
from PIL import Image

from hf_cxr.cli import demo as module
from hf_cxr.cli.demo import FEWEST, PANEL, arguments, holds_a_demo
from hf_cxr.cli.parser import main
from hf_cxr.config import parse_arguments
from hf_cxr.training.run import train

STUDIES = 40


def run_demo(out: Path, *words: str) -> int:
    return main(["demo", "--out", str(out), "--num-studies", str(STUDIES), *words])


@pytest.fixture(scope="module")
def printed() -> StringIO:
    return StringIO()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, printed) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    with redirect_stdout(printed):
        assert run_demo(folder) == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, capsys) -> str:
    """The one line of a demo that is refused there and changes nothing."""
    before = content(folder)
    assert run_demo(folder) == 2
    assert content(folder) == before
    told = capsys.readouterr()
    assert not told.out
    assert told.err.count("\n") == 1
    return told.err


# --- what it replaces --------------------------------------------------------------------------------------------


def test_a_finished_run_is_refused(run_folder, tmp_path, capsys):
    assert "a training run (finished) that no demo made" in refused(copy_folder(run_folder, tmp_path / "run"), capsys)


def test_a_prepared_dataset_is_refused(phantom_folder, tmp_path, capsys):
    told = refused(copy_folder(phantom_folder, tmp_path / "data"), capsys)
    assert f"{tmp_path / 'data'}: holds files that no demo made" in told
    assert "choose another --out" in told


def test_a_folder_of_photographs_is_refused(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "demo.json").write_text("{}")  # somebody else's
    Image.fromarray(radiograph(1)).save(tmp_path / "photos" / "holiday.png")
    refused(tmp_path / "photos", capsys)


def test_a_run_that_was_trained_into_a_demos_folder_is_refused(finished, tmp_path, capsys):
    folder = copy_folder(finished, tmp_path / "demo")
    words = ["--output_dir", str(folder), "--restart", "--max_steps", "1", "--findings_pretraining_epochs", "0"]
    train(*parse_arguments(folder / "config.yaml", words))
    capsys.readouterr()
    assert "a training run (finished) that no demo made" in refused(folder, capsys)


def test_an_earlier_demo_is_replaced_and_what_else_lies_there_stays(finished, tmp_path):
    folder = copy_folder(finished, tmp_path / "moved")
    (folder / "notes.txt").write_text("mine")
    assert run_demo(folder, "--seed", "1") == 0
    assert json.loads((folder / "dataset" / "prepare.json").read_text())["options"]["seed"] == 1
    assert (folder / "notes.txt").read_text() == "mine"


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


def test_an_interrupted_demo_may_be_run_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "train", interrupt)
        assert run_demo(tmp_path / "demo", "--num-studies", "30") == 130
    assert run_demo(tmp_path / "demo") == 0


def test_an_interrupted_demo_in_the_place_of_an_earlier_one_may_be_run_again(finished, tmp_path, monkeypatch):
    folder = copy_folder(finished, tmp_path / "demo")
    monkeypatch.setattr(module, "prepare", interrupt)
    assert run_demo(folder, "--seed", "2") == 130
    assert holds_a_demo(folder)


def test_a_new_or_empty_folder_holds_no_demo(tmp_path):
    assert not holds_a_demo(tmp_path)
    assert not holds_a_demo(tmp_path / "new")


# --- how long it trains ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("studies", "pretraining", "fine_tuning"), [(8000, 9, 4), (3000, 9, 4), (2000, 12, 6), (1000, 24, 12), (40, 9, 4)]
)
def test_a_study_of_a_small_collection_is_seen_more_often(tmp_path, studies, pretraining, fine_tuning):
    kit, args = arguments(tmp_path, studies)
    assert (kit.findings_pretraining_epochs, args.num_train_epochs) == (pretraining, fine_tuning)


def test_a_demo_too_small_to_learn_says_so_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "prepare", interrupt)
    for studies, told in ((FEWEST - 1, True), (FEWEST, False)):
        main(["demo", "--out", str(tmp_path / str(studies)), "--num-studies", str(studies)])
        assert ("a model learns nothing: this only shows that every step runs" in capsys.readouterr().out) == told


# --- what it shows -----------------------------------------------------------------------------------------------


def test_the_studies_shown_have_truth_and_output_below_their_images(finished):
    sheet = np.asarray(Image.open(finished / "examples.png").convert("L"))
    assert sheet.shape[1] == 2 * PANEL
    assert sheet[:PANEL].std() > 20, "the two views"
    caption = sheet[PANEL : PANEL + 60]
    assert (caption > 250).mean() > 0.8, "paper"
    ink = (caption < 100).any(axis=1)
    assert np.diff(ink.astype(int)).clip(0).sum() >= 2, "two lines of text"


def test_the_steps_are_numbered(finished, printed):
    places = [printed.getvalue().index(f"{step}. ") for step in ("1", "\n2", "\n3", "\n4")]
    assert places == sorted(places)
    assert printed.getvalue().count("truth:") == printed.getvalue().count("output:") >= 1
