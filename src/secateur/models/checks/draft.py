"""Draft a statement for a model of no known family, from what its modules look like.

Names and shapes show blocks, norms, attention layers, MLPs and classifiers; how images become the
stream and the stream becomes outputs is in the code of the model alone, and left to be written.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from secateur.models.norms import is_norm

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
SCALES = ("scale", "scaling")
MULTIHEAD = 'Call(mask=None, times=3, fixed={"need_weights": False}, pair=True)'
"""How blocks call torch's MultiheadAttention."""


@dataclass(slots=True)
class Draft:
    """Lines of a statement, and what could not be told."""

    lines: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def text(self) -> str:
        """What was recognised, what is missing, and the statement as Python text."""
        told = [f"recognised: {what}" for what in self.found]
        told += [f"missing: {what}" for what in self.missing]
        return "\n".join([*told, *([""] if self.lines else []), *self.lines])


def draft_of(model: nn.Module) -> Draft:
    """The draft for a model; without lines where it has no row of equal blocks."""
    draft = Draft()
    rows = dict(_rows(model))
    if not rows:
        draft.missing.append("blocks, that is, a list of modules of one class with linear layers")
        return draft
    path = max(rows, key=lambda path: sum(p.numel() for p in rows[path][0].parameters()))
    block, width = rows[path][0], _width(rows[path][0])
    draft.found.append(f"{len(rows[path])} blocks of class {type(block).__name__} at {path}.*")
    steps = list(_steps(block, width, draft))
    first, tail = _outside(model, path)
    draft.lines = [
        "from secateur.models.statement import (",
        "    AttentionLayer, Call, MlpLayer, Packed, Residual, Separate, Statement, Stem, Tail",
        ")",
        "statement = Statement(",
        f'    name="{type(model).__name__.lower()}",',
        f'    blocks="{path}.*",',
        f'    residuals={{"{type(block).__name__}": (',
        *[f"        {step}," for step in steps],
        "    )},",
        f"    stem=Stem({_stem(model, path, first, width, draft)}),",
        f"    tail=Tail({_tail(tail, draft)}),",
        "    embed=lambda model, images: ...,  # the stream (B, N, D) before the first block",
        "    head=lambda model, stream: ...,  # outputs from the stream behind the last block",
        "    image=lambda model: (3, ..., ...),  # channels, height, width",
        "    grid=lambda model: (..., ...),  # rows and columns of patches",
        "    prefix=lambda model: ...,  # tokens before the patches",
        ")",
        "model = secateur.load(model, family=statement)",
    ]
    draft.missing += ["embed, head, image, grid and prefix, which only the forward pass tells"]
    return draft


def _rows(model: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Lists of at least two modules of one class, each with linear layers inside."""
    for path, module in model.named_modules():
        children = list(module.children())
        listed = isinstance(module, nn.ModuleList | nn.Sequential) and len(children) > 1
        if not path or not listed or len({type(child) for child in children}) > 1:
            continue
        if sum(isinstance(inner, nn.Linear) for inner in children[0].modules()) > 1:
            yield path, children


def _width(block: nn.Module) -> int:
    """The width that most linear layers of a block read or write."""
    counts = Counter[int]()
    for module in block.modules():
        if isinstance(module, nn.Linear):
            counts.update({module.in_features, module.out_features})
    return counts.most_common(1)[0][0]


def _steps(block: nn.Module, width: int, draft: Draft) -> Iterator[str]:
    """The residual steps of a block: each layer with the norm that was listed before it."""
    norm = None
    for name, child in block.named_children():
        linears = {p: m for p, m in child.named_modules() if p and isinstance(m, nn.Linear)}
        heads = next((key for key in HEADS if isinstance(getattr(child, key, None), int)), None)
        if is_norm(child):
            norm = name
            continue
        if heads is not None and linears:
            layer = _attention(name, child, linears, heads, draft)
        elif len(linears) > 1 and _is_mlp(linears, width):
            *readers, writer = linears
            draft.found.append(f"MLP {name} with {', '.join(readers)} and {writer}")
            layer = f'MlpLayer(path="{name}", classes=("{type(child).__name__}",), '
            layer += f'readers={tuple(readers)!r}, writer="{writer}")'
        else:
            if any(True for _ in child.parameters()):
                draft.missing.append(f"what {name}, a {type(child).__name__}, is in a block")
            continue
        before = "" if norm is None else f', norm="{norm}"'
        yield f"Residual(layers=({layer},){before})"
        norm = None


def _is_mlp(linears: dict[str, nn.Linear], width: int) -> bool:
    *readers, writer = linears.values()
    return writer.out_features == width and all(r.in_features == width for r in readers)


def _attention(
    name: str, attn: nn.Module, linears: dict[str, nn.Linear], heads: str, draft: Draft
) -> str:
    scale = next((key for key in SCALES if isinstance(getattr(attn, key, None), float)), None)
    *readers, out = linears
    words = {reader: reader.rpartition(".")[2].split("_") for reader in readers}
    letters = {word[0]: reader for reader in readers for word in words[reader] if word[0] in "qkv"}
    call = ""
    if hasattr(attn, "in_proj_weight"):
        qkv = 'Packed(weight="in_proj_weight", bias="in_proj_bias")'
        call = f", call={MULTIHEAD}"
    elif len(readers) == 1:
        qkv = f'Packed(weight="{readers[0]}.weight", bias="{readers[0]}.bias")'
    elif len(readers) == 3 and set(letters) == set("qkv"):
        qkv = f'Separate(q="{letters["q"]}", k="{letters["k"]}", v="{letters["v"]}")'
    else:
        qkv = "..."
        draft.missing.append(f"which of {', '.join(readers)} in {name} are queries, keys, values")
    draft.found.append(f"attention {name} with {qkv} and output projection {out}")
    stated = tuple(f"{linear}." for linear in linears)
    others = [p for p, _ in attn.named_parameters() if not p.startswith((*stated, "in_proj"))]
    if others:
        draft.missing.append(f"what {', '.join(others)} of {name} do")
    scaled = "None" if scale is None else f'"{scale}"'
    return (
        f'AttentionLayer(path="{name}", classes=("{type(attn).__name__}",), qkv={qkv}, '
        f'out="{out}", heads="{heads}", scale={scaled}{call})'
    )


def _outside(model: nn.Module, path: str) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Modules with weights before the blocks and behind them, in the order of the model."""
    before: dict[str, nn.Module] = {}
    behind: dict[str, nn.Module] = {}
    met = False
    for name, module in model.named_modules():
        met = met or name == path
        inside = name == path or name.startswith(f"{path}.")
        if not inside and (isinstance(module, nn.Conv2d | nn.Linear) or is_norm(module)):
            (behind if met else before)[name] = module
    return before, behind


def _stem(
    model: nn.Module, path: str, before: dict[str, nn.Module], width: int, draft: Draft
) -> str:
    writers = [name for name, module in before.items() if not is_norm(module)]
    tables = {
        name: table
        for name, table in model.named_parameters()
        if table.shape[-1] == width and not name.startswith(f"{path}.")
        if name.rpartition(".")[2] not in ("weight", "bias")
    }
    tokens = [name for name, table in tables.items() if table.numel() == width]
    positions = [name for name, table in tables.items() if table.numel() > width]
    if not writers:
        draft.missing.append("the layer that writes the stream first (stem)")
    parts = [f'writer="{writers[-1] if writers else "..."}"']
    parts += [f'positions="{name}"' for name in positions[:1]]
    parts += [f"tokens={tuple(tokens)!r}"] if tokens else []
    draft.found.append(f"stem {', '.join(parts)}")
    return ", ".join(parts)


def _tail(behind: dict[str, nn.Module], draft: Draft) -> str:
    norms = [name for name, module in behind.items() if is_norm(module)]
    heads = [name for name, module in behind.items() if isinstance(module, nn.Linear)]
    if not heads:
        draft.missing.append("a classifier behind the blocks")
    found = f"norms={tuple(norms)!r}, classifiers={tuple(heads)!r}"
    draft.found.append(f"tail {found}")
    return found
