"""The subcommands, and what several of them share: parse, call, show.

Heavy imports stand inside the functions.
"""
