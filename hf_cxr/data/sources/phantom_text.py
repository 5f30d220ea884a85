"""What the synthetic studies have and how their reports say it: finding names, prevalence, co-occurrence, wording.

The drawing lives in `phantom`. All sentences were written for this project.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from hf_cxr.inference.views import VIEWS

SIDED = ("pneumothorax", "consolidation", "pleural effusion", "atelectasis", "nodule", "granuloma")
# In the order of an impression: what is acute first.
# fmt: off
TAGS = (
    "edema", *(f"{side} {name}" for name in SIDED[:5] for side in ("right", "left")),
    "cardiomegaly", "hyperinflation", "hiatal hernia", *(f"{side} granuloma" for side in ("right", "left")),
    "pacemaker", "sternotomy", "compression fracture", "scoliosis", "pectus excavatum",
)
# fmt: on
FRONTAL_ONLY = ("right pneumothorax", "left pneumothorax", "scoliosis")
LATERAL_ONLY = ("compression fracture", "pectus excavatum")
ACUTE = ("edema", *(name for name in TAGS if name.split(" ", 1)[-1] in SIDED[:5]))

NORMAL_SHARE = 0.44  # nearer 0.45 after a missing view has hidden a finding
FRONTAL_ALONE, LATERAL_ALONE = 0.05, 0.03
NUMBER = (0.50, 0.37, 0.13)  # of one, two and three findings in an abnormal study
BOTH_SIDES = {"pleural effusion": 0.25, "atelectasis": 0.22, "nodule": 0.12, "granuloma": 0.12, "consolidation": 0.12}
# fmt: off
# Relative frequency as the first finding of a study; set so that the marginal rates come out even.
FIRST = {
    "pneumothorax": 1.7, "consolidation": 1.9, "pleural effusion": 1.3, "atelectasis": 1.4, "nodule": 1.7,
    "granuloma": 1.4, "edema": 1.3, "cardiomegaly": 1.1, "hyperinflation": 0.5, "hiatal hernia": 0.8, "scoliosis": 0.9,
    "pacemaker": 0.7, "sternotomy": 0.9, "compression fracture": 0.9, "pectus excavatum": 1.0,
}
# What keeps company with what; the other findings of a study are drawn from here three times out of four.
COMPANIONS = {
    "edema": ("cardiomegaly", "pleural effusion", "pacemaker", "sternotomy"),
    "cardiomegaly": ("edema", "pleural effusion", "sternotomy", "pacemaker"),
    "pleural effusion": ("atelectasis", "cardiomegaly", "consolidation", "edema"),
    "atelectasis": ("pleural effusion", "hiatal hernia", "sternotomy", "scoliosis"),
    "pneumothorax": ("hyperinflation", "atelectasis", "nodule", "pectus excavatum"),
    "consolidation": ("pleural effusion", "hyperinflation", "atelectasis", "pacemaker"),
    "nodule": ("hyperinflation", "granuloma", "compression fracture"),
    "granuloma": ("hyperinflation", "nodule", "scoliosis", "hiatal hernia"),
    "hyperinflation": ("nodule", "pneumothorax", "granuloma", "compression fracture"),
    "hiatal hernia": ("compression fracture", "atelectasis", "scoliosis", "granuloma"),
    "scoliosis": ("compression fracture", "pectus excavatum", "hiatal hernia"),
    "pacemaker": ("sternotomy", "cardiomegaly", "pleural effusion", "compression fracture"),
    "sternotomy": ("pacemaker", "cardiomegaly", "atelectasis", "pleural effusion"),
    "compression fracture": ("hyperinflation", "scoliosis", "hiatal hernia", "granuloma"),
    "pectus excavatum": ("scoliosis", "pneumothorax", "granuloma"),
}
# Pairs that would hide or contradict each other in an image, on one side or at all.
CLASH_ON_A_SIDE = (
    {"pneumothorax", "pleural effusion"}, {"pneumothorax", "consolidation"}, {"consolidation", "nodule"},
    {"consolidation", "granuloma"}, {"consolidation", "atelectasis"}, {"consolidation", "pleural effusion"},
    {"pleural effusion", "atelectasis"}, {"nodule", "pneumothorax"},
)
CLASH = (
    {"hyperinflation", "cardiomegaly"}, {"hyperinflation", "edema"}, {"hyperinflation", "pleural effusion"},
    {"edema", "consolidation"}, {"edema", "pneumothorax"}, {"edema", "atelectasis"},
)
# fmt: on


@dataclass(frozen=True)
class Case:
    """What is to be seen in study `index`: the tags, the views it has, and per side ("right", "left") the lobe of a
    consolidation ("upper", "middle", "lower") and the amount of an effusion or pneumothorax ("small" to "large")."""

    seed: int
    index: int
    tags: tuple[str, ...] = ()
    views: tuple[str, ...] = VIEWS
    lobes: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, str] = field(default_factory=dict)


class _Dice:
    """Weighted picks that cost a microsecond (`Generator.choice` with weights costs twenty)."""

    def __init__(self, *entropy: int) -> None:
        self.random = iter(np.random.default_rng(entropy).random(96).tolist()).__next__

    def pick(self, options: Sequence[Any], weights: Iterable[float] | None = None) -> Any:
        if weights is None:
            return options[int(self.random() * len(options))]
        sums = list(accumulate(weights))
        return options[min(bisect(sums, self.random() * sums[-1]), len(options) - 1)]


def plan(seed: int, index: int) -> Case:
    """Draws what study `index` of collection `seed` shows; the same for ever, whatever else is generated."""
    dice = _Dice(seed, index, 0)
    lobes = {"right": dice.pick(("upper", "middle", "lower")), "left": dice.pick(("upper", "lower"))}
    size = dice.pick(("small", "moderate", "large"), (5, 4, 2))
    sizes = {"right": size, "left": size}
    alone = dice.random()
    views: tuple[str, ...] = VIEWS
    if alone < FRONTAL_ALONE + LATERAL_ALONE:
        views = ("frontal",) if alone < FRONTAL_ALONE else ("lateral",)
    if dice.random() < NORMAL_SHARE:
        return Case(seed, index, (), views, lobes, sizes)
    tags: set[str] = set()
    first = dice.pick(tuple(FIRST), FIRST.values())
    tags.update(_place(first, dice))
    for _ in range(dice.pick((0, 1, 2), NUMBER)):
        company = dice.random() < 0.75
        other = dice.pick(COMPANIONS[first]) if company else dice.pick(tuple(FIRST), FIRST.values())
        placed = _place(other, dice)
        if all(_fits(new, old) for new in placed for old in tags):
            tags.update(placed)
    return Case(seed, index, tuple(t for t in TAGS if t in tags and _seen(t, views)), views, lobes, sizes)


def _place(name: str, dice: _Dice) -> tuple[str, ...]:
    side, both = dice.pick(("right", "left")), dice.random()
    if name not in SIDED:
        return (name,)
    return tuple(f"{s} {name}" for s in ("right", "left") if s == side or both < BOTH_SIDES.get(name, 0.0))


def _name(tag: str) -> tuple[str, str]:
    side, _, name = tag.partition(" ")
    return (side, name) if name in SIDED else ("", tag)


def _fits(new: str, old: str) -> bool:
    (side, name), (other_side, other) = _name(new), _name(old)
    if name == other or {name, other} in CLASH:
        return False
    return not (side == other_side and {name, other} in CLASH_ON_A_SIDE)


def _seen(tag: str, views: tuple[str, ...]) -> bool:
    """A side cannot be told from a lateral view alone, so sided findings need the frontal one."""
    if "frontal" not in views:
        return tag not in FRONTAL_ONLY and not _name(tag)[0]
    return "lateral" in views or tag not in LATERAL_ONLY


# ---------------------------------------------------------------------------------------------------- wording
# The first wording is the usual one (weights below): as in practice, one phrase dominates and a few others occur.
USUAL = (66, 16, 11, 7)

# fmt: off
NORMAL = {
    "No acute cardiopulmonary abnormality.": 55, "No acute cardiopulmonary disease.": 12, "No active disease.": 8,
    "No acute cardiopulmonary process.": 7, "No evidence of acute cardiopulmonary disease.": 5,
    "Normal chest radiograph.": 4, "Normal chest.": 3, "No acute abnormality. No pleural effusion or pneumothorax.": 2,
    "Negative for acute cardiopulmonary abnormality.": 2, "Clear lungs. No acute cardiopulmonary abnormality.": 2,
}
PHRASES: dict[str, tuple[str, ...]] = {
    "edema": ("Pulmonary edema.", "Findings consistent with pulmonary edema.", "Perihilar pulmonary edema.",
        "Bilateral pulmonary edema."),
    "pneumothorax": ("{Size} {side} pneumothorax.", "{Size} {side} apical pneumothorax.",
        "There is a {size} pneumothorax on the {side}.", "{Side}-sided pneumothorax, {size} in size."),
    "consolidation": ("{Side} {lobe} lobe consolidation.", "Consolidation in the {side} {lobe} lobe.",
        "Focal consolidation of the {side} {lobe} lobe.", "Airspace consolidation within the {side} {lobe} lobe."),
    "pleural effusion": ("{Size} {side} pleural effusion.", "{Size} pleural effusion on the {side}.",
        "There is a {size} {side} pleural effusion.", "{Side}-sided pleural effusion, {size} in size."),
    "pleural effusions": ("{Size} bilateral pleural effusions.", "Bilateral pleural effusions, {size} in size.",
        "There are {size} bilateral pleural effusions."),
    "atelectasis": ("{Side} basilar atelectasis.", "Linear atelectasis at the {side} lung base.",
        "Subsegmental atelectasis in the {side} lung base.", "Platelike atelectasis at the {side} base."),
    "both atelectasis": ("Bibasilar atelectasis.", "Bilateral basilar atelectasis.",
        "Linear atelectasis at both lung bases."),
    "nodule": ("{Side} lung nodule.", "{Side} pulmonary nodule. Chest CT is recommended.",
        "Nodule in the {side} lung.", "Pulmonary nodule in the {side} lung. Further evaluation with CT is suggested."),
    "both nodule": ("Bilateral lung nodules.", "Bilateral pulmonary nodules. Chest CT is recommended.",
        "Nodules in both lungs."),
    "granuloma": ("Calcified granuloma in the {side} lung.", "{Side} lung calcified granuloma.",
        "Calcified {side} lung granuloma.",
        "Old granulomatous disease with a calcified granuloma in the {side} lung."),
    "both granuloma": ("Bilateral calcified granulomas.", "Calcified granulomas in both lungs."),
    "cardiomegaly": ("Cardiomegaly.", "Enlarged cardiac silhouette.", "The heart is enlarged.", "Enlarged heart."),
    "hyperinflation": ("Hyperinflated lungs.", "Hyperexpanded lungs.", "Hyperinflation of the lungs.",
        "The lungs are hyperinflated with flattened diaphragms."),
    "hiatal hernia": ("Hiatal hernia.", "Large hiatal hernia.", "Retrocardiac hiatal hernia with an air-fluid level.",
        "There is a hiatal hernia."),
    "pacemaker": ("Cardiac pacemaker in place.", "Dual lead pacemaker in place.", "Pacemaker with intact leads.",
        "Pacemaker noted."),
    "sternotomy": ("Prior median sternotomy.", "Status post median sternotomy.", "Intact median sternotomy wires.",
        "Postsurgical changes of median sternotomy."),
    "compression fracture": ("Compression fracture of a thoracic vertebral body.",
        "Compression fracture in the thoracic spine.",
        "Compression fracture in the thoracic spine, age indeterminate.",
        "Wedge compression fracture of a thoracic vertebra."),
    "scoliosis": ("Thoracic scoliosis.", "Scoliosis of the thoracic spine.", "Scoliosis.",
        "Scoliotic curvature of the thoracic spine."),
    "pectus excavatum": ("Pectus excavatum.", "Pectus excavatum deformity.",
        "Pectus excavatum deformity of the sternum."),
}
# How the findings section names what lies in the lungs, then what its other sentences do not cover.
FOCAL = {
    "consolidation": "consolidation in the {side} {lobe} lobe", "atelectasis": "atelectasis at the {side} lung base",
    "nodule": "a nodule in the {side} lung", "granuloma": "a calcified granuloma in the {side} lung",
}
ALSO = {
    "hiatal hernia": "hiatal hernia", "pacemaker": "pacemaker", "sternotomy": "median sternotomy",
    "compression fracture": "compression fracture of a thoracic vertebra", "scoliosis": "scoliosis",
    "pectus excavatum": "pectus excavatum",
}
# Indications that tell nothing; and those that ask: shares of the studies with findings, then of normal ones, whose
# indication hints at what is there, at what is not, is empty, or is neutral.
NEUTRAL = (
    "Cough.", "Chest pain.", "Shortness of breath.", "Dyspnea.", "Preoperative evaluation.", "Fever and cough.",
    "Chest pain and shortness of breath.", "Routine examination.", "Weakness.", "Positive tuberculin skin test.",
)
ASKING = {True: (0.72, 0.11, 0.05, 0.12), False: (0.0, 0.20, 0.05, 0.75)}
WITH_SIDE = 0.4  # of the questions about a finding that has one
QUESTIONS = {
    "Evaluate for {}.": 8, "{}?": 5, "Question of {}.": 3, "Rule out {}.": 3, "Follow-up of {}.": 3,
    "History of {}. Chest pain.": 3, "Shortness of breath, evaluate for {}.": 2, "Known {}, cough.": 2,
}
# Finding → how a question names it, and the complaint or history that goes with it and names nothing.
ASKED = {
    "edema": ("pulmonary edema", "Orthopnea and leg swelling."),
    "pneumothorax": ("{side}pneumothorax", "Sudden pleuritic chest pain."),
    "consolidation": ("{side}consolidation", "Fever, productive cough and leukocytosis."),
    "pleural effusion": ("{side}pleural effusion", "Decreased breath sounds at the base."),
    "atelectasis": ("{side}atelectasis", "Low oxygen saturation after abdominal surgery."),
    "nodule": ("{side}lung nodule", "Weight loss and a long history of smoking."),
    "granuloma": ("{side}lung granuloma", "Lived in an endemic region."),
    "cardiomegaly": ("cardiomegaly", "Hypertension and a new murmur."),
    "hyperinflation": ("hyperinflation", "Chronic wheezing, uses inhalers."),
    "hiatal hernia": ("hiatal hernia", "Reflux and heartburn."),
    "pacemaker": ("pacemaker", "Bradycardia, device clinic."),
    "sternotomy": ("sternotomy", "Follow-up after bypass surgery."),
    "compression fracture": ("compression fracture", "Back pain after a fall."),
    "scoliosis": ("scoliosis", "Uneven shoulders."),
    "pectus excavatum": ("pectus excavatum", "Sunken chest since childhood."),
}
# fmt: on


def report(case: Case) -> tuple[str, str, str]:
    """Returns the impression, the findings section and the indication of a case."""
    dice = _Dice(case.seed, case.index, 9)
    dice.random()  # once the indication's: the other texts stay what they were
    return _impression(case, dice), _findings(case, dice), _indication(case)


def _indication(case: Case) -> str:
    """Drawn from a stream of its own: often neutral, often a hint at what is there, sometimes one at what is not."""
    dice = _Dice(case.seed, case.index, 10)
    there = [_name(tag) for tag in case.tags]
    kind = dice.pick(("informative", "misleading", "empty", "neutral"), ASKING[bool(there)])
    if kind == "empty":
        return ""
    if kind == "neutral":
        return dice.pick(NEUTRAL, range(len(NEUTRAL), 0, -1))
    absent = [(dice.pick(("right", "left")), name) for name in ASKED if name not in {present for _, present in there}]
    side, name = dice.pick(there if kind == "informative" else absent)
    named, complaint = ASKED[name]
    if dice.random() < 0.5:
        return complaint
    side = f"{side} " if dice.random() < WITH_SIDE and side else ""
    said = dice.pick(tuple(QUESTIONS), QUESTIONS.values()).format(named.format(side=side))
    return said[0].upper() + said[1:]


def _impression(case: Case, dice: _Dice) -> str:
    if not case.tags:
        return dice.pick(tuple(NORMAL), NORMAL.values())
    said = []
    for tag in case.tags:
        side, name = _name(tag)
        both = f"{'right' if side == 'left' else 'left'} {name}" in case.tags
        words = {"side": side, "lobe": case.lobes.get(side, ""), "size": case.sizes.get(side, "")}
        key = name
        if both and name != "consolidation":
            if side == "left":
                continue  # said together with the right side
            key = "pleural effusions" if name == "pleural effusion" else f"both {name}"
        phrase = dice.pick(PHRASES[key], USUAL[: len(PHRASES[key])])
        said.append(phrase.format(**words, **{k.title(): v.capitalize() for k, v in words.items()}))
    if len(said) > 1 and dice.random() < 0.08:
        said.append(said.pop(0))
    closing = dice.random()
    names = {_name(tag)[1] for tag in case.tags}
    if not any(tag in ACUTE for tag in case.tags):
        if closing < 0.65:
            said.append("No acute cardiopulmonary abnormality.")
    elif closing < 0.12 and (absent := [name for name in ("pleural effusion", "pneumothorax") if name not in names]):
        said.append(f"No {' or '.join(absent)}.")
    if len(said) > 1 and dice.random() < 0.10:
        return " ".join(f"{k}. {sentence}" for k, sentence in enumerate(said, 1))
    return " ".join(said)


def _findings(case: Case, dice: _Dice) -> str:
    """Two to four sentences: heart, lungs, pleura, bones and devices."""
    tags = case.tags
    heart = "The cardiac silhouette is enlarged." if "cardiomegaly" in tags else "The heart size is normal."
    lungs = []
    if "edema" in tags:
        lungs.append("There is perihilar pulmonary edema.")
    if "hyperinflation" in tags:
        lungs.append("The lungs are hyperinflated.")
    named = [(side, name) for side, name in map(_name, tags) if name in FOCAL]
    if focal := [FOCAL[name].format(side=side, lobe=case.lobes.get(side, "")) for side, name in named]:
        lungs.append(f"There is {' and '.join(focal)}.")
    pleura = [f"a {case.sizes[_name(t)[0]]} {t}" for t in tags if _name(t)[1] in ("pleural effusion", "pneumothorax")]
    if pleura:
        fluid = f"There is {' and '.join(pleura)}."
    else:
        fluid = dice.pick(("No pleural effusion or pneumothorax.", "There is no pneumothorax or pleural effusion."))
    rest = [said for tag, said in ALSO.items() if tag in tags]
    clear = (
        ("The lungs are otherwise clear.",)
        if pleura
        else ("The lungs are clear.", "The lungs are well expanded and clear.")
    )
    parts = [heart, " ".join(lungs) or dice.pick(clear), fluid]
    if rest:
        parts.append(f"Also noted: {', '.join(rest)}.")
    elif dice.random() < 0.4 and "lateral" in case.views:
        parts.append("The visualized bones are unremarkable.")
    return " ".join(parts)
