"""Configuration: what can be said (schema), what was said (compose, sweep), and what it means (settings)."""
