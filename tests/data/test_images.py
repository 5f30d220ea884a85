"""Every image of a collection, read once into a store."""

import io
import os
import signal
import tarfile
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
from PIL import Image

from hf_cxr.data import images as images
from hf_cxr.data.images import read_images
from hf_cxr.data.scheduler import workers
from hf_cxr.data.store import JOURNAL, Store
from hf_cxr.data.study import Archived, Radiograph, StoredImage, Study

datasets.disable_progress_bars()


def noise(width=60, height=50, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_all(folder, studies, size, num_proc=1, scheduler=None):
    """What `read_images` gives for the studies, and each image as the store has it (or the reason why not)."""
    folder.mkdir(exist_ok=True)
    (folder / JOURNAL).write_text("{}\n")
    store = Store(folder, len(studies))
    with workers(num_proc, scheduler) as readers:
        found = read_images(studies, size, store, readers)
    return found, [
        [Image.open(io.BytesIO(store.read(s, p))) if isinstance(p, StoredImage) else p for p in images]
        for s, images in enumerate(found)
    ]


def read(tmp_path, *sources, size=384, num_proc=1, view="frontal"):
    study = Study("1", tuple(s if isinstance(s, Radiograph) else Radiograph(s, view) for s in sources))
    return read_all(tmp_path / "store", [study], size, num_proc)[1][0]


def tar(path, **members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"./png/{name}.png")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_images_are_stored_without_loss_and_never_enlarged(tmp_path):
    small, large = read(tmp_path, noise(30, 20), noise(300, 150), size=100)
    assert (small.format, small.mode) == ("PNG", "L")
    assert np.array_equal(np.asarray(small), np.asarray(noise(30, 20)))
    assert large.size == (100, 50)


def test_images_of_an_archive_are_found_in_one_pass_whatever_their_order_and_folder(tmp_path, monkeypatch):
    archive = tar(tmp_path / "a.tgz", CXR2=png(noise(seed=2)), other=b"not asked for", CXR1=png(noise(seed=1)))
    passes = []
    members = images.archives.members
    monkeypatch.setattr(images.archives, "members", lambda *a: passes.append(a[0]) or members(*a))
    lying_open = tmp_path / "3.png"
    lying_open.write_bytes(png(noise(seed=3)))
    names = [Radiograph(Archived(archive, str(n)), "frontal", f"{n}.png") for n in (1, 2, 4)]
    one, two, none, three = read(tmp_path, *names, lying_open)
    for seed, image in ((1, one), (2, two), (3, three)):
        assert np.array_equal(np.asarray(image), np.asarray(noise(seed=seed)))
    assert none == "image file missing in a.tgz: 4.png"
    assert passes == [archive]


def test_a_member_can_be_asked_for_by_its_path_where_names_repeat(tmp_path):
    archive = tmp_path / "a.tgz"
    with tarfile.open(archive, "w:gz") as stream:
        for study in ("a", "b"):
            content = png(noise(seed=ord(study)))
            info = tarfile.TarInfo(f"root/images/{study}/0.png")
            info.size = len(content)
            stream.addfile(info, io.BytesIO(content))
    found = read(tmp_path, *(Radiograph(Archived(archive, f"images/{s}/0.png"), "frontal") for s in "ba"))
    assert [np.asarray(image)[0, 0] for image in found] == [np.asarray(noise(seed=ord(s)))[0, 0] for s in "ba"]


def test_what_cannot_be_read_is_told_by_its_name_alone(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(png(noise())[:200])
    flat = Image.new("L", (9, 9), 7)
    archive = tar(tmp_path / "a.tgz", zero=b"", bad=b"<html>")
    inside = [Radiograph(Archived(archive, name), "frontal", f"{name}.png") for name in ("zero", "bad")]
    reasons = read(tmp_path, broken, tmp_path / "gone.png", Radiograph(flat, "frontal", "flat"), *inside)
    assert reasons[0].startswith("broken.png: truncated")
    assert reasons[1] == "image file missing: gone.png"
    assert reasons[2] == "flat: blank, every pixel has the same value"
    assert reasons[3] == "zero.png: zero bytes"
    assert reasons[4].startswith("bad.png: not an image")
    assert not any(str(tmp_path) in reason for reason in reasons)


def test_the_number_of_processes_changes_nothing(tmp_path):
    studies = [Study(str(i), (Radiograph(png(noise(seed=i)), None, f"{i}.png"),)) for i in range(40)]
    one, three = (tmp_path / "1", tmp_path / "3")
    assert read_all(one, studies, 32, num_proc=1)[0] == read_all(three, studies, 32, num_proc=3)[0]
    assert len(list(one.iterdir())) > 2
    assert all(file.read_bytes() == (three / file.name).read_bytes() for file in one.iterdir())


def test_equal_images_have_equal_digests_whatever_their_files_are(tmp_path):
    (tmp_path / "a.bmp").write_bytes(b"")
    noise().save(tmp_path / "a.bmp")
    study = Study("1", tuple(Radiograph(s, "frontal") for s in (tmp_path / "a.bmp", noise(), noise(seed=1))))
    ((first, same, other),) = read_all(tmp_path / "store", [study], 384)[0]
    assert first.digest == same.digest != other.digest


def test_pixels_are_looked_at_only_where_the_view_is_not_known(tmp_path):
    study = Study("1", (Radiograph(noise(), "frontal"), Radiograph(noise())))
    ((known, unknown),) = read_all(tmp_path / "store", [study], 64)[0]
    assert known.evidence is None
    assert isinstance(unknown.evidence, float)


def test_a_path_that_the_system_refuses_is_a_reason_and_not_the_end(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "file").write_bytes(b"")
    deep = Path("/", *["d" * 200] * 30, "deep.png")
    names = ("folder.png", "loop.png", "n" * 256 + ".png", "pipe.png", "nul\0.png", "half\ud800.png", "file/in.png")
    reasons = read(tmp_path, *(tmp_path / name for name in names), deep)
    folder, loop, long, pipe, nul, half, inside, deep_reason = reasons
    assert folder == "folder.png: is a folder, not an image"
    assert loop == "loop.png: Too many levels of symbolic links"
    assert long.endswith("n.png: File name too long")
    assert deep_reason == "deep.png: File name too long"
    assert (pipe, inside) == ("image file missing: pipe.png", "image file missing: in.png")
    assert nul.endswith("embedded null byte")
    assert "surrogates not allowed" in half


def test_a_file_that_may_not_be_read_is_a_reason(tmp_path):
    noise().save(tmp_path / "file.png")
    (tmp_path / "locked").mkdir()
    noise().save(tmp_path / "locked" / "x.png")
    (tmp_path / "file.png").chmod(0o000)
    (tmp_path / "locked").chmod(0o000)
    study = Study("1", tuple(Radiograph(tmp_path / name, "frontal") for name in ("file.png", "locked/x.png")))
    (tmp_path / JOURNAL).write_text("{}\n")
    store = Store(tmp_path, 1)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with workers() as readers:
            (reasons,) = read_images([study], 32, store, readers)
    finally:
        os.seteuid(user)
    assert reasons == ("file.png: Permission denied", "x.png: Permission denied")


def die(image=None, once=None):
    """Kill the process that reads this; after the first time give `image`, where `once` is a file to remember by."""
    if once is not None:
        if once.exists():
            return image
        once.write_text("")
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_image_that_kills_two_processes_is_named_and_the_others_are_read(tmp_path):
    sources = [noise(seed=i) for i in range(40)]
    sources[7] = sources[8] = sources[39] = die
    sources[20] = partial(die, noise(seed=20), tmp_path / "died")
    studies = [Study(str(i), (Radiograph(source, "frontal", f"{i}.png"),)) for i, source in enumerate(sources)]
    found, stored = read_all(tmp_path / "store", studies, 32, num_proc=2)
    found = [image for (image,) in found]
    killed = "every process that read it was killed (out of memory?)"
    reasons = {i: image for i, image in enumerate(found) if isinstance(image, str)}
    assert reasons == {i: f"{i}.png: {killed}" for i in (7, 8, 39)}
    assert (tmp_path / "died").exists()
    assert len({image.digest for i, image in enumerate(found) if i not in reasons}) == 37
    for i in (0, 20, 38):
        assert np.array_equal(np.asarray(stored[i][0]), np.asarray(images.shrink(noise(seed=i), 32)))


def kill_the_idle_one(image):
    """End the other process of a pool of two, which waits for a job and holds the lock of those who wait."""
    this = psutil.Process()
    for process in this.parent().children():
        if process.pid != this.pid and process.cmdline() == this.cmdline():
            process.kill()
    return image


def test_a_process_that_is_killed_while_it_waits_is_not_waited_for(tmp_path):
    study = Study("1", (Radiograph(partial(kill_the_idle_one, noise()), "frontal"),))
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
    signal.alarm(30)
    try:
        ((image,),) = read_all(tmp_path / "store", [study], 384, 2)[0]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert isinstance(image, StoredImage)


def test_where_every_process_is_killed_reading_still_ends(tmp_path):
    studies = [Study(str(i), (Radiograph(die, "frontal", f"{i}.png"),)) for i in range(3)]
    assert all("was killed" in reason for (reason,) in read_all(tmp_path / "store", studies, 32, 2)[0])
