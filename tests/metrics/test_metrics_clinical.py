import importlib.util
import json
import sys
import warnings

import pytest

from hf_cxr.metrics import clinical

SAID = ["No acute disease.", "Small right pleural effusion."]
TRUE = ["No acute cardiopulmonary abnormality.", "Small left pleural effusion."]
INSTALLED = importlib.util.find_spec("radeval") is not None

# What of RadEval the kit relies on, as in its version 2.2.1.
STAND_IN = """
import warnings

class RadEval:
    def __init__(self, metrics=None, show_progress=True, **options):
        warnings.filterwarnings("ignore")
        if metrics == ["green"]:
            raise Exception("Cannot download the file\\nmore")
        if metrics == ["radgraph"]:
            from RadEval.graph import VALUE
            self.value = VALUE
        self.name = metrics[0]

    def __call__(self, refs, hyps):
        return {self.name: [refs, hyps]}
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package in RadEval's place that answers with what it was given."""
    package = tmp_path / "radeval"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    (package / "graph.py").write_text("VALUE = 1\n")
    before = dict(sys.modules)
    for name in ("radeval", "RadEval"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in set(sys.modules) - set(before):
        if name.lower().startswith("radeval"):
            del sys.modules[name]


@pytest.mark.skipif(INSTALLED, reason="RadEval is installed")
def test_without_radeval_one_line_says_what_to_install():
    with pytest.raises(ImportError, match="pip install RadEval") as caught:
        clinical.clinical_scores(SAID, TRUE)
    assert "\n" not in str(caught.value)


def test_predictions_and_references_reach_radeval_by_their_names(stand_in):
    scores = clinical.clinical_scores(SAID, TRUE, metrics=("f1chexbert", "ratescore"))
    assert scores == {"f1chexbert": [TRUE, SAID], "ratescore": [TRUE, SAID]}


def test_radgraph_is_found_where_file_names_are_case_sensitive(stand_in):
    assert set(clinical.clinical_scores(SAID, TRUE, metrics=("radgraph",))) == {"radgraph"}


def test_the_user_is_told_before_models_are_downloaded(stand_in, caplog):
    clinical.clinical_scores(SAID, TRUE, metrics=("srrbert",))
    assert "downloads the models of srrbert" in caplog.text


def test_a_model_that_cannot_be_loaded_is_one_clear_line(stand_in):
    with pytest.raises(OSError, match=r"cannot load 'green', .*: Cannot download the file$") as caught:
        clinical.clinical_scores(SAID, TRUE, metrics=("green",))
    assert "\n" not in str(caught.value)


def test_warnings_of_the_process_are_left_as_they_were(stand_in):
    before = list(warnings.filters)
    clinical.clinical_scores(SAID, TRUE, metrics=("f1chexbert",))
    assert warnings.filters == before


@pytest.mark.parametrize("name", ["crimson", "mammo_green", "radfact_ct", "chexpert"])
def test_measures_that_would_send_reports_away_are_not_offered(stand_in, name):
    with pytest.raises(ValueError, match="there are f1chexbert"):
        clinical.clinical_scores(SAID, TRUE, metrics=(name,))


def test_unequal_numbers_of_texts_are_refused(stand_in):
    with pytest.raises(ValueError, match="1 predictions for 2 references"):
        clinical.clinical_scores(SAID[:1], TRUE)


def test_a_run_folder_is_scored_from_the_command_line(stand_in, tmp_path, capsys):
    rows = [{"uid": str(i), "prediction": p, "impression": t} for i, (p, t) in enumerate(zip(SAID, TRUE, strict=True))]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    clinical.main([str(tmp_path), "f1chexbert"])
    assert json.loads(capsys.readouterr().out) == {"f1chexbert": [TRUE, SAID]}


def test_the_command_line_ends_with_one_line_and_status_2(stand_in, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        clinical.main([str(tmp_path)])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not INSTALLED, reason="RadEval is not installed")
@pytest.mark.parametrize("name", ["f1chexbert", "radgraph", "green"])
def test_the_real_radeval_gets_as_far_as_the_download(name, tmp_path):
    """In a process of its own: offline mode and an empty cache are read when the Hub library is imported."""
    import subprocess

    code = f"from hf_cxr.metrics.clinical import clinical_scores as s; s(['a'], ['b'], ['{name}'])"
    environment = {"PATH": "", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"OSError: RadEval cannot load '{name}',")
    assert any(word in last for word in ("connect", "download")), last
