"""What tells who a patient is does not leave: ids of studies become salted hashes, names and numbers stop a push."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import LISTEN, copy_folder
from PIL import Image

from hf_cxr.data.prepare import prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources import phantom_text
from hf_cxr.hub import pseudonyms
from hf_cxr.hub.patients import PatientsToldOf, check_texts

STUDIES = 40


def accession(number: int) -> str:
    return f"ACC70{number:04d}"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """A table of a hospital: 40 studies of 20 patients by accession number, some in two rows; the prepared dataset."""
    folder = tmp_path_factory.mktemp("hospital")
    with (folder / "table.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(("accession", "mrn", "frontal", "lateral", "impression"))
        for number in range(STUDIES):
            names = [f"{number}_{copy}.png" for copy in range(3 if number % 4 == 0 else 1)]
            for seed, name in enumerate(names, start=3 * number):
                pixels = np.random.default_rng(seed).integers(0, 256, (20, 20), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / name)
            impression = phantom_text.report(phantom_text.plan(1, number))[0]
            patient = f"M{number // 2:05d}"
            rows.writerow((accession(number), patient, ";".join(names[:2]), ";".join(names[2:]), impression))
    columns = {"uid": "accession", "patient": "mrn"}
    prepare("table", folder / "data", root=folder / "table.csv", columns=columns, size=16, pairs="all")
    return folder / "data"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows_of(folder, files=None):
    for name, data in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    tables = [pq.read_table(path) for path in sorted((folder / "data").glob("*.parquet"))]
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(scope="module")
def pushed(ask, site, hospital, tmp_path_factory):
    """What is on the Hub after a push, as a folder; the files at home before it."""
    before = content(hospital)
    status, _, told = ask("push", hospital, "user/hospital")
    assert (status, told) == (0, "")
    folder = tmp_path_factory.mktemp("pushed")
    return folder, rows_of(folder, site.files("user/hospital", "dataset")), before


# --- ids ---------------------------------------------------------------------------------------------------------


def test_ids_of_a_collection_that_does_not_publish_them_are_hashes_in_what_is_pushed(hospital, pushed):
    folder, there, _ = pushed
    here = rows_of(hospital)
    assert len(here) == STUDIES + STUDIES // 4
    assert all(re.fullmatch(r"s[0-9a-f]{16}(#2)?", row["uid"]) for row in there)
    assert [row["uid"].endswith("#2") for row in there] == [row["uid"].endswith("#2") for row in here]
    for name in ("uid", "patient"):
        pairs = {(a[name], b[name]) for a, b in zip(here, there, strict=True)}
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}), f"one {name} for one"
        assert all(a != b for a, b in pairs)
    for a, b in zip(here, there, strict=True):
        assert a | {"uid": 0, "patient": 0} == b | {"uid": 0, "patient": 0}
    for name, data in content(folder).items():
        assert not re.search(rb"ACC70\d{4}|M000\d\d\b", data), name


def test_what_is_pushed_is_a_whole_dataset_and_says_what_its_ids_are(hospital, pushed):
    folder, there, _ = pushed
    assert [row["uid"] for split in load_prepared(folder).values() for row in split.remove_columns(["frontal"])]
    with (folder / "splits.csv").open(newline="") as stream:
        listed = list(csv.DictReader(stream))
    assert {row["uid"] for row in listed} == {row["uid"] for row in there}
    facts, card = json.loads((folder / "prepare.json").read_text()), (folder / "README.md").read_text()
    assert facts["ids"] == "salted hashes"
    assert facts["splits_sha256"] == pseudonyms._sha256(folder / "splits.csv")
    assert facts["splits_sha256"] in card
    assert json.loads((hospital / "prepare.json").read_text())["splits_sha256"] not in card
    assert "| uid | a salted hash of its name in its source |" in card


def test_salt_and_map_stay_at_home_and_nothing_else_there_changes(hospital, pushed):
    folder, there, before = pushed
    assert content(hospital) == before
    home = pseudonyms.map_of(hospital)
    assert home.parent == hospital.parent
    assert home.stat().st_mode & 0o777 == 0o600
    known = json.loads(home.read_text())
    assert set(known["uid"]) == {accession(number) for number in range(STUDIES)}
    assert {row["uid"].removesuffix("#2") for row in there} == set(known["uid"].values())
    assert not any(known["salt"].encode() in data for data in content(folder).values())


def test_the_next_push_gives_the_same_hashes_and_another_dataset_others(ask, site, hospital, pushed, tmp_path):
    _, there, _ = pushed
    assert ask("push", hospital, "user/again")[0] == 0
    assert rows_of(tmp_path / "again", site.files("user/again", "dataset")) == there
    other = copy_folder(hospital, tmp_path / "other")
    copies = pseudonyms.hashed_copy(dict(_files(other)), other, tmp_path / "copy")
    assert copies["README.md"].is_relative_to(tmp_path / "copy")
    assert not {row["uid"] for row in rows_of(tmp_path / "copy")} & {row["uid"] for row in there}


def _files(folder):
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}.items()


def test_a_copy_from_the_hub_keeps_its_ids_and_published_ids_stay(ask, site, pushed, phantom_folder, tmp_path):
    assert not pseudonyms.wanted(pushed[0])
    assert not pseudonyms.wanted(phantom_folder)
    assert ask("push", phantom_folder, "user/phantom")[0] == 0
    assert not pseudonyms.map_of(phantom_folder).exists()
    assert rows_of(tmp_path, site.files("user/phantom", "dataset")) == rows_of(phantom_folder)


def test_an_interrupted_push_leaves_no_copy_behind(site, hospital, tmp_path):
    data = copy_folder(hospital, tmp_path / "data")
    site.log.clear()
    site.fail("lfs_upload", "hang")
    code = LISTEN + "import sys; from hf_cxr.cli.parser import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "push", str(data), "user/broken"]
    with subprocess.Popen(words, env=site.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as working:
        deadline = time.monotonic() + 100
        while ("lfs_upload", "user") not in site.log and time.monotonic() < deadline:
            time.sleep(0.05)
        copies = [path.name for path in tmp_path.iterdir() if path.name.startswith(".hf-cxr-")]
        working.send_signal(signal.SIGINT)
        assert working.communicate(timeout=30)[1].endswith("hf-cxr push: interrupted\n")
        site.heal()
    assert working.returncode == 130
    assert len(copies) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "data.ids.json"]


def test_a_map_that_lost_its_salt_stops_the_push(hospital, tmp_path):
    other = copy_folder(hospital, tmp_path / "other")
    pseudonyms.map_of(other).write_text('{"uid": {}}')
    with pytest.raises(ValueError, match=r"other\.ids\.json: holds no salt and map of ids"):
        pseudonyms.hashed_copy(dict(_files(other)), other, tmp_path / "copy")


def test_a_renamed_dataset_is_not_pushed_with_another_salt(hospital, tmp_path):
    data = copy_folder(hospital, tmp_path / "a")
    pseudonyms.hashed_copy(dict(_files(data)), data, tmp_path / "first")
    data = data.rename(tmp_path / "b")
    with pytest.raises(ValueError, match=r"a\.ids\.json: .* rename it to b\.ids\.json"):
        pseudonyms.hashed_copy(dict(_files(data)), data, tmp_path / "second")
    (tmp_path / "a.ids.json").rename(tmp_path / "b.ids.json")
    pseudonyms.hashed_copy(dict(_files(data)), data, tmp_path / "third")
    assert rows_of(tmp_path / "first") == rows_of(tmp_path / "third")


def test_no_two_patients_get_one_number():
    names = pseudonyms.Names({"salt": "00", "uid": {}, "patient": {}})
    names._digest = lambda kind, given: f"{int(kind.split()[1]):08x}"  # the same for all
    assert len({names.patient(given) for given in range(20)}) == 20


# --- texts -------------------------------------------------------------------------------------------------------

TOLD = {
    "names": [
        "Discussed with Dr. Miller at noon.",
        "DISCUSSED WITH DR. MILLER.",
        "Results were called to Dr O'Brien.",
        "Mrs. Jane Doe was seen again.",
        "Effusion. John A. Smith, M.D.",
        "Patient: Smith, John. Normal chest.",
        "Name: SMITH",
        "Electronically signed by Anna Berg",
        "Anna Berg is a 54-year-old woman with cough.",
        "SMITH^JOHN^A",
        "SMITH, JOHN M",
        "Reported by A. Kumar",
        "Befund besprochen mit Herr Müller.",
    ],
    "e-mail addresses": ["Write to john@hospital.org."],
    "record numbers": [
        "MRN: 123456, normal chest.",
        "Medical record number is 00-12345.",
        "Compare accession number A12345.",
        "Patient ID 44321.",
        "123-45-6789",
        "See CR20190044.",
        "Study 12345678 was compared.",
    ],
    "dates": [
        "DOB 3/4/50. Clear lungs.",
        "Date of birth: 1950.",
        "Born on 3 March 1950.",
        "Compared with 12/03/2010.",
        "Compared with 2010-12-03.",
        "March 3, 2010: clear.",
        "Geb. 03.04.1950",
    ],
    "telephone numbers": [
        "Call (555) 123-4567.",
        "Called at 555-123-4567.",
        "pager 5512",
        "Tel. 030 123456",
        "+44 20 7946 0958",
        "+49 30 1234567",
        "Phone: 555-1234",
    ],
}
CLEAR = [
    "XXXX-year-old XXXX with XXXX. Dr. XXXX was notified XXXX at XXXX.",
    "Discussed with Dr. ___ by telephone at 10:30 on ___.",
    "MR Angiography or CT is advised. MS is known. DR CHEST PA.",
    "1. 2.5 x 3.0 cm nodule. 2. T10-11-12 fractures. 3. No change, 10/12 ribs.",
    "Telephone report was given. The patient is a 54-year-old man.",
    "Heart size 12.5 cm; 2/3 collapse; 5-10 mm nodules; C1000; 100% oxygen.",
    "Patient rotated. Right Upper Lobe opacity. Swan-Ganz catheter. Port-A-Cath in place.",
    "May represent Kerley B lines. Since 2009 unchanged. Calcified since March.",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in TOLD.items() for text in texts])
def test_what_tells_of_a_patient_is_found(tmp_path, kind, text):
    with pytest.raises(PatientsToldOf, match=rf"\({kind} in 1 texts\)") as told:
        check_texts(tmp_path, ["Clear lungs.", text])
    assert len(told.value.examples) == 1


@pytest.mark.parametrize("text", CLEAR)
def test_placeholders_and_the_words_of_reports_are_no_patients(tmp_path, text):
    check_texts(tmp_path, [text])


def test_the_reports_of_the_indiana_collection_raise_no_alarm(iu, tmp_path):
    with (iu / "indiana_reports.csv").open(newline="", encoding="utf-8") as stream:
        columns = ("indication", "comparison", "findings", "impression")
        texts = {row[name] for row in csv.DictReader(stream) for name in columns} - {""}
    assert len(texts) == 7156
    check_texts(tmp_path, texts)


@pytest.mark.parametrize("text", ["A'", "A", "Dr. ", "Anna ", "1 ", "+1", "phone 1 ", "MRN ", "1/2/", "3-", "A^"])
def test_texts_are_searched_in_linear_time(tmp_path, text):
    start = time.process_time()
    with suppress(PatientsToldOf):
        check_texts(tmp_path, [text * 20_000])
    assert time.process_time() - start < 1


def test_a_study_whose_id_stands_in_a_report_is_found(tmp_path):
    check_texts(tmp_path, ["See A-1234 and 12."], uids=())
    with pytest.raises(PatientsToldOf, match="record numbers in 1 "):
        check_texts(tmp_path, ["See A-1234 and 12."], uids={"A-1234", "12"})


def test_a_push_of_texts_with_names_is_refused_in_a_line_shows_them_and_goes_on_where_told(
    ask, site, hospital, tmp_path
):
    data = copy_folder(hospital, tmp_path / "data")
    file = next((data / "data").glob("train-*"))
    table = pq.read_table(file)
    place = table.schema.get_field_index("impression")
    named = [f"Seen by Dr. Miller{number % 2}." for number in range(len(table))]
    pq.write_table(table.set_column(place, table.schema.field(place), [named]), file)
    status, shown, told = ask("push", data, "user/named")
    assert status == 2
    assert told == (
        f"hf-cxr push: {data}: may tell who patients are (names in 2 texts); take it out, or push with "
        "--i-checked-the-texts where none of it does\n"
    )
    assert shown.splitlines() == ["names: … Seen by Dr. Miller0. …", "names: … Seen by Dr. Miller1. …"]
    assert ("dataset", "user/named") not in site.repos
    assert not pseudonyms.map_of(data).exists()
    assert ask("push", data, "user/named", "--i-checked-the-texts")[0] == 0
    assert not any(b"Miller" in text for name, text in site.files("user/named", "dataset").items() if name[-1] != "t")
