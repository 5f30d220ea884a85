"""Where a run begins: what it is, whether it goes on or starts anew, what is cleared away before it does, and the
checkpoint that it trains.

What the stages do lives in `hf_cxr.training.run`, whole checkpoints in `hf_cxr.training.checkpoints`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Seq2SeqTrainer
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments, resolved_config
from hf_cxr.data.collator import note_on_long_texts, note_on_small_images
from hf_cxr.data.sections import contexts, section_texts, whole_texts
from hf_cxr.evaluation.report import REPORT_FILES
from hf_cxr.hub import model_card
from hf_cxr.inference.sections import Layout
from hf_cxr.models.loading import load, loading
from hf_cxr.models.modeling import Checkpoint, build, weights_digest
from hf_cxr.models.starting import init_from
from hf_cxr.training.callbacks import EVALUATIONS
from hf_cxr.training.checkpoints import (
    ENCODER,
    FINE_TUNED,
    PROGRESS,
    RECORD,
    REWARD,
    REWARD_RECORD,
    STAGE,
    UNSAID,
    check_same_run,
    checkpoints,
    read_progress,
    remove_checkpoints,
    write_progress,
)

STATES, SAMPLES = "encoder_states", "samples"  # in the run folder: a frozen encoder's states while in use; images
RESULTS = (*REPORT_FILES, model_card.CARD, model_card.FACTS, model_card.FIGURES)


def identity(
    kit: ImpressionConfig, args: ImpressionTrainingArguments, dataset: DatasetDict, layout: Layout
) -> dict[str, Any]:
    """What a run is: all that its weights depend on. A continuation has to be the same."""
    studies = hashlib.sha256()
    for split in (dataset[name] for name in ("train", "validation") if name in dataset):
        columns = [split["uid"], *section_texts(split, layout).values()]
        if layout.context:
            columns.append([[given.get(name) for name in layout.context] for given in contexts(split)])
        for row in zip(*columns, strict=True):
            studies.update(repr(row).encode())
    around: dict[str, Any] = {
        "processes": args.world_size,
        "mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
    }
    config = {name: value for name, value in resolved_config(kit, args).items() if "hub" not in name.split("_")}
    config = {name: value for name, value in config.items() if name not in UNSAID or UNSAID[name] != value}
    if kit.init_from and not Path(kit.init_from).exists():
        with loading(kit.init_from):
            around["init_from_commit"] = extract_commit_hash(cached_file(kit.init_from, "config.json"), None)
    elif kit.init_from:
        around["init_from_sha256"] = weights_digest(kit.init_from)
        if (tokenizer := Path(kit.init_from, "tokenizer.json")).is_file():
            around["init_from_tokenizer_sha256"] = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    return config | around | {"studies_sha256": studies.hexdigest()}


def start_or_resume(kit: ImpressionConfig, args: ImpressionTrainingArguments, config: dict[str, Any]) -> str:
    """Decide where the run begins: "findings_pretraining", "impressions", "reward", "evaluation" or
    "finished".

    Raises `ValueError` if `output_dir` holds a run, finished or not, or others' checkpoints, and neither `resume` nor
    `restart` is set, if a run would be resumed with other arguments, or if it begins from what it would delete.
    """
    output = Path(args.output_dir)
    progress = read_progress(output)
    if kit.resume and progress:
        check_same_run(output, progress["config"], config)
        print(f"Resuming {output}: {_progress_so_far(output, progress['stage'])}", flush=True)
        return progress["stage"]
    saved = trained_so_far(output)
    if not progress:  # of others; half a checkpoint of ours is nothing that could be continued
        saved += [*output.glob("checkpoint-*"), *output.glob(f"{STAGE}/checkpoint-*")]
    stage = progress["stage"] if progress else None
    if (saved or stage in ("evaluation", "finished")) and not kit.restart:
        what = "an interrupted run; continue it with --resume" if progress else "others' checkpoints; move them away"
        if stage == "finished":
            what = "a finished run; name another output_dir"
        raise ValueError(f"{output}: holds {what} or delete it with --restart")
    for name in ("encoder", "decoder", "init_from", "resume_from_checkpoint"):
        start = getattr(kit, name, None) or getattr(args, name, None)
        place = Path(start).resolve() if start else None
        if place and any(place.is_relative_to(path.resolve()) or place == output.resolve() for path in saved):
            raise ValueError(f"{name}: {start} lies in the output_dir, which is emptied; name another output_dir")
    if kit.resume:
        print(f"Nothing to resume in {output}: starting anew", flush=True)
    remove(output, PROGRESS, ENCODER, STAGE, STATES, SAMPLES, RECORD, FINE_TUNED, REWARD, REWARD_RECORD)
    remove_checkpoints(output)
    remove(output, "model*.safetensors", EVALUATIONS, *RESULTS)
    stage = "findings_pretraining" if kit.findings_pretraining_epochs else "impressions"
    write_progress(output, stage, config)
    return stage


def trained_so_far(output: Path) -> list[Path]:
    """What an interrupted run in `output` can be continued from."""
    found = [*output.glob(ENCODER), *checkpoints(output / STAGE), *checkpoints(output), *output.glob(FINE_TUNED)]
    return [*found, *checkpoints(output / REWARD), *output.glob("model*.safetensors")]


def _progress_so_far(output: Path, stage: str) -> str:
    if stage in ("evaluation", "finished"):
        return f"trained already, {'evaluating' if stage == 'evaluation' else 'nothing left to do'}"
    saved = checkpoints(output / {"findings_pretraining": STAGE, "reward": REWARD}.get(stage, ""))
    return f"stage {stage}, " + (f"from {saved[-1].name}" if saved else "from its start")


def remove(folder: Path, *patterns: str) -> None:
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def begin(train: Dataset, layout: Layout, kit: ImpressionConfig, args: ImpressionTrainingArguments) -> Checkpoint:
    """The checkpoint that is trained, and what is worth knowing before it is."""
    start, main = args.resume_from_checkpoint, PartialState().is_main_process
    given = [each[name] for each in contexts(train) for name in layout.context if name in each]
    tokenizer = load(AutoTokenizer, start) if start else None
    checkpoint = _built(kit, [*whole_texts(train, layout), *given], layout, tokenizer)
    if tokenizer and tokenizer.get_vocab() != checkpoint.tokenizer.get_vocab():
        raise ValueError(f"resume_from_checkpoint: {start} has another tokenizer than decoder {kit.decoder}")
    set_generation(checkpoint, args)
    texts = section_texts(train, layout)
    notes = (
        note_on_long_texts(checkpoint.tokenizer, texts, kit.max_target_length, layout),
        note_on_small_images(train, kit.panel_size),
    )
    for note in filter(None, notes if main else ()):
        print(note, file=sys.stderr)
    return checkpoint


def _built(
    kit: ImpressionConfig, texts: list[str], layout: Layout, tokenizer: PreTrainedTokenizerBase | None
) -> Checkpoint:
    """The model before its first step: a checkpoint that is continued, or one built from two parts."""
    longest, dropout = kit.max_target_length, kit.decoder_dropout
    if kit.init_from:
        if PartialState().is_main_process:
            print(
                f"Continues {kit.init_from}: encoder {kit.encoder} and decoder {kit.decoder} are ignored", flush=True
            )
        return init_from(kit.init_from, kit.panel_size, layout, longest, dropout, kit.panels)
    return build(
        kit.encoder,
        kit.decoder,
        kit.panel_size,
        texts,
        kit.vocab_size,
        longest,
        tokenizer,
        dropout,
        layout,
        kit.panels,
    )


def set_generation(checkpoint: Checkpoint, args: ImpressionTrainingArguments) -> None:
    """Texts are written as the arguments say, in training and by the finished checkpoint; its own tokens stay."""
    own = checkpoint.model.generation_config
    if args.generation_config:
        asked = Seq2SeqTrainer.load_generation_config(args.generation_config).to_diff_dict()
        own.update(**{name: value for name, value in asked.items() if not name.endswith(("token_id", "_version"))})
    if args.generation_num_beams:
        own.num_beams = args.generation_num_beams
