"What has to hold for any input: predictions, splits and hidden labels."
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import cdser.encoder
import cdser.runs
from cdser.audio import SHORTEST
from cdser.batches import InMemory, few_labels, visible_labels
from cdser.config import (UNLABELLED, LABELS, METHODS, PROTOCOLS, SAMPLE_RATE, SETUPS, BadInput, Experiment,
                          check_experiment)
from cdser.corpora import Corpus, check_table
from cdser.model import build
from cdser.parts import Recordings, make_parts
from cdser.runs import recognise
from cdser.splits import PARTS, Split, check_split, plan_folds, source_split, split_corpus
from cdser.train import predict

LEAST = int(SHORTEST * SAMPLE_RATE) # samples of the shortest recording that is read


def some(count: int) -> settings:
    "So many examples, however slow the machine is."
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(max_examples=count, suppress_health_check=slow)


# ---- predictions

@pytest.fixture(scope='module')
def alone():
    "A nano recogniser, recordings of many lengths, and the predictions of each alone. A window is a second."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cdser.encoder, 'WINDOW', 1.)
        torch.manual_seed(0)
        model, rng = build(Experiment('a', 'b')), np.random.default_rng(0)
        lengths = [LEAST, LEAST, LEAST + 1, 1999, 4321, 8000, 12_345, 15_999, 16_000, 16_001, 25_000, 40_000]
        samples = [(.2 * rng.standard_normal(length)).astype(np.float32) for length in lengths]
        probabilities, embeddings = zip(*(predict(model, InMemory([x]), np.array([0])) for x in samples))
        yield SimpleNamespace(model=model, store=InMemory(samples), p=np.concatenate(probabilities),
                              z=np.concatenate(embeddings))


@some(30)
@given(rows=st.lists(st.integers(0, 11), min_size=1, max_size=16), budget=st.floats(.01, 50))
@example(rows=[*range(12)], budget=160.)
@example(rows=[11, 0, 11], budget=.01)
def test_batch_composition_changes_no_prediction(alone, rows, budget):
    "Rows may be asked for several times, in any order."
    p, z = predict(alone.model, alone.store, np.array(rows), budget)
    assert np.abs(p - alone.p[rows]).max() < 1e-5
    assert np.abs(z - alone.z[rows]).max() < 1e-4 * max(1, np.abs(alone.z).max())
    again = predict(alone.model, alone.store, np.array(rows), budget)
    assert np.array_equal(p, again[0]) and np.array_equal(z, again[1]) # in the same batches to the bit


@some(8)
@given(data=st.data(), chunk=st.floats(.1, 20))
def test_the_prediction_of_a_file_depends_on_no_other_file(alone, studios, data, chunk):
    paths, run = sorted((studios / 'studio_a' / 'audio').glob('*.wav'))[:12], SimpleNamespace(model=alone.model)
    expected = pd.concat([recognise(run, [path], 'cpu') for path in paths]).set_index('path')
    asked = data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cdser.runs, 'CHUNK', chunk) # seconds that are decoded before they are recognised
        table = recognise(run, asked, 'cpu').set_index('path')
    expected = expected.loc[[str(path) for path in asked]]
    assert table.index.equals(expected.index) and table.prediction.equals(expected.prediction)
    assert np.abs(table.filter(like='p_') - expected.filter(like='p_')).to_numpy().max() < 1e-5


# ---- splits and hidden labels

@st.composite
def people(draw) -> Corpus:
    "Speakers who say some things in all labels or in few, in one session or several; a recording may be there twice."
    rows, sessions = [], draw(st.sampled_from(('', 'own', 'x', 'xyz')))
    among = draw(st.sampled_from((LABELS, LABELS, LABELS[:3], LABELS[1:2])))
    for i, speaker in enumerate('abcdefgh'[:draw(st.sampled_from((8, 7, 6, 5, 3, 2, 1)))]):
        for label in draw(st.sampled_from((among, among, among, among[:2], among[-1:]))):
            for text in draw(st.sampled_from(('12', '1234', '3', '55'))):
                session = 'xyz'[i % 3] if sessions == 'own' else draw(st.sampled_from(sessions or ['']))
                rows.append((f'{len(rows)}.wav', speaker, label, session, text, str(len(rows))))
    columns = ['path', 'speaker', 'label', 'session', 'text_id', 'sha256']
    table = check_table(pd.DataFrame(draw(st.permutations(rows)), columns=columns), 'any')
    twice = draw(st.one_of(st.just([]), st.just([]), st.lists(st.integers(0, len(rows) - 1), max_size=2)))
    table.loc[twice, 'sha256'] = table.sha256[0]
    return Corpus('any', Path('nowhere'), table)


def values(column: pd.Series, split: Split, *parts: str) -> set:
    return {value for part in parts for value in column.iloc[getattr(split, part)]} - {''}


@some(60)
@given(corpus=people(), protocol=st.sampled_from(PROTOCOLS[:3]), apart=st.booleans(), seed=st.integers(0, 99))
def test_nothing_crosses_in_a_split_that_runs_accept_whatever_the_order_of_rows(corpus, protocol, apart, seed):
    table = corpus.table
    try:
        plan = plan_folds(corpus, protocol)
        splits = split_corpus(corpus, plan, seed, apart)
        for split in splits:
            check_split(table, split, 'target', protocol, apart)
    except BadInput as err:
        assert '\n' not in str(err)
        return
    moved = table.sample(frac=1, random_state=seed).reset_index(drop=True)
    for split, other in zip(splits, split_corpus(Corpus('any', Path('nowhere'), moved), plan, seed, apart),
                            strict=True):
        assert all(values(table.path, split, part) == values(moved.path, other, part) for part in PARTS)
        assert not values(table.speaker, split, 'train') & values(table.speaker, split, 'valid')
        columns = ['speaker', 'sha256', *['text_id'] * apart, *['session'] * (protocol == 'leave_one_session_out')]
        for column in columns:
            assert not values(table[column], split, 'test') & values(table[column], split, 'train', 'valid')
    tested = sorted(np.concatenate([split.test for split in splits]))
    assert len(set(tested)) == len(tested) and (apart or tested == list(range(len(table)))) # each once


@some(40)
@given(corpus=people(), seed=st.integers(0, 99), share=st.floats(.01, .99))
def test_a_source_is_divided_by_speakers_into_all_it_has(corpus, seed, share):
    try:
        split = source_split(corpus.table, share, seed)
        check_split(corpus.table, split, 'source')
    except BadInput:
        return
    assert sorted([*split.train, *split.valid]) == list(range(len(corpus.table))) and not len(split.test)
    for column in ('speaker', 'sha256'):
        assert not values(corpus.table[column], split, 'train') & values(corpus.table[column], split, 'valid')


@some(50)
@given(labels=st.lists(st.integers(UNLABELLED, 3), max_size=60), shots=st.integers(0, 20),
       seed=st.integers(0, 2**32 - 1))
def test_few_labels_are_as_many_as_asked_for_and_among_more(labels, shots, seed):
    labels = np.array(labels, dtype=np.int64)
    few, more = few_labels(labels, shots, seed), few_labels(labels, shots + 1, seed)
    assert ((few == labels) | (few == UNLABELLED)).all() and (more[few != UNLABELLED] == few[few != UNLABELLED]).all()
    assert all((few == c).sum() == min(shots, (labels == c).sum()) for c in range(len(LABELS)))
    assert np.array_equal(visible_labels(labels, True), labels) and (visible_labels(labels, False) == UNLABELLED).all()


@some(100)
@given(source=people(), target=people(), setup=st.sampled_from(('few_shot', 'unlabelled_target', *SETUPS)),
       shots=st.integers(1, 3), seed=st.integers(0, 5), same=st.sampled_from((False, False, False, True)))
def test_no_label_that_a_setup_hides_reaches_training_for_any_two_corpora(source, target, setup, shots, seed, same):
    "Nor a tested utterance, nor a corpus that holds a recording of the other."
    both, shown = [], SETUPS[setup]
    for name, corpus in (('a', source), ('b', target)):
        count, suffix = len(corpus.table), '' if same else name
        store = SimpleNamespace(lengths=np.full(count, 8000), contents=np.arange(count) + 1000 * (name == 'b'))
        corpus = Corpus(name, Path('nowhere'), corpus.table.assign(sha256=''))
        both.append(Recordings(corpus, store, [f'{i}{suffix}' for i in range(count)]))
    weights = METHODS['proposed'] if shown.source and shown.target else METHODS['emotion_only']
    e = check_experiment(Experiment('a', 'b', setup, weights, seed=seed, shots=shots))
    try:
        parts = make_parts(e, *both)
    except BadInput as err:
        assert '\n' not in str(err)
        return
    rows = [{(part.domain, int(row)) for row in part.rows} for part in (*parts.training, parts.valid, parts.test)]
    assert not same and rows[-1] and sum(map(len, rows)) == len(set.union(*rows)) # no row is in two parts
    assert [part.domain for part in parts.training] == [0] * shown.source + [1] * shown.target
    assert parts.test.domain == 1 and parts.valid.domain == int(shown.target_labels)
    for part in parts.training:
        labels, visible = both[part.domain].corpus.labels[part.rows], part.labels != UNLABELLED
        assert (part.labels[visible] == labels[visible]).all()
        wanted = len(labels) if part.domain == 0 or shown.target_labels else 0
        if part.domain == 1 and shown.shots:
            wanted = sum(min(shots, (labels == c).sum()) for c in range(len(LABELS)))
        assert visible.sum() == wanted
