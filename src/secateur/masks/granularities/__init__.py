"""Ways to share masks between related units, one file each."""
