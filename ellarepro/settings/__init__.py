"""Settings as the library takes them: each with its type, range, default and meaning, checked when it is made."""
