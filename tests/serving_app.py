"""The app on a port of its own, in this process: what its tests, and those in a browser, talk to."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers import talkative, tiny_checkpoint

SECRET = b"DOE^JANE"  # in the header of a DICOM file


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def pipe_of(folder: Path) -> Any:
    """A pipeline that writes another text for nearly every study, saved in `folder`."""
    from hf_cxr.inference.pipeline import ImpressionPipeline

    parts = talkative(tiny_checkpoint(max_new_tokens=24), eyes=2)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    pipe.save_pretrained(folder)
    return pipe


@contextmanager
def app_of(checkpoint: Path, pipe: Any, monkeypatch: Any, place: Path):
    """Its address, while it runs. Temporary files are made in `place`."""
    import tempfile

    from hf_cxr.serving.app import serve

    place.mkdir()
    port = free_port()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    threading.Thread(target=serve, args=(str(checkpoint), pipe), kwargs={"port": port}, daemon=True).start()
    for _ in range(600):
        with socket.socket() as asked:
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"


def left_in(place: Path) -> list[str]:
    """Every file below a folder."""
    return [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]


def dicom_bytes(folder: Path) -> bytes:
    """A DICOM file with a name in its header."""
    import importlib.util

    import numpy as np
    from pydicom import dcmread

    spec = importlib.util.spec_from_file_location("dicom_files", Path(__file__).parents[1] / "benchmarks" / "dicom.py")
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    path = folder / "image.dcm"
    path.write_bytes(files.write_dicom(np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)))
    header = dcmread(path, force=True)
    header.PatientName = SECRET.decode()
    header.save_as(path)
    assert SECRET in path.read_bytes()
    return path.read_bytes()
