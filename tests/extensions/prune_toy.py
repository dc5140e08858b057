"""Run with the planted files: prune the toy and say what was found, as JSON."""

import json

import torch
from secateur.models.families.toy_family import Toy

import secateur
from secateur.criteria import criteria
from secateur.models.family import read
from secateur.presets import preset_names
from secateur.verbs.prune import prune

torch.manual_seed(0)
model = Toy().eval()
images = torch.randn(24, 3, 4, 4)
with torch.no_grad():
    hidden = model.blocks[0].mlp[:2](model.embed(images.flatten(1)))
result = prune(model, images, "70% macs", preset="peak")
smallest = hidden.mean(0).argsort()[: 32 - result.plan.shapes["blocks.0.mlp"].hidden]
print(
    json.dumps(
        {
            "package": secateur.__file__,
            "presets": preset_names(),
            "criteria": criteria.names(),
            "dense": read(model).cost().macs,
            "pruned": read(result.model).cost().macs,
            "params": read(result.model).cost().params,
            "counted": sum(p.numel() for p in result.model.parameters()),
            "removed": sorted(set(range(32)) - set(result.plan.units["blocks.0.mlp"]["hidden"])),
            "smallest": sorted(smallest.tolist()),
            "repair": result.task.preset.repair,
        }
    )
)
