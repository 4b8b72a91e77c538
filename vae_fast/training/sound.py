"""Sounds as samples: log-mel spectrograms of WAV files, and the way back to a sound."""

from __future__ import annotations

import io
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import images
from .errors import DataError, reason
from .parts import FolderParts, folder_parts, listed, visible_files

SUFFIXES = (".wav", ".wave")
LONGEST = 5.0  # seconds of a clip, unless the user asks for more
BANDS = 80  # as most speech synthesis has it
RANGE = 1e-7  # what is 70 dB below the loudest is silence
_WINDOW = 0.05  # seconds: from 35 to 70 ms, a power of two
_CHUNK = 64  # clips at a time
_PHASES, _MOMENTUM = 32, 0.99  # of Griffin-Lim
_UPDATES = 32  # of the power in each frequency


@dataclass(frozen=True)
class Sound:
    """What a spectrogram is of. x is (bands, frames): the logarithm of the power in bands of equal width in mel, with
    mean 0 and deviation 1 over the training part.

    Attributes:
        rate: samples of the sound in a second.
        samples: of a clip.
        window: samples of a frame; the frames are a quarter of it apart.
        floor: the power that is added to each, so that silence has a logarithm.
    """

    rate: int
    samples: int
    window: int
    bands: int
    floor: float
    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sound:
        """What `to_dict` describes. Raises TypeError, ValueError."""
        sound = cls(**values)
        if not (sound.window >= 4 and sound.samples >= 1 and sound.deviation > 0 < sound.floor):
            raise ValueError("expected a sound's window, samples, floor and deviation")
        return sound

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def hop(self) -> int:
        return self.window // 4

    def encode(self, clips: Tensor) -> Tensor:
        """x of clips (n, samples)."""
        bank = filterbank(self.rate, self.window, self.bands)
        x = [bank @ self._transform(part).abs().square() for part in clips.split(_CHUNK)]
        return (torch.cat(x).add_(self.floor).log_() - self.mean) / self.deviation

    def decode(self, x: Tensor) -> Tensor:
        """Clips (n, samples) whose spectrogram is near x."""
        power = (x.float().cpu() * self.deviation + self.mean).exp() - self.floor
        bank = filterbank(self.rate, self.window, self.bands)
        parts = [self._with_phase(_unmixed(bank, part.clamp_min(0)).sqrt()) for part in power.split(_CHUNK)]
        return torch.cat(parts)

    def _transform(self, clips: Tensor) -> Tensor:
        window = torch.hann_window(self.window)
        return torch.stft(
            clips, self.window, self.hop, window=window, pad_mode="constant", return_complex=True
        )

    def _with_phase(self, magnitude: Tensor) -> Tensor:
        """The sound of the magnitudes (n, bins, frames) by the fast Griffin-Lim algorithm.

        Source: Perraudin, Balazs & Søndergaard, "A fast Griffin-Lim algorithm", 2013.
        """
        window = torch.hann_window(self.window)
        generator = torch.Generator().manual_seed(0)
        angle = torch.rand(magnitude.shape, generator=generator) * (2 * math.pi)
        phase, before = torch.polar(torch.ones_like(angle), angle), torch.zeros(())
        for _ in range(_PHASES):
            clips = torch.istft(magnitude * phase, self.window, self.hop, window=window, length=self.samples)
            found = self._transform(clips)
            ahead = found + _MOMENTUM * (found - before)
            phase, before = ahead / ahead.abs().clamp_min(1e-16), found
        return torch.istft(magnitude * phase, self.window, self.hop, window=window, length=self.samples)


def filterbank(rate: int, window: int, bands: int) -> Tensor:
    """Triangles (bands, window / 2 + 1) over the frequencies, at equal distances in mel, 2595 log10(1 + Hz / 700)."""
    most = 2595 * math.log10(1 + rate / 2 / 700)
    hertz = 700 * (10 ** (torch.linspace(0, most, bands + 2, dtype=torch.float64) / 2595) - 1)
    low, middle, high = (hertz[i : bands + i].unsqueeze(1) for i in range(3))
    bins = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)
    return torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp_min(0).float()


def _unmixed(bank: Tensor, power: Tensor) -> Tensor:
    """The power of each frequency, none below 0, whose sums in the bands are nearest to `power`.

    Source: the multiplicative updates of Lee & Seung, "Algorithms for non-negative matrix factorization", 2000.
    """
    found = bank.T @ power
    target = found.clone()
    for _ in range(_UPDATES):
        found *= target / (bank.T @ (bank @ found)).clamp_min(1e-30)
    return found


class Clips(NamedTuple):
    parts: dict[str, Tensor]  # (n, samples) each
    rate: int
    notes: tuple[str, ...]


def find(path: Path) -> FolderParts | None:
    """The files of a folder whose files are WAV more than images, and the labels that its folders are. None if it is
    something else. Raises DataError."""
    if not path.is_dir():
        if path.suffix.lower() in SUFFIXES:
            raise DataError(f"{path}: expected a folder of .wav files, but got one file")
        return None
    files = visible_files(path)
    wavs = [file for file in files if file.suffix.lower() in SUFFIXES]
    if len(wavs) <= sum(file.suffix.lower() in images.SUFFIXES for file in files):
        return None
    found = folder_parts(path, wavs)
    if unused := [file.name for file in files if file not in set(wavs)]:
        found = found._replace(notes=(*found.notes, f"not used, no .wav: {listed(unused)}"))
    return found


def read(
    paths: Mapping[str, Sequence[Path]], rate: int | None, samples: int | None, seconds: float | None
) -> Clips:
    """Mono clips of one rate and length: the files' most frequent rate and their longest, where none are given. Raises
    DataError."""
    done: Counter[str] = Counter()
    sounds = {part: [_read(path, done) for path in files] for part, files in paths.items()}
    everything = [sound for part in sounds.values() for sound in part]
    rate = rate or Counter(found for found, _ in everything).most_common(1)[0][0]
    at_rate = {part: [_resampled(*sound, rate, done) for sound in of] for part, of in sounds.items()}
    longest = max(len(clip) for part in at_rate.values() for clip in part)
    wanted = min(longest, round(LONGEST * rate)) if seconds is None else round(seconds * rate)
    samples = samples or max(wanted, window_of(rate))
    clips = {part: torch.zeros(len(of), samples) for part, of in at_rate.items()}
    for part, of in at_rate.items():
        for row, clip in zip(clips[part], of, strict=True):
            row[: len(clip)] = torch.from_numpy(clip[:samples])
            done[f"cut to {samples / rate:.3g} s"] += len(clip) > samples
            done[f"filled up with silence to {samples / rate:.3g} s"] += len(clip) < samples
    total = len(everything)
    notes = (f"{count:,} of {total:,} sounds are {what}" for what, count in sorted(done.items()) if count)
    return Clips(clips, rate, tuple(notes))


def window_of(rate: int) -> int:
    return 1 << max(4, round(math.log2(rate * _WINDOW)))


def describe(clips: Tensor, rate: int) -> Sound:
    """The spectrograms of the training part's clips."""
    window = window_of(rate)
    plain = Sound(rate, clips.shape[1], window, min(BANDS, window // 8), 1.0)
    power = (plain.encode(clips).exp_() - 1).clamp_min(0)
    described = replace(plain, floor=max(1e-12, RANGE * float(power.max())))
    x = described.encode(clips)
    return replace(described, mean=float(x.mean()), deviation=float(x.std()) or 1.0)


def to_wav(clip: Tensor, rate: int) -> bytes:
    """16 bits, as loud as it is where that fits."""
    from scipy.io import wavfile

    file = io.BytesIO()
    loudest = max(1.0, float(clip.abs().max()))
    wavfile.write(file, rate, (clip / loudest * 32767).round().to(torch.int16).numpy())
    return file.getvalue()


def _read(path: Path, done: Counter[str]) -> tuple[int, np.ndarray]:
    """The rate and the sound, mono, -1 to 1."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings(record=True) as told:  # also of chunks that hold no sound
            warnings.simplefilter("always", wavfile.WavFileWarning)
            rate, sound = wavfile.read(path)
        done["shorter than their headers say"] += any("prematurely" in str(w.message) for w in told)
    except OSError:
        raise
    except Exception as error:  # a damaged header meets the reader's own arithmetic
        header = "its header is not that of a WAV file, or cut off"
        raise DataError(f"{path}: is not a readable WAV file ({reason(error, header)})") from None
    if sound.size == 0 or rate < 1:
        raise DataError(f"{path}: holds no sound")
    if sound.dtype == np.uint8:
        sound = (sound.astype(np.float32) - 128) / 128
    elif sound.dtype.kind == "i":  # 24 bits are the upper ones of 32
        sound = (sound / -float(np.iinfo(sound.dtype).min)).astype(np.float32)
    else:
        sound = sound.astype(np.float32)
    if not np.isfinite(sound).all():
        raise DataError(f"{path}: holds NaN or infinite values")
    if sound.ndim == 2:
        done["turned from several channels into mono"] += sound.shape[1] > 1
        sound = sound.mean(1)
    return rate, sound


def _resampled(found: int, sound: np.ndarray, rate: int, done: Counter[str]) -> np.ndarray:
    from scipy.signal import resample_poly

    if found == rate:
        return sound
    done[f"resampled to the rate of {rate:,} Hz"] += 1
    common = math.gcd(found, rate)
    return resample_poly(sound, rate // common, found // common).astype(np.float32)
