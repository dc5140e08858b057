"""What follows from the statement of a family, whatever the family: written once."""
