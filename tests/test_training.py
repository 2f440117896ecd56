"What must hold of a training whatever its numbers: hidden labels stay hidden, and the same seed gives the same bits."
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

import cdser.train
from cdser.batches import Batch, Utterances, fill_batches
from cdser.config import (AUGMENTATIONS, METHODS, SAMPLE_RATE, SELECTIONS, SETUPS, UNLABELLED, BadInput, Experiment,
                          check_experiment, declared_terms, reads)
from cdser.evaluate import war
from cdser.model import build
from cdser.parts import Recordings, make_parts, open_recordings
from cdser.runs import fit
from cdser.selection import CRITERIA
from cdser.train import augment_batches, encode, schedule, step, train, views_of_block

TINY = Experiment('studio_a', 'studio_b', epochs=2, batch_seconds=12.)


@pytest.fixture(scope='module')
def recordings(studios, tmp_path_factory):
    runs_dir = tmp_path_factory.mktemp('runs')
    return [open_recordings(name, studios, runs_dir, TINY.max_seconds) for name in ('studio_a', 'studio_b')]


def trained(e: Experiment, source: Recordings, target: Recordings):
    "The weights and the history of a training on one thread."
    torch.set_num_threads(1)
    parts, model = make_parts(e, source, target), build(e)
    history, best = train(e, model, parts.training, parts.valid, parts.test, parts.steps, progress=False)
    return model.state_dict(), history, best, parts


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def shuffled(recordings: Recordings, fixed=()) -> Recordings:
    "The same corpus, labels shuffled within each speaker, so that splits stay as they are; `fixed` rows keep theirs."
    table, rng = recordings.corpus.table, np.random.default_rng(0)
    free = table[~table.index.isin(fixed)]
    labels = table.label.copy()
    labels[free.index] = free.groupby('speaker').label.transform(lambda of_one: rng.permutation(of_one.to_numpy()))
    assert (labels != table.label).mean() > .3
    return replace(recordings, corpus=replace(recordings.corpus, table=table.assign(label=labels)))


def drawn_up_to_the_last_shot(e: Experiment, source: Recordings, target: Recordings) -> np.ndarray:
    "The rows whose labels decide which shots are shown; the labels of all others are without effect."
    if not SETUPS[e.setup].shots:
        return np.array([], dtype=np.int64)
    corpus = make_parts(e, source, target).training[1]
    order = np.random.default_rng([e.seed, 1]).permutation(len(corpus.rows))
    last = max(np.flatnonzero(corpus.labels[order] != UNLABELLED))
    return corpus.rows[order[:last + 1]]


WAYS = {'proposed': {}, **{term: dict(weights={'emotion': 1., term: .5}) for term in declared_terms()},
        'standardised': dict(standardise=True),
        **{f'by {name}': dict(selection=name) for name in SELECTIONS if name != 'valid_war'}}
HIDING = [(setup, way) for setup, s in SETUPS.items() if not s.target_labels for way, fields in WAYS.items()
          if s.target or not ('domains' in reads(fields.get('weights', ())) or 'selection' in fields)]


@pytest.mark.parametrize('setup, way', HIDING)
def test_shuffling_hidden_target_labels_leaves_the_weights_bit_identical(recordings, setup, way):
    "In every setup that hides labels, of every method, and of all that goes beyond the paper."
    source, target = recordings
    epochs = 2 if 'selection' in WAYS[way] or 'prior' in way else 1
    e = check_experiment(replace(TINY, setup=setup, shots=1, epoch_steps=2, epochs=epochs, **WAYS[way]))
    weights, history, best, parts = trained(e, source, target)
    other_labels = shuffled(target, drawn_up_to_the_last_shot(e, source, target))
    again, repeated, best_again, other_parts = trained(e, source, other_labels)
    assert same(weights, again) and best == best_again
    assert history.drop(columns=['seconds', 'test_uar']).equals(repeated.drop(columns=['seconds', 'test_uar']))
    assert np.array_equal(parts.test.rows, other_parts.test.rows)
    assert (parts.test.labels != other_parts.test.labels).any() # they did change
    if len(parts.training) > 1: # and so did hidden labels of the training speakers
        rows = parts.training[1].rows
        assert (target.corpus.labels[rows] != shuffled(target).corpus.labels[rows]).any()


@pytest.mark.parametrize('setup', [name for name, s in SETUPS.items() if s.target_labels or s.shots])
def test_visible_target_labels_do_change_the_weights(recordings, setup):
    source, target = recordings
    e = replace(TINY, setup=setup, epochs=1)
    assert not same(trained(e, source, target)[0], trained(e, source, shuffled(target))[0])


@pytest.mark.parametrize('shots', [1, 3, 1000])
def test_a_few_shots_are_so_many_labels_of_each_emotion_and_the_same_for_every_method(recordings, shots):
    e = replace(TINY, setup='few_shot', shots=shots)
    shown = make_parts(e, *recordings).training[1].labels
    labels = recordings[1].corpus.labels[make_parts(e, *recordings).training[1].rows]
    assert all((shown == c).sum() == min(shots, (labels == c).sum()) for c in range(4))
    assert (labels[shown >= 0] == shown[shown >= 0]).all()
    assert np.array_equal(shown, make_parts(replace(e, weights=METHODS['dann']), *recordings).training[1].labels)


@pytest.mark.parametrize('method', [name for name in declared_terms() if 'domains' in reads([name])])
def test_a_term_that_compares_corpora_gets_half_a_batch_of_each_and_as_many_steps(recordings, method):
    parts = make_parts(replace(TINY, weights=METHODS[method]), *recordings)
    seconds = {}
    for name in (method, 'emotion_only'):
        e = replace(TINY, weights=METHODS[name])
        steps = list(islice(schedule(parts.training, e, np.random.default_rng(0)), 2 * parts.steps))
        views = views_of_block(parts.training, steps, None, replace(e, views=1), torch.Generator(), 'cpu')
        seconds[name] = [v.lengths.sum().item() / SAMPLE_RATE for v in views]
        both = [set(v.domains.tolist()) == {0, 1} for v in views]
        assert all(both) if name == method else not any(both)
        assert all((v.labels[v.domains == 1] == UNLABELLED).all() for v in views)
        assert all((v.labels[v.domains == 0] >= 0).all() for v in views)
    assert len(seconds[method]) == len(seconds['emotion_only'])
    assert abs(np.mean(seconds[method]) / np.mean(seconds['emotion_only']) - 1) < .15


@pytest.mark.parametrize('field, wrong', [('weights', {'emotion': 1., 'coral': 1.}), ('selection', 'snd')])
@pytest.mark.parametrize('setup', ['source_only', 'target_only'])
def test_what_needs_both_corpora_is_refused_where_one_is_trained_on(setup, field, wrong):
    with pytest.raises(BadInput, match=field):
        check_experiment(replace(TINY, setup=setup, **{field: wrong}))


@pytest.mark.parametrize('selection', SELECTIONS)
def test_the_epoch_with_the_best_criterion_is_kept(recordings, selection):
    _, history, best, _ = trained(replace(TINY, epochs=4, selection=selection), *recordings)
    score = history[selection] * CRITERIA[selection]
    assert history[list(SELECTIONS)].notna().all(axis=None) and best == score[::-1].idxmax()


def test_the_target_is_standardised_by_its_own_training_recordings(recordings):
    source, target = recordings
    e, parts = replace(TINY, standardise=True, epochs=1), make_parts(TINY, source, target)
    model = build(e)
    train(e, model, parts.training, parts.valid, parts.test, parts.steps, progress=False)
    for corpus in parts.training:
        encoded = model.encoder.mix(encode(model, corpus.store, corpus.rows)).detach()
        scaled = model.eval().standardisation(encoded, torch.full((len(encoded),), corpus.domain))
        assert scaled.mean(0).abs().max() < 1e-3 and (scaled.std(0, correction=0) - 1).abs().max() < .02
    assert not torch.allclose(model.standardisation.mean[0], model.standardisation.mean[1])


@pytest.mark.parametrize('setup', SETUPS)
def test_tested_speakers_and_their_labels_take_no_part_in_training(recordings, setup):
    source, target = recordings
    parts = make_parts(replace(TINY, setup=setup), source, target)
    tested = set(target.corpus.table.speaker.iloc[parts.test.rows])
    for part in parts.training:
        if part.store is target.store:
            assert tested.isdisjoint(target.corpus.table.speaker.iloc[part.rows])
    assert parts.corpora[parts.valid.domain].name == ('studio_b' if SETUPS[setup].target_labels else 'studio_a')


@pytest.mark.parametrize('budget', [4., 16., 1e9])
def test_a_pass_is_cut_into_batches_of_nearly_equal_seconds_that_hold_each_utterance_once(budget):
    lengths = np.random.default_rng(0).lognormal(10.8, .6, 500).astype(int)
    for rng in (None, np.random.default_rng(1)):
        batches = fill_batches(lengths, budget, rng)
        assert sorted(np.concatenate(batches)) == list(range(500))
        seconds = np.array([lengths[batch].sum() for batch in batches]) / SAMPLE_RATE
        longest = lengths.max() / SAMPLE_RATE
        assert seconds.max() <= min(budget, lengths.sum() / SAMPLE_RATE) + longest
        assert (seconds >= seconds.mean() - longest).all()
    assert [batch.tolist() for batch in fill_batches(np.array([99 * SAMPLE_RATE]), 16., rng)] == [[0]]


def test_batches_are_augmented_together_without_changing_what_is_not_augmented(recordings):
    source = recordings[0]
    utterances = Utterances(source.store, np.arange(12), source.corpus.labels[:12])
    batches = [utterances.collate(np.arange(5)), utterances.collate(np.arange(5, 12))]
    all_views = augment_batches(batches, TINY, torch.Generator().manual_seed(0))
    for batch, views in zip(batches, all_views):
        n, labels = len(batch.lengths), views.augmentation_labels
        assert len(views.waveforms) == views.lengths.sum() and torch.equal(views.lengths[:n], batch.lengths)
        assert torch.equal(views.waveforms[:len(batch.waveforms)], batch.waveforms)
        assert torch.equal(views.labels.view(3, n), batch.labels.expand(3, n))
        assert not labels[:n].any() and labels[n:].all()
        augmented = views.waveforms.split(views.lengths.tolist())[n:]
        originals = batch.waveforms.split(batch.lengths.tolist()) * 2
        for row, label, original in zip(augmented, labels[n:], originals):
            same_length = len(row) == len(original)
            assert same_length == (AUGMENTATIONS[label - 1] != 'speed')
            assert not (same_length and torch.equal(row, original))


@pytest.mark.parametrize('setup', ['source_only', 'unlabelled_target'])
def test_a_frozen_encoder_whose_states_are_kept_trains_the_same_weights(recordings, setup, monkeypatch):
    weights = {'emotion': 1., **({'information': .5} if setup == 'unlabelled_target' else {})}
    e = replace(TINY, setup=setup, weights=weights, views=1, freeze_encoder=True)
    fast, history, *_ = trained(e, *recordings)
    def anew(training, block, states, *rest):
        return views_of_block(training, block, None, *rest)
    monkeypatch.setattr(cdser.train, 'views_of_block', anew)
    plain, again, *_ = trained(e, *recordings)
    assert all(torch.allclose(fast[name], plain[name], atol=1e-4) for name in fast)
    assert np.allclose(history.drop(columns='seconds').fillna(0), again.drop(columns='seconds').fillna(0), atol=1e-4)
    start = build(e).state_dict()
    moved = {name for name in fast if not torch.equal(fast[name], start[name])}
    assert 'classifier.weight' in moved and not any(name.startswith('encoder.backbone') for name in moved)


@pytest.mark.parametrize('method', ['proposed', 'prior_aware'])
def test_an_emotion_without_a_training_label_is_never_predicted(recordings, method):
    three = [replace(each, corpus=replace(each.corpus, table=each.corpus.table.replace({'label': {'hap': 'ang'}})))
             for each in recordings]
    weights, *_ = trained(replace(TINY, weights=METHODS[method]), *three)
    assert weights['classifier.bias'][1] < -9e3 and (weights['classifier.bias'][[0, 2, 3]].abs() < 1).all()


@pytest.mark.parametrize('method', METHODS)
def test_a_step_never_waits_for_the_device(recordings, method):
    "On `meta`, where tensors have no values, whatever asks for one fails."
    source, e = recordings[0], replace(TINY, weights=METHODS[method])
    batch = Utterances(source.store, np.arange(8), source.corpus.labels[:8]).collate(np.arange(8))
    views, = augment_batches([batch], e, torch.Generator())
    ghost = Batch(views.waveforms.to('meta'), views.lengths, views.labels.to('meta'), views.domains.to('meta'),
                  views.augmentation_labels.to('meta'))
    model = build(e).to('meta')
    priors = torch.full((2, 4), .25, device='meta')
    losses = step(model, torch.optim.AdamW(model.parameters()), ghost, e, priors=priors)
    assert set(losses) == {'loss', *e.weights} and all(loss.is_meta for loss in losses.values())


def test_a_run_of_a_single_step_changes_the_weights(recordings):
    e = replace(TINY, epochs=1, batch_seconds=1e6)
    weights, _, _, parts = trained(e, *recordings)
    assert parts.steps == 1 and not same(weights, build(e).state_dict())


def test_same_seed_same_bits_another_seed_others(recordings):
    a, history, *_ = trained(TINY, *recordings)
    b, again, *_ = trained(TINY, *recordings)
    assert same(a, b) and history.drop(columns='seconds').equals(again.drop(columns='seconds'))
    assert not same(a, trained(replace(TINY, seed=1), *recordings)[0])


def test_unused_terms_are_blank_in_the_history_and_used_ones_are_not(recordings):
    _, history, *_ = trained(replace(TINY, weights=METHODS['no_contrastive']), *recordings)
    assert history.contrastive.isna().all()
    assert history[['emotion', 'augmentation', 'information', 'loss']].notna().all(axis=None)


def test_fit_early_stops_and_keeps_the_best_epoch(studios, tmp_path):
    run = fit(replace(TINY, epochs=6, patience=1), studios, tmp_path, progress=False)
    history, best = run.history, run.metrics['best_epoch']
    assert history.valid_war[best] == history.valid_war.max() and len(history) <= 6
    assert len(history) == 6 or len(history) - 1 - best == 1
    valid = run.predictions[run.predictions.part == 'valid']
    assert np.isclose(war(valid.label, valid.prediction), history.valid_war[best])
