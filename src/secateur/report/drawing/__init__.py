"""Drawings as SVG: charts, and the picture of a model."""
