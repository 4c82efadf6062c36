"""`python -m vitfrost`, and what torchrun starts."""

from .cli import main

main()
