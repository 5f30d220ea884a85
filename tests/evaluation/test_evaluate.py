import json
import shutil

import numpy as np
import pytest
from datasets import DatasetDict
from helpers import copy_folder, talkative, tiny_checkpoint

from hf_cxr import metrics
from hf_cxr.data.prepare import prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.evaluation.baselines import BLIND, NEAREST
from hf_cxr.evaluation.calibration import MIN_STUDIES
from hf_cxr.evaluation.prediction import Writer, open_canvases, views_of, without
from hf_cxr.evaluation.report import page, report_markdown
from hf_cxr.inference.checks import CALIBRATION
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.inference.pipeline import ImpressionPipeline
from hf_cxr.models.modeling import load_checkpoint

NORMAL = "No acute cardiopulmonary abnormality."
ABNORMAL = ["Cardiomegaly.", "Small left pleural effusion.", "Right pneumothorax.", "Pulmonary edema.", "Scoliosis."]
STABLE = {"n", "bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider", "finding_f1_micro", "finding_f1_macro"}
STABLE |= {
    "per_finding",
    "distinct_outputs",
    "modal_output",
    "modal_share",
    "baselines",
    "probes",
    "shuffled",
    "image_gain",
    "ci95",
}
STABLE |= {"signature"}


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
    assert set(report) >= STABLE | {"subgroups", "oracle", "inputs", "calibration", "verdict", "reads_images"}
    for scores in (*report["baselines"].values(), report["oracle"], report["shuffled"], report["image_gain"]):
        assert set(scores) >= set(metrics.SCALARS)
    assert tuple(report["baselines"]) == BLIND
    assert report["image_gain"]["bleu4"] == pytest.approx(report["bleu4"] - report["shuffled"]["bleu4"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_where_findings_cannot_be_read_no_subgroup_is_by_findings():
    texts = ["Derrame pleural.", "Cardiomegalia con atelectasia."] * 10
    groups = evaluation.build_report(rows_of(texts, texts), texts, texts)["subgroups"]
    assert {kind for kind, group in groups.items() if group} == {"length", "views"}


def test_a_text_of_one_training_patient_is_not_told_in_the_report(truths):
    train = [NORMAL] * 3 + ["No acute cardiopulmonary abnormality. Mr Doe has cardiomegaly."]
    report = evaluation.build_report(rows_of(truths, truths), train, [train[-1]] * 5)
    assert report["baselines"]["most_frequent"]["modal_output"] == NORMAL
    assert report["baselines"]["best_constant"]["modal_output"] is None
    assert "Doe" not in json.dumps(report)


def test_a_model_that_is_right_reads_the_images(truths):
    report = evaluation.build_report(rows_of(truths, truths), truths, truths)
    assert report["verdict"].startswith("Reads the images: yes")
    assert report["reads_images"] is True
    assert report["permutation_p"] == pytest.approx(0.001)
    assert report["finding_f1_micro"] == 1
    assert report["shuffled"]["finding_f1_micro"] < 0.5


def test_one_constant_sentence_does_not_read_the_images(truths):
    report = evaluation.build_report(rows_of([NORMAL] * len(truths), truths), truths, truths)
    assert report["verdict"].startswith("Does not read the images")
    assert "no better than an image-blind baseline" in report["verdict"]
    assert report["reads_images"] is False
    assert (report["distinct_outputs"], report["modal_share"]) == (1, 1)


@pytest.mark.parametrize("seed", range(5))
def test_texts_drawn_blindly_are_not_shown_to_read_the_images_however_varied(truths, seed):
    blind = [truths[index] for index in np.random.default_rng(seed).permutation(len(truths))]
    report = evaluation.build_report(rows_of(blind, truths), truths, truths)
    assert report["distinct_outputs"] > 1
    assert not report["reads_images"]
    assert report["verdict"].startswith(("Not shown whether the model reads the images", "Does not read the images"))


def test_a_split_without_findings_cannot_tell_whether_the_model_looks():
    report = evaluation.build_report(rows_of([NORMAL] * 30, [NORMAL] * 30), [NORMAL], [NORMAL])
    assert report["reads_images"] is None
    assert "cannot be told" in report["verdict"]


def test_the_interval_narrows_with_more_studies(truths):
    rng = np.random.default_rng(0)
    said = [text if rng.random() < 0.7 else NORMAL for text in truths * 10]
    few = evaluation.build_report(rows_of(said[:60], (truths * 10)[:60]), truths, truths)
    many = evaluation.build_report(rows_of(said, truths * 10), truths, truths)
    widths = [np.diff(report["ci95"]["finding_f1_micro"])[0] for report in (few, many)]
    assert widths[1] < widths[0] / 2


def test_reports_of_one_study_or_without_training_texts_say_what_they_can():
    report = evaluation.build_report(rows_of([NORMAL], [NORMAL]))
    assert (report["baselines"], report["oracle"], report["ci95"], report["reads_images"]) == ({}, {}, {}, None)
    assert "Too few studies" in report["verdict"]
    report_markdown(report)
    two = evaluation.build_report(rows_of([NORMAL, "Cardiomegaly."], [NORMAL, "Cardiomegaly."]))
    assert two["image_gain"]["finding_f1_micro"] == 1
    with pytest.raises(ValueError, match="no studies"):
        evaluation.build_report([])


@pytest.fixture(scope="module")
def evaluated(phantom_folder, tmp_path_factory):
    """Report, rows and folder of an untrained checkpoint on a dataset whose validation split is large enough."""
    dataset = load_prepared(str(phantom_folder))
    train = dataset["train"]
    dataset = DatasetDict(
        train=train.select(range(60)), validation=train.select(range(60, 120)), test=train.select(range(120, 160))
    )
    out, checkpoint = tmp_path_factory.mktemp("evaluated"), talkative(tiny_checkpoint(), eyes=2)
    encoded = []
    hook = checkpoint.model.encoder.register_forward_pre_hook(
        lambda module, args, named: encoded.append(len(named.get("pixel_values", args and args[0]))), with_kwargs=True
    )
    report = evaluation.evaluate(checkpoint, dataset, out=out, batch_size=16)
    hook.remove()
    (out / "encoded").write_text(str(sum(encoded)))
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return report, rows, out, dataset, checkpoint


def test_evaluating_a_checkpoint_fills_the_folder(evaluated):
    report, rows, out, dataset, _ = evaluated
    assert json.loads((out / "report.json").read_text(encoding="utf-8")) == report
    assert {file.name for file in out.iterdir()} - {"encoded"} == {
        "report.json",
        "report.md",
        "report.html",
        "predictions.jsonl",
    }
    assert [row["uid"] for row in rows] == list(dataset["test"]["uid"])
    assert "split test; max_new_tokens 12; num_beams 1" in report["signature"]


def test_an_untrained_model_is_not_shown_to_read_the_images_of_40_studies(evaluated):
    assert evaluated[0]["reads_images"] is None
    assert "too few to tell with 40 patients" in evaluated[0]["verdict"]


def test_every_baseline_is_there_with_the_nearest_neighbours(evaluated):
    assert tuple(evaluated[0]["baselines"]) == (*BLIND, *NEAREST)


def test_probes_learn_from_the_training_split_are_the_same_twice_and_have_a_switch(evaluated):
    report, _, _, dataset, checkpoint = evaluated
    again = evaluation.evaluate(checkpoint, dataset, batch_size=16)
    assert {probe["studies"] for probe in report["probes"].values()} == {60}
    assert list(report["probes"]) == ["encoder", "pixels"]
    assert again["probes"] == report["probes"]
    off = evaluation.evaluate(checkpoint, dataset, batch_size=16, probes=False)
    assert off["probes"] == {}
    assert off["baselines"] == report["baselines"]
    assert "probe" not in off["signature"]


def test_the_model_is_also_asked_with_less_input(evaluated):
    report, rows, _, _, _ = evaluated
    two = sum(row["views"] == "both" for row in rows)
    assert 0 < two < len(rows)
    assert {name: part["n"] for name, part in report["inputs"].items()} == {
        "mean_image": len(rows),
        "both_views": two,
        "frontal_only": two,
        "lateral_only": two,
    }


def test_what_is_said_of_one_view_alone_is_what_the_model_writes_without_the_other(
    phantom_folder, tmp_path, monkeypatch
):
    split, caught, build = load_prepared(str(phantom_folder))["train"].select(range(12)), {}, evaluation.build_report
    two = split.select([i for i, row in enumerate(split) if row["frontal"] and row["lateral"]])
    checkpoint = talkative(tiny_checkpoint(), eyes=2)

    def caught_build(*arguments, **options):
        caught.update(options["inputs"])
        return build(*arguments, **options)

    def written(studies, name):
        evaluation.evaluate(checkpoint, DatasetDict(test=studies), out=tmp_path / name)
        lines = (tmp_path / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["prediction"] for line in lines]

    monkeypatch.setattr(evaluation, "build_report", caught_build)
    assert written(two, "both") == list(caught["both_views"][1])
    monkeypatch.setattr(evaluation, "build_report", build)
    alone = {view: list(caught[f"{view}_only"][1]) for view in ("frontal", "lateral")}
    assert alone["frontal"] != alone["lateral"]
    for view, other in (("frontal", "lateral"), ("lateral", "frontal")):
        without = two.map(lambda row, other=other: {other: None}, features=two.features)
        assert written(without, view) == alone[view]


def test_each_row_tells_what_was_matched_missed_and_invented(evaluated):
    _, rows, _, _, _ = evaluated
    for row in rows:
        there, stated = set(row["matched"]) | set(row["missed"]), set(row["matched"]) | set(row["invented"])
        assert there == positive_findings(row["impression"], sided=True)
        assert stated == positive_findings(row["prediction"], sided=True)
    assert any(row["missed"] for row in rows)


def test_a_checkpoint_without_calibration_gets_one_for_the_report_from_the_validation_split(evaluated):
    report, rows, _, _, checkpoint = evaluated
    assert (report["calibration"]["source"], report["calibration"]["n_fit"]) == ("validation split", 60)
    assert report["calibration"]["n"] == len(rows)
    assert getattr(checkpoint.model.config, CALIBRATION, None) is None, "the checkpoint itself is left as it is"
    assert {row["score"] for row in rows} != {row["sequence_probability"] for row in rows}


def test_the_split_that_is_evaluated_is_never_calibrated_on(evaluated):
    _, _, _, dataset, checkpoint = evaluated
    report = evaluation.evaluate(checkpoint, dataset, split="validation", batch_size=16)
    assert report["calibration"] is None


def test_too_small_a_validation_split_makes_no_calibration(evaluated):
    _, _, _, dataset, checkpoint = evaluated
    few = DatasetDict(validation=dataset["validation"].select(range(MIN_STUDIES - 1)))
    assert evaluation.calibrate(checkpoint, few) is None


def test_what_cannot_be_evaluated_is_told_before_any_time_is_spent(evaluated, tmp_path, monkeypatch):
    _, _, _, dataset, checkpoint = evaluated
    monkeypatch.setattr(Writer, "canvases", None)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file, not a folder"):
        evaluation.evaluate(checkpoint, dataset, out=tmp_path / "file")
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation, test"):
        evaluation.evaluate(checkpoint, dataset, split="dev")
    with pytest.raises(ValueError, match="holds no studies"):
        evaluation.evaluate(checkpoint, DatasetDict(test=dataset["test"].select([])))


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


def test_a_damaged_file_of_a_dataset_is_named(phantom_folder, tmp_path):
    folder = copy_folder(phantom_folder, tmp_path / "data")
    (file,) = folder.glob("data/test-*.parquet")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match=rf"^{file}: is damaged"):
        load_prepared(folder)


def test_no_canvas_is_encoded_twice_in_an_evaluation(evaluated):
    _, _, out, dataset, checkpoint = evaluated
    splits = {name: open_canvases(checkpoint, dataset[name]) for name in dataset}
    whole = {name: [canvases.canvas(i) for i in range(len(canvases))] for name, canvases in splits.items()}
    halves = [without(c, v) for c in whole["test"] if views_of(c) == "both" for v in ("frontal", "lateral")]
    different = {canvas.tobytes() for canvas in (*whole["train"], *whole["validation"], *whole["test"], *halves)}
    assert int((out / "encoded").read_text()) == len(different) + 1, "the mean image comes on top"


def test_a_canvas_that_comes_again_gets_the_same_text_and_mean_without_another_pass(evaluated):
    _, _, _, dataset, checkpoint = evaluated
    canvases, writer = open_canvases(checkpoint, dataset["test"]), Writer(checkpoint, 8)
    texts = writer.write(canvases.canvas, [3, 1, 3, 3])
    means = writer.embed(canvases)["nearest_encoder"]
    assert texts[0] == texts[2] == texts[3] != texts[1]
    assert means == pytest.approx(Writer(checkpoint, 8).embed(canvases)["nearest_encoder"], abs=1e-5)
    writer.model = None  # nothing is left to be asked of it
    assert writer.write(canvases.canvas, [1, 3]) == [texts[1], texts[0]]


@pytest.fixture(scope="module")
def small(evaluated, tmp_path_factory):
    """The checkpoint in a folder, as one that is served with two beams, and few studies."""
    _, _, _, dataset, checkpoint = evaluated
    folder = tmp_path_factory.mktemp("served") / "run"
    checkpoint.model.generation_config.num_beams = 2
    checkpoint.save_pretrained(folder)
    checkpoint.model.generation_config.num_beams = 1
    return folder, DatasetDict(train=dataset["train"].select(range(30)), test=dataset["test"].select(range(8)))


def test_what_is_evaluated_is_what_is_served(small, tmp_path):
    folder, dataset = small
    report = evaluation.evaluate(folder, DatasetDict(test=dataset["test"]), out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    parts, said = load_checkpoint(folder), [row["prediction"] for row in rows]
    canvases = open_canvases(parts, dataset["test"])
    greedy, two = (Writer(parts, 32, {"num_beams": n}).write(canvases.canvas, range(8)) for n in (1, 2))
    assert said == [text.text for text in two]
    assert said != [text.text for text in greedy]
    assert "max_new_tokens 12; num_beams 2; dtype float32" in report["signature"]


def test_a_text_that_was_cut_short_has_one_score_in_the_pipeline_and_in_evaluate(small, tmp_path):
    folder, dataset = small
    run = copy_folder(folder, tmp_path / "run")
    config, short = json.loads((run / "config.json").read_text()), {"max_new_tokens": 4, "num_beams": 1}
    config[CALIBRATION] = {"event": "", "n": 60, "x": [0.0, 1.0], "y": [0.3, 0.9]}
    (run / "config.json").write_text(json.dumps(config))
    evaluation.evaluate(run, DatasetDict(test=dataset["test"]), out=tmp_path / "out", **short)
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    parts = load_checkpoint(run)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    answers = [pipe({view: study[view] for view in ("frontal", "lateral")}, **short)[0] for study in dataset["test"]]
    assert [row["truncated"] for row in rows] == ["truncated" in answer for answer in answers]
    assert [row["score"] for row in rows] == pytest.approx([answer["score"] for answer in answers], abs=1e-4)
    assert {row["score"] == 0 for row in rows if row["truncated"]} == {True}
    assert all(row["score"] >= 0.3 for row in rows if not row["truncated"])


def test_a_large_training_split_is_sampled_and_the_report_says_so(small, monkeypatch):
    folder, dataset = small
    monkeypatch.setattr(evaluation, "NEAREST_STUDIES", 20)
    report = evaluation.evaluate(folder, dataset, dtype="bfloat16")
    assert report["nearest_among"] == {"studies": 20, "of": 30}
    assert "nearest study and mean image: of 20 training studies drawn from 30" in report["signature"]
    assert "that of 20 drawn from 30" in page.sentences(report)["scores"]
    assert report["dtype"] == "bfloat16"
    assert "; dtype bfloat16" in report["signature"]
    assert "drawn from" not in page.sentences(report | {"nearest_among": {"studies": 30, "of": 30}})["scores"]


def test_weights_that_change_meanwhile_get_no_report_of_the_old_ones(small, tmp_path, monkeypatch):
    folder, dataset = small
    run, plain = copy_folder(folder, tmp_path / "run"), evaluation.build_report

    def retrained(*args, **kwargs):
        other = load_checkpoint(folder)
        other.model.decoder.lm_head.weight.data += 1
        other.model.save_pretrained(run)
        return plain(*args, **kwargs)

    monkeypatch.setattr(evaluation, "build_report", retrained)
    with pytest.raises(ValueError, match="weights that are not those of this report"):
        evaluation.evaluate(run, DatasetDict(test=dataset["test"]), out=run)
    shutil.copy(folder / "model.safetensors", run)
    with pytest.raises(ValueError, match="its weights changed meanwhile, so no report is written; evaluate again"):
        evaluation.evaluate(run, DatasetDict(test=dataset["test"]), out=tmp_path / "elsewhere")
    assert not list(tmp_path.rglob("report.json"))
    assert not list(tmp_path.rglob("predictions.jsonl"))


def test_a_report_is_not_written_beside_the_weights_of_another_run(small, tmp_path, monkeypatch):
    folder, dataset = small
    other = copy_folder(folder, tmp_path / "other")
    with (other / "model.safetensors").open("ab") as file:
        file.write(b" ")
    monkeypatch.setattr(Writer, "canvases", None)  # told before any time is spent
    with pytest.raises(ValueError, match=f"^{other}: holds weights that are not those of this report"):
        evaluation.evaluate(folder, dataset, out=other)


def test_a_calibration_that_was_fitted_on_the_scored_studies_is_told(evaluated):
    report, _, _, dataset, _ = evaluated
    checkpoint = talkative(tiny_checkpoint(), eyes=2)
    curve = evaluation.calibrate(checkpoint, dataset)
    config, writer = checkpoint.model.config, Writer(checkpoint)

    def fitted_here(split, studies=dataset):
        return evaluation.calibration_for(writer, studies, split)[2]

    setattr(config, CALIBRATION, curve)
    assert fitted_here("validation")
    assert not fitted_here("test")
    assert not fitted_here("validation", DatasetDict(validation=dataset["test"])), "that of another dataset"
    setattr(config, CALIBRATION, {name: value for name, value in curve.items() if name != "studies"})
    assert fitted_here("validation"), "earlier versions did not note the studies; the split's name is what is known"
    assert not fitted_here("test")
    told = "was fitted on these very studies"
    flattered = report | {"calibration": report["calibration"] | {"fitted_here": True}}
    for some, expected in ((flattered, True), (report, False)):
        assert (told in report_markdown(some)) == expected
        assert (told in page.report_page(some, [])) == expected
        assert (told in page.sentences(some)["calibration"]) == expected, "the card shows this sentence"


def test_a_dataset_of_an_earlier_version_is_evaluated_as_before(run_folder, phantom_folder):
    dataset = load_prepared(str(phantom_folder))
    dataset = DatasetDict({name: split.select(range(8)) for name, split in dataset.items()})
    old = dataset.remove_columns(["comparison", "technique", "uncertain", "projection"])
    assert evaluation.evaluate(run_folder, old) == evaluation.evaluate(run_folder, dataset)
