"""How a step changes weights: optimizers, low-rank updates, branches left out by chance."""
