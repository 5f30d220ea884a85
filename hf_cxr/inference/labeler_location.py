"""Where a finding is: which of the sides and heights that a sentence names belong to which of its mentions.

Right, left or both, and upper, middle or lower; what a mention is, and whether it is denied,
`hf_cxr.inference.labeler` says. Standard library only: a checkpoint brings this file."""

from __future__ import annotations

import re
from typing import NamedTuple

SIDES = {"RIGHT": ("right",), "LEFT": ("left",), "BOTH": ("right", "left")}
_INSIDE = re.compile(r"\b(?:(?P<RIGHT>right)|(?P<LEFT>left)|(?P<BOTH>bilateral|both))\b")
# As the taggers of the Indiana reports have it: hilar, supra- and infrahilar are one place, the lingula is the left
# counterpart of the middle lobe.
_NOUN = r"(?:lobes?|lungs?(?! vol)|zones?|fields?|hemithora\w+)"
_FOUND = "opacit|infiltrat|consolid|pneumo|atelecta|air ?space|nodul|scar|granulom|mass"
_AHEAD = (
    rf"(?:[ -]{_NOUN}|(?=[ -](?:{_FOUND}))|(?=(?:,| and| or| to|/) ?(?:the )?(?:right |left )?(?:upper|mid|lower)))"
)
_HEIGHTS = re.compile(
    r"\b(?=[abhijlmprsu])(?:"
    rf"(?P<upper>upper{_AHEAD}|(?:bi-?)?apical|(?<!cardiac )(?<!heart )(?:apex|apices)|[rl]ul)"
    rf"|(?P<middle>mid(?:dle)?(?:{_AHEAD}|[ -]?{_NOUN})|rml|lingular?|(?:peri|para|juxta|supra|infra)?hil(?:ar|um|a))"
    rf"|(?P<lower>lower{_AHEAD}|bas(?:es?|al|ilar)|bi-?bas(?:al|ilar)|[rl]ll|retrocardiac))\b"
)
_PLURAL = re.compile(r"(?:lobes|lungs|zones|fields|bases|apices)$")
_SEEN = "is |are |again |seen |noted |present |identified |projecting |overlying |located |adjacent "
_IN = r"(?:in|at|on|of|within|involving|near|over|overlying|along|to|throughout)(?: [\w-]+){0,3}? $|,? ?$"
_BEHIND = re.compile(rf",? ?(?:{_SEEN})*{_IN}")  # effusion [seen] on [the] right
_MOSTLY = re.compile(  # opacities, greatest in the bases
    rf",? ?(?:{_SEEN}|most(?:ly)? |more |greatest |greater |notabl[ey] |prominent |pronounced |confluent |marked "
    rf"|worst |worse |predominant(?:ly)? |primarily |mainly |especially |particularly |right |left )*{_IN}"
)
# "opacities left base may be …", "opacity lateral right lung, …": no word between, but the phrase ends there.
_CLOSED = re.compile(
    r",? (?:\w+ )?(?:right|left|bilateral)[ -](?:(?:upper|lower|middle|mid|lateral|medial|lung|basilar) )*"
    rf"(?:mid)?(?:{_NOUN}|bases?|apex|apices|chest)"
    r"(?=,|:| (?:may|might|could|is|are|which|likely|most|with|represent\w*)\b)"
)
_JOINED = re.compile(r"(?:[ -][\w-]+){0,4}?,? ?(?:and|or|and/or|/)(?: \w+){0,2}? ?$")  # right [upper] and [the] left
_NEXT = re.compile(r"(?: (?!and\b|or\b|with\b)[\w-]+){0,3}[ -]|")  # what may stand between a side and its height
_AND = re.compile(r" (?:and|or) (?:the )?")


class Where(NamedTuple):
    """A word of place in a text: "RIGHT", "LEFT", "BOTH", "upper", "middle" or "lower", and its span."""

    name: str
    start: int
    end: int


class Bounds(NamedTuple):
    """A mention's span and its neighbours: where words before it stop counting, the end of the mention before it, the
    start of the one behind it (None: there is none), and the end of the clause."""

    start: int
    end: int
    earliest: int
    previous: int
    following: int | None
    closed: int


def heights(text: str, start: int = 0, end: int | None = None) -> list[Where]:
    """Every word between two places of `text` that says how high in the chest something lies."""
    return [
        Where(m.lastgroup or "", *m.span()) for m in _HEIGHTS.finditer(text, start, len(text) if end is None else end)
    ]


def _nearest(at: Bounds, around: list[Where], text: str, earliest: int, heights: bool = False) -> list[Where]:
    """The words that belong to a mention: right behind it ("on the left"), else the nearest before it."""
    after = [w for w in around if at.end <= w.start and (at.following is None or w.start < at.following)]
    before = [w for w in around if earliest <= w.start < at.start]
    gap = text[at.end : after[0].start] if after else ""
    behind = _MOSTLY if heights or not before else _BEHIND  # "bilateral opacities, greatest on the left" are bilateral
    than = after and re.search("than|>", text[after[0].start : after[0].end])  # "effusions, right more than left"
    close = after and behind.match(gap) and (at.following is None or than or gap.strip(" ,"))
    if close or (after and _CLOSED.match(text, at.end)):
        chain = after
    elif before:
        chain = before[::-1]
    else:
        chain = after if at.following is None else []
    found: list[Where] = []
    for i, where in enumerate(chain):
        gap = text[chain[i - 1].end : where.start] if chain is after else text[where.end : chain[i - 1].start]
        broken = at.following is not None if chain is after else where.start < at.previous
        if i and (broken or not _JOINED.match(gap)):
            break
        found.append(where)
    return found


def sides_of(at: Bounds, sides: list[Where], text: str) -> list[Where]:
    """The sides of a mention, out of those of its clause: inside it, right behind it, else the nearest before it."""
    inside = [Where(m.lastgroup or "", *m.span()) for m in _INSIDE.finditer(text, at.start, at.end)]
    return inside or (_nearest(at, sides, text, at.earliest) if sides else [])


def heights_of(at: Bounds, own: list[Where], found: list[Where], text: str) -> list[Where]:
    """The heights of a mention, out of those of the text (`found`); `own` are its sides."""
    around = [h for h in found if at.earliest <= h.start < at.closed]
    if inside := [h for h in around if at.start <= h.start < at.end]:
        return inside
    # A mention with a side of its own takes no height from the one before.
    earliest = max(at.earliest, at.previous if any(s.start >= at.previous for s in own) else 0)
    near = _nearest(at, around, text, earliest, heights=True)
    return near or [h for h in around if any(s.start >= at.end and _adjoin(s, h, text) for s in own)]


def _adjoin(one: Where, other: Where, text: str) -> bool:
    """Whether a side and a height are one phrase: "right upper lobe", "RUL", "bases bilaterally"."""
    first, second = sorted((one, other), key=lambda where: where.start)
    return second.start < first.end or bool(_NEXT.fullmatch(text[first.end : second.start]))


def pairs_of(
    at: Bounds, own: list[Where], high: list[Where], sides: list[Where], text: str
) -> tuple[tuple[str, str], ...]:
    """Which height belongs to which side: "right upper and left lower lobe" are two places, not four.

    Args:
        own: The sides of the mention.
        high: Its heights.
        sides: All sides of its clause.

    Returns:
        Pairs (side, height), either of them "" where not stated.
    """
    high = sorted(high, key=lambda place: place.start)
    names = dict.fromkeys(name for side in own for name in SIDES[side.name])
    owners = [[side for side in own if _adjoin(side, place, text)] for place in high]
    far = all(side.start < at.previous for side in own)
    if far and len(high) == 1 and not owners[0] and _PLURAL.search(text, *high[0][1:]):
        return tuple((side, high[0].name) for side in SIDES["BOTH"])  # "in the lung bases" are both
    for i, place in enumerate(high):  # bilateral opacities, greatest in the left base
        if not owners[i]:
            owners[i] = [s for s in sides if set(SIDES[s.name]) < set(names) and _adjoin(s, place, text)]
    for i in range(1, len(owners)):  # right upper and lower lobes
        owners[i] = owners[i] or owners[i - 1]
    for i in range(len(owners) - 1, 0, -1):  # upper and lower lobes on the right
        owners[i - 1] = owners[i - 1] or owners[i]
    for side in own:  # right and left lower lobes
        if not any(side in owned for owned in owners):
            for owned in owners:
                if any(_AND.fullmatch(text[side.end : other.start]) for other in owned):
                    owned.append(side)
    pairs = [
        (name, place.name)
        for place, owned in zip(high, owners, strict=True)
        for name in ([n for side in owned for n in SIDES[side.name]] or names or [""])
    ]
    settled = {name for name, _ in pairs}
    return tuple(dict.fromkeys([*pairs, *((name, "") for name in names if name not in settled)]))
