"""The comparison of learned masks: what its options change; stages end within the budget."""

from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the scripts be imported as they import each other, and keep checkpoints apart."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import learned_masks

    monkeypatch.setattr(learned_masks, "HERE", tmp_path)


def bench_of(*words: str):  # type: ignore[no-untyped-def]
    import learned_masks

    args = learned_masks.arguments().parse_args(list(words))
    return learned_masks.Bench(learned_masks.recipes(args), args)


def test_every_stage_removes_the_same_share() -> None:
    bench = bench_of("--smoke", "--epochs", "20", "--stages", "3")
    stages = list(bench.stages(10))
    assert [epochs for epochs, _ in stages] == pytest.approx([2, 2, 16])
    # 0.1 ** (1 / 3), and for a model of that size its square root again
    assert stages[0][1](bench.dense) == "46.41% params"
    assert stages[2][1](bench.dense) == "10% params"


@pytest.mark.parametrize("way", ["spectral", "learned"])
def test_stages_end_within_the_budget(way: str) -> None:
    import learned_masks

    bench = bench_of("--smoke", "--epochs", "1", "--limit", "128", "--stages", "2")
    if way == "spectral":
        row = learned_masks.spectral_in_stages(bench, 30, 0)
    else:
        row = learned_masks.learned_in_stages(bench, 30, 0, "common_count")
        assert row["masked_percent"] == pytest.approx(100 * (1 - row["params"] / 302_154))
    assert 0.29 * 302_154 < row["params"] <= 0.3 * 302_154
    assert row["n"] == 450 and row["top1"] > 10


def test_what_is_trained_otherwise_is_kept_apart() -> None:
    import learned_masks

    names = set()
    strategies = ("--mix", "--views 2", "--no-refit", "--epochs 3", "--search-share 0.1")
    for words in ((), *(way.split() for way in strategies)):
        bench = bench_of(*words)
        names.add(learned_masks.training(bench.recipe, bench.args))
        assert (bench.recipe.common["augment"].cutmix > 0) == ("--mix" in words)
    assert len(names) == 6
    with pytest.raises(SystemExit):
        bench_of("--stages", "10")
