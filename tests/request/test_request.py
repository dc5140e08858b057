"""Signature, options and help of a verb follow from the fields of its request."""

import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import pytest

import secateur
from secateur.errors import UserError
from secateur.masks.request import LearnRequest
from secateur.measurement.request import BenchRequest
from secateur.methods.request import PruneRequest
from secateur.request.parts import ImagesPart
from secateur.request.say import Say, options_of
from secateur.request.takes import takes
from secateur.request.text import all_if_zero, counts, names, numbers, widths
from secateur.verbs.requests import (
    AnalyzeRequest,
    EvaluateRequest,
    HealRequest,
    InspectRequest,
    TrainRequest,
)
from tests.cli.conftest import Run
from tests.cli.conftest import run as run

VERBS = {
    "inspect": InspectRequest,
    "analyze": AnalyzeRequest,
    "prune": PruneRequest,
    "learn": LearnRequest,
    "heal": HealRequest,
    "train": TrainRequest,
    "evaluate": EvaluateRequest,
    "bench": BenchRequest,
}


@dataclass(frozen=True, kw_only=True)
class Asked(ImagesPart):
    """A request of a verb that there is not."""

    goal: Annotated[str, Say("What is wanted.")] = field(kw_only=False)
    sizes: Annotated[Sequence[int], Say("How many.", flag="--size", read=counts)] = ()
    hidden: object | None = None


@takes(Asked)
def show(model: str, images: object, request: Asked) -> tuple[str, object, Asked]:
    """Show what was asked."""
    return model, images, request


def test_a_verb_is_called_with_the_fields_of_its_request() -> None:
    wanted = Asked("half", sizes=(2,), seed=3)
    assert show("m", 1, "half", sizes=(2,), seed=3) == ("m", 1, wanted)
    assert show(model="m", images=1, goal="half", sizes=(2,), seed=3) == ("m", 1, wanted)  # type: ignore[call-arg]
    assert show("m", 1, **vars(wanted)) == ("m", 1, wanted)


def test_signature_hints_and_docstring_follow() -> None:
    found = inspect.signature(show).parameters
    assert list(found)[:5] == ["model", "images", "goal", "sizes", "hidden"]
    assert found["goal"].default is inspect.Parameter.empty
    assert found["goal"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert (found["sizes"].kind, found["sizes"].default) == (inspect.Parameter.KEYWORD_ONLY, ())
    assert typing.get_type_hints(show)["sizes"] == Sequence[int]
    assert inspect.getdoc(show) is not None and "sizes: How many." in str(show.__doc__)


def test_an_unknown_argument_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(TypeError, match="show: unknown argument 'sises'; did you mean 'sizes'"):
        show("m", 1, "half", sises=(2,))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="show: missing a required argument: 'goal'"):
        show("m", 1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="prune: unknown argument 'prset'; did you mean 'preset'"):
        secateur.prune(None, "digits", "50% macs", prset="energy")  # type: ignore[arg-type,call-arg]


def test_fields_without_help_are_no_options() -> None:
    assert [one.name for one in options_of(Asked)][:2] == ["goal", "sizes"]
    assert "hidden" not in {one.name for one in options_of(Asked)}
    sizes = next(one for one in options_of(Asked) if one.name == "sizes")
    assert (sizes.flag, sizes.kind, sizes.default) == ("--size", str | None, None)
    assert sizes.value("1,8") == [1, 8] and sizes.value(None) is None


@pytest.mark.parametrize("verb", VERBS)
def test_program_and_function_offer_the_same(verb: str, run: Run) -> None:
    function, request = getattr(secateur, verb), VERBS[verb]
    helped = run(verb, "--help").out
    parameters, hints = inspect.signature(function).parameters, typing.get_type_hints(function)
    for option in options_of(request):
        assert re.search(rf"{option.flag}\b", helped), option.flag
        assert option.name in parameters and f"{option.name}: {option.say.help}" in function.__doc__
    assert {*parameters, "return"} == set(hints)
    assert all(not isinstance(hint, str) for hint in hints.values())


def test_texts_become_values() -> None:
    assert numbers("--mean", "0.5") == 0.5 and numbers("--mean", "0.5,1") == (0.5, 1)
    assert names("--groups", "qk, vo,") == ["qk", "vo"]
    assert widths("--align", "hidden=32, qk=16") == {"hidden": 32, "qk": 16}
    assert all_if_zero("--limit", 0) is None and all_if_zero("--limit", 5) == 5


@pytest.mark.parametrize(
    ("read", "given"),
    [(numbers, "half"), (widths, "hidden"), (widths, "hidden=x"), (counts, ""), (counts, "0,8")],
)
def test_a_text_that_is_no_value_is_refused_by_the_name_of_its_option(
    read: typing.Callable[[str, str], object], given: str
) -> None:
    with pytest.raises(UserError, match=r"--name .*write for example"):
        read("--name", given)


def test_requests_are_cheap_to_import() -> None:
    modules = sorted({request.__module__ for request in VERBS.values()})
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
