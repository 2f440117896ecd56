"Whatever happens to a run's files: the same answer as before, or one error that names the file."
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cdser.config import BadInput, content_hash
from cdser.identity import FORMAT
from cdser.runs import fit, gather, recognise, records
from cdser.store import Run, RunStore, by_version, say_versions, write_digests
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
READS = { # which files a use cannot do without
    'metrics': {'metrics.json'}, 'records': {'metrics.json'}, 'history': {'history.csv'},
    'gather': {'metrics.json', 'predictions.csv'}, 'predictions': {'predictions.csv'}, 'embeddings': {'embeddings.npy'},
    'recognise': {name for name in FILES if name.startswith('model/')}, 'experiment': set()}


@cache
def right() -> dict[str, object]:
    "What each use answers while nothing is wrong."
    return {name: use(RunStore(prepared() / 'runs')[id_of(TINY)]) for name, use in USES.items()}


def answers(folder: Path, uses=tuple(USES), id: str = '') -> dict[str, str]: # use -> the refusal, or ''
    "Ask for everything, each time anew. Anything but the right answer or a refusal is an error."
    said = {}
    for name in uses:
        run = RunStore(folder)[id or id_of(TINY)]
        try: assert USES[name](run) == right()[name], f'{name}: another answer, and not a word'
        except BadInput as err:
            said[name] = str(err)
            assert '\n' not in said[name] and said[name].isprintable() and len(said[name]) < 1000
        else: said[name] = ''
    return said


def test_a_copy_answers_as_the_run_does(tmp_path):
    run = copied_run(tmp_path)
    assert {path.relative_to(run).as_posix() for path in run.rglob('*') if path.is_file()} == set(FILES)
    assert not any(answers(tmp_path).values())


# ---- one file is spoilt

def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at // 8 % len(content)] ^= 1 << at % 8
    path.write_bytes(content)


def cut(path: Path, less: int) -> None: path.write_bytes(path.read_bytes()[:-less])


def as_link(path: Path) -> None:
    "To the like file of another run."
    inside = Path(*path.parts[path.parts.index(id_of(TINY)) + 1:])
    other = prepared() / 'runs' / id_of(OTHER) / inside
    path.unlink()
    path.symlink_to(other)


def with_another(path: Path) -> None:
    as_link(path)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_device(path: Path) -> None:
    path.unlink()
    path.symlink_to('/dev/zero')


def huge(path: Path) -> None: os.truncate(path, 1 << 40)


SPOIL: dict[str, Callable[[Path], object]] = {
    'less by 1': lambda path: cut(path, 1), 'less by 7': lambda path: cut(path, 7),
    'half': lambda path: cut(path, path.stat().st_size // 2), 'empty': lambda path: path.write_bytes(b''),
    'removed': Path.unlink, 'zeroed': lambda path: path.write_bytes(bytes(path.stat().st_size)),
    'more by 1': lambda path: path.write_bytes(path.read_bytes() + b'\n'), 'a folder': as_folder, 'a pipe': as_pipe,
    'a device': as_device, 'a dangling link': lambda path: (path.unlink(), path.symlink_to('absent')), 'huge': huge,
    "another run's": with_another, "a link to another run's": as_link,
    'NaN': lambda path: path.write_text('NaN'), 'a list': lambda path: path.write_text('[]'),
    'deep': lambda path: path.write_text('[' * 200_000), 'not UTF-8': lambda path: path.write_bytes(b'{"\xff": 1}')}


def check_spoilt(folder: Path, name: str, before: bytes | None) -> None:
    "Who reads the file is refused, by its name; nobody gets another answer."
    path = folder / id_of(TINY) / name
    found = path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 30 else b''
    same = before == (found.rstrip(b'\n') if name == 'digests.json' else found)
    needed = [use for use in USES if name in READS[use] | {'config.json', 'digests.json'}]
    spared = [use for use in ('metrics', 'history') if use not in needed]
    for use, said in answers(folder, (*needed[:2], *needed[-1:], *spared[:1])).items():
        needs = READS[use] | {'config.json', 'digests.json'}
        assert bool(said) == (name in needs and not same), f'{use}: {said!r}'
        if said and name != 'digests.json': assert name in said or 'digests.json' in said, said
        if said: assert said.count(f'move the folder {id_of(TINY)} away') == 1, said


@pytest.mark.parametrize('how', SPOIL)
@pytest.mark.parametrize('name', FILES)
def test_no_spoilt_file_is_used_in_silence(tmp_path, name, how):
    run = copied_run(tmp_path)
    before = (run / name).read_bytes()
    SPOIL[how](run / name)
    check_spoilt(tmp_path, name, before)


@pytest.mark.parametrize('name', FILES)
def test_no_flipped_bit_is_used_in_silence(tmp_path, name):
    size = (prepared() / 'runs' / id_of(TINY) / name).stat().st_size
    uses = [use for use in USES if name in READS[use] | {'config.json', 'digests.json'}][:3]
    for at in np.random.default_rng(0).integers(8 * size, size=4):
        run = copied_run(tmp_path)
        flip(run / name, int(at))
        said = answers(tmp_path, uses)
        assert all(said.values()) or name == 'digests.json', said # an entry of a file that is not asked for
        assert name == 'digests.json' or all(name in text for text in said.values()), said
        shutil.rmtree(run)


def test_the_same_file_by_a_link_is_as_good(tmp_path):
    run = copied_run(tmp_path / 'runs')
    run.rename(tmp_path / 'elsewhere')
    run.mkdir()
    for path in (tmp_path / 'elsewhere').iterdir(): (run / path.name).symlink_to(path)
    assert not any(answers(tmp_path / 'runs').values())


def test_a_file_that_was_not_stored_is_not_loaded_with_the_model(tmp_path):
    run = copied_run(tmp_path)
    (run / 'model' / 'pytorch_model.bin').write_bytes(b'anything')
    said = answers(tmp_path)
    assert 'model/pytorch_model.bin: was not stored with the run' in said.pop('recognise') and not any(said.values())
    (run / 'note.txt').write_text('of the user, beside the model')
    assert not answers(tmp_path)['metrics']


# ---- a whole folder is another

def test_a_run_under_another_id_is_not_served(tmp_path):
    copied_run(tmp_path).rename(tmp_path / id_of(OTHER))
    said = answers(tmp_path, id=id_of(OTHER))
    assert all(f'{id_of(OTHER)}/config.json: is of the run {id_of(TINY)}' in text for text in said.values()), said
    with pytest.raises(BadInput, match=f'is of the run {id_of(TINY)}'):
        fit(OTHER, prepared() / 'corpora', tmp_path, 'cpu', progress=False).metrics


@pytest.mark.parametrize('content', ['', '{}', '[]'])
def test_an_empty_folder_is_no_run(tmp_path, content):
    (tmp_path / id_of(TINY)).mkdir()
    if content: (tmp_path / id_of(TINY) / 'digests.json').write_text(content)
    assert all('digests.json' in said for said in answers(tmp_path).values())
    with pytest.raises(BadInput, match='digests.json'): fit(TINY, prepared() / 'corpora', tmp_path, 'cpu',
                                                            progress=False).metrics


@pytest.mark.parametrize('put', [lambda path: path.write_text('mine'), lambda path: path.symlink_to('absent'),
                                 os.mkfifo])
def test_what_stands_where_a_run_belongs_is_found_before_anything_is_trained(tmp_path, monkeypatch, put):
    put(tmp_path / id_of(TINY))
    monkeypatch.setattr('cdser.runs.train', lambda *args: pytest.fail('it was trained'))
    with pytest.raises(BadInput, match=f'{id_of(TINY)}: is no folder, and stands where a run belongs; move it away'):
        fit(TINY, prepared() / 'corpora', tmp_path, 'cpu', progress=False)
    assert os.path.lexists(tmp_path / id_of(TINY))


@pytest.mark.parametrize('id', ['', '.', '..', '../runs', 'a/b', '0123456789AB', '0123456789ab\n', 'x' * 9999, '\0'])
def test_an_id_that_is_none_names_no_run(tmp_path, id):
    (tmp_path / 'runs').mkdir()
    assert id not in RunStore(tmp_path / 'runs')
    with pytest.raises(BadInput, match='holds no run'): RunStore(tmp_path / 'runs')[id]


# ---- a run that was forged, or written by another version: its digests are right, and what it says is not

def forge(folder: Path, name: str, change) -> Path: # the run, under the id of what its config now says
    "Change a file of a run, and make the digests and the folder's name fit."
    run = copied_run(folder)
    content = change((run / name).read_bytes())
    (run / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (run / 'digests.json').unlink()
    write_digests(run)
    try: id = content_hash(json.loads((run / 'config.json').read_text())['identity'])
    except (TypeError, KeyError, ValueError, RecursionError): return run
    return run.rename(folder / id)


def said_of(config: Callable[[dict], object]):
    "A change of the facts of a JSON file."
    def change(content: bytes) -> str:
        found = json.loads(content)
        return json.dumps(found if (given := config(found)) is None else given)
    return change


FORGED = {
    'a newer format': ('config.json', said_of(lambda c: c.update(format=FORMAT + 1)),
                       'config.json: was written by a newer cdser'),
    'no format': ('config.json', said_of(lambda c: c.pop('format') and None), 'config.json: does not say its format'),
    'a format of text': ('config.json', said_of(lambda c: c.update(format='3')),
                         'config.json: does not say its format'),
    'a list': ('config.json', said_of(lambda c: [c]), 'config.json: is damaged'),
    'no identity': ('config.json', said_of(lambda c: c.pop('identity') and None), 'config.json: is of the run'),
    'an infinite identity': ('config.json', lambda text: text.replace(b'"seed": 0', b'"seed": 1e999'),
                             'config.json: holds no identity'),
    'NaN': ('config.json', lambda text: text.replace(b'"seed": 0', b'"seed": NaN'), 'config.json: is damaged'),
    'depth': ('config.json', lambda text: '{"identity":' + '[' * 10**5 + ']' * 10**5 + '}', 'config.json: is damaged'),
    'identity of text': ('config.json', said_of(lambda c: c.update(identity='x')),
                         'config.json: is of another experiment'),
    'no experiment': ('config.json', said_of(lambda c: c.pop('experiment') and None),
                      'config.json: experiment: None is not'),
    'a field fewer': ('config.json', said_of(lambda c: c['experiment'].pop('max_seconds') and None),
                      'config.json: .*has no max_seconds'),
    'a field more': ('config.json', said_of(lambda c: c['experiment'].update(new=1)), 'config.json: .*new'),
    'another seed': ('config.json', said_of(lambda c: c['experiment'].update(seed=7)),
                     'config.json: is of another experiment'),
    'a field of another type': ('config.json', said_of(lambda c: c['experiment'].update(epochs='1')),
                                'config.json: epochs')}
USED = { # what is not read by every use
    'no processor': ('config.json', said_of(lambda c: c.pop('made_by') and None), 'records',
                     'config.json: does not say what it was'),
    'made by a list': ('config.json', said_of(lambda c: c.update(made_by=[])), 'records',
                       'config.json: does not say what it was'),
    'no UAR': ('metrics.json', said_of(lambda m: m.pop('uar') and None), 'metrics', 'metrics.json: does not say uar'),
    'a UAR of text': ('metrics.json', said_of(lambda m: m.update(uar='1')), 'records',
                      'metrics.json: does not say uar'),
    'validated nowhere': ('metrics.json', said_of(lambda m: m.update(validated_on=['source'])), 'metrics',
                          'does not say validated_on'),
    'metrics in a list': ('metrics.json', said_of(lambda m: [m]), 'metrics', 'metrics.json: is damaged'),
    'metrics with NaN': ('metrics.json', lambda text: text.replace(b'"uar": ', b'"uar": NaN, "x": '), 'metrics',
                         'metrics.json: is damaged'),
    'an empty history': ('history.csv', lambda text: b'', 'history', 'history.csv: is damaged'),
    'a history without losses': ('history.csv', lambda text: text.replace(b'loss', b'lss'), 'history',
                                 'history.csv: is damaged'),
    'a history of words': ('history.csv', lambda text: text.split(b'\n')[0] + b'\n' + b'x,' * 20, 'history',
                           'history.csv: is damaged'),
    'a history of bytes': ('history.csv', lambda text: bytes(range(256)), 'history', 'history.csv: is damaged'),
    'no predictions': ('predictions.csv', lambda text: b'', 'predictions', 'predictions.csv'),
    'a label that is none': ('predictions.csv', lambda text: text.replace(b',neu', b',new'), 'gather',
                             'predictions.csv: row .*new'),
    'a corpus that is none': ('predictions.csv', lambda text: text.replace(b',target,', b',goal,'), 'gather',
                              'predictions.csv: row .*goal'),
    'a part that is none': ('predictions.csv', lambda text: text.replace(b',test,', b',tested,'), 'gather',
                            'predictions.csv: row .*tested'),
    'words for chances': ('predictions.csv', lambda text: text.replace(b'0.', b'o.'), 'predictions', 'predictions.csv'),
    'no embeddings': ('embeddings.npy', lambda content: b'', 'embeddings', 'embeddings.npy: is damaged'),
    'half of them': ('embeddings.npy', lambda content: content[:len(content) // 2], 'embeddings',
                     'embeddings.npy: is damaged'),
    'huge embeddings': ('embeddings.npy', lambda content: content.replace(b'(', b'(99999999999, ', 1), 'embeddings',
                        'embeddings.npy: '),
    'a pickle': ('embeddings.npy', lambda content: b'\x80\x04N.', 'embeddings', 'embeddings.npy: is damaged'),
    'another type': ('embeddings.npy', lambda content: content.replace(b'<f4', b'<i4'), 'embeddings',
                     'holds no rows of float32'),
    'a model of others': ('model/config.json', said_of(lambda c: c.update(model_type='bert')), 'recognise',
                          'model/config.json'),
    'classes in another order': ('model/config.json', said_of(lambda c: c.update(id2label={'0': 'hap'})), 'recognise',
                                 'model/config.json'),
    'weights that are none': ('model/model.safetensors', lambda content: b'\x08' + bytes(15), 'recognise',
                              'model/model.safetensors')}


@pytest.mark.parametrize('what', FORGED)
def test_a_record_that_is_no_record_of_this_version_is_refused(tmp_path, what):
    name, change, says = FORGED[what]
    run = forge(tmp_path, name, change)
    with pytest.raises(BadInput, match=says) as err: print(RunStore(tmp_path)[run.name].experiment)
    assert f'move the folder {run.name} away' in str(err.value)
    with pytest.raises(BadInput): records([RunStore(tmp_path)[run.name]])


@pytest.mark.parametrize('what', USED)
def test_a_field_is_checked_before_it_is_used(tmp_path, what):
    name, change, use, says = USED[what]
    run = forge(tmp_path, name, change)
    with pytest.raises(BadInput, match=says): USES[use](RunStore(tmp_path)[run.name])


DIGESTS = {'a digest that is none': said_of(lambda d: d.update({'config.json': 3})),
           'a list for each': said_of(lambda d: d.update({'config.json': [1, 2]})),
           'nested': said_of(lambda d: d.update({'config.json': [[1], {'x': 'y'}]})),
           'a path that leads out': said_of(lambda d: d.update({'model/../../../x': [1, 'x']})),
           'an absolute path': said_of(lambda d: d.update({'/etc/passwd': [1, 'x']})),
           'nothing': said_of(lambda d: {}), 'a word': lambda text: '"x"', 'no text': lambda text: b'\xff\xfe',
           'too long': lambda text: text + b' ' * (1 << 20), 'depth': lambda text: '[' * 10**5}


@pytest.mark.parametrize('what', DIGESTS)
def test_digests_that_are_none_are_refused(tmp_path, what):
    run = copied_run(tmp_path)
    content = DIGESTS[what]((run / 'digests.json').read_bytes())
    (run / 'digests.json').write_bytes(content if isinstance(content, bytes) else content.encode())
    assert all('digests.json: ' in said for said in answers(tmp_path).values())


def test_a_run_whose_code_is_another_may_be_read_and_is_counted(tmp_path):
    change = said_of(lambda c: (c['identity'].update(code='0123456789ab'),
                                c['made_by']['versions'].update(cdser='0.0.1')) and None)
    run = forge(tmp_path, 'config.json', change)
    store = RunStore(tmp_path)
    assert store[run.name].experiment == TINY and store[run.name].metrics == right()['metrics']
    says = '0 runs of this code; not used: 1 of cdser 0.0.1 (code 0123456789ab)'
    assert say_versions(store) == f'{tmp_path}: {says}'


@pytest.mark.parametrize('content', ['[]', '{', '"x"', '[' * 10**5,
                                     '{"made_by": {"versions": []}, "identity": {"code": [1]}}',
                                     '{"made_by": {"versions": {"cdser": {}}}, "identity": []}',
                                     '{"made_by": [], "identity": {"code": {}}}'])
def test_counting_versions_says_nothing_of_what_it_cannot_read(tmp_path, content):
    run = copied_run(tmp_path)
    copied_run(tmp_path, OTHER)
    (run / 'config.json').write_text(content)
    found = by_version(RunStore(tmp_path))
    assert found.runs.sum() == 2 and found[found.used.astype(bool)].runs.tolist() == [1]
