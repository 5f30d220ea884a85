"""The reward stage: a fine-tuned model writes texts, and learns to write more of those that are worth more. What a
text is worth is in `hf_cxr.training.rewards`, the run around the stage in `hf_cxr.training.run`.

The estimator is REINFORCE over whole texts, with one step for each batch drawn (so no importance weights, and nothing
to clip). Its baseline is the greedy text of the same study (self-critical sequence training, Rennie et al. 2017,
arXiv:1612.00563), or, of several samples, the mean of the others (leave-one-out, RLOO, Ahmadian et al. 2024,
arXiv:2402.14740, who also take the divergence from the start off the reward of a text). Advantages are not divided by
their standard deviation (as in GRPO, Shao et al. 2024, arXiv:2402.03300). TRL's trainers of these estimators take
causal language models alone.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TrainerCallback
from transformers.modeling_outputs import BaseModelOutput

from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments
from hf_cxr.inference.generation import prompt_inputs, section_order
from hf_cxr.inference.sections import layout_of, split_sections
from hf_cxr.inference.targets import IGNORED
from hf_cxr.training.callbacks import EVALUATIONS, read_lines
from hf_cxr.training.checkpoints import REWARD, REWARD_RECORD, agreed
from hf_cxr.training.reward_pool import RewardPool
from hf_cxr.training.rewards import weights_of
from hf_cxr.training.trainer import ImpressionTrainer, prompts_of
from hf_cxr.utils.files import replace_files
from hf_cxr.utils.progress import ProgressBar

SAMPLE_DRAWS = 3  # sets the random stream of samples apart from those of augmentation and context dropout
SLOWER = 0.1  # the stage's learning rate / that of fine-tuning, by default
# What is watched beside the reward: score of an evaluation → its name, and the reward that it belongs to.
WATCHED = {
    "image_gain": ("image gain", None),
    "distinct_outputs": ("distinct outputs", None),
    "finding_f1_micro": ("finding F1", "finding_f1"),
    "finding_f1_micro_sided": ("finding F1 with sides", "finding_f1"),
    "cider": ("CIDEr", "cider"),
    "bleu4": ("BLEU-4", "bleu"),
    "rougeL": ("ROUGE-L", "rouge_l"),
}
FALL, LEAST = 0.05, 0.005  # a score has fallen by more than this share of what it was, and by more than this


class InverseTransform(LogitsProcessor):
    """Has greedy search draw: the next token of a row is where its cumulative distribution passes that row's number.

    Args:
        uniforms: (rows, tokens), each between 0 and 1; a row of NaN stays greedy.
        before: tokens before the texts, the start and padding among them.
    """

    def __init__(self, uniforms: torch.Tensor, before: int) -> None:
        self.uniforms, self.before = uniforms, before

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        number = self.uniforms[:, input_ids.shape[1] - self.before, None]
        cumulative = scores.float().softmax(-1).cumsum(-1)
        token = (cumulative / cumulative[:, -1:] <= number).sum(-1, keepdim=True).clamp(max=scores.shape[1] - 1)
        drawn = torch.full_like(scores, float("-inf")).scatter(1, token, 0.0)
        return torch.where(number.isnan(), scores, drawn)  # type: ignore[return-value]


def draw(
    model: Any, tokenizer: Any, states: torch.Tensor, prompts: Sequence[Sequence[int]], uniforms: torch.Tensor
) -> list[list[int]]:
    """The tokens of one text for each row, its end among them where it has one, drawn from the model's own
    distribution (no temperature, no beams, no penalties of its generation config).

    Args:
        states: (rows, tokens, hidden), of the encoder.
        prompts: the tokens before each text.
        uniforms: as in `InverseTransform`, as many columns as a text has tokens at most.
    """
    own, ends = model.generation_config, np.atleast_1d(model.generation_config.eos_token_id).tolist()
    kept = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens")
    model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in kept})
    try:
        with torch.no_grad():
            prompt = prompt_inputs(model, prompts, len(states))
            before = prompt["decoder_input_ids"].shape[1] if prompt else 1
            order = section_order(model, tokenizer, before, {})
            order.append(InverseTransform(uniforms.to(states.device), before))
            rows = model.generate(encoder_outputs=BaseModelOutput(states), logits_processor=order, **prompt)
    finally:
        model.generation_config = own
    written = rows[:, before:].tolist()
    lengths = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in written]
    return [row[:length] for row, length in zip(written, lengths, strict=True)]


def log_probabilities(
    logits: torch.Tensor, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], order: LogitsProcessorList
) -> torch.Tensor:
    """The log-probability of each text under the distribution that it is drawn from.

    Args:
        logits: (rows, tokens, vocabulary), those of the first token of a text after its prompt and the start.
        order: what holds a text to its sections, for texts without a prompt.

    Returns a tensor of shape (rows,).
    """
    written = pad_sequence([torch.tensor(text) for text in texts], batch_first=True, padding_value=IGNORED)
    written, longest = written.to(logits.device), written.shape[1]
    if any(prompts):
        first = torch.tensor([[len(prompt)] for prompt in prompts], device=logits.device)
        places = (first + torch.arange(longest, device=logits.device)).clamp(max=logits.shape[1] - 1)
        logits = logits[torch.arange(len(logits), device=logits.device)[:, None], places]
    known, tokens, logits = written != IGNORED, written.clamp(min=0), logits.float()
    if order:
        logits = torch.stack([order(tokens[:, :i], logits[:, i]) for i in range(longest)], 1)
    chosen = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(-1)
    return chosen.masked_fill(~known, 0.0).sum(1)


def advantages(worth: torch.Tensor, baseline: torch.Tensor | None = None) -> torch.Tensor:
    """What each sample of a study is worth above its baseline: that given, or the mean of the other samples.

    Args:
        worth: (studies, samples); baseline: (studies, 1).
    """
    if baseline is None:
        baseline = (worth.sum(1, keepdim=True) - worth) / (worth.shape[1] - 1)
    return worth - baseline


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The texts of a batch, `samples` of each study one after another, and what they are worth, to be waited for."""

    prompts: list[list[int]]
    texts: list[list[int]]
    worth: Callable[[], torch.Tensor]  # (studies, samples); of one sample that of the greedy text is beside it
    at_start: torch.Tensor | None  # (studies, samples): log-probabilities by the model that the stage began with


class RewardTrainer(ImpressionTrainer):
    """`ImpressionTrainer` that learns from texts of its own. The label of a study is its number in the split.

    Texts are drawn without dropout, from a random stream for each (seed, step, study, sample): they do not depend on
    how a global batch is cut, nor on a resume.

    Args:
        rewards: what a text is worth.
        references: the radiologist's text of each training study.
        samples: texts drawn for a study.
        kl: what the divergence from `start` counts, in nats; `start`: the model at the start of the stage, if it does.
    """

    def __init__(
        self,
        *args,
        rewards: RewardPool,
        references: Sequence[str],
        samples: int = 1,
        kl: float = 0.0,
        start: torch.nn.Module | None = None,
        **kwargs,
    ) -> None:
        self.rewards, self.references, self.samples, self.kl, self.start = rewards, references, samples, kl, start
        super().__init__(*args, **kwargs | {"compute_loss_func": self.policy_gradient_loss})
        if self.train_dataset is not None:  # so that what is counted is studies, not tokens
            self.train_dataset.labels = [[number] for number in range(len(self.train_dataset))]
        if start is not None:
            self.start = start.to(self.args.device).eval().requires_grad_(False)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        model.eval()  # no dropout: a text is drawn from the very distribution that is then changed
        plain = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        studies = inputs["labels"][inputs["labels"] != IGNORED].tolist()
        with self.accelerator.autocast():
            states = encoded(plain, inputs)
            drawn = self.drawn(plain, states.detach(), prompts_of(inputs), studies, inputs)
        learned = {
            "encoder_outputs": (states.repeat_interleave(self.samples, 0),),
            "decoder_input_ids": self.decoder_inputs(drawn.prompts, drawn.texts).to(states.device),
            "use_cache": False,
            "labels": drawn,
        }
        return super().compute_loss(model, learned, return_outputs, num_items_in_batch)

    def drawn(
        self, model: Any, states: torch.Tensor, prompts: list[list[int]], studies: list[int], inputs: Mapping[str, Any]
    ) -> Drawn:
        """Write texts for a batch, and say what they are worth."""
        longest, greedy = model.generation_config.max_new_tokens, self.samples == 1
        streams = [
            np.random.default_rng((self.args.seed, self.state.global_step, study, sample, SAMPLE_DRAWS))
            for study in studies
            for sample in range(self.samples)
        ]
        uniforms = torch.from_numpy(np.stack([stream.random(longest, dtype=np.float32) for stream in streams]))
        asked = [prompt for prompt in prompts for _ in range(self.samples)]
        rows = states.repeat_interleave(self.samples, 0)
        if greedy:  # in the same pass
            rows, uniforms = torch.cat([rows, states]), torch.cat([uniforms, torch.full_like(uniforms, torch.nan)])
        written = draw(model, self.processing_class, rows, [*asked, *prompts] if greedy else asked, uniforms)
        worth, texts, at_start = self.worth(written, studies), written[: len(asked)], None
        if self.start is not None:
            with torch.no_grad():
                seen = encoded(self.start, inputs).repeat_interleave(self.samples, 0)
                ids = self.decoder_inputs(asked, texts).to(seen.device)
                logits = self.start(encoder_outputs=(seen,), decoder_input_ids=ids, use_cache=False).logits
                at_start = log_probabilities(logits, asked, texts, self.order()).reshape(len(studies), -1)
        return Drawn(asked, texts, worth, at_start)

    def worth(self, written: Sequence[Sequence[int]], studies: Sequence[int]) -> Callable[[], torch.Tensor]:
        """Ask for the weighted sum of the rewards of each text. Those of a study follow one another, `samples` of
        them; then perhaps one more of each study. The answer has a row for each study."""
        layout, of = layout_of(self.model.config), [study for study in studies for _ in range(self.samples)]
        sections = [split_sections(self.processing_class, layout, row) for row in written]
        texts = [" ".join(filter(None, parts.values())) for parts in sections]
        truths = [self.references[study] for study in [*of, *studies][: len(texts)]]
        answer, weights, drawn = self.rewards.ask(texts, truths), [*self.rewards.weights.values()], len(of)

        def worth() -> torch.Tensor:
            total = torch.from_numpy(answer() @ np.array(weights)).float()
            return torch.cat([total[:drawn].reshape(len(studies), -1), total[drawn:].reshape(len(studies), -1)], 1)

        return worth

    def order(self) -> LogitsProcessorList:
        return section_order(self.model, self.processing_class, 0, {})

    def decoder_inputs(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> torch.Tensor:
        start, pad = self.model.config.decoder_start_token_id, self.processing_class.pad_token_id
        rows = [torch.tensor([start, *p, *t][:-1]) for p, t in zip(prompts, texts, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_value=pad)

    def policy_gradient_loss(
        self, outputs: Any, labels: Drawn, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Minus advantage times log-probability, mean over the samples of a study, summed over the studies and divided
        by those of the *global* batch: its gradient is that of the expected reward."""
        logits = outputs["logits"]
        own = log_probabilities(logits, labels.prompts, labels.texts, self.order()).reshape(-1, self.samples)
        worth = labels.worth().to(own.device)  # meanwhile computed
        worth, greedy = worth[:, : self.samples], worth[:, self.samples :]
        if labels.at_start is not None:
            worth = worth - self.kl * (own.detach() - labels.at_start)
        gains = advantages(worth, greedy if greedy.numel() else None)
        count = len(worth) if num_items_in_batch is None else num_items_in_batch
        return -(gains * own).mean(1).sum() / count


def mean_values(rewards: RewardPool, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Of a split: the mean `reward`, weighted, and of each `reward_NAME`, asked by the first process for all."""
    if not PartialState().is_main_process:
        return agreed(None)
    means = rewards.ask(predictions, references)().mean(0)
    parts = {f"reward_{name}": float(mean) for name, mean in zip(rewards.weights, means, strict=True)}
    return agreed({"reward": float(means @ np.array([*rewards.weights.values()]))} | parts)


def encoded(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """What the encoder makes of a batch, or has made of it: (studies, tokens, hidden)."""
    given = inputs.get("encoder_outputs")
    return model.encoder(pixel_values=inputs["pixel_values"])[0] if given is None else given[0]


# --- the stage -------------------------------------------------------------------------------------------------------


def stage_of(
    kit: ImpressionConfig, args: ImpressionTrainingArguments, judged: bool
) -> tuple[ImpressionConfig, ImpressionTrainingArguments]:
    """The arguments of a run as the reward stage takes them. The rates of the parts keep their proportions; the last
    weights count, not the best. Where there are studies to judge it by it is evaluated, at its start too."""
    rate = kit.reward_learning_rate
    scale = SLOWER if rate is None or not args.learning_rate else rate / args.learning_rate
    parts = {
        name: value * scale
        for name in ("encoder_learning_rate", "cross_attention_learning_rate")
        if (value := getattr(kit, name)) is not None
    }
    changes: dict[str, Any] = {
        "output_dir": str(Path(args.output_dir) / REWARD),
        "num_train_epochs": kit.reward_epochs,
        "learning_rate": args.learning_rate * SLOWER if rate is None else rate,
        "max_steps": -1,
        "eval_strategy": ("epoch" if args.eval_strategy == "no" else args.eval_strategy) if judged else "no",
        "eval_on_start": judged,
        "eval_delay": 0,
        "predict_with_generate": True,
        "save_strategy": "epoch" if args.save_strategy == "best" else args.save_strategy,
        "save_total_limit": 1,
        "load_best_model_at_end": False,
        "metric_for_best_model": None,
        "resume_from_checkpoint": None,
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,
        "gradient_checkpointing": False,  # acts in training mode, with dropout
        "activation_checkpointing": False,  # the same under the name that transformers fills in beside it
        "push_to_hub": False,
    }
    return dataclasses.replace(kit, early_stopping_patience=0, patch_dropout=0.0, **parts), dataclasses.replace(
        args, **changes
    )


class RewardWatch(TrainerCallback):
    """At each evaluation, says in one line what the texts are worth, and warns when the reward rises at the cost of
    the rest. It reads what `ImageUseCallback` has just written."""

    def __init__(self, folder: Path, rewards: Sequence[str]) -> None:
        self.file, self.rewards = folder / EVALUATIONS, rewards

    def on_evaluate(self, args, state, control, **kwargs):
        if state.is_world_process_zero and (rows := read_lines(self.file)):
            warning = hacking_warning(rows[0], rows[-1], self.rewards)
            ProgressBar.write(rewards_line(rows[-1], self.rewards) + (f"\nWARNING: {warning}" if warning else ""))
            sys.stdout.flush()


def rewards_line(scores: Mapping[str, Any], rewards: Sequence[str]) -> str:
    """The reward of one evaluation with its parts, and the scores that are watched beside it."""
    parts = ", ".join(f"{name} {scores[f'reward_{name}']:.3f}" for name in rewards)
    beside = ", ".join(f"{title} {scores[name]:.3g}" for name, (title, own) in WATCHED.items() if own not in rewards)
    return (
        f"reward {scores['reward']:.3f} ({parts}); length ratio {scores['length_ratio']:.2f}; not rewarded: {beside}"
    )


def hacking_warning(start: Mapping[str, Any], now: Mapping[str, Any], rewards: Sequence[str]) -> str | None:
    """Plain words where the reward has risen since the start of the stage and something that is not rewarded has
    fallen; `None` where all is well.

    Args:
        start, now: rows of `evaluations.jsonl`.
        rewards: the names of the rewards.
    """
    fallen = [
        f"{title} has fallen from {start[name]:.3g} to {now[name]:.3g}"
        for name, (title, own) in WATCHED.items()
        if own not in rewards and start[name] - now[name] > max(LEAST, FALL * abs(start[name]))
    ]
    if not fallen or now["reward"] <= start["reward"]:
        return None
    return (
        f"the reward has risen from {start['reward']:.3f} to {now['reward']:.3f}, but {' and '.join(fallen)}: the "
        "model learns to please the reward, not to write better reports. Reward what fell too, set reward_kl, or stop "
        "earlier."
    )


def write_record(run: Path, kit: ImpressionConfig) -> None:
    """Note in `REWARD_RECORD` what the stage was told and what came of it, for report and card."""
    rows = [
        {name: value for name, value in row.items() if not name.endswith(("runtime", "_per_second"))}
        for row in read_lines(run / REWARD / EVALUATIONS)
    ]
    start, end = (rows[0], rows[-1]) if rows else (None, None)
    record = {
        "reward": kit.reward,
        "epochs": kit.reward_epochs,
        "samples": kit.reward_samples,
        "kl": kit.reward_kl,
        "start": start,
        "end": end,
        "warning": hacking_warning(start, end, [*weights_of(kit.reward)]) if start and end else None,
    }
    replace_files(run, {REWARD_RECORD: json.dumps(record, indent=2, ensure_ascii=False) + "\n"})
