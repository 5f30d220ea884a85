"""The reward stage learns what it says: the gradient of the expected reward, from texts that do not depend on how a
batch is cut, through kills, and with a warning where the reward is pleased and nothing else."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers import (
    TEXTS,
    TINY_RECIPE,
    copy_folder,
    gpt2_folder,
    noise,
    run_forked,
    talkative,
    tiny_checkpoint,
    vit_folder,
    write_config,
)
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState

from hf_cxr import metrics
from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.report.verdict import rewarded
from hf_cxr.hub.model_card import card_text, trained_facts, write_model_card
from hf_cxr.inference.generation import HeldToSections
from hf_cxr.inference.sections import Layout, SectionOrder, layout_of, split_sections, words_of
from hf_cxr.metrics.overlap import cider_per_study
from hf_cxr.metrics.texts import cider_tokens_all
from hf_cxr.models.modeling import build
from hf_cxr.training import reward
from hf_cxr.training import run as training
from hf_cxr.training.callbacks import write_lines
from hf_cxr.training.reward import advantages, draw, hacking_warning
from hf_cxr.training.reward_pool import RewardPool
from hf_cxr.training.rewards import read_rewards, values_of

BATCH = 16


class Killed(BaseException):
    """Stands for Ctrl-C."""


# --- what a text is worth --------------------------------------------------------------------------------------------


def worth(word: str, prediction: str, reference: str, corpus=TEXTS) -> float:
    return float(values_of(read_rewards([f"{word}=1"], corpus), [prediction], [reference])[0, 0])


class Rewards:
    """In the place of a `RewardPool`: one function, in this process."""

    def __init__(self, function, weight: float = 2.0) -> None:
        self.function, self.weights = function, {"own": weight}

    def ask(self, predictions, references):
        return lambda: values_of({"own": self.function}, predictions, references)


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "value"),
    [
        ("finding_f1", "Small right pleural effusion.", "Right pleural effusion.", 1),
        ("finding_f1", "Small left pleural effusion.", "Right pleural effusion.", 0),
        ("finding_f1", "Right pleural effusion. Cardiomegaly.", "Right pleural effusion.", 2 / 3),
        ("finding_f1", "No acute abnormality.", "Normal chest.", 1),
        ("true_findings", "Left pleural effusion. Cardiomegaly. Edema.", "Right pleural effusion. Large heart.", 2),
        ("false_findings", "Left pleural effusion. Cardiomegaly. Edema.", "Right pleural effusion. Nodule.", 2),
        ("length", "one two three", "one two three four", 0.75),
        ("length", "one two three four", "one two three", 0.75),
        ("length", "", "", 1),
        ("no_repetition", "a b c a b c a b c", "", 3 / 7),
        ("no_repetition", "no pleural effusion", "", 1),
        ("rouge_l", "no effusion", "no pleural effusion", 0.8),
        ("bleu", "No acute cardiopulmonary abnormality.", "No acute cardiopulmonary abnormality.", 1),
    ],
)
def test_a_text_is_worth_what_its_reward_says(name, prediction, reference, value):
    assert worth(name, prediction, reference) == pytest.approx(value)


def test_cider_as_a_reward_is_that_of_a_corpus_whatever_the_batch():
    said = [*TEXTS[1:4], "No pleural effusion.", "Stable nodule in the left upper lobe."]
    truths = [*TEXTS[:4], "Small left pleural effusion."]
    expected = cider_per_study(cider_tokens_all(said), cider_tokens_all(truths))
    assert 0 < expected.max() < 10
    assert [10 * worth("cider", p, r, truths) for p, r in zip(said, truths, strict=True)] == pytest.approx(expected)


OWN_MODULE = """
import os, sys

def brevity(predictions, references):
    print("a reward may print")
    return [1 / (1 + len(text)) for text in predictions]

def total(predictions, references):
    return sum(brevity(predictions, references))

def broken(predictions, references):
    return [1 / 0 for text in predictions]

def picky(predictions, references):
    assert "odd" not in predictions, "odd text"
    return brevity(predictions, references)

def dies(predictions, references):
    os._exit(3) if "odd" in predictions else None
    return brevity(predictions, references)

def longer(predictions, references):
    return [len(text.split()) / 20 for text in predictions]

number = 1
"""


def own_module(folder: Path, monkeypatch) -> None:
    (folder / "my_rewards.py").write_text(OWN_MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, "my_rewards", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_a_function_and_an_evaluate_module_of_the_user_are_rewards(tmp_path, monkeypatch):
    own_module(tmp_path, monkeypatch)
    assert worth("my_rewards:brevity", "abc", "") == 0.25
    assert worth(metrics.metric_path("exact_match"), "Normal.", "Normal.") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["finding_f2=1"], r"'finding_f2' is none of finding_f1, true_findings, .*, and evaluate cannot load it"),
        (["no_such_module:f=1"], "'no_such_module:f' cannot be imported"),
        (["json:nothing=1"], "'json:nothing' cannot be imported"),
        (["cider"], "'cider' is not NAME=WEIGHT, as finding_f1=0.5"),
        (["cider=much"], "'cider=much' is not NAME=WEIGHT"),
        (["cider=1", "cider=2"], "'cider' is named twice"),
        (["cider=0"], "names nothing that counts"),
        ([], "names nothing that counts"),
        (["my_rewards:total=1"], r"my_rewards:total gave an array of shape \(\) for 2 texts, not a number for each"),
        (["my_rewards:broken=1"], r"my_rewards:broken failed on 2 texts \(division by zero\)"),
        (["my_rewards:number=1"], "'my_rewards:number' is no function"),
    ],
)
def test_a_reward_that_is_none_is_one_line(words, message, monkeypatch, tmp_path):
    own_module(tmp_path, monkeypatch)
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    with pytest.raises(ValueError, match=f"^reward: .*{message}") as error:
        read_rewards(words, TEXTS)
    assert "\n" not in str(error.value)


def test_findings_of_another_language_are_no_reward():
    with pytest.raises(ValueError, match="finding_f1 cannot be read from these texts, as the texts do not look Engl"):
        read_rewards(["finding_f1=1"], ["Derrame pleural derecho con aumento de la silueta cardiaca."] * 20)


def test_a_reward_without_a_number_for_each_text_is_told():
    with pytest.raises(ValueError, match="reward: bad gave nan or infinity for 1 texts, not a number for each"):
        values_of({"bad": lambda predictions, references: [float("nan")] * len(predictions)}, ["a"], ["b"])


@pytest.mark.skipif(importlib.util.find_spec("radeval") is not None, reason="RadEval is installed")
def test_a_measure_of_radeval_without_it_is_one_line():
    with pytest.raises(ValueError, match=r"^reward: radgraph needs RadEval: pip install RadEval") as error:
        read_rewards(["radgraph=1"], TEXTS)
    assert "\n" not in str(error.value)


# What of RadEval the kit relies on here, as in its version 2.2.1.
RADEVAL = """
def make_reward_fn(metric, reference_column="ground_truth", key=None):
    if metric == "green":
        raise Exception("cannot download")
    def reward(completions, **columns):
        assert all(isinstance(text, str) for text in completions)
        pairs = list(zip(completions, columns[reference_column], strict=True))
        values = {"same": [float(a == b) for a, b in pairs], "longer": [float(len(a) > len(b)) for a, b in pairs]}
        if key is None:
            raise ValueError(f"Metric {metric!r} returns multiple per-sample keys: {sorted(values)}.")
        return values[key]
    return reward
"""


def test_measures_of_radeval_are_rewards(tmp_path, monkeypatch):
    (tmp_path / "radeval").mkdir()
    (tmp_path / "radeval" / "__init__.py").write_text("")
    (tmp_path / "radeval" / "rewards.py").write_text(RADEVAL)
    for name in ("radeval", "RadEval", "radeval.rewards"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert worth("radgraph/same", "Normal.", "Normal.") == 1
    assert worth("radgraph/longer", "Normal chest.", "Normal.") == 1
    with pytest.raises(ValueError, match=r"^reward: radgraph failed .* .*keys: \['longer', '"):
        read_rewards(["radgraph=1"], TEXTS)
    with pytest.raises(ValueError, match=r"^reward: RadEval cannot load 'green': cannot download$"):
        read_rewards(["green=1"], TEXTS)
    for name in ("radeval", "RadEval", "radeval.rewards"):
        sys.modules.pop(name, None)


# --- in processes of their own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
def test_processes_say_what_this_one_would_and_end_with_the_block(size, tmp_path, monkeypatch):
    own_module(tmp_path, monkeypatch)
    words = ["finding_f1=1", "cider=0.5", "my_rewards:brevity=-1"]
    with RewardPool(words, TEXTS, size) as pool:
        for said, truths in ((TEXTS[1:6], TEXTS[:5]), (["Naïve “text”\n\u2028."], TEXTS[:1]), (TEXTS, TEXTS[::-1])):
            assert (pool.ask(said, truths)() == values_of(read_rewards(words, TEXTS), said, truths)).all()
    assert pool.weights == {"finding_f1": 1, "cider": 0.5, "my_rewards:brevity": -1}
    assert all(process.poll() is not None for process in pool.processes)


def test_a_reward_that_fails_later_and_a_process_that_ends_are_one_line(tmp_path, monkeypatch):
    own_module(tmp_path, monkeypatch)
    with RewardPool(["my_rewards:picky=1"], TEXTS) as pool:
        with pytest.raises(ValueError, match=r"^reward: my_rewards:picky failed on 1 texts \(odd text\)$"):
            pool.ask(["odd"], ["text"])()
        assert pool.ask(["abc"], ["text"])() == 0.25, "it goes on"
    with RewardPool(["my_rewards:dies=1"], TEXTS) as pool:
        with pytest.raises(OSError, match=r"a process that computes rewards has ended \(exit status 3\)"):
            pool.ask(["odd"], ["text"])()
        with pytest.raises(OSError, match="has ended"):
            pool.ask(["abc"], ["text"])


def test_processes_end_with_a_killed_one_that_started_them():
    code = "import os, sys, time; from hf_cxr.training.reward_pool import RewardPool\n"
    code += "pool = RewardPool(['length=1'], ['a', 'b'], 2); pool.ask(['a'], ['b'])()\n"
    code += "print(*(process.pid for process in pool.processes), flush=True); os.kill(os.getpid(), 9)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.returncode == -9
    end, left = time.monotonic() + 20, [int(word) for word in told.stdout.split()]
    assert len(left) == 2
    while left and time.monotonic() < end:
        left = [pid for pid in left if runs(pid)]
        time.sleep(0.05)
    assert not left


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- texts are drawn from the model, and the gradient is that of what they are worth ---------------------------------


def asked_checkpoint():
    """Talkative, of both sections behind a context."""
    torch.manual_seed(0)
    layout = Layout(("findings", "impression"), ("indication",))
    return talkative(build("tiny", "tiny", 32, texts=TEXTS, vocab_size=350, max_new_tokens=12, layout=layout))


def test_texts_are_drawn_with_the_probabilities_of_the_model_whatever_the_batch():
    checkpoint, rows = tiny_checkpoint(), 400
    model = checkpoint.model.eval()
    states = model.encoder(pixel_values=noise(1))[0].detach()
    uniforms = torch.rand(rows, 12, generator=torch.Generator().manual_seed(0))
    uniforms[:, 0] = (torch.arange(rows) + 0.5) / rows
    texts = draw(model, checkpoint.tokenizer, states.repeat(rows, 1, 1), [[]] * rows, uniforms)
    start = torch.tensor([[model.config.decoder_start_token_id]])
    expected = model(encoder_outputs=(states,), decoder_input_ids=start).logits[0, 0].softmax(-1)
    drawn = torch.bincount(torch.tensor([text[0] for text in texts]), minlength=len(expected))
    assert (drawn - rows * expected).abs().max() <= 1, "as evenly as the numbers are spread"
    assert len({tuple(text) for text in texts}) > 300
    alone = [draw(model, checkpoint.tokenizer, states, [[]], uniforms[i : i + 1])[0] for i in (3, 200)]
    assert alone == [texts[3], texts[200]]


def rewarder(folder: Path, checkpoint, samples: int, references, weigh, **more):
    """A trainer of the stage that has not begun, and its inputs for three studies."""
    _, args = parse_arguments(write_config(folder / "c.yaml", **TINY_RECIPE, dataset="-", output_dir=str(folder)))
    own = {"rewards": Rewards(weigh), "references": references, "samples": samples}
    trainer = reward.RewardTrainer(
        model=checkpoint.model, args=args, processing_class=checkpoint.tokenizer, **own, **more
    )
    return trainer


def words_shared(predictions, references):
    return [len({*p.split()} & {*r.split()}) + len(p) / 100 for p, r in zip(predictions, references, strict=True)]


def brute_force(checkpoint, trainer, inputs, prompts, studies, samples, kl=0.0, start=None):
    """The same loss from its definition: token by token, study by study, without a cache or a batch."""
    model, tokenizer = checkpoint.model.eval(), checkpoint.tokenizer
    ends, longest = model.generation_config.eos_token_id, model.generation_config.max_new_tokens
    layout = layout_of(model.config)
    markers = [tokenizer.convert_tokens_to_ids(f"<{name}>") for name in layout.sections[1:]]
    forbidden = [i for i in tokenizer.convert_tokens_to_ids(layout.tokens) if i not in markers]

    def write(row: int, uniforms, policy, text=None):
        states = policy.encoder(pixel_values=inputs["pixel_values"][row : row + 1])[0]
        prompt = [model.config.decoder_start_token_id, *prompts[row]]
        special = {*tokenizer.all_special_ids, *forbidden} - {*markers, ends}
        words = words_of(tokenizer, model.config.decoder.vocab_size)
        order = SectionOrder(markers, sorted(special), [ends], longest, words, tokenizer.decode)
        order = HeldToSections(order, len(prompt))
        written, total = [], 0.0
        for place in range(longest if text is None else len(text)):
            ids = torch.tensor([[*prompt, *written]])
            logits = policy(encoder_outputs=(states,), decoder_input_ids=ids, use_cache=False).logits[:, -1]
            probabilities = (order(ids, logits) if layout.tokens else logits).softmax(-1)[0]
            if text is not None:
                token = text[place]
            elif uniforms is None:
                token = int(probabilities.argmax())
            else:
                token = int((probabilities.cumsum(0) <= uniforms[place]).sum())
            written, total = [*written, token], total + probabilities[token].log()
            if token == ends:
                break
        return written, total

    def value(text, study):
        parts = split_sections(tokenizer, layout, text)
        return 2.0 * words_shared([" ".join(filter(None, parts.values()))], [trainer.references[study]])[0]

    loss, seen = 0.0, []
    for row, study in enumerate(studies):
        streams = [np.random.default_rng((trainer.args.seed, 0, study, number, 3)) for number in range(samples)]
        texts = [write(row, stream.random(longest, dtype=np.float32), model) for stream in streams]
        gains = [value(text, study) for text, _ in texts]
        if start is not None:
            gains = [
                gain - kl * (own.item() - write(row, None, start, text)[1].item())
                for gain, (text, own) in zip(gains, texts, strict=True)
            ]
        greedy = value(write(row, None, model)[0], study)
        base = [(sum(gains) - gain) / (samples - 1) if samples > 1 else greedy for gain in gains]
        loss = loss - sum((gain - b) * own for gain, b, (_, own) in zip(gains, base, texts, strict=True)) / samples
        seen += [tuple(text) for text, _ in texts]
    assert len(set(seen)) >= len(studies)
    return loss / len(studies)


@pytest.mark.parametrize(
    ("make", "samples", "kl"),
    [
        (lambda: talkative(tiny_checkpoint()), 1, 0.0),
        (lambda: talkative(tiny_checkpoint()), 3, 0.0),
        (lambda: talkative(tiny_checkpoint()), 3, 0.5),
        (asked_checkpoint, 2, 0.0),
    ],
    ids=["self-critical", "leave-one-out", "kl", "sections-and-context"],
)
def test_the_gradient_is_that_of_reinforce_by_its_definition(make, samples, kl, tmp_path):
    checkpoint, start = make(), None
    if kl:
        start = make().model
        for weights in start.decoder.parameters():
            weights.data.mul_(0.97)
    model, studies = checkpoint.model, [5, 2, 9]
    prompts = [[], [], []]
    if layout_of(model.config).context:
        tokens = checkpoint.tokenizer.convert_tokens_to_ids(["<indication>", "<findings>"])
        prompts = [[tokens[0], 40, 41, tokens[1]], [tokens[1]], [tokens[0], 42, tokens[1]]]
    trainer = rewarder(tmp_path, checkpoint, samples, TEXTS, words_shared, kl=kl, start=start)
    longest = max(map(len, prompts))
    labels = [[-100] * len(p) + [s] + [-100] * (longest - len(p)) for p, s in zip(prompts, studies, strict=True)]
    ids = [[0, *p, 7, *[0] * (longest - len(p))][: longest + 1] for p in prompts]
    inputs = {"pixel_values": noise(3), "labels": torch.tensor(labels), "decoder_input_ids": torch.tensor(ids)}
    expected = brute_force(checkpoint, trainer, inputs, prompts, studies, samples, kl, start)
    expected.backward()
    gradients = {name: weights.grad.clone() for name, weights in model.named_parameters() if weights.grad is not None}
    model.zero_grad()
    loss = trainer.compute_loss(model, dict(inputs), num_items_in_batch=torch.tensor(3))
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)  # terms of tens cancel
    apart = [
        (weights.grad - gradients[name]).norm() for name, weights in model.named_parameters() if name in gradients
    ]
    whole = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert whole > 0
    assert torch.stack(apart).norm() < 1e-3 * whole


def test_texts_that_are_worth_the_same_teach_nothing(tmp_path):
    assert advantages(torch.full((2, 4), 0.3)).abs().max() < 1e-6
    assert advantages(torch.tensor([[0.7], [0.2]]), torch.tensor([[0.7], [0.1]])).flatten().tolist() == [
        0,
        pytest.approx(0.1),
    ]
    for samples in (1, 3):
        checkpoint = talkative(tiny_checkpoint())
        trainer = rewarder(tmp_path, checkpoint, samples, TEXTS, lambda p, r: [0.5] * len(p))
        inputs = {"pixel_values": noise(2), "labels": torch.tensor([[0], [1]])}
        inputs["decoder_input_ids"] = torch.zeros_like(inputs["labels"])
        trainer.compute_loss(checkpoint.model, inputs, num_items_in_batch=torch.tensor(2)).backward()
        largest = max(
            weights.grad.abs().max() for weights in checkpoint.model.parameters() if weights.grad is not None
        )
        assert largest == 0


# --- the stage: however a batch is cut, through kills, and watched ---------------------------------------------------


def first_step(dataset: str, file: str, accumulation: int) -> None:
    """The loss and gradient norm of the first step of a global batch of 16 studies; process 0 writes them."""
    processes, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    recipe = TINY_RECIPE | {
        "dataset": dataset,
        "output_dir": f"{file}.run",
        "per_device_train_batch_size": BATCH // (accumulation * processes),
        "gradient_accumulation_steps": accumulation,
        "logging_steps": 1,
        "max_grad_norm": 1000.0,
        "reward": ["finding_f1=0.5", "cider=1", "length=1"],
        "reward_epochs": 0.5,
        "reward_samples": 2,
        "disable_tqdm": True,
    }
    kit, args = parse_arguments(write_config(Path(f"{file}.{rank}.yaml"), **recipe))
    packed = pack_dataset(load_prepared(dataset)["train"].select(range(2 * BATCH)), 32)
    checkpoint = talkative(tiny_checkpoint())
    log = training._reward(checkpoint, {"train": packed}, kit, args, ()).state.log_history
    if rank == 0:
        Path(file).write_text(json.dumps(log[0]))


def test_the_first_step_does_not_depend_on_processes_and_accumulation(phantom_folder, tmp_path):
    steps = {}
    for processes, accumulation in ((1, 1), (1, 2), (2, 1), (2, 2)):
        file, here = str(tmp_path / f"{processes}-{accumulation}.json"), str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(0, {here!r}); import test_reward; import torch.distributed as d\n"
        code += f"test_reward.first_step({str(phantom_folder)!r}, {file!r}, {accumulation})\n"
        code += "d.destroy_process_group() if d.is_initialized() else None"
        done = run_forked(code=code, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        steps[processes, accumulation] = json.loads(Path(file).read_text())
    one = steps[1, 1]
    assert abs(one["loss"]) > 0.01
    assert one["grad_norm"] > 0.01
    for cut, step in steps.items():
        for key in ("loss", "grad_norm"):
            assert step[key] == pytest.approx(one[key], rel=1e-6), (cut, key)


def arguments(folder: Path, dataset: Path, *words: str, **values):
    folder.mkdir(exist_ok=True)
    recipe = TINY_RECIPE | {
        "dataset": str(dataset),
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "reward_learning_rate": 1e-3,
        "reward_epochs": 1,  # 7 steps
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 2,
        "log_samples": 0,
    }
    return parse_arguments(write_config(folder / "config.yaml", **recipe | values), list(words))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(run: Path) -> list[tuple[int, float]]:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [(row["step"], row["loss"]) for row in log if "loss" in row]


@pytest.fixture(scope="module")
def peace(phantom_folder, tmp_path_factory) -> Path:
    """A run of two steps of fine-tuning and the reward stage, in peace."""
    folder = tmp_path_factory.mktemp("peace")
    training.train(*arguments(folder, phantom_folder, max_steps=2, reward_kl=0.1))
    return folder / "run"


@pytest.mark.parametrize("step", [1, 5])
def test_a_killed_stage_goes_on_to_the_same_weights(peace, phantom_folder, tmp_path, monkeypatch, step):
    class Doomed(reward.RewardTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(type("Stop", (TrainerCallback,), {"on_step_end": killed})())

    def killed(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "RewardTrainer", Doomed)
        with pytest.raises(Killed):
            training.train(*arguments(tmp_path, phantom_folder, max_steps=2, reward_kl=0.1))
    run = tmp_path / "run"
    assert json.loads((run / "progress.json").read_text())["stage"] == "reward"
    assert not (run / "model.safetensors").exists()
    training.train(*arguments(tmp_path, phantom_folder, "--resume", max_steps=2, reward_kl=0.1))
    assert same(weights(run), weights(peace))
    assert not same(weights(run), weights(run / "fine_tuned"))
    assert losses(run) == losses(peace)
    record = (run / "reward.json").read_text()
    assert record == (peace / "reward.json").read_text()
    assert json.loads(record)["end"]["step"] == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": ["finding_f2=1"]}, "reward: 'finding_f2' is none of finding_f1, true_findings"),
        ({"reward_samples": 0}, "reward_samples is 1 or more, not 0"),
        ({"reward_kl": -1}, "reward_epochs, reward_kl and reward_learning_rate are 0 or more"),
        ({"num_train_epochs": 0}, "num_train_epochs"),
        ({"num_train_epochs": 0, "findings_pretraining_epochs": 1}, "needs fine-tuning before the reward stage"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_before_any_work(phantom_folder, tmp_path, monkeypatch, values, message):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    with pytest.raises(ValueError, match=message) as error:
        training.train(*arguments(tmp_path, phantom_folder, **values))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_rewards_are_a_list_or_a_mapping_in_a_config_and_words_on_the_command_line(tmp_path):
    for given in (["finding_f1=0.5", "cider=1"], {"finding_f1": 0.5, "cider": 1}):
        kit, _ = arguments(tmp_path, Path("-"), reward=given)
        assert sorted(kit.reward) == ["cider=1", "finding_f1=0.5"]
        kit, _ = arguments(tmp_path, Path("-"), "--reward", "length=0.1", "my:own=2", reward=given)
        assert kit.reward == ["length=0.1", "my:own=2"]


@pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")
def test_adapters_and_a_frozen_encoder_learn_from_rewards_too(phantom_folder, tmp_path):
    parts = {"encoder": vit_folder(tmp_path / "vit", 32, 16), "decoder": gpt2_folder(tmp_path / "gpt2")}
    own = {"max_steps": 1, "reward_epochs": 0.5, "reward_samples": 2, "reward_kl": 0.1, "save_strategy": "no"}
    own |= {"reward": ["length=1"], "lora_rank": 2, "freeze_encoder": True, "reward_learning_rate": 1e-2}
    training.train(*arguments(tmp_path, phantom_folder, **parts, **own))
    before, after = weights(tmp_path / "run" / "fine_tuned"), weights(tmp_path / "run")
    assert before.keys() == after.keys()
    learned = {name for name in after if not torch.equal(before[name], after[name])}
    assert learned
    assert all(name.startswith("decoder.") for name in learned)
    assert any("crossattention" in name for name in learned)
    assert any(".attn.c_attn.weight" in name for name in learned), "by an adapter, merged"
    assert not list((tmp_path / "run").glob("**/encoder_states"))


def row(step: int, **scores: float) -> dict[str, float]:
    plain = {"image_gain": 0.1, "distinct_outputs": 20.0, "finding_f1_micro": 0.4, "cider": 1.0, "bleu4": 0.2}
    return {"step": step, "reward": 0.5, "rougeL": 0.3, "finding_f1_micro_sided": 0.3} | plain | scores


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ({"reward": 0.9, "image_gain": 0.02}, "image gain has fallen from 0.1 to 0.02:"),
        ({"reward": 0.9, "distinct_outputs": 3.0}, "distinct outputs has fallen from 20 to 3:"),
        ({"reward": 0.9, "bleu4": 0.1, "rougeL": 0.1}, "BLEU-4 has fallen from 0.2 to 0.1 and ROUGE-L has fallen"),
        ({"reward": 0.9, "finding_f1_micro_sided": 0.2}, "finding F1 with sides has fallen from 0.3 to 0.2:"),
        ({"reward": 0.9, "cider": 0.1}, None),  # is rewarded: its fall is in the reward
        ({"reward": 0.9, "bleu4": 0.199}, None),
        ({"reward": 0.5, "bleu4": 0.1}, None),
        ({"reward": 0.9, "bleu4": 0.3}, None),
    ],
)
def test_a_reward_that_rises_at_the_cost_of_the_rest_warns(now, told):
    warning = hacking_warning(row(0), row(9, **now), ["cider", "length"])
    assert (warning is None) == (told is None)
    if told:
        assert warning.startswith(f"the reward has risen from 0.500 to 0.900, but {told}")


def test_the_warning_is_in_the_log_the_report_and_the_card(peace, tmp_path, capsys):
    run = copy_folder(peace, tmp_path / "run")
    assert json.loads((run / "report.json").read_text())["reward"] == json.loads((run / "reward.json").read_text())
    assert "WARNING" not in card_text(run)
    file = run / "reward" / "evaluations.jsonl"
    more = {"reward_finding_f1": 0.1, "reward_cider": 0.2, "reward_length": 0.3, "length_ratio": 2.0}
    write_lines(file, [row(0, **more), row(7, **more | {"reward": 0.9, "image_gain": 0.01})])
    kit, args = arguments(tmp_path, Path("unused"))
    warning = "the reward has risen from 0.500 to 0.900, but image gain has fallen from 0.1 to 0.01"
    reward.RewardWatch(file.parent, ["finding_f1", "cider", "length"]).on_evaluate(args, TrainerState(), None)
    told = capsys.readouterr().out
    assert "reward 0.900 (finding_f1 0.100, cider 0.200, length 0.300); length ratio 2.00; not rewarded: image" in told
    assert f"\nWARNING: {warning}" in told
    reward.write_record(run, kit)
    verdict = rewarded({"verdict": "It reads."}, run)["verdict"]
    assert verdict.startswith(f"It reads. WARNING: in the reward stage {warning}")
    facts = json.loads((run / "card.json").read_text()) | trained_facts(run, args)
    write_model_card(run, facts)
    card = card_text(run)
    assert f"**WARNING**: {warning}" in card
    assert "Then a reward stage of 1 epochs (self-critical)" in card


def test_a_reward_of_length_alone_is_hacked_and_log_report_and_card_warn(
    phantom_folder, tmp_path, monkeypatch, capsys
):
    own_module(tmp_path, monkeypatch)
    learned = {"learning_rate": 3e-3, "num_train_epochs": 4, "save_strategy": "no", "per_device_train_batch_size": 16}
    hacked = {"reward": ["my_rewards:longer=1"], "reward_samples": 4, "reward_learning_rate": 2e-3}
    training.train(*arguments(tmp_path, phantom_folder, **learned, **hacked))
    run = tmp_path / "run"
    start, end = (json.loads((run / "reward.json").read_text())[when] for when in ("start", "end"))
    assert end["length_ratio"] > 1.2 * start["length_ratio"]
    assert end["bleu4"] < start["bleu4"]
    warning = f"the reward has risen from {start['reward']:.3f} to {end['reward']:.3f}, but "
    assert f"WARNING: {warning}" in capsys.readouterr().out
    assert f"WARNING: in the reward stage {warning}" in json.loads((run / "report.json").read_text())["verdict"]
    assert f"WARNING: in the reward stage {warning}" in (run / "report.html").read_text()
    assert f"**WARNING**: {warning}" in card_text(run)


def test_the_card_tells_of_both_stages(peace):
    facts = json.loads((peace / "card.json").read_text())
    assert (facts["trained_steps"], facts["reward"]["end"]["step"]) == (2, 7)
