"""What is looked at before a model is measured or cut."""
