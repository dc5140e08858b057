"""One file per criterion; each registers itself in `secateur.criteria.registry`."""
