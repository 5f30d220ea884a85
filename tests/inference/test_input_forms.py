"""A view in whatever form: what cannot be read is an error of its study alone, and only bytes are an image."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers import radiograph, tiny_checkpoint
from PIL import Image

from hf_cxr import ImpressionPipeline, ImpressionProcessor
from hf_cxr.inference import inputs
from hf_cxr.inference.views import UnreadableImage


@pytest.fixture(scope="module")
def parts():
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def pipe(parts):
    return ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)


@pytest.fixture
def png(tmp_path) -> Path:
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    return tmp_path / "f.png"


class Given:
    """A path or an open file of another library."""

    def __init__(self, content, path=None):
        self.content = content
        if path:
            self.__class__ = type("Path", (Given,), {"__fspath__": lambda self: str(path)})

    def read(self, size=-1):
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


def damaged_zip(content: bytes):
    store = io.BytesIO()
    with zipfile.ZipFile(store, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", content)
    raw = bytearray(store.getvalue())
    raw[60:70] = bytes(10)
    return zipfile.ZipFile(io.BytesIO(bytes(raw))).open("a.png")


def unreadable(png: Path) -> dict:
    content, packed = png.read_bytes(), gzip.compress(png.read_bytes())
    return {
        "a cut gzip file": gzip.GzipFile(fileobj=io.BytesIO(packed[: len(packed) // 2])),
        "a damaged zip member": damaged_zip(content),
        "any error": Given(RuntimeError("two\nlines")),
        "text that is a path": io.StringIO(str(png)),
        "a text of another library": Given(str(png)),
        "text under bytes": {"frontal": {"bytes": str(png), "path": None}, "lateral": None},
        "a mapping that fails": {"frontal": Lazy(bytes=1), "lateral": None},
        "more than memory": open("/dev/zero", "rb"),  # noqa: PTH123
        "numbers": [[1, 2], [3, 4]],
        "an array of objects": np.array([[None, 1]], dtype=object),
        "a callable that fails": lambda: 1 / 0,
    }


class Lazy(dict):
    def get(self, *_):
        raise KeyError("lazy")


def test_what_cannot_be_read_is_an_error_of_its_study_and_the_others_go_on(pipe, parts, png, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_BYTES", 4 << 20)
    alone, forms = pipe(str(png)), unreadable(png)
    answers = pipe([*forms.values(), str(png)], on_unreadable="skip", batch_size=4)
    for name, [answer] in zip(forms, answers, strict=False):
        assert answer["impression"] is None, name
        assert "\n" not in answer["error"], name
    assert answers[-1] == alone
    processor = ImpressionProcessor(parts.image_processor, parts.tokenizer)
    for view in (io.StringIO(str(png)), gzip.GzipFile(fileobj=io.BytesIO(b"no gzip"))):
        with pytest.raises(UnreadableImage, match=r"^study 1: frontal: an open file"):
            processor(frontal=[str(png), view])


def test_open_files_and_paths_of_other_libraries_are_read(pipe, png):
    alone, content = pipe(str(png)), png.read_bytes()
    path = Given("/etc/hostname", path=png)  # a path that can also read itself, as text
    for view in (io.BytesIO(content), gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(content))), path, png.open("rb")):
        assert pipe(view) == alone
        assert pipe({"frontal": path, "lateral": None}) == alone


def test_a_dataset_that_fails_at_one_place_does_not_end_the_others(pipe, png):
    import torch

    class Three(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, place):
            if place == 1:
                raise OSError("damaged")
            return str(png)

    answers = list(pipe(Three(), on_unreadable="skip"))
    assert [row["impression"] is None for [row] in answers] == [False, True, False]
    assert answers[1][0]["error"] == "the dataset does not give it (OSError: damaged)"
    with pytest.raises(UnreadableImage, match=r"^study 1: the dataset does not give it \(OSError: damaged\)"):
        list(pipe(Three()))
