"What fails under a run's feet: one error, nothing half-written, no training lost, the caller's world as it was."
import errno
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model
from transformers.utils import logging as transformers_logging

import cdser.compute
import cdser.model
import cdser.parts
import cdser.store
import cdser.train
from cdser.config import TERMS, BadInput
from cdser.encoder import NANO
from cdser.runs import fit, grid, recognise, records
from cdser.store import Checkpoints, RunStore
from kills import digests, leftovers
from tiny import OTHER, TINY, id_of, ids, prepared

LONGER = replace(TINY, epochs=3, epoch_steps=3)


def corpora() -> Path:
    return prepared() / 'corpora'


def run(e, folder: Path, where: Path | None = None):
    return fit(e, where or corpora(), folder, 'cpu', progress=False)


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')


@pytest.fixture
def runs_dir(tmp_path) -> Path:
    "A folder of runs in which the audio is there already, and nothing else."
    shutil.copytree(prepared() / 'runs', tmp_path / 'runs', ignore=shutil.ignore_patterns(id_of(TINY), id_of(OTHER)))
    return tmp_path / 'runs'


@pytest.fixture
def steps(monkeypatch) -> list:
    "One entry for each step of training."
    taken, real = [], cdser.train.step
    monkeypatch.setattr(cdser.train, 'step', lambda *args, **kwargs: taken.append(1) or real(*args, **kwargs))
    return taken


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> dict[str, str]:
    "What LONGER comes to, file by file."
    return digests(run(LONGER, tmp_path_factory.mktemp('undisturbed')).folder)


def nothing_half_written(folder: Path) -> bool:
    return not [path for path in folder.rglob('*') if '.draft-' in path.name]


# ---- no room

@contextmanager
def files_up_to(size: int): # bytes
    ids() # which are made first
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize('size', [0, 1000, 30_000, 10**6])
def test_a_limit_at_decoding_or_writing_is_one_error_and_leaves_nothing(tmp_path, size):
    with files_up_to(size), pytest.raises(BadInput) as err:
        run(TINY, tmp_path / 'runs')
    assert str(tmp_path / 'runs') in str(err.value) and '\n' not in str(err.value)
    assert nothing_half_written(tmp_path / 'runs') and not RunStore(tmp_path / 'runs').runs()
    assert run(TINY, tmp_path / 'runs').id == id_of(TINY)
    assert digests(tmp_path / 'runs' / id_of(TINY)) == digests(prepared() / 'runs' / id_of(TINY))


def test_no_room_for_a_checkpoint_is_a_warning_and_changes_no_bit(runs_dir, monkeypatch, undisturbed):
    monkeypatch.setattr(Checkpoints, 'due', True)
    def refuse(path, content):
        raise BadInput(f'{path}: cannot be written (no room)')
    monkeypatch.setattr(cdser.store, 'write_sealed', refuse)
    with pytest.warns(UserWarning, match='no checkpoint can be written, so the training goes on without'):
        assert digests(run(LONGER, runs_dir).folder) == undisturbed


@pytest.mark.parametrize('what', ['np.save', 'save_stock', 'write_digests'])
def test_no_room_for_a_run_loses_no_training(runs_dir, monkeypatch, steps, undisturbed, what):
    monkeypatch.setattr(Checkpoints, 'due', True)
    place = {'np.save': 'numpy.save', 'write_digests': 'cdser.store.write_digests',
             'save_stock': 'cdser.compute.save_stock'}[what]
    with monkeypatch.context() as patched:
        patched.setattr(place, full)
        with pytest.raises(BadInput, match=r'cannot be written \(No space left on device\); make room') as err:
            run(LONGER, runs_dir)
    assert str(runs_dir) in str(err.value) and nothing_half_written(runs_dir) and not RunStore(runs_dir).runs()
    assert len(steps) == 18
    again = run(LONGER, runs_dir)
    assert len(steps) == 18 and digests(again.folder) == undisturbed and not leftovers(runs_dir)


def test_a_failure_in_the_middle_goes_on_from_the_checkpoint(runs_dir, monkeypatch, steps, undisturbed):
    monkeypatch.setattr(Checkpoints, 'due', True)
    monkeypatch.setattr(cdser.train, 'BLOCK', 1.) # a checkpoint after each step
    with monkeypatch.context() as patched:
        real = cdser.train.step
        patched.setattr(cdser.train, 'step', lambda *args, **kwargs: real(*args, **kwargs)
                        if len(steps) < 8 else full())
        with pytest.raises(OSError):
            run(LONGER, runs_dir) # not of writing: whoever wrote the step has to see it
    taken = len(steps)
    run(LONGER, runs_dir)
    assert len(steps) == 18 and taken == 8 and not leftovers(runs_dir)


# ---- checkpoints

def spoilt(content: bytes, how: str) -> bytes:
    return {'flipped': bytes([*content[:-9], content[-9] ^ 4, *content[-8:]]), 'cut': content[:len(content) // 2],
            'empty': b'',
            'zeroed': bytes(len(content))}[how]


@pytest.fixture
def unfinished(runs_dir, monkeypatch) -> Path:
    "The checkpoint of LONGER, which was stopped."
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, 'due', True)
        patched.setattr(cdser.compute, 'classify', full)
        with pytest.raises(OSError):
            run(LONGER, runs_dir)
    file, = (runs_dir / '.unfinished').iterdir()
    return file


@pytest.mark.parametrize('how', ['flipped', 'cut', 'empty', 'zeroed'])
def test_an_altered_checkpoint_is_not_used(unfinished, runs_dir, undisturbed, steps, how):
    unfinished.write_bytes(spoilt(unfinished.read_bytes(), how))
    again = run(LONGER, runs_dir)
    assert len(steps) == 18 and digests(again.folder) == undisturbed and not leftovers(runs_dir)


# ---- a folder that may not be written to

def unprivileged(function) -> str: # what it says, or the error
    "What a child says whom the file system holds to permissions: root's is nobody."
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            try:
                answer = str(function())
            except (OSError, ValueError) as err:
                answer = f'{type(err).__name__}: {err}'
            os.write(write, answer.encode()[:60_000])
        finally:
            os._exit(0)
    os.close(write)
    with open(read, 'rb') as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


@pytest.fixture
def shared_dir():
    "A copy of all that is prepared, which everybody may read and nobody write to."
    home = Path(tempfile.mkdtemp(prefix='cdser-shared-'))
    shutil.copytree(prepared(), home, dirs_exist_ok=True)
    for path in (home, *home.rglob('*')):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield home
    for path in (home, *home.rglob('*')):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(home)


def test_a_run_in_a_folder_that_may_only_be_read_is_served(shared_dir):
    def ask():
        return fit(TINY, shared_dir / 'corpora', shared_dir / 'runs', 'cpu', progress=False).metrics['uar']
    assert unprivileged(ask) == str(ask())


def test_a_new_run_in_a_folder_that_may_only_be_read_is_one_error(shared_dir):
    def ask(e):
        return fit(e, shared_dir / 'corpora', shared_dir / 'runs', 'cpu', progress=False)
    for e in (LONGER, replace(TINY, max_seconds=.4)): # whose audio is there; whose audio is not
        answer = unprivileged(partial(ask, e))
        assert answer.startswith('BadInput: ') and 'cannot be written (Permission denied)' in answer, answer
        assert str(shared_dir / 'runs') in answer


def test_files_that_may_not_be_read_are_one_error(shared_dir):
    folder = shared_dir / 'runs' / id_of(TINY)
    for name in ('metrics.json', 'digests.json', 'config.json'):
        (folder / name).chmod(0)
        answer = unprivileged(lambda: RunStore(shared_dir / 'runs').get(id_of(TINY)).metrics)
        assert answer.startswith(f'BadInput: {folder / name}: cannot be read (Permission denied)'), answer
        (folder / name).chmod(0o444)


# ---- what is read vanishes or is replaced

def test_a_corpus_that_vanishes_while_a_run_is_trained_is_not_missed(tmp_path, runs_dir, monkeypatch, undisturbed):
    shutil.copytree(corpora(), tmp_path / 'corpora')
    real = cdser.train.step
    def step(*args, **kwargs):
        shutil.rmtree(tmp_path / 'corpora', ignore_errors=True)
        return real(*args, **kwargs)
    monkeypatch.setattr(cdser.train, 'step', step)
    assert digests(run(LONGER, runs_dir, tmp_path / 'corpora').folder) == undisturbed
    assert not (tmp_path / 'corpora').exists()
    with pytest.raises(BadInput, match='corpora'):
        run(replace(LONGER, seed=5), runs_dir, tmp_path / 'corpora')


def new_encoder(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    Wav2Vec2Model(Wav2Vec2Config(**NANO)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize('back', [False, True])
def test_an_encoder_that_is_replaced_before_it_is_loaded_is_an_error(runs_dir, tmp_path, monkeypatch, back):
    "Even if the first one is back in its place afterwards."
    first, second = (new_encoder(tmp_path / name, seed) for seed, name in enumerate(('first', 'second')))
    real, loaded = cdser.model.load_backbone, []
    def load(name, *expected):
        loaded.append(name)
        if len(loaded) == 1:
            return real(name, *expected)
        first.rename(tmp_path / 'aside')
        shutil.copytree(second, first)
        try:
            return real(name, *expected)
        finally:
            if back:
                shutil.rmtree(first)
                (tmp_path / 'aside').rename(first)
    monkeypatch.setattr(cdser.model, 'load_backbone', load)
    with pytest.raises(BadInput, match='encoder: .*when the work began; start again'):
        run(replace(TINY, encoder=str(first)), runs_dir)
    assert nothing_half_written(runs_dir)
    assert not RunStore(runs_dir).runs()


def test_a_recording_that_is_replaced_before_it_is_decoded_is_an_error(tmp_path, monkeypatch):
    shutil.copytree(corpora(), tmp_path / 'corpora')
    real, first, second = cdser.parts.open_store, *sorted((tmp_path / 'corpora' / 'studio_a' / 'audio').iterdir())[:2]
    def open_store(*args, **kwargs):
        first.write_bytes(second.read_bytes())
        return real(*args, **kwargs)
    monkeypatch.setattr(cdser.parts, 'open_store', open_store)
    with pytest.raises(BadInput, match='recordings changed while they were read'):
        run(TINY, tmp_path / 'runs', tmp_path / 'corpora')
    assert nothing_half_written(tmp_path / 'runs') and not RunStore(tmp_path / 'runs').runs()


# ---- divergence

WILD = replace(TINY, encoder_lr=10., head_lr=10., clip_norm=1e6, weight_decay=10., epochs=40, epoch_steps=6)


@contextmanager
def nan_at(monkeypatch, number: int):
    "The loss of one step is NaN."
    taken, real = [], TERMS['emotion']
    def term(logits, labels):
        taken.append(1)
        return real(logits, labels) * (float('nan') if len(taken) == number else 1.)
    with monkeypatch.context() as patched:
        patched.setitem(TERMS, 'emotion', term)
        yield


def test_a_loss_that_is_not_a_number_names_its_batch(runs_dir, monkeypatch):
    with nan_at(monkeypatch, 9), pytest.raises(BadInput) as err:
        run(LONGER, runs_dir)
    message = str(err.value)
    assert message.startswith('epoch 1, step 2: the loss is nan; lower encoder_lr or head_lr (run ')
    names = message.split('batch: ')[1].split(' and ')[0].split(', ')
    assert len(names) == 3 and all((corpora() / name).is_file() for name in names) and message.isprintable()
    assert not RunStore(runs_dir).runs() and not leftovers(runs_dir)


@pytest.mark.parametrize('which', [0, 1])
def test_predictions_that_are_no_numbers_are_not_stored(runs_dir, monkeypatch, which):
    real = cdser.compute.predict
    def predict(*args, **kwargs):
        said = real(*args, **kwargs)
        said[which][3] = np.nan
        return said
    monkeypatch.setattr(cdser.compute, 'predict', predict)
    with pytest.raises(BadInput, match='the trained model says NaN') as err:
        run(TINY, runs_dir)
    assert 'batch: studio_a/' in str(err.value) and not RunStore(runs_dir).runs() and not leftovers(runs_dir)


# ---- manners

def world() -> dict:
    "What is the caller's."
    return dict(threads=torch.get_num_threads(), torch=torch.get_rng_state().tolist(),
                numpy=repr(np.random.get_state()),
                random=random.getstate(), filters=list(warnings.filters), environment=dict(os.environ),
                folder=os.getcwd(),
                bars=transformers_logging.is_progress_bar_enabled(), verbosity=transformers_logging.get_verbosity(),
                levels={name: logging.getLogger(name).level for name in ('', 'transformers', 'cdser', 'torch')},
                handlers={name: len(logging.getLogger(name).handlers) for name in ('', 'transformers', 'cdser')},
                default=torch.get_default_dtype(), gradients=torch.is_grad_enabled(), errors=np.geterr(),
                deterministic=torch.are_deterministic_algorithms_enabled(), path=list(sys.path),
                umask=(os.umask(0o22), os.umask(0o22))[1])


WAYS = {'fit': lambda runs_dir: run(TINY, runs_dir),
        'a run that is there': lambda runs_dir: run(TINY, prepared() / 'runs'),
        'grid': lambda runs_dir: grid([TINY, OTHER], corpora(), runs_dir, 'cpu', workers=1),
        'grid of two': lambda runs_dir: grid([TINY, OTHER], corpora(), runs_dir, 'cpu', workers=2),
        'a refusal': lambda runs_dir: run(replace(TINY, source='absent'), runs_dir),
        'a divergence': lambda runs_dir: run(WILD, runs_dir),
        'recognise': lambda runs_dir: recognise(RunStore(prepared() / 'runs')[id_of(TINY)],
                                                sorted((corpora() / 'studio_a' / 'audio').iterdir())[:2], 'cpu'),
        'records': lambda runs_dir: records(RunStore(prepared() / 'runs').runs())}


@pytest.mark.parametrize('way, threads, bars', [('fit', 1, False), *((way, 2, True) for way in WAYS)])
def test_the_callers_world_is_as_it_was(runs_dir, way, threads, bars):
    kept = torch.get_num_threads(), transformers_logging.is_progress_bar_enabled()
    torch.set_num_threads(threads)
    (transformers_logging.enable_progress_bar if bars else transformers_logging.disable_progress_bar)()
    torch.manual_seed(3), np.random.seed(4), random.seed(5)
    before = world()
    try:
        WAYS[way](runs_dir)
    except BadInput:
        assert way in ('a refusal', 'a divergence')
    finally:
        after = world()
        torch.set_num_threads(kept[0])
        (transformers_logging.enable_progress_bar if kept[1] else transformers_logging.disable_progress_bar)()
    assert {name for name in before if after[name] != before[name]} == set()


@contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize('world', [torch.no_grad, torch.inference_mode, float64,
                                   lambda: torch.autocast('cpu', torch.bfloat16)])
def test_the_callers_world_changes_no_bit(runs_dir, world):
    with world():
        there = run(TINY, runs_dir)
    assert digests(there.folder) == digests(prepared() / 'runs' / id_of(TINY))
