"""Models in and out: named models, checkpoints, and the directories that secateur writes."""
