"The encoder and the model on their own: padding, freezing, mask rule, and the way out to transformers."
import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification, Wav2Vec2Model

from cdser.config import BadInput, Experiment
from cdser.encoder import NANO, Encoder, frame_lengths, load_backbone, normalise, patch_front_end, real
from cdser.model import Recogniser, build, from_transformers, to_transformers

OVERLAPPING = {**NANO, 'conv_kernel': (10, 8, 4, 4), 'conv_stride': (5, 4, 4, 4)}


def speechlike(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator, lengths = torch.Generator().manual_seed(0), torch.tensor(lengths)
    return torch.randn(len(lengths), int(lengths.max()), generator=generator) * real(lengths, int(lengths.max())), lengths


@pytest.mark.parametrize('config', [NANO, OVERLAPPING, {**NANO, 'do_stable_layer_norm': False}])
def test_padding_does_not_change_an_utterance(config):
    torch.manual_seed(0)
    model = Recogniser(Encoder(Wav2Vec2Model(Wav2Vec2Config(**config)))).eval()
    waveforms, lengths = speechlike(17_321, 30_000, 8_000)
    with torch.no_grad():
        batch = model(waveforms, lengths)
        wider = model(torch.nn.functional.pad(waveforms, (0, 9_999)), lengths)
        for i, n in enumerate(lengths):
            alone = model(waveforms[i:i + 1, :n], lengths[i:i + 1])
            for name, value in vars(alone).items():
                assert torch.allclose(value[0], getattr(batch, name)[i], atol=2e-5), name
                assert torch.allclose(value[0], getattr(wider, name)[i], atol=2e-5), name


def test_neighbours_do_not_change_an_utterance():
    model = build(Experiment('a', 'b')).eval()
    waveforms, lengths = speechlike(16_000, 16_000)
    other = waveforms.clone()
    other[1] = torch.randn(16_000)
    with torch.no_grad(): assert torch.allclose(model(waveforms, lengths).emotion[0], model(other, lengths).emotion[0], atol=1e-6)


@pytest.mark.parametrize('samples', [1_280, 1_281, 5_000, 16_000, 99_999])
def test_frame_lengths_count_what_the_front_end_makes(samples):
    for config in (NANO, OVERLAPPING):
        backbone = Wav2Vec2Model(Wav2Vec2Config(**config))
        frames = backbone.feature_extractor(torch.randn(1, samples)).shape[-1]
        assert frame_lengths(backbone.config, torch.tensor([samples])) == frames


def test_patches_equal_the_stock_front_end_in_values_and_gradients():
    front_end, (waveforms, _) = load_backbone('nano').feature_extractor, speechlike(20_001, 20_001)
    found = []
    for compute in (lambda: front_end(waveforms).transpose(1, 2), lambda: patch_front_end(front_end, waveforms)):
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
    model, (waveforms, lengths) = from_transformers(stock), speechlike(16_000, 11_000)
    theirs = stock(normalise(waveforms, lengths), attention_mask=real(lengths, 16_000).long()).logits
    expected = torch.autograd.grad(theirs.square().sum(), [stock.layer_weights, stock.projector.weight])
    ours = model(waveforms, lengths).emotion
    found = torch.autograd.grad(ours.square().sum(), [model.encoder.layer_weights, model.projector.weight])
    assert torch.allclose(theirs, ours, atol=1e-5)
    for a, b in zip(expected, found): assert torch.allclose(a, b, atol=1e-4)


def test_a_group_norm_encoder_gets_no_mask_and_a_layer_norm_encoder_one_only_when_padded(monkeypatch):
    for norm in ('group', 'layer'):
        encoder, masks = Encoder(Wav2Vec2Model(Wav2Vec2Config(**{**NANO, 'feat_extract_norm': norm}))), []
        forward = encoder.backbone.encoder.forward
        monkeypatch.setattr(encoder.backbone.encoder, 'forward',
                            lambda hidden, attention_mask=None: (masks.append(attention_mask), forward(hidden, attention_mask))[1])
        encoder(*speechlike(16_000, 9_000)), encoder(*speechlike(16_000, 16_000))
        assert [mask is not None for mask in masks] == [norm == 'layer', False]


def test_a_backbone_saved_by_transformers_is_loaded_frozen_and_exported(tmp_path):
    saved = Wav2Vec2Model(Wav2Vec2Config(**{**OVERLAPPING, 'feat_extract_norm': 'group'}))
    saved.save_pretrained(tmp_path / 'backbone')
    model = build(Experiment('a', 'b', encoder=str(tmp_path / 'backbone'), freeze_front_end=True))
    for name, value in saved.state_dict().items():
        if 'masked_spec_embed' not in name: assert torch.equal(value, model.encoder.backbone.state_dict()[name]), name
    model.train()
    model(*speechlike(16_000, 9_000)).emotion.sum().backward()
    assert all(p.grad is None for p in model.encoder.backbone.feature_extractor.parameters())
    to_transformers(model).save_pretrained(tmp_path / 'export')
    stock = Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / 'export')
    waveforms, lengths = speechlike(16_000)
    with torch.no_grad():
        assert torch.allclose(stock(normalise(waveforms, lengths)).logits, model.eval()(waveforms, lengths).emotion, atol=1e-5)
    assert stock.config.id2label == {0: 'ang', 1: 'hap', 2: 'neu', 3: 'sad'}


def test_an_encoder_that_cannot_be_had_is_one_clear_error(tmp_path):
    with pytest.raises(BadInput, match='encoder.*folder without a model'): load_backbone(str(tmp_path))
