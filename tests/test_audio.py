"Recordings: whole files are read, incomplete ones refused; decoded audio stays what was decoded."
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from scipy.signal import resample_poly

from cdser.audio import SHORTEST, decode_each, decoded, in_threads, load_audio, read_audio, read_each, resample
from cdser.audio_store import open_store
from cdser.config import SAMPLE_RATE, BadInput

FORMATS = {'wav': ('WAV', 'PCM_16'), 'float.wav': ('WAV', 'FLOAT'), 'wavex.wav': ('WAVEX', 'PCM_24'),
           'flac': ('FLAC', 'PCM_16'), '24.flac': ('FLAC', 'PCM_24'), '8.flac': ('FLAC', 'PCM_S8'),
           'ogg': ('OGG', 'VORBIS'), 'opus': ('OGG', 'OPUS'), 'mp3': ('MP3', 'MPEG_LAYER_III')}
LOSSY = {'ogg', 'opus', 'mp3'}


def voice(seconds: float = 3., rate: int = SAMPLE_RATE, seed: int = 0) -> np.ndarray:
    t = np.arange(round(seconds * rate)) / rate
    return .3 * np.sin(2 * np.pi * 220 * t) + .01 * np.random.default_rng(seed).normal(size=len(t))


def write(folder: Path, name: str, samples: np.ndarray | None = None, rate: int = SAMPLE_RATE) -> Path:
    format, subtype = FORMATS[name]
    path = folder / f'a.{name}'
    sf.write(path, voice() if samples is None else samples, rate, format=format, subtype=subtype)
    return path


def refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(BadInput, match=match) as err:
        read_audio(path)
    assert str(err.value).startswith(str(path)) and str(err.value).isprintable() and len(str(err.value)) < 500


@pytest.mark.parametrize('name', FORMATS)
def test_a_whole_recording_is_read_and_is_what_the_decoder_says(tmp_path, name):
    path = write(tmp_path, name, np.stack([voice(), .5 * voice()], 1))
    samples, rate = read_audio(path)
    expected = sf.read(path, dtype='float32', always_2d=True)[0].mean(1)
    assert samples.dtype == np.float32 and rate == (48_000 if name == 'opus' else SAMPLE_RATE) or rate == SAMPLE_RATE
    assert np.allclose(samples, expected, atol=1e-3 if name in LOSSY else 0) and len(samples) == len(expected)


@pytest.mark.parametrize('share', [.1, .5, .9, .99])
@pytest.mark.parametrize('name', FORMATS)
def test_a_recording_that_is_cut_is_refused(tmp_path, name, share):
    path = write(tmp_path, name)
    raw = path.read_bytes()
    path.write_bytes(raw[:int(share * len(raw))])
    refused(path)


@pytest.mark.parametrize('name', FORMATS)
def test_two_joined_recordings_are_refused(tmp_path, name):
    path = write(tmp_path, name)
    first = path.read_bytes()
    for second in (first, write(tmp_path, name, voice(1., seed=1)).read_bytes()):
        path.write_bytes(first + second)
        refused(path)


@pytest.mark.parametrize('name', ['flac', '24.flac', 'ogg', 'opus'])
def test_a_recording_that_was_damaged_in_the_middle_is_refused(tmp_path, name):
    path = write(tmp_path, name)
    raw = path.read_bytes()
    for at in np.random.default_rng(0).integers(len(raw) // 4, len(raw) - 100, size=8):
        flipped = bytes([raw[at] ^ 16]) + raw[at + 1:at + 60]
        for middle in (flipped, b'', bytes(60)):
            path.write_bytes(raw[:at] + middle + raw[at + 60:])
            refused(path)


def wav_of_length(raw: bytes, length: int) -> bytes:
    at = raw.index(b'data') + 4
    return raw[:at] + length.to_bytes(4, 'little') + raw[at + 4:]


@pytest.mark.parametrize('length', [0, 2**32 - 1, 2**31 - 1, 2**31, 2**32 - 45])
def test_a_wav_file_from_a_pipe_is_read_to_its_end(tmp_path, length):
    path = write(tmp_path, 'wav')
    whole, raw = read_audio(path)[0], path.read_bytes()
    path.write_bytes(wav_of_length(raw, length))
    assert np.array_equal(read_audio(path)[0], whole)


@pytest.mark.parametrize('behind', [b'\n', b'\r\n', b'abc', b'LIST\4\0\0\0abcd', b'LIST\3\0\0\0abc\0',
                                    bytes(5000), b'id3 \x08\0\0\0' + bytes(8)])
def test_a_wav_file_with_something_harmless_behind_its_audio_is_read(tmp_path, behind):
    path = write(tmp_path, 'wav')
    whole = read_audio(path)[0]
    path.write_bytes(path.read_bytes() + behind)
    assert np.array_equal(read_audio(path)[0], whole)


def test_a_wav_file_whose_header_is_wrong_is_refused(tmp_path):
    path = write(tmp_path, 'wav')
    raw = path.read_bytes()
    for length, match in ((48_000, 'less than it holds'), (96_000 + 1000, 'truncated')):
        path.write_bytes(wav_of_length(raw, length))
        refused(path, match)


APE = b'APETAGEX' + (2000).to_bytes(4, 'little') + (732).to_bytes(4, 'little') + (1).to_bytes(4, 'little')
APE_HEADER, APE_FOOTER = (APE + flags.to_bytes(4, 'little') for flags in (2**31 + 2**29, 2**31))
TAGS = {'nothing': (b'', b''), # what stands before the audio, and behind it
        'ID3v2': (b'ID3\3\0\0\0\0\x0f\x76' + bytes(15 * 128 + 0x76), b''),
        'ID3v1': (b'', b'TAG' + bytes(125)),
        'APE': (b'', APE_HEADER + bytes(708) + APE_FOOTER + bytes(8))}


@pytest.mark.parametrize('tag', TAGS)
@pytest.mark.parametrize('head', [True, False])
def test_an_mp3_file_is_read_with_any_tag_and_without_a_head_that_says_its_length(tmp_path, tag, head):
    path = write(tmp_path, 'mp3') # of variable bit rate
    raw = path.read_bytes()
    assert b'Xing' in raw[:200] or b'Info' in raw[:200]
    if not head:
        raw = raw[raw.index(raw[:2], 4):]
    path.write_bytes(TAGS[tag][0] + raw + TAGS[tag][1])
    assert abs(len(read_audio(path)[0]) / SAMPLE_RATE - 3) < .2


def test_a_flac_file_of_unknown_length_is_read_and_one_cut_in_its_header_refused(tmp_path):
    path = write(tmp_path, 'flac')
    whole, raw = read_audio(path)[0], bytearray(path.read_bytes())
    raw[21] &= 0xf0
    raw[22:26], raw[26:42] = bytes(4), bytes(16) # no number of samples, no MD5
    path.write_bytes(raw)
    assert np.array_equal(read_audio(path)[0], whole)
    path.write_bytes(raw[:4] + b'\0\0\0\x22' + raw[8:42] + b'\x84\0\0\x64comments that break o')
    refused(path, 'cannot be decoded')


def test_a_header_that_claims_days_takes_no_memory(tmp_path):
    path = write(tmp_path, 'flac')
    raw = bytearray(path.read_bytes())
    raw[22:26] = b'\xff\xff\xff\xff'
    path.write_bytes(raw)
    refused(path, 'more than an hour')


@pytest.mark.parametrize('make, match', [
    (lambda path: None, 'there is no such file'), (Path.touch, '0 bytes'), (Path.mkdir, 'there is no such file'),
    (os.mkfifo, 'there is no such file'), (lambda path: path.symlink_to('/dev/zero'), 'there is no such file'),
    (lambda path: path.write_text('not audio'), 'Format not recognised'),
    (lambda path: path.write_bytes(b'\xff'), 'Format not recognised'),
    (lambda path: sf.write(path, voice(), 16_000, format='AIFF'), 'AIFF.*convert it to WAV or FLAC'),
    (lambda path: sf.write(path, voice(), 16_000, format='RF64'), 'RF64.*convert it to WAV or FLAC'),
    (lambda path: sf.write(path, voice(), 1000, format='WAV'), 'its header says 1000 Hz'),
    (lambda path: sf.write(path, np.zeros(0), 16_000, format='WAV'), 'holds no samples')])
def test_what_is_not_a_recording_is_one_error_that_names_it(tmp_path, make, match):
    make(tmp_path / 'odd\n.wav')
    with pytest.raises(BadInput, match=match) as err:
        read_audio(tmp_path / 'odd\n.wav')
    assert str(err.value).isprintable()


@pytest.mark.parametrize('samples, match', [
    (np.where(np.arange(16_000) == 99, np.nan, .1), 'not finite'),
    (np.where(np.arange(16_000) == 99, np.inf, .1), 'not finite'),
    (np.full(16_000, 1e6), 'not finite'), (np.full(16_000, 5e-5), 'is silent'), (voice(SHORTEST - .01), 'too short')])
def test_what_cannot_be_trained_on_is_refused(tmp_path, samples, match):
    with pytest.raises(BadInput, match=match):
        load_audio(write(tmp_path, 'float.wav', samples))


@pytest.mark.parametrize('scale', [1e-3, 20.])
def test_floating_point_audio_is_neither_clipped_nor_rounded(tmp_path, scale):
    samples = load_audio(write(tmp_path, 'float.wav', scale * voice()))
    assert np.array_equal(samples, (scale * voice()).astype(np.float32))


@pytest.mark.parametrize('rate', [8000, 15_999, 22_050, 24_414, 44_100, 192_000])
def test_any_rate_is_resampled_as_scipy_does(rate):
    samples, common = voice(1., rate).astype(np.float32), np.gcd(rate, SAMPLE_RATE)
    assert np.array_equal(resample(samples, rate), resample_poly(samples, SAMPLE_RATE // common, rate // common))


@pytest.mark.parametrize('name', ['wav', 'flac', 'mp3', 'ogg'])
def test_segments_are_the_samples_between_their_times(tmp_path, name):
    path = write(tmp_path, name)
    whole = load_audio(path)
    parts = decode_each(path, [(1, 2), (.5, 1), (2, 3), (0, 3)])
    for part, (start, end) in zip(parts, [(1, 2), (.5, 1), (2, 3), (0, 3)]):
        assert np.array_equal(part, whole[round(start * SAMPLE_RATE):round(end * SAMPLE_RATE)])
    assert 'ends behind the recording' in str(decode_each(path, [(2, 4)])[0])
    reading, = read_each(path, max_seconds=.5)
    assert np.array_equal(reading.samples, whole[:8000]) and abs(reading.seconds - 3) < .2


def test_all_bad_recordings_are_named_at_once_after_the_good_ones(tmp_path):
    good = write(tmp_path, 'wav')
    paths = [good, tmp_path / 'missing.wav', good, write(tmp_path, 'float.wav', np.zeros(16_000))]
    results = decoded(paths, None)
    assert len(next(results)) == len(next(results)) == 48_000
    message = '2 of 4 recordings cannot be used; .*missing.wav: there is no such file; .*is silent'
    with pytest.raises(BadInput, match=message):
        next(results)


def test_results_are_made_only_a_little_ahead_of_the_reader():
    made = []
    results = in_threads(made.append, range(1000), '')
    for _ in range(3):
        next(results)
    assert len(made) < 100
    results.close()


# ---- decoded once

@pytest.fixture
def paths(tmp_path) -> list[Path]:
    flac = write(tmp_path, 'flac', voice(2., 44_100, seed=1), 44_100)
    return [write(tmp_path, 'wav'), flac, write(tmp_path, 'opus')]


def test_a_store_holds_what_was_decoded_and_is_not_made_again(tmp_path, paths):
    store = open_store(tmp_path / 'stores', paths)
    assert all(np.array_equal(store[i], load_audio(path)) for i, path in enumerate(paths))
    before = {file: file.stat().st_mtime_ns for file in store.folder.iterdir()}
    again = open_store(tmp_path / 'stores', paths)
    assert again.folder == store.folder
    assert before == {file: file.stat().st_mtime_ns for file in again.folder.iterdir()}
    copy = pickle.loads(pickle.dumps(store)) # noqa: S301 (as joblib does for a worker)
    assert np.array_equal(copy[1], store[1]) and copy.lengths.tolist() == store.lengths.tolist()


def test_equal_samples_are_one_content_in_whatever_format(tmp_path, paths):
    sf.write(tmp_path / 'copy.flac', sf.read(paths[0], dtype='int16')[0], SAMPLE_RATE)
    sf.write(tmp_path / 'copy.wav', sf.read(paths[0], dtype='float32')[0], SAMPLE_RATE, subtype='FLOAT')
    copies = [tmp_path / 'copy.flac', tmp_path / 'copy.wav']
    contents = open_store(tmp_path / 'stores', [paths[0], *copies, paths[1]]).contents
    assert contents[0] == contents[1] == contents[2] != contents[3]


@pytest.mark.parametrize('change', [dict(max_seconds=.5), dict(segments=np.array([[0, 1], [np.nan] * 2, [.5, 1.5]]))])
def test_another_limit_or_other_segments_are_another_store(tmp_path, paths, change):
    store, changed = open_store(tmp_path / 'stores', paths), open_store(tmp_path / 'stores', paths, **change)
    assert changed.folder != store.folder and changed.lengths.tolist() != store.lengths.tolist()


def test_a_replaced_recording_of_the_same_size_and_date_is_another_store(tmp_path, paths):
    store, times = open_store(tmp_path / 'stores', paths), os.stat(paths[0])
    sf.write(paths[0], voice(seed=5), SAMPLE_RATE)
    os.utime(paths[0], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(paths[0]).st_size == times.st_size
    assert open_store(tmp_path / 'stores', paths).folder != store.folder


def test_a_recording_that_changes_while_it_is_decoded_is_an_error(tmp_path, paths, monkeypatch):
    def decode_and_change(*args, real=decoded):
        yield from real(*args)
        sf.write(paths[0], voice(seed=6), SAMPLE_RATE)
    monkeypatch.setattr('cdser.audio_store.decoded', decode_and_change)
    with pytest.raises(BadInput, match='changed while they were read'):
        open_store(tmp_path / 'stores', paths)
    assert not [path for path in (tmp_path / 'stores').iterdir() if not path.name.startswith('.')]


@pytest.mark.parametrize('name', ['samples', 'store.json'])
@pytest.mark.parametrize('how', [
    lambda raw: raw[:50] + bytes([raw[50] ^ 1]) + raw[51:], lambda raw: raw[:-4], lambda raw: b'',
    lambda raw: bytes(len(raw)), lambda raw: b'[]'])
def test_a_damaged_store_is_one_error_and_can_be_made_again(tmp_path, paths, name, how):
    folder = open_store(tmp_path / 'stores', paths).folder
    (folder / name).write_bytes(how((folder / name).read_bytes()))
    with pytest.raises(BadInput, match='cannot be used .*; remove this folder, it is decoded again'):
        open_store(tmp_path / 'stores', paths)
    shutil.rmtree(folder)
    assert len(open_store(tmp_path / 'stores', paths)) == 3


def test_a_store_under_the_name_of_another_is_refused(tmp_path, paths):
    store, smaller = open_store(tmp_path / 'stores', paths), open_store(tmp_path / 'stores', paths[:2])
    shutil.rmtree(store.folder)
    shutil.copytree(smaller.folder, store.folder)
    with pytest.raises(BadInput, match='cannot be used'):
        open_store(tmp_path / 'stores', paths)


@pytest.mark.parametrize('arguments, match', [
    (dict(max_seconds=0), 'max_seconds: 0 is invalid'), (dict(max_seconds=float('nan')), 'max_seconds'),
    (dict(segments=np.array([[1., 0.]] * 3)), 'row 0: .*0 <= start < end'),
    (dict(segments=np.array([[np.nan, 1.]] * 3)), 'row 0'),
    (dict(paths=[]), 'there are no recordings')])
def test_invalid_arguments_are_found_before_the_work(tmp_path, paths, arguments, match):
    with pytest.raises(BadInput, match=match):
        open_store(tmp_path / 'stores', **{'paths': paths, **arguments})


def opened(folder: Path, paths: list[Path], results) -> None:
    results.put(open_store(folder, paths).folder)


def test_processes_that_want_the_same_store_make_it_once(tmp_path, paths):
    context = multiprocessing.get_context('fork')
    results = context.Queue()
    processes = [context.Process(target=opened, args=(tmp_path / 'stores', paths, results)) for _ in range(4)]
    for process in processes:
        process.start()
    folders = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(folders) == 1 and [path.name for path in (tmp_path / 'stores').glob('[!.]*')] == [folders.pop().name]


def test_every_real_recording_is_read(real_corpora):
    suffixes = {'.wav', '.flac', '.opus', '.ogg', '.mp3'}
    files = sorted(path for path in real_corpora.rglob('*') if path.suffix in suffixes)
    assert files and all(len(samples) for samples in decoded(files[::10], None))
