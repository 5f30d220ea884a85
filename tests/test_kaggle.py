"""The Kaggle form of the Indiana collection, and the registry of sources."""

import csv
from pathlib import Path

import pytest

from hf_cxr import sources
from hf_cxr.sources import kaggle

REPORTS = [
    {"uid": "7", "MeSH": "normal", "Problems": "normal", "image": "PA", "indication": "Cough.", "comparison": "None.",
     "findings": "Clear lungs.", "impression": "Normal chest."},
    {"uid": "12", "MeSH": "x", "Problems": "Cardiomegaly;Pulmonary Artery; cardiomegaly", "image": "PA",
     "indication": "", "comparison": "", "findings": "", "impression": 'Large "heart",\nno effusion.'},
    {"uid": "3", "MeSH": "normal", "Problems": "", "image": "PA", "indication": "", "comparison": "",
     "findings": "", "impression": ""},
]  # fmt: skip
PROJECTIONS = [
    {"uid": "7", "filename": "7_b.png", "projection": "Lateral"},
    {"uid": "7", "filename": "7_c.png", "projection": "Frontal"},
    {"uid": "7", "filename": "7_a.png", "projection": "Frontal"},
    {"uid": "12", "filename": "12_a.png", "projection": "Frontal"},
    {"uid": "12", "filename": "12_b.png", "projection": "Lateral"},
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


def test_the_first_name_of_a_projection_is_its_view(root):
    study = next(kaggle.studies(root))
    assert (study.frontal, study.lateral) == (root / "images" / "7_a.png", root / "images" / "7_b.png")


def test_a_study_without_listed_images_has_no_views(root):
    assert list(kaggle.studies(root))[2].frontal is None


def test_problems_become_tags_and_normal_is_no_tag(root):
    assert [study.tags for study in kaggle.studies(root)] == [(), ("cardiomegaly", "pulmonary artery"), ()]


def test_a_file_that_is_not_on_disk_gives_way_to_another_of_the_same_view(root):
    (root / "images" / "7_a.png").unlink()
    assert next(kaggle.studies(root)).frontal.name == "7_c.png"


def test_a_view_with_no_file_on_disk_keeps_its_path_so_that_its_absence_is_seen(root):
    (root / "images" / "7_b.png").unlink()
    lateral = next(kaggle.studies(root)).lateral
    assert lateral.name == "7_b.png"
    assert not lateral.exists()


@pytest.mark.parametrize("folder", ["images/images_normalized", "images", "images_normalized", "."])
def test_images_are_found_in_their_usual_places(root, folder):
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    for row in PROJECTIONS:
        (root / "images" / row["filename"]).rename(place / row["filename"])
    assert all(study.frontal.is_file() for study in kaggle.studies(root) if study.frontal)


@pytest.mark.parametrize(("start", "end"), [("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r\n")])
def test_byte_order_mark_and_windows_line_endings_change_nothing(root, start, end):
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


def test_an_empty_or_foreign_table_is_a_one_line_error(root):
    (root / "indiana_reports.csv").write_bytes(b"")
    with pytest.raises(ValueError, match="no column 'uid'"):
        list(kaggle.studies(root))
    (root / "indiana_reports.csv").write_bytes("uid,MeSH\n1,é".encode("utf-16"))
    with pytest.raises(ValueError, match="not UTF-8"):
        list(kaggle.studies(root))


def test_a_uid_that_occurs_twice_is_an_error(root):
    write_csv(root / "indiana_reports.csv", [*REPORTS, REPORTS[0]])
    with pytest.raises(ValueError, match="uid '7' occurs twice"):
        list(kaggle.studies(root))


def test_what_is_missing_is_named(root):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        list(kaggle.studies(root / "nowhere"))
    (root / "indiana_projections.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"indiana_projections\.csv"):
        list(kaggle.studies(root))


def test_when_no_image_at_all_is_there_the_places_looked_in_are_named(root):
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="images/images_normalized"):
        list(kaggle.studies(root))


def test_an_unknown_source_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"choose one of .*kaggle.*phantom.*did you mean 'kaggle'"):
        sources.studies("kagle", root=".")


def test_an_option_the_source_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"source 'kaggle'.*'num_studies'"):
        sources.studies("kaggle", root=".", num_studies=3)
    with pytest.raises(ValueError, match=r"source 'kaggle'.*'root'"):
        sources.studies("kaggle")


def test_the_real_tables_give_every_report_and_view(iu):
    studies = list(sources.studies("kaggle", root=iu))
    assert len(studies) == 3851
    assert sum(bool(study.impression) for study in studies) == 3820
    with_text = [study for study in studies if study.impression]
    both = sum(bool(study.frontal and study.lateral) for study in with_text)
    frontal_only = sum(bool(study.frontal and not study.lateral) for study in with_text)
    lateral_only = sum(bool(study.lateral and not study.frontal) for study in with_text)
    assert (both, frontal_only, lateral_only) == (3370, 290, 160)
    on_disk = [study.uid for study in studies if study.frontal and study.frontal.is_file()]
    assert on_disk == ["2", "54", "300", "905", "1000"]
