"""The clinical metrics of RadEval (CheXbert, RadGraph, RaTEScore, GREEN, BERTScore) in a report: of the model's texts,
the same with images shuffled and the best constant, study by study, with intervals. They are computed by
`clinical_worker.py`, in a process and, where asked, an environment of its own: nothing here loads a model."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from hf_cxr.evaluation import bootstrap
from hf_cxr.evaluation.report.tables import CLINICAL
from hf_cxr.metrics.clinical import Values, counted_in, numbers_of
from hf_cxr.utils.plots import counted
from hf_cxr.utils.progress import ProgressBar

logger = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("clinical_worker.py")
REQUIREMENTS = Path(__file__).with_name("clinical_requirements.txt")
RADEVAL = "RadEval==2.2.1"
"""Installed without what it names itself: its torchvision is never used, and PyPI's is built for CUDA."""
NEEDS = {
    "f1chexbert": "bert-base-uncased, and chexbert.pth of StanfordAIMI/RRG_scorers (cache folder ~/.cache/chexbert)",
    "radgraph": "radgraph-xl.tar.gz of StanfordAIMI/RRG_scorers (unpacked in ~/.cache/radgraph/0.1.18/radgraph-xl), "
    "and the encoder that the config.json in it names",
    "ratescore": "Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD-2023-C",
    "green": "StanfordAIMI/GREEN-radllama2-7b, 14 GB, with its code",
    "bertscore": "distilbert-base-uncased",
}
"""Metric → what it reads from the Hub, where nothing else is said from its cache."""
GAINS = {"shuffled": "image_gain", "constant": "constant_gain"}
"""What a metric's score stands beside → the key of the difference."""


class Unavailable(Exception):
    """Why a metric cannot be had: in a report, which is shared; and for whoever asked, with what to do about it."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason + advice)
        self.reason = reason


@dataclass(frozen=True)
class Clinical:
    """Which clinical metrics are wanted, and where they run.

    Args:
        metrics: names of `CLINICAL`.
        env: folder of a virtual environment that holds RadEval; default: the environment that runs this.
        install: make `env`, or complete it, and let metrics fetch their models. Without it nothing is downloaded.
    """

    metrics: Sequence[str]
    env: str | os.PathLike | None = None
    install: bool = False

    @property
    def python(self) -> Path:
        """The interpreter that runs the metrics."""
        if self.env is None:
            return Path(sys.executable)
        return Path(self.env, "Scripts/python.exe" if sys.platform == "win32" else "bin/python").absolute()

    def begin(self, studies: int) -> None:
        """Tell what it costs to score so many studies, and see that there is an environment for it.

        Raises `ValueError` for an unknown metric, `ImportError` or `FileNotFoundError` without an environment, and
        `OSError` where it cannot be made.
        """
        if unknown := [name for name in self.metrics if name not in CLINICAL]:
            raise ValueError(f"no clinical metric {unknown[0]!r}; there are {', '.join(CLINICAL)}")
        logger.warning(
            "Clinical metrics: %s, each on at most %s pairs of texts (3 × %s: as written, with images shuffled, best "
            "constant)",
            ", ".join(self.metrics),
            f"{3 * studies:,}",
            counted(studies, "study", "studies"),
        )
        if self.env is not None and self.install:
            _install(Path(self.env), self.python)
        if not self.python.is_file():
            raise FileNotFoundError(f"{self.env}: no environment with a Python is here; add --install to make it")
        look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('radeval') is None)"
        if subprocess.run([str(self.python), "-I", "-c", look], stdout=2).returncode:
            how = "add --install" if self.env else "add --clinical-env DIR --install for an environment that has it"
            raise ImportError(f"{self.env or 'this environment'}: RadEval is not installed; {how}")


def _install(env: Path, python: Path) -> None:
    """Make the environment or complete it; what is there already is not fetched again."""
    if env.exists() and not (env / "pyvenv.cfg").is_file() and not (env.is_dir() and not any(env.iterdir())):
        raise FileExistsError(f"{env}: is no virtual environment; name a new folder for it")
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    steps = [[sys.executable, "-m", "venv", str(env)], [*pip, "-r", str(REQUIREMENTS)], [*pip, "--no-deps", RADEVAL]]
    env.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{env}.lock"):
        for step in steps:
            if subprocess.run(step, stdout=2).returncode:
                raise OSError(f"{env}: cannot be made, see above; --install goes on where it stopped ({step[2]})")


def add_clinical(
    report: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    asked: Clinical,
    section: str,
    blind: Mapping[str, Sequence[str]],
    seed: int,
    shuffled: Sequence[str] | None = None,
) -> None:
    """Add `clinical` to a report, what was used to its signature, and each study's values to its row.

    Args:
        report: what `evaluate.build_report` says of the rows.
        blind: name → texts of the image-blind baselines; the best of those that say one text to all stands beside.
        shuffled: what the model wrote with images shuffled; default: its texts permuted.
    """
    said, true = [row["prediction"] for row in rows], [row[section] for row in rows]
    texts = {"model": said}
    if len(rows) > 1:
        order = next(bootstrap.derangements(len(rows), seed, 1))
        texts["shuffled"] = [said[i] for i in order] if shuffled is None else list(shuffled)
    if constants := [name for name, said_by in blind.items() if len(set(said_by)) == 1]:
        best = max(constants, key=lambda name: report["baselines"][name][report["gain_score"]])
        texts["constant"] = list(blind[best])
    pairs = list(dict.fromkeys(pair for each in texts.values() for pair in zip(each, true, strict=True)))
    patients, places = [str(row.get("patient", row["uid"])) for row in rows], {pair: i for i, pair in enumerate(pairs)}
    found, told = {}, ""
    for name in ProgressBar(dict.fromkeys(asked.metrics), desc=f"Clinical metrics, {len(pairs):,} different pairs"):
        try:
            values, told = _values(asked, name, pairs)
        except Unavailable as error:
            found[name] = {"unavailable": error.reason}
            logger.warning("%s is left out: %s", CLINICAL[name], " ".join(str(error).split()))
            continue
        of = {what: [values[places[pair]] for pair in zip(each, true, strict=True)] for what, each in texts.items()}
        found[name] = _judged(name, of, patients, seed)
        for row, value in zip(rows, of["model"], strict=True):
            row["clinical"] = row.get("clinical", {}) | {name: value}
    report["clinical"] = found
    if told:
        constant = f", constant: {best}" if constants else ""
        report["signature"] += f"; clinical metrics by {told}, images shuffled: one permutation{constant}"


def _judged(name: str, values: Mapping[str, Sequence[Any]], patients: Sequence[str], seed: int) -> dict[str, Any]:
    """What a report says of one metric. Each difference is of the studies that have a value on both sides."""
    [own] = numbers_of(name, [values["model"]])
    if not counted_in(own).any():
        return {"unavailable": "it gave no number for any of the texts"}
    model = Values({name: own})
    part = {"score": model.scores()[name], "n": int(counted_in(own).sum())}
    part["ci95"] = bootstrap.study_intervals(model, patients, seed).get(name)
    for what, gain in GAINS.items():
        if what not in values:
            continue
        ours, theirs = numbers_of(name, [values["model"], values[what]])
        if counted_in(ours).any():
            beside = bootstrap.image_gain(Values({name: ours}), [Values({name: theirs})], patients, seed)
            part[what] = beside["shuffled"][name]
            part |= {gain + end: beside[f"image_gain{end}"].get(name) for end in ("", "_ci95", "_p")}
    return part


# --- the worker ------------------------------------------------------------------------------------------------------


def _values(asked: Clinical, name: str, pairs: Sequence[tuple[str, str]]) -> tuple[list[Any], str]:
    """The metric's value of each pair of texts, and what computed it; raises `Unavailable`."""
    task = {"metric": name, "predictions": [said for said, _ in pairs], "references": [true for _, true in pairs]}
    status, answer = _run_worker(asked, json.dumps(task).encode("ascii") + b"\n")
    try:
        told = json.loads(answer)
    except ValueError:
        end = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        advice = "; was there enough memory?" if status == -getattr(signal, "SIGKILL", 0) else ""
        raise Unavailable(f"its process ended {end} before it answered", advice) from None
    if "error" in told:
        raise _reason(asked, name, told)
    values = [None if isinstance(v, float) and not math.isfinite(v) else v for v in told["values"]]
    if len(values) != len(pairs):
        raise Unavailable(f"it gave {len(values)} values for {len(pairs)} pairs of texts")
    return values, told["made_by"]


def _reason(asked: Clinical, name: str, told: Mapping[str, Any]) -> Unavailable:
    """Errors quote texts and places of this machine, so a report gets no more than their kind."""
    kind, message = told["error"], f" ({told['message']})" if told["message"] else ""
    if kind in ("ImportError", "ModuleNotFoundError"):
        where = f"of {asked.env}" if asked.env else "that runs hf-cxr"
        again = f"the environment {where} lacks it; --clinical-env DIR --install makes one that has all"
        return Unavailable("a package that it needs is not installed", f"{message}: {again}")
    if not told["loading"]:
        return Unavailable(f"it failed with {kind}", message)
    fetch = "add --install where there is a network, or copy them" if not asked.install else "copy them"
    needs = f": it needs {NEEDS[name]}; {fetch} into the cache of the Hub (HF_HOME)"
    return Unavailable(f"its models could not be loaded ({kind})", f"{needs}{message}")


def _run_worker(asked: Clinical, task: bytes) -> tuple[int, bytes]:
    """Exit status and answer of a worker, which does not outlive this: it ends with its stdin, and is killed with its
    children where this is interrupted."""
    offline = {} if asked.install else {"HF_HUB_OFFLINE": "1"}
    try:
        worker = subprocess.Popen(
            [str(asked.python), "-I", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if asked.install else subprocess.DEVNULL,
            env=os.environ | offline,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable("its process could not be started", f": {error}") from None
    assert worker.stdin
    assert worker.stdout
    try:
        with suppress(BrokenPipeError):
            worker.stdin.write(task)
            worker.stdin.flush()
        answer = worker.stdout.read()
        return worker.wait(), answer
    finally:
        if worker.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL) if hasattr(os, "killpg") else worker.kill()
            worker.wait()
        with suppress(BrokenPipeError):
            worker.stdin.close()
        worker.stdout.close()
