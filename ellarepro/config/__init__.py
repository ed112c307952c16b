"""Configuration: the keys of a run (schema), and how what was typed becomes settings (compose, sweep, resolve)."""
