"""The Kaggle form of the Indiana collection, and the registry of sources."""

import csv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from hf_cxr.data import sources, storage
from hf_cxr.data.sources import kaggle
from hf_cxr.data.study import Archived

REPORTS = [
    {"uid": "7", "MeSH": "normal", "Problems": "normal", "image": "PA", "indication": "Cough.", "comparison": "None.",
     "findings": "Clear lungs.", "impression": "Normal chest."},
    {"uid": "12", "MeSH": "x", "Problems": "Cardiomegaly;Pulmonary Artery; cardiomegaly", "image": "PA",
     "indication": "", "comparison": "", "findings": "", "impression": 'Large "heart",\nno effusion.'},
    {"uid": "3", "MeSH": "normal", "Problems": "", "image": "PA", "indication": "", "comparison": "",
     "findings": "", "impression": ""},
]  # fmt: skip
PROJECTIONS = [
    {"uid": "7", "filename": "7_b.dcm.png", "projection": "Lateral"},
    {"uid": "7", "filename": "7_c.dcm.png", "projection": "Frontal"},
    {"uid": "7", "filename": "7_a.dcm.png", "projection": "Frontal"},
    {"uid": "12", "filename": "12_a.dcm.png", "projection": "Frontal"},
    {"uid": "12", "filename": "12_b.dcm.png", "projection": "Lateral"},
]


def write_csv(path: Path, rows, start="", end="\n", columns=None):
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(start)
        writer = csv.DictWriter(stream, columns or list(rows[0]), lineterminator=end, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_csv(tmp_path / "indiana_reports.csv", REPORTS)
    write_csv(tmp_path / "indiana_projections.csv", PROJECTIONS)
    (tmp_path / "images").mkdir()
    for row in PROJECTIONS:
        (tmp_path / "images" / row["filename"]).write_bytes(b"not opened by the reader")
    return tmp_path


def test_every_report_is_a_study_in_the_order_of_the_table(root):
    studies = list(kaggle.studies(root))
    assert [study.uid for study in studies] == ["7", "12", "3"]
    assert studies[0].findings == "Clear lungs."
    assert studies[0].indication == "Cough."
    assert studies[1].impression == 'Large "heart",\nno effusion.'
    assert studies[2].impression == ""
    assert not any(study.problem for study in studies)


def test_all_listed_images_come_in_the_order_of_their_names_with_their_views(root):
    images = next(kaggle.studies(root)).images
    assert [(image.name, image.view) for image in images] == [
        ("7_a.dcm.png", "frontal"),
        ("7_b.dcm.png", "lateral"),
        ("7_c.dcm.png", "frontal"),
    ]
    assert [image.source for image in images] == [root / "images" / image.name for image in images]


def test_a_study_without_listed_images_has_none(root):
    assert list(kaggle.studies(root))[2].images == ()


def test_problems_become_tags_and_normal_is_no_tag(root):
    assert [study.tags for study in kaggle.studies(root)] == [(), ("cardiomegaly", "pulmonary artery"), ()]


def test_a_listed_file_that_is_not_on_disk_stays_listed_where_it_should_be(root):
    (root / "images" / "7_b.dcm.png").unlink()
    images = next(kaggle.studies(root)).images
    assert [image.source.is_file() for image in images] == [True, False, True]
    assert images[1].source == root / "images" / "images_normalized" / "7_b.dcm.png"


@pytest.mark.parametrize("folder", ["images/images_normalized", "images", "images_normalized", "."])
def test_images_are_found_in_their_usual_places(root, folder):
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    for row in PROJECTIONS:
        (root / "images" / row["filename"]).rename(place / row["filename"])
    images = [image for study in kaggle.studies(root) for image in study.images]
    assert len(images) == 5
    assert all(image.source == place / image.name for image in images)


@pytest.mark.parametrize("name", ["7_a.png", "7_a.dcm.PNG", "7_a.DCM", "7_A.dcm.png", "CXR7_a.png", "7_a.jpg"])
def test_a_file_is_found_under_another_suffix_case_or_prefix(root, name):
    (root / "images" / "7_a.dcm.png").rename(root / "images" / name)
    image = next(kaggle.studies(root)).images[0]
    assert image.source == root / "images" / name
    assert image.name == "7_a.dcm.png"  # the listing calls it what the collection calls it


def test_the_listed_name_goes_before_a_similar_one_in_an_earlier_place(root):
    (root / "images" / "images_normalized").mkdir()
    (root / "images" / "images_normalized" / "7_a.png").write_bytes(b"similar")
    assert next(kaggle.studies(root)).images[0].source == root / "images" / "7_a.dcm.png"


def test_two_listed_names_that_differ_in_suffix_never_become_one_file(root):
    twins = [*PROJECTIONS, {"uid": "7", "filename": "7_a.png", "projection": "Lateral"}]
    write_csv(root / "indiana_projections.csv", twins)
    images = next(kaggle.studies(root)).images
    assert [image.source.is_file() for image in images if image.name == "7_a.png"] == [False]


@pytest.mark.parametrize(("start", "end"), [("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r\n"), ("", "\r")])
def test_byte_order_mark_and_foreign_line_endings_change_nothing(root, start, end):
    before = list(kaggle.studies(root))
    write_csv(root / "indiana_reports.csv", REPORTS, start, end)
    write_csv(root / "indiana_projections.csv", PROJECTIONS, start, end)
    assert list(kaggle.studies(root)) == before


def test_a_short_last_row_is_read_as_empty_texts(root):
    with (root / "indiana_reports.csv").open("a") as stream:
        stream.write("99,normal\n")
    assert list(kaggle.studies(root))[-1].uid == "99"
    assert list(kaggle.studies(root))[-1].impression == ""


def test_a_missing_column_is_named_with_its_file(root):
    write_csv(root / "indiana_reports.csv", REPORTS, columns=["uid", "findings", "Problems", "indication"])
    with pytest.raises(
        ValueError, match=r"indiana_reports\.csv: no column 'impression'; it has uid, findings"
    ) as caught:
        list(kaggle.studies(root))
    assert "\n" not in str(caught.value)


def test_a_report_without_a_uid_is_a_study_with_a_problem(root):
    write_csv(root / "indiana_reports.csv", [*REPORTS, REPORTS[0] | {"uid": " "}])
    last = list(kaggle.studies(root))[-1]
    assert (last.uid, last.problem) == ("line 6", "no uid in indiana_reports.csv")


def test_images_without_a_report_come_last_as_studies_with_a_problem(root):
    orphans = [{"uid": uid, "filename": f"{uid}_a.png", "projection": "Frontal"} for uid in ("99", "98")]
    write_csv(root / "indiana_projections.csv", [orphans[0], *PROJECTIONS, orphans[1]])
    studies = list(kaggle.studies(root))
    assert [study.uid for study in studies] == ["7", "12", "3", "99", "98"]
    assert [study.problem for study in studies[3:]] == ["no report in indiana_reports.csv"] * 2
    assert [image.name for image in studies[3].images] == ["99_a.png"]


def test_a_uid_that_occurs_twice_is_an_error_with_both_lines(root):
    write_csv(root / "indiana_reports.csv", [*REPORTS, REPORTS[0]])
    with pytest.raises(ValueError, match=r"uid '7' occurs twice \(line 2 and line 6\)"):  # a quoted newline between
        list(kaggle.studies(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uid": ""}, r"line 7: an image without a uid"),
        ({"filename": "../secret.png"}, r"line 7: filename is not a plain file name \(uid '7'\)"),
        ({"filename": ""}, r"line 7: filename is not a plain file name"),
        ({"projection": "Oblique"}, r"line 7: projection is neither Frontal nor Lateral \(uid '7'\)"),
        ({"filename": "7_a.dcm.png"}, r"image '7_a\.dcm\.png' of uid '7' occurs twice \(line 4 and line 7\)"),
    ],
)
def test_an_image_that_cannot_be_placed_is_an_error_with_its_line(root, change, message):
    row = {"uid": "7", "filename": "7_d.png", "projection": "Frontal"} | change
    write_csv(root / "indiana_projections.csv", [*PROJECTIONS, row])
    with pytest.raises(ValueError, match=message):
        list(kaggle.studies(root))


def test_what_is_missing_is_named(root):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        list(kaggle.studies(root / "nowhere"))
    (root / "indiana_projections.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"indiana_projections\.csv: no such file"):
        list(kaggle.studies(root))


def test_when_no_image_at_all_is_there_the_places_looked_in_are_named(root):
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="images/images_normalized"):
        list(kaggle.studies(root))


def test_the_tables_alone_are_enough_for_a_plan(root):
    before = [[image.name for image in study.images] for study in kaggle.studies(root)]
    for path in (root / "images").iterdir():
        path.unlink()
    (root / "images").rmdir()
    studies = list(kaggle.studies(root, demand_images=False))
    assert [[image.name for image in study.images] for study in studies] == before


# As Kaggle gives it: one zip


def zipped(root: Path, out: Path, prefix="", order=sorted) -> Path:
    with zipfile.ZipFile(out, "w") as archive:
        for path in order(path for path in root.rglob("*") if path.is_file() and path != out):
            archive.write(path, prefix + path.relative_to(root).as_posix())
    return out


@pytest.mark.parametrize("prefix", ["", "chest-xrays-indiana-university/"])
@pytest.mark.parametrize("folder", ["images/images_normalized", "."])
def test_the_zip_gives_the_same_studies_and_so_does_the_folder_that_holds_it(root, tmp_path_factory, folder, prefix):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for row in PROJECTIONS[:-1]:
        (root / "images" / row["filename"]).rename(root / folder / row["filename"])
    (root / "images" / PROJECTIONS[-1]["filename"]).unlink()
    archive = zipped(root, tmp_path_factory.mktemp("zip") / "archive.zip", prefix)
    for given in (archive, archive.parent):
        for plain, packed in zip(kaggle.studies(root), kaggle.studies(given), strict=True):
            assert replace(packed, images=()) == replace(plain, images=())
            assert [(image.name, image.view) for image in packed.images] == [(i.name, i.view) for i in plain.images]
            for mine, theirs in zip(packed.images, plain.images, strict=True):
                assert mine.source == Archived(archive, prefix + theirs.source.relative_to(root).as_posix())
        listed = kaggle.tables(given)
        contents = [storage.open_file(path).read() for path in listed]
        assert contents == [path.read_bytes() for path in kaggle.tables(root)]
        assert [path.name for path in listed] == [path.name for path in kaggle.tables(root)]


def test_what_is_wrong_with_a_zip_is_one_line_that_names_it(root, tmp_path):
    def line(given, error=ValueError):
        with pytest.raises(error) as caught:
            list(kaggle.studies(given))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    archive = zipped(root, tmp_path / "archive.zip")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "archive.zip").write_bytes(archive.read_bytes()[:-100])
    assert "archive.zip: damaged or truncated" in line(tmp_path / "cut")
    (root / "indiana_reports.csv").unlink()
    (root / "archive.zip").unlink()
    assert "no indiana_reports.csv in the zip" in line(zipped(root, tmp_path / "none.zip"), FileNotFoundError)
    (root / "indiana_projections.csv").unlink()
    (root / "a" / "b").mkdir(parents=True)
    for folder in ("a", "a/b"):
        write_csv(root / folder / "indiana_reports.csv", REPORTS)
    assert "more than one indiana_reports.csv in the zip" in line(zipped(root, tmp_path / "two.zip"))
    (root / "a" / "indiana_reports.csv").unlink()
    said = line(zipped(root, tmp_path / "half.zip"), FileNotFoundError)
    assert "half.zip/a/b/indiana_projections.csv: no such file" in said
    (tmp_path / "notes.txt").write_text("x")
    assert "notes.txt: neither a folder with indiana_reports.csv nor the zip" in line(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    said = line(tmp_path / "empty", FileNotFoundError)
    assert "empty: neither indiana_reports.csv nor a zip with it" in said


def test_a_malformed_table_in_a_zip_is_named_with_its_line(root, tmp_path):
    write_csv(root / "indiana_reports.csv", [*REPORTS, REPORTS[0]])
    with pytest.raises(ValueError, match=r"archive\.zip/indiana_reports\.csv: uid '7' occurs twice \(line 2 and"):
        list(kaggle.studies(zipped(root, tmp_path / "archive.zip")))


def test_the_files_that_are_read_are_listed(root):
    assert all(path.is_file() for path in kaggle.tables(root, demand_images=False))
    assert [path.name for path in kaggle.tables(root)] == ["indiana_reports.csv", "indiana_projections.csv"]


def test_an_unknown_source_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"choose one of .*kaggle.*phantom.*did you mean 'kaggle'"):
        sources.studies("kagle", root=".")


def test_an_option_the_source_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"source 'kaggle'.*'num_studies'"):
        sources.studies("kaggle", root=".", num_studies=3)
    with pytest.raises(ValueError, match=r"source 'kaggle'.*'root'"):
        sources.studies("kaggle")


def test_the_real_tables_give_every_report_and_image(iu):
    studies = list(sources.studies("kaggle", root=iu, demand_images=False))
    assert len(studies) == 3851
    assert not any(study.problem for study in studies)
    assert sum(len(study.images) for study in studies) == 7466
    with_text = [study for study in studies if study.impression]
    assert len(with_text) == 3820
    views = [{image.view for image in study.images} for study in with_text]
    counts = [views.count(wanted) for wanted in ({"frontal", "lateral"}, {"frontal"}, {"lateral"})]
    assert counts == [3370, 290, 160]
    on_disk = {s.uid: sum(image.source.is_file() for image in s.images) for s in studies}
    assert {uid: count for uid, count in on_disk.items() if count} == {"2": 2, "54": 2, "300": 2, "905": 2, "1000": 3}
