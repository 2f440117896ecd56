"What has to hold for whatever comes: predictions, augmentations, splits, hidden labels, ids, files."
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
from cdser.config import (UNLABELLED, LABELS, METHODS, SAMPLE_RATE, SETUPS,
                          BadInput, Experiment, check_experiment)
from cdser.corpora import Corpus, check_table
from cdser.model import build
from cdser.parts import Recordings, make_parts
from cdser.runs import recognise
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
@given(labels=st.lists(st.integers(UNLABELLED, 3), max_size=60).map(lambda x: np.array(x, dtype=np.int64)), shots=st.integers(0, 20), seed=st.integers(0, 2**32 - 1))
def test_few_labels_are_as_many_as_asked_for_and_among_more(labels, shots, seed):
    before, few = labels.copy(), few_labels(labels, shots, seed)
    assert np.array_equal(labels, before) and few.dtype == np.int64 and len(few) == len(labels)
    assert ((few == labels) | (few == UNLABELLED)).all()
    for c in range(len(LABELS)): assert (few == c).sum() == min(shots, (labels == c).sum())
    more = few_labels(labels, shots + 1, seed)
    assert (more[few != UNLABELLED] == few[few != UNLABELLED]).all()
    shown, hidden = visible_labels(labels, True), visible_labels(labels, False)
    assert np.array_equal(shown, labels) and not np.shares_memory(shown, labels) and (hidden == UNLABELLED).all() and len(hidden) == len(labels)


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
        visible = r.labels != UNLABELLED
        assert (r.labels[visible] == labels[visible]).all()
        if r.domain == 0 or s.target_labels: assert visible.all()
        elif s.shots: assert all(visible[labels == c].sum() == min(shots, (labels == c).sum()) for c in range(len(LABELS)))
        else: assert not visible.any()
