"""How well `hf_cxr.inference.labeler` agrees with the human MeSH tags of the Indiana reports, as Markdown tables.

    python benchmarks/labeler.py --reports ../shared/data/iu --half odd [--json OUT] [--errors FINDING]

Input is findings + impression; truth is the tags of the XML files (a folder with `NLMCXR_reports.tgz` or
`ecgen-radiology/`) or of the Kaggle CSV. The rules were tuned on the even uids; the odd uids are the report, their
errors unread. MeSH has no word for uncertainty: the taggers tagged "possible atelectasis" but not "possible
pneumonia", so the table shows both readings, "stated" (positive mentions) and "or possible" (positive or uncertain).
Sides and places are compared where tag and labeler both find the finding, possible ones among them. Intervals: 95 %
bootstrap percentiles over reports.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from defusedxml.ElementTree import fromstring

from hf_cxr.data.archives import members
from hf_cxr.data.sources import openi
from hf_cxr.inference.labeler import NEGATIVE, PLACED, is_normal, mentions, positive_findings, statements

# MeSH heading (start of a tag, as a pattern) → our names that answer it.
MAP: dict[str, tuple[str, set[str]]] = {
    "cardiomegaly": (r"cardiomegaly|cardiac shadow/enlarged", {"cardiomegaly"}),
    "atelectasis": (r"pulmonary atelectasis", {"atelectasis"}),
    "pleural effusion": (r"pleural effusion|hydropneumothorax|hemothorax", {"pleural effusion"}),
    "pneumothorax": (r"pneumothorax|hydropneumothorax|hemopneumothorax", {"pneumothorax"}),
    "scar": (r"cicatrix", {"scar"}),
    "granuloma": (r"calcified granuloma|granuloma\b|granulomatous disease", {"granuloma"}),
    "nodule": (r"nodule|(?:opacity|density)/.*round", {"nodule"}),
    "consolidation": (r"consolidation", {"consolidation"}),
    "edema": (r"pulmonary edema", {"edema"}),
    "emphysema": (r"(?:pulmonary |bullous )?emphysema", {"emphysema"}),
    "hiatal hernia": (r"hernia, hiatal", {"hiatal hernia"}),
    "scoliosis": (r"scoliosis", {"scoliosis"}),
    "fracture": (
        r"fractures, bone|deformity/(?:thoracic|lumbar) vertebrae",
        {"fracture", "rib fracture", "compression fracture"},
    ),
    "pneumonia": (r"pneumonia", {"pneumonia"}),
}
EXTRA: dict[str, tuple[str, set[str]]] = {
    "lung opacity": (r"opacity|airspace disease|infiltrate", {"lung opacity"}),
    "hyperinflation": (r"lung/hyperdistention|lung, hyperlucent|lung/.*hyperdistention", {"hyperinflation"}),
    "low lung volumes": (r"lung/hypoinflation", {"low lung volumes"}),
    "kyphosis": (r"kyphosis", {"kyphosis"}),
    "vascular congestion": (r"pulmonary congestion", {"vascular congestion"}),
    "heart failure": (r"heart failure", {"heart failure"}),
    "copd": (r"pulmonary disease, chronic", {"copd"}),
    "catheter": (r"catheters, indwelling", {"catheter"}),
    "aortic calcification": (
        r"atherosclerosis|calcinosis/aorta|aorta.*/(?:calcinosis|sclerosis)",
        {"aortic calcification"},
    ),
    "tortuous aorta": (r"aorta.*/(?:tortuous|ectatic|dilat|prominent|enlarged)|aorta, thoracic/", {"tortuous aorta"}),
    "elevated hemidiaphragm": (r"diaphragm/.*elevated|diaphragmatic eventration", {"elevated hemidiaphragm"}),
    "degenerative change": (r".*degenerative|osteophyte|spondylosis|arthritis", {"degenerative change"}),
    "interstitial disease": (
        r"lung diseases, interstitial|pulmonary fibrosis|(?!pulmonary edema).*interstitial",
        {"interstitial disease"},
    ),
    "blunted costophrenic angle": (r"costophrenic angle/.*blunted", {"blunted costophrenic angle"}),
    "osteopenia": (r"bone diseases, metabolic|osteoporosis", {"osteopenia"}),
    "pectus excavatum": (r"funnel chest", {"pectus excavatum"}),
}
TAGGED = MAP | EXTRA
# The tags whose sides and places are compared.
LOCATED: dict[str, tuple[str, str]] = {
    **{n: (TAGGED[n][0], n) for n in ("atelectasis", "pleural effusion", "pneumothorax", "granuloma", "nodule")},
    "scar": (r"cicatrix/(?:lung|pleura)", "scar"),
    **{n: (TAGGED[n][0], n) for n in ("consolidation", "pneumonia", "lung opacity", "blunted costophrenic angle")},
    "pleural other": (r"thickening/pleura", "pleural other"),
    "rib fracture": (r"fractures, bone/.*ribs", "rib fracture"),
    "elevated hemidiaphragm": (TAGGED["elevated hemidiaphragm"][0], "elevated hemidiaphragm"),
}
SIDE = {"right": ("right",), "left": ("left",), "bilateral": ("right", "left")}
PLACE = {
    **{"upper lobe": "upper", "apex": "upper"},
    **{"middle lobe": "middle", "lingula": "middle", "hilum": "middle"},
    **{"lower lobe": "lower", "base": "lower", "retrocardiac": "lower"},
}
Pairs = frozenset[tuple[str, str]]  # (side, place), "" where not stated


class Report(NamedTuple):
    """A report with its lower-case tags ("opacity/lung/base/left") and its findings + impression."""

    uid: int
    tags: list[str]
    text: str


def read_reports(path: Path) -> tuple[list[Report], int]:
    """The reports that the taggers indexed and that have a text, and how many reports there are in all."""
    rows: list[tuple[str, list[str], str | None, str | None]]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = [(r["uid"], r["MeSH"].split(";"), r["findings"], r["impression"]) for r in csv.DictReader(file)]
    else:
        tags = {}
        for table in openi.tables(path):
            one = table.suffix == ".xml"
            for _, content in [("", table.read_bytes())] if one else members(table, lambda n: n.endswith(".xml")):
                report = fromstring(content, forbid_dtd=True)
                uid = report.find("uId").get("id").removeprefix("CXR")
                tags[uid] = [term.text or "" for term in report.iterfind(".//MeSH/major")]
        rows = [(s.uid, tags[s.uid], s.findings, s.impression) for s in openi.studies(path, demand_images=False)]
    reports = []
    for uid, raw, findings, impression in rows:
        terms = [term.strip().lower() for term in raw]
        text = f"{(findings or '').strip()} {(impression or '').strip()}".strip()
        if "no indexing" not in terms and text:
            reports.append(Report(int(uid), terms, text))
    return reports, len(rows)


def tagged(report: Report, pattern: str) -> bool:
    return any(re.match(pattern, tag) for tag in report.tags)


def tagged_places(report: Report, pattern: str) -> Pairs:
    """The sides and places of the tags of one finding."""
    pairs = set()
    for tag in report.tags:
        if re.match(pattern, tag):
            words = tag.split("/")[1:]
            sides = dict.fromkeys(side for word in words for side in SIDE.get(word, ()))
            sides = sides or {"left" if "lingula" in words else "right" if "middle lobe" in words else "": None}
            places = dict.fromkeys(PLACE[word] for word in words if word in PLACE) or ("",)
            pairs |= {(side, place) for side in sides for place in places}
    return frozenset(pairs)


def read_places(text: str, name: str) -> Pairs:
    """The sides and places of the mentions of one finding, possible ones among them."""
    said = [m for m in mentions(text) if m.finding == name and m.status != NEGATIVE]
    return frozenset(pair for m in said for pair in (m.places or (("", ""),)))


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 from (…, [TP, FP, FN]); 0 where there is nothing."""
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1)


def share(counts: np.ndarray) -> np.ndarray:
    """Agreement from (…, [agreeing, compared])."""
    return counts[..., 0] / np.maximum(counts[..., 1], 1)


def interval(rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> list[float]:
    """95 % interval of `statistic` of the summed rows (reports, …) over bootstrap samples (samples, reports)."""
    if not len(weights):
        return []
    sums = (weights @ rows.reshape(len(rows), -1)).reshape(len(weights), *rows.shape[1:])
    return [round(float(q), 4) for q in np.percentile(statistic(sums), (2.5, 97.5))]


def found_scores(reports: list[Report], weights: np.ndarray) -> dict[str, Any]:
    """Per finding and for the micro averages, in both readings: n, precision, recall, F1 and its interval."""
    scores: dict[str, Any] = {"findings": {}}
    for reading in ("stated", "or possible"):
        said = [positive_findings(r.text, uncertain=reading != "stated") for r in reports]
        for title, chosen in (("micro over the fourteen", MAP), ("micro over the others", EXTRA)):
            every = []
            for pattern, ours in chosen.values():
                truth = np.array([tagged(r, pattern) for r in reports])
                guess = np.array([not ours.isdisjoint(s) for s in said])
                every.append(np.stack([truth & guess, ~truth & guess, truth & ~guess], 1).astype(float))
            for name, rows in zip((*chosen, title), [*every, np.sum(every, 0)], strict=True):
                tp, fp, fn = rows.sum(0)
                entry = scores["findings"].setdefault(name, {"n": int(tp + fn)})
                entry[reading] = {
                    "precision": round(tp / max(tp + fp, 1), 4),
                    "recall": round(tp / max(tp + fn, 1), 4),
                    "f1": round(float(f1(rows.sum(0))), 4),
                    "ci95": interval(rows, f1, weights),
                }
    agree = np.array([[is_normal(r.text) == ("normal" in r.tags), 1] for r in reports], dtype=float)
    scores["normal"] = {
        "n": len(reports),
        "normal": sum("normal" in r.tags for r in reports),
        "accuracy": round(float(share(agree.sum(0))), 4),
        "ci95": interval(agree, share, weights),
    }
    return scores


def place_rows(truth: Pairs, ours: Pairs) -> tuple[list[int], list[int]]:
    """Of one report and finding: [sides agree, both state one, opposite, only tag, only ours], and TP, FP, FN of the
    places (upper, middle, lower), on which side being left aside."""
    sides = [{side for side, _ in pairs if side} for pairs in (truth, ours)]
    places = [{place for _, place in pairs if place} for pairs in (truth, ours)]
    both = all(sides)
    return (
        [
            *(both and sides[0] == sides[1], both, both and sides[0].isdisjoint(sides[1])),
            *(bool(sides[0]) and not sides[1], bool(sides[1]) and not sides[0]),
        ],
        [len(places[0] & places[1]), len(places[1] - places[0]), len(places[0] - places[1])],
    )


def located_scores(reports: list[Report], weights: np.ndarray) -> dict[str, Any]:
    """Sides and places per finding, where tag and labeler both find it, and over all of them."""
    sides = np.zeros((len(reports), len(LOCATED), 5))
    places = np.zeros((len(reports), len(LOCATED), 3))
    found = np.zeros((len(reports), len(LOCATED)))
    for i, report in enumerate(reports):
        for k, (pattern, name) in enumerate(LOCATED.values()):
            truth, ours = tagged_places(report, pattern), read_places(report.text, name)
            if truth and ours:
                found[i, k] = 1
                sides[i, k], counts = place_rows(truth, ours)
                places[i, k] = counts if name in PLACED else 0
    scores = {}
    for name, columns in [*((name, [k]) for k, name in enumerate(LOCATED)), ("all", [*range(len(LOCATED))])]:
        side, place = sides[:, columns].sum(1), places[:, columns].sum(1)
        agree, both, opposite, tag_only, ours_only = (int(x) for x in side.sum(0))
        tp, fp, fn = (int(x) for x in place.sum(0))
        scores[name] = {
            "found by both": int(found[:, columns].sum()),
            "side": {
                **{"n": both, "agree": agree, "opposite": opposite, "only tagged": tag_only, "only read": ours_only},
                "agreement": round(agree / max(both, 1), 4),
                "ci95": interval(side[:, :2], share, weights),
            },
            "place": {
                **{"n": tp + fn, "precision": round(tp / max(tp + fp, 1), 4)},
                **{"recall": round(tp / max(tp + fn, 1), 4), "f1": round(float(f1(place.sum(0))), 4)},
                "ci95": interval(place, f1, weights),
            },
        }
    return scores


def show(value: float, ci95: list[float]) -> str:
    return f"{value:.3f} [{ci95[0]:.3f}, {ci95[1]:.3f}]" if ci95 else f"{value:.3f}"


def print_tables(scores: dict[str, Any]) -> None:
    """The scores as Markdown."""
    print("\n| finding | n | precision | recall | F1 [95 %] | or possible: precision | recall | F1 [95 %] |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, entry in scores["findings"].items():
        cells = " | ".join(
            f"{s['precision']:.3f} | {s['recall']:.3f} | {show(s['f1'], s['ci95'])}"
            for s in (entry["stated"], entry["or possible"])
        )
        strong = "**" if name.startswith("micro") else ""
        print(f"| {strong}{name}{strong} | {entry['n']} | {cells} |")
    normal = scores["normal"]
    accuracy = show(normal["accuracy"], normal["ci95"])
    print(f"\nNormal or abnormal: accuracy {accuracy} on {normal['n']} reports, {normal['normal']} of them normal.")
    print(
        "\n| finding | found by both | both name a side | same side(s) [95 %] | opposite | only tagged | only read ",
        end="",
    )
    print("| places tagged | precision | recall | F1 [95 %] |\n|---" + 10 * "|--:" + "|")
    for name, entry in scores["located"].items():
        side, place = entry["side"], entry["place"]
        same = show(side["agreement"], side["ci95"]) if side["n"] else "–"
        cells = f"{place['precision']:.3f} | {place['recall']:.3f} | {show(place['f1'], place['ci95'])}"
        if not place["n"]:
            cells = "– | – | –"
        counts = f"{side['opposite']} | {side['only tagged']} | {side['only read']} | {place['n']}"
        print(f"| {name} | {entry['found by both']} | {side['n']} | {same} | {counts} | {cells} |")


def snippet(text: str, names: set[str], width: int = 300) -> str:
    """The sentences that speak of the findings, or the start of the text where none does."""
    about = [s for s in re.split(r"(?<=[.;]) +", text) if not names or any(m.finding in names for m in mentions(s))]
    return (" … ".join(about) or text)[:width]


def print_errors(reports: list[Report], name: str, strict: bool, limit: int) -> None:
    """Uid, kind of error, the words around the mention and the tags, for one finding, "normal", "side" or "place"."""
    shown = 0
    for report in reports:
        lines = []
        if name in ("side", "place"):
            for pattern, finding in LOCATED.values():
                truth, ours = tagged_places(report, pattern), read_places(report.text, finding)
                if truth and ours and (name == "side" or finding in PLACED):
                    index = ("side", "place").index(name)
                    stated = [sorted({pair[index] for pair in pairs} - {""}) for pairs in (truth, ours)]
                    if stated[0] != stated[1]:
                        words = snippet(report.text, {finding})
                        lines.append(f"{finding}: tagged {stated[0]}, read {stated[1]} {words!r}")
        else:
            pattern, names = TAGGED.get(name, ("", set()))
            is_true = "normal" in report.tags if name == "normal" else tagged(report, pattern)
            said = positive_findings(report.text, uncertain=not strict)
            if is_true != (is_normal(report.text) if name == "normal" else not names.isdisjoint(said)):
                hits = [m for m in mentions(report.text) if m.status != NEGATIVE and (m.finding in names or not names)]
                why = sorted({f"{m.finding} {m.status}" for m in hits})
                lines.append(f"{'missed' if is_true else 'false '} {why or ''} {snippet(report.text, names)!r}")
        for line in lines[: limit - shown]:
            shown += 1
            print(f"{report.uid:5d} {line} | {'; '.join(report.tags)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reports", type=Path, required=True, help="folder of the XML reports, or indiana_reports.csv"
    )
    parser.add_argument(
        "--half", choices=("even", "odd", "both"), default="both", help="even: tuned on; odd: held out"
    )
    parser.add_argument("--samples", type=int, default=1000, help="bootstrap samples; 0: no intervals")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the scores here, too")
    parser.add_argument(
        "--errors", metavar="WHAT", help='instead: list errors of a finding, "normal", "side", "place"'
    )
    parser.add_argument("--limit", type=int, default=40, help="with --errors: at most so many")
    parser.add_argument("--strict", action="store_true", help="with --errors: count positive mentions only")
    args = parser.parse_args()
    if args.errors and args.errors not in (*TAGGED, "normal", "side", "place"):
        parser.error(f"--errors {args.errors}: not one of {', '.join((*TAGGED, 'normal', 'side', 'place'))}")
    reports, total = read_reports(args.reports)
    print(f"{args.reports.name}: {total} reports, of which {len(reports)} are tagged and have a text")
    result: dict[str, Any] = {"command": " ".join(sys.argv), "reports": total, "scored": len(reports)}
    for half in ("even", "odd") if args.half == "both" else (args.half,):
        part = [r for r in reports if r.uid % 2 == (half == "odd")]
        print(f"\n## {half} uids ({'tuned on' if half == 'even' else 'held out'}), {len(part)} reports")
        if args.errors:
            print_errors(part, args.errors, args.strict, args.limit)
            continue
        draws = np.random.default_rng(0).integers(0, len(part), (args.samples, len(part)))
        weights = np.zeros((args.samples, len(part)))
        np.add.at(weights, (np.arange(args.samples)[:, None], draws), 1)
        result[half] = {**found_scores(part, weights), "located": located_scores(part, weights)}
        print_tables(result[half])
    statements.cache_clear()
    start = time.perf_counter()
    for report in reports:
        mentions(report.text)
    result["texts_per_second"] = round(len(reports) / (time.perf_counter() - start))
    print(f"\nspeed, nothing cached: {result['texts_per_second']:,} findings+impression texts/s")
    if args.json and not args.errors:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
