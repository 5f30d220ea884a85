"""A report with its indication through all that a run can meet: the start from another run, two processes, a kill, the
Hub. What each of these does alone: `test_distributed.py`, `test_resume.py`, `tests/hub/test_push.py`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY_RECIPE, copy_folder, write_config
from hub_server import HubServer
from safetensors.torch import load_file, save_file

from hf_cxr.data.prepared import load_prepared
from hf_cxr.inference.sections import SECTIONS
from hf_cxr.training.checkpoints import checkpoints

pytestmark = pytest.mark.slow

STEPS, KILLED_AT = 9, 7  # of 4 steps an epoch
RECIPE = TINY_RECIPE | {
    "target": "report",
    "context": ["indication"],
    "context_dropout": 0.3,
    "max_steps": STEPS,
    "global_batch_size": 64,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-4,
    "save_strategy": "steps",
    "save_steps": 3,
    "log_samples": 0,
}
WHOLE_AND_KILLED = f"""
import os, signal, sys
from transformers import TrainerCallback
from hf_cxr.config import parse_arguments
from hf_cxr.training.run import train

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == {KILLED_AT}:
            os.kill(os.getpid(), signal.SIGKILL)

train(*parse_arguments(sys.argv[1]))
train(*parse_arguments(sys.argv[2]), callbacks=[Kill()])
"""
AWAY = """
import json, sys
sys.modules["hf_cxr"] = sys.modules["datasets"] = sys.modules["evaluate"] = None  # as where they are not installed
from transformers import pipeline
pipe = pipeline(model="user/report", trust_remote_code=True)
print(json.dumps([pipe(study)[0] for study in json.loads(sys.stdin.read())]))
"""


def launch(script: Path, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """`accelerate launch` on two processes of the CPU."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", port, script, *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def talkative_start(run_folder, tmp_path_factory) -> Path:
    """A run of impressions with larger matrices: each study gets a text of its own, and so does each indication."""
    run = copy_folder(run_folder, tmp_path_factory.mktemp("start") / "run")
    weights = load_file(run / "model.safetensors")
    larger = {name: weight * 6 if weight.ndim > 1 else weight for name, weight in weights.items()}
    save_file(larger, run / "model.safetensors", metadata={"format": "pt"})
    return run


@pytest.fixture(scope="module")
def site():
    with HubServer(tokens={"hf_test": "user"}) as site:
        yield site


@pytest.fixture(scope="module")
def runs(phantom_folder, talkative_start, site, tmp_path_factory) -> tuple[Path, Path]:
    """A run that comes to its end and is pushed, and the same killed on its way; started together to save time."""
    folder, configs = tmp_path_factory.mktemp("runs"), []
    pushed = {"push_to_hub": True, "hub_model_id": "user/report", "hub_strategy": "end"}
    for name, more in (("whole", pushed), ("killed", {})):
        values = RECIPE | more | {"dataset": str(phantom_folder), "init_from": str(talkative_start)}
        configs.append(write_config(folder / f"{name}.yaml", **values, output_dir=str(folder / name)))
    script = folder / "whole_and_killed.py"
    script.write_text(WHOLE_AND_KILLED, encoding="utf-8")
    result = launch(script, *configs, **site.env)
    assert "SIGKILL" in result.stderr, result.stderr[-3000:]
    return folder / "whole", folder / "killed"


@pytest.fixture(scope="module")
def whole_run(runs) -> Path:
    return runs[0]


def test_a_run_of_two_processes_goes_on_from_the_weights_and_words_of_another(whole_run, talkative_start):
    before, after = (load_file(run / "model.safetensors") for run in (talkative_start, whole_run))
    assert before.keys() == after.keys()
    for name, weight in before.items():
        moved = (after[name][: len(weight)] - weight).abs().max()  # the embeddings of new tokens come last
        assert moved <= STEPS * RECIPE["learning_rate"], name
    added = {"<indication>", "<findings>", "<impression>"}
    words, more = (
        json.loads((run / "tokenizer.json").read_text(encoding="utf-8")) for run in (talkative_start, whole_run)
    )
    assert more["model"] == words["model"]
    assert {token["content"] for token in more["added_tokens"]} == added | {
        token["content"] for token in words["added_tokens"]
    }


def test_a_killed_run_of_two_processes_resumes_with_equal_weights_and_texts(runs):
    whole, killed = runs
    assert checkpoints(killed)[-1].name == "checkpoint-6", "it was killed elsewhere"
    assert not (killed / "model.safetensors").exists()
    result = launch(ROOT / "scripts" / "train.py", killed.with_suffix(".yaml"), "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("model.safetensors", "predictions.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def test_what_comes_back_from_the_hub_writes_both_sections_as_the_evaluation_did(
    whole_run, phantom_folder, site, tmp_path
):
    rows = map(json.loads, (whole_run / "predictions.jsonl").open(encoding="utf-8"))
    evaluated = {row["uid"]: row["sections"] for row in rows}
    studies, expected = [], []
    for index, row in enumerate(load_prepared(str(phantom_folder))["test"].select(range(8))):
        studies.append({"indication": row["indication"]})
        for view in ("frontal", "lateral"):
            if row[view]:
                studies[-1][view] = str(tmp_path / f"{index}_{view}.png")
                row[view].save(studies[-1][view])
        expected.append({name: evaluated[row["uid"]][name]["prediction"] for name in SECTIONS})
    asked = [*studies, studies[0] | {"indication": "Fall from a ladder, pain in the left arm."}]
    words, env = [sys.executable, "-c", AWAY], site.env
    result = subprocess.run(words, env=env, input=json.dumps(asked), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    *written, otherwise = [{name: said[name] for name in SECTIONS} for said in json.loads(result.stdout)]
    assert written == expected
    assert all(any(texts[name] for texts in written) for name in SECTIONS)
    assert otherwise != written[0], "nobody reads the indication"
    assert len({texts["impression"] for texts in written}) > 1, "equal texts prove nothing"
