"""One file per model family; each registers itself in `secateur.anatomy.family.families`."""
