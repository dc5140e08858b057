"""Forms of a gate: how a score becomes a mask and gets a gradient, one file each."""
