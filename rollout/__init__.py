"""Sampling: prompts in, completions out. The ground of the house; imports none of the other packages."""
