"""`python -m pard2` is the command `pard2`."""

from pard2.cli.main import main

if __name__ == "__main__":
    main()
