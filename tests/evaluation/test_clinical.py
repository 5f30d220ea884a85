"""Clinical metrics in a report, by a stand-in for RadEval in a virtual environment of its own: what they are of,
what is made of them, and what becomes of a metric that cannot be had."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import LISTEN, ROOT, copy_folder, run_cxr

from hf_cxr.cli import options
from hf_cxr.evaluation import bootstrap, clinical, clinical_worker
from hf_cxr.evaluation.baselines import blind_predictions
from hf_cxr.evaluation.clinical import Clinical, add_clinical
from hf_cxr.evaluation.compare import compare, comparison_table, read_predictions
from hf_cxr.evaluation.compare_several import compare_page, compare_several
from hf_cxr.evaluation.external import evaluate_texts
from hf_cxr.evaluation.report import report_markdown
from hf_cxr.evaluation.report.tables import CLINICAL
from hf_cxr.metrics import f1

# RadEval's interface, and what it does with texts, as in its version 2.2.1. A metric does what behaviour.json says.
RADEVAL = """
import json, os, pathlib, signal, sys, time

BEHAVIOUR = pathlib.Path(sys.prefix, "behaviour.json")

def behaviour(name):
    return json.loads(BEHAVIOUR.read_text()).get(name) if BEHAVIOUR.exists() else None

class RadEval:
    def __init__(self, metrics=None, openai_api_key=None, gemini_api_key=None, per_sample=False, detailed=False,
                 show_progress=True, cache_dir=None):
        [self.name] = metrics
        assert per_sample and not show_progress
        self.how = behaviour(self.name)
        if self.how == "no models":
            raise Exception("Cannot download the file\\nmore")
        if self.how == "no package":
            import a_package_that_is_not_there
        if self.how == "network":
            assert os.environ.get("HF_HUB_OFFLINE") != "1", "offline"

    def __call__(self, refs, hyps):
        print("Using device: cpu")
        if self.how == "sleep":
            pathlib.Path(sys.prefix, "pid").write_text(str(os.getpid()))
            time.sleep(600)
        if self.how == "raise":
            raise RuntimeError(f"broke at {hyps[0]!r}")
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        pairs = list(zip(hyps, refs))
        if self.name == "ratescore":  # it passes over texts of fewer than three signs, and zips what is left
            pairs = list(zip(*[[text for text in side if len(text.strip()) >= 3] for side in (hyps, refs)]))
        values = [overlap(*pair) for pair in pairs]
        if self.how == "few":
            values = values[:-1]
        if self.how == "nan":
            values = [float("nan") if "effusion" in hyp else value for hyp, value in zip(hyps, values)]
        if self.how == "none":
            values = [None] * len(values)
        if self.name == "radgraph":
            from RadEval.graph import SIMPLE
            return {"radgraph_simple": [SIMPLE] * len(values), "radgraph_partial": values,
                    "radgraph_complete": [SIMPLE] * len(values)}
        return {self.name: values}

def overlap(hyp, ref):
    hyp, ref = set(hyp.split()), set(ref.split())
    return len(hyp & ref) / len(hyp | ref)
"""
CHEXBERT = """
class F1CheXbert:
    def __init__(self, *, refs_filename=None, hyps_filename=None, device="cuda", batch_size=64):
        assert device == "cpu", "Torch not compiled with CUDA enabled"

    def get_labels(self, reports, mode="rrg", on_batch_done=None):
        return [[int(word in text) for word in ("effusion", "Cardiomegaly", "Small")] for text in reports]
"""
FILES = {
    "radeval/__init__.py": RADEVAL,
    "radeval/graph.py": "SIMPLE = 0.5\n",
    "radeval/metrics/__init__.py": "",
    "radeval/metrics/f1chexbert/__init__.py": "",
    "radeval/metrics/f1chexbert/f1chexbert.py": CHEXBERT,
    "radeval-2.2.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: RadEval\nVersion: 2.2.1\n",
    "torch.py": "class cuda:\n    is_available = staticmethod(lambda: False)\n",
}
TRUE = ["No acute disease.", "Small right pleural effusion.", "Cardiomegaly.", "Small left pleural effusion."] * 6
SAID = [
    "No acute disease.",
    "Right pleural effusion.",
    "No acute disease.",
    "Small left effusion and Cardiomegaly.",
] * 6
TRAIN = [*["No acute disease."] * 3, "Small left pleural effusion.", "Small left pleural effusion."]
ALL = tuple(CLINICAL)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clinical") / "env"
    venv.create(folder, symlinks=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name, text in FILES.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    return folder


@pytest.fixture
def env(made):
    """The environment; what its metrics do is reset afterwards."""
    yield made
    (made / "behaviour.json").unlink(missing_ok=True)
    (made / "pid").unlink(missing_ok=True)


def behave(env, **how):
    (env / "behaviour.json").write_text(json.dumps(how))


def overlap(said, true):
    said, true = set(said.split()), set(true.split())
    return len(said & true) / len(said | true)


def table(said=SAID, true=TRUE):
    rows = enumerate(zip(said, true, strict=True))
    return [{"uid": f"u{i}", "patient": f"p{i // 2}", "reference": t, "prediction": s} for i, (s, t) in rows]


def blind(n):
    return blind_predictions(TRAIN, (), n, 0)


def file_of(folder, said=SAID):
    file = folder / "theirs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in table(said)), encoding="utf-8")
    return file


def scored(asked, said=SAID, out=None, **more):
    return evaluate_texts(table(said), train_texts=TRAIN, clinical=asked, out=out, **more)


def test_each_study_keeps_its_value_and_the_scores_are_made_of_them(env, tmp_path):
    report = scored(Clinical(ALL, env), out=tmp_path)
    rows = list(read_predictions(str(tmp_path)).values())
    own = [overlap(said, true) for said, true in zip(SAID, TRUE, strict=True)]
    order = next(bootstrap.derangements(len(SAID), 0, 1))
    shuffled = [overlap(SAID[i], true) for i, true in zip(order, TRUE, strict=True)]
    best = max(report["baselines"], key=lambda n: n != "random_train" and report["baselines"][n]["finding_f1_micro"])
    constant = [overlap(blind(1)[best][0], true) for true in TRUE]
    assert list(report["clinical"]) == list(ALL)
    for name in ALL[1:]:
        part = report["clinical"][name]
        assert [row["clinical"][name] for row in rows] == own
        assert part["n"] == 24
        for key, values in (("score", own), ("shuffled", shuffled), ("constant", constant)):
            assert part[key] == pytest.approx(np.mean(values))
        assert part["image_gain"] == pytest.approx(np.mean(own) - np.mean(shuffled))
        assert part["constant_gain"] == pytest.approx(np.mean(own) - np.mean(constant))
        for value, ends in (
            ("score", "ci95"),
            ("image_gain", "image_gain_ci95"),
            ("constant_gain", "constant_gain_ci95"),
        ):
            low, high = part[ends]
            assert low < part[value] < high
        assert 0 < part["image_gain_p"] < 0.05
    counts = np.array([row["clinical"]["f1chexbert"] for row in rows])
    assert counts[:4].tolist() == [[0, 0, 0], [1, 0, 1], [0, 0, 1], [2, 1, 0]]
    assert report["clinical"]["f1chexbert"]["score"] == pytest.approx(f1(counts.sum(0)))
    assert (
        "; clinical metrics by RadEval 2.2.1, images shuffled: one permutation, constant: best_" in report["signature"]
    )
    assert json.loads((tmp_path / "report.json").read_text())["clinical"] == report["clinical"]


def test_texts_written_anew_on_shuffled_images_stand_in_for_permuted_ones(env):
    report, rows = scored(None), [row | {"impression": row["reference"]} for row in table()]
    add_clinical(report, rows, Clinical(["green"], env), "impression", blind(24), 0, TRUE)
    assert report["clinical"]["green"]["shuffled"] == 1


def test_what_cannot_be_had_is_one_line_each_and_the_rest_goes_on(env, tmp_path):
    behave(env, f1chexbert="", radgraph="raise", ratescore="few", green="no models", bertscore="die")
    words = ["evaluate", "--predictions", file_of(tmp_path), "--out", tmp_path / "out", "--clinical", *ALL]
    done = run_cxr(*words, "--clinical-env", env)
    assert done.returncode == 0, done.stderr
    first, *lines = [line for line in done.stderr.splitlines() if not re.match(r"[\w ,]+: \d+ of \d+", line)]
    assert first.startswith(
        "Clinical metrics: f1chexbert, radgraph, ratescore, green, bertscore, each on at most 72 pairs"
    )
    assert [line.partition(" is left out: ")[0] for line in lines] == list(CLINICAL.values())[1:]
    assert "left out: it failed with RuntimeError (broke at 'No acute disease.')" in lines[0]
    assert re.search(r"gave \d+ values for \d+ pairs", lines[1])
    assert "it needs StanfordAIMI/GREEN-radllama2-7b" in lines[2]
    assert "add --install where there is a network, or copy them into the cache of the Hub (HF_HOME)" in lines[2]
    assert lines[2].endswith("(Cannot download the file)")
    assert "ended by SIGKILL before it answered; was there enough memory?" in lines[3]
    text = (tmp_path / "out" / "report.json").read_text()
    part = json.loads(text)["clinical"]
    assert part["f1chexbert"]["score"] > 0
    assert [part[name]["unavailable"] for name in ALL[1:]] == [
        "it failed with RuntimeError",
        "it failed with ValueError",
        "its models could not be loaded (Exception)",
        "its process ended by SIGKILL before it answered",
    ]
    assert all(
        "clinical" not in row or set(row["clinical"]) == {"f1chexbert"}
        for row in read_predictions(tmp_path / "out").values()
    )
    for page in ("report.md", "report.html"):
        assert "not available: its models could not be loaded" in (tmp_path / "out" / page).read_text()
    assert "CheXbert F1 (micro, 14 labels)" in done.stdout
    assert "GREEN" not in done.stdout


def test_a_missing_package_is_told_from_missing_models(env, caplog):
    behave(env, green="no package")
    report = scored(Clinical(["green"], env))
    assert report["clinical"]["green"] == {"unavailable": "a package that it needs is not installed"}
    assert "No module named 'a_package_that_is_not_there'" in caplog.text
    assert "--clinical-env DIR --install" in caplog.text


def test_studies_without_a_number_count_nowhere_and_none_at_all_is_no_score(env, tmp_path, caplog):
    behave(env, green="nan", ratescore="none")
    report = scored(Clinical(["green", "ratescore"], env), out=tmp_path)
    rows = list(read_predictions(str(tmp_path)).values())
    assert {row["clinical"]["green"] for row in rows if "effusion" in row["prediction"]} == {None}
    assert "NaN" not in (tmp_path / "predictions.jsonl").read_text() + (tmp_path / "report.json").read_text()
    part = report["clinical"]["green"]
    own = [overlap(said, true) for said, true in zip(SAID, TRUE, strict=True)]
    there = ["effusion" not in said for said in SAID]
    both = [
        here and "effusion" not in SAID[i]
        for here, i in zip(there, next(bootstrap.derangements(24, 0, 1)), strict=True)
    ]
    assert (part["n"], part["score"]) == (12, pytest.approx(np.mean(np.array(own)[there])))
    assert part["image_gain"] == pytest.approx(np.mean(np.array(own)[both]) - part["shuffled"])
    assert "constant" not in part  # its one text has no number
    assert "(of 12 studies)" in report_markdown(report)
    assert report["clinical"]["ratescore"] == {"unavailable": "it gave no number for any of the texts"}
    scored(Clinical(["green"], env), ["A pleural effusion."] * 4 + SAID[4:], tmp_path / "b")
    assert "green" in compare(str(tmp_path), str(tmp_path / "b"))["scores"]
    (tmp_path / "c").mkdir()
    rows = [row | {"clinical": {"green": None if here else 0.5}} for row, here in zip(rows, there, strict=True)]
    (tmp_path / "c" / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "green" not in compare(str(tmp_path), str(tmp_path / "c"))["scores"]  # no study has both


def test_texts_without_a_word_are_worth_nothing_and_shift_no_neighbour(env):
    said = ["", "  \n ", "ok", *SAID[3:-1], "\u202ehostile \x00 \ud83d\ude00 </script> {{7*7}} \\n" + "x" * 5000]
    report, rows = (
        scored(None),
        [{"uid": str(i), "prediction": s, "impression": t} for i, (s, t) in enumerate(zip(said, TRUE, strict=False))],
    )
    add_clinical(report, rows, Clinical(["ratescore", "f1chexbert"], env), "impression", blind(24), 0)
    assert [row["clinical"]["ratescore"] for row in rows] == [0, 0, 0, *map(overlap, said[3:], TRUE[3:])]
    assert rows[1]["clinical"]["f1chexbert"] == [0, 0, 2]


def test_one_study_or_no_training_texts_leave_out_what_cannot_be_told(env):
    report, rows = scored(None), [{"uid": "u", "prediction": SAID[1], "impression": TRUE[1]}]
    add_clinical(report, rows, Clinical(["green"], env), "impression", {}, 0)
    assert set(report["clinical"]["green"]) == {"score", "n", "ci95"}
    part = evaluate_texts(table(), clinical=Clinical(["green"], env))["clinical"]["green"]
    assert "constant" not in part
    assert part["image_gain"] > 0
    assert rows[0]["clinical"]["green"] == overlap(SAID[1], TRUE[1])


# --- compare -----------------------------------------------------------------------------------------------------


def test_runs_are_compared_by_the_values_in_their_predictions(env, tmp_path):
    folders = [str(tmp_path / name) for name in "abc"]
    for folder, said in zip(folders, (SAID, TRUE, TRUE[::-1]), strict=True):
        scored(Clinical(["f1chexbert", "radgraph"], env), said, folder)
    comparison = compare(*folders[:2])
    for name in ("f1chexbert", "radgraph"):
        row = comparison["scores"][name]
        assert row["b"] == 1
        assert row["difference"] == pytest.approx(1 - row["a"])
        assert 0 < row["ci95"][0] <= row["difference"] <= row["ci95"][1]
        assert row["p"] < 0.01
    assert "RadGraph F1 (partial)" in comparison_table(comparison)
    several = compare_several(folders)
    assert [row["value"] for row in several["scores"]["radgraph"]][:2] == [
        comparison["scores"]["radgraph"][k] for k in "ab"
    ]
    assert "RadGraph F1 (partial)" in compare_page(several)
    assert re.search(r"CheXbert +RadGraph\n +F1 +F1", run_cxr("compare", *folders).stdout)
    scored(None, out=folders[1])
    assert "radgraph" not in compare(*folders[:2])["scores"]


@pytest.mark.parametrize("value", ["high", [1, 2], {"a": 1}, [[1]], [1, -1, 0], None])
def test_values_that_are_none_are_one_clear_line(tmp_path, value):
    for name in "ab":
        (tmp_path / name).mkdir()
        rows = [
            {"uid": str(i), "impression": "a", "prediction": "b", "clinical": {"f1chexbert": value}} for i in range(3)
        ]
        (tmp_path / name / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_cxr("compare", tmp_path / "a", tmp_path / "b")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the values of the clinical metric f1chexbert are not what it gives" in done.stderr


def test_values_of_one_section_are_not_compared_as_those_of_another(tmp_path):
    parts = {name: {"reference": "a text", "prediction": "a text"} for name in ("findings", "impression")}
    kinds = {
        "both": {"impression": "a text", "prediction": "a text", "sections": parts},
        "one": {"findings": "a text", "prediction": "a text"},
    }
    for name, row in kinds.items():
        (tmp_path / name).mkdir()
        rows = [{"uid": str(i), **row, "clinical": {"green": 0.5}} for i in range(3)]
        (tmp_path / name / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = compare(str(tmp_path / "both"), str(tmp_path / "one"))
    assert comparison["section"] == "findings"
    assert "green" not in comparison["scores"]
    assert "green" in compare(str(tmp_path / "one"), str(tmp_path / "one"))["scores"]


# --- the command ---------------------------------------------------------------------------------------------------


def test_a_run_gets_its_clinical_scores_into_report_and_card_and_json_alone_on_stdout(
    talkative_run, phantom_folder, env, tmp_path
):
    run = copy_folder(talkative_run, tmp_path / "run")
    words = ["evaluate", run, phantom_folder, "--out", run, "--no-probes", "--json"]
    done = run_cxr(*words, "--clinical", "radgraph", "bertscore", "--clinical-env", env)
    assert done.returncode == 0, done.stderr
    part = json.loads(done.stdout)["clinical"]["radgraph"]
    rows = list(read_predictions(str(run)).values())
    assert part["score"] == pytest.approx(np.mean([overlap(row["prediction"], row["impression"]) for row in rows]))
    assert {"shuffled", "image_gain_ci95", "constant_gain_p"} <= set(part)
    for page in ("README.md", "report.md"):
        assert f"| RadGraph F1 (partial) | {part['score']:.3f} |" in (run / page).read_text(encoding="utf-8")
    assert done.stderr.index("Clinical metrics: radgraph, bertscore") < done.stderr.index("Generating")


def test_what_is_missing_is_one_line_before_any_work(env, tmp_path):
    file, bare = file_of(tmp_path), tmp_path / "bare"
    venv.create(bare, symlinks=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("mine")
    given = ["evaluate", "--predictions", file]
    for more, message in (
        (
            ["--clinical", "radgraph", "--clinical-env", tmp_path / "none"],
            "no environment with a Python is here; add --in",
        ),
        (["--clinical", "radgraph", "--clinical-env", file], "no environment with a Python is here"),
        (["--clinical", "radgraph", "--clinical-env", bare], f"{bare}: RadEval is not installed; add --install"),
        (["--clinical", "radgraph"], "RadEval is not installed; add --clinical-env DIR --install"),
        (["--clinical", "radgraph", "--clinical-env", tmp_path / "folder", "--install"], "is no virtual environment"),
        (["--clinical-env", env], "--clinical-env and --install go with --clinical METRIC"),
        (["--install"], "--clinical-env and --install go with --clinical METRIC"),
        (["--clinical", "crimson"], "invalid choice: 'crimson'"),
    ):
        done = run_cxr(*given, *more)
        assert done.returncode == 2, (more, done.stderr)
        line = done.stderr.splitlines()[-1]
        assert line.startswith("hf-cxr evaluate: ")
        assert message in line, (more, line)
        assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="no clinical metric 'crimson'; there are f1chexbert"):
        scored(Clinical(["crimson"], env))


def test_the_names_are_the_same_everywhere():
    assert options.CLINICAL == ALL == tuple(clinical.NEEDS) == ("f1chexbert", *clinical_worker.KEYS)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_an_evaluation_that_is_ended(env, tmp_path, ending):
    behave(env, radgraph="sleep")
    (env / "pid").unlink(missing_ok=True)  # of another test's worker
    code = LISTEN + "import sys; from hf_cxr.cli.parser import main; sys.exit(main(sys.argv[1:]))"
    words = ["evaluate", "--predictions", str(file_of(tmp_path)), "--clinical", "radgraph"]
    words += ["--clinical-env", str(env), "--out", str(tmp_path / "out")]
    ours = subprocess.Popen([sys.executable, "-c", code, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        worker = int(waited_for(lambda: (env / "pid").read_text()))
        os.kill(worker, 0)
        ours.send_signal(ending)
        _, said = ours.communicate(timeout=240)
    finally:
        ours.kill()
    assert ours.returncode == (130 if ending == signal.SIGINT else -ending)
    if ending == signal.SIGINT:
        assert said.splitlines()[-1] == "hf-cxr evaluate: interrupted"
    waited_for(lambda: gone(worker))
    assert not (tmp_path / "out").exists()


def waited_for(answer):
    for _ in range(600):
        with contextlib.suppress(FileNotFoundError):
            if found := answer():
                return found
        time.sleep(0.1)
    raise TimeoutError


def gone(process):
    try:
        return "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return True


def test_two_evaluations_share_one_environment(env):
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: scored(Clinical(["radgraph"], env)), range(2))
    assert one == two
    assert one["clinical"]["radgraph"]["score"] > 0


def test_an_environment_is_made_when_told_to_once_even_by_two_at_a_time(env, tmp_path, monkeypatch):
    wheel = tmp_path / "radeval-2.2.1-py3-none-any.whl"
    more = {"WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "RECORD": ""}
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in FILES.items() | {(f"radeval-2.2.1.dist-info/{k}", v) for k, v in more.items()}:
            file.writestr(name, text)
    monkeypatch.setattr(clinical, "RADEVAL", str(wheel))
    monkeypatch.setattr(clinical, "REQUIREMENTS", tmp_path / "requirements.txt")
    (tmp_path / "requirements.txt").write_text("pip\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked = Clinical(["radgraph"], tmp_path / "made" / "env", install=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(asked.begin, (3, 3)))
    behave(asked.env, radgraph="network")
    assert scored(asked)["clinical"]["radgraph"]["score"] > 0
    offline = scored(Clinical(["radgraph"], asked.env))["clinical"]["radgraph"]
    assert offline == {"unavailable": "its models could not be loaded (AssertionError)"}
    (tmp_path / "requirements.txt").write_text("a-package-that-is-not-there==1\n")
    with pytest.raises(OSError, match="cannot be made, see above; --install goes on where it stopped"):
        asked.begin(3)


@pytest.mark.skipif("HF_CXR_CLINICAL_ENV" not in os.environ, reason="HF_CXR_CLINICAL_ENV names no environment")
@pytest.mark.parametrize("name", ALL)
def test_the_real_radeval_gets_as_far_as_the_download(name, tmp_path, monkeypatch):
    for folder in ("HF_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(folder, str(tmp_path))
    report = scored(Clinical([name], os.environ["HF_CXR_CLINICAL_ENV"]))
    assert re.fullmatch(
        r"its models could not be loaded \((OSError|Exception)\)", report["clinical"][name]["unavailable"]
    )
