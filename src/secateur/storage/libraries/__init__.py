"""One file per library of models; each registers itself in `secateur.storage.library.libraries`."""
