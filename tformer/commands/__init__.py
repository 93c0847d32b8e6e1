"""One file a subcommand: parse, call, render. Heavy imports stand inside the functions."""
