"""The only room where weights are cut: reductions of groups, repair of survivors, removal."""
