import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import TEXTS, radiograph, tiny_checkpoint
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from hf_cxr import pack_views
from hf_cxr.data.collator import (
    IGNORED,
    CanvasCollator,
    CanvasDataset,
    note_on_long_texts,
    pack_dataset,
)
from hf_cxr.data.schema import FEATURES
from hf_cxr.inference.sections import Layout
from hf_cxr.inference.targets import target_ids
from hf_cxr.models.modeling import build
from hf_cxr.training.trainer import token_mean_loss

SIZE = 32


def encoded(seed: int | None) -> dict | None:
    if seed is None:
        return None
    stream = io.BytesIO()
    Image.fromarray(radiograph(seed)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture
def studies() -> Dataset:
    views = [(1, 2), (3, None), (None, 4)] + [(seed, seed + 1) for seed in range(10, 27)]
    rows = [
        dict.fromkeys(FEATURES)
        | {
            "uid": str(index),
            "frontal": encoded(frontal),
            "lateral": encoded(lateral),
            "impression": "No acute disease." if index % 2 else "Cardiomegaly. Small left effusion.",
            "tags": [],
            "patient": index,
        }
        for index, (frontal, lateral) in enumerate(views)
    ]
    return Dataset.from_list(rows, features=FEATURES)


def test_a_batch_equals_what_the_stock_image_processor_makes_of_the_packed_views(studies):
    checkpoint = tiny_checkpoint(SIZE)
    canvases = CanvasDataset(pack_dataset(studies, SIZE), SIZE)
    batch = CanvasCollator(checkpoint.image_processor)([canvases[index] for index in range(3)])["pixel_values"]
    packed = [pack_views(study["frontal"], study["lateral"], size=SIZE) for study in studies.select(range(3))]
    expected = checkpoint.image_processor(packed, return_tensors="pt")["pixel_values"]
    assert batch.shape == (3, 3, SIZE, 2 * SIZE)
    assert torch.allclose(batch, expected, atol=1e-6)


def test_a_missing_view_is_an_empty_panel_in_the_batch(studies):
    canvases = CanvasDataset(pack_dataset(studies, SIZE), SIZE)
    assert canvases[1]["canvas"][:, :SIZE].any()
    assert not canvases[1]["canvas"][:, SIZE:].any()
    assert not canvases[2]["canvas"][:, :SIZE].any()


def test_labels_end_with_the_end_token_and_the_decoder_sees_them_shifted(studies):
    checkpoint = tiny_checkpoint(SIZE)
    tokenizer = checkpoint.tokenizer
    canvases = CanvasDataset(pack_dataset(studies, SIZE), SIZE, tokenizer)
    collate = CanvasCollator(checkpoint.image_processor, tokenizer.pad_token_id, tokenizer.bos_token_id)
    batch = collate([canvases[0], canvases[1]])
    expected = checkpoint.model.prepare_decoder_input_ids_from_labels(batch["labels"])
    assert torch.equal(batch["decoder_input_ids"], expected)
    for row, text in zip(batch["labels"], studies["impression"], strict=False):
        ids = row[row != IGNORED]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids[:-1]) == text


def test_one_study_is_a_batch(studies):
    checkpoint = tiny_checkpoint(SIZE)
    collate = CanvasCollator(checkpoint.image_processor)
    canvas = CanvasDataset(pack_dataset(studies, SIZE), SIZE)[0]["canvas"]
    assert collate([{"canvas": canvas}])["pixel_values"].shape == (1, 3, SIZE, 2 * SIZE)
    states = np.ones((5, 7), dtype=np.float32)
    assert np.array_equal(collate([{"states": states}])["encoder_outputs"][0], states[None])


def test_a_batch_of_states_can_be_pinned_for_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)  # needs a GPU
    batch = CanvasCollator(tiny_checkpoint(SIZE).image_processor)([{"states": np.ones((5, 7), dtype=np.float32)}])
    assert pin_memory(batch)["encoder_outputs"][0].shape == (1, 5, 7)


def test_a_long_target_ends_where_a_sentence_does_or_not_at_all(studies):
    tokenizer = tiny_checkpoint(SIZE).tokenizer
    text = "1. Cardiomegaly. 2. A nodule of 1.2 cm. Small left effusion."
    whole = target_ids(tokenizer, [text], 99)[0]
    assert tokenizer.decode(whole) == f"{text}</s>"
    for length in range(2, len(whole)):
        [ids] = target_ids(tokenizer, [text], length)
        assert len(ids) <= length
        expected = [f"{text[: text.index(end) + len(end)]}</s>" for end in ("Cardiomegaly.", "cm.")]
        fits = [cut for cut in expected if len(tokenizer(cut).input_ids) <= length]
        assert tokenizer.decode(ids) == fits[-1] if fits else ids == whole[:length]
    labels = CanvasDataset(pack_dataset(studies, SIZE), SIZE, tokenizer, max_length=2).labels
    assert all(len(ids) == 2 and tokenizer.eos_token_id not in ids for ids in labels)


def test_long_targets_are_counted():
    tokenizer = tiny_checkpoint(SIZE).tokenizer
    texts = ["Small effusion.", "Small right pleural effusion. Cardiomegaly."] * 3
    lengths = [len(tokenizer(text).input_ids) + 1 for text in texts]
    assert lengths[0] < lengths[1]
    assert note_on_long_texts(tokenizer, {"impression": texts}, lengths[1]) is None
    note = note_on_long_texts(tokenizer, {"impression": texts}, lengths[1] - 1)
    assert f"3 of 6 training texts are longer than max_target_length (longest: {lengths[1]} tokens)" in note


def test_view_dropout_empties_one_panel_of_pairs_only_and_repeats_exactly(studies):
    packed = pack_dataset(studies, SIZE)
    plain = CanvasDataset(packed, SIZE)
    dropping = CanvasDataset(packed, SIZE, view_dropout=0.5, seed=3)
    first = [dropping[index]["canvas"].copy() for index in range(len(plain))]
    emptied = 0
    for index, canvas in enumerate(first):
        whole = plain[index]["canvas"]
        left, right = (np.array_equal(canvas[:, s], whole[:, s]) for s in (slice(0, SIZE), slice(SIZE, None)))
        assert left or right, "never both"
        emptied += not (left and right)
        if index in (1, 2):
            assert left, "a single-view study keeps its view"
            assert right, "a single-view study keeps its view"
    assert 0 < emptied < len(first)
    again = CanvasDataset(packed, SIZE, view_dropout=0.5, seed=3)
    assert all(np.array_equal(again[index]["canvas"], canvas) for index, canvas in enumerate(first))
    dropping.epoch.fill_(1)
    assert any(not np.array_equal(dropping[index]["canvas"], canvas) for index, canvas in enumerate(first))


# --- sections and context ----------------------------------------------------------------------------------------

REPORT = Layout(("findings", "impression"), ("indication", "age_sex"))


@pytest.fixture(scope="module")
def asked():
    """A tiny checkpoint that takes context and writes a report."""
    return build("tiny", "tiny", SIZE, texts=TEXTS, vocab_size=350, max_new_tokens=40, layout=REPORT)


def told(studies: Dataset) -> Dataset:
    """Every third study has no indication, and the others one of unequal length; none but the first has an age."""
    rows = [
        row | {"findings": f"Clear lungs {i}.", "indication": "Cough. " * (i % 3), "sex": "F" if i == 0 else ""}
        for i, row in enumerate(pack_dataset(studies, SIZE).to_list())
    ]
    return Dataset.from_list(rows)


def test_patch_dropout_shows_a_share_of_the_states_in_their_order_drawn_anew_in_each_epoch(studies):
    canvases = CanvasDataset(pack_dataset(studies, 64), 64, seed=3)
    canvases.states = np.arange(len(studies) * 8 * 2, dtype=np.float32).reshape(len(studies), 8, 2)
    assert np.array_equal(canvases[1]["states"], canvases.states[1])
    canvases.patch_dropout = 0.75
    shown = {}
    for epoch in range(6):
        canvases.epoch.fill_(epoch)
        shown[epoch] = [canvases[row]["states"] for row in (0, 1)]
        places = [
            np.flatnonzero((canvases.states[row] == one[:, None]).all(-1).any(0))
            for row, one in enumerate(shown[epoch])
        ]
        assert [len(some) for some in places] == [2, 2]
        assert all(np.array_equal(canvases.states[row][some], shown[epoch][row]) for row, some in enumerate(places))
    assert len({one[0].tobytes() for one in shown.values()}) > 2
    canvases.epoch.fill_(2)
    assert np.array_equal(canvases[1]["states"], shown[2][1])
    canvases.patch_dropout = 1.0
    assert canvases[0]["states"].shape == (1, 2), "something is always seen"


def test_a_prompt_stands_before_the_text_and_has_no_label(studies, asked):
    tokenizer, split = asked.tokenizer, told(studies)
    canvases = CanvasDataset(split, SIZE, tokenizer, layout=REPORT)
    batch = CanvasCollator(asked.image_processor, tokenizer.pad_token_id, tokenizer.bos_token_id)(
        [canvases[index] for index in range(3)]
    )
    prompts = ["<age_sex>F<findings>", "<indication>Cough.<findings>", "<indication>Cough. Cough.<findings>"]
    for row, prompt in enumerate(prompts):
        text = f"Clear lungs {row}.<impression>{split['impression'][row]}</s>"
        labels, inputs = batch["labels"][row], batch["decoder_input_ids"][row]
        count = len(tokenizer(prompt).input_ids)
        assert (labels[:count] == IGNORED).all()
        kept = labels[labels != IGNORED]
        assert tokenizer.decode(kept) == text
        assert tokenizer.decode(inputs[: count + len(kept)]) == f"<s>{prompt}{text.removesuffix('</s>')}"
        assert torch.equal(inputs[count + 1 : count + len(kept)], kept[:-1]), (
            "each token is predicted from those before"
        )


def test_the_loss_does_not_learn_the_prompt(studies, asked):
    canvases = CanvasDataset(told(studies), SIZE, asked.tokenizer, layout=REPORT)
    collate = CanvasCollator(asked.image_processor, asked.tokenizer.pad_token_id, asked.tokenizer.bos_token_id)
    batch = collate([canvases[2]])
    logits = asked.model.eval()(**batch).logits
    loss = token_mean_loss(0.0)({"logits": logits}, batch["labels"])
    [gradient] = torch.autograd.grad(loss, logits)
    count = len(canvases[2]["prompt"])
    assert not gradient[0, :count].any()
    assert gradient[0, count:].any(-1).all()


def test_context_dropout_leaves_out_each_context_by_draws_of_its_own(studies, asked):
    split = told(studies)
    split = Dataset.from_list([row | {"indication": "Cough", "sex": "M"} for row in split.to_list()])
    options = {"layout": REPORT, "view_dropout": 0.5, "augmentation": 0.5, "seed": 3}
    whole, dropping = (CanvasDataset(split, SIZE, asked.tokenizer, **options, context_dropout=p) for p in (0.0, 0.5))
    seen = []
    for epoch in range(30):
        whole.epoch.fill_(epoch)
        dropping.epoch.fill_(epoch)
        for index in range(len(split)):
            if epoch < 2:
                assert np.array_equal(whole.canvas(index), dropping.canvas(index)), "other draws are what they were"
            seen.append(asked.tokenizer.decode(dropping.prompt(dropping.contexts[index], index)))
    shares = [
        seen.count(text) / len(seen)
        for text in (
            "<indication>Cough<age_sex>M<findings>",
            "<indication>Cough<findings>",
            "<age_sex>M<findings>",
            "<findings>",
        )
    ]
    assert sum(shares) == 1
    assert all(0.2 < share < 0.3 for share in shares), "each with that probability, alone"
    again = CanvasDataset(split, SIZE, asked.tokenizer, **options, context_dropout=0.5)
    again.epoch.fill_(29)
    assert all(again[index]["prompt"] == dropping[index]["prompt"] for index in range(len(split)))


def test_a_report_that_does_not_fit_is_counted(studies, asked):
    texts = {
        "findings": ["Clear lungs.", "Small right pleural effusion. Cardiomegaly."],
        "impression": ["Normal."] * 2,
    }
    assert note_on_long_texts(asked.tokenizer, texts, 99, REPORT) is None
    assert "1 of 2 training texts do not fit max_target_length" in str(
        note_on_long_texts(asked.tokenizer, texts, 14, REPORT)
    )
