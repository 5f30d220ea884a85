"""A text as `hf_cxr.inference.labeler` reads it: what stands in an indication or comparison left out, abbreviations of
findings, sides and devices written out, misspelt names of findings mended.

What the words then mean is in `labeler_lexicon`. Standard library only: a checkpoint brings this file."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import lru_cache

# written out: abbreviations
ABBREVIATIONS: dict[str, str] = {
    short: written
    for written, _, shorts in (
        row.partition(": ")
        for row in """\
right: r rt
left: l lt
bilateral: bilat b/l bl
right upper zone: ruz
right mid zone: rmz
right lower zone: rlz
left upper zone: luz
left mid zone: lmz
left lower zone: llz
upper zone: uz
mid zone: mz
lower zone: lz
lower zones: lzs
upper zones: uzs
with: w/
without: w/o
consistent with: c/w ikw
status post: s/p
otherwise: o/w
history of: h/o hx
rule out: r/o
follow up: f/u
unchanged: unch
pulmonary: pulm
interstitial: interst
pneumothorax: ptx pnx ptxs
effusion: eff effn
effusions: effs effns
pneumonia: pna pnas
infection: lrti lrtis
atelectasis: atx atel
consolidation: consol consoln consolidn
infiltrate: infil infilt
opacity: opac
opacities: opacs
cardiomegaly: cardiomeg
congestive heart failure: ccf hf
ventricular failure: lvf rvf
interstitial disease: ild ipf uip
ground glass opacity: ggo ggos
granuloma: gran
calcified: calc calcd
fracture: fx fxs frx fract #
costophrenic angle: cpa cpas
vascular: vasc
pleural: pl pleu
pulmonary embolism: pe pes
metastases: mets
?: query
respiratory distress syndrome: rds
hilar lymphadenopathy: bhl
degenerative: degen djd
subcutaneous: subq sq
right jugular: rij
left jugular: lij
vertebra: vb
tuberculosis: ptb
tortuous: torturous""".splitlines()
    )
    for short in shorts.split()
}
"""Abbreviation, in lower case → what is read in its place."""
_SPELT = (
    "atelectasis pneumonia pneumothorax effusion pleural cardiomegaly consolidation consolidative opacity opacities"
    " infiltrate infiltration emphysema emphysematous granuloma granulomatous fracture interstitial congestion"
    " hyperinflation hyperinflated bronchiectasis bronchiectatic scoliosis osteopenia degenerative calcified tortuous"
    " costophrenic hemidiaphragm lymphadenopathy pacemaker catheter sternotomy tracheostomy tuberculosis metastasis"
    " metastases malignancy thickening bilateral bibasilar"
).split()
_STARTS = tuple(_SPELT)
_SPELT_FROM: dict[str, list[tuple[str, frozenset[str], int]]] = {}
for _name in _SPELT:  # its first letter → name, letters, slips allowed
    _SPELT_FROM.setdefault(_name[0], []).append((_name, frozenset(_name), 1 if len(_name) < 11 else 2))
# Words of their own that are as near to one of those as a slip would be.
_OTHER_WORDS = frozenset("interstitium hypoinflation hypoinflated peacemaker peacemakers consolation".split())
LEAST_LETTERS = 7
"""Shorter words are not mended: too many others are near them (mass, mask; edema, enema)."""

_WORD = re.compile(
    r"(?<![\w'])(?:[a-z]/[a-z](?![\w/])|w/|(?<!-)(?<!dr\. )[lr](?![\w'-])|[lr](?=-sided)|[a-z]{2,}(?![\w']))|#(?! ?\d)"
)
# What comes under a heading before the report proper is asked for or was there before. "report" ends it.
_HEADING = re.compile(
    r"\b(?:(?P<aside>(?:clin(?:ical)? )?(?:indications?|history|info(?:rmation)?|details|data|background|hx)"
    r"|reason for (?:this |the )?(?:exam\w*|study|referral|request|x-?ray|radiograph)|comparisons?|technique"
    r"|procedure|exam(?:ination)?)"
    r"|(?<!abnormal )(?<!following )(?P<report>findings?|impressions?|report|conclusions?|results?|opinion|comments?"
    r"|interpretation|summary)"
    r"|(?:clinical )?(?:question|answer)"
    r"|(?:(?:support |monitoring )?(?:lines|tubes|catheters|drains|devices|hardware)(?: ?(?:/|,|&|and) ?)?){1,5}) ?:"
)


def plain(text: str) -> str:
    """`text` in lower case on one line, as it is read: nothing that is only asked for, words written out."""
    text = " ".join(text.lower().replace(" - ", ", ").split())
    return _WORD.sub(lambda word: _written(word[0]), _without_asides(text))


def _without_asides(text: str) -> str:
    """Without an indication, a history, a comparison …: up to the report proper, or one sentence where none is."""
    headings = list(_HEADING.finditer(text))
    reports = [heading.start() for heading in headings if heading["report"]]
    kept, start = [], 0
    for heading in headings:
        if heading.start() >= start:
            kept.append(text[start : heading.start()])
            start = heading.end()
            if heading["aside"]:
                later = bisect_left(reports, start)
                stop = reports[later] if later < len(reports) else text.find(". ", start)
                start = stop if stop >= 0 else len(text)
    return ". ".join([*kept, text[start:]]) if headings else text


@lru_cache(maxsize=1 << 16)
def _written(word: str) -> str:
    """A word written out, or spelt right."""
    if word in ABBREVIATIONS:
        return ABBREVIATIONS[word] + " " * word.endswith("/")
    if len(word) < LEAST_LETTERS or word in _OTHER_WORDS or word.startswith(_STARTS):
        return word
    one, letters, near = word.removesuffix("s"), set(word), []
    for name, wanted, most in _SPELT_FROM.get(word[0], ()):
        # Each letter of the one that the other lacks is a slip: few names are left to compare (a plural "s" apart).
        if len(wanted - letters) <= most and len(letters - wanted) <= most + 1:
            count = slips(word if name[-1] == "s" else one, name, most)
            near += [(count, name)] if count <= most else []
    return min(near)[1] if near else word


def slips(word: str, name: str, most: int = 2) -> int:
    """Letters left out, put in, changed or swapped between two words, or `most` + 1 where there are more."""
    if abs(len(word) - len(name)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(name) + 1))
    for i, letter in enumerate(word, 1):
        above, row = row, [i]
        for j, wanted in enumerate(name, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != wanted)))
            if i > 1 and j > 1 and letter == name[j - 2] and word[i - 2] == wanted:
                row[-1] = min(row[-1], before[j - 2] + 1)
        before = above
    return min(row[-1], most + 1)
