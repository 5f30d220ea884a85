"""R2Gen's collection by the README's own lines: findings alone, with the splits that it publishes."""

import json
import shlex
from pathlib import Path

import published_forms
from helpers import ROOT

from hf_cxr.cli.parser import main
from hf_cxr.utils.plots import BASELINES

SMALLER = "--encoder tiny --decoder tiny --panel_size 32 --vocab_size 400 --max_target_length 24 --use_cpu true"
SHORTER = "--num_train_epochs 1 --findings_pretraining_epochs 1 --dataloader_num_workers 0"
SCORES = {"bleu4", "rougeL", "cider", "finding_f1_micro", "finding_f1_macro"}


def test_r2gens_collection_is_prepared_learned_and_evaluated_by_the_lines_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = published_forms.draw(60, 32)
    published_forms.r2gen(Path("iu_xray.zip"), drawn)
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    lines = [shlex.split(line)[1:] for line in readme if line.startswith("hf-cxr ") and "data/r2gen" in line]
    assert [words[0] for words in lines] == ["prepare", "train", "evaluate"]
    for words in lines:
        assert main([*words, *(f"{SMALLER} {SHORTER}".split() if words[0] == "train" else ())]) == 0
    assert json.loads(Path("runs/r2gen/trainer_state.json").read_text())["global_step"] == 2
    report = json.loads(Path("runs/r2gen/test/report.json").read_text())
    lines = Path("runs/r2gen/test/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    pairs = [(f"CXR{uid}_IM-{uid:04d}", text) for uid, text, views in drawn if len(views) == 2]
    assert {row["uid"]: row["findings"] for row in rows} == dict(pairs[9::10]), "its own test split"
    assert (report["target"], report["n"]) == ("findings", len(rows))
    assert report["baselines"].keys() == BASELINES.keys()
    for scored in (report, report["shuffled"], report["ci95"], *report["baselines"].values()):
        assert scored.keys() >= SCORES
    assert {"image_gain", "image_gain_ci95", "reads_images", "verdict"} <= report.keys()
