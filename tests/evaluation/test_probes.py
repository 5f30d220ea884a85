"""Linear probes: that they read what is there to be read and no more, and are scored as texts are."""

import json
import re

import numpy as np
import pytest

from hf_cxr import metrics
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.evaluation import probes
from hf_cxr.evaluation.report import page, report_markdown
from hf_cxr.inference.labeler import FINDINGS

NORMAL = "No acute cardiopulmonary abnormality."
TEXTS = [NORMAL, "Cardiomegaly.", NORMAL, "Small left pleural effusion.", "Cardiomegaly and pulmonary edema."] * 40
PATIENTS = [f"patient {index // 2}" for index in range(len(TEXTS))]


def planted(texts, seed, noise=0.3):
    """Features (studies, 12) from which the findings of texts can be read."""
    rng = np.random.default_rng(seed)
    labels, _ = probes.targets(texts)
    stated = labels[:, [FINDINGS.index(name) for name in ("cardiomegaly", "pleural effusion", "edema")]]
    mixed = stated @ np.random.default_rng(0).normal(size=(3, 12))
    return (mixed + noise * rng.normal(size=mixed.shape)).astype(np.float32)


def report_of(said, texts, probe):
    rows = [
        {"uid": str(index), "patient": patient, "impression": truth, "prediction": text, "score": 0.5}
        for index, (patient, text, truth) in enumerate(zip(PATIENTS, said, texts, strict=False))
    ]
    return evaluation.build_report(rows, TEXTS, TEXTS, probes=probe)


@pytest.fixture(scope="module")
def seeing():
    pair = planted(TEXTS, 1), planted(TEXTS, 2)
    return probes.fit_probes(TEXTS, PATIENTS, {"encoder": pair, "pixels": (pair[0], np.roll(pair[1], 1, axis=0))}, 0)


def test_what_can_be_read_linearly_is_read_and_what_cannot_is_not(seeing):
    report = report_of(TEXTS, TEXTS, seeing)
    encoder, pixels = report["probes"]["encoder"], report["probes"]["pixels"]
    assert encoder["finding_f1_micro"] > 0.97
    assert encoder["normal_accuracy"] > 0.97
    assert encoder["normal_auc"] > 0.99
    assert min(row["auc"] for row in encoder["per_finding"].values()) > 0.99
    assert encoder["gain"] < 0.03
    assert pixels["gain_ci95"][0] > 0.3
    assert pixels["normal_gain_p"] < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_features_that_say_nothing_tell_nothing(seed):
    noise = np.random.default_rng(seed).normal(size=(2, len(TEXTS), 12))
    scores = report_of(TEXTS, TEXTS, probes.fit_probes(TEXTS, PATIENTS, {"pixels": noise}, seed))["probes"]["pixels"]
    areas = [scores["normal_auc"], *(row["auc"] for row in scores["per_finding"].values())]
    assert areas == pytest.approx([0.5] * 4, abs=0.15)
    assert scores["finding_f1_micro"] < 0.5


def test_statements_are_scored_as_those_of_a_text_are(seeing):
    said = [TEXTS[index * 7 % len(TEXTS)] if index % 3 else NORMAL for index in range(len(TEXTS))]
    labels, _ = probes.targets(said)
    parrot = seeing["encoder"]._replace(stated=labels, probabilities=labels.astype(float))
    report = report_of(said, TEXTS, {"encoder": parrot})
    scores = report["probes"]["encoder"]
    for name in ("finding_precision_micro", "finding_recall_micro", "finding_f1_micro", "finding_f1_macro"):
        assert scores[name] == report[name]
    assert 0 < scores["normal_accuracy"] == report["normal_accuracy"] < 1
    for name, row in scores["per_finding"].items():
        assert {key: row[key] for key in ("n", "precision", "recall", "f1")}.items() <= report["per_finding"][
            name
        ].items()
    assert (scores["gain"], scores["gain_ci95"], scores["gain_p"]) == (0, [0, 0], 1)
    assert (scores["normal_gain"], scores["normal_gain_ci95"], scores["normal_gain_p"]) == (0, [0, 0], 1)
    unclear = report_of(said, ["The lateral view was not obtained.", *TEXTS[1:]], {"encoder": parrot})
    assert unclear["probes"]["encoder"]["normal_n"] == len(TEXTS) - 1


def test_the_gain_is_the_models_score_less_the_probes_on_the_same_patients(seeing):
    said = [text if index % 4 else NORMAL for index, text in enumerate(TEXTS)]
    report = report_of(said, TEXTS, seeing)
    for probe in report["probes"].values():
        for name, gain in (("finding_f1_micro", "gain"), ("normal_accuracy", "normal_gain")):
            assert probe[gain] == pytest.approx(report[name] - probe[name])
            low, high = probe[f"{gain}_ci95"]
            assert low < probe[gain] < high


def test_the_regression_is_the_optimum():
    rng = np.random.default_rng(0)
    features, _ = probes.principal_axes(rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)), np.zeros((1, 8)))
    labels, counted = rng.random((60, 3)) < [0.1, 0.4, 0.8], rng.random((60, 3)) < 0.9
    ridge = np.array([0.1, 1.0, 20.0])
    found = probes.logistic_regression(features, labels, counted, ridge)
    for column in range(3):
        x = np.hstack([np.ones((60, 1)), features])[counted[:, column]]
        y, penalty = labels[counted[:, column], column], np.diag([0.0] + [ridge[column]] * 8)
        weights = np.zeros(9)
        for _ in range(50):  # Newton's
            p = 1 / (1 + np.exp(-x @ weights))
            slope = x.T @ (p - y) + penalty @ weights
            weights -= np.linalg.solve((x.T * (p * (1 - p))) @ x + penalty, slope)
        assert found[:, column] == pytest.approx(weights, abs=1e-5)


def test_turning_features_keeps_their_distances_and_leaves_constants_out():
    rng = np.random.default_rng(0)
    for shape in ((40, 6), (6, 40)):
        features = rng.normal(size=shape) * 7 + 3
        features[:, 2] = 5.0
        train, same = probes.principal_axes(features, features)
        assert train.shape[1] == 5
        assert same == pytest.approx(train, abs=1e-9)
        plain = np.delete(features, 2, axis=1)
        plain = (plain - plain.mean(0)) / plain.std(0)
        assert train @ train.T == pytest.approx(plain @ plain.T, abs=1e-9)


def test_a_patient_is_in_one_fold_and_folds_are_of_one_size():
    patients = [f"p{number}" for number in np.random.default_rng(0).integers(100, size=400)]
    fold = probes.folds(patients, seed=3)
    assert all(len({f for f, p in zip(fold, patients, strict=True) if p == patient}) == 1 for patient in patients)
    owners = [len({p for f, p in zip(fold, patients, strict=True) if f == number}) for number in range(probes.FOLDS)]
    assert max(owners) - min(owners) <= 1
    assert (fold == probes.folds(patients, seed=3)).all()


def test_what_a_patient_alone_shows_is_not_taken_for_a_finding():
    """Each patient has a feature of its own: within a patient it tells the finding, on held-out patients nothing."""
    rng = np.random.default_rng(0)
    texts = [TEXTS[5 * patient % 3 + 1] if patient % 2 else NORMAL for patient in range(50) for _ in range(4)]
    owner = np.repeat(np.arange(50), 4)
    features = np.eye(50)[owner] + 0.01 * rng.normal(size=(200, 50))
    probe = probes.fit_probes(texts, owner, {"pixels": (features, features)}, 0)["pixels"]
    spread = probe.probabilities[:, -1].std()
    assert spread < 0.1, "the strongest penalty is chosen"
    leaking = probes.fit_probes(texts, range(200), {"pixels": (features, features)}, 0)["pixels"]
    assert leaking.probabilities[:, -1].std() > 3 * spread


def test_the_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        probabilities, labels = rng.integers(1, 9, size=(15, 3)) / 10, rng.random((15, 3)) < 0.3
        tried = {}
        for threshold in np.unique(probabilities):
            stated = probabilities >= threshold
            tried[threshold] = 2 * (stated & labels).sum() / (stated.sum() + labels.sum())
        best = max(tried.values())
        assert probes.best_threshold(probabilities, labels) == max(t for t, score in tried.items() if score == best)


def test_where_nothing_can_be_learned_there_is_no_probe_and_a_rare_finding_is_not_stated():
    features = np.random.default_rng(0).normal(size=(2, 200, 4))

    def fitted(texts, **changed):
        n = len(texts)
        pair = {"pixels": (features[0, :n], features[1])} | changed
        return probes.fit_probes(texts, PATIENTS[:n], pair, 0)

    assert fitted([]) == fitted([NORMAL] * 200) == fitted(["Derrame pleural."] * 200) == fitted(TEXTS[:10]) == {}
    assert probes.fit_probes(TEXTS, PATIENTS, {}, 0) == {}
    assert fitted(TEXTS, pixels=(np.zeros((200, 4)), np.ones((3, 4))))["pixels"].probabilities.shape == (
        3,
        len(FINDINGS) + 1,
    )
    rare = fitted(["Right pneumothorax.", *TEXTS[1:]])["pixels"]
    assert not rare.stated[:, FINDINGS.index("pneumothorax")].any()
    assert set(rare.probabilities[:, FINDINGS.index("pneumothorax")]) == {1 / 200}
    ill = fitted(["Cardiomegaly.", "Small left pleural effusion."] * 100)["pixels"]  # nobody is normal
    assert ill.stated[:, -1].all()
    one = evaluation.build_report(
        [{"uid": "1", "impression": "Cardiomegaly.", "prediction": NORMAL}],
        TEXTS,
        TEXTS,
        probes={"pixels": probes.Probe(rare.probabilities[:1], rare.stated[:1], 0.5, 200, 4)},
    )
    assert one["probes"]["pixels"]["gain_p"] is None
    json.dumps(one, allow_nan=False)


def test_where_no_reference_says_normal_or_abnormal_nothing_is_told_of_it(seeing):
    neither = ["The lateral view was not obtained."] * len(TEXTS)
    probe = report_of(TEXTS, [*neither[1:], "Possible scoliosis."], seeing)["probes"]
    report = report_of(TEXTS, TEXTS, seeing)
    statistics = metrics.study_statistics(TEXTS, neither)
    scores = probes.probe_scores(seeing["pixels"], neither, statistics, PATIENTS, 0)
    assert probe == {}, "findings cannot be read"
    told = {name: scores[name] for name in scores if name.startswith("normal_")}
    assert told.pop("normal_n") == 0
    assert set(told.values()) == {None}
    assert scores["gain_ci95"] is not None
    shown = report | {"probes": {"pixels": scores}}
    assert "| – | – | – | – |" in report_markdown(shown)
    assert "<td>–</td><td>–</td><td>–</td><td>–</td>" in re.sub(r"\s*\n\s*", "", page.report_page(shown, []))


def test_the_penalty_is_the_same_for_a_study_in_a_fold_and_in_the_refit(monkeypatch):
    asked, plain = [], probes.logistic_regression

    def listening(features, labels, counted, ridge):
        asked.append((labels.shape[1], np.broadcast_to(ridge, labels.shape[1])))
        return plain(features, labels, counted, ridge)

    monkeypatch.setattr(probes, "logistic_regression", listening)
    owners = [str(max(0, index - 20)) for index in range(len(TEXTS))]  # one patient has 21 studies, others one
    probes.fit_probes(TEXTS, owners, {"pixels": (planted(TEXTS, 1), planted(TEXTS, 2))}, 0)
    left = len(TEXTS) - np.bincount(probes.folds(owners, 0), minlength=probes.FOLDS)
    assert len(set(left)) > 1
    for ridge, (width, penalty) in zip(probes.RIDGES, asked, strict=False):
        assert penalty == pytest.approx(ridge * np.repeat(left, width // probes.FOLDS))
    assert set(asked[-1][1] / len(TEXTS)) <= set(probes.RIDGES)


def test_pages_tables_and_signature_show_probes_and_nothing_of_them_without(seeing):
    report = report_of(TEXTS, TEXTS, seeing)
    shown = page.report_page(report, []), report_markdown(report)
    for text in shown:
        assert text.count("a linear probe on 16 × 16 pixels") == 3  # in the verdict and in two tables
        assert f"{report['probes']['pixels']['gain']:+.3f}" in text
        assert "probes: L2-regularised logistic regression per finding on 200 training studies" in text
    assert "ows named “baseline” are image-blind. Linear probes look at the images." in shown[0]
    assert "the probe on it is at a disadvantage" in shown[0]
    for text in (page.report_page(report_of(TEXTS, TEXTS, {}), []), report_markdown(report_of(TEXTS, TEXTS, None))):
        assert "probe" not in text.lower()


def test_where_findings_cannot_be_read_there_is_no_probe(seeing):
    report = report_of(["Derrame pleural."] * 200, ["Derrame pleural."] * 200, seeing)
    assert report["findings_unread"]
    assert report["probes"] == {}
    assert "probes" not in report["signature"]
