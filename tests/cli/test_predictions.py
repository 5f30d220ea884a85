"""Texts in and out on the command line: `evaluate --predictions` and `export-predictions`."""

import json

import pytest

from hf_cxr.cli.parser import main
from hf_cxr.data.prepared import load_prepared


def told(words, capsys):
    try:
        status = main([str(word) for word in words])
    except SystemExit as exit:
        status = exit.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def theirs(phantom_folder, tmp_path_factory):
    """A file with the radiologist's own text for each study of the test split."""
    test = load_prepared(phantom_folder)["test"]
    file = tmp_path_factory.mktemp("theirs") / "theirs.jsonl"
    rows = zip(test["uid"], test["impression"], strict=True)
    file.write_text("".join(json.dumps({"uid": uid, "prediction": text}) + "\n" for uid, text in rows))
    return file


def test_texts_of_a_file_are_evaluated_compared_and_exported(theirs, phantom_folder, tmp_path, capsys):
    out = tmp_path / "out"
    status, said, _ = told(["evaluate", "--predictions", theirs, phantom_folder, "--out", out], capsys)
    assert status == 0
    assert "The texts are those of theirs.jsonl" in said
    assert said.splitlines()[-1] == f"Next: open {out}/report.html · hf-cxr compare {out} RUN"
    assert told(["compare", out, out], capsys)[0] == 0
    for form in ("radeval", "rexrank"):
        status, said, _ = told(["export-predictions", form, out, phantom_folder, tmp_path / form], capsys)
        assert status == 0
        assert said.startswith(f"{len(load_prepared(phantom_folder)['test'])} texts written to {tmp_path / form}.\n")
    texts = json.loads((tmp_path / "radeval").read_text())
    assert texts["references"] == texts["hypotheses"]
    words = ["evaluate", phantom_folder, "--predictions", theirs, "--section", "findings", "--json"]
    status, said, _ = told(words, capsys)
    assert (status, json.loads(said)["target"]) == (0, "findings")


def test_a_checkpoint_and_a_dataset_may_stand_anywhere_among_the_options(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["runs/a", "data", "--seed", "1"],
        ["runs/a", "--seed", "1", "data"],
        ["--seed", "1", "runs/a", "data"],
    ):
        status, _, error = told(["evaluate", *words], capsys)
        assert status == 2
        assert error.startswith("hf-cxr evaluate: runs/a: no such checkpoint"), words


def test_what_does_not_go_together_is_one_clear_line(theirs, phantom_folder, run_folder, tmp_path, capsys):
    texts = ["evaluate", "--predictions", theirs]
    export = ["export-predictions", "radeval", run_folder, phantom_folder]
    (tmp_path / "studies.json").write_text("{}")
    for words, message in (
        (["evaluate"], "name a checkpoint and a dataset, or --predictions FILE"),
        (["evaluate", run_folder], "name a checkpoint and a dataset, or --predictions FILE"),
        (["evaluate", "a", "b", "c"], "unrecognized arguments: c"),
        (["evaluate", run_folder, phantom_folder, "--section", "findings"], "go with --predictions FILE"),
        ([*texts, run_folder, phantom_folder], "is one too many"),
        ([*texts, tmp_path], "run hf-cxr prepare"),
        ([*texts, phantom_folder, "--split", "best"], "no split 'best'; it has train"),
        ([*texts, phantom_folder, "--split", "train"], "studies are not of the split 'train'"),
        ([*texts, phantom_folder, "--train-texts", theirs], "train_texts are for texts without a dataset"),
        ([*texts, phantom_folder, "--out", run_folder], "holds a checkpoint"),
        ([*texts], "no column 'reference'"),
        ([*texts, phantom_folder, "--num-beams", "4"], "--num-beams is of a checkpoint"),
        ([*texts, phantom_folder, "--no-probes"], "--no-probes is of a checkpoint"),
        ([*export, tmp_path / "o", "--images", tmp_path], "--images goes with a JSON file of ReXrank"),
        ([*texts, phantom_folder, "--section", "report"], "invalid choice: 'report'"),
        (["evaluate", "--predictions", f"{theirs}s", phantom_folder], f"did you mean '{theirs}'"),
        ([*export[:1], "radevall", *export[2:], tmp_path / "o"], "invalid choice: 'radevall'"),
        ([*export, tmp_path], "is a folder; name a file"),
        ([*export[:2], tmp_path, phantom_folder, tmp_path / "o"], "no predictions here"),
        ([*export[:3], tmp_path / "studies.json", tmp_path / "o"], "is read for rexrank alone"),
        (
            ["export-predictions", "rexrank", run_folder, tmp_path / "study.json", tmp_path / "o"],
            "no such file; did y",
        ),
        (["export-predictions", "rexrank", tmp_path, tmp_path / "studies.json", tmp_path / "o"], "config.json is mis"),
    ):
        status, _, error = told(words, capsys)
        assert status == 2, words
        assert message in error, (words, error)
        assert error.count("\n") == 1, (words, error)
    assert {path.name for path in tmp_path.iterdir()} == {"studies.json"}
