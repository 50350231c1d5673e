"""Ahead-of-time compilation of a function for a machine that is not here."""
