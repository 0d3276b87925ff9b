"""Selective joint fine-tuning (Ge & Yu, CVPR 2017) in JAX and Flax."""
