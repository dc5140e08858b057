"""timm's plain VisionTransformer: ViT, DeiT (also distilled), DeiT-III, DINOv2 with registers.

Legend: D residual width, N tokens, H heads, K query/key dims, V value dims, F hidden neurons.
"""

import torch
from timm.layers import GluMlp, LayerScale, Mlp, SwiGLU
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

from secateur.anatomy.counting import attention_rates, mlp_rates, parameters, vit_ends
from secateur.anatomy.family import families
from secateur.anatomy.modules import AttentionBlock, EmptyBlock, MlpBlock, SlimAttention
from secateur.anatomy.rebuild import assign_attention_, assign_mlp_, attention_weights, mlp_weights
from secateur.anatomy.taps import Tap
from secateur.anatomy.types import Anatomy, AttentionShape, Block, Branch, GroupName, MlpShape
from secateur.anatomy.weights import AttentionWeights, BranchWeights
from secateur.errors import UserError

BLOCKS = (TimmBlock, ResPostBlock, AttentionBlock, MlpBlock, EmptyBlock)
MLPS = (Mlp, GluMlp, SwiGLU)


class TimmVit:
    """The family of `timm.models.vision_transformer.VisionTransformer` and its subclasses."""

    name = "timm_vit"
    title = "timm VisionTransformer (ViT, DeiT, DeiT-III, DINOv2)"

    def matches(self, model: nn.Module) -> bool:
        """Whether `model` is such a module."""
        return isinstance(model, VisionTransformer)

    def read(self, model: nn.Module) -> Anatomy:
        """Describe the model; UserError for parallel blocks and unknown attention or MLPs."""
        tokens = _tokens(model)
        blocks: list[Block] = []
        branches: list[Branch] = []
        for index, module in enumerate(model.blocks):
            found = _read_block(f"blocks.{index}", index, module, model.embed_dim, tokens)
            blocks.append(
                Block(id=f"blocks.{index}", index=index, branches=tuple(b.id for b in found))
            )
            branches.extend(found)
        inside = sum(parameters(module) for module in model.blocks)
        return Anatomy(
            family=self.name,
            width=model.embed_dim,
            tokens=tokens,
            prefix_tokens=model.num_prefix_tokens,
            input_size=(model.patch_embed.proj.in_channels, *model.patch_embed.img_size),
            num_classes=model.num_classes,
            blocks=tuple(blocks),
            branches=tuple(branches),
            ends=vit_ends(model, tokens, parameters(model) - inside),
        )

    def weights(self, model: nn.Module, branch: Branch) -> BranchWeights:
        """Canonical weights; the rows of timm's fused qkv are [q|k|v] by head."""
        module = model.get_submodule(branch.id)
        if branch.kind == "attention":
            return attention_weights(module, _attention_shape(module))
        return mlp_weights(module)

    def assign_(self, model: nn.Module, branch: Branch, weights: BranchWeights) -> None:
        """Give the branch these weights, in timm's own class wherever it has such a shape."""
        parent, _, name = branch.id.rpartition(".")
        module = model.get_submodule(branch.id)
        if isinstance(weights, AttentionWeights):
            setattr(model.get_submodule(parent), name, assign_attention_(module, weights))
        else:
            assign_mlp_(module, weights)

    def drop_(self, model: nn.Module, branches: set[str]) -> None:
        """Replace blocks that lose branches by what remains of them."""
        for index, block in enumerate(model.blocks):
            left = [
                kind
                for kind in ("attn", "mlp")
                if hasattr(block, kind) and f"blocks.{index}.{kind}" not in branches
            ]
            had = [kind for kind in ("attn", "mlp") if hasattr(block, kind)]
            if left != had:
                model.blocks[index] = _remaining(block, left).train(block.training)

    def add_constant_(self, model: nn.Module, branch: Branch, constant_D: Tensor) -> None:
        """Fold a constant of the stream at `branch` into the nearest earlier bias."""
        index, kind = int(branch.id.split(".")[1]), branch.id.split(".")[2]
        earlier = [(index, "attn")] if kind == "mlp" else []
        earlier += [(i, k) for i in range(index - 1, -1, -1) for k in ("mlp", "attn")]
        for i, k in earlier:
            block = model.blocks[i]
            if hasattr(block, k):
                _add_to_writer_(block, k, constant_D)
                return
        _add_to_embedding_(model, constant_D)

    def writer_scale(self, model: nn.Module, branch: Branch) -> Tensor | None:
        """LayerScale's gamma, if the block has one."""
        parent, _, name = branch.id.rpartition(".")
        scale = getattr(model.get_submodule(parent), "ls1" if name == "attn" else "ls2", None)
        return scale.gamma if isinstance(scale, LayerScale) else None

    def embed(self, model: nn.Module, images_BCHW: Tensor) -> Tensor:
        """Patches, prefix tokens and positions, as in the model's own forward pass."""
        x_BND = model._pos_embed(model.patch_embed(images_BCHW))
        return model.norm_pre(model.patch_drop(x_BND))

    def through(self, model: nn.Module, branch: Branch) -> nn.Module:
        """The block without its other branch."""
        parent, _, name = branch.id.rpartition(".")
        block = model.get_submodule(parent)
        kept = AttentionBlock if name == "attn" else MlpBlock
        return kept(block, post_norm=_is_post_norm(block)).train(block.training)

    def head(self, model: nn.Module, stream_BND: Tensor) -> Tensor:
        """Final norm, pooling and classifier."""
        return model.forward_head(model.norm(stream_BND))

    def taps(self, model: nn.Module, branch: Branch) -> dict[str, Tap]:
        """Sites of a branch; queries and keys are seen after QK-norm where there is one."""
        parent, _, name = branch.id.rpartition(".")
        block = model.get_submodule(parent)
        number = "1" if name == "attn" else "2"
        entry = branch.id if _is_post_norm(block) else f"{parent}.norm{number}"
        taps = {
            "stream": Tap(entry, "input"),
            "input": Tap(branch.id, "input"),
            "update": Tap(f"{parent}.drop_path{number}", "output"),
        }
        if name == "mlp":
            return taps | {"hidden": Tap(f"{branch.id}.fc2", "input")}
        return taps | _attention_taps(branch.id, model.get_submodule(branch.id))


def _tokens(model: nn.Module) -> int:
    return int(model.patch_embed.num_patches) + int(model.num_prefix_tokens)


def _is_post_norm(block: nn.Module) -> bool:
    return isinstance(block, ResPostBlock) or bool(getattr(block, "post_norm", False))


def _attention_shape(attn: nn.Module) -> AttentionShape:
    if isinstance(attn, SlimAttention):
        return AttentionShape(heads=attn.num_heads, qk=attn.qk_dim, vo=attn.v_dim)
    return AttentionShape(heads=attn.num_heads, qk=attn.head_dim, vo=attn.head_dim)


def _read_block(
    path: str, index: int, module: nn.Module, width: int, tokens: int
) -> list[Branch]:
    if type(module) not in BLOCKS:
        raise UserError(
            f"{path} is a {type(module).__name__}, whose attention and MLP do not write to the "
            "stream one after the other; only Block and ResPostBlock models are supported."
        )
    branches = []
    if hasattr(module, "attn"):
        branches.append(_read_attention(path, index, module, width, tokens))
    if hasattr(module, "mlp"):
        branches.append(_read_mlp(path, index, module, width, tokens))
    return branches


def _read_attention(
    path: str, index: int, block: nn.Module, width: int, tokens: int
) -> Branch:
    attn = block.attn
    if type(attn) not in (Attention, SlimAttention):
        raise UserError(
            f"{path}.attn is a {type(attn).__name__}, an attention layer that secateur cannot "
            "read; only timm's standard Attention is supported."
        )
    refusals: dict[GroupName, str] = {}
    if not isinstance(attn.q_norm, nn.Identity):
        refusals["qk"] = (
            "QK-norm normalises over the dims of a head, so removing some changes the others"
        )
    if getattr(attn, "gate", None) is not None:
        refusals |= dict.fromkeys(("qk", "vo", "heads"), "the attention output is gated")
    if not isinstance(getattr(attn, "norm", nn.Identity()), nn.Identity):
        refusals |= dict.fromkeys(
            ("qk", "vo", "heads"), "a norm over the attention output depends on every dim"
        )
    shape = _attention_shape(attn)
    norms = [block.norm1, getattr(block, "ls1", nn.Identity())]
    return Branch(
        id=f"{path}.attn",
        kind="attention",
        block=index,
        width=width,
        tokens=tokens,
        shape=shape,
        refusals=refusals,
        **attention_rates(attn, shape, norms, tokens),
    )


def _read_mlp(path: str, index: int, block: nn.Module, width: int, tokens: int) -> Branch:
    mlp = block.mlp
    if type(mlp) not in MLPS:
        raise UserError(
            f"{path}.mlp is a {type(mlp).__name__}, an MLP that secateur cannot read; supported "
            f"are {', '.join(cls.__name__ for cls in MLPS)}."
        )
    refusals: dict[GroupName, str] = {}
    if not isinstance(mlp.norm, nn.Identity):
        refusals["hidden"] = "a norm over the hidden neurons depends on every one of them"
    norms = [block.norm2, getattr(block, "ls2", nn.Identity())]
    return Branch(
        id=f"{path}.mlp",
        kind="mlp",
        block=index,
        width=width,
        tokens=tokens,
        shape=MlpShape(hidden=mlp.fc2.in_features),
        refusals=refusals,
        **mlp_rates(mlp, norms, tokens),
    )


def _attention_taps(path: str, attn: nn.Module) -> dict[str, Tap]:
    shape = _attention_shape(attn)
    heads, qk, vo = shape.heads, shape.qk, shape.vo
    keys, values = heads * qk, 2 * heads * qk

    def query_view(t: Tensor) -> Tensor:
        return t[..., :keys].unflatten(-1, (heads, qk))

    def key_view(t: Tensor) -> Tensor:
        return t[..., keys:values].unflatten(-1, (heads, qk))

    def value_view(t: Tensor) -> Tensor:
        return t[..., values:].unflatten(-1, (heads, vo))

    def context_view(t: Tensor) -> Tensor:
        return t.unflatten(-1, (heads, vo))

    def by_token(t: Tensor) -> Tensor:
        return t.transpose(1, 2)

    taps = {
        "value": Tap(f"{path}.qkv", "output", value_view),
        "context": Tap(f"{path}.proj", "input", context_view),
        "query": Tap(f"{path}.qkv", "output", query_view),
        "key": Tap(f"{path}.qkv", "output", key_view),
    }
    if not isinstance(attn.q_norm, nn.Identity):
        taps["query"] = Tap(f"{path}.q_norm", "output", by_token)
        taps["key"] = Tap(f"{path}.k_norm", "output", by_token)
    return taps


def _remaining(block: nn.Module, left: list[str]) -> nn.Module:
    if not left:
        return EmptyBlock()
    kept = AttentionBlock if left == ["attn"] else MlpBlock
    return kept(block, post_norm=_is_post_norm(block))


@torch.no_grad()
def _add_to_writer_(block: nn.Module, kind: str, constant_D: Tensor) -> None:
    norm = getattr(block, "norm1" if kind == "attn" else "norm2")
    scale = getattr(block, "ls1" if kind == "attn" else "ls2", None)
    writer = block.attn.proj if kind == "attn" else block.mlp.fc2
    target = norm if _is_post_norm(block) else writer
    if target.bias is None:
        target.bias = nn.Parameter(torch.zeros_like(constant_D, dtype=target.weight.dtype))
    if isinstance(scale, LayerScale):
        # WHY: a gamma of exactly zero cannot carry a constant; the scale then moves into the
        # writer's weights, where it belongs just as well.
        if bool((scale.gamma == 0).any()):
            writer.weight.mul_(scale.gamma[:, None])
            if writer.bias is not None:
                writer.bias.mul_(scale.gamma)
            scale.gamma.fill_(1.0)
        constant_D = constant_D / scale.gamma
    target.bias.add_(constant_D.to(target.bias.dtype))


@torch.no_grad()
def _add_to_embedding_(model: nn.Module, constant_D: Tensor) -> None:
    if not isinstance(model.norm_pre, nn.Identity):
        if model.norm_pre.bias is None:
            raise UserError(
                "norm_pre has no bias to carry the mean of a dropped first layer; protect the "
                "first block or use repair 'none'."
            )
        model.norm_pre.bias.add_(constant_D.to(model.norm_pre.bias.dtype))
        return
    if model.pos_embed is not None:
        carriers = [model.pos_embed]
        covers_prefix = not model.no_embed_class
    else:
        carriers, covers_prefix = [model.patch_embed.proj.bias], False
    if not covers_prefix:
        carriers += [model.cls_token, model.reg_token, getattr(model, "dist_token", None)]
    for carrier in carriers:
        if carrier is not None:
            carrier.add_(constant_D.to(carrier.dtype))


families.register(TimmVit.name)(TimmVit())
