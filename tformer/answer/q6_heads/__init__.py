"""Question 6: what heads learn, and why there are several."""

SLUG = "heads"
