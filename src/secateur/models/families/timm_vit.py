"""timm's plain VisionTransformer: ViT, DeiT (also distilled), DeiT-III, DINOv2 with registers.

Legend: D residual width, N tokens, H heads, K query/key dims, V value dims, F hidden neurons.
"""

from collections.abc import Mapping
from typing import cast

from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.models.counting import parameters, vit_ends
from secateur.models.family import families
from secateur.models.folding import add_to_embedding_, add_to_writer_
from secateur.models.linear import (
    after_last,
    alone,
    linear_joints,
    linear_rates,
    put_linear_vit_,
    since_branch,
    stand_ins_of,
)
from secateur.models.modules import AttentionBlock, EmptyBlock, MlpBlock
from secateur.models.narrowing import narrow_vit_, vit_ends_weights, why_not
from secateur.models.places import (
    PARTS,
    AnyAttention,
    AnyMlp,
    PartName,
    Place,
    is_post_norm,
    place,
)
from secateur.models.rebuild import assign_attention_, assign_mlp_, attention_weights, mlp_weights
from secateur.models.rotation import rotate_vit_, why_not_rotate
from secateur.models.stream import Held, StreamWeights
from secateur.models.taps import Tap, View
from secateur.models.timm_blocks import attention_shape, read_block
from secateur.models.types import Anatomy, Block, Branch, Rate, Stream
from secateur.models.weights import AttentionWeights, BranchWeights


class TimmVit:
    """The family of `timm.models.vision_transformer.VisionTransformer` and its subclasses."""

    name = "timm_vit"
    title = "timm VisionTransformer (ViT, DeiT, DeiT-III, DINOv2)"
    examples: tuple[str, ...] = (
        "timm:vit_base_patch16_224",
        "timm:deit_base_distilled_patch16_224",
        "timm:deit3_base_patch16_224",
        "timm:vit_base_patch14_reg4_dinov2",
        "timm:vit_giant_patch14_dinov2",
        "timm:vit_base_patch16_siglip_224",
    )

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is such a module."""
        return isinstance(model, VisionTransformer)

    def read(self, model: nn.Module) -> Anatomy:
        """Describe the model; UserError for parallel blocks and unknown attention or MLPs."""
        vit = cast(VisionTransformer, model)
        _require_patches(vit)
        tokens = int(vit.patch_embed.num_patches) + vit.num_prefix_tokens
        blocks: list[Block] = []
        branches: list[Branch] = []
        for index, module in enumerate(vit.blocks):
            found = read_block(index, module, vit.embed_dim, tokens)
            blocks.append(
                Block(id=f"blocks.{index}", index=index, branches=tuple(b.id for b in found))
            )
            branches.extend(found)
        ends = vit_ends(vit, tokens, parameters(vit) - sum(map(parameters, vit.blocks)))
        stand_ins = stand_ins_of(vit, tokens)
        more, pair = linear_rates(stand_ins, vit.embed_dim, tokens)
        ends = Rate(base=ends.base + more.base, per_width=ends.per_width + more.per_width)
        why = why_not(vit)
        streams = () if why else (Stream(id="stream", width=vit.embed_dim, ends=ends),)
        return Anatomy(
            family=self.name,
            width=vit.embed_dim,
            tokens=tokens,
            prefix_tokens=vit.num_prefix_tokens,
            input_size=(vit.patch_embed.proj.in_channels, *vit.patch_embed.img_size),
            num_classes=vit.num_classes,
            blocks=tuple(blocks),
            branches=tuple(branches),
            ends=ends,
            refusals={"width": why} if why else {},
            streams=streams,
            joints=linear_joints(pair, streams),
            stand_ins=stand_ins,
        )

    def weights(self, model: nn.Module, branch: Branch) -> BranchWeights:
        """Canonical weights; the rows of timm's fused qkv are [q|k|v] by head."""
        module = model.get_submodule(branch.id)
        if branch.kind == "attention":
            attn = cast(AnyAttention, module)
            return attention_weights(attn, attention_shape(attn))
        return mlp_weights(cast(AnyMlp, module))

    def assign_(self, model: nn.Module, branch: Branch, weights: BranchWeights) -> None:
        """Give the branch these weights, in timm's own class wherever it has such a shape."""
        parent, _, name = branch.id.rpartition(".")
        module = model.get_submodule(branch.id)
        if isinstance(weights, AttentionWeights):
            new = assign_attention_(cast(AnyAttention, module), weights)
            setattr(model.get_submodule(parent), name, new)
        else:
            assign_mlp_(cast(AnyMlp, module), weights)

    def drop_(self, model: nn.Module, branches: set[str]) -> None:
        """Replace blocks that lose branches by what remains of them."""
        blocks = cast(VisionTransformer, model).blocks
        for index, block in enumerate(blocks):
            had = [part for part in PARTS if place(block, part)]
            left = [part for part in had if f"blocks.{index}.{part}" not in branches]
            if left != had:
                blocks[index] = _remaining(block, left).train(block.training)

    def put_linear_(self, model: nn.Module, branch: Branch, map_DD: Tensor, bias_D: Tensor) -> None:
        """Put a linear layer where a branch is."""
        index, part = _part(branch)
        put_linear_vit_(cast(VisionTransformer, model), index, part, map_DD, bias_D)

    def narrow_(
        self,
        model: nn.Module,
        stream: Stream,
        kept_D: Tensor,
        held: Mapping[str, Held] | None = None,
    ) -> None:
        """Keep these channels of the stream, everywhere."""
        narrow_vit_(cast(VisionTransformer, model), kept_D, held or {})

    def why_not_rotate(self, model: nn.Module) -> str | None:
        """Post-norm blocks, norms that write the stream, no classifier behind a norm."""
        return why_not_rotate(cast(VisionTransformer, model))

    def rotate_(self, model: nn.Module, basis_DD: Tensor) -> None:
        """Express the stream in this orthonormal basis, everywhere."""
        rotate_vit_(cast(VisionTransformer, model), basis_DD)

    def stream_ends(self, model: nn.Module, stream: Stream) -> StreamWeights:
        """Patch embedding and classifiers."""
        return vit_ends_weights(cast(VisionTransformer, model))

    def add_constant_(self, model: nn.Module, branch: Branch, constant_D: Tensor) -> None:
        """Fold a constant of the stream at `branch` into the nearest earlier bias."""
        vit = cast(VisionTransformer, model)
        parts = [(i, part) for i in range(len(vit.blocks)) for part in PARTS]
        for i, part in reversed(parts[: parts.index(_part(branch))]):
            if writer := place(vit.blocks[i], part):
                add_to_writer_(writer, constant_D)
                return
        add_to_embedding_(vit, constant_D)

    def writer_scale(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """LayerScale's gamma, if the block has one."""
        scale = _place(model, branch).scale
        return None if scale is None else scale.gamma

    def writer_shift(self, model: nn.Module, branch: Branch) -> None:
        """Nothing: the writer's own bias is all."""

    def writes_linearly(self, model: nn.Module, branch: Branch) -> bool:
        """True but for post-norm blocks."""
        return not _place(model, branch).post_norm

    def embed(self, model: nn.Module, images_BCHW: Tensor) -> Tensor:
        """Patches, prefix tokens and positions, as in the model's own forward pass."""
        vit = cast(VisionTransformer, model)
        x_BND: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images_BCHW))))
        return x_BND

    def arrive(self, model: nn.Module, branch: Branch, stream_BND: Tensor) -> Tensor:
        """The same, unless linear layers stand where branches were."""
        for module in since_branch(cast(VisionTransformer, model), *_part(branch)):
            stream_BND = module(stream_BND)
        return stream_BND

    def through(self, model: nn.Module, branch: Branch) -> nn.Module:
        """The branch, behind linear layers that stand right before it."""
        between = since_branch(cast(VisionTransformer, model), *_part(branch))
        own = self.alone(model, branch)
        return nn.Sequential(*between, own) if between else own

    def alone(self, model: nn.Module, branch: Branch) -> nn.Module:
        """The block without its other branch."""
        index, part = _part(branch)
        return alone(cast(VisionTransformer, model).blocks[index], part)

    def head(self, model: nn.Module, stream_BND: Tensor) -> Tensor:
        """Final norm, pooling and classifier, behind linear layers where the last branches were."""
        vit = cast(VisionTransformer, model)
        for module in after_last(vit):
            stream_BND = module(stream_BND)
        return vit.forward_head(vit.norm(stream_BND))

    def taps(self, model: nn.Module, branch: Branch) -> dict[str, Tap]:
        """Sites of a branch; queries and keys are seen after QK-norm where there is one."""
        parent, _, name = branch.id.rpartition(".")
        block = model.get_submodule(parent)
        number = "1" if name == "attn" else "2"
        entry = branch.id if is_post_norm(block) else f"{parent}.norm{number}"
        taps = {
            "stream": Tap(entry, "input"),
            "input": Tap(branch.id, "input"),
            "update": Tap(f"{parent}.drop_path{number}", "output"),
        }
        if name == "mlp":
            return taps | {"hidden": Tap(f"{branch.id}.fc2", "input")}
        return taps | _attention_taps(branch.id, cast(AnyAttention, model.get_submodule(branch.id)))


def _part(branch: Branch) -> tuple[int, PartName]:
    return branch.block, "attn" if branch.kind == "attention" else "mlp"


def _place(model: nn.Module, branch: Branch) -> Place:
    index, part = _part(branch)
    found = place(model.get_submodule(f"blocks.{index}"), part)
    if found is None:
        raise KeyError(branch.id)
    return found


def _require_patches(vit: VisionTransformer) -> None:
    if not isinstance(vit.patch_embed, PatchEmbed):
        raise UserError(
            f"patch_embed is a {type(vit.patch_embed).__name__}, a stem of more than one layer, "
            "whose cost secateur cannot count; only PatchEmbed is supported."
        )


def _attention_taps(path: str, attn: AnyAttention) -> dict[str, Tap]:
    shape = attention_shape(attn)
    heads, qk, vo = shape.heads, shape.qk, shape.vo
    taps = {
        "query": Tap(f"{path}.qkv", "output", _by_head(0, heads, qk)),
        "key": Tap(f"{path}.qkv", "output", _by_head(heads * qk, heads, qk)),
        "value": Tap(f"{path}.qkv", "output", _by_head(2 * heads * qk, heads, vo)),
        "context": Tap(f"{path}.proj", "input", _by_head(0, heads, vo)),
    }
    if not isinstance(attn.q_norm, nn.Identity):
        taps["query"] = Tap(f"{path}.q_norm", "output", _by_token)
        taps["key"] = Tap(f"{path}.k_norm", "output", _by_token)
    return taps


def _by_head(first: int, heads: int, dims: int) -> View:
    """The view (..., heads, dims) of that many features, from number `first` on."""

    def view(t: Tensor) -> Tensor:
        features = t[..., first : first + heads * dims]
        return features.view(*features.shape[:-1], heads, dims)

    return view


def _by_token(t: Tensor) -> Tensor:
    return t.transpose(1, 2)


def _remaining(block: nn.Module, left: list[PartName]) -> nn.Module:
    if not left:
        return EmptyBlock()
    kept = AttentionBlock if left == ["attn"] else MlpBlock
    return kept(block, post_norm=is_post_norm(block))


families.register(TimmVit.name)(TimmVit())
