"""The collection in figures and images: one page, PNG files, and the same numbers as JSON."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import datasets
import pytest
from helpers import assert_fits_a_phone, copy_folder, told_more
from PIL import Image

from hf_cxr import metrics
from hf_cxr.data.prepare import prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.baselines import blind_predictions
from hf_cxr.explore import counts, explore, page
from hf_cxr.inference.labeler import positive_findings

datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def explored(phantom_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("explore") / "page"
    return explore(phantom_folder, out), out


@pytest.fixture(scope="module")
def rows(phantom_folder):
    return [row | {"split": name} for name, split in load_prepared(phantom_folder).items() for row in split]


def test_the_counts_are_those_of_the_dataset(explored, rows):
    facts, out = explored
    assert facts == json.loads((out / "explore.json").read_text())
    views = facts["views"]
    assert views["n"] == len(rows) == 238
    assert views["both"] == sum(bool(row["frontal"] and row["lateral"]) for row in rows)
    assert views["frontal only"] == sum(row["lateral"] is None for row in rows)
    assert views["lateral only"] == sum(row["frontal"] is None for row in rows)
    said = Counter(row["impression"] for row in rows).most_common(3)
    frequent = facts["frequent"]["rows"][:3]
    assert [(row["text"], row["count"]) for row in frequent] == said
    assert frequent[2]["cumulative"] == pytest.approx(sum(count for _, count in said) / len(rows))
    positive = Counter(name for row in rows for name in positive_findings(row["impression"]))
    assert {row["finding"]: row["positive"] for row in facts["findings"]["rows"] if row["positive"]} == positive


def test_the_baselines_are_those_of_the_evaluation(explored, phantom_folder):
    facts, _ = explored
    dataset = load_prepared(phantom_folder)
    train, validation, test = (list(dataset[name]["impression"]) for name in ("train", "validation", "test"))
    expected = blind_predictions(train, validation, len(test), 0)
    assert facts["baselines"]["n"] == len(test)
    assert [row["name"] for row in facts["baselines"]["rows"]] == list(expected)
    for row in facts["baselines"]["rows"]:
        assert row["bleu4"] == pytest.approx(metrics.corpus_bleu(expected[row["name"]], test)["bleu4"])


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.links, self.ids = [], [], Counter()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href", "xlink:href", "srcset") if values.get(name)]
        self.ids.update([values["id"]] if "id" in values else [])


def test_the_page_holds_all_it_shows_and_asks_for_nothing_outside(explored):
    _, out = explored
    text = (out / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert page.links
    assert [link[:60] for link in page.links if not link.startswith(("#", "data:"))] == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert max(page.ids.values()) == 1
    assert "<script" not in text
    assert not re.search(r"@import|url\(\s*['\"]?https?:", text)
    assert "prefers-color-scheme: dark" in text
    for sheet in ("normal", "views", "baselines"):
        assert any(sheet in path.name for path in (out / "figures").iterdir())
    for path in (out / "figures").iterdir():
        with Image.open(path) as image:
            image.load()


def test_the_page_fits_a_phone(explored):
    _, out = explored
    assert_fits_a_phone((out / "index.html").read_text())


def test_the_same_input_gives_the_same_bytes(explored, phantom_folder, tmp_path):
    _, out = explored
    explore(phantom_folder, tmp_path / "page")
    for path in out.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "page" / path.relative_to(out)).read_bytes(), path.name


def test_chosen_findings_get_the_contact_sheets(phantom_folder, tmp_path):
    facts = explore(phantom_folder, tmp_path / "page", findings=["cardiomegaly", "normal"], split="train")
    assert [sheet["finding"] for sheet in facts["contact_sheets"]] == ["cardiomegaly", "normal"]
    assert facts["views"]["n"] == len(load_prepared(phantom_folder)["train"])


@pytest.mark.parametrize(
    ("options", "what"),
    [({"findings": ["cardiomegali"]}, "cardiomegaly"), ({"split": "exam"}, "no split 'exam'")],
)
def test_what_is_not_there_is_named_and_nothing_is_written(phantom_folder, tmp_path, options, what):
    with pytest.raises(ValueError, match=what):
        explore(phantom_folder, tmp_path / "page", **options)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_is_replaced_and_anything_else_is_left_alone(phantom_folder, tmp_path):
    explore(phantom_folder, tmp_path / "page", split="test")
    explore(phantom_folder, tmp_path / "page", split="train")
    assert json.loads((tmp_path / "page" / "explore.json").read_text())["dataset"]["split"] == "train"
    (tmp_path / "page" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        explore(phantom_folder, tmp_path / "page")
    assert (tmp_path / "page" / "thesis.txt").read_text() == "years of work"


def test_a_dataset_of_an_earlier_version_is_explored_too(phantom_folder, tmp_path):
    old = copy_folder(phantom_folder, tmp_path / "old")
    for path in (old / "data").iterdir():
        table = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
        table.remove_columns(["patient", "frontal_confidence", "lateral_confidence"]).to_parquet(path)
    (old / "images.csv").unlink()
    assert explore(old, tmp_path / "page")["views"]["n"] == 238


def test_a_dataset_of_findings_alone_is_explored_by_its_findings(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "a.png")
    rows = "".join(f"s{i},a.png,Large nodule.\n" for i in (1, 2, 3))
    (tmp_path / "t.csv").write_text("uid,frontal,findings\n" + rows)
    prepare("table", tmp_path / "data", root=tmp_path / "t.csv", size=32, section="findings")
    facts = explore(tmp_path / "data", tmp_path / "page")
    assert facts["dataset"]["section"] == "findings"
    assert [(row["text"], row["count"]) for row in facts["frequent"]["rows"]] == [("Large nodule.", 3)]
    assert [row["finding"] for row in facts["findings"]["rows"] if row["positive"]] == ["nodule"]


@pytest.mark.parametrize(
    "left", [["test"], ["validation"], ["train"], ["train", "validation"], ["validation", "test"]]
)
def test_any_splits_that_there_are_are_explored(phantom_folder, tmp_path, left):
    some = copy_folder(phantom_folder, tmp_path / "some")
    for path in (some / "data").iterdir():
        if path.name.split("-")[0] not in left:
            path.unlink()
    facts = explore(some, tmp_path / "page")
    assert set(facts["n"]["splits"]) == set(left)


def test_uids_that_look_like_further_pairs_are_studies_of_their_own(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "a.png")
    rows = "".join(f"P#{i},a.png,Normal chest.\n" for i in (1, 2, 3))
    (tmp_path / "t.csv").write_text("uid,frontal,impression\n" + rows)
    prepare("table", tmp_path / "data", root=tmp_path / "t.csv", size=32)
    assert explore(tmp_path / "data", tmp_path / "page")["n"]["studies"] == 3


def test_real_studies_can_be_explored(iu, tmp_path):
    prepare("kaggle", tmp_path / "data", root=iu, size=64)
    facts = explore(tmp_path / "data", tmp_path / "page")
    assert facts["views"]["both"] == 5
    assert "No baselines" in (tmp_path / "page" / "index.html").read_text()


def studies(**columns):
    """Three splits from {column: {split: [...]}}; every study has an image of its own and a plain text."""
    made = {}
    for number, split in enumerate(("train", "validation", "test")):
        given = {name: values[split] for name, values in columns.items() if split in values}
        n = len(next(iter(given.values()), range(2)))
        grey = [Image.new("L", (12 + number, 10 + i), 40 * number + i) for i in range(n)]
        plain = {"uid": [f"{split}-{i}" for i in range(n)], "frontal": grey, "lateral": [None] * n}
        plain |= {"impression": ["Clear lungs."] * n}
        kinds = datasets.Features({name: datasets.Value("string") for name in (*plain, *given)})
        kinds |= {view: datasets.Image() for view in ("frontal", "lateral")}
        made[split] = datasets.Dataset.from_dict(plain | given, features=datasets.Features(kinds))
    return datasets.DatasetDict(made)


def test_what_the_splits_share_is_counted(tmp_path):
    image, train = Image.new("L", (9, 9), 200), ["Large nodule.", "Clear lungs."]
    dataset = studies(
        frontal={"train": [image, Image.new("L", (9, 9), 3)], "test": [image, Image.new("L", (9, 9), 4)]},
        impression={"train": train, "validation": ["Old scar.", "New scar."], "test": ["clear lungs", "Edema."]},
        patient={"train": ["a", "b"], "validation": ["c", "d"], "test": ["b", "e"]},
    )
    shared = explore(dataset, tmp_path / "page")["duplicates"]
    assert shared["images"]["across splits"] == 1
    assert shared["images"]["studies across splits"] == {"train": 1, "test": 1}
    assert shared["patients_across_splits"] == 1
    assert (shared["text"]["test"]["same"], shared["text"]["validation"]["same"]) == (1, 0)
    text = (tmp_path / "page" / "index.html").read_text()
    assert "50\N{NO-BREAK SPACE}% of the 2 test impressions also occur word for word in training" in text
    assert "1 image is in several splits" in text


@pytest.mark.parametrize(("patients", "said"), [("pqr", "not known"), ("ppq", "0")])
def test_of_patients_who_are_not_named_nothing_is_said(tmp_path, patients, said):
    dataset = studies(patient={"train": list(patients)})
    explore(dataset, tmp_path / "page", split="train")
    row = r"patients with studies in several splits</td><td>" + said + "<"
    assert re.search(row, (tmp_path / "page" / "index.html").read_text())


@pytest.mark.parametrize(("named", "count"), [("", None), ("P", 0)])
def test_the_preparation_report_says_whether_patients_are_known(tmp_path, named, count):
    Image.linear_gradient("L").save(tmp_path / "a.png")
    rows = "".join(f"s{i},a.png,Normal chest.,{named}\n" for i in (1, 2, 3))
    (tmp_path / "t.csv").write_text("uid,frontal,impression,patient\n" + rows)
    prepare("table", tmp_path / "data", root=tmp_path / "t.csv", size=32)
    assert explore(tmp_path / "data", tmp_path / "page")["duplicates"]["patients_across_splits"] == count


def test_a_second_pair_of_images_is_no_second_study(tmp_path):
    dataset = studies(uid={"train": ["7", "7#2", "8"]}, impression={"train": ["Edema.", "Edema.", "Scar."]})
    facts = explore(dataset, tmp_path / "page", split="train")
    assert (facts["n"]["studies"], facts["n"]["rows"], facts["images"]["counts"]) == (2, 3, [[1, 1], [2, 1]])
    assert facts["frequent"]["rows"] == []


def test_a_report_that_occurs_once_is_not_shown(tmp_path):
    texts = ["Clear lungs.", "Clear lungs.", "Bullet in the left shoulder."]
    facts = explore(studies(impression={"train": texts}), tmp_path / "page", split="train")
    assert [row["text"] for row in facts["frequent"]["rows"]] == ["Clear lungs."]
    assert "Bullet in" not in (tmp_path / "page" / "index.html").read_text()


def test_placeholders_are_counted_by_section(tmp_path):
    dataset = studies(
        impression={"train": ["XXXX XXXX edema.", "MAXXXIMAL."]}, indication={"train": ["XXXX-year-old", ""]}
    )
    placeholders = explore(dataset, tmp_path / "page", split="train")["placeholders"]
    assert placeholders["impression"] == {"n": 2, "with placeholders": 1, "placeholders": 2}
    assert placeholders["indication"] == {"n": 1, "with placeholders": 1, "placeholders": 1}


def test_collection_licence_language_and_placeholders_by_kind_are_on_the_page(tmp_path):
    with told_more():
        prepare("phantom", tmp_path / "data", size=16, num_studies=30)
    facts = explore(tmp_path / "data", tmp_path / "page")
    stated = {"source": "phantom", "collection": "Synthetic chest studies", "licence": "apache-2.0", "language": "en"}
    assert stated.items() <= facts["dataset"].items()
    assert facts["preparation"]["placeholders"] == {"___": 30}
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "Synthetic chest studies (read as phantom) · licence apache-2.0 · language en" in html
    assert "The texts as published hold ___ 30 times. No de-identification placeholder is left" in html


def test_words_of_a_hostile_dataset_do_not_become_part_of_the_page(tmp_path):
    text = '<script src="x"></script> $\\frac{1}{0}$ & "quoted".'
    dataset = studies(impression={"train": [text, text]}, uid={"train": ["<b>1</b>", "../2"]})
    explore(dataset, tmp_path / "page", findings=["normal"], split="train")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script" in page
    assert "<b>1</b>" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page"]


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        (
            {"impression": {name: ["", " "] for name in ("train", "validation", "test")}},
            "no study has an impression or findings",
        ),
        ({"frontal": {"train": [{"bytes": b"no image", "path": None}]}}, "frontal image of train-0"),
    ],
)
def test_a_study_that_cannot_be_used_is_named_in_one_line(tmp_path, columns, what):
    with pytest.raises(ValueError, match=what) as caught:
        explore(studies(**columns), tmp_path / "page")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_studies_without_the_section_are_left_out_of_what_is_said_of_texts(tmp_path):
    said = {"impression": {"train": ["Edema.", " ", "Normal."]}, "findings": {"train": ["Edema.", "Clear.", ""]}}
    facts = explore(studies(**said), tmp_path / "page", split="train")
    assert facts["dataset"]["section"] == "impression"
    assert facts["n"]["splits"] == {"train": 3, "validation": 2, "test": 2}
    assert (facts["findings"]["n"], facts["frequent"]["n"]) == (2, 2)
    assert [facts["text"][name]["n"] for name in ("impression", "findings")] == [2, 2]
    assert "1 study has no impression and is left out" in (tmp_path / "page" / "index.html").read_text()


def test_an_empty_dataset_is_refused(tmp_path):
    nothing = studies()["train"].select([])
    with pytest.raises(ValueError, match="no studies"):
        explore(datasets.DatasetDict({"train": nothing}), tmp_path / "page")


def test_a_failure_half_way_keeps_the_earlier_result(tmp_path, monkeypatch):
    explore(studies(), tmp_path / "page", split="train")
    before = (tmp_path / "page" / "explore.json").read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("hf_cxr.explore.page.page", full)
    with pytest.raises(OSError, match="no space"):
        explore(studies(), tmp_path / "page", split="test")
    assert (tmp_path / "page" / "explore.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_findings_pretraining_and_the_page_ask_for_as_many_positives():
    from hf_cxr.explore.counts import ENOUGH
    from hf_cxr.training.findings_pretraining import MIN_POSITIVES

    assert ENOUGH == MIN_POSITIVES


def test_of_findings_in_another_language_it_says_only_that_they_cannot_be_read(tmp_path):
    texts = ["Sin hallazgos.", "Cardiomegalia y atelectasia."]
    made = studies(impression=dict.fromkeys(("train", "validation", "test"), texts))
    facts = explore(made, tmp_path / "page")
    assert facts["findings_unread"] == "the texts do not look English"
    said, html = facts["sentences"], (tmp_path / "page/index.html").read_text(encoding="utf-8")
    assert said["findings"].startswith("Findings cannot be read from these texts, as the texts do not look English")
    assert said["together"] == ""
    assert "F1" not in said["baselines"]
    for word in ("normal studies", "Findings together", "<th>present</th>", "<th>finding F1"):
        assert word not in html


def test_texts_that_say_neither_normal_nor_abnormal_are_counted_as_unknown():
    texts = ["As above.", "Normal chest.", "Cardiomegaly.", "Pneumothorax."]
    found = counts._findings(texts, {"train": texts, "test": texts[1:]})
    assert [found[name]["n"] for name in ("normal", "unknown")] == [1, 1]
    assert found["unknown"]["by_split"] == {"train": 1, "test": 0}
    assert "say neither" in page._findings({"findings": found, "n": {"splits": {}}})
