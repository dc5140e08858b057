"""Models in the hands of other tools: wrapped, compiled, sharded, quantised, adapted.

Their weights stand elsewhere than a family reads them, or their forward pass goes by what hooks
would see; each is refused with what to give in its place.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import nn

from secateur.errors import UserError
from secateur.models.checks.refused import why_refused

Matches = Callable[[nn.Module], bool]

GATHER = (
    "gather its weights (torch.distributed.checkpoint.state_dict.get_model_state_dict with "
    "full_state_dict=True), load them into a plain model, and give that"
)
QUANTISED = ("torch.ao.", "torch.nn.quantized", "torch.nn.qat", "torchao.", "bitsandbytes.")
SHARDED = ("torch.distributed.",)
PLAIN_AGAIN = "copy.deepcopy(model), which is the same model uncompiled"


class UnknownFamilyError(UserError):
    """A model that no statement describes."""


def no_family(given: object, matches: Matches, titles: Sequence[str]) -> UserError:
    """The sentence about something that belongs to none of the families of these `titles`."""
    kind = type(given)
    if instead := _instead(given, matches):
        return UserError(f"{kind.__name__} is itself no model of a known family; {instead}.")
    return UnknownFamilyError(
        f"model class {kind.__module__}.{kind.__qualname__} belongs to no family that secateur can "
        f"read{why_refused(given)}; known families: {'; '.join(dict.fromkeys(titles))}. For a "
        "model of your own, pass a statement to secateur.load(model, family=...); secateur.inspect "
        "drafts one."
    )


def _instead(given: object, matches: Matches) -> str:
    """What to give instead; empty where nothing in it belongs to a family either."""
    if isinstance(given, str | Path):
        return f"open it first: secateur.load({str(given)!r})"
    if isinstance(given, type):
        return f"give an instance, {given.__name__}(...), not the class"
    if isinstance(given, dict):
        return (
            "weights alone are no model: load them into one (load_state_dict, or secateur.load "
            "with checkpoint=FILE), and give that"
        )
    names = {one.__name__ for one in type(given).__mro__}
    if "PeftModel" in names:
        return "merge its adapters and give what is left: model.merge_and_unload()"
    if "FullyShardedDataParallel" in names:
        return f"its weights are sharded: {GATHER}"
    if names & {"ScriptModule", "GraphModule", "ExportedProgram"}:
        return "its layers have become a graph: give the model that it was made from"
    found = list(dict.fromkeys(_inside(given, matches)))
    return f"give what it holds: {' or '.join(found[:3])}" if found else ""


def _inside(given: object, matches: Matches) -> Iterator[str]:
    """Expressions for the models of known families in a module, or in a trainer and the like."""
    if isinstance(given, nn.Module):
        for path, module in given.named_modules():
            if path and matches(module):
                yield "model" + "".join(
                    f"[{part}]" if part.isdecimal() else f".{part}" for part in path.split(".")
                )
        return
    for name in dict.fromkeys(["model", "module", *getattr(given, "__dict__", {})]):
        held = getattr(given, name, None)
        if isinstance(held, nn.Module) and any(map(matches, held.modules())):
            yield f"its .{name}"


def refuse_changed(model: nn.Module) -> None:
    """UserError where a tool has changed layers of `model` in place, with how to undo it."""
    for path, module in model.named_modules():
        if why := _changed(module, path or "model"):
            raise UserError(f"{why}.")


def _changed(module: nn.Module, name: str) -> str | None:
    own = type(module)
    names, source = {one.__name__ for one in own.__mro__}, own.__module__
    tensors = {type(t).__module__ + "." for t in module._parameters.values() if t is not None}
    if "FSDPModule" in names or any(one.startswith(SHARDED) for one in tensors):
        return f"{name} is sharded over processes (FSDP or tensor parallelism); {GATHER}"
    if source.startswith(QUANTISED) or any(one.startswith(QUANTISED) for one in tensors):
        return f"{name} is quantised; give the model as it was before, and quantise the smaller one"
    if source.startswith("peft."):
        return (
            f"{name} has adapters of PEFT in it; merge them first, with merge_and_unload() of the "
            "PeftModel or of its tuner (peft.LoraModel)"
        )
    if "OptimizedModule" in names:
        return f"{name} is compiled; put its _orig_mod in its place (model.set_submodule)"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return f"{name} was compiled in place; give {PLAIN_AGAIN}"
    if any(tensor.is_inference() for tensor in module._parameters.values() if tensor is not None):
        return (
            f"weights of {name} were made inside torch.inference_mode(), so they cannot be trained "
            "or changed; give copy.deepcopy(model), made outside of it"
        )
    if "CheckpointWrapper" in names:
        return f"{name} is wrapped for checkpointing; put its _checkpoint_wrapped_module there"
    if "_original_forward" in vars(module) or "_old_forward" in vars(module):
        return f"the forward pass of {name} was replaced by accelerate; {UNWRAP}"
    return _weights_made_of_others(module, name)


UNWRAP = (
    "give accelerate.utils.extract_model_from_parallel(model, keep_fp32_wrapper=False), or remove "
    "its hooks (accelerate.hooks.remove_hook_from_module)"
)


def _weights_made_of_others(module: nn.Module, name: str) -> str | None:
    """Why a weight that is worked out from others at every step cannot be cut."""
    kept = {**module._parameters, **module._buffers}
    made = dict(getattr(module, "parametrizations", nn.Module()).named_children())
    # WHY: secateur's own low-rank updates are there while a model is trained.
    theirs = [
        weight
        for weight, steps in made.items()
        if not all(type(step).__module__.startswith("secateur.") for step in steps.children())
    ]
    if theirs:
        weight = theirs[0]
        how = f"torch.nn.utils.parametrize.remove_parametrizations(module, '{weight}')"
    elif "weight_orig" in kept and "weight_mask" in kept:
        how = "torch.nn.utils.prune.remove(module, 'weight')"
    elif "weight_orig" in kept:
        how = "torch.nn.utils.remove_spectral_norm(module)"
    elif "weight_g" in kept and "weight_v" in kept:
        how = "torch.nn.utils.remove_weight_norm(module)"
    else:
        return None
    return f"weights of {name} are worked out from other parameters; make them plain first: {how}"
