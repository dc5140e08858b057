"""Files that nobody vouches for: what they may ask for, and weights from training scripts."""
