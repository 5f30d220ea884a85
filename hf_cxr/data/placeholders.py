"""What de-identification left in texts, counted by kind, and what becomes of it: one policy for all collections.

The kinds are in `hf_cxr.inference.labeler_lexicon`, whose labeler passes over them; `docs/cleaning.md` says why the
grammar is mended as it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from hf_cxr.inference.labeler_lexicon import PLACEHOLDER, PLACEHOLDERS
from hf_cxr.inference.targets import sentences

PLACEHOLDER_POLICIES = ("drop", "drop_sentence", "keep")
"""What `clean_text` does with a placeholder: drop it and mend the grammar around it, drop every sentence that holds
one, or keep it."""

_ONE_PLACEHOLDER = rf"[<(\[]{{0,3}}{PLACEHOLDER}(?:'s|'|s|st|nd|rd|th|[AaPp][Mm])?(?![A-Za-z])[>)\]]*"
_PLACEHOLDER = re.compile(_ONE_PLACEHOLDER)
_ANY = re.compile("|".join(f"({pattern})" for pattern in PLACEHOLDERS.values()))
_OTHERS = re.compile("|".join(pattern for kind, pattern in PLACEHOLDERS.items() if kind != "XXXX"))
_RARE = re.compile(r"[_<*\[]")  # one of which every other kind holds
_GLUED = re.compile(r"(?<=[A-Za-z])(?=XXXX)|(?<=XXXX)(?=[A-Za-z])(?!(?:s|st|nd|rd|th|[AaPp][Mm])(?![A-Za-z]))")
_RUN = (
    rf"{_ONE_PLACEHOLDER}(?:[\s,/&.-]{{0,9}}(?:(?:and|at|by|to)\s+)?{_ONE_PLACEHOLDER}){{0,6}}"
    r"(?:-(?=\w)|\s+(?i:hours|[ap]\.?m\.?)(?!\w))?"
)
# Words that only point at what the placeholder hid, dropped with it where nothing is left for them to point at.
_POINTER = (
    r"(?:(?:(?:as|when|were|was|and)\s+){0,3}compared\s+(?:to|with)|in\s+comparison\s+(?:to|with)|comparison|dated"
    r"|dr\.?|of|in|on|at|to|from|with|by|since|for|as|and|or|than|via|per|the|an?|this|these|that|is|are|was|were|been|most|please"
    r"|approximately|about|prior|previous)"
)
_NOTHING_LEFT = r"(?=\s*(?:[.,;:!?)]|$)|\s+(?:in|on|at|from|with|by|since|for|and|or|which|but|there|no)\b)"


def rules(*pairs: tuple[str, str]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), by) for pattern, by in pairs)


_MENDS = rules(
    (rf"(?<=\b[Xx]-){_ONE_PLACEHOLDER}", "ray"),  # "chest x-XXXX"
    (rf"(?<=\w)(?:\s+(?:an?|the))?\s+{_RUN}\s+of\b", ""),  # "no XXXX of effusion", "through the XXXX of the radius"
    (rf"(?i:\b(most|less))\s+{_RUN}(?=\s+\w|[.,;]|$)", r"\1 likely"),  # not "less fibrosis" for "less XXXX fibrosis"
    (rf"^(\W*){_RUN}\s+(?:interval\s+|significant\s+)*changes?\b(?:\s+(?:in|of|from|since)\b)?", r"\1"),
    (rf"\b([Tt]he)\s+{_RUN}\s+(?:and|or)\s+(?:the\s+)?(?!(?:is|are|was|were|has|have)\b)", r"\1 "),
    (rf"(?i:(?:(?<=\s)|^)(?:{_POINTER}\s+){{1,8}}){_RUN}{_NOTHING_LEFT}", ""),  # "compared to XXXX."
    (rf"^(\W*){_RUN}\s+of\b", r"\1"),
    (rf"\b([Aa])\s+{_RUN}\s+(?=[aeiou])", r"\1n "),
    (rf"\b([Aa])n\s+{_RUN}\s+(?=[bcdfgjklmnpqrstvwxyz])", r"\1 "),
    (rf"\s*{_RUN}", " "),
    (r"\(\s*\)|\[\s*\]", ""),
)
_EMPTY_WORDS = frozenset(
    "a am an and are as at by compared comparison date dated dr for from hours in is no of on or p pm please prior"
    " since thank thanks than that the these this to was were with".split()
)
# "Findings were discussed with Dr. ___ by telephone": a note that somebody was told, and nothing else
_TOLD = re.compile(
    r"(?i:\W*(?:(?:notification|the|these|this|those|above|all|and|of|results?|findings?|impressions?|observations?|reports?"
    r"|study|exam(?:ination)?|case|preliminary|updated|critical|urgent|wet|was|were|is|are|has|have|had|been|also|subsequently"
    r"|drs?|XXXX)\W+){0,12}(?:discussed|communicated|conveyed|relayed|reported|paged|telephoned|called|notified|informed"
    r"|e-?mailed|read|dictated|entered)\b)"
)
_SOMEBODY = re.compile(
    r"(?i:[,;]?\s+(?:(?:as|and|which|was|were|this|these|findings?|results?)\s+){0,5}(?:discussed\s+with|(?:communicated|conveyed|relayed"
    r"|reported)\s+to)\s+(?:drs?\.?\s+)?XXXX[^,;]*?(?:,\s+who\b[^,;]*?)?)([.]?$|[,;])"
)
_TIME = re.compile(
    r"(?i:(?:\bat\s+)?\b\d{1,2}:\d\d(?:\s?[ap]\.?m\b\.?)?,?(?:\s+on)?\s+XXXX|XXXX,?(?:\s+at)?\s+\d{1,2}:\d\d(?:\s?[ap]\.?m\b)?)"
)
# "Dr. XXXX was notified of the results"
_NOTIFIED = re.compile(rf"\W*Drs?\.?\s+{_ONE_PLACEHOLDER}.*\b(?:finding|result)s\b")
_FIRST_WORD = re.compile(r"(\W*)(\w*)")


def count_placeholders(texts: Iterable[str]) -> Counter[str]:
    """Kind of `PLACEHOLDERS` → how often it stands in the texts."""
    kinds = list(PLACEHOLDERS)
    seen = (text for text in texts if _RARE.search(text) or "XXX" in text)
    return Counter(kinds[(found.lastindex or 1) - 1] for text in seen for found in _ANY.finditer(text))


def as_one_kind(text: str) -> str:
    """The text with "XXXX" for every placeholder. Sentences that only note who was told go: where it is another kind,
    they are common."""
    if not _RARE.search(text) or not _OTHERS.search(text):
        return text
    said = []
    for sentence in sentences(" ".join(text.split())):
        plain = _GLUED.sub(" ", _OTHERS.sub("XXXX", sentence))
        if plain == sentence:
            said.append(sentence)
        elif not _TOLD.match(plain):
            said.append(_SOMEBODY.sub(r"\1", _TIME.sub("XXXX", plain)))
    return " ".join(said)


def without_placeholders(text: str, policy: str) -> str:
    """A text of one kind without its placeholders: their sentences mended ("drop") or dropped ("drop_sentence")."""
    if not _PLACEHOLDER.search(text):
        return text
    mend = _mend if policy == "drop" else lambda sentence: "" if _PLACEHOLDER.search(sentence) else sentence
    return " ".join(" ".join(mend(sentence) for sentence in sentences(text)).split())


def _mend(sentence: str) -> str:
    """The sentence without its placeholders; empty where nothing is said without them."""
    if not _PLACEHOLDER.search(sentence):
        return sentence
    if _NOTIFIED.match(sentence):
        return ""
    published = sentence
    for pattern, by in _MENDS:
        sentence = pattern.sub(by, sentence)
    words = re.findall(r"[a-z]+|\d+(?![.)])", sentence.lower())
    if all(word in _EMPTY_WORDS for word in words):
        return ""
    first, was_first = _FIRST_WORD.match(sentence), _FIRST_WORD.match(published)
    if first and was_first and first[2] != was_first[2]:
        sentence = sentence[: first.start(2)] + first[2][:1].upper() + sentence[first.start(2) + 1 :]
    return sentence.strip()
