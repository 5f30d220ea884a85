"""What a user names is checked before anything heavy is imported, without the network where it can be done without."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from helpers import LISTEN, TINY_RECIPE, radiograph, write_config
from huggingface_hub import constants
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file

from hf_cxr.cli.parser import main
from hf_cxr.config.kit import SIZES
from hf_cxr.models.encoders import ENCODER_SIZES
from hf_cxr.models.modeling import DECODER_SIZES
from hf_cxr.utils.places import check_checkpoint, check_dataset, check_writable, is_full, unreachable

ROOT = Path(__file__).parents[2]
SPEEDY = """
import json, sys, time
from hf_cxr.cli.parser import main
started, statuses = time.perf_counter(), [main(words) for words in json.loads(sys.argv[1])]
imported = sorted({'torch', 'transformers', 'datasets'} & set(sys.modules))
print(json.dumps([statuses, time.perf_counter() - started, imported]))
"""


@pytest.fixture
def listener():
    """An address that takes connections but never answers; the socket tells whether one came."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Sets where the Hub is looked for; the cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


def test_bad_inputs_are_told_within_two_seconds_without_a_model_a_dataset_or_the_network(
    run_folder, phantom_folder, tmp_path, listener
):
    Image.fromarray(radiograph(1)).save(tmp_path / "frontal.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "frontal.png").read_bytes()[:99])
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_text("{}")
    run, data = str(run_folder), str(phantom_folder)
    cases = {
        ("predict", "runs/frist", "--frontal", "frontal.png"): "no such checkpoint; did you mean 'runs/first'?",
        ("predict", "./rnus/first", "--frontal", "frontal.png"): "did you mean 'runs/first'?",
        ("predict", "runs/first", "--frontal", "frontal.png"): "no checkpoint here (config.json is missing)",
        ("predict", "half", "--frontal", "frontal.png"): "half: its weights (model.safetensors) are missing; copy",
        ("evaluate", "half", data): "half: its weights (model.safetensors) are missing; copy the whole folder again",
        ("predict", "frontal.png", "--frontal", "frontal.png"): "is a file, not a folder with a checkpoint",
        ("predict", run, "--frontal", "frontl.png"): "frontl.png: no such file; did you mean 'frontal.png'?",
        ("predict", run, "--csv", "studies.csv"): "studies.csv: no such file",
        ("predict", run, "--frontal", "frontal.png", "--lateral", "no.png"): "no.png: no such file",
        ("evaluate", run, data + "t"): f"no such prepared dataset; did you mean '{data}'?",
        ("evaluate", run, "runs/first"): "run hf-cxr prepare",
        ("evaluate", run, data, "--split", "tset"): "no split 'tset'; it has ",
        ("evaluate", run, data, "--out", "frontal.png"): "is a file, not a folder",
        ("explore", "runs/data", "--out", "page"): "runs/data: no such prepared dataset; runs has first",
        ("train", "demo", "--dataset", "runs/data"): "runs/data: no such prepared dataset",
        ("train", "demo", "--dataset", data, "--encoder", "runs/frist"): "no such encoder; did you mean 'runs/first'?",
        ("train", "demo", "--dataset", data, "--encoder", "a/b/c", "--init_from", "half"): "half: its weights (model.",
        ("train", "demo", "--dataset", data, "--output_dir", "frontal.png/x"): "cannot be written to",
        ("compare", run, "runs/frist"): "no such run folder; did you mean 'runs/first'?",
        ("push", "runs/frist", "user/name"): "no such folder; did you mean 'runs/first'?",
        ("predict", run, "--frontal", "broken.png"): "frontal: broken.png: ",
        ("prepare", "kaggle", "--root", "rnus"): "no such file or folder; did you mean 'runs'?",
        ("prepare", "kagle", "--root", "rnus"): "did you mean 'kaggle'?",
        ("demo", "--out", "frontal.png"): "is a file, not a folder",
    }
    env = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SPEEDY, json.dumps(list(cases))], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    lines = done.stderr.splitlines()
    for line, (words, told) in zip(lines, cases.items(), strict=True):
        assert line.startswith(f"hf-cxr {words[0]}: ")
        assert told in line
    statuses, seconds, imported = json.loads(done.stdout)
    assert set(statuses) == {2}
    assert seconds < 2, "all of them together"
    assert imported == []
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert not (tmp_path / "page").exists()


def test_a_hub_id_without_a_network_fails_at_once_and_says_why(hub, capsys):
    hub("http://127.0.0.1:9")
    started = time.perf_counter()
    for words in (["predict", "user/name", "--frontal", __file__], ["evaluate", "user/name", "user/data"]):
        assert main(words) == 2
        told = capsys.readouterr().err
        assert "user/name: no such checkpoint here, and not to be had from the Hub (http://127.0.0.1:9 cannot" in told
        assert told.count("\n") == 1
    assert time.perf_counter() - started < 4


def test_a_misspelt_size_is_told_from_a_hub_id(hub, phantom_folder, capsys):
    hub("http://127.0.0.1:1")
    assert main(["train", "demo", "--dataset", str(phantom_folder), "--encoder", "tinny"]) == 2
    assert capsys.readouterr().err.rstrip().endswith("did you mean 'tiny'?")
    assert {*ENCODER_SIZES} == {*DECODER_SIZES} == {*SIZES}


def test_a_hub_that_never_answers_is_not_waited_for(hub, listener, monkeypatch):
    monkeypatch.setattr("hf_cxr.utils.places.SECONDS", 0.2)
    hub(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert "127.0.0.1" in unreachable()


def test_offline_mode_is_named_and_what_is_in_the_cache_is_enough(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="not in the cache, and HF_HUB_OFFLINE forbids to ask"):
        check_dataset("user/name")
    (tmp_path / "cache" / "datasets--user--name").mkdir(parents=True)
    check_dataset("user/name")


def test_a_name_with_the_folder_of_its_owner_here_is_a_path(hub, tmp_path, monkeypatch):
    hub("http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    with pytest.raises(FileNotFoundError, match="taken for a path: the folder 'user' is here"):
        check_checkpoint("user/name")
    for path in ("~/run", "a/b/c", "run", "/run", "user/"):
        with pytest.raises(FileNotFoundError) as error:
            check_checkpoint(path)
        assert "Hub (" not in str(error.value), path


def test_a_full_disk_is_one_line_that_names_the_folder(run_folder, phantom_folder, tmp_path, capsys):
    import torch

    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        words = ["evaluate", str(run_folder), str(phantom_folder), "--out", str(place / "report")]
        assert main(words) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert (
            told == f"hf-cxr evaluate: {place / 'report'}: its disk is full; free some space, or choose another folder"
        )
        with pytest.raises(SafetensorError) as error:
            save_file({"weights": torch.zeros(100_000)}, place / "model.safetensors")
        assert is_full(error.value, place)
        (place / "model.safetensors").unlink(missing_ok=True)
        with pytest.raises(OSError, match="No space left"):
            (place / "filler").write_bytes(bytes(100_000))
        with pytest.raises(
            OSError, match=rf"^{place}/out: cannot be written to \(the disk of .* is full; free some space"
        ):
            check_writable(place / "out")
        assert not is_full(RuntimeError("a bug"), tmp_path)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_folder_that_takes_no_files_is_one_line(tmp_path, capsys, run_folder, phantom_folder):
    with pytest.raises(OSError, match=r"^/proc/1/x: cannot be written to .* choose another folder"):
        check_writable("/proc/1/x")
    assert main(["compare", str(run_folder), str(run_folder), "--out", "/proc/1/x/c.json"]) == 2
    assert capsys.readouterr().err.startswith("hf-cxr compare: /proc/1/x: cannot be written to")
    assert main(["compare", str(run_folder), str(run_folder), "--out", str(tmp_path)]) == 2
    assert f"is a folder; name a JSON file, such as {tmp_path}/comparison.json" in capsys.readouterr().err
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


# --- Ctrl-C ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_in_training_names_the_command_that_continues_it(phantom_folder, tmp_path):
    recipe = TINY_RECIPE | {"num_train_epochs": 500, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    config = write_config(tmp_path / "c.yaml", **recipe, dataset=str(phantom_folder), output_dir=str(tmp_path / "run"))
    code = LISTEN + "import sys; from hf_cxr.cli.parser import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "train", str(config), "--seed", "5", "--restart"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list((tmp_path / "run").glob("checkpoint-*/complete")) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in told
    last = f"hf-cxr train: interrupted; {tmp_path / 'run'} keeps what was trained; continue with: "
    assert told.splitlines()[-1] == f"{last}hf-cxr train {config} --seed 5 --resume"


def test_ctrl_c_before_there_is_anything_to_continue_is_one_plain_line(phantom_folder, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_cxr.training.run.check_feasible", interrupted)
    config = write_config(tmp_path / "c.yaml", dataset=str(phantom_folder), output_dir=str(tmp_path / "run"))
    assert main(["train", str(config)]) == 130
    last = f"hf-cxr train: interrupted; nothing was saved yet; start again with: hf-cxr train {config}"
    assert capsys.readouterr().err.splitlines()[-1] == last


@pytest.mark.parametrize("imported", ["hf_cxr.cli.parser", "hf_cxr.cli.prepare"])
def test_ctrl_c_while_the_kit_is_imported_is_one_plain_line(imported):
    with (ROOT / "pyproject.toml").open("rb") as file:
        module, _, function = tomllib.load(file)["project"]["scripts"]["hf-cxr"].partition(":")
    stop = f"lambda self, name, *_: (os.kill(os.getpid(), signal.SIGINT) if name == {imported!r} else None)"
    code = LISTEN + f"import os, sys; sys.meta_path.insert(0, type('Stop', (), {{'find_spec': {stop}}})())\n"
    code += f"from {module} import {function}; sys.exit({function}())"
    ended = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "hf-cxr: interrupted\n")
