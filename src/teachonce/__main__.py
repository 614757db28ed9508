"""``python -m teachonce`` is ``teachonce``."""

from teachonce.cli.main import main

if __name__ == "__main__":
    main()
