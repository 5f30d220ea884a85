"""What a person reads in the terminal: tables aligned for 80 columns, one line a study, and what to do next."""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

WIDTH = 80
RESEARCH_USE = "Research use only, not for diagnosis."


def print_next(*steps: str) -> None:
    """The last line of a command: what to do now."""
    print("Next: " + printable(" · ".join(steps)))


def printable(text: str) -> str:
    """The text with what a terminal would obey, control characters and changes of direction, written out."""
    return "".join(repr(sign)[1:-1] if _is_obeyed(sign) else sign for sign in text)


def _is_obeyed(sign: str) -> bool:
    return not sign.isprintable() and unicodedata.category(sign) != "Zs"  # spaces of every width


class Printable:
    """A stream that writes out what a terminal would obey, whoever prints, logs or warns on it, and as JSON writes it,
    so that JSON on it stays the same. Ends of lines and tabs are kept, and what tqdm writes around a bar: a return
    before it, and lines up.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if not re.fullmatch(r"\n*(\x1b\[A)*", text):
            start = "\r" if text.startswith("\r") else ""
            signs = text[len(start) :]
            text = start + "".join(
                json.dumps(sign)[1:-1] if _is_obeyed(sign) and sign not in "\n\t" else sign for sign in signs
            )
        return self.stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def spell_out() -> None:
    """From now on nothing that this process prints can steer the terminal."""
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), Printable):
            setattr(sys, name, Printable(stream))


def command(*words: object) -> str:
    """Words as one types them."""
    return shlex.join(map(str, words))


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of at most 80 columns: names on the left, broken into lines where they are long, numbers on the right.

    A heading may be of several lines.
    """
    heads = [cell.splitlines() or [""] for cell in head]
    high = max(map(len, heads))
    heads = [[""] * (high - len(cell)) + cell for cell in heads]
    widths = [max(map(len, [*heads[i], *(row[i] for row in rows)])) for i in range(1, len(head))]
    space = min(WIDTH - sum(width + 2 for width in widths), max(len(row[0]) for row in rows))
    lines = [("", [cell[number] for cell in heads[1:]]) for number in range(high)]
    for name, *cells in rows:
        *above, last = textwrap.wrap(name, space, subsequent_indent="  ")
        lines += [(line, [""] * len(cells)) for line in above] + [(last, cells)]
    return "\n".join(
        (
            name.ljust(space) + "".join(cell.rjust(width + 2) for cell, width in zip(cells, widths, strict=True))
        ).rstrip()
        for name, cells in lines
    )


def print_report(report: Mapping[str, Any] | None, folder: str | None, checkpoint: str | None = None) -> None:
    """The score table and the verdict of a report that was written to `folder`, and what to do next.

    Args:
        checkpoint: what was evaluated; default: the run in `folder`.
    """
    from hf_cxr.evaluation.report import tables
    from hf_cxr.evaluation.report.tables import COLUMNS, TITLES, baselines, counted, readable, scope, unread_note
    from hf_cxr.utils.plots import score

    if report is None:
        print("Not evaluated: the dataset has no test studies.")
    else:
        note = unread_note(report)
        shown = {key: COLUMNS[key] for key in readable(report, COLUMNS)}
        heads = [name.replace("finding F1 (", "F1\n").rstrip(")") for name in shown.values()]
        rows = {"model": report} | baselines(report)
        parts = {name: part for name, part in report.get("sections", {}).items() if name != "impression"}
        rows |= {f"model, {TITLES.get(name, name)}": part for name, part in parts.items()}
        cells = [[name, *(score(scores.get(key)) for key in shown)] for name, scores in rows.items()]
        outputs = counted(report["distinct_outputs"], "distinct output", "distinct outputs")
        print(f"\n{aligned(['', *heads], cells)}\n{textwrap.fill(note, WIDTH) or '(F1: finding F1)'}\n")
        had = {name: part for name, part in report.get("clinical", {}).items() if "unavailable" not in part}
        if had:
            keys = ("score", "shuffled", "constant")
            cells = [[tables.CLINICAL[name], *(score(part.get(key)) for key in keys)] for name, part in had.items()]
            print(aligned(["", "model", "images\nshuffled", "best\nconstant"], cells), end="\n\n")
        print(f"{outputs} on {counted(report['n'], 'study', 'studies')}.")
        for line in filter(None, (scope(report), report["verdict"])):
            print(textwrap.fill(line, WIDTH))
        for name, part in parts.items():
            print(textwrap.fill(f"{TITLES.get(name, name)}: {part['verdict']}", WIDTH))
    print(f"{f'Written to {folder}. ' if folder else ''}{RESEARCH_USE}")
    page = [command("open", f"{folder}/report.html")] if folder and report else []
    more = [] if report and report.get("panels") == 1 else ["--lateral IMAGE"]
    more += [f"--{name} TEXT" for name in (report or {}).get("context", ()) if name != "age_sex"]
    options = "".join(f" [{option}]" for option in more)
    if report and "texts_of" in report:
        return print_next(*page, f"{command('hf-cxr', 'compare', folder or 'OUT')} RUN")
    print_next(*page, f"{command('hf-cxr', 'predict', checkpoint or folder)} --frontal IMAGE{options}")


def print_comparison(comparison: Mapping[str, Any]) -> None:
    """Both runs' main scores side by side, and the verdict."""
    from hf_cxr.evaluation.compare import shown

    rows = []
    for title, row in shown(comparison):
        low, high = row["ci95"]
        numbers = [f"{row['a']:.3f}", f"{row['b']:.3f}", f"{row['difference']:+.3f}", f"{low:+.3f} to {high:+.3f}"]
        rows.append([title, *numbers, f"{row['probability']:.2f}"])
    print(f"A: {comparison['a']}, B: {comparison['b']}, {comparison['n']} studies\n")
    print(aligned(["", "A", "B", "B − A", "95 % interval", "probability\nB is better"], rows))
    print(f"\n{textwrap.fill(comparison['verdict'], WIDTH)}")


def print_comparison_of_several(comparison: Mapping[str, Any]) -> None:
    """All runs' main scores, every pair's difference, and the verdict, section by section."""
    from hf_cxr.evaluation.compare_several import pair_cells, parts_of
    from hf_cxr.evaluation.report.tables import CLINICAL, COLUMNS

    heads = [name.replace("finding F1 (", "F1\n").rstrip(")") for name in COLUMNS.values()]
    print(f"{len(comparison['runs'])} runs, {comparison['n']} studies")
    for name, part in parts_of(comparison).items():
        columns = ([f"{run['value']:.3f}" for run in part["scores"][key]] for key in COLUMNS)
        (_, *pair_heads), pairs = pair_cells(part)
        print(f"\n{name}\n" if name else "")
        print(f"{aligned(['', *heads], list(zip(comparison['runs'], *columns, strict=True)))}\n(F1: finding F1)\n")
        if clinical := [key for key in CLINICAL if key in part["scores"]]:
            columns = ([f"{run['value']:.3f}" for run in part["scores"][key]] for key in clinical)
            heads_of = [CLINICAL[key].partition(" (")[0].replace(" ", "\n") for key in clinical]
            print(f"{aligned(['', *heads_of], list(zip(comparison['runs'], *columns, strict=True)))}\n")
        print(aligned(["", *(head.replace(" in ", " in\n") for head in pair_heads)], pairs))
        print(f"\n{textwrap.fill(part['verdict'], WIDTH)}")


def print_answer(uid: str | None, answer: dict[str, Any], as_json: bool) -> None:
    """One study of `predict`: a JSON object, or its text and score on one line, its warnings on stderr."""
    if as_json:
        row = {key: value for key, value in ({"uid": uid} | answer).items() if value is not None}
        return print(json.dumps(row, ensure_ascii=False), flush=True)
    prefix = f"{printable(uid)}\t" if uid is not None else ""
    warnings = list(answer.get("warnings", ()))
    if answer.get("truncated"):
        warnings.append("the text was cut short, by --max-new-tokens or by the checkpoint's own limit")
    for warning in warnings:
        print(f"{prefix}warning: {printable(warning)}", file=sys.stderr)
    print(prefix + printable(_answer_line(answer)), flush=True)


def _answer_line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"not read: {row['error']}"
    sections = {name: row[name] or "(no text)" for name in ("findings", "impression") if name in row}
    marked = len(sections) > 1
    text = " ".join(f"{name}: {text}" if marked else text for name, text in sections.items())
    text = "abstained" if row.get("abstained") else text
    return f"{text} (score {row['score']:.2f})"
