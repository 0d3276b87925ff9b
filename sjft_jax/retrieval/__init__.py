"""Symmetric Kullback–Leibler divergence and the exact nearest neighbours under it."""
