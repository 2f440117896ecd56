"What must hold of a training whatever its numbers: hidden labels stay hidden, and the same seed gives the same bits."
from dataclasses import replace

import numpy as np
import pytest
import torch

import cdser.train
from cdser.batches import Utterances, fill_batches
from cdser.config import AUGMENTATIONS, METHODS, SAMPLE_RATE, SETUPS, Experiment
from cdser.evaluate import war
from cdser.model import build
from cdser.runs import Recordings, fit, make_parts, open_recordings, run_id
from cdser.train import Views, augment_batches, deal, make_views, step, train

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


def shuffled(recordings: Recordings) -> Recordings:
    "The same corpus with each speaker's labels dealt out anew among that speaker's utterances, so that splits stay as they are."
    table, rng = recordings.corpus.table, np.random.default_rng(0)
    dealt = table.groupby('speaker').label.transform(lambda labels: rng.permutation(labels.to_numpy()))
    assert (dealt != table.label).mean() > .5
    return Recordings(replace(recordings.corpus, table=table.assign(label=dealt)), recordings.store)


@pytest.mark.parametrize('setup', [name for name, s in SETUPS.items() if not s.target_labels])
@pytest.mark.parametrize('method', METHODS)
def test_shuffling_hidden_target_labels_leaves_the_weights_bit_identical(recordings, setup, method):
    source, target = recordings
    e = replace(TINY, setup=setup, weights=METHODS[method], epochs=1)
    weights, _, best, parts = trained(e, source, target)
    again, _, best_again, dealt = trained(e, source, shuffled(target))
    assert same(weights, again) and best == best_again
    assert np.array_equal(parts.test.rows, dealt.test.rows) and (parts.test.labels != dealt.test.labels).any() # they did change


@pytest.mark.parametrize('setup', [name for name, s in SETUPS.items() if s.target_labels])
def test_visible_target_labels_do_change_the_weights(recordings, setup):
    source, target = recordings
    e = replace(TINY, setup=setup, epochs=1)
    assert not same(trained(e, source, target)[0], trained(e, source, shuffled(target))[0])


@pytest.mark.parametrize('setup', SETUPS)
def test_tested_speakers_and_their_labels_take_no_part_in_training(recordings, setup):
    source, target = recordings
    parts = make_parts(replace(TINY, setup=setup), source, target)
    tested = set(parts.tested_on.table.speaker.iloc[parts.test.rows])
    for part in parts.training:
        if part.store is target.store: assert tested.isdisjoint(target.corpus.table.speaker.iloc[part.rows])
    assert parts.validated_on.name == ('studio_b' if SETUPS[setup].target_labels else 'studio_a')


@pytest.mark.parametrize('budget', [4., 16., 1e9])
def test_a_pass_is_cut_into_batches_of_nearly_equal_seconds_that_hold_each_utterance_once(budget):
    lengths = np.random.default_rng(0).lognormal(10.8, .6, 500).astype(int)
    for rng in (None, np.random.default_rng(1)):
        batches = fill_batches(lengths, budget, rng)
        assert sorted(np.concatenate(batches)) == list(range(500))
        seconds = np.array([lengths[batch].sum() for batch in batches]) / SAMPLE_RATE
        longest = lengths.max() / SAMPLE_RATE
        assert seconds.max() <= min(budget, lengths.sum() / SAMPLE_RATE) + longest and (seconds >= seconds.mean() - longest).all()
    assert [batch.tolist() for batch in fill_batches(np.array([99 * SAMPLE_RATE]), 16., rng)] == [[0]]


def test_batches_are_augmented_together_without_changing_what_is_not_augmented(recordings):
    source = recordings[0]
    known = Utterances(source.store, np.arange(12), source.corpus.labels[:12])
    batches = [known.collate(np.arange(5)), known.collate(np.arange(5, 12))]
    views = augment_batches(batches, TINY, torch.Generator().manual_seed(0))
    for batch, v in zip(batches, views):
        n = len(batch.lengths)
        assert len(v.waveforms) == v.lengths.sum() and torch.equal(v.waveforms[:len(batch.waveforms)], batch.waveforms)
        assert torch.equal(v.lengths[:n], batch.lengths) and torch.equal(v.labels.view(3, n), batch.labels.expand(3, n))
        assert not v.kinds[:n].any() and v.kinds[n:].all()
        for row, kind, original in zip(v.waveforms.split(v.lengths.tolist())[n:], v.kinds[n:], batch.waveforms.split(batch.lengths.tolist()) * 2):
            same_length = len(row) == len(original)
            assert same_length == (AUGMENTATIONS[kind - 1] != 'speed') and not (same_length and torch.equal(row, original))


@pytest.mark.parametrize('setup', ['source_only', 'unlabelled_target'])
def test_a_frozen_encoder_that_has_heard_everything_trains_the_same_weights(recordings, setup, monkeypatch):
    weights = {'emotion': 1., **({'information': .5} if setup == 'unlabelled_target' else {})}
    e = replace(TINY, setup=setup, weights=weights, views=1, freeze_encoder=True)
    fast, history, *_ = trained(e, *recordings)
    def anew(training, turns, known, *rest): return deal(training, turns, None, *rest)
    monkeypatch.setattr(cdser.train, 'deal', anew)
    plain, again, *_ = trained(e, *recordings)
    assert all(torch.allclose(fast[name], plain[name], atol=1e-4) for name in fast)
    assert np.allclose(history.drop(columns='seconds').fillna(0), again.drop(columns='seconds').fillna(0), atol=1e-4)
    start = build(e).state_dict()
    moved = {name.split('.')[0] for name in fast if not torch.equal(fast[name], start[name])}
    assert 'classifier' in moved and all(torch.equal(fast[name], start[name]) for name in fast if name.startswith('encoder.backbone'))


@pytest.mark.parametrize('method', METHODS)
def test_a_step_never_waits_for_the_device(recordings, method):
    "On `meta`, where tensors have no values, whatever asks for one fails."
    source, e = recordings[0], replace(TINY, weights=METHODS[method])
    views = make_views(Utterances(source.store, np.arange(8), source.corpus.labels[:8]).collate(np.arange(8)), e, torch.Generator())
    ghost = Views(views.waveforms.to('meta'), views.lengths, views.kinds.to('meta'), views.labels.to('meta'))
    model = build(e).to('meta')
    losses = step(model, torch.optim.AdamW(model.parameters()), ghost, e)
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


def test_training_does_not_disturb_the_callers_random_numbers(recordings):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trained(replace(TINY, epochs=1), *recordings)
    assert torch.equal(before, torch.get_rng_state())


def test_unused_terms_are_blank_in_the_history_and_used_ones_are_not(recordings):
    _, history, *_ = trained(replace(TINY, weights=METHODS['no_contrastive']), *recordings)
    assert history.contrastive.isna().all() and history[['emotion', 'augmentation', 'information', 'loss']].notna().all(axis=None)


def test_a_run_depends_on_labels_and_audio_as_well_as_on_its_experiment(recordings):
    source, target = recordings
    known = run_id(TINY, source, target)
    assert run_id(TINY, source, target) == known
    assert run_id(replace(TINY, temperature=.2), source, target) != known
    assert run_id(TINY, source, shuffled(target)) != known


def test_fit_early_stops_and_keeps_the_best_epoch(studios, tmp_path):
    run = fit(replace(TINY, epochs=6, patience=1), studios, tmp_path, progress=False)
    history, best = run.history, run.metrics['best_epoch']
    assert history.valid_war[best] == history.valid_war.max() and len(history) <= 6
    assert len(history) == 6 or len(history) - 1 - best == 1
    valid = run.predictions[run.predictions.part == 'valid']
    assert np.isclose(war(valid.label, valid.prediction), history.valid_war[best])
