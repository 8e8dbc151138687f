"""`volley audit`, `volley init` and `volley verify`."""
