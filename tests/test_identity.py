"What decides a run's id: everything that can change its numbers, by content, and nothing else."
import importlib
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cdser import store
from cdser.config import PROPOSED, BadInput, Experiment, check_experiment, content_hash
from cdser.encoder import NANO
from cdser.runs import fit, grid, plan_run
from cdser.store import DECIDING, code_digest, deciding, digest_of_code, idle_fields, read_sources
from kills import digests

PACKAGE = store.SOURCES
TINY = Experiment('studio_a', 'studio_b', epochs=1, epoch_steps=2, max_seconds=.3, batch_seconds=3.)


# ---- code

def edited(*edits: tuple[str, str, str]) -> str:
    "The digest of the code with some texts replaced: module, old, new."
    texts = dict(zip(DECIDING, read_sources()))
    for module, old, new in edits:
        assert old in texts[module], old
        texts[module] = texts[module].replace(old, new, 1)
    return digest_of_code(tuple(texts.values()))


@pytest.mark.parametrize('edit', [
    ('train', 'BLOCK = 60.', 'BLOCK = 61.'), ('losses', 'def nt_xent(', 'def nt_xent_('),
    ('audio', 'SHORTEST = .1', 'SHORTEST = .2'), ('augment', 'import torch', 'import torch as torch'),
    ('compute', 'round(6)', 'round(7)'), ('model', '+ 1e-5', '+ 1e-6'),
    ('evaluate', 'def uar(', 'def uar_('), ('encoder', 'eps=1e-7', 'eps=1e-6'), ('parts', 'SOURCE', 'TARGET')],
    ids=lambda edit: edit[0])
def test_an_edit_to_a_chapter_that_numbers_come_from_is_another_digest(edit):
    assert edited(edit) != code_digest()


def test_comments_docstrings_and_layout_are_the_same_digest():
    edits = ('train', 'BLOCK = 60. #', 'BLOCK = 60. # new words:'), ('losses', '"""', '"""In other words: ')
    assert edited(*edits) == code_digest()


def test_every_chapter_that_a_deciding_one_imports_decides_too_or_only_reads_and_keeps():
    keeping = {'files', 'corpora'} # recordings, tables and folders, which count by their content
    for name, text in zip(DECIDING, read_sources()):
        imported = {line.split()[1].lstrip('.') for line in text.splitlines() if line.startswith('from .')}
        assert imported <= {*DECIDING, *keeping}, f'{name} imports {imported - {*DECIDING, *keeping}}'


EDIT = """
from cdser.config import BadInput
from cdser.store import SOURCES, code_digest
path, before = SOURCES / 'train.py', code_digest()
text = path.read_text()
path.write_text(text + '# a comment')
assert code_digest() == before
for edit in (text.replace('BLOCK = 60.', 'BLOCK = 30.'), 'def'):
    path.write_text(edit)
    try: code_digest()
    except BadInput as err: message = str(err)
    else: raise AssertionError('not noticed')
print(before, message)
"""


def test_a_copy_elsewhere_is_the_same_code_and_an_edit_after_loading_is_refused(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / 'cdser', ignore=shutil.ignore_patterns('__pycache__'))
    run = subprocess.run([sys.executable, '-c', EDIT], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path)},
                         capture_output=True, text=True)
    digest, _, message = run.stdout.partition(' ')
    assert digest == code_digest() and message.startswith(str(tmp_path)), run.stderr
    assert 'edited after it was loaded; start Python, or the kernel, again' in message


# ---- loss terms from outside the package

OUTSIDE = """
import torch, torch.nn.functional as F

def focal(logits, labels, gamma=2.):
    nats = F.cross_entropy(logits, labels, ignore_index=-1, reduction='none')
    return ((1 - torch.exp(-nats)) ** gamma * nats).mean()

def sliced_wasserstein(embedding, domains, slices=32):
    directions = F.normalize(torch.randn(embedding.shape[1], slices), dim=0)
    levels = torch.linspace(0, 1, 9)
    source, target = (torch.quantile(embedding[domains == d] @ directions, levels, dim=0) for d in (0, 1))
    return (source - target).square().mean()
"""


def test_terms_of_a_users_module_train_alone_and_in_worker_processes_and_count_by_their_source(
        studios, tmp_path, monkeypatch):
    module = tmp_path / 'my_losses.py'
    module.write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    both = [replace(TINY, weights={'emotion': 1., f'my_losses.{name}': .5}) for name in ('focal', 'sliced_wasserstein')]
    runs = grid(both, studios, tmp_path / 'grid', 'cpu', workers=2)
    alone = [fit(e, studios, tmp_path / 'fit', 'cpu', progress=False) for e in both]
    assert [(run.id, results(run)) for run in runs] == [(run.id, results(run)) for run in alone]
    assert all(run.history[[*e.weights]].notna().all(axis=None) for run, e in zip(runs, both))
    module.write_text(OUTSIDE.replace('gamma=2.', 'gamma=3.'))
    importlib.reload(sys.modules['my_losses'])
    assert plan_run(both[0], studios, tmp_path / 'fit').id != alone[0].id


@pytest.mark.parametrize('name, message', [
    ('my_losses.absent', "'my_losses.absent' cannot be imported"), ('os.path.join', 'the parameter')])
def test_a_term_that_cannot_be_used_is_named(name, message):
    with pytest.raises(BadInput, match=message):
        check_experiment(replace(TINY, weights={'emotion': 1., name: 1.}))


# ---- the experiment

OTHER = dict(setup='few_shot', weights={'emotion': 1.}, seed=1, fold=1, folds=4, protocol='leave_one_speaker_out',
             disjoint_texts=True, validation=.3, shots=5, freeze_front_end=True, freeze_encoder=True, projection=64,
             standardise=True, views=2, augmentations=('noise',), temperature=.2, confidence=.8, epochs=2,
             epoch_steps=3, selection='snd', patience=9, batch_seconds=4., encoder_lr=1e-3, head_lr=1e-3, warmup=.2,
             weight_decay=.1, clip_norm=2., max_seconds=.4)
BUSY = dict(weights={**PROPOSED, 'self_training': .1}) # in which every field plays its part


def test_every_field_has_another_value_here():
    assert set(OTHER) | {'source', 'target', 'encoder'} == {field.name for field in fields(Experiment)}


@pytest.mark.parametrize('name', OTHER)
def test_every_field_that_plays_a_part_is_another_run(name):
    e = replace(TINY, **{**BUSY, **(dict(setup='few_shot') if name == 'shots' else {})})
    changed = replace(e, **{name: OTHER[name]})
    assert name not in idle_fields(e) and content_hash(deciding(changed)) != content_hash(deciding(e))


WITHOUT = replace(TINY, weights={'emotion': 1., 'augmentation': .1}) # no contrast
IDLE = dict(shots=TINY, temperature=WITHOUT, projection=WITHOUT, confidence=TINY,
            augmentations=replace(TINY, views=1, weights={'emotion': 1.}),
            freeze_front_end=replace(TINY, freeze_encoder=True), encoder_lr=replace(TINY, freeze_encoder=True))


def results(run) -> dict[str, str]:
    return {file: digest for file, digest in digests(run.folder).items() if file != 'config.json'}


@pytest.mark.parametrize('name', IDLE)
def test_a_field_that_plays_no_part_changes_no_bit(studios, tmp_path, name):
    assert name in idle_fields(IDLE[name])
    run = fit(IDLE[name], studios, tmp_path / 'first', 'cpu', progress=False)
    again = fit(replace(IDLE[name], **{name: OTHER[name]}), studios, tmp_path / 'second', 'cpu', progress=False)
    assert run.id == again.id and results(run) == results(again)


def test_the_order_of_weights_changes_neither_id_nor_bits(studios, tmp_path):
    weights = {'information': .3, 'contrastive': .7, 'augmentation': .1, 'emotion': 1.}
    runs = [fit(replace(TINY, weights=dict(items)), studios, tmp_path / folder, 'cpu', progress=False)
            for items, folder in ((weights.items(), 'one'), (reversed(weights.items()), 'order'))]
    assert runs[0].id == runs[1].id and results(runs[0]) == results(runs[1])


@pytest.mark.parametrize('spelt', [
    dict(batch_seconds=3), dict(batch_seconds=np.float32(3)), dict(batch_seconds=torch.tensor(3.)),
    dict(epochs=np.int64(1)), dict(seed=np.uint8(0)), dict(augmentations=list(TINY.augmentations)),
    dict(clip_norm=1), dict(temperature=np.float64(.1)),
    dict(weights={name: np.float64(x) for name, x in reversed(PROPOSED.items())})])
def test_equal_values_are_the_same_run(spelt):
    assert content_hash(deciding(replace(TINY, **spelt))) == content_hash(deciding(TINY))


# ---- corpora

@pytest.fixture(scope='module')
def corpora(studios, tmp_path_factory) -> Path:
    "A copy of the studios, to be changed and changed back."
    return Path(shutil.copytree(studios, tmp_path_factory.mktemp('identity') / 'corpora'))


@pytest.fixture(scope='module')
def known(corpora, tmp_path_factory) -> tuple[Path, str]: # a folder of runs, and an id
    runs_dir = tmp_path_factory.mktemp('runs')
    return runs_dir, plan_run(TINY, corpora, runs_dir).id


def edit_manifest(corpus: Path, change) -> None:
    table = pd.read_csv(corpus / 'manifest.csv', dtype=str, keep_default_na=False)
    change(table)
    table.to_csv(corpus / 'manifest.csv', index=False)


def relabel(corpus):
    def change(table):
        first = table.speaker == table.speaker[0]
        table.loc[first, 'label'] = ['ang', 'hap'] * (sum(first) // 2)
    edit_manifest(corpus, change)


def swap_speakers(corpus):
    def change(table):
        i, j = 0, next(j for j in table.index if table.speaker[j] != table.speaker[0])
        table.loc[[i, j], 'speaker'] = table.loc[[j, i], 'speaker'].tolist()
    edit_manifest(corpus, change)


def rerecord(corpus):
    "Size and date stay."
    path = sorted((corpus / 'audio').iterdir())[5]
    times, samples = path.stat(), sf.read(path, dtype='int16')
    sf.write(path, samples[0][::-1], samples[1])
    table = pd.read_csv(corpus / 'manifest.csv', dtype=str, keep_default_na=False)
    table.drop(columns='sha256', errors='ignore').to_csv(corpus / 'manifest.csv', index=False)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)


@pytest.mark.parametrize('name', ['studio_a', 'studio_b'])
@pytest.mark.parametrize('change', [relabel, swap_speakers, rerecord])
def test_what_decides_of_a_corpus_is_another_run(studios, corpora, known, change, name):
    runs_dir, before = known
    change(corpora / name)
    after = plan_run(TINY, corpora, runs_dir).id
    shutil.rmtree(corpora / name)
    shutil.copytree(studios / name, corpora / name)
    assert after != before and plan_run(TINY, corpora, runs_dir).id == before


def test_other_rows_of_a_part_are_another_run_whoever_made_them(studios, known, monkeypatch):
    "Another version of scikit-learn may assign speakers to other folds under the same seed."
    from cdser import parts
    split = parts.target_split(parts.load_corpus('studio_b', studios).table, 1, 3, TINY.validation, 0)
    monkeypatch.setattr(parts, 'target_split', lambda *args: split)
    assert plan_run(TINY, studios, known[0]).id != known[1]


def test_other_first_weights_are_another_run_whoever_drew_them(studios, known, monkeypatch):
    "Another version of transformers may draw other weights from the same seed."
    from cdser import model
    real = model.load_backbone
    def load(name):
        torch.rand(1)
        return real(name)
    monkeypatch.setattr(model, 'load_backbone', load)
    assert plan_run(TINY, studios, known[0]).id != known[1]


def test_a_frozen_split_that_is_not_asked_for_is_the_same_run(corpora, known):
    table = pd.read_csv(corpora / 'studio_b' / 'manifest.csv', dtype=str)
    who = sorted(set(table.speaker))
    part = {speaker: ('test', 'valid', 'train')[min(i // 2, 2)] for i, speaker in enumerate(who)}
    split = pd.DataFrame({'path': table.path.str.removesuffix('.wav'), 'fold_0': table.speaker.map(part)})
    split.to_csv(corpora / 'studio_b' / 'split.csv', index=False)
    same = plan_run(TINY, corpora, known[0]).id
    (corpora / 'studio_b' / 'split.csv').unlink()
    assert same == known[1]


def test_names_and_places_are_no_part_of_a_run(studios, known, tmp_path):
    for old, new in (('studio_a', 'mine'), ('studio_b', 'yours')):
        shutil.copytree(studios / old, tmp_path / 'elsewhere' / new)
    renamed = replace(TINY, source='mine', target='yours')
    assert plan_run(renamed, tmp_path / 'elsewhere', tmp_path / 'runs').id == known[1]


def test_another_precision_is_another_run(studios, known):
    assert plan_run(TINY, studios, known[0], 'cuda').id != known[1]


def test_an_encoder_is_its_content_wherever_it_lies(studios, tmp_path):
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**NANO)).save_pretrained(tmp_path / 'here')
    def id_with(folder: Path) -> str:
        return plan_run(replace(TINY, encoder=str(folder)), studios, tmp_path / 'runs').id
    before = id_with(tmp_path / 'here')
    shutil.copytree(tmp_path / 'here', tmp_path / 'copy')
    (tmp_path / 'link').symlink_to('copy')
    for folder in (tmp_path / 'copy', tmp_path / 'link', Path(os.path.relpath(tmp_path / 'here'))):
        assert id_with(folder) == before
    weights = tmp_path / 'copy' / 'model.safetensors'
    date, content = weights.stat().st_mtime_ns, bytearray(weights.read_bytes())
    content[-20_000] ^= 1 # in place, its size and date kept
    weights.write_bytes(content)
    os.utime(weights, ns=(date, date))
    config = tmp_path / 'here' / 'config.json'
    config.write_text(config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2'))
    of_nano = plan_run(TINY, studios, tmp_path / 'runs').id
    assert len({before, id_with(tmp_path / 'copy'), id_with(tmp_path / 'here'), of_nano}) == 4
