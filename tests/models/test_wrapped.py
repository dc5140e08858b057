"""Models in the hands of other tools: a sentence names what to give instead, whatever the verb."""

import copy
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import timm.utils
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

import secateur
from secateur import UserError
from secateur.models.family import read
from tests.hosts import build, images_for

Make = Callable[[], object]


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    model = build("vit")
    change(model)
    return model


def compiled_inside(model: nn.Module) -> None:
    model.set_submodule("blocks.1", torch.compile(model.get_submodule("blocks.1")))


def replaced_forward(model: nn.Module) -> None:
    model._original_forward, model.forward = model.forward, lambda x: x


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return copy.deepcopy(build("vit"))


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(build("vit"), {nn.Linear})


class LoraLayer(nn.Linear):
    """A stand-in for a layer of PEFT, which is told by the package that it comes from."""


LoraLayer.__module__ = "peft.tuners.lora.layer"


class PeftModel(nn.Module):
    """A stand-in for PEFT's model."""

    def __init__(self) -> None:
        super().__init__()
        self.base_model = build("vit")


class FSDPModule:
    """The base class that fully_shard gives modules, by its name."""


def sharded(model: nn.Module) -> None:
    kind = type(model)
    model.__class__ = type(f"FSDP{kind.__name__}", (FSDPModule, kind), {})


class PackedTensor(Tensor):
    """A stand-in for torchao's tensors."""


PackedTensor.__module__ = "torchao.dtypes"


def packed(model: nn.Module) -> None:
    layer = model.get_submodule("blocks.0.mlp.fc1")
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(PackedTensor))


class Lightning(nn.Module):
    """As a LightningModule holds its model."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build("vit")


WRAPPED: dict[str, tuple[Make, str]] = {
    "compile": (lambda: torch.compile(build("vit")), r"give what it holds: model\._orig_mod\."),
    "data_parallel": (lambda: nn.DataParallel(build("vit")), r"model\.module\."),
    "averaged": (lambda: AveragedModel(build("vit")), r"model\.module\."),
    "ema": (lambda: timm.utils.ModelEmaV3(build("vit")), r"model\.module\."),
    "ema_object": (lambda: timm.utils.ModelEma(build("vit")), r"give what it holds: its \.ema\."),
    "lightning": (Lightning, r"give what it holds: model\.net\."),
    "sequential": (lambda: nn.Sequential(nn.Identity(), build("vit")), r"model\[1\]\."),
    "trainer": (lambda: SimpleNamespace(model=build("vit")), r"give what it holds: its \.model\."),
    "peft": (PeftModel, r"model\.merge_and_unload\(\)\."),
    "traced": (lambda: torch.fx.symbolic_trace(build("vit")), "the model that it was made from"),
    "class": (lambda: type(build("vit")), r"an instance, VisionTransformer\(\.\.\.\)"),
    "name": (lambda: "timm:vit_tiny_patch16_224", r"secateur\.load\('timm:vit_tiny_patch16_224'\)"),
    "state_dict": (lambda: build("vit").state_dict(), "weights alone are no model"),
    "nothing": (lambda: None, "NoneType belongs to no family"),
}

CHANGED: dict[str, tuple[Make, str]] = {
    "compile_in_place": (
        lambda: changed(lambda m: m.compile()),
        r"compiled in place; give copy\.deepcopy\(model\)",
    ),
    "compiled_inside": (
        lambda: changed(compiled_inside),
        r"blocks\.1 is compiled; put its _orig_mod",
    ),
    "quantised": (quantised, r"blocks\.0\.attn\.qkv is quantised; give the model as it was"),
    "torchao": (lambda: changed(packed), r"blocks\.0\.mlp\.fc1 is quantised"),
    "adapters": (
        lambda: changed(lambda m: m.set_submodule("blocks.0.mlp.fc1", LoraLayer(32, 64))),
        r"blocks\.0\.mlp\.fc1 has adapters of PEFT .* merge_and_unload\(\)",
    ),
    "sharded": (lambda: changed(sharded), "model is sharded .* load them into a plain model"),
    "accelerate": (lambda: changed(replaced_forward), "replaced by accelerate; give accelerate"),
    "inference_weights": (made_in_inference_mode, r"inference_mode\(\), .* copy\.deepcopy"),
    "weight_norm": (
        lambda: changed(lambda m: parametrizations.weight_norm(m.blocks[0].mlp.fc1)),
        r"remove_parametrizations\(module, 'weight'\)",
    ),
    "masked": (
        lambda: changed(lambda m: prune.l1_unstructured(m.blocks[0].mlp.fc1, "weight", 0.5)),
        r"torch\.nn\.utils\.prune\.remove\(module, 'weight'\)",
    ),
}

VERBS: dict[str, Callable[[object, Tensor], object]] = {
    "inspect": lambda m, x: secateur.inspect(m),
    "analyze": lambda m, x: secateur.analyze(m, x),
    "prune": lambda m, x: secateur.prune(m, x, "50% macs"),
    "learn": lambda m, x: secateur.learn(m, x, "50% params"),
    "heal": lambda m, x: secateur.heal(m, x, reference=build("vit")),
    "train": lambda m, x: secateur.train(m, (x, torch.arange(len(x)) % 10)),
}


@pytest.mark.parametrize("case", {**WRAPPED, **CHANGED})
def test_one_sentence_names_what_to_give_instead(case: str) -> None:
    make, sentence = {**WRAPPED, **CHANGED}[case]
    with pytest.raises(UserError, match=sentence) as caught:
        read(make())  # type: ignore[arg-type]
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", ["compile", "trainer", "name", "quantised", "compile_in_place"])
def test_every_verb_says_it_before_any_work(verb: str, case: str) -> None:
    make, sentence = {**WRAPPED, **CHANGED}[case]
    with pytest.raises(UserError, match=sentence):
        VERBS[verb](make(), images_for(build("vit"), 8))


@pytest.mark.parametrize("case", ["trainer", "class", "state_dict", "nothing"])
def test_verbs_that_measure_any_module_refuse_what_is_none(case: str) -> None:
    made, sentence = WRAPPED[case][0](), WRAPPED[case][1]
    images = images_for(build("vit"), 4)
    for measure in (
        lambda: secateur.evaluate(made, (images, torch.arange(4))),
        lambda: secateur.bench({"a": made}, (3, 32, 32)),
        lambda: secateur.load(made),
    ):
        with pytest.raises(UserError, match=sentence):
            measure()


@pytest.mark.parametrize("case", ["compile_in_place", "inference_weights"])
def test_the_remedy_helps(case: str) -> None:
    made = CHANGED[case][0]()
    assert read(copy.deepcopy(made)) == read(build("vit"))  # type: ignore[arg-type]
