"""What a run can be told: the library's settings, the keys of a configuration, and how one is composed and checked."""
