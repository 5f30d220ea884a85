"""Archives in one pass: what is read, what is refused, and that nothing is lost without a word."""

import bz2
import errno
import gzip
import io
import os
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from hf_cxr.data import archives
from hf_cxr.data.archives import UnsafeArchive, extract, image_key, is_archive, members

FILES = {"a/1.png": b"one" * 100, "a/b/2.xml": b"", "3.dcm": os.urandom(70_000)}


def check(path: Path) -> int:
    return sum(1 for _ in members(path))


READERS = [lambda path: list(members(path)), lambda path: extract(path, path.parent / "out")]
reader = pytest.mark.parametrize("read", READERS, ids=["members", "extract"])


def header(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def make_tar(
    path: Path, files: dict[str, bytes] = FILES, *others: tarfile.TarInfo, mode: str = "w:gz", **options
) -> Path:
    with tarfile.open(path, mode, **options) as archive:
        for name, content in files.items():
            archive.addfile(header(name, size=len(content)), io.BytesIO(content))
        for info in others:
            archive.addfile(info)
    return path


def make_zip(path: Path, files: dict[str, bytes] = FILES, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def archive_of(kind: str, folder: Path, files: dict[str, bytes] = FILES) -> Path:
    if kind == "zip":
        return make_zip(folder / "a.zip", files)
    suffix, mode = {"gz": (".tgz", "w:gz"), "xz": (".tar.xz", "w:xz"), "bz2": (".tar.bz2", "w:bz2")}.get(
        kind, (".tar", "w:")
    )
    return make_tar(folder / f"a{suffix}", files, mode=mode)


KINDS = ["gz", "bz2", "xz", "tar", "zip"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_comes_out_in_order_with_its_content(kind, tmp_path):
    path = archive_of(kind, tmp_path)
    assert is_archive(path)
    assert list(members(path)) == list(FILES.items())
    assert [name for name, _ in members(str(path), lambda name: name.endswith(".dcm"))] == ["3.dcm"]
    assert extract(path, tmp_path / "out") == check(path) == 3
    assert tree(tmp_path / "out") == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "out"])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_dialects_and_a_leading_dot_are_understood(form, tmp_path):
    long = "d" * 90 + "/" + "f" * 90 + ".png"
    files = {"./CXR1_1.png": b"x", long: b"y"}
    path = make_tar(tmp_path / "a.tar", files, header("./folder/", tarfile.DIRTYPE), mode="w:", format=form)
    assert list(members(path)) == [("CXR1_1.png", b"x"), (long, b"y")]


def test_the_published_report_archive_is_read_whole(iu):
    asked = []
    for name, content in members(iu / "NLMCXR_reports.tgz", lambda name: not asked.append(name)):
        assert name.startswith("ecgen-radiology/")
        assert content.lstrip().startswith(b"<?xml")
    assert len(set(asked)) == 3955


@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_what_macos_adds_is_ignored(kind, tmp_path):
    path = archive_of(kind, tmp_path, {"a/._1.png": b"?", "a/1.png": b"1", "__MACOSX/a/2.png": b"?", ".hidden": b"h"})
    assert [name for name, _ in members(path)] == ["a/1.png", ".hidden"]
    assert extract(path, tmp_path / "out") == 2


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a/CXR1000_IM-0003-1001.png", "1000_IM-0003-1001"),
        ("1000_IM-0003-1001.dcm.png", "1000_IM-0003-1001"),
        ("a\\b\\cxr7_IM.DICOM", "7_IM"),
        ("CXRAY_1.JPEG", "CXRAY_1"),
        ("1.2.840.113619.2.dcm", "1.2.840.113619.2"),
        ("scan.tar", "scan.tar"),
        ("x/.png", ".png"),
        ("0.tiff", "0"),
    ],
)
def test_forms_of_one_image_share_a_key(name, key):
    assert image_key(name) == key


def test_an_archive_is_told_by_its_suffix():
    assert all(is_archive(f"A/b{s.upper()}") for s in (".tgz", ".tar.gz", ".tar", ".tar.bz2", ".tar.xz", ".zip"))
    assert not any(is_archive(name) for name in ("a.gz", "a.csv.gz", "tgz", "a.zip.png", "a.tgz.part"))


UNSAFE_NAMES = {
    "/etc/passwd": "absolute",
    "//x/y": "absolute",
    "C:/x.png": "absolute",
    "c:x.png": "absolute",
    "../x.png": "outside",
    "a/../../x.png": "outside",
    "a/..": "outside",
    "a\\..\\..\\x": "backslash",
    "\\\\server\\x": "backslash",
    "a\nb.png": "control",
}


@reader
@pytest.mark.parametrize("kind", ["gz", "zip"])
@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_a_name_that_leads_elsewhere_refuses_the_whole_archive(read, kind, name, tmp_path):
    folder = tmp_path / "deep" / "deeper"
    folder.mkdir(parents=True)
    path = archive_of(kind, folder, {"good.png": b"1", name: b"2"})
    with pytest.raises(UnsafeArchive, match=UNSAFE_NAMES[name]) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert repr(name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


@reader
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse"),
        (b"Q", "unknown kind"),
    ],
)
def test_links_and_devices_are_refused_even_if_nobody_asks_for_them(read, kind, what, tmp_path):
    path = make_tar(tmp_path / "a.tgz", {"good.png": b"1"}, header("bad.png", kind, linkname="good.png"))
    with pytest.raises(UnsafeArchive, match=rf"a\.tgz: .*'bad\.png' is .*{what}"):
        read(path)
    with pytest.raises(UnsafeArchive):
        list(members(path, lambda name: False))
    assert not (tmp_path / "out").exists()


@reader
@pytest.mark.parametrize(("mode", "what"), [(0o120777, "symbolic link"), (0o020666, "device"), (0o010666, "device")])
def test_links_and_devices_in_a_zip_are_refused(read, mode, what, tmp_path):
    path = make_zip(tmp_path / "a.zip", {"good.png": b"1"})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("bad.png")
        info.external_attr = mode << 16
        archive.writestr(info, "good.png")
    with pytest.raises(UnsafeArchive, match=rf"'bad\.png' is a {what}"):
        read(path)
    assert not (tmp_path / "out").exists()


@reader
@pytest.mark.parametrize("kind", KINDS)
def test_limits_on_size_and_number(read, kind, tmp_path, monkeypatch):
    path = archive_of(kind, tmp_path)
    monkeypatch.setattr(archives, "MAX_MEMBER", 69_999)
    with pytest.raises(UnsafeArchive, match=r"'3\.dcm' is larger than 69,999 bytes"):
        read(path)
    monkeypatch.setattr(archives, "MAX_MEMBER", 70_000)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    with pytest.raises(UnsafeArchive, match="more than 2 members"):
        read(path)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    read(path)


@reader
@pytest.mark.parametrize("kind", ["gz", "zip"])
def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(read, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER", 1 << 20)
    monkeypatch.setattr(archives, "MAX_RATIO", 50)
    path = archive_of(kind, tmp_path, {str(i): bytes(1 << 20) for i in range(4)})
    with pytest.raises(UnsafeArchive, match="archive bomb"):
        read(path)


def test_a_bomb_hidden_behind_the_end_of_the_tar_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER", 1 << 20)
    monkeypatch.setattr(archives, "MAX_RATIO", 50)
    plain = make_tar(tmp_path / "a.tar", {"1": b"1"}, mode="w:").read_bytes()
    (tmp_path / "a.tgz").write_bytes(gzip.compress(plain + bytes(8 << 20)))
    with pytest.raises(UnsafeArchive, match="archive bomb"):
        check(tmp_path / "a.tgz")


@reader
@pytest.mark.parametrize("declared", [0, 99, 1001, 5000, 0xFFFFFF00])
def test_a_zip_that_lies_about_a_size_is_refused(read, declared, tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": os.urandom(1000)})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, declared)  # uncompressed size in the directory
    struct.pack_into("<I", data, 22, declared)  # and in the local header
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip"):
        read(path)


def test_a_sparse_file_in_the_pax_dialect_is_refused(tmp_path):
    sparse = {"GNU.sparse.size": "1000", "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,1"}
    info = header("a.png", pax_headers=sparse)
    path = make_tar(tmp_path / "a.tar", {}, info, mode="w:", format=tarfile.PAX_FORMAT)
    with pytest.raises(UnsafeArchive, match=r"'a\.png' is a sparse file"):
        list(members(path))


def test_a_huge_directory_of_a_zip_is_not_read_into_memory(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip")
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 100)
    with pytest.raises(ValueError, match=r"after 0 members .its directory has"):
        list(members(path))


def test_a_huge_pax_header_is_not_read_into_memory(tmp_path):
    bomb = header("x", tarfile.XHDTYPE, size=1 << 40)
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(bomb.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 20)))
    with pytest.raises(ValueError, match=r"after 0 members \(tar header of 1,099,511,627,776 bytes\)"):
        list(members(path))


def test_thousands_of_pax_headers_in_a_row_are_an_error_not_a_crash(tmp_path):
    record = b"11 a=bcdef\n"
    one = header("x", tarfile.XHDTYPE, size=len(record)).tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    path = tmp_path / "a.tar"
    path.write_bytes(one * 5000)
    with pytest.raises(ValueError, match="damaged or truncated"):
        list(members(path))


@reader
@pytest.mark.parametrize("kind", KINDS)
def test_wherever_an_archive_is_cut_it_is_an_error_that_counts_the_members(read, kind, tmp_path):
    path = archive_of(kind, tmp_path, {f"{i}.png": os.urandom(3000) for i in range(3)})
    whole = path.read_bytes()
    padding = 10240 if kind == "tar" else 0  # zeros after the members, of which any two blocks are an end mark
    for cut in range(0, len(whole) - max(1, padding), 1500):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\..*(after \d members|\(0 members read\))"):
            read(path)
        assert not (tmp_path / "out").exists()
    path.write_bytes(whole[:-1] if kind != "tar" else whole[: 3 * 3584])
    with pytest.raises(ValueError, match=r"damaged or truncated after [03] members"):
        read(path)


@reader
@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
def test_a_flipped_bit_is_found_by_the_checksum(read, kind, tmp_path):
    path = archive_of(kind, tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\..*damaged or truncated after \d members"):
        read(path)
    assert not (tmp_path / "out").exists()


def test_a_wrong_gzip_checksum_alone_is_found(tmp_path):
    path = make_tar(tmp_path / "a.tgz", {f"{i}.png": os.urandom(archives.CHUNK) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    got = []
    with pytest.raises(ValueError, match=r"after 3 members .*CRC"):
        got.extend(members(path))
    with pytest.raises(ValueError, match="CRC"):
        list(members(path, lambda name: False))


@reader
def test_a_damaged_header_is_not_taken_for_the_end(read, tmp_path):
    path = make_tar(tmp_path / "a.tar", mode="w:")
    data = bytearray(path.read_bytes())
    data[data.index(b"3.dcm")] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tar: damaged or truncated after 2 members \(tar header: bad checksum\)"):
        read(path)


@reader
@pytest.mark.parametrize("mode", ["w:", "w:gz"])
@pytest.mark.parametrize(
    ("blocks", "what"),
    [
        (1, "zeros in place of the tar header at byte 1,024"),
        (3, "a further member at byte 3,072, behind the end mark at byte 1,024"),
    ],
)
def test_headers_that_were_zeroed_do_not_end_a_tar(read, mode, blocks, what, tmp_path):
    content = bytes(range(1, 256)) + bytes(99)
    plain = bytearray(make_tar(tmp_path / "a.tar", {f"{i}": content for i in range(4)}, mode="w:").read_bytes())
    plain[1024 : 1024 + 512 * blocks] = bytes(512 * blocks)
    path = tmp_path / "b.tar"
    path.write_bytes(gzip.compress(plain) if mode == "w:gz" else plain)
    with pytest.raises(ValueError, match=rf"b\.tar: damaged or truncated after 1 members \({what}\)"):
        read(path)


def test_a_tar_may_end_with_one_block_of_zeros_two_or_many(tmp_path):
    path = make_tar(tmp_path / "a.tar", mode="w:")
    members_alone = path.read_bytes().rstrip(b"\0")
    members_alone += bytes(-len(members_alone) % 512)
    for blocks in (1, 2, 3, 600):
        path.write_bytes(members_alone + bytes(512 * blocks))
        assert check(path) == 3


def test_joined_archives_are_an_error_and_garbage_behind_the_end_is_not(tmp_path):
    plain = make_tar(tmp_path / "a.tar", mode="w:").read_bytes()
    (tmp_path / "b.tgz").write_bytes(gzip.compress(plain) + gzip.compress(plain))
    with pytest.raises(ValueError, match=f"a further member at byte {len(plain):,}, behind the end mark"):
        check(tmp_path / "b.tgz")
    (tmp_path / "c.tgz").write_bytes(gzip.compress(plain + b"left over" * 99))
    assert check(tmp_path / "c.tgz") == 3


@reader
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "not a tar or zip archive"),
        (b"\n<!DOCTYPE html><html>", "but a web page"),
        (b"noise" * 400, "not a tar or zip archive"),
        (bytes(20_480), "not a tar or zip archive"),  # an empty tar, and what a crash may leave of any file
        (gzip.compress(b"<html>" * 500, mtime=0), "damaged or truncated after 0 members"),
        (bz2.compress(b""), "damaged or truncated after 0 members"),
    ],
)
def test_what_is_no_archive_is_told(read, content, what, tmp_path):
    path = tmp_path / "a.tgz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.tgz: .*{what}"):
        read(path)


@reader
def test_a_file_that_is_not_there_is_told(read, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.zip: no such file"):
        read(tmp_path / "none.zip")


def test_an_encrypted_zip_is_told(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"1.png": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip.*'1\.png' is encrypted"):
        list(members(path))


def test_unpacking_goes_into_a_new_folder_only(tmp_path):
    path = make_tar(tmp_path / "a.tgz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match="out: already there"):
        extract(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {"mine": b"kept"}
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        extract(path, tmp_path / "link")


@pytest.mark.parametrize("kind", ["gz", "zip"])
@pytest.mark.parametrize("second", ["a/1.png", "a/1.png/x", "a"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_not_unpacked(kind, second, tmp_path):
    path = archive_of(kind, tmp_path, {"a/1.png": b"1", f"./{second}" if kind == "gz" else second: b"2"})
    if kind == "zip" and second == "a/1.png":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(second, b"2")
    with pytest.raises(UnsafeArchive, match="twice, or is both a file and a folder"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_modes_and_owners_of_an_archive_are_not_taken_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(header("tool", mode=0o4777, size=1, mtime=5), io.BytesIO(b"x"))
    extract(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out" / "tool").stat().st_mode & 0o7111 == 0
    assert (tmp_path / "out").stat().st_mode & 0o700 == 0o700


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    path = make_tar(tmp_path / "a.tgz")
    true_open = Path.open
    monkeypatch.setattr(Path, "open", lambda p, mode="r", *a: Full() if mode == "xb" else true_open(p, mode, *a))
    with pytest.raises(OSError, match=r"out: the disk is full; a\.tgz was not unpacked"):
        extract(path, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


def test_memory_does_not_grow_with_the_archive(tmp_path):
    peaks = []
    for number in (200, 4000):
        path = make_tar(tmp_path / f"{number}.tgz", {f"{i}.png": bytes(2000) for i in range(number)}, compresslevel=1)
        tried = []
        for _ in range(2):  # threads that another test left may ask for memory meanwhile
            tracemalloc.start()
            assert sum(1 for _ in members(path)) == number
            tried.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        peaks.append(min(tried))
    assert peaks[1] < peaks[0] + 100_000


def test_reading_can_stop_early_without_a_word(tmp_path):
    path = make_tar(tmp_path / "a.tgz")
    code = f"from hf_cxr.data.archives import members\nnext(members({str(path)!r}))"
    run = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
