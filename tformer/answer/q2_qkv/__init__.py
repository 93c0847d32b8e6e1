"""Question 2: what queries, keys and values are, and what else could make weights of them."""

SLUG = "q-k-v"
