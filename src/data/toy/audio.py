"""Samples of a toy clip's sound track."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE_HZ = 16_000
_LOUDNESS = 0.4  # of full scale
_FADE_S = 0.02  # against clicks at the ends of a tone
_LOW_HZ, _HIGH_HZ, _BEEP_HZ = 300.0, 2400.0, 1000.0


def _tone(frequency_hz: np.ndarray) -> np.ndarray:
    """A sine whose frequency follows the array, faded in and out."""
    samples = np.sin(2 * np.pi * np.cumsum(frequency_hz) / SAMPLE_RATE_HZ)
    fade = np.minimum(1.0, np.arange(1, len(samples) + 1) / (_FADE_S * SAMPLE_RATE_HZ))
    return samples * fade * fade[::-1]


def _beeps(number: int, length_s: float, total: int) -> np.ndarray:
    track = np.zeros(total)
    length = round(length_s * SAMPLE_RATE_HZ)
    for beep in range(number):
        start = round((beep + 0.5) * total / number - length / 2)
        track[start : start + length] = _tone(np.full(length, _BEEP_HZ))
    return track


def synthesise(sound: str, duration_s: float) -> np.ndarray:
    """int16 mono samples of one tone pattern ("silence", "rising", "falling", "high", "low", "two", "five")."""
    total = round(duration_s * SAMPLE_RATE_HZ)
    sweep_hz = np.geomspace(_LOW_HZ, _HIGH_HZ, total)
    match sound:
        case "silence":
            track = np.zeros(total)
        case "rising":
            track = _tone(sweep_hz)
        case "falling":
            track = _tone(sweep_hz[::-1])
        case "high":
            track = _tone(np.full(total, _HIGH_HZ))
        case "low":
            track = _tone(np.full(total, _LOW_HZ))
        case "two":
            track = _beeps(2, duration_s / 4, total)
        case "five":
            track = _beeps(5, duration_s / 20, total)
        case _:
            raise ValueError(f"unknown sound {sound!r}")
    return np.round(track * _LOUDNESS * 32767).astype(np.int16)
