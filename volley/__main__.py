"""`python -m volley` is the `volley` command."""

from volley.cluster.cli.main import program

if __name__ == "__main__":
    program()
