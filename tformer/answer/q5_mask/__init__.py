"""Question 5: what the causal mask is for, and what happens where it is wrong."""

SLUG = "causal-mask"
