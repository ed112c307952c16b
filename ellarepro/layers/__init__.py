"""Layers, one file a type, each with its curvature rule beside it; imports of asdl and laplace stay out."""
