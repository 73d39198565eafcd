"""`python -m ironclip` is `ironclip`."""

from ironclip.cli import main

main()
