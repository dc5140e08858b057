"""The structure of a host model as plain data, and one file per model family in families/."""
