"""The records of a study and its images, and the cleaning of its texts; what becomes of placeholders is in
`hf_cxr.data.placeholders`.

Reading a published form of a collection lives in `hf_cxr.data.sources`; the meaning of a text in
`hf_cxr.inference.labeler`."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_cxr.data.placeholders import PLACEHOLDER_POLICIES, as_one_kind, rules, without_placeholders
from hf_cxr.data.storage import Embedded

if TYPE_CHECKING:
    from hf_cxr.inference.views import ViewSource


MISSING = "image file missing"
"""How the reason begins why such an image cannot be read."""


@dataclass(frozen=True)
class Archived:
    """An image inside an archive: found in one pass by the `image_key` of its member name, or by its path."""

    archive: Path
    key: str
    others: tuple[Path, ...] = ()  # further archives to look in, in this order, where it is not in the first


@dataclass(frozen=True)
class Radiograph:
    """One image of a study, not opened."""

    source: ViewSource | Archived | Embedded
    """What `read_radiograph` reads (a callable must be picklable), or a file in an archive."""
    view: str | None = None
    """"frontal" or "lateral" where the collection says so; `None`: to be decided from names and pixels."""
    name: str = ""
    """What preparation reports and messages call it: the file name."""
    projection: str = ""
    """"PA" or "AP" where the collection says so, of a frontal image."""
    searched: str = ""
    """Where it was looked for in vain, as a message says it."""

    @property
    def label(self) -> str:
        """`name`, or the file name of a path."""
        return self.name or (Path(self.source).name if isinstance(self.source, (str, Path)) else "image")


Key = tuple[int, int]  # (index of a study, index of an image in it)


@dataclass(frozen=True)
class StoredImage:
    """An image that could be read, and where the store keeps it."""

    start: int
    length: int  # its PNG: so many bytes of the store from `start` on
    digest: str  # SHA-256 of the PNG: two equal ones are the same image, whatever their files were
    # Log-odds that it is frontal, by its pixels; only for an image whose view the collection does not name.
    evidence: float | None = None
    hint: str | None = None  # the view its DICOM header names, if any


TEXTS = ("impression", "findings", "indication", "comparison", "technique")
"""The sections of a report that are kept; only the first two are learned, and cleaned."""


@dataclass(frozen=True)
class Study:
    """One examination of one patient: its images and the report's sections, as published.

    Which images become the frontal and the lateral view of a row is decided in `hf_cxr.data.selection`.
    """

    uid: str
    images: tuple[Radiograph, ...] = ()
    """All images that the collection lists, in its order, whether their files are there or not."""
    impression: str = ""
    findings: str = ""
    indication: str = ""
    comparison: str = ""
    technique: str = ""
    tags: tuple[str, ...] = ()
    """Labels that the collection itself gives the study, in its own words."""
    uncertain: tuple[str, ...] = ()
    """Labels that the collection calls uncertain; none of them is in `tags`."""
    age: float | None = None
    """Years, where the collection says so."""
    sex: str = ""
    """"F", "M" or "O" (DICOM PS3.3 C.7.1.1), where the collection says so."""
    time: str = ""
    """What puts the studies of one patient in order, compared as text; "" where the collection does not say."""
    patient: str | None = None
    """Studies of one patient never cross splits. `None`: not known; the study counts as a patient of its own."""
    likely_patient: tuple[tuple[str, str], ...] = ()
    """Where `patient` is not asked for: columns of the table that seem to name the patient, and what they say."""
    split: str | None = None
    """The split the collection itself publishes, if any."""
    problem: str = ""
    """Why the record itself cannot be used, as the reader of the collection says."""


def plain_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """In lower case with blanks for "_", each once; "normal" and "no finding" are the absence of tags. A study that
    nobody labelled has the tag "unlabelled"."""
    plain = (tag.replace("_", " ").strip().lower() for tag in tags)
    return tuple(dict.fromkeys(tag for tag in plain if tag not in ("", "normal", "no finding")))


MOST_CODES, FEW_CODES = 10, 3
_CODE = re.compile(r"(?!(?:.*\d){4})\S{1,20}", re.DOTALL)
NOT_SHOWN = "{:,} different, not shown, as they may be text or names"


def codes(words: Mapping[str, int]) -> list[str]:
    """The words of a column (with how often each occurs) that a message may repeat, the commonest first.

    A column that was named by mistake may hold texts, names or numbers of patients. So a word is shown only if it has
    at most 20 characters, no blank and at most 3 digits, and if they are the words of a column of codes: at most
    `FEW_CODES` different ones, or at most `MOST_CODES` that occur twice or more on average.
    """
    if len(words) > MOST_CODES or FEW_CODES < len(words) > sum(words.values()) / 2:
        return []
    return [word for word, _ in Counter(words).most_common() if _CODE.fullmatch(word)]


def few_words(words: Mapping[str, int]) -> str:
    """The `codes` among the words as a message names them, with how often each occurs."""
    shown = [f"{word!r} ({words[word]:,})" for word in codes(words)]
    return ", ".join(shown + ["…"] * (len(shown) < len(words))) if shown else NOT_SHOWN.format(len(words))


def in_order_of_time(studies: Mapping[str, tuple[str, str]]) -> list[str]:
    """The uids of studies (uid → patient, time): those of one patient by time, in the places that they hold together.
    Without a patient or a time a study keeps its own."""
    uids, places = list(studies), dict[str, list[tuple[str, int]]]()
    for place, (patient, time) in enumerate(studies.values()):
        if patient and time:
            places.setdefault(patient, []).append((time, place))
    ordered = uids.copy()
    for held in places.values():
        for (_, place), (_, source) in zip(held, sorted(held), strict=True):
            ordered[place] = uids[source]
    return ordered


_ENUMERATOR = re.compile(
    r"(?<!\S)(?:#\s?(\d{1,2})[.):]?|\(?(\d{1,2})[.)]),?"
    r"(?:\s*(?=[^\W\d]|[\"'<(\[][^\W\d])|\s+(?=\d+(?:\.\d+)?[ -]?[cm]m\b))"
)
_NUMBERED = re.compile(
    r"(?i:\b(?:ribs?|grade|stage|number|series|image|type|level|zone|segment|figure|views?|days?|times|and|or|to|through"
    r"|than|of)|\bnos?\.?|\b\d+(?:st|nd|rd|th)?,|&)$"
)
_PUNCTUATION = rules(
    (r"\s+([.,;:!?])(?!\d)", r"\1"),
    (r"\.(?:\s*\.)+", "."),
    (r"(?<![,;:])[,;:]+\s*\.(?!\d)", "."),
    (r",(?:\s*,)+", ","),
    (r"(?<=[a-z]{2})([.,])(?=[A-Z][a-z])", r"\1 "),
    (r"^(?:[\s,;:!?]|\.(?!\d))+", ""),
)
_ENDED = re.compile(r"[.!?…。！？｡।؟۔][\"'”’»)\]]{0,3}$")
_AMPERSANDS = re.compile(r"(?i)&(?:(?:amp|#0*38(?!\d)|#x0*26(?![\da-f]));?)+")
"""An ampersand that was escaped again and again."""


def clean_text(text: str, placeholders: str = "drop") -> str:
    """`text` as one line of plain sentences: no enumeration, one full stop at each end, placeholders by policy.

    `placeholders` is one of `PLACEHOLDER_POLICIES`; `docs/cleaning.md` says why "drop" is the default, with counts.
    Case stays as published except where a dropped placeholder opened the sentence. Applying it twice changes nothing
    more. A text without placeholders never comes back empty unless it holds no letter or digit.

    Raises:
        ValueError: If `placeholders` is not a known policy.
    """
    if placeholders not in PLACEHOLDER_POLICIES:
        raise ValueError(f"placeholders must be one of {', '.join(PLACEHOLDER_POLICIES)}; got {placeholders!r}")
    while (cleaned := _clean_once(text, placeholders)) != text:  # one rule may expose work for an earlier one
        text = cleaned
    return text


def _clean_once(text: str, placeholders: str) -> str:
    text = html.unescape(_AMPERSANDS.sub("&", re.sub(r"(?i)<br\s{0,9}/?>", " ", text)))
    text = text if placeholders == "keep" else as_one_kind(text)
    text = " ".join(re.sub(r"\[\s*<|>\s*\]", " ", text).split())
    text = _drop_enumeration(text)
    text = text if placeholders == "keep" else without_placeholders(text, placeholders)
    for pattern, by in _PUNCTUATION:
        text = pattern.sub(by, text)
    text = " ".join(text.rstrip(" ,;:").split())
    return text if not text or _ENDED.search(text) else text + "."


def _drop_enumeration(text: str) -> str:
    """Without "1.", "2)", "#3" where they number the sentences; a marker after no full stop leaves one behind."""
    kept, start, last = "", 0, 0
    for marker in _ENUMERATOR.finditer(text):
        number, before = int(marker[1] or marker[2]), text[max(0, marker.start() - 30) : marker.start()].rstrip()
        at_stop = not before or before[-1] in ".!?;:"
        wanted = not before or number == last + 1 or (number in (1, 2) and at_stop)
        new_sentence = at_stop or (last and (text[marker.end()].isupper() or marker[0].rstrip()[-1] != "."))
        if wanted and new_sentence and not _NUMBERED.search(before):
            kept += text[start : marker.start()] if at_stop else text[start : marker.start()].rstrip() + ". "
            start, last = marker.end(), number
    return kept + text[start:]
