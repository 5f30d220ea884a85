"""The global batch of a recipe is kept whatever the devices, or refused in one line that says what to do."""

import pytest
from helpers import TINY_RECIPE, write_config

from hf_cxr.config import parse_arguments, resolved_config
from hf_cxr.training.launch import cut_global_batch


def arguments(folder, devices: int = 1, **values):
    kit, args = parse_arguments(write_config(folder / "c.yaml", **TINY_RECIPE, dataset="d", **values))
    vars(args)["_n_gpu"] = devices  # as many GPUs under one process: counted like as many processes
    return kit, args


@pytest.mark.parametrize(
    ("devices", "whole", "batch", "chosen"),
    [
        (1, 32, 16, (16, 2)),
        (8, 32, 16, (4, 1)),
        (2, 32, 16, (16, 1)),
        (1, 32, 64, (32, 1)),
        (1, 48, 20, (16, 3)),
        (4, 256, 8, (8, 8)),
        (2, None, 8, (8, 1)),
    ],
)
def test_the_global_batch_is_kept_on_any_number_of_devices(tmp_path, devices, whole, batch, chosen):
    stated = {"global_batch_size": whole} if whole else {}
    kit, args = arguments(tmp_path, devices, per_device_train_batch_size=batch, **stated)
    line = cut_global_batch(kit, args)
    size, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    assert (size, accumulated) == chosen
    assert size * accumulated * devices == kit.global_batch_size == (whole or batch * devices)
    assert f"{kit.global_batch_size} studies = {size} × {devices} device(s) × {accumulated} accumulated" in line
    assert (f"{batch} lowered to {size}" in line) == (size < batch)
    assert cut_global_batch(kit, args).startswith(line.split(" (per_device")[0]), "a second time changes nothing"


def test_a_resolved_config_says_the_same_on_another_number_of_devices(tmp_path):
    kit, args = arguments(tmp_path, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    cut_global_batch(kit, args)
    kit, args = parse_arguments(write_config(tmp_path / "again.yaml", **resolved_config(kit, args)))
    vars(args)["_n_gpu"] = 2
    cut_global_batch(kit, args)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 2)


@pytest.mark.parametrize(
    ("devices", "values", "message"),
    [
        (1, {"gradient_accumulation_steps": 1}, "is 32, but gradient_accumulation_steps 1 × .*size 16 × 1 .* is 16;"),
        (8, {"gradient_accumulation_steps": 2}, "is 32, but gradient_accumulation_steps 2 × .*size 16 × 8 .* is 256;"),
        (3, {}, "3 devices cannot share 32 studies equally; take 30 or 33"),
        (64, {}, "64 devices cannot share 32 studies equally; take 64$"),
        (1, {"global_batch_size": 0}, "global_batch_size is 1 or more, not 0"),
        (1, {"per_device_train_batch_size": 0}, "per_device_train_batch_size is 1 or more, not 0"),
    ],
)
def test_a_global_batch_that_cannot_be_kept_is_refused(tmp_path, devices, values, message):
    values = {"global_batch_size": 32, "per_device_train_batch_size": 16} | values
    with pytest.raises(ValueError, match=message):
        cut_global_batch(*arguments(tmp_path, devices, **values))


def test_an_accumulation_that_agrees_with_the_global_batch_is_taken(tmp_path):
    values = {"global_batch_size": 32, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 8}
    kit, args = arguments(tmp_path, **values)
    cut_global_batch(kit, args)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (4, 8)
