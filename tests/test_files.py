"Files and folders are whole or not there, whoever writes at the same time, and digests are those of the content."
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdser.config import BadInput
from cdser.files import build_folder, check_apart, content_digest, content_digests, locked, write_file


def at_once(tasks: list) -> list:
    "The result or the exception of each, all started together."
    answers, gate = [None] * len(tasks), threading.Barrier(len(tasks))
    def work(i):
        gate.wait()
        try:
            answers[i] = tasks[i]()
        except Exception as err: # noqa: BLE001 (it is compared below)
            answers[i] = err
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@settings(max_examples=10)
@given(sizes=st.lists(st.integers(1, 300_000), min_size=2, max_size=6))
def test_a_file_that_many_write_is_always_one_of_theirs_and_whole(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp('file')
    path, contents = folder / 'a.txt', [str(i) * size for i, size in enumerate(sizes)]
    write_file(path, contents[0])
    def write(content):
        return lambda: [write_file(path, content) for _ in range(5)] and 'written'
    def read():
        return {path.read_text() for _ in range(40)} <= set(contents)
    assert at_once([*map(write, contents), read, read]) == ['written'] * len(sizes) + [True, True]
    assert path.read_text() in contents and [path.name for path in folder.iterdir()] == ['a.txt']


@settings(max_examples=15)
@given(fails=st.lists(st.booleans(), min_size=2, max_size=8))
def test_a_folder_that_many_build_is_built_once_and_whole(tmp_path_factory, fails):
    place = tmp_path_factory.mktemp('folder') / 'deep' / 'built'
    def build(i, fail):
        def write(draft):
            (draft / 'first').write_text(str(i))
            if fail:
                raise KeyError(i)
            (draft / 'last').write_text(str(i))
        def make():
            with locked(place):
                return build_folder(place, write)
        return make
    answers = at_once([build(i, fail) for i, fail in enumerate(fails)])
    made = [i for i, answer in enumerate(answers) if answer is True]
    assert len(made) == (not all(fails))
    assert all(fails[i] for i, answer in enumerate(answers) if isinstance(answer, Exception))
    if made:
        assert [(place / name).read_text() for name in ('first', 'last')] == [str(made[0])] * 2
    assert [path.name for path in place.parent.glob('[!.]*')] == ['built'] * len(made)
    assert not list(place.parent.glob('.draft*'))


HOLD = """
import sys, time
from pathlib import Path
from cdser.files import build_folder, locked
place = Path(sys.argv[1])
def write(draft):
    (draft / 'half').write_text('')
    print('writing', flush=True)
    time.sleep(60)
with locked(place): build_folder(place, write)
"""


def test_a_killed_process_holds_nothing_and_its_draft_goes_with_the_next(tmp_path):
    place = tmp_path / 'run'
    holder = subprocess.Popen([sys.executable, '-c', HOLD, place], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b'writing\n'
    with locked(place, wait=False) as held:
        assert not held
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert list(tmp_path.glob('.draft-run-*'))
    with locked(place) as held:
        assert held and build_folder(place, lambda draft: (draft / 'whole').write_text(''))
    assert {path.name for path in tmp_path.iterdir()} - {'.locks'} == {'run'} and (place / 'whole').exists()


def test_nothing_that_is_there_is_replaced(tmp_path):
    for name, make in dict(file=Path.touch, folder=Path.mkdir, link=lambda path: path.symlink_to('absent')).items():
        make(tmp_path / name)
        assert not build_folder(tmp_path / name, lambda draft: pytest.fail('written'))


def test_results_and_recordings_stay_apart(tmp_path):
    (tmp_path / 'corpora' / 'mine').mkdir(parents=True)
    (tmp_path / 'link').symlink_to('corpora')
    for name in ('corpora', 'corpora/mine/runs', '.', 'link/mine'):
        with pytest.raises(BadInput, match='runs_dir: .* overlap'):
            check_apart('runs_dir', tmp_path / name, tmp_path / 'corpora')
    check_apart('runs_dir', tmp_path / 'runs', tmp_path / 'corpora')


@settings(max_examples=15)
@given(contents=st.lists(st.binary(max_size=20), min_size=1, max_size=6),
       changes=st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=20)), max_size=4))
def test_a_remembered_digest_is_that_of_the_content(tmp_path_factory, contents, changes):
    folder = tmp_path_factory.mktemp('digests')
    paths = [folder / str(i) for i in range(len(contents))]
    for path, content in zip(paths, contents):
        path.write_bytes(content)
    for at, content in [(0, contents[0]), *changes]:
        write_file(paths[at % len(paths)], content)
        expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        assert content_digests(paths, folder / 'memory.json') == expected


def test_an_unchanged_file_is_not_read_again_and_one_changed_in_place_is(tmp_path, monkeypatch):
    path, memory = tmp_path / 'a', tmp_path / 'memory.json'
    path.write_bytes(b'first')
    monkeypatch.setattr('cdser.files.time.time_ns', lambda: 2**62) # long after the change
    digest = content_digests([path], memory)
    with monkeypatch.context() as patched:
        patched.setattr('cdser.files.content_digest', lambda path: pytest.fail('read again'))
        assert content_digests([path], memory) == digest
    times = path.stat()
    path.write_bytes(b'other')
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_digests([path], memory) == [content_digest(path)] != digest
    whole = memory.read_bytes()
    for damaged in (b'', b'[]', whole.replace(b'"', b'', 1), whole.replace(digest[0][:4].encode(), b'0000')):
        memory.write_bytes(damaged)
        assert content_digests([path], memory) == [content_digest(path)]


def test_a_missing_file_is_one_error(tmp_path):
    os.mkfifo(tmp_path / 'pipe') # which would never end
    for name in ('absent', 'pipe'):
        with pytest.raises(BadInput, match=f'{name}: there is no such file'):
            content_digests([tmp_path / name], tmp_path / 'memory.json')
