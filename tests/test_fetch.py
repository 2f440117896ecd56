"Fetching a corpus from a server on this machine: complete, interrupted, damaged, refused."
import hashlib
import io
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from cdser import fetch as fetching
from cdser.config import BadInput
from cdser.corpora import released
from cdser.fetch import ORIGINS, Origin, fetch, list_origins, open_session, origin, terms

CORPORA = sorted(ORIGINS)


def recording(number: int) -> bytes:
    return bytes([number]) * 1600


def pack(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, 'w') as archive:
        for path, member in files.items():
            archive.writestr(path, member)
    return content.getvalue()


class Handler(BaseHTTPRequestHandler):
    "Serves `server.files`. `busy` answers are 503, and after `patience` bytes it hangs up in the middle of an answer."
    def do_GET(self) -> None:
        server, path = self.server, unquote(self.path[1:])
        with server.lock:
            server.busy -= 1
            if server.busy >= 0 or path not in server.files:
                return self.send_error(503 if server.busy >= 0 else 404)
            body = server.files[path]
            sent = body[:max(0, server.patience)]
            server.patience -= len(body)
            server.asked.append(path)
        server.before_sending(path)
        self.send_response(302 if path in server.redirects else 200)
        self.send_header('Content-Length', str(len(body)))
        if path in server.redirects:
            self.send_header('Location', server.redirects[path])
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    running = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    running.files, running.asked, running.redirects = {}, [], {}
    running.lock, running.busy, running.patience = threading.Lock(), 0, 10**9
    running.before_sending = lambda path: None
    running.address = f'http://127.0.0.1:{running.server_port}/'
    thread = threading.Thread(target=running.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def publish(monkeypatch, server, files: dict[str, bytes], unknown: str = '', **about) -> None:
    "Make `files` the corpus `tones`; its manifest has no checksum for `unknown`."
    rows = [(path, '' if path == unknown else hashlib.sha256(content).hexdigest()) for path, content in files.items()]
    monkeypatch.setattr(fetching, 'released', lambda name: pd.DataFrame(rows, columns=['path', 'sha256']))
    about = dict(base_url=server.address) | about
    monkeypatch.setitem(ORIGINS, 'tones', Origin('Tones', 'nobody', 'CC0', server.address, '*.wav', **about))


@pytest.fixture
def tones(server, monkeypatch) -> dict[str, bytes]:
    "A corpus of single files on the server, one name with a blank and one with letters beyond ASCII."
    files = {f'samples/{name}.wav': recording(i) for i, name in enumerate(['one two', 'żółw', *'abcdef'])}
    server.files.update(files)
    publish(monkeypatch, server, files)
    return files


@pytest.fixture
def boxed(server, monkeypatch):
    "Put an archive on the server, with members beside the corpus's recordings; returns the recordings."
    def put(others: dict[str, bytes], **about) -> dict[str, bytes]:
        files = {f'wav/{i}.wav': recording(i) for i in range(6)}
        archive = pack({f'top/{path}': content for path, content in files.items()} | others)
        server.files['tones.zip'] = archive
        checksum = 'md5:' + hashlib.md5(archive).hexdigest()
        about = dict(archive='tones.zip', checksum=checksum, top='top') | about
        publish(monkeypatch, server, files, 'wav/3.wav', **about)
        return files
    return put


def get(folder: Path, **options) -> int:
    return fetch('tones', folder, accept_licence=True, progress=False, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# ---- origins and terms

@pytest.mark.parametrize('name', CORPORA)
def test_every_origin_has_all_that_a_user_needs(name):
    o = origin(name)
    needed = (o.title, o.citation, o.licence, o.home, o.layout)
    assert all(needed) and all(text in terms(name) for text in needed) and name in list_origins().index
    assert bool(o.ask) != bool(o.base_url) and bool(o.archive) == bool(o.checksum)
    assert not o.base_url or re.fullmatch(r'https://.*/', o.base_url)
    assert not o.checksum or re.fullmatch(r'md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}', o.checksum)
    if o.base_url:
        table = released(name)
        assert table.path.is_unique and len(table) > 300
        assert o.archive or table.sha256.str.fullmatch('[0-9a-f]{64}').all()


@pytest.mark.parametrize('name', CORPORA)
def test_nothing_is_fetched_before_the_licence_is_accepted_or_if_the_owners_must_be_asked(name, tmp_path):
    must_ask = ORIGINS[name].ask
    with pytest.raises(BadInput, match='got by hand' if must_ask else 'accept_licence=True') as err:
        fetch(name, tmp_path / name, accept_licence=bool(must_ask))
    assert terms(name) in str(err.value) and must_ask in str(err.value) and not list(tmp_path.iterdir())


# ---- file by file

def test_only_missing_files_are_fetched_and_other_files_stay(tones, server, tmp_path):
    (tmp_path / 'tones').mkdir()
    (tmp_path / 'tones' / 'notes.txt').write_text('mine')
    server.busy = 2 # asked again
    assert get(tmp_path / 'tones') == len(tones) and sorted(server.asked) == sorted(tones)
    assert contents(tmp_path / 'tones') == tones | {'notes.txt': b'mine'}
    (tmp_path / 'tones' / 'samples' / 'żółw.wav').unlink()
    server.asked.clear()
    assert get(tmp_path / 'tones') == 1 and server.asked == ['samples/żółw.wav']
    server.files = {f'mirror/{path}': content for path, content in tones.items()}
    (tmp_path / 'tones' / 'samples' / 'a.wav').unlink()
    assert get(tmp_path / 'tones', base_url=server.address + 'mirror') == 1
    assert get(tmp_path / 'tones') == 0 and contents(tmp_path / 'tones') == tones | {'notes.txt': b'mine'}


@pytest.mark.parametrize('block', [lambda path: path.write_bytes(b'mine'), Path.mkdir,
                                   lambda path: path.symlink_to('nowhere')], ids=['file', 'folder', 'link'])
def test_another_file_with_the_name_of_a_released_one_is_named_and_never_replaced(tones, server, tmp_path, block):
    path = tmp_path / 'samples' / 'a.wav'
    path.parent.mkdir()
    block(path)
    before = path.lstat()
    with pytest.raises(BadInput, match=r"1 files are not as they were released, the first is 'samples/a\.wav'"):
        get(tmp_path)
    assert not server.asked and path.lstat() == before


def test_a_file_that_appears_during_the_fetch_is_not_replaced_either(tones, server, tmp_path):
    mine = tmp_path / 'samples' / 'e.wav'
    server.before_sending = lambda path: path == 'samples/e.wav' and mine.write_bytes(b'mine')
    with pytest.raises(BadInput, match=r'samples/e\.wav: another file has this name'):
        get(tmp_path, workers=1)
    assert mine.read_bytes() == b'mine'


@pytest.mark.parametrize('workers', [1, 4])
def test_an_interrupted_fetch_goes_on_with_what_is_there(tones, server, tmp_path, workers):
    server.patience = len(tones['samples/a.wav']) * 9 // 2
    abandoned = tmp_path / '.cdser-drafts-killed' / 'draft'
    abandoned.parent.mkdir()
    abandoned.touch()
    with pytest.raises(BadInput, match='call again to go on'):
        get(tmp_path, workers=workers)
    came = contents(tmp_path)
    assert 1 <= len(came) <= 4 and came.items() <= tones.items()
    server.patience = 10**9
    server.asked.clear()
    assert get(tmp_path, workers=workers) == len(tones) - len(came) and not set(server.asked) & set(came)
    assert contents(tmp_path) == tones


def test_several_fetches_into_one_folder_share_the_work(tones, server, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        fetched = list(pool.map(lambda _: get(tmp_path / 'tones'), range(3)))
    assert sorted(fetched) == [0, 0, len(tones)] and contents(tmp_path / 'tones') == tones


@pytest.mark.parametrize('wrong', [b'', b'version https://git-lfs.github.com/spec/v1', bytes(5 << 20)],
                         ids=['empty', 'pointer', 'too large'])
def test_a_wrong_file_is_refused_and_not_left(tones, server, tmp_path, wrong):
    server.files['samples/e.wav'] = wrong
    with pytest.raises(BadInput, match=r'samples/e\.wav: is not the released file'):
        get(tmp_path)
    assert contents(tmp_path).items() <= tones.items()


def test_an_absent_file_a_silent_server_and_an_unwritable_folder_are_one_error(tones, server, tmp_path):
    del server.files['samples/c.wav']
    with pytest.raises(BadInput, match=r'samples/c\.wav: cannot be fetched .*404.*base_url'):
        get(tmp_path)
    with pytest.raises(BadInput, match='cannot be fetched'):
        get(tmp_path, base_url='http://127.0.0.1:9/')
    (tmp_path / 'file').write_text('not a folder')
    with pytest.raises(BadInput, match='cannot be written'):
        get(tmp_path / 'file' / 'tones')


# ---- addresses

@pytest.mark.parametrize('address', ['nowhere', 'http://zenodo.org/', 'file:///etc/', 'http://127.0.0.1.example/'])
def test_an_address_without_encryption_is_refused(tones, tmp_path, address):
    with pytest.raises(BadInput, match='address that begins with https://'):
        get(tmp_path, base_url=address)


def test_a_redirect_never_changes_the_scheme(tones, server, tmp_path):
    assert list(open_session('https://zenodo.org/', 1).adapters) == ['https://']
    server.redirects['samples/a.wav'] = server.address + 'samples/b.wav' # followed; the checksum decides
    with pytest.raises(BadInput, match=r'samples/a\.wav: is not the released file'):
        get(tmp_path)
    for target in ('file:///etc/passwd', 'https://127.0.0.1:9/', 'http://[', server.address + 'samples/a.wav'):
        server.redirects['samples/a.wav'] = target
        with pytest.raises(BadInput, match=r'samples/a\.wav: cannot be fetched'):
            get(tmp_path)


# ---- archives

def test_an_archive_is_unpacked_within_the_folder_and_replaces_nothing(boxed, server, tmp_path):
    link = zipfile.ZipInfo('top/link')
    link.external_attr = 0o120777 << 16
    odd = {'top/../../out.wav': b'', '/etc/x': b'', 'top/C:x': b'', 'top/a\\b': b'', 'top/__MACOSX/._0.wav': b'',
           'top/.hidden': b'', 'other/x.txt': b'', link: b'/etc/passwd', 'top/labels.txt': b'labels', 'top/empty/': b''}
    files = boxed(odd)
    mine = {'wav/3.wav': b'mine', 'labels.txt': b'mine'} # wav/3.wav has no checksum, so any content counts
    (tmp_path / 'tones' / 'wav').mkdir(parents=True)
    for path, content in mine.items():
        (tmp_path / 'tones' / path).write_bytes(content)
    assert get(tmp_path / 'tones') == len(files) - 1
    assert contents(tmp_path / 'tones') == files | mine | {'link': b'/etc/passwd'}
    assert not (tmp_path / 'tones' / 'link').is_symlink() and not (tmp_path / 'out.wav').exists()
    assert get(tmp_path / 'tones') == 0 and server.asked == ['tones.zip']


@pytest.mark.parametrize('others, about, error', [
    ({}, dict(checksum='md5:' + '0' * 32), r'tones\.zip: is not the released file'),
    ({}, dict(top=''), r'tones\.zip: 6 files of the manifest are not in it'),
    ({'top/wav/2.wav': b'other'}, {}, "'wav/2.wav' in it is not the released file")])
def test_an_archive_with_other_contents_is_refused(boxed, tmp_path, others, about, error):
    boxed(others, **about)
    with pytest.raises(BadInput, match=error):
        get(tmp_path)
    assert 'wav/2.wav' not in contents(tmp_path)
