"""The `volley` command."""
