"""timm's EfficientFormer: stages of convolutional MLPs on grids, then attention on tokens.

Pooling mixers have no weights and no products to count, so they are no branches; like the strided
convolutions between stages they stand between branches and stay.
Legend: D residual width (differs from stage to stage), N tokens, T entries of a bias table.
"""

from collections.abc import Mapping
from typing import cast

from timm.layers import Mlp
from timm.models.efficientformer import Attention, ConvMlpWithNorm, EfficientFormer
from torch import Tensor, nn

from secateur.models.counting import mlp_rates, parameters
from secateur.models.family import families
from secateur.models.folding import add_to_bias_
from secateur.models.metaformer_modules import MixerPart, MlpPart, OnGrid, as_tokens
from secateur.models.metaformer_steps import (
    STEM_STRIDE,
    Step,
    add_behind_stem_,
    add_to_part_,
    before,
    block_of,
    block_paths,
    first_side,
    last_side,
    since_branch,
    steps_of,
)
from secateur.models.metaformer_weights import (
    assign_attention_,
    assign_conv_mlp_,
    assign_layer_,
    attention_rates,
    attention_shape,
    attention_weights,
    check_conv_mlp,
    conv_mlp_rates,
    conv_mlp_weights,
    mlp_shape,
)
from secateur.models.metaformer_width import (
    joints_of,
    narrow_stage_,
    stage_ends,
    streams_of,
    why_not,
)
from secateur.models.modules import EmptyBlock
from secateur.models.rebuild import mlp_weights
from secateur.models.stream import Held, StreamWeights
from secateur.models.taps import Tap, whole
from secateur.models.types import Anatomy, Block, Branch, Cost, Rate, Stream
from secateur.models.weights import AttentionWeights, BranchWeights


class EfficientFormerFamily:
    """The family of `timm.models.efficientformer.EfficientFormer`."""

    name = "efficientformer"
    title = "timm EfficientFormer (L1, L3, L7)"
    examples: tuple[str, ...] = ("timm:efficientformer_l1",)

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is such a module."""
        return isinstance(model, EfficientFormer)

    def read(self, model: nn.Module) -> Anatomy:
        """Describe the model; UserError for blocks and layers that timm does not put there."""
        host = cast(EfficientFormer, model)
        steps = steps_of(host)
        order = {path: number for number, path in enumerate(block_paths(host))}
        branches = tuple(
            _branch(step, order[block_of(step.path)]) for step in steps if step.is_branch
        )
        blocks = tuple(
            Block(
                id=path,
                index=index,
                branches=tuple(b.id for b in branches if b.block == index),
            )
            for path, index in order.items()
        )
        side = first_side(host)
        last, why = last_side(host), why_not(host)
        return Anatomy(
            family=self.name,
            width=host.num_features,
            tokens=last * last,
            prefix_tokens=0,
            input_size=(host.in_chans, STEM_STRIDE * side, STEM_STRIDE * side),
            num_classes=host.num_classes,
            blocks=blocks,
            branches=branches,
            ends=_ends(host, steps),
            streams=() if why else streams_of(host),
            joints=() if why else joints_of(host),
            refusals={"width": why} if why else {},
        )

    def weights(self, model: nn.Module, branch: Branch) -> BranchWeights:
        """Canonical weights; 1x1 convolutions are matrices."""
        module = model.get_submodule(branch.id)
        if isinstance(module, Attention):
            return attention_weights(module)
        if isinstance(module, ConvMlpWithNorm):
            return conv_mlp_weights(module)
        return mlp_weights(cast(Mlp, module))

    def assign_(self, model: nn.Module, branch: Branch, weights: BranchWeights) -> None:
        """Give the branch these weights; timm's own classes can express every shape."""
        module = model.get_submodule(branch.id)
        if isinstance(weights, AttentionWeights):
            assign_attention_(cast(Attention, module), weights)
        elif isinstance(module, ConvMlpWithNorm):
            assign_conv_mlp_(module, weights)
        else:
            assign_layer_(
                module.get_submodule("fc1"), weights.readers_FD[0], weights.reader_biases_F[0]
            )
            assign_layer_(module.get_submodule("fc2"), weights.w2_DF, weights.b2_D)

    def drop_(self, model: nn.Module, branches: set[str]) -> None:
        """Replace blocks that lose branches by what remains of them."""
        for path in {block_of(branch) for branch in branches}:
            block = model.get_submodule(path)
            left = [
                name
                for name in ("token_mixer", "mlp")
                if hasattr(block, name) and f"{path}.{name}" not in branches
            ]
            rest: nn.Module = EmptyBlock()
            if left:
                rest = MixerPart(block) if left == ["token_mixer"] else MlpPart(block)
            model.set_submodule(path, rest.train(block.training))

    def narrow_(
        self,
        model: nn.Module,
        stream: Stream,
        kept_D: Tensor,
        held: Mapping[str, Held] | None = None,
    ) -> None:
        """Keep these channels of a stage, everywhere."""
        narrow_stage_(cast(EfficientFormer, model), stream.stage, kept_D, held or {})

    def stream_ends(self, model: nn.Module, stream: Stream) -> StreamWeights:
        """Stem or strided convolution before a stage, and the one behind it or the classifiers."""
        return stage_ends(cast(EfficientFormer, model), stream.stage)

    def add_constant_(self, model: nn.Module, branch: Branch, constant_D: Tensor) -> None:
        """Fold a constant into the nearest earlier bias, at the latest behind the stem.

        Pooling mixers give back what they are given where it is constant, and stand not in the way.
        """
        host = cast(EfficientFormer, model)
        for step in reversed(before(host, branch.id)):
            if step.is_branch:
                add_to_part_(step, constant_D)
                return
            if step.part == "downsample":
                add_to_bias_(step.module.get_submodule("norm"), constant_D)
                return
        add_behind_stem_(host, constant_D)

    def writer_scale(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """LayerScale's gamma, times what the batch norm behind a convolution makes of it."""
        block = model.get_submodule(block_of(branch.id))
        if branch.kind == "attention":
            return block.get_parameter("ls1.gamma")
        gamma_D = block.get_parameter("ls2.gamma")
        norm = _norm_behind(model, branch)
        if norm is None or norm.running_var is None:
            return gamma_D
        return gamma_D * norm.weight / (norm.running_var + norm.eps).sqrt()

    def writer_shift(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """What the batch norm behind a convolution adds, times LayerScale."""
        norm, scale_D = _norm_behind(model, branch), self.writer_scale(model, branch)
        if norm is None or norm.running_mean is None or scale_D is None:
            return None
        gamma_D = model.get_submodule(block_of(branch.id)).get_parameter("ls2.gamma")
        return gamma_D * norm.bias - scale_D * norm.running_mean

    def writes_linearly(self, model: nn.Module, branch: Branch) -> bool:
        """True: in evaluation mode a batch norm is linear but for a constant."""
        return True

    def embed(self, model: nn.Module, images_BCHW: Tensor) -> Tensor:
        """The stem's grid as tokens."""
        return as_tokens(model.get_submodule("stem")(images_BCHW))

    def arrive(self, model: nn.Module, branch: Branch, stream_BND: Tensor) -> Tensor:
        """Pooling mixers and strided convolutions since the branch before."""
        between = since_branch(before(cast(EfficientFormer, model), branch.id))
        for step in between:
            stream_BND = OnGrid(step.side, step.alone())(stream_BND)
        return stream_BND

    def alone(self, model: nn.Module, branch: Branch) -> nn.Module:
        """The block without its other part, on tokens."""
        step = next(s for s in steps_of(cast(EfficientFormer, model)) if s.path == branch.id)
        return step.alone() if step.flat else OnGrid(step.side, step.alone())

    def through(self, model: nn.Module, branch: Branch) -> nn.Module:
        """The same, behind what stands before it."""
        host = cast(EfficientFormer, model)
        between = [OnGrid(s.side, s.alone()) for s in since_branch(before(host, branch.id))]
        return nn.Sequential(*between, self.alone(model, branch))

    def head(self, model: nn.Module, stream_BND: Tensor) -> Tensor:
        """What follows the last branch, final norm, pooling and both classifiers."""
        host = cast(EfficientFormer, model)
        for step in since_branch(steps_of(host)):
            stream_BND = OnGrid(step.side, step.alone())(stream_BND)
        logits_BC: Tensor = host.forward_head(host.norm(stream_BND))
        return logits_BC

    def taps(self, model: nn.Module, branch: Branch) -> dict[str, Tap]:
        """Sites of a branch; grids are seen as tokens."""
        block, module = block_of(branch.id), model.get_submodule(branch.id)
        number = "1" if branch.kind == "attention" else "2"
        view = as_tokens if isinstance(module, ConvMlpWithNorm) else whole
        has_norm = hasattr(model.get_submodule(block), f"norm{number}")
        taps = {
            "stream": Tap(f"{block}.norm{number}" if has_norm else branch.id, "input", view),
            "input": Tap(branch.id, "input", view),
            "update": Tap(f"{block}.drop_path{number}", "output", view),
        }
        if isinstance(module, Attention):
            return taps | _attention_taps(branch.id, module)
        return taps | {"hidden": Tap(f"{branch.id}.fc2", "input", view)}


def _norm_behind(model: nn.Module, branch: Branch) -> nn.BatchNorm2d | None:
    norm = getattr(model.get_submodule(branch.id), "norm2", None)
    return norm if isinstance(norm, nn.BatchNorm2d) else None


def _branch(step: Step, block: int) -> Branch:
    inner = step.module.get_submodule("mlp" if step.part == "mlp" else "token_mixer")
    tokens = step.side**2
    if isinstance(inner, Attention):
        vectors = [step.module.get_submodule(name) for name in ("norm1", "ls1")]
        return Branch(
            id=step.path,
            kind="attention",
            block=block,
            stage=step.stage,
            width=inner.proj.out_features,
            tokens=tokens,
            shape=attention_shape(inner),
            writer_bias=inner.proj.bias is not None,
            carrier=step.stage > 0,
            **attention_rates(inner, vectors, tokens),
        )
    scale = step.module.get_submodule("ls2")
    if isinstance(inner, ConvMlpWithNorm):
        check_conv_mlp(step.path, inner)
        prices = conv_mlp_rates(inner, scale, tokens)
    else:
        prices = mlp_rates(cast(Mlp, inner), [step.module.get_submodule("norm2"), scale], tokens)
    writer = inner.get_submodule("fc2")
    return Branch(
        id=step.path,
        kind="mlp",
        block=block,
        stage=step.stage,
        width=scale.get_parameter("gamma").numel(),
        tokens=tokens,
        shape=mlp_shape(inner),
        writer_bias=writer.bias is not None,
        carrier=step.stage > 0,
        **prices,
    )


def _ends(host: EfficientFormer, steps: list[Step]) -> Rate:
    """Stem, strided convolutions, pooling mixers' scales, final norm and classifiers."""
    fixed = [step for step in steps if not step.is_branch]
    heads = [head for head in (host.head, host.head_dist) if isinstance(head, nn.Linear)]
    scales = [step.module.get_submodule("ls1") for step in fixed if step.part == "pooling"]
    downs = [step for step in fixed if step.part == "downsample"]
    modules = [host.stem, *(step.module for step in downs), *scales, host.norm, *heads]
    first = first_side(host)
    macs = (2 * first) ** 2 * host.get_parameter("stem.conv1.weight").numel()
    macs += first**2 * host.get_parameter("stem.conv2.weight").numel()
    macs += sum((s.side // 2) ** 2 * s.module.get_parameter("conv.weight").numel() for s in downs)
    macs += sum(head.weight.numel() for head in heads)
    return Rate(base=Cost(params=sum(map(parameters, modules)), macs=macs))


def _attention_taps(path: str, attn: Attention) -> dict[str, Tap]:
    heads, qk, vo = attn.num_heads, attn.key_dim, attn.val_dim

    def rows(first: int, dims: int) -> Tap:
        def view(t: Tensor) -> Tensor:
            by_head: Tensor = t.unflatten(-1, (heads, 2 * qk + vo))
            return by_head[..., first : first + dims]

        return Tap(f"{path}.qkv", "output", view)

    return {
        "query": rows(0, qk),
        "key": rows(qk, qk),
        "value": rows(2 * qk, vo),
        "context": Tap(f"{path}.proj", "input", lambda t: t.unflatten(-1, (heads, vo))),
    }


families.register(EfficientFormerFamily.name)(EfficientFormerFamily())
