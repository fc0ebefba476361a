"""Sound as the Audio Spectrogram Transformer and Whisper take it: log-mel features, resampling, wav files."""

import math
import os
import pathlib
import struct
import threading
import warnings

import numpy as np
from scipy import signal
from scipy.io import wavfile

from fedjax_mm.data import arguments

MEAN, STD = -4.2677393, 4.5689974  # of log-mel features of AudioSet
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
WARNINGS = threading.Lock()  # Python's filters of warnings are one for all threads, and loaders read in several
FLOOR = float(np.finfo(np.float32).eps)


def log_mel(
    waveform: np.ndarray,
    rate: int = 16_000,
    frames: int = 1024,
    mels: int = 128,
    mean: float = MEAN,
    std: float = STD,
) -> np.ndarray:
    """Returns normalised log-mel features [frames, mels] float32 of a mono waveform [T] in -1..1.

    rate: samples a second; the mel bands go from 20 Hz to half of it. frames: how many frames of 25 ms, one each
    10 ms. A longer sound is cut; a shorter one is filled up with features x = 0, as Hugging Face's ASTFeatureExtractor
    does (that is a middling loudness, no silence). mean, std: the result is (x - mean) / (2 std).
    The filter bank is Kaldi's, without dither: each frame minus its mean, preemphasis 0.97, Hann window, power
    spectrum, triangles on Kaldi's mel scale, natural logarithm.
    Source: Gong 2021 (AST); torchaudio.compliance.kaldi.fbank; Hugging Face transformers, ASTFeatureExtractor.

    >>> tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)  # one second
    >>> log_mel(tone, frames=64, mels=32).shape
    (64, 32)
    """
    arguments.check_whole(100, rate=rate)
    arguments.check_whole(1, frames=frames, mels=mels)
    waveform = _checked(waveform)
    width, hop = rate * 25 // 1000, rate // 100
    size = 1 << (width - 1).bit_length()
    features = np.zeros((frames, mels), np.float32)
    if len(waveform) >= width:
        cut = np.lib.stride_tricks.sliding_window_view(waveform, width)[::hop][:frames].astype(np.float64)
        cut = cut - cut.mean(1, keepdims=True)
        cut = cut - PREEMPHASIS * cut[:, np.r_[0, : width - 1]]
        power = np.abs(np.fft.rfft(cut * np.hanning(width), size)) ** 2
        features[: len(cut)] = np.log(np.maximum(power @ mel_filters(rate, size, mels), FLOOR))
    return ((features - mean) / (2 * std)).astype(np.float32)


def whisper_log_mel(waveform: np.ndarray, frames: int = 3000, mels: int = 80) -> np.ndarray:
    """Returns log-mel features [frames, mels] float32 of a mono waveform [T] in -1..1 at 16,000 samples a second.

    frames: how many frames of 25 ms, one each 10 ms. A longer sound is cut; a shorter one is followed by silence.
    Frames are centred, the sound's ends mirrored; periodic Hann window, power spectrum, triangles of equal area on
    Slaney's mel scale from 0 Hz to 8 kHz, the logarithm to base 10 cut at 8 below the loudest, then (x + 4) / 4.
    Source: Radford 2022 (Whisper); Hugging Face transformers, WhisperFeatureExtractor.

    >>> tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)  # one second
    >>> whisper_log_mel(tone, frames=64).shape
    (64, 80)
    """
    arguments.check_whole(2, frames=frames)
    arguments.check_whole(1, mels=mels)
    waveform = _checked(waveform)[: 160 * frames].astype(np.float64)
    waveform = np.pad(np.pad(waveform, (0, 160 * frames - len(waveform))), 200, mode="reflect")
    cut = np.lib.stride_tricks.sliding_window_view(waveform, 400)[::160][:frames]
    power = np.abs(np.fft.rfft(cut * np.hanning(401)[:400])) ** 2
    features = np.log10(np.maximum(power @ slaney_filters(16_000, 400, mels), 1e-10))
    return ((np.maximum(features, features.max() - 8) + 4) / 4).astype(np.float32)


def slaney_filters(rate: int, size: int, mels: int) -> np.ndarray:
    """Returns Slaney's filter bank [size // 2 + 1, mels]: triangles of equal area from 0 Hz to half of the rate.

    His mel scale is linear up to 1 kHz, with 15 bands there, and logarithmic from there on.
    """
    arguments.check_whole(2, rate=rate, size=size)
    arguments.check_whole(1, mels=mels)
    step, linear = np.log(6.4) / 27, 3 / 200
    top = rate / 2 * linear if rate <= 2000 else 15 + np.log(rate / 2000) / step
    places = np.linspace(0, top, mels + 2)
    corners = np.where(places < 15, places / linear, 1000 * np.exp(step * (places - 15)))
    return _triangles(np.arange(size // 2 + 1) * rate / size, corners) * 2 / (corners[2:] - corners[:-2])


def _checked(waveform: np.ndarray) -> np.ndarray:
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or waveform.dtype.kind != "f":
        raise ValueError(
            f"the waveform is {waveform.dtype} {list(waveform.shape)}; give floats [T] in -1..1, one channel"
        )
    if not np.isfinite(waveform).all():
        raise ValueError("the waveform has NaN or infinite numbers; give floats [T] in -1..1, one channel")
    return waveform


def mel_filters(rate: int, size: int, mels: int) -> np.ndarray:
    """Returns Kaldi's filter bank [size // 2 + 1, mels]: triangles of height 1 on the mel scale, 1127 ln(1 + f / 700).

    The lowest of many bands may lie between two frequencies of the spectrum and be 0 throughout (one of AST's 128).
    """
    mel = lambda hertz: 1127.0 * np.log(1.0 + hertz / 700.0)
    corners = np.linspace(mel(LOWEST_HZ), mel(rate / 2), mels + 2)
    return _triangles(mel(np.arange(size // 2 + 1) * rate / size), corners)


def _triangles(bins: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Triangles of height 1 between each corner [M + 2] and the next but one, at the bins [N]: [N, M]."""
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins[:, None] - left) / (centre - left), (right - bins[:, None]) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Returns a waveform [T] at another rate, [ceil(T to / from)], by a polyphase low-pass filter.

    from_rate, to_rate: samples a second.
    """
    arguments.check_whole(1, from_rate=from_rate, to_rate=to_rate)
    if from_rate == to_rate:
        return waveform
    common = math.gcd(from_rate, to_rate)
    return signal.resample_poly(waveform, to_rate // common, from_rate // common).astype(waveform.dtype)


def read_wav(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Returns (waveform, samples a second) of a wav file; the waveform [T] float32 in -1..1 is its channels' mean.

    Raises FileNotFoundError, or ValueError where it is cut off, no wav file, or holds no sound.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        _check_length(path)
        with WARNINGS, warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of other programs
            warnings.filterwarnings("error", "Reached EOF prematurely")  # else it hands out what there is
            rate, samples = wavfile.read(path)
        if rate < 1 or not samples.size:
            raise ValueError(f"{samples.size} samples at {rate} a second")
        if samples.dtype.kind == "f" and not np.isfinite(samples).all():
            raise ValueError("samples that are no numbers")
    except Exception as error:  # SciPy has another for each damaged field of a header
        raise ValueError(f"{path} is cut off or no wav file ({error}); copy or download it again") from error
    if samples.dtype == np.uint8:
        waveform = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":
        waveform = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    else:
        waveform = samples.astype(np.float32)
    return (waveform.mean(1) if waveform.ndim == 2 else waveform), rate


def _check_length(path: pathlib.Path) -> None:
    """Raises ValueError where a chunk of the file reaches over its end, which SciPy does not always see."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        order = {b"RIFF": "<", b"RIFX": ">"}.get(file.read(4))
        file.seek(12)
        while order and len(head := file.read(8)) == 8:
            end = file.tell() + struct.unpack(order + "I", head[4:])[0]
            if end > size:
                raise ValueError(f"chunk {head[:4]!r} ends at byte {end} of {size}")
            file.seek(end + end % 2)
