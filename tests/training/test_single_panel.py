"""`panels: 1`: training and writing from one square image, for collections without laterals."""

import json

import numpy as np
import pytest
import torch
from helpers import TINY_RECIPE, radiograph, tiny_checkpoint, vit_folder, write_config
from PIL import Image
from transformers import Dinov2Config, Dinov2Model, pipeline

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.prediction import open_canvases
from hf_cxr.inference.views import single_array
from hf_cxr.models.encoders import UnsupportedPart, adapt_encoder
from hf_cxr.models.modeling import build, load_checkpoint
from hf_cxr.training.run import train


def arguments(folder, dataset, **values):
    folder.mkdir(exist_ok=True)
    recipe = TINY_RECIPE | {"dataset": str(dataset), "output_dir": str(folder / "run"), "panels": 1, "max_steps": 4}
    return parse_arguments(write_config(folder / "config.yaml", **recipe | values))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def test_a_run_of_one_panel_trains_evaluates_and_is_read_by_the_stock_classes(tmp_path, phantom_folder, frozen):
    kit, args = arguments(tmp_path, phantom_folder, freeze_encoder=frozen, findings_pretraining_epochs=0.5)
    report = train(kit, args)
    assert report["panels"] == 1
    run = str(tmp_path / "run")
    checkpoint = load_checkpoint(run)
    assert checkpoint.image_processor.size == {"height": kit.panel_size, "width": kit.panel_size}
    study = load_prepared(str(phantom_folder))["test"][0]
    pixels = checkpoint.image_processor(study["frontal"].convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        ids = checkpoint.model.generate(pixels)[0]
    first = json.loads((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()[0])
    assert checkpoint.tokenizer.decode(ids, skip_special_tokens=True).strip() == first["prediction"]
    answer = pipeline("cxr-impression", model=run)(frontal=study["frontal"], lateral=study["lateral"])
    assert answer[0]["impression"] == first["prediction"], "a lateral is not looked at"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "sees one view" in card
    assert "both views" not in card.split("## Scores")[0]


def test_training_sees_exactly_the_pixels_that_the_image_processor_gives(phantom_folder):
    split = load_prepared(str(phantom_folder))["test"].select(range(5))
    checkpoint = build("tiny", "tiny", 48, split["impression"], panels=1)
    packed = CanvasDataset(pack_dataset(split, 48, panels=1), 48)
    batch = CanvasCollator(checkpoint.image_processor)([packed[row] for row in range(5)])["pixel_values"]
    alone = open_canvases(checkpoint, split)
    for row, seen in enumerate(batch):
        image = Image.fromarray(alone.canvas(row)).convert("RGB")
        given = checkpoint.image_processor(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(seen, given)


def test_a_study_without_a_frontal_view_shows_its_lateral():
    view = Image.fromarray(radiograph(0))
    assert np.array_equal(single_array(None, view, 16), single_array(view, None, 16))


def test_augmentation_moves_the_one_panel(phantom_folder):
    packed = pack_dataset(load_prepared(str(phantom_folder))["test"].select(range(2)), 32, panels=1)
    plain, moved = CanvasDataset(packed, 32), CanvasDataset(packed, 32, augmentation=1.0)
    assert plain.canvas(0).shape == moved.canvas(0).shape == (32, 32)
    assert not np.array_equal(plain.canvas(0), moved.canvas(0))


@pytest.mark.parametrize("side", [32, 64])
def test_a_pretrained_square_encoder_is_taken_as_it_is_or_its_positions_resized(tmp_path, side):
    folder = vit_folder(tmp_path / "vit", image_size=64)
    adapted, own = adapt_encoder(folder, (side, side)), adapt_encoder(folder, (64, 64))
    assert adapted(torch.zeros(1, 3, side, side))[0].shape[1] == 1 + (side // 16) ** 2
    assert torch.equal(
        own.embeddings.position_embeddings, type(own).from_pretrained(folder).embeddings.position_embeddings
    )


def test_a_dinov2_gives_for_a_single_image_the_states_that_the_stock_class_gives(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    stock = Dinov2Model(Dinov2Config(image_size=70, patch_size=14, **sizes)).eval()
    stock.save_pretrained(tmp_path)
    pixels = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    ours = adapt_encoder(str(tmp_path), (28, 28)).eval()
    torch.testing.assert_close(ours(pixels)[0], stock(pixels)[0])


def test_what_was_made_for_both_views_is_no_start_for_one(tmp_path, phantom_folder):
    checkpoint = tiny_checkpoint()
    checkpoint.model.encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(UnsupportedPart, match="made for both views; set panels: 2"):
        adapt_encoder(str(tmp_path / "encoder"), (32, 32))
    with pytest.raises(ValueError, match="view_dropout empties one of two panels"):
        train(*arguments(tmp_path / "a", phantom_folder, view_dropout=0.1))
    with pytest.raises(ValueError, match="panels"):
        train(*arguments(tmp_path / "b", phantom_folder, panels=3))
