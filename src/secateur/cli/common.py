"""What every verb shares: one answer for people or machines, and errors as one sentence."""

import inspect
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import MISSING, dataclass, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import typer

from secateur.cli.progress import progress_bar
from secateur.errors import Advice, UserError
from secateur.request.say import Option, Say, option, options_of, said

if TYPE_CHECKING:
    from rich.console import Console

DONE, FAILED, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes; typer's own for a mistyped option is WRONG_INPUT too."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run in the same way as an interrupt from the keyboard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a verb found: `data` is printed with --json, `show` prints it for people.

    `code` is the exit code where not all went well although there is something to show.
    """

    data: Mapping[str, object]
    show: Callable[["Console"], None]
    code: int = DONE


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"secateur {version('secateur')}")
        raise typer.Exit(DONE)


Version = Annotated[
    bool,
    typer.Option("--version", callback=print_version, is_eager=True, help="Print the version."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """Options of every verb."""

    json: Annotated[bool, Say("Print one JSON object and nothing else.")] = False
    debug: Annotated[bool, Say("Show warnings, and where an error came from.")] = False


VERSION = Option("version", Version, False, Say(""))


def verb(function: Callable[..., Answer]) -> Callable[..., None]:
    """Make a function that returns an Answer into a command.

    Parameters that are dataclasses, such as a verb's request, become one option per field that has
    a `Say`, other parameters one option each; `OutputOptions` are added. A parameter or a field
    called progress is given the bar.
    """
    hints = get_type_hints(function, include_extras=True)
    bundles = {
        name: hint
        for name, hint in hints.items()
        if isinstance(hint, type) and is_dataclass(hint) and name != "return"
    }
    own = [
        _own(hints[name], p)
        for name, p in inspect.signature(function).parameters.items()
        if name not in bundles and name != "progress"
    ]

    @wraps(function)
    def command(**given: Any) -> None:
        del given[VERSION.name]
        output: OutputOptions = _take(OutputOptions, given, {})
        with _errors_as_sentences(output.debug), _terminating():
            quiet = redirect_stdout(sys.stderr) if output.json else nullcontext()
            with quiet, progress_bar(silent=not is_first_process()) as progress:
                more = {"progress": progress}
                values = {name: _take(kind, given, more) for name, kind in bundles.items()}
                values |= {one.name: one.value(given.pop(one.name)) for one in own}
                answer = function(**values, **(more if "progress" in hints else {}))
            _print(answer, output)
            if answer.code != DONE:
                raise typer.Exit(answer.code)

    offered = [*own, *(one for kind in bundles.values() for one in options_of(kind))]
    shown = [_shown(one) for one in [*offered, *options_of(OutputOptions), VERSION]]
    vars(command)["__signature__"] = inspect.Signature(shown)
    command.__annotations__ = {p.name: p.annotation for p in shown}
    return command


def _own(hint: Any, parameter: inspect.Parameter) -> Option:
    found, default = said(hint), parameter.default
    kind, say = found if found is not None else (hint, Say(""))
    return option(
        parameter.name, kind, say, MISSING if default is inspect.Parameter.empty else default
    )


def _shown(one: Option) -> inspect.Parameter:
    """An option as typer reads it; what is typer's already stays."""
    say, kind = one.say, one.kind
    if get_origin(kind) is not Annotated:
        plain = [f"--{one.name.replace('_', '-')}"] if kind is bool else []
        kind = Annotated[
            kind,
            typer.Option(
                *([say.flag] if say.flag else plain),
                help=say.help,
                rich_help_panel=say.panel,
                metavar=say.metavar,
                show_default=one.default is not None if say.shown is None else say.shown,
            ),
        ]
    default = inspect.Parameter.empty if one.required else one.default
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
    )


def _take(bundle: Any, given: dict[str, Any], more: Mapping[str, Any]) -> Any:
    """A bundle of options from what was typed, with `more` for the fields that it has of it."""
    typed = [(one, given.pop(one.name)) for one in options_of(bundle)]
    values = {one.name: one.value(value) for one, value in typed if value is not None}
    return bundle(**values, **{k: v for k, v in more.items() if k in bundle.__dataclass_fields__})


def is_first_process() -> bool:
    """Whether this process writes and prints: of several that a launcher started, one does."""
    return os.environ.get("RANK", "0") == "0"


def _print(answer: Answer, output: OutputOptions) -> None:
    if not is_first_process():
        return
    if output.json:
        from pydantic_core import to_jsonable_python

        data = to_jsonable_python(answer.data, inf_nan_mode="null")
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        from rich.console import Console

        answer.show(Console(highlight=False))


@contextmanager
def _errors_as_sentences(debug: bool) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", Advice)
                warnings.showwarning = _advise
            yield
    except UserError as error:
        _complain(str(error), debug)
        for note in _notes(error):
            typer.echo(note, err=True)
        raise typer.Exit(WRONG_INPUT) from None
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        told = "; ".join(["terminated" if ended else "interrupted", *_notes(error)])
        _complain(f"{told}.", debug=False)
        raise typer.Exit(TERMINATED if ended else INTERRUPTED) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        hint = "" if debug else " (not your input's fault; --debug shows where it happened)"
        _complain(f"{type(error).__name__}: {first}{hint}", debug)
        raise typer.Exit(FAILED) from None


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


@contextmanager
def _terminating() -> Iterator[None]:
    """Make SIGTERM an exception in the main thread, unless the process ignores it."""
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def end(number: int, _: object) -> None:
        if os.getpid() == own:
            raise Terminated
        # A forked child ends as it would have without this.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _advise(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"note: {message}", err=True)


def _complain(sentence: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    typer.echo(f"error: {' '.join(sentence.splitlines())}", err=True)
