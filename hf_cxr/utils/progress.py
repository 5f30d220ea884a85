"""How far long work has come: a bar on a terminal, flushed lines in a log file. The work itself lives elsewhere."""

from __future__ import annotations

import io
import math
import sys
from typing import Any

from tqdm import tqdm

SECONDS, LINES = 30, 100  # in a log file: lines are at least so far apart, and at most so many


class ProgressBar(tqdm):
    """`tqdm` that prints a line now and then, ended and flushed, where stderr is no terminal.

    Args:
        plain: whether to print lines; default: where stderr is no terminal.
        args, kwargs: those of `tqdm`.
    """

    def __init__(self, *args: Any, plain: bool | None = None, **kwargs: Any) -> None:
        self.plain = not sys.stderr.isatty() if plain is None else plain
        self.shown: float = -1
        if self.plain:  # the file swallows what tqdm writes around a bar to move the cursor
            total = kwargs.get("total") or (len(args[0]) if args and hasattr(args[0], "__len__") else 0)
            kwargs |= {"mininterval": SECONDS, "maxinterval": math.inf, "miniters": math.ceil(total / LINES) or 1}
            kwargs["file"] = io.StringIO()
        if not kwargs.get("disable"):  # then TQDM_DISABLE decides
            kwargs.pop("disable", None)
        super().__init__(*args, **{"dynamic_ncols": True} | kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if not self.plain:
            super().display(msg, pos)
        elif msg is None and self.n != self.shown:
            self.shown = self.n
            unit = "" if self.unit == "it" else f" {self.unit.strip()}"
            line = f"{{desc}}: {{n_fmt}} of {{total_fmt}}{unit}{{postfix}}, {{elapsed}} so far, {{remaining}} left"
            facts: dict[str, Any] = {**self.format_dict, "bar_format": line}
            print(self.format_meter(**facts), file=sys.stderr, flush=True)
