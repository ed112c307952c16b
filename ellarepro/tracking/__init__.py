"""Runs in Weights & Biases: wanted or not, account or not. `result.json` stays the truth, this mirrors it."""

from ellarepro.tracking.trackers import NoTracker, Tracker, make_tracker, tracked

__all__ = ["NoTracker", "Tracker", "make_tracker", "tracked"]
