"""How well `hf_cxr.inference.labeler` reads the 200 sentences of six kinds of hospital, by half and style.

    python benchmarks/labeler_sentences.py --half A [--errors]

A text counts as right where all its findings with their status (and, under "with sides", their sides) are the stated
ones. The sentences and their labels are ours: `tests/inference/hospital_sentences.txt`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hf_cxr.inference import labeler

FILE = Path(__file__).parents[1] / "tests" / "inference" / "hospital_sentences.txt"
STATUS = {"+": "positive", "?": "uncertain", "-": "negative"}
MEASURES = ("findings", "with sides", "normality")


class Sentence(NamedTuple):
    style: str
    normality: str
    labels: dict[str, str]
    text: str


def sentences(half: str) -> Iterator[Sentence]:
    """Those of half "A" or "B": of each style the lower or the upper half by SHA-256 of the text."""
    for block in FILE.read_text(encoding="utf-8").split("\n[")[1:]:
        style, *lines = block.strip().split("\n")
        rows = [[cell.strip() for cell in line.split("|")] for line in lines]
        rows.sort(key=lambda row: hashlib.sha256(row[-1].encode()).digest())
        middle = len(rows) // 2
        for normality, labels, text in rows[:middle] if half == "A" else rows[middle:]:
            said = filter(None, labels.split("; "))
            yield Sentence(style.strip("]"), normality, {label[1:]: STATUS[label[0]] for label in said}, text)


def verdicts(sentence: Sentence) -> list[bool]:
    """Whether each of `MEASURES` is read right."""
    plain: dict[str, str] = {}
    for status in ("negative", "uncertain", "positive"):  # the strongest counts
        plain |= {
            re.sub("^(?:right|left) ", "", key): status for key, said in sentence.labels.items() if said == status
        }
    return [
        labeler.label(sentence.text) == plain,
        labeler.sided_label(sentence.text) == sentence.labels,
        labeler.normality(sentence.text) == sentence.normality,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("A", "B"), required=True)
    parser.add_argument("--errors", action="store_true", help="also print what is read wrong")
    args = parser.parse_args()
    chosen = list(sentences(args.half))
    right = np.array([verdicts(sentence) for sentence in chosen])
    print("| style | n | " + " | ".join(MEASURES) + " |\n|---" + 4 * "|--:" + "|")
    for name in [*dict.fromkeys(sentence.style for sentence in chosen), "all"]:
        rows = right[[name in (sentence.style, "all") for sentence in chosen]]
        print(f"| {name} | {len(rows)} | " + " | ".join(f"{share:.3f}" for share in rows.mean(0)) + " |")
    for sentence, seen in zip(chosen, right, strict=True):
        if args.errors and not seen.all():
            read = labeler.sided_label(sentence.text)
            print(f"\n{sentence.text}\n  stated {sentence.normality} {sentence.labels}")
            print(f"  read   {labeler.normality(sentence.text)} {read}")


if __name__ == "__main__":
    main()
