"""``python -m sci`` is the command ``sci``."""

from sci.cli import main

if __name__ == "__main__":
    main()
