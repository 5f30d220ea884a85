"""What the model writes for a few validation studies, at each evaluation: as images, as rows, and in the trackers.

Radiographs and reports are patient data. The files and the trackers on this machine always show them; a tracker on
another machine gets them only where the run is told to share.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from transformers import TrainerCallback

from hf_cxr.data.collator import CanvasDataset
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.inference.views import VIEWS
from hf_cxr.training.callbacks import read_lines, write_lines
from hf_cxr.utils.files import replace_files
from hf_cxr.utils.progress import ProgressBar

SIDE, TEXT_WIDTH, MARGIN = 224, 620, 16  # pixels: one panel, the column of text, the space around both
FONT_SIZE, LINE = 14, 19
MOST_LINES = 8  # of one text in the image; the row and the trackers hold all of it
INK, GREY, GREEN, RED, ORANGE = "#111111", "#6b6b6b", "#1a7f37", "#cf222e", "#b35900"


@dataclass(frozen=True)
class Sample:
    """One study at one evaluation: the canvas, what the radiologist wrote of it, what the model wrote."""

    uid: str
    canvas: np.ndarray
    truth: str
    prediction: str


@dataclass(eq=False)
class SampleCallback(TrainerCallback):
    """At each evaluation, shows `count` studies, the same each time, spread over the split; all of a smaller split."""

    canvases: CanvasDataset  # the split that is evaluated
    uids: Sequence[str]  # its studies, in its order
    read: Callable[[], list[tuple[str, str]]]  # gives (truth, output) of the latest evaluation, in its order too
    folder: Path  # takes `step-000040.png` and `samples.jsonl`
    count: int
    share: bool  # whether trackers on other machines get them, too
    target: str = "impression"  # what these texts are
    callbacks: Sequence[TrainerCallback] = ()  # the trainer's; tensorboard's keeps the writer that is used here
    withheld: set[str] = field(default_factory=set)  # the trackers that got none

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        pairs = self.read()
        if not state.is_world_process_zero or not pairs:
            return
        places = sorted({round(place) for place in np.linspace(0, len(pairs) - 1, self.count)})
        samples = [Sample(str(self.uids[row]), self.canvases.canvas(row), *pairs[row]) for row in places]
        write_files(self.folder, samples, state.global_step, self.target)
        if "tensorboard" in args.report_to:
            to_tensorboard(self.callbacks, samples, state.global_step)
        for tracker, hosted, log in (("wandb", wandb_hosted, to_wandb), ("trackio", trackio_hosted, to_trackio)):
            if tracker not in args.report_to:
                continue
            if self.share or not hosted():
                log(samples, state.global_step)
            elif tracker not in self.withheld:
                self.withheld.add(tracker)
                ProgressBar.write(
                    f"Samples are not sent to {tracker}: they are patient data; share_samples: true sends them"
                )


# --- trackers ----------------------------------------------------------------------------------------------------


def to_tensorboard(callbacks: Sequence[TrainerCallback], samples: Sequence[Sample], step: int) -> None:
    """One image and one text for each study, with the writer of the Trainer's own callback."""
    for writer in filter(None, (getattr(callback, "tb_writer", None) for callback in callbacks)):
        for sample in samples:
            tag = f"samples/{sample.uid}"
            writer.add_image(tag, np.asarray(draw(sample)), step, dataformats="HWC")
            writer.add_text(tag, f"**truth** {sample.truth}\n\n**output** {sample.prediction}", step)
        writer.flush()


def wandb_hosted() -> bool:
    """Whether what is logged leaves this machine: in every mode but offline and disabled."""
    import wandb

    return wandb.run is not None and not (wandb.run.offline or wandb.run.disabled)


def to_wandb(samples: Sequence[Sample], step: int) -> None:
    """Images with captions: those of a `wandb.Table` would lie in a cache of the home folder, outside the run's."""
    import wandb

    if wandb.run is not None:  # the step is a value, as in the Trainer's own rows: wandb counts for itself
        images = [
            wandb.Image(draw(each), caption=f"{each.uid}\ntruth: {each.truth}\noutput: {each.prediction}")
            for each in samples
        ]
        wandb.log({"samples": images, "train/global_step": step})


def trackio_hosted() -> bool:
    """Whether what is logged leaves this machine: to a Space, or to a server of one's own."""
    from trackio import context_vars

    return bool(context_vars.current_space_id.get() or context_vars.current_server.get())


def to_trackio(samples: Sequence[Sample], step: int) -> None:
    import trackio

    rows = [
        {"uid": each.uid, "canvas": trackio.Image(each.canvas), "truth": each.truth, "output": each.prediction}
        for each in samples
    ]
    trackio.log({"samples": trackio.Table(data=rows), "train/global_step": step})


# --- files -------------------------------------------------------------------------------------------------------


def write_files(folder: Path, samples: Sequence[Sample], step: int, target: str = "impression") -> None:
    """Write the contact sheet of `step`, and its rows behind those of earlier steps; each file whole or not at all."""
    sheet = io.BytesIO()
    contact_sheet(samples, f"step {step}").save(sheet, format="PNG")
    replace_files(folder, {f"step-{step:06d}.png": sheet.getvalue()})
    file = folder / "samples.jsonl"
    earlier = [row for row in read_lines(file) if row["step"] < step]  # a resumed run evaluates some steps again
    rows = [{"step": step, "uid": each.uid, target: each.truth, "prediction": each.prediction} for each in samples]
    write_lines(file, [*earlier, *rows])


def contact_sheet(samples: Sequence[Sample], title: str) -> Image.Image:
    """The drawn samples below each other, under a title."""
    images = [draw(sample) for sample in samples]
    head = LINE + MARGIN
    sheet = Image.new("RGB", (images[0].width, head + sum(image.height for image in images)), "white")
    pen, top = ImageDraw.Draw(sheet), head
    pen.text((MARGIN, MARGIN), title, INK, text_font())
    for image in images:
        sheet.paste(image, (0, top))
        pen.line((MARGIN, top, sheet.width - MARGIN, top), "#d0d0d0")
        top += image.height
    return sheet


@cache
def text_font() -> ImageFont.FreeTypeFont:
    """Pillow's own font knows English only; matplotlib's has the letters of every language but East Asia's."""
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(font), FONT_SIZE)  # earlier Pillows take no Path


def draw(sample: Sample) -> Image.Image:
    """A sample as an RGB image: the canvas, beside it both texts, then the findings they share and do not share."""
    font = text_font()
    lines = [(line, GREY) for line in wrap(f"study {sample.uid}", font, most=2)]
    for name, text in (("truth", sample.truth), ("output", sample.prediction)):
        lines += [("", GREY), (name, GREY), *((line, INK) for line in wrap(text, font))]
    lines.append(("", GREY))
    truth, output = positive_findings(sample.truth), positive_findings(sample.prediction)
    for name, found, colour in (
        ("in common", truth & output, GREEN),
        ("missed", truth - output, RED),
        ("invented", output - truth, ORANGE),
    ):
        if found:
            lines += [(line, colour) for line in wrap(f"{name}: {', '.join(sorted(found))}", font)]
    height = max(SIDE, LINE * len(lines)) + 2 * MARGIN
    image = Image.new("RGB", (2 * SIDE + TEXT_WIDTH + 3 * MARGIN, height), "white")
    panels = sample.canvas.shape[1] // sample.canvas.shape[0]
    image.paste(Image.fromarray(sample.canvas).resize((panels * SIDE, SIDE)), (MARGIN, MARGIN))
    pen = ImageDraw.Draw(image)
    for place, (view, panel) in enumerate(zip(VIEWS, np.hsplit(sample.canvas, panels), strict=False)):
        if not panel.any():
            middle = (MARGIN + SIDE * (place + 0.5), MARGIN + SIDE / 2)
            pen.text(middle, f"no {view}", "#a0a0a0", font, anchor="mm")
    for place, (line, colour) in enumerate(lines):
        pen.text((2 * SIDE + 2 * MARGIN, MARGIN + LINE * place), line, colour, font)
    return image


def wrap(text: str, font, width: int = TEXT_WIDTH, most: int = MOST_LINES) -> list[str]:
    """Cut a text into at most `most` lines of `width` pixels, between words where there are any."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            lines += [""] if font.getlength(lines[-1] + character) > width else []
            lines[-1] += character
    if len(lines) > most:
        last = lines[most - 1]
        while font.getlength(last + " …") > width:
            last = last[:-1]
        lines[most - 1 :] = [last + " …"]
    return lines
