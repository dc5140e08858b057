from collections.abc import Iterator
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from secateur.models.caches import own_, shell_of
from secateur.models.family import family_of, read
from tests.hosts import HOSTS, build


def tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_weights_assigned_to_a_shell_leave_its_model_as_it_was(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    shell, family = shell_of(model), family_of(model)
    assert {*map(id, tensors(shell))} == {*map(id, tensors(model))}
    for branch in read(model).branches:
        family.assign_(shell, branch, family.weights(shell, branch))
    own_(shell, model)
    assert not {*map(id, tensors(shell))} & {*map(id, tensors(model))}
    assert shell.state_dict().keys() == before.keys()
    for tensor in tensors(shell):
        tensor.mul_(0)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_tied_tensors_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    shell = shell_of(model)
    own_(shell, model)
    assert shell[0].weight is shell[1].weight is not model[0].weight
