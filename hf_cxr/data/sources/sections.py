"""A radiology report as free text → its sections, by the rules that MIMIC-CXR publishes.

`docs/data.md` says which rules, and where these differ. What a section is used for is for the reader to say."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache

from hf_cxr.data.sources.rows import EMPTY

FINAL, PROVISIONAL, ADDENDUM, WET = "final", "provisional", "addendum", "wet read"
"""Kinds of readings, the one that counts first; the last never gives a section."""

# What a heading in capitals means: the first line that is found in it. Words of the published table, and of other
# hospitals. "" ends a section and is none that we keep.
_MEANINGS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"WET ?READ", WET),
        (r"ADDENDUM", ADDENDUM),
        (r"PROVISIONAL|PRELIMINARY|\bPFI\b", PROVISIONAL),
        (r"\b(?:FINAL|REVISED) REPORT|^REPORT$", FINAL),
        (r"\bFINDINGS?\b.*\bIMPRESSIONS?\b|\bIMPRESSIONS?\b.*\bFINDINGS?\b", "both"),
        (r"\bIMPRESSIONS?\b|\bCONCLUSIONS?\b|\bOPINION\b", "impression"),
        (r"\bFINDINGS?\b", "findings"),
        (r"\bCOMPARISONS?\b|^REFERENCE EXAM", "comparison"),
        (r"\bTECHNIQUES?\b", "technique"),
        (r"\bHISTORY\b|^CLINICAL (?:INFORMATION|DATA|DETAILS)\b", "history"),
        (r"\bINDICATIONS?\b|^REASON FOR\b", "indication"),
        (r"\b(?:EXAM|EXAMINATION|STUDY|PROCEDURE|DATE|RECOMMENDATIONS?|NOTIFICATION|COMMENTS?)\b", ""),
        (r"^NOTE\b|\b(?:DICTATED|SIGNED|TRANSCRIBED|ATTENDING|RESIDENT|RADIOLOGIST|PHYSICIAN)\b", ""),
        (r"\b(?:CHEST|PORTABLE|RIBS|VIEWS?|FRONTAL|(?:AP|PA) AND LAT(?:ERAL)?|LATERAL AND (?:AP|PA))\b", "views"),
    )
)
_MAIN = ("IMPRESSION", "CONCLUSION", "FINDINGS", "COMPARISON", "TECHNIQUE", "INDICATION", "HISTORY", "ADDENDUM")
# Headings that are known in any case of letters, and in capitals within a line.
_WORDS = (
    r"(?:FINDINGS? *(?:AND|&|/) *IMPRESSIONS?|IMPRESSIONS? *(?:AND|&|/) *FINDINGS?|IMPRESSIONS?"
    r"|CONCLUSIONS?|OPINION|FINDINGS?|COMPARISONS?|TECHNIQUES?|(?:(?:CLINICAL|PATIENT) +)?HISTORY"
    r"|CLINICAL +INFORMATION|(?:CLINICAL +)?INDICATIONS?|REASON +FOR +(?:EXAM(?:INATION)?|STUDY)"
    r"|EXAM(?:INATION)?|RECOMMENDATIONS?|RECOMMENDATION\(S\)|NOTIFICATION|ADDENDUM|WET ?READ)"
)
_HEADING = re.compile(
    r"^ *(?:"
    r"(?P<rule>_{5,}|-{5,}|={5,}) *$"
    r"|(?P<title>(?:FINAL|REVISED|PRELIMINARY|PROVISIONAL) +(?:REPORT|ADDENDUM|READ)[A-Z ()]*|ADDENDUM"
    r"|WET READ(?: VERSION.*)?) *$"
    r"|(?P<capitals>[A-Z](?:[A-Z0-9 ()/,&'._-]|(?<=\d):(?=\d)){1,50}?) *:(?!\d)"
    rf"|(?P<bare>{_WORDS})(?: *$| *[-–] +(?=\S)| {{2,}}(?=\S)| +(?=\d{{1,2}}[.)]))"
    rf"|(?P<word>(?i:{_WORDS})) *(?::(?!\d)|$)"
    r")",
    re.MULTILINE,
)
_WITHIN_LINE = re.compile(rf"(?<=[.;!? ]) (?=[A-Z]{{3}})(?={_WORDS} *:)")
_BLANK_LINE = re.compile(r"\n *\n")
_ONE_PARAGRAPH = ("indication", "history", "comparison", "technique")


def sections(text: str) -> dict[str, str]:
    """The sections of a report, each as one line, "" where it has none.

    Args:
        text: A report, as published: headings at the start of a line, mostly in capitals and with a colon.

    Returns:
        `impression`, `findings`, `indication` (with the history), `comparison` and `technique`: of several of one name
        the last that is not `EMPTY`. The last three end at the first blank line after their text; what follows it are
        the findings of a report without such a heading. A heading such as "FINDINGS AND IMPRESSION" gives the
        impression. A provisional reading gives sections that the final one lacks; an addendum gives an impression only
        where there is nothing else; a wet read never gives any. `last_paragraph` is what follows the first paragraph
        of the last section of a report without impression and findings.
    """
    text = re.sub(" {3,}", "   ", text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "   "))
    text = _WITHIN_LINE.sub("\n", text)
    found: dict[tuple[str, str], str] = {}  # (reading, section) → the last text that is not empty
    parts = _parts(text)
    last = "" if parts else text
    for reading, name, body in parts:
        own, *below = _BLANK_LINE.split(body.strip(), 1) if name in _ONE_PARAGRAPH else (body,)
        if below:
            found[reading, "below"] = " ".join(" ".join([found.get((reading, "below"), ""), *below]).split())
        if (said := " ".join(own.split())) and said not in EMPTY:
            found[reading, name] = said
            if reading == FINAL:
                last = body

    def pick(name: str) -> str:
        return next((said for reading in (FINAL, PROVISIONAL, ADDENDUM) if (said := found.get((reading, name)))), "")

    impression, findings, both = map(pick, ("impression", "findings", "both"))
    if impression:
        findings = findings or both
    findings = findings or ("" if both else pick("below"))
    impression = impression or both or found.get((PROVISIONAL, PROVISIONAL), "")
    last_paragraph = ""
    if not impression and not findings:
        impression = found.get((ADDENDUM, ADDENDUM), "")
        paragraphs = _BLANK_LINE.split(last.strip())
        last_paragraph = " ".join(" ".join(paragraphs[1:] or ([] if parts else paragraphs)).split())
    return {
        "impression": impression,
        "findings": findings,
        "indication": " ".join(filter(None, (pick("history"), pick("indication")))),
        "comparison": pick("comparison"),
        "technique": pick("technique"),
        "last_paragraph": last_paragraph,
    }


def _parts(text: str) -> list[tuple[str, str, str]]:
    """(reading, name, text) of each part of a report, in order."""
    parts: list[tuple[str, int, int]] = []  # name, where the text starts, number of the block it is in
    ends: list[int] = []
    block = 0
    for heading in _HEADING.finditer(text):
        kind = heading.lastgroup
        name = "rule" if kind == "rule" else _meaning(" ".join(heading[kind or 0].upper().split()))
        open_now = parts[-1][0] if parts else None
        if name is None or (kind == "word" and _wrapped(text, heading)):
            continue
        if name == "views":  # "CHEST WALL:" within the findings is no new section
            if open_now in ("findings", "both"):
                continue
            name = "findings"
        block += kind == "rule" or name == FINAL or (kind == "title" and name != WET)
        ends.append(heading.start())
        parts.append((name, heading.end(), block))
    ends = [*ends[1:], len(text)] if parts else []
    first: dict[int, str] = {}  # block → what it begins with
    for name, _, block in parts:
        if name != "rule":
            first.setdefault(block, name)
    made = []
    for (name, start, block), end in zip(parts, ends, strict=True):
        own = name if name in (PROVISIONAL, ADDENDUM, WET) else FINAL
        if own == FINAL and len(first) > 1 and first.get(block) in (PROVISIONAL, ADDENDUM, WET):
            own = first[block]
        made.append((own, name, text[start:end]))
    return made


def _wrapped(text: str, heading: re.Match[str]) -> bool:
    """Whether a heading that is not in capitals only goes on with the sentence of the line before."""
    before = text[: heading.start()].rstrip(" \t").removesuffix("\n").rstrip(" \t")
    lower = heading["word"][0].islower() or not heading[0].rstrip().endswith(":")
    return lower and bool(before) and before[-1] not in "\n.:;!?"


@lru_cache(maxsize=4096)
def _meaning(heading: str) -> str | None:
    """What a heading in capitals stands for; "" for a section that is not kept, `None` for no heading at all."""
    for pattern, name in _MEANINGS:
        if pattern.search(heading):
            return name
    near = difflib.get_close_matches(heading, _MAIN, n=1, cutoff=0.85)  # "IMPRESSOIN"
    return _meaning(near[0]) if near else None
