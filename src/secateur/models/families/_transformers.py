"""What the models of transformers have in common, whatever their family; no family itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from secateur.models.family import state
from secateur.models.statement import Names, Residual, Statement, Stem, Tail

Model = Any
"""A model of transformers, which has no types here."""

STEM = Stem(
    writer="embeddings.patch_embeddings.projection",
    positions="embeddings.position_embeddings",
    tokens=("embeddings.cls_token?",),
    unused=("embeddings.mask_token?",),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the classes of one type of model have in common; paths are in its encoder.

    `norm` goes over the last state, `prefix(config)` counts the tokens before the patches; an
    encoder that `resizes` its positions takes images of any size. `given(encoder, image, block)`
    are the arguments of a block beside the stream, for images of a size (C, H, W).
    """

    type: str
    title: str
    block: Mapping[str, tuple[Residual, ...]]
    blocks: str = "layers.*"
    stem: Stem = STEM
    prefix: Callable[[Model], int] = lambda _config: 1
    norm: str = "layernorm"
    resizes: bool = False
    given: Callable[[Model, tuple[int, int, int], int], Mapping[str, object]] | None = None


def square(size: Any) -> tuple[int, int]:
    """Rows and columns of what a configuration states by one number or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def image(kind: Kind, encoder: Model, model: Model) -> tuple[int, int, int]:
    """The size of images: that of the preprocessing where the encoder takes any, else its own."""
    config = encoder.config
    known = (model.__dict__.get("pretrained_cfg") or {}).get("input_size")
    size = tuple(known[1:]) if kind.resizes and known else square(config.image_size)
    return (int(config.num_channels), *size)


def record(model: nn.Module, path: str) -> None:
    """Install the hooks that collect hidden states and attentions, before a layer is replaced."""
    found = [name for name, m in model.named_modules() if hasattr(m, "_can_record_outputs")]
    owner = max((n for n in found if not n or path.startswith(f"{n}.")), key=len, default=None)
    if owner is not None:
        capturing = import_module("transformers.utils.output_capturing")
        capturing.maybe_install_capturing_hooks(model.get_submodule(owner))


def inside(base: str, fact: Any) -> Any:
    """A stem or tail with its paths in the model instead of in the encoder."""

    def moved(value: Any) -> Any:
        if isinstance(value, str):
            return f"{base}.{value}"
        if isinstance(value, tuple):
            return tuple(moved(item) for item in value)
        return {moved(k): v for k, v in value.items()} if isinstance(value, dict) else value

    names = type(fact).__dataclass_fields__
    return replace(fact, **{name: moved(getattr(fact, name)) for name in names}) if base else fact


def stated(
    kind: Kind,
    cls: str,
    base: str,
    head: Callable[[Model, Tensor], Any],
    *,
    tail: Tail | None = None,
    classifiers: Names = (),
    classes: str | None = "num_labels",
    example: str | None = None,
) -> None:
    """Register the family of one class, whose encoder stands at `base`."""

    def encoder(model: Model) -> Model:
        return model.get_submodule(base)

    def embed(model: Model, images_BCHW: Tensor) -> Tensor:
        own = encoder(model)
        stream_BND: Tensor = own.embeddings(images_BCHW)
        norm = nn.Identity() if kind.stem.norm is None else own.get_submodule(kind.stem.norm)
        return norm(stream_BND)  # type: ignore[no-any-return]

    def grid(model: Model) -> tuple[int, int]:
        patch = square(encoder(model).config.patch_size)
        size = image(kind, encoder(model), model)[1:]
        return (size[0] // patch[0], size[1] // patch[1])

    def given(model: Model, index: int) -> Mapping[str, object]:
        size = image(kind, encoder(model), model)
        return {} if kind.given is None else kind.given(encoder(model), size, index)

    tail = inside(base, Tail(norms=(kind.norm,)) if tail is None else tail)
    if (pool_macs := tail.pool_macs) is not None:
        tail = replace(tail, pool_macs=lambda model: pool_macs(encoder(model)))
    state(
        Statement(
            name=f"hf_{cls}",
            title=kind.title,
            examples=() if example is None else (f"hf:{example}",),
            hosts=(f"transformers.models.{kind.type}.modeling_{kind.type}:{cls}",),
            blocks=f"{base}.{kind.blocks}" if base else kind.blocks,
            residuals=kind.block,
            stem=inside(base, kind.stem),
            tail=replace(tail, classifiers=(*tail.classifiers, *classifiers)),
            embed=embed,
            head=head,
            image=lambda model: image(kind, encoder(model), model),
            grid=grid,
            prefix=lambda model: kind.prefix(encoder(model).config),
            classes=classes,
            given=None if kind.given is None else given,
            fused="config._attn_implementation",
            record=record,
        )
    )
