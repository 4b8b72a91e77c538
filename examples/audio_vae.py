"""A VAE of spoken digits, tried on an accent and voices that training has not heard; pictures in audio_vae.png.
scripts/spoken_digits.py FOLDER (needs espeak-ng) makes the sounds, python examples/audio_vae.py FOLDER reads them.
"""

import sys
import wave
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.pyplot import imsave

from vae_fast import nn


def spectrogram(path):
    """(64, 80): the log of the power in bands of equal width and frames of 10 ms, from the first sound on."""
    with wave.open(str(path)) as file:
        rate, sound = file.getframerate(), bytearray(file.readframes(file.getnframes()))
    sound = torch.frombuffer(sound, dtype=torch.int16) / 2**15
    sound = F.pad(sound[int((sound.abs() > 0.01).int().argmax()) :], (0, rate))[:rate]
    spectrum = torch.stft(sound, 512, rate // 100, window=torch.hann_window(512), return_complex=True)
    return (F.adaptive_avg_pool1d(spectrum.abs().square().T, 64).T[:, :80] + 1e-4).log()


def read(folder):
    """x and digits to train and to test; of the files DIGIT_ACCENT_VOICE_..., x with mean 0 and variance 1."""
    paths = sorted(Path(folder).glob("*.wav"))
    x, names = torch.stack([*map(spectrogram, paths)]), [path.stem.split("_") for path in paths]
    x, digits = (x - x.mean()) / x.std(), torch.tensor([int(name[0]) for name in names])
    new = torch.tensor([(name[1] == "en-029") + (name[2] in ("m7", "f5")) for name in names])
    return x[new == 0], digits[new == 0], x[new == 2], digits[new == 2]


def train(x, digits, test, answers, steps=1000, channels=(64, 128), latent=16):
    torch.manual_seed(0)
    networks = nn.build_networks(x.shape[1:], architecture="resnet", dims=1, hidden=channels, latent=latent)
    model = nn.VAE(*networks, "gaussian", variance="learned")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x[torch.randint(len(x), (64,))]).loss.backward()
        optimizer.step()
    found = nn.evaluate(model.eval(), test.split(100), 10)
    near = torch.cdist(test.flatten(1), x.flatten(1)).argmin(1)
    near_mu = torch.cdist(model.encode(test)[0], model.encode(x)[0]).argmin(1)
    guesses = {"error": model.reconstruct(test), "of the most similar": x[near], "of the mean": x.mean(0)}
    figures = {name: (guess - test).square().mean().item() for name, guess in guesses.items()}
    for name, i in (("same digit by mu", near_mu), ("by spectrogram", near)):
        figures[name] = (digits[i] == answers).float().mean().item()
    return model, figures | {"KL": found.rate, "units": found.active_units}


if __name__ == "__main__":
    x, digits, test, answers = read(sys.argv[1])
    model, figures = train(x, digits, test, answers)
    print(figures)
    rows = (test[::12], model.reconstruct(test[::12]), model.generate(10))
    imsave("audio_vae.png", torch.cat([torch.cat(tuple(F.pad(r, (0, 2, 2, 0))), 1).flip(0) for r in rows]))
