"""Checkpoints during training that an interruption cannot spoil, and the note of how far a run has come.

`Trainer` writes a checkpoint file by file. Here one counts only when it is whole, older ones go only afterwards, and
what `Trainer` forgets is kept beside it, so that a resumed run logs the very losses of an uninterrupted one.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_cxr.models.loading import loading
from hf_cxr.training.callbacks import StageProgress, is_exhausted
from hf_cxr.utils.files import json_object, replace_files

WHOLE = "complete"  # an empty file, the last to be written into a checkpoint's folder
RUNNING_LOSS = "running_loss_{rank}.json"
# Arguments that runs before them did not have, and what these were.
UNSAID: dict[str, Any] = {"init_from": None, "target": "impression", "context": [], "context_dropout": 0.0}
UNSAID |= {"findings_loss": "bce", "findings_class_weights": False, "findings_frozen_epochs": 0}
UNSAID |= {"encoder_layer_decay": 1.0, "patch_dropout": 0.0, "decode": "search", "panels": 2}
UNSAID |= {"reward": ["finding_f1=0.5", "cider=0.3", "length=0.2"], "reward_samples": 1, "reward_kl": 0.0}
UNSAID |= {"reward_epochs": 0.0, "reward_learning_rate": None}
PROGRESS = "progress.json"
STAGE, ENCODER = "findings_pretraining", "findings_encoder"  # of stage one, in the run folder: checkpoints, result
RECORD = f"{STAGE}.json"  # how each of its epochs was judged
FINE_TUNED, REWARD = "fine_tuned", "reward"  # of the reward stage: the checkpoint that it begins with, its own files
REWARD_RECORD = f"{REWARD}.json"  # what it was told, and what came of it
# Arguments that may differ between the start of a run and its continuation: they change no weight.
HARMLESS = {
    "num_proc",
    "decode",
    "log_samples",
    "share_samples",
    "output_dir",
    "report_to",
    "run_name",
    "disable_tqdm",
}
HARMLESS |= {"dataloader_num_workers", "dataloader_prefetch_factor", "save_total_limit", "project"}


def checkpoints(folder: str | os.PathLike) -> list[Path]:
    """The whole checkpoints in `folder`, oldest step first."""
    found = (path for path in Path(folder).glob("checkpoint-*") if (path / WHOLE).is_file())
    return sorted(found, key=step_in_name)


def step_in_name(path: Path) -> int:
    """The number in a name such as `checkpoint-12`."""
    return int(re.sub(r"\D", "", path.name) or -1)


def remove_checkpoints(folder: str | os.PathLike, broken_only: bool = False) -> None:
    """Delete the checkpoints in `folder`; with `broken_only`, those whose writing was interrupted."""
    keep = checkpoints(folder) if broken_only else []
    for path in Path(folder).glob("checkpoint-*"):
        if path not in keep:
            _remove(path)


def _remove(path: Path) -> None:
    (path / WHOLE).unlink(missing_ok=True)  # first: half of it must not count if this is interrupted
    shutil.rmtree(path)


def rotate(folder: str | os.PathLike, limit: int | None, best: str | None) -> None:
    """Delete the oldest whole checkpoints beyond `limit`, but neither the last nor the best."""
    found = checkpoints(folder)
    kept = {found[-1].name, Path(best or "").name}
    for path in found[: -limit if limit else 0]:
        if path.name not in kept:
            _remove(path)


def agreed(value: Any) -> Any:
    """What process 0 holds, on every process: hosts may see different disks."""
    return broadcast_object_list([value])[0]


def whole_again(trained: torch.nn.Module, unsharded: torch.nn.Module) -> torch.nn.Module:
    """Return `unsharded`, a copy made before training in pieces (FSDP2, DeepSpeed), with the trained weights.

    Every process has to call it: the pieces are gathered one weight at a time. Saving and generating then go the same
    way as with one process.
    """
    unsharded.load_state_dict(dict(whole_weights(trained)))
    return unsharded


def whole_weights(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The state of a module that may be in pieces, in main memory: gathered one weight at a time, by every process
    together, each of which has to take them all."""
    for name, value in module.state_dict().items():
        yield name, (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def load_weights(model: torch.nn.Module, folder: str | os.PathLike, hint: str = "") -> None:
    """Load the weights of a checkpoint: all of them, and of the right shapes, or none.

    Raises `FileNotFoundError` or `ValueError` with one line that ends in `hint`: what to do about it.
    """
    file = Path(folder) / SAFE_WEIGHTS_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: its weights ({file.name}) are missing{hint}")
    try:
        saved = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: is damaged ({error}){hint}") from error
    own = model.state_dict()
    there = {tensor.data_ptr() for name, tensor in own.items() if name in saved}
    lost = [name for name in own.keys() - saved if own[name].data_ptr() not in there]  # a tied copy is not saved twice
    lost += [name for name in saved if name not in own or own[name].shape != saved[name].shape]
    if lost:
        raise ValueError(f"{folder}: a checkpoint of another model ({len(lost)} weights, as {min(lost)}){hint}")
    model.load_state_dict(saved, strict=False)


class ResumableTrainer(Trainer):
    """`Trainer` whose checkpoints are whole or not there, and whose logged losses survive a resume.

    `stage` is the title of its progress bar.
    """

    def __init__(self, *args, stage: str = "training", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.progress = StageProgress(stage)
        self.add_callback(self.progress)
        self.save_limit: int | None = None
        self.gathered: torch.Tensor | float = 0.0  # the loss since the last line of the log, of this process
        # The loss of all steps that are in the log, the last of them, and the step before the first. `Trainer` counts
        # these from the last resume on.
        self.losses: dict[str, Any] = {"total": 0.0, "logged": 0, "first": 0}

    def resume_or_train(self, patience: int = 0, start: str | None = None) -> None:
        """Train from the last whole checkpoint in the output folder, or from the start where there is none.

        Args:
            patience: that of early stopping; a run that it has ended is not trained any further.
            start: a checkpoint of another run to begin from: the Trainer's `resume_from_checkpoint`.
        """
        if self.args.should_save:
            remove_checkpoints(self.args.output_dir, broken_only=True)
        self.accelerator.wait_for_everyone()
        own = agreed(next(reversed(checkpoints(self.args.output_dir)), None))
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # `rotate` deletes, `Trainer` does not
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        try:
            if own:
                self.args.eval_on_start = False
                if not sharded:
                    load_weights(self.model, own, "; delete that folder, or begin anew with --restart")
                self.state = self._relocated_state(own / TRAINER_STATE_NAME)
                file = own / RUNNING_LOSS.format(rank=self.args.process_index)
                self.losses = json.loads(file.read_text(encoding="utf-8"))
                self.gathered = self.losses.pop("gathered")
            elif start:
                step = json_object(Path(start) / TRAINER_STATE_NAME)["global_step"]
                self.losses |= {"logged": step, "first": step}
                self.add_callback(_ForgetTheOtherRun())
            ended = own and self._has_ended(patience)
            if not ended:
                self.save_limit = limit
                self.train(resume_from_checkpoint=str(own or start) if own or start else None)
            best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
            if ended or (best and not sharded):
                load_weights(self.model, best or own)  # all of the best's, whatever `Trainer` left out
        except ValueError as error:
            if not own and start and "parameter group" in str(error):  # so torch says it
                raise ValueError(f"resume_from_checkpoint: {start} trained other parts of the model") from error
            raise
        finally:
            self.args.save_total_limit = limit
            self.progress.close()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with loading(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with loading(checkpoint or ""):
            super()._load_rng_state(checkpoint)

    def _has_ended(self, patience: int) -> bool:
        """Whether nothing is left to train: `Trainer` would take one more step."""
        stopped = self.state.best_model_checkpoint and is_exhausted(self.state, self.args, patience)
        return bool(stopped) or self.state.global_step >= self.state.max_steps

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.args.logging_nan_inf_filter and not loss.isfinite():  # as `Trainer` does
            loss = self.gathered / (1 + self.state.global_step - self.losses["logged"])
        self.gathered = self.gathered + loss
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; the losses are those of all steps of the run, before a resume as well."""
        step = self.state.global_step
        if "loss" in logs or "train_loss" in logs:
            gathered = torch.as_tensor(self.gathered, device=self.args.device)
            gathered = self.accelerator.gather(gathered).mean().item()
        if "loss" in logs:
            logs["loss"] = gathered / max(1, step - self.losses["logged"])
            self.losses |= {"total": self.losses["total"] + gathered, "logged": step}
            self.gathered = 0.0
        elif "train_loss" in logs:
            logs["train_loss"] = (self.losses["total"] + gathered) / max(1, step - self.losses["first"])
        super().log(logs, start_time)

    def _relocated_state(self, file: Path) -> TrainerState:
        """The saved state, its best checkpoint looked for in this folder: a run may have been moved."""
        state = TrainerState.load_from_json(str(file))
        if state.best_model_checkpoint:
            best = Path(self.args.output_dir) / Path(state.best_model_checkpoint).name
            if self.args.load_best_model_at_end and not (best / WHOLE).is_file():
                raise ValueError(f"{best}: the best checkpoint of the run is gone; begin anew with --restart")
            if state.best_model_checkpoint != str(best):
                state.best_model_checkpoint = str(best)
                if self.args.should_save:
                    partial = file.with_suffix(".partial")
                    state.save_to_json(str(partial))
                    partial.replace(file)
        self.accelerator.wait_for_everyone()
        return state

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        push, self.args.push_to_hub = self.args.push_to_hub, False  # the checkpoint is not whole yet
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:  # how a full disk is told
            shutil.rmtree(folder, ignore_errors=True)
            free = shutil.disk_usage(self.args.output_dir).free / 1e6
            reason = f"{' '.join(str(error).split())}; {free:.0f} MB free"
            raise OSError(f"{folder}: could not be written ({reason}); earlier checkpoints are whole") from error
        finally:
            self.args.push_to_hub = push
        folder.mkdir(exist_ok=True)
        losses = json.dumps(self.losses | {"gathered": float(self.gathered)})
        (folder / RUNNING_LOSS.format(rank=self.args.process_index)).write_text(losses, encoding="utf-8")
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (folder / WHOLE).touch()
            rotate(self.args.output_dir, self.save_limit, self.state.best_model_checkpoint)
        if push:
            self._push_from_checkpoint(str(folder))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # `save_pretrained` writes the names of older releases, which `from_pretrained` translates and `Trainer`'s own
        # loading does not (transformers #43701, #48805): it would resume, and end with the best checkpoint, without
        # the encoder's weights. A file in the model's own names loads both ways.
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(model, PreTrainedModel):
            model.save_pretrained = functools.partial(type(model).save_pretrained, model, save_original_format=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            vars(model).pop("save_pretrained", None)


class _ForgetTheOtherRun(TrainerCallback):
    """A run that begins from another's checkpoint takes neither its log nor its best checkpoint for its own."""

    def on_train_begin(self, args, state, control, **kwargs):
        state.log_history, state.best_metric = [], None
        state.best_model_checkpoint = state.best_global_step = None


# --- how far a run has come --------------------------------------------------------------------------------------


@contextmanager
def only_run_in(folder: str | os.PathLike) -> Iterator[None]:
    """Keep other trainings out of a run folder. Raises `ValueError` if one is at work in it."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path / ".training.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{folder}: another training writes to this folder") from None
    try:
        yield
    finally:
        lock.release()


def read_progress(folder: str | os.PathLike) -> dict[str, Any] | None:
    """What `write_progress` wrote: `{"stage", "config"}`; `None` where no run was started."""
    file, hint = Path(folder) / PROGRESS, "delete it, and begin anew with --restart"
    try:
        progress = json_object(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; {hint}") from None
    if not isinstance(progress.get("stage"), str) or not isinstance(progress.get("config"), dict):
        raise ValueError(f"{file}: names no stage and config of a run; {hint}")
    return progress


def write_progress(folder: str | os.PathLike, stage: str, config: dict[str, Any]) -> None:
    """Note that a run stands in `stage` (see `hf_cxr.training.beginning.start_or_resume`); whole or not at all."""
    text = json.dumps({"stage": stage, "config": config}, indent=2, default=str)
    replace_files(Path(folder), {PROGRESS: f"{text}\n"})


def check_same_run(folder: str | os.PathLike, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `ValueError` naming the arguments that keep `now` from being the continuation of `before`."""
    now = json.loads(json.dumps(now, default=str))
    changed = [
        f"{name} {before.get(name, 'not set')} → {now.get(name, 'not set')}"
        for name in sorted((before.keys() | now.keys()) - HARMLESS)
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder}: cannot resume with other arguments ({'; '.join(changed)}); use those, or --restart"
        )
