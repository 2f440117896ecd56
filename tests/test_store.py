"Whatever happens to a run's files: the same answer as before, or one error that names the file."
import json
import os
import shutil
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cdser.config import BadInput, content_hash
from cdser.files import content_digests, locked
from cdser.runs import fit, gather, recognise, records
from cdser.store import Checkpoints, Run, RunStore, by_version, prune, say_versions
from tiny import OTHER, TINY, copied_run, id_of, prepared

FILES = ('config.json', 'metrics.json', 'history.csv', 'predictions.csv', 'embeddings.npy', 'digests.json',
         'model/config.json', 'model/model.safetensors', 'model/preprocessor_config.json')


def wave() -> list[Path]:
    return sorted((prepared() / 'corpora' / 'studio_b' / 'audio').iterdir())[:1]


USES: dict[str, Callable[[Run], object]] = {
    'metrics': lambda run: run.metrics, 'records': lambda run: records([run]).to_csv(),
    'history': lambda run: run.history.to_csv(), 'gather': lambda run: gather([run]).to_csv(),
    'predictions': lambda run: run.predictions.to_csv(), 'embeddings': lambda run: run.embeddings.tobytes(),
    'recognise': lambda run: recognise(run, wave(), 'cpu').to_csv(), 'experiment': lambda run: run.experiment}
READS = { # which files a use cannot do without, beside config.json and digests.json
    'metrics': {'metrics.json'}, 'records': {'metrics.json'}, 'history': {'history.csv'},
    'gather': {'metrics.json', 'predictions.csv'}, 'predictions': {'predictions.csv'},
    'embeddings': {'embeddings.npy'}, 'experiment': set(),
    'recognise': {name for name in FILES if name.startswith('model/')}}


@cache
def right() -> dict[str, object]:
    "The answer to each use of an intact run."
    return {name: use(RunStore(prepared() / 'runs')[id_of(TINY)]) for name, use in USES.items()}


def answers(folder: Path, uses=tuple(USES), id: str = '') -> dict[str, str]: # use -> the refusal, or ''
    "Ask for everything, each time anew. Anything but the right answer or a refusal is an error."
    refusals = {}
    for name in uses:
        run = RunStore(folder)[id or id_of(TINY)]
        try:
            assert USES[name](run) == right()[name], f'{name}: another answer without an error'
            refusals[name] = ''
        except BadInput as err:
            refusals[name] = str(err)
            assert refusals[name].isprintable() and len(refusals[name]) < 1000
    return refusals


def test_a_copy_answers_as_the_run_does(tmp_path):
    run = copied_run(tmp_path)
    assert {path.relative_to(run).as_posix() for path in run.rglob('*') if path.is_file()} == set(FILES)
    assert not any(answers(tmp_path).values())


# ---- one file is damaged

def other_file(path: Path) -> Path:
    "The like file of another run."
    return prepared() / 'runs' / id_of(OTHER) / Path(*path.parts[path.parts.index(id_of(TINY)) + 1:])


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    'shorter': lambda path: path.write_bytes(path.read_bytes()[:-2]), 'empty': lambda path: path.write_bytes(b''),
    'removed': Path.unlink, 'a folder': as_folder,
    'zeroed': lambda path: path.write_bytes(bytes(path.stat().st_size)),
    'longer': lambda path: path.write_bytes(path.read_bytes() + b'\n'),
    "another run's": lambda path: path.write_bytes(other_file(path).read_bytes()),
    'a list': lambda path: path.write_text('[]'), 'not UTF-8': lambda path: path.write_bytes(b'{"\xff": 1}')}


@pytest.mark.parametrize('how', DAMAGE)
@pytest.mark.parametrize('name', FILES)
def test_no_damaged_file_is_used_in_silence(tmp_path, name, how):
    run = copied_run(tmp_path)
    before = (run / name).read_bytes()
    DAMAGE[how](run / name)
    after = (run / name).read_bytes() if (run / name).is_file() else b''
    unchanged = before == (after.rstrip(b'\n') if name == 'digests.json' else after)
    needed = [use for use in USES if name in READS[use] | {'config.json', 'digests.json'}]
    spared = [use for use in ('metrics', 'history') if use not in needed]
    for use, refusal in answers(tmp_path, (*needed[:2], *needed[-1:], *spared[:1])).items():
        assert bool(refusal) == (use in needed and not unchanged), f'{use}: {refusal!r}'
        if refusal:
            assert name == 'digests.json' or name in refusal or 'digests.json' in refusal
            assert refusal.count(f'move the folder {id_of(TINY)} away') == 1


@pytest.mark.parametrize('name', FILES)
def test_no_flipped_bit_is_used_in_silence(tmp_path, name):
    uses = [use for use in USES if name in READS[use] | {'config.json', 'digests.json'}][:3]
    for at in np.random.default_rng(0).integers((prepared() / 'runs' / id_of(TINY) / name).stat().st_size, size=4):
        run = copied_run(tmp_path)
        content = bytearray((run / name).read_bytes())
        content[at] ^= 4
        (run / name).write_bytes(content)
        refusals = answers(tmp_path, uses)
        assert all(refusals.values()) or name == 'digests.json' # the entry of a file that is not asked for
        shutil.rmtree(run)


def test_a_file_that_was_not_stored_is_not_loaded_with_the_model(tmp_path):
    run = copied_run(tmp_path)
    (run / 'model' / 'pytorch_model.bin').write_bytes(b'anything')
    refusals = answers(tmp_path)
    assert 'model/pytorch_model.bin: was not stored with the run' in refusals.pop('recognise')
    assert not any(refusals.values())


def test_no_pickle_is_read(tmp_path):
    run = copied_run(tmp_path)
    np.save(run / 'embeddings.npy', np.array([{}], dtype=object), allow_pickle=True)
    digests = json.loads((run / 'digests.json').read_text())
    digests['embeddings.npy'] = content_digests([run / 'embeddings.npy'], tmp_path / 'memory')[0]
    (run / 'digests.json').write_text(json.dumps(digests))
    with pytest.raises(ValueError, match='allow_pickle=False'):
        RunStore(tmp_path)[id_of(TINY)].embeddings


# ---- a whole folder is another

def test_a_run_under_another_id_is_not_served(tmp_path):
    copied_run(tmp_path).rename(tmp_path / id_of(OTHER))
    refusals = answers(tmp_path, id=id_of(OTHER))
    message = f'{id_of(OTHER)}/config.json: is of the run {id_of(TINY)}'
    assert all(message in text for text in refusals.values()), refusals


@pytest.mark.parametrize('content', ['', '{}', '[]'])
def test_an_empty_folder_is_not_a_run(tmp_path, content):
    (tmp_path / id_of(TINY)).mkdir()
    if content:
        (tmp_path / id_of(TINY) / 'digests.json').write_text(content)
    assert all('digests.json' in refusal for refusal in answers(tmp_path).values())


@pytest.mark.parametrize('put', [
    lambda path: path.write_text('mine'), lambda path: path.symlink_to('absent'), os.mkfifo])
def test_a_file_in_the_place_of_a_run_is_found_before_anything_is_trained(tmp_path, monkeypatch, put):
    put(tmp_path / id_of(TINY))
    monkeypatch.setattr('cdser.compute.train', lambda *args: pytest.fail('it was trained'))
    with pytest.raises(BadInput, match=f'{id_of(TINY)}: is not a folder, and stands where a run belongs; move it'):
        fit(TINY, prepared() / 'corpora', tmp_path, 'cpu', progress=False)
    assert os.path.lexists(tmp_path / id_of(TINY))


@pytest.mark.parametrize('id', ['', '.', '..', '../runs', 'a/b', '0123456789AB', '0123456789ab\n', 'x' * 9999])
def test_an_invalid_id_names_no_run(tmp_path, id):
    assert id not in RunStore(tmp_path)
    with pytest.raises(BadInput, match='holds no run'):
        RunStore(tmp_path)[id]


# ---- shared with others

def test_a_colleague_in_the_group_may_use_and_fill_a_store(tmp_path):
    "Every folder has the store's permissions, and no file has fewer than the umask allows."
    store, umask = tmp_path / 'runs', os.umask(0o022)
    try:
        store.mkdir()
        store.chmod(0o2775)
        run = fit(TINY, prepared() / 'corpora', store, 'cpu', progress=False)
        Checkpoints(store / '.unfinished' / 'x.checkpoint').save({}, {})
    finally:
        os.umask(umask)
    for folder in ('.locks', '.unfinished', 'audio', 'audio/.locks', 'audio/.digests'):
        assert stat.S_IMODE((store / folder).stat().st_mode) == 0o2775, folder
    assert all(stat.S_IMODE(lock.stat().st_mode) == 0o664 for lock in store.rglob('*.lock'))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in run.folder.rglob('*') if path.is_file())


# ---- versions, and tidying up

def stored(store: RunStore, code: str, seed: int, **config) -> Run:
    identity = dict(code=code, seed=seed)
    made_by = dict(versions=dict(cdser='0.0.9'))
    record = dict(identity=identity, made_by=made_by, audio=[], **config)
    return store.add(content_hash(identity), record, lambda draft: None)


def test_runs_of_other_code_are_counted_and_a_run_that_cannot_be_read_is_of_an_unknown_version(tmp_path):
    copied_run(tmp_path)
    store = RunStore(tmp_path)
    assert say_versions(store) == ''
    stored(store, 'abc', 1)
    stored(store, 'abc', 2)
    (stored(store, 'def', 3).folder / 'config.json').write_text('[')
    assert '2 of cdser 0.0.9 (code abc), 1 of cdser unknown (code unknown)' in say_versions(store)
    assert by_version(store).runs[by_version(store).used].tolist() == [1]


def test_pruning_removes_what_no_run_needs_and_nothing_else(tmp_path):
    store = RunStore(shutil.copytree(prepared() / 'runs', tmp_path / 'runs'))
    needed = sorted((store.folder / 'audio').glob('[!.]*'))[0]
    audio = shutil.copytree(needed, needed.with_name('0123456789ab'))
    noted = shutil.copytree(audio, store.folder / 'audio' / 'ba9876543210')
    (noted / 'mine.txt').write_text('a note of the user')
    (store.folder / 'audio' / 'a_list.txt').write_text('another')
    (store.folder / 'audio' / 'dead_link').symlink_to('nowhere')
    for id in (id_of(TINY), '0123456789ab'):
        store.checkpoints(id).save({}, {})
    (store.folder / '.unfinished' / 'old.checkpoint').write_text('damaged')
    with locked(store.folder / 'x'), pytest.raises(BadInput, match='x is being made'):
        prune(store)
    gone = {f'audio/{audio.name}', f'.unfinished/{id_of(TINY)}.checkpoint', '.unfinished/old.checkpoint'}
    assert set(prune(store).name) == gone and not len(prune(store)) and noted.is_dir()
    assert store.checkpoints('0123456789ab').load() is not None # of an unfinished run of this code
    assert not any(answers(store.folder).values())
    assert fit(TINY, prepared() / 'corpora', store.folder, 'cpu', progress=False).id == id_of(TINY)


@pytest.mark.parametrize('file, content', [
    ('config.json', '['), ('digests.json', '{"config.json": [2, "00"]}'), ('digests.json', '{}')])
def test_a_run_that_cannot_be_read_stops_no_pruning_and_stays(tmp_path, file, content):
    run = copied_run(tmp_path)
    (run / file).write_text(content)
    assert not len(prune(RunStore(tmp_path))) and by_version(RunStore(tmp_path)).code.tolist() == ['unknown']
    assert (run / file).read_text() == content
