"""The README.md of a saved model: front matter for the hub, what was removed, how to load it."""

from collections.abc import Iterator, Mapping

from huggingface_hub import ModelCard, ModelCardData
from pydantic import JsonValue

from secateur.storage.spec import AttentionSpec, MlpSpec, Spec

FOR_MACHINES = {"dense_logits"}
"""Provenance that means nothing to people."""

TEXT = """---
{front}
---

# {title}

{what} Its sizes are in `spec.json`, its weights in `model.safetensors`; loading them runs
no code from these files.

```python
import secateur

model = secateur.load("{title}")  # or "hub:ORG/NAME"; an ordinary torch module in eval mode
```

## Results

{results}

## What is left of each branch

| branch | size |
|---|---|
{branches}

## How it was made

{provenance}
"""


def card(title: str, spec: Spec) -> str:
    """The model card as Markdown with YAML front matter."""
    front = ModelCardData(
        library_name="secateur",
        pipeline_tag="image-classification",
        tags=["secateur", *_pruned(spec), "vision-transformer", "image-classification"],
    )
    told = {
        key: value
        for key, value in spec.provenance.items()
        if key not in FOR_MACHINES and value is not None
    }
    how = "".join(
        f" {word} `{spec.provenance[key]}`"
        for word, key in (("with preset", "preset"), ("to", "budget"))
        if spec.provenance.get(key)
    )
    text = TEXT.format(
        front=front.to_yaml(),
        title=title,
        what=_what(spec, how),
        results=_results(spec.results),
        branches="\n".join(f"| `{key}` | {size} |" for key, size in _sizes(spec)),
        provenance=_lines({**told, **spec.versions}),
    )
    return str(ModelCard(text))


def _sizes(spec: Spec) -> Iterator[tuple[str, str]]:
    yield from ((key, f"{width} channels") for key, width in spec.widths.items())
    for key, size in spec.shapes.items():
        yield key, "a linear layer in its place" if key in spec.stand_ins else _size(size)


def _pruned(spec: Spec) -> list[str]:
    """The tag of pruned models; none for a dense one that was only trained."""
    return [] if "train" in spec.provenance and "budget" not in spec.provenance else ["pruned"]


def _what(spec: Spec, how: str) -> str:
    """What the model is, in a sentence."""
    base = f"`{spec.base.library}:{spec.base.name}`"
    if not _pruned(spec):
        return f"A vision transformer, {base}, trained by secateur."
    return f"A vision transformer made smaller by secateur: {base},\npruned{how}."


def _size(size: AttentionSpec | MlpSpec | None) -> str:
    if size is None:
        return "removed"
    if isinstance(size, MlpSpec):
        return f"{size.hidden} neurons"
    return f"{size.heads} heads × ({size.qk} query/key, {size.vo} value dims)"


def _results(results: Mapping[str, JsonValue]) -> str:
    """Quantities measured dense and pruned side by side; all others listed."""
    rows = []
    rest: dict[str, JsonValue] = {}
    for key, value in results.items():
        if isinstance(value, dict) and {"dense", "pruned"} <= value.keys():
            rows.append(f"| {key} | {_number(value['dense'])} | {_number(value['pruned'])} |")
        else:
            rest[key] = value
    parts = []
    if rows:
        parts.append("\n".join(["| | dense | pruned |", "|---|---|---|", *rows]))
    if rest:
        parts.append(_lines(rest))
    return "\n\n".join(parts) or "None were recorded."


def _lines(values: Mapping[str, JsonValue]) -> str:
    return "\n".join(f"- {name}: {_number(value)}" for name, value in _flat(values)) or "Unknown."


def _flat(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _number(value: JsonValue) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"`{value}`"
