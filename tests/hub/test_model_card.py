import getpass
import itertools
import json
import re
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import copy_folder, radiograph, state_licence
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image
from transformers import TrainerState

from hf_cxr.cli import commands
from hf_cxr.cli import parser as cli
from hf_cxr.config import parse_arguments
from hf_cxr.data.collection import INDIANA, Collection
from hf_cxr.evaluation.evaluate import build_report
from hf_cxr.evaluation.report import REPORT_FILES, score_table, tables
from hf_cxr.evaluation.report.page import sentences
from hf_cxr.hub import model_card, model_card_tables
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.metrics import SCALARS
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.training.run import save_run

WITHOUT_KIT = "import sys\nsys.modules['hf_cxr'] = None  # as where it is not installed\n"


@pytest.fixture
def facts() -> dict:
    return {
        "folder": "runs/mine",
        "dataset": "phantom",
        "dataset_on_hub": False,
        "preparation": {"source": "phantom"},
        "splits": {"train": 8, "test": 2},
        "encoder": "tiny",
        "decoder": "tiny",
        "base_models": ["google/vit-base-patch16-224-in21k", "openai-community/gpt2"],
        "panel_size": 224,
        "findings_pretraining_epochs": 0,
        "epochs": 3,
        "max_steps": -1,
        "learning_rate": 1e-4,
        "batch_size": 16,
        "view_dropout": 0.0,
        "seed": 0,
        "minutes": 1.5,
        "recipe": {"learning_rate": 1e-4},
        "resumed": False,
        "trained_epochs": 4.0,
        "trained_steps": 100,
        "best_step": 75,
        "findings_pretrained": True,
        "device": "CPU",
        "machine": "Linux x86_64",
        "processes": 1,
        "versions": model_card.library_versions(),
    }


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return copy_folder(run_folder, tmp_path / "mine")


def report_of(run: Path) -> dict:
    return json.loads((run / "report.json").read_text())


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]


def told_rows(*texts: tuple[str, str]) -> list[dict]:
    """Rows of predictions.jsonl for pairs of truth and output, the first of the lowest score."""
    rows = []
    for i, (truth, said) in enumerate(texts):
        there, stated = positive_findings(truth, sided=True), positive_findings(said, sided=True)
        sets = {"matched": there & stated, "missed": there - stated, "invented": stated - there}
        row = {"uid": str(i), "impression": truth, "prediction": said, "score": 0.1 * i}
        rows.append(row | {name: sorted(part) for name, part in sets.items()})
    return rows


def card_of(run: Path, facts: dict, *texts: tuple[str, str]) -> str:
    """The card of a run whose test studies are pairs of truth and output, if any."""
    if texts:
        rows = told_rows(*texts)
        (run / "report.json").write_text(json.dumps(build_report(rows)))
        (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model_card.write_model_card(run, facts)
    text = (run / "README.md").read_text()
    assert_well_formed(text)
    return text


def table_below(text: str, words: str) -> list[list[str]]:
    """The cells of the first table after `words`, head and rule left out."""
    lines = itertools.dropwhile(lambda line: not line.startswith("|"), text[text.index(words) :].splitlines())
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows][2:]


def assert_well_formed(text: str) -> None:
    """No hole and no seam of the template shows, and every table is whole."""
    assert "{{" not in text
    assert "{%" not in text
    assert not re.search(r"\bNone\b|\bnan\b", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert "\n\n\n" not in text
    lines = text.splitlines()
    for above, line, below in zip(lines, lines[1:], lines[2:], strict=False):
        if re.fullmatch(r"\|( ?-+ ?\|)+", line):
            cells = [re.sub(r"\\\|", "", row).count("|") for row in (above, line, below)]
            assert len(set(cells)) == 1, (above, line, below)


def test_the_card_of_a_run_holds_its_true_figures_with_the_baselines_beside_them(run_folder, phantom_folder):
    report = report_of(run_folder)
    text = (run_folder / "README.md").read_text()
    assert_well_formed(text)
    assert score_table(report) in text
    assert report["verdict"] in text
    assert json.loads((phantom_folder / "prepare.json").read_text())["splits_sha256"] in text
    assert "baseline: the constant of best BLEU-4" in text
    assert f"; {load_checkpoint(str(run_folder)).model.num_parameters():,} parameters)" in text
    assert "images shuffled" in text
    assert sentences(report)["image_shuffle"] in text
    assert re.search(r"research use only", text, re.IGNORECASE)
    for name, row in report["per_finding"].items():
        assert f"| {name} | {row['n']} |" in text
    rows = {row[0]: row[1:] for row in table_below(text, "### Every score")}
    assert len(rows) == len(SCALARS)
    for name in SCALARS:
        low, high = report["ci95"][name]
        shown = rows[tables.SCORES[name]]
        assert shown[:3] == [f"{report[name]:.3f}", f"{low:.3f} to {high:.3f}", f"{report['shuffled'][name]:.3f}"]


def test_every_score_stands_beside_shuffled_images_and_the_best_image_blind_baseline():
    truths = ["Small right pleural effusion.", "Cardiomegaly is noted today.", "Normal chest radiograph."]
    rows = told_rows(*((truth, truth) for truth in truths))
    report = build_report(rows, train=["Normal chest radiograph."] * 3, nearest={"nearest_pixels": truths})
    table = {row[0]: row[1:] for row in table_below(tables.every_score(report), "|")}
    blind = [scores["rougeL"] for name, scores in report["baselines"].items() if name != "nearest_pixels"]
    assert max(blind) < report["baselines"]["nearest_pixels"]["rougeL"] == 1
    assert report["shuffled"]["rougeL"] < 1
    assert table["ROUGE-L"][0] == "1.000"
    assert table["ROUGE-L"][2:] == [f"{report['shuffled']['rougeL']:.3f}", f"{max(blind):.3f}"]


def test_the_metadata_is_what_the_hub_expects_with_every_score(run_folder):
    data, report = metadata_load(run_folder / "README.md"), report_of(run_folder)
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-to-text"
    assert data["license"] == "apache-2.0"
    assert {"bleu", "rouge"} <= set(data["metrics"])
    loaded = ModelCard.load(run_folder / "README.md").data
    values = {result.metric_name.split(" (")[0]: result.metric_value for result in loaded.eval_results}
    for name in SCALARS:
        assert values[name] == pytest.approx(report[name], abs=1e-4), name
    assert {result.dataset_split for result in loaded.eval_results} == {"test"}
    again = eval_results_to_model_index(*model_index_to_eval_results(data["model-index"]))
    assert again == data["model-index"]
    assert_the_hub_takes(data)


def assert_the_hub_takes(data: dict) -> None:
    """What the Hub's specification of a model card's metadata asks (modelcard.md of its hub-docs)."""
    hub_id = r"(?:[\w-]+/)?[\w.-]+"
    assert data.get("license", "other") in {"apache-2.0", "mit", "other", "unknown", "cc-by-nc-nd-4.0"}
    assert re.fullmatch(r"[a-z]{2,3}", data["language"])
    assert all(re.fullmatch(hub_id, name) for key in ("datasets", "base_model") for name in data.get(key, []))
    assert all(isinstance(tag, str) for key in ("tags", "metrics") for tag in data[key])
    for model in data.get("model-index", []):
        assert isinstance(model["name"], str)
        for result in model["results"]:
            assert result["task"]["type"] == data["pipeline_tag"]
            assert re.fullmatch(hub_id, result["dataset"]["type"])
            assert result["dataset"]["name"]
            for metric in result["metrics"]:
                assert isinstance(metric["value"], (int, float))
                assert re.fullmatch(r"[a-z0-9_A-Z]+", metric["type"])


def test_a_dataset_folder_of_any_name_gives_metadata_that_the_hub_takes(run):
    facts = json.loads((run / model_card.FACTS).read_text())
    model_card.write_model_card(run, facts | {"dataset": "films of June (2)", "preparation": {}})
    data = metadata_load(run / "README.md")
    assert_the_hub_takes(data)
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == "films of June (2)"


def test_the_snippet_runs_as_printed_where_the_kit_is_not_installed(run, tmp_path):
    for seed, view in enumerate(("frontal", "lateral")):
        Image.fromarray(radiograph(seed)).save(tmp_path / f"{view}.png")
    facts = json.loads((run / model_card.FACTS).read_text()) | {"folder": run.name}
    model_card.write_model_card(run, facts)
    snippets = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)
    assert snippets
    for snippet in snippets:
        words = [sys.executable, "-c", WITHOUT_KIT + snippet]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr[-2000:]
        assert re.search(r" \d\.\d+(e-\d+)?$", result.stdout.strip()), "the impression and its score are printed"


def test_the_snippet_names_the_repository_that_the_run_is_pushed_to(run_folder):
    assert 'pipeline(model="user/name", trust_remote_code=True)' in model_card.card_text(run_folder, "user/name")
    assert f'pipeline(model="{run_folder.name}", ' in model_card.card_text(run_folder), (
        "a place on the machine is not told"
    )


@pytest.mark.parametrize(
    ("given", "told"),
    [("runs/iu", "runs/iu"), ("/home/somebody/iu", "iu"), ("../iu", "iu"), ("~/iu", "iu")],
)
def test_a_folder_is_told_as_it_was_named_unless_that_tells_of_the_machine(given, told):
    assert model_card._as_given(Path(given)) == told


def test_findings_are_counted_in_whole_numbers_as_the_predictions_have_them(run_folder):
    true = found = stated = 0
    for row in rows_of(run_folder):
        truth, said = (positive_findings(row[name]) for name in ("impression", "prediction"))
        true, found, stated = true + len(truth), found + len(truth & said), stated + len(said)
    assert true > 0
    assert model_card_tables.finding_counts(report_of(run_folder)) == {"true": true, "found": found, "stated": stated}


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([("Cardiomegaly.", "Cardiomegaly."), ("Edema.", "Normal.")] * 5, "**50** (5 of 10) and misses 50"),
        ([("Cardiomegaly.", "Normal."), ("Pleural effusion. Edema.", "Cardiomegaly. Edema.")], "**33** (1 of 3)"),
        (
            [("Cardiomegaly.", "Normal."), ("Pleural effusion. Edema.", "Cardiomegaly. Edema.")],
            "**50** are right (1 of 2)",
        ),
        ([("Cardiomegaly.", "Normal."), ("Normal.", "Normal.")], "It states no finding at all"),
        ([("Cardiomegaly.", "Edema."), ("Normal.", "Normal.")], "Not one of the findings that it states is right"),
        ([("Normal.", "Edema."), ("Normal.", "Normal.")], "No text of these 2 studies states a finding"),
    ],
)
def test_what_finding_scores_mean_is_told_in_plain_words(tmp_path, facts, texts, told):
    assert told in card_of(tmp_path, facts, *texts)


def test_f1_by_chance_is_the_mean_over_all_ways_of_dealing_out_the_texts():
    truths = ["Cardiomegaly.", "Cardiomegaly.", "Edema.", "Normal.", "Normal."]
    texts = ["Cardiomegaly.", "Cardiomegaly. Edema.", "Cardiomegaly.", "Normal.", "Normal."]

    def f1(order) -> float:
        pairs = [("Cardiomegaly" in truth, "Cardiomegaly" in texts[i]) for truth, i in zip(truths, order, strict=True)]
        return 2 * sum(a and b for a, b in pairs) / sum(a + b for a, b in pairs)

    orders = list(itertools.permutations(range(5)))
    rows = [{"uid": str(i), "impression": truths[i], "prediction": texts[i]} for i in range(5)]
    expected = sum(map(f1, orders)) / len(orders)
    assert tables.chance_f1(build_report(rows)["per_finding"]["cardiomegaly"], 5) == pytest.approx(expected)


def test_failures_are_chosen_by_rule_the_surest_and_the_worst(tmp_path, facts):
    right = [("Edema.", "Edema.")] * 2
    wrong = [("Edema.", "Normal.")] * 4 + [("Edema. Nodule.", "Cardiomegaly.")] + [("Nodule.", "Normal.")] * 4
    text = card_of(tmp_path, facts, *right, *wrong)
    assert "In 9 of 11 studies the text misses or invents a finding" in text
    surest, worst = (table_below(text, words) for words in ("**Surely wrong**", "**Most wrong**"))
    assert [row[0] for row in surest] == ["1.00", "0.90", "0.80", "0.70", "0.60", "0.50"]
    assert surest[4][1:4] == ["–", "edema, nodule", "cardiomegaly"]
    assert [row[0] for row in worst] == ["0.60", "1.00", "0.90", "0.80", "0.70", "0.50"]
    assert surest[0][4:] == ["Nodule.", "Normal."]
    assert model_card_tables.failures(told_rows(*right), show_texts=True) == {}


def test_no_report_of_a_patient_is_on_a_card(run):
    texts = {"impression": "Lingular scarring, unlike that of the zebra.", "prediction": "Chronic zebra | changes."}
    rows = [row | texts for row in rows_of(run)]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = json.loads((run / model_card.FACTS).read_text())
    real = facts | {"dataset": "kaggle", "preparation": facts["preparation"] | {"source": "kaggle"}}
    real["preparation"]["collection"] = asdict(INDIANA)
    text = card_of(run, real)
    assert "zebra" not in text
    assert table_below(text, "**Surely wrong**"), "what was missed and invented is told"
    assert "reports of patients are not shown" in text
    assert "Demner-Fushman" in text
    assert "Indiana, USA" in text, "the limits of the data"
    assert "No licence is stated. The reports and images that it learned from are licensed CC-BY-NC-ND-4.0" in text
    assert "license" not in metadata_load(run / "README.md"), "the licence of the data has a say"
    for unknown in ({"dataset": "phantom", "preparation": {}}, {"dataset": "somebody/phantom", "preparation": {}}):
        text = card_of(run, facts | unknown)
        assert "zebra" not in text, "a name is no proof that no patient is behind a text"
        assert "Trained on synthetic" not in text
        assert "license" not in metadata_load(run / "README.md")
    phantom_model_on_patients = {"dataset": "kaggle", "split": "test", "own": False, "source": "kaggle"}
    assert "zebra" not in card_of(run, facts | {"evaluated_on": phantom_model_on_patients})
    text = card_of(run, facts)
    assert "zebra" in text, "the phantom's texts may be shown"
    assert "Demner-Fushman" not in text


def test_the_files_of_a_card_tell_nothing_of_the_machine(run_folder, phantom_folder):
    for name in (model_card.FACTS, model_card.CARD):
        text = (run_folder / name).read_text()
        for place in (run_folder.parent, phantom_folder.parent, Path.home(), Path.cwd()):
            assert str(place) not in text
        assert socket.gethostname() not in text or len(socket.gethostname()) < 6
        assert f"/{getpass.getuser()}/" not in text


def test_the_figures_are_of_this_report_and_on_the_card(run):
    report = report_of(run)
    report["calibration"] = None
    (run / "report.json").write_text(json.dumps(report))
    (run / "figures" / "risk.png").write_bytes(b"of an earlier report")
    model_card.write_model_card(run)
    named = set(re.findall(r"\]\((figures/[^)]+)\)", (run / "README.md").read_text()))
    assert named == {f"figures/{file.name}" for file in (run / "figures").iterdir()}
    assert {"figures/image_shuffle.png", "figures/findings.png"} <= named
    for name in named:
        assert Image.open(run / name).size[0] > 300


def test_a_card_of_a_model_trained_on_the_phantom_says_that_it_knows_no_patients(run_folder, tmp_path, facts):
    assert "Trained on synthetic images alone" in (run_folder / "README.md").read_text()
    assert "synthetic" not in card_of(tmp_path, facts | {"dataset": "kaggle", "preparation": {"source": "kaggle"}})


@pytest.mark.parametrize("scratch", [{"from_scratch": False}, {}])  # `base_models` alone is what earlier runs know
def test_what_pretrained_parts_know_and_allow_is_not_the_phantoms(tmp_path, facts, scratch):
    facts |= {"preparation": {"source": "phantom"}} | scratch
    text = card_of(tmp_path, facts)
    assert "**Fine-tuned on synthetic images alone**" in text
    assert "knows nothing of patients" not in text
    assert "No licence is stated. Images and texts that it was fine-tuned on are synthetic" in text
    assert "license" not in metadata_load(tmp_path / "README.md")
    text = card_of(tmp_path, facts | {"base_models": [], "from_scratch": True})
    assert "**Trained on synthetic images alone**" in text
    assert metadata_load(tmp_path / "README.md")["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("words", "scratch"),
    [
        ([], True),
        (["--encoder", "google/vit"], False),
        (["--decoder", "runs/other"], False),
        (["--resume_from_checkpoint", "runs/other/checkpoint-5"], False),
    ],
)
def test_a_run_knows_whether_its_weights_began_as_noise(tmp_path, words, scratch):
    (tmp_path / "c.yaml").write_text(f"dataset: {tmp_path}\nencoder: tiny\ndecoder: small\nuse_cpu: true\n")
    assert (
        model_card.training_facts(*parse_arguments(tmp_path / "c.yaml", words), {}, {}, 1.0)["from_scratch"] is scratch
    )


@pytest.mark.parametrize(
    ("preparation", "told"),
    [
        ({"studies_without_a_patient": 0}, "Split by patient.\n"),
        ({"studies_without_a_patient": 1200}, "1,200 studies name none, so a patient may be in two splits.\n"),
        ({}, "Whether a patient is in two splits is not known to hf-cxr.\n"),
    ],
)
def test_a_split_by_patient_is_claimed_only_where_patients_are_named(tmp_path, facts, preparation, told):
    text = card_of(tmp_path, facts | {"preparation": preparation})
    assert told in text
    assert text.count("plit by patient.") == ("Split by patient." in told)


def test_a_run_without_evaluation_says_so(tmp_path, facts):
    text = card_of(tmp_path, facts)
    assert text.count("Not evaluated") == 2
    assert "finding F1" not in text
    assert not (tmp_path / "figures").exists()
    data = metadata_load(tmp_path / "README.md")
    assert "model-index" not in data
    assert data["base_model"] == facts["base_models"]
    assert "Energy: not measured" in text


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (None, "a text of such a probability stated exactly the findings of the radiologist's impression"),
        (["findings"], "a text of such a probability stated exactly the findings of the radiologist's findings"),
        (
            ["findings", "impression"],
            "the impression of a text of such a probability stated exactly the findings of the radiologist's "
            "impression",
        ),
    ],
)
def test_a_card_says_of_which_section_a_score_speaks(tmp_path, facts, sections, told):
    layout = {"cxr_layout": {"sections": sections, "context": []}} if sections else {}
    curve = {"x": [0.0, 1.0], "y": [0.0, 1.0], "n": 60}
    (tmp_path / "config.json").write_text(json.dumps(layout | {"cxr_calibration": curve}))
    assert f"on 60 validation studies, {told}, sides told apart." in " ".join(card_of(tmp_path, facts).split())


def test_one_study_makes_a_whole_card_without_intervals(tmp_path, facts):
    text = card_of(tmp_path, facts, ("Small right pleural effusion.", "Normal | chest.\nNormal."))
    assert "it is not calibrated" in text
    assert "There are no intervals" in text
    assert "On the one study of the" in text
    assert "Too few studies to say" in text
    assert "images shuffled" not in text.split("### Every score")[0]
    assert table_below(text, "**Surely wrong**")[0][-1] == r"Normal \| chest. Normal."


def test_the_card_says_that_the_probe_on_an_encoder_trained_on_these_studies_is_at_a_disadvantage(tmp_path, facts):
    none = dict.fromkeys(("gain_ci95", "normal_accuracy", "normal_gain", "normal_gain_ci95", "normal_auc"))
    probes = {"encoder": {"finding_f1_micro": 0.5, "gain": 0.1} | none}
    pairs = [("Cardiomegaly.", "Cardiomegaly."), ("Normal chest.", "Scoliosis.")]
    (tmp_path / "report.json").write_text(json.dumps(build_report(told_rows(*pairs)) | {"probes": probes}))
    recipe, told = facts["recipe"] | {"freeze_encoder": True}, "the probe on it is at a disadvantage"
    for changed, said in (
        ({}, True),
        ({"recipe": recipe}, False),
        ({"recipe": recipe, "findings_pretrained": True}, True),
    ):
        text = " ".join(card_of(tmp_path, facts | {"findings_pretrained": False} | changed).split())
        assert (told in text) == said
        assert "Linear probes look at the images. Shuffled is" in text
        assert "| a linear probe on its own encoder | 0.500 | +0.100 | – | – | – | – | – |" in text


def test_the_recipe_says_what_was_trained_and_for_how_long(tmp_path, facts):
    plain = card_of(tmp_path, facts)
    assert (
        "Findings pretraining of the encoder for 0 epochs, then sequence-to-sequence fine-tuning for\n4 epochs"
        in plain
    )
    assert "1.5 minutes on CPU, Linux x86_64, 1 process. Energy: not measured" in plain
    judged = card_of(tmp_path, facts | {"findings_kept": {"epoch": 2.0, "mean_auc": 0.81234, "findings": 9}})
    assert "0 epochs (epoch 2 kept: mean AUC 0.812 over 9 findings on the validation split), then" in judged
    recipe = {"lora_rank": 8, "freeze_encoder": True, "view_dropout": 0.0}
    text = card_of(tmp_path, facts | {"recipe": recipe, "resumed": True, "findings_pretrained": False, "processes": 2})
    assert "Sequence-to-sequence fine-tuning of low-rank adapters (rank 8, merged into the weights)" in text
    assert "with the encoder frozen for" in text
    assert "minutes since it was last resumed on CPU, Linux x86_64, 2 processes" in text
    for name in facts["base_models"]:
        assert f"(https://huggingface.co/{name})" in text


@pytest.mark.parametrize(
    ("encoder", "decoder", "told"),
    [
        ("tiny", "small", []),
        ("google/vit", "gpt2", ["google/vit", "gpt2"]),
        ("user/ckpt", "user/ckpt", ["user/ckpt"]),
        ("/home/somebody/moved away", "../gone", []),
    ],
)
def test_base_models_are_the_parts_that_came_from_the_hub(tmp_path, encoder, decoder, told):
    (tmp_path / "c.yaml").write_text(f"dataset: x\nencoder: {encoder}\ndecoder: {decoder}\nuse_cpu: true\n")
    kit, _ = parse_arguments(tmp_path / "c.yaml")
    assert model_card._base_models(kit) == told


def test_a_dataset_on_the_hub_is_named_with_its_own_preparation_report(tmp_path, facts, phantom_folder, monkeypatch):
    monkeypatch.setattr(model_card, "hf_hub_download", lambda repo, name, **options: str(phantom_folder / name))
    there = model_card.dataset_facts("somebody/chests")
    text = card_of(tmp_path, facts | there)
    assert "[somebody/chests](https://huggingface.co/datasets/somebody/chests)" in text
    assert there["preparation"]["splits_sha256"] in text
    assert metadata_load(tmp_path / "README.md")["datasets"] == ["somebody/chests"]

    def gone(*words, **options):
        raise FileNotFoundError("no prepare.json")

    monkeypatch.setattr(model_card, "hf_hub_download", gone)
    nothing_known = model_card.dataset_facts("somebody/chests")
    assert nothing_known == {"dataset": "somebody/chests", "dataset_on_hub": True, "preparation": {}, "licence": None}
    assert "| step |" not in card_of(tmp_path, facts | nothing_known)


def test_a_folder_that_is_gone_is_no_dataset_on_the_hub(tmp_path, facts):
    gone = model_card.dataset_facts(str(tmp_path / "films"))
    assert gone == {"dataset": "films", "dataset_on_hub": False, "preparation": {}, "licence": None}
    assert "huggingface.co/datasets" not in card_of(tmp_path, facts | gone)


def test_the_licence_of_data_of_ones_own_is_what_its_card_says(tmp_path, facts, phantom_folder):
    data = copy_folder(phantom_folder, tmp_path / "data")
    state_licence(data, "cc-by-4.0")
    (data / "prepare.json").write_text(
        json.dumps(
            json.loads((data / "prepare.json").read_text()) | {"source": "table", "collection": asdict(Collection())}
        )
    )
    assert "learned from are licensed CC-BY-4.0" in card_of(tmp_path, facts | model_card.dataset_facts(str(data)))


def test_a_dataset_whose_card_is_broken_can_be_trained_on(phantom_folder, tmp_path):
    data = copy_folder(phantom_folder, tmp_path / "data")
    (data / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert model_card.dataset_facts(str(data))["licence"] is None


def test_no_text_of_a_model_that_learned_from_patients_is_shown_whatever_it_was_evaluated_on(run):
    facts = json.loads((run / model_card.FACTS).read_text())
    facts["evaluated_on"] = {"dataset": "phantom", "split": "test", "own": False, "source": "phantom"}
    pair = ("Normal.", "Pneumothorax of a zebra.")
    assert "zebra" in card_of(run, facts, pair)
    facts["preparation"] = {"source": "kaggle"}
    text = card_of(run, facts, pair)
    assert "Where it fails" in text
    assert "zebra" not in text


def test_a_score_that_is_no_number_is_not_in_the_metadata(run):
    (run / "report.json").write_text(json.dumps(report_of(run) | {"cider": float("nan"), "bleu2": None}))
    model_card.write_model_card(run)
    told = {result.metric_name for result in ModelCard.load(run / "README.md").data.eval_results}
    assert "bleu1" in told
    assert not told & {"cider", "bleu2"}


def test_a_recipe_on_a_card_names_no_path(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: x\nencoder: tiny\ndecoder: small\nuse_cpu: true\n")
    kit, args = parse_arguments(tmp_path / "c.yaml", ["--run_name", "/films/run", "--seed", "3"])
    recipe = model_card.training_facts(kit, args, {}, {}, 1.0)["recipe"]
    assert recipe["seed"] == 3
    assert "/films" not in json.dumps(recipe)


def test_a_run_in_the_working_folder_is_called_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("dataset: x\nencoder: tiny\ndecoder: small\nuse_cpu: true\noutput_dir: .\n")
    assert model_card.training_facts(*parse_arguments(tmp_path / "c.yaml", []), {}, {}, 1.0)["folder"] == tmp_path.name


def test_a_card_is_written_with_its_figures_and_facts_or_not_at_all(run, monkeypatch):
    def held():
        return {file: file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}

    before, drawn = held(), model_card.draw_png(report_of(run))
    (run / "report.json").write_text(json.dumps(report_of(run) | {"verdict": "Another."}))
    before[run / "report.json"] = (run / "report.json").read_bytes()
    monkeypatch.setattr(
        model_card, "draw_png", lambda _: dict.fromkeys(drawn, b"new") | {"x" * 300: b"a name too long"}
    )
    with pytest.raises(OSError, match="name too long"):
        model_card.write_model_card(run)
    assert held() == before


def evaluate(*words: object) -> None:
    commands.run_evaluate(cli.make_parser().parse_args(["evaluate", *map(str, words)]))


def test_an_evaluation_into_the_runs_own_folder_writes_its_card_anew(run, phantom_folder, tmp_path, capsys):
    before = (run / "README.md").read_text()
    (run / "report.json").write_text("{}")
    evaluate(run, phantom_folder, "--split", "validation", "--no-probes", "--out", tmp_path / "elsewhere")
    assert report_of(tmp_path / "elsewhere")["probes"] == {}
    assert (run / "README.md").read_text() == before
    assert "hf-cxr evaluate:" not in capsys.readouterr().err
    evaluate(run, phantom_folder, "--split", "validation", "--out", run)
    text = (run / "README.md").read_text()
    assert_well_formed(text)
    assert report_of(run)["split"] == "validation"
    assert score_table(report_of(run)) in text
    assert text.count("| a linear probe on its own encoder |") == 2
    assert "on the validation split of `phantom`, the studies that its weights and its score were chosen on" in text
    assert {result.dataset_split for result in ModelCard.load(run / "README.md").data.eval_results} == {"validation"}
    (run / model_card.FACTS).unlink()
    capsys.readouterr()
    evaluate(run, phantom_folder, "--split", "test", "--out", run, "--json")
    told = capsys.readouterr()
    assert json.loads(told.out)["split"] == "test"
    [line] = [line for line in told.err.splitlines() if line.startswith("hf-cxr evaluate:")]
    assert "the card is left as it was" in line
    assert (run / "README.md").read_text() == text


def test_an_evaluation_on_other_data_is_told_as_such(run, phantom_folder, tmp_path):
    other = copy_folder(phantom_folder, tmp_path / "other")
    preparation = json.loads((other / "prepare.json").read_text()) | {"splits_sha256": "0" * 64}
    (other / "prepare.json").write_text(json.dumps(preparation))
    assert "whose studies are split otherwise than those that this model was trained on" in card_of(
        run, model_card.evaluated_on(run, str(other), "test")
    )
    facts = model_card.evaluated_on(run, str(phantom_folder), "test")
    assert "whose studies are split otherwise than those that this model was trained on" not in card_of(run, facts)


def test_reports_are_said_to_repeat_themselves_only_where_they_do(run):
    facts = json.loads((run / model_card.FACTS).read_text())
    same = {"studies": 8, "same": 5, "near": 1}
    for counts, told in (({"test": same, "validation": dict.fromkeys(same, 0)}, True), ({}, False)):
        facts["preparation"]["text_overlap"] = counts or {"test": dict.fromkeys(same, 0)}
        (run / model_card.FACTS).write_text(json.dumps(facts))
        text = model_card.card_text(run)
        assert ("of the 8 test reports 5 stand word for word in the training split, 1 nearly." in text) is told
        assert ("Reciting these scores, too." in text) is told
        assert "of the 0" not in text


def test_the_card_goes_by_the_split_that_the_report_names(run):
    (run / "report.json").write_text(json.dumps(report_of(run) | {"split": "train"}))
    text = model_card.card_text(run)
    assert (
        "on the train split of `phantom`, the very studies that it learned from: they say nothing of new ones." in text
    )
    (run / "report.json").write_text(json.dumps({k: v for k, v in report_of(run).items() if k != "split"}))
    assert "on the train split" not in model_card.card_text(run), "a report of an earlier version names none"


def test_a_run_of_an_earlier_version_keeps_its_card_and_one_line_says_why(run, phantom_folder):
    (run / model_card.FACTS).unlink()
    with pytest.raises(FileNotFoundError, match="the card is left as it was") as error:
        model_card.evaluated_on(run, str(phantom_folder), "test")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="trained by an earlier version"):
        model_card.card_text(run)


def test_a_new_training_leaves_no_card_of_other_weights(run):
    told = {*REPORT_FILES, model_card.CARD, model_card.FACTS, model_card.FIGURES}
    assert told <= {file.name for file in run.iterdir()}
    kit, args = parse_arguments(run / "config.yaml")
    save_run(load_checkpoint(str(run)), kit, args, TrainerState(), run)
    assert not told & {file.name for file in run.iterdir()}
