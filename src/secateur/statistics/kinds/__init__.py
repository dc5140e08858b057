"""One file per kind of statistics; each registers itself in `secateur.statistics.registry`."""
