"""Stage one is judged after each epoch, by the findings that it tells on unseen studies; the best epoch is kept."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from helpers import TINY_RECIPE, copy_folder, run_forked, tiny_checkpoint, write_config
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.hub.model_card import trained_facts
from hf_cxr.inference.targets import IGNORED
from hf_cxr.training import findings_pretraining
from hf_cxr.training.checkpoints import RECORD
from hf_cxr.training.findings_pretraining import (
    FindingsModel,
    FindingsTrainer,
    best_step,
    class_weights,
    finding_loss,
    judged_findings,
    pretrain_on_findings,
)
from hf_cxr.training.findings_targets import tag_targets

TRAIN, UNSEEN, EPOCH = 160, 96, 5  # studies, some of them in both, and steps of an epoch
ADAPTED = "layers.3.attention.q_proj.weight"


class Killed(BaseException):
    """Stands for Ctrl-C."""


@pytest.fixture(scope="module")
def packed(phantom_folder):
    return pack_dataset(load_prepared(str(phantom_folder))["train"], 32)


def pretrain(packed, run: Path, studies: int = UNSEEN, dropout: float = 0.1, **values) -> dict:
    """The weights that stage one ends with; of `studies` from the end the findings are told after each epoch."""
    run.mkdir(exist_ok=True)
    recipe = TINY_RECIPE | {"dataset": "unused", "output_dir": str(run), "findings_pretraining_epochs": 4}
    recipe |= {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "disable_tqdm": True} | values
    kit, args = parse_arguments(write_config(run / f"config{os.environ.get('RANK', '')}.yaml", **recipe))
    checkpoint = tiny_checkpoint()
    for module in checkpoint.model.encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout  # so that every step depends on the random numbers drawn before it
    unseen = packed.select(range(len(packed) - studies, len(packed))) if studies else None
    pretrain_on_findings(checkpoint, packed.select(range(TRAIN)), kit, args, unseen)
    encoder = {name: value.clone() for name, value in checkpoint.model.encoder.state_dict().items()}
    saved = load_file(run / "findings_encoder" / "model.safetensors")
    model = type(checkpoint.model.encoder).from_pretrained(run / "findings_encoder")
    assert len(saved) == len(encoder)
    assert same(model.state_dict(), encoder), "what goes on into stage two is what is saved"
    return encoder


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plant(monkeypatch, *means: float) -> None:
    """After each epoch, these are the mean AUCs."""
    real = FindingsTrainer.aucs

    def aucs(trainer, prediction):
        return real(trainer, prediction) | {"mean_auc": means[trainer.state.global_step // EPOCH - 1]}

    monkeypatch.setattr(FindingsTrainer, "aucs", aucs)


def watch(monkeypatch) -> dict[int, dict]:
    """The encoder's weights after each epoch."""
    seen = {}

    class Listener(findings_pretraining.EpochCallback):
        def on_epoch_end(self, args, state, control, model, **kwargs):
            encoder = getattr(model, "module", model).encoder
            seen[state.global_step // EPOCH] = {name: value.clone() for name, value in encoder.state_dict().items()}

    monkeypatch.setattr(findings_pretraining, "EpochCallback", Listener)
    return seen


def kept(run: Path) -> float:
    return json.loads((run / RECORD).read_text())["kept_epoch"]


# --- what is judged --------------------------------------------------------------------------------------------------


def test_a_finding_is_judged_where_five_have_it_and_five_have_not():
    few, enough = [1] * 4 + [0] * 9 + [IGNORED] * 7, [1] * 5 + [0] * 5 + [IGNORED] * 10
    targets = np.array([few, enough, [1 - value if value != IGNORED else value for value in few]]).T
    assert judged_findings(["few", "enough", "always"], targets) == {"enough": {"positives": 5, "negatives": 5}}


def test_of_equal_epochs_the_earlier_is_kept():
    log = [{"eval_mean_auc": mean, "step": step} for step, mean in ((6, 0.6), (12, 0.9), (18, 0.9), (24, 0.8))]
    assert best_step([{"loss": 1.0, "step": 30}, *log]) == 12
    assert best_step(log, until=7) == 6
    assert best_step([]) == 0


# --- the loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("bce", lambda p, truth: -math.log(p if truth else 1 - p)),
        ("focal", lambda p, truth: -((1 - p if truth else p) ** 2) * math.log(p if truth else 1 - p)),
        (
            "asymmetric",
            lambda p, truth: -math.log(p) if truth else -(max(p - 0.05, 0) ** 4) * math.log(1.05 - max(p, 0.05)),
        ),
    ],
)
def test_each_loss_is_that_of_its_paper(kind, weight):
    logits, truths = torch.tensor([[-4.0, -0.5, 2.0], [3.0, 0.5, -1.0]]), torch.tensor([[0.0, 0, 1], [1, IGNORED, 0]])
    expected = [
        weight(p, t) for p, t in zip(logits.sigmoid().flatten().tolist(), truths.flatten(), strict=True) if t >= 0
    ]
    loss = finding_loss({"logits": logits}, truths, kind=kind)
    assert loss.item() == pytest.approx(sum(expected) / 5, rel=1e-5)


def test_a_positive_counts_as_often_as_its_finding_has_negatives_for_it_ten_times_at_most():
    targets = np.array([[1, 1, 1], [0, 0, 1], [0, 0, 0], [0, IGNORED, IGNORED], *[[0, IGNORED, IGNORED]] * 20])
    weights = class_weights(targets)
    assert weights.tolist() == [10, 2, 0.5]
    logits, truths = torch.tensor([[0.3, -1.0, 2.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, truths, reduction="none")[0]
    loss = finding_loss({"logits": logits}, truths, weights=weights)
    assert loss.item() == pytest.approx((10 * each[0] + each[1] + 0.5 * each[2]).item() / 3)


# --- which epoch is kept -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second_is_best(packed, tmp_path_factory) -> tuple[Path, dict]:
    """A run in peace whose second epoch of four is the best, and its weights."""
    run = tmp_path_factory.mktemp("peace") / "run"
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, 0.6, 0.9, 0.9, 0.7)
        return run, pretrain(packed, run, save_strategy="epoch")


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_the_weights_of_the_best_epoch_go_on_whatever_is_saved(
    second_is_best, packed, tmp_path, monkeypatch, strategy, capsys
):
    seen = watch(monkeypatch)
    plant(monkeypatch, 0.6, 0.9, 0.9, 0.7)
    weights = pretrain(packed, tmp_path / "run", save_strategy=strategy, save_steps=EPOCH)
    assert list(seen) == [1, 2, 3, 4]
    assert same(weights, seen[2])
    assert not same(weights, seen[4])
    assert same(weights, second_is_best[1])
    record = (tmp_path / "run" / RECORD).read_bytes()
    assert record == (second_is_best[0] / RECORD).read_bytes()
    assert kept(tmp_path / "run") == 2
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if line.startswith("epoch 2: mean AUC 0.900 over ")]
    assert told[-1] == "findings pretraining: epoch 2 is kept"


def test_the_record_says_of_each_epoch_how_each_finding_was_told(second_is_best):
    record = json.loads((second_is_best[0] / RECORD).read_text())
    assert [row["epoch"] for row in record["epochs"]] == [1, 2, 3, 4]
    assert [row["mean_auc"] for row in record["epochs"]] == [0.6, 0.9, 0.9, 0.7]
    assert record["validation_studies"] == UNSEEN
    for row in record["epochs"]:
        assert row["findings"]
        for finding in row["findings"].values():
            assert 0 <= finding["auc"] <= 1
            assert min(finding["positives"], finding["negatives"]) >= 5


def test_the_card_is_told_of_the_epoch_that_was_kept(second_is_best, run_folder, tmp_path):
    run = copy_folder(run_folder, tmp_path / "run")
    _, args = parse_arguments(run / "config.yaml")
    assert trained_facts(run, args)["findings_kept"] is None, "no finding of 20 studies could be judged"
    shutil.copy(second_is_best[0] / RECORD, run)
    findings = json.loads((run / RECORD).read_text())["epochs"][0]["findings"]
    told = {"epoch": 2, "mean_auc": 0.9, "findings": len(findings)}
    assert trained_facts(run, args)["findings_kept"] == told


def kill(monkeypatch, event: str, step: int) -> None:
    def killed(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    class Doomed(FindingsTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(type("Stop", (TrainerCallback,), {event: killed})())

        def _save_checkpoint(self, *args):
            if event == "before_save" and self.state.global_step == step:
                raise Killed
            super()._save_checkpoint(*args)

    monkeypatch.setattr(findings_pretraining, "FindingsTrainer", Doomed)


@pytest.mark.parametrize(("event", "step"), [("on_step_end", 12), ("before_save", 10), ("before_save", 20)])
def test_a_killed_stage_ends_with_the_same_weights_and_record(
    second_is_best, packed, tmp_path, monkeypatch, event, step
):
    """Killed after the best epoch; after it was kept and before the checkpoint that knows of it; at the very end."""
    plant(monkeypatch, 0.6, 0.9, 0.9, 0.7)
    with monkeypatch.context() as patch:
        kill(patch, event, step)
        with pytest.raises(Killed):
            pretrain(packed, tmp_path / "run", save_strategy="epoch")
    assert not (tmp_path / "run" / "findings_encoder").exists()
    assert same(pretrain(packed, tmp_path / "run", save_strategy="epoch"), second_is_best[1])
    assert (tmp_path / "run" / RECORD).read_bytes() == (second_is_best[0] / RECORD).read_bytes()


def test_an_epoch_that_was_the_best_before_a_kill_and_is_not_again_is_not_kept(packed, tmp_path, monkeypatch):
    """As on a GPU, whose sums are not the same each time."""
    with monkeypatch.context() as patch:
        kill(patch, "before_save", 15)
        plant(patch, 0.6, 0.9, 1.0)
        with pytest.raises(Killed):
            pretrain(packed, tmp_path / "run", save_strategy="epoch")
    plant(monkeypatch, 0.6, 0.9, 0.8, 0.7)
    pretrain(packed, tmp_path / "run", save_strategy="epoch")
    assert kept(tmp_path / "run") == 2


def test_evaluations_change_nothing_of_the_training(packed, tmp_path, monkeypatch, capsys):
    plant(monkeypatch, 0.6, 0.7)
    judged = pretrain(packed, tmp_path / "judged", findings_pretraining_epochs=2)
    assert kept(tmp_path / "judged") == 2
    capsys.readouterr()
    blind = pretrain(packed, tmp_path / "blind", studies=0, findings_pretraining_epochs=2)
    assert same(judged, blind)
    assert "its last epoch is kept, as there are no validation studies\n" in capsys.readouterr().out
    few = pretrain(packed, tmp_path / "few", studies=9, findings_pretraining_epochs=2)
    assert same(few, blind)
    why = "its last epoch is kept, as no finding has 5 positive and 5 negative validation studies\n"
    assert why in capsys.readouterr().out
    assert not list(tmp_path.glob(f"[bf]*/{RECORD}"))


def test_the_head_learns_alone_in_the_first_epochs_then_all_of_it_also_where_killed(packed, tmp_path, monkeypatch):
    before, seen = tiny_checkpoint().model.encoder.state_dict(), watch(monkeypatch)
    plant(monkeypatch, 0.6, 0.7)
    options = {
        "findings_frozen_epochs": 1,
        "findings_pretraining_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    peace = pretrain(packed, tmp_path / "two", **options)
    assert same(seen[1], before)
    stays = {name for name in before if torch.equal(peace[name], before[name])}
    noise = {name for name in before if name.endswith("k_proj.bias")}  # no gradient: softmax forgives a constant
    assert stays - noise == {"pooler.dense.weight", "pooler.dense.bias"}, "the head reads the tokens, not the pooler"
    for step in (3, 7):  # frozen, and no longer
        with monkeypatch.context() as patch:
            kill(patch, "on_step_end", step)
            with pytest.raises(Killed):
                pretrain(packed, tmp_path / f"killed{step}", **options)
        assert same(pretrain(packed, tmp_path / f"killed{step}", **options), peace)


def test_the_decay_of_the_layers_is_at_work_in_stage_one(packed, tmp_path):
    step = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 1e9, "findings_pretraining_epochs": 0.2}
    plain, decayed = (pretrain(packed, tmp_path / str(rate), encoder_layer_decay=rate, **step) for rate in (1.0, 0.5))
    last, earlier = (f"layers.{block}.mlp.fc2.bias" for block in (3, 2))
    assert torch.equal(plain[last], decayed[last]), "the last block learns at the full rate"
    assert not torch.equal(plain[earlier], decayed[earlier])


def test_of_adapters_the_best_epoch_is_kept_and_merged(packed, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    plant(monkeypatch, 0.9, 0.6)
    options = {"lora_rank": 2, "lr_scheduler_type": "constant"}
    kept_first, first = (
        pretrain(packed, tmp_path / str(epochs), findings_pretraining_epochs=epochs, **options) for epochs in (2, 1)
    )
    assert kept(tmp_path / "2") == 1
    assert same(kept_first, first)
    assert not torch.equal(first[ADAPTED], tiny_checkpoint().model.encoder.state_dict()[ADAPTED]), "adapters learn"


# --- several processes -------------------------------------------------------------------------------------------


def first_is_best(dataset: str, run: str) -> dict:
    """What each of several processes does, too; `pretrain` has each look at the weights that it goes on with."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    options = {"findings_pretraining_epochs": 2, "per_device_train_batch_size": 32 // processes, "dropout": 0.0}
    options |= {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, 0.9, 0.6)
        seen = watch(patch)
        weights = pretrain(pack_dataset(load_prepared(dataset)["train"], 32), Path(run), **options)
    PartialState().destroy_process_group()
    return seen | {"kept": weights}


@pytest.fixture(scope="module")
def alone(phantom_folder, tmp_path_factory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("alone") / "run"
    return run, first_is_best(str(phantom_folder), str(run))


SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.mark.parametrize(("environment", "kind"), [({}, "Tensor"), (SHARDED, "DTensor")], ids=["ddp", "fsdp2"])
def test_each_of_two_processes_goes_on_with_the_best_epoch_as_one_would(
    phantom_folder, alone, tmp_path, monkeypatch, environment, kind
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code = ["import fsdp_on_cpu", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"]
    code += [f"import {__name__} as stage"]
    code += [f"seen = stage.first_is_best({str(phantom_folder)!r}, {str(tmp_path)!r})"]
    code += [f"assert type(seen[1][stage.ADAPTED]).__name__ == {kind!r}"]
    done = run_forked(code="\n".join(code[0 if environment else 1 :]), processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    run, one = alone
    two, saved = (load_file(folder / "findings_encoder" / "model.safetensors") for folder in (tmp_path, run))
    assert same(one["kept"], one[1])
    apart = {name: (two[name] - value).abs().max().item() for name, value in saved.items()}
    assert max(apart.values()) <= 1e-5, max(apart, key=apart.__getitem__)
    assert max((one[2][name] - value).abs().max().item() for name, value in one[1].items()) > 1e-3, "epochs differ"
    records = [json.loads((folder / RECORD).read_text()) for folder in (run, tmp_path)]
    aucs = [
        [finding.pop("auc") for row in record["epochs"] for finding in row["findings"].values()] for record in records
    ]
    assert records[0] == records[1], "all but the last digits of the AUCs"
    assert aucs[1] == pytest.approx(aucs[0], abs=1e-3)
    assert records[1]["kept_epoch"] == 1


def test_each_study_is_judged_once_and_as_it_is(packed, tmp_path, monkeypatch):
    seen, forward = [], FindingsModel.forward

    def looking(model, pixel_values):
        if not model.training:
            seen.extend(pixel_values[:, 0].clone())
        return forward(model, pixel_values)

    monkeypatch.setattr(FindingsModel, "forward", looking)
    options = {"augmentation": 1.0, "view_dropout": 1.0, "findings_pretraining_epochs": 1}
    pretrain(packed, tmp_path / "run", per_device_eval_batch_size=25, **options)
    plain = CanvasDataset(packed.select(range(len(packed) - UNSEEN, len(packed))), 32)
    pixels = CanvasCollator(tiny_checkpoint().image_processor)([plain[row] for row in range(UNSEEN)])["pixel_values"]
    assert torch.equal(torch.stack(seen), pixels[:, 0])


def test_tags_are_judged_by_the_tags_of_the_validation_studies(packed, tmp_path):
    tagged = packed.map(lambda row, at: {"tags": ["even"] if at % 2 == 0 else ["rare"] * (at < 9)}, with_indices=True)
    pretrain(tagged, tmp_path / "run", findings_labels="tags", findings_pretraining_epochs=0.6)
    (epoch,) = json.loads((tmp_path / "run" / RECORD).read_text())["epochs"]
    assert epoch["epoch"] == 0.6
    assert {name: (row["positives"], row["negatives"]) for name, row in epoch["findings"].items()} == {
        "even": (UNSEEN // 2, UNSEEN // 2)
    }


def test_a_tag_must_be_known_of_ten_positive_studies():
    """Of studies that nobody judged, no tag is known: "rare" has no positive one left, and its weight no divisor."""
    tags = [["rare", "suboptimal study"]] * 12 + [["often"]] * 10 + [["seldom"]] * 9 + [["normal"]]
    names, targets = tag_targets(tags)
    assert names == ["often"]
    assert targets[:12].min() == targets[:12].max() == IGNORED
    assert class_weights(targets).tolist() == [1.0]
    asked, _ = tag_targets(tags, names=["rare", "seldom"])
    assert asked == ["rare", "seldom"], "of the validation split the findings of the training split are asked"


def test_a_disk_that_is_full_is_told_in_one_line(packed, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_cxr.training.findings_pretraining.save_file", full)
    with pytest.raises(OSError, match=r"best-5\.safetensors: could not be written \(.*No space left"):
        pretrain(packed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
