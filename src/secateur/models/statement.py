"""A model family as a statement: the facts in which host classes differ, and nothing else.

Names are paths of modules or parameters as the host calls them, relative to what the docstring
says. A name that is stated must be there, but for one that ends in "?"; where the host has None or
an Identity under it, the model is without it. Everything else is derived from these facts.

Legend: B batch, N tokens, D width, H heads, K query/key, V value dims, T table entries, F neurons.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from secateur.models.derived.call import Call as Call
from secateur.models.derived.call import Names as Names
from secateur.models.derived.call import PositionBias as PositionBias
from secateur.models.derived.call import RelativeVectors as RelativeVectors
from secateur.models.derived.windows import Windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One matrix for queries, keys and values: paths of parameters in the layer.

    Rows are [q | k | v], each head by head, or with `by_head` head by head, each [q | k | v].
    `bias` is one vector in the same order, or one for each of q, k and v, None where there is none;
    parts of the same name share one vector. Where the layer itself holds a weight or bias (a path
    without a dot), it computes past its modules: ours is put in its place before it is observed.
    """

    weight: str = "qkv.weight"
    bias: str | tuple[str | None, str | None, str | None] = "qkv.bias"
    by_head: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Separate:
    """A linear layer each; their biases may be missing."""

    q: str
    k: str
    v: str
    by_head: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TabulatedBias:
    """Biases of the logits that follow from weights alone, however the host computes them.

    `read(module)` gives them as a table (H, T) and the entry of each pair of tokens (N, N), or None
    where there are none. Ours, which holds the table, takes the layer's place before it is
    observed. `shared` is a module of the model whose biases each layer adds to its own; with ours
    in all places, the module goes. `beside` is one of the block that gives the layer's own biases,
    which goes with the layer.
    """

    read: Callable[[Any], tuple[Tensor, Tensor] | None]
    shared: str | None = None
    beside: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Rotary position embeddings, passed under the keyword `argument`.

    `apply(q_BHNK, k_BHNK, embedding, **settings)` gives both rotated; `settings` are attributes of
    the layer. Pairs of dims have frequencies of their own, so `qk` is refused; where each head has
    its own table (`per_head`), `heads` is, too.
    """

    argument: str
    apply: Callable[..., tuple[Tensor, Tensor]]
    settings: Names = ()
    per_head: bool = False


class Holds(Enum):
    """Shapes that the host's own attention class computes correctly, temperature included."""

    NOTHING = "the dense shape only"
    HEADS = "fewer heads"
    EQUAL_DIMS = "fewer heads, and query, key and value dims that are fewer but equal"
    ALL = "every shape"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """softmax(scale · q kᵀ + position bias) v per head, then `out`. Paths are in the layer.

    `path` leads to the layer from its block, `classes` are the host classes that these facts hold
    for. `heads` and `scale` are attributes (scale None: K^-½); `sizes` says which attributes follow
    which size: heads, qk, vo, all_qk (H·K), all_vo (H·V). Facts refuse groups: `qk_norm`, `rotary`
    and `relative` qk; `gate` (a reader of the stream) and `context_norm` all three.
    """

    path: str
    classes: Names
    qkv: Packed | Separate = Packed()
    out: str = "proj"
    heads: str = "num_heads"
    scale: str | None = "scale"
    sizes: Mapping[str, str] = field(default_factory=dict)
    qk_norm: tuple[str, str] | None = None
    context_norm: str | None = None
    gate: str | None = None
    position_bias: PositionBias | TabulatedBias | None = None
    rotary: Rotary | None = None
    relative: RelativeVectors | None = None
    dropout: str | None = None
    dropout_behind: str | None = None
    call: Call = Call()  # noqa: RUF009 (frozen)
    holds: Holds = Holds.NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpLayer:
    """`writer`(act(reader x)), or gated with two readers, apart or packed in one. Paths as above.

    `unit_norm` is a batch norm whose channels belong to single neurons, `norm` one over all
    neurons (refuses hidden), `norm_behind` a batch norm behind the writer. Readers and writer are
    linear layers or 1 × 1 convolutions.
    """

    path: str
    classes: Names
    readers: Names
    writer: str
    unit_norm: str | None = None
    norm: str | None = None
    norm_behind: str | None = None
    call: Call = Call(mask=None)  # noqa: RUF009 (frozen)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLayer:
    """A layer without weights or matrix products, such as pooling: it is no branch and stays."""

    path: str
    classes: Names
    call: Call = Call(mask=None)  # noqa: RUF009 (frozen)


Layer = AttentionLayer | MlpLayer | FixedLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """x + drop(scale · layer(norm(x))), or with `norm_behind` norm(layer(x)). Paths are in a block.

    `layers` are alternatives at the same path, told apart by class. `scale` is a parameter (D,).
    A layer that works in `windows(block)` of the grid behind the norm takes the mask of shifted
    ones under its call's keyword. With `inside` scale and drop act in them, too.
    With `drop_shared` one dropout serves several steps of the block.
    """

    layers: tuple[Layer, ...]
    norm: str | None = None
    norm_behind: bool = False
    scale: str | None = None
    drop: str | None = None
    windows: Callable[[Any], Windows | None] | None = None
    inside: bool = False
    drop_shared: bool = False

    @property
    def path(self) -> str:
        """Where the layer stands in its block."""
        return self.layers[0].path if self.layers else ""

    @property
    def members(self) -> Names:
        """Top names in the block of all that belongs to this step, in order of use."""
        found = (self.norm, self.path, self.scale, self.drop)
        return tuple(path.partition(".")[0] for path in found if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A module at the start of a stage: a strided convolution, then perhaps a batch norm.

    `module` is a path with the star of the stage; stages without it have an Identity there. With
    `side` 2 the writer is a linear layer that reads squares of 2 × 2 tokens as one, each token's
    channels together, with zeros beyond the edge of the grid; `norm_before` goes over all of these.
    """

    module: str
    writer: str
    norm: str | None = None
    norm_before: str | None = None
    side: int = 1

    def at(self, stage: int) -> str:
        """Path of the module at the start of a stage."""
        return self.module.replace("*", str(stage))

    def stride(self, module: nn.Module) -> int:
        """By how much the sides of the grid are divided."""
        return self.side * int(getattr(module.get_submodule(self.writer), "stride", (1,))[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem:
    """What writes the stream before the first block. Paths are in the model.

    `writer` is a linear layer or convolution, `patch_norm` stands behind it, `activation` after
    that, and `norm` goes over patches, positions and tokens together. The `tokens` are put before
    the patches in this order; `positions` (1, N', D) are added to the patches and to the first of
    them, as far as N' goes, or to the first `positioned`. `unused` are tables that are not read for
    plain images, such as a mask token. `earlier` are layers that hold no channels of the stream,
    with how many products per weight and token each takes; `before` is a network that images pass
    first, whose products are counted by its shapes. `classes` names the classes that modules must
    have.
    """

    writer: str
    patch_norm: str | None = None
    activation: str | None = None
    norm: str | None = None
    positions: str | None = None
    positioned: int | None = None
    tokens: Names = ()
    unused: Names = ()
    earlier: Mapping[str, int] = field(default_factory=dict)
    before: str | None = None
    classes: Mapping[str, Names] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """What reads the stream behind the last block: norms, then classifiers. Paths are in the model.

    A classifier of r·D inputs reads r pooled states side by side; none reads norms in `unread`. A
    pooling layer with weights (`pool`) refuses width; `pool_macs(model)` prices it. A parameter
    (D, C), `matrix`, makes features. Outputs depend on the first `reads(model)` tokens, None all.
    """

    norms: Names = ()
    unread: Names = ()
    classifiers: Names = ()
    pool: str | None = None
    pool_macs: Callable[[Any], int] | None = None
    reads: Callable[[Any], int | None] = lambda _model: None
    matrix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A family of models.

    `hosts` are "module:Class", looked at only if the module is loaded; of their models the family
    is for those that `applies` holds for; a statement bound to one model needs none. `blocks` is
    their path, such as "blocks.*" or "stages.*.blocks.*", whose first star then is the stage.
    `residuals` says for each block class which steps it takes, in order.
    `embed(model, images)` gives the stream as the first block sees it, `head(model, stream)` the
    model's outputs from the stream that the last one leaves. `image` is (C, H, W), `grid` the
    patches (rows, columns) of the first stage, `prefix` the tokens before them.

    Streams that hosts hold as grids (`grids` names their axes) become tokens at a block of class
    `flatten`. `given(model, index)` are keyword arguments of a block beside the stream. `sizes` are
    attributes that name the last stream's width; `resized(model, stage, width)` tells the host.
    `fused` is the attribute of attention layers that switches their fused kernel, `caches` are
    those that hold dictionaries of what was worked out from weights. `classes` is the attribute
    with the number of classes, None for models whose outputs are features, which is what `head`
    then gives: one tensor, or several by name. `record(model, block)` installs the hooks by which a
    host records what passes its blocks. With the attribute `recomputes`, blocks run again backward.
    """

    name: str
    title: str = ""
    hosts: Names = ()
    blocks: str
    residuals: Mapping[str, tuple[Residual, ...]]
    stem: Stem
    tail: Tail
    embed: Callable[[Any, Tensor], Tensor]
    head: Callable[[Any, Tensor], Any]
    image: Callable[[Any], tuple[int, int, int]]
    grid: Callable[[Any], tuple[int, int]]
    prefix: Callable[[Any], int] = lambda _model: 0
    applies: Callable[[Any], bool] = lambda _model: True
    examples: Names = ()
    classes: str | None = "num_classes"
    record: Callable[[Any, str], None] | None = None
    grids: Literal["BDHW", "BHWD"] | None = None
    flatten: str | None = None
    transition: Transition | None = None
    given: Callable[[Any, int], Mapping[str, object]] | None = None
    sizes: Names = ()
    resized: Callable[[Any, int, int], None] | None = None
    fused: str | None = None
    caches: Names = ()
    recomputes: str | None = None
