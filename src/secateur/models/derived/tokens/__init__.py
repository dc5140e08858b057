"""Fewer tokens: merged ones, and the tail that computes only what the head reads."""
