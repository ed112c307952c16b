"""Layers, one file a type, each with its curvature rule beside it (design: imports of asdl or laplace stay out)."""
