"""Ways to search for masks under a budget, one file each."""
