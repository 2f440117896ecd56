"Fetching a corpus from a server on the loopback: whole, stopped, resumed, damaged, refused."
import gzip
import hashlib
import io
import logging
import re
import stat
import struct
import threading
import warnings
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import requests
import soundfile as sf
from urllib3 import HTTPResponse
from urllib3.util import Retry

from cdser import fetch as fetching
from cdser.config import BadInput
from cdser.corpora import load_corpus, released
from cdser.fetch import ORIGINS, PARTIAL, Origin, ask, check_address, fetch, find_members, list_origins, origin, terms, unpack
from cdser.files import locked

CORPORA = {'iemocap', 'msp_improv', 'msp_podcast', 'cremad', 'ravdess', 'emodb', 'savee', 'tess', 'nemo', 'urdu', 'esd', 'shemo'}


def recording(seed: int, samples: int = 800) -> bytes:
    held = io.BytesIO()
    sf.write(held, np.random.default_rng(seed).uniform(-.1, .1, samples), 16_000, format='WAV', subtype='PCM_16')
    return held.getvalue()


def pack(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, 'w') as archive:
        for path, content in files.items(): archive.writestr(path, content)
    return held.getvalue()


class Server(ThreadingHTTPServer):
    "Serves `files`; after `patience` bytes it hangs up in the middle of an answer."
    daemon_threads, request_queue_size = True, 64 # a queue of five would have eight workers wait a second

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.patience, self.ranges, self.busy, self.asked, self.lock = {}, float('inf'), True, 0, [], threading.Lock()
        self.address = f'http://127.0.0.1:{self.server_port}/'
        self.goes: dict[str, str] = {}     # path -> where the server sends on
        self.sends: dict[str, object] = {} # path -> what is called before the file is sent
        self.headers: dict[str, str] = {}  # that every answer gets; in place of its own
        self.endless = False               # an answer without a length, that does not end

    def paths(self) -> list[str]: return [path for path, _, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, path = self.server, unquote(self.path[1:])
        with server.lock:
            if server.busy:
                server.busy -= 1
                self.send_error(503)
                return
            if path in server.goes:
                self.answer(302, {'Location': server.goes[path], 'Content-Length': '0'})
                return
            body = server.files.get(path)
            if body is None:
                self.send_error(404)
                return
            start = int(re.sub(r'\D', '', self.headers.get('Range', '0'))) if server.ranges else 0
            if start and start >= len(body):
                self.send_error(416)
                return
            sent = body[start:start + min(len(body), server.patience)]
            server.patience -= len(sent)
            server.asked.append((path, start, len(sent)))
        server.sends.get(path, int)()
        about = {'Content-Range': f'bytes {start}-{len(body) - 1}/{len(body)}'} if start else {}
        if not server.endless: about['Content-Length'] = str(len(body) - start)
        self.answer(206 if start else 200, about | server.headers, sent)
        while server.endless:
            try: self.wfile.write(bytes(1 << 16))
            except OSError: return

    def answer(self, code: int, headers: dict[str, str], body: bytes = b'') -> None:
        self.send_response(code)
        for name, value in headers.items(): self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setattr(fetching, 'RETRY', Retry(total=3, backoff_factor=0, status_forcelist=(503,)))
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    thread.start()
    yield running
    running.shutdown(), running.server_close(), thread.join()


@pytest.fixture
def tones(server, monkeypatch) -> dict[str, bytes]:
    "A corpus `tones` of twelve files on the server, one name with a blank and one with a letter beyond ASCII."
    files = {f'samples/{name}.wav': recording(i) for i, name in enumerate(['one two', 'żółw', *'abcdefghij'])}
    server.files.update(files)
    publish(monkeypatch, files, Origin('Tones', 'nobody', 'CC0', server.address, 'samples/*.wav', base_url=server.address))
    return files


@pytest.fixture
def boxed(server, monkeypatch) -> dict[str, bytes]:
    "The corpus `tones` as an archive of 400 kB on the server; its manifest knows all checksums but one."
    files = {f'wav/{i}.wav': recording(i, 20_000) for i in range(10)}
    box(server, monkeypatch, {f'top/{path}': content for path, content in files.items()} | {'top/__MACOSX/._0.wav': b'', 'other/x.txt': b''})
    publish(monkeypatch, files, ORIGINS['tones'], unknown='wav/3.wav')
    return files


def publish(monkeypatch, files: dict[str, bytes], o: Origin, unknown: str = '') -> None:
    table = pd.DataFrame([dict(path=path, sha256='' if path == unknown else hashlib.sha256(content).hexdigest()) for path, content in files.items()])
    monkeypatch.setattr(fetching, 'released', lambda name: table)
    monkeypatch.setitem(ORIGINS, 'tones', o)


def box(server, monkeypatch, members: dict[str, bytes]) -> None:
    server.files['tones.zip'] = pack(members)
    checksum = 'md5:' + hashlib.md5(server.files['tones.zip']).hexdigest()
    monkeypatch.setitem(ORIGINS, 'tones', Origin('Tones', 'nobody', 'CC0', server.address, 'wav/*.wav', base_url=server.address,
                                                 archive='tones.zip', checksum=checksum, top='top'))


def get(folder: Path, **options) -> int:
    return fetch('tones', folder, accept_licence=True, progress=False, **options)


def held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def finals(folder: Path) -> dict[str, bytes]:
    return {path: content for path, content in held(folder).items() if not path.startswith(PARTIAL)}


def test_every_origin_says_all_that_a_user_needs():
    assert CORPORA <= set(ORIGINS)
    for name in CORPORA:
        o = origin(name)
        assert all((o.title, o.citation, o.licence, o.home, o.layout)) and re.match(r'https?://', o.home), name
        assert re.search(r' (19|20)\d\d$', o.citation), name
        assert bool(o.ask) != bool(o.base_url), f'{name}: either asked for or fetched'
        assert bool(o.archive) == bool(o.checksum) and (o.base_url or not o.archive), name
        assert not o.base_url or re.fullmatch(r'https://.*/', o.base_url), name
        assert not o.checksum or re.fullmatch(r'md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}', o.checksum), name
        assert all(said in terms(name) for said in (o.title, o.citation, o.licence, o.home, o.layout))
    assert CORPORA <= set(list_origins().index) and set(list_origins().how) == {'by hand', 'fetch, one archive', 'fetch, file by file'}


@pytest.mark.parametrize('name', sorted(name for name in CORPORA if ORIGINS[name].base_url))
def test_what_can_be_fetched_has_a_manifest_to_be_checked_against(name):
    table = released(name)
    assert table.path.is_unique and len(table) > 300
    if not ORIGINS[name].archive: assert table.sha256.str.fullmatch('[0-9a-f]{64}').all()


def test_a_whole_fetch_leaves_the_released_files_and_nothing_else(tones, server, tmp_path):
    assert get(tmp_path / 'new' / 'tones') == len(tones)
    assert held(tmp_path / 'new' / 'tones') == tones
    assert sorted(server.paths()) == sorted(tones)
    assert not (tmp_path / 'new' / 'tones' / PARTIAL).exists()


def test_a_second_fetch_downloads_nothing_and_leaves_other_files_alone(tones, server, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    get(tmp_path)
    server.asked.clear()
    assert get(tmp_path) == 0 and not server.asked
    assert held(tmp_path) == {**tones, 'notes.txt': b'mine'}


def test_a_damaged_or_deleted_file_alone_is_fetched_again(tones, server, tmp_path):
    get(tmp_path)
    server.asked.clear()
    (tmp_path / 'samples' / 'a.wav').rename(tmp_path / 'damaged')
    (tmp_path / 'samples' / 'żółw.wav').unlink()
    assert get(tmp_path) == 2 and sorted(server.paths()) == ['samples/a.wav', 'samples/żółw.wav']
    assert held(tmp_path) == {**tones, 'damaged': tones['samples/a.wav']}


def in_the_way(path: Path, what: str) -> None:
    path.unlink(missing_ok=True)
    if what == 'file': path.write_bytes(b'mine')
    elif what == 'folder': path.mkdir()
    else: path.symlink_to('nowhere')


@pytest.mark.parametrize('what', ['file', 'folder', 'link'])
def test_what_has_the_name_of_a_released_file_is_named_and_never_replaced(tones, server, tmp_path, what):
    get(tmp_path)
    server.asked.clear()
    in_the_way(tmp_path / 'samples' / 'a.wav', what)
    (tmp_path / 'samples' / 'b.wav').unlink()
    with pytest.raises(BadInput, match=r"1 files are not as they were released, the first is 'samples/a\.wav'; nothing was fetched.*move them away"): get(tmp_path)
    assert not server.asked and not (tmp_path / 'samples' / 'b.wav').exists()
    assert {'file': lambda path: path.read_bytes() == b'mine', 'folder': Path.is_dir, 'link': Path.is_symlink}[what](tmp_path / 'samples' / 'a.wav')
    assert not (tmp_path / PARTIAL).exists()


def test_what_appears_while_it_is_fetched_is_not_replaced_either(tones, server, tmp_path):
    server.sends['samples/e.wav'] = lambda: (tmp_path / 'samples' / 'e.wav').write_bytes(b'mine')
    with pytest.raises(BadInput, match=r'samples/e\.wav: something else has this name, and is not replaced'): get(tmp_path, workers=1)
    assert (tmp_path / 'samples' / 'e.wav').read_bytes() == b'mine'


@pytest.mark.parametrize('links', [True, False], ids=['links', 'no_links'])
def test_without_hard_links_files_are_placed_as_well(tones, server, tmp_path, monkeypatch, links):
    if not links: monkeypatch.setattr(fetching.os, 'link', lambda *_: (_ for _ in ()).throw(PermissionError('no links here')))
    assert get(tmp_path) == len(tones) and held(tmp_path) == tones


@pytest.mark.parametrize('workers', [1, 4])
def test_a_stopped_fetch_goes_on_where_it_was(tones, server, tmp_path, workers):
    server.patience = len(tones['samples/a.wav']) * 11 // 2
    with pytest.raises(BadInput, match=r'samples/.*call again to go on'): get(tmp_path, workers=workers)
    came = finals(tmp_path)
    assert 1 <= len(came) <= 5 and all(tones[path] == content for path, content in came.items())
    server.patience = float('inf')
    server.asked.clear()
    get(tmp_path, workers=workers)
    assert held(tmp_path) == tones and not set(server.paths()) & set(came)


def test_a_server_that_is_busy_is_asked_again(tones, server, tmp_path):
    server.busy = 3
    assert get(tmp_path, workers=1) == len(tones) and not server.busy


def test_no_server_at_all(tones, server, tmp_path):
    server.shutdown(), server.server_close()
    with pytest.raises(BadInput, match=r'samples/one two\.wav: cannot be had from http.*ConnectionError'): get(tmp_path, workers=1)
    assert not finals(tmp_path)


def test_a_file_that_is_gone_is_named_with_its_address(tones, server, tmp_path):
    del server.files['samples/c.wav']
    with pytest.raises(BadInput, match=rf'samples/c\.wav: {server.address}samples/c\.wav answers 404 Not Found.*base_url'): get(tmp_path)
    assert 'samples/c.wav' not in finals(tmp_path)


def test_another_address_can_be_given(tones, server, tmp_path):
    server.files = {f'mirror/{path}': content for path, content in tones.items()}
    assert get(tmp_path, base_url=server.address + 'mirror') == len(tones)
    with pytest.raises(BadInput, match='a corpus cannot be had from nowhere, .* give an address that begins with https://'): get(tmp_path / 'other', base_url='nowhere')


@pytest.mark.parametrize('wrong', [b'', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n'], ids=['empty', 'pointer'])
def test_a_corrupted_file_is_refused_and_not_left(tones, server, tmp_path, wrong):
    server.files['samples/e.wav'] = wrong
    with pytest.raises(BadInput, match=r'samples/e\.wav: .* is not the released file, its checksum differs'): get(tmp_path)
    assert wrong not in held(tmp_path).values() and 'samples/e.wav' not in finals(tmp_path)
    server.files['samples/e.wav'] = tones['samples/e.wav']
    get(tmp_path)
    assert held(tmp_path) == tones


def test_the_licence_is_shown_and_has_to_be_accepted(tones, server, tmp_path):
    for name in ('tones', 'nemo'):
        with pytest.raises(BadInput, match='accept_licence=True') as err: fetch(name, tmp_path / name)
        assert terms(name) in str(err.value)
    assert 'CC BY-NC-SA 4.0' in terms('nemo') and 'Christop 2024' in terms('nemo') and 'https://github.com/amu-cai/nEMO' in terms('nemo')
    assert not server.asked and not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', sorted(name for name in CORPORA if ORIGINS[name].ask))
def test_a_corpus_that_is_not_free_says_whom_to_ask(name, tmp_path):
    with pytest.raises(BadInput, match='got by hand') as err: fetch(name, tmp_path / name, accept_licence=True)
    assert ORIGINS[name].ask in str(err.value) and ORIGINS[name].layout in str(err.value) and ORIGINS[name].home in str(err.value)
    assert not list(tmp_path.iterdir())


def test_an_unknown_corpus_names_the_known_ones(tmp_path):
    with pytest.raises(BadInput, match="'nmeo' is not known; use one of .*nemo"): fetch('nmeo', tmp_path, accept_licence=True)


def test_a_folder_that_cannot_be_written(tones, server, tmp_path):
    (tmp_path / 'file').write_text('not a folder')
    with pytest.raises(BadInput, match='cannot be written'): get(tmp_path / 'file' / 'tones')
    (tmp_path / 'tones' / 'samples').parent.mkdir()
    (tmp_path / 'tones' / 'samples').write_text('in the way')
    with pytest.raises(BadInput, match='cannot be written'): get(tmp_path / 'tones')
    assert (tmp_path / 'tones' / 'samples').read_text() == 'in the way'


def test_an_archive_is_fetched_unpacked_and_removed(boxed, server, tmp_path):
    assert get(tmp_path) == len(boxed)
    assert held(tmp_path) == boxed and server.paths() == ['tones.zip']
    assert get(tmp_path) == 0 and server.paths() == ['tones.zip']


@pytest.mark.parametrize('ranges', [True, False], ids=['range', 'no_range'])
def test_an_archive_goes_on_within_itself(boxed, server, tmp_path, ranges):
    server.patience, size = 300_000, len(server.files['tones.zip'])
    with pytest.raises(BadInput, match=r'tones\.zip: cannot be had'): get(tmp_path)
    assert not finals(tmp_path)
    server.patience, server.ranges = float('inf'), ranges
    get(tmp_path)
    begun = (300_000 >> 16 << 16) if ranges else 0
    assert server.asked == [('tones.zip', 0, 300_000), ('tones.zip', begun, size - begun)]
    assert held(tmp_path) == boxed


def test_an_archive_that_had_come_whole_when_it_was_stopped(boxed, server, tmp_path):
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / 'tones.zip.part').write_bytes(server.files['tones.zip'])
    get(tmp_path)
    assert held(tmp_path) == boxed and not server.asked


def test_a_half_that_does_not_fit_is_thrown_away(boxed, server, tmp_path):
    (tmp_path / PARTIAL).mkdir()
    (tmp_path / PARTIAL / 'tones.zip.part').write_bytes(b'of another archive')
    with pytest.raises(BadInput, match=r'tones\.zip: .*its checksum differs'): get(tmp_path)
    assert not held(tmp_path)
    get(tmp_path)
    assert held(tmp_path) == boxed


def test_a_corrupted_archive_is_refused_and_not_left(boxed, server, tmp_path):
    server.files['tones.zip'] = server.files['tones.zip'][:-1] + b'?'
    with pytest.raises(BadInput, match=r'tones\.zip: .*its checksum differs'): get(tmp_path)
    assert not held(tmp_path)


def test_a_file_in_an_archive_is_held_against_the_manifest(boxed, server, monkeypatch, tmp_path):
    box(server, monkeypatch, {f'top/{path}': content[:-2] if path == 'wav/7.wav' else content for path, content in boxed.items()})
    with pytest.raises(BadInput, match=r'wav/7\.wav in it is not the released file'): get(tmp_path)
    assert 'wav/7.wav' not in finals(tmp_path)
    box(server, monkeypatch, {f'top/{path}': content for path, content in boxed.items() if path != 'wav/7.wav'})
    with pytest.raises(BadInput, match=r'1 files of the manifest are not in it, the first is wav/7\.wav'): get(tmp_path / 'empty')
    assert not finals(tmp_path / 'empty')


@pytest.mark.parametrize('evil', ['top/../../out.wav', '../out.wav', '/out.wav', 'top\\..\\out.wav', 'C:/out.wav'])
def test_an_archive_cannot_write_outside_the_folder(boxed, server, monkeypatch, tmp_path, evil):
    box(server, monkeypatch, {f'top/{path}': content for path, content in boxed.items()} | {evil: b'evil'})
    with pytest.raises(BadInput, match='leads out of the folder'): get(tmp_path / 'a' / 'b')
    assert not finals(tmp_path / 'a' / 'b') and b'evil' not in held(tmp_path).values()


def test_what_a_killed_fetch_left_behind_goes(tones, server, tmp_path):
    get(tmp_path)
    (tmp_path / PARTIAL / 'samples').mkdir(parents=True)
    (tmp_path / PARTIAL / 'samples' / 'a.wav.part').write_bytes(b'half')
    assert get(tmp_path) == 0 and held(tmp_path) == tones


@pytest.mark.parametrize('name', ['.partial', PARTIAL])
def test_a_folder_of_the_users_own_survives_whatever_it_is_called(tones, server, tmp_path, name):
    mine = {f'{name}/notes.txt': b'mine', f'{name}/samples/a.wav': b'mine, too'}
    for path, content in mine.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert get(tmp_path) == len(tones) and held(tmp_path) == {**tones, **mine}


def test_what_is_fetched_is_what_the_reader_of_the_corpus_reads(server, monkeypatch, tmp_path):
    files = {f'{word}/SM{i}_F1_{word[0]}01.wav': recording(i) for i, word in enumerate(['Angry', 'Happy', 'Neutral', 'Sad'])}
    server.files.update(files)
    publish(monkeypatch, files, ORIGINS['urdu'])
    assert fetch('urdu', tmp_path / 'urdu', accept_licence=True, base_url=server.address, progress=False) == 4
    corpus = load_corpus('urdu', tmp_path)
    assert corpus.table.path.tolist() == sorted(files) and corpus.table.label.tolist() == ['ang', 'hap', 'neu', 'sad']


# ---- whom to ask, and how much to take

@pytest.mark.parametrize('url', ['https://zenodo.org/records/1/', 'http://localhost:80/', 'http://127.3.2.1/', 'http://[::1]:8000/', 'HTTPS://host'])
def test_an_address_is_one_of_https_or_of_this_machine(url):
    assert check_address(url) == url


@pytest.mark.parametrize('url, why', [
    ('http://zenodo.org/', 'is not encrypted'), ('http://127.0.0.1.evil.org/', 'is not encrypted'), ('http://10.0.0.1/', 'is not encrypted'),
    ('file:///etc/passwd', 'no address'), ('ftp://host/', 'no address'), ('data:text/plain,x', 'no address'), ('//host/x', 'no address'),
    ('', 'no address'), ('https://', 'no address'), ('https://[::1', 'no address'), ('https://host/\x1b[2J', 'no address'),
    ('https://user:secret@host/', 'holds a password')])
def test_other_addresses_are_refused_on_one_line_that_can_be_printed(url, why, tmp_path):
    with pytest.raises(BadInput, match=why) as err: check_address(url)
    assert str(err.value).isprintable()
    if url:
        with pytest.raises(BadInput, match='base_url'): fetch('nemo', tmp_path, accept_licence=True, base_url=url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('goes, why', [
    ('https://127.0.0.1:1/x', 'leaves http'), ('file:///etc/passwd', 'no address'), ('ftp://127.0.0.1/x', 'no address'),
    ('http://evil.example/x', 'is not encrypted'), ('//evil.example/x', 'is not encrypted'), ('/samples/a.wav', 'sends on without end'),
    ('http://\x7f/', 'no address'), ('http://[', 'what is no address'), ('http://[::1', 'what is no address'), ('http://localhost:x/', 'ans|had|no address')])
def test_a_server_may_not_send_to_another_scheme_or_on_without_end(tones, server, tmp_path, goes, why):
    server.goes['samples/a.wav'] = goes
    with pytest.raises(BadInput, match=why) as err: get(tmp_path)
    assert str(err.value).isprintable() and 'samples/a.wav' not in finals(tmp_path)


class Hops:
    "A session whose servers send on as told, over https, which the loopback does not speak."
    def __init__(self, hops: dict[str, str]): self.hops, self.asked = hops, []

    def get(self, url: str, **options):
        assert options['allow_redirects'] is False
        self.asked.append(url)
        reply = requests.Response()
        reply.status_code, reply.raw = (302 if url in self.hops else 200), io.BytesIO()
        if url in self.hops: reply.headers['Location'] = self.hops[url]
        return reply


@pytest.mark.parametrize('to', ['http://a.org/x', 'http://127.0.0.1/x', 'file:///etc/passwd', 'ftp://a.org/x'])
@pytest.mark.parametrize('first', [{}, {'https://a.org/1': '/2', 'https://a.org/2': 'https://b.org/3'}], ids=['at once', 'after two hops'])
def test_no_hop_leaves_https(first, to):
    session = Hops({**first, 'https://b.org/3' if first else 'https://a.org/1': to})
    with pytest.raises(BadInput, match='leaves https|no address') as err: ask(session, 'https://a.org/1')
    assert to not in session.asked and to in str(err.value)


def test_hops_over_https_are_followed_to_any_host():
    session = Hops({'https://a.org/1': '/2', 'https://a.org/2': 'https://b.org/3'})
    assert ask(session, 'https://a.org/1').status_code == 200 and session.asked[-1] == 'https://b.org/3'


@pytest.mark.parametrize('wanted, pause', [('86400', 60), ('2', 2), (None, None)])
def test_a_server_may_ask_for_a_pause_of_a_minute_at_most(wanted, pause):
    reply = HTTPResponse(headers={'Retry-After': wanted} if wanted else {})
    assert fetching.Patience(3).get_retry_after(reply) == pause


def test_a_server_may_send_to_another_host_of_the_same_scheme(tones, server, tmp_path):
    server.files['stored'] = server.files.pop('samples/a.wav')
    server.goes |= {'samples/a.wav': 'hop', 'samples/hop': f'http://localhost:{server.server_port}/stored'}
    assert get(tmp_path) == len(tones) and held(tmp_path) == tones


@pytest.mark.parametrize('endless', [True, False])
def test_a_download_ends_where_it_is_larger_than_it_can_be(tones, server, monkeypatch, tmp_path, endless):
    monkeypatch.setitem(ORIGINS, 'tones', replace(ORIGINS['tones'], largest=100_000))
    server.endless, server.files['samples/a.wav'] = endless, bytes(1000 if endless else 100_001)
    with pytest.raises(BadInput, match=r'samples/.*sends more than 100,000 bytes, which no released file has; it was not kept'): get(tmp_path, workers=1)
    assert all(len(content) <= 100_000 for content in held(tmp_path).values()) and 'samples/a.wav' not in finals(tmp_path)


def test_a_file_as_large_as_it_can_be_is_taken(tones, server, monkeypatch, tmp_path):
    monkeypatch.setitem(ORIGINS, 'tones', replace(ORIGINS['tones'], largest=max(map(len, tones.values()))))
    assert get(tmp_path) == len(tones)


def test_what_is_known_of_every_origin_has_a_cap():
    for name, o in ORIGINS.items():
        assert 0 < o.largest <= (500 << 20 if o.archive else 4 << 20) and 0 < o.unpacked <= 2 << 30, name


@pytest.mark.parametrize('headers', [{'Content-Encoding': 'gzip'}, {'Content-Encoding': 'br'}])
def test_a_packed_answer_is_not_unpacked(tones, server, tmp_path, headers):
    server.headers, server.files['samples/a.wav'] = headers, gzip.compress(bytes(10**6))
    with pytest.raises(BadInput, match='sends something else than the file'): get(tmp_path, workers=1)
    assert not held(tmp_path)


@pytest.mark.parametrize('said', ['bytes 0-99/100', 'bytes */100', 'nonsense', 'bytes 1-', ''])
def test_the_rest_that_begins_elsewhere_is_not_appended(boxed, server, tmp_path, said):
    server.patience = 300_000
    with pytest.raises(BadInput, match='call again'): get(tmp_path)
    server.patience, server.headers = float('inf'), {'Content-Range': said}
    assert get(tmp_path) == len(boxed) and held(tmp_path) == boxed
    assert [start for _, start, _ in server.asked] == [0, 300_000 >> 16 << 16, 0]


def test_a_half_larger_than_the_file_can_be_is_begun_anew(boxed, server, tmp_path):
    (tmp_path / PARTIAL).mkdir()
    with open(tmp_path / PARTIAL / 'tones.zip.part', 'wb') as part: part.truncate(ORIGINS['tones'].largest + 1)
    assert get(tmp_path) == len(boxed) and held(tmp_path) == boxed


def test_the_rest_of_another_file_is_thrown_away(boxed, server, tmp_path):
    whole, server.patience = server.files['tones.zip'], 300_000
    with pytest.raises(BadInput, match='call again'): get(tmp_path)
    server.patience, server.files['tones.zip'] = float('inf'), bytes(len(whole))
    with pytest.raises(BadInput, match='its checksum differs; it was not kept'): get(tmp_path)
    server.files['tones.zip'] = whole
    assert not held(tmp_path) and get(tmp_path) == len(boxed) and held(tmp_path) == boxed


def test_a_file_without_a_checksum_is_not_taken_from_anywhere(tones, server, monkeypatch, tmp_path):
    publish(monkeypatch, tones, ORIGINS['tones'], unknown='samples/c.wav')
    with pytest.raises(BadInput, match=r'samples/c\.wav: has no checksum in the manifest'): get(tmp_path)


@pytest.mark.parametrize('code, says', [(204, 'sends something else'), (300, 'sends something else'), (206, 'sends something else'), (403, 'answers 403 Forbidden'),
                                        (599, 'answers 599 ;')])
def test_odd_answers_are_refused(tones, server, monkeypatch, tmp_path, code, says):
    monkeypatch.setattr(Handler, 'answer', lambda self, _, headers, body=b'', answer=Handler.answer: answer(self, code, headers, body))
    with pytest.raises(BadInput, match=says): get(tmp_path, workers=1)
    assert not finals(tmp_path)


# ---- the folder is the user's

@pytest.mark.parametrize('linked, what', [('samples', 'samples'), (PARTIAL, 'is a link that leads out'), (f'{PARTIAL}/samples/one two.wav.part', 'cannot be written')])
def test_nothing_is_written_through_a_link_that_leads_out(tones, server, tmp_path, linked, what):
    outside, folder = tmp_path / 'outside', tmp_path / 'tones'
    outside.mkdir()
    (folder / linked).parent.mkdir(parents=True, exist_ok=True)
    target = outside / 'file' if linked.endswith('.part') else outside
    (folder / linked).symlink_to(target)
    with pytest.raises(BadInput, match=what): get(folder, workers=1)
    assert not list(outside.iterdir()) and (folder / linked).is_symlink()


def test_a_folder_may_be_a_link_itself(tones, server, tmp_path):
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'tones').symlink_to('disk')
    assert get(tmp_path / 'tones') == len(tones) and held(tmp_path / 'disk') == tones


@pytest.mark.parametrize('said', ['9' * 400, '-1', 'many', '1, 2'])
def test_what_a_server_says_of_the_length_is_not_believed(tones, server, tmp_path, said):
    server.headers = {'Content-Length': said}
    try: fetch('tones', tmp_path, accept_licence=True, workers=1)
    except BadInput as err: assert 'cannot be had from' in str(err)
    assert all(tones[path] == content for path, content in finals(tmp_path).items())


def test_of_two_that_fetch_into_one_folder_the_second_waits(tones, server, tmp_path):
    with locked(tmp_path):
        with pytest.raises(BadInput, match='another process fetches into it; wait until that has ended'): get(tmp_path)
    assert not server.asked
    assert get(tmp_path) == len(tones) and held(tmp_path) == tones


def test_logging_is_left_as_it_was(tones, server, tmp_path):
    levels = lambda: {name: logging.getLogger(name).level for name in [*logging.root.manager.loggerDict, 'pooch', 'requests']}
    before = levels()
    get(tmp_path)
    assert {name: level for name, level in levels().items() if name in before} == before


@pytest.mark.parametrize('options, says', [(dict(workers=0), 'workers'), (dict(workers=1.5), 'workers'), (dict(workers='2'), 'workers'),
                                           (dict(folder='a\0b'), 'folder')])
def test_odd_parameters_are_one_clear_error(tones, server, tmp_path, options, says):
    with pytest.raises(BadInput, match=says) as err: get(**{'folder': tmp_path / 'tones', **options})
    assert str(err.value).isprintable() and not server.asked


# ---- archives that are not what they say

def member(name: str, kind: int = 0, **fields) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = kind << 16
    for field, value in fields.items(): setattr(info, field, value)
    return info


def written(members: list[tuple], compress: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, 'w', compress) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore') # of names that are there twice
        for name, content in members: archive.writestr(name, content, compress)
    return held.getvalue()


def patched(archive: bytes, fields: dict[int, tuple[str, int]], which: int = 0) -> bytes:
    "An archive with other values in one entry of its central list: offset -> (format, value)."
    found = bytearray(archive)
    at = [place.start() for place in re.finditer(b'PK\1\2', archive)][which]
    for offset, (kind, value) in fields.items(): struct.pack_into(f'<{kind}', found, at + offset, value)
    return bytes(found)


GOOD = ('top/wav/0.wav', b'speech' * 100)
BAD_ARCHIVES = {
    'a link': (written([GOOD, (member('top/wav/l.wav', stat.S_IFLNK | 0o777), b'/etc/passwd')]), 'is a link, or no plain file'),
    'a pipe': (written([GOOD, (member('top/wav/l.wav', stat.S_IFIFO), b'')]), 'is a link, or no plain file'),
    'a link elsewhere': (written([GOOD, (member('other/l', stat.S_IFLNK), b'..')]), 'is a link, or no plain file'),
    'a name twice': (written([GOOD, GOOD]), 'beside'),
    'a name in two cases': (written([GOOD, ('top/WAV/0.Wav', b'x')]), 'beside'),
    'a name in two forms of Unicode': (written([GOOD, ('top/\u00e9', b'x'), ('top/e\u0301', b'x')]), 'beside'),
    'a name twice by dots': (written([GOOD, ('top/./wav//0.wav', b'x')]), 'beside'),
    'a file that is a folder': (written([GOOD, ('top/wav', b'x')]), 'as a file and as a folder'),
    'a folder that is a file': (written([GOOD, ('top/Wav/0.wav/', b'')]), 'as a file and as a folder'),
    'a NUL': (written([GOOD]).replace(b'wav/0.wav', b'wav/0\0wav'), 'cannot be printed'),
    'an escape': (written([GOOD, ('top/\x1b[2J.wav', b'x')]), 'cannot be printed'),
    'a drive': (written([GOOD, ('top/C:x', b'x')]), 'leads out'),
    'a share': (written([GOOD, ('//host/share/x', b'x')]), 'leads out'),
    'encrypted': (patched(written([GOOD]), {8: ('H', 1)}), 'is encrypted'),
    'packed oddly': (written([GOOD], zipfile.ZIP_LZMA), 'is packed in an unknown way'),
    'a bomb': (written([GOOD, ('top/b', bytes(10**8))]), 'unpacks to 100,000,600 bytes, more than the'),
    'a bomb beside the corpus': (written([GOOD, ('other/b', bytes(10**8))]), 'unpacks to 100,000,600 bytes'),
    'a size that is a lie, smaller': (patched(written([GOOD]), {24: ('I', 5)}), 'damaged|has not the size'),
    'a size that is a lie, larger': (patched(written([GOOD]), {24: ('I', 5000)}), 'damaged|has not the size'),
    'a wrong checksum': (patched(written([GOOD]), {16: ('I', 7)}), 'damaged'),
    'a member that lies nowhere': (patched(written([GOOD]), {42: ('I', 10**6)}), 'damaged|is no zip'),
    'no list': (written([GOOD])[:-22], 'is no zip archive'),
    'a list of the long form': (written([GOOD])[:-22] + struct.pack('<4sIQI', b'PK\6\7', 0, 0, 1) + written([GOOD])[-22:], 'too long a list'),
    'a list without end': (written([GOOD])[:-10] + struct.pack('<I', 2**31) + written([GOOD])[-6:], 'too long a list'),
    'two ends, the first a lie': (written([GOOD])[:-10] + struct.pack('<I', 2**31) + written([GOOD])[-6:-2] + struct.pack('<H', 22) + written([GOOD])[-22:],
                                  'too long a list'),
    'no archive': (b'<html>404</html>' * 9, 'is no zip archive'),
    'empty': (b'', 'is no zip archive')}


@pytest.mark.parametrize('what', BAD_ARCHIVES)
def test_an_archive_that_is_not_what_it_says_is_refused_and_nothing_of_it_kept(tmp_path, what):
    content, says = BAD_ARCHIVES[what]
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in' / 'tones.zip.part').write_bytes(content)
    with pytest.raises(BadInput, match=says) as err: unpack(tmp_path / 'in' / 'tones.zip.part', tmp_path / 'out', BOX, {'wav/0.wav': ''})
    assert str(err.value).isprintable() and not (tmp_path / 'out').exists()


BOX = Origin('Tones', 'nobody', 'CC0', 'https://nowhere.example', 'wav/*.wav', top='top')


def test_a_good_archive_beside_them(tmp_path):
    (tmp_path / 'in.zip').write_bytes(written([(member('top/wav/', stat.S_IFDIR), b''), (member(GOOD[0], stat.S_IFREG | 0o4755), GOOD[1]), ('top/wav/\u017c.wav', b'x')]))
    unpack(tmp_path / 'in.zip', tmp_path / 'out', BOX, {'wav/0.wav': hashlib.sha256(GOOD[1]).hexdigest()})
    assert held(tmp_path / 'out') == {'wav/0.wav': GOOD[1], 'wav/\u017c.wav': b'x'}
    assert not (tmp_path / 'out' / 'wav' / '0.wav').stat().st_mode & 0o6111 # no mode of the archive's


def test_too_many_files_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(fetching, 'MEMBERS', 3)
    (tmp_path / 'in.zip').write_bytes(written([(f'top/{i}', b'x') for i in range(4)]))
    with pytest.raises(BadInput, match='holds 4 files, more than 3'): find_members(zipfile.ZipFile(tmp_path / 'in.zip'), BOX)
    monkeypatch.setattr(fetching, 'MEMBERS', 4)
    assert len(find_members(zipfile.ZipFile(tmp_path / 'in.zip'), BOX)) == 4


def test_unpacking_replaces_nothing_of_the_users(boxed, server, tmp_path):
    mine = {'wav/3.wav': b'mine', 'wav/notes.txt': b'mine'}
    for path, content in mine.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    assert get(tmp_path) == len(boxed) - 1 # wav/3.wav has no checksum, so any content counts
    assert held(tmp_path) == boxed | mine


def test_unpacking_follows_no_link_out_of_the_folder(boxed, server, monkeypatch, tmp_path):
    box(server, monkeypatch, {f'top/{path}': content for path, content in boxed.items()} | {'top/extra/x.txt': b'x'})
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'tones').mkdir()
    (tmp_path / 'tones' / 'extra').symlink_to('../outside')
    with pytest.raises(BadInput, match='extra/x.txt.*link that leads out'): get(tmp_path / 'tones')
    assert not list((tmp_path / 'outside').iterdir()) and not finals(tmp_path / 'tones')
