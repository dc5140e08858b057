"""Training images: how they are drawn, held out, numbered and augmented."""
