"""How a preset becomes a plan and a smaller model: one protocol, one file per method."""
