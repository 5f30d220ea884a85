"""The main job on real reports and images, and at full size. Skips where the real data folder is absent."""

import json
import shutil
import time

import pytest
import torch
from helpers import run_cxr, write_config
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, ViTConfig, ViTImageProcessorPil, ViTModel

from hf_cxr.data.prepare import prepare
from hf_cxr.models.modeling import load_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real_dataset(iu, tmp_path_factory):
    """The five real studies whose images are at hand, all in the training split so that a few steps can be made."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "splits.csv").write_text("uid,split\n" + "".join(f"{uid},train\n" for uid in (2, 54, 300, 905, 1000)))
    result = run_cxr("prepare", "kaggle", "--root", iu, "--out", folder / "dataset", "--size", "224")
    assert result.returncode == 0, result.stderr
    preparation = json.loads((folder / "dataset" / "prepare.json").read_text())
    rejects = (folder / "dataset" / "rejects.jsonl").read_text().splitlines()
    assert preparation["steps"][0]["kept"] == 3851
    assert preparation["steps"][-1]["kept"] == 5
    assert len(rejects) == 3851 - 5, "every record is accounted for"
    split = folder / "dataset_train"
    result = run_cxr(
        "prepare", "kaggle", "--root", iu, "--out", split, "--size", "224", "--split-file", folder / "splits.csv"
    )
    assert result.returncode == 0, result.stderr
    return split


@pytest.fixture(scope="module")
def real_run(real_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real_run")
    config = write_config(
        folder / "c.yaml",
        dataset=str(real_dataset),
        output_dir=str(folder / "run"),
        encoder="tiny",
        decoder="tiny",
        panel_size=64,
        findings_pretraining_epochs=1,
        max_steps=4,
        save_strategy="no",
        use_cpu=True,
    )
    result = run_cxr("train", config)
    assert result.returncode == 0, result.stderr
    assert "Not evaluated" in result.stdout
    assert "Not evaluated" in (folder / "run" / "README.md").read_text()
    return folder / "run"


def test_a_full_resolution_pair_gets_an_impression(real_run, iu):
    images = iu / "images"
    result = run_cxr(
        *("predict", real_run, "--json", "--frontal", images / "1000_IM-0003-1001.dcm.png"),
        *("--lateral", images / "1000_IM-0003-3001.dcm.png"),
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["impression"]


def test_a_frontal_only_image_of_another_hospital_gets_an_impression(real_run, shared_data):
    result = run_cxr(
        "predict", real_run, "--json", "--frontal", shared_data / "nih_frontal" / "normal_00001280_004.png"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["impression"]


def test_a_truncated_image_is_listed_and_the_rest_goes_on(iu, tmp_path):
    shutil.copytree(iu / "images", tmp_path / "images")
    for name in ("indiana_reports.csv", "indiana_projections.csv"):
        shutil.copy(iu / name, tmp_path)
    broken = tmp_path / "images" / "2_IM-0652-1001.dcm.png"
    broken.write_bytes(broken.read_bytes()[:5000])
    result = run_cxr("prepare", "kaggle", "--root", tmp_path, "--out", tmp_path / "out", "--size", "64")
    assert result.returncode == 0, result.stderr
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    reasons = {row["uid"]: row["reason"] for row in rejects}
    assert "truncated" in reasons["2"]
    assert not {"54", "300", "905", "1000"} & set(reasons)


def test_full_size_parts_build_train_reload_bit_equal_and_answer_in_time(shared_data, tmp_path):
    prepare("phantom", tmp_path / "dataset", size=32, num_studies=12, seed=0)  # few: the encoder reads them all
    vit, gpt2 = tmp_path / "vit-base", tmp_path / "gpt2"
    ViTModel(ViTConfig()).save_pretrained(vit)
    ViTImageProcessorPil().save_pretrained(vit)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(gpt2)
    vocabulary = shared_data / "gpt2"
    GPT2Tokenizer(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt")).save_pretrained(gpt2)
    config = write_config(
        tmp_path / "c.yaml",
        dataset=str(tmp_path / "dataset"),
        output_dir=str(tmp_path / "run"),
        encoder=str(vit),
        decoder=str(gpt2),
        panel_size=224,
        max_steps=2,
        max_target_length=24,
        per_device_train_batch_size=2,
        save_strategy="no",
        use_cpu=True,
    )
    result = run_cxr("train", config)
    assert result.returncode == 0, result.stderr
    checkpoint = load_checkpoint(str(tmp_path / "run"))
    checkpoint.save_pretrained(tmp_path / "again")
    saved, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("run", "again"))
    assert saved.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in saved.items())
    assert sum(value.numel() for value in saved.values()) > 200e6
    from hf_cxr.inference.pipeline import ImpressionPipeline

    pipe = ImpressionPipeline(
        model=checkpoint.model, tokenizer=checkpoint.tokenizer, image_processor=checkpoint.image_processor
    )
    image = shared_data / "nih_frontal" / "normal_00001280_004.png"
    started = time.perf_counter()
    pipe({"frontal": image, "lateral": image}, max_new_tokens=20)
    assert time.perf_counter() - started < 5
