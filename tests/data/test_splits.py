"""Which records are kept, and in which split each study goes."""

import os
import time
import timeit
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_cxr.data import splits
from hf_cxr.data.study import PLACEHOLDER_POLICIES, Archived, Radiograph, Study, clean_text

IMAGE = (Radiograph(b"x", "frontal"),)


def make_study(uid, **facts):
    return Study(uid=str(uid), images=IMAGE, **facts)


def assign(studies, images=None, **options):
    return splits.assign(studies, {s.uid: (images or {}).get(s.uid, ()) for s in studies}, **options)


# Splits


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=5), unique=True, min_size=2, max_size=12), st.integers(0, 99), st.data())
def test_a_patient_keeps_its_split_when_others_come_or_go(patients, seed, data):
    studies = [make_study(name) for name in patients]
    some = data.draw(st.lists(st.sampled_from(studies), min_size=1, unique_by=lambda study: study.uid))
    everywhere = assign(studies, seed=seed)
    assert assign(some, seed=seed) == {study.uid: everywhere[study.uid] for study in some}


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 99))
def test_studies_of_one_patient_never_cross_splits(owners, seed):
    studies = [make_study(i, patient=f"p{p}") for i, p in enumerate(owners)]
    split_of_uid = assign(studies, seed=seed)
    assert len({(study.patient, split_of_uid[study.uid]) for study in studies}) == len(set(owners))
    assert set(split_of_uid.values()) <= set(splits.SPLITS)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 12), max_size=3)), max_size=30), st.integers(0, 9))
def test_studies_that_share_an_image_never_cross_splits_and_none_is_lost(rows, seed):
    studies = [make_study(i, patient=f"p{patient}") for i, (patient, _) in enumerate(rows)]
    split_of_uid = assign(
        studies, {str(i): [str(d) for d in digests] for i, (_, digests) in enumerate(rows)}, seed=seed
    )
    places = {}
    for i, (_, digests) in enumerate(rows):
        for digest in digests:
            assert split_of_uid[str(i)] == places.setdefault(digest, split_of_uid[str(i)])
    assert "" not in split_of_uid.values()


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(splits.SPLITS), st.sets(st.integers(0, 9), max_size=3)), max_size=20),
)
def test_where_a_split_file_parts_equal_images_the_later_split_keeps_them(rows):
    studies = [make_study(i) for i in range(len(rows))]
    chosen = {str(i): split for i, (split, _) in enumerate(rows)}
    split_of_uid = assign(studies, {str(i): [str(d) for d in ds] for i, (_, ds) in enumerate(rows)}, chosen=chosen)
    for i, (split, digests) in enumerate(rows):
        shared = {other for other, theirs in rows if digests & theirs}
        last = all(splits.SPLITS.index(other) <= splits.SPLITS.index(split) for other in shared)
        assert split_of_uid[str(i)] == (split if last else "")


def test_patients_tied_by_an_image_go_where_the_first_of_them_goes():
    names = [str(uid) for uid in range(60)]
    test, train = [uid for uid in names if splits.split_of(uid) == "test"], "0"
    assert splits.split_of(train) == "train"
    assert test[0] == "1"
    assert assign([make_study("30"), make_study("0")], {"30": ["a"], "0": ["a"]}) == {"30": "train", "0": "train"}
    assert assign([make_study("30"), make_study("0")]) == {"30": "test", "0": "train"}


def test_patients_who_share_images_are_counted():
    studies = [make_study(uid) for uid in "abcde"]
    digests = {"a": ["1"], "b": ["1", "2"], "c": ["2"], "d": ["3"], "e": ["4", "4"]}
    assert splits.tied_patients(studies, digests) == {"patients": 3, "largest_group": 3}
    assert splits.tied_patients(studies, dict.fromkeys("abcde", ())) == {"patients": 0, "largest_group": 0}


def test_split_shares_are_80_10_10_and_the_seed_matters():
    names = [splits.split_of(str(uid)) for uid in range(20_000)]
    shares = [names.count(name) / len(names) for name in splits.SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
    assert names != [splits.split_of(str(uid), seed=1) for uid in range(20_000)]


def test_splits_are_the_same_on_every_machine_and_in_every_release():
    assert [uid for uid in range(60) if splits.split_of(str(uid)) == "test"] == [1, 30, 41, 43, 48]


def test_a_split_that_the_source_publishes_is_used():
    studies = [make_study(i, split="val" if i % 2 else "test") for i in range(6)]
    assert list(assign(studies).values()) == ["test", "validation"] * 3


def test_a_study_without_a_published_split_goes_with_its_patient_and_its_image():
    studies = [make_study("a", patient="p", split="test"), make_study("b", patient="p"), make_study("c")]
    assert assign(studies, {"a": ["1"], "c": ["1"]}) == {"a": "test", "b": "test", "c": "test"}


def test_of_patients_tied_by_an_image_an_unnamed_one_goes_to_the_latest_split_of_the_others():
    studies = [make_study("a", split="train"), make_study("b", split="validation"), make_study("c")]
    images = {"a": ["1"], "b": ["2"], "c": ["1", "2"]}
    assert assign(studies, images) == {"a": "", "b": "validation", "c": "validation"}
    assert assign(studies[::-1], images) == {"a": "", "b": "validation", "c": "validation"}
    named = {"a": "test", "b": "train", "c": ""}
    assert assign(studies, images, chosen=named) == {"a": "test", "b": "", "c": "test"}


def test_a_published_split_that_parts_a_patient_is_an_error_that_does_not_name_the_patient():
    studies = [make_study(uid, patient="Jane Doe", split=split) for uid, split in (("a", "train"), ("b", "test"))]
    with pytest.raises(ValueError, match=r"a patient would be in both train and test \(uid 'b'\)") as caught:
        assign(studies)
    assert "Jane" not in str(caught.value)


def test_an_unknown_published_split_is_an_error():
    with pytest.raises(ValueError, match="a: unknown split 'exam'"):
        assign([make_study("a", split="exam")])


# Records


def test_section_says_which_text_a_study_must_have():
    studies = [
        make_study("i", impression="Normal."),
        make_study("f", findings="Clear."),
        make_study("b", impression="Normal.", findings="Clear."),
        make_study("none", impression=" \n", findings=""),
    ]
    for section, kept in (("any", "ifb"), ("impression", "ib"), ("findings", "fb"), ("both", "b")):
        assert sorted(study.uid for study in splits.plan(studies, section=section).studies) == sorted(kept)
    with pytest.raises(
        ValueError, match="unknown section 'conclusion': choose one of any, impression, findings, both"
    ):
        splits.plan(studies, section="conclusion")


def test_a_study_needs_at_least_one_section_unless_told_otherwise():
    studies = [make_study("f", findings="Clear."), make_study("none"), make_study("xxxx", impression="XXXX.")]
    made = splits.plan(studies, placeholders="drop_sentence")
    assert [study.uid for study in made.studies] == ["f"]
    step = "with impression or findings"
    assert made.rejects == [
        {"uid": "none", "step": step, "reason": "no impression or findings text"},
        {"uid": "xxxx", "step": f"{step} after cleaning", "reason": "nothing left of the impression or findings text"},
    ]
    with pytest.raises(ValueError, match=r"not with impression or findings \(first: uid none, [^;]*\)$"):
        splits.plan(studies[1:2])


def test_a_collection_of_the_other_section_says_which_option_reads_it():
    with pytest.raises(ValueError, match=r"no usable study among 1: .*there are findings texts: --section findings"):
        splits.plan([make_study("a", findings="Clear.")], section="impression")


def test_a_record_that_the_reader_could_not_read_is_listed_with_its_problem():
    made = splits.plan([make_study("a", impression="Normal."), Study("row 3", problem="row 3 has no uid")])
    assert made.rejects == [{"uid": "row 3", "step": "with a readable record", "reason": "row 3 has no uid"}]
    assert [step["kept"] for step in made.steps][:2] == [2, 1]


def test_texts_are_kept_clean_and_a_text_that_cleaning_empties_is_accounted_for():
    studies = [
        make_study("a", impression="1. Normal  chest.. 2. XXXX effusion.", findings="XXXX clear."),
        make_study("b", impression="XXXX."),
    ]
    for placeholders in PLACEHOLDER_POLICIES:
        kept = splits.plan(studies, placeholders=placeholders).studies[0]
        assert kept.impression == clean_text(studies[0].impression, placeholders)
        assert kept.findings == clean_text(studies[0].findings, placeholders)
        assert ("XXXX" in kept.impression) == (placeholders == "keep")
        assert kept.uid == "a"
    made = splits.plan(studies, placeholders="drop_sentence")
    reason = "nothing left of the impression or findings text"
    assert made.rejects == [{"uid": "b", "step": "with impression or findings after cleaning", "reason": reason}]
    assert [study.uid for study in made.rejected] == ["b"]
    with pytest.raises(ValueError, match="placeholders"):
        splits.plan(studies, placeholders="burn")


def test_a_uid_that_occurs_twice_is_an_error():
    with pytest.raises(ValueError, match="uid 'a' occurs twice"):
        splits.plan([make_study("a", impression="Normal.")] * 2)


# The fingerprint


def touched(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize("name", ["validate", "Validation", "val", "valid", "dev"])
def test_every_name_of_the_validation_split_is_read_in_a_split_file(name, tmp_path):
    (tmp_path / "splits.csv").write_text(f"uid,split\na,{name}\n")
    assert splits.read_split_file(tmp_path / "splits.csv") == {"a": "validation"}


def seconds(number: int, order: int) -> float:
    """Of processor time that planning so many studies takes, each tied to the next by an image."""
    text = "The heart is large, as on ___. No pneumothorax."
    images = tuple(Radiograph(f"nowhere/{view}.jpg", view) for view in ("frontal", "lateral"))
    studies = [Study(f"s{i}", images, impression=text, patient=f"p{i // 2:09d}") for i in range(number)][::order]
    tied = {study.uid: (study.patient, f"p{int(study.patient[1:]) + 1:09d}") for study in studies}
    few = studies[::20]  # reading texts takes a hundred times as long as all else

    def plan() -> None:
        splits.fingerprint(splits.plan(few).studies)
        splits.assign(studies, tied)
        splits.tied_patients(studies, tied)
        splits.likely_patients(studies, dict.fromkeys(tied, "train"))

    return min(timeit.repeat(plan, timer=time.process_time, number=1, repeat=2))


@pytest.mark.parametrize("order", [1, -1])
def test_planning_ten_times_the_studies_takes_about_ten_times_as_long(order):
    assert seconds(20_000, order) < 25 * seconds(2_000, order)


def test_whatever_a_dataset_is_made_of_changes_the_fingerprint(tmp_path, monkeypatch):
    image, archive, table = tmp_path / "a.png", tmp_path / "a.tgz", tmp_path / "t.csv"
    for path in (image, archive, table):
        path.write_bytes(b"content")
    moved = tmp_path / "b.png"
    moved.write_bytes(b"content")
    os.utime(moved, ns=(image.stat().st_atime_ns, image.stat().st_mtime_ns))
    radiograph = Radiograph(image, "frontal", "a")
    study = Study("a", (radiograph, Radiograph(Archived(archive, "k"), None, "k")), "Normal.", "Clear.", "Cough.")

    def mark(study=study, tables=(None, table)):
        return splits.fingerprint([study], tables)

    def with_image(**changes):
        return mark(replace(study, images=(replace(radiograph, **changes), *study.images[1:])))

    first = mark()
    assert mark() == first
    changed = [
        *(mark(replace(study, **{name: "other"})) for name in ("uid", "impression", "findings", "indication")),
        *(mark(replace(study, **{name: "other"})) for name in ("patient", "split", "problem")),
        *(mark(replace(study, tags=("scar",))), mark(replace(study, likely_patient=(("mrn", "1"),)))),
        *(with_image(view="lateral"), with_image(view=None), with_image(name="b"), with_image(source=moved)),
        *(with_image(source=tmp_path / "none.png"), with_image(source=b"bytes"), with_image(source=b"other")),
        mark(replace(study, images=(radiograph, replace(study.images[1], source=Archived(archive, "other"))))),
    ]
    for path, how in ((image, touched), (archive, touched)):
        how(path)
        changed.append(mark())
    image.write_bytes(b"more content")
    changed.append(mark())
    table.write_bytes(b"other")
    changed.append(mark())
    changed.append(splits.fingerprint([study, study], (None, table)))
    monkeypatch.setattr(splits, "__version__", "99")
    changed.append(mark())
    assert len({first, *changed}) == len(changed) + 1
