"The command line: one line, one status, nothing lost, whatever it is given."
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

import cdser.cli as module
from cdser.cli import main
from cdser.config import LABELS
from cdser.corpora import read_corpus, read_manifest
from cdser.splits import read_split
from cdser.synthetic import write_studios
from trees import paper_trees


@pytest.fixture(scope='module')
def kept(tmp_path_factory) -> Path:
    return write_studios(tmp_path_factory.mktemp('kept'), utterances=72, speakers=9, seconds=.4)[0]


@pytest.fixture
def studio(kept, tmp_path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / 'studio_a'))


def small(root: Path, speakers: dict[str, str], # speaker -> labels
          **columns) -> Path:
    "A corpus of a recording for each speaker and label."
    root.mkdir()
    pairs = [(label, speaker) for speaker, labels in speakers.items() for label in labels.split()]
    rows = [(f'{i}.wav', *pair) for i, pair in enumerate(pairs)]
    rng = np.random.default_rng(0)
    for path, *_ in rows:
        sf.write(root / path, .1 * rng.normal(size=4800).cumsum() / 40, 16_000)
    table = pd.DataFrame(rows, columns=['path', 'label', 'speaker'])
    table = table.assign(**{name: table.index.map(value) for name, value in columns.items()})
    table.to_csv(root / 'manifest.csv', index=False)
    return root


ALL = ' '.join(LABELS)


def one_line(capsys, *args) -> str:
    "The message of a command that fails: one line, and status 2."
    status = main(list(map(str, args)))
    printed = capsys.readouterr()
    assert status == 2 and not printed.out and printed.err.count('\n') == 1, (status, printed)
    assert printed.err.startswith('cdser: ')
    return printed.err


@pytest.mark.parametrize('args, message', [
    (('split', 'studio_a', '{}', '{}/s.csv', '--folds', '1'), "Invalid value for '--folds'"),
    (('audit', 'studio_a', '{}', '--folds', '2.5'), "Invalid value for '--folds'"),
    (('split', 'studio_a', '{}', '{}/s.csv', '--folds', '9'), '9 folds need as many speakers or sessions'),
    (('split', 'studio_a', '{}', '{}/s.csv', '--seed', '-1'), "Invalid value for '--seed'"),
    (('split', 'studio_a', '{}', '{}/s.csv', '--protocol', 'nonsense'), "Invalid value for '--protocol'"),
    (('split', 'studio_a', '{}', '{}/s.csv', '--protocol', 'leave_one_speaker_out', '--folds', '3'),
     'makes 9 here, not 3'),
    (('split', 'studio_a', '{}', '{}/no/s.csv'), 'cannot be written'),
    (('verify', 'studio_a', '{}', '--findings', '{}/no/f.csv'), 'is not a folder that can be written to'),
    (('verify', 'studio_a', '{}', '--manifest', '{}/manifest.csv'), 'is there already'),
    (('verify', 'studio_a', '{}', '--findings', '{}/manifest.csv'), 'is there already'),
    (('verify', 'studio_a', '{}', '--findings', '{}/x.csv', '--manifest', '{}/x.csv'),
     'x.csv is the file of --findings, too'),
    (('split', 'studio_a', '{}', '{}/manifest.csv', '--replace'), 'is there already, and is no'),
    (('split', 'studio_a', '{}', '{}/s.csv', '--label-map', '{}/none.csv'), 'none.csv'),
    (('audit', 'studio_a', '{}', '--against', 'studio_b', 'nowhere'), 'nowhere: there is no such folder'),
    (('runs', 'a\0'), 'is not a path'),
    (('verify', 'studio_a'), 'Missing argument'), (('audit', 'up/studio_a', '{}'), 'is not a plain name'),
    (('verify', 'studio_a', 'x' * 300), 'there is no such folder'), (('runs', 'absent'), 'there is no such folder'),
    (('fetch', 'nemo'), 'name the folder'), (('nonsense\x1b[2J',), 'nonsense\\x1b[2J'), ((), 'Missing command')])
def test_an_impossible_command_is_one_line_and_found_before_the_work(args, message, studio, capsys, monkeypatch):
    monkeypatch.setattr('cdser.verify.examine_all', lambda *args: pytest.fail('the work had begun'), raising=False)
    before = {path: path.read_bytes() for path in studio.rglob('*') if path.is_file()}
    assert message in one_line(capsys, *(arg.format(studio) for arg in args))
    assert before == {path: path.read_bytes() for path in studio.rglob('*') if path.is_file()}


def test_a_split_is_replaced_only_if_that_is_asked_for(studio, capsys):
    out = studio / 'split.csv'
    arguments = ['split', 'studio_a', str(studio), str(out)]
    assert main(arguments) == 0 == main(arguments)
    capsys.readouterr()
    first = out.read_bytes()
    assert 'holds another split' in one_line(capsys, 'split', 'studio_a', studio, out, '--folds', 2)
    assert out.read_bytes() == first
    assert main([*arguments, '--folds', '2', '--replace']) == 0
    assert len(read_split(out, read_corpus('studio_a', studio).table)) == 2


def test_the_home_folder_is_expanded(studio, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert main(['split', 'studio_a', '~/studio_a', '~/s.csv']) == 0 and (tmp_path / 's.csv').is_file()


def test_recordings_that_runs_refuse_are_left_out_of_the_manifest_that_is_written(studio, tmp_path, capsys):
    path = sorted((studio / 'audio').iterdir())[3]
    path.unlink()
    assert main(['verify', 'studio_a', str(studio), '--allow', 'missing', '--manifest', str(tmp_path / 'm.csv')]) == 0
    report = capsys.readouterr().out
    assert 'fit for training, as source, without the 1 recordings that runs refuse' in report
    assert 'runs refuse a corpus that lists' in report
    paths = set(read_manifest(tmp_path / 'm.csv').path)
    assert len(paths) == 71 and f'audio/{path.name}' not in paths
    shutil.copy(tmp_path / 'm.csv', studio / 'manifest.csv')
    assert main(['verify', 'studio_a', str(studio)]) == 0


def test_a_corpus_whose_speakers_are_its_labels_cannot_be_tested_on(tmp_path, capsys):
    root = small(tmp_path / 'mine', {f'{label}{i}': f'{label} {label}' for label in LABELS for i in range(3)})
    assert main(['verify', 'mine', str(root)]) == 1
    report = capsys.readouterr().out
    assert 'NOT FIT for testing, as target: ' in report and 'fit for training, as source' in report
    assert main(['verify', 'mine', str(root), '--role', 'source']) == 0
    assert main(['verify', 'mine', str(root), '--role', 'target']) == 1
    assert main(['audit', 'mine', str(root)]) == 1
    assert 'speaker is label' in capsys.readouterr().out
    assert 'speaker is label' in one_line(capsys, 'split', 'mine', root, root / 'split.csv')
    assert not (root / 'split.csv').exists()


def test_two_speakers_can_be_trained_on_and_not_tested_on(tmp_path, capsys):
    root = small(tmp_path / 'mine', dict.fromkeys('ab', ALL))
    assert main(['verify', 'mine', str(root), '--role', 'source']) == 0
    assert main(['verify', 'mine', str(root)]) == 1 == main(['audit', 'mine', str(root)])
    assert 'early stopping needs a second speaker' in capsys.readouterr().out


def test_one_session_of_iemocap_is_one_clear_error(tmp_path, capsys):
    root = paper_trees(tmp_path, per_speaker=1) / 'iemocap'
    for i in range(2, 6):
        shutil.rmtree(root / f'Session{i}')
    message = one_line(capsys, 'split', 'iemocap', root, root / 'split.csv')
    assert 'leave_one_session_out needs at least two sessions, and there is 1' in message
    assert main(['audit', 'iemocap', str(root)]) == 1 and 'at least two sessions' in capsys.readouterr().out


def test_corpora_that_share_recordings_are_found_by_content_and_by_sound(kept, tmp_path, capsys):
    for name in ('copy', 'quieter'):
        shutil.copytree(kept, tmp_path / name)
    table = read_manifest(tmp_path / 'quieter' / 'manifest.csv')
    for path in table.path[:5]:
        samples, rate = sf.read(tmp_path / 'quieter' / path)
        sf.write(tmp_path / 'quieter' / path, .5 * samples, rate)
    for path in table.path[5:]:
        (tmp_path / 'quieter' / path).unlink()
    table[:5][['path', 'label', 'speaker']].to_csv(tmp_path / 'quieter' / 'manifest.csv', index=False)
    shutil.copytree(kept.parent / 'studio_b', tmp_path / 'studio_b')
    expected = dict(copy=(1, 72, '(same content)'), quieter=(1, 5, '(same sound)'), studio_b=(0, 0, ''))
    for name, (status, number, how) in expected.items():
        assert main(['audit', 'studio_a', str(kept), '--against', name, str(tmp_path / name)]) == status
        report = capsys.readouterr().out
        assert f'{number} of 72 recordings are also in {name}' in report and how in report


@pytest.mark.parametrize('encoding', ['cp850', 'ascii'])
def test_any_console_can_show_the_output(encoding, tmp_path):
    root = small(tmp_path / 'mine', dict.fromkeys(('José', 'Zoë', '李', 's4'), ALL), text_id=lambda i: f'“{i}”…')
    (root / '0.wav').unlink()
    run = subprocess.run([sys.executable, '-m', 'cdser.cli', 'audit', 'mine', root], capture_output=True,
                         env={**os.environ, 'PYTHONIOENCODING': encoding})
    assert run.returncode == 1 and 'utterances' in run.stdout.decode(encoding) and not run.stderr


def test_what_a_terminal_would_obey_is_shown_instead(kept, capsys, tmp_path):
    assert '\x1b' not in one_line(capsys, 'verify', 'mine\x1b[31m', kept)
    assert '\x1b' not in one_line(capsys, 'verify', 'a', '\x1b]0;x\x07\n')
    root = small(tmp_path / 'mine', dict.fromkeys(('s\x1b[2J', 's2', 's3'), ALL), text_id=lambda i: '\x1b[31m')
    assert '\x1b' not in one_line(capsys, 'verify', 'mine', root)


def test_a_fault_of_our_own_is_one_line_and_shows_where_if_asked_to(kept, monkeypatch, capsys):
    def fail(*args, **more):
        raise KeyError('a\nb')
    monkeypatch.setattr(module, 'verify', fail)
    monkeypatch.delenv('CDSER_DEBUG', raising=False)
    assert main(['verify', 'studio_a', str(kept)]) == 70
    message = capsys.readouterr().err
    assert message.count('\n') == 1 and 'CDSER_DEBUG=1' in message
    assert message.startswith('cdser: internal error, KeyError: ')
    monkeypatch.setenv('CDSER_DEBUG', '1')
    assert main(['verify', 'studio_a', str(kept)]) == 70 and 'in fail' in capsys.readouterr().err


def test_a_full_disk_and_a_reader_that_stops_have_their_status():
    command = f'{sys.executable} -m cdser.cli fetch'
    options = dict(shell=True, capture_output=True, text=True) # noqa: S604 (a fixed text)
    full = subprocess.run(f'{command} > /dev/full', **options)
    assert full.returncode == 2 and full.stderr == 'cdser: [Errno 28] No space left on device\n'
    closed = subprocess.run(f'({command}; echo $? >&2) | true', **options)
    assert closed.stderr.strip() in ('141', '0') # 0 if all was written before


@pytest.mark.parametrize('fault', [PermissionError(13, 'Permission denied', 'a/b\nc'),
                                   OSError(24, 'Too many open files')])
def test_a_refusal_of_the_system_is_one_line_and_2(fault, kept, monkeypatch, capsys):
    def fail(*args, **more):
        raise fault
    monkeypatch.setattr(module, 'verify', fail)
    assert fault.strerror in one_line(capsys, 'verify', 'studio_a', kept)


def test_an_interrupt_is_one_line_and_130(kept, monkeypatch, capsys, request):
    def interrupted(*args, **more):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    monkeypatch.setattr(module, 'verify', interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler) # a process in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    assert main(['verify', 'studio_a', str(kept)]) == 130 and capsys.readouterr().err == 'cdser: interrupted\n'


def test_the_help_says_what_a_status_means(capsys):
    assert main(['--help']) == 0 == main(['verify', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert all(f'{status} ' in text for status in (0, 1, 2, 70, 130)) and '--findings' in text
