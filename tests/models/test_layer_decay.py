"""The earlier a block of an encoder, the less it learns."""

import pytest
import torch
from transformers import AutoModel, Dinov2Config, SwinConfig, ViTConfig

from hf_cxr.models.layer_decay import blocks_above, decay_layers

SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
SQUARE = {"image_size": 32, "patch_size": 8}
CONFIGS = {
    "vit": ViTConfig(**SIZES, **SQUARE),
    "dinov2": Dinov2Config(**SIZES, **SQUARE),
    "swin": SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 2], num_heads=[2, 2], window_size=2),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_block_learns_less_than_the_next_and_the_embeddings_least(kind):
    encoder = (
        AutoModel.from_config(CONFIGS[kind], add_pooling_layer=False)
        if kind != "dinov2"
        else AutoModel.from_config(CONFIGS[kind])
    )
    parameters = list(encoder.parameters())
    groups = [{"params": parameters[::2], "lr": 1.0, "weight_decay": 0.1}, {"params": parameters[1::2], "lr": 1.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    decay_layers(optimizer, blocks_above(encoder), 0.5)
    rate = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(rate) == len(parameters)
    by_name = {name: rate[parameter] for name, parameter in encoder.named_parameters()}
    assert sorted({*by_name.values()}) == [0.125, 0.25, 0.5, 1.0]
    assert {by_name[name] for name in by_name if name.startswith("embeddings.")} == {0.125}
    assert {by_name[name] for name in by_name if name.startswith("layernorm.")} == {1.0}
    assert list(by_name.values()) == sorted(by_name.values())
    decayed = {parameter for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]}
    assert decayed == set(parameters[::2])
