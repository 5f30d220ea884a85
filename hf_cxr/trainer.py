"""The parts of `transformers.Trainer` that two-view training needs different: loss, parameter groups, evaluation.

What a run does with them, stage by stage, lives in `hf_cxr.warmup` and `hf_cxr.training`.
"""

from __future__ import annotations

import torch
from transformers import Seq2SeqTrainer, TrainerCallback

from hf_cxr.canvases import IGNORED, CanvasDataset


class EpochCallback(TrainerCallback):
    """Tells the dataset which epoch it serves, on which its view dropout depends."""

    def __init__(self, canvases: CanvasDataset) -> None:
        self.canvases = canvases

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.canvases.epoch.fill_(int(state.epoch or 0))


class ImpressionTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` that evaluates every study exactly once under several processes, and can give the encoder a
    learning rate of its own: after the warm-up it knows its task, while a new decoder starts from noise."""

    def __init__(self, *args, encoder_learning_rate: float | None = None, **kwargs) -> None:
        self.encoder_learning_rate = encoder_learning_rate
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.encoder_learning_rate is not None:
            encoder = set(self.model.encoder.parameters())
            groups = list(optimizer.param_groups)
            optimizer.param_groups.clear()
            for group in groups:
                for mine, rate in ((True, self.encoder_learning_rate), (False, group["lr"])):
                    members = [parameter for parameter in group["params"] if (parameter in encoder) is mine]
                    if members:
                        optimizer.add_param_group(group | {"params": members, "lr": rate})
        return optimizer

    def evaluation_loop(self, *args, **kwargs):
        # The stock class gathers with `gather`, which keeps the samples that pad the last batch.
        self.gather_function = self.accelerator.gather_for_metrics
        if self.is_fsdp_enabled:  # which the stock class does not see when accelerate has cut the model
            self._gen_kwargs = {"synced_gpus": True} | getattr(self, "_gen_kwargs", {})
        return super().evaluation_loop(*args, **kwargs)


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
