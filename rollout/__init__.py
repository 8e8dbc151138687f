"""Sampling: prompts in, completions out. Imports none of the other packages."""
