"""The command line: each command parses, calls the public API, and prints.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 the input is wrong, 3 finished and
nothing met the constraint, 130 stopped by Ctrl-C.
"""

from pruneaug.cli.main import app, main

__all__ = ["app", "main"]
