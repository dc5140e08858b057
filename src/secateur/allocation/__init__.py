"""Budgets, menus of sizes with their predicted damage, and solvers that pick one size each."""
