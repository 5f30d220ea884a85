"""One of several training processes that tests/training/test_distributed.py starts: the kit's own stages on a tiny
model, with the same global batch cut in several ways. Process 0 writes what the test compares into the folder that is
named. By hand:

    torchrun --nproc_per_node=2 tests/distributed_worker.py DATASET FOLDER
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from helpers import TINY_RECIPE, talkative, tiny_checkpoint, write_config
from safetensors.torch import save_file

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.prediction import predict_split
from hf_cxr.inference.sections import Layout
from hf_cxr.models.modeling import Checkpoint, build
from hf_cxr.training import findings_pretraining
from hf_cxr.training import run as training
from hf_cxr.training.callbacks import EpochCallback

GLOBAL_BATCH, STEPS = 24, 5
SPLIT_SIZES = (1, 2, 7)
JUDGED = 101  # studies that stage one is judged by: no number of processes shares them equally


CUTS = [("words", 1), ("words", 2), ("words", 4), ("smoothed", 2), ("findings", 1), ("findings", 2), ("findings", 4)]
CUTS += [("asked", 1), ("asked", 2)]  # both sections behind a context that is dropped now and then


def main(dataset: str, folder: Path) -> None:
    parts = load_prepared(dataset)
    train_split = parts["train"].select(range(8 * GLOBAL_BATCH)).map(doubt, with_indices=True)
    packed = pack_dataset(train_split, 32)
    logs = {}
    for stage, accumulation in CUTS:
        name = f"{stage}-{accumulation}"
        logs[name], weights = train(stage, accumulation, packed, dataset, folder)
        if PartialState().is_main_process:
            save_file(weights, folder / f"{name}.safetensors")
    checkpoint = talkative(tiny_checkpoint(), eyes=3)  # it writes something else for every study
    rows = {size: predict_split(checkpoint, parts["test"].select(range(size)), batch_size=2) for size in SPLIT_SIZES}
    evaluate_at_start({"train": packed, "validation": pack_dataset(parts["test"].select(range(7)), 32)}, folder)
    state = PartialState()
    (folder / f"rows-{state.process_index}.json").write_text(json.dumps(rows))
    if state.is_main_process:
        (folder / "logs.json").write_text(json.dumps(logs | {"processes": state.num_processes}))
    state.destroy_process_group()


def doubt(row: dict, index: int) -> dict:
    """Doubtful findings do not count: pieces of a batch then hold different numbers of labels."""
    return {"impression": "Possible cardiomegaly, edema, pacemaker."} if index % 7 < 2 else {}


def train(stage: str, accumulation: int, packed, dataset: str, folder: Path) -> tuple[list[dict], dict]:
    """Five steps of plain SGD from the same weights: the log, and the weights after them."""
    processes, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    config = write_config(
        folder / f"config-{rank}.yaml",
        **TINY_RECIPE,
        dataset=dataset,
        output_dir=str(folder / f"{stage}-{accumulation}"),
        findings_pretraining_epochs=STEPS * GLOBAL_BATCH / len(packed),
        per_device_train_batch_size=GLOBAL_BATCH // (accumulation * processes),
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        logging_steps=1,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=1000.0,  # logs the norm, clips nothing: clipping would hide a wrong scale
        context_dropout=0.3 if stage == "asked" else 0.0,
        label_smoothing_factor=0.1 if stage == "smoothed" else 0.0,
        disable_tqdm=True,
    )
    kit, args = parse_arguments(config)
    checkpoint = reporter(packed) if stage == "asked" else tiny_checkpoint()
    if stage == "findings":
        log = []
        listen = {"on_log": lambda *_, logs, **__: log.append(logs)}  # findings pretraining keeps its log to itself
        findings_pretraining.EpochCallback = type("Listener", (EpochCallback,), listen)
        findings_pretraining.pretrain_on_findings(checkpoint, packed, kit, args, packed.select(range(JUDGED)))
        findings_pretraining.EpochCallback = EpochCallback
    else:
        log = training.fine_tune(checkpoint, {"train": packed}, kit, args).state.log_history
    weights = {name: value.detach().clone() for name, value in checkpoint.model.named_parameters()}
    return [entry for entry in log if "grad_norm" in entry], weights


def reporter(packed) -> Checkpoint:
    torch.manual_seed(0)
    layout = Layout(("findings", "impression"), ("indication",))
    return build("tiny", "tiny", 32, texts=packed["findings"][:100], vocab_size=350, max_new_tokens=24, layout=layout)


def evaluate_at_start(packed: dict, folder: Path) -> None:
    """An evaluation within a training, of weights that `predict_split` wrote with; its texts are in `evaluated`."""
    config = write_config(
        folder / f"evaluated-{os.environ.get('RANK', '0')}.yaml",
        **TINY_RECIPE,
        dataset="unused",
        output_dir=str(folder / "evaluated"),
        max_steps=1,
        eval_on_start=True,
        per_device_eval_batch_size=2,
        log_samples=max(SPLIT_SIZES),
        disable_tqdm=True,
    )
    training.fine_tune(talkative(tiny_checkpoint(), eyes=3), packed, *parse_arguments(config))


def evaluate_elsewhere(dataset: str, folder: str) -> None:
    """The texts of an evaluation within a training with context: from a study's own images, and from another's."""
    parts, rank = load_prepared(dataset), os.environ.get("RANK", "0")
    packed = {"train": pack_dataset(parts["train"].select(range(100)), 32)}
    packed["validation"] = pack_dataset(parts["test"].select(range(max(SPLIT_SIZES))), 32)
    values = {"context": ["indication"], "max_steps": 1, "eval_on_start": True, "log_samples": 0, "disable_tqdm": True}
    values |= {"dataset": "unused", "output_dir": str(Path(folder) / "run"), "per_device_eval_batch_size": 2}
    config = write_config(Path(folder) / f"config-{rank}.yaml", **TINY_RECIPE, **values)
    told: list = []
    given = training.evaluation.validation_scores
    training.evaluation.validation_scores = lambda *all: told.append((all[0], all[4][0])) or given(*all)
    training.fine_tune(talkative(reporter(packed["train"]), eyes=3), packed, *parse_arguments(config))
    if rank == "0":
        (Path(folder) / "elsewhere.json").write_text(json.dumps(told[0]))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
