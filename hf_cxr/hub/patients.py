"""What in texts tells who a patient is: names, record numbers, dates, telephone numbers, by patterns.

A pattern finds a name only where a title, a label or a degree stands beside it. Which files are pushed is decided in
`privacy`, ids of studies and patients are replaced in `pseudonyms`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import reduce
from pathlib import Path

NAME = r"(?!X{2,}\b|(?:MD|DO|RN)\b)[A-ZÀ-Ý][\w'’-]{1,30}"  # no placeholder
_MONTH = (
    r"(?i:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_NUMBER = r"\W{0,3}(?i:is\s|at\s|no\.?\s|number\s|#)?\s?"
PATTERNS = {
    "names": (
        rf"\b(?:DR\.|MRS?\.|(?:Dr|Mr|Mrs|Ms|Miss|Prof|Sr|Sra|Dra|Herr|Frau|Doctor)\b\.?)\s?{NAME}",
        rf"\b{NAME}(?:\s[A-Z]\.?)?\s{NAME},?\s(?:M\.?D|D\.?O|R\.?N|Ph\.?D)\b",
        rf"\b(?i:(?:patient(?:'s)?\s|patient|referring\s\w+|radiologist|physician|attending)(?:name)?\s?[:=]\s?){NAME}",
        rf"\b(?i:(?:last |first |sur)?name\s?[:=]\s?){NAME}",
        r"\b(?i:dictated|signed|interpreted|reported|verified|approved|ordered|transcribed)\s(?i:by):?\s"
        rf"(?:{NAME}|[A-Z]\.?)\s{NAME}",
        rf"\b{NAME}\s{NAME}\s(?:is\s)?(?:an?\s)?\d+[\s-](?:year|yo\b|y/o)",
        r"\b[A-Z][A-Za-z'-]{1,30}\^[A-Z][A-Za-z'-]",
        r"\b(?!X{2,}\b)[A-ZÀ-Ý'-]{2,30},\s[A-ZÀ-Ý]{2,30}\s[A-Z]\b(?!/)",
    ),
    "e-mail addresses": (r"\b[\w.+-]{1,64}@[\w-]{1,63}\.\w",),
    "telephone numbers": (
        r"(?<![\d.-])(?:\+?1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}\b",
        r"\+\d{1,3}[ .()-]?\d(?:[ .()-]?\d){6,}",
        rf"\b(?i:tel|telephone|phone|pager|beeper|fax|mobile)\b\.?{_NUMBER}[+(]?\d[\d ().-]{{2,}}\d",
        r"(?<![\d.-])\d{3}-\d{4}\b",
    ),
    "record numbers": (
        r"\b(?i:mrn|medical record|accession|acc\s?#|patient\s?id|record no|record number|case no|case number|ssn"
        r"|social security|nhs|hospital no|hospital number)"
        rf"{_NUMBER}{_NUMBER}[A-Z]{{0,4}}-?\d[\d-]{{3,}}",
        r"\b\d{3}-\d{2}-\d{4}\b",
        r"\b[A-Z]{0,4}\d{7,}\b",
    ),
    "dates": (
        r"(?<![\d/.-])\d{1,2}([/.-])\d{1,2}\1(?:19|20)\d\d\b",
        r"(?<![\d/.-])\d{1,2}/\d{1,2}/\d\d\b(?![/\d])",
        r"(?<![\d/.-])(?:19|20)\d\d([/.-])\d{1,2}\1\d{1,2}\b",
        rf"\b{_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?,?\s(?:19|20)\d\d\b",
        rf"\b\d{{1,2}}(?:st|nd|rd|th)?\s(?:of\s)?{_MONTH},?\s(?:19|20)\d\d\b",
        r"\b(?i:d\.?o\.?b\.?|date of birth|birth ?date|born(?: on| in)?|geb\.|geboren am|nacimiento)\W{0,3}\d",
    ),
}
"""Kind → regular expressions, in the order in which they are looked for."""
_COMPILED = {kind: [re.compile(one) for one in patterns] for kind, patterns in PATTERNS.items()}
AROUND, SHOWN = 25, 3


class PatientsToldOf(ValueError):
    """Texts hold what may tell who a patient is. `examples` are for the eyes of whoever pushes: no log, no card."""

    def __init__(self, message: str, examples: list[str]) -> None:
        super().__init__(message)
        self.examples = examples


def check_texts(folder: Path, texts: Iterable[str], uids: Collection[str] = ()) -> None:
    """Raise `PatientsToldOf` if one of the texts of a folder holds what one of `PATTERNS` looks for, or one of the
    `uids`."""
    counts, examples = dict.fromkeys(PATTERNS, 0), []
    own = {uid for uid in uids if re.search(r"\d.*\d.*\d.*\d", uid)}  # "1" is in many texts
    for text in texts:
        for kind, patterns in _COMPILED.items():
            match = next(filter(None, (one.search(text) for one in patterns)), None)
            if match is None and own and kind == "record numbers":
                match = next((one for one in re.finditer(r"[\w-]+", text) if one.group() in own), None)
            if match:
                counts[kind] += 1
                if counts[kind] <= SHOWN:
                    start, end = max(match.start() - AROUND, 0), match.end() + AROUND
                    examples.append(f"{kind}: … {' '.join(text[start:end].split())} …")
                if kind == "telephone numbers":  # long ones are no record numbers, too
                    text = reduce(lambda rest, one: one.sub(" ", rest), patterns, text)
    if examples:
        found = ", ".join(f"{kind} in {count:,}" for kind, count in counts.items() if count)
        raise PatientsToldOf(
            f"{folder}: may tell who patients are ({found} texts); take it out, or push with --i-checked-the-texts "
            "where none of it does",
            sorted(examples),
        )
