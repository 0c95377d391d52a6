"""`python -m noesis …` is `noesis …`."""

from noesis.cli import main

if __name__ == "__main__":
    main()
