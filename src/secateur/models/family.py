"""A model family: how all other rooms read and change its models, derived from its statement.

Legend: B batch, N tokens, D residual width.
"""

import sys
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.checks.wrapped import no_family, refuse_changed
from secateur.models.derived import adopt, anatomy, basis, fold, width
from secateur.models.derived.blocks import PartialBlock, as_rows, as_tokens
from secateur.models.derived.layout import (
    assign_attention_,
    assign_mlp_,
    mlp_weights,
)
from secateur.models.derived.names import is_fused
from secateur.models.derived.sites import sites_of
from secateur.models.derived.steps import Step, residuals_of, since_branch, steps_before, steps_of
from secateur.models.derived.tokens import put, tail
from secateur.models.derived.tokens.alone import alone
from secateur.models.hook_points import HookPoint
from secateur.models.modules import LinearStandIn
from secateur.models.outputs import outputs_of
from secateur.models.statement import AttentionLayer, MlpLayer, Statement
from secateur.models.stream import Held, StreamReaders, StreamWeights
from secateur.models.types import Anatomy, Branch, Stream
from secateur.models.weights import AttentionWeights, BranchWeights
from secateur.registry import Registry

Asked = Mapping[str, int] | None


class Family:
    """How to read and change the models of a family.

    Functions whose names end in an underscore change the model they are given. `examples` are
    names for `secateur.load`, one per kind of member, for the table of what is supported.
    """

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self.name, self.title = statement.name, statement.title or statement.name
        self.examples = statement.examples

    @property
    def one_stream(self) -> bool:
        """Whether its models have one stream of tokens: only there linear layers may replace."""
        return self.statement.transition is None and self.statement.grids is None

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is of a host class, or of a subclass."""
        for host in self.statement.hosts:
            module, _, name = host.partition(":")
            if module in sys.modules and isinstance(model, getattr(sys.modules[module], name)):
                return self.statement.applies(model)
        return False

    def read(self, model: nn.Module, *, exact_tail: bool = False, merges: Asked = None) -> Anatomy:
        """Describe `model`, or as it is after `put_tail_` and `put_merges_`; UserError for members
        that are not there, or cannot be supported."""
        refuse_changed(model)
        return anatomy.read(self.statement, model, exact_tail=exact_tail, merges=merges)

    def put_merges_(self, model: nn.Module, merges: Mapping[str, int]) -> None:
        """Merge so many tokens in the blocks at these paths; see `models.derived.tokens.merge`."""
        put.put_(self.statement, model, merges)

    def put_tail_(self, model: nn.Module) -> None:
        """Compute the last layers for what the head reads alone; see `derived.tokens.tail`."""
        tail.put_(self.statement, model)

    def weights(self, model: nn.Module, branch: Branch) -> BranchWeights:
        """The branch's weights in canonical layout (views where possible)."""
        step = self._step(model, branch)
        if isinstance(step.layer, AttentionLayer):
            return step.attention
        assert isinstance(step.layer, MlpLayer)
        return mlp_weights(step.module, step.layer)

    def assign_(self, model: nn.Module, branch: Branch, weights: BranchWeights) -> None:
        """Give the branch copies of these weights; its modules take on their shape.

        The host's own class stays wherever it holds such a shape. New tensors are put in place of
        the old, which others may hold; none is written into.
        """
        step, stated = self._step(model, branch), self.statement
        if not isinstance(weights, AttentionWeights):
            assert isinstance(step.layer, MlpLayer)
            assign_mlp_(step.module, step.layer, weights)
            return
        assert isinstance(step.layer, AttentionLayer)
        fused = is_fused(step.module, stated.fused)
        new = assign_attention_(step.module, step.layer, weights, fused=fused)
        for name in stated.caches:
            getattr(new, name, {}).clear()
        if new is not step.module:
            adopt.replace_attention_(self.statement, model, step, new)

    def unseen(self, model: nn.Module) -> bool:
        """Whether some attention of a model computes past its modules, so that hooks miss it."""
        return bool(adopt.unseen_in(self.statement, model))

    def adopt_(self, model: nn.Module, names: Collection[str] | None = None) -> None:
        """Put our attention, with equal outputs, in place of what hooks miss.

        Where `names` of tensors are given, layers stay whose tensors are all among them.
        """
        adopt.adopt_(self.statement, model, names)

    def drop_(self, model: nn.Module, branches: set[str]) -> None:
        """Remove branches with their norms and adds; they leave no module and no graph node."""
        if any(step.biases is not None for step in steps_of(self.statement, model)):
            self.adopt_(model)
        steps = steps_of(self.statement, model)
        for path in {step.block: None for step in steps if step.path in branches}:
            own = [step for step in steps if step.kind != "transition" and step.block == path]
            residuals = residuals_of(self.statement, path, own[0].owner)
            kept = [step.residual.path for step in own if step.path not in branches]
            adopt.put_(self.statement, model, path, PartialBlock(own[0].owner, residuals, kept))

    @torch.no_grad()
    def put_linear_(self, model: nn.Module, branch: Branch, map_DD: Tensor, bias_D: Tensor) -> None:
        """Let the update of a branch be `map_DD` times what it reads, and a constant.

        Also works on the meta device. UserError where a norm stands behind the branch, and for
        families of more than one stream.
        """
        own = steps_of(self.statement, model, at=branch.id)
        step = next((step for step in own if step.path == branch.id), None)
        if step is None or step.residual.norm_behind or not self.one_stream:
            raise UserError(
                f"no linear layer can stand in for {branch.id}, which was dropped or has its norm "
                f"behind it, or whose family, {self.title}, has more than one stream."
            )
        like = step.writer.get_parameter("weight")
        new = LinearStandIn(*reversed(map_DD.shape), call=step.residual.layers[0].call)
        for name, value in (("weight", map_DD), ("bias", bias_D)):
            tensor = value.detach().to(like.device, like.dtype, copy=True).contiguous()
            setattr(new, name, nn.Parameter(tensor, like.requires_grad))
        if (scale := step.scale) is not None:
            scale.fill_(1.0)
        adopt.put_(self.statement, model, branch.id, new.train(step.owner.training))

    def narrow_(
        self,
        model: nn.Module,
        stream: Stream,
        kept_D: Tensor,
        held: Mapping[str, Held] | None = None,
    ) -> None:
        """Keep these channels (ascending indices) in every member; also works on the meta device.

        Norms normalise over what is left. With `held`, by branch and `END`, they count the removed
        channels as if these stood at their means, and so do the readers behind them.
        """
        width.narrow_(self.statement, model, stream.stage, kept_D, held or {})

    def stream_weights(self, model: nn.Module, stream: Stream) -> StreamWeights:
        """All members of a stream as matrices; writers include the LayerScale behind them."""
        return width.stream_weights(self.statement, model, stream.stage)

    def stream_readers(self, model: nn.Module, stream: Stream) -> StreamReaders:
        """Where a mask on the stream's channels acts."""
        return width.stream_readers(self.statement, model, stream.stage)

    def why_not_rotate(self, model: nn.Module) -> str | None:
        """Why the stream of this model cannot be rotated; None if it can."""
        if not self.one_stream:
            return (
                "that takes one stream which only linear layers write and only LayerNorms or RMS "
                "norms read"
            )
        return basis.why_not_rotate(self.statement, model)

    def require_rotatable(self, model: nn.Module) -> None:
        """UserError where the stream of this model cannot be rotated."""
        if why := self.why_not_rotate(model):
            whose = "this model" if self.one_stream else self.title
            raise UserError(
                f"the residual stream of {whose} cannot be rotated: {why}; {basis.SELECT}."
            )

    def rotate_(self, model: nn.Module, basis_DD: Tensor) -> None:
        """Express the stream in an orthonormal basis (its columns); outputs stay the same.

        Norms become RMS norms without a scale: what they did beside goes into readers and writers.
        """
        basis.rotate_(self.statement, model, basis_DD)

    def add_constant_(self, model: nn.Module, branch: Branch, constant_D: Tensor) -> None:
        """Add a constant vector to the stream at the place of `branch`, before or after a drop.

        It is folded into the bias of the nearest earlier writer, at the latest into the
        embedding, so that it costs nothing.
        """
        fold.add_constant_(self.statement, model, branch.id, constant_D)

    def writer_scale(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """What the update is times the writer's output (D,): LayerScale, and a batch norm between.

        None where it is the same.
        """
        return fold.writer_scale(self._step(model, branch))

    def writer_shift(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """A constant (D,) that is added behind the writer and its scale, or None."""
        return fold.writer_shift(self._step(model, branch))

    def writes_linearly(self, model: nn.Module, branch: Branch) -> bool:
        """Whether the update is linear in what the writer gives (false with a norm behind it).

        A batch norm is linear in evaluation mode.
        """
        return not self._step(model, branch).residual.norm_behind

    def embed(self, model: nn.Module, images_BCHW: Tensor) -> Tensor:
        """The residual stream (B, N, D) as the embedding leaves it."""
        return self.statement.embed(model, images_BCHW)

    def arrive(self, model: nn.Module, branch: Branch, stream_BND: Tensor) -> Tensor:
        """The stream at `branch` from that after the branch before it (or the embedding).

        The same, unless something stands between that is no branch, such as downsampling.
        """
        for module in self._between(model, branch):
            stream_BND = module(stream_BND)
        return stream_BND

    def alone(self, model: nn.Module, branch: Branch, *, tail: bool = False) -> nn.Module:
        """One branch as a module from stream to stream, or as in the `tail`; shares its modules."""
        return alone(self.statement, model, self._step(model, branch), tail=tail)

    def through(self, model: nn.Module, branch: Branch) -> nn.Module:
        """`arrive` and `alone` in one module, from the stream after the branch before it."""
        between, own = self._between(model, branch), self.alone(model, branch)
        return nn.Sequential(*between, own) if between else own

    def head(self, model: nn.Module, stream_BND: Tensor) -> Tensor:
        """What the model makes of the stream after the last branch, with all that follows it."""
        for step in since_branch(steps_of(self.statement, model)):
            stream_BND = alone(self.statement, model, step)(stream_BND)
        return outputs_of(self.statement.head(model, stream_BND))

    def hook_points(self, model: nn.Module, branch: Branch) -> dict[str, HookPoint]:
        """Where the quantities of a branch can be seen; see `secateur.models.hook_points`."""
        return sites_of(self._step(model, branch))

    def _step(self, model: nn.Module, branch: Branch) -> Step:
        return {s.path: s for s in steps_of(self.statement, model, at=branch.id)}[branch.id]

    def _between(self, model: nn.Module, branch: Branch) -> list[nn.Module]:
        """What stands since the branch before: transitions, fixed and linear steps."""
        steps = since_branch(steps_before(self.statement, model, branch.id))
        return [alone(self.statement, model, step) for step in steps]

    def tokens(self, x: Tensor) -> Tensor:
        """The stream at the start or end of a block, as the host holds it, as tokens (B, N, D)."""
        return as_tokens(x) if x.ndim == 4 and self.statement.grids == "BDHW" else as_rows(x)


families: Registry[Family] = Registry("model family", "secateur.models.families")


def state(statement: Statement) -> None:
    """Register a family by its statement."""
    families.register(statement.name)(Family(statement))


def family_of(model: nn.Module) -> Family:
    """The family that reads `model`; UserError if there is none, with what to give instead."""
    if isinstance(model, nn.Module) and isinstance(
        own := model.__dict__.get("secateur_family"), Family
    ):
        return own
    known = [family for _, family in families.items()]
    for family in known:
        if isinstance(model, nn.Module) and family.matches(model):
            return family
    titles = [family.title for family in known]
    raise no_family(model, lambda module: any(one.matches(module) for one in known), titles)


def read(model: nn.Module) -> Anatomy:
    """The anatomy of `model`: its stream, branches and groups. Changes nothing."""
    return family_of(model).read(model)
