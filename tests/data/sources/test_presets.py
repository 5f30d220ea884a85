"""Every preset reads a tree of its published form in one command, and finds in it what the maker of the tree knows."""

import csv
import json
import re
from collections import Counter
from importlib import import_module
from pathlib import Path

import datasets
import pytest
import yaml
from forms.truth import pixels, write, write_csv
from helpers import ROOT

from hf_cxr.cli.parser import main
from hf_cxr.data.licences import check_may_be_public
from hf_cxr.data.sources import preset, table
from hf_cxr.data.study import clean_text

NUMBER = 200


@pytest.fixture(scope="module", params=preset.names())
def prepared(request, tmp_path_factory):
    """(name of the preset, the tree, what its maker knows, the dataset folder, what the command needed)."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    form = import_module(f"forms.{name}")
    truth = form.make(folder, NUMBER, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [
            "prepare",
            "table",
            "--preset",
            name,
            "--section",
            "impression",
            *form.OPTIONS,
            "--out",
            "out",
            "--size",
            "64",
        ]
        assert main(words) == 0
    return name, folder, truth, folder / "out", form.OPTIONS


def read(name: str, folder: Path, words: list[str]) -> list:
    given = dict(zip(words[::2], words[1::2], strict=True))
    images = folder / given["--images"] if "--images" in given else None
    return list(table.studies(folder / given["--root"], preset=name, images=images))


def test_the_records_are_those_that_the_maker_of_the_tree_knows(prepared):
    name, folder, truth, _, words = prepared
    studies = read(name, folder, words)
    assert [study.uid for study in studies] == [known.uid for known in truth]
    for study, known in zip(studies, truth, strict=True):
        assert study.problem == ""
        images = [(image.name, image.view, image.projection) for image in study.images]
        assert images == known.images
        assert {part: getattr(study, part) for part in known.texts} == known.texts
        assert (study.patient, study.split, study.tags) == (known.patient, known.split, known.tags)
        assert (study.age, study.sex) == (pytest.approx(known.age), known.sex)
    of_patient: dict[str, list] = {}
    for study, known in zip(studies, truth, strict=True):
        of_patient.setdefault(known.patient, []).append((known.turn, study.time))
    for turns in of_patient.values():
        times = [time for turn, time in sorted(turns) if turn >= 0]
        assert times == sorted(times)
        assert len(set(times)) == len(times)


def test_every_record_is_counted_and_what_is_left_out_is_what_has_no_text_or_no_image(prepared):
    _, _, truth, out, _ = prepared
    report = json.loads((out / "prepare.json").read_text())
    rejected = {r["uid"]: r for r in map(json.loads, (out / "rejects.jsonl").read_text().splitlines())}
    left_out = {known.uid: known.left_out for known in truth if known.left_out}
    assert left_out.keys() == rejected.keys()
    steps = {uid: step for uid, step in left_out.items() if step != "neither"}
    assert {uid: rejected[uid]["step"] for uid in steps} == steps
    assert report["steps"][0]["kept"] == len(truth) == sum(report["studies"].values()) + len(rejected)
    assert report["options"]["source_options"]["preset"] == _name(out)
    assert all("--images names another" in r["reason"] for r in rejected.values() if "file missing" in r["reason"])


def _name(out: Path) -> str:
    return next(name for name in preset.names() if name in str(out))


def test_texts_splits_patients_and_views_of_the_dataset_are_those_of_the_tree(prepared):
    _, _, truth, out, _ = prepared
    dataset = datasets.load_dataset(str(out))
    rows = {
        row["uid"]: (split, row)
        for split, found in dataset.items()
        for row in found.remove_columns(["frontal", "lateral"])
    }
    kept = {known.uid: known for known in truth if not known.left_out}
    assert rows.keys() == kept.keys()
    splits: dict[str, set] = {}
    for uid, known in kept.items():
        split, row = rows[uid]
        assert [row[part] for part in ("impression", "findings")] == [
            clean_text(known.texts.get(part, "")) for part in ("impression", "findings")
        ]
        assert tuple(row["tags"]) == known.tags
        assert known.split in (None, split)
        splits.setdefault(known.patient, set()).add(split)
    assert {len(found) for found in splits.values()} == {1}
    with (out / "images.csv").open(encoding="utf-8") as stream:
        listed = list(csv.DictReader(stream))
    assert len(listed) == sum(len(known.images) for known in truth)
    views = {(row["uid"], row["image"]): row for row in listed}
    for uid, known in kept.items():
        for image, view, projection in known.images:
            row = views[uid, image]
            assert row["view"] == view if view else float(row["confidence"]) < 1
            if row["use"] == "used" and view == "frontal":
                assert rows[uid][1]["projection"] == projection
            assert row["use"] != "used" or view != "neither"
    assert Counter(row["use"] for row in listed)["used"] >= len(kept)


def test_card_and_report_tell_the_collection_its_licence_and_its_language_and_no_copy_may_be_public(prepared):
    name, _, _, out, _ = prepared
    facts = table.collection(preset=name)
    card = (out / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert head["language"] == facts.language
    assert facts.licence in (head["license"], head.get("license_name"))
    assert facts.name in card
    assert facts.note in card
    assert json.loads((out / "prepare.json").read_text(encoding="utf-8"))["collection"]["name"] == facts.name
    with pytest.raises(ValueError, match="licence"):
        check_may_be_public(out)


def test_a_preset_names_its_collection_licence_language_and_the_document_of_its_columns():
    for name in preset.names():
        known = preset.read_preset(name)
        facts = table.collection(preset=name)
        assert facts == known.collection
        assert known.document.startswith("https://")
        assert facts.language == ("es" if name == "padchest" else "en")
        assert facts.note.count("**") == 2
        assert facts.limits.startswith("- ")
    assert table.collection().name == "your own collection"


OWN = """
name: Ours
licence: cc-by-4.0
columns: {uid: case, image: file, findings: text, view: pos, split: part, tags: found}
views: {Thorax front: PA, Leg: neither}
splits: {lern: train, prüf: test}
empty: [kein Befund]
placeholders: ["#NAME#"]
labels: [Edema, Mass]
"""


def test_the_preset_that_the_documentation_shows_can_be_read(tmp_path):
    (shown,) = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / "collections.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (tmp_path / "mine.yaml").write_text(shown, encoding="utf-8")
    (tmp_path / "t.csv").write_text(
        "case_number,patient_pseudonym,folder,file,path,position,position_dicom,beurteilung,befund,Erguss,Stauung\n"
        "1,p1,a,7,/x/20240131/y,,Thorax seitlich,#NAME# gesund.,kein Befund vorhanden,1,-1\n",
        encoding="utf-8",
    )
    (study,) = table.studies(tmp_path / "t.csv", preset=tmp_path / "mine.yaml")
    assert [(image.name, image.view) for image in study.images] == [("7.dcm", "lateral")]
    assert (study.impression, study.findings, study.tags) == ("XXXX gesund.", "", ("erguss",))
    assert (study.uncertain, study.time, study.patient) == (("stauung",), "20240131".zfill(14), "p1")


def test_studies_of_a_patient_are_put_in_order_of_time_whatever_the_order_of_the_rows(tmp_path):
    form = import_module("forms.chexpert_plus")
    truth = form.make(tmp_path, 24, seed=3)
    with (tmp_path / form.TABLE).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    write_csv(tmp_path / form.TABLE, reversed(rows))
    words = ["--root", str(tmp_path / form.TABLE), "--images", str(tmp_path / "PNG"), "--out", str(tmp_path / "out")]
    assert (
        main(["prepare", "table", "--preset", "chexpert_plus", *words, "--size", "64", "--section", "impression"]) == 0
    )
    uids = [uid for split in datasets.load_dataset(str(tmp_path / "out")).values() for uid in split["uid"]]
    patients = dict.fromkeys(known.patient for known in truth)
    kept = {patient: [k.uid for k in truth if k.patient == patient and not k.left_out] for patient in patients}
    assert {patient: [uid for uid in uids if uid.startswith(patient)] for patient in patients} == kept
    assert max(map(len, kept.values())) > 1


LABELS = "columns: {uid: case, image: file, findings: text, tags: found}\nlabels: [Edema, Mass]\nempty: [unclear]"


def labelled(tmp_path: Path, *cells: str) -> Path:
    lines = [f"{n},{n}.png,x,{said}\n" for n, said in enumerate(cells)]
    (tmp_path / "t.csv").write_text("case,file,text,Edema,Mass,found\n" + "".join(lines), encoding="utf-8")
    (tmp_path / "own.yaml").write_text(LABELS, encoding="utf-8")
    return tmp_path / "own.yaml"


def test_a_label_is_read_as_a_number_and_a_study_without_any_is_unlabelled(tmp_path):
    path = labelled(tmp_path, "1.00,-1.0,", "0,,", ",,", ",,normal", ",,nodule", "unclear,,")
    studies = table.studies(tmp_path / "t.csv", preset=path)
    told = [(study.tags, study.uncertain) for study in studies]
    unlabelled = (("unlabelled",), ())
    assert told == [(("edema",), ("mass",)), ((), ()), unlabelled, ((), ()), (("nodule",), ()), unlabelled]


@pytest.mark.parametrize("cell", ["True", "yes", "2", "1e0x"])
def test_a_label_that_is_no_label_is_refused_with_its_place(tmp_path, cell):
    path = labelled(tmp_path, "1,0,", f"0,{cell},")
    with pytest.raises(ValueError, match=rf"t\.csv, line 3: Mass is '{cell}', not 1, 0, -1 or empty"):
        list(table.studies(tmp_path / "t.csv", preset=path))


def test_no_finding_of_a_joined_label_file_is_a_label(tmp_path):
    known = preset.read_preset("chexpert_plus")
    (tmp_path / "t.csv").write_text(
        f"path_to_image,deid_patient_id,frontal_lateral,section_impression,{','.join(known.labels)}\n"
        f"train/patient1/study1/a.jpg,patient1,Frontal,x{',' * len(known.labels)}1.0\n",
        encoding="utf-8",
    )
    (study,) = table.studies(tmp_path / "t.csv", preset="chexpert_plus")
    assert known.labels[-1] == "No Finding"
    assert study.tags == ()


def test_placeholders_of_a_preset_are_marks_in_texts_alone(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "columns: {uid: case, image: file, findings: text, report: whole, patient: who}\nplaceholders: [ab]"
    )
    (tmp_path / "t.csv").write_text("case,file,text,whole,who\nab1,ab.png,By ab.,IMPRESSION: No ab.,pab\n")
    (study,) = table.studies(tmp_path / "t.csv", preset=tmp_path / "own.yaml")
    assert (study.uid, study.images[0].name, study.patient) == ("ab1", "ab.png", "pab")
    assert (study.findings, study.impression) == ("By XXXX.", "No XXXX.")


def test_for_images_alone_a_preset_of_ones_own_needs_no_column_of_texts(tmp_path):
    path = own(tmp_path)
    (tmp_path / "t.csv").write_text("case,file,pos\n1,a.png,L\n")
    assert [study.uid for study in table.studies(tmp_path / "t.csv", preset=path, texts=False)] == ["1"]


def own(tmp_path: Path, text: str = OWN) -> Path:
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "t.csv").write_text(
        "case,file,text,pos,part,found,Edema,Mass,impression\n"
        "1,a.png,Seen by #NAME#.,Thorax front,lern,nodule,1.0,-1,x\n"
        "1,b.png,,Leg,lern,,,,\n"
        "2,c.png,kein Befund,L,prüf,,0,,x\n",
        encoding="utf-8",
    )
    return tmp_path / "own.yaml"


def test_a_preset_of_ones_own_says_words_splits_labels_empty_cells_and_placeholders(tmp_path):
    path = own(tmp_path)
    first, second = table.studies(tmp_path / "t.csv", preset=path)
    assert [(image.view, image.projection) for image in first.images] == [("frontal", "PA"), ("neither", "")]
    assert (first.findings, second.findings, first.impression) == ("Seen by XXXX.", "", "")
    assert (first.split, second.split) == ("train", "test")
    assert (first.tags, first.uncertain, second.tags) == (("nodule", "edema"), ("mass",), ())
    assert table.collection(preset=path).licence == "cc-by-4.0"
    assert table.tables(tmp_path / "t.csv", preset=path) == [tmp_path / "t.csv", path]
    (other, _) = table.studies(
        tmp_path / "t.csv", preset=path, columns={"impression": "text", "findings": "impression"}
    )
    assert (other.impression, other.findings) == ("Seen by XXXX.", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colums: {}", "'colums' is none of .*; did you mean 'columns'"),
        ("columns: {impresion: a}", "columns: 'impresion' is none of .*; did you mean 'impression'"),
        ("columns: {uid: {from: a, patern: b}}", "column uid: 'patern' is none of from, pattern; did you mean"),
        ("columns: {uid: {from: a, pattern: '('}}", r"column uid: '\(' is no regular expression"),
        ("columns: {uid: 7}", "column uid: expected the name of a column"),
        ("columns: [a]", r"columns must be names with values \(`columns: {ours: theirs}`\)"),
        ("splits: [a]", r"splits must be names with values \(`splits: {theirs: ours}`\)"),
        ("views: {a: front}", "views: 'a' is 'front', none of PA, AP, frontal, lateral, neither, unknown"),
        ("views: {a: latral}", r"own\.yaml, views: 'a' is 'latral', none of .*; did you mean 'lateral'"),
        (
            "splits: {p2: trian}",
            r"own\.yaml, splits: 'p2' is 'trian', none of train, validation, test; did you mean 'train'",
        ),
        ("placeholders: ['']", r"placeholders must not hold an empty text; got \[''\]"),
        ("labels: Edema", "labels must be a list of texts; got 'Edema'"),
        ("published_ids: sure", "published_ids must be true or false; got 'sure'"),
        ("name: [a]", r"name must be a text; got \['a'\]"),
        ("- a", "expected keys and values"),
        ("a: b: c", "not a YAML file"),
        ("columns: {image: fil, findings: text}", "no column 'fil'; .*did you mean 'file'.*wanted as image"),
        ("columns: {image: file, patient: mrn, findings: text}", "no column 'mrn'; .*wanted as patient"),
        ("columns: {image: file, findings: txt}", "no column 'txt'; .*did you mean 'text'.*wanted as findings"),
        ("columns: {image: file, findings: [text, impresion]}", "no column 'impresion'; .*did you mean 'impression'"),
        ("columns: {image: file, findings: text}\nlabels: [Edma]", "no column 'Edma'; .*mean 'Edema'.*a label"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_preset_is_told_in_one_line(tmp_path, text, message):
    path = own(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        list(table.studies(tmp_path / "t.csv", preset=path))
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_is_told_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"unknown preset 'chexpertplus': one of .*; did you mean 'chexpert_plus'"):
        preset.read_preset("chexpertplus")
    with pytest.raises(FileNotFoundError, match=r"no\.yaml: no such preset"):
        preset.read_preset(tmp_path / "no.yaml")


def test_the_help_names_every_preset_and_column(capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert all(name in told for name in (*preset.names(), *preset.COLUMNS))


def test_the_own_name_of_a_preset_stays_and_its_folder_does_not_leave_this_machine(tmp_path):
    path = own(tmp_path)
    for name in "abc":
        write(tmp_path / f"{name}.png", pixels(name))
    words = ["--root", str(tmp_path / "t.csv"), "--section", "findings", "--out", str(tmp_path / "out")]
    assert main(["prepare", "table", "--preset", str(path), *words]) == 0
    text = (tmp_path / "out" / "prepare.json").read_text(encoding="utf-8")
    assert json.loads(text)["options"]["source_options"] == {"preset": "own.yaml"}
    assert json.loads(text)["tables"].keys() == {"t.csv", "own.yaml"}
    assert str(tmp_path) not in text
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == "Ours"
