"""Slow, obvious references in float64 numpy; the tests compare the package with them."""
