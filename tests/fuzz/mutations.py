"""Seeded changes of files: of bytes, of words in a text, of values in a tree of JSON."""

import copy
import random
from typing import Any

ODD_NUMBERS = (
    0, 1, -1, 2, 255, 4096, 2**15, 2**31, 2**31 - 1, 2**32, 2**53, 2**63, 2**64, 10**30,
    0.5, -0.0, 1e-300, 1e300, 1e38,
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    *ODD_NUMBERS, True, False, None, "", "x", "a" * 300, "../../etc/passwd", "timm_wrapper", "hf",
    "timm-class", "torchvision", "VisionTransformer", "vit_giant_patch14_dinov2", "none", "avg",
    "\x00", "é", "\u202e", [], {}, [[]], [1] * 50, {"a": 1}, [True], [2**31, 2**31],
)  # fmt: skip
ODD_WORDS = (
    *(str(value) for value in ODD_NUMBERS), "true", "no", "null", "~", ".nan", ".inf", "-.inf",
    "!!int x", "!!float ''", "!!bool maybe", "!!timestamp 1", "!!binary a", "!!set {a}",
    "!!omap []", "2001-99-99", "2001-01-01", "1:59:59", "0x" + "f" * 60, "9" * 5_000, "&a", "*a",
    "&a [*a]", "<<: *a",
    "[", "]", "{", "}", "[" * 60, "- " * 60, "? ", ": ", "|", ">", "'", '"', '"\\ud800"',
    '"\\UFFFFFFFF"', "\x00", "\ufeff", "\t", "\n", "\n---\n", "#", "%TAG ! x", "!!python/name:os.x",
    "a" * 300, "é", "50%", "0%", "101%", "99999999999%", "-5%", "ms", "drop 1 block",
    "1e309x faster",
)  # fmt: skip


def bytes_changed(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, bytes set, parts cut out, doubled, moved or replaced; one to four of these."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(changed) + 1)
        if rng.random() < 0.3:
            # Headers and directories lie at the ends.
            place = min(len(changed), rng.choice((place % 200, len(changed) - place % 200)))
        length = rng.choice((1, 1, 2, 8, 64, 1024))
        kind = rng.choice(("flip", "flip", "set", "cut", "insert", "double", "end", "number"))
        if kind == "flip" and place < len(changed):
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == "set":
            changed[place : place + length] = bytes([rng.choice((0, 255, 127, 128))]) * length
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = rng.randbytes(length)
        elif kind == "double":
            changed[place:place] = changed[place : place + length]
        elif kind == "end":
            del changed[place:]
        else:
            number = rng.choice((0, 1, 84 * 10**6, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
            changed[place : place + 8] = number.to_bytes(8, "little")
    return bytes(changed)


def text_changed(rng: random.Random, text: str) -> str:
    """Words replaced by odd ones, lines doubled, moved, indented or left out; or bytes changed."""
    for _ in range(rng.choice((1, 1, 2, 5))):
        kind = rng.choice(("word", "word", "word", "insert", "line", "indent", "repeat", "bytes"))
        if kind == "bytes":
            text = bytes_changed(rng, text.encode()).decode("latin-1")
        elif kind == "insert":
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(ODD_WORDS) + text[place:]
        elif kind == "word":
            words = text.split(" ")
            words[rng.randrange(len(words))] = rng.choice(ODD_WORDS)
            text = " ".join(words)
        else:
            lines = text.splitlines()
            if lines:
                which = rng.randrange(len(lines))
                line = lines[which]
                if kind == "line":
                    new = rng.choice(([], [line] * 2, [rng.choice(lines)]))
                elif kind == "indent":
                    new = [" " * rng.choice((1, 2, 500)) + line]
                else:
                    new = [line] * rng.choice((3, 3_000))
                lines[which : which + 1] = new
                text = "\n".join(lines)
    return text


def tree_changed(rng: random.Random, tree: Any) -> Any:
    """One to three values of a tree replaced, removed, added, or exchanged with another's."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder, key = rng.choice(list(_places(tree)))
        kind = rng.choice(("odd", "odd", "odd", "near", "remove", "add", "other"))
        if kind == "odd":
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif kind == "near" and isinstance(holder[key], int | float):
            holder[key] = rng.choice(
                (holder[key] + 1, holder[key] - 1, holder[key] * 2, -holder[key], str(holder[key]))
            )
        elif kind == "near" and isinstance(holder[key], str):
            text = holder[key]
            holder[key] = text_changed(rng, text) if text else "x"
        elif kind == "remove":
            del holder[key]
        elif kind == "add" and isinstance(holder, dict):
            holder[rng.choice(KEYS)] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif kind == "other":
            other, where = rng.choice(list(_places(tree)))
            holder[key] = copy.deepcopy(other[where])
        if not list(_places(tree)):
            break
    return tree


KEYS = (
    "depth", "embed_dim", "num_heads", "img_size", "patch_size", "mlp_ratio", "num_classes",
    "in_chans", "dynamic_img_size", "pos_embed", "reg_tokens", "global_pool", "class_token",
    "qkv_bias", "qk_norm", "init_values", "depths", "embed_dims", "num_vit", "block_fn",
    "norm_layer", "act_layer", "mlp_layer", "drop_path_rate", "fc_norm", "pre_norm", "x", "",
    "blocks.0.attn", "blocks.0.mlp", "blocks.99.mlp", "hidden", "heads", "qk", "vo", "width",
    "pretrained", "checkpoint_path", "patch_drop_rate", "weight_init", "norm_eps",
)  # fmt: skip


def _places(tree: Any) -> Any:
    """Every (container, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)
