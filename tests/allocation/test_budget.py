import pytest

from secateur.allocation.budget import CostBudget, Drop, ShapeBudget, parse_budget
from secateur.errors import UserError


@pytest.mark.parametrize(
    ("text", "unit", "amount", "relative"),
    [
        ("50% macs", "macs", 0.5, True),
        ("50%MACs", "macs", 0.5, True),
        ("  12.5 % params ", "params", 0.125, True),
        ("100% macs", "macs", 1.0, True),
        ("2.0 GMACs", "macs", 2e9, False),
        (".5 gmacs", "macs", 5e8, False),
        ("3M params", "params", 3e6, False),
        ("250k PARAMS", "params", 2.5e5, False),
        ("1000 macs", "macs", 1000.0, False),
        ("1.2 Tmacs", "macs", 1.2e12, False),
        ("6.5 ms", "ms", 6.5, False),
        ("80% ms", "ms", 0.8, True),
        ("2x faster", "ms", 0.5, True),
        ("4 X Faster", "ms", 0.25, True),
    ],
)
def test_costs(text: str, unit: str, amount: float, relative: bool) -> None:
    budget = parse_budget(text)
    assert isinstance(budget, CostBudget)
    assert (budget.unit, budget.relative) == (unit, relative)
    assert budget.amount == pytest.approx(amount)


@pytest.mark.parametrize(
    ("text", "shares", "drops"),
    [
        ("50% qk", {"qk": 0.5}, ()),
        ("50% qk, 50% vo,70% hidden", {"qk": 0.5, "vo": 0.5, "hidden": 0.7}, ()),
        ("25% heads , 100% width", {"heads": 0.25, "width": 1.0}, ()),
        ("drop 4 attention", {}, (("attention", 4, False),)),
        ("Drop 1 MLP", {}, (("mlp", 1, False),)),
        ("drop 2 layers", {}, (("layer", 2, False),)),
        ("drop 2 branches", {}, (("layer", 2, False),)),
        ("drop 25% blocks", {}, (("block", 0.25, True),)),
        ("drop 0 blocks", {}, (("block", 0, False),)),
        (
            "drop 1 attention, 50% hidden, drop 2 mlps",
            {"hidden": 0.5},
            (("attention", 1, False), ("mlp", 2, False)),
        ),
    ],
)
def test_shares_and_drops(
    text: str, shares: dict[str, float], drops: tuple[tuple[str, float, bool], ...]
) -> None:
    wanted = tuple(Drop(kind=k, amount=a, relative=r) for k, a, r in drops)  # type: ignore[arg-type]
    assert parse_budget(text) == ShapeBudget(shares=shares, drops=wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be understood: Write for example"),
        ("half", "cannot be understood"),
        ("50%", "cannot be understood"),
        ("-50% macs", "cannot be understood"),
        ("nan% macs", "cannot be understood"),
        ("1,5% macs", "cannot be understood"),
        ("50% qk 50% vo", "cannot be understood"),
        ("50% qk,", "cannot be understood"),
        ("drop 4", "cannot be understood"),
        ("4 attention", "cannot be understood"),
        ("50% hiden", "did you mean 'hidden'"),
        ("50% mac", "did you mean 'macs'"),
        ("3M parms", "did you mean 'params'"),
        ("2x fastr", "did you mean 'faster'"),
        ("drop 4 atention", "did you mean 'attention'"),
        ("drop 3 heads", "unknown kind of layer 'heads'"),
        ("0% macs", "above 0 and at most 100"),
        ("101% params", "above 0 and at most 100"),
        ("0% qk", "above 0 and at most 100"),
        ("0 macs", "is zero"),
        ("0 ms", "is zero"),
        ("0.5x faster", "slower"),
        ("drop 1.5 mlp", "whole number"),
        ("drop 100% blocks", "keep at least one"),
        ("50% qk, 60% qk", "names 'qk' twice"),
        ("50% macs, 50% params", "stands alone"),
        ("50% qk, 2 GMACs", "stands alone"),
    ],
)
def test_what_is_malformed_is_quoted_and_explained(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        parse_budget(text)
    assert f"'{text}'" in str(error.value)
    assert str(error.value).endswith(".")
