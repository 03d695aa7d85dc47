"""The HTTP face: one module for each group of routes."""
