"Recordings are read whole or refused; a store holds exactly what its name says, or is refused; nothing is left at work."
import io
import json
import math
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import cdser.audio
import cdser.files
import cdser.intact
from cdser.audio import AudioStore, as_float, decode, decode_each, decoded, in_threads, load_audio, open_store, read_recording, resample, store_key
from cdser.config import BadInput

RATE = 16_000
KINDS = {'wav': ('WAV', 'PCM_16'), 'float.wav': ('WAV', 'FLOAT'), 'rf64.wav': ('RF64', 'PCM_16'), 'wavex.wav': ('WAVEX', 'PCM_24'), 'w64': ('W64', 'PCM_16'),
         'aiff': ('AIFF', 'PCM_16'), 'au': ('AU', 'PCM_16'), 'caf': ('CAF', 'PCM_16'), 'alac.caf': ('CAF', 'ALAC_16'), 'sph': ('NIST', 'PCM_16'),
         'flac': ('FLAC', 'PCM_16'), '24.flac': ('FLAC', 'PCM_24'), 'ogg': ('OGG', 'VORBIS'), 'opus': ('OGG', 'OPUS'), 'mp3': ('MP3', 'MPEG_LAYER_III')}


def sound(seconds: float = 3., seed: int = 0, rate: int = RATE) -> np.ndarray: # (samples,) float32
    t = np.arange(round(seconds * rate)) / rate
    return (.2 * np.sin(2 * np.pi * (120 + 30 * t) * t) + np.random.default_rng(seed).normal(0, .02, len(t))).astype(np.float32)


def file_of(kind: str, samples: np.ndarray, rate: int = RATE) -> bytes:
    held = io.BytesIO()
    sf.write(held, samples, rate, format=KINDS[kind][0], subtype=KINDS[kind][1])
    return held.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(path: Path) -> str:
    "The one line with which a recording is refused."
    with pytest.raises(BadInput) as err: load_audio(path)
    assert str(path) in str(err.value) and '\n' not in str(err.value)
    return str(err.value)


# ---- whole or refused

@pytest.mark.parametrize('kind', KINDS)
def test_a_whole_recording_is_read_and_every_lesser_or_longer_one_refused(kind, tmp_path):
    whole, rng = file_of(kind, sound()), np.random.default_rng(len(kind))
    heard = load_audio(put(tmp_path / f'a.{kind}', whole))
    with sf.SoundFile(tmp_path / f'a.{kind}') as file: plain = file.read(dtype='float32')
    assert np.array_equal(heard, plain) and len(heard) == 3 * RATE
    for end in [*rng.integers(len(whole) // 50, len(whole) - 70, 25), len(whole) - 70]: # some bytes of a pad or a tag at the very end may go
        if kind == 'alac.caf' and end > len(whole) - 200: continue # only the table of its packets is cut
        assert 'holds no samples' not in refused(put(tmp_path / f'cut.{kind}', whole[:end]))
    refused(put(tmp_path / f'twice.{kind}', whole + whole))
    refused(put(tmp_path / f'two.{kind}', whole + file_of(kind, sound(2., 1))))
    refused(put(tmp_path / f'junk.{kind}', whole + rng.bytes(999)))
    assert np.array_equal(load_audio(put(tmp_path / f'padded.{kind}', whole + bytes(512))), plain)


@pytest.mark.parametrize('kind', ['flac', '24.flac', 'ogg', 'opus', 'mp3'])
def test_a_hole_in_the_middle_is_found(kind, tmp_path):
    whole, rng = file_of(kind, sound()), np.random.default_rng(0)
    for at in rng.integers(len(whole) // 5, len(whole) - 5000, 25):
        refused(put(tmp_path / f'a.{kind}', whole[:at] + rng.bytes(512) + whole[at + 512:]))
        refused(put(tmp_path / f'a.{kind}', whole[:at] + whole[at + 4096:]))


@pytest.mark.parametrize('kind', ['flac', '24.flac'])
def test_frames_of_a_flac_are_all_there_once_and_in_order(kind, tmp_path):
    whole = file_of(kind, sound(8.))
    at = [place for place, *_ in cdser.intact.flac_frames(io.BytesIO(whole), 42, len(whole), 4096)]
    frames = [whole[begin:end] for begin, end in zip(at, [*at[1:], len(whole)])]
    assert len(frames) == 32
    def read(*order): return load_audio(put(tmp_path / f'a.{kind}', whole[:at[0]] + b''.join(frames[i] for i in order)))
    assert len(read(*range(32))) == 8 * RATE
    orders = {'one is missing': [*range(9), *range(10, 32)], 'half is missing': [*range(8), *range(24, 32)], 'the first is missing': range(1, 32),
              'the last alone': [31], 'swapped': [0, 2, 1, *range(3, 32)], 'twice': [0, 1, 1, *range(2, 32)], 'moved': [0, 9, *range(1, 9), *range(10, 32)],
              'an extra one': [0, 9, *range(1, 32)], 'an extra one first': [5, *range(32)], 'an extra one late': [*range(31), 5, 31],
              'backwards': [*range(31)][::-1] + [31]}
    for order in orders.values():
        with pytest.raises(BadInput, match='damaged near byte'): read(*order)


def test_frames_may_be_numbered_by_their_first_samples(tmp_path):
    whole = file_of('flac', sound(8.))
    at = [place for place, *_ in cdser.intact.flac_frames(io.BytesIO(whole), 42, len(whole), 4096)]
    def numbered(frame, first): # as in a file whose frames may differ in length
        number = 0xf0_80_80_80 | first >> 18 << 24 | (first >> 12 & 63) << 16 | (first >> 6 & 63) << 8 | first & 63
        head, check = b'\xff\xf9' + frame[2:4] + number.to_bytes(4, 'big'), 0
        size = {6: 1, 7: 2}.get(frame[2] >> 4, 0)
        head += frame[5:5 + size]
        for byte in head: check = cdser.intact.CRC8[check ^ byte]
        body = head + bytes([check]) + frame[5 + size + 1:-2]
        return body + cdser.intact.crc16(body).to_bytes(2, 'big')
    frames = [numbered(whole[begin:end], 4096 * i) for i, (begin, end) in enumerate(zip(at, [*at[1:], len(whole)]))]
    plain = load_audio(put(tmp_path / 'a.flac', whole))
    assert np.array_equal(load_audio(put(tmp_path / 'b.flac', whole[:at[0]] + b''.join(frames))), plain)
    for order in (frames[:9] + frames[20:], frames[:3] + frames[2:], [*frames[:5], frames[6], frames[5], *frames[7:]]):
        with pytest.raises(BadInput, match='damaged near byte'): load_audio(put(tmp_path / 'c.flac', whole[:at[0]] + b''.join(order)))


def test_what_looks_like_a_frame_within_one_does_not_matter(tmp_path):
    whole = file_of('flac', np.random.default_rng(0).uniform(-1, 1, 60 * RATE).astype(np.float32), RATE) # noise: frames of plain samples
    at = [place for place, *_ in cdser.intact.flac_frames(io.BytesIO(whole), 42, len(whole), 4096)]
    head, begin, end = whole[at[3]:at[3] + 6], at[5] + 1000, at[6] - 2
    mended = whole[:begin] + head + whole[begin + 6:end] # the header of the fourth frame, among the samples of the sixth
    mended += cdser.intact.crc16(mended[at[5]:]).to_bytes(2, 'big') + whole[end + 2:]
    assert len(list(cdser.intact.flac_frames(io.BytesIO(mended), 42, len(mended), 4096))) == len(at) + 1
    assert len(load_audio(put(tmp_path / 'a.flac', mended))) == 60 * RATE


def test_what_is_said_names_the_fault(tmp_path):
    for kind in ('wav', 'aiff', 'ogg', 'opus', 'mp3', 'flac'):
        whole = file_of(kind, sound())
        assert 'truncated' in refused(put(tmp_path / 'a', whole[:len(whole) // 2]))
        assert 'second recording' in refused(put(tmp_path / 'a', whole + whole))
    assert 'is VOC (Creative Labs); convert it to WAV or FLAC' in refused(_written(tmp_path / 'a', 'VOC'))
    assert 'convert it to WAV or FLAC' in refused(_written(tmp_path / 'a', 'IRCAM'))


def _written(path: Path, format: str) -> Path:
    sf.write(path, sound(), RATE, format=format)
    return path


SIZES = {'wav': ('<I', b'data', 4), 'rf64.wav': ('<Q', b'ds64', 16), 'w64': ('<Q', b'data\xf3', 16), 'aiff': ('>I', b'SSND', 4), 'au': ('>I', b'.snd', 8),
         'caf': ('>q', b'data', 4)} # how a container says how long its audio is: field, a mark, bytes from there


@pytest.mark.parametrize('kind', SIZES)
def test_a_header_that_is_off_by_padding_or_was_never_closed_loses_nothing(kind, tmp_path):
    whole, (field, mark, beyond) = file_of(kind, sound()), SIZES[kind]
    at, plain = whole.index(mark) + beyond, sound()
    size, = struct.unpack_from(field, whole, at)
    plain = load_audio(put(tmp_path / 'a', whole))
    for claimed in (size + 1, size + 2, 0, struct.unpack(field, b'\xff' * struct.calcsize(field))[0]):
        content = bytearray(whole)
        struct.pack_into(field, content, at, claimed)
        heard = load_audio(put(tmp_path / 'a', content))
        assert np.array_equal(heard[:len(plain)], plain) and len(heard) - len(plain) in range(3), claimed
    for claimed in (size // 2 & ~7, size + 4000):
        content = bytearray(whole)
        struct.pack_into(field, content, at, claimed)
        refused(put(tmp_path / 'a', content))


def test_a_miscounted_wav_is_read_and_one_that_lost_its_end_is_not(tmp_path):
    whole = file_of('wav', sound())
    for more in (8, 36, 44): # the length of a header, added by mistake: the file is as long as it says
        assert len(load_audio(put(tmp_path / 'a', whole[:40] + struct.pack('<I', 96_000 + more) + whole[44:]))) == 3 * RATE
    for lost in (4, 36, 44): assert 'truncated' in refused(put(tmp_path / 'a', whole[:-lost]))


def test_chunks_and_tags_behind_the_audio_do_not_matter(tmp_path):
    chunk = b'LIST' + struct.pack('<I', 30) + b'INFOISFT' + bytes(22)
    tags = {'wav': (chunk, b'id3 \x05\0\0\0abcde\0', b'bext' + struct.pack('<I', 9) + bytes(9)), 'flac': (b'TAG' + bytes(125),),
            'mp3': (b'TAG' + bytes(125), b'APETAGEX' + struct.pack('<4I8x', 2000, 32, 0, 0), bytes(300) + b'TAG' + bytes(125))}
    for kind, all_of_them in tags.items():
        whole = file_of(kind, sound())
        plain = load_audio(put(tmp_path / 'a', whole))
        for tag in all_of_them: assert np.array_equal(load_audio(put(tmp_path / 'a', whole + tag)), plain)
        front = b'ID3\4\0\0\0\0\0\x20' + bytes(32)
        if kind != 'wav': assert np.array_equal(load_audio(put(tmp_path / 'a', front + whole)), plain)


def test_a_pad_that_was_forgotten_does_not_matter(tmp_path):
    held = io.BytesIO()
    sf.write(held, sound()[:-1], RATE, format='WAV', subtype='PCM_U8')
    whole, chunk = held.getvalue()[:44 + 47_999], b'LIST' + struct.pack('<I', 30) + b'INFOISFT' + bytes(22)
    for content in (whole, whole + bytes(1), whole + chunk, whole + bytes(1) + chunk):
        assert len(load_audio(put(tmp_path / 'a.wav', content))) == 47_999


def test_an_mp3_without_a_count_is_read_to_its_end(tmp_path):
    quiet = np.concatenate([np.random.default_rng(0).normal(0, .2, 5 * RATE), .001 * sound(20.)]).astype(np.float32)
    held = io.BytesIO()
    sf.write(held, quiet, RATE, format='MP3', bitrate_mode='VARIABLE')
    whole = held.getvalue()
    first = cdser.intact.mpeg_frame(whole[:4])[0]
    assert b'Xing' in whole[:first] and sf.info(put(tmp_path / 'a.mp3', whole[first:])).frames < 10 * RATE # where the decoder would stop
    assert abs(len(load_audio(tmp_path / 'a.mp3')) - 25 * RATE) < 2000


def test_a_flac_that_claims_less_than_it_holds_is_refused(tmp_path):
    whole = file_of('flac', sound())
    assert 'header says 24,000' in refused(put(tmp_path / 'a', whole[:22] + struct.pack('>I', 24_000) + whole[26:]))
    assert len(load_audio(put(tmp_path / 'a', whole[:22] + bytes(4) + whole[26:]))) == 3 * RATE # a stream does not say


def test_opus_streams_side_by_side_or_cut_at_a_page_are_refused(tmp_path):
    pages = re.split(b'(?=OggS)', file_of('opus', sound()))[1:]
    assert 'truncated' in refused(put(tmp_path / 'a', b''.join(pages[:-1])))
    assert 'damaged' in refused(put(tmp_path / 'a', b''.join(pages[:3] + pages[4:])))
    others = re.split(b'(?=OggS)', file_of('opus', sound(2., 1)))[1:]
    assert 'side by side' in refused(put(tmp_path / 'a', pages[0] + others[0] + b''.join(pages[1:] + others[1:])))


# ---- exact, and in pieces

@pytest.mark.parametrize('subtype', ['PCM_16', 'PCM_24', 'PCM_U8', 'FLOAT', 'DOUBLE', 'ULAW'])
def test_every_sample_is_kept(subtype, tmp_path):
    scale = 3 if subtype in ('FLOAT', 'DOUBLE') else 1
    sf.write(tmp_path / 'a.wav', scale * sound(), RATE, subtype=subtype)
    samples = decode(tmp_path / 'a.wav')
    store = open_store(tmp_path / 'stores', [tmp_path / 'a.wav'])
    assert samples.dtype == (np.int16 if subtype == 'PCM_16' else np.float32) == store[0].dtype
    for kept in (samples, store[0]): assert np.array_equal(as_float(kept), sf.read(tmp_path / 'a.wav', dtype='float32')[0])
    assert scale == 1 or np.abs(store[0]).max() > .6


def test_quiet_recordings_keep_their_shape(tmp_path):
    x = 1.5e-4 * sound() / np.abs(sound()).max()
    sf.write(tmp_path / 'a.wav', x, RATE, subtype='FLOAT')
    assert np.array_equal(decode(tmp_path / 'a.wav'), x)


def test_channels_are_averaged_without_rounding(tmp_path):
    both = np.stack([sound(), sound(seed=1)], 1)
    sf.write(tmp_path / 'a.wav', both, RATE)
    assert np.array_equal(decode(tmp_path / 'a.wav'), sf.read(tmp_path / 'a.wav', dtype='float32')[0].mean(1))


@pytest.mark.parametrize('rate', [8_000, 15_999, 22_050, 44_100, 192_000])
@pytest.mark.parametrize('channels', [1, 3])
def test_in_pieces_a_recording_is_what_it_is_in_one(rate, channels, tmp_path, monkeypatch):
    x = sound(4., rate=rate)
    sf.write(tmp_path / 'a.wav', np.stack([x * (k + 1) / 3 for k in range(channels)], 1), rate, subtype='FLOAT')
    plain = sf.read(tmp_path / 'a.wav', dtype='float32', always_2d=True)[0]
    plain = resample(plain.mean(1) if channels > 1 else plain[:, 0], rate)
    assert np.array_equal(load_audio(tmp_path / 'a.wav'), plain)
    monkeypatch.setattr(cdser.audio, 'BLOCK', 10_007)
    assert np.array_equal(load_audio(tmp_path / 'a.wav'), plain)
    assert np.array_equal(load_audio(tmp_path / 'a.wav', 1.5), load_audio(tmp_path / 'a.wav')[:24_000]) or rate != RATE


def test_codecs_do_not_begin_anew_between_blocks(tmp_path, monkeypatch):
    for kind in ('mp3', 'opus', 'ogg', 'flac'):
        path = put(tmp_path / kind, file_of(kind, sound()))
        before = load_audio(path)
        with monkeypatch.context() as patch:
            patch.setattr(cdser.audio, 'BLOCK', 5_003)
            assert np.array_equal(load_audio(path), before), kind


def test_memory_does_not_grow_with_rate_or_channels(tmp_path):
    with sf.SoundFile(tmp_path / 'a.wav', 'w', 192_000, 2) as file:
        for i in range(30): file.write(np.repeat(sound(2., i, 192_000)[:, None], 2, 1)) # a minute: 46 MB of samples, 92 MB as float32
    tracemalloc.start()
    try:
        samples = decode(tmp_path / 'a.wav')
        peak = tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert len(samples) == 60 * RATE and peak < 40e6


# ---- segments

@pytest.mark.parametrize('kind', ['wav', 'flac', 'mp3', 'opus', 'ogg', 'aiff'])
def test_a_segment_is_its_part_of_the_whole(kind, tmp_path):
    path = put(tmp_path / f'a.{kind}', file_of(kind, sound(6.)))
    whole = decode(path)
    wanted = [(0., 1.), (2.5, 4.), (1.25, 3.), (math.nan, math.nan), (5., 6.)]
    store = open_store(tmp_path / 'stores', [path] * 5, segments=wanted)
    for i, (start, end) in enumerate(wanted):
        part = whole if math.isnan(start) else whole[round(start * RATE):round(end * RATE)]
        assert np.array_equal(store[i], part), i
    assert open_store(tmp_path / 'stores', [path] * 5, 1, segments=wanted).lengths.tolist() == [RATE] * 5


@pytest.mark.parametrize('kind', ['wav', 'flac'])
def test_many_segments_of_a_long_recording_do_not_decode_it_each_time(kind, tmp_path, monkeypatch):
    path, read = put(tmp_path / f'a.{kind}', file_of(kind, sound(60.))), []
    forward = cdser.audio.Forward.read
    def counted(self, frames, dtype='float32'):
        block = forward(self, frames, dtype)
        read.append(len(block))
        return block
    monkeypatch.setattr(cdser.audio.Forward, 'read', counted)
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 59, 100)
    store = open_store(tmp_path / 'stores', [path] * 100, segments=np.stack([starts, starts + .5], 1))
    assert set(store.lengths) <= {7_999, 8_000, 8_001} and sum(read) <= 100 * 8_001


@pytest.mark.parametrize('segment, message', [((2, 9), 'the segment from 2 to 9 s ends behind the recording, which lasts 3 s'), ((2, 2), 'ends before it begins'),
                                              ((2, 1), 'ends before it begins'), ((-1, 2), 'begins before the recording'), ((0, math.inf), 'is not finite'),
                                              ((1, math.nan), 'has a start or an end alone'), ((3.5, 4), 'which lasts 3 s')])
def test_a_segment_that_is_not_there_is_refused(segment, message, tmp_path):
    path = put(tmp_path / 'a.wav', file_of('wav', sound()))
    with pytest.raises(BadInput) as err: open_store(tmp_path / 'stores', [path, path], segments=[(0, 1), segment])
    assert message in str(err.value) and str(path) in str(err.value) and '\n' not in str(err.value)
    assert not [place for place in (tmp_path / 'stores').glob('*') if place.name not in ('claims', 'digests')]


def test_an_end_that_was_rounded_up_is_the_end(tmp_path):
    path = put(tmp_path / 'a.wav', file_of('wav', sound()[:-40]))
    assert open_store(tmp_path / 'stores', [path], segments=[(2, 3)]).lengths.tolist() == [RATE - 40]


@pytest.mark.parametrize('segments', [[(0, 1)], 'ab', [(0, 1, 2)] * 2, [('x', 1)] * 2])
def test_segments_of_another_shape_are_refused(segments, tmp_path):
    path = put(tmp_path / 'a.wav', file_of('wav', sound()))
    with pytest.raises(BadInput, match='segments: expected'): open_store(tmp_path / 'stores', [path] * 2, segments=segments)


# ---- stores

@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return [put(tmp_path / f'{i}.wav', file_of(('wav', 'float.wav')[i % 2], sound(1 + i / 4, i))) for i in range(4)]


def stores_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob('*') if path.name not in ('claims', 'digests'))


def test_each_wish_has_a_store_of_its_own_and_none_is_changed(paths, tmp_path):
    wishes = [dict(), dict(max_seconds=1), dict(max_seconds=.5), dict(segments=[(0, .5)] * 4), dict(segments=[(0, .5)] * 4, max_seconds=.25)]
    stores = [open_store(tmp_path / 'stores', paths, **wish) for wish in wishes]
    kept = [[store[i].copy() for i in range(4)] for store in stores]
    contents = lambda: {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / 'stores').glob('[0-9a-f]*/*')}
    before = contents()
    stores += [open_store(tmp_path / 'stores', paths[::-1]), open_store(tmp_path / 'stores', paths[:2])]
    assert len({store.folder for store in stores}) == 7 and stores[2].digest == stores[3].digest # two wishes that come to the same
    for store, samples in zip(stores, kept): assert all(np.array_equal(store[i], samples[i]) for i in range(4))
    assert all(contents()[path] == found for path, found in before.items())


def test_equal_wishes_are_one_store(paths, tmp_path):
    first = open_store(tmp_path / 'stores', paths, 1)
    for same in (1., np.float32(1), np.int64(1)): assert open_store(tmp_path / 'stores', paths, same).folder == first.folder
    nothing = [(math.nan, math.nan)] * 4
    assert open_store(tmp_path / 'stores', paths, 1, nothing).folder == first.folder
    moved = [path.rename(path.with_name(f'moved_{path.name}')) for path in paths] # names are no content
    assert open_store(tmp_path / 'stores', moved, 1).folder == first.folder and stores_in(tmp_path / 'stores') == [first.folder.name]


def test_known_digests_are_believed_and_checked_before_anything_is_decoded(paths, tmp_path):
    digests = cdser.files.content_digests(paths)
    store = open_store(tmp_path / 'stores', paths, digests=digests)
    assert store.folder.name == store_key(digests) and open_store(tmp_path / 'stores', paths).folder == store.folder
    with pytest.raises(BadInput, match=f'{paths[0]}: changed while it was read'): open_store(tmp_path / 'stores', paths, digests=digests[::-1])
    with pytest.raises(BadInput, match=f'1 of 4 .*{paths[1]}'): open_store(tmp_path / 'stores', paths, digests=[digests[0], '', *digests[2:]])


def test_recordings_that_vanished_are_named_in_one_line(paths, tmp_path):
    open_store(tmp_path / 'stores', paths)
    for path in paths[1:3]: path.unlink()
    with pytest.raises(BadInput, match='2 of 4 recordings: there is no such file') as err: open_store(tmp_path / 'stores', paths)
    assert all(str(path) in str(err.value) for path in paths[1:3]) and '\n' not in str(err.value)


@pytest.mark.parametrize('value', [0, -1, math.nan, math.inf, True, 'ten', .01, [1]])
def test_a_limit_is_a_number_of_seconds(value, paths, tmp_path):
    with pytest.raises(BadInput, match='max_seconds'): open_store(tmp_path / 'stores', paths, value)


SPOILT = {'flipped': lambda content: content[:len(content) // 2] + bytes([content[len(content) // 2] ^ 4]) + content[len(content) // 2 + 1:],
          'cut': lambda content: content[:-1], 'half': lambda content: content[:len(content) // 2], 'emptied': lambda content: b'',
          'zeroed': lambda content: bytes(len(content)), 'longer': lambda content: content + b'\0', 'no JSON': lambda content: b'{"format": ',
          'a list': lambda content: b'[]', 'a number': lambda content: b'1', 'null': lambda content: b'null', 'no facts': lambda content: b'{}',
          'wrong types': lambda content: b'{"format": "1", "key": [], "files": 3, "seal": null}', 'not UTF-8': lambda content: b'\xff\xfe\x00',
          'deep': lambda content: b'[' * 100_000}


@pytest.mark.parametrize('name', ['samples', 'index.npy', 'store.json'])
@pytest.mark.parametrize('how', SPOILT)
def test_a_damaged_store_is_one_error_that_names_the_file_and_nothing_is_removed(name, how, paths, tmp_path):
    store = open_store(tmp_path / 'stores', paths)
    file, kept = store.folder / name, os.stat(store.folder / name)
    file.write_bytes(SPOILT[how](file.read_bytes()))
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    spoilt = file.read_bytes()
    with pytest.raises(BadInput) as err: open_store(tmp_path / 'stores', paths)
    assert str(file) in str(err.value) and f'remove the folder {store.folder}' in str(err.value) and '\n' not in str(err.value)
    assert file.read_bytes() == spoilt
    shutil.rmtree(store.folder)
    assert open_store(tmp_path / 'stores', paths).digest == store.digest


def test_files_and_folders_of_other_stores_are_not_taken_for_its_own(paths, tmp_path):
    one, other = open_store(tmp_path / 'stores', paths), open_store(tmp_path / 'stores', paths[::-1])
    def swap(a, b):
        os.rename(a, tmp_path / 'aside')
        os.rename(b, a)
        os.rename(tmp_path / 'aside', b)
    assert (one.folder / 'samples').stat().st_size == (other.folder / 'samples').stat().st_size
    for what in ('samples', 'index.npy', '.'):
        swap(*(os.path.normpath(store.folder / what) for store in (one, other)))
        with pytest.raises(BadInput, match='remove the folder'): open_store(tmp_path / 'stores', paths)
        swap(*(os.path.normpath(store.folder / what) for store in (one, other)))
    (one.folder / 'samples').unlink()
    with pytest.raises(BadInput, match='samples: is missing'): open_store(tmp_path / 'stores', paths)
    shutil.rmtree(one.folder)
    one.folder.mkdir()
    with pytest.raises(BadInput, match='store.json: is missing'): open_store(tmp_path / 'stores', paths)


def resealed(store: AudioStore, **facts) -> None:
    "What a store says of itself, changed, under a right seal; None: the fact is not there."
    about = {name: fact for name, fact in (json.loads((store.folder / 'store.json').read_text()) | facts).items() if fact is not None}
    (store.folder / 'store.json').write_text(json.dumps({**about, 'seal': cdser.audio.seal(about)}))


@pytest.mark.parametrize('facts', [dict(files=['samples', 'index.npy']), dict(files=None), dict(files=3), dict(files='samples'), dict(files={}), dict(key=None),
                                   dict(key=[1]), dict(digest=None), dict(digest=7), dict(digest='x' * 12), dict(files=dict(samples=1)), dict(key='\ud800\n')])
def test_a_store_whose_facts_are_invalid_is_damaged_whatever_its_seal(facts, paths, tmp_path):
    store = open_store(tmp_path / 'stores', paths)
    resealed(store, **facts)
    with pytest.raises(BadInput, match=f'store.json: .*; remove the folder {store.folder}') as err: open_store(tmp_path / 'stores', paths)
    assert str(err.value).isprintable()


def saved(array, **how) -> bytes:
    held = io.BytesIO()
    np.save(held, array, **how)
    return held.getvalue()


def index_of(change) -> bytes:
    index = np.array([[0, 32_000, 72_000, 120_000], [16_000, 10_000, 12_000, 14_000], [2, 4, 2, 4], [1, 2, 3, 4]])
    change(index)
    return saved(index)


INDICES = {'another shape': saved(np.zeros((3, 4), np.int64)), 'one row': saved(np.zeros(4, np.int64)), 'a number': saved(np.int64(3)),
           'floats': saved(np.zeros((4, 4))), 'other bytes': saved(np.zeros((4, 4), '>i8')), 'none': saved(np.zeros((4, 0), np.int64)),
           'pickled': saved(np.array([[{}] * 4] * 4, object), allow_pickle=True), 'text': saved(np.full((4, 4), 'a')), 'junk': b'junk', 'nothing': b'',
           'huge': saved(np.zeros((4, 4), np.int64)).replace(b'(4, 4), }', b'(4, 2000000000000000000), }'), 'a zip': b'PK\3\4' + bytes(99),
           'fewer': saved(np.array([[0, 0], [16_000] * 2, [2, 2], [1, 2]])),
           'before': index_of(lambda index: np.put(index, 0, -4)), 'behind': index_of(lambda index: np.put(index, 3, 10**9)),
           'too long': index_of(lambda index: np.put(index, 4, 2**62)), 'empty': index_of(lambda index: np.put(index, 4, 0)),
           'a width': index_of(lambda index: np.put(index, 8, 0)), 'odd': index_of(lambda index: np.put(index, 1, 32_001))}


@pytest.mark.parametrize('how', INDICES)
def test_an_index_that_fits_no_samples_is_damaged_whatever_its_digest(how, paths, tmp_path):
    store = open_store(tmp_path / 'stores', paths)
    (store.folder / 'index.npy').write_bytes(INDICES[how])
    resealed(store, files={name: cdser.files.content_digest(store.folder / name) for name in ('samples', 'index.npy')})
    with pytest.raises(BadInput, match=f'index.npy: .*; remove the folder {store.folder}'): open_store(tmp_path / 'stores', paths)


NO_FILES = {'pipe': os.mkfifo, 'device': lambda path: path.symlink_to('/dev/zero'), 'folder': os.mkdir, 'loop': lambda path: path.symlink_to(path)}


@pytest.mark.parametrize('what', NO_FILES)
def test_a_claim_that_is_no_file_is_not_waited_for(what, paths, tmp_path):
    place = tmp_path / 'stores' / 'claims' / store_key(cdser.files.content_digests(paths))
    place.parent.mkdir(parents=True)
    NO_FILES[what](place)
    with pytest.raises(BadInput, match=f'{place}: is no file, so nobody holds this claim; remove it'): open_store(tmp_path / 'stores', paths)
    assert os.path.lexists(place)


@pytest.mark.parametrize('name', ['samples', 'index.npy', 'store.json', '../digests/{}.json'])
@pytest.mark.parametrize('what', NO_FILES)
def test_what_is_no_file_is_neither_waited_for_nor_read(name, what, paths, tmp_path):
    store = open_store(tmp_path / 'stores', paths)
    place = store.folder / name.format(store.folder.name)
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    NO_FILES[what](place)
    if name.startswith('..'): assert len(open_store(tmp_path / 'stores', paths)) == 4
    else:
        with pytest.raises(BadInput, match=f'{name}: .*; remove the folder {store.folder}'): open_store(tmp_path / 'stores', paths)


def test_kept_digests_that_are_none_are_made_again(paths, tmp_path):
    keep, digests = tmp_path / 'kept', cdser.files.content_digests(paths)
    stamped = cdser.files.stamp(paths[0])
    for kept in ([], 3, {str(paths[0]): []}, {str(paths[0]): 3}, {str(paths[0]): [*stamped, 4]}, {str(paths[0]): [*stamped, 'junk']}, {str(paths[0]): 'text'}):
        text = json.dumps(kept)
        keep.write_text(f'{cdser.files.hashlib.sha256(text.encode()).hexdigest()}\n{text}')
        assert cdser.files.content_digests(paths, keep) == digests


def test_equal_values_are_one_content_however_they_are_kept(tmp_path):
    samples = np.round(sound() * 2**15) / 2**15
    ways = {'a.wav': 'PCM_16', 'b.wav': 'PCM_24', 'c.wav': 'FLOAT', 'd.flac': 'PCM_16', 'e.flac': 'PCM_24', 'f.wav': 'DOUBLE'}
    for name, subtype in ways.items(): sf.write(tmp_path / name, samples, RATE, subtype=subtype)
    sf.write(tmp_path / 'g.wav', np.stack([samples, samples], 1), RATE, subtype='PCM_16')
    sf.write(tmp_path / 'h.wav', np.where(samples == 0, -0., samples), RATE, subtype='FLOAT')
    sf.write(tmp_path / 'other.wav', samples[::-1], RATE)
    store = open_store(tmp_path / 'stores', [tmp_path / name for name in (*ways, 'g.wav', 'h.wav', 'other.wav')])
    assert len(set(store.contents[:-1])) == 1 and store.contents[-1] != store.contents[0]


def test_a_store_of_a_newer_cdser_is_refused(paths, tmp_path):
    store = open_store(tmp_path / 'stores', paths)
    about = json.loads((store.folder / 'store.json').read_text())
    (store.folder / 'store.json').write_text(json.dumps({**about, 'format': 99}))
    with pytest.raises(BadInput, match=rf'store.json: was written by a newer cdser \(format 99, this one reads {cdser.audio.FORMAT}\)'): open_store(tmp_path / 'stores', paths)


def test_an_unchanged_store_is_not_read_again(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(cdser.files, 'SETTLED', 0)
    open_store(tmp_path / 'stores', paths)
    read = []
    monkeypatch.setattr(cdser.files, 'content_digest', lambda path: read.append(path))
    open_store(tmp_path / 'stores', paths)
    assert not read


def test_a_folder_that_cannot_be_written_to_serves_what_is_in_it(paths, tmp_path, monkeypatch):
    store = open_store(tmp_path / 'stores', paths)
    def no(*args, **kwargs): raise BadInput('read-only')
    for name in ('write_file',): monkeypatch.setattr(cdser.files, name, no)
    monkeypatch.setattr(cdser.audio, 'build_folder', no)
    monkeypatch.setattr(cdser.audio.Claim, 'take', no)
    assert open_store(tmp_path / 'stores', paths).digest == store.digest
    with pytest.raises(BadInput, match='read-only'): open_store(tmp_path / 'stores', paths, 1.)


def test_what_is_written_can_be_read_by_others(paths, tmp_path):
    before = os.umask(0o022)
    try: store = open_store(tmp_path / 'stores', paths)
    finally: os.umask(before)
    assert store.folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in store.folder.iterdir()} == {0o644}


def test_a_full_disk_is_one_error_and_leaves_nothing(paths, tmp_path, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(cdser.audio, 'write_samples', full)
    with pytest.raises(BadInput, match='cannot be written .No space left on device.; make room'): open_store(tmp_path / 'stores', paths)
    assert not stores_in(tmp_path / 'stores') and not list((tmp_path / 'stores' / 'claims').iterdir())


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_recording_that_changes_while_it_is_decoded_is_noticed(when, paths, tmp_path, monkeypatch):
    def meanwhile(path, segments, max_seconds):
        found = decode_each(path, segments, max_seconds) if when == 'after' else None
        if path == paths[2]:
            kept = os.stat(path)
            put(path, file_of('wav', sound(1.5, 77))) # of the same size
            os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        return found or decode_each(path, segments, max_seconds)
    with monkeypatch.context() as patch:
        patch.setattr(cdser.audio, 'decode_each', meanwhile)
        with pytest.raises(BadInput, match=f'{paths[2]}: changed while it was read'): open_store(tmp_path / 'stores', paths)
    assert not stores_in(tmp_path / 'stores')
    assert np.array_equal(open_store(tmp_path / 'stores', paths)[2], decode(paths[2]))


@pytest.mark.parametrize('how', ['renamed', 'linked', 'written'])
def test_a_recording_that_was_another_for_a_while_is_noticed(how, paths, tmp_path, monkeypatch):
    kept, link, other = tmp_path / 'kept.wav', tmp_path / 'link.wav', put(tmp_path / 'other.wav', file_of('wav', sound(1.5, 77)))
    link.symlink_to(paths[2])
    wanted = [*paths[:2], link if how == 'linked' else paths[2], paths[3]]
    def point(to):
        link.unlink()
        link.symlink_to(to)
    def meanwhile(path, segments, max_seconds):
        if path != wanted[2]: return decode_each(path, segments, max_seconds)
        content, found = path.read_bytes(), os.stat(path)
        if how == 'renamed':
            os.rename(path, kept)
            os.rename(other, path)
        if how == 'linked': point(other)
        if how == 'written': path.write_bytes(other.read_bytes())
        heard = decode_each(path, segments, max_seconds)
        if how == 'renamed': os.rename(kept, path)
        if how == 'linked': point(paths[2])
        if how == 'written': path.write_bytes(content)
        if how != 'linked': os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        return heard
    with monkeypatch.context() as patch:
        patch.setattr(cdser.audio, 'decode_each', meanwhile)
        with pytest.raises(BadInput, match=f'{wanted[2]}: changed while it was read'): open_store(tmp_path / 'stores', wanted)
    assert not stores_in(tmp_path / 'stores')


def test_two_that_want_one_store_make_it_once(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(cdser.audio, 'WAITING', .01)
    begun, go_on, made, opened = threading.Event(), threading.Event(), [], []
    def slowly(path, segments, max_seconds):
        begun.set()
        go_on.wait(20)
        made.append(path)
        return decode_each(path, segments, max_seconds)
    monkeypatch.setattr(cdser.audio, 'decode_each', slowly)
    threads = [threading.Thread(target=lambda: opened.append(open_store(tmp_path / 'stores', paths))) for _ in range(3)]
    threads[0].start()
    assert begun.wait(20)
    for thread in threads[1:]: thread.start()
    go_on.set()
    for thread in threads: thread.join(20)
    assert len({store.digest for store in opened}) == 1 and len(opened) == 3 and sorted(made) == paths


def test_who_dies_at_it_is_replaced(paths, tmp_path):
    key = store_key(cdser.files.content_digests(paths))
    done = subprocess.run([sys.executable, '-c', 'from cdser.files import process_name; print(process_name())'], capture_output=True, text=True)
    (tmp_path / 'stores' / 'claims').mkdir(parents=True)
    (tmp_path / 'stores' / 'claims' / key).write_text(done.stdout.strip())
    draft = tmp_path / 'stores' / f'.draft-{done.stdout.strip()}-00000000'
    draft.mkdir()
    assert open_store(tmp_path / 'stores', paths).folder.name == key and not draft.exists()


def test_who_loses_a_race_gets_the_store_that_won(paths, tmp_path, monkeypatch):
    ahead = open_store(tmp_path / 'other', paths)
    build = cdser.audio.build_folder
    def too_late(place, write):
        def slow(draft):
            write(draft)
            shutil.copytree(ahead.folder, place)
        assert not build(place, slow)
    monkeypatch.setattr(cdser.audio, 'build_folder', too_late)
    assert open_store(tmp_path / 'stores', paths).digest == ahead.digest and len(stores_in(tmp_path / 'stores')) == 1


def test_a_store_travels_to_workers_as_its_folder(paths, tmp_path):
    store = open_store(tmp_path / 'stores', paths)
    store[0]
    content = pickle.dumps(store)
    assert len(content) < 1000
    again = pickle.loads(content) # noqa: S301 - what was just made
    assert all(np.array_equal(again[i], store[i]) for i in range(4))


# ---- many at a time

def test_bad_recordings_are_one_line(tmp_path):
    paths = [put(tmp_path / f'{i:02}.wav', b'' if i % 2 else file_of('wav', sound())) for i in range(24)]
    with pytest.raises(BadInput) as err: list(decoded(paths, None))
    message = str(err.value)
    assert message.startswith(f'12 of 24 recordings cannot be used; {paths[1]}: the file is empty') and message.endswith('; and 2 more') and '\n' not in message


def test_threads_end_when_whoever_takes_the_results_fails():
    made, before = [], threading.active_count()
    def one(i):
        made.append(i)
        return i
    def fails():
        for i in in_threads(one, range(10_000), ''):
            if i == 5: raise KeyError
    with pytest.raises(KeyError): fails()
    assert threading.active_count() == before and len(made) < 200
    results = in_threads(lambda i: 1 / (3 - i), range(100), '')
    with pytest.raises(ZeroDivisionError): list(results)
    assert threading.active_count() == before


def test_hours_are_not_held_while_they_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(cdser.audio, 'AHEAD', 10)
    running, most = [], []
    def one(i):
        running.append(i)
        return i
    for i in in_threads(one, range(50), '', cost=lambda i: 10):
        most.append(len(running) - i)
    assert max(most) <= 2


def test_what_is_heard_of_a_recording_is_what_verify_asks(tmp_path):
    x = sound()
    x[:100] = 1.
    sf.write(tmp_path / 'a.wav', np.repeat(x, 3), 48_000)
    heard = read_recording(tmp_path / 'a.wav')
    assert (heard.rate, heard.frames, heard.wrong) == (48_000, 9 * RATE, None) and heard.clipped == pytest.approx(300 / (9 * RATE))
    assert isinstance(AudioStore(open_store(tmp_path / 'stores', [tmp_path / 'a.wav']).folder), AudioStore)
