"""Trunks, the joint network with its two heads, and pretrained weights."""
