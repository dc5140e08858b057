"""Grids of pruning runs over models, structures, scores, budgets, repairs and seeds."""
