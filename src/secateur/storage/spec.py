"""`spec.json`: everything a pruned model is rebuilt from, except its weights. Pure data."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationError,
)

from secateur.data.preprocessing import Preprocessing
from secateur.errors import UserError, short
from secateur.models.types import AttentionShape, MlpShape, Shape
from secateur.storage.base import Base
from secateur.storage.fingerprint import IMAGES, LOGITS
from secateur.storage.library import Argument, is_argument
from secateur.textfiles import parse_json, read_text

FORMAT = 1
SPEC, WEIGHTS, CARD = "spec.json", "model.safetensors", "README.md"
LARGEST_SPEC = 8 * 2**20
"""In bytes; a file that claims to be a spec is not read beyond this."""
MOST_BRANCHES = 1024

Size = Annotated[int, Field(strict=True, ge=1, le=2**24)]
Count = Annotated[int, Field(strict=True, ge=0, le=2**24)]
Side = Annotated[int, Field(strict=True, ge=1, le=4096)]
Text = Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_.\-]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class BaseSpec(_Strict):
    """The dense model: see `secateur.storage.base.Base`."""

    library: Text
    name: Text
    arguments: dict[Text, JsonValue]
    preprocessing: dict[str, JsonValue]

    def base(self) -> Base:
        """As the rest of the program knows it; UserError for values that are no plain data."""
        arguments: dict[str, Argument] = {}
        for key, value in self.arguments.items():
            if not is_argument(value):
                raise UserError(
                    f"argument '{short(key)}' of the base model is neither a scalar nor a list."
                )
            arguments[key] = value  # type: ignore[assignment]
        return Base(
            library=self.library,
            name=self.name,
            arguments=arguments,
            preprocessing=Preprocessing.from_json(self.preprocessing),
        )

    @staticmethod
    def of(base: Base) -> "BaseSpec":
        """What is written of `base`."""
        return BaseSpec.model_validate(
            {
                "library": base.library,
                "name": base.name,
                "arguments": dict(base.arguments),
                "preprocessing": base.preprocessing.to_json(),
            }
        )


class AttentionSpec(_Strict):
    """Heads of an attention layer, query/key dims and value dims per head."""

    heads: Size
    qk: Size
    vo: Size

    def shape(self) -> Shape:
        """In the anatomy's words."""
        return AttentionShape(heads=self.heads, qk=self.qk, vo=self.vo)


class MlpSpec(_Strict):
    """Hidden neurons of an MLP."""

    hidden: Size

    def shape(self) -> Shape:
        """In the anatomy's words."""
        return MlpShape(hidden=self.hidden)


def _kind(size: object) -> str:
    hidden = isinstance(size, MlpSpec) or (isinstance(size, dict) and "hidden" in size)
    return "mlp" if hidden else "attention"


BranchSpec = Annotated[
    Annotated[AttentionSpec, Tag("attention")] | Annotated[MlpSpec, Tag("mlp")],
    Discriminator(_kind),
]


class WeightsSpec(_Strict):
    """The weights file that belongs to this spec."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(strict=True, ge=0)]
    dtype: Literal["float64", "float32", "float16", "bfloat16"]


class FingerprintSpec(_Strict):
    """First logits for a fixed normal input: `secateur.storage.fingerprint.probe`."""

    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)]
    input_size: tuple[Side, Side, Side]
    logits: Annotated[
        list[Annotated[list[float], Field(max_length=LOGITS)]],
        Field(min_length=IMAGES, max_length=IMAGES),
    ]
    tolerance: Annotated[float, Field(ge=0)]


class Spec(_Strict):
    """One saved model. `checksum` is over all of it; earlier versions wrote none."""

    format: Literal[1] = 1
    base: BaseSpec
    shapes: Annotated[dict[str, BranchSpec | None], Field(max_length=MOST_BRANCHES)]
    stand_ins: list[str] = []
    exact_tail: bool = False
    merges: Annotated[dict[str, Count], Field(max_length=MOST_BRANCHES)] = {}
    widths: dict[str, Size] = {}
    held_norms: dict[str, Count] = {}
    uncentred_norms: list[str] = []
    added_biases: list[str] = []
    weights: WeightsSpec
    fingerprint: FingerprintSpec
    versions: dict[str, str] = {}
    provenance: dict[str, JsonValue] = {}
    results: dict[str, JsonValue] = {}
    checksum: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None


def checksum_of(fields: Mapping[str, Any]) -> str:
    """Hexadecimal SHA-256 of a spec as JSON, whatever its checksum and the order of its keys."""
    others = {key: value for key, value in fields.items() if key != "checksum"}
    text = json.dumps(others, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sealed(spec: Spec) -> dict[str, Any]:
    """The spec as JSON, with its checksum."""
    fields = spec.model_dump(mode="json", exclude={"checksum"})
    # WHY from the text: a reader knows nothing but that.
    return {**fields, "checksum": checksum_of(json.loads(json.dumps(fields)))}


def read_spec(directory: Path) -> Spec:
    """Read and check `spec.json`; UserError naming the file and what is wrong in it."""
    path = directory / SPEC
    if not path.is_file():
        raise UserError(f"{directory} is no model saved by secateur: it has no {SPEC}.")
    raw = parse_json(read_text(path, str(path), LARGEST_SPEC), str(path))
    found = raw.get("format") if isinstance(raw, dict) else None
    if type(found) is not int or found != FORMAT:
        raise UserError(
            f"{path} has format version {short(repr(found))}; this secateur reads version "
            f"{FORMAT}: install the secateur that wrote it, or save the model again."
        )
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = short(".".join(str(part) for part in first["loc"]))
        raise UserError(f"{path} is not valid at '{where}': {first['msg'].lower()}.") from error
    if spec.checksum is not None and spec.checksum != checksum_of(raw):
        raise UserError(
            f"{path} was changed after it was saved (its SHA-256 differs); bring back the file as "
            "it was, or, if the change is yours, remove its entry 'checksum'."
        )
    return spec


def present_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide how a model is rebuilt."""
    found = {"python": platform.python_version()}
    for package in ("secateur", "torch", "timm", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found
