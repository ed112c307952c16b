"""All finished runs as one page that opens in a browser without a network."""

from ellarepro.report.page import render_page

__all__ = ["render_page"]
