"""What each path of a layer learned: shares, ablation, and how paths are called."""
