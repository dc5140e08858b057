"""Forward passes that torch.jit.script can compile, for those of our modules that have others.

TorchScript knows no `**arguments`, by which our modules take what any host gives them. When a model
is scripted, each of them gets a forward pass written out for the keywords of its own host; its
parameters, and what it gives, stay the same.
"""

import linecache
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from types import MethodType
from typing import TYPE_CHECKING, Any, Optional

import torch.nn.functional as F
from torch import Tensor, nn

from secateur.models.derived.call import Call

if TYPE_CHECKING:
    from secateur.models.statement import Residual

TYPES = {"is_causal": "bool = False"}
"""Of keywords; all others are tensors or None."""

_numbers = count()


def keywords_of(calls: Iterable[Call]) -> tuple[str, ...]:
    """What a host may give beside the stream, each once; first what it gives by position."""
    calls = list(calls)
    names = [name for call in calls for name in call.by_position]
    names += [name for call in calls for name in (call.mask, *call.takes) if name is not None]
    return tuple(dict.fromkeys(names))


def write_out_(
    module: nn.Module, calls: Sequence[Call], body: Sequence[str], **names: Any
) -> nn.Module:
    """Let `module`, which is called in these ways, run lines of Python from `x` to what it returns.

    `names` are functions that the lines call.
    """
    keywords = keywords_of(calls)
    given = "".join(f", {name}: {TYPES.get(name, 'Optional[Tensor] = None')}" for name in keywords)
    stream = next((call.by_name for call in calls if call.by_name), "x")
    lines = [f"x = {stream}", *body]
    text = "\n".join(
        [f"def forward(self, {stream}: Tensor{given}):", *(f"    {line}" for line in lines)]
    )
    # WHY: TorchScript reads the source of what it compiles.
    place = f"<secateur.models.derived.scripting {next(_numbers)}>"
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
    known = {"Tensor": Tensor, "Optional": Optional, **names}
    exec(compile(text, place, "exec"), known)
    vars(module)["forward"] = MethodType(known["forward"], module)
    return module


def write_attention_(
    module: nn.Module, call: Call, rotary: tuple[str, Callable[..., Any]] | None
) -> nn.Module:
    """Our attention: `project`, rotary embeddings where there are some, `attend`."""
    lines, names = ["q, k, v = self.project(x)"], dict[str, Any]()
    if rotary is not None:
        table, rotate = rotary
        names["turn"], settings = getattr(rotate, "func", rotate), getattr(rotate, "keywords", {})
        given = "".join(f", {name}={value!r}" for name, value in settings.items())
        lines.append(f"if {table} is not None: q, k = turn(q, k, {table}{given})")
    causal = "is_causal" if "is_causal" in call.takes else "False"
    lines.append(f"y, weights = self.attend(q, k, v, {call.mask or 'None'}, {causal})")
    lines.append("return y, weights" if call.pair else "return y")
    return write_out_(module, [call], lines, **names)


def write_linear_(module: nn.Module, call: Call) -> nn.Module:
    """A linear layer in the place of one that is called otherwise."""
    line = f"return linear(x, self.weight, self.bias){', None' if call.pair else ''}"
    return write_out_(module, [call], [line], linear=F.linear)


def write_steps_(
    block: nn.Module,
    every: "Iterable[Residual]",
    kept: "Iterable[Residual]",
    passed: Mapping[str, str],
) -> nn.Module:
    """A block of which these steps are `kept`; as it was where a name in them is none in Python.

    The update of a step goes through the module that is named in `passed`, by the path of the step.
    """
    calls = [residual.layers[0].call for residual in every]
    calls.sort(key=lambda call: -len(call.by_position))
    lines = steps_written(block, kept, passed)
    return block if lines is None else write_out_(block, calls, lines)


def steps_written(
    block: nn.Module, steps: "Iterable[Residual]", passed: Mapping[str, str]
) -> list[str] | None:
    """The lines of residual steps; None where a name in them is no name in Python."""
    lines = []
    for step in steps:
        paths = [step.path, *(path for path in (step.norm, step.scale, step.drop) if path)]
        if not all(part.isidentifier() for path in paths for part in path.split(".")):
            return None
        call = step.layers[0].call
        read = f"self.{step.norm}(x)" if step.norm and not step.norm_behind else "x"
        wanted = [name for name in (call.mask, *call.takes) if name is not None]
        given = [f"{name}={name}" for name in dict.fromkeys(wanted)]
        given += [f"{name}={value!r}" for name, value in call.fixed.items()]
        lines.append(f"y = {read}")
        lines.append(f"y = self.{step.path}({', '.join(['y'] * call.times + given)})")
        lines += ["y = y[0]"] if call.pair else []
        lines += [f"y = self.{step.norm}(y)"] if step.norm and step.norm_behind else []
        owner = (step.scale or "").rpartition(".")[0]
        if owner:
            lines.append(f"y = self.{owner}(y)")
        elif step.scale and getattr(block, step.scale, None) is not None:
            lines.append(f"y = y * self.{step.scale}")
        lines += [f"y = self.{step.drop}(y)"] if step.drop else []
        lines.append(f"x = x + self.{passed[step.path]}(y)")
    return [*lines, "return x"]
