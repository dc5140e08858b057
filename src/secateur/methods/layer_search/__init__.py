"""Whole layers and blocks dropped one after the other, by running the model without them."""
