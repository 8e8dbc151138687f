"""Runs untrusted programs. The interface is `box`; this package imports nothing else of `volley` in the sandbox."""
