"""A VAE of words, letter by letter: python examples/text_vae.py [FILE], a file of one word a line

The word list is Debian's (package wamerican). Free bits and word dropout keep the decoder from ignoring z.
Source: Bowman et al., "Generating Sentences from a Continuous Space", 2016.
"""

import math
import sys
from pathlib import Path

import torch

from vae_fast import nn

END, CLASSES, LONGEST, NOTHING = 26, 27, 12, -100  # letters are 0 to 25; no likelihood counts NOTHING


def to_tokens(words):
    return torch.tensor([[ord(c) - 97 for c in w] + [END] + [NOTHING] * (LONGEST - len(w)) for w in words])


def to_words(tokens):
    return ["".join(chr(97 + t) for t in row[: [*row, END].index(END)]) for row in tokens.tolist()]


def ngrams(train, test):
    """Bits a letter, END one of them, by the letters' frequency, alone and after the letter before."""
    of = [(x.roll(1, 1).index_fill(1, torch.tensor(0), END) * CLASSES + x)[x >= 0] for x in (train, test)]
    counts = torch.bincount(of[0], minlength=CLASSES**2).view(CLASSES, CLASSES) + 0.1
    unigram, bigram = counts.sum(0) / counts.sum(), (counts / counts.sum(1, keepdim=True)).flatten()
    p = {"unigram": unigram[test[test >= 0]], "bigram": bigram[of[1]]}
    return {name: -value.log2().mean().item() for name, value in p.items()}


def train(words, objective="elbo", steps=3000, hidden=128, latent=16, draws=100):
    torch.manual_seed(0)
    x, p_x = to_tokens(words)[torch.randperm(len(words))], nn.Categorical(CLASSES)
    x, test = x[len(x) // 10 :], x[: len(x) // 10][:2000]
    config = {"architecture": "gru", "hidden": hidden, "latent": latent, "word_dropout": 0.3}
    model = nn.VAE(*nn.build_networks(LONGEST + 1, p_x, **config), p_x, objective=objective)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        model(x[torch.randint(len(x), (256,))]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found, letter = nn.evaluate(model.eval(), test.split(500), draws), test >= 0
    per_letter = len(test) / letter.sum().item() / math.log(2)
    figures = {"bits": found.nll * per_letter, "ELBO's bits": -found.elbo * per_letter} | ngrams(x, test)
    given_back = (model.reconstruct(test) == test)[letter].float().mean().item()
    return model, figures | {"KL": found.rate, "units": found.active_units, "given back": given_back}


if __name__ == "__main__":
    words = Path(sys.argv[1] if sys.argv[1:] else "/usr/share/dict/words").read_text().split()
    words = [w for w in words if w.isascii() and w.isalpha() and w.islower() and len(w) <= LONGEST]
    model, figures = train(words, nn.FreeBits(8.0, per="sample"))
    print(figures, *to_words(model.generate(12)), sep="\n")
    mu, _ = model.encode(to_tokens(["happiness", "running"]))
    print("between:", *to_words(model.decode(nn.interpolate(mu[:1], mu[1:], 7).flatten(0, 1))))
