"""One file per model family; each registers itself in `secateur.models.family.families`."""
