"""The verdict of a report in words: what image gain, context gain, the best constant, probes and the number of
distinct texts say together. What they show is weighed in `hf_cxr.evaluation.rules`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cxr.evaluation.report.tables import best_blind, short_name, unread_note
from hf_cxr.evaluation.rules import FEWEST, SMALL_GAIN, Rival, few_texts, harms, p_of, reads, rivals
from hf_cxr.utils.files import json_object
from hf_cxr.utils.plots import NBSP, counted, percent


def patients_needed(interval: Sequence[float], by: str, n: float) -> str:
    """That `n` patients are too few, and how many would tell a gain of `SMALL_GAIN[by]` from none: those of whom the
    interval is as wide as that."""
    needed = max(FEWEST, n * ((interval[1] - interval[0]) / SMALL_GAIN[by]) ** 2)
    number = f"about {float(f'{needed:.1e}'):,.0f}" if needed > n else "more"
    return f"too few to tell with {n:,.0f} patients, {number} would tell a gain of {SMALL_GAIN[by]} from none"


def verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """`reads_images`, with context `reads_context` (true, false, or `None`: not shown), and `verdict`, whose first
    sentence weighs all of it.

    Images are read if the 95 % interval of the gain over shuffled images in `gain_score` lies above zero and p ≤ 0.01
    (of the permutation test; with context, of the bootstrap, from `FEWEST` patients on). They are not read if that
    gain is shown to be smaller than `SMALL_GAIN`, to be a loss, or if all texts are one (see `rules.reads`).
    """
    by, note, asked = report["gain_score"], unread_note(report), "with_context" in report
    unknown: dict[str, Any] = {"reads_images": None} | ({"reads_context": None} if asked else {})
    if by not in report["image_gain_ci95"]:
        what = f"the images{' or the context' if asked else ''}"
        return unknown | {"verdict": f"Too few studies to say whether the model reads {what}."}
    if report["permutation_p"] is None:
        what = f"{'what the model reads' if asked else 'whether the model reads the images'} cannot be told"
        beside = "; ".join(_against(dict(report) | unknown, rival) for rival in rivals(report))
        what += f", and it {worse}" if (worse := _no_better(report)) else ""
        told = f"{note} All radiologists' texts state the same, so {what}{f' ({beside})' if beside else ''}."
        return unknown | {"verdict": told.strip()}
    read = {"reads_images": reads(report)}
    if asked:
        read["reads_context"] = reads(report, "context") if report["with_context"] else None
    told = f"{_sentence(dict(report) | read)}{_beside_blind(report)}. {note}".strip()
    return read | {"verdict": told}


def rewarded(report: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """`reward`, what came of the reward stage of a run that had one, and the `verdict` with its warning."""
    file = run / "reward.json"
    if not file.is_file():
        return {}
    stage = json_object(file)
    warned = f"{report['verdict']} WARNING: in the reward stage {stage['warning']}" if stage["warning"] else None
    return {"reward": stage} | ({"verdict": warned} if warned else {})


def plain(report: Mapping[str, Any]) -> str:
    """The verdict without a number."""
    if report["reads_images"] is None:
        return "These studies cannot tell whether the model reads the images."
    context = report.get("reads_context")
    if not report["reads_images"]:
        if harms(report, "image"):
            return f"This model is harmed by the images{', and reads the context' if context else ''}."
        return f"This model does not read the images{': it reads the context' if context else ''}."
    reads = f"the images{' and the context' if context else ''}"
    if short := shortcomings(report):
        return f"This model uses {reads}, but {' and '.join(short)}."
    return f"This model reads {reads}."


def shortcomings(report: Mapping[str, Any]) -> list[str]:
    """What a model that reads the images is told beside, none where all is well."""
    by, found = report.get("gain_score", "finding_f1_micro"), rivals(report)
    told = [_no_better(report)] if _no_better(report) else []
    if unsure := [rival.name for rival in found if rival.beaten is None]:
        does = "state findings" if by != "cider" else "write"
        told.append(f"is not shown to {does} better than {' or '.join(unsure)}")
    if report["image_gain_ci95"].get(by, (0, 1))[1] < SMALL_GAIN[by]:
        told.append("gains next to nothing from them")
    if few_texts(report["distinct_outputs"], report.get("distinct_references", 0)):
        told.append(f"writes only {counted(report['distinct_outputs'], 'distinct text')}")
    return told


def _no_better(report: Mapping[str, Any]) -> str:
    worse = [rival.name for rival in rivals(report) if rival.beaten is False]
    does = "states findings" if report.get("gain_score") != "cider" else "writes"
    return f"{does} no better than {' or '.join(worse)}" if worse else ""


def _sentence(report: Mapping[str, Any]) -> str:
    """The first sentence, without its end."""
    images, gain = report["reads_images"], _gain(report, "image", report["reads_images"])
    beaten: list[str] = []
    others: list[str] = []
    for rival in rivals(report):
        (beaten if rival.beaten else others).append(_against(report, rival))
    texts = counted(report["distinct_outputs"], "distinct text")
    if few_texts(report["distinct_outputs"], report["distinct_references"]):
        texts += f" (the radiologists' {report['distinct_references']:,})"
    texts += f", the commonest for {percent(report['modal_share'])} of {report['n']:,} studies".replace(NBSP, " ")
    figures = [gain, *others, *beaten, texts]
    if images and (short := shortcomings(report)):
        lead, figures = f"Uses the images, but {' and '.join(short)}", [*others, gain, *beaten, texts]
    elif images:
        lead = "Reads the images: yes"
    elif images is False:
        lead = "Harmed by the images" if harms(report, "image") else "Does not read the images"
    else:
        worse = _no_better(report)
        lead = f"Not shown whether the model reads the images{f', and it {worse}' if worse else ''}"
    return f"{lead} ({'; '.join(figures)}){_context(report)}"


def _gain(report: Mapping[str, Any], what: str, read: bool | None) -> str:
    by, shuffled = report["gain_score"], {"image": "images"}.get(what, what)
    interval = report[f"{what}_gain_ci95"][by]
    told = f"{_signed(report[f'{what}_gain'][by])} {short_name(by)} over shuffled {shuffled}, {_interval(interval)}, "
    told += f"{'' if 'with_context' in report else 'permutation '}p = {p_of(report, what):.3f}"
    return told if read is not None else f"{told}: {patients_needed(interval, by, report['patients'])}"


def _against(report: Mapping[str, Any], rival: Rival) -> str:
    by = report["gain_score"]
    told = f"{short_name(by)} {report[by]:.3f} against {rival.score:.3f} of {rival.name}, difference "
    told += f"{_signed(rival.gain)}, {_interval(rival.ci95)}"
    settled = rival.ci95[0] > 0 or (rival.ci95[1] < SMALL_GAIN[by] and report["patients"] >= FEWEST)
    if settled or report["reads_images"] is False:
        return told
    return f"{told}: {patients_needed(rival.ci95, by, report['patients'])}"


def _context(report: Mapping[str, Any]) -> str:
    """What the sentence says of the context; nothing of a model without."""
    if "with_context" not in report:
        return ""
    if not report["with_context"]:
        return "; no study has a context, so whether it reads that cannot be told"
    read = report["reads_context"]
    blind = report["reads_images"] is False and not harms(report, "image")
    told = {
        True: ": it reads the context" if blind else "; reads the context: yes",
        False: " nor the context" if blind else "; does not read the context",
        None: "; not shown whether it reads the context",
    }[read]
    if harms(report, "context"):
        told = "; harmed by the context"
    return f"{told} ({_gain(report, 'context', read)})"


def _beside_blind(report: Mapping[str, Any]) -> str:
    """How a verdict ends: BLEU-4 beside that of the best image-blind baseline."""
    if not (best := best_blind(report, "bleu4")):
        return ""
    beats = "better" if report["bleu4"] > best[1] else "no better"
    return f"; BLEU-4 {report['bleu4']:.3f}, {beats} than an image-blind baseline's {best[1]:.3f}"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"


def _interval(interval: Sequence[float]) -> str:
    return f"95 % CI {_signed(interval[0])} to {_signed(interval[1])}"
