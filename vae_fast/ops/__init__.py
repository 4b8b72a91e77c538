"""Schema, fake kernel and autograd of each op; the numbers come from a backend.

Eager calls go to the backend through an autograd Function, traced ones through an op made with Library.define. Why, in
microseconds a call around a kernel that does nothing, 128x20, torch 2.13 on one core (minima of the thread's own time):

                                              forward, no gradient    forward and backward
    mu * 1                                                       -                      25
    a bare autograd Function: saves and allocates                6                      39
    bernoulli_nll                                                6                      42
    reparameterize_kl                                            8                      54
    Library.define, three arguments                              8                      68
    Library.define, latent's eleven arguments                   18                     162

torch.library.custom_op takes a tenth longer than Library.define. Drawing rng_state adds 2 to 8. What is ours of
reparameterize_kl's 54: checks 1.9, the way to the backend 1.4, outputs and their dtypes 1.5 and 1.4 beside torch's own
3.3, arguments handed on 2.7, more tensors for autograd to save and to look at 5. A CUDA kernel's arguments add 2.0
forward and 2.6 back, Triton's 4.1 and 6.5.
"""

from . import (
    categorical,
    flops,
    importance,
    latent,
    likelihood,
    linear_likelihood,
    mixture,
    mixture_kl,
    noise,
    pairwise,
)

__all__ = [
    "categorical",
    "importance",
    "latent",
    "likelihood",
    "linear_likelihood",
    "mixture",
    "mixture_kl",
    "noise",
    "pairwise",
]

flops.register()
