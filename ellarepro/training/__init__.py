"""The loop over epochs, its optimisers, and the steps within an epoch."""
