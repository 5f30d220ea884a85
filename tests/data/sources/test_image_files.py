"""Where a listed image lies: in its place, under another suffix, deeper, in a zip, or behind an address."""

import zipfile
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.data.sources import image_files, table
from hf_cxr.data.sources.image_files import ImageFiles
from hf_cxr.data.study import Archived


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_the_listed_place_wins_over_all_others(tmp_path):
    files = ImageFiles(touch(tmp_path, "a/1.png", "a/1.jpg", "b/a/1.jpg", "a/1.dcm.png"))
    assert files.find("a/1.jpg") == (tmp_path / "a" / "1.jpg", "")
    assert files.find("a/1.dcm.png") == (tmp_path / "a" / "1.dcm.png", "")
    assert files.find("a/1.bmp")[1] == "1.bmp could be a/1.dcm.png or a/1.jpg"


def test_a_path_with_a_folder_is_found_deeper_and_a_bare_name_is_not(tmp_path):
    files = ImageFiles(touch(tmp_path, "x/a/1.png", "x/2.png", "y/b/3.png", "z/b/3.png", "y/a/notes.txt"))
    assert files.find("a/1.jpg") == (tmp_path / "x" / "a" / "1.png", "")
    assert files.find("2.png") == (None, "")
    assert files.find("b/3.png")[1] == "3.png could be y/b/3.png or z/b/3.png"
    assert files.find("a/notes.png") == (None, "")


def test_a_path_may_leave_the_folder_or_be_absolute(tmp_path):
    files = ImageFiles(touch(tmp_path, "images/1.png", "other/2.png") / "images")
    assert files.find("../other/2.jpg") == (tmp_path / "images" / ".." / "other" / "2.png", "")
    assert files.find(str(tmp_path / "other" / "2.dcm")) == (tmp_path / "other" / "2.png", "")
    assert files.find("../images/9.png") == (None, "")


def test_a_suffix_that_is_none_of_an_image_belongs_to_the_name(tmp_path):
    files = ImageFiles(touch(tmp_path, "1.2.840.1", "1.2.840.2.dcm", "3.PNG"))
    assert files.find("1.2.840.1.dcm") == (tmp_path / "1.2.840.1", "")
    assert files.find("1.2.840.2") == (tmp_path / "1.2.840.2.dcm", "")
    assert files.find("1.2.840.3") == (None, "")
    assert files.find("3.png") == (tmp_path / "3.PNG", "")


def test_the_same_image_in_a_zip_and_in_the_folder_it_unpacks_to_is_read_from_the_folder(tmp_path):
    touch(tmp_path, "0/a.png")
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as archive:
        archive.writestr("a.png", b"")
        archive.writestr("b.png", b"")
    files = ImageFiles(tmp_path)
    assert files.find("0/a.png") == (tmp_path / "0" / "a.png", "")
    assert files.find("0/b.jpg") == (Archived(tmp_path / "0.zip", "b.png"), "")
    assert files.find("b.png") == (Archived(tmp_path / "0.zip", "b.png"), "")


def test_very_many_subfolders_are_not_searched(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MOST_FOLDERS", 2)
    touch(tmp_path, "x/a/1.png", "y/2.png")
    assert ImageFiles(tmp_path).find("a/1.png")[0] == tmp_path / "x" / "a" / "1.png"
    touch(tmp_path, "z/3.png")
    assert ImageFiles(tmp_path).find("a/1.png") == (None, "")


@given(st.text(max_size=300))
def test_no_text_is_too_odd_to_be_looked_for(tmp_path_factory, text):
    found, fault = ImageFiles(tmp_path_factory.getbasetemp()).find(f"nowhere{text}/{text}")
    assert (found, fault) == (None, "")


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def test_a_table_and_its_images_may_lie_behind_an_address(memory):
    memory.pipe("/x/t.csv", b"uid,image,view,impression\n1,a/1.jpg,PA,x\n2,a/9.png,L,x\n")
    memory.pipe("/x/deep/a/1.png", b"")
    first, second = table.studies("memory://x/t.csv")
    assert first.images[0].source == "memory://x/deep/a/1.png"
    assert (second.images[0].source, bool(second.images[0].searched)) == ("memory://x/a/9.png", True)
