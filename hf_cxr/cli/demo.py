"""The whole way on the embedded collection: prepare, pretrain, fine-tune, evaluate, card, three studies shown."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path

from PIL import Image

from hf_cxr import pack_views
from hf_cxr.cli.terminal import print_report
from hf_cxr.config import parse_arguments
from hf_cxr.data.prepare import format_preparation, load_prepared, prepare
from hf_cxr.training.run import train

SHOWN = 3
THUMBNAIL = 256  # pixels a panel


def demo(out: Path, seed: int = 0, num_studies: int = 8000) -> None:
    """Run the demo into the folder `out`; what was there from an earlier demo is replaced."""
    dataset = out / "dataset"
    kit, args = parse_arguments(
        packaged_config("demo.yaml"),
        ["--dataset", str(dataset), "--output_dir", str(out), "--seed", str(seed), "--restart"],
    )
    print(f"1. Drawing {num_studies} synthetic studies, seed {seed}", flush=True)
    preparation = prepare(
        "phantom",
        dataset,
        size=kit.panel_size,
        seed=seed,
        num_studies=num_studies,
        num_proc=min(os.cpu_count() or 1, 8),
        overwrite=True,
    )
    print(format_preparation(preparation))
    print("2. Training: the encoder learns findings, then the model learns to write", flush=True)
    report = train(kit, args)
    if report:  # of few studies none is in the test split
        show_studies(out, dataset)
    print_report(report, str(out))


def show_studies(run: Path, dataset: Path) -> None:
    """Print truth and output of the first abnormal test studies and save their images as `examples.png`."""
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    test = load_prepared(str(dataset))["test"]
    chosen = [index for index, tags in enumerate(test["tags"]) if tags][:SHOWN]
    sheet = Image.new("RGB", (2 * THUMBNAIL, THUMBNAIL * max(1, len(chosen))))
    print(f"\n3. Test studies, images in {run / 'examples.png'}")
    for place, index in enumerate(chosen):
        study, row = test[index], rows[index]
        sheet.paste(pack_views(study["frontal"], study["lateral"], size=THUMBNAIL), (0, place * THUMBNAIL))
        print(f"   {row['uid']}\n     truth:  {row['impression']}")
        print(f"     output: {row['prediction']} (score {row['score']:.2f})")
    sheet.save(run / "examples.png")


def packaged_config(name: str) -> Path:
    """A recipe of `configs/`: inside the package when installed, at the top level in a checkout."""
    packaged = Path(str(resources.files("hf_cxr"))) / "configs" / name
    return packaged if packaged.is_file() else Path(__file__).parents[2] / "configs" / name
