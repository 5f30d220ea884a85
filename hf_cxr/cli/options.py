"""What the definitions of the commands share: the parser, kinds of arguments, and the options that were given."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from hf_cxr.evaluation.clinical import Clinical

BAD_INPUT, INTERRUPTED = 2, 130
CLINICAL = ("f1chexbert", "radgraph", "ratescore", "green", "bertscore")  # those of hf_cxr.evaluation.report.tables
BOOLEANS = [[word] for word in "true false yes no on off t f y n 1 0".split()]


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    commands: dict[str, Parser]

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def option(self, name: str, help: str, **settings: Any) -> None:
        """An option whose help tells its default, unless it does so in words."""
        default = settings.get("default")
        if settings.get("action") == "store_true":
            help += " (default: off)"
        elif settings.get("required"):
            help += " (required)"
        elif default is not None and "default" not in help:
            help += " (default: %(default)s)"
        self.add_argument(name, help=help, **settings)

    def names(self) -> list[str]:
        """The options, without their dashes."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]

    def takes_no_value(self, name: str, following: Sequence[str]) -> bool:
        """Whether this option, with this word after it, is a flag that stands alone, although it may have a value."""
        action = self._option_string_actions.get(f"--{name}")
        return action is not None and action.nargs == "?" and [word.lower() for word in following] not in BOOLEANS


def count(text: str) -> int:
    """An argument that is 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def clinical_options(parser: Parser) -> None:
    """The options of the clinical metrics."""
    parser.option(
        "--clinical",
        "clinical metrics of RadEval to score by too, of the model's texts, the same on shuffled images and the best "
        f"constant: {', '.join(CLINICAL)} (default: none)",
        nargs="+",
        choices=CLINICAL,
        metavar="METRIC",
    )
    parser.option(
        "--clinical-env", "virtual environment that they run in (default: the one that runs this)", metavar="DIR"
    )
    parser.option(
        "--install",
        "make the environment of --clinical-env where it is not complete, and let metrics fetch their models; without "
        "it nothing is downloaded",
        action="store_true",
    )


def clinical_asked(options: argparse.Namespace) -> Clinical | None:
    """What the options of the clinical metrics say; `None` without any."""
    if not options.clinical:
        if options.clinical_env or options.install:
            raise ValueError("--clinical-env and --install go with --clinical METRIC …")
        return None
    from hf_cxr.evaluation.clinical import Clinical

    return Clinical(options.clinical, options.clinical_env, options.install)


def chosen(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of these names that have a value."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}
