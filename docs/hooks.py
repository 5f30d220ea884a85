"""Pages of the documentation site that are made, not written: the notebooks with the outputs they are committed with,
the reference of the Python names and of the command line, and the benchmarks' results. mkdocs calls the two `on_`
functions; nothing is written to the checkout."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("../benchmarks/RESULTS.md", "benchmarks.md")  # where it lies in the checkout, and on the site


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for place, content in [*notebooks(), ("python.md", python()), ("command_line.md", command_line())]:
        files.append(File.generated(config, place, content=content))
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    files.append(File.generated(config, RESULTS[1], content=results.replace("](../docs/", "](")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links of the written pages to files outside of docs/ lead to the pages made of them."""
    markdown = re.sub(r"\]\(\.\./notebooks/(\w+)\.ipynb", r"](tutorials/\1.md", markdown)
    return markdown.replace(f"]({RESULTS[0]}", f"]({RESULTS[1]}")


def notebooks() -> Iterator[tuple[str, str | bytes]]:
    """Each notebook as Markdown, and its images."""
    from nbconvert import MarkdownExporter

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        names = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
        body, resources = MarkdownExporter().from_filename(str(path), resources=names)
        body = re.sub(r"\((\w+)\.ipynb\)", r"(\1.md)", body).replace("](../docs/", "](../")
        yield f"tutorials/{path.stem}.md", body.replace("![png]", "![output of the cell above]")
        for name, content in resources["outputs"].items():
            yield f"tutorials/{name}", content


def python() -> str:
    """A directive of mkdocstrings for every public name of the kit, by package."""
    import hf_cxr

    lines = [
        "# Python reference",
        "",
        "Each name is imported from `hf_cxr`: `hf_cxr.prepare`, `hf_cxr.pack_views`, …",
        "",
    ]
    for name in sorted(hf_cxr.__all__, key=str.lower):
        if not name.startswith("_"):
            thing = getattr(hf_cxr, name)
            lines += [
                f"::: {thing.__module__}.{thing.__qualname__}",
                f"    options: {{heading: {name}, toc_label: {name}}}",
                "",
            ]
    return "\n".join(lines)


def command_line() -> str:
    """What `hf-cxr COMMAND --help` prints, command by command."""
    from hf_cxr.cli.parser import make_parser

    os.environ |= {"COLUMNS": "80", "NO_COLOR": "1"}
    commands = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    lines = ["# Command line reference", "", "`hf-cxr COMMAND --help` prints the same.", ""]
    lines += [
        '`eval "$(hf-cxr --print-completion bash)"` lets the shell complete commands and options (also `zsh`, …).',
        "",
    ]
    for name, parser in commands.choices.items():
        lines += [f"## hf-cxr {name}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)
