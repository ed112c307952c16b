"""Sweeps carried out: one way for the command line, `make table…` and clusters."""
