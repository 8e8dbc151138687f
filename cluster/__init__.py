"""The application: the training loop and everything around it. The only package that imports the other three."""
