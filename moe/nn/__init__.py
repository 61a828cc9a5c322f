"""Dense layers: attention, feed-forward network, norm, relative position bias, dropout."""
