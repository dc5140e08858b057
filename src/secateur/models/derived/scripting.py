"""Forward passes that torch.jit.script can compile, for those of our modules that have others.

TorchScript knows no `**arguments`, by which our modules take what any host gives them. When a model
is scripted, each of them gets a forward pass written out for the keywords of its own host; its
parameters, and what it gives, stay the same.
"""

import linecache
from collections.abc import Iterable, Sequence
from itertools import count
from types import MethodType
from typing import Any, Optional

from torch import Tensor, nn

from secateur.models.statement import Call, Residual

TYPES = {"is_causal": "bool = False"}
"""Of keywords; all others are tensors or None."""

_numbers = count()


def keywords_of(calls: Iterable[Call]) -> tuple[str, ...]:
    """What a host may give beside the stream, the mask first, each once."""
    names = [name for call in calls for name in (call.mask, *call.takes) if name is not None]
    return tuple(dict.fromkeys(names))


def write_out_(
    module: nn.Module, keywords: Sequence[str], body: Sequence[str], **names: Any
) -> nn.Module:
    """Let `module` run these lines of Python: from `x` and the keywords to what they return.

    `names` are functions that the lines call.
    """
    given = "".join(f", {name}: {TYPES.get(name, 'Optional[Tensor] = None')}" for name in keywords)
    text = "\n".join([f"def forward(self, x: Tensor{given}):", *(f"    {line}" for line in body)])
    # WHY: TorchScript reads the source of what it compiles.
    place = f"<secateur.models.derived.scripting {next(_numbers)}>"
    linecache.cache[place] = (len(text), None, text.splitlines(keepends=True), place)
    known = {"Tensor": Tensor, "Optional": Optional, **names}
    exec(compile(text, place, "exec"), known)
    vars(module)["forward"] = MethodType(known["forward"], module)
    return module


def steps_written(block: nn.Module, steps: Iterable[Residual]) -> list[str] | None:
    """The lines of residual steps; None where a name in them is no name in Python."""
    lines = []
    for step in steps:
        paths = [step.path, *(path for path in (step.norm, step.scale, step.drop) if path)]
        if not all(part.isidentifier() for path in paths for part in path.split(".")):
            return None
        call = step.layers[0].call
        read = f"self.{step.norm}(x)" if step.norm and not step.norm_behind else "x"
        given = [f"{name}={name}" for name in keywords_of([call])]
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
        lines.append(f"x = x + self.{step.drop}(y)" if step.drop else "x = x + y")
    return [*lines, "return x"]
