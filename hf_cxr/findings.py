"""What a radiology text says: finding labels with negation, uncertainty and side.

The rules read English chest radiograph reports. The idea is NegEx's (Chapman et al., J Biomed Inform 2001: cue, scope,
terminator) with the classes of the CheXpert labeler (Irvin et al., AAAI 2019); the lists are our own, tuned on Indiana
reports (`benchmarks/labeler.py`). Standard library only: this file travels with a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

POSITIVE, UNCERTAIN, NEGATIVE = "positive", "uncertain", "negative"
_RANK = {NEGATIVE: 0, UNCERTAIN: 1, POSITIVE: 2}

PARENTS: dict[str, str] = {
    # CheXpert's hierarchy, then our finer names below the CheXpert name that would hold them.
    "cardiomegaly": "enlarged cardiomediastinum",
    "lung lesion": "lung opacity",
    "edema": "lung opacity",
    "consolidation": "lung opacity",
    "atelectasis": "lung opacity",
    "pneumonia": "consolidation",
    "nodule": "lung lesion",
    "granuloma": "lung lesion",
    "vascular congestion": "edema",
    "heart failure": "edema",
    "rib fracture": "fracture",
    "compression fracture": "fracture",
    "pacemaker": "support devices",
    "catheter": "support devices",
}
"""Child → parent, for a CheXpert-style roll-up; `label` climbs it only when told to."""

# finding: ways of saying it, as a regular expression that starts at a word and holds no capturing group. The leftmost
# match wins, then the first line; "a + b" says both; "<3>" stands for up to three words that are no connectors.
# "_other" is no finding: it only speaks against a normal study.
_WORDS = r"""
pneumothorax + pleural effusion: (?:hydro|hemo)pneumothora(?:x|ces)
pneumothorax: (?:tension )?pneumothora(?:x|ces)|ptx\b|pleural air\b|air in the pleural
pleural effusion + pericardial effusion: pleural (?:or|and|and/or|/) ?pericardial effusions?
pericardial effusion: pericardial (?:effusion|fluid)
pleural effusion: (?:pleural )?(?:effusions?\b|fluid collection)|pleural fluid|h[ae]?emothorax|hydrothorax
blunted costophrenic angle: blunt(?:ing|ed)<4> (?:costophrenic|sulc|cp angle)|costophrenic<4> blunt
pleural other + scar: pleur(?:al|o)[ -]?(?:parenchymal )?scar\w*|scarring of the pleura
pleural other: pleural(?: \w+){0,2}?[ -](?:thickening|plaque|calcification|capping|disease|mass)\w*
    |thickening of the pleura|(?:bi)?apical (?:pleural )?cap(?:ping|s)?\b|fibrothorax
cardiomegaly: cardiomegaly|(?:cardiac|heart|cardio-?pericardial)(?: silhouette)?(?: size)? (?:enlargement|prominence)
    |enlarge(?:d|ment of)(?: the)?(?: cardiac| heart| cardio-?pericardial| cardio ?-?mediastinal)
    |(?:left |right )?ventricular (?:enlargement|prominence)|prominent (?:heart|cardiac)\b
enlarged cardiomediastinum: (?:wid(?:e|ened|ening of)|prominent|enlarged|prominence of)<2> mediastin\w+
    |mediastinal (?:widening|enlargement|prominence|mass|shift)
    |mediastin(?:um|al contours?|al silhouette) (?:is|are|appears?|remains?)<1> (?:widened|enlarged|prominent)
subcutaneous emphysema: (?:subcutaneous|soft tissue) (?:emphysema|air|gas)
emphysema: (?:centrilobular |bullous )?emphysema\w*|bullous|bullae?\b|blebs?\b
copd: copd|chronic obstructive|obstructive (?:lung|pulmonary|airways?) disease
hyperinflation: hyper-?(?:inflat|expan|aerat|distend|distent|lucen)\w*|over-?(?:inflat|expan|aerat)\w*|air[- ]trapping
    |flatten(?:ed|ing)<4> (?:hemi)?diaphragm\w*|(?:hemi)?diaphragms? (?:is|are|appears?)<1> flattened
low lung volumes: (?:low|small|decreased|diminished|reduced|shallow) (?:lung|inspiratory|inspired) (?:volume|effort)s?
    |lung volumes (?:are|remain|is|appear)<2> (?:low|small|decreased|diminished|reduced)
    |hypo-?(?:inflat|ventilat|aerat|expan)\w*|under-?(?:inflat|expan|aerat)\w*
    |(?:shallow|poor|low|suboptimal) inspir\w*
edema: (?:pulmonary |interstitial |alveolar )*o?edema\w*|(?:fluid|volume) overload
heart failure: (?:congestive )?(?:heart|cardiac) failure|chf\b|failure(?= pattern)|(?:cardiac|heart) decompensation
vascular congestion: (?:pulmonary |central |venous |vascular |hilar |perihilar )*(?:congestion|engorgement)
    |(?:pulmonary |venous |vascular )*(?:cephalization|redistribution)|(?:vascular|venous) prominence
    |(?:pulmonary )?vascul(?:ar|arity|ature)(?: is| are)?<1> (?:congest|engorge|increased|enlarged|prominen)\w*
    |pulmonary (?:is|are|appears?) engorged|pulmonary venous hypertension
    |(?:prominent|engorged|congested|increased)(?: central| hilar| lung)?(?: pulmonary)? (?:vascul|vessel)\w*
pneumonia: (?:broncho)?pneumonias?\b|pneumonitis|pneumonic|infect(?:ion|ious|ive)\w*
tuberculosis: tubercul(?:osis|ous)|tb\b
consolidation: (?:air ?-?space |alveolar )?consolidat\w+
atelectasis: atelecta\w+|(?:lobar|lobe|segmental|lung) collapse|collapsed? (?:[\w-]+ ){0,5}?(?:lung|lobe)
granuloma: granuloma\w*(?: infection| pneumonia)?|histoplasmosis
nodule: (?:micro)?nodul(?:e|es|arity)\b|nodular (?:densit|opacit|shadow|lesion|foc|mass|area|calcif|appear|process)\w*
_other: (?:osseous|bon[ey]|lytic|sclerotic|blastic|skeletal)(?: \w+)? (?:lesion|metasta)\w*
lung lesion: mass(?:es)?\b|lesions?\b|neoplas\w+|tumou?rs?\b|malignan\w+|metasta\w+
    |carcinoma|cavit(?:y|ary|ies|ation)\w*
interstitial disease: pulmonary fibrosis|interstitial|reticul(?:ar|ation|onodular)\w*|fibrosis|fibrotic|honeycomb\w*
lung opacity: opaci\w+|(?:air|alveolar) ?-?space (?:disease|process)\w*|infiltrat\w*|alveolar (?:disease|process)
    |parenchymal (?:disease|process|densit)\w*
bronchiectasis: bronchiectas\w+|bronchiectatic
scar: scar(?:s|ring|red)?\b|cicatri\w+
compression fracture: compression (?:fracture|deformit|injur)\w*|wedg(?:e|ing) (?:deformit|fracture|compression)\w*
    |wedging|(?:vertebral?|spine|spinal|thoracic|lumbar)<3> (?:fractures?|wedging
    |compression(?: fracture\w*| deformit\w*)?)\b|(?:fractures?|compression|deformit\w+|loss)<6> (?:vertebra\w*
    |spine|[tl]\d+|thoracic body)\b|loss of height
rib fracture: ribs?<2> fractur(?:ed?|es)\b|fractured<3> ribs?\b
    |fractures? (?:of|involving|in|through)(?:,? (?!or\b|no\b|with)[\w-]+){1,9}? ribs?\b
_other: (?:catheter|wire|lead)s? fractur\w+|fractured?<2> (?:catheter|wire|lead)s?\b
fracture: fractur\w+
pacemaker: pace-?makers?\b|pacers?\b|pacing|a?icds?\b|defibrillators?\b|cardiac devices?\b
    |(?:cardiac |pulse )?generator
sternotomy: (?:median )?sternotom\w+|sternal wires?|cabg|coronary (?:artery )?bypass
catheter: catheters?\b|port-?a-?cath\w*|medi-?port\w*|picc|central (?:venous )?lines?|lines? tip|dialysis
    |(?:subclavian|jugular|chest|infusion) (?:\w+ )?(?:port|line)s?\b|(?:vp |ventriculo-?peritoneal )?shunt
    |tips?(?: [\w-]+){0,6}? (?:svc|vena cava|cavoatrial|caval)
support devices: (?:[\w-]+ )??tub(?:es?|ing)\b|tracheostomy|stents?\b|hardware|support devices?|lines and tubes
    |stimulators?\b
    |(?:monitor(?:ing)?|ekg|ecg|telemetry|pacing) (?:leads?|wires?)|(?:prosthetic|artificial|mechanical)<1> valve\w*
    |valv\w* (?:replacement|prosthesis)|(?:spinal )?(?:fusion|rods?\b|fixation)|arthroplasty|prosthes[ie]s
surgical clips: (?:surgical |vascular |cholecystectomy |axillary |mediastinal )?(?:hemo)?clips?\b|sutures?\b|staples?\b
hiatal hernia: (?:hiatal|hiatus|paraesophageal)(?: \w+)? hernias?
elevated hemidiaphragm: (?:elevat|eventrat)(?:ed|ion of)<4> (?:hemi-?)?diaphragm\w*|eventration
    |(?:hemi-?)?diaphragm\w*<3> (?:elevat|eventrat)\w+
scoliosis + kyphosis: kyphoscolio\w+
scoliosis: (?:dextro|levo|roto)?scolio\w+(?: curvature)?|(?:dextro|levo)(?:curv|convex|rotat)\w*|curvature
kyphosis: (?:hyper)?kypho(?:sis|tic)\w*
pectus excavatum: pectus(?: excavatum)?(?: deformity)?(?! carin)|funnel chest
degenerative change: degenerat(?:ive|ed|ion)|spondyl\w+|osteophyt\w*|spur(?:s|ring)\b|(?:osteo)?arthri\w+
    |arthro(?:sis|path\w+)|dis[ck] (?:space )?(?:narrowing|disease)|idiopathic skeletal hyperostosis
tortuous aorta + aortic calcification: aort(?:a|ic)<4> (?:tortu|ecta)\w*(?: and|,)<2> (?:calcif|atheroscl)\w*
    |aort(?:a|ic)<4> (?:calcif|atheroscl)\w*(?: and|,)<2> (?:tortu|ecta)\w*
tortuous aorta: (?:tortu|ecta[ts]|unfold|uncoil|dilat|elongat|aneurysm)\w*(?=(?: \w+){0,4}? aort(?:a|ic)\b)|tortuosity
    |(?:prominent|prominence|enlarged)<4> aort(?:a|ic)\b
    |aort(?:a|ic)(?:,?<1>){0,6}? (?:tortu|ecta|unfold|uncoil|dilat|elongat|prominent|aneurysm)\w*
aortic calcification: (?:athero|arterio)scl\w+|atheromatous|(?:calcif|sclero)\w+<5> (?:aort|arch)\w*|vascular calcif\w+
    |aort(?:a|ic)<5> (?:calcif|sclero)\w*
lymphadenopathy: (?:lymph)?adenopathy|enlarged (?:\w+ )?(?:lymph )?nodes?
hilar enlargement: (?:enlarge(?:d|ment of)|prominent|prominence of|full|fullness of)<2> (?:hil(?:um|a|ar)\b|perihilar)
    |hil(?:um|a|ar)(?: is| are| appears?| contours?| regions?)*<1> (?:enlarge|prominen|fullness)\w*
osteopenia: osteopen\w+|osteopor\w+|demineraliz\w+
pneumoperitoneum: pneumoperitoneum|free (?:\w+[ -]?)??(?:peritoneal |abdominal |diaphragmatic )?(?:air|gas)\b
_other: calcif\w+|deformit\w+|foreign bod\w+|lucenc\w+|thickening|densit(?:y|ies)\b|markings|peribronchial
    |pectus carinatum|bronchi(?:tis|olitis|al wall)|cuffing|aneurysm|dislocat\w+|mastectomy|implants?\b|resection
    |lobectomy|subluxation
    |pneumonectomy|thoracotomy|cystic|cysts?\b|sarcoid\w*|pulmonary hypertension|rotat(?:ed|ion)|volume loss|leads?\b
    |sclero(?:sis|tic)|bullet|shrapnel|gunshot|surg(?:ery|ical)|post-?(?:operative|surgical|op\b)|separation|fat pad
    |crowding|artifact|obscured|piercings?|nipple ring|closure device
"""
_SEEN = (
    r"(?:seen|identified|visuali[sz]ed|present|evident|appreciated|demonstrated|visible|noted|detected|observed|found)"
)
# After these words an enumeration of what is absent has turned to what is present: "no effusion, stable cardiomegaly".
_TURN = (
    r"(?:an? |the )?(?:stable|unchanged|chronic|mild(?:ly)?|moderate(?:ly)?|persistent|again|old|remote|minimal(?:ly)?"
    r"|probabl[ey]|possibl[ey]|questionable|likely|healed|calcified|prior|previous|known|residual|status post"
    r"|borderline|suspected|increased|improv\w+|decreas\w+|worsening)\b"
)
# event: cue, by precedence. `mentions` says what each event does.
_POINTS = rf"""
HARD: [;!?]|\.(?=\s|$)
TURN: :|,(?= {_TURN})|(?<=abnormality),(?! no\b)
COMMA: ,
"""
_CUES = rf"""
OR: (?:versus|vs\b\.?|and/or|or)(?= |/|$)
PSEUDO: (?:no|not|without|or)(?: (?:significantly|substantially|appreciably|much|significant|interval|substantial|acute
    |appreciable|definite|major|gross|obvious|notable|further|overall|real|apparent|evidence of|large|other))*
    [ ](?:changes?(?! (?:of|to suggest)\b)|increase|decrease|growth|progression|worsening|difference|improvement)\b
    |not(?: \w+){{0,2}}? (?:changed|increased|decreased|progressed|worsened|improved)\b
    |no doubt|not only|(?:partial|near|incomplete|almost)\w*(?: complete\w*)?(?: interval)? (?:resol|clear)\w+(?: of)?
KEEP: (?:compatible|consistent|associated|along|keeping) with\b
STICKY: differential\b
DOUBT: (?:can ?not|can't|not|unable to|difficult to|impossible to|hard to)(?: be)?(?: \w+){{0,2}}? (?:exclud(?:e|ing)
    |rule out)\b|(?:to exclude|rule out|r/o)\b
POST_DOUBT: (?:can ?not|can't|not)(?: be)?(?: \w+){{0,2}}? (?:excluded|ruled out)|unlikely|less likely(?= *[.,;]|$)
    |(?:may|might|could) (?:also )?be present|(?:is|are) a (?:possibility|concern|consideration)
    |(?:is|are|remains?|be|also)(?: \w+){{0,2}}? (?:possible|likely|suspected|probable|questioned|favou?red
    |considered|a consideration|difficult to exclude)\b
POST_NEG: (?:not|no longer|never)(?: (?!well|clearly|fully|only)\w+){{0,2}}? {_SEEN}\b
    |(?:has|have|had|is|are|now)(?: (?!not|no|partially|nearly)\w+){{0,2}}? (?:resolved|cleared|disappeared|absent
    |excluded|ruled out|removed)\b
POST_NORMAL: (?:(?:is|are|appears?|remains?) )*(?:within (?:the )?(?:normal )?limits|unremarkable|normal)\b
GONE: (?:resolved|cleared|removed|absent|excluded|ruled out|none)\b
NEG: (?:no|not|without|w/o|negative for|(?:free|clear) (?:of|from)|(?:absence|lack|resolution|clearing|removal) of
    |den(?:ies|ied)|nor|neither|never|rather than|instead of)\b
IGNORE: (?:history of|h/o|hx of|if|indication|correlat\w+(?: \w+)? (?:as to|for|with)|evaluation (?:for|of)|to identify
    |(?:signs?|symptoms) of)\b
HARD: (?:but|however|although|though|except(?:ing)?|exception of|aside from|apart from|other than|besides|otherwise
    |whereas|while|yet)\b
SOFT: there (?:is|are|has|have|appears?|remains?|(?=may|might|could))\b|(?:and|with) (?={_TURN}|small\b|bilateral)
    |(?:(?<=abnormality )|(?<=disease )|(?<=process ))with (?!no\b)|(?:is|are) (?:again )?{_SEEN}\b
UNSURE: (?:possibl[ey]|possibility|probabl[ey]|may|might|could|likely|suspected|suspicious for|suspicion|suspect
    |question(?:able|ed)?|equivocal|concern(?:ing)?(?: for)?|worrisome for|suggest\w*|perhaps|presum\w+|consider\w*
    |favou?r\w*|borderline|evaluate for|exclude)\b
WITH: with\b
BOTH: (?:bilateral(?:ly)?|both|each|bi-?(?:basilar|basal|apical)|(?:right|left) ?> ?(?:right|left)
    |(?:right|left) (?:greater|less|more|larger|worse)(?: \w+)? than (?:the )?(?:right|left))\b
RIGHT: (?:right(?! (?:heart|atri|ventric|lateral decub))|r[uml]l|middle lobe)\b
LEFT: (?:left(?! (?:heart|atri|ventric|lateral decub))|l[ul]l|lingular?)\b
"""


def _rows(table: str) -> list[tuple[str, str]]:
    """The (name, pattern) rows of one of the tables above, continuation lines joined, "<n>" spelled out."""
    table = re.sub(r"\n +", "", table)
    table = re.sub(r"<(\d)>", r"(?: (?!(?:and|or|no|not|with|without|but)\\b)[\\w-]+){0,\1}?", table)
    return [(name, pattern) for name, _, pattern in (row.partition(": ") for row in table.strip().splitlines())]


_NAMES = {f"F{i}": tuple(names.split(" + ")) for i, (names, _) in enumerate(_rows(_WORDS))}
FINDINGS: tuple[str, ...] = tuple(dict.fromkeys(n for names in _NAMES.values() for n in names if n != "_other"))
"""The plain vocabulary: CheXpert's thirteen findings and the finer ones that reports name often."""
# fmt: off
SIDED: frozenset[str] = frozenset((
    "pneumothorax", "pleural effusion", "blunted costophrenic angle", "pleural other", "pneumonia", "consolidation",
    "atelectasis", "granuloma", "nodule", "lung lesion", "lung opacity", "bronchiectasis", "scar", "rib fracture",
    "elevated hemidiaphragm", "hilar enlargement",
))
PLACED: frozenset[str] = SIDED - {
    "pleural effusion", "blunted costophrenic angle", "rib fracture", "elevated hemidiaphragm", "hilar enlargement",
}
# fmt: on
"""`SIDED`: the plain names for which right and left are told apart; `PLACED`: those for which the height is, too."""
SIDED_FINDINGS: tuple[str, ...] = tuple(
    key for name in FINDINGS for key in ((name, f"right {name}", f"left {name}") if name in SIDED else (name,))
)
"""Every key `sided_label` may return; the plain name of a sided finding stands for "side not stated"."""

_AT_POINT = "|".join(f"(?P<{name}_p{i}>{pattern})" for i, (name, pattern) in enumerate(_rows(_POINTS)))
_AT_WORD = "|".join(
    [f"(?P<{name}_{i}>{pattern})" for i, (name, pattern) in enumerate(_rows(_CUES))]
    + [f"(?P<F{i}>{pattern})" for i, (_, pattern) in enumerate(_rows(_WORDS))]
    + [r"(?P<HEART_>(?:heart|cardiac|cardio-?pericardial|cardio ?-?mediastinal|cardiomediastinum)\b)"]
)
_SCAN = re.compile(rf"(?=[.,;:!?])(?:{_AT_POINT})|\b(?=\w)(?:{_AT_WORD})")
# What is said of the heart's size, up to eight words on. "Upper limits of normal" is not enlarged: the tags agree.
_HEART = re.compile(
    r"(?:heart|cardiac|cardio-?pericardial|(?P<wide>cardio ?-?mediastinal|cardiomediastinum))"
    r"(?:[,:]? (?!but\b|(?<!and )lungs?\b|there\b|without\b|no\b|pulmonary edema)[\w/-]+){0,8}?[,:]? "
    r"(?:(?P<no>not (?:\w+ )?enlarged|normal|unremarkable|within|(?:upper|top) (?:limits?|normal))"
    r"|(?P<maybe>borderline)|(?P<yes>enlarge[dm]|prominent|large|increased|big))"
)
_SIDES = {"RIGHT": ("right",), "LEFT": ("left",), "BOTH": ("right", "left")}
_SIDE_WORDS = re.compile(r"\b(?:(?P<RIGHT>right)|(?P<LEFT>left)|(?P<BOTH>bilateral|both))\b")
_JOINED = re.compile(r"(?:[ -][\w-]+){0,4}?,? ?(?:and|or|and/or|/)(?: \w+){0,2}? ?$")  # right [upper] and [the] left
_BEHIND = re.compile(  # effusion [seen] on [the] right
    r",? ?(?:is |are |again |seen |noted |present |identified |projecting |overlying |located |adjacent )*"
    r"(?:in|at|on|of|within|involving|near|over|overlying|along|to|throughout)(?: [\w-]+){0,3}? $|,? ?$"
)
# "X and Y in the left base": X is on the left too.
_SHARED = re.compile(r" ?(?:,|and|or|versus|vs\.?|and/or)(?: (?!right\b|left\b)\w+){0,2} $")
_NEVER_NORMAL = ("cardiomegaly", "pacemaker", "catheter", "sternotomy", "support devices", "surgical clips")
_OR_AHEAD = re.compile(r"(?:(?!\bno\b|\bwithout\b)[^.;])*?\bor\b")
_SCARS = re.compile(r"\bx{3,}\w*")
_LUNG = r"(?=[ -](?:lobe|lung(?! vol)|zone|field|hemithora|pulmonary|{F})|(?:,| and| or| to|/) ?(?:right |left )?{O})"
_FOUND = "opacit|infiltrat|consolid|pneumo|atelecta|air ?space|nodul|scar|granulom|mass"
_PLACE_WORDS = re.compile(
    r"\b(?=[abhilmprsu])(?:"
    rf"(?P<upper>upper{_LUNG.format(F=_FOUND, O='(?:mid|lower)')}|(?:bi-?)?apical|ap(?:ex|ices)|[rl]ul|suprahilar)"
    rf"|(?P<middle>mid(?:dle)?{_LUNG.format(F=_FOUND, O='(?:upper|lower)')}|midlungs?|rml|lingular?|(?:peri)?hil(?:ar|um|a))"
    rf"|(?P<lower>lower{_LUNG.format(F=_FOUND, O='(?:upper|mid)')}|bas(?:es?|al|ilar)|bi-?bas(?:al|ilar)|[rl]ll"
    r"|infrahilar|retrocardiac))\b"
)
_NEXT = re.compile(r"(?: (?!and\b|or\b|with\b)[\w-]+){0,3}[ -]|")  # between a side and its place, either way round
_AND = re.compile(r" (?:and|or|/) (?:the )?")
_Where = tuple[str, int, int]  # side event or place, start, end


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


def _nearest(
    hit: _Hit, bounds: tuple[int, int, int | None], inside: list[_Where], around: list[_Where], text: str
) -> list[_Where]:
    """The sides (or places) of a mention: those inside it, right behind it ("on the left"), else the nearest before it.

    `bounds` are the place that a side before must not lie beyond, where the previous mention ends, and where the next
    one starts.
    """
    floor, previous, ceiling = bounds
    if inside:
        return inside
    after = [w for w in around if hit.end <= w[1] and (ceiling is None or w[1] < ceiling)]
    before = [w for w in around if floor <= w[1] < hit.start]
    gap = text[hit.end : after[0][1]] if after else ""
    if after and _BEHIND.match(gap) and (ceiling is None or gap.strip(" ,")):
        chain = after
    elif before:
        chain = before[::-1]
    else:
        chain = after if ceiling is None else []
    found: list[_Where] = []
    for i, where in enumerate(chain):
        gap = text[chain[i - 1][2] : where[1]] if chain is after else text[where[2] : chain[i - 1][1]]
        if i and ((ceiling is not None if chain is after else where[1] < previous) or not _JOINED.match(gap)):
            break
        found.append(where)
    return found


def _adjoin(one: _Where, other: _Where, text: str) -> bool:
    """Whether a side and a place are one phrase: "right upper lobe", "RUL", "bases bilaterally"."""
    first, second = sorted((one, other), key=lambda where: where[1])
    return second[1] < first[2] or bool(_NEXT.fullmatch(text[first[2] : second[1]]))


def _pairs(sides: list[_Where], places: list[_Where], text: str) -> tuple[tuple[str, str], ...]:
    """Which place belongs to which side: "right upper and left lower lobe" is two places, not four."""
    owners: list[list[_Where]] = [[side for side in sides if _adjoin(side, place, text)] for place in places]
    for i in range(1, len(owners)):  # right upper and lower lobes
        owners[i] = owners[i] or owners[i - 1]
    for i in range(len(owners) - 1, 0, -1):  # upper and lower lobes on the right
        owners[i - 1] = owners[i - 1] or owners[i]
    for side in sides:  # right and left lower lobes
        if not any(side in owned for owned in owners):
            for owned in owners:
                if any(_AND.fullmatch(text[side[2] : other[1]]) for other in owned):
                    owned.append(side)
    pairs = [
        (side, place[0])
        for place, owned in zip(places, owners, strict=True)
        for where in (owned or sides or [("", 0, 0)])
        for side in _SIDES.get(where[0], ("",))
    ]
    settled = {side for side, _ in pairs}
    return tuple(dict.fromkeys([*pairs, *((s, "") for w in sides for s in _SIDES[w[0]] if s not in settled)]))


@lru_cache(maxsize=65536)
def mentions(text: str) -> tuple[Mention, ...]:
    """Every mention of a finding, in order; the name "_other" stands for an abnormality outside the vocabulary."""
    text = " ".join(_SCARS.sub(" ", text.lower()).split())
    found: list[Mention] = []
    clause: list[_Hit] = []  # mentions since the last full stop, semicolon, "but" …
    sides: list[_Where] = []
    heights: list[_Where] | None = None  # upper, middle, lower: read once something is found that has a height
    floors = [0]  # places that a side does not reach across
    opened = 0  # where the clause starts
    since = segment = 0  # index into `clause`: the first mention since the last turn, since the last comma
    negative = unsure = sticky = ignored = after_or = False

    def close(end: int) -> None:
        nonlocal heights, opened
        shared: tuple[list[_Where], list[_Where]] = [], []
        read: list[Mention] = []
        for i in range(len(clause) - 1, -1, -1):
            hit, following = clause[i], clause[i + 1].start if i + 1 < len(clause) else None
            previous = clause[i - 1].end if i else 0
            bounds = (max(f for f in floors if f <= hit.start), previous, following)
            inside = [(m.lastgroup or "", *m.span()) for m in _SIDE_WORDS.finditer(text, hit.start, hit.end)]
            where = _nearest(hit, bounds, inside, sides, text)
            places: list[_Where] = []
            if not PLACED.isdisjoint(hit.names):
                if heights is None:
                    heights = [(m.lastgroup or "", *m.span()) for m in _PLACE_WORDS.finditer(text)]
                if heights:
                    # A mention with a side of its own takes no place from the one before.
                    own = max(opened, previous if any(s[1] >= previous for s in where) else bounds[0])
                    around = [h for h in heights if opened <= h[1] < end]
                    inside = [h for h in around if hit.start <= h[1] < hit.end]
                    places = _nearest(hit, (own, previous, following), inside, around, text) or [
                        h for h in around if any(w[1] >= hit.end and _adjoin(w, h, text) for w in where)
                    ]
            if following and _SHARED.match(text[hit.end : following]):
                where, places = where or shared[0], places or ([] if where else shared[1])
            shared = where, places
            seen = tuple(dict.fromkeys(side for w in where for side in _SIDES[w[0]]))
            pairs = _pairs(where, places, text) if places else tuple((side, "") for side in seen)
            for name in hit.names:
                if name in PLACED:
                    read.append(Mention(name, hit.status, seen, pairs))
                elif name in SIDED:
                    read.append(Mention(name, hit.status, seen, tuple((side, "") for side in seen)))
                else:
                    read.append(Mention(name, hit.status, ()))
        found.extend(reversed(read))
        clause.clear()
        sides.clear()
        opened = end

    for match in _SCAN.finditer(text):
        group = match.lastgroup or ""
        event = group.rpartition("_")[0] or group
        if event == "GONE":  # "pneumothorax resolved" or "resolved pneumothorax"
            event = "POST_NEG" if clause and match.start() - clause[-1].end <= 2 else "NEG"
        if event in _NAMES:
            status = NEGATIVE if negative else UNCERTAIN if unsure or after_or else POSITIVE
            if not ignored or negative:
                clause.append(_Hit(_NAMES[event], match.start(), match.end(), status))
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
            close(match.start())
            negative = unsure = sticky = ignored = after_or = False
            since = segment = 0
            floors[:] = [match.end()]
        elif event == "SOFT":
            negative = unsure = sticky = after_or = False
            since = segment = len(clause)
        elif event in ("COMMA", "TURN"):
            negative = negative and event == "COMMA"
            unsure = unsure and (sticky or bool(_OR_AHEAD.match(text, match.end())))
            ignored = False
            segment = len(clause)
        elif event == "WITH":
            unsure = False
            since = segment = len(clause)
        elif event == "NEG":
            negative, unsure, after_or = True, False, False
            floors.append(match.start())
        elif event == "PSEUDO":
            negative = False
        elif event in ("UNSURE", "STICKY"):
            unsure, sticky = True, sticky or event == "STICKY"
        elif event == "DOUBT":
            unsure, negative = True, False
        elif event == "IGNORE":
            ignored = True
        elif event == "OR":
            if not negative and len(clause) > since and match.start() - clause[-1].end < 40:
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
        elif event in _SIDES:
            sides.append((event, match.start(), match.end()))
    close(len(text))
    return tuple(found)


def _merge(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name → the strongest of its statuses."""
    labels: dict[str, str] = {}
    for name, status in pairs:
        if name not in labels or _RANK[status] > _RANK[labels[name]]:
            labels[name] = status
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
    """As `sided_label`, but a finding in `PLACED` is keyed "right lower X", "upper X" … where its height is stated too.

    A key is left out where another mention says as much with a side or place that it lacks.
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

    Devices, old scars and degenerative change count as abnormal, as in the Indiana tags. An empty text is not normal.
    """
    return bool(text.strip()) and all(m.status == NEGATIVE for m in mentions(text))
