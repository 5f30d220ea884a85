import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.data.augmentation import augment_panel
from hf_cxr.data.collator import CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared


def marked_panel(side: int = 64) -> np.ndarray:
    """A panel with a bright marker at the upper left, as a side marker or a heart would be."""
    panel = np.full((side, side), 40, dtype=np.uint8)
    panel[side // 4 : side // 2, side // 8 : side // 3] = 200
    return panel


@given(seed=st.integers(0, 10_000), strength=st.floats(0, 1))
def test_a_side_stays_a_side_and_up_stays_up(seed, strength):
    changed = augment_panel(marked_panel(), strength, np.random.default_rng(seed)).astype(float)
    bright = changed > 100
    assert bright[:, :32].sum() > 4 * bright[:, 32:].sum()
    assert bright[:40].sum() > 4 * bright[40:].sum()


@given(seed=st.integers(0, 10_000))
def test_black_stays_black_so_that_an_empty_panel_stays_empty(seed):
    assert not augment_panel(np.zeros((32, 32), np.uint8), 1.0, np.random.default_rng(seed)).any()


def test_strength_zero_changes_nothing_and_strength_one_little():
    panel = marked_panel()
    assert np.array_equal(augment_panel(panel, 0.0, np.random.default_rng(0)), panel)
    differences = [
        np.abs(augment_panel(panel, 1.0, np.random.default_rng(seed)).astype(float) - panel).mean()
        for seed in range(20)
    ]
    assert min(differences) > 0.5
    assert max(differences) < 60


def test_rotation_is_about_the_centre():
    panel = np.zeros((65, 65), dtype=np.uint8)
    panel[30:35, 30:35] = 255
    centres = []
    for seed in range(200):
        rows, columns = np.nonzero(augment_panel(panel, 1.0, np.random.default_rng(seed)) > 100)
        centres.append((rows.mean(), columns.mean()))
    assert np.allclose(np.mean(centres, axis=0), 32, atol=0.5), "shifts to both sides, no drift"
    assert np.abs(np.array(centres) - 32).max() < 65 * 0.05 + 1.5


@pytest.fixture(scope="module")
def packed(phantom_folder):
    return pack_dataset(load_prepared(str(phantom_folder))["train"], 32)


def test_the_draws_depend_on_seed_epoch_and_row_alone(packed):
    one, other = (CanvasDataset(packed, 32, augmentation=1.0, view_dropout=0.5, seed=3) for _ in range(2))
    first = [one.canvas(row) for row in range(20)]
    backwards = [other.canvas(row) for row in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, backwards, strict=True))
    one.epoch.fill_(1)
    assert any(not np.array_equal(a, one.canvas(row)) for row, a in enumerate(first))
    other.seed = 4
    assert any(not np.array_equal(a, other.canvas(row)) for row, a in enumerate(first))


def test_view_dropout_empties_one_panel_of_a_pair_about_as_often_as_told(packed):
    plain, dropped = CanvasDataset(packed, 32), CanvasDataset(packed, 32, view_dropout=0.3)
    emptied = pairs = 0
    for row in range(len(packed)):
        before = [plain.canvas(row)[:, :32].any(), plain.canvas(row)[:, 32:].any()]
        after = [dropped.canvas(row)[:, :32].any(), dropped.canvas(row)[:, 32:].any()]
        assert any(after), "no study is left without a view"
        if all(before):
            pairs += 1
            emptied += not all(after)
        else:
            assert before == after
    assert 0.2 < emptied / pairs < 0.4
