"What has to hold for whatever comes: predictions, augmentations, splits, hidden labels, ids, files."
import hashlib
import os
import sys
import threading
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

import cdser.encoder
import cdser.files
import cdser.runs
from cdser.audio import SHORTEST
from cdser.batches import few_labels, visible_labels
from cdser.config import (ABLATIONS, AUGMENTATIONS, HIDDEN, LABELS, METHODS, OBJECTIVES, PROTOCOLS, RIVALS, SAMPLE_RATE, SELECTIONS, SETUPS,
                          BadInput, Experiment, check_experiment, content_hash)
from cdser.corpora import Corpus, check_table
from cdser.files import Claim, build_folder, content_digests, process_name, this_machine, write_file
from cdser.identity import deciding
from cdser.model import build
from cdser.parts import Recordings, make_parts
from cdser.runs import InMemory, recognise
from cdser.train import predict

LEAST = int(SHORTEST * SAMPLE_RATE) # samples of the shortest recording that is read


def some(n: int = 50) -> settings:
    "So many examples, however slow the machine is."
    return settings(max_examples=n, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large])


# ---- predictions

@pytest.fixture(scope='module')
def heard():
    "A nano recogniser, recordings of many lengths and both sample formats, and what is said of each alone. A window is a second."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cdser.encoder, 'WINDOW', 1.)
        torch.manual_seed(0)
        model, rng = build(Experiment('a', 'b')), np.random.default_rng(0)
        lengths = [LEAST, LEAST, LEAST + 1, 1999, 4321, 8000, 12_345, 15_999, 16_000, 16_001, 25_000, 40_000]
        samples = [(.2 * rng.standard_normal(n)).astype(np.float32) for n in lengths]
        samples[1] = samples[0].copy()
        samples = [x if i % 3 else (x * 2**15).clip(-2**15, 2**15 - 1).astype(np.int16) for i, x in enumerate(samples)]
        store = InMemory(samples)
        alone = [predict(model, InMemory([x]), np.array([0])) for x in samples]
        yield SimpleNamespace(model=model, store=store, p=np.concatenate([p for p, _ in alone]), z=np.concatenate([z for _, z in alone]))


@some(30)
@given(rows=st.lists(st.integers(0, 11), min_size=1, max_size=16), budget=st.floats(.01, 50))
@example(rows=[*range(12)], budget=160.)
@example(rows=[11, 0, 11], budget=.01)
def test_batch_mates_their_order_and_the_batch_size_change_no_prediction(heard, rows, budget):
    "Rows may be asked for several times, in any order."
    p, z = predict(heard.model, heard.store, np.array(rows), budget)
    assert np.abs(p - heard.p[rows]).max() < 1e-5 and np.abs(z - heard.z[rows]).max() < 1e-4 * max(1, np.abs(heard.z).max())
    again = predict(heard.model, heard.store, np.array(rows), budget)
    assert np.array_equal(p, again[0]) and np.array_equal(z, again[1]) # in the same batches to the bit


@some(8)
@given(data=st.data(), chunk=st.floats(.1, 20))
def test_what_is_recognised_of_a_file_hangs_on_no_other_file(heard, studios, data, chunk):
    paths = sorted((studios / 'studio_a' / 'audio').glob('*.wav'))[:12]
    run = SimpleNamespace(model=heard.model)
    alone = pd.concat([recognise(run, [path], 'cpu') for path in paths]).set_index('path')
    asked = data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cdser.runs, 'CHUNK', chunk) # seconds that are decoded before they are recognised
        said = recognise(run, asked, 'cpu')
    expected = alone.loc[[str(path) for path in asked]]
    assert said.path.tolist() == [str(path) for path in asked] and said.prediction.tolist() == expected.prediction.tolist()
    assert np.abs(said.filter(like='p_').to_numpy() - expected.filter(like='p_').to_numpy()).max() < 1e-5


# ---- splits and hidden labels

@st.composite
def people(draw) -> list[tuple]: # speaker, label, session, text, number of the recording
    "Speakers who say some things in all labels or in few, in one session or in several; a recording may be there twice."
    rows, sessions = [], draw(st.sampled_from(('', 'own', 'x', 'xyz')))
    among = draw(st.sampled_from((LABELS, LABELS, LABELS[:3], LABELS[1:2])))
    for i, speaker in enumerate('abcdefgh'[:draw(st.sampled_from((8, 7, 6, 5, 3, 2, 1)))]):
        for label in draw(st.sampled_from((among, among, among, among[:2], among[-1:]))):
            for text in draw(st.sampled_from(('12', '1234', '3', '', '55'))) or ['']:
                rows.append((speaker, label, 'xyz'[i % 3] if sessions == 'own' else draw(st.sampled_from(sessions)) if sessions else '', text))
    rows = draw(st.permutations(rows))
    numbers = list(range(len(rows)))
    for at in draw(st.one_of(st.just([]), st.just([]), st.lists(st.integers(0, len(rows) - 1), max_size=2))): numbers[at] = numbers[0]
    return [(*row, number) for row, number in zip(rows, numbers)]


PEOPLE = people()


def corpus_of(rows, name: str = 'any', suffix: str = '') -> tuple[Corpus, list[str]]: # and the digest of each recording, some equal
    table = pd.DataFrame([row[:4] for row in rows], columns=['speaker', 'label', 'session', 'text_id']).assign(path=[f'{i}.wav' for i in range(len(rows))])
    return Corpus(name, Path('nowhere'), check_table(table, name)), [f'{number}{suffix}' for *_, number in rows]


@some()
@given(labels=st.lists(st.integers(HIDDEN, 3), max_size=60).map(lambda x: np.array(x, dtype=np.int64)), shots=st.integers(0, 20), seed=st.integers(0, 2**32 - 1))
def test_few_labels_are_as_many_as_asked_for_and_among_more(labels, shots, seed):
    before, few = labels.copy(), few_labels(labels, shots, seed)
    assert np.array_equal(labels, before) and few.dtype == np.int64 and len(few) == len(labels)
    assert ((few == labels) | (few == HIDDEN)).all()
    for c in range(len(LABELS)): assert (few == c).sum() == min(shots, (labels == c).sum())
    more = few_labels(labels, shots + 1, seed)
    assert (more[few != HIDDEN] == few[few != HIDDEN]).all()
    shown, hidden = visible_labels(labels, True), visible_labels(labels, False)
    assert np.array_equal(shown, labels) and not np.shares_memory(shown, labels) and (hidden == HIDDEN).all() and len(hidden) == len(labels)


@some(100)
@given(source=PEOPLE, target=PEOPLE, setup=st.sampled_from(('few_shot', 'unlabelled_target', *SETUPS)), shots=st.integers(1, 3), seed=st.integers(0, 5), same=st.sampled_from((False, False, False, True)))
def test_no_label_that_a_setup_hides_reaches_training_for_any_two_corpora(source, target, setup, shots, seed, same):
    "Nor a tested utterance, nor a corpus that holds a recording of the other."
    both = []
    for name, rows in (('a', source), ('b', target)):
        corpus, files = corpus_of(rows, name, '' if same else name)
        contents = np.arange(len(rows)) + 1000 * (name == 'b')
        both.append(Recordings(corpus, SimpleNamespace(lengths=np.full(len(rows), 8000), contents=contents, digest=name), files))
    weights = METHODS['proposed'] if SETUPS[setup].source and SETUPS[setup].target else METHODS['emotion_only']
    e = check_experiment(Experiment('a', 'b', setup, weights, seed=seed, shots=shots))
    try: parts = make_parts(e, *both)
    except BadInput as err:
        assert '\n' not in str(err)
        return
    s, (of_source, of_target) = SETUPS[setup], both
    assert not set(of_source.files) & set(of_target.files)
    trained = {(r.domain, int(row)) for r in parts.training for row in r.rows}
    judged, tested = ({(r.domain, int(row)) for row in r.rows} for r in (parts.valid, parts.test))
    assert parts.test.domain == 1 and tested and not tested & trained and not tested & judged and not judged & trained
    assert {r.domain for r in parts.training} == {domain for domain, used in ((0, s.source), (1, s.target)) if used}
    assert parts.valid.domain == int(s.target_labels) # else the source's labels judge
    for r in parts.training:
        labels = (of_target if r.domain else of_source).corpus.labels[r.rows]
        visible = r.labels != HIDDEN
        assert (r.labels[visible] == labels[visible]).all()
        if r.domain == 0 or s.target_labels: assert visible.all()
        elif s.shots: assert all(visible[labels == c].sum() == min(shots, (labels == c).sum()) for c in range(len(LABELS)))
        else: assert not visible.any()


# ---- ids

def number(low, high, whole=False):
    return st.integers(low, high) if whole else st.floats(low, high).map(lambda x: round(x, 6))


FIELDS = dict(source=st.sampled_from(('a', 'c')), target=st.sampled_from(('b', 'd')), setup=st.sampled_from(tuple(SETUPS)),
              weights=st.sampled_from([METHODS[name] for name in ('proposed', 'emotion_only', *ABLATIONS, *RIVALS, 'supervised', 'prior_aware')]),
              seed=number(0, 99, True), fold=number(0, 2, True), folds=number(3, 9, True), protocol=st.sampled_from(PROTOCOLS), disjoint_texts=st.booleans(),
              validation=number(.1, .5), shots=number(1, 16, True), encoder=st.sampled_from(('nano', 'some/encoder')), freeze_front_end=st.booleans(),
              freeze_encoder=st.booleans(), projection=number(8, 256, True), warm_start=number(0, 9, True), objective=st.sampled_from(OBJECTIVES),
              standardise=st.booleans(), views=number(1, 4, True), augmentations=st.lists(st.sampled_from(AUGMENTATIONS), min_size=1, unique=True).map(tuple),
              temperature=number(.01, 1), confidence=number(.1, .99), epochs=number(1, 20, True), epoch_steps=number(0, 60, True), selection=st.sampled_from(SELECTIONS),
              patience=number(1, 20, True), batch_seconds=number(1, 99), encoder_lr=number(1e-5, .1), head_lr=number(1e-5, .1), warmup=number(0, 1),
              weight_decay=number(0, 1), clip_norm=number(.1, 9), max_seconds=number(1, 30))


def test_no_field_of_an_experiment_is_left_out_here():
    assert list(FIELDS) == [f.name for f in fields(Experiment)]


NO_PART = dict( # field -> whether it plays no part in a run
    source=lambda e: True, target=lambda e: True, encoder=lambda e: True, # these count by their content
    shots=lambda e: e.setup != 'few_shot', objective=lambda e: e.warm_start == 0, augmentations=lambda e: e.views == 1,
    temperature=lambda e: not {'contrastive', 'supervised_contrastive'} & set(e.weights), confidence=lambda e: 'self_training' not in e.weights,
    freeze_front_end=lambda e: e.freeze_encoder, encoder_lr=lambda e: e.freeze_encoder)


@some(200)
@given(data=st.data(), field=st.sampled_from(tuple(FIELDS)), chosen=st.fixed_dictionaries(
    {name: FIELDS[name] for name in ('setup', 'weights', 'warm_start', 'objective', 'views', 'freeze_encoder')}))
def test_what_decides_a_run_changes_with_every_field_that_matters_and_with_no_other(data, field, chosen):
    try: e = check_experiment(Experiment('a', 'b', **chosen))
    except BadInput: assume(False)
    try: changed = check_experiment(replace(e, **{field: data.draw(FIELDS[field])}))
    except BadInput: assume(False)
    assume(changed != e)
    assert (content_hash(deciding(changed)) == content_hash(deciding(e))) == (field in NO_PART and NO_PART[field](e))


@some()
@given(chosen=st.fixed_dictionaries({}, optional={name: values for name, values in FIELDS.items() if name not in ('source', 'target')}))
def test_equal_values_decide_the_same_whatever_their_types(chosen):
    try: e = check_experiment(Experiment('a', 'b', **chosen))
    except BadInput: assume(False)
    def otherwise(value):
        if isinstance(value, bool): return value
        if isinstance(value, int): return np.int64(value)
        if isinstance(value, float): return int(value) if value.is_integer() else np.float64(value)
        if isinstance(value, tuple): return list(value)
        return dict(reversed([(k, otherwise(v)) for k, v in value.items()])) if isinstance(value, dict) else value
    same = Experiment(**{name: otherwise(value) for name, value in asdict(e).items()})
    assert content_hash(deciding(same)) == content_hash(deciding(e))


@some(40)
@given(rows=PEOPLE, at=st.integers(0, 99), column=st.sampled_from(('label', 'speaker', 'session', 'text_id', 'path', 'gender', 'emotion', 'sha256', 'files', 'name')))
def test_a_corpus_counts_by_its_recordings_labels_and_what_splits_are_made_of(rows, at, column):
    corpus, files = corpus_of(rows)
    at, table, changed, name = at % len(rows), corpus.table.copy(), list(files), corpus.name
    if column == 'files': changed[at] += 'x'
    elif column == 'name': name = 'other'
    else: table.loc[at, column] = 'another' if column != 'label' else LABELS[(LABELS.index(table.label[at]) + 1) % 4]
    one, two = Recordings(corpus, None, files), Recordings(Corpus(name, Path('elsewhere'), table), None, changed)
    assert (one.digest == two.digest) == (column in ('gender', 'emotion', 'sha256', 'name'))


# ---- files that several threads are at

def at_once(tasks: list) -> list:
    "What each answers or raises, all started together."
    answers, gate = [None] * len(tasks), threading.Barrier(len(tasks))
    def work(i):
        gate.wait()
        try: answers[i] = tasks[i]()
        except Exception as err: answers[i] = err # noqa: BLE001 (it is looked at below)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(tasks))]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return answers


@some(10)
@given(sizes=st.lists(st.integers(1, 300_000), min_size=2, max_size=6), removes=st.booleans())
def test_a_file_that_many_write_is_always_one_of_theirs_and_whole(tmp_path_factory, sizes, removes):
    folder = tmp_path_factory.mktemp('file')
    path, contents = folder / 'a.txt', [str(i) * size for i, size in enumerate(sizes)]
    write_file(path, contents[0])
    def write(content): return lambda: [write_file(path, content) for _ in range(5)] and 'written'
    def read(): return {path.read_text() for _ in range(40)} <= set(contents)
    assert at_once([*map(write, contents), read, read]) == ['written'] * len(sizes) + [True, True]
    assert path.read_text() in contents and [path.name for path in folder.iterdir()] == ['a.txt']


@some(15)
@given(fails=st.lists(st.booleans(), min_size=2, max_size=8))
def test_a_folder_that_many_build_is_built_once_and_whole(tmp_path_factory, fails):
    place = tmp_path_factory.mktemp('folder') / 'deep' / 'built'
    def build(i, fail):
        def write(draft):
            (draft / 'first').write_text(str(i))
            if fail: raise KeyError(i)
            (draft / 'last').write_text(str(i))
        return lambda: build_folder(place, write)
    said = at_once([build(i, fail) for i, fail in enumerate(fails)])
    made = [i for i, answer in enumerate(said) if answer is True]
    assert len(made) == (not all(fails)) and all(fails[i] for i, answer in enumerate(said) if isinstance(answer, Exception))
    assert all(answer in (True, False) or isinstance(answer, KeyError) for answer in said)
    if made: assert [(place / name).read_text() for name in ('first', 'last')] == [str(made[0])] * 2
    assert [path.name for path in place.parent.iterdir()] == ['built'] * len(made)


@pytest.fixture
def eager():
    "Threads that take turns as often as they can."
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize('left', ['nothing', 'the claim of a dead process', 'the claim of one that lives'])
def test_a_claim_is_held_by_one_at_a_time_whatever_is_there_before(tmp_path, left, eager):
    path = tmp_path / 'x'
    owner = {'the claim of a dead process': f'{this_machine()}-99999999-5', 'the claim of one that lives': process_name()}.get(left) # no process has such a number
    for _ in range(100):
        if owner: path.write_text(owner)
        def take():
            claim = Claim(path)
            return next((claim for _ in range(3) if claim.take()), None)
        held = [claim for claim in at_once([take] * 6) if claim]
        assert len(held) == (left != 'the claim of one that lives') and [found.name for found in tmp_path.iterdir()] == ['x']
        for claim in held: claim.release()
        path.unlink(missing_ok=left == 'the claim of a dead process' or not owner)


def test_a_claim_that_another_machine_took_for_void_is_not_given_up_by_whom_it_was_taken_from(tmp_path):
    mine = Claim(tmp_path / 'x')
    assert mine.take() and not Claim(tmp_path / 'x').take()
    (tmp_path / 'x').write_text('00000000-1-1')
    mine.release()
    assert (tmp_path / 'x').read_text() == '00000000-1-1' and not Claim(tmp_path / 'x').take()
    os.utime(tmp_path / 'x', (0, 0)) # that one is silent for long
    again = Claim(tmp_path / 'x')
    assert again.take()
    again.release()
    assert not list(tmp_path.iterdir())


@some(15)
@given(contents=st.lists(st.binary(max_size=20), min_size=1, max_size=6), changes=st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=20)), max_size=4))
def test_a_kept_digest_is_that_of_what_the_file_holds(tmp_path_factory, contents, changes):
    folder = tmp_path_factory.mktemp('digests')
    paths, keep = [folder / str(i) for i in range(len(contents))], folder / 'kept.json'
    for path, content in zip(paths, contents): path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cdser.files, 'SETTLED', -10**18) # keep them at once
        for at, content in [(0, contents[0]), *changes]:
            write_file(paths[at % len(paths)], content)
            assert content_digests(paths, keep) == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
