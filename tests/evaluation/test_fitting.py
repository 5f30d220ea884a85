"""How texts are chosen, from a run's config to its texts: thresholds of minimum risk and settings of a search fitted,
kept, told in signature and card."""

import json
import re

import pytest
import torch
from datasets import DatasetDict
from helpers import TINY_RECIPE, copy_folder, talkative, tiny_checkpoint, write_config
from transformers import pipeline

from hf_cxr.config import parse_arguments
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation import fitting
from hf_cxr.evaluation.bootstrap import of_other_patients
from hf_cxr.evaluation.evaluate import evaluate, validation_scores
from hf_cxr.evaluation.fitting import fit_minimum_risk, fit_search
from hf_cxr.evaluation.prediction import Writer
from hf_cxr.hub.model_card import card_text
from hf_cxr.inference.checks import SEARCH
from hf_cxr.inference.labeler import FINDINGS
from hf_cxr.inference.minimum_risk import RISK, SAMPLES
from hf_cxr.inference.sections import Layout
from hf_cxr.models.modeling import build, load_checkpoint
from hf_cxr.training import run as training
from hf_cxr.training.checks import check_feasible
from hf_cxr.training.run import train

REPEATED = {"probes": False}


@pytest.fixture(scope="module")
def dataset(phantom_folder):
    return load_prepared(str(phantom_folder))


def test_a_run_of_decode_mbr_writes_so_wherever_it_is_read(tmp_path, phantom_folder, dataset):
    values = {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run"), "decode": "mbr", "max_steps": 30}
    values |= {"learning_rate": 1e-2, "max_target_length": 24}
    report = train(*parse_arguments(write_config(tmp_path / "config.yaml", **TINY_RECIPE | values)))
    assert f"decode mbr; samples {SAMPLES}" in report["signature"]
    run = tmp_path / "run"
    settings = json.loads((run / "config.json").read_text())[RISK]
    assert settings["thresholds"].keys() == set(FINDINGS)
    assert settings["studies"] == len(dataset["validation"])
    assert f"{SAMPLES} samples" in (run / "README.md").read_text()
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    pipe = pipeline("cxr-impression", model=str(run))
    studies = [{view: study[view] for view in ("frontal", "lateral")} for study in dataset["test"].select(range(4))]
    assert [answer[0]["impression"] for answer in pipe(studies)] == [row["prediction"] for row in rows[:4]]
    searched = evaluate(str(run), dataset, decode="search", **REPEATED)
    assert "mbr" not in searched["signature"]
    again = evaluate(str(run), dataset, **REPEATED)
    assert again["finding_f1_micro"] == report["finding_f1_micro"]


def test_a_finished_run_gets_thresholds_for_one_report_alone(run_folder, dataset, tmp_path):
    report = evaluate(str(run_folder), dataset, decode="mbr", out=tmp_path / "report", **REPEATED)
    assert f"decode mbr; samples {SAMPLES}" in report["signature"]
    assert RISK not in json.loads((run_folder / "config.json").read_text())


def test_a_run_continued_without_it_forgets_its_thresholds(run_folder, phantom_folder, tmp_path):
    parent = copy_folder(run_folder, tmp_path / "parent")
    config = json.loads((parent / "config.json").read_text())
    config[RISK] = {"samples": 2, "thresholds": {}}
    (parent / "config.json").write_text(json.dumps(config))
    values = {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run"), "init_from": str(parent)}
    train(*parse_arguments(write_config(tmp_path / "config.yaml", **TINY_RECIPE | values | {"max_steps": 1})))
    assert RISK not in json.loads((tmp_path / "run" / "config.json").read_text())


def test_thresholds_are_half_of_the_f1_that_the_samples_let_expect(run_folder, dataset, monkeypatch):
    """Every study believes in one finding by one half, and in no other."""
    writer = Writer(load_checkpoint(str(run_folder)))
    shares = [0.5 * (name == "cardiomegaly") for name in FINDINGS]

    def write(self, canvas, indices, *args):
        return [type("Text", (), {"shares": shares}) for _ in indices]

    monkeypatch.setattr(Writer, "write", write)
    settings = fit_minimum_risk(writer, dataset["validation"])
    expected = 2 * 0.5 / 1.5  # all n are stated: 2 · n/2 / (n + n/2)
    assert settings["thresholds"]["cardiomegaly"] == pytest.approx((expected + expected) / 4, abs=1e-4)
    assert settings["thresholds"]["edema"] == pytest.approx(expected / 4, abs=1e-4)
    assert getattr(writer.model.config, RISK) == settings


def test_without_studies_or_findings_to_read_there_are_no_thresholds(run_folder, dataset, tmp_path):
    writer = Writer(load_checkpoint(str(run_folder)))
    with pytest.raises(ValueError, match="need a validation split"):
        fit_minimum_risk(writer, dataset["validation"].select([]))
    foreign = dataset["validation"].map(lambda row: {"impression": "Sin alteraciones significativas."})
    with pytest.raises(ValueError, match="findings cannot be read"):
        fit_minimum_risk(writer, foreign)
    values = {"dataset": str(tmp_path / "no_validation"), "output_dir": str(tmp_path / "run"), "decode": "mbr"}
    alone = dataset.copy()
    del alone["validation"]
    kit, args = parse_arguments(write_config(tmp_path / "config.yaml", **TINY_RECIPE | values))
    with pytest.raises(ValueError, match="no validation studies to fit thresholds on"):
        check_feasible(alone, kit, args)
    kit.decode = "tuned"
    with pytest.raises(ValueError, match="no validation studies to fit a search on; leave out decode: tuned"):
        check_feasible(alone, kit, args)
    with pytest.raises(ValueError, match="need a validation split"):
        fit_search(writer, dataset["validation"].select([]), validation_scores)


# --- the settings of a search ------------------------------------------------------------------------------------


def reporter(dataset):
    """It writes a report behind an indication, another one for each study."""
    torch.manual_seed(0)
    layout = Layout(("findings", "impression"), ("indication",))
    texts = dataset["train"]["findings"][:100]
    return talkative(build("tiny", "tiny", 32, texts=texts, vocab_size=350, max_new_tokens=12, layout=layout), eyes=2)


def variety(texts, references, patients, seed, elsewhere):
    """In place of the composite, which is 0 of such weights: different words, those of long references count more."""
    parts = [
        [len({*text.split()}) * len(truth) for text, truth in zip(said, references, strict=True)]
        for said in (texts, *(elsewhere or []))
    ]
    return {"composite": sum(map(sum, parts)) / 1e3 / len(set(patients)) + 0.01 * len(parts)}


@pytest.mark.parametrize(("beams", "context"), [(1, False), (2, False), (1, True)])
def test_the_search_of_the_best_composite_is_taken(dataset, monkeypatch, beams, context):
    checkpoint = reporter(dataset) if context else talkative(tiny_checkpoint(), eyes=2)
    few = dataset["validation"].select(range(9))
    monkeypatch.setattr(fitting, "WORTH", 1e-9)
    monkeypatch.setattr(fitting, "LENGTHS", [{"max_new_tokens": 3}, {"max_new_tokens": 12}])  # of 4 tokens
    options = {"num_beams": beams, "max_new_tokens": 4 if beams > 1 else 12}
    writer, encoded = Writer(checkpoint, 4, options), []
    hook = writer.model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    best, told = fit_search(writer, few, variety)
    hook.remove()
    rounds, batches = (2 if beams > 1 else 1), (5 if context else 3)
    assert len(encoded) == rounds * batches, "once for all searches of a round"
    searches = [{}, *(fitting.LENGTHS if beams > 1 else []), *fitting.REPEATS]
    values, start = [], {}
    for place, search in enumerate(searches):
        if beams > 1 and place == 1 + len(fitting.LENGTHS):
            start = searches[values.index(max(values))]
        alone = Writer(checkpoint, 9, options | start | search)
        canvases, prompts = alone.canvases(few), alone.prompts(few)
        own = alone.write(canvases.canvas, range(9), prompt=prompts.__getitem__)
        others = of_other_patients(few["patient"], 0).tolist() if context else []
        # Of those images with the study's own prompt: the prompt is asked for by the place of the image.
        asked = dict(zip(others, prompts, strict=True)) if context else {}
        elsewhere = alone.write(canvases.canvas, others, prompt=asked.__getitem__)
        texts = [[text.of("impression") for text in each] for each in (own, elsewhere) if each]
        values.append(variety(texts[0], few["impression"], few["patient"], 0, texts[1:])["composite"])
        searches[place] = start | search
    assert len({round(value, 4) for value in values}) > 1
    assert best == searches[values.index(max(values))]
    assert ("max_new_tokens" in best) == (beams > 1)
    assert [float(value) for value in re.findall(r" (-?\d\.\d{4})[,;]", told)] == [round(v, 4) for v in values]
    assert f" on {len(few)} validation studies: unchanged " in told


def test_a_tuned_run_keeps_its_search_in_its_generation_config(talkative_run, dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.evaluation, "validation_scores", variety)
    few, run = DatasetDict({name: dataset[name].select(range(9)) for name in ("validation", "test")}), tmp_path / "run"
    copy_folder(talkative_run, run)

    def fitted(decode):
        """As after training, or after a kill since."""
        values = {"dataset": "-", "output_dir": str(run), "decode": decode}
        kit, args = parse_arguments(write_config(tmp_path / "config.yaml", **TINY_RECIPE | values))
        training._fit(load_checkpoint(str(run)), few, kit, args, run)
        return [json.loads((run / name).read_text()) for name in ("config.json", "generation_config.json")]

    plain, (config, generation) = fitted("search"), fitted("tuned")
    told = config[SEARCH]
    [(name, value)] = re.findall(r"; taken: (\w+)=([\d.]+) ", told)
    assert f"{told}\n" in capsys.readouterr().out
    assert generation == plain[1] | {name: float(value)}
    assert fitted("tuned") == [config, generation]
    assert told in card_text(run)
    (run / "generation_config.json").write_text(json.dumps(generation | {"length_penalty": 0.0}))
    signature = evaluate(str(run), few, **REPEATED)["signature"]
    assert "; length_penalty 0.0; " in signature
    assert f"; {name} {value}; " in signature
    assert signature.endswith(f"; {told}")
    assert fitted("search") == plain
    monkeypatch.setattr(fitting, "WORTH", 9.0)
    assert fitted("tuned")[1] == plain[1], "nothing gains as much"


def test_the_search_is_chosen_for_one_report_alone_and_never_on_its_own_studies(talkative_run, dataset):
    few = DatasetDict({name: dataset[name].select(range(9)) for name in ("validation", "test")})
    checkpoint = load_checkpoint(str(talkative_run))
    before = checkpoint.model.generation_config.to_dict(), checkpoint.model.config.to_dict()
    signature = evaluate(checkpoint, few, decode="tuned", num_beams=2, **REPEATED)["signature"]
    assert "; num_beams 2; " in signature
    assert "; decode search; " in signature
    assert "search tuned by the composite on 9 validation studies: unchanged 0.0" in signature
    assert "length_penalty=2.0 0.0" in signature
    assert "; taken: unchanged (+0.0000)" in signature, "where nothing is gained nothing changes"
    assert before == (checkpoint.model.generation_config.to_dict(), checkpoint.model.config.to_dict())
    with pytest.raises(ValueError, match="decode tuned chooses on the validation split"):
        evaluate(checkpoint, few, split="validation", decode="tuned")
