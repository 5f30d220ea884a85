"""What is seen to fail before an image is opened, by `prepare` and by `plan` alike."""

from collections import namedtuple

import published_forms
import pytest

from hf_cxr.data import checks
from hf_cxr.data.checks import PEAK, SURE, check_disk, check_output, disk_needed
from hf_cxr.data.prepare import plan, prepare
from hf_cxr.data.study import Archived, Radiograph, Study
from hf_cxr.utils.files import staging_of

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def drawn():
    return published_forms.draw(12)


@pytest.fixture
def root(tmp_path, drawn):
    """The Kaggle form with images that cannot be read: whoever opens one first says that instead."""
    published_forms.kaggle(tmp_path / "root", drawn)
    for image in (tmp_path / "root").rglob("*.png"):
        image.write_bytes(b"not an image" * 1000)
    return tmp_path / "root"


def refused(error, source, out, **options):
    """The line with which both `plan` and `prepare` refuse, before they open an image and without a trace."""
    lines = []
    for run in (lambda: plan(source, out=out, **options), lambda: prepare(source, out, **options)):
        with pytest.raises(error) as caught:
            run()
        assert type(caught.value) is error
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert "\n" not in lines[0]
    return lines[0]


def free_space(monkeypatch, number):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda place: Usage(10**15, 0, number))


# Splits


def test_all_unknown_splits_of_a_split_file_are_told_in_one_line_and_the_words_of_others_are_known(root, tmp_path):
    table = tmp_path / "splits.csv"
    table.write_text("uid,split\n1,train\n2,exam\n3,Final\n4,exam\n")
    line = refused(ValueError, "kaggle", tmp_path / "out", root=root, split_file=table)
    assert line == f"{table}, line 3: unknown split 'exam', and 'Final'; use train, validation or test"
    table.write_text("uid,split\n" + "".join(f"{n},Jane Doe {n}\n" for n in range(5)))
    line = refused(ValueError, "kaggle", tmp_path / "out", root=root, split_file=table)
    said = "(5 different, not shown, as they may be text or names)"
    assert line == f"{table}, line 2: unknown split {said}; use train, validation or test"
    words = ["train", "Validate", "VAL", "valid", "development", "testing", "Training"]
    rows = "".join(f"{uid},{word}\n" for uid, word in enumerate(words, start=1))
    table.write_text(f"uid,split\n{rows}")
    studies = plan("kaggle", root=root, split_file=table)["studies"]
    assert studies == {"train": 2, "validation": 4, "test": 1}


def own_table(folder, drawn, cells):
    """A table of one's own, with the given cells in columns of their own."""
    published_forms.own_table(folder / "export.csv", drawn)
    header, *rows = (folder / "export.csv").read_text().splitlines()
    rows = [f"{row},{more}" for row, more in zip(rows, cells, strict=False)]
    (folder / "export.csv").write_text("\n".join([f"{header},who,part", *rows]))
    columns = {"uid": "accession", "frontal": "pa_file", "lateral": "lat_file", "impression": "conclusion"}
    return {"root": folder / "export.csv", "columns": columns | {"patient": "who", "split": "part"}}


def test_unknown_splits_of_a_collection_are_told_in_one_line(tmp_path, drawn):
    options = own_table(tmp_path, drawn, ["a,train", "b,fold1", "c,fold2", "d,fold1"])
    for image in tmp_path.rglob("*.png"):
        image.write_bytes(b"not an image")
    line = refused(ValueError, "table", tmp_path / "out", **options)
    assert line == "2: unknown split 'fold1', and 'fold2'; use train, validation or test"


def test_patients_in_two_splits_are_told_by_the_collection_and_by_a_split_file(tmp_path, drawn):
    options = own_table(tmp_path, drawn, ["a,train", "b,train", "a,val", "b,test", "b,test", "c,train"])
    for image in tmp_path.rglob("*.png"):
        image.write_bytes(b"not an image")
    line = refused(ValueError, "table", tmp_path / "out", **options)
    assert line.startswith("a patient would be in both train and validation (uid '3'), and so would 1 more: give")
    table = tmp_path / "splits.csv"
    table.write_text("uid,split\n1,test\n2,train\n3,test\n4,train\n5,test\n")
    line = refused(ValueError, "table", tmp_path / "out", split_file=table, **options)
    assert line.startswith("a patient would be in both train and test (uid '5'): give a split file")


# Columns


def test_a_missing_column_is_told_before_an_image_is_opened(tmp_path, root, drawn):
    options = own_table(tmp_path, drawn, ["a,train"])
    options["columns"] |= {"findings": "befund"}
    assert "no column 'befund'" in refused(ValueError, "table", tmp_path / "out", **options)
    (tmp_path / "views.csv").write_text("image,side\n1.png,PA\n")
    line = refused(ValueError, "kaggle", tmp_path / "out", root=root, views=tmp_path / "views.csv")
    assert "no column 'view'" in line
    line = refused(ValueError, "kaggle", tmp_path / "out", root=root, view_columns={"view": "side"})
    assert line == "view columns are those of a table of views, and there is none (--views TABLE)"


# The folder to make


def test_a_folder_that_cannot_be_made_is_told(root, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused(FileExistsError, "kaggle", tmp_path / "file", root=root)
    assert "file is a file" in refused(NotADirectoryError, "kaggle", tmp_path / "file" / "out", root=root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    assert "holds files already" in refused(FileExistsError, "kaggle", tmp_path / "full", root=root)
    assert "is not a prepared" in refused(FileExistsError, "kaggle", tmp_path / "full", root=root, overwrite=True)
    monkeypatch.setattr(checks.os, "access", lambda place, mode: False)
    said = refused(PermissionError, "kaggle", tmp_path / "out", root=root)
    assert said == f"{tmp_path / 'out'}: cannot write to {tmp_path}"


@pytest.mark.parametrize("out", ["", "root", "root/images/.."])
def test_a_folder_that_holds_what_is_to_be_read_is_never_replaced(root, tmp_path, out):
    (tmp_path / out / "prepare.json").write_text("{}")  # as if it had been prepared there
    before = sorted(tmp_path.rglob("*"))
    line = refused(FileExistsError, "kaggle", tmp_path / out, root=root, overwrite=True)
    assert line.endswith(f"holds {root}, which is to be read; choose another folder")
    assert sorted(tmp_path.rglob("*")) == before
    check_output(tmp_path / "root" / "out", [root])  # beside the images of a collection is fine


# The disk


def test_a_disk_that_is_surely_too_small_is_told_before_an_image_is_opened(root, tmp_path, monkeypatch, caplog, drawn):
    out = tmp_path / "out"
    needed = plan("kaggle", root=root)["disk_needed"]
    free_space(monkeypatch, needed // SURE - 9999)
    line = refused(OSError, "kaggle", out, root=root)
    assert line.startswith(f"{tmp_path}: its disk has 0.00 GB free, and about 0.00 GB are needed; choose another disk")
    assert list(tmp_path.iterdir()) == [root]

    published_forms.kaggle(root, drawn)  # again: now they can be read
    needed = plan("kaggle", root=root)["disk_needed"]
    free_space(monkeypatch, needed - 9999)  # less what is in the staging folder
    prepare("kaggle", out, root=root)
    assert caplog.messages == [f"{tmp_path}: its disk has 0.00 GB free, and about 0.00 GB are needed"]
    caplog.clear()
    free_space(monkeypatch, needed)
    prepare("kaggle", tmp_path / "enough", root=root)
    assert not caplog.messages


def test_the_estimate_is_never_so_far_off_that_a_preparation_which_fits_is_refused(root, tmp_path, drawn):
    published_forms.kaggle(root, drawn)
    for size in (24, 96, 384):  # smaller than the files are, as large, and larger
        out = tmp_path / f"out{size}"
        prepare("kaggle", out, root=root, size=size)
        stored = sum(file.stat().st_size for file in (out / "data").iterdir())
        needed = plan("kaggle", root=root, size=size)["disk_needed"] / PEAK
        assert needed < SURE * stored


def test_images_that_are_not_there_need_no_disk_and_those_in_archives_are_never_sure(tmp_path, monkeypatch, caplog):
    one, archive = tmp_path / "1.png", tmp_path / "a.zip"
    one.write_bytes(bytes(1000))
    listed = [Study(str(n), (Radiograph(one if n % 2 else tmp_path / "none.png"),)) for n in range(100)]
    assert disk_needed(listed, 384) == (round(PEAK * 50 * 2.5 * 1000), True)
    assert disk_needed(listed, 16) == (round(PEAK * 50 * 0.4 * 16**2), True)
    packed = [Study(str(n), (Radiograph(Archived(archive, f"{n}.png")),)) for n in range(100)]
    needed, sure = disk_needed(packed, 384)
    assert (needed, sure) == (round(PEAK * 100 * 0.4 * 384**2), False)
    free_space(monkeypatch, 1)
    check_disk(packed, 384, tmp_path / "out")
    assert "are needed" in caplog.text


def test_what_an_interrupted_run_has_written_is_not_needed_again(tmp_path, monkeypatch, caplog):
    (tmp_path / "1.png").write_bytes(bytes(10_000))
    listed = [Study("1", (Radiograph(tmp_path / "1.png"),))]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images.bin").write_bytes(bytes(disk_needed(listed, 384)[0]))
    free_space(monkeypatch, 0)
    check_disk(listed, 384, tmp_path / "out")
    assert not caplog.messages
    with pytest.raises(OSError, match="are needed"):
        check_disk(listed, 384, tmp_path / "other")


def test_a_plan_to_overwrite_does_not_count_on_the_disk_of_the_dataset_that_is_replaced(
    root, tmp_path, monkeypatch, drawn
):
    published_forms.kaggle(root, drawn)
    out = tmp_path / "out"
    prepare("kaggle", out, root=root)
    free_space(monkeypatch, 0)
    assert "are needed" in refused(OSError, "kaggle", out, root=root, overwrite=True)
    staging = staging_of(out)
    staging.mkdir()
    (staging / "images-00.bin").write_bytes(bytes(plan("kaggle", root=root)["disk_needed"]))
    assert plan("kaggle", root=root, out=out, overwrite=True)["disk_needed"]


def test_few_files_are_looked_at_however_many_there_are(tmp_path, monkeypatch):
    (tmp_path / "1.png").write_bytes(bytes(10))
    asked = []
    monkeypatch.setattr(checks, "_length", lambda file: asked.append(file) or 10)
    disk_needed([Study(str(n), (Radiograph(tmp_path / "1.png"),)) for n in range(5_000)], 384)
    assert len(asked) <= 2 * checks.SAMPLE
