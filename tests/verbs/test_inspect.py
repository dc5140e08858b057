"""The description of a model adds up and says what cannot be pruned."""

import timm

import secateur
from secateur.measurement.counting import counted


def test_branches_and_ends_add_up_to_what_is_counted() -> None:
    model = secateur.load("digits_vit")
    found = secateur.inspect(model)
    measured = counted(model, found.input_size)
    assert (found.macs, found.params) == (measured.macs, measured.params)
    for name in ("macs", "params"):
        total = sum(getattr(branch, name) for branch in found.branches) + found.ends[name]
        assert total == getattr(found, name)
        shares = sum(getattr(branch, f"{name}_percent") for branch in found.branches)
        assert 90 < shares < 100
    assert found.to_json()["branches"][1]["shape"] == {"hidden": 256}


def test_refusals_are_told_branch_by_branch() -> None:
    model = timm.create_model("vit_tiny_patch16_224", qk_norm=True, depth=1)
    attention, mlp = secateur.inspect(model).branches
    assert attention.groups == ("vo", "heads")
    assert "QK-norm" in attention.refusals["qk"]
    assert (mlp.groups, mlp.refusals) == (("hidden",), {})
