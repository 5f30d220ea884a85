"""Help, spelling and recipes: what the command line understands before it does anything."""

import argparse
import subprocess
import sys

import pytest
from helpers import ROOT, run_installed, write_config

from hf_cxr.cli.commands import COMMANDS
from hf_cxr.cli.parser import SHELLS, _spelled, main, make_parser
from hf_cxr.config import ImpressionConfig, argument_names, recipe
from hf_cxr.config.kit import FOREIGN


def said(words, capsys) -> tuple[int, str]:
    try:
        status = main(words)
    except SystemExit as exit:
        status = exit.code
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def test_without_a_command_help_is_printed(capsys):
    status, text = said([], capsys)
    assert status == 0
    assert text.startswith("usage: hf-cxr")
    assert all(f"\n    {name} " in text for name in COMMANDS)


def test_help_imports_nothing_heavy():
    """What makes it fast; the time itself depends on the machine."""
    heavy = "{'torch', 'transformers', 'datasets', 'numpy', 'yaml', 'huggingface_hub', 'shtab'}"
    for words in ([], ["train", "-h"]):
        code = f"import sys\nfrom hf_cxr.cli.parser import main\ntry: main({words})\nexcept SystemExit: pass\n"
        code += f"print('heavy:', sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_misspelt_command_or_option_names_the_nearest(capsys):
    for words, told in {
        ("trian",): "hf-cxr: unknown command 'trian'; did you mean 'train'?",
        ("predict", "run", "--frontl", "f.png"): "hf-cxr predict: unknown option --frontl; did you mean --frontal?",
        ("predict", "run", "--max_length", "9"): "did you mean --max-new-tokens?",
        ("prepare", "openi", "--num_workers=4"): "unknown option --num_workers; did you mean --num-proc?",
        ("prepare", "openi", "stray"): "unrecognized arguments: stray",
        ("train", "demo", "--panel-sise", "3", "--dataset", str(ROOT)): "'panel_sise'; did you mean 'panel_size'?",
        ("train", "demo", "--panel-size", "3", "--dataset", str(ROOT)): "prepared dataset",
        ("train", "demo", "--dataset", "absent", "--logging_stesp", "3"): "did you mean 'logging_steps'?",
    }.items():
        status, text = said(list(words), capsys)
        assert status == 2
        assert told in text
        assert text.count("\n") == 1


def test_every_option_of_every_command_has_help_and_tells_its_default():
    for name, command in make_parser().commands.items():
        for action in command._actions:
            assert action.help, (name, action.dest)
            if action.option_strings and not isinstance(action, argparse._HelpAction):
                assert "default" in action.help or "(required" in action.help, (name, action.dest)
        assert "%(default)s" not in command.format_help()


def test_help_of_train_lists_the_kits_arguments_with_their_defaults(capsys):
    _, text = said(["train", "-h"], capsys)
    told = " ".join(text.split())
    for name in ImpressionConfig.__dataclass_fields__:
        assert f" --{name} " in told
    for name in ("num_processes", "accelerate_config"):
        assert f" --{name} " in told
    assert "Side of one square panel in pixels (default: 224)" in told
    assert "Continue an interrupted run in output_dir (default: false)" in told
    assert "all of transformers' Seq2SeqTrainingArguments" in told
    assert max(map(len, text.splitlines())) <= 100


def test_dashes_and_underscores_are_alike_in_every_option():
    for name, command in make_parser().commands.items():
        for option in command.names():
            for spelling in (option.replace("-", "_"), option.replace("_", "-")):
                assert _spelled(command, [f"--{spelling}=x"]) == [f"--{option}=x"], name
    train = make_parser().commands["train"]
    assert _spelled(train, ["demo", "--learning-rate", "1e-3"]) == ["demo", "--learning_rate", "1e-3"]


def test_a_flag_of_the_config_stands_alone_or_has_a_value():
    parser = make_parser()
    for words, overrides in {
        ("--resume", "demo"): ["--resume=true"],
        ("demo", "--freeze-encoder", "false", "--resume"): ["--freeze_encoder=false", "--resume=true"],
        ("demo", "--dataset", "d", "--seed", "1"): ["--dataset=d"],
    }.items():
        options, rest = parser.parse_known_args(["train", *_spelled(parser.commands["train"], words)])
        assert options.config == "demo"
        assert options.overrides == overrides
        assert rest in ([], ["--seed", "1"])


def test_names_from_other_kits_name_ours(capsys):
    names = {*argument_names(), "num_processes"}
    assert not FOREIGN.keys() & names, "a name of the Trainer's works as it is"
    assert {ours[0] for ours in FOREIGN.values()} <= names
    for foreign, ours in {
        "lr": "learning_rate",
        "epochs": "num_train_epochs",
        "batch-size": "per_device_train_batch_size",
        "model_name_or_path": "encoder",
        "train_file": "dataset",
        "max_length": "max_target_length",
    }.items():
        status, text = said(["train", "demo", f"--{foreign}", "3"], capsys)
        assert status == 2
        assert f"did you mean --{ours}?" in text
        assert text.count("\n") == 1


def test_a_foreign_name_in_a_config_names_ours(tmp_path, phantom_folder, capsys):
    config = write_config(tmp_path / "c.yaml", dataset=str(phantom_folder), lr=1)
    assert said(["train", str(config)], capsys) == (
        2,
        f"hf-cxr train: {config}: unknown argument 'lr'; did you mean 'learning_rate'?\n",
    )


def test_recipes_are_known_by_name_from_any_folder_and_a_file_of_that_name_wins(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for file in (ROOT / "configs").glob("*.yaml"):
        assert recipe(file.stem).samefile(file)
    (tmp_path / "demo").mkdir()
    assert recipe("demo").samefile(ROOT / "configs" / "demo.yaml")
    status, text = said(["train", "iu_xray_vit"], capsys)
    assert status == 2
    assert "none of the recipes demo, iu_xray_frozen" in text
    assert "did you mean 'iu_xray_vit_gpt2'?" in text
    (tmp_path / "demo").rmdir()
    (tmp_path / "demo").write_text("dataset: d\n")
    assert recipe("demo").samefile(tmp_path / "demo")


def test_a_config_that_cannot_be_used_is_one_line_with_what_to_do(tmp_path, capsys):
    (tmp_path / "latin.yaml").write_bytes("encoder: mini # schön\n".encode("latin-1"))
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    for name, told in {
        "latin.yaml": "not UTF-8 at byte 19; save it as UTF-8 text",
        "empty.yaml": "names no dataset; write `dataset: FOLDER` there, or add --dataset FOLDER",
        "run": f"is a folder, not a config file; use {tmp_path / 'run' / 'config.yaml'}",
        "lattin.yaml": "no such config file, and none of the recipes demo, iu_xray_frozen, iu_xray_lora, "
        "iu_xray_rad_dino, iu_xray_rad_dino_frozen, "
        "iu_xray_small, iu_xray_swin_gpt2, iu_xray_vit_gpt2, small_collection; "
        f"did you mean '{tmp_path / 'latin.yaml'}'?",
    }.items():
        assert said(["train", str(tmp_path / name)], capsys) == (2, f"hf-cxr train: {tmp_path / name}: {told}\n")


def test_completion_knows_commands_and_options():
    done = run_installed("--print-completion", "bash")
    assert done.returncode == 0, done.stderr
    for word in (*COMMANDS, "--num-proc", "--abstain-below", "--findings_pretraining_epochs"):
        assert word in done.stdout
    checked = subprocess.run(["bash", "-n"], input=done.stdout, text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_is_printed_for_every_shell(shell, capsys):
    status, text = said(["--print-completion", shell], capsys)
    assert status == 0
    assert "hf-cxr" in text
