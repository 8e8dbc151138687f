"""Inspect a run: the report page and `volley inspect`."""
