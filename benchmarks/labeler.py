"""How well `hf_cxr.findings` agrees with the human MeSH tags of the Indiana reports.

    python benchmarks/labeler.py --reports ../shared/data/iu/indiana_reports.csv [--errors FINDING]

Input is findings + impression; truth is the CSV's MeSH column. The rules were tuned on the even uids; the odd uids are
the report, their errors unread. MeSH has no word for uncertainty: the taggers tagged "possible atelectasis" but not
"possible pneumonia", so the table shows both readings, "stated" (positive mentions) and "or possible" (positive or
uncertain).
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from collections.abc import Iterable
from pathlib import Path

from hf_cxr.findings import is_normal, mentions, positive_findings

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
        r"lung diseases, interstitial|pulmonary fibrosis|.*interstitial",
        {"interstitial disease"},
    ),
    "blunted costophrenic angle": (r"costophrenic angle/.*blunted", {"blunted costophrenic angle"}),
    "osteopenia": (r"bone diseases, metabolic|osteoporosis", {"osteopenia"}),
    "pectus excavatum": (r"funnel chest", {"pectus excavatum"}),
}


def read_reports(path: Path) -> list[tuple[int, list[str], str]]:
    """(uid, lower-case MeSH tags, findings + impression) of every report that the taggers indexed."""
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            tags = [tag.strip().lower() for tag in row["MeSH"].split(";")]
            text = f"{row['findings'].strip()} {row['impression'].strip()}".strip()
            if "no indexing" not in tags and text:
                rows.append((int(row["uid"]), tags, text))
    return rows


def tally(rows: Iterable[tuple[bool, bool]]) -> tuple[int, int, int, int]:
    """True positives, false positives, false negatives and the number of true cases."""
    counts = {(t, p): 0 for t in (True, False) for p in (True, False)}
    for pair in rows:
        counts[pair] += 1
    return counts[True, True], counts[False, True], counts[True, False], counts[True, True] + counts[True, False]


def scores(tp: int, fp: int, fn: int, n: int) -> str:
    """Precision, recall and F1 as one cell."""
    return f"{tp / max(tp + fp, 1):9.3f} {tp / max(n, 1):6.3f} {2 * tp / max(2 * tp + fp + fn, 1):6.3f}"


def table(rows: list[tuple[int, list[str], str]]) -> None:
    """Print the scores of every finding, their micro average, and how often normal is told from abnormal."""
    readings = [[positive_findings(text, uncertain=u) for _, _, text in rows] for u in (False, True)]
    print(f"{'':28s} {'stated':>9s} {'':13s} {'or possible':>12s}")
    print(f"{'finding':28s}" + 2 * f" {'precision':>9s} {'recall':>6s} {'F1':>6s}" + f" {'n':>5s}")
    for chosen in (MAP, EXTRA):
        totals = [[0, 0, 0, 0], [0, 0, 0, 0]]
        for name, (pattern, ours) in chosen.items():
            truth = [any(re.match(pattern, tag) for tag in tags) for _, tags, _ in rows]
            cells = [tally((t, bool(p & ours)) for t, p in zip(truth, said, strict=True)) for said in readings]
            totals = [[a + b for a, b in zip(t, c, strict=True)] for t, c in zip(totals, cells, strict=True)]
            print(f"{name:28s} {scores(*cells[0])} {scores(*cells[1])} {cells[0][3]:5d}")
        print(f"{'= micro over the above':28s} {scores(*totals[0])} {scores(*totals[1])} {totals[0][3]:5d}\n")
    agree = sum(is_normal(text) == ("normal" in tags) for _, tags, text in rows)
    print(f"normal or abnormal: accuracy {agree / len(rows):.3f} on {len(rows)} reports")


def snippet(text: str, ours: set[str], width: int = 300) -> str:
    """The sentences that speak of the finding, or the start of the text where none does."""
    about = [s for s in re.split(r"(?<=[.;]) +", text) if not ours or any(m.finding in ours for m in mentions(s))]
    return (" … ".join(about) or text)[:width]


def errors(rows: list[tuple[int, list[str], str]], name: str, strict: bool, limit: int) -> None:
    """Print uid, kind of error, tags or the words around the mention, for one finding (or "normal")."""
    pattern, ours = (MAP | EXTRA).get(name, ("", set()))
    shown = 0
    for uid, tags, text in rows:
        if name == "normal":
            truth, guess = "normal" in tags, is_normal(text)
        else:
            truth = any(re.match(pattern, tag) for tag in tags)
            guess = bool(positive_findings(text, uncertain=not strict) & ours)
        if truth != guess and shown < limit:
            shown += 1
            said = [m for m in mentions(text) if m.status != "negative" and (m.finding in ours or not ours)]
            why = sorted({f"{m.finding} {m.status}" for m in said})
            print(f"{uid:5d} {'missed' if truth else 'false '} {why or ''} {snippet(text, ours)!r} {'; '.join(tags)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True, help="indiana_reports.csv")
    parser.add_argument("--errors", metavar="FINDING", help='list the errors of one finding, or of "normal"')
    parser.add_argument("--half", choices=("even", "odd"), help="only this half (even: tuned on)")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--strict", action="store_true", help="with --errors: count positive mentions only")
    args = parser.parse_args()
    rows = read_reports(args.reports)
    for half in ("even", "odd") if args.half is None else (args.half,):
        part = [row for row in rows if row[0] % 2 == (half == "odd")]
        print(f"\n## {half} uids ({'tuned on' if half == 'even' else 'held out'}), {len(part)} reports")
        if args.errors:
            errors(part, args.errors, args.strict, args.limit)
        else:
            table(part)
    impressions = [text for _, _, text in rows]
    mentions.cache_clear()
    start = time.perf_counter()
    for text in impressions:
        mentions(text)
    print(
        f"\nspeed, nothing cached: {len(impressions) / (time.perf_counter() - start):,.0f} findings+impression texts/s"
    )


if __name__ == "__main__":
    main()
