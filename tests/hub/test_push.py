import json
import os
import pwd
import socket
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import transformers
from helpers import TINY_RECIPE, copy_folder, radiograph, state_licence, write_config
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError
from single_image import published
from transformers.dynamic_module_utils import get_imports, get_relative_imports

import hf_cxr  # noqa: F401  (registers the task)
from hf_cxr.config import parse_arguments
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.evaluate import evaluate
from hf_cxr.evaluation.report.figures import CARD_FIGURES
from hf_cxr.hub import privacy
from hf_cxr.hub import push as hub
from hf_cxr.hub.privacy import check_nothing_private, files_to_push, read_text
from hf_cxr.inference import remote_code
from hf_cxr.inference.remote_code import REMOTE_CODE_FILES
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.training.run import _push_finished
from hf_cxr.training.trainer import ImpressionTrainer

# All that a pushed run may consist of, beside the pipeline's code: written out here, so that a new one is a decision.
ALLOWED = {
    *(".gitattributes", "README.md", "report.json", "report.md"),
    *("config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "processor_config.json"),
}
NEVER = (
    "optimizer.pt",
    "training_args.bin",
    "predictions.jsonl",
    "config.yaml",
    "trainer_state.json",
    "rejects.jsonl",
)


# --- what is pushed ----------------------------------------------------------------------------------------------


def test_only_what_a_run_consists_of_is_pushed(run_folder, tmp_path):
    run = copy_folder(run_folder, tmp_path / "run")
    for name in NEVER:
        (run / name).write_text("state")
        (run / "checkpoint-5").mkdir(exist_ok=True)
        (run / "checkpoint-5" / name).write_text("state")
    for folder in ("checkpoint-5", "findings_encoder", "findings_pretraining"):
        (run / folder).mkdir(exist_ok=True)
        (run / folder / "model.safetensors").write_bytes(b"other weights")
    (run / "figures").mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(run / "figures" / "image_shuffle.png")
    Image.new("L", (8, 8)).save(run / "figures" / "patient.png")  # of whoever put it there
    names = set(files_to_push(run, "model"))
    assert {name for name in names if not name.startswith("figures/")} == (ALLOWED | set(REMOTE_CODE_FILES)) - {
        ".gitattributes"
    }
    assert "figures/image_shuffle.png" in names
    assert "figures/patient.png" not in names
    assert set(CARD_FIGURES) == {Path(name).stem for name in privacy.RUN_FILES if name.startswith("figures/")}


@pytest.mark.parametrize(
    "missing",
    [
        *("README.md", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json"),
        *("pipeline.py", "labeler_lexicon.py", "remote_code.py"),
    ],
)
def test_a_run_without_what_it_needs_is_not_pushed(run_folder, tmp_path, missing):
    run = copy_folder(run_folder, tmp_path / "run")
    (run / missing).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"holds no .*{missing.partition('.')[2]}.*it has not come to its end"
    ):
        hub.push(run, "user/name")


def test_a_run_that_lacks_one_of_its_shards_is_not_pushed(run_folder, tmp_path):
    run = copy_folder(run_folder, tmp_path / "run")
    (run / "model.safetensors").rename(run / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (run / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(FileNotFoundError, match=r"holds no model-00002-of-00002.safetensors"):
        hub.push(run, "user/name")


def test_a_dataset_whose_data_is_damaged_or_not_all_there_is_not_pushed(phantom_folder, tmp_path):
    data = copy_folder(phantom_folder, tmp_path / "data")
    train = next((data / "data").glob("train-*"))
    os.truncate(train, train.stat().st_size - 100)
    with pytest.raises(ValueError, match=r"train-.*parquet: damaged .*; nothing was pushed"):
        hub.push(data, "user/name")
    train.write_bytes(b"PAR")
    with pytest.raises(ValueError, match=r"train-.*parquet: damaged .*; nothing was pushed"):
        hub.push(data, "user/name")
    train.unlink()
    with pytest.raises(ValueError, match=r"split train has 0 of 197 rows; nothing was pushed"):
        hub.push(data, "user/name")
    (data / "prepare.json").write_text("[]")
    with pytest.raises(ValueError, match=r"prepare.json: holds no JSON object"):
        hub.push(data, "user/name")


def test_a_config_that_is_no_yaml_is_told(run_folder, tmp_path):
    run = copy_folder(run_folder, tmp_path / "run")
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"config.yaml: no YAML"):
        hub.push(run, "user/name")


def test_whoever_may_read_the_config_of_a_run_may_read_its_weights(run_folder):
    for folder in (run_folder, run_folder / "findings_encoder"):
        assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


@pytest.mark.parametrize("size", [0, 1000, -100])
def test_weights_that_were_cut_short_are_not_pushed(run_folder, tmp_path, size):
    weights = copy_folder(run_folder, tmp_path / "run") / "model.safetensors"
    os.truncate(weights, size if size >= 0 else weights.stat().st_size + size)
    with pytest.raises(ValueError, match=r"model.safetensors: damaged .*; nothing was pushed"):
        hub.push(tmp_path / "run", "user/name")


def test_a_folder_that_is_neither_run_nor_dataset_is_not_pushed(tmp_path, run_folder):
    with pytest.raises(FileNotFoundError, match="neither a checkpoint"):
        hub.push(tmp_path, "user/name")
    with pytest.raises(FileNotFoundError, match="no prepared dataset"):
        hub.push(tmp_path, "user/name", dataset=True)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        hub.push(tmp_path / "absent", "user/name")
    with pytest.raises(FileNotFoundError, match="this is a run; push it without --dataset"):
        hub.push(run_folder, "user/name", dataset=True)


@pytest.mark.parametrize("name", ["name", "user/a/b", "./runs/x", "user/na me", "user/-name", ""])
def test_a_malformed_name_is_told(run_folder, name):
    with pytest.raises(ValueError, match="no name on the Hub; write user/name"):
        hub.push(run_folder, name)


# --- what must not leave -----------------------------------------------------------------------------------------

TRACES = {
    "place of its folder": lambda run: f"saved in {run.resolve()}/model",
    "working folder": lambda run: f"run from {Path.cwd()}.",
    "your home": lambda run: f"cache: {Path.home()}/.cache/huggingface",
    "a home folder": lambda run: '"_name_or_path": "/home/alice/vit"',
    "home folder of a Mac": lambda run: "see /Users/alice/x",
    "home folder of Windows": lambda run: json.dumps("C:\\Users\\Alice\\x"),
    "home folder of an older Windows": lambda run: "C:\\Documents and Settings\\Alice",
    "a disk that is mounted": lambda run: "read from /mnt/films/iu.",
    "a disk of home folders": lambda run: "read from /homes/bob/iu.",
    "a disk of a cluster": lambda run: "see file:///scratch/bob/x",
    "access token": lambda run: "login with hf_" + "aB3" * 11,
    "access token within a word": lambda run: "TOKEN_hf_" + "aB3" * 11,
    "token of an organisation": lambda run: "api_org_" + "aB3" * 11,
}


@pytest.mark.parametrize("what", TRACES)
@pytest.mark.parametrize("name", ["config.json", "README.md", "report.md", "views.py", "figures/a.png"])
def test_a_file_that_tells_of_the_machine_or_holds_a_token_stops_the_push(tmp_path, what, name):
    with pytest.raises(ValueError, match=name) as error:
        check_nothing_private({name: f"text\n{TRACES[what](tmp_path)}\n"}, tmp_path)
    assert "aB3" not in str(error.value)


def test_the_name_of_the_machine_and_of_its_user_stop_the_push(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node-17")
    monkeypatch.setenv("LOGNAME", "alice")
    texts = ("trained on node-17", "data: /scratch/alice/iu", "data: /scratch/alice", "see file:///scratch/alice/x.")
    for text in (*texts, "in `/alice`", r"D:\data\alice\x", r'"D:\\data\\alice"'):
        with pytest.raises(
            ValueError, match=r"report\.md: holds (the name of this machine|a path with your user name)"
        ):
            check_nothing_private({"report.md": text}, tmp_path)
    with pytest.raises(ValueError, match="access token"):
        check_nothing_private({"report.md": "an old form, abc123-def456-7890"}, tmp_path, token="abc123-def456-7890")
    check_nothing_private({"report.md": "what is wrong"}, tmp_path, token="wrong")  # a word, mistaken for a token


def test_a_user_without_name_or_home_can_push_and_the_rest_is_looked_for(tmp_path, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as in a container that is run as some number
    check_nothing_private({"README.md": "of a model in / and in //"}, tmp_path)
    with pytest.raises(ValueError, match=r"report\.md: holds the place of its folder"):
        check_nothing_private({"report.md": f"saved in {tmp_path}"}, tmp_path)


def test_names_on_the_hub_and_ordinary_words_do_not_stop_a_push(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "radiology")
    monkeypatch.setenv("LOGNAME", "alice")
    text = (
        'pipeline(model="alice/name"), https://huggingface.co/alice/name, radiology, /home/user/x, hf_cxr, data/x, '
        "https://huggingface.co/alice, datasets/alice, /alice-and-bob, /malice, https://host.org/data/x, ./tmp/x, "
        "s3://mnt/x, and/or, 12/3/2020, C: alice"
    )
    check_nothing_private({"README.md": text}, tmp_path)


@pytest.mark.parametrize(
    ("value", "is_path"),
    [
        *(
            (path, True)
            for path in (
                *("/mnt/models/vit", "/data/iu", "file:///mnt/models/vit", r"D:\models\vit", "E:/vit", "~/data/x"),
                *("/srvx/données/vit", "/srvx/.cache/vit", "/srvx/a+b/vit", "/srvx/data (2)/vit", "/srvx//vit"),
                *(r"\\server\share\x", "~alice/x"),
            )
        ),
        *(
            (other, False)
            for other in ("google/vit", "runs/first", "./runs/x", "/", "no acute / no change", "a:b", "N/A")
        ),
        *(
            (name, False)
            for name in ("/ /", "// //", "https://huggingface.co/a/b", "Normal chest. A: 1/2/3", "/effusion", "C:")
        ),
    ],
)
def test_no_string_of_a_json_file_is_an_absolute_path(tmp_path, value, is_path):
    texts = {"config.json": json.dumps({"_name_or_path": value, "list": [value, "x"]}, indent=2)}
    if not is_path:
        return check_nothing_private(texts, tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: holds an absolute path"):
        check_nothing_private(texts, tmp_path)


def test_a_vocabulary_may_hold_what_looks_like_a_path(tmp_path):
    vocabulary = json.dumps({"model": {"vocab": {"/usr/bin": 1, "/opt/x": 2, "~/a": 3}}})
    check_nothing_private({"tokenizer.json": vocabulary, "vocab.json": vocabulary}, tmp_path)
    with pytest.raises(ValueError, match="an absolute path"):
        check_nothing_private({"config.json": vocabulary}, tmp_path)


def test_the_place_of_the_dataset_is_looked_for(tmp_path):
    (tmp_path / "config.yaml").write_text("dataset: /films/iu\n")
    with pytest.raises(ValueError, match=r"README.md: holds the place of its dataset \(/films/iu\)"):
        check_nothing_private({"README.md": "trained on /films/iu."}, tmp_path)


def test_a_card_that_somebody_edited_is_looked_through_too(run_folder, tmp_path):
    run = copy_folder(run_folder, tmp_path / "run")
    card = (run / "README.md").read_text()
    (run / "README.md").write_text(card + "\nFrom /mnt/films/iu.\n")
    with pytest.raises(ValueError, match=r"README.md: holds an absolute path \(/mnt/films/iu"):
        hub.push(run, "user/name")
    (run / "README.md").write_text(card + "\nToken abc123-def456-7890.\n")
    with pytest.raises(ValueError, match=r"README.md: holds an access token"):
        hub.push(run, "user/name", token="abc123-def456-7890")


def test_every_string_of_a_dataset_is_looked_at(phantom_folder, tmp_path):
    data = copy_folder(phantom_folder, tmp_path / "data")
    file = next((data / "data").glob("test-*"))
    whole = pq.read_table(file)

    def put(name, values):
        place = whole.schema.get_field_index(name)
        pq.write_table(
            whole.set_column(place, whole.schema.field(name), pa.array(values, whole.schema.field(name).type)), file
        )

    rows = whole.to_pylist()
    for value, told in (("seen in /home/alice/x", "a home folder"), ("hf_" + "aB3" * 11, "an access token")):
        put(
            "impression",
            ["a", *(row["impression"] for row in rows[1:-1]), "z"][:5] + [value] + ["z"] * (len(rows) - 6),
        )
        with pytest.raises(ValueError, match=f"test-.*parquet: holds {told}"):
            hub.push(data, "user/name")
    put("frontal", [{"bytes": b"x", "path": "/films/Smith_John/0.dcm"}] * len(rows))
    with pytest.raises(ValueError, match=r"test-.*parquet: holds an absolute path \(/films/Smith_John/0.dcm\)"):
        hub.push(data, "user/name")
    pq.write_table(whole, file)
    table = (data / "splits.csv").read_text()
    (data / "splits.csv").write_text(table + "/films/Smith_John/0.dcm,test\n")
    with pytest.raises(ValueError, match=r"splits.csv: holds an absolute path \(/films/Smith_John/0.dcm\)"):
        hub.push(data, "user/name")


def test_a_report_is_no_path_however_it_begins(tmp_path):
    reports = [
        "~2/3 collapse of the left lung.",
        "~T8/T9 compression.",
        "S:/p sternotomy",
        "and /media/lateral view",
        "A:/B ratio",
    ]
    pq.write_table(pa.table({"impression": reports}), tmp_path / "a.parquet")
    check_nothing_private({"data/a.parquet": read_text(tmp_path / "a.parquet")}, tmp_path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["/home/alice/x"]).dictionary_encode(),
        pa.array([[("key", "/home/alice/x")]], pa.map_(pa.string(), pa.string())),
        pa.array([["/home/alice/x"]], pa.list_(pa.string(), 1)),
        pa.array(["/home/alice/x"], pa.large_string()),
        pa.array([{"of": [{"a": "/home/alice/x"}]}]),
    ],
    ids=["dictionary", "map", "fixed", "large", "nested"],
)
def test_a_string_is_looked_at_in_whatever_column_it_is(tmp_path, column):
    pq.write_table(pa.table({"notes": column}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: holds a home folder \(/home/alice\)"):
        check_nothing_private({"data/a.parquet": read_text(tmp_path / "a.parquet")}, tmp_path)


def test_comments_of_a_figure_are_looked_at(tmp_path):
    comment = PngInfo()
    comment.add_text("Comment", "drawn in /home/alice/run", zip=True)
    Image.new("L", (8, 8)).save(tmp_path / "image_shuffle.png", pnginfo=comment)
    with pytest.raises(ValueError, match=r"image_shuffle.png: holds a home folder"):
        check_nothing_private({"figures/image_shuffle.png": read_text(tmp_path / "image_shuffle.png")}, tmp_path)


def test_headers_of_weights_and_data_are_read_for_traces(run_folder, phantom_folder, tmp_path):
    assert "decoder" in str(json.loads(read_text(run_folder / "model.safetensors")).keys())  # and no weights
    data = next((phantom_folder / "data").glob("*.parquet"))
    assert "impression" in read_text(data)
    assert len(read_text(data)) < data.stat().st_size / 2  # no image
    run = copy_folder(run_folder, tmp_path / "run")
    weights = (run / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8 : 8 + length])
    for place, told in (("/home/alice/run", "a home folder"), ("/films/run", "an absolute path")):
        new = json.dumps(header | {"__metadata__": {"from": place}}).encode()
        (run / "model.safetensors").write_bytes(struct.pack("<Q", len(new)) + new + weights[8 + length :])
        with pytest.raises(ValueError, match=rf"model.safetensors: holds {told} \({place[:6]}"):
            hub.push(run, "user/name")


# --- to a Hub and back -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pushed(cxr, run_folder):
    assert cxr("push", run_folder, "user/run") == (0, "")
    return "user/run"


def test_a_push_is_private_and_one_commit(site, pushed):
    assert site.is_private(pushed)
    assert len(site.revisions(pushed)) == 2  # the Hub's own, and ours


def test_the_card_that_is_pushed_names_the_repository_unless_it_was_edited(site, cxr, pushed, run_folder, tmp_path):
    assert b'model="user/run"' in site.files(pushed)["README.md"]
    run = copy_folder(run_folder, tmp_path / "run")
    (run / "README.md").write_text((run / "README.md").read_text() + "\nBy hand.\n")
    assert cxr("push", run, "user/edited")[0] == 0
    edited = (run / "README.md").read_text().replace(f'model="{run_folder.name}"', 'model="user/edited"')
    assert site.files("user/edited")["README.md"].decode() == edited  # the snippet alone is another


def test_a_card_that_is_older_than_its_report_is_pushed_anew(site, cxr, run_folder, tmp_path):
    run = copy_folder(run_folder, tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | {"verdict": "A later verdict."}))
    assert cxr("push", run, "user/later")[0] == 0
    assert b"> A later verdict." in site.files("user/later")["README.md"]
    (run / "report.json").unlink()
    assert cxr("push", run, "user/later")[0] == 0
    assert b"Not evaluated: no score" in site.files("user/later")["README.md"]


def test_nothing_pushed_tells_of_machine_user_or_token_and_no_state_of_the_optimiser_is_there(
    site, pushed, run_folder, phantom_folder
):
    files = site.files(pushed)
    assert {name for name in files if not name.startswith("figures/")} == ALLOWED | set(REMOTE_CODE_FILES)
    traces = [str(path) for path in (run_folder, run_folder.parent, phantom_folder, Path.cwd(), f"{Path.home()}/")]
    traces += ["hf_test", "/home/", "/Users/"]
    traces += [host for host in [socket.gethostname()] if len(host) > 4]  # shorter ones occur among the weights
    traces += [json.loads(line)["uid"] for line in (run_folder / "predictions.jsonl").read_text().splitlines()]
    for name, content in files.items():
        assert not [trace for trace in traces if trace.encode() in content], name
        assert b"exp_avg" not in content, name


BACK = """
import json, os, sys
sys.modules["hf_cxr"] = sys.modules["datasets"] = sys.modules["evaluate"] = None  # as where they are not installed
from transformers import pipeline
token = os.environ.pop("HF_TOKEN")
try:
    pipeline(model="user/talker", trust_remote_code=True)
except OSError as error:
    print(json.dumps(str(error)))
os.environ["HF_TOKEN"] = token
pipe = pipeline(model="user/talker", trust_remote_code=True)
print(json.dumps([pipe(study) for study in json.loads(sys.stdin.read())]))
"""


def test_what_comes_back_from_the_hub_writes_the_same_on_fifty_studies_and_needs_a_token(
    site, cxr, talkative_run, phantom_folder, tmp_path
):
    studies = []
    for index, row in enumerate(load_prepared(str(phantom_folder))["train"].select(range(50))):
        studies.append({view: str(tmp_path / f"{index}_{view}.png") for view in ("frontal", "lateral") if row[view]})
        for view, path in studies[-1].items():
            row[view].save(path)
    assert sum(len(study) == 1 for study in studies) > 3
    assert cxr("push", talkative_run, "user/talker") == (0, "")
    words = [sys.executable, "-c", BACK]
    result = subprocess.run(
        words, env=site.env, input=json.dumps(studies), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-2000:]
    refused, there = map(json.loads, result.stdout.splitlines())
    assert "hf auth login" in refused
    here = transformers.pipeline("cxr-impression", model=str(talkative_run))
    assert there == [here(study) for study in studies]
    assert len({rows[0]["impression"] for rows in there}) > 30
    assert len({rows[0]["score"] for rows in there}) > 30


def test_a_model_of_others_is_not_pushed_without_code_and_a_card_that_a_pipeline_goes_by(
    site, ask, phantom_folder, tmp_path
):
    theirs = published("swin", tmp_path / "theirs")
    evaluate(theirs, str(phantom_folder), out=theirs)
    status, _, error = ask("push", theirs, "user/theirs")
    assert status == 2
    assert error.count("\n") == 1
    assert "no run of hf-cxr (card.json is not there), so it makes no card for it; nothing was pushed" in error
    saved = tmp_path / "saved"
    load_checkpoint(theirs).save_pretrained(saved)
    for name in ("report.json", "report.md", "report.html", "predictions.jsonl"):
        (theirs / name).rename(saved / name)
    (saved / "README.md").write_text("Their own card.", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"Write a README\.md with `pipeline_tag: image-to-text` in its head"):
        hub.push(saved, "user/theirs")
    card = "---\npipeline_tag: image-to-text\n---\n\nTheirs.\n"
    (saved / "README.md").write_text(card, encoding="utf-8")
    assert ask("push", saved, "user/theirs")[0] == 0
    files = site.files("user/theirs")
    assert files["README.md"].decode() == card
    assert b"Single image" in files["report.md"]
    assert not {"predictions.jsonl", "report.html"} & set(files)


@pytest.mark.parametrize("name", REMOTE_CODE_FILES)
def test_the_code_that_travels_needs_only_what_the_card_says(name):
    source = Path(remote_code.__file__).with_name(name)
    allowed = {"numpy", "torch", "PIL", "transformers", "huggingface_hub"}  # transformers itself needs the last
    assert set(get_imports(source)) <= allowed | set(sys.stdlib_module_names)
    assert {f"{module}.py" for module in get_relative_imports(source)} <= set(REMOTE_CODE_FILES)


def test_a_second_push_deletes_what_the_run_no_longer_has_and_nothing_of_others(site, cxr, run_folder, tmp_path):
    run = copy_folder(run_folder, tmp_path / "run")
    (run / "model.safetensors").rename(run / "model-00001-of-00001.safetensors")
    (run / "figures").mkdir(exist_ok=True)
    (run / "figures" / "risk.png").write_bytes(b"\x89PNG old")  # the run itself is not calibrated
    assert cxr("push", run, "user/again")[0] == 0
    repo = site.repos["model", "user/again"]
    ours, theirs = repo.at("main").tree, {"LICENSE", "adapter.safetensors", "notes/README.md"}
    repo.commit("main", "By hand", ours | dict.fromkeys(theirs, ours["README.md"]))
    assert cxr("push", run_folder, "user/again")[0] == 0
    names = set(site.files("user/again"))
    assert theirs | {"model.safetensors"} <= names
    assert not names & {"model-00001-of-00001.safetensors", "figures/risk.png"}
    assert len(site.revisions("user/again")) == 4


def test_a_repository_becomes_public_only_once_it_is_whole(site, cxr, run_folder):
    site.fail("commit", "507", times=1)
    assert cxr("push", run_folder, "user/open", "--public")[0] == 2
    assert site.is_private("user/open")
    assert cxr("push", run_folder, "user/open", "--public")[0] == 0
    assert not site.is_private("user/open")
    status, told = cxr("push", run_folder, "user/open")
    assert status == 2
    assert "public already" in told


def test_a_push_that_did_not_get_as_far_as_to_be_public_can_be_repeated(site, cxr, run_folder):
    site.fail("settings", "507", times=1)
    assert cxr("push", run_folder, "user/nearly", "--public")[0] == 2
    assert site.is_private("user/nearly")
    assert len(site.revisions("user/nearly")) == 2
    assert cxr("push", run_folder, "user/nearly", "--public")[0] == 0
    assert not site.is_private("user/nearly")
    assert len(site.revisions("user/nearly")) == 2  # nothing had changed


def test_what_was_private_does_not_become_public_with_a_later_push(site, cxr, phantom_folder, tmp_path):
    bound = copy_folder(phantom_folder, tmp_path / "bound")
    state_licence(bound, "cc-by-nc-nd-4.0")
    assert cxr("push", bound, "user/mixed")[0] == 0
    status, told = cxr("push", phantom_folder, "user/mixed", "--public")
    assert status == 2
    assert (
        "user/mixed: pushed, but left private: 1 earlier revision would become public too; add --with-history" in told
    )
    assert site.is_private("user/mixed", "dataset")
    assert cxr("push", phantom_folder, "user/mixed", "--public", "--with-history")[0] == 0
    assert not site.is_private("user/mixed", "dataset")


def test_a_card_that_was_edited_on_the_hub_is_not_replaced_without_a_word(site, cxr, run_folder):
    assert cxr("push", run_folder, "user/webbed") == (0, "")
    repo = site.repos["model", "user/webbed"]
    tree = repo.at("main").tree
    repo.commit("main", "Add notes", tree | {"notes.md": tree["config.json"]})
    assert "somebody else" not in cxr("push", run_folder, "user/webbed")[1]
    edited = repo.commit("main", "Update README.md", repo.at("main").tree | {"README.md": tree["config.json"]})
    status, told = cxr("push", run_folder, "user/webbed")
    assert status == 0
    assert told == (
        "user/webbed: README.md was last written by somebody else ('Update README.md') and is replaced; that one "
        f"stays in revision {edited.oid[:8]}\n"
    )
    assert b"library_name" in site.files("user/webbed")["README.md"]


def test_a_hub_that_does_not_answer_is_given_up(site, run_folder):
    site.fail("create", "hang", times=9)
    words = [str(Path(sys.executable).with_name("hf-cxr")), "push", str(run_folder), "user/silent"]
    env = site.env | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    result = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    site.heal()
    assert result.returncode == 2
    assert "the Hub did not answer within 1 s; nothing there is half pushed" in result.stderr


def test_predict_and_evaluate_take_the_revision_that_was_asked_for(site, cxr, run_folder, phantom_folder, tmp_path):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    assert cxr("push", run_folder, "user/revised")[0] == 0
    first = site.repos["model", "user/revised"].history[0].oid  # the Hub's own, which holds no checkpoint
    predict = ("predict", "user/revised", "--frontal", tmp_path / "f.png")
    evaluate = ("evaluate", "user/revised", phantom_folder, "--split", "validation")
    for words in (predict, evaluate):
        assert cxr(*words, "--revision", "main")[0] == 0
        status, told = cxr(*words, "--revision", first)
        assert status == 2
        assert "user/revised: no such folder, and not to be had from the Hub" in told
        assert told.count("\n") == 1


def test_a_run_that_names_a_public_repository_says_so_in_the_command_that_repeats_its_push(tmp_path, monkeypatch):
    args = SimpleNamespace(
        output_dir=str(tmp_path / "my run"), hub_model_id="user/x", hub_private_repo=False, hub_token=""
    )
    with pytest.raises(OSError, match=rf"repeat with: hf-cxr push '{tmp_path}/my run' user/x --public$"):
        _push_finished(args)


def test_an_error_is_one_line_that_says_what_to_do(site, cxr, pushed, run_folder, phantom_folder, tmp_path):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    config = write_config(
        tmp_path / "config.yaml", dataset=str(phantom_folder), push_to_hub=True, hub_model_id="user/x"
    )
    push = ("push", run_folder, "user/x")
    answers = {
        "hf-cxr push: no token for the Hub: log in with `hf auth login`": cxr(*push, token=""),
        "user/x: the Hub does not know this token (401)": cxr(*push, token="hf_wrong"),
        "it needs write permission": cxr(*push, token="hf_read"),
        "and this name as owner": cxr("push", run_folder, "other/x"),
        "hf-cxr train: push_to_hub: no token for the Hub": cxr("train", config, token=""),
        "hf-cxr predict: user/run: no such folder, and not to be had from the Hub": cxr(
            "predict", pushed, "--frontal", tmp_path / "f.png", token=""
        ),
    }
    command = [str(Path(sys.executable).with_name("hf-cxr")), "push", "--dataset", str(phantom_folder), "user/x"]
    for hint, environment in {
        "cannot be reached at http://127.0.0.1:9": {"HF_ENDPOINT": "http://127.0.0.1:9"},
        "HF_HUB_OFFLINE": {"HF_HUB_OFFLINE": "1"},
    }.items():
        result = subprocess.run(command, env=site.env | environment, capture_output=True, text=True, timeout=120)
        answers[hint] = result.returncode, result.stderr
    for hint, (status, told) in answers.items():
        assert status == 2, told
        assert told.startswith("hf-cxr ")
        assert told.count("\n") == 1
        assert hint in told
    assert "hf auth login" in answers["hf-cxr predict: user/run: no such folder, and not to be had from the Hub"][1]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "needs hub_model_id"),
        ({"hub_model_id": "name"}, "needs hub_model_id: user/name"),
        ({"hub_model_id": "user/x", "hub_strategy": "checkpoint"}, "optimizer's state"),
        ({"hub_model_id": "user/x", "hub_strategy": "all_checkpoints"}, "optimizer's state"),
        ({"hub_model_id": "user/x", "hub_revision": "try"}, "main branch"),
    ],
)
def test_a_training_that_could_not_push_is_refused_before_it_begins(tmp_path, values, told):
    config = write_config(tmp_path / "config.yaml", dataset="data", push_to_hub=True, **values)
    with pytest.raises(ValueError, match=told) as error:
        parse_arguments(config)
    assert "\n" not in str(error.value)


def test_a_training_pushes_each_save_and_the_finished_run_and_outlives_a_push_that_fails(
    site, cxr, phantom_folder, tmp_path
):
    config = TINY_RECIPE | {
        "dataset": str(phantom_folder),
        "output_dir": str(tmp_path / "run"),
        "save_strategy": "steps",
    }
    config |= {
        "findings_pretraining_epochs": 1,
        "per_device_train_batch_size": 16,
        "save_steps": 5,
        "push_to_hub": True,
    }
    write_config(tmp_path / "config.yaml", **config, hub_model_id="user/trained")
    for how in ("507", "ok", "ok", "507"):  # the saves at steps 5, 10 and 13, then the finished run
        site.fail("commit", how, times=1)
    status, errors = cxr("train", tmp_path / "config.yaml")
    assert "step 5 was not pushed: user/trained: the Hub failed (507" in errors
    assert status == 2
    told = errors.splitlines()[-1]
    assert told.startswith("hf-cxr train: trained, but not pushed: user/trained: the Hub failed (507")
    again = f"hf-cxr push {tmp_path / 'run'} user/trained"
    assert told.endswith(f"repeat with: {again}")
    assert site.is_private("user/trained")
    assert len(site.revisions("user/trained")) == 3
    during = site.files("user/trained")
    assert set(during) == (ALLOWED | set(REMOTE_CODE_FILES)) - {"report.json", "report.md"}
    assert b"Training in progress, not evaluated** (step 13 of 13)" in during["README.md"]
    assert "custom_pipelines" in json.loads(during["config.json"])
    for kept in (tmp_path / "run").glob("checkpoint-*/config.json"):  # beside it lies no such code
        assert "custom_pipelines" not in json.loads(kept.read_text())
    assert cxr("train", tmp_path / "config.yaml", "--resume")[0] == 0  # which has nothing left to do but that
    assert len(site.revisions("user/trained")) == 4
    assert cxr(*again.split()[1:])[0] == 0
    after = site.files("user/trained")
    assert after["model.safetensors"] == during["model.safetensors"]  # the form of stock transformers, both times
    assert {"report.json", "report.md"} <= set(after)
    assert b"in progress" not in after["README.md"]


def test_a_training_that_pushes_at_its_end_alone_pushes_once(site, cxr, phantom_folder, tmp_path):
    settings = TINY_RECIPE | {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run"), "max_steps": 2}
    settings |= {"save_strategy": "steps", "save_steps": 1, "push_to_hub": True, "hub_strategy": "end"}
    config = write_config(tmp_path / "config.yaml", **settings, hub_model_id="user/late")
    assert cxr("train", config)[0] == 0
    assert len(site.revisions("user/late")) == 2


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, SafetensorError])
def test_no_push_that_fails_on_the_way_ends_a_training(run_folder, tmp_path, monkeypatch, capsys, error):
    def fail(*_):
        raise error("no space left")

    monkeypatch.setattr("hf_cxr.models.modeling.Checkpoint.save_pretrained", fail)
    trainer = object.__new__(ImpressionTrainer)
    trainer.model = load_checkpoint(str(run_folder)).model
    trainer.args = SimpleNamespace(hub_strategy="every_save", output_dir=str(tmp_path), hub_model_id="user/x")
    trainer.accelerator = SimpleNamespace(unwrap_model=lambda model, **_: model)
    trainer.state = SimpleNamespace(global_step=5, max_steps=9)
    trainer.processing_class = trainer.image_processor = None
    trainer.push = fail
    trainer.is_world_process_zero = lambda: True
    trainer._push_from_checkpoint(str(tmp_path))
    assert capsys.readouterr().err.splitlines()[-1] == "step 5 was not pushed: no space left; training goes on"


def test_a_training_that_will_publish_says_what_the_licence_of_its_data_is(site, cxr, phantom_folder, tmp_path):
    data = copy_folder(phantom_folder, tmp_path / "dataset")
    state_licence(data, "cc-by-nc-nd-4.0")
    settings = {"dataset": str(data), "max_steps": 1, "push_to_hub": True, "hub_model_id": "user/published"}
    config = write_config(
        tmp_path / "config.yaml", **TINY_RECIPE, **settings, output_dir=str(tmp_path / "run"), hub_private_repo=False
    )
    status, errors = cxr("train", config)
    assert status == 0
    note = "push_to_hub: these weights were trained on data under cc-by-nc-nd-4.0: whether they may be public is yours"
    assert errors.count(note) == 1
    assert not site.is_private("user/published")


LOAD = """
from datasets import load_dataset
dataset = load_dataset("user/dataset")
print({name: len(split) for name, split in dataset.items()}, dataset["test"][0]["frontal"] is not None)
"""


def test_a_dataset_is_pushed_as_parquet_with_its_card_and_loads_from_the_hub(site, cxr, phantom_folder, tmp_path):
    folder = copy_folder(phantom_folder, tmp_path / "dataset")
    state_licence(folder, "cc-by-nc-nd-4.0")
    assert cxr("push", "--dataset", folder, "user/dataset", "--public")[0] == 2
    assert not site.revisions("user/dataset", "dataset")
    assert cxr("push", "--dataset", folder, "user/dataset", "--public", "--i-hold-the-rights")[0] == 0
    assert not site.is_private("user/dataset", "dataset")
    splits = {f"data/{name}-00000-of-00001.parquet" for name in ("train", "validation", "test")}
    kept = {".gitattributes", "README.md", "prepare.json", "splits.csv"} | splits
    assert set(site.files("user/dataset", "dataset")) == kept
    loaded = subprocess.run([sys.executable, "-c", LOAD], env=site.env, capture_output=True, text=True, timeout=120)
    assert loaded.stdout == "{'train': 197, 'validation': 20, 'test': 21} True\n", loaded.stderr[-2000:]


def test_the_card_tells_of_the_revision_of_the_dataset_that_was_evaluated(
    site, cxr, phantom_folder, run_folder, tmp_path
):
    data, run = copy_folder(phantom_folder, tmp_path / "data"), copy_folder(run_folder, tmp_path / "run")
    assert cxr("push", "--dataset", data, "user/data")[0] == 0
    first = site.repos["dataset", "user/data"].at("main").oid
    preparation = json.loads((data / "prepare.json").read_text())
    (data / "prepare.json").write_text(json.dumps(preparation | {"splits_sha256": "0" * 64}))
    assert cxr("push", "--dataset", data, "user/data")[0] == 0
    for revision, other in (([], True), (["--dataset-revision", first], False)):
        assert cxr("evaluate", run, "user/data", "--out", run, *revision)[0] == 0
        assert json.loads((run / "card.json").read_text())["evaluated_on"]["own"] is not other
        assert ("whose studies are split otherwise" in (run / "README.md").read_text()) is other
