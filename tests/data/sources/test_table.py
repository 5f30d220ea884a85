"""The user's own table: any kind, any column names, several images a view, and no row lost."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_cxr.data.sources import table
from hf_cxr.inference.views import read_radiograph

HEADER = "uid,frontal,lateral,impression,findings,indication,patient,split,tags"
ROW = "s1,a.png,b.png,Normal chest.,Clear lungs.,Cough.,p1,val,Nodule; Normal|nodule"


def write(folder: Path, *lines: str, name: str = "studies.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def sources(study) -> list:
    return [(image.source, image.view) for image in study.images]


def test_a_row_is_a_study(tmp_path):
    study = next(table.studies(write(tmp_path, HEADER, ROW)))
    assert sources(study) == [(tmp_path / "a.png", "frontal"), (tmp_path / "b.png", "lateral")]
    assert [image.name for image in study.images] == ["a.png", "b.png"]
    assert (study.uid, study.impression, study.findings) == ("s1", "Normal chest.", "Clear lungs.")
    assert (study.indication, study.patient, study.split) == ("Cough.", "p1", "val")
    assert study.tags == ("nodule",)
    assert study.problem == ""


def test_the_smallest_table_has_a_uid_a_view_and_a_text(tmp_path):
    study = next(table.studies(write(tmp_path, "uid,lateral,findings", "1,b.dcm,Clear.")))
    assert sources(study) == [(tmp_path / "b.dcm", "lateral")]
    assert (study.impression, study.patient, study.split, study.tags) == ("", None, None, ())


def test_columns_are_mapped_by_option_and_otherwise_found_in_any_case(tmp_path):
    path = write(tmp_path, "Accession,PA,UID,Conclusion,Patient", "7,a.png,zz,Normal.,p")
    mapping = {"uid": "Accession", "frontal": "PA", "impression": "Conclusion"}
    study = next(table.studies(path, columns=mapping))
    assert (study.uid, study.impression, study.patient) == ("7", "Normal.", "p")
    assert sources(study) == [(tmp_path / "a.png", "frontal")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"frontals": "PA"}, "columns: 'frontals' is none of uid, .*; did you mean 'frontal'"),
        (
            {"frontal": "PAA"},
            r"no column 'PAA'; it has Accession, PA, Text; did you mean 'PA'\? \(wanted as frontal\)",
        ),
        ({"frontal": "PA", "impression": "Text"}, r"no column 'uid'; it has .*map it \(columns: uid=…\)"),
        (
            {"uid": "Accession", "impression": "Text"},
            r"no column 'frontal' nor 'lateral'; it has .*columns: frontal=…",
        ),
        ({"uid": "Accession", "frontal": "PA"}, "no column 'impression' nor 'findings'; it has"),
    ],
)
def test_a_column_that_is_needed_and_missing_is_named_with_what_to_do(tmp_path, columns, message):
    path = write(tmp_path, "Accession,PA,Text", "7,a.png,Normal chest.")
    with pytest.raises(ValueError, match=message) as caught:
        list(table.studies(path, columns=columns))
    assert "Normal chest" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_start_from_the_table_or_the_images_folder_or_are_absolute(tmp_path):
    absolute = tmp_path / "elsewhere" / "b.png"
    path = write(tmp_path, "uid,frontal,lateral,impression", f"1,../x/a.png,{absolute},Normal.")
    (tmp_path / "images").mkdir()
    assert sources(next(table.studies(path)))[0][0] == tmp_path / ".." / "x" / "a.png"
    study = next(table.studies(path, images=tmp_path / "images"))
    assert [source for source, _ in sources(study)] == [tmp_path / "images" / ".." / "x" / "a.png", absolute]


def test_a_path_written_on_windows_is_found(tmp_path):
    study = next(table.studies(write(tmp_path, "uid,frontal,impression", "1,images\\7\\a.png,Normal.")))
    assert sources(study) == [(tmp_path / "images" / "7" / "a.png", "frontal")]


def test_a_cell_holds_no_image_one_or_several(tmp_path):
    lines = ("1,a.png,,x", "2,a.png;c.png,b.png | d.png,x", "3,,,x")
    studies = list(table.studies(write(tmp_path, "uid,frontal,lateral,impression", *lines)))
    names = [[(image.name, image.view[0]) for image in study.images] for study in studies]
    several = [("a.png", "f"), ("c.png", "f"), ("b.png", "l"), ("d.png", "l")]
    assert names == [[("a.png", "f")], several, []]
    assert not any(study.problem for study in studies)


def test_json_lines_may_list_images_and_tags(tmp_path):
    records = [{"uid": 7, "frontal": ["a.png", "b.png"], "lateral": None, "impression": "x", "tags": ["A", "b"]}]
    study = next(table.studies(write(tmp_path, *map(json.dumps, records), name="t.jsonl")))
    assert [image.name for image in study.images] == ["a.png", "b.png"]
    assert (study.uid, study.tags) == ("7", ("a", "b"))


def test_numbers_in_parquet_stay_whole_even_beside_gaps(tmp_path):
    columns = {"uid": [1, 2], "patient": [12.0, None], "frontal": [["a.png"], []], "impression": ["x", None]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    studies = list(table.studies(tmp_path / "t.parquet"))
    assert [(study.uid, study.patient, study.impression) for study in studies] == [("1", "12", "x"), ("2", None, "")]


def test_a_row_without_a_uid_is_a_study_with_a_problem_called_by_its_line(tmp_path):
    path = write(tmp_path, "uid,frontal,impression", '1,a.png,"two', 'lines"', ",b.png,Normal.", ",,", "3,c.png,x")
    studies = list(table.studies(path))
    assert [(study.uid, study.problem) for study in studies] == [("1", ""), ("line 4", "no uid"), ("3", "")]


def test_a_uid_that_occurs_twice_is_an_error_with_both_lines_and_the_way_out(tmp_path):
    path = write(tmp_path, "uid,frontal,impression", "1,a.png,x", "2,b.png,x", "1,c.png,x")
    with pytest.raises(ValueError, match=r"uid '1' occurs twice \(line 2 and line 4\); .*one cell"):
        list(table.studies(path))
    path = write(tmp_path, "uid,frontal,impression", *(f"{number % 9},a.png,x" for number in range(10)))
    with pytest.raises(ValueError, match=r"uid '0' occurs twice \(line 2 and line 11\)"):
        list(table.studies(path))


@pytest.mark.parametrize(
    ("frontal", "lateral", "problem"),
    [
        ("https://host/a.png", "", "frontal: an address"),
        ("", "file:///a.png", "lateral: an address"),
        ("No acute abnormality. " * 15, "", "frontal: too long for a path"),
        ("folder/" * 700 + "a.png", "", "frontal: too long for a path"),
        (252 * "a" + ".png", "", "frontal: too long for a path"),
        ("images/", "", "frontal: a folder where a file is expected"),
        ("..", "", "frontal: a folder where a file is expected"),
        ("a.png", "x/../a.png", "an image is listed twice"),
    ],
)
def test_a_cell_that_is_no_path_is_a_problem_of_its_row_and_is_not_quoted(tmp_path, frontal, lateral, problem):
    path = write(tmp_path, "uid,frontal,lateral,impression", f"1,{frontal},{lateral},x", "2,a.png,,x")
    bad, good = table.studies(path)
    assert bad.problem.startswith(problem)
    assert "acute" not in bad.problem
    assert (bad.uid, bad.images, good.problem) == ("1", (), "")


def test_a_name_of_255_bytes_is_a_path(tmp_path):
    path = write(tmp_path, HEADER, ROW.replace("a.png", 251 * "a" + ".png"))
    assert next(table.studies(path)).problem == ""


def test_the_root_may_be_a_folder_with_one_table(tmp_path):
    path = write(tmp_path, HEADER, ROW)
    (tmp_path / "a.png").write_bytes(b"")
    assert next(table.studies(tmp_path)).uid == "s1"
    assert table.tables(tmp_path, columns={}) == [path]
    write(tmp_path, HEADER, ROW, name="other.tsv")
    with pytest.raises(ValueError, match=r"several tables \(other\.tsv, studies\.csv\); name the one to read"):
        list(table.studies(tmp_path))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such table or folder"):
        list(table.studies(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no table in it"):
        list(table.studies(tmp_path))
    with pytest.raises(FileNotFoundError, match="images: no such folder of images"):
        list(table.studies(write(tmp_path, HEADER, ROW), images=tmp_path / "images"))


def test_windows_text_is_read_when_its_encoding_is_given(tmp_path):
    (tmp_path / "t.csv").write_bytes("uid;frontal;impression\r\n1;a.png;Épanchement.\r\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"t\.csv, line 2: byte 0xc9 .*cp1252"):
        list(table.studies(tmp_path))
    assert next(table.studies(tmp_path, encoding="cp1252")).impression == "Épanchement."


def test_the_images_of_a_real_export_can_be_opened(tmp_path):
    for name, form in (("a.png", "PNG"), ("b.jpg", "JPEG")):
        Image.new("L", (40, 30), 90).save(tmp_path / name, form)
    study = next(table.studies(write(tmp_path, "uid,frontal,lateral,impression", "1,a.png,b.jpg,x")))
    assert [read_radiograph(image.source).size for image in study.images] == [(40, 30)] * 2


def test_the_kaggle_reports_read_as_a_table_are_the_same_texts(tmp_path, iu):
    """The two real CSVs joined to one table, as a user would: every report comes back letter for letter."""
    from hf_cxr.data.sources import kaggle

    published = list(kaggle.studies(iu, demand_images=False))
    with (tmp_path / "t.csv").open("w", encoding="utf-16", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(("uid", "frontal", "lateral", "impression", "findings", "indication", "tags"))
        for study in published:
            views = [";".join(i.name for i in study.images if i.view == view) for view in ("frontal", "lateral")]
            texts = (study.impression, study.findings, study.indication, "|".join(study.tags))
            writer.writerow((study.uid, *views, *texts))
    read = list(table.studies(tmp_path))
    assert len(read) == 3851
    for ours, theirs in zip(read, published, strict=True):
        assert (ours.uid, ours.impression, ours.findings, ours.indication, ours.tags) == (
            theirs.uid, theirs.impression, theirs.findings, theirs.indication, theirs.tags,
        )  # fmt: skip
        assert {(i.name, i.view) for i in ours.images} == {(i.name, i.view) for i in theirs.images}
