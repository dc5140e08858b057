"""Pages for people: one self-contained HTML file per run, and the picture of the model in it."""

from secateur.report.drawing.anatomy_picture import anatomy_svg
from secateur.report.run_page import render

__all__ = ["anatomy_svg", "render"]
