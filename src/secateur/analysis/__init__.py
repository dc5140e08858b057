"""What the sums of a pass say about redundancy: similarity, rank, agreement of scores.

Pure functions of weights and sums, one file per measure; `docs/methods/analysis.md` has the
formulas.
"""
