"""Rotations: exact at full rank, optimal in their metric, monotone, and free for dead units."""

from itertools import pairwise

import pytest
import torch

from secateur.surgery.rotate import matrix_roots, query_key_basis, value_basis


def random_gram(size: int, seed: int, rank: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, rank or size, generator=generator, dtype=torch.float64)
    mix = torch.randn(rank or size, size, generator=generator, dtype=torch.float64)
    return (x @ mix).T @ (x @ mix) / 200


def test_roots_square_to_the_gram_and_invert_on_its_range() -> None:
    gram = random_gram(8, seed=0, rank=5)
    root, inverse = matrix_roots(gram)
    torch.testing.assert_close(root @ root, gram, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(root @ inverse @ root, root, rtol=1e-6, atol=1e-6)


def test_query_key_error_is_the_tail_of_the_spectrum_and_beats_every_selection() -> None:
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(300, 6, generator=generator, dtype=torch.float64) @ torch.randn(
        6, 6, generator=generator, dtype=torch.float64
    )
    k = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    basis = query_key_basis((q.T @ q / 300)[None], (k.T @ k / 300)[None])
    for rank in range(1, 7):
        q_r = q @ basis.encode_q_HKR[0, :, :rank]
        k_r = k @ basis.encode_k_HKR[0, :, :rank]
        error = float((q @ k.T - q_r @ k_r.T).square().mean())
        assert error == pytest.approx(float(basis.spectrum_HK[0, rank:].sum()), abs=1e-9)
        for start in range(6 - rank + 1):
            kept = list(range(start, start + rank))
            selected = float((q @ k.T - q[:, kept] @ k[:, kept].T).square().mean())
            assert error <= selected + 1e-9


def test_value_error_never_rises_with_size_or_rounds_and_full_size_is_exact() -> None:
    cov = random_gram(12, seed=5)
    weights = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    errors = [value_basis(cov, weights, heads=3, size=size)[1] for size in range(1, 5)]
    assert all(a >= b - 1e-9 for a, b in pairwise(errors))
    assert errors[-1] == pytest.approx(0.0, abs=1e-8)
    alone = value_basis(cov, weights, heads=3, size=2, rounds=0)[1]
    together = value_basis(cov, weights, heads=3, size=2, rounds=4)[1]
    assert together < alone


def test_more_dims_than_outputs_lose_nothing_and_are_independent() -> None:
    cov = random_gram(12, seed=5)
    weights = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for size in (3, 4, 5):
        encode, error = value_basis(cov, weights, heads=2, size=size)
        assert encode.shape == (2, 6, size) and error == pytest.approx(0.0, abs=1e-8)
        own = encode[1].T @ cov[6:, 6:] @ encode[1]
        torch.testing.assert_close(own, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-6)


def test_duplicated_value_dims_cost_nothing() -> None:
    half = random_gram(6, seed=2)
    double = torch.cat([torch.cat([half, half], 1), torch.cat([half, half], 1)], 0)
    # Two heads of six dims; in each, three dims stand twice.
    order = torch.tensor([0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11])
    cov = double[order][:, order]
    weights = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    whole = float(torch.einsum("du,uv,dv->", weights, cov, weights))
    assert value_basis(cov, weights, heads=2, size=3)[1] < 1e-9 * whole
