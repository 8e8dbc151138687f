"""Recipes: parsed, checked, turned into the parts of a run."""
