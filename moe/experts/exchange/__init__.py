"""Tokens to experts and back over a mesh: all-to-all of slots, rounds of dropless assignments, partial mixtures."""
