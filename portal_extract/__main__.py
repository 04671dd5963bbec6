"""``python -m portal_extract``."""

from portal_extract.cli import main

if __name__ == "__main__":
    main()
