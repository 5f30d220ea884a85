"""Which two images of a study become its frontal and its lateral view."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.data.selection import BOTH, FOUND, READABLE, VIEWED, select
from hf_cxr.data.study import MISSING, Radiograph, StoredImage, Study

READ = StoredImage(0, 1, "digest")


def study_of(*views):
    return Study("1", tuple(Radiograph(f"1_IM-0001-{i}001.png", view) for i, view in enumerate(views, start=1)))


def rows(*views, **options):
    study = study_of(*views)
    return list(select(study, [READ] * len(views), **options).rows)


@pytest.mark.parametrize(
    ("views", "row"),
    [
        (["frontal", "lateral"], (0, 1)),
        (["lateral", "frontal"], (1, 0)),
        (["frontal"], (0, None)),
        (["lateral"], (None, 0)),
        (["frontal", "frontal", "lateral"], (0, 2)),
        (["lateral", "frontal", "lateral", "frontal"], (1, 0)),
        (["frontal", "frontal"], (0, None)),
        (["lateral"] * 5, (None, 0)),
    ],
)
def test_the_first_frontal_and_the_first_lateral_are_taken(views, row):
    assert rows(*views) == [row]


def test_all_pairs_are_every_frontal_with_every_lateral():
    assert rows("frontal", "lateral", "frontal", pairs="all") == [(0, 1), (2, 1)]
    assert rows("frontal", "frontal", pairs="all") == [(0, None), (1, None)]
    assert len(rows(*["frontal"] * 2, *["lateral"] * 3, pairs="all")) == 6


def test_both_views_may_be_required():
    assert rows("frontal", "lateral", require="both") == [(0, 1)]
    for views, missing in ((["frontal"] * 2, "lateral"), (["lateral"], "frontal")):
        refused = select(study_of(*views), [READ] * len(views), require="both")
        assert (refused.rows, refused.step, refused.reason) == ((), BOTH, f"no {missing} view")


def test_an_image_that_is_neither_frontal_nor_lateral_is_never_chosen():
    assert rows("neither", "frontal", "neither", "lateral", pairs="all") == [(1, 3)]
    assert rows("neither", None) == [(None, 1)]  # by its name
    refused = select(study_of("neither", "neither"), [READ, READ])
    assert (refused.rows, refused.step, refused.reason) == ((), VIEWED, "no frontal or lateral image")


def test_another_image_of_the_view_stands_in_for_one_that_cannot_be_read():
    study = study_of("frontal", "frontal", "lateral")
    assert select(study, ["1.png: truncated", READ, READ]).rows == ((1, 2),)


def test_a_view_of_which_nothing_can_be_read_is_not_passed_off_as_one_the_study_never_had():
    study = study_of("frontal", "lateral")
    refused = select(study, [READ, "2.png: truncated"])
    assert (refused.rows, refused.step, refused.reason) == ((), READABLE, "lateral: 2.png: truncated")
    refused = select(study, [f"{MISSING}: 1.png", READ])
    assert (refused.step, refused.reason) == (FOUND, f"{MISSING}: 1.png (frontal)")


def test_without_labels_pixels_decide_and_the_surest_image_is_taken():
    study = Study("1", tuple(Radiograph(f"{letter}.png") for letter in "abc"))
    images = [StoredImage(0, 1, "a", evidence) for evidence in (-3.5, 1.5, 3.5)]
    chosen = select(study, images)
    assert chosen.rows == ((2, 0),)
    assert [view for view, _ in chosen.views] == ["lateral", "frontal", "frontal"]
    assert chosen.views[2][1] > chosen.views[1][1] > 0.5


@given(
    st.lists(st.sampled_from(["frontal", "lateral", None]), min_size=1, max_size=5), st.sampled_from(["best", "all"])
)
def test_every_study_with_readable_images_gives_rows_of_the_right_views(views, pairs):
    chosen = select(study_of(*views), [READ] * len(views), pairs)
    assert chosen.rows
    for frontal, lateral in chosen.rows:
        assert frontal is None or chosen.views[frontal][0] == "frontal"
        assert lateral is None or chosen.views[lateral][0] == "lateral"
    for view, (decided, confidence) in zip(views, chosen.views, strict=True):
        assert view in (None, decided)
        assert confidence == 1 if view else 0.5 <= confidence <= 1
