"What must hold of a warm start: it learns, from the rows it was given and nothing else, and leaves a stock encoder behind."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining, Wav2Vec2Model

from cdser.config import BadInput
from cdser.encoder import NANO, frame_lengths, load_backbone, normalise
from cdser.runs import open_recordings
from cdser.warm_start import (CLUSTERS, CODEBOOK, DIVERSITY, KAPPA, TEMPERATURES, Contrastive, contextual, contrast, draw_mask,
                              pseudo_labels, warm_start)

OVERLAPPING = dict(NANO, conv_kernel=(10, 8, 4, 4), conv_stride=(5, 4, 4, 4), feat_extract_norm='group', do_stable_layer_norm=False)


@pytest.fixture(scope='module')
def parts(studios, tmp_path_factory):
    "The audio of both studios, all but the last twelve utterances of each."
    torch.set_num_threads(1)
    stores = [open_recordings(name, studios, tmp_path_factory.mktemp('runs'), 15.).store for name in ('studio_a', 'studio_b')]
    return [(store, np.arange(len(store) - 12)) for store in stores]


def fresh(seed: int = 0, **config) -> Wav2Vec2Model:
    torch.manual_seed(seed)
    return Wav2Vec2Model(Wav2Vec2Config(**config, apply_spec_augment=False)) if config else load_backbone('nano')


def copied(backbone: Wav2Vec2Model) -> dict:
    return {name: weight.clone() for name, weight in backbone.state_dict().items()}


def warmed(parts, objective='ptapt', seed=0, epochs=3, **settings) -> tuple[dict, object]:
    backbone = fresh()
    history = warm_start(backbone, parts, objective, epochs=epochs, seed=seed, progress=False, **settings)
    return backbone.state_dict(), history


def test_the_contrastive_loss_goes_down_and_accuracy_beats_chance(parts):
    _, history = warmed(parts, 'tapt', epochs=24)
    first, last = history.iloc[0], history.iloc[-3:].mean(numeric_only=True)
    assert last.loss < .97 * first.loss and last.accuracy > 1.3 * last.chance and last.chance < .2
    assert abs(first.accuracy - first.chance) < .05 # at first it guesses, so what it knows in the end was learned


def test_pseudo_labels_are_learned_from_context(parts):
    _, history = warmed(parts, 'ptapt', epochs=12)
    assert history.objective.tolist() == ['tapt'] * 4 + ['ptapt'] * 8 and history.epoch.tolist() == list(range(12))
    named = history[history.objective == 'ptapt']
    assert named.accuracy.iloc[-1] > named.accuracy.iloc[0] + .05 and named.accuracy.iloc[-1] > 1.5 * named.chance.iloc[0]
    assert named.loss.iloc[-1] < named.loss.iloc[0] < 2 * sum(math.log(k) for k in CLUSTERS)


@pytest.mark.parametrize('objective', ['tapt', 'ptapt'])
def test_the_seed_decides_every_bit(parts, objective):
    (a, history), (b, again), (c, _) = (warmed(parts, objective, seed) for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)
    assert history.drop(columns='seconds').equals(again.drop(columns='seconds'))


def test_the_callers_random_numbers_are_untouched(parts):
    backbone = fresh()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    warm_start(backbone, parts, 'ptapt', epochs=3, seed=0, progress=False)
    assert torch.equal(torch_state, torch.get_rng_state()) and np.array_equal(numpy_state, np.random.get_state()[1])
    torch.manual_seed(77)
    elsewhere = warm_start(other := fresh(), parts, 'ptapt', epochs=3, seed=0, progress=False)
    assert len(elsewhere) == 3 and all(torch.equal(w, other.state_dict()[name]) for name, w in backbone.state_dict().items())


@pytest.mark.parametrize('objective', ['tapt', 'ptapt'])
def test_every_weight_moves_and_the_result_is_a_stock_model(parts, objective, tmp_path):
    backbone = fresh().eval()
    before, attention = copied(backbone), backbone.config._attn_implementation
    warm_start(backbone, parts, objective, epochs=3, seed=0, progress=False)
    assert not any(torch.equal(before[name], weight) for name, weight in backbone.state_dict().items())
    assert backbone.config._attn_implementation == attention and not backbone.training
    assert all(p.grad is None for p in backbone.parameters())
    backbone.save_pretrained(tmp_path)
    stock, waveform = Wav2Vec2Model.from_pretrained(tmp_path).eval(), torch.randn(1, 16_000)
    assert stock.state_dict().keys() == before.keys()
    with torch.no_grad(): assert torch.equal(stock(waveform).last_hidden_state, backbone(waveform).last_hidden_state)


def test_only_the_given_rows_are_heard(parts):
    class Watched:
        def __init__(self, store): self.store, self.lengths, self.heard = store, store.lengths, set()
        def __getitem__(self, i):
            self.heard.add(int(i))
            return self.store[i]
    watched = [(Watched(store), rows[::3]) for store, rows in parts]
    warm_start(fresh(), watched, 'ptapt', epochs=3, seed=0, progress=False)
    for store, rows in watched: assert store.heard == set(rows.tolist())


@pytest.mark.parametrize('objective', ['tapt', 'ptapt'])
def test_frozen_weights_stay(parts, objective):
    backbone = fresh()
    backbone.freeze_feature_encoder()
    before = copied(backbone)
    warm_start(backbone, parts, objective, epochs=3, seed=0, progress=False)
    for name, weight in backbone.state_dict().items(): assert torch.equal(before[name], weight) == name.startswith('feature_extractor.')
    assert not any(p.requires_grad for p in backbone.feature_extractor.parameters())


def hardest(logits, tau=1, hard=False, **kwargs):
    "A Gumbel softmax without noise: the largest forwards, the softmax backwards."
    soft = (logits / tau).softmax(-1)
    return F.one_hot(soft.argmax(-1), logits.shape[-1]) - soft.detach() + soft


def test_loss_and_gradients_agree_with_transformers_on_one_unpadded_batch(monkeypatch):
    monkeypatch.setattr(F, 'gumbel_softmax', hardest) # both models draw noise, for different numbers of frames
    ours, hidden = fresh(), torch.stack([torch.arange(12) % 4 != i for i in range(4)]) # 9 of 12 frames, others in each utterance
    objective, waveforms, lengths = Contrastive(ours.config), torch.randn(4 * 16_000), torch.full((4,), 16_000)
    stock = Wav2Vec2ForPreTraining(type(ours.config).from_dict({**ours.config.to_dict(), **CODEBOOK, 'apply_spec_augment': True}))
    stock.load_state_dict({**{f'wav2vec2.{name}': w for name, w in ours.state_dict().items()}, **objective.state_dict()})
    stock.quantizer.register_forward_pre_hook(lambda module, inputs: (inputs[0].detach(),)) # our one departure
    stock.set_gumbel_temperature(TEMPERATURES[0])
    rivals = torch.zeros(4, 12, 8, dtype=torch.long) # all other hidden frames of the utterance
    for i, row in enumerate(hidden):
        at = row.nonzero()[:, 0]
        rivals[i, at] = torch.stack([at[at != t] for t in at]) + 12 * i
    rows = torch.stack([normalise(row) for row in waveforms.view(4, -1)])
    out = stock.train()(rows, mask_time_indices=hidden, sampled_negative_indices=rivals)
    (out.loss / hidden.sum()).backward()

    ours.set_attn_implementation('end_to_end')
    features, states, layout = contextual(ours.train(), waveforms, lengths, hidden.flatten())
    loss, _, _ = objective(features, states, hidden.flatten().nonzero()[:, 0], layout.utterance, None, 0.)
    loss.backward()
    assert torch.isclose(loss, out.loss / hidden.sum(), rtol=1e-5) and stock.config.diversity_loss_weight == DIVERSITY
    expected = dict(stock.named_parameters())
    for name, p in [*objective.named_parameters(), *((f'wav2vec2.{name}', p) for name, p in ours.named_parameters())]:
        assert torch.allclose(p.grad, expected[name].grad, rtol=1e-3, atol=1e-5), name


def test_contrast_reads_its_formula_utterance_by_utterance():
    generator = torch.Generator().manual_seed(0)
    utterance = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])
    codes = torch.tensor([0, 1, 1, 0, 0, 2, 3, 5])
    book, predicted = torch.randn(6, 16, generator=generator), torch.randn(8, 16, generator=generator)
    targets, losses, right, chances = book[codes], [], [], []
    for t in range(8):
        rivals = [k for k in range(8) if utterance[k] == utterance[t] and codes[k] != codes[t]]
        scores = torch.stack([torch.cosine_similarity(predicted[t], targets[k], dim=0) / KAPPA for k in [t, *rivals]])
        losses.append(-scores.log_softmax(0)[0]); right.append(float(scores.argmax() == 0))
        chances.append(1 / len({int(codes[k]) for k in [t, *rivals]}))
    loss, accuracy, chance = contrast(predicted, targets, codes, utterance)
    assert torch.isclose(loss, torch.stack(losses).mean()) and accuracy == np.mean(right) and np.isclose(chance, np.mean(chances))


def test_a_collapsed_codebook_shows_as_chance():
    loss, accuracy, chance = contrast(torch.randn(20, 8), torch.ones(20, 8), torch.zeros(20, dtype=torch.long), torch.arange(20) // 5)
    assert loss == 0 and accuracy == 1 and chance == 1


@pytest.mark.parametrize('frames', [1, 2, 3, 5, 12, 190])
@pytest.mark.parametrize('span', [3, 10])
def test_spans_are_whole_and_hide_about_half(frames, span):
    drawn = draw_mask([frames] * 400, span, np.random.default_rng(0)).view(400, frames).numpy()
    assert drawn.any(1).all()
    for row in drawn: # runs of hidden frames are no shorter than a span
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        assert min(edges[1::2] - edges[::2]) >= min(span, frames)
    if frames > 3 * span: assert .4 < drawn.mean() < .6


@pytest.mark.parametrize('config', [NANO, OVERLAPPING], ids=['nano', 'like base'])
def test_hidden_frames_and_neighbours_in_the_batch_are_kept_from_the_transformer(config):
    backbone = fresh(**config).eval()
    lengths = torch.tensor([9_000, 16_000, 16_300, 21_000])
    waveforms, frames = torch.randn(int(lengths.sum())), frame_lengths(backbone.config, lengths).tolist()
    mask = draw_mask(frames, 3, np.random.default_rng(0))
    stock = fresh(1, **config).eval()
    stock.load_state_dict(backbone.state_dict())
    stock.config.apply_spec_augment = True
    backbone.set_attn_implementation('end_to_end')
    with torch.no_grad():
        features, states, _ = contextual(backbone, waveforms, lengths, mask)
        for row, hidden, heard, found in zip(waveforms.split(lengths.tolist()), *(x.split(frames) for x in (mask, features, states))):
            alone = stock(normalise(row)[None], mask_time_indices=hidden[None])
            assert torch.allclose(found, alone.last_hidden_state[0], atol=1e-4)
            assert torch.allclose(heard, alone.extract_features[0], atol=1e-4)


def test_an_encoder_like_base_with_dropout_and_overlapping_kernels_can_be_warmed_up(parts):
    few = [(store, rows[:6]) for store, rows in parts]
    backbone = fresh(**{**OVERLAPPING, 'hidden_dropout': .1, 'attention_dropout': .1})
    before = copied(backbone)
    history = warm_start(backbone, few, 'ptapt', epochs=3, seed=0, progress=False)
    assert np.isfinite(history.loss).all() and not any(torch.equal(before[name], w) for name, w in backbone.state_dict().items())


def test_pseudo_labels_belong_to_frames_and_forget_a_corpus_wide_difference(parts, monkeypatch):
    import cdser.warm_start
    backbone = fresh()
    backbone.set_attn_implementation('end_to_end')
    labels = pseudo_labels(backbone, parts, seed=0)
    for (store, rows), part in zip(parts, labels):
        lengths = torch.from_numpy(store.lengths[rows].astype(np.int64))
        assert [len(frames) for frames in part] == frame_lengths(backbone.config, lengths).tolist()
    found = torch.cat([frames for part in labels for frames in part])
    assert [int(x.max()) + 1 for x in found.T] == list(CLUSTERS) and int(found.min()) == 0

    frames = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    heard = iter([[frames], [3 * frames + 50]]) # the same speech from another microphone
    monkeypatch.setattr(cdser.warm_start, 'hear_frames', lambda *args: next(heard))
    (a,), (b,) = pseudo_labels(backbone, parts, seed=0)
    assert torch.equal(a, b)


def test_what_cannot_be_done_is_refused(parts):
    frozen = fresh()
    frozen.requires_grad_(False)
    start = lambda backbone, parts, objective='tapt', epochs=3, **settings: warm_start(
        backbone, parts, objective, epochs=epochs, seed=0, progress=False, **settings)
    with pytest.raises(BadInput, match='objective'): start(fresh(), parts, 'bert')
    with pytest.raises(BadInput, match='epochs'): start(fresh(), parts, epochs=0)
    with pytest.raises(BadInput, match='epochs'): start(fresh(), parts, 'ptapt', epochs=2)
    with pytest.raises(BadInput, match='parts'): start(fresh(), [])
    with pytest.raises(BadInput, match='parts'): start(fresh(), [(parts[0][0], np.arange(0))])
    with pytest.raises(BadInput, match='backbone'): start(frozen, parts)
    with pytest.raises(BadInput, match='mask_time_prob'): start(fresh(**NANO, mask_time_prob=0.), parts)
    with pytest.raises(BadInput, match='lower lr'): start(fresh(), parts, lr=1e6)


def test_weights_that_end_as_no_numbers_are_an_error_though_the_loss_was_one(parts, monkeypatch):
    step = torch.optim.AdamW.step
    def last(self, *args, **kwargs):
        step(self, *args, **kwargs)
        self.param_groups[0]['params'][0].data.fill_(math.nan)
    parts = [(store, rows[:1]) for store, rows in parts[:1]] # one batch an epoch, so the loss is from before
    monkeypatch.setattr(torch.optim.AdamW, 'step', last)
    with pytest.raises(BadInput, match=r'epoch 0 \(tapt\): weights are NaN.*lower lr') as caught:
        warm_start(fresh(), parts, 'ptapt', epochs=3, seed=0, progress=False)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('threads', [1, 2])
def test_the_callers_threads_and_precision_are_left_alone(parts, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        warm_start(fresh(), [(store, rows[:6]) for store, rows in parts], 'ptapt', epochs=3, seed=0, progress=False)
        assert torch.get_num_threads() == threads and torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    finally: torch.set_num_threads(before)
