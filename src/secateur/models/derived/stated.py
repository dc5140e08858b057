"""A family derived from its statement: the interface that all other rooms use.

Legend: B batch, N tokens, D residual width.
"""

import sys
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.caches import forget_cached_
from secateur.models.derived import anatomy, basis, fold, width
from secateur.models.derived.layout import (
    assign_attention_,
    assign_mlp_,
    attention_weights,
    mlp_weights,
)
from secateur.models.derived.sites import sites_of
from secateur.models.derived.steps import (
    Step,
    residuals_of,
    since_branch,
    steps_before,
    steps_of,
)
from secateur.models.family import families
from secateur.models.hook_points import HookPoint
from secateur.models.modules import LinearStandIn, OnGrid, PartialBlock, WithGiven
from secateur.models.statement import AttentionLayer, MlpLayer, Statement
from secateur.models.stream import Held, StreamReaders, StreamWeights
from secateur.models.types import Anatomy, Branch, Stream
from secateur.models.weights import AttentionWeights, BranchWeights


def state(statement: Statement) -> None:
    """Register a family by its statement."""
    one = statement.transition is None and not statement.grids
    families.register(statement.name)((OneStream if one else StatedFamily)(statement))


class StatedFamily:
    """How to read and change the models of a family, from its statement; see `Family`."""

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self.name, self.title = statement.name, statement.title
        self.examples = statement.examples
        self.caches = statement.caches
        self.positions = () if statement.stem.positions is None else (statement.stem.positions,)
        self.switches = () if statement.fused is None else (statement.fused,)

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is of a host class, or of a subclass."""
        for host in self.statement.hosts:
            module, _, name = host.partition(":")
            if module in sys.modules and isinstance(model, getattr(sys.modules[module], name)):
                return self.statement.applies(model)
        return False

    def read(self, model: nn.Module) -> Anatomy:
        """Describe `model`; UserError for members that cannot be supported or are not there."""
        return anatomy.read(self.statement, model)

    def weights(self, model: nn.Module, branch: Branch) -> BranchWeights:
        """The branch's weights in canonical layout."""
        step = self._step(model, branch)
        if isinstance(step.layer, AttentionLayer):
            return attention_weights(step.module, step.layer)
        assert isinstance(step.layer, MlpLayer)
        return mlp_weights(step.module, step.layer)

    def assign_(self, model: nn.Module, branch: Branch, weights: BranchWeights) -> None:
        """Give the branch these weights, in the host's own class wherever it holds such a shape."""
        step = self._step(model, branch)
        if isinstance(weights, AttentionWeights):
            assert isinstance(step.layer, AttentionLayer)
            switch = next((name for name in self.switches if hasattr(step.module, name)), None)
            fused = switch is None or bool(getattr(step.module, switch))
            new = assign_attention_(step.module, step.layer, weights, fused=fused)
            forget_cached_(new)
            if new is not step.module:
                model.set_submodule(branch.id, new)
            return
        assert isinstance(step.layer, MlpLayer)
        assign_mlp_(step.module, step.layer, weights)

    def drop_(self, model: nn.Module, branches: set[str]) -> None:
        """Replace blocks that lose branches by what remains of them."""
        steps = steps_of(self.statement, model)
        for path in {step.block: None for step in steps if step.path in branches}:
            own = [step for step in steps if step.kind != "transition" and step.block == path]
            residuals = residuals_of(self.statement, path, own[0].owner)
            kept = [step.residual.path for step in own if step.path not in branches]
            model.set_submodule(path, PartialBlock(own[0].owner, residuals, kept))

    def narrow_(
        self,
        model: nn.Module,
        stream: Stream,
        kept_D: Tensor,
        held: Mapping[str, Held] | None = None,
    ) -> None:
        """Keep these channels of a stream, everywhere."""
        width.narrow_(self.statement, model, stream.stage, kept_D, held or {})

    def stream_ends(self, model: nn.Module, stream: Stream) -> StreamWeights:
        """What writes a stream first and reads it last."""
        return width.stream_ends(self.statement, model, stream.stage)

    def stream_readers(self, model: nn.Module, stream: Stream) -> StreamReaders:
        """Norms over a stream and modules that read it."""
        return width.stream_readers(self.statement, model, stream.stage)

    def add_constant_(self, model: nn.Module, branch: Branch, constant_D: Tensor) -> None:
        """Fold a constant of the stream at `branch` into the nearest earlier bias."""
        fold.add_constant_(self.statement, model, branch.id, constant_D)

    def writer_scale(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """LayerScale, times what a batch norm behind the writer makes of it."""
        return fold.writer_scale(self._step(model, branch))

    def writer_shift(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """What a batch norm behind the writer adds."""
        return fold.writer_shift(self._step(model, branch))

    def writes_linearly(self, model: nn.Module, branch: Branch) -> bool:
        """False with a norm behind the branch; a batch norm is linear in evaluation mode."""
        return not self._step(model, branch).residual.norm_behind

    def embed(self, model: nn.Module, images_BCHW: Tensor) -> Tensor:
        """Patches, prefix tokens and positions, as in the model's own forward pass."""
        return self.statement.embed(model, images_BCHW)

    def arrive(self, model: nn.Module, branch: Branch, stream_BND: Tensor) -> Tensor:
        """What stands since the branch before: transitions, fixed and linear steps."""
        for step in since_branch(steps_before(self.statement, model, branch.id)):
            stream_BND = self._alone(model, step)(stream_BND)
        return stream_BND

    def alone(self, model: nn.Module, branch: Branch) -> nn.Module:
        """The block without its other steps, on tokens."""
        return self._alone(model, self._step(model, branch))

    def through(self, model: nn.Module, branch: Branch) -> nn.Module:
        """The same, behind what stands before it."""
        between = since_branch(steps_before(self.statement, model, branch.id))
        own = self.alone(model, branch)
        return (
            nn.Sequential(*(self._alone(model, step) for step in between), own) if between else own
        )

    def head(self, model: nn.Module, stream_BND: Tensor) -> Tensor:
        """What follows the last branch, up to the model's outputs."""
        for step in since_branch(steps_of(self.statement, model)):
            stream_BND = self._alone(model, step)(stream_BND)
        return self.statement.head(model, stream_BND)

    def hook_points(self, model: nn.Module, branch: Branch) -> dict[str, HookPoint]:
        """Hook points of a branch."""
        return sites_of(self._step(model, branch))

    def _step(self, model: nn.Module, branch: Branch) -> Step:
        for step in steps_of(self.statement, model):
            if step.path == branch.id:
                return step
        raise KeyError(branch.id)

    def _alone(self, model: nn.Module, step: Step) -> nn.Module:
        """A step as a module from stream to stream, in tokens; shares the model's modules."""
        module = step.owner
        if step.kind != "transition":
            residuals = residuals_of(self.statement, step.block, step.owner)
            module = PartialBlock(step.owner, residuals, (step.residual.path,))
            if self.statement.given is not None:
                module = WithGiven(module, partial(self.statement.given, model, step.place[0]))
        return module if step.grid is None else OnGrid(step.grid, module)


class OneStream(StatedFamily):
    """A family whose models have one stream of tokens: it can be rotated, and branches replaced."""

    def why_not_rotate(self, model: nn.Module) -> str | None:
        """Why the stream of this model cannot be rotated; None if it can."""
        return basis.why_not_rotate(self.statement, model)

    def rotate_(self, model: nn.Module, basis_DD: Tensor) -> None:
        """Express the stream in this orthonormal basis, everywhere."""
        basis.rotate_(self.statement, model, basis_DD)

    @torch.no_grad()
    def put_linear_(self, model: nn.Module, branch: Branch, map_DD: Tensor, bias_D: Tensor) -> None:
        """Replace a pre-norm branch by a linear layer; its LayerScale becomes ones."""
        step = next((s for s in steps_of(self.statement, model) if s.path == branch.id), None)
        if step is None or step.residual.norm_behind:
            raise UserError(
                f"no linear layer can stand in for {branch.id}, which was dropped or has its norm "
                "behind it."
            )
        like = step.writer.get_parameter("weight")
        call = step.residual.layers[0].call
        new = LinearStandIn(map_DD.shape[1], map_DD.shape[0], call=call)
        for name, value in (("weight", map_DD), ("bias", bias_D)):
            tensor = value.detach().to(like.device, like.dtype, copy=True).contiguous()
            setattr(new, name, nn.Parameter(tensor, like.requires_grad))
        if (scale := step.scale) is not None:
            scale.fill_(1.0)
        model.set_submodule(branch.id, new.train(step.owner.training))
