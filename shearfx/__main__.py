"""``python -m shearfx``."""

from shearfx.cli import main

if __name__ == "__main__":
    main()
