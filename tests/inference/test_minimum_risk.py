"""Minimum-risk decoding: samples that stand for the model's distribution, and the text chosen of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_cxr.evaluation.fitting import expected_f1
from hf_cxr.inference.labeler import FINDINGS
from hf_cxr.inference.minimum_risk import RISK, CodePoints, choose, settings_of

NORMAL, EFFUSION, BOTH = "No acute disease.", "Pleural effusion.", "Pleural effusion. Cardiomegaly."


def thresholds(default: float, **of: float) -> dict:
    return {
        "samples": 4,
        "thresholds": dict.fromkeys(FINDINGS, default) | {k.replace("_", " "): v for k, v in of.items()},
    }


def test_samples_are_spread_over_two_steps_as_the_probabilities_say():
    first, second = torch.tensor([0.3, 0.5, 0.2]), torch.tensor([[0.9, 0.1, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]])
    points, samples = CodePoints(1, 1000), 1000
    tokens = points(torch.zeros(samples + 1, 1), first.log().expand(samples + 1, 3)).argmax(1)
    then = points(torch.zeros(samples + 1, 2), second.log()[tokens]).argmax(1)
    assert (tokens[0], then[0]) == (1, 2), "the greedy text stands first"
    shares = torch.zeros(3, 3).index_put_((tokens[1:], then[1:]), torch.tensor(1 / samples), accumulate=True)
    expected = first[:, None] * second
    assert (shares - expected).abs().max() <= 2 / samples
    assert not shares[expected == 0].any()


def test_errors_of_rounding_change_no_sample_of_long_texts_that_are_all_unlikely():
    """Forty tokens of which each is one of a thousand: the interval that is left is far below any rounding."""
    texts = []
    for error in (0.0, 1e-6):
        points, written = CodePoints(1, 32), torch.zeros(33, 1, dtype=torch.long)
        for step in range(40):
            torch.manual_seed(step)
            scores = torch.randn(1, 1000).expand(33, -1)
            scores = scores + error * torch.randn(33, 1000)
            written = torch.cat([written, points(written, scores).argmax(1, keepdim=True)], 1)
        texts.append(written)
    assert torch.equal(texts[0], texts[1])
    assert len({tuple(text) for text in texts[0][1:].tolist()}) == 32, "samples of their own"


def test_a_sample_never_takes_a_token_that_is_held_back():
    points = CodePoints(1, 64)
    points.points[1] = 0.0
    for _ in range(20):
        scores = torch.full((65, 5), -torch.inf)
        scores[:, 3] = -4.0
        assert (points(torch.zeros(65, 1), scores).argmax(1) == 3).all()


@pytest.mark.parametrize(
    ("default", "chosen"), [(0.1, BOTH), (0.3, EFFUSION), (0.9, NORMAL)], ids=["bold", "middling", "careful"]
)
def test_the_text_states_what_enough_samples_state(default, chosen):
    texts = [NORMAL, BOTH, EFFUSION, EFFUSION, NORMAL]
    place, shares = choose(texts, [True] * 5, thresholds(default))
    assert texts[place] == chosen
    stated = dict(zip(FINDINGS, shares, strict=True))
    assert (stated["pleural effusion"], stated["cardiomegaly"]) == (0.75, 0.25), "the greedy text is no sample"


def test_each_finding_has_its_own_threshold():
    texts = [NORMAL, BOTH, EFFUSION, EFFUSION, NORMAL]
    assert texts[choose(texts, [True] * 5, thresholds(0.5, cardiomegaly=0.2))[0]] == BOTH
    assert texts[choose(texts, [True] * 5, thresholds(0.5, pleural_effusion=0.8))[0]] == NORMAL


def test_of_equal_findings_the_commonest_wording_is_given_then_the_greedy_one():
    texts = ["Effusion.", "There is an effusion.", "Pleural effusion.", "Pleural effusion."]
    assert choose(texts, [True] * 4, thresholds(0.3))[0] == 2
    assert choose(texts[:3], [True] * 3, thresholds(0.3))[0] == 0


def test_a_text_that_was_cut_short_is_the_last_resort():
    texts = [EFFUSION, EFFUSION, NORMAL]
    assert choose(texts, [False, False, True], thresholds(0.1))[0] == 2
    assert choose(texts, [False, False, False], thresholds(0.1))[0] == 0


def test_minimum_risk_is_the_default_of_a_checkpoint_that_has_it_and_no_other_search_is_asked_for():
    own = thresholds(0.3)
    has, lacks = SimpleNamespace(**{RISK: own}), SimpleNamespace()
    assert settings_of(has, {}) == settings_of(has, {"decode": "mbr", "max_new_tokens": 9}) == own
    for options in ({"decode": "search"}, {"num_beams": 4}, {"do_sample": True}, {"num_return_sequences": 2}):
        assert settings_of(has, options) is None
    assert settings_of(lacks, {}) is None
    with pytest.raises(ValueError, match="no thresholds"):
        settings_of(lacks, {"decode": "mbr"})
    with pytest.raises(ValueError, match="leave out num_beams"):
        settings_of(has, {"decode": "mbr", "num_beams": 4})
    with pytest.raises(ValueError, match="mbr or search, not 'MBR'"):
        settings_of(has, {"decode": "MBR"})


def test_the_expected_f1_is_the_best_over_every_set_of_statements():
    beliefs = np.random.default_rng(0).random(9)
    sets = ((np.arange(2**9)[:, None] >> np.arange(9)) & 1).astype(bool)
    best = max(2 * beliefs[one].sum() / (one.sum() + beliefs.sum()) for one in sets if one.any())
    assert expected_f1(beliefs) == pytest.approx(best)
    assert expected_f1(np.zeros(4)) == 0
