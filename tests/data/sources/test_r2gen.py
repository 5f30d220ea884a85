"""The R2Gen form of the Indiana collection: its own splits, findings in place of impressions, images without views."""

import gzip
import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from forms import r2gen_mimic

from hf_cxr.data import archives
from hf_cxr.data.prepare import plan, prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources import r2gen
from hf_cxr.data.study import Archived


def record(uid: str, split: str = "train", **change) -> dict:
    paths = [f"{uid}/0.png", f"{uid}/1.png"]
    return {"id": uid, "report": f"Clear lungs in {uid} .", "image_path": paths, "split": split} | change


ANNOTATION = {
    "train": [record("CXR2384_IM-0942"), record("CXR1_1_IM-0001-3001")],
    "val": [record("CXR2056_IM-0694-1001", "val")],
    "test": [record("foreign", "test")],
}


def annotate(root: Path, annotation: object) -> Path:
    text = annotation if isinstance(annotation, str) else json.dumps(annotation)
    (root / "annotation.json").write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    annotate(tmp_path, ANNOTATION)
    for records in ANNOTATION.values():
        for listed in records:
            for path in listed["image_path"]:
                (tmp_path / "images" / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "images" / path).write_bytes(b"image of " + path.encode())
    return tmp_path


def zipped(root: Path, out: Path, prefix: str = "iu_xray/") -> Path:
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file() and path != out:
                archive.write(path, prefix + path.relative_to(root).as_posix())
    return out


def test_every_record_is_a_study_with_its_split_findings_and_patient(root):
    studies = list(r2gen.studies(root))
    assert [(study.uid, study.split, study.patient) for study in studies] == [
        ("CXR2384_IM-0942", "train", "2384"),
        ("CXR1_1_IM-0001-3001", "train", "1"),
        ("CXR2056_IM-0694-1001", "validation", "2056"),
        ("foreign", "test", None),
    ]
    assert studies[0].findings == "Clear lungs in CXR2384_IM-0942 ."
    assert not any(study.impression or study.problem for study in studies)


def test_images_keep_the_published_order_and_have_no_view(root):
    study = next(r2gen.studies(root))
    folder = root / "images" / "CXR2384_IM-0942"
    assert [image.source for image in study.images] == [folder / "0.png", folder / "1.png"]
    assert [image.view for image in study.images] == [None, None]
    assert [image.name for image in study.images] == ["CXR2384_IM-0942/0.png", "CXR2384_IM-0942/1.png"]


def test_a_listed_image_that_is_not_on_disk_stays_listed(root):
    (root / "images" / "CXR2384_IM-0942" / "1.png").unlink()
    assert [image.source.is_file() for image in next(r2gen.studies(root)).images] == [True, False]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_record_may_list_any_number_of_images(root, count):
    listed = [f"CXR7_IM-1/{number}.png" for number in range(count)]
    annotate(root, {"test": [record("CXR7_IM-1", "test", image_path=listed)]})
    study = next(r2gen.studies(root))
    assert [image.name for image in study.images] == listed
    assert not study.problem


@pytest.mark.parametrize("place", ["annotation.json", "parent"])
def test_the_annotation_itself_or_the_folder_around_it_will_do(root, place, tmp_path_factory):
    expected = list(r2gen.studies(root))
    if place == "parent":
        root = root.rename(root.parent / "iu_xray")
        expected = list(r2gen.studies(root))
        assert list(r2gen.studies(root.parent)) == expected
        root.rename(root.parent / "away")
    else:
        assert list(r2gen.studies(root / place)) == expected


@pytest.mark.parametrize("prefix", ["iu_xray/", ""])
def test_the_archive_gives_the_same_studies_and_finds_each_image_by_its_whole_path(root, tmp_path_factory, prefix):
    archive = zipped(root, tmp_path_factory.mktemp("zip") / "iu_xray.zip", prefix)
    texts = [(study.uid, study.findings, study.split) for study in r2gen.studies(root)]
    for given in (archive, archive.parent):
        studies = list(r2gen.studies(given))
        assert [(study.uid, study.findings, study.split) for study in studies] == texts
        image = studies[0].images[1]
        assert image.source == Archived(archive, f"{prefix}images/CXR2384_IM-0942/1.png")
        assert image.name == "CXR2384_IM-0942/1.png"
        assert r2gen.tables(given) == [archive]
    content = dict(archives.members(archive))
    for study in studies:
        for image in study.images:
            assert content[image.source.key] == b"image of " + image.name.encode()


def test_a_damaged_or_foreign_archive_is_an_error_that_names_it(root, tmp_path):
    archive = zipped(root, tmp_path / "iu.zip")
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:-200])
    with pytest.raises((ValueError, OSError), match=r"cut\.zip"):
        list(r2gen.studies(tmp_path / "cut.zip"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("readme.txt", "nothing")
    with pytest.raises(FileNotFoundError, match=r"other\.zip: no annotation\.json in the archive"):
        list(r2gen.studies(tmp_path / "other.zip"))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as two:
        two.writestr("a/annotation.json", "{}")
        two.writestr("b/annotation.json", "{}")
    with pytest.raises(ValueError, match=r"two\.zip: more than one annotation\.json"):
        list(r2gen.studies(tmp_path / "two.zip"))


def test_what_is_not_there_or_ambiguous_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        list(r2gen.studies(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"neither annotation\.json nor an archive"):
        list(r2gen.studies(tmp_path))
    for name in ("a.zip", "b.zip"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"several archives \(a\.zip, b\.zip\)"):
        list(r2gen.studies(tmp_path))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.txt: neither an archive nor annotation\.json"):
        list(r2gen.studies(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("bad", "uid", "problem"),
    [
        (["CXR7_IM-1"], "train record 2", "not an object"),
        ({"report": "Clear."}, "train record 2", "no id"),
        (record(" "), "train record 2", "no id"),
        (record("CXR7_IM-1", id=[7]), "train record 2", "no id"),
        ({"id": "CXR7_IM-1", "image_path": []}, "CXR7_IM-1", "no report text"),
        ({"id": "CXR7_IM-1", "report": "Clear."}, "CXR7_IM-1", "image_path is not a list of paths"),
        (record("CXR7_IM-1", image_path="a/0.png"), "CXR7_IM-1", "image_path is not a list of paths"),
        (record("CXR7_IM-1", image_path=["a/0.png", None]), "CXR7_IM-1", "image_path is not a list of paths"),
        (record("CXR7_IM-1", image_path=["../../0.png"]), "CXR7_IM-1", "image_path leads out of the images folder"),
        (record("CXR7_IM-1", image_path=["/etc/0.png"]), "CXR7_IM-1", "image_path leads out of the images folder"),
        (record("CXR7_IM-1", image_path=["C:0.png"]), "CXR7_IM-1", "image_path leads out of the images folder"),
        (record("CXR7_IM-1", image_path=["..\\0.png"]), "CXR7_IM-1", "image_path leads out of the images folder"),
        (record("CXR7_IM-1", image_path=[""]), "CXR7_IM-1", "image_path leads out of the images folder"),
        (record("CXR7_IM-1", image_path=["a/0.png"] * 2), "CXR7_IM-1", "image_path lists an image twice"),
        (record("CXR7_IM-1", report="\ud800"), "CXR7_IM-1", "report or image_path holds half a character"),
        (record("CXR7_IM-1", image_path=["a\0.png"]), "CXR7_IM-1", "report or image_path holds a NUL"),
        (record("CXR7_IM-1", "test"), "CXR7_IM-1", "listed under train, but its own split says otherwise"),
    ],
)
def test_a_record_that_cannot_be_used_is_a_study_with_a_problem(root, bad, uid, problem):
    annotate(root, {"train": [record("CXR1_IM-1"), bad, record("CXR2_IM-1")]})
    studies = list(r2gen.studies(root))
    assert [study.uid for study in studies] == ["CXR1_IM-1", uid, "CXR2_IM-1"]
    assert studies[1].problem.startswith(problem)
    assert not studies[1].images


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ('{"train": [', "malformed JSON"),
        ("", "malformed JSON"),
        ('{"train": [], "train": []}', "a key occurs twice"),
        ([], "not an object with the lists train, val, test"),
        ({}, "not an object with the lists train, val, test"),
        ({"train": {}}, "train is not a list of records"),
        ({"train": [], "extra": []}, "unknown split 'extra'; R2Gen has train, val, test"),
        ({"train": [record("CXR1_a")], "val": [record("b", "val"), record("CXR1_a", "val")]},
         r"id 'CXR1_a' occurs twice \(train record 1 and val record 2\)"),
        ({"train": [record("patient64541"), record("patient64542")]},
         r"neither R2Gen's annotation of the Indiana collection \(no id such as CXR2384_IM-0942\) nor of MIMIC-CXR"),
    ],
)  # fmt: skip
def test_an_annotation_that_cannot_be_trusted_is_a_one_line_error(root, annotation, message):
    annotate(root, annotation)
    with pytest.raises(ValueError, match=message) as caught:
        list(r2gen.studies(root))
    assert str(caught.value).startswith(str(root / "annotation.json"))
    assert "\n" not in str(caught.value)


def test_an_annotation_of_the_published_size_is_read_to_the_last_record(root):
    """2,069 / 296 / 590 studies, as in the published split."""
    sizes = {"train": 2069, "val": 296, "test": 590}
    made = {name: [record(f"CXR{n}_{name}", name) for n in range(size)] for name, size in sizes.items()}
    counts = Counter(study.split for study in r2gen.studies(annotate(root, made)))
    assert counts == {"train": 2069, "validation": 296, "test": 590}


# MIMIC-CXR: a record is an image


def view(study: int, number: int, split: str = "train", **change) -> dict:
    """A record as published: ids of study and patient are numbers, and a study's records repeat its report."""
    patient = 10_000_000 + study // 10
    dicom = f"{study}-{number:08x}"
    path = f"p{str(patient)[:2]}/p{patient}/s{study}/{dicom}.jpg"
    made = {
        "id": dicom,
        "study_id": study,
        "subject_id": patient,
        "report": f"Clear in {study} .",
        "image_path": [path],
    }
    return made | {"split": split} | change


MIMIC = {
    "train": [view(50, 1), view(51, 1), view(50, 2), view(50, 3), view(62, 1)],
    "val": [view(73, 1, "val"), view(73, 2, "val")],
    "test": [view(84, 1, "test")],
}


def test_records_of_one_mimic_study_are_one_study_of_its_patient(tmp_path):
    studies = list(r2gen.studies(annotate(tmp_path, MIMIC)))
    assert [(study.uid, study.patient, study.split, len(study.images)) for study in studies] == [
        ("s50", "10000005", "train", 3),
        ("s51", "10000005", "train", 1),
        ("s62", "10000006", "train", 1),
        ("s73", "10000007", "validation", 2),
        ("s84", "10000008", "test", 1),
    ]
    assert studies[0].findings == "Clear in 50 ."
    assert not any(study.problem or study.impression for study in studies)
    folder = tmp_path / "images" / "p10" / "p10000005" / "s50"
    assert [image.source for image in studies[0].images] == [folder / f"50-0000000{n}.jpg" for n in (1, 2, 3)]
    assert {image.view for study in studies for image in study.images} == {None}


def test_the_images_of_mimic_may_lie_elsewhere(tmp_path):
    (tmp_path / "files").mkdir()
    studies = list(r2gen.studies(annotate(tmp_path, MIMIC), images=tmp_path / "files"))
    assert studies[1].images[0].source == tmp_path / "files" / "p10" / "p10000005" / "s51" / "51-00000001.jpg"
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of images"):
        list(r2gen.studies(tmp_path, images=tmp_path / "nowhere"))


@pytest.mark.parametrize("where", ["mimic_cxr/annotation.json", "annotation.json"])
def test_each_annotation_has_the_licence_of_its_own_collection(root, tmp_path_factory, where):
    folder = tmp_path_factory.mktemp("mimic")
    (folder / where).parent.mkdir(exist_ok=True)
    annotate((folder / where).parent, MIMIC)
    mimic, indiana = r2gen.collection(folder), r2gen.collection(root)
    assert (mimic.name, mimic.licence) == ("MIMIC-CXR", "physionet-credentialed-1.5.0")
    assert indiana.licence == "cc-by-nc-nd-4.0"
    assert "the two images that R2Gen chose" in indiana.limits
    quoting = view(50, 1, report='He said "study_id" .') | {"id": "CXR1_a"}
    annotate(root, {"train": [{k: v for k, v in quoting.items() if k not in ("study_id", "subject_id")}]})
    assert r2gen.collection(root).licence == "cc-by-nc-nd-4.0"


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        ({"train": [view(50, 1), view(50, 2, report="Effusion .")]}, "its records have 2 different reports"),
        ({"train": [view(50, 1), view(50, 2, subject_id=7)]}, "its records have 2 different patients (subject_id)"),
        ({"train": [view(50, 1)], "test": [view(50, 2, "test")]}, "its records have 2 different splits"),
        ({"train": [view(50, 1), view(50, 1)]}, "image_path lists an image twice"),
        ({"train": [view(50, 1), view(50, 2, subject_id=None)]}, "no subject_id"),
        ({"train": [view(50, 1), view(50, 2, report=None)]}, "no report text"),
        ({"train": [view(50, 1), view(50, 2, image_path=["../a.jpg"])]}, "image_path leads out of the images folder"),
        ({"train": [view(50, 1, "test")]}, "listed under train, but its own split says otherwise"),
    ],
)
def test_a_mimic_study_whose_records_do_not_agree_is_left_out_and_the_others_stay(tmp_path, records, problem):
    studies = list(r2gen.studies(annotate(tmp_path, records | {"val": [view(61, 1, "val")]})))
    assert [(study.uid, study.problem) for study in studies] == [("s50", problem), ("s61", "")]
    assert studies[0].images == ()


def test_ids_of_mimic_are_read_in_the_spellings_of_copies_and_a_record_without_one_is_called_by_its_place(tmp_path):
    copies = [view(50, 1), view(50, 2, study_id="50"), view(50, 3, study_id="s50"), view(50, 4, study_id=50.0)]
    blanks = [view(50, 5, report="Clear   in 50 ."), view(51, 1, study_id=None), ["no record"]]
    studies = list(r2gen.studies(annotate(tmp_path, {"train": [*copies, *blanks]})))
    assert [(study.uid, len(study.images), study.problem) for study in studies] == [
        ("s50", 5, ""),
        ("train record 6", 0, "no study_id"),
        ("train record 7", 0, "not an object with id, report and image_path"),
    ]


def test_the_published_form_of_mimic_prepares_in_one_command_and_every_record_is_counted(tmp_path):
    truth = r2gen_mimic.make(tmp_path / "mimic_cxr", 120, seed=1)
    options = {"root": tmp_path, "section": "findings"}
    preparation = prepare("r2gen", tmp_path / "out", size=32, **options)
    assert (preparation["steps"][0]["kept"], preparation["steps"][-1]["kept"]) == (120, 120)
    assert preparation["collection"]["name"] == "MIMIC-CXR"
    assert "license_name: physionet-credentialed-1.5.0" in (tmp_path / "out" / "README.md").read_text()
    rows = [(name, row) for name, part in load_prepared(tmp_path / "out").items() for row in part]
    patients = {row["uid"]: row["patient"] for _, row in rows}
    assert len(rows) == len(truth) == 120
    for split, row in rows:
        known = truth[row["uid"]]
        assert (row["findings"], split) == (known.findings, known.split)
        for other in truth.values():
            assert (patients[other.uid] == row["patient"]) == (other.patient == known.patient)
    listing = (tmp_path / "out" / "images.csv").read_text().splitlines()[1:]
    assert len(listing) == sum(known.images for known in truth.values())
    assert plan("r2gen", **options)["studies"] == {n: k for n, k in preparation["studies"].items() if k}


def test_the_metadata_of_mimic_names_the_views_of_the_annotation(tmp_path):
    """`--views mimic-cxr-2.0.0-metadata.csv.gz`, a table of all images of MIMIC-CXR, by their names alone."""
    annotate(tmp_path, MIMIC)
    words = {
        "50-00000001": "LATERAL",
        "50-00000002": "AP LLD",
        "50-00000003": "PA",
        "51-00000001": "",
        "62-00000001": "LL",
    }
    rows = "".join(f"{dicom},10000005,50,{word}\n" for dicom, word in {**words, "not-annotated": "PA"}.items())
    with gzip.open(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", "wt") as stream:
        stream.write("dicom_id,subject_id,study_id,ViewPosition\n" + rows)
    options = {"root": tmp_path, "section": "findings", "views": tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"}
    preparation = plan("r2gen", **options)
    assert preparation["images_without_a_view_in_the_table"] == 4
    assert preparation["views"] == {"both": 2, "frontal only": 2, "lateral only": 1}
