"""``python -m zeitgeist``."""

from zeitgeist.cli import main

main()
