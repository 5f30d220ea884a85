"""What `import hf_cxr` offers: `train`, `evaluate`, `predict` and the public names."""

import json
import re
import subprocess
import sys

import datasets
import pytest
import transformers
from helpers import TINY_RECIPE, radiograph, write_config

import hf_cxr
from hf_cxr.config import parse_arguments
from hf_cxr.data.prepared import load_prepared

REGISTERED = """
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.pipelines import get_supported_tasks
assert "cxr-impression" in get_supported_tasks()
assert processor_class_from_name("ImpressionProcessor").__module__ == "hf_cxr.inference.processor"
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_cxr; from transformers import pipeline",
        "from transformers import pipeline, AutoProcessor; import hf_cxr",
        "import transformers; import hf_cxr; transformers.AutoProcessor",
    ],
)
def test_task_and_processor_are_known_whichever_is_imported_first(imports):
    result = subprocess.run([sys.executable, "-c", imports + REGISTERED], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def test_the_package_lists_its_public_names_and_nothing_else():
    names = {name for name in dir(hf_cxr) if not name.startswith("__")}
    assert names == set(hf_cxr.__all__) - {"__version__"}
    assert {"train", "evaluate", "predict", "build", "load_checkpoint", "CanvasCollator"} < names
    assert {f"Impression{kind}" for kind in ("Config", "Pipeline", "Processor", "Trainer")} < names
    for name in names:
        assert re.match(r"[A-Z`{].{20}", (getattr(hf_cxr, name).__doc__ or "").strip()), f"{name} is not documented"
    assert issubclass(hf_cxr.ImpressionTrainer, transformers.Seq2SeqTrainer)
    assert issubclass(hf_cxr.ImpressionTrainingArguments, transformers.Seq2SeqTrainingArguments)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        hf_cxr.trian  # noqa: B018


SHORT = TINY_RECIPE | {"findings_pretraining_epochs": 0, "max_steps": 2, "eval_strategy": "no"}


def test_a_run_is_trained_from_a_recipe_and_python_values(phantom_folder, tmp_path):
    report = hf_cxr.train(
        dataset=phantom_folder,
        output_dir=tmp_path / "run",
        recipe="demo",
        load_best_model_at_end=False,
        save_total_limit=None,
        eval_strategy=transformers.trainer_utils.IntervalStrategy.NO,
        **{name: value for name, value in SHORT.items() if name != "eval_strategy"},
    )
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())
    assert (tmp_path / "run" / "processor_config.json").is_file()
    assert type(hf_cxr.ImpressionProcessor.from_pretrained(tmp_path / "run")) is hf_cxr.ImpressionProcessor


def test_a_recipe_can_be_a_file_and_its_values_are_overridden(tmp_path):
    recipe = write_config(tmp_path / "mine.yaml", **SHORT, dataset="here", learning_rate=0.5, warmup_steps=7)
    given = {"dataset": tmp_path, "learning_rate": 1e-4, "warmup_steps": None, "bf16": False, "report_to": ["none"]}
    kit, args = parse_arguments(recipe, arguments=given | {"lr_scheduler_kwargs": {"num_cycles": 2}})
    assert (kit.dataset, kit.encoder, args.learning_rate, args.warmup_steps) == (str(tmp_path), "tiny", 1e-4, 0)
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    with pytest.raises(ValueError, match="unknown argument 'learning_rat'; did you mean 'learning_rate'") as error:
        hf_cxr.train(dataset="absent", output_dir=tmp_path / "run", recipe=recipe, learning_rat=1e-4)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"learning_rate.*: invalid float value: 'fast'"):
        hf_cxr.train(dataset="absent", output_dir=tmp_path / "run", recipe=recipe, learning_rate="fast")
    with pytest.raises(FileNotFoundError, match="no_such_recipe"):
        hf_cxr.train(dataset="absent", output_dir=tmp_path / "run", recipe="no_such_recipe")


def test_a_checkpoint_and_a_dataset_are_evaluated_loaded_or_by_their_places(run_folder, phantom_folder, tmp_path):
    loaded = hf_cxr.load_checkpoint(run_folder), load_prepared(phantom_folder)
    few = datasets.DatasetDict({name: split.select(range(12)) for name, split in loaded[1].items()})
    report = hf_cxr.evaluate(loaded[0], few, split="validation")
    assert hf_cxr.evaluate(str(run_folder), few, split="validation") == report
    assert report["n"] == 12
    with pytest.raises(ValueError, match="no split 'tset'"):  # told before a model is loaded
        hf_cxr.evaluate(tmp_path / "absent", phantom_folder, split="tset")
    with pytest.raises(FileNotFoundError, match="absent"):
        hf_cxr.evaluate(run_folder, tmp_path / "absent")


def test_texts_are_predicted_for_one_study_and_for_many(run_folder):
    study = {"frontal": radiograph(1), "lateral": radiograph(2)}
    pipe = transformers.pipeline("cxr-impression", model=str(run_folder))
    assert hf_cxr.predict(run_folder, study) == pipe(study)
    checkpoint = hf_cxr.load_checkpoint(run_folder)
    many = (one for one in (study, radiograph(3)))
    answers = hf_cxr.predict(checkpoint, many, return_findings=True)
    assert answers == [pipe(study, return_findings=True), pipe(radiograph(3), return_findings=True)]
