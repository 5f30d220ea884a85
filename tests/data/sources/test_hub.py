"""A dataset on the Hub is prepared like a table on this disk, from one commit, and what is not needed is not fetched:
the real client against a small Hub on this machine."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import ROOT, radiograph
from hub_server import HubServer
from PIL import Image

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RUNNER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import hf_cxr.data.prepare, hf_cxr.data.sources.hub
from command_runner import in_forks
for line in sys.stdin:
    print(json.dumps(in_forks(json.loads(line))), flush=True)
"""
OPENI = ("--columns", "frontal=img_frontal", "lateral=img_lateral", "tags=Problems")
SHARDS = ("--columns", "uid=study", "patient=who")


def png(seed: int, size: int = 64) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(radiograph(seed, size, size)).save(stream, "PNG")
    return stream.getvalue()


def written(folder: Path, name: str, columns: dict, **card) -> Path:
    path = folder / "datasets" / "user" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=4)
    if card:
        (path.parents[len(Path(name).parts) - 2] / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\nOf us.\n")
    return path


def openi(folder: Path, name: str, studies: int, noise: bool = False) -> None:
    """Open-i's form on the Hub: bytes of both views, one of them missing in every third row."""

    def image(seed: int) -> bytes:
        if not noise:
            return png(seed)
        stream = io.BytesIO()
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (700, 700), np.uint8)).save(stream, "PNG")
        return stream.getvalue()

    uids = range(studies)
    columns = {
        "uid": list(uids),
        "MeSH": ["normal"] * studies,
        "Problems": ["Cardiomegaly" if uid % 2 else "normal" for uid in uids],
        "image": ["Xray Chest PA and Lateral"] * studies,
        "indication": ["Pain."] * studies,
        "comparison": ["None"] * studies,
        "findings": [f"Finding {uid}." for uid in uids],
        "impression": [f"Impression {uid}." if uid != 5 else "nan" for uid in uids],
        "img_frontal": [image(2 * uid) for uid in uids],
        "img_lateral": [image(2 * uid + 1) if uid % 3 else None for uid in uids],
    }
    written(folder, f"{name}/data/train-00000-of-00001.parquet", columns)


def shards(folder: Path) -> None:
    """A row per image in an `Image()` column, in several files and splits, one of them of a name of its own."""
    seed = 0
    card = {"license": "cc-by-4.0", "language": ["es"], "pretty_name": "Rows of images"}
    for split, number in (("train", 2), ("valid", 1), ("test", 1), ("extra", 1)):
        for shard in range(number):
            studies = [f"{split}-{shard}-{study}" for study in range(3)]
            columns = {
                "study": [study for study in studies for _ in range(2)],
                "who": [study for study in studies for _ in range(2)],
                "image": pa.array([{"bytes": png(seed := seed + 1), "path": f"{seed}.png"} for _ in range(6)], IMAGE),
                "view": ["PA", "LATERAL"] * 3,
                "impression": ["Clear."] * 6,
            }
            written(folder, f"shards/data/{split}-0000{shard}-of-0000{number}.parquet", columns, **card)


def image_folder(folder: Path) -> None:
    for split, number in (("train", 4), ("test", 2)):
        place = folder / "datasets" / "user" / "folder" / split
        place.mkdir(parents=True)
        lines = ["file_name,impression,uid"]
        for image in range(number):
            (place / f"{image}.png").write_bytes(png(100 + image + (split == "test") * 50))
            lines.append(f"{image}.png,Clear.,{split}{image}")
        (place / "metadata.csv").write_text("\n".join(lines))


def configurations(folder: Path) -> None:
    said = [{"config_name": name, "data_files": f"{name}/*.parquet"} for name in ("small", "large")]
    for number, name in enumerate(("small", "large"), start=1):
        columns = {
            "uid": list(range(number)),
            "frontal": [png(n) for n in range(number)],
            "findings": ["Clear."] * number,
        }
        written(folder, f"several/{name}/a.parquet", columns, configs=said)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    openi(folder, "openi", 12)
    openi(folder, "heavy", 8, noise=True)
    shards(folder)
    image_folder(folder)
    configurations(folder)
    (folder / "datasets/user/texts").mkdir()
    (folder / "datasets/user/texts/a.txt").write_text("no table")
    with HubServer(tokens={"hf_test": "user"}, root=folder) as site:
        yield site


@pytest.fixture(scope="module")
def cxr(site):
    """Runs an `hf-cxr` command as a user of that Hub, or tells of a collection; returns status, stdout and stderr."""
    words = [sys.executable, "-c", RUNNER, str(ROOT / "tests")]
    env = site.env | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:

        def run(*words, **environment):
            code = f"import sys; from hf_cxr.cli.parser import main; sys.exit(main({list(map(str, words))}))"
            if words[0] == "collection":
                code = "import json; from hf_cxr.data import sources; from dataclasses import asdict\n"
                code += f"print(json.dumps(asdict(sources.collection('hub', root={words[1]!r}))))"
            code = f"import os; os.environ.update({environment})\n{code}"
            runner.stdin.write(json.dumps({"code": code}) + "\n")
            runner.stdin.flush()
            answer = json.loads(runner.stdout.readline())
            return answer["status"], answer["stdout"], answer["stderr"]

        yield run
        runner.stdin.close()


@pytest.fixture
def prepared(cxr, tmp_path):
    def prepare(root, *words):
        out = tmp_path / "out"
        status, _, stderr = cxr("prepare", "hub", "--root", root, "--size", "32", "--out", out, *words)
        assert status == 0, stderr
        return out, json.loads((out / "prepare.json").read_text()), stderr

    return prepare


def rows_of(folder: Path) -> dict:
    tables = {path.name.split("-")[0]: pq.read_table(path).to_pylist() for path in folder.glob("data/*.parquet")}
    return {row["uid"]: row | {"split": split} for split, rows in tables.items() for row in rows}


def test_the_bytes_of_open_i_on_the_hub_become_a_dataset_that_counts_every_record(site, prepared):
    out, report, _ = prepared("user/openi", *OPENI, "--section", "impression")
    rows = rows_of(out)
    assert sorted(map(int, rows)) == [uid for uid in range(12) if uid != 5]
    assert [json.loads(line)["uid"] for line in (out / "rejects.jsonl").read_text().splitlines()] == ["5"]
    assert {uid for uid, row in rows.items() if row["lateral"] is None} == {"0", "3", "6", "9"}
    assert (rows["7"]["impression"], rows["7"]["indication"]) == ("Impression 7.", "Pain.")
    shown = np.asarray(Image.open(io.BytesIO(rows["7"]["frontal"]["bytes"])), float)
    truth = np.asarray(Image.open(io.BytesIO(png(14))).resize((32, 32), Image.Resampling.BOX), float)
    assert np.abs(shown - truth).mean() < 12  # its own image
    assert report["options"]["source_options"]["revision"] == site.find("dataset", "user/openi").at("main").oid


def test_rows_of_images_in_shards_keep_their_splits(prepared):
    out, report, stderr = prepared("user/shards", *SHARDS)
    assert (report["collection"]["licence"], report["collection"]["language"]) == ("cc-by-4.0", "es")
    rows = rows_of(out)
    expected = {"train": {"train-0", "train-1"}, "validation": {"valid-0"}, "test": {"test-0"}}
    for split, studies in expected.items():
        assert {uid for uid, row in rows.items() if row["split"] == split} == {
            f"{study}-{number}" for study in studies for number in range(3)
        }
    assert all(row["frontal"] and row["lateral"] for row in rows.values())
    assert [line for line in stderr.splitlines() if "extra" in line] == [
        "user/shards: its splits extra are none that are read; name them in a split file"
    ]


def test_what_a_card_states_is_told_of_the_collection(site, cxr):
    collection = json.loads(cxr("collection", "user/shards")[1])
    assert (collection["licence"], collection["language"]) == ("cc-by-4.0", "es")
    assert collection["name"] == "Rows of images (user/shards on the Hub)"
    assert site.find("dataset", "user/shards").at("main").oid in collection["note"]
    collection = json.loads(cxr("collection", "user/openi")[1])
    assert (collection["licence"], collection["language"]) == ("other", None)
    assert "states no known licence" in collection["note"]


def test_a_folder_of_images_with_metadata_is_read_image_by_image(prepared):
    out, _, _ = prepared("user/folder", "--columns", "frontal=image")
    assert {uid: row["split"] for uid, row in rows_of(out).items()} == {
        **{f"train{n}": "train" for n in range(4)},
        **{f"test{n}": "test" for n in range(2)},
    }


def test_the_same_commit_is_prepared_whatever_is_pushed_later(site, prepared, cxr, tmp_path):
    _, before, _ = prepared("user/openi", *OPENI)
    commit = before["options"]["source_options"]["revision"]
    repo = site.find("dataset", "user/openi")
    fewer = {name: blob for name, blob in repo.at("main").tree.items() if not name.endswith(".parquet")}
    try:
        repo.commit("main", "took it away", fewer)
        words = ("prepare", "hub", "--root", "user/openi", *OPENI, "--plan")
        assert cxr(*words)[0] == 2
        status, stdout, _ = cxr(*words, "--revision", commit)
        assert status == 0
        assert re.search("in the source +12\n", stdout)
    finally:
        repo.branches["main"] = repo.history[0]


def test_a_plan_fetches_no_images(site, cxr):
    size = sum(blob.size for blob in site.find("dataset", "user/heavy").at("main").tree.values())
    before = site.sent
    status, stdout, stderr = cxr("prepare", "hub", "--root", "user/heavy", *OPENI, "--section", "impression", "--plan")
    assert status == 0, stderr
    assert "studies with both: 7" in stdout
    assert "column img_lateral has gaps" in stderr
    assert site.sent - before < size / 8, (site.sent - before, size)


def test_nothing_is_kept_beside_the_result(site, prepared):
    def kept() -> int:
        return sum(path.stat().st_size for path in site.home.rglob("*") if path.is_file())

    before = kept()
    prepared("user/heavy", *OPENI)
    assert kept() - before < 100_000


def test_a_configuration_is_asked_for_where_there_are_several(cxr):
    words = ("prepare", "hub", "--root", "user/several", "--section", "findings", "--plan")
    for more in ((), ("--config", "tiny")):
        status, _, stderr = cxr(*words, *more)
        assert (status, len(stderr.splitlines())) == (2, 1)
        assert "choose one with --config: 'small', 'large'" in stderr
    assert re.search("in the source +2\n", cxr(*words, "--config", "large")[1])


def test_what_the_hub_does_not_give_is_one_line_that_says_what_to_do(site, cxr):
    site.find("dataset", "user/shards").private = True
    try:
        for root, environment, said in [
            ("user/none", {}, "user/none: no such dataset on the Hub, or a private one; log in with"),
            ("user/shards", {"HF_TOKEN": ""}, "no such dataset on the Hub, or a private one; log in with"),
            ("none", {}, "none: not the name of a dataset on the Hub (user/dataset)"),
            ("user/texts", {}, "user/texts: no table in it that can be read"),
            ("user/several", {}, "user/several: it has several configurations; choose one with --config"),
        ]:
            status, _, stderr = cxr("prepare", "hub", "--root", root, "--plan", **environment)
            assert (status, len(stderr.splitlines())) == (2, 1), stderr
            assert said in stderr
    finally:
        site.find("dataset", "user/shards").private = False
    status, _, stderr = cxr("prepare", "hub", "--root", "user/openi", "--revision", "v9", "--plan")
    assert stderr == "hf-cxr prepare: user/openi: no revision 'v9' on the Hub\n"
    site.fail("info", "403")
    try:
        status, _, stderr = cxr("prepare", "hub", "--root", "user/openi", "--plan")
        assert (status, len(stderr.splitlines())) == (2, 1), stderr
    finally:
        site.heal()


def test_without_a_network_the_first_line_says_so():
    code = (
        "from hf_cxr.cli.parser import main; raise SystemExit(main(['prepare', 'hub', '--root', 'user/x', '--plan']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    assert done.stderr.startswith("hf-cxr prepare: user/x: not to be had from the Hub (")
    assert len(done.stderr.splitlines()) == 1
