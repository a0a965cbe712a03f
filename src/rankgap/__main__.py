"""`python -m rankgap` runs the command `rankgap`."""

from rankgap.cli import program

if __name__ == "__main__":  # a spawned process imports this module again
    program()
