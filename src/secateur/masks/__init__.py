"""Masks learned during training: gates on units, shared or not, held to a budget, then removed."""
