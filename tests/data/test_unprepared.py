"""Studies of a table go to the pipeline with the images that `prepare` would take, wherever these lie."""

import csv
import io
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_cxr.data.prepare import prepare
from hf_cxr.data.sources import phantom, table
from hf_cxr.data.unprepared import views_of
from hf_cxr.inference.views import VIEWS, UnreadableImage

STUDIES = 4
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    """Name → PNG; the first image of each study is its lateral view, and no name says so."""
    images = {}
    for study in range(STUDIES):
        for number, view in enumerate(("lateral", "frontal")):
            phantom.draw(0, study, view, 96).save(stream := io.BytesIO(), "PNG")
            images[f"s{study}_{number}.png"] = stream.getvalue()
    return images


def a_table(folder: Path, drawn: dict[str, bytes], form: str) -> dict:
    """A table of these images; the options that read it."""
    rows = [{"uid": name[:2], "image": name, "impression": "Clear."} for name in drawn]
    if form == "parquet":
        columns = {name: [row[name] for row in rows] for name in ("uid", "impression")}
        columns["image"] = pa.array([{"bytes": drawn[row["image"]], "path": row["image"]} for row in rows], IMAGE)
        pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=3)
        return {"root": folder / "t.parquet"}
    if form == "zip":
        with zipfile.ZipFile(folder / "0.zip", "w") as archive:
            for name in reversed(drawn):
                archive.writestr(name, drawn[name])
    elif form == "address":
        fsspec.filesystem("memory").pipe({f"/unprepared/{name}": content for name, content in drawn.items()})
    else:
        for name, content in drawn.items():
            (folder / name).write_bytes(content)
    with (folder / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("uid", "image", "impression"))
        writer.writeheader()
        writer.writerows(rows)
    return {"root": folder / "t.csv"} | ({"images": "memory://unprepared"} if form == "address" else {})


def content_of(source) -> bytes:
    return source if isinstance(source, bytes) else Path(source).read_bytes()


@pytest.mark.parametrize("form", ["files", "parquet", "zip", "address"])
def test_views_are_those_that_prepare_decides_wherever_the_images_lie(drawn, tmp_path, form):
    options = a_table(tmp_path, drawn, form)
    prepare("table", tmp_path / "out", size=96, **options)
    with (tmp_path / "out" / "images.csv").open() as stream:
        decided = {(row["uid"], row["view"]): row["image"] for row in csv.DictReader(stream)}
    assert {name for (_, view), name in decided.items() if view == "frontal"} == {
        f"s{n}_1.png" for n in range(STUDIES)
    }

    found = dict(views_of(list(table.studies(**options))))
    order = [f"s{n}" for n in range(STUDIES)]
    assert list(found) == (order[::-1] if form == "zip" else order)  # a zip is read in its own order
    for uid, views in found.items():
        assert {view: content_of(source) for view, source in views.items() if view in VIEWS} == {
            view: drawn[decided[uid, view]] for view in ("frontal", "lateral")
        }


def test_what_cannot_be_read_is_told_of_its_study_alone(drawn, tmp_path):
    a_table(tmp_path, drawn, "files")
    (tmp_path / "s1_0.png").write_bytes(b"no image")
    (tmp_path / "s2_1.png").unlink()
    lines = [
        "uid,frontal,lateral",
        "whole,s0_1.png,",
        "bad,,s1_0.png",
        "gone,s2_1.png,s2_0.png",
        "none,,",
        ",s3_1.png,",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="no column 'impression' nor 'findings'"):
        list(table.studies(tmp_path / "t.csv"))
    found = dict(views_of(list(table.studies(tmp_path / "t.csv", texts=False))))
    assert list(found) == ["whole", "bad", "gone", "none", "line 6"]
    assert found["whole"]["lateral"] is None
    assert found["bad"]["lateral"] == tmp_path / "s1_0.png"  # whose reading tells what is wrong
    for uid, said in (("gone", r"image file missing.*s2_1\.png.*frontal"), ("none", "no image"), ("line 6", "no uid")):
        assert isinstance(found[uid], UnreadableImage)
        with pytest.raises(UnreadableImage, match=said):
            raise found[uid]


def test_an_undecided_image_that_cannot_be_read_leaves_the_other_one(drawn, tmp_path):
    options = a_table(tmp_path, drawn, "files")
    (tmp_path / "s1_0.png").write_bytes(b"no image")
    (tmp_path / "s2_0.png").unlink()
    found = dict(views_of(list(table.studies(**options))))
    prepare("table", tmp_path / "out", size=96, **options)
    kept = {row["uid"] for row in csv.DictReader((tmp_path / "out" / "splits.csv").open())}
    assert {uid for uid, views in found.items() if isinstance(views, dict)} == kept
    with pytest.raises(UnreadableImage, match=r"image file missing.*s2_0\.png"):
        raise found["s2"]


def test_an_image_that_is_not_at_its_address_is_missing(drawn, tmp_path):
    options = a_table(tmp_path, drawn, "address")
    fsspec.filesystem("memory").rm("/unprepared/s2_1.png")
    found = dict(views_of(list(table.studies(**options))))
    assert [isinstance(views, dict) for views in found.values()] == [True, True, False, True]
    with pytest.raises(UnreadableImage, match=r"image file missing.*s2_1\.png"):
        raise found["s2"]
