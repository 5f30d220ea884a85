"""`hf-cxr predict --csv` reads a table as `hf-cxr prepare table` does, with the same options."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import TEXTS, radiograph, talkative
from PIL import Image

import hf_cxr
from hf_cxr.cli.parser import main
from hf_cxr.inference.sections import Layout
from hf_cxr.models.modeling import build


@pytest.fixture
def images(tmp_path) -> dict[str, bytes]:
    folder = tmp_path / "films"
    folder.mkdir()
    contents = {}
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(radiograph(ord(name[0]))).save(stream := io.BytesIO(), "PNG")
        contents[name] = stream.getvalue()
        (folder / name).write_bytes(contents[name])
    return contents


@pytest.fixture
def told(talkative_run, capsys):
    """Runs predict with `--json`; returns its status, uid → answer in order, and stderr."""

    def run(*words):
        status = main(["predict", str(talkative_run), *map(str, words), "--json"])
        captured = capsys.readouterr()
        answers = [json.loads(line) for line in captured.out.splitlines()]
        return status, {answer.pop("uid"): answer for answer in answers if "uid" in answer} or answers, captured.err

    return run


def test_every_way_to_list_the_same_images_gives_the_same_texts(told, images, tmp_path):
    films = tmp_path / "films"
    pair = ("--frontal", films / "a.png", "--lateral", films / "b.png")
    expected = {"1": told(*pair)[1][0], "2": told("--frontal", films / "c.png")[1][0]}
    assert expected["1"] != expected["2"]

    (tmp_path / "wide.csv").write_text("key;pa;lat\n1;a.png;b.png\n2;c.png;nan\n")
    named = ("--columns", "uid=key", "frontal=pa", "lateral=lat", "--images", films)
    assert told("--csv", tmp_path / "wide.csv", *named) == (0, expected, "")

    (tmp_path / "long.tsv").write_text("uid\timage\tview\n2\tc.jpg\tAP\n1\tb.png\tLL\n1\ta\tPA\n", encoding="utf-16")
    status, found, _ = told("--csv", tmp_path / "long.tsv", "--images", films)
    assert (status, found) == (0, expected)
    assert list(found) == ["2", "1"]

    lists = {"uid": ["1", "2"], "views": [["PA", "LATERAL"], ["PA"]]}
    lists["images"] = pa.array(
        [[{"bytes": images["a.png"]}, {"bytes": images["b.png"]}], [{"bytes": images["c.png"]}]]
    )
    pq.write_table(pa.table(lists), tmp_path / "t-00000-of-00001.parquet")
    assert told("--csv", tmp_path / "t-*.parquet")[:2] == (0, expected)

    (tmp_path / "mine.yaml").write_text(
        "columns: {uid: Schlüssel, image: Bild, view: Aufnahme}\nviews: {von vorn: PA}\n"
    )
    text = "Schlüssel,Bild,Aufnahme\n1,films/a.png,von vorn\n1,films/b.png,lateral\n2,films/c.png,von vorn\n"
    (tmp_path / "cp.csv").write_bytes(text.encode("cp1252"))
    preset = ("--preset", tmp_path / "mine.yaml", "--encoding", "cp1252")
    assert told("--csv", tmp_path / "cp.csv", *preset)[:2] == (0, expected)


def test_context_columns_of_a_table_are_read(images, tmp_path, capsys):
    torch.manual_seed(0)
    layout = Layout(("impression",), ("indication", "age_sex"))
    checkpoint = talkative(build("tiny", "tiny", 32, TEXTS, 350, 12, layout=layout))
    checkpoint.save_pretrained(tmp_path / "run")
    asked = [("a", "Cough", 63, "F"), ("a", "Pain after a fall", "", ""), ("a", "", 5, "M"), ("a", "", "", "")]
    lines = [f"{number},films/{name}.png,{','.join(map(str, rest))}" for number, (name, *rest) in enumerate(asked)]
    (tmp_path / "t.csv").write_text("\n".join(["uid,frontal,indication,age,sex", *lines]) + "\n")
    assert main(["predict", str(tmp_path / "run"), "--csv", str(tmp_path / "t.csv"), "--json"]) == 0
    captured = capsys.readouterr()
    found = [json.loads(line)["impression"] for line in captured.out.splitlines()]
    names = ("frontal", "indication", "age", "sex")
    studies = [dict(zip(names, (images["a.png"], *rest), strict=True)) for _, *rest in asked]
    given = [{name: value for name, value in study.items() if value != ""} for study in studies]
    assert found == [row["impression"] for [row] in hf_cxr.predict(checkpoint, given)]
    assert len(set(found)) == len(asked), "the same image: the texts differ by the context"
    assert "does not take" not in captured.err


def test_studies_that_cannot_be_read_are_answered_in_their_place_and_counted(told, images, tmp_path):
    lines = [
        "uid,image,view",
        "1,films/a.png,PA",
        "2,films/none.png,PA",
        "3,,",
        "4,films/b.png,oblique",
        "5,films/c.png,PA",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    status, found, stderr = told("--csv", tmp_path / "t.csv", "--batch-size", 2)
    assert list(found) == ["1", "2", "3", "4", "5"]
    assert ["error" in answer for answer in found.values()] == [False, True, True, True, False]
    assert "image file missing" in found["2"]["error"]
    assert "--images" in found["2"]["error"]
    assert "no image" in found["3"]["error"]
    assert "no frontal or lateral image" in found["4"]["error"]
    assert status == 2
    assert stderr.splitlines()[-1] == "hf-cxr predict: 3 of 5 studies could not be read"


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("uid,frontal\n", (), "t.csv: no study in it"),
        ("uid,text\n1,a\n", (), "t.csv: no column 'frontal' nor 'lateral'"),
        ("uid,frontal\n1,a.png\n", ("--columns", "frontal"), "--columns frontal: expected OURS=YOURS"),
        ("uid,frontal\n1,a.png\n", ("--images", "nowhere"), "nowhere: no such folder of images"),
        ("uid,frontal\n1,a.png\n1,b.png\n", (), "uid '1' occurs twice"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(run_folder, tmp_path, capsys, text, words, said):
    (tmp_path / "t.csv").write_text(text)
    assert main(["predict", str(run_folder), "--csv", str(tmp_path / "t.csv"), *words]) == 2
    stderr = capsys.readouterr().err
    assert said in stderr
    assert len(stderr.splitlines()) == 1
