import pathlib

import numpy as np
import pytest
from scipy.io import wavfile

from fedjax_mm.data import audio

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "ast.npz"


@pytest.mark.parametrize(("name", "frames", "mels"), [("short", 64, 128), ("cut", 20, 128), ("small", 48, 32)])
def test_features_are_those_of_hugging_faces_extractor(name, frames, mels):
    with np.load(FIXTURE) as npz:
        waveform, expected = npz["waveform"].astype(np.float32) / 32768, npz[name]
    features = audio.log_mel(waveform, frames=frames, mels=mels)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_whispers_features_are_those_of_hugging_faces_extractor():
    with np.load(FIXTURE.parents[2] / "models" / "fixtures" / "whisper.npz") as npz:
        waveform, expected = npz["waveform"].astype(np.float32) / 32768, npz["features"]
    features = audio.whisper_log_mel(waveform, frames=100, mels=8)  # a quarter of it is silence
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-4)
    with pytest.raises(ValueError, match="frames"):
        audio.whisper_log_mel(waveform, frames=0)
    for features_of in (audio.log_mel, audio.whisper_log_mel):
        with pytest.raises(ValueError, match="the waveform has NaN or infinite numbers; give floats"):
            features_of(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match=r"the waveform is int16 \[400\]; give floats \[T\]"):
        audio.whisper_log_mel(np.zeros(400, np.int16))


def slow_log_mel(waveform, rate, mels):
    """Kaldi's filter bank as its documentation words it: a loop over frames, a sum over cosines, a loop over bands."""
    width, size = round(0.025 * rate), 256
    hann = [0.5 - 0.5 * np.cos(2 * np.pi * n / (width - 1)) for n in range(width)]
    mel = lambda f: 1127 * np.log(1 + f / 700)
    step = (mel(rate / 2) - mel(20)) / (mels + 1)
    out = []
    for start in range(0, len(waveform) - width + 1, round(0.01 * rate)):
        x = waveform[start : start + width] - np.mean(waveform[start : start + width])
        x = np.array([x[n] - 0.97 * x[max(n - 1, 0)] for n in range(width)]) * hann
        angle = 2 * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(width)) / size
        power = (np.cos(angle) @ x) ** 2 + (np.sin(angle) @ x) ** 2
        bands = []
        for band in range(mels):
            left = mel(20) + band * step
            distance = [abs(mel(k * rate / size) - (left + step)) / step for k in range(size // 2 + 1)]
            bands.append(sum(p * max(0, 1 - d) for p, d in zip(power, distance, strict=True)))
        out.append(np.log(np.maximum(bands, 2.0**-23)))
    return np.array(out)


def test_features_at_another_rate_are_those_of_a_slow_loop():
    waveform = np.random.default_rng(0).normal(size=1003) * 0.1 + 0.2
    expected = slow_log_mel(waveform, 8000, 20)
    assert expected.shape == (11, 20)  # 1 + (1003 - 200) // 80
    features = audio.log_mel(waveform, 8000, frames=13, mels=20, mean=1.5, std=2.0)
    np.testing.assert_allclose(features[:11], (expected - 1.5) / 4, atol=1e-5)
    np.testing.assert_allclose(features[11:], -1.5 / 4)


def test_a_sound_shorter_than_a_frame_is_all_filling():
    assert np.ptp(audio.log_mel(np.ones(399), frames=5, mels=16)) == 0
    assert np.ptp(audio.log_mel(np.arange(400.0), frames=5, mels=16)) > 0
    with pytest.raises(ValueError, match=r"the waveform is int16 \[400\]; give floats \[T\]"):
        audio.log_mel(np.zeros(400, np.int16))
    with pytest.raises(ValueError, match=r"the waveform is float64 \[400, 2\]"):
        audio.log_mel(np.zeros((400, 2)))


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44_100, 16_000), (8_000, 16_000), (16_000, 16_000)])
def test_resampling_keeps_a_low_tone_and_drops_what_the_new_rate_cannot_hold(from_rate, to_rate):
    tone = lambda hertz, rate: np.sin(2 * np.pi * hertz * np.arange(rate // 4) / rate).astype(np.float32)
    resampled = audio.resample(tone(440, from_rate), from_rate, to_rate)
    assert resampled.dtype == np.float32 and len(resampled) == to_rate // 4
    inner = slice(200, -200)  # the filter sees zeros beyond the ends
    np.testing.assert_allclose(resampled[inner], tone(440, to_rate)[inner], atol=0.01)
    if from_rate > to_rate:
        assert np.abs(audio.resample(tone(12_000, from_rate), from_rate, to_rate)[inner]).max() < 0.01
    with pytest.raises(ValueError, match="from_rate is 0; give a whole number of 1 or more"):
        audio.resample(resampled, 0, to_rate)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.float32])
def test_a_wav_file_is_the_mean_of_its_channels_in_one_to_minus_one(tmp_path, dtype):
    stereo = np.array([[0.5, 0.25], [-1.0, -1.0], [0.0, -0.5]])
    unit = {"i": -np.iinfo(dtype).min if dtype != np.float32 and dtype != np.uint8 else 1, "u": 128, "f": 1}
    kind = np.dtype(dtype).kind
    wavfile.write(tmp_path / "a.wav", 11_025, (stereo * unit[kind] + (128 if kind == "u" else 0)).astype(dtype))
    waveform, rate = audio.read_wav(tmp_path / "a.wav")
    assert rate == 11_025 and waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, [0.375, -1.0, -0.25], atol=1e-6)


def test_other_programs_chunks_are_read_over(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, np.arange(100, dtype=np.int16))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "b.wav").write_bytes(whole + b"LIST\x04\0\0\0abcd")
    np.testing.assert_array_equal(audio.read_wav(tmp_path / "b.wav")[0], np.arange(100, dtype=np.float32) / 32768)


@pytest.mark.parametrize("keep", [0, 10, 43, 44, 100, 443])
def test_a_damaged_wav_file_is_named(tmp_path, keep):
    wavfile.write(tmp_path / "a.wav", 8000, np.zeros((100, 2), np.int16))
    (tmp_path / "a.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:keep])
    with pytest.raises(ValueError, match="a.wav is cut off or no wav file .*; copy or download it again"):
        audio.read_wav(tmp_path / "a.wav")
    with pytest.raises(FileNotFoundError, match="there is no file .*none.wav"):
        audio.read_wav(tmp_path / "none.wav")


def test_whatever_a_headers_fields_say_is_read_or_refused_by_name(tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, 8000, np.arange(100, dtype=np.int16))
    whole = path.read_bytes()
    refused = 0
    for place in range(44):
        for value in (0, 1, 3, 255):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                waveform, rate = audio.read_wav(path)
                assert rate >= 1 and len(waveform) and np.isfinite(waveform).all()
            except ValueError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 50


def test_a_wav_without_sound_or_with_sound_that_is_no_number_is_named(tmp_path):
    for samples in (np.zeros(0, np.int16), np.array([0, np.nan], np.float32)):
        wavfile.write(tmp_path / "a.wav", 8000, samples)
        with pytest.raises(ValueError, match="a.wav is cut off or no wav file"):
            audio.read_wav(tmp_path / "a.wav")


def test_a_cut_off_wav_is_seen_though_its_whole_length_is_damaged_too(tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, np.arange(100, dtype=np.int16))
    whole = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(whole[:4] + b"\x10\0\0\0" + whole[8:100])
    with pytest.raises(ValueError, match="a.wav is cut off"):
        audio.read_wav(tmp_path / "a.wav")
