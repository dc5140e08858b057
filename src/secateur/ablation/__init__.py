"""The dense model with parts changed or left out, run on probe images."""
