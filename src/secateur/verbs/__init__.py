"""The verbs of the user's surface, one file each; `secateur` itself names their functions."""
