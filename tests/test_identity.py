"What makes another run of a run: whatever decides its numbers, by content; and nothing else."
import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cdser import identity
from cdser.config import PROPOSED, BadInput, Experiment, content_hash, from_dict
from cdser.encoder import NANO, encoder_digest
from cdser.identity import APART, DECIDING, code_digest, deciding, definitions, digest_of_code, idle_fields, reachable
from cdser.identity import source, sources, structure
from cdser.runs import open_recordings, plan_run, run_id
from kills import digests

PACKAGE = Path(identity.__file__).parent
TINY = Experiment('studio_a', 'studio_b', epochs=1, epoch_steps=2, max_seconds=.3, batch_seconds=3.)


# ---- the code

def edited(*edits: tuple[str, str, str]) -> str: # (module, old, new)
    "The digest of the package with some texts in the place of others."
    texts = dict(sources())
    for module, old, new in edits:
        assert texts[module].count(old) == 1, f'{module}: {old!r} is not there once'
        texts[module] = texts[module].replace(old, new)
    return digest_of_code(tuple(texts.items()))


@pytest.mark.parametrize('module, old, new', [
    ('train', 'BLOCK = 60.', 'BLOCK = 61.'), ('train', 'HEARD = 300', 'HEARD = 301'),
    ('train', '1 / len(LABELS)) / 2', '2 / len(LABELS)) / 2'),
    ('losses', 'similarity = z @ z.T / temperature\n    utterance',
     'similarity = -z @ z.T / temperature\n    utterance'),
    ('losses', 'iterations: int = 100', 'iterations: int = 99'),
    ('rivals', 'scales: tuple = (.25', 'scales: tuple = (.26'),
    ('augment', 'ROOM_TAPS =', 'ROOM_TAPS = 2 +'), ('audio', "window=('kaiser', 5.)", "window=('kaiser', 6.)"),
    ('audio', 'SILENCE = 1e-4', 'SILENCE = 1e-3'),
    ('encoder', 'AttentionMaskInterface.register(', 'AttentionMaskInterface.register_too('),
    ('encoder', "hidden_dropout=0.", "hidden_dropout=.1"),
    ('encoder', 'AT_ONCE =', 'AT_ONCE = 1 +'), ('model', 'nn.Linear(width, len(LABELS))',
                                                'nn.Linear(width, len(LABELS), bias=False)'),
    ('model', 'count + 1e-5', 'count + 1e-4'), ('warm_start', 'lr: float = 1e-3', 'lr: float = 2e-3'),
    ('batches', 'default_rng([seed, 1])', 'default_rng([seed, 2])'),
    ('splits', 'def hold_out(', 'def hold_out_('), ('config', "LABELS = ('ang', 'hap'", "LABELS = ('hap', 'ang'"),
    ('runs', 'round(6)', 'round(5)'), ('runs', 'torch.set_num_threads(1)', 'torch.set_num_threads(2)'),
    ('runs', 'seed=e.seed, device=device, progress', 'seed=1, device=device, progress'),
    ('checkpoints', "return {'float': str(x)}", "return {'float': '0'}")])
def test_an_edit_to_what_decides_a_number_is_another_digest(module, old, new):
    assert edited((module, old, new)) != code_digest()


IDLE_EDITS = [
    ('losses', 'Normalised temperature-scaled', 'Well-tempered'),
    ('train', 'BLOCK = 60. #', 'BLOCK = 60. # new words:'),
    ('losses', 'import math\n', 'import math # for logarithms\n\n\n'),
    ('figures', 'def figure_training(', 'def figure_training_('),
    ('report', 'def table1(', 'def table1_('), ('evaluate', 'def estimate(', 'def estimate_('),
    ('store', "'is not as it was stored'", "'is another'"),
    ('cli', 'def main(', 'def main_('), ('files', 'BEAT, SILENT = 5, 60', 'BEAT, SILENT = 6, 60'),
    ('runs', 'def records(', 'def records_('),
    ('verify', 'def verify(', 'def verify_('), ('synthetic', 'VERSION =', 'VERSION = 0 +')]


def test_edits_to_what_decides_none_are_the_same_digest():
    assert edited(*IDLE_EDITS) == code_digest()


NOT_FOR_NUMBERS = { # functions of deciding chapters that are called for no run's numbers, or only after it is stored
    'audio': {'decode', 'load_audio', 'read_audio', 'read_recording'}, # one recording at a time
    'evaluate': {'arrange', 'compare', 'confound', 'covariance', 'draw', 'estimate', 'few_speakers', 'hits', 'holm', 'run_uars', 'speaker_only',
                 'standard_error', 'Answers', 'Comparison', 'Estimate'},
    'model': {'from_transformers', 'load_stock'}, # recognise with a stored run
    'selection': {'best_epoch', 'proxy_a_distance', 'rank_correlation', 'selection_costs'},
    'splits': {'FOLDS', 'check_speakers', 'default_protocol', 'plan_folds', 'split_corpus'},
    'train': {'make_views'}}


@pytest.mark.parametrize('module', ['audio', 'augment', 'batches', 'checkpoints', 'encoder', 'evaluate', 'losses',
                                    'model', 'parts', 'rivals', 'selection',
                                    'splits', 'train', 'warm_start'])
def test_every_definition_of_a_deciding_chapter_counts_unless_it_is_known_not_to(module):
    needed = reachable(DECIDING, apart=APART)
    unneeded = {name for name, node in definitions(ast.parse(source(module))).items() if not isinstance(node, tuple | ast.Import | ast.ImportFrom)
                and (module, name) not in needed}
    assert unneeded - {'__all__'} <= NOT_FOR_NUMBERS.get(module, set())


def test_a_changed_body_of_any_function_that_counts_is_another_structure():
    changed = 0
    for (module, name), node in reachable(DECIDING, apart=APART).items():
        for inner in ast.walk(node):
            if not isinstance(inner, ast.FunctionDef): continue
            before = structure(inner)
            inner.body.append(ast.Expr(ast.Constant(1)))
            assert structure(inner) != before, f'{module}.{name}: {inner.name}'
            inner.body.pop()
            changed += 1
    assert changed > 250


@pytest.mark.parametrize('text', ['A["x"] = 1', 'A |= {"x": 1}', 'A.update(x=1)', 'f.x = 1',
                                  'for x in (1, 2): A[x] = x', 'if A: B = 1\nelse: B = 2', 'del A',
                                  'def A(): return 2', 'try: C = 1\nexcept ValueError: C = 2', 'with A: D = 1',
                                  'A = {2: 3}', '@A\ndef g(): return 1\nassert g'])
def test_a_statement_that_changes_what_is_there_counts_though_nobody_names_it(text):
    before = {'m': 'A = {}\ndef f(): return A\n'}
    after = {'m': before['m'] + text + '\n'}
    def found(texts): return content_hash(sorted([name, structure(node)] for name,
                                                 node in reachable((('m', 'f'),), texts.__getitem__).items()))
    assert found(before) != found(after)


def test_what_a_function_imports_when_it_is_called_counts():
    texts = {'m': 'def f():\n    from .n import g as h\n    return h()\n', 'n': 'X = 1\ndef g(): return X\n'}
    assert set(reachable((('m', 'f'),), texts.__getitem__)) == {('m', 'f'), ('n', 'g'), ('n', 'X')}


EDIT = """
from pathlib import Path
from cdser.config import BadInput
from cdser.identity import SOURCES, code_digest
path, one = SOURCES / 'train.py', code_digest()
text = path.read_text()
path.write_text(text + '# a comment')
assert code_digest() == one
path.write_text(text.replace('BLOCK = 60.', 'BLOCK = 30.'))
try: print(code_digest())
except BadInput as err: print(one, err)
"""


def test_a_copy_elsewhere_is_the_same_code_and_an_edit_after_loading_is_refused(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / 'cdser', ignore=shutil.ignore_patterns('__pycache__'))
    run = subprocess.run([sys.executable, '-c', EDIT], cwd=tmp_path, env={**os.environ, 'PYTHONPATH': str(tmp_path)},
                         capture_output=True, text=True)
    one, _, message = run.stdout.partition(' ')
    assert one == code_digest() and message.startswith(str(tmp_path)), run.stderr
    assert 'edited after it was loaded; start Python, or the kernel, again' in message


def test_the_digest_is_made_of_the_files_that_are_loaded(monkeypatch):
    monkeypatch.setattr(identity, 'source', lambda module: source(module).replace('temperature', 'temperatur')
                        if module == 'losses' else source(module))
    with pytest.raises(BadInput, match='edited after it was loaded'): code_digest()
    monkeypatch.setattr(identity, 'source', lambda module: 'def' if module == 'losses' else source(module))
    with pytest.raises(BadInput, match='edited after it was loaded'): code_digest()


# ---- the experiment

OTHER = dict(setup='few_shot', weights={'emotion': 1.}, seed=1, fold=1, folds=4, protocol='leave_one_speaker_out',
             disjoint_texts=True, validation=.3,
             shots=5, freeze_front_end=True, freeze_encoder=True, projection=64, warm_start=1, objective='ptapt',
             standardise=True, views=2,
             augmentations=('noise',), temperature=.2, confidence=.8, epochs=2, epoch_steps=3, selection='snd',
             patience=9, batch_seconds=4.,
             encoder_lr=1e-3, head_lr=1e-3, warmup=.2, weight_decay=.1, clip_norm=2., max_seconds=.4)
BUSY = dict(weights={**PROPOSED, 'self_training': .1}) # in which every field plays its part
PLAYS = dict(shots=dict(setup='few_shot'), objective=dict(warm_start=3))


def test_every_field_has_another_value_here():
    assert set(OTHER) | {'source', 'target', 'encoder'} == {field.name for field in fields(Experiment)}


@pytest.mark.parametrize('name', OTHER)
def test_every_field_that_plays_a_part_is_another_run(name):
    e = replace(TINY, **{**BUSY, **PLAYS.get(name, {})})
    other = replace(e, **{name: OTHER[name]})
    assert name not in idle_fields(e) and content_hash(deciding(other)) != content_hash(deciding(e))


IDLE = dict(shots=TINY, objective=TINY, temperature=replace(TINY, weights={'emotion': 1., 'augmentation': .1}),
            confidence=TINY,
            augmentations=replace(TINY, views=1, weights={'emotion': 1.}),
            freeze_front_end=replace(TINY, freeze_encoder=True),
            encoder_lr=replace(TINY, freeze_encoder=True))


@pytest.fixture(scope='module')
def fitted(studios, tmp_path_factory):
    "Runs, each stored in a folder of its own once."
    from cdser.runs import fit
    def run(e: Experiment, apart: str):
        return fit(e, studios, tmp_path_factory.getbasetemp() / f'identity_{apart}', 'cpu', progress=False)
    return run


@pytest.mark.parametrize('name', IDLE)
def test_a_field_that_plays_no_part_changes_no_bit(fitted, name):
    one, other = IDLE[name], replace(IDLE[name], **{name: OTHER[name]})
    assert name in idle_fields(one)
    runs = fitted(one, 'one'), fitted(other, f'other_{name}')
    assert runs[0].id == runs[1].id
    held = [{file: digest for file, digest in digests(run.folder).items() if file != 'config.json'} for run in runs]
    assert held[0] == held[1]


def test_there_is_no_other_idle_field():
    ways = ({}, dict(freeze_encoder=True), dict(views=1, weights={'emotion': 1.}))
    assert set().union(*(idle_fields(replace(TINY, **way)) for way in ways)) == set(IDLE)


def test_the_order_of_weights_changes_neither_id_nor_bits(fitted):
    weights = {'information': .3, 'contrastive': .7, 'augmentation': .1, 'emotion': 1.}
    runs = [fitted(replace(TINY, weights=dict(items)), apart) for items,
            apart in ((weights.items(), 'one'), (reversed(weights.items()), 'order'))]
    assert runs[0].id == runs[1].id and digests(runs[0].folder) == digests(runs[1].folder)


@pytest.mark.parametrize('spelt', [
    dict(batch_seconds=3), dict(batch_seconds=np.float32(3)), dict(batch_seconds=torch.tensor(3.)),
    dict(epochs=np.int64(1)), dict(seed=np.uint8(0)),
    dict(augmentations=list(TINY.augmentations)), dict(weights={name: np.float64(x) for name,
                                                                x in reversed(PROPOSED.items())}), dict(clip_norm=1),
    dict(weights={**PROPOSED, 'emotion': 1}), dict(temperature=np.float64(.1))])
def test_equal_values_are_the_same_run(spelt):
    assert content_hash(deciding(replace(TINY, **spelt))) == content_hash(deciding(TINY))


def test_as_json_brings_it_back_it_is_the_same_run():
    import json
    assert content_hash(deciding(from_dict(json.loads(json.dumps(asdict(TINY)))))) == content_hash(deciding(TINY))


# ---- what is heard and read

@pytest.fixture(scope='module')
def other_corpora(studios, tmp_path_factory) -> Path:
    "A copy of the studios, to be changed and changed back."
    return Path(shutil.copytree(studios, tmp_path_factory.mktemp('identity') / 'corpora'))


def id_of(corpora: Path, runs_dir: Path, e: Experiment = TINY, device: str = 'cpu') -> str:
    return run_id(e, *(open_recordings(name, corpora, runs_dir, e.max_seconds) for name in (e.source, e.target)),
                  device)


@pytest.fixture(scope='module')
def known(other_corpora, tmp_path_factory) -> tuple[Path, str]: # a folder of runs, and an id
    runs_dir = tmp_path_factory.mktemp('runs')
    return runs_dir, id_of(other_corpora, runs_dir)


def edit_manifest(corpus: Path, change) -> None:
    table = pd.read_csv(corpus / 'manifest.csv', dtype=str, keep_default_na=False)
    change(table)
    table.to_csv(corpus / 'manifest.csv', index=False)


def relabel(corpus):
    def change(table): table.loc[0, 'label'] = 'sad' if table.label[0] != 'sad' else 'ang'
    edit_manifest(corpus, change)


def swap_speakers(corpus):
    def change(table):
        i, j = 0, next(j for j in table.index if table.speaker[j] != table.speaker[0])
        table.loc[[i, j], 'speaker'] = table.loc[[j, i], 'speaker'].tolist()
    edit_manifest(corpus, change)


def rerecord(corpus):
    "Size and date stay."
    path = sorted((corpus / 'audio').iterdir())[5]
    found, samples = path.stat(), sf.read(path, dtype='int16')
    sf.write(path, samples[0][::-1], samples[1])
    table = pd.read_csv(corpus / 'manifest.csv', dtype=str, keep_default_na=False)
    if 'sha256' in table: table.drop(columns='sha256').to_csv(corpus / 'manifest.csv', index=False)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (found.st_size, found.st_mtime_ns)


def freeze(corpus):
    def parts(table):
        who = sorted(set(table.speaker))
        return table.speaker.map({speaker: ('test', 'valid', 'train')[min(i // 2, 2)] for i, speaker in enumerate(who)})
    table = pd.read_csv(corpus / 'manifest.csv', dtype=str)
    split = pd.DataFrame({'path': table.path.str.removesuffix('.wav'), 'fold_0': parts(table)})
    split.to_csv(corpus / 'split.csv', index=False)


@pytest.mark.parametrize('name', ['studio_a', 'studio_b'])
@pytest.mark.parametrize('change', [relabel, swap_speakers, rerecord])
def test_what_decides_of_a_corpus_is_another_run(studios, other_corpora, known, change, name):
    runs_dir, before = known
    shutil.rmtree(other_corpora / name)
    shutil.copytree(studios / name, other_corpora / name)
    assert id_of(other_corpora, runs_dir) == before
    change(other_corpora / name)
    after = id_of(other_corpora, runs_dir)
    shutil.rmtree(other_corpora / name)
    shutil.copytree(studios / name, other_corpora / name)
    assert after != before and id_of(other_corpora, runs_dir) == before


@pytest.mark.parametrize('name', ['studio_a', 'studio_b'])
def test_a_frozen_split_that_is_not_asked_for_is_no_other_run(studios, other_corpora, known, name):
    runs_dir, before = known
    freeze(other_corpora / name)
    assert id_of(other_corpora, runs_dir) == before
    (other_corpora / name / 'split.csv').unlink()


def test_names_and_places_are_no_part_of_a_run(studios, known, tmp_path):
    for old, new in (('studio_a', 'mine'), ('studio_b', 'yours')):
        shutil.copytree(studios / old, tmp_path / 'elsewhere' / new)
    assert id_of(tmp_path / 'elsewhere', tmp_path / 'runs', replace(TINY, source='mine', target='yours')) == known[1]


def test_another_precision_is_another_run(studios, known):
    assert id_of(studios, known[0], device='cuda') != known[1]


# ---- the encoder

@pytest.fixture(scope='module')
def encoder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('encoder') / 'first'
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**NANO)).save_pretrained(folder)
    return folder


def test_an_encoder_is_its_content_wherever_it_lies(studios, encoder, tmp_path):
    here = Path(shutil.copytree(encoder, tmp_path / 'here'))
    def found(folder): return plan_run(replace(TINY, encoder=str(folder)), studios, tmp_path / 'runs', 'cpu', None).id
    before = found(here)
    shutil.copytree(here, tmp_path / 'copy')
    assert found(tmp_path / 'copy') == before == found(Path(os.path.relpath(here)))
    here.rename(tmp_path / 'moved')
    (tmp_path / 'link').symlink_to('moved')
    assert found(tmp_path / 'moved') == before == found(tmp_path / 'link')
    weights = tmp_path / 'moved' / 'model.safetensors'
    date, content = weights.stat().st_mtime_ns, bytearray(weights.read_bytes())
    content[-2] ^= 1 # in place, its size and date kept
    weights.write_bytes(content)
    os.utime(weights, ns=(date, date))
    assert found(tmp_path / 'moved') != before == found(tmp_path / 'copy')
    config = tmp_path / 'copy' / 'config.json'
    config.write_text(re.sub(r'"num_attention_heads": 4', '"num_attention_heads": 2', config.read_text()))
    assert found(tmp_path / 'copy') != before
    assert encoder_digest('nano') != encoder_digest(str(encoder))


def test_warm_starts_of_two_precisions_are_two(studios, monkeypatch, tmp_path):
    "An encoder that is warmed up in bfloat16 is not one that is warmed up in float32."
    from cdser import runs
    e, seen = replace(TINY, warm_start=1), []
    planned = plan_run(e, studios, tmp_path, 'cpu', None)
    monkeypatch.setattr(runs, 'claimed', lambda store, id: seen.append(id) or pytest.skip('seen'))
    for device in ('cpu', 'cuda'):
        with pytest.raises(pytest.skip.Exception): runs.warm_up(planned.build(), e, planned.parts, tmp_path, device,
                                                                planned.identity['encoder'])
    assert len(set(seen)) == 2
