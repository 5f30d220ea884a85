"""The whole way on the embedded collection: prepare, pretrain, fine-tune, evaluate, card, three studies shown."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw

from hf_cxr import pack_views
from hf_cxr.cli.terminal import print_report
from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments, parse_arguments, recipe, resolved_config
from hf_cxr.data.prepare import format_preparation, prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.training.checkpoints import PROGRESS, UNSAID, only_run_in, read_progress
from hf_cxr.training.launch import cut_global_batch
from hf_cxr.training.run import train
from hf_cxr.training.samples import INK, LINE, MARGIN, text_font, wrap
from hf_cxr.utils.files import is_empty, json_object, replace_files

MARKER = "demo.json"  # written before all else into a demo's folder: the config of its run
PRETRAINING, FINE_TUNING = 24_000, 12_000  # studies to see at least, some of them again: 2 minutes on 2 CPU cores
FEWEST = 1000  # of 400 studies a model learned nothing in that time, measured
SHOWN = 3
PANEL = 256  # pixels


def demo(out: Path, seed: int = 0, num_studies: int = 8000) -> None:
    """Run the demo into the folder `out`; what was there from an earlier demo is replaced.

    Raises `FileExistsError` if the folder holds anything that no demo made.
    """
    restart = ["--restart"] if holds_a_demo(out) else []
    kit, args = arguments(out, num_studies, ["--seed", str(seed), *restart])
    if num_studies < FEWEST:
        print(f"From {num_studies} studies a model learns nothing: this only shows that every step runs.", flush=True)
    with only_run_in(out):
        (out / PROGRESS).unlink(missing_ok=True)  # of an earlier demo's run, which is another one than the marker's
        replace_files(out, {MARKER: json.dumps(resolved_config(kit, args), indent=2, default=str) + "\n"})
    print(f"1. Draw {num_studies:,} synthetic studies with reports, and prepare them as a dataset", flush=True)
    preparation = prepare(
        "phantom",
        kit.dataset,
        size=kit.panel_size,
        seed=seed,
        num_studies=num_studies,
        num_proc=min(os.cpu_count() or 1, 8),
        overwrite=True,
    )
    print(format_preparation(preparation))
    print("\n2. Train a small model: first its encoder on findings, then all of it on reports", flush=True)
    report = train(kit, args)
    if report:  # of few studies none is in the test split
        print(f"\n3. Look at test studies, which it has never seen: {out / 'examples.png'}")
        show_studies(out, kit.dataset)
        print("\n4. Compare it with baselines that see no image, and with itself on the images of other patients")
    print_report(report, str(out))


def arguments(
    out: Path, num_studies: int, words: Sequence[str] = ()
) -> tuple[ImpressionConfig, ImpressionTrainingArguments]:
    """Those of the recipe; of a small collection each study is seen more often."""
    places = ["--dataset", str(out / "dataset"), "--output_dir", str(out)]
    kit, args = parse_arguments(recipe("demo"), [*places, *words])
    if num_studies >= FEWEST:
        kit.findings_pretraining_epochs = max(kit.findings_pretraining_epochs, round(PRETRAINING / num_studies))
        args.num_train_epochs = max(args.num_train_epochs, round(FINE_TUNING / num_studies))
    cut_global_batch(kit, args)  # as the run will record it
    return kit, args


def holds_a_demo(out: Path) -> bool:
    """Whether a folder holds an earlier demo, finished or not; `False` where there is nothing yet.

    Raises `FileExistsError` if it holds anything else: no marker, or a run that was trained there later.
    """
    if not out.is_dir() or is_empty(out):
        return False
    progress = read_progress(out) or {}
    if (out / MARKER).is_file():
        made = json_object(out / MARKER)
        run = UNSAID | progress.get("config", {})
        same = not progress or all(run.get(name) == value for name, value in made.items())
        if "dataset" in made and same:
            return True
    what = f"a training run ({progress['stage']})" if progress else "files"
    raise FileExistsError(f"{out}: holds {what} that no demo made, and a demo would replace; choose another --out")


def show_studies(run: Path, dataset: str) -> None:
    """Print truth and output of the first abnormal test studies, and save `examples.png`: both below the images."""
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    test = load_prepared(dataset)["test"]
    font, shown = text_font(), []
    abnormal = [index for index, tags in enumerate(test["tags"]) if tags]
    for index in (abnormal or list(range(len(test))))[:SHOWN]:
        study, row = test[index], rows[index]
        lines = [f"truth:  {row['impression']}", f"output: {row['prediction']} (score {row['score']:.2f})"]
        print("   " + "\n     ".join([row["uid"], *lines]))
        captions = [part for line in lines for part in wrap(line, font, 2 * PANEL - 2 * MARGIN)]
        shown.append((pack_views(study["frontal"], study["lateral"], size=PANEL), captions))
    heights = [PANEL + LINE * len(captions) + 2 * MARGIN for _, captions in shown]
    sheet = Image.new("RGB", (2 * PANEL, sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for (canvas, captions), top in zip(shown, accumulate(heights, initial=0), strict=False):
        sheet.paste(canvas, (0, top))
        pen.multiline_text((MARGIN, top + PANEL + MARGIN // 2), "\n".join(captions), INK, font)
    sheet.save(run / "examples.png")
