"""The app under load: many clients of its API at once, against the same model in one process without the web.

    python benchmarks/app_load.py runs/demo [--clients 4 16] [--seconds 120] [--out app_load.json]

Each client sends the two images of a synthetic study (256-pixel PNG), waits for the answer, compares it with the
pipeline's own, and sends the next. The clients are threads of this process, on the same machine: what they cost counts
against the app.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

STUDIES = 32
SIDE = 256  # pixels
API = "/gradio_api"


def studies(number: int = STUDIES) -> list[dict[str, bytes | None]]:
    """Two images each, as PNG files."""
    from hf_cxr.data.sources.phantom import draw, plan

    found = []
    for index in range(number):
        study: dict[str, bytes | None] = {}
        for view in plan(1, index).views:
            draw(1, index, view, SIDE).save(stream := io.BytesIO(), "PNG")
            study[view] = stream.getvalue()
        found.append(study)
    return found


@contextmanager
def running(run: str, place: Path) -> Iterator[tuple[str, psutil.Process]]:
    """`hf-cxr app` in a process of its own, whose temporary files are in `place`: its address, and that process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, by the app too
    words = [sys.executable, "-m", "hf_cxr", "app", run, "--port", str(port)]
    with subprocess.Popen(words, env=os.environ | {"TMPDIR": str(place)}, stdout=subprocess.PIPE, text=True) as app:
        try:
            assert app.stdout
            print(app.stdout.readline().strip(), file=sys.stderr)
            yield f"http://127.0.0.1:{port}", psutil.Process(app.pid)
        finally:
            app.send_signal(signal.SIGINT)
            app.wait(120)


def ask(client: httpx.Client, images: Sequence[bytes | None], name: str = "image.png") -> dict[str, Any]:
    """One answer of the API for (frontal, lateral); `{"error": …}` for one that it refuses."""
    given: list[Any] = []
    for image in images:
        sent = client.post(f"{API}/upload", files={"files": (name, image)}) if image is not None else None
        if sent is not None and sent.status_code != 200:
            return {"error": sent.text, "status": sent.status_code}
        given.append({"path": sent.json()[0]} if sent else None)
    event = client.post(f"{API}/call/impression", json={"data": [*given, "", 0]}).json()["event_id"]
    lines = client.get(f"{API}/call/impression/{event}").text.strip().splitlines()
    told = json.loads(lines[-1].removeprefix("data:"))
    return told[0] if "event: complete" in lines else {"error": str((told or {}).get("error"))}


def load(address: str, app: psutil.Process, clients: int, seconds: float, expected: list[tuple[Any, str]]) -> dict:
    """What `clients` at once got in so many seconds."""
    turn, taken, wrong, memory = itertools.count(), list[float](), list[Any](), list[int]()
    end = time.monotonic() + seconds

    def work() -> None:
        with httpx.Client(base_url=address, timeout=120) as client:
            while time.monotonic() < end:
                images, text = expected[next(turn) % len(expected)]
                start = time.monotonic()
                answer = ask(client, images)
                taken.append(time.monotonic() - start)
                if answer.get("impression") != text:
                    wrong.append(answer)

    threads = [threading.Thread(target=work) for _ in range(clients)]
    start, cpu = time.monotonic(), sum(app.cpu_times()[:2])
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(app.memory_info().rss >> 20)
        time.sleep(1)
    passed = time.monotonic() - start
    quarter = max(1, len(memory) // 4)
    return {
        "clients": clients,
        "answers": len(taken),
        "wrong": wrong[:5],
        "studies_per_s": len(taken) / passed,
        "p50_s": float(np.percentile(taken, 50)),
        "p95_s": float(np.percentile(taken, 95)),
        "app_cpu_s_per_study": (sum(app.cpu_times()[:2]) - cpu) / len(taken),
        "memory_mb": {
            "second quarter": max(memory[quarter : 2 * quarter] or memory),
            "last quarter": max(memory[-quarter:]),
        },
    }


def without_the_web(run: str, seconds: float) -> tuple[dict[str, float], list[tuple[Any, str]]]:
    """Studies a second of the pipeline in this process, and what it writes for each."""
    from hf_cxr.inference.pipeline import ImpressionPipeline
    from hf_cxr.models.modeling import load_checkpoint

    parts = load_checkpoint(run)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    given = studies()
    texts = [answer[0]["impression"] for answer in pipe(given, batch_size=8)]
    rates = {}
    for batch in (1, 8):
        done, start = 0, time.monotonic()
        while time.monotonic() < start + seconds:
            first = done % STUDIES
            pipe(given[first : first + batch], batch_size=batch, return_findings=True)
            done += batch
        rates[f"batch {batch}"] = done / (time.monotonic() - start)
    return rates, [((one.get("frontal"), one.get("lateral")), text) for one, text in zip(given, texts, strict=True)]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", help="run folder")
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path, default=Path("app_load.json"))
    options = parser.parse_args(argv)
    alone, expected = without_the_web(options.run, min(options.seconds, 20))
    result: dict[str, Any] = {"without the web, studies a second": alone, "loads": []}
    with tempfile.TemporaryDirectory() as place, running(options.run, Path(place)) as (address, app):
        load(address, app, 2, 2, expected)  # warm
        for clients in options.clients:
            measured = load(address, app, clients, options.seconds, expected)
            measured["ratio to batch 1"] = measured["studies_per_s"] / alone["batch 1"]
            measured["ratio to batch 8"] = measured["studies_per_s"] / alone["batch 8"]
            result["loads"].append(measured)
        result["files_left"] = [path.name for path in Path(place).rglob("*") if path.is_file()]
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
