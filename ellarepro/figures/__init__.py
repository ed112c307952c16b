"""Runs as pictures."""

from ellarepro.figures.canvas import as_png, save
from ellarepro.figures.contact_sheet import draw_contact_sheet
from ellarepro.figures.generators import draw_generators
from ellarepro.figures.one_run import draw_run
from ellarepro.figures.shares import draw_shares
from ellarepro.figures.side_by_side import draw_side_by_side

__all__ = ["as_png", "draw_contact_sheet", "draw_generators", "draw_run", "draw_shares", "draw_side_by_side", "save"]
