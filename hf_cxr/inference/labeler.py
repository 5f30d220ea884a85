"""What a radiology text says: finding labels with negation, uncertainty, side and height.

The rules read English chest radiograph reports: findings and cues are found in one pass (`labeler_lexicon` lists
them), then each mention gets its sides and heights (`labeler_location`). docs/labeler.md tells how well that agrees
with the human tags of the Indiana reports. Standard library only: this file and its two siblings come with a
checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, TypeVar

from .labeler_lexicon import CUES, NAMES, PARENTS, PLACED, POINTS, SIDED, WORDS, rows
from .labeler_lexicon import FINDINGS as FINDINGS
from .labeler_lexicon import SIDED_FINDINGS as SIDED_FINDINGS
from .labeler_location import SIDES, Bounds, Where, heights, heights_of, pairs_of, sides_of

POSITIVE, UNCERTAIN, NEGATIVE = "positive", "uncertain", "negative"
_RANK = {NEGATIVE: 0, UNCERTAIN: 1, POSITIVE: 2}

_AT_POINT = "|".join(f"(?P<{name}_p{i}>{pattern})" for i, (name, pattern) in enumerate(rows(POINTS)))
_AT_WORD = "|".join(
    [f"(?P<{name}_{i}>{pattern})" for i, (name, pattern) in enumerate(rows(CUES))]
    + [f"(?P<F{i}>{pattern})" for i, (_, pattern) in enumerate(rows(WORDS))]
    + [r"(?P<HEART_>(?:heart|cardiac|cardio-?pericardial|cardio ?-?mediastinal|cardiomediastinum)\b)"]
)
_SCAN = re.compile(rf"(?=[.,;:!?])(?:{_AT_POINT})|\b(?=\w)(?:{_AT_WORD})")
# What is said of the heart's size, up to eight words on. "Upper limits of normal" is not enlarged: the tags agree.
_HEART = re.compile(
    r"(?:heart|cardiac|cardio-?pericardial|(?P<wide>cardio ?-?mediastinal|cardiomediastinum))"
    r"(?:[,:]? (?!but\b|(?<!and )lungs?\b|there\b|without\b|no\b|pulmonary edema)[\w/-]+){0,8}?[,:]? "
    r"(?:(?P<maybe>borderline|(?:(?:upper|top)(?: limits?)?(?: of)? )?normal(?: in size)? (?:or|to) \w+ enlarged)"
    r"|(?P<no>not (?:\w+ )?enlarged|normal|unremarkable|within|(?:upper|top) (?:limits?|normal))"
    r"|(?P<yes>enlarge[dm]|prominent|large|increased|big))"
)
# "X and Y in the left base": X is on the left too.
_SHARED = re.compile(r" ?(?:,|and|or|versus|vs\.?|and/or)(?: (?!right\b|left\b)\w+){0,2} $| ?/? ?$")
_NEVER_NORMAL = ("cardiomegaly", "pacemaker", "catheter", "sternotomy", "support devices", "surgical clips")
_OR_AHEAD = re.compile(r"(?:(?!\bno\b|\bwithout\b)[^.;])*?\bor\b")
_REASON = re.compile(r"\b(?:given|because|since|as|due|based|in|considering|absent)\b")
_PLACEHOLDERS = re.compile(r"\bx{3,}\w*")


class Mention(NamedTuple):
    """One mention of a finding: its plain name, "positive" | "uncertain" | "negative", and the sides stated.

    `places` pairs each side with "upper", "middle" or "lower", either of them "" where not stated.
    """

    finding: str
    status: str
    sides: tuple[str, ...]
    places: tuple[tuple[str, str], ...] = ()


@dataclass
class _Hit:
    """A mention while its clause is still being read."""

    names: tuple[str, ...]
    start: int
    end: int
    status: str


def _names_next(text: str, position: int) -> bool:
    """Whether the next thing read from here on, sides left aside, is a finding that the words before it lead to."""
    for match in _SCAN.finditer(text, position):
        event = (match.lastgroup or "").partition("_")[0]
        if event not in SIDES:
            return event in NAMES and not _REASON.search(text, position, match.start())
    return False


@lru_cache(maxsize=65536)
def mentions(text: str) -> tuple[Mention, ...]:
    """Every mention of a finding, in order; the name "_other" stands for an abnormality outside the vocabulary."""
    text = " ".join(_PLACEHOLDERS.sub(" ", text.lower()).split())
    found: list[Mention] = []
    clause: list[_Hit] = []  # mentions since the last full stop, semicolon, "but" …
    sides: list[Where] = []
    high: list[Where] | None = None  # read once something is found that has a height
    starts = [0]  # places that a side does not reach across
    since = segment = 0  # index into `clause`: the first mention since the last turn, since the last comma
    negative = unsure = sticky = ignored = after_or = unchanged = False

    def close(end: int) -> None:
        nonlocal high
        shared: tuple[list[Where], list[Where]] = [], []
        read: list[Mention] = []
        previous = [0]  # where the mention before each one ends; "interstitial infiltrates" are one
        for hit, behind in pairwise(clause):
            previous.append(previous[-1] if behind.start == hit.end + 1 else hit.end)
        for i in range(len(clause) - 1, -1, -1):
            hit, following = clause[i], clause[i + 1].start if i + 1 < len(clause) else None
            floor = max(f for f in starts if f <= hit.start)
            at = Bounds(hit.start, hit.end, floor, previous[i], following, end)
            where, places = sides_of(at, sides, text), []
            if not PLACED.isdisjoint(hit.names):
                high = heights(text) if high is None else high
                places = heights_of(at, where, high, text) if high else []
            if following and _SHARED.match(text[hit.end : following]):
                # "Left pneumonia, and scar or atelectasis at the right base": the side behind goes before a far one.
                if all(w.start < previous[i] for w in where) and any(w.start >= following for w in shared[0]):
                    where, places = shared
                elif not where:
                    where, places = shared[0], places or shared[1]
            shared = where, places
            plain = tuple(dict.fromkeys((side, "") for w in where for side in SIDES[w.name])) if where else ()
            for name in hit.names:
                pairs = plain if name in SIDED else ()
                if places and name in PLACED:
                    pairs = pairs_of(at, where, places, sides, text)
                stated = tuple(s for s in ("right", "left") if any(s == side for side, _ in pairs)) if pairs else ()
                read.append(Mention(name, hit.status, stated, pairs))
        found.extend(reversed(read))
        clause.clear()
        sides.clear()

    for match in _SCAN.finditer(text):
        group = match.lastgroup or ""
        event = group.rpartition("_")[0] or group
        if event == "GONE":  # "pneumothorax resolved" or "resolved pneumothorax"
            event = "POST_NEG" if clause and match.start() - clause[-1].end <= 2 else "NEG"
        elif event == "UNLIKELY":  # "unlikely pneumonia" or "pneumonia is unlikely"
            event = "DOUBT" if _names_next(text, match.end()) else "POST_DOUBT"
        if event in NAMES:
            status = NEGATIVE if negative else UNCERTAIN if unsure or after_or else POSITIVE
            if not ignored or negative:
                clause.append(_Hit(NAMES[event], match.start(), match.end(), status))
            after_or = False
        elif event == "HEART":
            said = _HEART.match(text, match.start())
            borderline = text.endswith("borderline ", 0, match.start())
            fine = text.endswith(("normal ", "unremarkable "), 0, match.start())
            if said or borderline or fine:
                doubt = borderline or unsure or bool(said and said["maybe"])
                absent = negative or fine or bool(said and said["no"] and not borderline)
                name = "enlarged cardiomediastinum" if said and said["wide"] else "cardiomegaly"
                status = NEGATIVE if absent else UNCERTAIN if doubt else POSITIVE
                clause.append(_Hit((name,), match.start(), match.end(), status))
        elif event == "HARD":
            asked = match.group() == "?"
            ahead = asked and not text[: match.start()][-1:].isalnum()
            for hit in clause[segment:] if asked and not ahead else ():  # "pneumonia?"
                hit.status = UNCERTAIN if hit.status == POSITIVE else hit.status
            close(match.start())
            negative = sticky = ignored = after_or = unchanged = False
            unsure = ahead  # "?pneumonia"
            since = segment = 0
            starts[:] = [match.end()]
        elif event == "SOFT":
            negative = unsure = sticky = after_or = unchanged = False
            since = segment = len(clause)
        elif event in ("COMMA", "TURN"):
            negative, unchanged = negative and event == "COMMA", unchanged and event == "COMMA"
            unsure = unsure and (sticky or bool(_OR_AHEAD.match(text, match.end())))
            ignored = False
            segment = len(clause)
        elif event == "WITH":
            unsure = False
            since = segment = len(clause)
        elif event == "NEG":
            negative, unsure, after_or, unchanged = True, False, False, False
            starts.append(match.start())
        elif event == "PSEUDO":
            negative, unchanged = False, text.startswith((" in ", " of "), match.end())
        elif event in ("UNSURE", "STICKY"):
            unsure, sticky = True, sticky or event == "STICKY"
        elif event == "DOUBT":
            unsure, negative = True, False
        elif event == "IGNORE":
            ignored = True
        elif event == "OR":
            if not (negative or unchanged) and len(clause) > since and match.start() - clause[-1].end < 40:
                if clause[-1].status == POSITIVE:
                    clause[-1].status = UNCERTAIN
                after_or = True
        elif event == "POST_NORMAL":
            if clause and clause[-1].end + 1 >= match.start() and clause[-1].names[0] not in _NEVER_NORMAL:
                clause[-1].status = NEGATIVE
        elif event in ("POST_NEG", "POST_DOUBT"):
            denied = event == "POST_NEG"
            touched = clause[since if denied or segment >= len(clause) else segment :]
            for hit in touched:
                if hit.status != NEGATIVE:
                    hit.status = NEGATIVE if denied else UNCERTAIN
            if not touched:
                negative, unsure = denied, not denied
        elif event in SIDES:
            sides.append(Where(event, match.start(), match.end()))
    close(len(text))
    return tuple(found)


_Key = TypeVar("_Key")


def _merge(pairs: Iterable[tuple[_Key, str]]) -> dict[_Key, str]:
    """Key → the strongest of its statuses."""
    labels: dict[_Key, str] = {}
    for key, status in pairs:
        if key not in labels or _RANK[status] > _RANK[labels[key]]:
            labels[key] = status
    return labels


def label(text: str, roll_up: bool = False) -> dict[str, str]:
    """Plain finding → "positive", "uncertain" or "negative", for every finding that `text` mentions.

    Of several mentions positive wins over uncertain, and uncertain over negative. Only what is stated is returned
    ("rib fracture" does not imply "fracture") unless `roll_up` adds the ancestors of `PARENTS`.
    """
    labels = _merge((m.finding, m.status) for m in mentions(text) if m.finding != "_other")
    if roll_up:
        for name, status in list(labels.items()):
            while status != NEGATIVE and (name := PARENTS.get(name, "")):
                labels = _merge([*labels.items(), (name, status)])
    return labels


def sided_label(text: str) -> dict[str, str]:
    """As `label`, but a finding in `SIDED` is keyed "right X" and/or "left X" where its clause states the side.

    The plain key stands for a side not stated; it is left out where another mention says as much with a side.
    """
    labels = _merge(
        (f"{side} {m.finding}" if side else m.finding, m.status)
        for m in mentions(text)
        if m.finding != "_other"
        for side in (m.sides or ("",))
    )
    for key, status in list(labels.items()):
        name = key.partition(" ")[2]
        if name in SIDED and name in labels and _RANK[status] >= _RANK[labels[name]]:
            del labels[name]
    return labels


def positive_findings(text: str, sided: bool = False, uncertain: bool = False) -> frozenset[str]:
    """The findings that `text` states as present; with `uncertain`, also those it holds possible."""
    wanted = (POSITIVE, UNCERTAIN) if uncertain else (POSITIVE,)
    return frozenset(name for name, status in (sided_label if sided else label)(text).items() if status in wanted)


def located_label(text: str) -> dict[str, str]:
    """As `sided_label`, but a finding in `PLACED` is keyed "right lower X", "upper X" … where its height is stated.

    A key is left out where another mention says as much with a side or height that it lacks.
    """
    read = _merge(
        ((side, place, m.finding), m.status)
        for m in mentions(text)
        if m.finding != "_other"
        for side, place in (m.places or (("", ""),))
    )
    return {
        " ".join(filter(None, (side, place, name))): status
        for (side, place, name), status in read.items()
        if (side and place)
        or not any(
            other == name
            and (s, p) != (side, place)
            and side in ("", s)
            and place in ("", p)
            and _RANK[said] >= _RANK[status]
            for (s, p, other), said in read.items()
        )
    }


def located_findings(text: str, uncertain: bool = False) -> frozenset[str]:
    """As `positive_findings`, with side and height: "right lower lung opacity", "upper nodule", "cardiomegaly"."""
    wanted = (POSITIVE, UNCERTAIN) if uncertain else (POSITIVE,)
    return frozenset(key for key, status in located_label(text).items() if status in wanted)


def is_normal(text: str) -> bool:
    """Whether `text` says something and nothing in it is a positive or uncertain abnormality.

    Devices, old scars and degenerative change count as abnormal, as in the Indiana tags. A text without a word is not
    normal.
    """
    return any(map(str.isalpha, text)) and all(m.status == NEGATIVE for m in mentions(text))
