"""For launchers that take a module: torchrun -m vae_fast.cli train."""

from . import main

main()
