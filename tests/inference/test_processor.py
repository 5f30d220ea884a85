import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import TEXTS, radiograph, tiny_checkpoint
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, VisionEncoderDecoderModel

import hf_cxr
from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.inference.processor import ImpressionProcessor

STANDALONE = """
import json, sys
sys.modules["hf_cxr"] = None  # as where it is not installed
import numpy as np
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
processor.save_pretrained(sys.argv[1] + "-again")
processor = AutoProcessor.from_pretrained(sys.argv[1] + "-again", trust_remote_code=True)
image = np.random.default_rng(1).integers(0, 256, (80, 70), dtype=np.uint8)
batch = processor(frontal=image, text="Small right pleural effusion.", return_tensors="np")
print("BATCH:" + json.dumps({name: values.tolist() for name, values in batch.items()}))
"""


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_checkpoint()


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "saved"
    checkpoint.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder):
    return ImpressionProcessor.from_pretrained(folder)


def test_a_batch_is_what_training_makes_of_the_same_studies(checkpoint, processor, phantom_folder):
    studies = load_prepared(phantom_folder)["train"].select(range(12))
    assert None in [*studies["frontal"], *studies["lateral"]]
    canvases = CanvasDataset(pack_dataset(studies, 32), 32, checkpoint.tokenizer, max_length=20)
    collate = CanvasCollator(checkpoint.image_processor, checkpoint.tokenizer.pad_token_id, 1)
    expected = collate([canvases[index] for index in range(12)])
    views = {view: list(studies[view]) for view in ("frontal", "lateral")}
    batch = processor(**views, text=list(studies["impression"]), return_tensors="pt", max_length=20)
    assert set(batch) == {"pixel_values", "labels"}
    assert batch["labels"].equal(expected["labels"])
    assert (batch["labels"] == -100).any()
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], atol=1e-5, rtol=0)
    with torch.inference_mode():
        losses = [checkpoint.model(**given).loss for given in (batch, expected)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("views", [(1, 2), (1, None), (None, 2)])
def test_a_view_that_a_study_does_not_have_is_a_black_panel(processor, views):
    frontal, lateral = (seed and radiograph(seed) for seed in views)
    canvas = hf_cxr.pack_views(frontal, lateral, size=32)
    expected = processor.image_processor(canvas, return_tensors="pt")["pixel_values"]
    for given in ({"frontal": frontal, "lateral": lateral}, {"frontal": [frontal], "lateral": [lateral]}):
        assert processor(**given, return_tensors="pt")["pixel_values"].equal(expected)
    if lateral is None:
        alone = Image.fromarray(frontal).convert("RGB")
        assert not processor.image_processor(alone, return_tensors="pt")["pixel_values"].equal(expected), "stretched"
        assert (expected[..., 32:] == expected.min()).all()


def test_texts_alone_come_back_from_their_tokens(processor):
    labels = processor(text=TEXTS[:4], return_tensors="pt")["labels"]
    ids = labels.masked_fill(labels == -100, processor.tokenizer.pad_token_id)
    assert processor.batch_decode(ids, skip_special_tokens=True) == TEXTS[:4]
    assert processor.decode(ids[1], skip_special_tokens=True) == TEXTS[1]
    assert processor(text=TEXTS[0])["labels"] == [[*processor.tokenizer(TEXTS[0]).input_ids, 2]], "lists by default"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "one entry for each study, not nothing"),
        ({"frontal": []}, "not {'frontal': 0}"),
        ({"frontal": [radiograph(1)] * 2, "text": ["one"]}, "not {'frontal': 2, 'text': 1}"),
        ({"frontal": radiograph(1), "lateral": "absent.png"}, "^lateral: absent.png: no such file$"),
        ({"frontal": [radiograph(1), "absent.png"]}, "^study 1: frontal: absent.png: no such file$"),
        ({"frontal": [radiograph(1), None]}, "^study 1: a study needs at least one view"),
    ],
)
def test_what_is_no_batch_of_studies_is_one_clear_error(processor, given, told):
    with pytest.raises(ValueError, match=told) as error:
        processor(**given)
    assert "\n" not in str(error.value)


def test_the_processor_of_a_checkpoint_needs_no_remote_code_where_the_kit_is_imported(folder):
    assert type(AutoProcessor.from_pretrained(folder)) is ImpressionProcessor
    assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=True)) is ImpressionProcessor


def test_without_the_kit_the_processor_of_a_checkpoint_is_its_remote_code(folder, processor):
    result = subprocess.run([sys.executable, "-c", STANDALONE, str(folder)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    batch = json.loads(next(line for line in result.stdout.splitlines() if line.startswith("BATCH:"))[6:])
    ours = processor(frontal=radiograph(1), text="Small right pleural effusion.", return_tensors="np")
    assert batch["labels"] == ours["labels"].tolist()
    np.testing.assert_array_equal(np.float32(batch["pixel_values"]), ours["pixel_values"])


def test_stock_classes_read_the_parts_and_are_asked_to_trust_nothing(folder, checkpoint):
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((folder / name).read_text()), name
    options = {"trust_remote_code": False}  # which would be an error where code is asked for
    assert type(AutoImageProcessor.from_pretrained(folder, **options)) is type(checkpoint.image_processor)
    assert AutoTokenizer.from_pretrained(folder, **options).get_vocab() == checkpoint.tokenizer.get_vocab()
    assert VisionEncoderDecoderModel.from_pretrained(folder, **options).num_parameters()


def test_a_checkpoint_of_others_keeps_its_own_processor(checkpoint, tmp_path):
    """A vision-encoder-decoder of the same types, saved by transformers alone."""
    for part in (checkpoint.model, checkpoint.tokenizer, checkpoint.image_processor):
        part.save_pretrained(tmp_path)
    assert type(AutoProcessor.from_pretrained(tmp_path)) is type(AutoTokenizer.from_pretrained(tmp_path))


def test_a_saved_processor_pushes_nothing_by_itself(processor, tmp_path):
    with pytest.raises(ValueError, match="use hf-cxr push"):
        processor.save_pretrained(tmp_path, push_to_hub=True, repo_id="user/x")
