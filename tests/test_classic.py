"The classic peer: an SVM as scikit-learn has it, features that are computed once, the protocol of all other runs, and published figures."
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import cdser.classic
from cdser.audio_store import open_store
from cdser.classic import NORMS, classic_predictions, extractor, fit_classic, functionals, functionals_file, read_functionals, released_functionals
from cdser.config import LABELS, SETUPS, BadInput, Experiment
from cdser.corpora import load_corpus
from cdser.evaluate import uar
from cdser.runs import Recordings, fit, gather, make_parts, open_recordings

E = Experiment('studio_a', 'studio_b', epochs=1, batch_seconds=12.)


def made_up(seed: int, n: int = 120, classes=range(4)):
    "Features of any unit, and labels that they tell."
    rng = np.random.default_rng(seed)
    labels = rng.choice(list(classes), n, p=np.linspace(1, 3, len(classes)) / np.linspace(1, 3, len(classes)).sum())
    return (rng.normal(0, 1, (n, 12)) + 1.5 * np.eye(12)[labels]) * np.logspace(-2, 3, 12) + np.arange(12), labels


@pytest.fixture
def stand_in(monkeypatch) -> list:
    "Cheap features in the place of openSMILE's; the list grows by one with each utterance that is measured."
    heard = []
    def measure(samples, rate=16_000):
        heard.append(len(samples))
        bands = np.array_split(np.abs(np.fft.rfft(samples, 4096)), 88)
        return np.log([band.mean() + 1e-6 for band in bands]).astype(np.float32)
    monkeypatch.setattr(cdser.classic, 'egemaps', measure)
    return heard


@pytest.fixture
def recordings(studios, tmp_path) -> list[Recordings]:
    return [open_recordings(name, studios, tmp_path, E.max_seconds) for name in ('studio_a', 'studio_b')]


def test_scaled_by_the_source_it_is_a_plain_pipeline_of_scikit_learn():
    (zs, ys), (zt, _), (z, _) = (made_up(seed) for seed in range(3))
    plain = make_pipeline(StandardScaler(), SVC(C=1, kernel='rbf', gamma='scale', class_weight='balanced')).fit(zs, ys)
    said, p = classic_predictions(zs, ys, zt, z, 'source')
    assert (said == plain.predict(z)).all() and len(set(said)) == 4
    assert (p.argmax(1) == plain.decision_function(z).argmax(1)).all() and np.allclose(p.sum(1), 1)
    assert (classic_predictions(zs, ys, None, z, 'source')[0] == said).all() # the target is not looked at


def test_scaled_by_the_corpus_each_has_its_own_statistics():
    (zs, ys), (zt, _), (z, _) = (made_up(seed) for seed in range(3))
    zt, z = 5 * zt - 40, 5 * z - 40
    by_hand = SVC(C=1, class_weight='balanced').fit((zs - zs.mean(0)) / zs.std(0), ys).predict((z - zt.mean(0)) / zt.std(0))
    said, _ = classic_predictions(zs, ys, zt, z, 'corpus')
    assert (said == by_hand).all() and (said != classic_predictions(zs, ys, zt, z, 'source')[0]).mean() > .3


def test_what_is_said_of_an_utterance_does_not_depend_on_what_else_is_tested():
    (zs, ys), (zt, _), (z, _) = (made_up(seed) for seed in range(3))
    said, p = classic_predictions(zs, ys, zt, z)
    alone, p_alone = classic_predictions(zs, ys, zt, z[7:9])
    assert (alone == said[7:9]).all() and np.allclose(p_alone, p[7:9])


@pytest.mark.parametrize('classes', [(1, 3), (0, 2, 3)])
def test_an_emotion_that_the_source_lacks_is_never_said(classes):
    (zs, ys), (z, y) = (made_up(seed, classes=classes) for seed in range(2))
    said, p = classic_predictions(zs, ys, z, z)
    assert set(said) == set(classes) and p.shape == (len(z), len(LABELS)) and (said == y).mean() > .6
    assert not p[:, [k for k in range(4) if k not in classes]].any() and (p.argmax(1) == said).mean() > .95


def test_what_cannot_be_trained_is_refused():
    z, y = made_up(0)
    with pytest.raises(BadInput, match='one class only'): classic_predictions(z, 0 * y, z, z)
    with pytest.raises(BadInput, match="norm: 'target' is not known; use one of source, corpus"): classic_predictions(z, y, z, z, 'target')


def test_without_opensmile_the_error_says_how_to_get_it(monkeypatch, recordings):
    extractor.cache_clear()
    monkeypatch.setitem(sys.modules, 'opensmile', None)
    with pytest.raises(BadInput, match=r"pip install 'cdser\[classic\]'"): fit_classic(E, *recordings)
    assert not (recordings[0].store.folder.parent / 'egemaps').exists()


def test_an_utterance_is_measured_once_and_anew_when_its_audio_changes(stand_in, recordings, tmp_path):
    store = recordings[0].store
    before = functionals(store)
    assert before.shape == (72, 88) and len(stand_in) == 72
    assert (functionals(store) == before).all() and len(stand_in) == 72
    file = functionals_file(store)
    assert list(file.parent.iterdir()) == [file] # no drafts are left, and nothing lies in the store
    paths = recordings[0].corpus.paths
    again = open_store(store.folder.parent, [*paths[1:], paths[0]], E.max_seconds)
    assert again.digest != store.digest and np.array_equal(functionals(again), np.roll(before, -1, 0)) and len(stand_in) == 144


@pytest.mark.parametrize('spoil', [lambda content: content[:-1], lambda content: b'', lambda content: bytes(len(content)),
                                   lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:]])
def test_functionals_that_were_damaged_are_computed_again(spoil, stand_in, recordings):
    store = recordings[0].store
    before, file = functionals(store), functionals_file(store)
    file.write_bytes(spoil(file.read_bytes()))
    assert read_functionals(file, len(store)) is None
    assert (functionals(store) == before).all() and len(stand_in) == 144 and (read_functionals(file, len(store)) == before).all()


@pytest.mark.parametrize('setup', NORMS)
def test_it_trains_and_tests_whom_any_run_trains_and_tests(stand_in, recordings, setup):
    source, target = recordings
    tested = []
    for fold in range(3):
        e = replace(E, setup=setup, seed=fold, fold=fold)
        table, parts = fit_classic(e, source, target), make_parts(e, source, target)
        assert table.path.tolist() == target.corpus.table.path.iloc[parts.test.rows].tolist()
        assert (table.label == [LABELS[k] for k in parts.test.labels]).all() and (table[['seed', 'fold']] == fold).all(axis=None)
        heard = target if setup == 'unlabelled_target' else source
        z_s, z_t = (functionals(r.store) for r in recordings)
        scale = StandardScaler().fit(functionals(heard.store)[parts.training[-1].rows])
        svm = SVC(class_weight='balanced').fit(StandardScaler().fit_transform(z_s[parts.training[0].rows]), parts.training[0].labels)
        assert table.prediction.tolist() == [LABELS[k] for k in svm.predict(scale.transform(z_t[parts.test.rows]))]
        tested += table.path.tolist()
    assert sorted(tested) == sorted(target.corpus.table.path)


def test_target_labels_and_tested_audio_have_no_part_in_it(stand_in, recordings, monkeypatch):
    source, target = recordings
    said, parts = fit_classic(E, source, target), make_parts(E, source, target)
    first = said.speaker == said.speaker.iloc[0]
    assert 0 < first.sum() < len(said)
    z = {r.store.digest: functionals(r.store).copy() for r in recordings}
    z[target.store.digest][parts.test.rows[~first]] += 1000 # the other tested speakers, through a broken microphone
    monkeypatch.setattr(cdser.classic, 'functionals', lambda store: z[store.digest])
    table = target.corpus.table
    dealt = table.groupby('speaker').label.transform(lambda labels: np.roll(labels.to_numpy(), 1))
    changed = fit_classic(E, source, Recordings(replace(target.corpus, table=table.assign(label=dealt)), target.store, target.files))
    assert (changed.label != said.label).any() and changed.path.tolist() == said.path.tolist()
    assert changed.prediction[first].tolist() == said.prediction[first].tolist()
    assert changed.prediction[~first].tolist() != said.prediction[~first].tolist() # what was broken was heard


@pytest.mark.parametrize('setup', [name for name in SETUPS if name not in NORMS])
def test_setups_with_target_labels_are_refused(recordings, setup):
    with pytest.raises(BadInput, match='setup: .* use one of source_only, unlabelled_target'): fit_classic(replace(E, setup=setup), *recordings)


def test_its_table_stands_beside_those_of_runs(stand_in, recordings, studios, tmp_path):
    beside = gather([fit(E, studios, tmp_path, 'cpu', progress=False)])
    table = fit_classic(E, *recordings)
    assert table.columns.tolist() == beside.columns.tolist()
    same = ['source', 'target', 'setup', 'shots', 'seed', 'fold', 'speaker', 'path', 'label']
    assert table[same].equals(beside[same]) and set(table.method) == {'egemaps_svm'}
    assert table.id.nunique() == 1 and table.id[0] != beside.id[0] and len(table.id[0]) == 12
    assert fit_classic(replace(E, weights={'emotion': 1.}), *recordings).id[0] == table.id[0] # weights play no part
    assert fit_classic(replace(E, seed=1), *recordings).id[0] != table.id[0]


PUBLISHED = {('emodb', 'urdu'): dict(source=22.2, corpus=42.8), ('urdu', 'emodb'): dict(source=30.0, corpus=40.4)}


def test_published_figures_are_met_to_their_last_digit(real_corpora):
    "Whole corpora, transductive, at the rates of the releases."
    pytest.importorskip('opensmile', reason="openSMILE is absent; pip install 'cdser[classic]'")
    extractor.cache_clear()
    for name in ('emodb', 'urdu'):
        if not (real_corpora / name).is_dir(): pytest.skip(f'no {name} in {real_corpora}')
    corpora = {name: load_corpus(name, real_corpora) for name in ('emodb', 'urdu')}
    if [len(c.table) for c in corpora.values()] != [339, 400]: pytest.skip('the figures are of other excerpts of EmoDB and URDU')
    z = {name: released_functionals(corpus.paths) for name, corpus in corpora.items()}
    for (source, target), figures in PUBLISHED.items():
        for norm, figure in figures.items():
            said, _ = classic_predictions(z[source], corpora[source].labels, z[target], z[target], norm)
            assert 100 * uar(corpora[target].labels, said) == pytest.approx(figure, abs=.0501), (source, target, norm)
