"""WAV files: how they are read, their spectrograms and the way back, and the sounds that the commands write."""

from __future__ import annotations

import io
import json
import math
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("accelerate")

from scipy.io import wavfile

from command import ordinary_process
from vae_fast import cli
from vae_fast.training import DataError, HubVAE, checkpoint, data, labels, load_model, sound

ordinary = pytest.fixture(autouse=True)(ordinary_process)
RATE = 4000


def tone(hertz: float, seconds: float = 0.25, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * math.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def save(path: Path, values: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, rate, values)
    return path


def loudest(clip: np.ndarray, rate: int) -> float:
    """The frequency with the most power."""
    return float(np.fft.rfftfreq(len(clip), 1 / rate)[np.abs(np.fft.rfft(clip)).argmax()])


def wav24(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(3)
        writer.setframerate(RATE)
        whole = (values * 2**23).astype("<i4")
        writer.writeframes(whole.view(np.uint8).reshape(-1, 4)[:, :3].tobytes())
    return file.getvalue()


def test_every_kind_of_wav_is_the_same_sound(tmp_path: Path) -> None:
    """8, 16, 24 and 32 bits, floats, two channels, another rate: within the width of what 8 bits tell."""
    x = tone(440)
    save(tmp_path / "0.wav", (x * 2**15).astype(np.int16))
    save(tmp_path / "1.wav", (x * 2**7 + 128).round().astype(np.uint8))
    (tmp_path / "2.wav").write_bytes(wav24(x))
    save(tmp_path / "3.wav", (x.astype(np.float64) * 2**31).astype(np.int32))
    save(tmp_path / "4.wav", x)
    save(tmp_path / "5.wav", np.stack([2 * x, 0 * x], 1))
    save(tmp_path / "6.wav", tone(440, rate=2 * RATE), 2 * RATE)
    files = sound.find(tmp_path)
    assert files is not None
    clips = sound.read(files.paths, None, None, None)
    assert clips.rate == RATE and clips.parts["train"].shape == (7, 1000)
    assert np.allclose(clips.parts["train"][:6], x, atol=1 / 2**7)
    assert np.allclose(clips.parts["train"][6, 50:-50], x[50:-50], atol=0.02)  # the filter's ends are its own
    assert clips.notes == (
        "1 of 7 sounds are resampled to the rate of 4,000 Hz",
        "1 of 7 sounds are turned from several channels into mono",
    )


def test_length_rate_labels_and_parts(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label, hertz in (("low", 300), ("high", 900)):
            save(tmp_path / part / label / "a.wav", tone(hertz, 0.3))
            save(tmp_path / part / label / "b.wav", tone(hertz, 0.1))
    dataset = data.load(str(tmp_path), sample_rate=2000, seconds=0.2)
    assert dataset.sound is not None and (dataset.sound.rate, dataset.sound.samples) == (2000, 400)
    assert dataset.shape == (dataset.sound.bands, 400 // dataset.sound.hop + 1)
    found = labels.find(dataset, str(tmp_path), "test")
    assert found is not None and found.tolist() == ["high", "high", "low", "low"]
    assert any("4 of 8 sounds are cut to 0.2 s" in note for note in dataset.notes)
    assert any("4 of 8 sounds are filled up with silence to 0.2 s" in note for note in dataset.notes)
    x = dataset.test
    assert isinstance(x, torch.Tensor) and isinstance(dataset.train, torch.Tensor)
    assert abs(float(dataset.train.mean())) < 1e-3 and float(dataset.train.std()) == pytest.approx(
        1, abs=1e-3
    )
    bands = x[:, :, 2].argmax(1).tolist()
    assert bands[0] == bands[1] > bands[2] == bands[3]  # the higher tone is in a higher band
    assert (x[1, :, -1] == x[1].min()).all() and (
        x[0, :, -1] > x[0].min()
    ).any()  # silence where b.wav has ended


@pytest.mark.parametrize("rate", [1000, 8000, 16000, 22050, 44100, 192000])
def test_a_sound_comes_back_from_its_spectrogram(rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each usual rate every band has a frequency; what is made of x has x as its spectrogram, more than twice as
    nearly as without a search for its phase and its power."""
    window = sound.window_of(rate)
    assert 0.03 < window / rate < 0.075
    seconds = np.arange(round(0.5 * rate)) / rate
    rising = np.sin(2 * math.pi * rate * (0.02 * seconds + 0.1 * seconds**2)) * np.hanning(len(seconds))
    clips = torch.from_numpy(rising.astype(np.float32)).unsqueeze(0)
    described = sound.describe(clips, rate)
    assert (sound.filterbank(rate, window, described.bands).sum(1) > 0).all()
    x = described.encode(clips)

    def error() -> float:
        return float((described.encode(described.decode(x)) - x).square().mean().sqrt())

    found = error()
    monkeypatch.setattr(sound, "_PHASES", 0)
    monkeypatch.setattr(sound, "_UPDATES", 0)
    assert found < 0.4 and found < error() / 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"RIFF\0\0\0\0WAVE",
            "is not a readable WAV file (its header is not that of a WAV file, or cut off)",
        ),
        (b"no sound", "is not a readable WAV file (its header is not that of a WAV file, or cut off)"),
        (b"", "is not a readable WAV file (its header is not that of a WAV file, or cut off)"),
        (np.zeros(0, np.int16), "holds no sound"),
        (np.full(100, np.nan, np.float32), "holds NaN"),
    ],
)
def test_what_is_no_sound(tmp_path: Path, content: bytes | np.ndarray, message: str) -> None:
    save(tmp_path / "a" / "good.wav", tone(440))
    bad = tmp_path / "a" / "bad.wav"
    if isinstance(content, bytes):
        bad.write_bytes(content)
    else:
        save(bad, content)
    with pytest.raises(DataError, match=rf"bad\.wav: {re.escape(message)}") as caught:
        data.load(str(tmp_path / "a"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"expected a folder of \.wav files"):
        data.load(str(tmp_path / "a" / "good.wav"))


def test_a_sound_that_was_cut_off_is_told(tmp_path: Path) -> None:
    whole = save(tmp_path / "a.wav", tone(440)).read_bytes()
    (tmp_path / "b.wav").write_bytes(whole[: len(whole) // 2])
    dataset = data.load(str(tmp_path))
    assert any("1 of 2 sounds are shorter than their headers say" in note for note in dataset.notes)


def test_train_and_what_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two tones, the sounds that a model gives back are those tones."""
    tones = {"low": 300, "high": 1200}
    for name, hertz in tones.items():
        for i in range(12):
            save(tmp_path / "tones" / name / f"{i}.wav", (tone(hertz + i, 0.2) * 2**15).astype(np.int16))
    run, source = tmp_path / "run", str(tmp_path / "tones")
    train = ["train", "--data", source, "--out", str(run), "--epochs", "40", "--batch-size", "10", "--cpu"]
    options = ["--hidden", "64", "--latent", "2", "--lr", "1e-2", "--beta", "0.1", "--evaluate-every", "30"]
    assert cli.run([*train, *options]) == 0
    printed = capsys.readouterr().out
    assert "mlp VAE" in printed and "gaussian" in printed and "nats/sound" in printed
    model, dataset = load_model(run), data.load(source)
    assert model.sound == dataset.sound and model.sound is not None
    assert json.loads((run / "config.json").read_text())["sound"]["rate"] == RATE

    assert cli.run(["reconstruct", str(run), "--cpu"]) == 0
    names = labels.find(dataset, source)
    assert names is not None and set(names) == set(tones)
    for i, name in enumerate(names):
        for what in ("original", "reconstruction"):
            rate, clip = wavfile.read(run / "reconstructed" / f"{i}-{what}.wav")
            assert rate == RATE and clip.dtype == np.int16 and len(clip) == 800
            assert loudest(clip, rate) == pytest.approx(tones[name] + 6, abs=60)
    assert cli.run(["generate", str(run), "-n", "12", "--cpu"]) == 0
    assert cli.run(["generate", str(run), "-n", "3", "--cpu"]) == 0  # the nine others go
    assert sorted(p.name for p in (run / "generated").iterdir()) == ["0.wav", "1.wav", "2.wav"]
    assert (run / "generated.png").exists()
    assert cli.run(["interpolate", str(run), "--between", "0,1", "--steps", "3", "--cpu"]) == 0
    assert sorted(p.name for p in (run / "interpolation").iterdir()) == ["0-0.wav", "0-1.wav", "0-2.wav"]
    for command in (["evaluate", "--draws", "2"], ["embed"], ["encode"], ["score", "--anomalies", "low"]):
        assert cli.run([command[0], str(run), *command[1:], "--cpu"]) == 0
    conv = HubVAE((8, 12), architecture="conv", dims=1, sound=dataset.sound.to_dict(), likelihood="gaussian")
    assert conv.generate(2).shape == (2, 8, 12)  # the bands are the channels of a signal
    (run / "generated" / "mine.txt").write_text("")
    checkpoint.remove_pictures(run)  # as a new run with --overwrite does
    assert not (run / "reconstructed").exists()
    assert [p.name for p in (run / "generated").iterdir()] == ["mine.txt"]  # what is not ours stays
    for arguments, message in (
        (["generate", str(run), "--out", "a.txt"], "ends in .png or .npy for this model"),
        (["reconstruct", str(run), "--data", "digits"], "expected, as the model was trained on, sounds"),
        (["train", "--data", "digits", "--seconds", "1"], "--sample-rate and --seconds are of sounds"),
        (["train", "--data", source, "--seconds", "0"], "expected --seconds to be a number above 0"),
    ):
        capsys.readouterr()
        assert cli.run([*arguments, "--cpu"]) == 1
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1
