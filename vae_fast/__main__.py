"""python -m vae_fast: the command."""

from .cli import main

main()
