"""Rows of the tests of what errors advise, by what they are about."""
