import numpy as np
import pytest

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.inference import labeler

NORMAL = "No acute cardiopulmonary abnormality."
FINDINGS = ["Cardiomegaly.", "Small left pleural effusion.", "Right pneumothorax.", "Pulmonary edema.", "Scoliosis."]


def texts(n: int, right: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of `n` studies that are right with a probability, and drawn blindly otherwise."""
    rng = np.random.default_rng(seed)
    said = [NORMAL, *FINDINGS]
    truth = [said[i] for i in rng.integers(len(said), size=n)]
    return [t if rng.random() < right else said[rng.integers(len(said))] for t in truth], truth


def test_all_studies_of_a_drawn_patient_come_along():
    patients = ["a", "b", "b", "c", "c", "c"]
    weights = np.concatenate(list(bootstrap.patient_weights(patients, 300, seed=0)))
    assert weights.shape == (300, 6)
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all(), "as many patients are drawn as there are"


def test_studies_of_one_patient_do_not_narrow_the_interval():
    said, truth = texts(60, 0.6)
    once = bootstrap.study_intervals(metrics.study_statistics(said, truth), range(60), 0)
    copied = metrics.study_statistics(said * 5, truth * 5)
    by_patient = bootstrap.study_intervals(copied, [*range(60)] * 5, 0)
    as_if_independent = bootstrap.study_intervals(copied, range(300), 0)
    width = [np.diff(bounds["finding_f1_micro"])[0] for bounds in (once, by_patient, as_if_independent)]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert width[2] < 0.6 * width[0]


def test_every_scalar_has_an_interval_that_holds_it():
    said, truth = texts(120, 0.6)
    statistics = metrics.study_statistics(said, truth)
    scores, bounds = statistics.scores(), bootstrap.study_intervals(statistics, range(120), 0)
    assert set(bounds) == set(metrics.SCALARS)
    for name, (low, high) in bounds.items():
        assert low <= scores[name] <= high, name


def test_each_finding_has_an_interval_that_holds_its_f1():
    statistics = metrics.study_statistics(*texts(120, 0.6))
    bounds = bootstrap.finding_intervals(statistics, range(120), 0)
    scores = dict(zip(labeler.FINDINGS, metrics.f1(statistics.findings.sum(0)), strict=True))
    for name in ("cardiomegaly", "scoliosis", "pneumothorax"):
        assert bounds[name][0] < scores[name] < bounds[name][1]
    assert bounds["hiatal hernia"] == [0, 0]


@pytest.mark.parametrize("patients", ["aabbbcd", "aaabbb", "abcdefg", "ab", "aabbcc" * 5])
def test_each_study_is_given_one_of_another_patient_and_each_is_given_once(patients):
    seen = [bootstrap.of_other_patients(list(patients), seed).tolist() for seed in (0, 0, 1, 2, 3)]
    for others in seen:
        assert sorted(others) == list(range(len(patients)))
        assert all(patients[place] != patients[other] for place, other in enumerate(others))
    assert seen[0] == seen[1], "the seed draws"
    assert len(set(map(tuple, seen))) > 1 or len(patients) == 2


def test_of_one_patient_with_most_studies_each_is_given_one_of_another_all_the_same():
    patients = "aaaaabc"
    others = bootstrap.of_other_patients(list(patients), 0)
    assert all(patients[place] != patients[other] for place, other in enumerate(others))
    assert sorted(alone := bootstrap.of_other_patients(["a"] * 4, 0).tolist()) == [0, 1, 2, 3]
    assert all(place != other for place, other in enumerate(alone))
    assert bootstrap.of_other_patients(["a"], 0).tolist() == [0]


def test_one_patient_has_no_interval():
    assert bootstrap.finding_intervals(metrics.study_statistics([NORMAL], [NORMAL]), ["a"], 0) == {}
    assert bootstrap.study_intervals(metrics.study_statistics([NORMAL] * 3, [NORMAL] * 3), ["a"] * 3, 0) == {}


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_shuffle_leaves_no_study_its_own_image(n):
    for order in bootstrap.derangements(n, seed=0):
        assert sorted(order) == list(range(n))
        assert (order != np.arange(n)).all()


def gain_of(said: list[str], truth: list[str]) -> dict:
    shuffled = [
        metrics.study_statistics([said[i] for i in order], truth) for order in bootstrap.derangements(len(said), 0)
    ]
    return bootstrap.image_gain(metrics.study_statistics(said, truth), shuffled, range(len(said)), 0)


def test_the_gain_of_texts_that_know_is_told_from_chance_for_every_score():
    look = gain_of(*texts(200, 0.7))
    for name in ("bleu4", "rougeL", "cider", "exact_match", "finding_f1_micro", "normal_accuracy"):
        low, high = look["image_gain_ci95"][name]
        assert 0 < low < look["image_gain"][name] < high, name
        assert look["image_gain_p"][name] < 0.01


def test_the_gain_of_blind_texts_is_not():
    look = gain_of(*texts(200, 0.0, seed=3))
    low, high = look["image_gain_ci95"]["finding_f1_micro"]
    assert low < 0 < high
    assert look["image_gain_p"]["finding_f1_micro"] > 0.05


def indicators(said: list[str], truth: list[str]) -> tuple[np.ndarray, np.ndarray]:
    counts = metrics.study_statistics(said, truth).findings
    return counts[..., :2].sum(-1) > 0, counts[..., ::2].sum(-1) > 0


def test_the_permutation_test_tells_texts_that_know_from_blind_ones():
    assert bootstrap.permutation_p(*indicators(*texts(200, 0.7)), seed=0) == pytest.approx(1 / 1000)
    p = [bootstrap.permutation_p(*indicators(*texts(80, 0.0, seed)), seed, 199) for seed in range(60)]
    assert np.mean(np.array(p) <= 0.2) < 0.4, "under the hypothesis small p are rare"
    assert np.mean(p) == pytest.approx(0.5, abs=0.12)


def test_a_constant_text_gains_nothing():
    truth = texts(50, 1.0)[1]
    assert bootstrap.permutation_p(*indicators(["Cardiomegaly."] * 50, truth), seed=0) == 1
    assert gain_of(["Cardiomegaly."] * 50, truth)["image_gain"]["finding_f1_micro"] == 0


def test_the_paired_difference_is_surer_than_two_separate_intervals():
    a, truth = texts(300, 0.6)
    b = [t if i % 12 == 0 else said for i, (said, t) in enumerate(zip(a, truth, strict=True))]  # A, improved a little
    statistics = [metrics.study_statistics(said, truth) for said in (a, b)]
    row = bootstrap.paired_difference(*statistics, range(300), 0)["finding_f1_micro"]
    assert row["difference"] == pytest.approx(row["b"] - row["a"])
    assert row["ci95"][0] > 0
    assert row["probability"] > 0.99
    separate = [bootstrap.study_intervals(s, range(300), 0)["finding_f1_micro"] for s in statistics]
    assert separate[1][0] < separate[0][1], "the separate intervals overlap"


def test_a_run_against_itself_is_a_tie():
    said, truth = texts(50, 0.5)
    statistics = metrics.study_statistics(said, truth)
    for row in bootstrap.paired_difference(statistics, statistics, range(50), 0).values():
        assert (row["difference"], row["ci95"], row["probability"], row["p"]) == (0, [0, 0], 0.5, 1)


@pytest.mark.slow
def test_the_interval_covers_the_truth_as_often_as_it_says():
    """A short form of `benchmarks/coverage.py`."""
    knowing, names = 0.6, ("finding_f1_micro", "normal_accuracy")
    large = metrics.study_statistics(*texts(20_000, knowing, seed=99)).scores()
    hits = dict.fromkeys(names, 0)
    for seed in range(200):
        statistics = metrics.study_statistics(*texts(150, knowing, seed))
        bounds = bootstrap.study_intervals(statistics, range(150), seed, samples=300)
        for name in names:
            hits[name] += bounds[name][0] <= large[name] <= bounds[name][1]
    for name in names:
        assert 0.90 < hits[name] / 200 < 0.99, name
