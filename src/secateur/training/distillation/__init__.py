"""What training learns from: labels, the outputs and the streams of a dense model."""
