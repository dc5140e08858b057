"""From the names of classes to the outputs of a head."""

import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache

from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from secateur.errors import Advice, UserError

_WORDNET_ID = re.compile(r"n\d{8}")
_IMAGENET_1K = 1000
_CHANCE = 1000


@cache
def wordnet_indices(num_classes: int) -> Mapping[str, int]:
    """Return WordNet id → output of an ImageNet head with `num_classes`; empty if none has.

    Source: the lists timm ships (for 1000 classes: ILSVRC-2012, ids in sorted order).
    """
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return {}
    names: list[str] = ImageNetInfo(subset).label_names()
    return {name: index for index, name in enumerate(names)}


@cache
def name_indices(num_classes: int) -> Mapping[str, int]:
    """Return English or Latin name, as `_plain` has it → output of an ImageNet head.

    Names that several classes share, such as "crane", are left out. Source: as `wordnet_indices`.
    """
    subset = infer_imagenet_subset({"num_classes": num_classes})
    if subset is None:
        return {}
    found: dict[str, set[int]] = {}
    for index, described in enumerate(ImageNetInfo(subset).label_descriptions()):
        for name in (described, *described.split(",")):
            found.setdefault(_plain(name), set()).add(index)
    return {name: min(own) for name, own in found.items() if len(own) == 1}


def _plain(name: str) -> str:
    """Letters and digits in lower case, with single spaces: "Golden_Retriever" is a dog, too."""
    return " ".join(re.findall(r"[^\W_]+", name.lower()))


def class_indices(
    names: Sequence[str], num_classes: int | None, *, order_given: bool, where: str
) -> tuple[list[int], int]:
    """Return the head's output for each class in `names`, and how many outputs are counted over.

    WordNet ids go to their ImageNet outputs, also where only some classes are present and, for
    want of other knowledge, where `num_classes` is None. So do names of ImageNet's classes, such as
    "golden retriever", where the head has them all and the classes come in no order of their own;
    Advice says so. Other classes keep their position, and their number must then be that of the
    head's outputs.

    Raises UserError when the classes cannot be those of the head.
    """
    indices = wordnet_indices(num_classes or _IMAGENET_1K)
    unknown = [name for name in names if name not in indices]
    if names and not unknown:
        return [indices[name] for name in names], num_classes or _IMAGENET_1K
    if num_classes is not None and unknown and not (order_given and len(names) == num_classes):
        known = {**name_indices(num_classes), **indices}
        matched = [known.get(name, known.get(_plain(name))) for name in names]
        if None not in matched:
            shown = ", ".join(f"{n} is {i}" for n, i in zip(names[:3], matched, strict=False))
            more = ", ..." if len(names) > 3 else ""
            warnings.warn(
                f"the classes of {where} are matched to ImageNet's by their names: {shown}{more}.",
                Advice,
                stacklevel=4,
            )
            return [index for index in matched if index is not None], num_classes
    by_position = list(range(len(names))), len(names)
    if num_classes is None:
        return by_position
    if indices and all(_WORDNET_ID.fullmatch(name) for name in names):
        raise UserError(
            f"{where}: {len(unknown)} of its {len(names)} classes (such as '{unknown[0]}') are not "
            f"among the {num_classes} ImageNet classes of the head; use images of its classes."
        )
    if len(names) != num_classes:
        raise UserError(
            f"{where} has {len(names)} classes ({_some(names)}) but the head has {num_classes} "
            "outputs; use images of the classes that the model was trained on"
            + (
                " in folders named by WordNet id or by the name of an ImageNet class, such as "
                "n01440764 or tench."
                if indices
                else "."
            )
        )
    if indices and not order_given:
        raise UserError(
            f"{where} has {len(names)} classes, but its folders ({_some(names)}) are not named by "
            f"WordNet id or by ImageNet's names, so they cannot be matched to the head's "
            f"{num_classes} ImageNet outputs; name them n01440764, n01443537, ...."
        )
    return by_position


def refuse_unlikely_numbers(labels: Sequence[int], num_classes: int, where: str) -> None:
    """Raise UserError when class numbers without names can hardly be outputs of the head.

    That is when one is beyond the `num_classes` outputs, and when all lie in the first half of
    them although so many labels, drawn evenly, would do so less than once in `_CHANCE`: such are
    the numbers 0 to 9 of ten ImageNet classes counted anew.
    """
    largest = max(labels)
    refuse_labels_beyond(largest, num_classes, where)
    share = (largest + 1) / num_classes
    if share <= 0.5 and share ** len(labels) < 1 / _CHANCE:
        raise UserError(
            f"{where} numbers its classes {min(labels)} to {largest} without naming them, but the "
            f"head has {num_classes} outputs, so they cannot be matched; name the classes in the "
            "data (in parquet, as Hugging Face datasets do), or give a folder of images per class."
        )


def refuse_labels_beyond(largest: int, num_classes: int, where: str) -> None:
    """Raise UserError when label `largest` is no output of a head with `num_classes`."""
    if largest >= num_classes:
        raise UserError(
            f"{where} has labels up to {largest}, so at least {largest + 1} classes, but the head "
            f"has {num_classes} outputs; use images of the classes the model was trained on."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
