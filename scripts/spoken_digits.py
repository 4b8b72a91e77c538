#!/usr/bin/env python3
"""Spoken digits in several voices, made by espeak-ng: scripts/spoken_digits.py FOLDER

Writes FOLDER/DIGIT_ACCENT_VOICE_SPEED_PITCH.wav, 16 bits, 22,050 Hz, mono: ten digits, four accents, eight voices, two
speeds and three pitches, 1,920 files, 68 MB.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-029")
VOICES = ("m1", "m2", "m3", "m7", "f1", "f2", "f4", "f5")
SPEEDS = (140, 180)  # words a minute
PITCHES = (35, 50, 65)  # of 99


def speak(folder: Path, digit: int, accent: str, voice: str, speed: int, pitch: int) -> None:
    path = folder / f"{digit}_{accent}_{voice}_{speed}_{pitch}.wav"
    options = ("-v", f"{accent}+{voice}", "-s", str(speed), "-p", str(pitch), "-w", str(path))
    subprocess.run(["espeak-ng", *options, DIGITS[digit]], check=True)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        made = [
            pool.submit(speak, folder, *of) for of in product(range(10), ACCENTS, VOICES, SPEEDS, PITCHES)
        ]
    for future in made:
        future.result()


if __name__ == "__main__":
    main()
