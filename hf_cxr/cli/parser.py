"""The `hf-cxr` command: arguments in, one clear line out when something is wrong. The work lives in `commands`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Sequence

from hf_cxr import __version__
from hf_cxr.cli.app import define_app
from hf_cxr.cli.commands import COMMANDS
from hf_cxr.cli.options import BAD_INPUT, INTERRUPTED, Parser, clinical_options, count
from hf_cxr.cli.predictions import define_export_predictions
from hf_cxr.cli.prepare import define_prepare, table_options
from hf_cxr.cli.push import define_push
from hf_cxr.cli.serving import define_export
from hf_cxr.cli.terminal import RESEARCH_USE, WIDTH, printable, spell_out
from hf_cxr.config.kit import FOREIGN, ImpressionConfig, closest
from hf_cxr.utils.places import advice, is_full

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
DTYPES = ("float32", "bfloat16", "float16")
DECODING = "mbr: of sampled texts one of findings most agreed on; search: stock generate"
OWN = " (default: the checkpoint's own)"
SECTIONS = ("impression", "findings")  # those of hf_cxr.inference.sections, whose import would be slow


class Override(argparse.Action):
    """An argument of a config, given on the command line: kept as a word for `hf_cxr.config.parse_arguments`."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.overrides = [*namespace.overrides, f"{option_string}={values}"]


# --- the commands ------------------------------------------------------------------------------------------------


def _explore(parser: Parser) -> None:
    """Show a prepared dataset in figures and images: an HTML page, PNG files and the same numbers as JSON.

    hf-cxr explore data/indiana --out runs/explore
    """
    parser.add_argument("dataset", help="prepared folder or Hub id")
    parser.option("--out", "folder to make", required=True)
    parser.option("--findings", "findings to show images of (default: the commonest)", nargs="+", default=())
    parser.option("--split", "describe this split only", default="all")
    parser.option("--seed", "seed of the studies that are shown", type=int, default=0)


def _download(parser: Parser) -> None:
    """Fetch a public collection; an interrupted download goes on where it stopped.

    hf-cxr download openi --out indiana/ --accept-licence
    """
    parser.add_argument("collection", help="openi (the Indiana University collection)")
    parser.option("--out", "folder for the archives", required=True)
    parser.option("--parts", "reports, png, dcm (default: reports png)", nargs="+", default=["reports", "png"])
    parser.option("--accept-licence", "you have read the licence and accept it", action="store_true")
    parser.option("--unpack", "also unpack them; prepare reads archives as they are", action="store_true")
    parser.option("--mirror", "take the archives from this address (default: the publisher's)", metavar="URL")
    parser.option("--workers", "files at a time", type=count, default=4)


def _train(parser: Parser) -> None:
    """Fine-tune as a recipe or a config of yours says; any of its arguments can be overridden.

    hf-cxr train iu_xray_vit_gpt2 --dataset data/indiana --output_dir runs/iu --seed 1
    """
    parser.usage = "hf-cxr train CONFIG [--resume | --restart] [--any_argument VALUE …]"
    parser.set_defaults(overrides=[])
    parser.add_argument("config", help="a recipe by its name (demo, iu_xray_small, …), or a flat YAML file of yours")
    parser.option("--num_processes", "start so many processes on this host (default: one a GPU)", type=count)
    parser.option(
        "--accelerate_config",
        "start as this YAML file of accelerate says, or one of the kit's by its name: ddp, fsdp2, … (default: none)",
    )
    more = (
        "These and all of transformers' Seq2SeqTrainingArguments (--learning_rate, --num_train_epochs, "
        "--per_device_train_batch_size, --output_dir, --seed, …) work here and in the config, by these names. A "
        "recipe has values of its own; the defaults hold where it says nothing."
    )
    group = parser.add_argument_group("arguments of the run", textwrap.fill(more, WIDTH - 2))
    for item in dataclasses.fields(ImpressionConfig):
        help = item.metadata["help"].rstrip(".")
        if item.default is dataclasses.MISSING:
            help += " (required, here or in the config)"
        elif item.default is not None:
            help += f" (default: {str(item.default).lower()})"
        flag = item.type in ("bool", bool)  # HfArgumentParser resolves the names in place
        group.add_argument(
            f"--{item.name}",
            action=Override,
            default=argparse.SUPPRESS,
            dest="overrides",
            help=help,
            metavar="true|false" if flag else "VALUE",
            nargs="?" if flag else None,
            const="true" if flag else None,
        )


def _evaluate(parser: Parser) -> None:
    """Score a checkpoint on a split, or the texts of any system, beside image-blind baselines and shuffled images.

    hf-cxr evaluate runs/iu data/indiana --split test --out runs/iu
    hf-cxr evaluate --predictions theirs.csv data/indiana --out runs/theirs
    """
    parser.usage = "hf-cxr evaluate CHECKPOINT DATASET [options]\n       "
    parser.usage += "hf-cxr evaluate --predictions FILE [DATASET | --train-texts FILE] [options]"
    parser.add_argument("checkpoint", nargs="?", help="run folder or Hub id (none with --predictions)")
    parser.add_argument("dataset", nargs="?", help="prepared folder or Hub id")
    parser.option(
        "--predictions",
        "texts of any system: a table with columns uid and prediction and, without a dataset, reference "
        "(default: the checkpoint's)",
        metavar="FILE",
    )
    parser.option("--section", "--predictions only: what the texts are (default: impression)", choices=SECTIONS)
    parser.option(
        "--train-texts",
        "--predictions without a dataset: texts that baselines know, a .txt file with one a line or a table with a "
        "column reference (default: no baselines)",
        metavar="FILE",
    )
    parser.option("--split", "split to evaluate on", default="test")
    parser.option("--revision", "branch, tag or commit of a checkpoint on the Hub (default: its main branch)")
    parser.option("--dataset-revision", "the same of a dataset on the Hub (default: its main branch)")
    parser.option("--out", "folder for report.html, .md, .json and predictions.jsonl (default: none is written)")
    parser.option("--batch-size", "studies at once", type=count, default=32)
    parser.option("--num-beams", "beams of the search; 1 is greedy (default: the checkpoint's own)", type=count)
    tuned = "; tuned: search, with settings chosen on the validation split for this report"
    parser.option("--decode", DECODING + tuned + OWN, choices=("mbr", "search", "tuned"))
    parser.option("--max-new-tokens", "longest text, in tokens (default: the checkpoint's own)", type=count)
    parser.option(
        "--target",
        "what a model that others made writes, so what it is scored by (default: what the checkpoint says, or the "
        "impression)",
        choices=("impression", "findings"),
    )
    parser.option("--dtype", "numbers to compute with (default: as the checkpoint's config says)", choices=DTYPES)
    parser.option("--seed", "seed of baselines, shuffles and intervals", type=int, default=0)
    parser.option("--no-probes", "no linear probes on the encoder and on pixels", action="store_true")
    clinical_options(parser)
    parser.option("--json", "print the report as JSON, and nothing else, to stdout", action="store_true")


def _compare(parser: Parser) -> None:
    """Compare evaluated runs on the same studies: their scores, and which differences are more than chance.

    hf-cxr compare runs/a runs/b
    """
    parser.add_argument("run_a", help="folder with the predictions.jsonl of run A")
    parser.add_argument("run_b", help="folder with the predictions.jsonl of run B")
    parser.add_argument("more", help="folders of further runs, for a table of all pairs", nargs="*")
    parser.option(
        "--out", "JSON file to write; of more than two runs, folder for compare.html and .json (default: none)"
    )
    parser.option("--seed", "seed of the bootstrap", type=int, default=0)
    parser.option("--json", "print the comparison as JSON, and nothing else, to stdout", action="store_true")


def _predict(parser: Parser) -> None:
    """Write the impression of one study, or of many. Research use only, not for diagnosis.

    hf-cxr predict runs/iu --frontal frontal.png --lateral lateral.png
    """
    option = parser.option
    parser.add_argument("checkpoint", help="run folder, Hub id, or folder that hf-cxr export wrote")
    option("--revision", "branch, tag or commit of a checkpoint on the Hub (default: its main branch)")
    option(
        "--frontal",
        "frontal radiograph (PNG, JPEG or DICOM), or a folder of many, and --lateral likewise: the files of a study "
        "have the same name in both (default: the study has none)",
    )
    option("--lateral", "lateral radiograph, or a folder of them (default: the study has none)")
    asked = "of one study, for a checkpoint that learned with it (default: none is given)"
    option("--indication", f"the clinical question {asked}", metavar="TEXT")
    option("--comparison", f"earlier studies that the reader had {asked}", metavar="TEXT")
    option("--age", f"years, {asked}", type=float)
    option("--sex", f"F, M or O, {asked}")
    option("--csv", "many studies: any table that hf-cxr prepare table reads; it needs no texts (default: one study)")
    table_options(
        parser, "--csv only", "--csv only: folder that its image paths are relative to (default: that of the table)"
    )
    option("--batch-size", "of many studies, so many at once", type=count, default=8)
    option("--num-beams", "beams of the search; 1 is greedy (default: the checkpoint's own)", type=count)
    option("--decode", DECODING + OWN, choices=("mbr", "search"))
    option("--dtype", "numbers to compute with (default: as the checkpoint's config says)", choices=DTYPES)
    option("--max-new-tokens", "longest text, in tokens (default: the checkpoint's own)", type=count)
    option(
        "--abstain-below",
        "write nothing where the score (0 to 1) is lower; a run's report.html shows what each threshold gains "
        "(default: never)",
        type=float,
        metavar="SCORE",
    )
    option("--json", "one JSON object per study on stdout", action="store_true")


def _demo(parser: Parser) -> None:
    """The whole way on the embedded collection: prepare, pretrain, fine-tune, evaluate, card, three studies shown.

    hf-cxr demo --out runs/demo
    """
    parser.option("--out", "run folder", default="runs/demo")
    parser.option("--seed", "seed of the studies and of the training", type=int, default=0)
    parser.option("--num-studies", "how many synthetic studies to draw", type=count, default=8000)


PARSERS = [define_prepare, _explore, _download, _train, _evaluate, _compare, define_export_predictions]
PARSERS += [_predict, define_push, define_export, define_app, _demo]


def make_parser() -> Parser:
    """The whole command line. Heavy imports wait until a command runs."""
    parser = Parser(prog="hf-cxr", description=f"Impressions of two-view chest radiographs. {RESEARCH_USE}")
    parser.add_argument("--version", action="version", version=f"hf-cxr {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        help="print the script with which this shell completes commands and options (default: none)",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for define in PARSERS:
        said, _, example = inspect.cleandoc(define.__doc__ or "").partition("\n\n")
        help = " ".join(said.split())
        command = commands.add_parser(
            define.__name__.removeprefix("define").lstrip("_").replace("_", "-"),
            help=help,
            description=textwrap.fill(help, WIDTH),
            epilog="example:\n" + textwrap.indent(example, "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        define(command)
        command.option("--debug", "show the traceback of an error", action="store_true")
    parser.commands = commands.choices
    return parser


# --- from words to an exit status --------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 success, 2 bad usage or input, 130 interrupted."""
    spell_out()
    words = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    if not words:
        parser.print_help()
        return 0
    name = words[0]
    if not name.startswith("-") and name not in COMMANDS:
        near = closest(name, COMMANDS)
        parser.error(f"unknown command {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    if name in COMMANDS:
        words[1:] = _spelled(parser.commands[name], words[1:])
    options, rest = parser.parse_known_args(words)
    if options.print_completion:
        print(_completion(parser, options.print_completion))
        return 0
    if not options.command:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command = parser.commands[options.command]
    if options.command == "evaluate" and len(rest) == 1 and not (rest[0].startswith("-") or options.dataset):
        [options.dataset], rest = rest, []  # Python 3.11 gives it back where an option is before it
    if options.command == "train":
        if foreign := next((word for word in rest if word[2:].split("=")[0] in FOREIGN), None):
            name = foreign[2:].split("=")[0]
            command.error(f"unknown argument --{name}; did you mean --{FOREIGN[name][0]}?")
        options.overrides = options.overrides + rest
    elif rest:
        command.error(_unknown(command, rest))
    return guarded(COMMANDS[options.command], options)


def _spelled(command: Parser, words: Sequence[str]) -> list[str]:
    """The words with each option in the spelling of its command, dashes or underscores; what `train` does not know
    is an argument of the Trainer's, and has underscores. A flag of the config gets its value."""
    known = {name.replace("-", "_"): name for name in command.names()}
    spelled = []
    for place, word in enumerate(words):
        name, equals, value = word[2:].partition("=")
        if word.startswith("--") and name:
            folded = name.replace("-", "_")
            name = known.get(folded, folded if command.prog.endswith("train") else name)
            flag = not equals and command.takes_no_value(name, words[place + 1 : place + 2])
            word = f"--{name}{equals}{value}" + ("=true" if flag else "")
        spelled.append(word)
    return spelled


def _unknown(command: Parser, rest: Sequence[str]) -> str:
    word = next((word for word in rest if word.startswith("--")), None)
    if not word:
        return f"unrecognized arguments: {' '.join(rest)}"
    names = {name.replace("-", "_"): name for name in command.names()}
    near = closest(word[2:].split("=")[0].replace("-", "_"), names)
    return f"unknown option {word.split('=')[0]}" + (f"; did you mean --{names[near]}?" if near else "")


def _completion(parser: Parser, shell: str) -> str:
    """The script that completes commands, options and files in a shell."""
    import shtab

    for command in parser.commands.values():
        for action in command._actions:
            if action.nargs != 0 and not action.choices and not action.type:  # no number
                vars(action)["complete"] = shtab.FILE
    return shtab.complete(parser, shell)


def guarded(command: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> int:
    """Call `command(options)`; turn an error of the input into one line on stderr."""
    try:
        _be_quiet()
        command(options)
        return 0
    except KeyboardInterrupt as stop:
        print(f"hf-cxr {options.command}: interrupted" + (f"; {stop}" if str(stop) else ""), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        line = _line_about(error, vars(options).get("out"))
        if options.debug or not line:
            raise
        print(f"hf-cxr {options.command}: {printable(line)}", file=sys.stderr)
        return BAD_INPUT


def _line_about(error: Exception, out: str | None) -> str | None:
    """What to tell of an error of the input or of the machine; of a bug of ours nothing: its traceback is wanted."""
    if out and is_full(error, out):
        return f"{out}: its disk is full; free some space, or choose another folder"
    if isinstance(error, OSError) and error.errno and error.filename:
        return advice(error, error.filename)
    # A TypeError or RuntimeError is a bug.
    return " ".join(str(error).split()) if isinstance(error, (ValueError, OSError, ImportError)) else None


def _be_quiet() -> None:
    """Keep transformers' notices out of the way: they bury the one line that matters."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if logging := sys.modules.get("transformers.utils.logging"):  # too late for the environment
        logging.set_verbosity_error()
        logging.disable_progress_bar()
