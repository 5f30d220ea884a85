"""The R2Gen form of the Indiana collection: its own splits, findings in place of impressions, images without views."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from hf_cxr.data import archives
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
        ({"train": [record("a")], "val": [record("b", "val"), record("a", "val")]},
         r"id 'a' occurs twice \(train record 1 and val record 2\)"),
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
