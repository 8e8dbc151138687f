"""Formulas: from text to a tree, and whether two trees have the same value."""
