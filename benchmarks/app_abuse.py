"""Bad uploads to the app: damaged PNG, JPEG and DICOM files, bombs and other file types. For each there is to be one
clear line; afterwards the app still answers, and nothing is on the disk.

    python benchmarks/app_abuse.py runs/demo [--number 200] [--out app_abuse.json]
"""

from __future__ import annotations

import argparse
import io
import json
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from app_load import ask, running, studies
from dicom import write_dicom
from PIL import Image

MEGABYTES = 65  # of the largest file: more than the app takes


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A file cut short, with a hole, with bytes changed at random, or with its beginning changed."""
    kind, spoilt = rng.integers(4), bytearray(content)
    if kind == 0:
        return content[: int(rng.integers(1, len(content)))]
    if kind == 1:
        start = int(rng.integers(len(content)))
        spoilt[start : start + 512] = bytes(min(512, len(content) - start))
    else:
        last = len(content) if kind == 2 else 64
        for place in rng.integers(0, last, 32):
            spoilt[place] = rng.integers(256)
    return bytes(spoilt)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_bomb(side: int, told: int | None = None) -> bytes:
    """A PNG of `side` × `side` zeros, whose header may tell another size."""
    packer, parts = zlib.compressobj(9), []
    for _ in range(side):
        parts.append(packer.compress(bytes(side + 1)))
    header = struct.pack(">IIBBBBB", told or side, told or side, 8, 0, 0, 0, 0)
    data = b"".join(parts) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def others() -> Iterator[tuple[str, bytes]]:
    """Bombs and files of other types."""
    yield "bomb.png", png_bomb(12_000)
    yield "told.png", png_bomb(8, 60_000)
    yield "empty.png", b""
    yield "page.html", b"<html><script>alert(1)</script></html>"
    yield "drawing.svg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    yield "document.pdf", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n"
    yield "figure.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    yield "table.json", json.dumps({"path": "/etc/passwd"}).encode()
    yield "program.exe", b"MZ" + bytes(4096)
    yield "image.dcm", b"\0" * 128 + b"DICM" + bytes(512)
    yield "huge.png", bytes(MEGABYTES << 20)
    zipfile.ZipFile(stream := io.BytesIO(), "w").writestr("a.png", b"a")
    yield "images.zip", stream.getvalue()
    pages = [Image.new("L", (64, 64), level) for level in (0, 200)]
    for kind in ("GIF", "TIFF"):
        pages[0].save(stream := io.BytesIO(), kind, save_all=True, append_images=pages[1:])
        yield f"pages.{kind.lower()}", stream.getvalue()
    rows = np.zeros((3, 64, 64), np.uint16)
    yield "frames.dcm", write_dicom(rows, NumberOfFrames=3)
    yield "sides.dcm", write_dicom(rows[0], Rows=60_000, Columns=60_000)
    yield "../../image.png", b"a name that leads elsewhere"
    yield "a\nb\0c<script>.png", b"a name that nobody has"
    yield "x" * 400 + ".png", b"a long name"


def bad(number: int) -> Iterator[tuple[str, bytes]]:
    """So many bad files, by name."""
    rng = np.random.default_rng(0)
    (image,) = studies(1)
    grey = Image.open(io.BytesIO(image["frontal"] or b""))
    grey.save(jpeg := io.BytesIO(), "JPEG")
    dicom = write_dicom(np.asarray(grey, np.uint16) * 16)
    sound = {"image.png": image["frontal"] or b"", "image.jpg": jpeg.getvalue(), "image.dcm": dicom}
    fixed = list(others())
    yield from fixed
    for turn in range(number - len(fixed)):
        name = list(sound)[turn % 3]
        yield name, damaged(sound[name], rng)


def fault_of(answer: dict[str, Any], place: Path) -> str | None:
    """What is wrong with what a visitor was told."""
    told = answer.get("error")
    if told is None:
        return None if answer.get("impression") is not None else "neither a text nor an error"
    if len(told) > 300 or "\n" in told or str(place) in told or re.search(r"Traceback|0x[0-9a-f]{8}|\.py", told):
        return f"no clear line: {told[:300]!r}"
    return None if len(told.split()) >= 3 else f"says nothing: {told!r}"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", help="run folder")
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("app_abuse.json"))
    options = parser.parse_args(argv)
    refused, readable, faults, messages = 0, 0, list[str](), dict[str, int]()
    with tempfile.TemporaryDirectory() as folder, running(options.run, Path(folder)) as (address, app):
        place, most = Path(folder), 0
        with httpx.Client(base_url=address, timeout=120) as client:
            for name, content in bad(options.number):
                answer = ask(client, (content, None), name)
                if fault := fault_of(answer, place):
                    faults.append(f"{name}: {fault}")
                refused, readable = refused + ("error" in answer), readable + ("error" not in answer)
                kind = re.sub(r"\d+", "N", answer.get("error") or "still readable")[:100]
                messages[kind] = messages.get(kind, 0) + 1
                most = max(most, app.memory_info().rss >> 20)
            (good,) = studies(1)
            alive = "impression" in ask(client, (good["frontal"], good["lateral"]))
        left = [path.name for path in place.rglob("*") if path.is_file()]
        result = {"refused": refused, "still readable": readable, "faults": faults, "alive": alive, "files left": left}
        result |= {"largest memory, MB": most, "messages": dict(sorted(messages.items(), key=lambda one: -one[1]))}
        options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(json.dumps(result, indent=2, ensure_ascii=False))
    return result


if __name__ == "__main__":
    main()
