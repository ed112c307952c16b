"""The study of learned invariance: `python -m scripts.lila`."""
