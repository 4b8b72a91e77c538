"""Schema, fake kernel and autograd of each op; the numbers come from a backend.

Eager calls go to the backend through an autograd Function, traced ones through an op made with Library.define. Why, in
microseconds a call around a kernel that does nothing, 128x20, torch 2.13 on one slow and shared core (minima):

                                        forward, no gradient    forward and backward
    the Python around the kernel                         4                       -
    autograd Function                                    8                     109
    Library.define, three arguments                     15                     134
    torch.library.custom_op, the same                   20                     144
    Library.define, latent's eleven arguments           27                     248

A bare autograd Function, which saves and allocates and does nothing else, takes 80 forward and backward: that is
autograd's own part. Drawing rng_state adds 3, or 10 when the caches are cold.
"""

from . import categorical, latent, likelihood, linear_likelihood, mixture, noise

__all__ = ["categorical", "latent", "likelihood", "linear_likelihood", "mixture", "noise"]
