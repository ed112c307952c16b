"""Questions that many runs answer together, one a module, all of one pattern (`study.py`): runs, a page, a figure."""
