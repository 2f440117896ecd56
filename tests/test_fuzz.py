"Fuzzed inputs: each is read, or refused with one clear error; nothing crashes or hangs, nothing outside the root is touched."
# A failing case is run again, in an empty folder, by: attempt('truncated', 17, Path('again'))
import csv
import io
import os
import re
import shutil
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from numpy.random import Generator

from cdser.audio import LONGEST, RATES, SHORTEST, AudioStore, load_audio, open_store
from cdser.config import LABELS, SAMPLE_RATE, BadInput
from cdser.corpora import (COLUMNS, NUMBERS, ODD_PATH, Corpus, CorpusWarning, check_table, import_dataset, load_corpus, read_label_map, shipped,
                           write_manifest)
from cdser.files import shown
from cdser.splits import Split, freeze, make_splits, read_split
from fuzzing import SCALE, SECONDS, Hung, count, generator, guarded, limited, pick, times

MEMORY = 300  # MiB that the cases of a kind may add
MESSAGE = 600 # characters of an error about one file


# ---- what is asked of every case

@dataclass(frozen=True)
class Case:
    "One fuzzed input and what is asked about it."
    ask: Callable[[], object]
    names: tuple[Path, ...]  # what a refusal must name: one of them
    want: str = ''           # 'read' or 'refused', where only one of them is right
    files: int = 1           # how many a refusal may speak of
    says: str = ''           # what a refusal must say


KINDS: dict[str, tuple[Callable[[Generator, Path, int], Case], int, int]] = {} # name -> maker, cases, MiB
AREA: dict[str, str] = {} # name -> what is fuzzed, for the table of `make fuzz`


def kind(cases: int, memory: int = MEMORY, area: str = 'audio headers',
         grows: bool = True): # whether `make fuzz` has more of them; a list is gone through once
    "Add a maker of cases to the table: `make(rng, root, number)` writes below `root`."
    def keep(make):
        KINDS[make.__name__] = (make, times(cases) if grows else cases, memory)
        AREA[make.__name__] = area
        return make
    return keep


def check_samples(samples: np.ndarray, max_seconds: float = LONGEST) -> None:
    assert samples.dtype == np.float32 and samples.ndim == 1 and np.isfinite(samples).all()
    assert SHORTEST * SAMPLE_RATE - 1 <= len(samples) <= max_seconds * SAMPLE_RATE + 1, f'{len(samples)} samples'


def check_corpus(corpus: Corpus) -> None:
    "A checked table: of known labels, text and numbers where they belong, and recordings that lie in the folder."
    table, top = corpus.table, os.path.realpath(corpus.root) + os.sep
    assert list(table) == list(COLUMNS) and len(table) and table.label.isin(LABELS).all()
    for column in COLUMNS:
        if column in NUMBERS: assert table[column].dtype.kind in 'iuf', f'{column} is {table[column].dtype}'
        else: assert all(isinstance(value, str) for value in table[column]), f'{column} holds {table[column].map(type).unique()}'
    assert len(set(corpus.names)) == len(table) and (table.speaker != '').all() and ((table.start < table.end) | table.start.isna()).all()
    for path in corpus.paths: assert os.path.isfile(path) and os.path.realpath(path).startswith(top), f'{path} is not inside'


def check_map(emotions: dict) -> None:
    for known in emotions.values(): assert known and set(known.values()) <= {'', *LABELS}


def check_splits(splits: list[Split]) -> None:
    for split in splits:
        rows = np.concatenate([split.train, split.valid, split.test])
        assert len(split.train) and len(split.valid) and len(set(rows)) == len(rows)


def check_store(store: AudioStore) -> None:
    assert len(store) and store.lengths.min() >= SHORTEST * SAMPLE_RATE - 1
    for i in range(len(store)): assert len(store[i]) == store.lengths[i] and store[i].dtype in (np.int16, np.float32) and np.isfinite(store[i]).all()


def check_frame(table: pd.DataFrame) -> None:
    assert len(table) and table.path.map(lambda path: isinstance(path, str)).all() and not any(ODD_PATH.search(path) for path in table.path)


CHECKS = {np.ndarray: check_samples, Corpus: check_corpus, pd.DataFrame: check_frame, dict: check_map, list: check_splits, AudioStore: check_store}


def check_message(message: str, case: Case) -> None:
    "One short text that names what it is about."
    names = [name for path in case.names for name in (str(path), str(BadInput(str(path))), repr(os.fsencode(path.name)))] # as errors spell it
    assert any(name in message for name in names), f'{message[:300]!r} names none of {names[:4]}'
    assert len(message) < MESSAGE * case.files, f'a message of {len(message)} characters: {message[:300]!r}'
    assert case.says in message, f'{message[:300]!r} does not say {case.says!r}'
    assert 'Traceback' not in message and '.py"' not in message, message


# ---- what lies outside, and who looks at it

OUTSIDE: list[str] = []   # the folder that is watched while a case is asked
TOUCHED: list[tuple] = [] # what was done there


def watch(event: str, args: tuple) -> None:
    "An audit hook: whatever Python opens, lists or changes outside is noted, through links too."
    if not OUTSIDE or not (event == 'open' or event.startswith(('os.', 'sf.'))): return
    for arg in args[:2]:
        if not isinstance(arg, (str, bytes, os.PathLike)): continue
        try: real = os.path.realpath(os.fsdecode(arg))
        except ValueError: continue # a NUL byte: nobody can open that
        if (real + os.sep).startswith(OUTSIDE[0] + os.sep): TOUCHED.append((event, real))


class WatchedFile(sf.SoundFile):
    "libsndfile opens files in C, where no audit hook sees it."
    def __init__(self, file, *args, **options):
        watch('sf.SoundFile', (file,))
        super().__init__(file, *args, **options)


def contents(folder: Path) -> dict: # path -> bytes, mtime, mode
    found = {path: path.lstat() for path in sorted(folder.rglob('*'))}
    return {path: (path.read_bytes() if path.is_file() else b'', facts.st_mtime_ns, facts.st_mode) for path, facts in found.items()}


def listing(folder: Path) -> set[str]:
    return {os.path.join(top, name) for top, folders, names in os.walk(folder) for name in folders + names}


@contextmanager
def strictly(outside: Path) -> Iterator[None]:
    "Warnings are errors, waiting and memory end, and what is done outside is noted."
    TOUCHED.clear()
    OUTSIDE.append(os.path.realpath(outside))
    try:
        with limited(), warnings.catch_warnings():
            warnings.simplefilter('error')
            for harmless in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, CorpusWarning): warnings.simplefilter('ignore', harmless)
            yield
    finally: OUTSIDE.clear()


def attempt(name: str, number: int, tmp: Path) -> str: # 'read', or the message of the refusal
    "Make a case and ask; anything but an answer or one clear refusal is an AssertionError."
    root, outside = tmp / 'root' / str(number), tmp / 'outside'
    root.mkdir(parents=True)
    write_canaries(outside)
    case = KINDS[name][0](generator(name, number), root, number)
    before = listing(root)
    with strictly(outside):
        try:
            found = case.ask()
            CHECKS[type(found)](found)
        except BadInput as err: found = str(err)
        except AssertionError: raise
        except Hung: raise AssertionError(f'no answer in {SECONDS} seconds') from None
        except Exception as err: raise AssertionError(f'{type(err).__name__}: {str(err)[:300]}') from err
    assert not TOUCHED, f'touched outside the root: {TOUCHED[:3]}'
    left = {path for path in listing(root) ^ before if Path(path).relative_to(root).parts[0] != 'store'}
    assert not left, f'left behind, or gone: {sorted(left)[:3]}'
    if isinstance(found, str): check_message(found, case)
    answer = 'refused' if isinstance(found, str) else 'read'
    assert case.want in ('', answer), f'{answer}, and should be {case.want}: {str(found)[:300]}'
    return found if answer == 'refused' else 'read'


# ---- audio: seeds and how they are spoilt

def voice(seconds: float = .3, rate: int = SAMPLE_RATE, channels: int = 1) -> np.ndarray: # (samples, channels) float32
    t = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 6)) + np.random.default_rng(0).normal(0, .05, len(t))
    return np.repeat((.1 * tones)[:, None], channels, 1).astype(np.float32)


def checksum(page: bytes) -> int: # of Ogg
    found = 0
    for byte in page:
        found ^= byte << 24
        for _ in range(8): found = found << 1 ^ (0x104c11db7 if found >> 31 else 0)
    return found


def undated(content: bytes) -> bytes:
    "The same each time: libsndfile writes a random number into pages of Ogg, and the time into the peaks of WAV."
    found, at = bytearray(content), 0
    while found[at:at + 4] == b'OggS':
        end = at + 27 + found[at + 26] + sum(found[at + 27:at + 27 + found[at + 26]])
        found[at + 14:at + 18], found[at + 22:at + 26] = bytes(4), bytes(4)
        found[at + 22:at + 26] = checksum(found[at:end]).to_bytes(4, 'little')
        at = end
    if found[:4] == b'RIFF' and (at := found.find(b'PEAK', 0, 99)) > 0: found[at + 12:at + 16] = bytes(4)
    return bytes(found)


def recording(samples: np.ndarray, rate: int, container: str, subtype: str | None = None) -> bytes:
    held = io.BytesIO()
    sf.write(held, samples, rate, format=container, subtype=subtype)
    return undated(held.getvalue())


@cache
def seeds() -> dict[str, bytes]: # name with its suffix -> a small good file
    plain = {'pcm16.wav': ('WAV', 'PCM_16'), 'pcm24.wav': ('WAV', 'PCM_24'), 'float.wav': ('WAV', 'FLOAT'), 'ulaw.wav': ('WAV', 'ULAW'),
             'double.wav': ('WAV', 'DOUBLE'), 'ima.wav': ('WAV', 'IMA_ADPCM'), 'ms.wav': ('WAV', 'MS_ADPCM'), 'gsm.wav': ('WAV', 'GSM610'),
             'wavex.wav': ('WAVEX', 'PCM_16'), 'rf64.wav': ('RF64', 'PCM_16'), 'a.flac': ('FLAC', 'PCM_16'), 'b.flac': ('FLAC', 'PCM_24'),
             'a.ogg': ('OGG', 'VORBIS'), 'a.opus': ('OGG', 'OPUS'), 'a.mp3': ('MP3', 'MPEG_LAYER_III'),
             'a.aiff': ('AIFF', 'PCM_16'), 'a.au': ('AU', 'PCM_16'), 'a.caf': ('CAF', 'ALAC_16'), 'a.w64': ('W64', 'PCM_16')}
    stereo = {'stereo.wav': ('WAV', 'FLOAT'), 'stereo.flac': ('FLAC', 'PCM_16'), 'stereo.ogg': ('OGG', 'VORBIS'), 'stereo.mp3': ('MP3', 'MPEG_LAYER_III')}
    return {name: recording(voice(), SAMPLE_RATE, *how) for name, how in plain.items()} | \
           {name: recording(voice(.25, 44_100, 2), 44_100, *how) for name, how in stereo.items()}


@cache
def canaries() -> dict[str, bytes]:
    "What lies outside; each would be accepted, were it inside."
    return {'canary.wav': seeds()['pcm16.wav'], 'sub/canary.wav': seeds()['pcm16.wav'], 'sub/c.wav': seeds()['pcm16.wav'],
            'canary.csv': MANIFEST, 'manifest.csv': MANIFEST, 'iemocap.txt': IEMOCAP, 'msp_improv.txt': IMPROV, 'msp_podcast.csv': PODCAST,
            'nemo.tsv': NEMO, 'cremad.csv': CREMAD, **{f'{letter}.wav': b'x' for letter in 'abcdef'}}


def write_canaries(outside: Path) -> None:
    if outside.exists(): return
    for name, content in canaries().items():
        (outside / name).parent.mkdir(parents=True, exist_ok=True)
        (outside / name).write_bytes(content)
        os.utime(outside / name, ns=(10**18, 10**18))


def beside(root: Path) -> Path: # the folder outside, seen from that of a case
    return root.parent.parent / 'outside'


def listen(path: Path, want: str = '', max_seconds: float | None = None) -> Case:
    def ask():
        samples = load_audio(path, max_seconds)
        check_samples(samples, max_seconds or LONGEST)
        return samples
    return Case(ask, (path,), want)


def as_file(rng: Generator, root: Path, name: str, content: bytes, want: str = '') -> Case:
    (root / name).write_bytes(content)
    return listen(root / name, want, pick(rng, (None, None, 15., .2)))


def flip(rng: Generator, data: bytes, below: int) -> bytes:
    "Between 1 and 64 bits, all in the first `below` bytes."
    found = np.frombuffer(data, np.uint8).copy()
    bits = rng.integers(min(below, len(found)) * 8, size=2 ** rng.integers(7))
    np.bitwise_xor.at(found, bits // 8, (1 << bits % 8).astype(np.uint8))
    return found.tobytes()


@kind(len(seeds()) + 120)
def odd_rates_and_channels(rng, root, i):
    "First the seeds themselves; then any rate and number of channels: what is believed is read, the rest refused."
    if i < len(seeds()): return as_file(rng, root, *list(seeds().items())[i], want='read')
    rate = int(pick(rng, (rng.integers(*RATES), rng.integers(1, RATES[0]), rng.integers(RATES[1] + 1, 655_350), *RATES, 11_111, 22_051, 44_056)))
    suffix = pick(rng, ('.wav', '.wav', '.flac') if rate < 2**16 else ('.wav',))
    channels = int(pick(rng, (1, 2, 3, 5, 8) if suffix == '.flac' or rate > 20_000 else (1, 2, 17, 64, 255, 1024)))
    return as_file(rng, root, f'a{suffix}', recording(voice(.3, rate, channels), rate, suffix[1:].upper()),
                   'read' if RATES[0] <= rate <= RATES[1] else 'refused')


@kind(280)
def truncated(rng, root, i):
    name, content = pick(rng, seeds().items())
    return as_file(rng, root, name, content[:rng.integers(min(len(content), pick(rng, (64, 10**9))))])


@kind(280)
def flipped_bits(rng, root, i):
    name, content = pick(rng, seeds().items())
    return as_file(rng, root, name, flip(rng, content, len(content)))


@kind(280)
def flipped_bits_in_the_header(rng, root, i):
    name, content = pick(rng, seeds().items())
    return as_file(rng, root, name, flip(rng, content, int(pick(rng, (16, 64, 128)))))


@kind(160)
def inserted_and_deleted_bytes(rng, root, i):
    name, content = pick(rng, seeds().items())
    for _ in range(rng.integers(1, 4)):
        at, n = rng.integers(len(content)), int(2 ** rng.integers(12))
        content = pick(rng, (content[:at] + rng.bytes(n) + content[at:], content[:at] + content[at + n:] or b'\0',
                             content[:at] + bytes(n) + content[at + n:], content[:at] + content[at:at + n] + content[at:]))
    return as_file(rng, root, name, content)


@kind(100)
def wrong_extension(rng, root, i):
    "What a file is called does not matter, or is an error."
    suffixes = ('.wav', '.flac', '.ogg', '.opus', '.mp3', '.WAV', '.txt', '', '.', '.raw', '.RAW', '.au', '.gsm', '.vox', '.sd2', '.aiff', '.pcm', '.é')
    return as_file(rng, root, f'a{suffixes[i % len(suffixes)]}', pick(rng, seeds().values()))


WAV_FIELDS = {'riff_size': (4, 'I'), 'fmt_size': (16, 'I'), 'format': (20, 'H'), 'channels': (22, 'H'), 'rate': (24, 'I'),
              'byte_rate': (28, 'I'), 'block_align': (32, 'H'), 'bits': (34, 'H'), 'data_size': (40, 'I')}
EXTREMES = (0, 1, 2, 3, 4, 7, 8, 15, 17, 24, 32, 64, 255, 256, 1024, 1025, 2**15 - 1, 2**15, 2**16 - 2, 2**16 - 1,
            2**24, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)


@kind(300)
def rewritten_wav_headers(rng, root, i):
    "Each field takes each extreme value alone; then several take random ones together."
    content = bytearray(recording(voice(), SAMPLE_RATE, 'WAV', 'PCM_16'))
    assert content[36:40] == b'data'
    known = [(field, value) for field in WAV_FIELDS for value in EXTREMES if value < 2**16 or WAV_FIELDS[field][1] == 'I']
    chosen = [known[i]] if i < len(known) else [pick(rng, known) for _ in range(rng.integers(2, 5))]
    for field, value in chosen: struct.pack_into('<' + WAV_FIELDS[field][1], content, WAV_FIELDS[field][0], value)
    return as_file(rng, root, 'a.wav', bytes(content))


@kind(160)
def rewritten_flac_headers(rng, root, i):
    "STREAMINFO: sizes of blocks and frames, then 20 bits of rate, 3 of channels, 5 of depth, 36 of samples, and a checksum."
    content = bytearray(seeds()[pick(rng, ('a.flac', 'b.flac', 'stereo.flac'))])
    held = int.from_bytes(content[18:26], 'big')
    for shift, width in [((44, 20), (41, 3), (36, 5), (0, 36))[i % 4]] + [(0, 36)] * (i % 3 == 0):
        top = 2**width - 1
        held = held & ~(top << shift) | int(pick(rng, (0, 1, top, top - 1, top // 2, rng.integers(top)))) << shift
    if i % 5: content[18:26] = held.to_bytes(8, 'big')
    if i % 5 in (0, 1): content[8:18] = pick(rng, (bytes(10), b'\xff' * 10, rng.bytes(10)))
    return as_file(rng, root, 'a.flac', bytes(content))


@kind(80)
def joined_files(rng, root, i):
    name, content = pick(rng, seeds().items())
    return as_file(rng, root, name, content + b''.join(pick(rng, seeds().values()) for _ in range(rng.integers(1, 4))))


MAGIC = (b'RIFF\xff\xff\xff\x7fWAVEfmt ', b'RIFF$\0\0\0WAVEdata', b'RF64\xff\xff\xff\xffWAVEds64', b'RIFX\0\0\0\0WAVEfmt ', b'fLaC\0\0\0"', b'fLaC',
         b'OggS\0\2' + bytes(8), b'OggS', b'ID3\4\0\0\0\0\x7f\x7f', b'\xff\xfb\x90\x64', b'\xff\xf3', b'FORM\0\0\0\0AIFFCOMM', b'.snd\0\0\0\x18',
         b'caff\0\1\0\0desc', b'riff.\x91\xcf\x11', b'Creative Voice File\x1a', b'NIST_1A\n   1024\n', b'2BIT', b' paf', b'MATLAB 5.0 MAT-file', b'SDS')
NO_AUDIO = (b'', b'\0', b'a', bytes(44), bytes(5000), b'RIFF', b'no audio', b'a,b\r\n' * 999, b'\xef\xbb\xbf', b'<!DOCTYPE html><html>404</html>' * 20,
            b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 72862\n', b'PK\3\4' + bytes(999), b'\x1f\x8b\x08' + bytes(99))


@kind(160)
def no_audio(rng, root, i):
    "Nothing, zeros, text, a pointer of Git LFS; and the right magic before random bytes."
    suffix = ('.wav', '.flac', '.ogg', '.opus', '.mp3')[i % 5]
    if i < 5 * len(NO_AUDIO): return as_file(rng, root, f'a{suffix}', NO_AUDIO[i // 5], 'refused')
    return as_file(rng, root, f'a{suffix}', pick(rng, MAGIC) + rng.bytes(int(2 ** rng.integers(4, 14))))


@kind(100)
def odd_samples(rng, root, i):
    "NaN, infinite, huge, tiny, silent, constant: in one sample or in all, at any rate."
    rate, channels = int(pick(rng, (8_000, 16_000, 22_050, 44_100))), int(pick(rng, (1, 2, 3)))
    samples, which = voice(.25, rate, channels).astype(np.float64), pick(rng, (slice(None), slice(100, 101), slice(-1, None), slice(0, None, 7)))
    value = (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e30, 1e-45, 0., 1., -1., 1e5, 2e38)[i % 12]
    samples[which] = value
    if i % 3 == 0: samples[which] *= np.where(np.arange(len(samples[which])) % 2, -1, 1)[:, None] # waves rather than steps
    return as_file(rng, root, 'a.wav', recording(samples, rate, 'WAV', 'FLOAT' if np.abs(value) <= 3.4e38 else 'DOUBLE'))


@kind(16, grows=False)
def files_of_gigabytes(rng, root, i):
    "Hours of zeros that take no room on the disk: refused, and not held in memory."
    rate, hours = ((16_000, 2), (192_000, 1.5), (4_000, 24), (48_000, 3))[i % 4]
    size = int(min(hours * 3600 * rate * 2, 2**32 - 100))
    claimed = (size, 2**32 - 1, 2**31 - 1, 0)[i // 4]
    with open(root / 'a.wav', 'wb') as file:
        file.write(struct.pack('<4sI4s4sIHHIIHH4sI', b'RIFF', min(claimed + 36, 2**32 - 1), b'WAVE', b'fmt ', 16, 1, 1, rate, 2 * rate, 2, 16,
                               b'data', claimed))
        file.write(b'\1\7' * 999)
        file.truncate(44 + size)
    return listen(root / 'a.wav', 'refused')


def put_special(path: Path, what: str, content: bytes) -> str: # 'read' or 'refused': what is right
    "Something that is no plain file, in a place where one is expected."
    if what == 'folder': path.mkdir()
    elif what == 'pipe': os.mkfifo(path)
    elif what == 'nowhere': path.symlink_to('absent')
    elif what == 'circle': path.symlink_to(path.name)
    elif what == 'device': path.symlink_to('/dev/zero')
    elif what == 'inside':
        path.with_name('.linked').write_bytes(content)
        path.symlink_to('.linked')
    return 'read' if what == 'inside' else 'refused'


SPECIAL = ('folder', 'pipe', 'nowhere', 'circle', 'device', 'inside', 'absent')


@kind(5 * len(SPECIAL), grows=False)
def no_plain_files(rng, root, i):
    path = root / ('a.wav', 'a.flac', 'a.mp3', 'a', '-')[i // len(SPECIAL)]
    want = put_special(path, SPECIAL[i % len(SPECIAL)], seeds()['pcm16.wav'])
    return replace(listen(path, want), says='no such file')


NAMES = (' ', 'a b', ' a', 'a ', '  a  ', 'a,b', '"', '"a"', 'a"b', "it's", ',', '😀', '漢字', 'ärger', 'a\u0308rger', 'A\u030a', 'أ', '\u202eabc',
         'a\u00a0b', 'a\u2028b', '\x85', '%2e%2e', '%s', '{path}', '$HOME', '~', '*', '?', '[a]', '#a', ';', '&', '|', '-', '--help', 'NA', 'nan', 'null', '1e5',
         '0', '...', '..a', 'con', 'aux', 'a:b', '\ufeffa', 'a\tb', 'a\nb', 'a\rb', '\x1b[31m', 'a\\b', 'C:a', 'x' * 251, 'ü' * 125, '😀' * 62,
         b'\xff'.decode(errors='surrogateescape'), b'M\xfcller'.decode(errors='surrogateescape'), b'\xc3(\xed\xa0\x80'.decode(errors='surrogateescape'))
LETTERS = ' ,"\'aäü\u0308ß漢😀%#&;|$()[]{}!@^~`+=-_.\u00a0\u2029'


def odd_name(rng: Generator, i: int) -> str:
    return NAMES[i] if i < len(NAMES) else ''.join(pick(rng, LETTERS) for _ in range(rng.integers(1, 30)))


@kind(len(NAMES) + 30)
def odd_names_of_recordings(rng, root, i):
    name = odd_name(rng, i) + '.wav'
    return as_file(rng, root, name, seeds()['pcm16.wav'], 'read' if name.isascii() else '')


def write_rows(path: Path, rows: list[tuple], **options) -> None:
    with open(path, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file: csv.writer(file, **options).writerows(rows)


@kind(len(NAMES) + 60, area='manifests')
def odd_names_in_manifests(rng, root, i):
    "What `write_manifest` writes is read back, whatever the files are called, unless it is no name for a path."
    names = [odd_name(rng, i) + '.wav', 'sub/' + odd_name(rng, i) + '.mp3', odd_name(rng, i) + '/a.wav']
    put_corpus(root / 'mine', names)
    good = not any(ODD_PATH.search(name) or re.search('[\ud800-\udfff]', name) for name in names)
    if good: write_manifest(pd.DataFrame(dict.fromkeys(COLUMNS, ''), index=range(3)).assign(path=names, label='ang', speaker='s'),
                            root / 'mine' / 'manifest.csv')
    else: write_rows(root / 'mine' / 'manifest.csv', [('path', 'label', 'speaker'), *((name, 'ang', 's') for name in names)])
    return Case(lambda: load_corpus('mine', root), (root / 'mine' / 'manifest.csv',), 'read' if good else 'refused')


@kind(len(NAMES) + 10, area='readers')
def odd_names_beside_a_released_corpus(rng, root, i):
    put_corpus(root / 'emodb', ('wav/03a01Fa.wav', f'wav/{odd_name(rng, i)}.wav'))
    return Case(lambda: load_corpus('emodb', root), (root / 'emodb',))


@kind(50)
def stores_of_bad_recordings(rng, root, i):
    "Earlier stores stay as they were; a new one is whole or not there."
    def stores(): return {path: found for path, found in contents(root / 'store').items() if re.search('/store/[0-9a-f]{16}', str(path))}
    paths = [root / f'{k}.wav' for k in range(rng.integers(2, 6))]
    for path in paths: path.write_bytes(seeds()['pcm16.wav'])
    if i % 2: open_store(root / 'store', paths)
    kept = stores()
    for path in paths[:rng.integers(len(paths)) + 1]:
        content = pick(rng, seeds().values())
        path.write_bytes(pick(rng, (content, content[:rng.integers(len(content))], flip(rng, content, len(content)), b'')))
    def ask():
        try: return open_store(root / 'store', paths, pick(rng, (None, 15.)))
        except BadInput:
            assert stores() == kept, 'the earlier stores did not stay'
            raise
    return Case(ask, tuple(paths), files=len(paths))


# ---- tables and label files: valid ones, and how they are spoilt

MANIFEST = b'path,emotion,label,speaker,session,gender,text_id,duration_s,sample_rate,sha256\n' + b''.join(
    f'{name}.wav,{label},{label},s{k % 3},{k % 2},female,t{k},0.{k}5,16000,{k:064x}\n'.encode() for k, (name, label) in enumerate(zip('abcdef', LABELS * 2)))
IEMOCAP = b'% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n' + b''.join(
    f'[{k}.2901 - {k}.9357]\tSes01F_{played}_{who}00{k}\t{emotion}\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\nA-{who}1:\tval 3; act 2;\t()\n\n'.encode()
    for k, (played, who, emotion) in enumerate([('impro01', 'F', 'neu'), ('impro01', 'M', 'ang'), ('impro01', 'F', 'exc'), ('impro01', 'M', 'fru')]))
IMPROV = b''.join(
    f'UTD-IMPROV-S0{k}A-{who}-{scenario}-FM0{k}.avi; {emotion}; A:3.000000; V:3.500000; D:3.000000 ; N:4.000000;\nWORKER00000001; Angry; Angry;\n\n'.encode()
    for k, (who, scenario, emotion) in enumerate([('F01', 'S', 'N'), ('M01', 'R', 'A'), ('F02', 'T', 'H'), ('M02', 'P', 'X')], 1))
PODCAST = b'FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n' + b''.join(
    f'MSP-PODCAST_0001_000{k}.wav,{emotion},4.2,3.4,4.6,{speaker},{gender},Train\n'.encode()
    for k, (emotion, speaker, gender) in enumerate([('N', '127', 'Male'), ('A', '9', 'Female'), ('H', '9', 'Female'), ('N', 'Unknown', 'Unknown')]))
NEMO = b'file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage\n' + ''.join(
    f'{speaker}_{emotion}_{k}.wav\t{emotion}\t"Mleko" i mi\u00f3d.\tmleko\t   {speaker}\t{gender}\t27\n'
    for k, (speaker, emotion, gender) in enumerate([('EB0', 'anger', 'female'), ('MP0', 'neutral', 'male')])).encode()
CREMAD = b'ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,Caucasian,Not Hispanic\n1002,21,Female,Caucasian,Not Hispanic\n'
TOKENS = (b'"', b'""', b"'", b',', b',,', b'\0', b'\xff', b'\xfc', b'\r', b'\n', b'\r\n', b'\n\n', b'\xef\xbb\xbf', b'../', b'/', b'\\', b'\t', b';',
          b' ', b':', b'|', b'#',
          '\u2028'.encode(), '\x85'.encode(), 'é'.encode(), '٣'.encode(), '😀'.encode(), b'1e999', b'nan', b'[', b']', b'%', b'x' * 300,
          b'\x1a', b'\x1b[31m', b'-', b'_', b'.', b'0', b'Ses01F')


def edit(rng: Generator, data: bytes) -> bytes:
    "One to four random edits of a text."
    for _ in range(rng.integers(1, 5)):
        lines, at, n = data.splitlines(keepends=True) or [b'\n'], int(rng.integers(len(data) + 1)), int(rng.integers(1, 9))
        a, b = (int(k) for k in rng.integers(len(lines), size=2))
        data = pick(rng, (
            data[:at] + pick(rng, TOKENS) + data[at:], data[:at] + pick(rng, TOKENS) + data[at:], data[:at] + data[at + n:],
            data[:at] + rng.bytes(n) + data[at + n:], data[:at], b''.join(lines[:a] + lines[a + 1:]), b''.join(lines + [lines[a]]),
            b''.join([*lines[:a], lines[b], *lines[a + 1:]]),
            data[:at] + data[at:].replace(pick(rng, (b',', b'\t', b';', b'\n', b'0', b'a')), pick(rng, TOKENS), int(rng.integers(1, 4)))))
    return data


def wide(data: bytes, field: bytes, at: int = 1) -> bytes:
    "The same with another field in front of line `at`."
    lines = data.splitlines(keepends=True)
    return b''.join([*lines[:at], field + lines[at], *lines[at + 1:]])


FORMS = { # what is done to a whole text
    'as it is': lambda t: t, 'BOM': lambda t: b'\xef\xbb\xbf' + t, 'two BOMs': lambda t: b'\xef\xbb\xbf' * 2 + t, 'CRLF': lambda t: t.replace(b'\n', b'\r\n'),
    'CR': lambda t: t.replace(b'\n', b'\r'), 'mixed ends': lambda t: t.replace(b'\n', b'\r\n', 2), 'no end': lambda t: t.rstrip(),
    'blank lines': lambda t: t.replace(b'\n', b'\n\n'),
    'spaces': lambda t: t.replace(b',', b' , '), 'UTF-16': lambda t: t.decode().encode('utf-16'), 'UTF-16BE': lambda t: t.decode().encode('utf-16-be'),
    'UTF-32': lambda t: t.decode().encode('utf-32'), 'Latin-1': lambda t: t.replace(b'e', b'\xe9'), 'empty': lambda t: b'',
    'one blank line': lambda t: b'\n', 'header only': lambda t: t.splitlines()[0],
    'no header': lambda t: b''.join(t.splitlines(True)[1:]), 'header twice': lambda t: t.splitlines(True)[0] + t, 'twice': lambda t: t * 2,
    'zeros': lambda t: bytes(999), 'a NUL': lambda t: wide(t, b'\0'),
    'NULs between': lambda t: t.replace(b',', b'\0'), 'semicolons': lambda t: t.replace(b',', b';'), 'tabs': lambda t: t.replace(b',', b'\t'),
    'bars': lambda t: t.replace(b',', b'|'), 'commas': lambda t: t.replace(b'\t', b',').replace(b';', b','),
    'a quote': lambda t: wide(t, b'"'), 'a quote in the header': lambda t: b'"' + t, 'a quote at the end': lambda t: t + b'"',
    'quotes': lambda t: re.sub(rb'[^,\n\t]+', rb'"\g<0>"', t), 'quoted newline': lambda t: wide(t, b'"a\nb",'),
    'apostrophes': lambda t: re.sub(rb'[^,\n\t]+', rb"'\g<0>'", t), 'a field more': lambda t: wide(t, b'x,'),
    'a field more in all': lambda t: t.replace(b'\n', b',x\n'),
    'a field more in all but the header': lambda t: t.replace(b'\n', b',x\n').replace(b',x', b'', 1),
    'a field less': lambda t: re.sub(rb'[,\t;][^,\t;\n]*\n', b'\n', t), 'a column less': lambda t: re.sub(rb'(?m)^[^,\t;\n]*[,\t;]', b'', t),
    'a column twice': lambda t: re.sub(rb'(?m)^([^,\t;\n]*)([,\t;])', rb'\1\2\1\2', t), 'upper case': lambda t: t.upper(), 'lower case': lambda t: t.lower(),
    'a comment': lambda t: b'# a comment\n' + t, 'HTML': lambda t: b'<!DOCTYPE html><html><body>404</body></html>\n', 'LFS': lambda t: NO_AUDIO[10],
    'audio': lambda t: seeds()['pcm16.wav'],
    'gzip': lambda t: b'\x1f\x8b' + zlib.compress(t), 'control Z': lambda t: t + b'\x1a', 'form feeds': lambda t: t.replace(b'\n', b'\f\n'),
    'line separators': lambda t: t.replace(b'\n', '\u2028'.encode()), 'escapes': lambda t: t.replace(b',', b'\\,')}


SAME = ('as it is', 'BOM', 'CRLF', 'mixed ends', 'no end', 'blank lines') # forms that change nothing


def spoil(rng: Generator, i: int, path: Path, text: bytes, link_out: str = '') -> str: # 'read', or '' where a refusal is right too
    "Write a text to a path in one of the FORMS; or something that is no plain file; or with random edits."
    path.parent.mkdir(parents=True, exist_ok=True)
    special = ('inside', 'folder', 'pipe', 'nowhere', 'circle', *(['outside'] if link_out else []))
    what = [*FORMS, *special][i] if i < len(FORMS) + len(special) else 'edited'
    if what == 'outside': path.symlink_to(link_out) # what lies there is not to be opened, good as it may be
    elif what in special: put_special(path, what, text)
    else: path.write_bytes(FORMS.get(what, partial(edit, rng))(text))
    return 'read' if what in ('inside', *SAME) else ''


def put_corpus(corpus: Path, recordings, files: dict[str, bytes] | None = None, audio: bytes = b'x') -> None:
    "Recordings, and other files."
    for path, content in {**dict.fromkeys(recordings, audio), **(files or {})}.items():
        (corpus / path).parent.mkdir(parents=True, exist_ok=True)
        (corpus / path).write_bytes(content)


def load_spoilt(rng: Generator, root: Path, i: int, name: str, file: str, text: bytes, recordings: list[str]) -> Case:
    "Ask for a corpus of which one file is spoilt."
    put_corpus(root / name, recordings)
    outside = beside(root) / ('canary' if name == 'mine' else name)
    want = spoil(rng, i, root / name / file, text, str(outside.with_suffix(os.path.splitext(file)[1])))
    return Case(lambda: load_corpus(name, root), (root / name,), want)


WAVES = [f'{letter}.wav' for letter in 'abcdef']


@kind(280, area='manifests')
def spoilt_manifests(rng, root, i):
    return load_spoilt(rng, root, i, 'mine', 'manifest.csv', MANIFEST, WAVES)


@kind(180, area='readers')
def spoilt_label_files_of_iemocap(rng, root, i):
    turns = re.findall(rb'Ses01F_\w+', IEMOCAP)
    return load_spoilt(rng, root, i, 'iemocap', 'Session1/dialog/EmoEvaluation/Ses01F_impro01.txt', IEMOCAP,
                       [f'Session1/sentences/wav/Ses01F_impro01/{turn.decode()}.wav' for turn in turns])


@kind(180, area='readers')
def spoilt_label_files_of_msp_improv(rng, root, i):
    turns = [turn.decode() for turn in re.findall(rb'UTD-(IMPROV-[\w-]+)', IMPROV)]
    return load_spoilt(rng, root, i, 'msp_improv', ('Evalution.txt', 'Evaluation.txt')[i % 2], IMPROV, [f'Audio/MSP-{turn}.wav' for turn in turns])


@kind(150, area='readers')
def spoilt_labels_of_msp_podcast(rng, root, i):
    names = [name.decode() for name in re.findall(rb'(?m)^MSP[\w-]+\.wav', PODCAST)]
    return load_spoilt(rng, root, i, 'msp_podcast', 'Labels/labels_consensus.csv', PODCAST, [f'Audios/{name}' for name in names])


@kind(150, area='readers')
def spoilt_tables_of_nemo(rng, root, i):
    return load_spoilt(rng, root, i, 'nemo', 'data.tsv', NEMO, ['samples/EB0_anger_0.wav', 'samples/MP0_neutral_1.wav'])


@kind(110, area='readers')
def spoilt_demographics_of_cremad(rng, root, i):
    return load_spoilt(rng, root, i, 'cremad', 'VideoDemographics.csv', CREMAD, ['AudioWAV/1001_DFA_ANG_XX.wav', 'AudioWAV/1002_IEO_HAP_HI.wav'])


@kind(220, area='label maps')
def spoilt_label_maps(rng, root, i):
    lines = b''.join(f'mine,{label},{label}\n'.encode() for label in LABELS)
    want = spoil(rng, i, root / 'label_map.csv', shipped('label_map.csv').read_bytes() + lines)
    if i % 2: return Case(lambda: read_label_map(root / 'label_map.csv'), (root / 'label_map.csv',), want)
    put_corpus(root / 'mine', WAVES, {'manifest.csv': MANIFEST})
    return Case(lambda: load_corpus('mine', root, root / 'label_map.csv'), (root / 'label_map.csv', root / 'mine'), want)


@cache
def frozen() -> tuple[pd.DataFrame, bytes]: # a table, and its split as a file
    rows = [(f'sub/{s}_{label}{k}.wav', label, f's{s}') for s in range(6) for label in LABELS for k in range(2)]
    table = check_table(pd.DataFrame(rows, columns=['path', 'label', 'speaker']), 'frozen')
    return table, freeze(table, make_splits(table, dict(protocol='k_fold', folds=3))).to_csv(index=False).encode()


@kind(240, area='splits')
def spoilt_splits(rng, root, i):
    "The last ones deal out parts anew: speakers cross, a part is empty, a part is unknown."
    (table, text), words = frozen(), (b'train', b'valid', b'test', b'', b'Train', b'1')
    want = spoil(rng, i, root / 'split.csv', text)
    if i % 240 >= 220: (root / 'split.csv').write_bytes(re.sub(rb'\b%s\b' % words[i % 3], pick(rng, words), text, count=int(pick(rng, (0, 1, 9)))))
    return Case(lambda: read_split(root / 'split.csv', table), (root / 'split.csv',), want)


NUMERALS = ('', '1', '-1', '0', '0.5', '.5', '5.', '1e3', '1E-3', '1e999', '-1e999', '1e-999', 'nan', 'NaN', 'inf', '-Infinity', 'ten', '1,5',
            '1.2.3', '0x10', '1_000', ' 1 ', '+1',
            '--1', '9' * 20, '9' * 400, '9' * 5000, '-' + '9' * 19, '18446744073709551616', 'true', 'None', '<NA>', '1j', '٣', '½', '１', '1s',
            '16 kHz', '2020-01-01', '😀', '\u2212' + '1', '\0', '1\0', 'x' * 10**6)


@kind(2 * len(NUMERALS) + 30, area='manifests')
def numbers_that_are_text(rng, root, i):
    put_corpus(root / 'mine', WAVES)
    alone = i < 2 * len(NUMERALS) # among plain numbers; else among odd ones that are numbers too
    values = [NUMERALS[i // 2 % len(NUMERALS)] if alone else pick(rng, NUMERALS[:-1]), *('16000' if alone else pick(rng, NUMERALS[:9]) for _ in WAVES[1:])]
    write_rows(root / 'mine' / 'manifest.csv',
               [('path', 'label', 'speaker', NUMBERS[2 + i % 2]), *((wave, 'ang', 's', value) for wave, value in zip(WAVES, values))])
    return Case(lambda: load_corpus('mine', root), (root / 'mine' / 'manifest.csv',))


TIMES = ('', '0', '1', '1.5', '2', '-1', '1e3', 'nan', 'x', '0.0', '99999999', '1e-9')
HEADERS = ('path', 'label', 'speaker', 'start', 'end', 'emotion', 'session', 'text_id', 'Speaker', ' label', 'START', 'notes', '', 'label', '\ufeffpath')


@kind(120)
def parts_and_columns(rng, root, i):
    "Any seconds in start and end; then any columns."
    put_corpus(root / 'mine', WAVES)
    header = ['path', 'label', 'speaker', 'start', 'end'] if i < 80 else [pick(rng, HEADERS) for _ in range(rng.integers(1, 9))]
    values = dict(path=WAVES[:3], label=LABELS, emotion=LABELS, speaker=('s', 'S', 't ', '03', '3', 'nan'), start=TIMES, end=TIMES)
    rows = [tuple(pick(rng, values.get(c, ('', 'x'))) for c in header) for _ in range(rng.integers(1, 5))]
    write_rows(root / 'mine' / 'manifest.csv', [tuple(header), *rows])
    return Case(lambda: load_corpus('mine', root), (root / 'mine' / 'manifest.csv',))


VALUES = ('', 'a', 'ang', 'sad', ' ang', 'a.wav', 'b/c.wav', '../a', 'nan', '\0', '\ud800', 'x' * 9999, 0, 1, -1, 3, 2**70, True, None, np.nan, pd.NA, pd.NaT, 1., .5,
          np.inf, -np.inf, 1j, b'a', [], ['ang'], {}, (1,), np.int8(1), np.float32(.5), np.bool_(True), np.str_('ang'), Path('a.wav'), pd.Timestamp(0), object())
DTYPES = (None, object, str, 'category', 'Int64', 'float32', 'boolean', 'datetime64[ns]')


@kind(300)
def tables_of_any_type(rng, root, i):
    "What a user's own code may hand over."
    n = int(rng.integers(0, 4))
    table = pd.DataFrame(index=rng.permutation(n))
    for c in ('path', 'label', 'speaker', *(pick(rng, (*COLUMNS, 'Path', 3, None)) for _ in range(rng.integers(4)))):
        good = dict(path=WAVES, label=LABELS).get(c, ('s',))
        made = pd.Series([pick(rng, good if rng.random() < .6 else VALUES) for _ in range(n)], dtype=object)
        try: made = made.astype(pick(rng, DTYPES)) if rng.random() < .4 else made
        except (TypeError, ValueError, OverflowError): pass # not a column of that kind
        table[c] = made.set_axis(table.index)
    emotions = pick(rng, (None, None, dict.fromkeys(LABELS, 'ang'), {'a': '', 'ang': 'sad'}))
    return Case(lambda: check_table(table, 'a table', emotions), (Path('a table'),))


@cache
def saved_files() -> dict[str, bytes]: # what `save_to_disk` writes for three rows
    datasets = pytest.importorskip('datasets', reason="needs pip install 'cdser[datasets]'")
    datasets.disable_progress_bars()
    rows = dict(audio=[dict(bytes=seeds()['a.flac'], path=None)] * 3, label=['ang', 'sad', 'ang'], speaker=['a', 'b', 'c'], text_id=['t', 'u', None])
    with tempfile.TemporaryDirectory() as folder:
        datasets.Dataset.from_dict(rows).cast_column('audio', datasets.Audio()).class_encode_column('label').save_to_disk(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@kind(90)
def spoilt_data_sets(rng, root, i):
    "One file of three is spoilt; where that is not seen, the corpus can be opened."
    name, content = list(saved_files().items())[i % 3]
    put_corpus(root / 'saved', [], saved_files())
    spoilt = (flip(rng, content, 900), content[:rng.integers(len(content))], content[:-700] + flip(rng, content[-700:], 700), edit(rng, content))[i // 3 % 4]
    (root / 'saved' / name).write_bytes(spoilt)
    return Case(lambda: import_dataset(root / 'saved', root / 'store'), (root / 'saved', Path('the data set')))


# ---- what is huge

MANY, LESS = 10**6, 10**5
HUGE: dict[str, Callable[[], bytes]] = {
    'a row of a million fields': lambda: MANIFEST + b'x,' * MANY + b'\n',
    'a first row of a million fields': lambda: wide(MANIFEST, b'x,' * MANY),
    'a header of a million fields': lambda: MANIFEST.replace(b'\n', b',c' * MANY + b'\n', 1),
    'a header of many different fields': lambda: b','.join(b'c%d' % k for k in range(LESS)) + b'\n1\n',
    'a million blank fields': lambda: MANIFEST.replace(b'\n', b',' * MANY + b'\n', 1),
    'a million newlines in quotes': lambda: wide(MANIFEST, b'"' + b'\n' * MANY + b'",'),
    'a million quotes': lambda: wide(MANIFEST, b'"' * MANY),
    'an odd number of quotes': lambda: wide(MANIFEST, b'"' * (MANY + 1)),
    'a million blank lines': lambda: MANIFEST + b'\n' * MANY,
    'very many rows': lambda: b'path,label,speaker\n' + b''.join(b'%d.wav,ang,s\n' % k for k in range(LESS)),
    'a million rows of one recording': lambda: b'path,label,speaker\n' + b'a.wav,ang,s\n' * MANY,
    'a million rows in one quote': lambda: wide(MANIFEST, b'"') + b'a.wav,ang,s\n' * MANY,
    'a path of megabytes': lambda: wide(MANIFEST, b'x' * 4 * MANY),
    'folders without end': lambda: wide(MANIFEST, b'x/' * MANY),
    'a path up without end': lambda: wide(MANIFEST, b'../' * MANY),
    'a label of megabytes': lambda: MANIFEST.replace(b'ang', b'x' * 4 * MANY),
    'a speaker of megabytes': lambda: MANIFEST.replace(b's1', b's' * 4 * MANY),
    'a number of megabytes': lambda: MANIFEST.replace(b'16000', b'1' * 4 * MANY),
    'a column of megabytes': lambda: MANIFEST.replace(b'path', b'p' * 4 * MANY, 1),
    'zeros': lambda: bytes(8 * MANY),
    'zeros at the end': lambda: MANIFEST + bytes(8 * MANY),
    'one long line': lambda: b'x' * 8 * MANY,
    'noise': lambda: np.random.default_rng(0).bytes(8 * MANY)}


@kind(len(HUGE), memory=600, area='manifests', grows=False)
def huge_manifests(rng, root, i):
    put_corpus(root / 'mine', WAVES, {'manifest.csv': list(HUGE.values())[i]()})
    return Case(lambda: load_corpus('mine', root), (root / 'mine' / 'manifest.csv',))


LONG = b'x' * 4 * MANY
MAP, TURN, SENTENCE = b'corpus,emotion,label\n', b'[1.0 - 2.0]\tSes01F_%s_F000\t%s\t[2.5, 2.5, 2.5]\n', b'UTD-IMPROV-S01A-F01-S-%s.avi; %s; A:3.0;\n'
SPEAKERS = b'FileName,EmoClass,SpkrID\n'
HUGE_FILES: list[tuple[str, Callable[[], bytes]]] = [ # file, what it holds
    *(('label_map.csv', content) for content in (
        lambda: MAP + (b'emodb,' + LONG + b',ang\n') * 2, lambda: MAP + (LONG + b',x,ang\n') * 2, lambda: MAP + b'emodb,x,' + LONG + b'\n',
        lambda: MAP + b'emodb,x,ang,' + b'y,' * MANY, lambda: MAP + b'emodb,A,ang\n' * LESS,
        lambda: MAP.replace(b'\n', b',c' * MANY + b'\n') + b'emodb,x,ang\n')),
    *(('split.csv', content) for content in (
        lambda: frozen()[1].replace(b'valid', LONG, 1), lambda: frozen()[1].replace(b'fold_2', b'fold_' + LONG, 1),
        lambda: frozen()[1] + LONG + b',test,test,test\n', lambda: frozen()[1] + (LONG + b',test,test,test\n') * 2,
        lambda: frozen()[1].replace(b'\n', b',fold_3' * MANY + b'\n', 1))),
    *(('iemocap/Session1/dialog/EmoEvaluation/Ses01F_impro01.txt', content) for content in (
        lambda: TURN % (LONG, b'ang'), lambda: TURN % (LONG, b'ang') * 2, lambda: TURN % (b'impro01', LONG), lambda: b'[' * 4 * MANY,
        lambda: b'[' + b'1' * MANY + b' - ' + b'1' * MANY + b']', lambda: TURN % (b'impro01', b'ang') * LESS)),
    *(('msp_improv/Evalution.txt', content) for content in (
        lambda: SENTENCE % (LONG, b'A'), lambda: SENTENCE % (LONG, b'A') + SENTENCE % (LONG, b'N'), lambda: SENTENCE % (b'FM01', LONG),
        lambda: b'UTD-' * MANY, lambda: SENTENCE % (b'FM01', b' ' * MANY + b'A'), lambda: SENTENCE % (b'FM01', b'A') * LESS)),
    *(('msp_podcast/Labels/labels_consensus.csv', content) for content in (
        lambda: SPEAKERS + LONG + b'.wav,A,1\n', lambda: SPEAKERS + (LONG + b'.wav,A,1\n') * 2, lambda: SPEAKERS + b'a.wav,' + LONG + b',1\n',
        lambda: SPEAKERS + b'a.wav,A,' + LONG + b'\n', lambda: SPEAKERS + b'a.wav,A,1\n' * LESS)),
    *(('nemo/data.tsv', content) for content in (
        lambda: b'\t' * MANY, lambda: b'"' + NEMO * 10**4, lambda: NEMO + b'x\t' * MANY, lambda: NEMO.replace(b'female', LONG))),
    *(('cremad/VideoDemographics.csv', content) for content in (
        lambda: b',' * MANY, lambda: b'"' + CREMAD * 10**4, lambda: CREMAD + b'x,' * MANY, lambda: CREMAD * 10**4))]


@kind(len(HUGE_FILES), memory=600, area='readers', grows=False)
def huge_tables_and_label_files(rng, root, i):
    (file, content), name = HUGE_FILES[i], HUGE_FILES[i][0].split('/')[0]
    for path in ('nemo/samples/EB0_anger_0.wav', 'cremad/AudioWAV/1001_DFA_ANG_XX.wav', file):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content() if path == file else b'x')
    ask = {'label_map.csv': lambda: read_label_map(root / file), 'split.csv': lambda: read_split(root / file, frozen()[0])}
    return Case(ask.get(name, lambda: load_corpus(name, root)), (root / file, root / name))


# ---- ways out

def ways_out(outside: Path) -> list[str]:
    "Paths in a manifest that lead out of a corpus in root/0/mine, or would on some system; each ends at a recording."
    top, up = str(outside), '../../../outside'
    return [f'{up}/canary.wav', f'./{up}/canary.wav', f'sub/../{up}/canary.wav', f'a/../../{up[3:]}/canary.wav', f'sub/{up}/../outside/canary.wav',
            f'{up}//canary.wav', f'{up}/./canary.wav',
            f'{up}/sub/../canary.wav', f'sub/../../{up}/canary.wav', f'{top}/canary.wav', f'/{top}/canary.wav', f'//{top}/canary.wav',
            f'/..{top}/canary.wav', f'/proc/self/root{top}/canary.wav',
            f' {up}/canary.wav', f'\t{up}/canary.wav', f'{up}/canary.wav\0.wav', f'\0{up}/canary.wav', f'{up}/canary.wav\n', '..', '../', '.', './',
            '/', '//', '../mine', '../mine/a.wav', './a.wav',
            'sub/./a.wav', 'sub//a.wav', 'sub/../a.wav', 'a.wav/', 'a.wav/.', 'a.wav/..', 'sub/', '..\\..\\outside\\canary.wav', 'sub\\..\\..\\a.wav',
            'sub\\a.wav', '\\\\host\\share\\a.wav',
            '\\\\?\\C:\\a.wav', 'C:\\a.wav', 'C:a.wav', 'c:/a.wav', 'Z:/../a.wav', f'{up}/canary.wav\r', '\x7f/../a.wav', '\x1b[2J']


HARMLESS = ('%2e%2e/%2e%2e/outside/canary.wav', '..%2foutside', '%00', '~/a.wav', '~root/a.wav', '$HOME/a.wav', '${PWD}/../a.wav', '.../a.wav',
            '.. /a.wav', '..;/a.wav', '\uff0e\uff0e/a.wav', '\u2025/a.wav',
            '..\u2215a.wav', 'file:///etc/passwd', 'http://localhost/a.wav', '`id`', '$(id)', '|id', '*.wav', '[a-f].wav', 'A.WAV', 'a.wav ',
            'a.wav::$DATA', 'absent.wav', 'sub', 'x' * 5000, 'y/' * 3000 + 'a.wav', 'sub/A.wav')
PIECES = ('..', '..', '.', '', 'sub', 'a.wav', 'canary.wav', 'outside', 'mine', '...', '%2e%2e', '..\\', '.. ', ' ..', '~', 'C:', '\0', 'é', 'x' * 300, '\n')


@kind(180, area='manifests')
def traversal_in_manifests(rng, root, i):
    "Whatever a manifest says, in whichever row, what is outside is not even looked at."
    outs = ways_out(beside(root))
    if i < len(outs): path, want = outs[i], 'refused'
    elif i < len(outs) + len(HARMLESS): path, want = HARMLESS[i - len(outs)], '' if HARMLESS[i - len(outs)] != 'sub/A.wav' else 'read'
    else: path, want = '/'.join(pick(rng, PIECES) for _ in range(rng.integers(1, 9))), ''
    put_corpus(root / 'mine', ('a.wav', 'b.wav', 'sub/a.wav', 'sub/A.wav'), audio=seeds()['pcm16.wav'])
    rows = [('b.wav', 'ang', 's')] * (i % 2) + [(path, 'sad', 's')]
    write_rows(root / 'mine' / 'manifest.csv', [('path', 'label', 'speaker'), *rows], quoting=(csv.QUOTE_ALL, csv.QUOTE_MINIMAL)[i % 3 % 2])
    return Case(lambda: load_and_listen('mine', root), (root / 'mine' / 'manifest.csv',), want)


def load_and_listen(name: str, root: Path) -> Corpus:
    "A corpus whose recordings can be read, too."
    corpus = load_corpus(name, root)
    for path in corpus.paths: load_audio(path)
    return corpus


@kind(60, area='readers')
def traversal_in_label_files(rng, root, i):
    "MSP-Podcast names files in a table; a path there is one of a manifest."
    paths = [*ways_out(beside(root)), *HARMLESS]
    path = paths[i] if i < len(paths) else '/'.join(pick(rng, PIECES) for _ in range(rng.integers(1, 9)))
    held = io.StringIO()
    csv.writer(held).writerows([('FileName', 'EmoClass', 'SpkrID'), (path, 'A', '1')])
    put_corpus(root / 'msp_podcast', ['Audios/a.wav', 'Audios/sub/A.wav'], {'Labels/labels_consensus.csv': held.getvalue().encode()})
    return Case(lambda: load_corpus('msp_podcast', root), (root / 'msp_podcast',))


LINKS: dict[str, tuple[str, Callable[[Path, Path], str], str]] = { # what is a link, and to what, given outside and the corpus; what is right
    'a file outside': ('a.wav', lambda outside, corpus: os.path.relpath(outside / 'canary.wav', corpus), 'refused'),
    'a file outside, absolute': ('a.wav', lambda outside, corpus: str(outside / 'canary.wav'), 'refused'),
    'a folder outside': ('sub', lambda outside, corpus: os.path.relpath(outside / 'sub', corpus), 'refused'),
    'a folder outside, absolute': ('sub', lambda outside, corpus: str(outside / 'sub'), 'refused'),
    'two links': ('a.wav', lambda outside, corpus: 'sub/out.wav', 'refused'),
    'the folder above': ('sub', lambda outside, corpus: '..', 'refused'),
    'another corpus': ('a.wav', lambda outside, corpus: '../other/c.wav', 'refused'),
    'a folder of a like name': ('a.wav', lambda outside, corpus: f'../{corpus.name}_too/c.wav', 'refused'),
    'nowhere': ('a.wav', lambda outside, corpus: 'absent.wav', 'refused'),
    'itself': ('a.wav', lambda outside, corpus: 'a.wav', 'refused'),
    'a circle': ('a.wav', lambda outside, corpus: 'sub/back.wav', 'refused'),
    'a folder': ('a.wav', lambda outside, corpus: 'deep', 'refused'),
    'a device': ('a.wav', lambda outside, corpus: '/dev/zero', 'refused'),
    'a file inside': ('a.wav', lambda outside, corpus: 'deep/c.wav', 'read'),
    'a folder inside': ('sub', lambda outside, corpus: 'deep', 'read'),
    'out and in again': ('a.wav', lambda outside, corpus: f'../{corpus.name}/deep/c.wav', 'read'),
    'the corpus itself': ('sub', lambda outside, corpus: '.', '')}


@kind(4 * len(LINKS), area='manifests', grows=False)
def links(rng, root, i):
    "With a manifest and by a reader; in a corpus that is a folder and in one that is itself a link, which is fine."
    what, (linked, target, want) = list(LINKS.items())[i // 4]
    name, corpus = ('mine', 'emodb')[i % 2], root / ('elsewhere' if i % 4 > 1 else '.') / ('mine', 'emodb')[i % 2]
    waves = ['a.wav', 'b.wav', 'sub/c.wav']
    put_corpus(corpus, (*waves, 'deep/c.wav', '../c.wav', '../other/c.wav', f'../{name}_too/c.wav'), audio=seeds()['pcm16.wav'])
    if what == 'two links': (corpus / 'sub' / 'out.wav').symlink_to(beside(root) / 'canary.wav')
    if what == 'a circle': (corpus / 'sub' / 'back.wav').symlink_to('../a.wav')
    if i % 4 > 1: (root / name).symlink_to(corpus)
    shutil.rmtree(corpus / 'sub') if linked == 'sub' else (corpus / 'a.wav').unlink()
    (corpus / linked).symlink_to(target(beside(root), corpus))
    if name == 'mine': (corpus / 'manifest.csv').write_text('path,label,speaker\n' + ''.join(f'{wave},ang,s\n' for wave in waves))
    else: # a reader takes what is named as in the release, and follows no links to folders
        (corpus / 'a.wav').rename(corpus / '03a01Fa.wav')
        (corpus / 'b.wav').rename(corpus / '03b01Wa.wav')
        if what == 'itself' or linked == 'sub' or what in ('a folder', 'a circle'): want = ''
    return Case(lambda: load_and_listen(name, root), (root / name,), want)


@kind(30, area='manifests', grows=False)
def names_of_corpora(rng, root, i):
    "A corpus is a folder in the root, not a way out of it; roots that are none."
    names = ('../outside', '../../outside', '../../outside/', 'mine/../../../outside', str(beside(root)), f'{beside(root)}/sub', '..', '../', '/',
             '', '.', './', 'mine/', 'mine/.', 'mine\0', '\0', 'mine/a.wav',
             'x' * 300, 'x/' * 3000, '\udcff', '\n', 'absent', '~', 'Mine', 'mine ', '*')
    corpora = root
    put_corpus(root / 'mine', ['a.wav'], {'manifest.csv': b'path,label,speaker\na.wav,ang,s\n'})
    for k in range(60 * (i % 2)): (root / f'{k:02}{"x" * 100}').mkdir()
    if i >= len(names): corpora = (root / 'absent', root / 'mine' / 'a.wav', root / ('x' * 300), root / '\0')[i - len(names)]
    name = names[i] if i < len(names) else 'mine'
    return Case(lambda: load_corpus(name, corpora), (corpora, Path('corpus: ')), 'refused', says=shown(name) if i < len(names) else '')


@kind(10, area='manifests', grows=False)
def files_that_may_not_be_read(rng, root, i):
    put_corpus(root / 'mine', [], {'a.wav': seeds()['pcm16.wav'], 'label_map.csv': shipped('label_map.csv').read_bytes(),
                                   'manifest.csv': b'path,label,speaker\na.wav,ang,s\n'})
    closed, ask = [('a.wav', load_audio), ('manifest.csv', lambda path: load_corpus('mine', root)), ('label_map.csv', read_label_map),
                   ('a.wav', lambda path: open_store(root / 'store', [path])), ('manifest.csv', lambda path: load_corpus('mine', root))][i % 5]
    (root / 'mine' / closed).chmod((0, 0o200)[i % 2])
    if os.access(root / 'mine' / closed, os.R_OK): pytest.skip('root reads everything')
    return Case(lambda: ask(root / 'mine' / closed), (root / 'mine' / closed,), 'refused')


# ---- the tests

@pytest.fixture
def watched(tmp_path, monkeypatch, capfd) -> Iterator[Path]: # a folder for the cases
    "Who opens what is noted; a hang in C ends the run, with a traceback."
    if not hasattr(watch, 'added'):
        sys.addaudithook(watch)
        watch.added = True
    monkeypatch.setattr(sf, 'SoundFile', WatchedFile)
    with capfd.disabled(), guarded(900 * SCALE): yield tmp_path


@pytest.mark.fuzz
@pytest.mark.parametrize('name', KINDS)
def test_every_fuzzed_input_is_read_or_refused_with_one_clear_error(name, watched, record_property):
    _, cases, memory = KINDS[name]
    write_canaries(watched / 'outside')
    kept = contents(watched / 'outside')
    def answer(number):
        try: return 'read' if attempt(name, number, watched) == 'read' else 'refused'
        finally: shutil.rmtree(watched / 'root' / str(number))
    try: count(AREA[name], name, cases, answer, record_property, memory)
    finally: assert contents(watched / 'outside') == kept, 'what lies outside is not as it was'


@pytest.mark.parametrize('name', ['spoilt_manifests', 'spoilt_label_files_of_iemocap', 'spoilt_label_files_of_msp_improv',
                                  'spoilt_labels_of_msp_podcast', 'spoilt_tables_of_nemo', 'spoilt_demographics_of_cremad'])
def test_marks_and_line_ends_change_nothing(name, tmp_path):
    write_canaries(tmp_path / 'outside')
    tables = {}
    for form in SAME:
        number = list(FORMS).index(form)
        (tmp_path / 'root' / str(number)).mkdir(parents=True)
        tables[form] = KINDS[name][0](np.random.default_rng(0), tmp_path / 'root' / str(number), number).ask().table
    for form in SAME: pd.testing.assert_frame_equal(tables[form], tables['as it is'], obj=form)


def test_there_are_two_thousand_cases_and_a_case_is_the_same_each_time(tmp_path):
    assert sum(cases for name, (_, cases, _) in KINDS.items() if name != 'files_that_may_not_be_read') >= 2000
    assert seeds.__wrapped__() == seeds()
    def written(name, tmp):
        (tmp / 'root' / '7').mkdir(parents=True)
        KINDS[name][0](generator(name, 7), tmp / 'root' / '7', 7)
        return [content for content, *_ in contents(tmp / 'root').values()]
    for name in ('truncated', 'flipped_bits', 'spoilt_manifests'):
        assert written(name, tmp_path / name / 'first') == written(name, tmp_path / name / 'second')


def test_a_touch_outside_would_be_noted(watched):
    write_canaries(watched / 'outside')
    (watched / 'link.wav').symlink_to('outside/canary.wav')
    for touch in (lambda path: path.read_bytes(), lambda path: sf.read(path), lambda path: sf.SoundFile(str(path)).close(),
                  lambda path: os.listdir(path.resolve().parent),
                  lambda path: (watched / 'outside' / 'new').write_bytes(b'')):
        with strictly(watched / 'outside'): touch(watched / 'link.wav')
        assert TOUCHED
    with strictly(watched / 'outside'): load_or_not(watched / 'absent')
    assert not TOUCHED


def load_or_not(path: Path) -> None:
    with pytest.raises(BadInput): load_audio(path)
