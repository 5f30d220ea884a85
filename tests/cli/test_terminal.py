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
from hf_cxr.cli.terminal import WIDTH, aligned, print_report, printable

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
    beside = {name: scores for name, scores in report["baselines"].items() if name != "best_findings"}
    print_report(report | {"findings_unread": "the texts do not look English", "baselines": beside}, "runs/demo")
    said = capsys.readouterr().out
    assert "Findings cannot be read" in said
    assert "F1" not in said.split(report["verdict"][:20])[0]
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


# --- what a terminal would obey --------------------------------------------------------------------------------------

EVIL = "\x1b]0;title\x07 \x9b2J \u202etxt.exe\u2066 \x7f\r\b \ud800"


def obeyed(text: str) -> list[str]:
    """Signs that steer a terminal."""
    return [sign for sign in text if not sign.isprintable() and sign not in "\n\t\xa0"]


def test_nothing_printed_logged_or_warned_of_steers_the_terminal_and_json_keeps_its_text(capsys):
    code = (
        "import json, logging, sys, warnings\n"
        "from hf_cxr.cli.terminal import spell_out\n"
        "spell_out(); spell_out()\n"
        f"evil = {EVIL!r}\n"
        "print('a', evil); logging.warning(evil); warnings.warn(evil); sys.stderr.writelines([evil, '\\n'])\n"
        "print(json.dumps({'uid': evil}, ensure_ascii=False))\n"
        "from tqdm import tqdm\n"
        "list(tqdm([1], file=sys.stderr, desc='bar ' + evil[:5])); raise ValueError(evil)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert obeyed(done.stdout) == []
    assert set(obeyed(done.stderr.replace("\rbar", "bar"))) <= {"\r"}
    assert done.stderr.count("\\u001b]0;title\\u0007") >= 3
    assert json.loads(done.stdout.splitlines()[-1]) == {"uid": EVIL}
    assert "title" in done.stderr.splitlines()[-1]


def test_spaces_and_letters_of_every_script_are_printed_as_they_are():
    for text in ("9.5\xa0%", "Herzgröße 心臓 قلب", "−", "▏█"):
        assert printable(text) == text
    assert printable("a\nb\tc") == "a\\nb\\tc"
    assert printable("\U000e0041") == "\\U000e0041"


def test_uids_texts_and_names_of_files_are_spelt_out_by_every_command(run_folder, phantom_folder, tmp_path, capsys):
    import shutil

    folder = tmp_path / "im\x1b[2Jages"
    folder.mkdir()
    Image.fromarray(radiograph(1)).save(folder / "evil\x1b[31m\n\u202eforged.png")
    (folder / "no\x9bimage.png").write_bytes(b"none")
    capsys.readouterr()
    assert main(["predict", str(run_folder), "--frontal", str(folder)]) == 2
    captured = capsys.readouterr()
    assert obeyed(captured.out + captured.err) == []
    assert len(captured.out.splitlines()) == 2, "one line a study"
    assert main(["predict", str(run_folder), "--frontal", str(folder), "--json"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert {json.loads(line)["uid"] for line in lines} == {"evil\x1b[31m\n\u202eforged", "no\x9bimage"}
    run = tmp_path / "run\x1b[2J"
    shutil.copytree(run_folder, run)
    for words in (["evaluate", run, phantom_folder], ["compare", run, run], ["prepare", "kaggle", "--root", folder]):
        main([str(word) for word in words])
    for words in (["explore", "\x1b[2Jx", "--out", tmp_path / "p"], ["train", "\x1b]0;x\x07"]):
        assert main([str(word) for word in words]) == 2
    with pytest.raises(SystemExit):
        main(["predict", "--\x1b[2J"])
    captured = capsys.readouterr()
    assert set(obeyed(captured.out + captured.err)) <= {"\r"}
