"""What a person reads: tables of 80 columns without Markdown, and what to do next."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import radiograph
from hub_server import HubServer
from PIL import Image

from hf_cxr.cli.parser import main
from hf_cxr.cli.terminal import WIDTH, aligned, print_report

NEXT = "Next: "


def test_a_table_breaks_long_names_and_aligns_numbers():
    table = aligned(["", "A", "long\nhead"], [["a name of many words " * 5, "0.1", "–"], ["b", "0.25", "+1.000"]])
    lines = table.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line[-6:].strip() for line in (lines[0], lines[1], lines[-2], lines[-1])] == [
        "long",
        "head",
        "–",
        "+1.000",
    ]
    assert lines[-1].startswith("b   ")
    assert aligned(["", "n"], [["a", "1"], ["bb", "10"]]) == "     n\na    1\nbb  10"


def test_the_report_is_aligned_for_80_columns_without_markdown(run_folder, capsys):
    report = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    print_report(report, "runs/demo")
    said = capsys.readouterr().out
    *lines, last = said.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not any(sign in said for sign in ("|", "**", "---"))
    row = next(line for line in lines if line.startswith("model  "))
    assert row.split() == [
        "model",
        *(f"{report[key]:.3f}" for key in ("bleu1", "bleu4", "rougeL", "cider")),
        *row.split()[-2:],
    ]
    assert " ".join(report["verdict"].split()) in " ".join(said.split())
    assert last == f"{NEXT}open runs/demo/report.html · hf-cxr predict runs/demo --frontal IMAGE [--lateral IMAGE]"


def test_compare_is_aligned_and_names_the_next_step_but_not_with_json(run_folder, capsys):
    words = ["compare", str(run_folder), str(run_folder)]
    assert main(words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not any("|" in line or "**" in line for line in lines)
    assert any(line.startswith("finding F1 (micro)  ") for line in lines)
    assert last == f"{NEXT}open {run_folder / 'report.html'}"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] > 0


def test_evaluate_and_predict_name_the_next_step_to_a_person(
    run_folder, phantom_folder, tmp_path, capsys, monkeypatch
):
    assert main(["evaluate", str(run_folder), str(phantom_folder), "--split", "validation"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{NEXT}hf-cxr predict {run_folder} --frontal")
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    words = ["predict", str(run_folder), "--frontal", str(tmp_path / "f.png")]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(NEXT)
    assert main([*words, "--json"]) == 0
    assert NEXT not in capsys.readouterr().out


def test_a_terminal_is_not_made_to_obey_a_path(tmp_path, capsys):
    assert main(["explore", "no\x1b[31m/red", "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "no\\x1b[31m/red" in told
    assert "\x1b" not in told


def test_a_plan_names_the_next_step(capsys):
    assert main(["prepare", "phantom", "--num-studies", "20", "--plan"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(NEXT)


@pytest.mark.slow
def test_push_names_the_next_step(run_folder, phantom_folder):
    command = [str(Path(sys.executable).with_name("hf-cxr")), "push"]
    with HubServer(tokens={"hf_test": "user"}) as hub:
        for folder, step in (
            (run_folder, "predict user/x "),
            (phantom_folder, "train iu_xray_small --dataset user/x"),
        ):
            done = subprocess.run(
                [*command, folder, "user/x"], env=hub.env | {"HF_TOKEN": "hf_test"}, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.splitlines()[-1].startswith(f"{NEXT}hf-cxr {step}")
