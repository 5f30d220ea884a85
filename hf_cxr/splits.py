"""Which studies a dataset keeps, in which split, and the account of every study it does not keep.

Only records are looked at here; pictures are opened in `hf_cxr.builder`.
"""

from __future__ import annotations

import csv
import hashlib
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_cxr import __version__
from hf_cxr.reports import Study, clean_text

SPLITS = ("train", "validation", "test")
SECTIONS: dict[str, tuple[str, ...]] = {
    "impression": ("impression",),
    "findings": ("findings",),
    "both": ("impression", "findings"),
}
"""Section asked for → texts a study must have to be kept."""

_ALIASES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test"}


@dataclass(frozen=True)
class Plan:
    """What is to be built: studies with clean text per split, and what was left out before any picture was opened."""

    splits: dict[str, list[Study]]
    steps: list[dict[str, Any]]
    """The waterfall so far: `{"step", "kept", "dropped"}`, in order."""
    rejects: list[dict[str, str]]
    """`{"uid", "step", "reason"}` of each study left out, in the order of the source."""
    order: dict[str, int]
    """uid → its place in the source."""


def split_of(patient: str, seed: int = 0) -> str:
    """The split of a patient: 80 % train, 10 % validation, 10 % test, by a hash of the seed and the patient alone.

    So it never changes when other patients come or go, and is the same on every machine.
    """
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def plan(
    studies: Iterable[Study],
    section: str = "impression",
    scars: str = "drop",
    seed: int = 0,
    split_file: str | Path | None = None,
) -> Plan:
    """Clean the texts, decide which studies can be used and put each in its split.

    A study's split is the one `split_file` gives it (studies it does not name are left out), else the one the
    collection publishes, else `split_of` its patient.

    Raises:
        ValueError: For an unknown section, a uid that occurs twice, a patient in two splits, an unreadable split
            file, or if no study at all can be used.
    """
    if section not in SECTIONS:
        raise ValueError(f"unknown section {section!r}: choose one of {', '.join(SECTIONS)}")
    chosen = None if split_file is None else read_split_file(split_file)
    names = " and ".join(SECTIONS[section])
    # Step of the waterfall → why a study (as published, cleaned) does not pass it; "" if it does.
    tests: dict[str, Callable[[Study, Study], str]] = {
        f"with {names}": lambda raw, clean: _empty(raw, section, "no {} text"),
        f"with {names} after cleaning": lambda raw, clean: _empty(clean, section, "nothing left of the {} text"),
        "with an image listed": lambda raw, clean: "" if _views(raw) else "no image listed",
        "with image files on disk": lambda raw, clean: _missing_file(raw),
    }
    if chosen is not None:
        unnamed = "not named in the split file"
        tests = {"named in the split file": lambda raw, clean: "" if raw.uid in chosen else unnamed} | tests

    kept: dict[str, list[Study]] = {name: [] for name in SPLITS}
    rejects: list[dict[str, str]] = []
    order: dict[str, int] = {}
    homes: dict[str, str] = {}
    for study in studies:
        if study.uid in order:
            raise ValueError(f"uid {study.uid!r} occurs twice in the source")
        order[study.uid] = len(order)
        clean = replace(
            study, impression=clean_text(study.impression, scars), findings=clean_text(study.findings, scars)
        )
        failed = next(((step, reason) for step, test in tests.items() if (reason := test(study, clean))), None)
        if failed:
            rejects.append({"uid": study.uid, "step": failed[0], "reason": failed[1]})
            continue
        if chosen is not None:
            split = chosen[study.uid]
        else:
            split = _split_name(study.split, study.uid) or split_of(study.patient or study.uid, seed)
        patient = study.patient or study.uid
        if homes.setdefault(patient, split) != split:
            raise ValueError(
                f"patient {patient!r} would be in both {homes[patient]} and {split} (uid {study.uid!r}): "
                "give a split file that keeps each patient in one split"
            )
        kept[split].append(clean)

    dropped = Counter(reject["step"] for reject in rejects)
    steps: list[dict[str, Any]] = [{"step": "in the source", "kept": len(order), "dropped": 0}]
    for step in tests:
        steps.append({"step": step, "kept": steps[-1]["kept"] - dropped[step], "dropped": dropped[step]})
    if not any(kept.values()):
        raise ValueError(nothing_left(len(order), rejects))
    return Plan(kept, steps, rejects, order)


def nothing_left(total: int, rejects: list[dict[str, str]]) -> str:
    """The one line to say when no study can be used."""
    if not rejects:
        return "no usable study: the source is empty"
    step, count = Counter(reject["step"] for reject in rejects).most_common(1)[0]
    first = next(reject for reject in rejects if reject["step"] == step)
    return f"no usable study among {total:,}: {count:,} not {step} (first: uid {first['uid']}, {first['reason']})"


def read_split_file(path: str | Path) -> dict[str, str]:
    """A CSV with the columns `uid` and `split` (train, validation or test) as a mapping.

    Raises `ValueError` for a missing column, an unknown split (with its line) or a uid in two splits.
    """
    path = Path(path)
    splits: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for column in ("uid", "split"):
                if column not in (reader.fieldnames or ()):
                    raise ValueError(f"{path}: no column {column!r}; it has {', '.join(reader.fieldnames or ())}")
            for row in reader:
                uid, place = (row["uid"] or "").strip(), f"{path}, line {reader.line_num}"
                split = _split_name(row["split"] or "", place)
                if not uid or split is None:
                    raise ValueError(f"{place}: an empty uid or split")
                if splits.setdefault(uid, split) != split:
                    raise ValueError(f"{place}: uid {uid!r} is in both {splits[uid]} and {split}")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such split file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file ({error})") from None
    return splits


def format_waterfall(account: Mapping[str, Any]) -> str:
    """The account of `hf_cxr.prepare` as lines of text: what each step kept and dropped, then the splits."""
    width = max(len(step["step"]) for step in account["steps"])
    lines = [
        f"{step['step']:<{width}}  {step['kept']:>7,}" + (f"  (−{step['dropped']:,})" if step["dropped"] else "")
        for step in account["steps"]
    ]
    return "\n".join([*lines, *(f"{'→ ' + name:<{width}}  {count:>7,}" for name, count in account["splits"].items())])


def fingerprint(studies: Iterable[Study], split_file: str | Path | None = None) -> str:
    """A hash of all that studies are made of: texts, and name, size and time of change of the files they point to."""
    digest = hashlib.sha256(__version__.encode())
    for study in studies:
        for view in (study.frontal, study.lateral):
            digest.update(repr(_stat(view)).encode() if isinstance(view, (str, Path)) else pickle.dumps(view))
        digest.update(repr(replace(study, frontal=None, lateral=None)).encode())
    if split_file is not None:
        digest.update(repr(sorted(read_split_file(split_file).items())).encode())
    return digest.hexdigest()


def _stat(path: str | Path) -> tuple[str, int, int]:
    try:
        stat = Path(path).stat()
    except OSError:
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns


def _empty(study: Study, section: str, reason: str) -> str:
    return next((reason.format(name) for name in SECTIONS[section] if not getattr(study, name).strip()), "")


def _views(study: Study) -> dict[str, Any]:
    return {name: view for name in ("frontal", "lateral") if (view := getattr(study, name)) is not None}


def _missing_file(study: Study) -> str:
    """A listed view without its file is a reason to leave the study out: an empty panel would say "no such view"."""
    for name, view in _views(study).items():
        if isinstance(view, (str, Path)) and not Path(view).is_file():
            return f"image file missing: {Path(view).name} ({name})"
    return ""


def _split_name(name: str | None, where: str) -> str | None:
    if not name or not name.strip():
        return None
    split = _ALIASES.get(name.strip().lower(), name.strip().lower())
    if split not in SPLITS:
        raise ValueError(f"{where}: unknown split {name!r}; use train, validation or test")
    return split
