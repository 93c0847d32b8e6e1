"""Question 3: what the MLPs do, and whether one would do for all blocks."""

SLUG = "dense-layers"
