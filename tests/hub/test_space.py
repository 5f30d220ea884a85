"""`hf-cxr push --space` and `--endpoint`: what the Hub holds afterwards, and that the handler does as it is asked."""

import base64
import importlib.util
import io
import sys

import pytest
import yaml
from helpers import ROOT, copy_folder, radiograph
from packaging.requirements import Requirement
from PIL import Image

from hf_cxr.hub.push import push
from hf_cxr.hub.space import space_files


def test_a_space_holds_the_app_the_kit_and_exact_versions_in_one_private_commit(site, ask, run_folder):
    status, stdout, stderr = ask("push", run_folder, "user/name", "--space")
    assert status == 0, stderr
    assert f"{site.endpoint}/spaces/user/name-app" in stdout
    assert len(site.revisions("user/name-app", "space")) == 2  # the Hub's own first one, and the push
    assert site.is_private("user/name-app", "space")
    files = site.files("user/name-app", "space")
    _, head, text = files["README.md"].decode().split("---\n", 2)
    facts = yaml.safe_load(head)
    assert (facts["sdk"], facts["app_file"], facts["models"]) == ("gradio", "app.py", ["user/name"])
    assert "Research use only" in text
    needed = list(map(Requirement, files["requirements.txt"].decode().splitlines()))
    assert {"torch", "transformers", "gradio", "pydicom", "pillow"} <= {one.name for one in needed}
    assert all([part.operator for part in one.specifier] == ["=="] for one in needed)
    assert f"gradio=={facts['sdk_version']}" in files["requirements.txt"].decode()
    kit = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "hf_cxr").rglob("*") if "__pycache__" not in path.parts
    }
    assert {name for name in kit if (ROOT / name).is_file()} == {name for name in files if name.startswith("hf_cxr/")}


def test_a_space_of_a_name_of_ones_own_is_renewed_and_loses_what_the_kit_no_longer_has(site, ask, run_folder):
    assert ask("push", run_folder, "user/other", "--space-id", "user/page")[0] == 0
    repo = site.repos["space", "user/page"]
    tree = repo.at("main").tree
    repo.commit(
        "main",
        "Push space with an older hf-cxr",
        tree | {"hf_cxr/gone.py": tree["app.py"], "notes.md": tree["app.py"]},
    )
    assert ask("push", run_folder, "user/other", "--space-id", "user/page")[0] == 0
    files = site.files("user/page", "space")
    assert "hf_cxr/gone.py" not in files
    assert "notes.md" in files
    assert b'"user/other"' in files["app.py"]


def test_the_space_starts_the_app_of_the_pushed_checkpoint(monkeypatch):
    started = []
    monkeypatch.setattr("hf_cxr.__main__.main", lambda: started.extend(sys.argv) or 0)
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit, match="0"):
        exec(space_files("user/name", "user/name-app")["app.py"], {})
    assert started[:3] == ["hf-cxr", "app", "user/name"]
    assert started[started.index("--host") + 1] == "0.0.0.0"


def test_a_push_renews_the_handler_of_an_earlier_push_and_leaves_one_that_somebody_wrote(site, ask, run_folder):
    assert ask("push", run_folder, "user/renewed", "--endpoint")[0] == 0
    repo, ours = site.repos["model", "user/renewed"], site.files("user/renewed")["handler.py"]
    other = repo.at("main").tree["config.json"]
    for title, mine in (("Push model with an older hf-cxr", True), ("Update handler.py", False)):
        repo.commit("main", title, repo.at("main").tree | {"handler.py": other})
        assert ask("push", run_folder, "user/renewed")[0] == 0
        assert (site.files("user/renewed")["handler.py"] == ours) == mine


def test_an_export_from_the_hub_carries_card_report_and_figures(site, ask, run_folder, tmp_path):
    assert ask("push", run_folder, "user/exported")[0] == 0
    status, _, stderr = ask("export", "user/exported", tmp_path / "onnx")
    assert status == 0, stderr
    pushed = site.files("user/exported")
    carried = {name for name in pushed if name in ("README.md", "report.json") or name.startswith("figures/")}
    assert len(carried) > 3
    for name in carried:
        assert (tmp_path / "onnx" / name).read_bytes() == pushed[name]


def test_a_dataset_gets_neither_a_space_nor_a_handler(ask, phantom_folder):
    for option in ("--space", "--endpoint"):
        status, _, stderr = ask("push", phantom_folder, "user/data", option)
        assert status == 2
        assert "is a dataset" in stderr


# --- the handler -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(site, ask, run_folder, tmp_path_factory):
    """A pushed repository on the disk, as an endpoint mounts it."""
    status, _, stderr = ask("push", run_folder, "user/served", "--endpoint")
    assert status == 0, stderr
    folder = tmp_path_factory.mktemp("repository")
    for name, content in site.files("user/served").items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def handler(repository):
    """The handler, found and made as an endpoint does."""
    spec = importlib.util.spec_from_file_location("handler", repository / "handler.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(path=str(repository))


def image(seed):
    Image.fromarray(radiograph(seed)).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def test_an_endpoint_answers_as_the_pipeline_does(handler, repository):
    frontal, lateral = image(0), image(1)
    study = {
        view: base64.b64encode(content).decode() for view, content in (("frontal", frontal), ("lateral", lateral))
    }
    (expected,) = handler.pipe(frontal=frontal, lateral=lateral, return_findings=True)
    (answer,) = handler({"inputs": study, "parameters": {"return_findings": True}})
    assert answer == expected
    (alone,) = handler.pipe(frontal=frontal)
    for inputs in (
        study["frontal"],
        frontal,
        Image.open(io.BytesIO(frontal)),
        {"frontal": study["frontal"], "lateral": None},
    ):
        assert handler({"inputs": inputs}) == [alone]
    assert handler({"inputs": [study["frontal"], study["frontal"]]}) == [[alone], [alone]]
    assert "transformers==" in (repository / "requirements.txt").read_text()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"inputs": "https://huggingface.co/a.png"}, "no path or address is read"),
        ({"inputs": {"frontal": {"path": "PATH"}}}, "no path or address is read"),
        ({"inputs": {"frontal": "PATH"}}, "no path or address is read"),
        ({"inputs": {}}, "without an image"),
        ({}, "without an image"),
        ({"inputs": {"front": "aa"}}, "not 'front'"),
        ({"inputs": image(0), "parameters": {"return_attention": True}}, "unknown parameter 'return_attention'"),
    ],
)
def test_an_endpoint_reads_no_path_and_no_address_and_says_what_is_wrong(handler, tmp_path, data, reason):
    (tmp_path / "image.png").write_bytes(image(0))
    if isinstance(data.get("inputs"), dict) and "PATH" in str(data):
        path = str(tmp_path / "image.png")
        data = {"inputs": {"frontal": path if data["inputs"]["frontal"] == "PATH" else {"path": path}}}
    with pytest.raises(ValueError, match=reason):
        handler(data)


def test_what_is_no_image_is_an_answer_with_its_error(handler):
    (answer,) = handler({"inputs": base64.b64encode(b"words").decode()})
    assert answer["impression"] is None
    assert "not an image" in answer["error"]


def test_a_push_without_a_handler_leaves_out_what_the_folder_may_hold(run_folder, tmp_path, monkeypatch):
    run = copy_folder(run_folder, tmp_path / "run")
    (run / "handler.py").write_text("import os")
    sent = {}
    monkeypatch.setattr("hf_cxr.hub.push.send", lambda files, *rest: sent.update(files))
    push(run, "user/name", token="hf_test")
    assert "handler.py" not in sent
    push(run, "user/name", token="hf_test", endpoint=True)
    assert sent["handler.py"].read_text() != "import os"
