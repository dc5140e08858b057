"""One file per kind of evidence; each registers itself in `secateur.statistics.registry`."""
