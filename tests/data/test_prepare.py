"""From a source to a dataset: the preparation report, the splits, and a folder that any `load_dataset` reads."""

import hashlib
import inspect
import json
import os
import pydoc
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import psutil
import pytest
from helpers import LISTEN
from PIL import Image

import hf_cxr
from hf_cxr.data.choice import PreparationConfig
from hf_cxr.data.prepare import format_preparation, load_studies, plan, prepare
from hf_cxr.data.schema import FEATURES
from hf_cxr.data.splits import split_of

datasets.disable_progress_bars()
PHANTOM = {"num_studies": 24, "size": 32}


def noise(width=60, height=50, seed=0, dtype=np.uint8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width), dtype=dtype))


def write_collection(root: Path, num=12) -> Path:
    """A small collection in the Kaggle form: every study with a frontal, all but the second with a lateral."""
    images = root / "images"
    images.mkdir(parents=True)
    reports, projections = (
        ["uid,MeSH,Problems,image,indication,comparison,findings,impression"],
        ["uid,filename,projection"],
    )
    for uid in range(1, num + 1):
        reports.append(f"{uid},normal,normal,PA,Cough.,None.,Clear lungs.,Normal chest {uid}.")
        for view in ("Frontal",) if uid == 2 else ("Frontal", "Lateral"):
            name = f"{uid}_{view}.png"
            noise(seed=uid).save(images / name)
            projections.append(f"{uid},{name},{view}")
    (root / "indiana_reports.csv").write_text("\n".join(reports))
    (root / "indiana_projections.csv").write_text("\n".join(projections))
    return root


@pytest.fixture
def root(tmp_path):
    return write_collection(tmp_path / "root")


def rejects_of(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    return {row["uid"]: row["reason"] for row in rows}


def rows_of(folder: Path, tmp_path: Path) -> dict[str, dict]:
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    return {row["uid"]: row for split in loaded.values() for row in split}


def assert_closes(preparation):
    steps = preparation["steps"]
    for before, after in pairwise(steps):
        assert before["kept"] - after["dropped"] == after["kept"]
    assert steps[-1]["kept"] == sum(preparation["splits"].values())


# The preparation report


def test_a_split_file_decides_and_leaves_out_what_it_does_not_name(root, tmp_path):
    table = tmp_path / "splits.csv"
    table.write_bytes(b"\xef\xbb\xbfsplit,uid\r\ntest,1\r\nval,3\r\ntrain,5\r\n")
    preparation = prepare("kaggle", tmp_path / "out", root=root, split_file=table, size=32)
    assert_closes(preparation)
    assert preparation["splits"] == {"train": 1, "validation": 1, "test": 1}
    assert preparation["options"]["split_file"] == "splits.csv"
    assert rejects_of(tmp_path / "out")["2"] == "not named in the split file"
    assert (tmp_path / "out" / "splits.csv").read_text() == "uid,split\n5,train\n3,validation\n1,test\n"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("uid,part\n1,test\n", "no column 'split'"),
        ("uid,split\n1,exam\n", "line 2: unknown split 'exam'"),
        ("uid,split\n1,\n", "line 2: an empty uid or split"),
        ("uid,split\n1,test\n1,train\n", "line 3: uid '1' is in both"),
        ("uid,split\nnobody,test\n", "no usable study"),
    ],
)
def test_a_bad_split_file_is_a_one_line_error(root, tmp_path, content, what):
    (tmp_path / "splits.csv").write_text(content)
    with pytest.raises(ValueError, match=what) as caught:
        prepare("kaggle", tmp_path / "out", root=root, split_file=tmp_path / "splits.csv")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_every_study_is_kept_or_rejected_with_its_reason(root, tmp_path):
    table = root / "indiana_reports.csv"
    table.write_text(table.read_text().replace("Normal chest 4.", "") + "\n90,normal,normal,PA,,,,No image listed.\n")
    images = root / "images"
    (images / "5_Lateral.png").unlink()
    (images / "6_Frontal.png").write_bytes(b"")
    png = (images / "7_Frontal.png").read_bytes()
    (images / "7_Frontal.png").write_bytes(png[: len(png) // 2])
    (images / "8_Lateral.png").write_text("<html>")
    noise(dtype=np.uint16).save(images / "9_Frontal.png")
    noise().convert("RGB").save(images / "10_Frontal.png")

    preparation = prepare("kaggle", tmp_path / "out", root=root, section="impression", size=32, num_proc=2)
    assert_closes(preparation)
    assert preparation["steps"][0]["kept"] == 13
    rejects = rejects_of(tmp_path / "out")
    assert list(rejects) == ["4", "5", "6", "7", "8", "90"]  # in the order of the source
    assert rejects["4"] == "no impression text"
    assert rejects["5"] == "image file missing: 5_Lateral.png (lateral)"
    assert rejects["6"] == "frontal: 6_Frontal.png: zero bytes"
    assert rejects["7"].startswith("frontal: 7_Frontal.png: truncated")
    assert rejects["8"].startswith("lateral: 8_Lateral.png: not an image")
    assert rejects["90"] == "no image listed"
    rows = rows_of(tmp_path / "out", tmp_path)
    assert set(rows) | set(rejects) == {*(str(uid) for uid in range(1, 13)), "90"}
    assert rows["2"]["lateral"] is None
    assert rows["2"]["frontal"].size == (32, 27)
    assert {row["frontal"].mode for row in rows.values()} == {"L"}


def test_images_are_accounted_for_and_every_pair_can_be_a_row(root, tmp_path):
    table = root / "indiana_projections.csv"
    names = [("3", "3_b.png", "Frontal"), ("3", "3_c.png", "Lateral"), ("4", "4_b.png", "Frontal")]
    table.write_text(table.read_text() + "\n" + "\n".join(",".join(row) for row in names))
    for seed, (_, name, _) in enumerate(names):
        noise(seed=100 + seed).save(root / "images" / name)
    (root / "images" / "4_b.png").write_bytes(b"")

    best = prepare("kaggle", tmp_path / "best", root=root, size=32)
    assert best["images"] == {"unused": 2, "unreadable": 1, "used": 23}
    assert "4,4_b.png,frontal,1.000,unreadable,4_b.png: zero bytes\n" in (tmp_path / "best/images.csv").read_text()
    both = prepare("kaggle", tmp_path / "both", root=root, size=32, require="both")
    assert rejects_of(tmp_path / "both") == {"2": "no lateral view"}
    assert both["steps"][-2] == {"step": "with both views", "kept": 11, "dropped": 1}

    preparation = prepare("kaggle", tmp_path / "all", root=root, size=32, pairs="all")
    assert preparation["images"] == {"unreadable": 1, "used": 25}
    rows = rows_of(tmp_path / "all", tmp_path)
    assert {uid for uid in rows if uid.startswith("3")} == {"3", "3#2", "3#3", "3#4"}
    assert sum(preparation["splits"].values()) == 15
    assert sum(preparation["studies"].values()) == 12
    patients = {uid: row["patient"] for uid, row in rows.items()}
    assert len({patients[uid] for uid in ("3", "3#2", "3#3", "3#4")}) == 1
    assert len(set(patients.values())) == 12
    splits = dict(line.split(",") for line in (tmp_path / "all" / "splits.csv").read_text().splitlines())
    assert splits["3"] == splits["3#2"] == splits["3#3"] == splits["3#4"]
    pairs = {(row["frontal"].tobytes(), row["lateral"].tobytes()) for uid, row in rows.items() if uid[0] == "3"}
    assert len(pairs) == 4


def test_a_table_of_views_leaves_out_what_is_no_chest_view_and_says_which_words_it_does_not_know(
    root, tmp_path, caplog
):
    rows = ["1_Frontal,AP supine", "1_Lateral,PA LLD", "2_Frontal,oblique", "3_Frontal,sideways", "4_Frontal,LL"]
    (tmp_path / "views.csv").write_text("\n".join(["picture,Projection", *rows]))
    options = {"root": root, "views": tmp_path / "views.csv", "view_columns": {"image": "picture"}}
    planned = plan("kaggle", **options)
    assert caplog.messages == [f"{tmp_path / 'views.csv'}: words that say no view (1 in all): 'sideways' (1)"]
    preparation = prepare("kaggle", tmp_path / "out", size=32, **options)
    assert_closes(preparation)
    assert rejects_of(tmp_path / "out") == {"2": "no frontal or lateral image"}
    assert {"step": "with a frontal or lateral image", "kept": 11, "dropped": 1} in preparation["steps"]
    listing = (tmp_path / "out" / "images.csv").read_text()
    assert "1,1_Lateral.png,neither,1.000,unused,\n" in listing
    assert "2,2_Frontal.png,neither,1.000,study left out,no frontal or lateral image\n" in listing
    rows = rows_of(tmp_path / "out", tmp_path)
    assert (rows["1"]["lateral"], rows["4"]["frontal"]) == (None, None)  # of 4 both are laterals now
    for said in (planned, preparation):
        assert (said["unknown_view_words"], said["images_without_a_view_in_the_table"]) == (1, 19)
    assert planned["views"] == {"both": 9, "frontal only": 1, "lateral only": 1}
    assert planned["splits"] == preparation["splits"]
    assert preparation["options"]["view_columns"] == {"image": "picture"}


def test_equal_images_of_two_patients_keep_them_together(root, tmp_path):
    seed = next(s for s in range(99) if "test" in {split_of(str(uid), s) for uid in range(1, 13)})
    preparation = prepare("kaggle", tmp_path / "apart", root=root, size=32, seed=seed)
    split_of_uid = dict(line.split(",") for line in (tmp_path / "apart" / "splits.csv").read_text().splitlines())
    first = next(uid for uid, split in split_of_uid.items() if split == "test")
    other = next(uid for uid, split in split_of_uid.items() if split == "train")
    assert preparation["patients_tied_by_an_image"] == {"patients": 0, "largest_group": 0}
    shutil.copy(root / "images" / f"{first}_Frontal.png", root / "images" / f"{other}_Frontal.png")
    preparation = prepare("kaggle", tmp_path / "together", root=root, size=32, seed=seed)
    together = dict(line.split(",") for line in (tmp_path / "together" / "splits.csv").read_text().splitlines())
    assert together[first] == together[other]
    assert preparation["patients_tied_by_an_image"] == {"patients": 2, "largest_group": 2}
    assert "2 patients share an image with another" in (tmp_path / "together" / "README.md").read_text()
    (tmp_path / "file.csv").write_text(f"uid,split\n{first},test\n{other},train\nstranger,test\n")
    preparation = prepare("kaggle", tmp_path / "parted", root=root, size=32, split_file=tmp_path / "file.csv")
    assert rejects_of(tmp_path / "parted")[other] == "a study in a later split has the same image"
    assert preparation["splits"] == {"train": 0, "validation": 0, "test": 1}
    assert preparation["split_file_uids_without_a_study"] == 1


def test_what_went_in_and_came_out_can_be_checked_by_its_hash(root, tmp_path):
    def sha256(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()

    preparation = prepare("kaggle", tmp_path / "out", root=root, size=32)
    tables = ("indiana_reports.csv", "indiana_projections.csv")
    assert preparation["tables"] == {name: sha256(root / name) for name in tables}
    assert preparation["splits_sha256"] == sha256(tmp_path / "out" / "splits.csv")
    assert preparation["splits_sha256"] in (tmp_path / "out" / "README.md").read_text()
    noise(seed=77).save(root / "images" / "1_Frontal.png")
    again = prepare("kaggle", tmp_path / "again", root=root, size=32)
    assert again["images_sha256"] != preparation["images_sha256"]


def test_when_nothing_can_be_used_the_commonest_reason_is_said_and_nothing_is_written(root, tmp_path):
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"no usable study among 12: 12 not with readable images.*uid 1.*zero bytes"
    ) as caught:
        prepare("kaggle", tmp_path / "new" / "out", root=root)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


def test_the_preparation_report_is_printed_step_by_step():
    steps = [{"step": "in the source", "kept": 1200, "dropped": 0}, {"step": "readable", "kept": 1000, "dropped": 200}]
    text = format_preparation({"steps": steps, "splits": {"train": 1000, "validation": 0}})
    assert [line.split() for line in text.splitlines()] == [
        ["in", "the", "source", "1,200"],
        ["readable", "1,000", "(−200)"],
        ["→", "train", "1,000"],
        ["→", "validation", "0"],
    ]


def test_the_real_collection_is_accounted_for_to_the_last_report(iu, tmp_path):
    preparation = prepare("kaggle", tmp_path / "out", root=iu, size=64)
    assert_closes(preparation)
    kept = {step["step"]: step["kept"] for step in preparation["steps"]}
    assert (kept["in the source"], kept["with impression or findings"], preparation["steps"][-1]["kept"]) == (
        3851, 3826, 5,
    )  # fmt: skip
    assert preparation["sections"] == {"impression": 5, "findings": 4}
    assert preparation["images"] == {"unused": 1, "study left out": 7455, "used": 10}
    rejects = rejects_of(tmp_path / "out")
    assert len(rejects) == 3846
    rows = rows_of(tmp_path / "out", tmp_path)
    assert set(rows) == {"2", "54", "300", "905", "1000"}
    assert all(row["frontal"] and row["lateral"] for row in rows.values())
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:  # as Kaggle gives it
        for path in (*sorted((iu / "images").glob("*.png"), reverse=True), *iu.glob("indiana_*.csv")):
            archive.write(path, f"images/images_normalized/{path.name}" if path.suffix == ".png" else path.name)
    prepare("kaggle", tmp_path / "packed", root=tmp_path / "archive.zip", size=64)
    assert_same_bytes(tmp_path / "out", tmp_path / "packed")


def assert_same_bytes(one: Path, other: Path) -> None:
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert {path.relative_to(other) for path in other.rglob("*") if path.is_file()} == names
    assert len(names) >= 6
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_zip_of_a_collection_gives_the_same_bytes_as_its_folder(root, tmp_path):
    (root / "images" / "6_Frontal.png").write_bytes(b"")
    (root / "images" / "7_Frontal.png").unlink()
    packed = Path(shutil.make_archive(str(tmp_path / "zip" / "archive"), "zip", root))
    for given, out, options in ((root, "out", {}), (packed, "packed", {}), (packed.parent, "folder", {"num_proc": 2})):
        prepare("kaggle", tmp_path / out, root=given, size=32, **options)
    for other in ("packed", "folder"):
        assert_same_bytes(tmp_path / "out", tmp_path / other)
    assert {**plan("kaggle", root=packed), "disk_needed": 0} == {**plan("kaggle", root=root), "disk_needed": 0}


# The folder


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "deep" / "out"
    return prepare("phantom", out, **PHANTOM), out


def test_a_process_that_knows_nothing_of_hf_cxr_reads_the_folder(phantom, tmp_path):
    preparation, out = phantom
    code = (
        "import sys, json, datasets; d = datasets.load_dataset(sys.argv[1]);"
        "print(json.dumps([{n: len(s) for n, s in d.items()}, d['train'][0]['frontal'].size, 'hf_cxr' in sys.modules,"
        "str(d['train'].features)]))"
    )
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", code, str(out)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    counts, size, imported, features = json.loads(done.stdout)
    assert counts == {name: count for name, count in preparation["splits"].items() if count}
    assert (size, imported, features) == ([32, 32], False, str(FEATURES))


def test_the_same_input_gives_the_same_bytes_whatever_the_number_of_processes(phantom, tmp_path):
    preparation, out = phantom
    assert prepare("phantom", tmp_path / "again", **PHANTOM, num_proc=2) == preparation
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert "data/train-00000-of-00001.parquet" in names
    assert {"README.md", "prepare.json", "rejects.jsonl", "images.csv", "splits.csv"} < set(names)
    assert (
        sorted(str(p.relative_to(tmp_path / "again")) for p in (tmp_path / "again").rglob("*") if p.is_file()) == names
    )
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_seed_and_size_reach_a_source_that_draws_its_studies(phantom, tmp_path):
    first = prepare("phantom", tmp_path / "out", num_studies=3, size=40, seed=5)
    assert first["options"]["source_options"] == {"num_studies": 3, "size": 40, "seed": 5}
    row = next(iter(rows_of(tmp_path / "out", tmp_path).values()))
    assert (row["frontal"] or row["lateral"]).size == (40, 40)
    assert row["uid"].startswith("phantom-5-")


def test_a_large_split_is_written_in_several_files(phantom_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_cxr.data.builder.SHARD_BYTES", 8_000)
    prepare("phantom", tmp_path / "out", num_studies=238, size=32)
    files = sorted((tmp_path / "out" / "data").glob("train-*"))
    assert len(files) > 1
    assert files[-1].name == f"train-{len(files) - 1:05d}-of-{len(files):05d}.parquet"
    assert list(rows_of(tmp_path / "out", tmp_path)) == list(rows_of(phantom_folder, tmp_path / "whole"))
    assert (tmp_path / "out" / "splits.csv").read_bytes() == (phantom_folder / "splits.csv").read_bytes()


def test_the_card_says_what_the_dataset_is_and_the_hub_can_read_it(phantom, iu, tmp_path):
    preparation, out = phantom
    card = huggingface_hub.DatasetCard.load(out / "README.md")
    filled = [name for name, count in preparation["splits"].items() if count]
    assert [entry["split"] for entry in card.data.configs[0]["data_files"]] == filled
    assert {split["name"]: split["num_examples"] for split in card.data.dataset_info["splits"]} == {
        name: preparation["splits"][name] for name in filled
    }
    assert "| in the source | 24 | 0 |" in card.text
    assert "seed 0" in card.text
    prepare("kaggle", tmp_path / "out", root=iu, size=32)
    card = huggingface_hub.DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "cc-by-nc-nd-4.0"
    assert "redistribution" in card.text


def test_no_file_tells_where_the_collection_lies_on_this_machine(root, tmp_path):
    (root / "images" / "3_Frontal.png").write_bytes(b"")
    prepare("kaggle", tmp_path / "out", root=root, size=32)
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_a_full_folder_is_not_touched_unless_told_and_then_only_a_dataset(phantom, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    prepare("phantom", out, num_studies=3, size=32)  # an empty folder is as good as none
    before = (out / "prepare.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"out: holds files already.*--overwrite"):
        prepare("phantom", out, num_studies=4, size=32)
    assert (out / "prepare.json").read_bytes() == before
    assert prepare("phantom", out, num_studies=4, size=32, overwrite=True)["steps"][0]["kept"] == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="not a prepared dataset"):
        prepare("phantom", tmp_path / "mine", num_studies=3, size=32, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        prepare("phantom", tmp_path / "mine" / "thesis.txt", num_studies=3, size=32, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failed_overwrite_leaves_the_old_dataset(root, tmp_path):
    prepare("phantom", tmp_path / "out", num_studies=3, size=32)
    before = (tmp_path / "out" / "prepare.json").read_bytes()
    (root / "indiana_reports.csv").write_text("uid\n1\n")
    with pytest.raises(ValueError, match="no column"):
        prepare("kaggle", tmp_path / "out", root=root, overwrite=True)
    assert (tmp_path / "out" / "prepare.json").read_bytes() == before


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_an_impossible_size_is_an_error(root, tmp_path, size):
    with pytest.raises(ValueError, match="size"):
        prepare("kaggle", tmp_path / "out", root=root, size=size)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_filled_and_not_replaced(tmp_path):
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    inode = (tmp_path / "volume").stat().st_ino
    prepare("phantom", tmp_path / "link", num_studies=3, size=32)
    assert (tmp_path / "volume").stat().st_ino == inode  # it may be a mount point
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in (tmp_path / "volume").iterdir()} >= {"data", "prepare.json"}
    assert not [path for path in (tmp_path / "volume").iterdir() if path.name.startswith(".")]
    with pytest.raises(FileExistsError, match="holds files already"):
        prepare("phantom", tmp_path / "volume", num_studies=3, size=32)


def test_a_uid_that_looks_like_a_further_pair_is_left_out_only_where_pairs_are_made(tmp_path):
    noise().save(tmp_path / "a.png")
    noise(seed=1).save(tmp_path / "b.png")
    table = tmp_path / "t.csv"
    table.write_text("uid,frontal,impression\ns,a.png;b.png,Normal.\ns#2,b.png,Scar.\n")
    preparation = prepare("table", tmp_path / "all", root=table, size=32, pairs="all")
    assert rejects_of(tmp_path / "all") == {"s#2": "its uid ends like that of a further pair"}
    assert (preparation["splits"]["train"] + preparation["splits"]["test"] + preparation["splits"]["validation"]) == 2
    prepare("table", tmp_path / "best", root=table, size=32)
    assert set(rows_of(tmp_path / "best", tmp_path)) == {"s", "s#2"}


def patient_table(tmp_path, header="Subject ID", extra="", split=lambda i: ""):
    """Twenty studies of five patients, four of each."""
    for i in range(20):
        noise(seed=i).save(tmp_path / f"{i}.png")
    lines = [f"s{i},{i}.png,Normal {i}.,{split(i)},P{i // 4}" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join([f"uid,frontal,impression,split,{header}", *lines, *extra.splitlines()]))
    return tmp_path / "t.csv"


SEVERAL = "a patient with several studies may be in several splits"


@pytest.mark.parametrize("header", ["Subject ID", "PatientID", "patient_id", "MRN", "deid_patient_id", "person-id"])
def test_a_column_that_seems_to_name_patients_is_named_with_how_many_are_in_several_splits(tmp_path, header):
    root = patient_table(tmp_path, header)
    preparation = prepare("table", tmp_path / "out", root=root, size=32)
    split_of_uid = dict(line.split(",") for line in (tmp_path / "out" / "splits.csv").read_text().splitlines()[1:])
    parted = sum(len({split_of_uid[f"s{i}"] for i in range(4 * p, 4 * p + 4)}) > 1 for p in range(5))
    assert parted > 0
    assert preparation["studies_without_a_patient"] == 20
    assert preparation["likely_patient_columns"] == {header: {"with_several_studies": 5, "in_several_splits": parted}}
    said = format_preparation(preparation)
    assert f"Warning: no study of 20 names its patient, so {SEVERAL}." in said
    assert f"Column '{header}' seems to name patients: {parted} of the 5 it gives several studies are in" in said
    assert f"prepare with --columns patient={shlex.quote(header)}" in said
    planned = plan("table", root=root)
    assert format_preparation(planned).splitlines()[-2:] == said.splitlines()[-2:]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "No image is in two splits. Whether a patient is in two splits is not known: 20 of 20 studies" in card
    assert f"column `{header}`, which was not read and seems to name patients: {parted} of the 5" in card

    read = prepare("table", tmp_path / "read", root=root, size=32, columns={"patient": header})
    assert (read["studies_without_a_patient"], read["likely_patient_columns"]) == (0, {})
    assert "Warning" not in format_preparation(read)
    assert "No patient and no image is in two splits. `splits.csv`" in (tmp_path / "read" / "README.md").read_text()
    split_of_uid = dict(line.split(",") for line in (tmp_path / "read" / "splits.csv").read_text().splitlines()[1:])
    assert all(len({split_of_uid[f"s{i}"] for i in range(4 * p, 4 * p + 4)}) == 1 for p in range(5))


def test_patients_whom_published_splits_or_a_split_file_part_are_counted_too(tmp_path):
    root = patient_table(tmp_path, split=lambda i: "test" if i in (0, 4) else "train")
    preparation = prepare("table", tmp_path / "published", root=root, size=32)
    assert preparation["likely_patient_columns"]["Subject ID"]["in_several_splits"] == 2
    lines = (f"s{i},{'test' if i < 2 else 'train'}\n" for i in range(9))
    (tmp_path / "s.csv").write_text("uid,split\n" + "".join(lines))
    preparation = prepare("table", tmp_path / "file", root=root, size=32, split_file=tmp_path / "s.csv")
    told = {"with_several_studies": 2, "in_several_splits": 1}
    assert preparation["likely_patient_columns"]["Subject ID"] == told


@pytest.mark.parametrize("header", ["PatientAge", "patient_sex", "Manufacturer", "report_id", "subjective"])
def test_other_columns_are_not_taken_for_patients(tmp_path, header):
    preparation = prepare("table", tmp_path / "out", root=patient_table(tmp_path, header), size=32)
    assert preparation["likely_patient_columns"] == {}
    assert format_preparation(preparation).splitlines()[-1].endswith(f"{SEVERAL}.")


def test_a_likely_column_that_holds_no_text_is_no_error(tmp_path):
    noise().save(tmp_path / "a.png")
    row = {"uid": "a", "frontal": "a.png", "impression": "Normal.", "subject": {"reference": "Patient/1"}}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    assert prepare("table", tmp_path / "out", root=tmp_path / "t.jsonl", size=32)["likely_patient_columns"] == {}


def test_studies_of_unnamed_patients_are_counted_and_told(tmp_path, root):
    for name in "abc":
        noise(seed=ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("uid,frontal,impression,patient\ns,a.png,N.,\nt,b.png,N.,p\nu,c.png,N.,\n")
    preparation = prepare("table", tmp_path / "out", root=tmp_path / "t.csv", size=32)
    assert preparation["studies_without_a_patient"] == 2
    told = "two splits is not known: 2 of 3 studies name no patient, and each of these counts as a patient of its own."
    assert told in (tmp_path / "out" / "README.md").read_text()
    assert format_preparation(preparation).endswith(f"Warning: 2 of 3 studies name no patient, so {SEVERAL}.")
    for source, options in (("kaggle", {"root": root}), ("phantom", {"num_studies": 3})):
        preparation = prepare(source, tmp_path / source, size=32, **options)
        assert (preparation["studies_without_a_patient"], preparation["likely_patient_columns"]) == (0, {})
        assert "Warning" not in format_preparation(preparation)


def test_a_path_too_long_for_the_system_leaves_its_study_out(tmp_path, root):
    deep = "/".join(["d" * 200] * 30)[:4090]
    table = patient_table(tmp_path, extra=f"long,{deep},x,,\nname,{'n' * 252}.png,x,,")
    prepare("table", tmp_path / "out", root=table, size=32)
    assert set(rejects_of(tmp_path / "out")) == {"long", "name"}
    assert rejects_of(tmp_path / "out")["long"].endswith("File name too long")
    (root / "images" / "images_normalized").mkdir()
    listing = root / "indiana_projections.csv"
    listing.write_text(listing.read_text() + f"\n2,{'n' * 300}.png,Lateral")
    prepare("kaggle", tmp_path / "kaggle", root=root, size=32)
    assert rejects_of(tmp_path / "kaggle")["2"].endswith("File name too long")
    for path in (root / "images").glob("*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="none of the images"):
        prepare("kaggle", tmp_path / "none", root=root, size=32)


def test_a_plan_counts_the_rows_that_prepare_writes(tmp_path):
    for name in "abc":
        noise(seed=ord(name)).save(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("uid,frontal,lateral,impression\ns,a.png;b.png,c.png,Normal.\n")
    options = {"root": tmp_path / "t.csv", "pairs": "all"}
    assert plan("table", **options)["splits"] == prepare("table", tmp_path / "out", size=32, **options)["splits"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 studies in 2 rows" in card


@pytest.mark.parametrize("num_proc", [0, -1])
def test_an_impossible_number_of_processes_is_an_error(tmp_path, num_proc):
    with pytest.raises(ValueError, match="num_proc must be at least 1"):
        prepare("phantom", tmp_path / "out", num_studies=3, size=32, num_proc=num_proc)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="out: cannot be made"):
        prepare("phantom", tmp_path / "file" / "out", num_studies=3, size=32)
    assert (tmp_path / "file").read_text() == ""


def run_prepare(out: Path, **options) -> subprocess.Popen:
    code = f"{LISTEN}from hf_cxr.data.prepare import prepare; prepare('phantom', {str(out)!r}, **{options!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(hf_cxr.__file__).parents[1], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("num_proc", [1, 2])
def test_an_interruption_half_way_leaves_what_was_read_and_no_process(tmp_path, num_proc, sent):
    process = run_prepare(tmp_path / "out", num_studies=5_000, size=64, num_proc=num_proc)
    deadline = time.monotonic() + 60
    while not [file for file in tmp_path.glob(".hf-cxr-*/journal.jsonl") if b"image" in file.read_bytes()]:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    readers = psutil.Process(process.pid).children()
    os.killpg(process.pid, sent)  # as a terminal or a scheduler does
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(readers) == (num_proc if num_proc > 1 else 0)
    assert psutil.wait_procs(readers, timeout=10)[1] == []
    with pytest.raises(FileExistsError, match=r"images? of an interrupted run (is|are) kept"):
        prepare("phantom", tmp_path / "out", num_studies=3, size=32)
    prepare("phantom", tmp_path / "out", num_studies=3, size=32, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_of_two_processes_with_the_same_folder_one_wins_and_the_other_says_so(tmp_path):
    both = [run_prepare(tmp_path / "out", num_studies=40, size=64) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 1], errors
    said = ("holds files already", "another process is preparing it", "another process has just finished preparing it")
    assert any("FileExistsError" in text and any(words in text for words in said) for text in errors)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(rows_of(tmp_path / "out", tmp_path)) == 40


# load_studies


def test_what_load_studies_and_plan_take_is_in_their_signatures():
    shown = {name: p.default for name, p in inspect.signature(prepare).parameters.items()}
    common = {name: shown[name] for name in shown.keys() - {"out", "num_proc", "scheduler", "resume", "overwrite"}}
    assert len(common) == 11
    for function in (load_studies, plan):
        signature = inspect.signature(function)
        assert {name: p.default for name, p in signature.parameters.items()}.items() >= common.items()
        assert list(signature.parameters)[-1] == "options"
        for setting in common.keys() - {"source", "options"}:
            assert f"{setting}:" in pydoc.render_doc(function)
    with pytest.raises(ValueError, match="size must be a number of pixels"):
        load_studies("phantom", size=2.5)


def test_load_studies_follows_the_files_of_the_collection(root, tmp_path):
    def load():
        return load_studies("kaggle", root=root, size=32, cache_dir=tmp_path / "cache")

    def impressions(dataset):
        return {row["uid"]: row["impression"] for split in dataset.values() for row in split}

    first = load()
    assert not list((tmp_path / "cache").rglob("images.bin"))
    assert load()["train"].cache_files == first["train"].cache_files  # built once
    assert "in the source" in first["train"].info.description
    assert first["train"].features == FEATURES
    table = root / "indiana_reports.csv"
    table.write_text(table.read_text().replace("Normal chest 1.", "Changed."))
    assert impressions(load())["1"] == "Changed."
    noise(20, 20).save(root / "images" / "1_Frontal.png")
    sizes = {row["uid"]: row["frontal"].size for split in load().values() for row in split}
    assert sizes["1"] == (20, 20)


def test_a_changed_split_file_or_table_of_views_is_another_dataset(root, tmp_path):
    def mark(**options):
        return PreparationConfig("kaggle", {"root": str(root)}, **options).fingerprint()

    table, views = tmp_path / "s.csv", tmp_path / "v.csv"
    table.write_text("uid,split\n1,test\n")
    views.write_text("image,view\n1_Frontal.png,PA\n")
    marks = [mark(), mark(split_file=table), mark(views=views), mark(seed=1)]
    table.write_text("uid,split\n1,train\n")
    views.write_text("image,view\n1_Frontal.png,LL\n")
    marks += [mark(split_file=table), mark(views=views)]
    assert len(set(marks)) == len(marks)
    assert mark() == marks[0]


def test_load_studies_follows_what_a_preset_says_of_the_collection(tmp_path):
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "1.png")
    (tmp_path / "t.csv").write_text("uid,frontal,impression\n1,1.png,Normal.\n")
    for licence in ("mit", "cc-by-4.0"):
        says = f"name: Mine\nlicence: {licence}\nlanguage: en\ndocument: x\ncolumns:"
        says += " {uid: uid, frontal: frontal, impression: impression}\n"
        (tmp_path / "mine.yaml").write_text(says)
        preset = {"root": tmp_path / "t.csv", "preset": tmp_path / "mine.yaml", "size": 32}
        load_studies("table", **preset, cache_dir=tmp_path / "cache")
    folders = (tmp_path / "cache" / "hf_cxr_table").glob("*/prepare.json")
    found = [json.loads(file.read_text())["collection"]["licence"] for file in folders]
    assert sorted(found) == ["cc-by-4.0", "mit"]


def test_load_studies_and_prepare_hold_the_same_rows(phantom, tmp_path):
    _, out = phantom
    cached = load_studies("phantom", **PHANTOM, cache_dir=tmp_path / "cache")
    stored = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "stored"))
    assert cached.keys() == stored.keys()
    for name in stored:
        for mine, theirs in zip(cached[name], stored[name], strict=True):
            for view in ("frontal", "lateral"):
                assert (mine[view] is None) == (theirs[view] is None)
                assert mine.pop(view) == theirs.pop(view)
            assert mine == theirs


def test_those_who_load_a_collection_at_the_same_moment_prepare_it_once(tmp_path):
    def load(_):
        return load_studies("phantom", **PHANTOM, cache_dir=tmp_path)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(load, range(2))
    assert first["train"].cache_files == second["train"].cache_files
    assert len(list(tmp_path.rglob("prepare.json"))) == 1


def test_an_unknown_source_is_a_one_line_error(tmp_path):
    for call in (lambda: prepare("fantom", tmp_path / "out"), lambda: load_studies("fantom", cache_dir=tmp_path)):
        with pytest.raises(ValueError, match=r"unknown source 'fantom'.*did you mean 'phantom'"):
            call()
    assert list(tmp_path.iterdir()) == []
