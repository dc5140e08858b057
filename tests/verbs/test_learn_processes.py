"""Masks learned by two processes are one set of masks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from secateur.masks.settings import LearnSettings
from secateur.verbs.learn import learn
from tests.hosts import anatomy_of, build, images_for

# WHY: autograd cannot be forked once it has started threads, as other tests let it.
pytestmark = pytest.mark.alone


def run(folder: Path) -> None:
    """Learn, and write what this process ends with."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    model = build("vit")
    images, labels = images_for(model, 32), torch.arange(32) % 10
    settings = LearnSettings(
        steps=10, batch_size=8, checks=1, observe=16, held_out=0.25, search_share=0.6, trackers=()
    )
    found = learn(
        model, (images, labels), "50% params", sharing="mixed", settings=settings,
        folder=folder / "run",
    )  # fmt: skip
    processes = torch.tensor(found.phases["search"].processes)
    rank = PartialState().process_index
    state = {key: value.contiguous() for key, value in found.model.state_dict().items()}
    save_file({**state, "processes": processes}, folder / f"{rank}.safetensors")


def test_two_processes_end_with_the_same_model(tmp_path: Path) -> None:
    from accelerate import debug_launcher

    debug_launcher(run, (tmp_path,), num_processes=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert int(first.pop("processes")) == int(second.pop("processes")) == 2
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    dense = anatomy_of("vit").cost().params
    left = sum(value.numel() for value in first.values())
    assert 0.48 * dense < left <= 0.5 * dense
