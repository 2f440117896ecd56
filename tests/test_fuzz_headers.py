"Headers of every container that is read, with each number in them rewritten: read, or refused with one error that names the file."
import struct
from functools import cache

import numpy as np
import soundfile as sf

from cdser.audio import load_audio
from fuzzing import fuzzed, naming, pick
from test_fuzz import check_samples, checksum, recording, seeds, voice

Field = tuple[int, str] # where in the file, and how it is packed


def chunks(content: bytes, at: int, length: str, names: int = 4) -> dict[bytes, int]: # name -> where its content begins
    "The chunks of a file in the way of RIFF."
    found, size = {}, struct.calcsize(length)
    while at + names + size <= len(content):
        found[content[at:at + names]] = at + names + size
        held = struct.unpack_from(length, content, at + names)[0]
        at += names + size + held + held % 2
    return found


def fields_of(name: str) -> list[Field]:
    "The numbers that a file says of itself."
    content, kind = seeds()[name], name.rsplit('.')[-1]
    if content[:4] in (b'RIFF', b'RF64'):
        found = chunks(content, 12, '<I')
        sizes = [(4, '<I'), *((at - 4, '<I') for at in found.values())]
        sizes += [(found[b'fmt '] + at, how) for at, how in ((0, '<H'), (2, '<H'), (4, '<I'), (8, '<I'), (12, '<H'), (14, '<H'))]
        if b'ds64' in found: sizes += [(found[b'ds64'] + at, how) for at, how in ((0, '<Q'), (8, '<Q'), (16, '<Q'), (24, '<I'))]
        if b'fact' in found: sizes += [(found[b'fact'], '<I')]
        return sizes
    if kind == 'aiff':
        found = chunks(content, 12, '>I')
        return [(4, '>I'), *((at - 4, '>I') for at in found.values()), (found[b'SSND'], '>I'), (found[b'SSND'] + 4, '>I'),
                *((found[b'COMM'] + at, how) for at, how in ((0, '>h'), (2, '>I'), (6, '>h'), (8, '>H'), (10, '>Q')))]
    if kind == 'au': return [(at, '>I') for at in range(4, 24, 4)]
    if kind == 'w64':
        data, form = content.find(b'data'), content.find(b'fmt ')
        return [(16, '<Q'), (data + 16, '<Q'), (form + 16, '<Q'), *((form + 24 + at, how) for at, how in ((0, '<H'), (2, '<H'), (4, '<I'), (12, '<H'), (14, '<H')))]
    if kind == 'caf':
        desc, data = content.find(b'desc'), content.find(b'data')
        return [(desc + 4, '>q'), (desc + 12, '>Q'), *((desc + at, '>I') for at in (20, 24, 28, 32, 36, 40)), (data + 4, '>q')]
    if kind in ('ogg', 'opus'):
        pages = [at for at in range(len(content)) if content[at:at + 4] == b'OggS']
        first = 28 + (8 if kind == 'opus' else 7) # channels and rates, after the packet's name
        return [*((at + 6, '<q') for at in pages), *((at + 26, '<B') for at in pages), *((at + 18, '<I') for at in pages), (pages[0] + 5, '<B'), (pages[-1] + 5, '<B'),
                (first, '<I'), (first + 1, '<B'), (first + 2, '<H'), (first + 4, '<I'), (first + 5, '<I')]
    if kind == 'mp3':
        frames = [at for at in range(len(content) - 1) if content[at] == 0xff and content[at + 1] >> 5 == 7]
        info = max(content.find(b'Xing'), content.find(b'Info'))
        return [*((at + 1, '>B') for at in frames), *((at + 2, '>B') for at in frames), *((info + at, '>I') for at in (4, 8, 12) if info > 0)]
    return [(8, '>H'), (10, '>H'), (18, '>Q'), (5, '>H')] # FLAC


@cache
def described() -> dict[str, list[Field]]:
    found = {name: fields_of(name) for name in seeds()}
    return {name: [(at, how) for at, how in fields if 0 <= at <= len(seeds()[name]) - struct.calcsize(how)] for name, fields in found.items()}


def rewritten(rng, held: int, bits: int) -> int:
    "Another number: an extreme one, or one beside what is true."
    top = 2**bits - 1
    return int(pick(rng, (0, 1, 2, 7, 8, top, top - 1, top // 2, top // 2 + 1, held + 1, held - 1, held + 2, held - 2, held * 2, held // 2, held * 256,
                          rng.integers(min(top, 2**32)), 4_000, 192_000, 2**24))) & top


def mended(content: bytearray) -> bytes:
    "The same with checksums of Ogg's pages that are right again."
    at = 0
    while content[at:at + 4] == b'OggS' and at + 27 < len(content):
        end = at + 27 + content[at + 26] + sum(content[at + 27:at + 27 + content[at + 26]])
        content[at + 22:at + 26] = bytes(4)
        content[at + 22:at + 26] = checksum(bytes(content[at:end])).to_bytes(4, 'little')
        at = end
    return bytes(content)


def listen(folder, name: str, content: bytes, max_seconds: float | None):
    (folder / name).write_bytes(content)
    def ask():
        samples = load_audio(folder / name, max_seconds)
        check_samples(samples, max_seconds or 1e9)
        assert len(samples) < 300 * len(content), f'{len(samples)} samples in {len(content)} bytes'
    return naming((str(folder / name),), ask)


@fuzzed('audio headers', short=500)
def test_rewritten_headers_of_every_container(rng, folder, number):
    "One number after the other, each in turn; then several together."
    every = [(name, field) for name, fields in described().items() for field in fields]
    name, field = every[number * 101 % len(every)]
    content = bytearray(seeds()[name])
    for at, how in [field, *(pick(rng, described()[name]) for _ in range(int(pick(rng, (0, 0, 0, 1, 3)))))]:
        held = struct.unpack_from(how, content, at)[0]
        value = rewritten(rng, held, 8 * struct.calcsize(how))
        struct.pack_into(how.upper(), content, at, value)
    return listen(folder, name, mended(content) if content[:4] == b'OggS' and rng.random() < .8 else bytes(content), pick(rng, (None, None, 15., .2)))


CLAIMS = {'wav': [('RIFF', 4, '<I'), ('data', 4, '<I')], 'aiff': [('FORM', 4, '>I'), ('SSND', 4, '>I'), ('COMM', 10, '>I')],
          'au': [('.snd', 8, '>I')], 'w64': [('riff', 16, '<Q'), ('data', 16, '<Q')], 'caf': [('data', 4, '>q')]}
SIZES = (1, 2, 3, 4, 63, 64, 65, 1000, 2**16, 2**24, 2**30, 2**31 - 1, 2**31, 2**32 - 1)


@fuzzed('audio headers', short=140)
def test_sizes_that_are_claimed(rng, folder, number):
    "A file that says it is larger or smaller than it is, by little or much; nothing is set aside for what is only claimed."
    kind = list(CLAIMS)[number % len(CLAIMS)]
    name = {'wav': pick(rng, ('pcm16.wav', 'pcm24.wav', 'float.wav', 'rf64.wav', 'ulaw.wav'))}.get(kind, f'a.{kind}')
    content, by = bytearray(seeds()[name]), int(pick(rng, (-1, 1))) * SIZES[number // len(CLAIMS) % len(SIZES)]
    for word, after, how in CLAIMS[kind][:int(pick(rng, (1, 2, 3)))]:
        at = bytes(content).find(word.encode())
        if at < 0: continue
        value = struct.unpack_from(how, content, at + after)[0] + by
        struct.pack_into(how.upper(), content, at + after, value % 2 ** (8 * struct.calcsize(how)))
    return listen(folder, name, bytes(content), pick(rng, (None, 15.)))


def test_every_container_has_fields_that_are_where_they_are_said_to_be():
    assert {name.rsplit('.')[-1] for name in described()} == {'wav', 'flac', 'ogg', 'opus', 'mp3', 'aiff', 'au', 'caf', 'w64'}
    assert all(len(fields) >= 4 for fields in described().values())
    frames = len(voice())
    for name, at, how in (('pcm16.wav', 40, '<I'), ('a.au', 8, '>I')):
        assert (at, how) in described()[name] and struct.unpack_from(how, seeds()[name], at)[0] == 2 * frames
    aiff = [struct.unpack_from(how, seeds()['a.aiff'], at)[0] for at, how in described()['a.aiff']]
    assert frames in aiff and 2 * frames + 8 in aiff
    assert 2 * frames + 24 in [struct.unpack_from(how, seeds()['a.w64'], at)[0] for at, how in described()['a.w64']]
    assert mended(bytearray(seeds()['a.ogg'])) == seeds()['a.ogg']
    assert isinstance(recording(voice(), 16_000, 'WAV'), bytes) and np.isfinite(voice()).all() and 'OGG' in sf.available_formats()
