"""The command line as text, read from the program itself: for docs/cli.md, `man noesis` and assistants."""
