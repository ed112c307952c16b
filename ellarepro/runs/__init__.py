"""What one run does around its training: preparing it, keeping its place in a folder, measuring its network."""
