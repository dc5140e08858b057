"""From masks to a smaller model: removal, what survivors take over, the refit."""
