from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.evaluation import calibration
from hf_cxr.inference.answers import calibrated


def overconfident(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose true rate is their square."""
    rng = np.random.default_rng(seed)
    p = rng.random(n)
    return p, rng.random(n) < p**2


def test_a_fitted_calibration_brings_scores_nearer_to_rates_on_new_studies():
    curve = calibration.fit(*overconfident(800, 0))
    p, correct = overconfident(2000, 1)
    scores = calibrated(curve, p)
    assert calibration.expected_calibration_error(p, correct) > 0.12
    assert calibration.expected_calibration_error(scores, correct) < 0.05
    assert calibration.brier(scores, correct) < calibration.brier(p, correct)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=50, max_size=120))
def test_a_calibration_never_reverses_two_scores_and_stays_a_probability(pairs):
    curve = calibration.fit(*zip(*pairs, strict=True))
    scores = calibrated(curve, np.linspace(0, 1, 101))
    assert all(a <= b for a, b in pairwise(scores))
    assert scores[0] > 0
    assert scores[-1] < 1
    assert sorted(curve["x"]) == curve["x"]
    assert len(curve["x"]) <= calibration.KNOTS


def test_the_isotonic_fit_pools_what_runs_the_wrong_way():
    knots, rates = calibration.isotonic([0.4, 0.1, 0.3, 0.2, 0.5], [1, 1, 0, 0, 1])
    assert knots == pytest.approx([0.2, 0.45]), "0.1 to 0.3 have a falling rate, 0.4 and 0.5 one rate"
    assert rates == pytest.approx([2 / 5, 3 / 4]), "1 of 3 and 2 of 2, each with one study more, half right"


def test_equal_probabilities_get_one_rate_whatever_their_order():
    for outcomes in ([1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]):
        assert calibration.isotonic([0.5] * 4, outcomes) == ([0.5], [0.5])


def test_too_few_studies_make_no_calibration():
    assert calibration.fit(*overconfident(calibration.MIN_STUDIES - 1, 0)) is None
    assert calibrated(None, [0.25, 0.75]) == [0.25, 0.75]


def test_perfect_scores_have_no_calibration_error_and_confident_errors_all():
    assert calibration.expected_calibration_error([1.0] * 5 + [0.0] * 5, [True] * 5 + [False] * 5) == 0
    assert calibration.expected_calibration_error([1.0] * 4, [False] * 4) == 1
    assert calibration.expected_calibration_error([0.0] * 4, [True] * 4) == 1, "too modest is wrong as well"


def test_reliability_counts_every_study_once_and_keeps_equal_scores_together():
    scores = [0.1] * 30 + [0.5] * 5 + [0.9] * 65
    curve = calibration.reliability(scores, [i % 2 == 0 for i in range(100)])
    assert [row["n"] for row in curve] == [30, 70]
    assert [row["n"] for row in calibration.reliability(range(100), [True] * 100, bins=10)] == [10] * 10
    assert [row["mean_score"] for row in curve] == sorted({row["mean_score"] for row in curve})
    for row in curve:
        assert row["ci95"][0] <= row["rate"] <= row["ci95"][1]


def test_wilsons_interval_is_the_published_one():
    low, high = calibration.wilson(0.9, 10)  # Newcombe 1998: 9 of 10
    assert (low, high) == pytest.approx((0.596, 0.982), abs=1e-3)
    assert calibration.wilson(0.0, 5)[0] == 0


def test_declining_the_least_sure_studies_lowers_the_risk():
    p, correct = overconfident(1000, 2)
    curve = calibration.risk_coverage(p, correct)
    assert len(curve) <= calibration.CURVE_POINTS
    assert curve[-1]["coverage"] == 1
    assert curve[-1]["risk"] == pytest.approx(1 - correct.mean())
    half = min(curve, key=lambda point: abs(point["coverage"] - 0.5))
    assert half["risk"] < curve[-1]["risk"] - 0.2
    answered = p >= half["threshold"]
    assert half["coverage"] == pytest.approx(answered.mean())
    assert half["risk"] == pytest.approx(1 - correct[answered].mean())


def test_a_score_that_tells_nothing_has_the_area_of_the_error_rate():
    correct = [True, False, False, True, False]
    assert calibration.area_under_risk_coverage([0.5] * 5, correct) == pytest.approx(0.6)
    assert calibration.area_under_risk_coverage([5, 1, 2, 4, 3], correct) < 0.4
