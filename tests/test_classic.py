"The classical baseline: scikit-learn's SVM, features computed once, the protocol of all other runs, published figures."
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import cdser.classic
from cdser.audio import read_audio
from cdser.audio_store import open_store
from cdser.classic import NORMS, classic_predictions, egemaps, extractor, fit_classic, functionals, functionals_file
from cdser.config import LABELS, BadInput, Experiment
from cdser.corpora import load_corpus
from cdser.evaluate import uar
from cdser.parts import Recordings, make_parts, open_recordings
from cdser.runs import fit, gather

E = Experiment('studio_a', 'studio_b', epochs=1, batch_seconds=12.)


def invented(seed: int, classes=range(4)):
    "Features in different units, and labels that they reveal."
    rng = np.random.default_rng(seed)
    shares = np.linspace(1, 3, len(classes))
    labels = rng.choice(list(classes), 120, p=shares / shares.sum())
    return (rng.normal(0, 1, (120, 12)) + 1.5 * np.eye(12)[labels]) * np.logspace(-2, 3, 12) + np.arange(12), labels


@pytest.fixture
def computed(monkeypatch) -> list:
    "Cheap features in the place of openSMILE's; the list grows by one with each utterance."
    lengths = []
    def spectrum(samples, rate=16_000):
        lengths.append(len(samples))
        bands = np.array_split(np.abs(np.fft.rfft(samples, 4096)), 88)
        return np.log([band.mean() + 1e-6 for band in bands]).astype(np.float32)
    monkeypatch.setattr(cdser.classic, 'egemaps', spectrum)
    return lengths


@pytest.fixture
def recordings(studios, tmp_path) -> list[Recordings]:
    return [open_recordings(name, studios, tmp_path, E.max_seconds) for name in ('studio_a', 'studio_b')]


def test_it_is_scikit_learns_svm_scaled_by_the_source_or_by_each_corpus():
    (zs, ys), (zt, _), (z, _) = (invented(seed) for seed in range(3))
    zt, z = 5 * zt - 40, 5 * z - 40
    plain = make_pipeline(StandardScaler(), SVC(C=1, kernel='rbf', gamma='scale', class_weight='balanced')).fit(zs, ys)
    by_source, p = classic_predictions(zs, ys, None, z, 'source') # the target is not used
    assert (by_source == plain.predict(z)).all() and np.allclose(p.sum(1), 1)
    assert (p.argmax(1) == plain.decision_function(z).argmax(1)).all()
    by_corpus, _ = classic_predictions(zs, ys, zt, z)
    assert (by_corpus == plain[1].predict((z - zt.mean(0)) / zt.std(0))).all() and (by_corpus != by_source).mean() > .3
    alone, _ = classic_predictions(zs, ys, zt, z[7:9]) # independent of what else is tested
    assert (alone == by_corpus[7:9]).all()


@pytest.mark.parametrize('classes', [(1, 3), (0, 2, 3)])
def test_an_emotion_that_the_source_lacks_is_never_predicted(classes):
    (zs, ys), (z, y) = (invented(seed, classes) for seed in range(2))
    predictions, p = classic_predictions(zs, ys, z, z)
    assert set(predictions) == set(classes) and (predictions == y).mean() > .6
    assert p.shape == (len(z), len(LABELS)) and not np.delete(p, classes, axis=1).any()


def test_inputs_that_cannot_be_trained_on_are_refused(recordings):
    z, y = invented(0)
    with pytest.raises(BadInput, match='one class only'):
        classic_predictions(z, 0 * y, z, z)
    with pytest.raises(BadInput, match="norm: 'target' is not known; use one of source, corpus"):
        classic_predictions(z, y, z, z, 'target')
    with pytest.raises(BadInput, match='setup: .* use one of source_only, unlabelled_target'):
        fit_classic(replace(E, setup='labelled_target'), *recordings)


def test_without_opensmile_the_error_says_how_to_get_it(monkeypatch, recordings):
    extractor.cache_clear()
    monkeypatch.setitem(sys.modules, 'opensmile', None)
    with pytest.raises(BadInput, match=r"pip install 'cdser\[classic\]'"):
        fit_classic(E, *recordings)


def test_features_are_computed_once_and_again_for_other_audio(computed, recordings):
    store, paths = recordings[0].store, recordings[0].corpus.paths
    before = functionals(store)
    assert before.shape == (72, 88) and (functionals(store) == before).all() and len(computed) == 72
    file = functionals_file(store)
    assert list(file.parent.iterdir()) == [file] # no drafts are left
    other = open_store(store.folder.parent, [*paths[1:], paths[0]], E.max_seconds)
    assert np.array_equal(functionals(other), np.roll(before, -1, 0)) and len(computed) == 144


@pytest.mark.parametrize('damage', [lambda content: content[:-1], lambda content: b'',
                                    lambda content: bytes(len(content)),
                                    lambda content: content[:200] + bytes([content[200] ^ 1]) + content[201:]])
def test_damaged_features_are_computed_again(damage, computed, recordings):
    store = recordings[0].store
    before, file = functionals(store), functionals_file(store)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert (functionals(store) == before).all() and len(computed) == 144 and file.read_bytes() == whole


@pytest.mark.parametrize('setup', NORMS)
def test_it_trains_and_tests_the_speakers_of_any_other_run(computed, recordings, setup):
    source, target = recordings
    z_s, z_t = (functionals(corpus.store) for corpus in recordings)
    tested = []
    for fold in range(3):
        e = replace(E, setup=setup, seed=fold, fold=fold)
        table, parts = fit_classic(e, source, target), make_parts(e, source, target)
        scaled = z_t if setup == 'unlabelled_target' else z_s
        expected, _ = classic_predictions(z_s[parts.training[0].rows], parts.training[0].labels,
                                          scaled[parts.training[-1].rows], z_t[parts.test.rows])
        assert table.prediction.tolist() == [LABELS[k] for k in expected]
        assert table.label.tolist() == [LABELS[k] for k in parts.test.labels]
        tested += table.path.tolist()
    assert sorted(tested) == sorted(target.corpus.table.path)


def test_target_labels_and_other_tested_audio_play_no_part(computed, recordings, monkeypatch):
    source, target = recordings
    first, parts = fit_classic(E, source, target), make_parts(E, source, target)
    mine = first.speaker == first.speaker.iloc[0]
    z = {id(corpus.store): functionals(corpus.store).copy() for corpus in recordings}
    z[id(target.store)][parts.test.rows[~mine]] += 1000 # the other tested speakers, through a broken microphone
    monkeypatch.setattr(cdser.classic, 'functionals', lambda store: z[id(store)])
    shuffled = target.corpus.table.groupby('speaker').label.transform(lambda labels: np.roll(labels.to_numpy(), 1))
    corpus = replace(target.corpus, table=target.corpus.table.assign(label=shuffled))
    changed = fit_classic(E, source, replace(target, corpus=corpus))
    assert (changed.label != first.label).any() and changed.path.tolist() == first.path.tolist()
    assert changed.prediction[mine].tolist() == first.prediction[mine].tolist()
    assert changed.prediction[~mine].tolist() != first.prediction[~mine].tolist()


def test_its_table_has_the_form_of_those_of_runs(computed, recordings, studios, tmp_path):
    of_run, table = gather([fit(E, studios, tmp_path, 'cpu', progress=False)]), fit_classic(E, *recordings)
    assert table.columns.tolist() == of_run.columns.tolist() and set(table.method) == {'egemaps_svm'}
    same = ['source', 'target', 'setup', 'shots', 'seed', 'fold', 'speaker', 'path', 'label']
    assert table[same].equals(of_run[same])
    ids = {fit_classic(replace(E, seed=seed, weights={'emotion': 1.}), *recordings).id[0] for seed in (0, 1)}
    assert len({*ids, of_run.id[0]}) == 3 and table.id[0] in ids # weights play no part


PUBLISHED = {('emodb', 'urdu'): dict(source=22.2, corpus=42.8), ('urdu', 'emodb'): dict(source=30.0, corpus=40.4)}


def test_published_figures_are_met_to_their_last_digit(real_corpora):
    "Whole corpora, transductive, at the rates of the releases."
    pytest.importorskip('opensmile', reason="openSMILE is absent; pip install 'cdser[classic]'")
    extractor.cache_clear()
    if not all((real_corpora / name).is_dir() for name in ('emodb', 'urdu')):
        pytest.skip(f'no emodb or no urdu in {real_corpora}')
    corpora = {name: load_corpus(name, real_corpora) for name in ('emodb', 'urdu')}
    if [len(corpus.table) for corpus in corpora.values()] != [339, 400]:
        pytest.skip('the figures are of other excerpts of EmoDB and URDU')
    z = {name: np.stack([egemaps(*read_audio(path)) for path in corpus.paths]) for name, corpus in corpora.items()}
    for (source, target), figures in PUBLISHED.items():
        for norm, figure in figures.items():
            predictions, _ = classic_predictions(z[source], corpora[source].labels, z[target], z[target], norm)
            assert 100 * uar(corpora[target].labels, predictions) == pytest.approx(figure, abs=.0501)
