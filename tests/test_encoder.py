"The encoder and the model on their own: neighbours, freezing, the ways through the front end, and the way out to transformers."
import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification, Wav2Vec2Model

from cdser.config import SAMPLE_RATE, BadInput, Experiment
from cdser.encoder import (NANO, Encoder, Layout, Places, end_to_end_attention, frame_lengths, load_backbone, normalise, patch_front_end,
                           strip_front_end)
from cdser.model import Recogniser, build, from_transformers, to_transformers

OVERLAPPING = {**NANO, 'conv_kernel': (10, 8, 4, 4), 'conv_stride': (5, 4, 4, 4)}
GROUP = {**OVERLAPPING, 'feat_extract_norm': 'group', 'do_stable_layer_norm': False}


def speech(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator) for n in lengths]


def end_to_end(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat(rows), torch.tensor([len(row) for row in rows])


def padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    "The same as the stock model wants it."
    extract = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    return dict(extract([row.numpy() for row in rows], sampling_rate=SAMPLE_RATE, padding=True, return_tensors='pt'))


@pytest.mark.parametrize('config', [NANO, OVERLAPPING, {**NANO, 'do_stable_layer_norm': False}, GROUP])
def test_an_utterance_is_heard_as_if_alone_whatever_its_neighbours_and_its_place(config):
    torch.manual_seed(0)
    model = Recogniser(Encoder(Wav2Vec2Model(Wav2Vec2Config(**config)))).eval()
    rows = speech(17_321, 30_000, 8_000, 30_000, 1_600)
    order = [3, 0, 4, 2, 1]
    with torch.no_grad():
        batch, other = model(*end_to_end(rows)), model(*end_to_end([rows[i] for i in order]))
        for i, row in enumerate(rows):
            alone = model(*end_to_end([row]))
            for name, value in vars(alone).items():
                assert torch.allclose(value[0], getattr(batch, name)[i], atol=2e-5), name
                assert torch.allclose(value[0], getattr(other, name)[order.index(i)], atol=2e-5), name


@pytest.mark.parametrize('config', [NANO, OVERLAPPING, GROUP])
def test_no_gradient_reaches_a_neighbour(config):
    torch.manual_seed(0)
    model = Recogniser(Encoder(Wav2Vec2Model(Wav2Vec2Config(**config)))).eval()
    waveforms, lengths = end_to_end(speech(9_000, 20_000, 9_000))
    waveforms.requires_grad_()
    gradient, = torch.autograd.grad(model(waveforms, lengths).emotion[1, 0], waveforms)
    assert not gradient[:9_000].any() and gradient[9_000:29_000].any() and not gradient[29_000:].any()


@pytest.mark.parametrize('frames', [[4], [5, 5], [3, 4, 4, 5, 9, 30]])
def test_attention_calls_with_slack_equal_exact_ones_in_values_and_gradients(frames):
    found = []
    for slack in (1., 1.6):
        query, key, value = torch.randn(3, 1, 2, sum(frames), 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        layout = Layout(frames, 0, 'cpu', slack)
        assert sum(len(call) for call in layout.calls) == len(frames) and all(call[-1] <= slack * call[0] for call in layout.calls)
        heard, _ = end_to_end_attention(None, query, key, value, layout)
        found.append((heard, *torch.autograd.grad(heard.square().sum(), (query, key, value))))
    for exact, slack in zip(*found): assert torch.allclose(exact, slack, atol=1e-5)


def test_places_put_rows_into_slots_and_take_them_out():
    places, x = Places([2, 1, 3], [4, 1, 5], 'cpu'), torch.randn(6, 2, dtype=torch.double, requires_grad=True)
    spread = places.spread(x)
    assert spread.shape == (10, 2) and not spread[[2, 3, 8, 9]].any() and torch.equal(spread[[0, 1, 4, 5, 6, 7]], x)
    assert torch.autograd.gradcheck(lambda x: places.take(places.spread(x).sin()), x)


@pytest.mark.parametrize('config', [NANO, OVERLAPPING, GROUP])
def test_a_strip_equals_the_stock_front_end_on_each_utterance_in_values_and_gradients(config):
    torch.manual_seed(0)
    backbone, rows, found = Wav2Vec2Model(Wav2Vec2Config(**config)), speech(20_001, 1_600, 12_345), []
    front_end = backbone.feature_extractor
    for compute in (lambda: torch.cat([front_end(row[None])[0].T for row in rows]), lambda: strip_front_end(front_end, backbone.config, rows)):
        hidden = compute()
        found.append((hidden, *torch.autograd.grad(hidden.square().mean(), list(front_end.parameters()))))
    for stock, strip in zip(*found): assert torch.allclose(stock, strip, atol=2e-5)


def test_a_step_of_the_encoder_asks_the_device_for_nothing():
    "Tensors on `meta` have no values, so whatever would wait for one fails; both kinds of front end, padded attention calls."
    for config in (NANO, GROUP):
        model = Recogniser(Encoder(Wav2Vec2Model(Wav2Vec2Config(**config)))).to('meta')
        waveforms, lengths = end_to_end(speech(9_000, 8_000, 20_000))
        model(waveforms.to('meta'), lengths).emotion.sum().backward()
        with pytest.raises(RuntimeError): waveforms.to('meta').sum().item()


@pytest.mark.parametrize('samples', [1_280, 1_281, 5_000, 16_000, 99_999])
def test_frame_lengths_count_what_the_front_end_makes(samples):
    for config in (NANO, OVERLAPPING):
        backbone = Wav2Vec2Model(Wav2Vec2Config(**config))
        frames = backbone.feature_extractor(torch.randn(1, samples)).shape[-1]
        assert frame_lengths(backbone.config, torch.tensor([samples])) == frames


def test_patches_equal_the_stock_front_end_in_values_and_gradients():
    front_end, rows = load_backbone('nano').feature_extractor, speech(20_001, 1_600)
    found = []
    for compute in (lambda: torch.cat([front_end(row[None])[0].T for row in rows]), lambda: patch_front_end(front_end, rows)):
        front_end.zero_grad()
        hidden = compute()
        hidden.square().mean().backward()
        found.append((hidden.detach(), [p.grad.clone() for p in front_end.parameters()]))
    (stock, stock_gradients), (ours, gradients) = found
    assert torch.allclose(stock, ours, atol=1e-5)
    for expected, gradient in zip(stock_gradients, gradients): assert torch.allclose(expected, gradient, atol=1e-6)


def test_the_layer_mix_has_the_gradients_of_the_stacked_sum():
    torch.manual_seed(0)
    stock = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(**NANO, use_weighted_layer_sum=True, num_labels=4)).eval()
    torch.nn.init.normal_(stock.layer_weights)
    model, rows = from_transformers(stock), speech(16_000, 11_000)
    theirs = stock(**padded(rows)).logits
    expected = torch.autograd.grad(theirs.square().sum(), [stock.layer_weights, stock.projector.weight])
    ours = model(*end_to_end(rows)).emotion
    found = torch.autograd.grad(ours.square().sum(), [model.encoder.layer_weights, model.projector.weight])
    assert torch.allclose(theirs, ours, atol=1e-5)
    for a, b in zip(expected, found): assert torch.allclose(a, b, atol=1e-4)


def test_the_backbone_remains_a_stock_model_for_others():
    torch.manual_seed(0)
    config, rows = Wav2Vec2Config(**NANO, num_labels=4), speech(16_000, 9_000)
    stock = Wav2Vec2ForSequenceClassification(config).eval()
    with torch.no_grad():
        before = stock(**padded(rows)).logits
        Encoder(stock.wav2vec2)
        assert torch.allclose(stock(**padded(rows)).logits, before, atol=1e-6)


def test_a_frozen_encoder_trains_its_mix_alone_and_never_drops_out():
    config = {**OVERLAPPING, 'hidden_dropout': .5, 'attention_dropout': .5}
    encoder = Encoder(Wav2Vec2Model(Wav2Vec2Config(**config, apply_spec_augment=False)), freeze=True).train()
    batch = end_to_end(speech(16_000, 9_000))
    assert torch.equal(encoder.states(*batch), encoder.states(*batch))
    encoder(*batch).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == ['layer_weights']


def test_a_backbone_saved_by_transformers_is_loaded_frozen_and_exported(tmp_path):
    saved = Wav2Vec2Model(Wav2Vec2Config(**{**OVERLAPPING, 'feat_extract_norm': 'group'}))
    saved.save_pretrained(tmp_path / 'backbone')
    model = build(Experiment('a', 'b', encoder=str(tmp_path / 'backbone'), freeze_front_end=True))
    for name, value in saved.state_dict().items():
        if 'masked_spec_embed' not in name: assert torch.equal(value, model.encoder.backbone.state_dict()[name]), name
    model.train()
    model(*end_to_end(speech(16_000, 9_000))).emotion.sum().backward()
    assert all(p.grad is None for p in model.encoder.backbone.feature_extractor.parameters())
    to_transformers(model).save_pretrained(tmp_path / 'export')
    stock = Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / 'export')
    row, = speech(16_000)
    with torch.no_grad():
        assert torch.allclose(stock(normalise(row)[None]).logits, model.eval()(*end_to_end([row])).emotion, atol=1e-5)
    assert stock.config.id2label == {0: 'ang', 1: 'hap', 2: 'neu', 3: 'sad'}


def test_an_encoder_that_cannot_be_had_is_one_clear_error(tmp_path):
    with pytest.raises(BadInput, match='encoder.*folder without a model'): load_backbone(str(tmp_path))
