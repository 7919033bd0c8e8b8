"""The command `qsd`: parse, call, print. Heavy imports wait for the command they serve."""

from __future__ import annotations

import argparse
import errno
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from qsdformer import __version__
from qsdformer.errors import UserError, did_you_mean, is_out_of_memory, one_line
from qsdformer.process import restart_with_allocator_settings

# Name, module below qsdformer.commands, one line of help.
COMMANDS = (
    ("train", "train", "train a model from a recipe"),
    ("ablate", "ablate", "train and compare a grid of variants and seeds"),
    ("eval", "evaluate", "accuracy, mIoU or AP of a model on its data"),
    ("predict", "predict", "what is in image files: classes, maps or objects"),
    ("import-reference", "import_reference", "turn a published .pth into a checkpoint"),
    ("analyze", "analyze", "firing rates, entropy and the energy ledger of checkpoints"),
    ("report", "report", "one HTML page about one or several runs"),
    ("export", "export", "write a checkpoint as packed integers (.qsd) or as ONNX"),
    ("verify", "verify", "binary spikes and integers against multi-bit evaluation"),
    ("simulate", "simulate", "cycles, traffic and energy on a simulated accelerator"),
    ("bench", "bench", "speed and memory in each runtime, beside the ANN"),
    ("quickstart", "quickstart", "train an ANN and a 4-bit student on digits, and compare them"),
    ("scenes", "scenes", "make images with boxes and masks of Fashion-MNIST"),
    ("recipes", "recipes", "list the recipes that come with the package"),
)
TRAINING = ("train", "quickstart")
DISK_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
NO_NAME = {errno.ENAMETOOLONG}
HELP = ("-h", "--help")
LIKENESS = 0.6  # of a mistyped word to what was meant; there is --help for the others


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit.

    0 done, 2 bad input, 130 interrupted, 143 ended by SIGTERM, 1 a bug (with traceback).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or file of ASCII is not our failure
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """The exit status of `qsd` with these arguments (None: those of the process)."""
    from_shell = arguments is None
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(given, from_shell)
    except UserError as error:
        print(f"qsd: error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        # qsdformer-runtime lacks parts of qsdformer, and what those need, even beside torch.
        parts = ("torch", "qsdformer.models")
        if all(importlib.util.find_spec(name) is not None for name in parts):
            raise
        print(
            f"qsd: error: this needs {error.name}, which is not installed: pip install qsdformer "
            "(qsdformer-runtime only predicts, with .onnx and .qsd files)",
            file=sys.stderr,
        )
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "choose a smaller batch, image or model"
        print(f"qsd: error: out of memory: {advice} ({one_line(error)})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not int(os.environ.get("LOCAL_RANK", 0)):  # the other processes got the same signal
            print("qsd: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `qsd recipes | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in DISK_FULL | FORBIDDEN | NO_NAME:
            raise
        where = f" {error.filename}" if error.filename else ""
        print(f"qsd: error: cannot access{where}: {error.strerror}", file=sys.stderr)
        return 2


def _dispatch(given: list[str], from_shell: bool) -> int:
    parser = _Parser(
        prog="qsd",
        description="Low-bit spike-driven vision transformers.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qsd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    given = _with_command(given)
    chosen = next((word for word in given if not word.startswith("-")), None)
    for name, module_name, text in COMMANDS:
        sub = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            allow_abbrev=False,
            add_help=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument(*HELP, action=_Help, help="show this help and exit")
        if name == chosen:
            if from_shell and name in TRAINING and not {*HELP} & set(given):
                restart_with_allocator_settings()
            module = importlib.import_module(f"qsdformer.commands.{module_name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    if not given:
        parser.print_help()
        return 0
    options, unknown = parser.parse_known_args(given)
    options.unknown = unknown
    options.known = _options(commands.choices[str(chosen)])
    if unknown and not getattr(options, "takes_recipe_keys", False):
        raise UserError(_not_taken(unknown[0], f"qsd {chosen}", options.known))
    return int(options.run(options) or 0)


class _Parser(argparse.ArgumentParser):
    """Whose errors are one line, as all others of `qsd` are, and no usage before it."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help says more")


def _options(command: argparse.ArgumentParser) -> list[str]:
    """The long options of a command, without their dashes."""
    return [name[2:] for name in command._option_string_actions if name.startswith("--")]


def _not_taken(word: str, command: str, known: list[str]) -> str:
    """What to say of the first word that a command does not know."""
    option = word.partition("=")[0]
    question = did_you_mean(option.removeprefix("--"), known, "--", LIKENESS)
    hint = f": {question}" if question else f"; {command} --help lists what it does"
    return f"{command} does not take {option}{hint}"


def _with_command(given: list[str]) -> list[str]:
    """`RECIPE --help` as `train RECIPE --help`; a `UserError` where no command is."""
    first = given[0] if given else ""
    if not first or first.startswith("-") or first in (name for name, *_ in COMMANDS):
        return given
    grids, recipes = _packaged()
    if first in grids:
        command = "ablate"
    elif first in recipes:
        command = "train"
    elif first.endswith((".yaml", ".yml")):
        command = "ablate" if _is_grid(first) else "train"
    else:
        known = [*(name for name, *_ in COMMANDS), *recipes, *grids]
        question = did_you_mean(first, known, cutoff=LIKENESS)
        hint = f": {question}" if question else "; qsd --help lists the commands"
        raise UserError(f"{first!r} is not a command{hint}")
    if not {*HELP} & set(given):
        raise UserError(f"{first} is a recipe, not a command: qsd {command} {first}")
    return [command, *given]


def _packaged() -> tuple[Collection[str], Collection[str]]:
    """The names of packaged grids and recipes; qsdformer-runtime has none."""
    if importlib.util.find_spec("qsdformer.recipes") is None:
        return (), ()
    from qsdformer.recipes import packaged_grids, packaged_recipes

    return packaged_grids(), packaged_recipes()


def _is_grid(path: str) -> bool:
    """Whether a file is a grid for `qsd ablate`: it has variants."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return any(line.startswith("variants:") for line in file)
    except OSError:
        return False


class _Help(argparse.Action):
    """Prints the help, with the values of the recipe that was named before it."""

    def __init__(self, *flags: Any, **options: Any) -> None:
        super().__init__(*flags, **{**options, "nargs": 0, "default": argparse.SUPPRESS})

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        recipe = getattr(namespace, "recipe", None)
        if recipe is not None and hasattr(namespace, "show_values_of"):
            namespace.show_values_of(recipe)
        parser.print_help()
        parser.exit()
