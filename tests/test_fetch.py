"Fetching a corpus from a server on the loopback: whole, stopped, resumed, damaged, refused."
import hashlib
import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from urllib3.util import Retry

from cdser import fetch as fetching
from cdser.config import BadInput
from cdser.corpora import load_corpus, released
from cdser.fetch import ORIGINS, PARTIAL, Origin, fetch, list_origins, origin, terms

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
    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.patience, self.ranges, self.busy, self.asked, self.lock = {}, float('inf'), True, 0, [], threading.Lock()
        self.address = f'http://127.0.0.1:{self.server_port}/'

    def paths(self) -> list[str]: return [path for path, _, _ in self.asked]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, path = self.server, unquote(self.path[1:])
        with server.lock:
            if server.busy:
                server.busy -= 1
                return self.send_error(503)
            body = server.files.get(path)
            if body is None: return self.send_error(404)
            start = int(re.sub(r'\D', '', self.headers.get('Range', '0'))) if server.ranges else 0
            if start and start >= len(body): return self.send_error(416)
            sent = body[start:start + min(len(body), server.patience)]
            server.patience -= len(sent)
            server.asked.append((path, start, len(sent)))
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(body) - start))
        self.end_headers()
        self.wfile.write(sent)

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
    (tmp_path / 'samples' / 'a.wav').write_bytes(b'damaged')
    (tmp_path / 'samples' / 'żółw.wav').unlink()
    assert get(tmp_path) == 2 and sorted(server.paths()) == ['samples/a.wav', 'samples/żółw.wav']
    assert held(tmp_path) == tones


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
    with pytest.raises(BadInput, match='cannot be had from nowhere'): get(tmp_path / 'other', base_url='nowhere')


@pytest.mark.parametrize('wrong', [b'', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 8\n'], ids=['empty', 'pointer'])
def test_a_corrupted_file_is_refused_and_not_left(tones, server, tmp_path, wrong):
    server.files['samples/e.wav'] = wrong
    (tmp_path / 'samples').mkdir()
    (tmp_path / 'samples' / 'e.wav').write_bytes(b'older and wrong, too')
    with pytest.raises(BadInput, match=r'samples/e\.wav: .* is not the released file, its checksum differs'): get(tmp_path)
    assert wrong not in held(tmp_path).values()
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
    (tmp_path / PARTIAL / 'samples' / 'tmp1234').write_bytes(b'half')
    assert get(tmp_path) == 0 and held(tmp_path) == tones


def test_what_is_fetched_is_what_the_reader_of_the_corpus_reads(server, monkeypatch, tmp_path):
    files = {f'{word}/SM{i}_F1_{word[0]}01.wav': recording(i) for i, word in enumerate(['Angry', 'Happy', 'Neutral', 'Sad'])}
    server.files.update(files)
    publish(monkeypatch, files, ORIGINS['urdu'])
    assert fetch('urdu', tmp_path / 'urdu', accept_licence=True, base_url=server.address, progress=False) == 4
    corpus = load_corpus('urdu', tmp_path)
    assert corpus.table.path.tolist() == sorted(files) and corpus.table.label.tolist() == ['ang', 'hap', 'neu', 'sad']
