"""Mixture-of-Experts routing in JAX: train, compare and understand."""
