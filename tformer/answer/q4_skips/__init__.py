"""Question 4: what the skip connections are for."""

SLUG = "skip-connections"
