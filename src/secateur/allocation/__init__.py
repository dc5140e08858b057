"""Budgets, candidates with their predicted degradation, and solvers that pick one size each."""
