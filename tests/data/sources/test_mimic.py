"""MIMIC-CXR as PhysioNet publishes it: every study, view, split, label and section is what the tree's maker knows."""

import csv
import gzip
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from forms import mimic as form

from hf_cxr.cli.parser import main
from hf_cxr.data.licences import check_may_be_public
from hf_cxr.data.prepared import read_splits
from hf_cxr.data.sources import mimic
from hf_cxr.data.study import Study
from hf_cxr.inference.views import VIEWS

SPLITS = {"train": "train", "validate": "validation", "test": "test"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[form.Truth]]:
    folder = tmp_path_factory.mktemp("mimic")
    return folder, form.make(folder, 240)


@pytest.fixture
def truths(made) -> list[form.Truth]:
    return made[1]


@pytest.fixture
def tree(made) -> Path:
    return made[0] / "mimic-cxr-jpg" / "2.0.0"


@pytest.fixture
def reports(made) -> Path:
    return made[0] / "mimic-cxr-reports.zip"


@pytest.fixture
def few(tmp_path: Path) -> tuple[Path, Path, list[form.Truth]]:
    """Twelve studies in a folder that a test may change, and their reports."""
    truths = form.draw(12)
    return form.jpg_tree(tmp_path / "jpg", truths), form.reports_zip(tmp_path / "reports.zip", truths), truths


def read(images: Path, reports: Path, **options) -> list[Study]:
    return list(mimic.studies(images, reports, **options))


def prepared(out: Path, *words: object) -> list[dict]:
    assert main(["prepare", "mimic", *map(str, words), "--out", str(out), "--size", "32"]) == 0
    return [dict(row) | {"split": name} for name, split in read_splits(out, out / "cache").items() for row in split]


def test_studies_equal_the_truth_in_the_order_of_time(tree, reports, truths):
    found = read(tree, reports)
    assert [study.uid for study in found] == [truth.uid for truth in truths]
    assert [study.uid for study in found] != sorted(study.uid for study in found)  # study numbers are random
    assert max(Counter(study.patient for study in found).values()) == 4
    for study, truth in zip(found, truths, strict=True):
        assert (study.patient, study.time, study.split) == (truth.patient, truth.time, truth.split)
        assert (study.tags, study.uncertain, study.problem) == (truth.tags, truth.uncertain, "")
        said = {
            name: getattr(study, name) for name in ("impression", "findings", "indication", "comparison", "technique")
        }
        assert said == {name: truth.sections.get(name, "") for name in said}
        views = [(image.name, (image.view, image.projection)) for image in study.images]
        assert views == [(f"{dicom}.jpg", form.VIEWS[view]) for dicom, view in truth.images]
        assert all(Path(str(image.source)).is_file() for image in study.images)
    assert {view for truth in truths for _, view in truth.images} == set(form.VIEWS)


def test_one_command_prepares_the_tree_and_every_record_is_counted(tree, reports, truths, tmp_path):
    rows = prepared(tmp_path / "out", "--images", tree, "--reports", reports, "--section", "impression")
    wanted = {}
    for truth in truths:
        views = [form.VIEWS[view][0] for _, view in truth.images]
        if truth.sections.get("impression") and set(views) != {"neither"}:
            wanted[truth.uid] = truth
    assert {row["uid"] for row in rows} == set(wanted)
    assert len(rows) == len(wanted)
    patients: dict[int, set[str]] = {}
    for row in rows:
        truth = wanted[row["uid"]]
        named = [form.VIEWS[view] for _, view in truth.images]
        assert row["split"] == SPLITS[truth.split]
        assert (row["tags"], row["uncertain"]) == (list(truth.tags), list(truth.uncertain))
        assert row["comparison"] == truth.sections.get("comparison", "")
        if all(view for view, _ in named):
            for view in ("frontal", "lateral"):
                assert (row[view] is not None) == any(view == name for name, _ in named)
        if named[0][0] == "frontal":
            assert row["projection"] == named[0][1]
        patients.setdefault(row["patient"], set()).add(truth.patient)
    assert all(len(names) == 1 for names in patients.values())
    facts = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert facts["steps"][0] == {"step": "in the source", "kept": 240, "dropped": 0}
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert len(rejects) + len(rows) == 240
    assert not {reject["uid"] for reject in rejects} & set(wanted)
    assert sum(facts["images"].values()) == sum(len(truth.images) for truth in truths)
    assert facts["placeholders"]["___"] == sum(
        said.count("___") for truth in truths for name, said in truth.sections.items() if name != "last_paragraph"
    )
    assert facts["collection"]["licence"] == "physionet-credentialed-1.5.0"
    with pytest.raises(ValueError, match=r"its licence \(physionet-credentialed-1\.5\.0\) is given to single persons"):
        check_may_be_public(tmp_path / "out")
    assert facts["collection"]["language"] == "en"
    assert str(tree) not in json.dumps(facts)


def test_plan_counts_what_is_prepared(few, tmp_path, capsys):
    tree, reports, _ = few
    rows = prepared(tmp_path / "out", "--images", tree, "--reports", reports)
    capsys.readouterr()
    assert main(["prepare", "mimic", "--images", str(tree), "--reports", str(reports), "--plan"]) == 0
    report = capsys.readouterr().out
    assert all(f"→ {name:<10}" in report for name in ("train", "validation", "test"))
    assert f"  {sum(row['split'] == 'train' for row in rows):>7,}" in report.partition("→ train")[2].partition("\n")[0]


def test_dicom_tree_and_every_form_of_the_reports_give_the_same_rows(tmp_path):
    truths = [truth for truth in form.draw(60) if set(truth.sections) <= {"impression", "findings", "comparison"}]
    jpg = form.jpg_tree(tmp_path / "jpg", truths, zipped=False)
    forms = {
        "zip": (jpg, form.reports_zip(tmp_path / "mimic-cxr-reports.zip", truths)),
        "folder": (jpg / "files", form.reports_folder(tmp_path / "texts", truths)),
        "folder of the zip": (jpg, tmp_path),
        "table": (jpg, form.sectioned(tmp_path / "mimic_cxr_sectioned.csv", truths)),
        "dicom": (form.dicom_tree(tmp_path / "dcm", truths), tmp_path / "texts", "--root", jpg),
    }
    made = {}
    for name, (images, reports, *more) in forms.items():
        if name == "folder of the zip":
            (tmp_path / "zipped").mkdir()
            shutil.copy(tmp_path / "mimic-cxr-reports.zip", reports := tmp_path / "zipped")
        made[name] = prepared(tmp_path / f"out {name}", "--images", images, "--reports", reports, *more)
    assert len(made["zip"]) > 20
    for name, rows in made.items():
        for row, same in zip(rows, made["zip"], strict=True):
            for view in VIEWS if name == "dicom" else ():  # of another contrast, as a DICOM file is stretched
                one, other = row.pop(view), same[view]
                assert (one is None) == (other is None)
                assert one is None or np.corrcoef(np.ravel(one), np.ravel(other))[0, 1] > 0.99
                sure = f"{view}_confidence"  # of a view that is decided by these pixels
                assert row.pop(sure) == pytest.approx(same[sure], abs=1e-3)
            assert {key for key in row if row[key] != same[key]} == set(), name


def test_without_metadata_the_tree_names_studies_and_one_line_says_what_is_missing(few, tmp_path, caplog):
    tree, reports, truths = few
    for path in tree.glob("mimic-cxr-*"):
        path.unlink()
    found = {study.uid: study for study in read(tree, reports)}
    assert set(found) == {truth.uid for truth in truths}
    for truth in truths:
        study = found[truth.uid]
        assert (study.patient, study.time, study.split, study.tags) == (truth.patient, "", None, ("unlabelled",))
        assert sorted(image.name for image in study.images) == sorted(f"{dicom}.jpg" for dicom, _ in truth.images)
        assert {image.view for image in study.images} == {None}
    assert [record.getMessage().startswith("no mimic-cxr-*-metadata.csv") for record in caplog.records] == [True]


def test_of_a_subset_the_absent_studies_are_counted_with_a_reason(few):
    tree, reports, truths = few
    for truth in truths[4:]:
        shutil.rmtree(tree / truth.folder)
    found = read(tree / "files", reports)
    assert [study.uid for study in found] == [truth.uid for truth in truths]
    problems = [study.problem for study in found]
    assert problems == [""] * 4 + ["none of its images is in the folder of images"] * (len(truths) - 4)
    assert [len(study.images) for study in found] == [len(truth.images) for truth in truths]


def test_an_image_that_is_missing_of_a_study_stays_listed(few):
    tree, reports, truths = few
    truth = next(truth for truth in truths if len(truth.images) > 1)
    (tree / truth.folder / f"{truth.images[0][0]}.jpg").unlink()
    study = next(study for study in read(tree, reports) if study.uid == truth.uid)
    assert study.problem == ""
    assert [image.name for image in study.images] == [f"{d}.jpg" for d, _ in truth.images]


def test_images_in_one_flat_folder_are_found_by_their_names(few, tmp_path):
    tree, reports, truths = few
    (tmp_path / "flat").mkdir()
    for path in tree.glob("files/**/*.jpg"):
        path.rename(tmp_path / "flat" / path.name)
    found = read(tmp_path / "flat", reports, root=tree)
    assert [study.uid for study in found] == [truth.uid for truth in truths]
    assert not any(study.problem for study in found)


def test_records_that_do_not_meet_are_studies_with_a_problem(few, caplog):
    tree, reports, truths = few
    kept = form.reports_zip(reports, truths[1:])  # the first has no report
    extra = form.Truth("s59999999", "19999999", "", "train", "IMPRESSION: Normal.", {})
    form.reports_zip(kept, [*truths[1:], extra])
    stranger = tree / "files/p19/p19999998/s59999998/0a.jpg"
    stranger.parent.mkdir(parents=True)
    shutil.copy(next(tree.glob("files/**/*.jpg")), stranger)
    shutil.copy(stranger, tree / "cover.jpg")
    found = {study.uid: study for study in read(tree, reports)}
    assert found[truths[0].uid].problem == "no report"
    assert (found["s59999999"].problem, found["s59999999"].images, found["s59999999"].patient) == ("", (), "19999999")
    assert (found["s59999998"].problem, found["s59999998"].patient) == ("no report", "19999998")
    assert [image.view for image in found["s59999998"].images] == [None]
    assert "1 images belong to no study and are left out (first: cover.jpg)" in caplog.text


def test_jpeg_goes_before_dicom_of_one_image(few):
    tree, reports, _ = few
    for path in list(tree.glob("files/**/*.jpg")):
        shutil.copy(path, path.with_suffix(".dcm"))
    assert {image.name[-4:] for study in read(tree, reports) for image in study.images} == {".jpg"}


def test_labels_of_another_table_take_the_place_of_the_published_ones(few, tmp_path):
    tree, reports, truths = few
    form.write(tmp_path / "chexbert.csv", [("study_id", "Edema", "No Finding"), (truths[0].uid[1:], 1, -1)])
    found = {study.uid: study for study in read(tree, reports, labels=tmp_path / "chexbert.csv")}
    assert found[truths[0].uid].tags == ("edema",)
    assert {study.tags for uid, study in found.items() if uid != truths[0].uid} == {("unlabelled",)}


def test_negbio_is_read_where_there_is_no_chexpert(few):
    tree, reports, truths = few
    (tree / "mimic-cxr-2.0.0-chexpert.csv.gz").rename(tree / "mimic-cxr-2.0.0-negbio.csv.gz")
    assert [study.tags for study in read(tree, reports)] == [truth.tags for truth in truths]


def test_a_view_that_nobody_knows_is_told_and_left_to_the_pixels(few, caplog):
    tree, reports, truths = few
    path = tree / "mimic-cxr-2.0.0-metadata.csv.gz"
    published = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(published.replace(b",PA,96", b",TOWNE,96", 1)))
    found = [image.view for study in read(tree, reports) for image in study.images]
    listed = [form.VIEWS[view][0] for truth in truths for _, view in truth.images]
    assert found.count(None) == listed.count(None) + 1
    assert "views that hf-cxr does not know are decided by pixels: 'TOWNE' (1)" in caplog.text
    path.write_bytes(gzip.compress(published.replace(b",PA,96", b",Film of Jane Smith,96", 1)))
    assert list(read(tree, reports))
    assert "decided by pixels: 1 different, not shown" in caplog.text
    assert "Smith" not in caplog.text


def edit(path: Path, change) -> None:
    """Change the rows of a gzipped table."""
    rows = list(csv.reader(gzip.decompress(path.read_bytes()).decode().splitlines()))
    form.write(path.with_suffix(""), change(rows), zipped=True)


FAULTS = {
    "no images": (lambda tree, reports: shutil.rmtree(tree / "files"), r"jpg: no image in it or below \(\.jpg, "),
    "no folder": (lambda tree, reports: shutil.rmtree(tree), r"jpg: no such folder of images \(--images\)"),
    "no reports": (lambda tree, reports: reports.unlink(), r"reports\.zip: no such file or folder of reports"),
    "damaged zip": (lambda tree, reports: reports.write_bytes(reports.read_bytes()[:-90]), r"reports\.zip: damaged"),
    "damaged report": (
        lambda tree, reports: reports.write_bytes(reports.read_bytes()[:40] + b"\0\0\0\0" + reports.read_bytes()[44:]),
        r"reports\.zip: damaged or truncated after \d+ members",
    ),
    "another zip": (lambda tree, reports: form.reports_zip(reports, []), r"reports\.zip: no report in it"),
    "empty folder": (
        lambda tree, reports: (reports.unlink(), reports.mkdir()),
        r"reports\.zip: no reports in it \(s5",
    ),
    "a column is missing": (
        lambda tree, reports: edit(tree / "mimic-cxr-2.0.0-metadata.csv.gz", lambda rows: [row[:4] for row in rows]),
        r"metadata\.csv\.gz: no column 'ViewPosition'; it has dicom_id",
    ),
    "two versions": (
        lambda tree, reports: shutil.copy(
            tree / "mimic-cxr-2.0.0-split.csv.gz", tree / "mimic-cxr-2.1.0-split.csv.gz"
        ),
        r"jpg: several tables of split",
    ),
    "a study in two splits": (
        lambda tree, reports: edit(
            tree / "mimic-cxr-2.0.0-split.csv.gz", lambda rows: [*rows, [*rows[-1][:3], "holdout"]]
        ),
        r"split\.csv\.gz, line \d+: study s\d+ is in both \w+ and holdout",
    ),
    "a study of two patients": (
        lambda tree, reports: edit(
            tree / "mimic-cxr-2.0.0-metadata.csv.gz", lambda rows: [*rows, ["new", "1", *rows[-1][2:]]]
        ),
        r"metadata\.csv\.gz, line \d+: study s\d+ is of the patients \d+ and 1",
    ),
    "no number of a study": (
        lambda tree, reports: edit(
            tree / "mimic-cxr-2.0.0-metadata.csv.gz", lambda rows: [*rows, ["new", "1", "5.0e7", *rows[-1][3:]]]
        ),
        r"line \d+: study_id is not the number of a study",
    ),
    "an odd label": (
        lambda tree, reports: edit(
            tree / "mimic-cxr-2.0.0-chexpert.csv.gz", lambda rows: [*rows[:-1], [*rows[-1][:2], "0.5", *rows[-1][3:]]]
        ),
        r"chexpert\.csv\.gz, line \d+: Atelectasis is '0\.5', not 1, 0, -1 or empty",
    ),
    "labels twice": (
        lambda tree, reports: edit(tree / "mimic-cxr-2.0.0-chexpert.csv.gz", lambda rows: [*rows, rows[-1]]),
        r"chexpert\.csv\.gz, line \d+: study s\d+ has labels twice",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_in_one_clear_line(fault, few, capsys):
    tree, reports, _ = few
    damage, message = FAULTS[fault]
    damage(tree, reports)
    assert main(["prepare", "mimic", "--images", str(tree), "--reports", str(reports), "--plan"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)


def test_options_that_are_missing_are_named_as_they_are_written(few, capsys):
    assert main(["prepare", "mimic", "--root", str(few[0]), "--plan"]) == 2
    assert "'images'; give --images … --reports …" in capsys.readouterr().err


def test_a_table_without_labels_and_one_of_another_program_are_refused(few, tmp_path):
    tree, reports, truths = few
    form.write(tmp_path / "labels.csv", [("study_id", "edema?"), ("50", 1)])
    form.write(tmp_path / "sections.csv", [(truths[0].uid, "No change."), (truths[1].uid, "Clear.")])
    with pytest.raises(ValueError, match=r"labels\.csv: no column 'Atelectasis'"):
        read(tree, reports, labels=tmp_path / "labels.csv")
    with pytest.raises(ValueError, match=r"sections\.csv: no column 'study'"):
        read(tree, tmp_path / "sections.csv")
    with pytest.raises(FileNotFoundError, match="no table of MIMIC-CXR-JPG in it"):
        read(tree, reports, root=tmp_path)


def test_a_report_that_is_no_text_costs_its_study_alone(few, tmp_path):
    tree, _, truths = few
    folder = form.reports_folder(tmp_path / "texts", truths)
    (folder / f"{truths[0].folder}.txt").write_bytes(b"IMPRESSION: caf\xe9")
    (folder / f"{truths[1].folder}.txt").write_bytes(b"IMPRESSION: a\0b")
    found = read(tree, folder)
    assert [study.problem for study in found[:3]] == [
        "its report is not UTF-8",
        "its report holds a NUL character",
        "",
    ]


def test_two_reports_of_one_study_are_refused(few, tmp_path):
    tree, _, truths = few
    folder = form.reports_folder(tmp_path / "texts", truths)
    (folder / f"{truths[0].uid}.txt").write_text("IMPRESSION: Another.")
    with pytest.raises(ValueError, match=f"two reports of study {truths[0].uid}"):
        read(tree, folder)


def test_addresses_give_the_same_rows_as_paths(few, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    tree, reports, truths = few
    texts = form.reports_folder(tmp_path / "texts", truths)
    memory = fsspec.filesystem("memory")
    memory.put(str(tree), "/mimic/jpg", recursive=True)
    memory.put(str(texts), "/mimic/texts", recursive=True)
    memory.put(str(reports), "/mimic/reports.zip")
    here = prepared(tmp_path / "here", "--images", tree, "--reports", reports)
    there = prepared(tmp_path / "there", "--images", "memory://mimic/jpg", "--reports", "memory://mimic/texts")
    assert there == here
    with pytest.raises(ValueError, match="an archive of reports must be on this machine"):
        read("memory://mimic/jpg", "memory://mimic/reports.zip")
