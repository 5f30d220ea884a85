import json

import numpy as np
import pytest
import torch
from helpers import radiograph, tiny_checkpoint

from hf_cxr import evaluation, metrics
from hf_cxr.canvases import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.dataset import load_prepared, prepare
from hf_cxr.pipeline import decode, generate

NORMAL = "No acute cardiopulmonary abnormality."
ABNORMAL = ["Cardiomegaly.", "Small left pleural effusion.", "Right pneumothorax.", "Pulmonary edema.", "Scoliosis."]


def rows_of(predictions, references):
    return [
        {"uid": str(index), "impression": truth, "prediction": said, "score": 0.5}
        for index, (said, truth) in enumerate(zip(predictions, references, strict=True))
    ]


@pytest.fixture
def truths():
    return [NORMAL, *ABNORMAL] * 20


def test_the_report_holds_the_stable_keys(truths):
    report = evaluation.build_report(rows_of(truths, truths), truths, truths)
    scores = {"bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider", "finding_f1_micro", "finding_f1_macro"}
    assert set(report) >= scores | {"n", "per_finding", "distinct_outputs", "modal_output", "modal_share", "floors"}
    assert set(report) >= {"shuffled", "image_gain", "ci95", "signature"}
    for floor in report["floors"].values():
        assert set(floor) >= scores
    assert set(report["shuffled"]) >= scores
    assert report["image_gain"]["bleu4"] == pytest.approx(report["bleu4"] - report["shuffled"]["bleu4"])
    json.dumps(report)


def test_a_model_that_is_right_reads_the_images(truths):
    report = evaluation.build_report(rows_of(truths, truths), truths, truths)
    assert report["verdict"].startswith("Reads the images: yes")
    assert report["finding_f1_micro"] == 1
    assert report["shuffled"]["finding_f1_micro"] < 0.5


def test_one_constant_sentence_does_not_read_the_images(truths):
    report = evaluation.build_report(rows_of([NORMAL] * len(truths), truths), truths, truths)
    assert report["verdict"].startswith("Does not read the images")
    assert report["distinct_outputs"] == 1
    assert report["modal_share"] == 1


def test_texts_drawn_blindly_do_not_read_the_images_however_varied(truths):
    blind = [truths[index] for index in np.random.default_rng(1).permutation(len(truths))]
    report = evaluation.build_report(rows_of(blind, truths), truths, truths)
    assert report["distinct_outputs"] > 1
    assert report["verdict"].startswith("Does not read the images")


def test_the_best_constant_beats_every_other_training_sentence_on_validation():
    train = [
        NORMAL,
        "No acute disease.",
        "Cardiomegaly.",
        "No acute cardiopulmonary abnormality. Heart size is normal.",
    ]
    validation = [NORMAL] * 3 + ["No acute cardiopulmonary disease.", "Heart size is normal."]
    chosen = evaluation.best_constant(train, validation)
    scores = {text: metrics.corpus_bleu([text] * len(validation), validation)["bleu4"] for text in train}
    assert scores[chosen] == max(scores.values())


def test_floors_never_see_the_test_texts(truths):
    floors = evaluation.floor_predictions(truths, ["Cardiomegaly."], 7, seed=0)
    assert all(len(texts) == 7 and set(texts) <= set(truths) for texts in floors.values())
    assert evaluation.floor_predictions(truths, [NORMAL], 7, 0) == evaluation.floor_predictions(truths, [NORMAL], 7, 0)


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_shuffle_leaves_no_study_its_own_image(n):
    for order in evaluation.derangements(n, seed=0):
        assert sorted(order) == list(range(n))
        assert (order != np.arange(n)).all()


def test_generating_from_permuted_images_is_permuting_the_texts():
    checkpoint = tiny_checkpoint()
    checkpoint.model.eval()
    pixels = torch.stack([torch.from_numpy(radiograph(seed, 32, 64)).float() / 128 - 1 for seed in range(8)])
    pixels = pixels[:, None].expand(-1, 3, -1, -1)
    order = next(evaluation.derangements(8, seed=0))
    straight, permuted = (generate(checkpoint.model, batch)["sequences"] for batch in (pixels, pixels[order.copy()]))
    assert torch.equal(straight[order.copy()], permuted)


def test_every_study_of_a_split_is_predicted_once_in_order_whatever_the_batch(phantom_folder):
    checkpoint, split = tiny_checkpoint(), load_prepared(str(phantom_folder))["test"]
    runs = [evaluation.predict_split(checkpoint, split, batch_size=size) for size in (1, 7)]
    for rows in runs:
        assert [row["uid"] for row in rows] == list(split["uid"])
    assert [row["prediction"] for row in runs[0]] == [row["prediction"] for row in runs[1]]
    assert [row["score"] for row in runs[0]] == pytest.approx([row["score"] for row in runs[1]], rel=1e-4)


def test_the_score_is_the_probability_of_the_whole_text(phantom_folder):
    checkpoint, split = tiny_checkpoint(), load_prepared(str(phantom_folder))["test"]
    model = checkpoint.model.eval()
    canvas = CanvasDataset(pack_dataset(split, 32), 32)[0]
    pixels = CanvasCollator(checkpoint.image_processor)([canvas])["pixel_values"]
    for beams in (1, 3):
        output = generate(model, pixels, num_beams=beams)
        sequence = output["sequences"][0].clone()
        logits = model(pixel_values=pixels, decoder_input_ids=sequence[:, :-1]).logits.log_softmax(-1)
        steps = logits.gather(-1, sequence[:, 1:, None])[0, :, 0]
        steps = steps[sequence[0, 1:] != checkpoint.tokenizer.pad_token_id]
        score = decode(checkpoint.tokenizer, sequence, output["scores"][0])[0]["score"]
        assert score == pytest.approx(steps.sum().exp().item(), rel=1e-3)


def test_the_interval_holds_the_score_and_narrows_with_more_studies(truths):
    rng = np.random.default_rng(0)
    said = [text if rng.random() < 0.7 else NORMAL for text in truths * 10]
    few = evaluation.build_report(rows_of(said[:60], (truths * 10)[:60]), truths, truths)
    many = evaluation.build_report(rows_of(said, truths * 10), truths, truths)
    for report in (few, many):
        low, high = report["ci95"]["finding_f1_micro"]
        assert low < report["finding_f1_micro"] < high
    widths = [np.diff(report["ci95"]["finding_f1_micro"])[0] for report in (few, many)]
    assert widths[1] < widths[0] / 2


def test_reports_of_one_study_or_without_training_texts_say_what_they_can(truths):
    report = evaluation.build_report(rows_of([NORMAL], [NORMAL]), [], [])
    assert report["floors"] == {}
    assert "Too few studies" in report["verdict"]
    evaluation.report_markdown(report)


def test_a_dataset_prepared_anew_in_the_same_folder_is_not_served_from_the_cache(tmp_path):
    for seed in (0, 1):
        prepare("phantom", tmp_path / "dataset", size=16, num_studies=30, seed=seed, overwrite=True)
        uids = load_prepared(str(tmp_path / "dataset"))["train"]["uid"]
        assert all(uid.startswith(f"phantom-{seed}-") for uid in uids)


def test_a_folder_that_is_no_prepared_dataset_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="run hf-cxr prepare"):
        load_prepared(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no such prepared dataset"):
        load_prepared(str(tmp_path / "nowhere"))
