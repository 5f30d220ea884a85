"""How far `hf_cxr.metrics` is from the libraries that define the measures, and how fast it is.

    python benchmarks/metrics.py [--reports ../shared/data/iu/indiana_reports.csv] [--published FOLDER]

Pairs are phantom impressions and, with `--reports`, real ones: against each other, cut, shuffled, against noise of
words, marks and digits, equal, of one word, and empty. They are compared as one corpus and as many small ones, of one
study and more. `--published` is a folder `bleu` with the files of evaluate's published module (huggingface/evaluate,
metrics/bleu); pycocoevalcap is compared where it is installed (`pip install --no-deps pycocoevalcap`; its Java parts
are not used). The last table gives the seconds of `study_statistics` and its scores for 10,000 pairs, nothing cached,
on one core.
"""

from __future__ import annotations

import argparse
import csv
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hf_cxr import metrics
from hf_cxr.data.sources import phantom_text
from hf_cxr.inference.labeler import statements
from hf_cxr.metrics import content, overlap, texts

Pairs = tuple[list[str], list[str]]
NOISE = (
    'no acute disease effusion . , ; small 1.2 cm, (right) left-sided 3-4 5. X-ray &amp; A/P "mild" it\'s ...'.split()
)


def phantom_impressions(n: int, seed: int) -> list[str]:
    """Impressions of `n` synthetic studies."""
    return [phantom_text.report(phantom_text.plan(seed, i))[0] for i in range(n)]


def real_impressions(path: Path) -> list[str]:
    """Every impression of indiana_reports.csv that is not empty."""
    with path.open(newline="", encoding="utf-8") as file:
        return [text for row in csv.DictReader(file) if (text := row["impression"].strip())]


def make_pairs(impressions: Sequence[str], n: int, dice: random.Random) -> Pairs:
    """`n` pairs of something said and an impression; one impression in twenty gives way to noise or nothing."""
    predictions, references = [], []
    for truth in dice.choices(impressions, k=n):
        words = truth.split()
        said = [
            truth,
            "",
            dice.choice(words),
            *dice.choices(impressions, k=2),
            " ".join(words[: dice.randint(1, len(words))]),
            " ".join(dice.sample(words, len(words))),
            " ".join(dice.choices(NOISE + words, k=dice.randint(1, 30))),
        ]
        predictions.append(dice.choice(said))
        references.append(truth if dice.random() < 0.95 else dice.choice(["", *NOISE, " ".join(NOISE)]))
    return predictions, references


def parts(pairs: Pairs, dice: random.Random, n: int = 300) -> list[Pairs]:
    """The whole corpus and `n` random small ones from it, of one study and more."""
    chosen = [dice.sample(range(len(pairs[0])), dice.choice([1, 2, 5, 20])) for _ in range(n)]
    return [pairs, *(([pairs[0][i] for i in some], [pairs[1][i] for i in some]) for some in chosen)]


def largest(ours: Callable[[Pairs], Sequence[float]], theirs: Callable[[Pairs], Sequence[float]], corpora) -> float:
    """The largest difference of two functions over corpora."""
    return max(abs(a - b) for pairs in corpora for a, b in zip(ours(pairs), theirs(pairs), strict=True))


def bleu_orders(pairs: Pairs) -> list[float]:
    return list(metrics.corpus_bleu(*pairs).values())


def compare(name: str, pairs: Pairs, published: Path | None, dice: random.Random) -> None:
    """Print one line for each measure and library: the largest difference on these pairs."""
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    corpora = parts(pairs, dice)
    plain = [sacrebleu.BLEU(max_ngram_order=n, smooth_method="none", force=True) for n in range(1, 5)]
    rouge = RougeScorer(["rougeL"], use_stemmer=False)
    lines: dict[str, float] = {
        "BLEU-1..4, sacreBLEU without smoothing": largest(
            bleu_orders, lambda p: [metric.corpus_score(p[0], [p[1]]).score / 100 for metric in plain], corpora
        ),
        "sacreBLEU (0-100), sacreBLEU": largest(
            lambda p: [float(metrics.sacrebleu(*p)["score"])],
            lambda p: [sacrebleu.corpus_bleu(p[0], [p[1]], force=True).score],
            corpora,
        ),
        "sentence BLEU-4, sacreBLEU": largest(
            lambda p: overlap.sentence_bleu_per_study(metrics.bleu_statistics(*p)).tolist(),
            lambda p: [sacrebleu.sentence_bleu(a, [b]).score / 100 for a, b in zip(*p, strict=True)],
            corpora[:1],
        ),
        "ROUGE-L, rouge-score": largest(
            lambda p: metrics.rouge_l_per_study(*p).tolist(),
            lambda p: [rouge.score(b, a)["rougeL"].fmeasure for a, b in zip(*p, strict=True)],
            corpora[:1],
        ),
    }
    if published:
        import evaluate

        module = evaluate.load(str(published))

        def orders(p: Pairs) -> list[float]:
            results = [module.compute(predictions=p[0], references=p[1], max_order=n) for n in range(1, 5)]
            return [result["bleu"] for result in results]

        lines["BLEU-1..4, evaluate's published bleu"] = largest(bleu_orders, orders, corpora[:60])
    try:
        from pycocoevalcap.cider.cider_scorer import CiderScorer
    except ImportError:
        print("pycocoevalcap is not installed: CIDEr not compared")
    else:

        def coco(p: Pairs) -> list[float]:
            scorer = CiderScorer()
            for said, truth in zip(*(cider_strings(side) for side in p), strict=True):
                scorer += (said, [truth])
            return (
                scorer.compute_score()[1].tolist() if any(map(str.split, cider_strings(p[1]))) else [0.0] * len(p[0])
            )

        lines["CIDEr, pycocoevalcap on the same tokens"] = largest(
            lambda p: overlap.cider_per_study(
                *([text.split() for text in cider_strings(side)] for side in p)
            ).tolist(),
            coco,
            corpora,
        )
    print(f"\n{name}: {len(pairs[0]):,} pairs, {len(corpora):,} corpora\n")
    for measure, difference in lines.items():
        print(f"| {measure} | {difference:.1e} |")


def cider_strings(side: Sequence[str]) -> list[str]:
    """The tokens of CIDEr, joined."""
    return [" ".join(texts.cider_tokens(tokens)) for tokens in texts.tokenize_13a_all(side)]


def speed(name: str, pairs: Pairs, rounds: int) -> None:
    """Print the seconds of `study_statistics`, scores included, with every cache emptied before each round."""
    seconds = []
    for _ in range(rounds):
        for cached in (statements, texts.tokenize_13a, content._said, overlap.legacy):
            cached.cache_clear()
        start = time.process_time()
        metrics.study_statistics(*pairs).scores()
        seconds.append(time.process_time() - start)
    different = len(set(pairs[0]) | set(pairs[1]))
    words = sum(len(text.split()) for side in pairs for text in side) / len(pairs[0]) / 2
    print(
        f"| {name} | {len(pairs[0]):,} | {different:,} | {words:.1f} | {statistics.median(seconds):.2f} "
        f"({min(seconds):.2f}-{max(seconds):.2f}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=Path, help="indiana_reports.csv")
    parser.add_argument("--published", type=Path, help="folder of evaluate's published bleu module")
    parser.add_argument("--pairs", type=int, default=6000, help="pairs of each kind that are compared")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed measurement")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dice = random.Random(args.seed)
    collections = {"phantom": phantom_impressions(20_000, args.seed)}
    if args.reports:
        collections["real"] = real_impressions(args.reports)
    for name, impressions in collections.items():
        compare(name, make_pairs(impressions, args.pairs, dice), args.published, dice)
    print("\n| speed: pairs | n | different texts | words a text | CPU s, median (range) |")
    for name, impressions in collections.items():
        chosen = [dice.choice(impressions) for _ in range(20_000)]
        speed(name, (chosen[:10_000], chosen[10_000:]), args.rounds)
        unique = list(
            dict.fromkeys(
                f"{a} {b}" for a, b in zip(*(dice.choices(impressions, k=60_000) for _ in range(2)), strict=True)
            )
        )
        speed(f"{name}, two in each text, no text twice", (unique[:10_000], unique[10_000:20_000]), args.rounds)


if __name__ == "__main__":
    main()
