"""Scores before the search: by a criterion, or by plans for falling budgets."""
