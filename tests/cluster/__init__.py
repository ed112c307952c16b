"""A real SLURM of one node, for `make test-cluster`."""
