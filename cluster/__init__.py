"""The loop and all around it. The only package that knows the others."""
