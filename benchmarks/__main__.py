"""`python -m benchmarks`: the command `vae-fast bench`, with the code of this folder whatever is installed."""

import sys

from vae_fast import cli

sys.modules["vae_fast_benchmarks"] = sys.modules[__package__]
sys.argv.insert(1, "bench")
cli.main()
