"""Question 1: what a transformer does that a recurrent network does not."""

SLUG = "rnn-vs-transformer"
