"""What each cleaning rule finds in the published impressions and what is left of it: the tables of `docs/cleaning.md`.

python benchmarks/cleaning.py --reports ../shared/data/iu/NLMCXR_reports.tgz [--pairs 40]
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import tarfile
import time
from pathlib import Path
from xml.etree import ElementTree

from hf_cxr.data.study import PLACEHOLDER_POLICIES, clean_text
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.inference.targets import sentences

KINDS: dict[str, str] = {
    "enumeration marker (1., 2.)": r"(?:^|(?<=[.!?:;] ))\d{1,2}[.)],?\s*(?=[^\W\d])",
    "placeholder (XXXX)": r"X{3,}",
    "doubled full stop": r"\.\s*\.",
    "white space before punctuation": r"\s[.,;:](?!\d)",
    "no space after a full stop": r"[a-z]{2}\.[A-Z][a-z]",
    "doubled white space or line break": r"\s\s|\n",
    "mark-up (<BR>, [&lt;)": r"<BR>|&[lg]t;",
    "no full stop at the end": r"[^.!?]$",
    "empty": r"^$",
}


def read_impressions(path: Path) -> list[str]:
    """The impressions that are not empty, as published but for outer white space: Open-i's archive or Kaggle's CSV."""
    if path.suffix == ".tgz":
        with tarfile.open(path) as archive:
            files = (archive.extractfile(member) for member in archive if member.name.endswith(".xml"))
            found = [ElementTree.parse(file).find(".//AbstractText[@Label='IMPRESSION']") for file in files if file]
        return [text for node in found if node is not None and (text := (node.text or "").strip())]
    with path.open(newline="", encoding="utf-8") as file:
        return [text for row in csv.DictReader(file) if (text := row["impression"].strip())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, required=True, help="NLMCXR_reports.tgz or indiana_reports.csv")
    parser.add_argument(
        "--pairs", type=int, default=0, help="also print so many random before/after pairs with placeholders"
    )
    parser.add_argument("--changed", action="store_true", help="pairs of any change, not only of placeholders")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    published = read_impressions(args.reports)
    start = time.perf_counter()
    cleaned = {policy: [clean_text(text, policy) for text in published] for policy in PLACEHOLDER_POLICIES}
    speed = len(published) * len(PLACEHOLDER_POLICIES) / (time.perf_counter() - start)

    print(f"{len(published)} impressions; how many hold …\n")
    print(f"| | published | {' | '.join(PLACEHOLDER_POLICIES)} |\n|---|---:|{'---:|' * len(PLACEHOLDER_POLICIES)}")
    for kind, pattern in KINDS.items():
        counts = [sum(bool(re.search(pattern, t)) for t in texts) for texts in (published, *cleaned.values())]
        print(f"| {kind} | {' | '.join(map(str, counts))} |")
    said = [positive_findings(text, uncertain=True) for text in published]
    lost = [
        sum(a != positive_findings(b, uncertain=True) for a, b in zip(said, texts, strict=True))
        for texts in cleaned.values()
    ]
    for name, count in (
        ("changed", [sum(a != b for a, b in zip(published, c, strict=True)) for c in cleaned.values()]),
        ("other findings than published", lost),
        ("distinct texts", [len(set(c)) for c in (published, *cleaned.values())]),
        ("words in all", [sum(len(t.split()) for t in c) for c in (published, *cleaned.values())]),
        ("sentences in all", [sum(len(sentences(t)) for t in c) for c in (published, *cleaned.values())]),
    ):
        cells = ["", *map(str, count)] if len(count) < 4 else list(map(str, count))
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n{speed:,.0f} impressions/s on one core")

    pairs = [
        (a, b) for a, b in zip(published, cleaned["drop"], strict=True) if a != b and (args.changed or "XXXX" in a)
    ]
    for before, after in random.Random(args.seed).sample(pairs, min(args.pairs, len(pairs))):
        print(f"\n- {before}\n+ {after}")


if __name__ == "__main__":
    main()
