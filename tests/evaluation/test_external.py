"""Texts of any system, read from a file: their report is that of a model, without what needs one, and says whose they
are."""

import json
import re
from pathlib import Path

import pytest
from helpers import TEXTS

import hf_cxr
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources import phantom
from hf_cxr.evaluation.compare import compare, read_predictions
from hf_cxr.evaluation.report import REPORT_FILES, report_markdown
from hf_cxr.evaluation.report.page import report_page
from hf_cxr.inference.labeler import positive_findings

FOUR = [
    "No acute cardiopulmonary abnormality.",
    "Cardiomegaly.",
    "Right pleural effusion.",
    "No acute disease.",
]
MODEL_ONLY = ("calibration", "inputs", "probes")


@pytest.fixture(scope="module")
def studies():
    """(uid, impression) of 590 synthetic studies and of as many to train on."""
    texts = [(study.uid, study.impression) for study in phantom.studies(1180)]
    return texts[:590], texts[590:]


def of_findings(number, truth):
    """One of the four texts, by what is there."""
    found = positive_findings(truth)
    return FOUR[1 if "cardiomegaly" in found else 2 if "pleural effusion" in found else 0 if number % 3 else 3]


def four_texts(studies, choose):
    said = [choose(number, truth) for number, (_, truth) in enumerate(studies)]
    assert len(set(said)) == 4
    return [
        {"uid": uid, "reference": truth, "prediction": text} for (uid, truth), text in zip(studies, said, strict=True)
    ]


def test_four_distinct_texts_for_590_studies_are_said_plainly_whether_they_fit_or_not(studies):
    test, train = studies
    distinct = len({truth for _, truth in test})
    assert distinct > 80
    reading = hf_cxr.evaluate_texts(four_texts(test, of_findings), train_texts=[text for _, text in train])
    assert reading["reads_images"] is True
    assert reading["verdict"].startswith("Uses the images, but writes only 4 distinct texts (+0.")
    blind = hf_cxr.evaluate_texts(
        four_texts(test, lambda number, _: FOUR[number * number % 13 % 4]), train_texts=[text for _, text in train]
    )
    assert blind["reads_images"] is not True
    assert "of one constant sentence" in blind["verdict"]
    for report in (reading, blind):
        assert report["distinct_outputs"] == 4
        assert f"4 distinct texts (the radiologists' {distinct}), the commonest for" in report["verdict"]
        assert "of 590 studies" in report["verdict"]


def test_a_models_own_texts_get_its_own_report_without_what_needs_its_weights(run_folder, phantom_folder, tmp_path):
    own = json.loads((run_folder / "report.json").read_text())
    out = tmp_path / "theirs"
    report = hf_cxr.evaluate_texts(run_folder / "predictions.jsonl", phantom_folder, out=out, seed=42)
    assert {path.name for path in out.iterdir()} == set(REPORT_FILES)
    assert json.loads((out / "report.json").read_text()) == report
    blind = {name: part for name, part in own["baselines"].items() if not name.startswith("nearest")}
    assert report["baselines"] == blind
    for name in ("bleu4", "cider", "ci95", "per_finding", "subgroups", "shuffled", "image_gain", "permutation_p"):
        assert report[name] == own[name], name
    assert not any(report[name] for name in MODEL_ONLY)
    theirs, ours = read_predictions(str(out)), read_predictions(str(run_folder))
    assert theirs == {
        uid: {name: row[name] for name in row if name not in ("score", "sequence_probability", "truncated")}
        for uid, row in ours.items()
    }
    assert compare(str(out), str(run_folder))["scores"]["finding_f1_micro"]["difference"] == 0


def test_the_report_says_whose_texts_they_are_and_what_was_left_out(phantom_folder, tmp_path):
    table, out = tmp_path / "theirs.csv", tmp_path / "out"
    uids = load_prepared(phantom_folder)["test"]["uid"]
    table.write_text("uid,prediction\n" + "".join(f"{uid},{TEXTS[i % 4]}\n" for i, uid in enumerate(uids)))
    report = hf_cxr.evaluate_texts(table, phantom_folder, out=out)
    assert report["texts_of"] == "theirs.csv"
    assert report["signature"].endswith("; texts of theirs.csv; split test")
    html = (out / "report.html").read_text()
    for text in (html, report_markdown(report)):
        assert "The texts are those of theirs.csv, written by a system that was not run here" in text
        assert "no linear probes" in text
        assert str(tmp_path) not in text
    assert "The texts came without a score" in html
    assert "All rows named “baseline” are image-blind." in html
    assert "<img" in html, "the worst studies are shown with the images of the dataset"
    assert not re.search(r"study [^<]*, score", html)


def alone(tmp_path, rows, name="theirs.jsonl"):
    table = tmp_path / name
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def test_texts_beside_their_references_need_no_dataset_nor_uids(tmp_path):
    rows = [{"prediction": TEXTS[i % 4], "reference": TEXTS[i % 3], "patient": f"p{i // 2}"} for i in range(40)]
    report = hf_cxr.evaluate_texts(alone(tmp_path, rows), out=tmp_path / "out")
    assert (report["n"], report["patients"]) == (40, 20)
    assert report["baselines"] == {}
    assert "split" not in report
    assert report["subgroups"]["views"] == {}, "which views a study has is not known"
    assert list(read_predictions(str(tmp_path / "out")))[:2] == ["line 1", "line 2"]
    assert report_page(report, [])


@pytest.mark.parametrize("kind", ["list", "lines", "table"])
def test_baselines_know_the_training_texts_but_none_of_the_studies_that_are_scored(kind, tmp_path):
    rows = [{"uid": f"u{i}", "prediction": TEXTS[i % 4], "impression": TEXTS[i % 3]} for i in range(40)]
    known = [(f"u{i}", "Of the test.") for i in range(40)] + [(f"t{i}", "To learn from.") for i in range(9)]
    given = ["To learn from."] * 9
    if kind == "lines":
        given = tmp_path / "train.txt"
        given.write_text("To learn from.\n\n" * 9)
    if kind == "table":
        given = tmp_path / "train.csv"
        given.write_text("UID,Impression,findings\n" + "".join(f"{uid},{text},\n" for uid, text in known))
    report = hf_cxr.evaluate_texts(alone(tmp_path, rows), train_texts=given)
    assert report["baselines"]["most_frequent"]["modal_output"] == "To learn from."


def test_the_findings_of_a_dataset_are_what_texts_of_findings_are_compared_with(phantom_folder):
    test = load_prepared(phantom_folder)["test"]
    rows = [{"uid": uid, "prediction": text} for uid, text in zip(test["uid"], test["findings"], strict=True)]
    report = hf_cxr.evaluate_texts(rows, phantom_folder, section="findings")
    assert (report["exact_match"], report["target"]) == (1, "findings")
    assert hf_cxr.evaluate_texts(rows, phantom_folder)["exact_match"] < 1


def test_byte_order_marks_other_separators_and_cases_of_letters_are_read(phantom_folder, tmp_path):
    uids = load_prepared(phantom_folder)["test"]["uid"]
    lines = ["UID;Prediction", *(f"{uid};{TEXTS[i % 4]}" for i, uid in enumerate(uids))]
    for encoding in ("utf-8-sig", "utf-16"):
        table = tmp_path / f"{encoding}.csv"
        table.write_text("\r\n".join(lines), encoding=encoding)
        assert hf_cxr.evaluate_texts(table, phantom_folder)["distinct_outputs"] == 4


def bad_files(uids):
    """Name of a case → what the file holds, and what is said of it."""
    rows = [f"{uid},Cardiomegaly." for uid in uids]
    files = {
        "missing": (rows[3:], rf"no text for 3 of {len(uids)} studies .*{uids[0]}, {uids[1]}, {uids[2]}\)"),
        "empty": ([f"{uids[0]}, ", *rows[1:]], rf"no text for 1 of {len(uids)} studies"),
        "unknown": (
            [*rows, "u7,Normal."],
            rf"1 of {len(uids) + 1} studies .* \(u7\); .* line {len(uids) + 2}, .*unkn",
        ),
        "twice": ([*rows, rows[4]], rf"line {len(uids) + 2}: study '{uids[4]}' is there twice"),
        "nameless": ([",Normal.", *rows], "line 2: no uid"),
        "commas": ([f"{uids[0]},Normal, or so.", *rows[1:]], "line 2: 3 cells under 2 columns"),
        "nothing": ([], "no text in it"),
    }
    return {
        name: ("\n".join(["uid,prediction", *lines]).encode(), f"{name}.csv.*{told}")
        for name, (lines, told) in files.items()
    } | {
        "column": (b"uid,text\nu1,Normal.\n", "no column 'prediction'; it has uid, text"),
        "cp1252": ("uid,prediction\nu1,d\u00e9j\u00e0 vu\n".encode("cp1252"), "line 2: byte 0xe9 .* save it as UTF-8"),
        "nul": (b"uid,prediction\nu1,Nor\0mal.\n", "line 2: a NUL byte"),
        "blank": (b"", "an empty file"),
    }


def test_bad_files_are_refused_in_one_line_that_names_the_place(phantom_folder, tmp_path, monkeypatch):
    dataset = load_prepared(phantom_folder)
    for name, (raw, told) in bad_files(dataset["test"]["uid"][:]).items():
        table = tmp_path / f"{name}.csv"
        table.write_bytes(raw)
        with pytest.raises(ValueError, match=told) as error:
            hf_cxr.evaluate_texts(table, dataset, out=tmp_path / "out")
        assert "\n" not in str(error.value), name
    other = [{"uid": dataset["train"]["uid"][0], "prediction": "Normal."}]
    with pytest.raises(ValueError, match="row 1, is of the split 'train'"):
        hf_cxr.evaluate_texts(other, dataset)
    monkeypatch.setattr("hf_cxr.data.sources.text_tables.MAX_BYTES", 1000)
    table.write_text("uid,prediction\n" + "u1,Normal.\n" * 100)
    with pytest.raises(ValueError, match=r"blank.csv: more than 1,000 bytes"):
        hf_cxr.evaluate_texts(table, dataset, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_without_references_or_a_folder_of_weights_are_refused(run_folder, phantom_folder, tmp_path):
    rows = [{"uid": "u1", "prediction": "Normal."}, {"uid": "u2", "prediction": "Normal."}]
    for more, told in (
        ({}, r"no column 'reference'.*\(or 'impression'\)"),
        ({"reference": ""}, r"no text in column 'reference' of 2 of 2 rows \(row 1, row 2\)"),
    ):
        with pytest.raises(ValueError, match=told):
            hf_cxr.evaluate_texts([row | more for row in rows])
    before = {path: path.stat().st_mtime_ns for path in Path(run_folder).iterdir()}
    with pytest.raises(ValueError, match="holds a checkpoint, whose own report"):
        hf_cxr.evaluate_texts(run_folder / "predictions.jsonl", phantom_folder, out=run_folder)
    assert {path: path.stat().st_mtime_ns for path in Path(run_folder).iterdir()} == before
