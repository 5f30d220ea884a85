"""The user's own table: any kind, any column names, several images a view, and no row lost."""

import csv
import json
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_cxr.data.sources import table
from hf_cxr.data.study import Archived, Embedded
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
        (
            {"uid": "Case", "frontal": "PA", "impression": "Text"},
            r"no column 'Case'; it has .* \(wanted as uid\)",
        ),
        (
            {"uid": "Accession", "impression": "Text"},
            r"no column 'frontal' nor 'lateral'; it has .*--columns frontal=…\), or image=… where a row is an image",
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
        ("No acute abnormality.", "", "frontal: no such image file; is it the text of another column?"),
        ("", "acute/Jane Smith", "lateral: no such image file; is it the text of another column?"),
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


def test_a_path_with_blanks_is_found_without_a_suffix_and_named_with_one(tmp_path):
    (tmp_path / "my films of may").mkdir()
    (tmp_path / "my films of may" / "first one.png").touch()
    lines = ("1,my films of may/first one,,x", "2,my films of may/no such film.png,,x")
    found, missing = table.studies(write(tmp_path, "uid,frontal,lateral,impression", *lines))
    assert sources(found) == [(tmp_path / "my films of may" / "first one.png", "frontal")]
    assert (missing.problem, missing.images[0].name) == ("", "no such film.png")


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


def test_a_row_is_an_image_and_rows_of_one_uid_are_a_study(tmp_path):
    lines = (
        "uid,image,view,impression,patient,tags",
        "s1,a.png,PA,Clear.,p1,nodule",
        "s2,c.png,L,Effusion.,p2,",
        "s1,b.png,LATERAL,,p1,mass",
        "s1,d.png,LEFT DECUBITUS,Clear.,,",
        "s1,e.png,UNK,Clear.,,",
    )
    first, second = table.studies(write(tmp_path, *lines))
    views = [(image.name, image.view, image.projection) for image in first.images]
    assert views == [
        ("a.png", "frontal", "PA"),
        ("b.png", "lateral", ""),
        ("d.png", "neither", ""),
        ("e.png", None, ""),
    ]
    assert (first.uid, first.impression, first.patient, first.tags) == ("s1", "Clear.", "p1", ("nodule", "mass"))
    assert [(image.name, image.view) for image in second.images] == [("c.png", "lateral")]


def test_words_for_a_view_that_are_not_known_are_told_unless_they_may_be_names(tmp_path, caplog):
    for name, words in (
        ("codes", ["seitlich", "AP_horizontal2", "PA"]),
        ("names", ["John Smith DOB 1.1.1", "Li", "x"]),
    ):
        rows = (f"{n},{n}.png,{word},x" for n, word in enumerate(words * 2))
        list(table.studies(write(tmp_path, "uid,image,side,impression", *rows, name=f"{name}.csv"), {"view": "side"}))
    assert "is decided: 'seitlich' (2)\n" in caplog.text
    assert "Smith" not in caplog.text


def test_an_image_table_needs_no_view_and_no_uid(tmp_path, caplog):
    one, two = table.studies(write(tmp_path, "image,findings", "a.png,Clear.", "b.png,Clear."))
    assert [(study.uid, study.images[0].view) for study in (one, two)] == [("row 1", None), ("row 2", None)]
    assert "no column uid, so each row is a study of its own" in caplog.text
    (study,) = table.studies(write(tmp_path, "frontal,findings", "a.png;b.png,Clear."))
    assert (study.uid, len(study.images)) == ("row 1", 2)


@pytest.mark.parametrize(
    ("column", "one", "other"),
    [("impression", "Clear.", "Effusion."), ("report", "A", "B"), ("patient", "p1", "p2"), ("split", "train", "test")],
)
def test_rows_of_a_study_that_contradict_each_other_are_its_problem_and_not_quoted(tmp_path, column, one, other):
    names = ("impression", "report", "patient", "split")
    lines = [f"uid,image,{','.join(names)}"]
    for uid, name, said in (("s1", "a.png", one), ("s1", "b.png", ""), ("s1", "c.png", other), ("s2", "d.png", one)):
        lines.append(f"{uid},{name}," + ",".join(said if known == column else "" for known in names))
    bad, good = table.studies(write(tmp_path, *lines))
    assert bad.problem == f"its rows contradict each other in {column!r} (line 2 and line 4)"
    assert (bad.images, good.problem) == ((), "")


def test_a_doubled_row_is_one_image_and_an_image_with_two_views_a_problem(tmp_path):
    lines = ("1,a.png,PA,x", "1,a.png,PA,x", "1,b.png,,x", "1,./b.png,L,x", "2,c.png,PA,y", "2,c.png,L,y")
    doubled, torn = table.studies(write(tmp_path, "uid,image,view,impression", *lines))
    assert [(image.name, image.view) for image in doubled.images] == [("a.png", "frontal"), ("b.png", "lateral")]
    assert torn.problem == "an image is listed twice, as two views"


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_a_view_that_is_null_keeps_its_place_in_the_list(tmp_path, kind):
    images = [["a.png", "b.png", "c.png"], ["d.png"], ["e.png", "f.png"]]
    rows = {"uid": ["1", "2", "3"], "images": images, "impression": ["x"] * 3}
    rows["views"] = [[None, "LATERAL", None], ["PA"], [None, None]]
    if kind == "parquet":
        pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    elif kind == "jsonl":
        records = (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))
        write(tmp_path, *map(json.dumps, records), name="t.jsonl")
    else:
        lines = ("1,a.png;b.png;c.png,;LATERAL;,x", "2,d.png,PA,x", "3,e.png;f.png,nan;,x")
        write(tmp_path, "uid,images,views,impression", *lines, name="t.csv")
    studies = list(table.studies(tmp_path / f"t.{kind}"))
    assert [[image.view for image in study.images] for study in studies] == [
        [None, "lateral", None],
        ["frontal"],
        [None, None],
    ]


def test_all_images_of_a_study_may_lie_in_one_cell_with_their_views_in_another(tmp_path, caplog):
    records = [
        {"uid": 1, "images": ["a.png", "b.png", "c.png"], "views": ["AP", "LATERAL", "N/A"], "impression": "x"},
        {"uid": 2, "images": ["d.png", "e.png"], "views": ["PA"], "impression": "x"},
    ]
    whole, short = table.studies(write(tmp_path, *map(json.dumps, records), name="t.jsonl"))
    assert [(i.name, i.view, i.projection) for i in whole.images] == [
        ("a.png", "frontal", "AP"),
        ("b.png", "lateral", ""),
        ("c.png", None, ""),
    ]
    assert [(i.name, i.view) for i in short.images] == [("d.png", None), ("e.png", None)]
    assert "t.jsonl: 1 rows have another number of views than of images" in caplog.text
    path = write(tmp_path, "uid,images,views,impression", "1,\"['a.png', 'b.png']\",\"['PA', 'L']\",x", name="p.csv")
    (study,) = table.studies(path)
    assert [(image.name, image.view) for image in study.images] == [("a.png", "frontal"), ("b.png", "lateral")]


def test_a_table_that_could_be_of_both_kinds_is_refused_until_the_images_are_named(tmp_path):
    path = write(tmp_path, "uid,image,frontal,impression", "1,Chest PA,a.png,x")
    with pytest.raises(
        ValueError, match=r"columns 'image' and 'frontal' are both there: is a row an image or a study"
    ):
        list(table.studies(path))
    (study,) = table.studies(path, columns={"frontal": "frontal"})
    assert [(image.name, image.view) for image in study.images] == [("a.png", "frontal")]


def test_age_sex_projection_time_and_the_other_sections_are_read(tmp_path):
    head = "uid,frontal,impression,comparison,technique,uncertain,tags,age,sex,projection,time"
    lines = ("1,a.png,x,Prior film.,Two views.,edema|mass,mass,045Y,female,AP,9", "2,b.png,x,,,,,18M,?,,10")
    first, second = table.studies(write(tmp_path, head, *lines))
    assert (first.comparison, first.technique, first.tags) == ("Prior film.", "Two views.", ("mass",))
    assert (first.uncertain, first.age, first.sex, first.images[0].projection) == (("edema",), 45.0, "F", "AP")
    assert (second.age, second.sex) == (1.5, "")
    assert first.time < second.time  # as numbers, although they are compared as text


def test_a_template_of_columns_gives_paths_and_uids(tmp_path):
    path = write(tmp_path, "dir,file,case,text", "7,a.png,1,x", "7,,2,x")
    columns = {"image": "{dir}/{file}", "uid": "case", "impression": "text"}
    found, empty = table.studies(path, columns=columns)
    assert sources(found) == [(tmp_path / "7" / "a.png", None)]
    assert empty.images == ()
    with pytest.raises(ValueError, match=r"no column 'fil'; it has .*; did you mean 'file'"):
        list(table.studies(path, columns=columns | {"image": "{dir}/{fil}.png"}))


def test_a_file_that_differs_in_its_suffix_alone_is_found_and_two_of_them_are_a_problem(tmp_path):
    for name in ("a.png", "PNG/t/b.png", "c.png", "c.dcm", "d.jpg", "d.png"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).touch()
    lines = ("1,a.jpg,x", "2,t/b.jpg,x", "3,c.jpg,x", "4,d.jpg,x", "5,t/b,x", "6,b.png,x")
    studies = list(table.studies(write(tmp_path, "uid,image,findings", *lines), images=tmp_path / "x"))
    found = [str(study.images[0].source.relative_to(tmp_path / "x")) if study.images else "" for study in studies]
    assert found == ["a.png", "PNG/t/b.png", "", "d.jpg", "PNG/t/b.png", "b.png"]
    assert studies[2].problem == "image: c.jpg could be c.dcm or c.png"
    searched = [study.images[0].searched for study in studies if study.images]
    assert searched == ["", "", "", "", "x (--images names another folder)"]


def test_images_in_zips_of_the_images_folder_are_found_by_the_folder_their_zip_is_named_after(tmp_path):
    for number, member in enumerate(("a.png", "1/b.png")):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            archive.writestr(member, b"")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    lines = ("1,0/a.png,x", "2,1/b.png,x", "3,b.png,x", "4,2/c.png,x")
    studies = list(table.studies(write(tmp_path, "uid,image,findings", *lines)))
    found = [study.images[0].source for study in studies]
    inner = Archived(tmp_path / "1.zip", "1/b.png")
    assert found == [Archived(tmp_path / "0.zip", "a.png"), inner, tmp_path / "b.png", tmp_path / "2" / "c.png"]


def test_bytes_in_a_table_of_images_are_images_with_a_name(tmp_path):
    rows = {"uid": ["1", "1"], "image": [{"bytes": b"x", "path": "a/b.png"}, {"bytes": b"y", "path": None}]}
    pq.write_table(pa.table(rows | {"view": ["PA", "L"], "impression": ["x", "x"]}), tmp_path / "t.parquet")
    (study,) = table.studies(tmp_path / "t.parquet")
    at = [Embedded(str(tmp_path / "t.parquet"), row, "image") for row in (0, 1)]
    assert sources(study) == [(at[0], "frontal"), (at[1], "lateral")]
    assert [image.name for image in study.images] == ["b.png", "image of row 2"]
    rows = {"uid": ["1"], "images": [[b"x", b"y"]], "impression": ["x"]}
    pq.write_table(pa.table(rows), tmp_path / "u.parquet")
    (study,) = table.studies(tmp_path / "u.parquet")
    assert [image.name for image in study.images] == ["images of row 1 (1)", "images of row 1 (2)"]


def test_the_folder_searched_has_its_name_where_the_table_lies_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "films").mkdir()
    monkeypatch.chdir(tmp_path / "films")
    write(Path(), "uid,image,impression", "1,a.png,x")
    (study,) = table.studies("studies.csv")
    assert study.images[0].searched == "films (--images names another folder)"


def test_studies_without_a_patient_or_a_time_keep_their_places(tmp_path):
    lines = ("a,p,10", "b,q,1", "c,p,", "d,,0", "e,p,9", "f,q,1")
    path = write(tmp_path, "uid,patient,time,frontal,impression", *(f"{line},x.png,x" for line in lines))
    assert [study.uid for study in table.studies(path)] == ["e", "b", "c", "d", "a", "f"]


def test_each_folder_is_listed_once_however_many_rows_there_are(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    for number in range(50):
        (tmp_path / "x" / f"{number}.png").touch()
    path = write(tmp_path, "image,impression", *(f"x/{number % 60}.jpg,t" for number in range(600)))
    calls = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: calls.append(str(folder)) or scandir(folder))
    assert len(list(table.studies(path))) == 600
    assert calls.count(str(tmp_path / "x")) <= 2


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
