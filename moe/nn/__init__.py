"""Layers: the MoE layer and its experts, attention, feed-forward network, norm, relative position bias."""
