"""The parts of `transformers.Trainer` that two-view training needs different: loss, parameter groups, evaluation.

What a run does with them, stage by stage, lives in `hf_cxr.training.findings_pretraining` and `hf_cxr.training.run`.
"""

from __future__ import annotations

import copy
import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import EvalPrediction, Seq2SeqTrainer, TrainerState, TrainingArguments
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import BaseModelOutput

from hf_cxr.data.sections import whole_texts
from hf_cxr.inference import remote_code
from hf_cxr.inference.generation import prompt_inputs, section_order
from hf_cxr.inference.sections import layout_of, split_sections
from hf_cxr.inference.targets import IGNORED
from hf_cxr.models.layer_decay import blocks_above, decay_layers
from hf_cxr.models.modeling import CROSS_ATTENTION, Checkpoint
from hf_cxr.training.checkpoints import ResumableTrainer


class ImpressionTrainer(ResumableTrainer, Seq2SeqTrainer):
    """`Seq2SeqTrainer` that evaluates every study exactly once, in the order of the split, under several processes,
    and can give parts of the model learning rates of their own: after findings pretraining the encoder knows its task,
    while cross-attention that was added to a pretrained decoder starts from noise.

    At each save, where the arguments ask for pushes, `push` gets a folder with the checkpoint, the arguments and the
    state. The stock class would upload the optimizer's state too, to a repository that is public by default.
    """

    def __init__(
        self,
        *args,
        image_processor: BaseImageProcessor | None = None,
        encoder_learning_rate: float | None = None,
        cross_attention_learning_rate: float | None = None,
        encoder_layer_decay: float = 1.0,
        push: Callable[[str, TrainingArguments, TrainerState], object] | None = None,
        **kwargs,
    ) -> None:
        self.image_processor, self.push, self.layer_decay = image_processor, push, encoder_layer_decay
        self.learning_rates = {"encoder": encoder_learning_rate, "cross-attention": cross_attention_learning_rate}
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        part_of = {parameter: part_name(name) for name, parameter in self.model.named_parameters()}
        groups = list(optimizer.param_groups)
        optimizer.param_groups.clear()
        for group, part in itertools.product(groups, ("encoder", "cross-attention", "decoder")):
            members = [parameter for parameter in group["params"] if part_of[parameter] == part]
            rate = self.learning_rates.get(part)
            if members:
                own = {"params": members, "lr": group["lr"] if rate is None else rate}
                optimizer.add_param_group(group | own)
        if self.layer_decay != 1:
            decay_layers(optimizer, blocks_above(self.model.encoder), self.layer_decay)
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.image_processor is not None and self.args.should_save:  # so that `hf-cxr evaluate` takes a checkpoint
            self.image_processor.save_pretrained(output_dir or self.args.output_dir)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        self.push_in_progress = None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.push or not self.is_world_process_zero() or self.args.hub_strategy == "end":
            return
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with tempfile.TemporaryDirectory(dir=self.args.output_dir, prefix=".saving-") as name:
            try:
                remote_code.add_pipeline_code(model, name)
                Checkpoint(model, self.processing_class, self.image_processor).save_pretrained(name)
                self.push(name, self.args, self.state)
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # the last two of a full disk
                reason = " ".join(str(error).split()).replace(f"{name}/", "")
                print(f"step {self.state.global_step} was not pushed: {reason}; training goes on", file=sys.stderr)
            finally:
                vars(model.config).pop("custom_pipelines", None)  # belongs to a pushed or finished checkpoint alone

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        """As in the stock class, with the prompts and the order of the sections. The predictions are the tokens after
        the prompts; where the batch has the images of other studies, beside them those that it writes from these."""
        # The stock class writes every default into the model's generation config. Saved with the weights, they would
        # have `generate` warn of `max_length` at each call, for ever.
        own, layout = copy.deepcopy(self.model.generation_config), layout_of(self.model.config)
        others = inputs.pop("other_pixel_values", None)
        if "encoder_outputs" in inputs:  # `generate` asks for it by name
            inputs["encoder_outputs"] = BaseModelOutput(*inputs["encoder_outputs"])
        try:
            if not layout.tokens or not self.args.predict_with_generate or prediction_loss_only:
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **gen_kwargs)
            asked = {name: value for name, value in self._gen_kwargs.items() if value is not None} | gen_kwargs
            asked |= prompt_inputs(self.model, prompts_of(inputs), len(inputs["labels"]))
            before = asked["decoder_input_ids"].shape[1] if "decoder_input_ids" in asked else 1
            asked["logits_processor"] = section_order(self.model, self.processing_class, before, asked)
            loss, written, labels = super().prediction_step(model, inputs, False, ignore_keys, **asked)
            if others is None:
                return loss, written, labels
            elsewhere = self.model.generate(pixel_values=self._prepare_input(others), **asked)
            return loss, (written[:, before:], elsewhere[:, before:]), labels
        finally:
            self.model.generation_config = own

    def evaluate(self, *args, **gen_kwargs) -> dict[str, float]:
        if self.is_fsdp_enabled:  # which the stock class does not see when accelerate has cut the model
            gen_kwargs["synced_gpus"] = True
        return super().evaluate(*args, **gen_kwargs)

    def evaluation_loop(self, dataloader, *args, **kwargs):
        # The stock class gathers with `gather`, which keeps the samples that pad the last batch.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(dataloader, *args, **kwargs)


def validation_scorer(
    checkpoint: Checkpoint,
    validation: Dataset,
    seed: int,
    score: Callable[..., dict[str, float]],
    more: Callable[..., dict[str, float]] | None = None,
) -> tuple[Callable[[EvalPrediction], dict[str, float]], list[tuple[str, str]]]:
    """What an evaluation tells of the texts, and where it leaves truth and output of each study, in the order of the
    split.

    Args:
        score: `hf_cxr.evaluation.evaluate.validation_scores`.
        more: further scores of whole texts and truths.
    """
    tokenizer, layout = checkpoint.tokenizer, layout_of(checkpoint.model.config)
    whole, truths = whole_texts(validation, layout), list(validation[layout.top])
    latest: list[tuple[str, str]] = []

    def written(ids: np.ndarray) -> list[dict[str, str]]:
        rows = np.where(ids == IGNORED, tokenizer.pad_token_id, ids).tolist()
        return [split_sections(tokenizer, layout, row) for row in rows]

    def compute_metrics(prediction: Any) -> dict[str, float]:
        own, *others = prediction.predictions if layout.context else [prediction.predictions]
        texts = written(own)
        said = [" ".join(filter(None, sections.values())) for sections in texts]
        latest[:] = zip(whole, said, strict=True)  # not the labels decoded, which are cut, or without capitals
        top, *elsewhere = ([sections[layout.top] for sections in each] for each in (texts, *map(written, others)))
        scores = score(top, truths, validation["patient"], seed, elsewhere or None)
        return scores | (more(said, whole) if more else {})

    return compute_metrics, latest


def prompts_of(inputs: Mapping[str, torch.Tensor]) -> list[list[int]]:
    """The tokens between start and text of each row of a batch: those that have no label."""
    lengths = inputs["labels"].ne(IGNORED).int().argmax(1).tolist()
    rows = inputs["decoder_input_ids"][:, 1:].tolist()
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


def part_name(parameter: str) -> str:
    """`encoder`, `cross-attention` or `decoder`: the part of the model that a parameter's name puts it in."""
    if any(mark in parameter for mark in CROSS_ATTENTION):
        return "cross-attention"
    return "encoder" if parameter.removeprefix("_orig_mod.").startswith("encoder.") else "decoder"


def token_mean_loss(label_smoothing: float):
    """Cross entropy summed over the micro-batch, divided by the target tokens of the *global* batch.

    Given to `Trainer` as `compute_loss_func`, it makes loss and gradients independent of how a global batch is cut
    into processes and accumulation steps, also where the pieces hold different numbers of tokens.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        logits = outputs["logits"]
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        count = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return total / count

    return loss
