"""`python -m girih` is the `girih` command."""

from girih.cli import main

if __name__ == "__main__":
    main()
