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

from .labeler_lexicon import (
    CUES,
    EXCEPTION,
    NAMES,
    PARENTS,
    PLACED,
    PLACEHOLDER,
    PLACEHOLDERS,
    POINTS,
    SIDED,
    WELL,
    WORDS,
    rows,
)
from .labeler_lexicon import FINDINGS as FINDINGS
from .labeler_lexicon import SIDED_FINDINGS as SIDED_FINDINGS
from .labeler_location import SIDES, Bounds, Where, heights, heights_of, pairs_of, sides_of
from .labeler_wording import plain

POSITIVE, UNCERTAIN, NEGATIVE = "positive", "uncertain", "negative"
NORMAL, ABNORMAL, UNKNOWN = "normal", "abnormal", "unknown"
_RANK = {NEGATIVE: 0, UNCERTAIN: 1, POSITIVE: 2}

_AT_POINT = "|".join(f"(?P<{name}_p{i}>{pattern})" for i, (name, pattern) in enumerate(rows(POINTS)))
_AT_WORD = "|".join(
    [f"(?P<{name}_{i}>{pattern})" for i, (name, pattern) in enumerate(rows(CUES))]
    + [f"(?P<F{i}>{pattern})" for i, (_, pattern) in enumerate(rows(WORDS))]
    + [r"(?P<HEART_>(?:heart|cardiac|cardio-?pericardial|cardio ?-?mediastinal|cardiomediastinum)\b)"]
)
_SCAN = re.compile(rf"(?=[.,;:!?])(?:{_AT_POINT})|\b(?=\w)(?:{_AT_WORD})")
_EVENTS = {index: group.rpartition("_")[0] or group for group, index in _SCAN.groupindex.items()}
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
_OR_AHEAD = re.compile(r"(?:(?!\bno\b|\bwithout\b)[^.;]){0,300}?\bor\b")
_REASON = re.compile(r"\b(?:given|because|since|as|due|based|in|considering|absent)\b")
_PLACEHOLDERS = re.compile("|".join([rf"{PLACEHOLDER}\w*", *PLACEHOLDERS.values()]), re.IGNORECASE)
_WELL = re.compile(WELL)
_EXCEPTION = re.compile(EXCEPTION)
# What the sentence behind a question may answer: "?pneumonia. Lungs clear.", "Effusion? Yes, on the left."
_ANSWER = re.compile(
    r"[ .]*(?:(?P<no>(?:no|none|nil|negative|absent|not)(?: (?:is |are )?(?:seen|present|identified|found|evident))?"
    r" *(?:,|$)|(?:[\w-]+ ){0,3}?(?:clear|normal|unremarkable|nad)\b)|(?P<yes>(?:yes|present|positive|confirmed)\b))"
)
CACHED = 1 << 19
"""Texts whose reading is kept: more than any public collection has, so that no pass over one flushes it."""
LONGEST = 100
"""Mentions and sides after which a clause ends, said or not: reading stays linear."""


class Mention(NamedTuple):
    """One mention of a finding: its plain name, "positive" | "uncertain" | "negative", and the sides stated.

    `places` pairs each side with "upper", "middle" or "lower", either of them "" where not stated.
    """

    finding: str
    status: str
    sides: tuple[str, ...]
    places: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class _Hit:
    """A mention while its clause is still being read."""

    names: tuple[str, ...]
    start: int
    end: int
    status: str
    asked: bool = False


class _Reading:
    """A text while it is read from left to right: the clause at hand, and what was found in those before it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.found: list[Mention] = []
        self.clause: list[_Hit] = []  # mentions since the last full stop, semicolon, "but" …
        self.sides: list[Where] = []
        self.asked: list[int] = []  # places in `found` of what the sentence before this one asked
        self.starts = [0]  # places that a side does not reach across
        self.since = self.segment = 0  # places in `clause`: the first mention since the last turn, the last comma
        self.negative = self.unsure = self.sticky = self.ignored = self.after_or = self.unchanged = self.asking = False

    def take(self, event: str, start: int, end: int) -> None:
        """One event of `labeler_lexicon`, where it stands."""
        if len(self.clause) + len(self.sides) + len(self.starts) > LONGEST:
            self.close(start)
            self.since = self.segment = 0
        if event in NAMES:
            status = NEGATIVE if self.negative else UNCERTAIN if self.unsure or self.after_or else POSITIVE
            if not self.ignored or self.negative:
                self.clause.append(_Hit(NAMES[event], start, end, status, self.asking))
            self.after_or = False
        elif event in SIDES:
            self.sides.append(Where(event, start, end))
        elif event == "ONE":  # "no large effusion, small left one"
            status = NEGATIVE if self.negative else UNCERTAIN if self.unsure else POSITIVE
            self.clause += [_Hit(hit.names, start, end, status) for hit in self.clause[-1:]]
        elif event == "HARD":
            self.stop(start, end)
        elif event == "HEART":
            self.heart(start, end)
        elif event == "GONE":  # "pneumothorax resolved" or "resolved pneumothorax"
            behind = bool(self.clause) and start - self.clause[-1].end <= 2
            self.take("POST_NEG" if behind else "NEG", start, end)
        elif event == "UNLIKELY":  # "unlikely pneumonia" or "pneumonia is unlikely"
            self.take("DOUBT" if self.leads_to_finding(end) else "POST_DOUBT", start, end)
        elif event in ("OR", "POST_NORMAL", "POST_NEG", "POST_DOUBT"):
            self.look_back(event, start)
        else:
            self.cue(event, start, end)

    def leads_to_finding(self, position: int) -> bool:
        """Whether the next event from here on, sides left aside, is a finding that the words before it lead to."""
        for match in _SCAN.finditer(self.text, position):
            event = _EVENTS[match.lastindex or 0]
            if event not in SIDES:
                return event in NAMES and not _REASON.search(self.text, position, match.start())
        return False

    def heart(self, start: int, end: int) -> None:
        """The heart or the mediastinum is named: a mention where its size is stated."""
        said = _HEART.match(self.text, start)
        borderline = self.text.endswith("borderline ", 0, start)
        fine = self.text.endswith(("normal ", "unremarkable "), 0, start)
        if said or borderline or fine:
            doubt = borderline or self.unsure or bool(said and said["maybe"])
            absent = self.negative or fine or bool(said and said["no"] and not borderline)
            name = "enlarged cardiomediastinum" if said and said["wide"] else "cardiomegaly"
            self.clause.append(_Hit((name,), start, end, NEGATIVE if absent else UNCERTAIN if doubt else POSITIVE))

    def stop(self, start: int, end: int) -> None:
        """A full stop, a question mark, "but" …: what was said before it has no effect behind it."""
        asked = self.text[start:end] == "?"
        ahead = asked and not self.text[start - 1 : start].isalnum()
        for hit in self.clause[self.segment :] if asked and not ahead else ():  # "pneumonia?"
            hit.asked, hit.status = True, UNCERTAIN if hit.status == POSITIVE else hit.status
        self.close(start)
        self.negative = self.sticky = self.ignored = self.after_or = self.unchanged = False
        self.unsure = self.asking = ahead  # "?pneumonia"
        self.since = self.segment = 0
        self.starts[:] = [end]

    def cue(self, event: str, start: int, end: int) -> None:
        """Cues that act on what follows."""
        if event == "FRESH":  # "no effusion, acute fracture", but not "no displaced, acute fracture"
            event = "TURN" if self.clause and self.clause[-1].start > self.starts[-1] else "COMMA"
        if event in ("COMMA", "TURN"):
            self.negative, self.unchanged = self.negative and event == "COMMA", self.unchanged and event == "COMMA"
            self.unsure = self.unsure and (self.sticky or bool(_OR_AHEAD.match(self.text, end)))
            self.ignored = False
            self.segment = len(self.clause)
        elif event == "SOFT" or (event == "CLAUSE" and self.negative):
            self.negative = self.unsure = self.sticky = self.after_or = self.unchanged = False
            self.since = self.segment = len(self.clause)
        elif event == "WITH":
            self.unsure = False
            self.since = self.segment = len(self.clause)
        elif event == "NEG":
            self.negative, self.unsure, self.after_or, self.unchanged = True, False, False, False
            self.starts.append(start)
        elif event == "PSEUDO":
            self.negative, self.unchanged = False, self.text.startswith((" in ", " of "), end)
        elif event in ("UNSURE", "STICKY"):
            self.unsure, self.sticky = True, self.sticky or event == "STICKY"
        elif event == "DOUBT":
            self.unsure, self.negative = True, False
        elif event == "IGNORE":
            self.ignored = True

    def look_back(self, event: str, start: int) -> None:
        """Cues that act on the mentions before them; those that find none act on what follows."""
        clause = self.clause
        if event == "OR":
            if not (self.negative or self.unchanged) and len(clause) > self.since and start - clause[-1].end < 40:
                if clause[-1].status == POSITIVE:
                    clause[-1].status = UNCERTAIN
                self.after_or = True
        elif event == "POST_NORMAL":
            if clause and clause[-1].end + 1 >= start and clause[-1].names[0] not in _NEVER_NORMAL:
                clause[-1].status = NEGATIVE
        else:
            denied = event == "POST_NEG"
            touched = clause[self.since if denied or self.segment >= len(clause) else self.segment :]
            for hit in touched:
                if hit.status != NEGATIVE:
                    hit.status = NEGATIVE if denied else UNCERTAIN
            if not touched:
                self.negative, self.unsure = denied, not denied

    def close(self, end: int) -> None:
        """The clause ends: each mention gets its sides and heights, the last one first."""
        clause, text = self.clause, self.text
        tall = [w for hit in clause[:1] for w in heights(text, self.starts[0], end)]
        shared: tuple[list[Where], list[Where]] = [], []
        read: list[Mention] = []
        previous = [0]  # where the mention before each one ends; "interstitial infiltrates" are one
        for hit, behind in pairwise(clause):
            previous.append(previous[-1] if behind.start == hit.end + 1 else hit.end)
        for i in range(len(clause) - 1, -1, -1):
            hit, following = clause[i], clause[i + 1].start if i + 1 < len(clause) else None
            earliest = max(f for f in self.starts if f <= hit.start)
            at = Bounds(hit.start, hit.end, earliest, previous[i], following, end)
            where = sides_of(at, self.sides, text)
            places: list[Where] = []
            if not PLACED.isdisjoint(hit.names):
                places = heights_of(at, where, tall, text) if tall else []
            alike = i + 1 < len(clause) and (hit.status == NEGATIVE) == (clause[i + 1].status == NEGATIVE)
            if following and alike and _SHARED.match(text[hit.end : following]):
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
                    pairs = pairs_of(at, where, places, self.sides, text)
                stated = tuple(s for s in ("right", "left") if any(s == side for side, _ in pairs)) if pairs else ()
                read.append(Mention(name, hit.status, stated, pairs))
        read.reverse()
        if self.asked:
            self.answer(read, text[self.starts[0] : end])
        asked = [i for i, hit in enumerate(h for h in clause for _ in h.names) if hit.asked]
        self.asked = [len(self.found) + i for i in asked] or (self.asked if end - self.starts[0] < 2 else [])
        self.found.extend(read)
        clause.clear()
        self.sides.clear()
        self.starts[:] = [end]

    def answer(self, read: list[Mention], said: str) -> None:
        """What was asked is settled by the clause behind it, where that names it, what it is a kind of, or answers."""
        reply = None if read else _ANSWER.match(said)
        for i in self.asked:
            finding = self.found[i].finding
            same = [m.status for m in read if m.finding == finding]
            above = PARENTS.get(finding, finding)
            if same:
                self.found[i] = self.found[i]._replace(status=max(same, key=_RANK.__getitem__))
            elif any(m.finding in (above, PARENTS.get(above)) and m.status == NEGATIVE for m in read):
                self.found[i] = self.found[i]._replace(status=NEGATIVE)
            elif reply:
                sides = dict.fromkeys(side for w in self.sides for side in SIDES[w.name]) if finding in SIDED else {}
                where = self.found[i]
                if reply["yes"] and sides and not where.sides:
                    where = where._replace(sides=tuple(sides), places=tuple((side, "") for side in sides))
                self.found[i] = where._replace(status=POSITIVE if reply["yes"] else NEGATIVE)


_KEPT: dict[Mention, Mention] = {}  # mentions repeat from text to text: one object each


@lru_cache(maxsize=CACHED)
def statements(text: str) -> tuple[tuple[Mention, ...], bool]:
    """The `mentions` of `text`, and whether it says that something is as it should be."""
    text = plain(_PLACEHOLDERS.sub(" ", text))
    reading = _Reading(text)
    for match in _SCAN.finditer(text):
        reading.take(_EVENTS[match.lastindex or 0], *match.span())
    reading.close(len(text))
    return tuple(_KEPT.setdefault(mention, mention) for mention in reading.found), bool(_WELL.search(text))


def mentions(text: str) -> tuple[Mention, ...]:
    """Every mention of a finding, in order; the name "_other" stands for an abnormality outside the vocabulary."""
    return statements(text)[0]


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
    return _label_with_places((m, tuple((side, "") for side in m.sides)) for m in mentions(text))


def located_label(text: str) -> dict[str, str]:
    """As `sided_label`, but a finding in `PLACED` is keyed "right lower X", "upper X" … where its height is stated.

    A key is left out where another mention says as much with a side or height that it lacks.
    """
    return _label_with_places((m, m.places) for m in mentions(text))


def _label_with_places(found: Iterable[tuple[Mention, tuple[tuple[str, str], ...]]]) -> dict[str, str]:
    read = _merge(
        ((side, place, m.finding), m.status)
        for m, places in found
        if m.finding != "_other"
        for side, place in (places or (("", ""),))
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


def positive_findings(text: str, sided: bool = False, uncertain: bool = False) -> frozenset[str]:
    """The findings that `text` states as present; with `uncertain`, also those it holds possible."""
    return _stated((sided_label if sided else label)(text), uncertain)


def located_findings(text: str, uncertain: bool = False) -> frozenset[str]:
    """As `positive_findings`, with side and height: "right lower lung opacity", "upper nodule", "cardiomegaly"."""
    return _stated(located_label(text), uncertain)


def _stated(labels: dict[str, str], uncertain: bool) -> frozenset[str]:
    wanted = (POSITIVE, UNCERTAIN) if uncertain else (POSITIVE,)
    return frozenset(key for key, status in labels.items() if status in wanted)


def normality(text: str) -> str:
    """ "normal", "abnormal" or "unknown".

    Abnormal: a positive or uncertain mention of a finding or of an abnormality outside the vocabulary. Devices, old
    scars and degenerative change count, as in the Indiana tags. Normal: no such mention, and a statement of normality
    ("lungs are clear", "no acute disease") or denied findings. Unknown: neither, so nothing was understood.
    """
    found, well = statements(text)
    if any(m.status != NEGATIVE for m in found):
        return ABNORMAL
    return NORMAL if (found or well) and not _EXCEPTION.search(text.lower()) else UNKNOWN


def is_normal(text: str) -> bool:
    """Whether `normality` calls `text` normal."""
    return normality(text) == NORMAL
