"""`python -m expunge`, for launchers such as torchrun."""

from expunge.cli import main

main()
