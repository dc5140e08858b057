"""One step of a model on its own, as a module from stream to stream.

Legend: B batch, N tokens, D residual width.
"""

from functools import partial

from torch import nn

from secateur.models.derived.blocks import OnTokens, PartialBlock
from secateur.models.derived.steps import Step, residuals_of
from secateur.models.derived.tokens.tail import TailAlone, TailBlock
from secateur.models.statement import Statement


def alone(stated: Statement, model: nn.Module, step: Step, *, tail: bool = False) -> nn.Module:
    """A step from (B, N, D) to (B, N', D'), or as in the `tail`; shares the model's modules."""
    module, given = step.owner, None
    if step.kind != "transition":
        residuals = residuals_of(stated, step.block, step.owner)
        module = PartialBlock(step.owner, residuals, (step.residual.path,))
        if tail and isinstance(step.owner, TailBlock):
            module = TailAlone(step.owner, step.residual)
        if stated.given is not None:
            given = partial(stated.given, model, step.place[0])
    plain = step.grid is None and given is None
    return module if plain else OnTokens(module, grid=step.grid, last=step.last, given=given)
