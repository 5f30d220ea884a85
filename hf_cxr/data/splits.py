"""Which records a dataset keeps, and in which split each of them goes.

Only records are looked at here; images are read in `hf_cxr.data.images` and chosen in `hf_cxr.data.selection`.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_cxr import __version__
from hf_cxr.data.placeholders import count_placeholders
from hf_cxr.data.sources.rows import read_rows
from hf_cxr.data.study import NOT_SHOWN, TEXTS, Archived, Embedded, Study, clean_text, codes

SPLITS = ("train", "validation", "test")
SECTIONS = ("any", "impression", "findings", "both")
"""Texts a study must have to be kept: at least one of impression and findings, one of them, or both."""
_ALIASES = {"training": "train", "testing": "test"}
_ALIASES |= dict.fromkeys(("val", "valid", "validate", "dev", "development"), "validation")


@dataclass(frozen=True)
class Plan:
    """The studies whose records can be used, with clean text, and what was left out before any image was opened."""

    studies: list[Study]
    rejected: list[Study]
    steps: list[dict[str, Any]]  # `{"step", "kept", "dropped"}` of the steps so far
    rejects: list[dict[str, str]]  # `{"uid", "step", "reason"}` of each study left out, in the order of the source
    order: dict[str, int]  # uid → its place in the source
    placeholders: Counter[str]  # kind → how many there are in the texts of the source


def add_steps(steps: list[dict[str, Any]], names: Iterable[str], rejects: Iterable[Mapping[str, str]]) -> None:
    """Continue the steps of a preparation report by the steps `names`, with what `rejects` says was dropped there."""
    dropped = Counter(reject["step"] for reject in rejects)
    for name in names:
        steps.append({"step": name, "kept": steps[-1]["kept"] - dropped[name], "dropped": dropped[name]})


def nothing_left(total: int, rejects: list[dict[str, str]]) -> str:
    """The one line to say when no study can be used."""
    if not rejects:
        return "no usable study: the source is empty"
    step, count = Counter(reject["step"] for reject in rejects).most_common(1)[0]
    first = next(reject for reject in rejects if reject["step"] == step)
    return f"no usable study among {total:,}: {count:,} not {step} (first: uid {first['uid']}, {first['reason']})"


def split_of(patient: str, seed: int = 0) -> str:
    """The split of a patient: 80 % train, 10 % validation, 10 % test, by a hash of the seed and the patient alone.

    So it never changes when other patients come or go, and is the same on every machine.
    """
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def plan(
    studies: Iterable[Study],
    section: str = "any",
    placeholders: str = "drop",
    named: Container[str] | None = None,
) -> Plan:
    """Clean the texts and decide which records can be used; studies that are not `named` (in a split file) are not.

    Raises:
        ValueError: For an unknown section or placeholder policy, a uid that occurs twice, or if no study at all can be
            used.
    """
    if section not in SECTIONS:
        raise ValueError(f"unknown section {section!r}: choose one of {', '.join(SECTIONS)}")
    names = {"any": "impression or findings", "both": "impression and findings"}.get(section, section)
    # Step of the preparation report → why a study (as published, cleaned) does not pass it; "" if it does.
    tests: dict[str, Callable[[Study, Study], str]] = {
        "with a readable record": lambda raw, clean: raw.problem,
        f"with {names}": lambda raw, clean: _empty(raw, section, "no {} text"),
        f"with {names} after cleaning": lambda raw, clean: _empty(clean, section, "nothing left of the {} text"),
        "with an image listed": lambda raw, clean: "" if raw.images else "no image listed",
    }
    if named is not None:
        unnamed = "not named in the split file"
        tests = {"named in the split file": lambda raw, clean: "" if raw.uid in named else unnamed} | tests

    made = Plan([], [], [], [], {}, Counter())
    for study in studies:
        if study.uid in made.order:
            raise ValueError(f"uid {study.uid!r} occurs twice in the source")
        made.order[study.uid] = len(made.order)
        made.placeholders.update(count_placeholders(getattr(study, name) for name in TEXTS))
        clean = replace(
            study,
            impression=clean_text(study.impression, placeholders),
            findings=clean_text(study.findings, placeholders),
        )
        failed = next(((step, reason) for step, test in tests.items() if (reason := test(study, clean))), None)
        if failed:
            made.rejects.append({"uid": study.uid, "step": failed[0], "reason": failed[1]})
            made.rejected.append(study)
        else:
            made.studies.append(clean)
    made.steps.append({"step": "in the source", "kept": len(made.order), "dropped": 0})
    add_steps(made.steps, tests, made.rejects)
    if not made.studies:
        raise ValueError(nothing_left(len(made.order), made.rejects) + _other_section(made.rejected, section))
    return made


def assign(
    studies: Sequence[Study],
    images: Mapping[str, Iterable[str]],
    seed: int = 0,
    chosen: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """uid → the split of each study, such that neither a patient nor an image is in two splits.

    A study's split is the one a split file gives it, else the one the collection publishes for it or for another study
    of its patient, else `split_of` its patient. Patients who share an image are taken for one, the first of them in
    alphabetical order; so the split of a study changes with the studies around it only if a new one ties it to another
    patient by a shared image.

    Args:
        studies: Studies to keep.
        images: uid → digests of the images of that study.
        seed: Seed of `split_of`.
        chosen: uid → split, of a split file.

    Returns:
        The split of each study, or "" for one that shares an image with a study of a later split (train, validation,
        test), where a split file or the collection puts the two apart.

    Raises:
        ValueError: For patients whom the split file or the collection puts into two splits, or unknown splits.
    """
    owners = {study.uid: study.patient or study.uid for study in studies}
    group_of = _groups(owners, images)
    named = [(study.uid, study.split if chosen is None else chosen[study.uid]) for study in studies]
    given = dict(zip(owners, _split_names(named), strict=True))
    inherited: dict[str, str] = {}
    for uid, split in given.items():
        if split is not None:
            group = group_of[owners[uid]]
            inherited[group] = max(split, inherited.get(group, split), key=SPLITS.index)
    splits: dict[str, str] = {}
    split_of_owner: dict[str, str] = {}
    parted: dict[str, tuple[str, str, str]] = {}
    for uid, owner in owners.items():
        group = group_of[owner]
        split = splits[uid] = given[uid] or inherited.get(group) or split_of(group, seed)
        if (other := split_of_owner.setdefault(owner, split)) != split:
            parted.setdefault(owner, (uid, other, split))
    if parted:
        uid, other, split = next(iter(parted.values()))
        others = f", and so would {len(parted) - 1:,} more" if len(parted) > 1 else ""
        raise ValueError(
            f"a patient would be in both {other} and {split} (uid {uid!r}){others}: "
            "give a split file that keeps each patient in one split"
        )
    latest: dict[str, int] = {}
    for uid in owners:
        for digest in images[uid]:
            latest[digest] = max(latest.get(digest, 0), SPLITS.index(splits[uid]))
    return {
        uid: split if all(latest[digest] == SPLITS.index(split) for digest in images[uid]) else ""
        for uid, split in splits.items()
    }


def tied_patients(studies: Sequence[Study], images: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """How many patients share an image with another, and how many the largest group of such patients holds.

    An image that very many share (a placeholder, say) would put all of them into one split.
    """
    groups = Counter(_groups({study.uid: study.patient or study.uid for study in studies}, images).values())
    sizes = [size for size in groups.values() if size > 1]
    return {"patients": sum(sizes), "largest_group": max(sizes, default=0)}


def likely_patients(studies: Iterable[Study], split_of_uid: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Of each column that seems to name the patient and is not read as that: how many patients with several studies
    there would be, and how many of these are in several splits."""
    found: dict[str, dict[str, list[str]]] = {}
    for study in studies:
        for column, patient in study.likely_patient:
            found.setdefault(column, {}).setdefault(patient, []).append(split_of_uid[study.uid])
    repeated = {column: [s for s in patients.values() if len(s) > 1] for column, patients in found.items()}
    return {
        column: {"with_several_studies": len(several), "in_several_splits": sum(len(set(s)) > 1 for s in several)}
        for column, several in repeated.items()
    }


def _groups(owners: Mapping[str, str], images: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Patient → the first, in alphabetical order, of the patients tied to this one by shared images."""
    first = {owner: owner for owner in owners.values()}

    def find(owner: str) -> str:
        while first[owner] != owner:
            first[owner] = owner = first[first[owner]]
        return owner

    seen: dict[str, str] = {}
    for uid, owner in owners.items():
        for digest in images[uid]:
            one, other = sorted((find(seen.setdefault(digest, owner)), find(owner)))
            first[other] = one
    return {owner: find(owner) for owner in first}


def _other_section(studies: Iterable[Study], section: str) -> str:
    """A hint for a collection, such as R2Gen's, that holds the other section only."""
    other = "findings" if section == "impression" else "impression"
    there = section != "any" and any(getattr(s, other).strip() for s in studies)
    return f"; there are {other} texts: --section {other}" if there else ""


def read_split_file(path: str | Path) -> dict[str, str]:
    """A CSV with the columns `uid` and `split` (train, validation or test) as a mapping.

    Raises `ValueError` for a missing column, unknown splits (all of them, with the line of the first) or a uid in two
    splits.
    """
    splits: dict[str, str] = {}
    rows = read_rows(path, ("uid", "split"))
    for row, split in zip(rows, _split_names((f"{path}, {row.place}", row["split"]) for row in rows), strict=True):
        uid = row["uid"]
        if not uid or split is None:
            raise ValueError(f"{path}, {row.place}: an empty uid or split")
        if splits.setdefault(uid, split) != split:
            raise ValueError(f"{path}, {row.place}: uid {uid!r} is in both {splits[uid]} and {split}")
    return splits


def fingerprint(studies: Iterable[Study], tables: Iterable[str | Path | None] = ()) -> str:
    """A hash of all that studies are made of: texts and tables, and name, size and time of change of image files."""
    digest = hashlib.sha256(__version__.encode())
    for study in studies:
        for radiograph in study.images:
            source = radiograph.source
            if isinstance(source, Archived):
                mark = f"{_stat(source.archive)} {source.key}".encode()
            elif isinstance(source, Embedded):
                mark = f"{_stat(source.table)} {source}".encode()
            else:
                mark = repr(_stat(source)).encode() if isinstance(source, (str, Path)) else pickle.dumps(source)
            digest.update(mark + f"{radiograph.view} {radiograph.name}".encode())
        digest.update(repr(replace(study, images=())).encode())
    for table in tables:
        digest.update(b"" if table is None else Path(table).read_bytes())
    return digest.hexdigest()


def _stat(path: str | Path) -> tuple[str, int, int]:
    try:
        stat = Path(path).stat()
    except (OSError, ValueError):  # ValueError: a NUL in it
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns


def _empty(study: Study, section: str, reason: str) -> str:
    lacking = [name for name in TEXTS[:2] if section in (name, "any", "both") and not getattr(study, name).strip()]
    if section == "any":
        return reason.format(" or ".join(lacking)) if len(lacking) == 2 else ""
    return reason.format(lacking[0]) if lacking else ""


def _split_names(named: Iterable[tuple[str, str | None]]) -> list[str | None]:
    """(place, name) of splits → our names; `ValueError` with all unknown ones, and the place of the first."""
    splits: list[str | None] = []
    unknown, first = Counter[str](), ""
    for place, name in named:
        plain = (name or "").strip().lower()
        splits.append(_ALIASES.get(plain, plain) or None)
        if splits[-1] and splits[-1] not in SPLITS:
            first = first or place
            unknown[str(name)] += 1
    if unknown:
        words = ", and ".join(map(repr, codes(unknown))) or f"({NOT_SHOWN.format(len(unknown))})"
        raise ValueError(f"{first}: unknown split {words}; use train, validation or test")
    return splits
