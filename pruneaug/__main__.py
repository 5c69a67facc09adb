"""`python -m pruneaug` is the command `pruneaug`."""

from pruneaug.cli import main

if __name__ == "__main__":
    main()
