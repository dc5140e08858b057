"""Directories of results: what stands there, and what may take its place."""
