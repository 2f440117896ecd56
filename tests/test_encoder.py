"The encoder and the model on their own: loading, neighbours, freezing, the front end, long recordings, export."
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (BertConfig, BertModel, Data2VecAudioConfig, Data2VecAudioModel, HubertConfig, HubertForCTC,
                          HubertModel, SEWConfig, SEWModel, Wav2Vec2Config, Wav2Vec2ConformerConfig,
                          Wav2Vec2ConformerModel, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining,
                          Wav2Vec2ForSequenceClassification, Wav2Vec2Model, WavLMConfig, WavLMModel)

from cdser.config import SAMPLE_RATE, BadInput, Experiment
from cdser.encoder import (NANO, WINDOW, Encoder, Layout, end_to_end_attention, frame_lengths, load_backbone,
                           long_states, normalise, patch_front_end, strip_front_end, windows)
from cdser.model import Recogniser, build, from_transformers, load_stock, save_stock, to_transformers

OVERLAPPING = {**NANO, 'conv_kernel': (10, 8, 4, 4), 'conv_stride': (5, 4, 4, 4)}
GROUP = {**OVERLAPPING, 'feat_extract_norm': 'group', 'do_stable_layer_norm': False}


def speech(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator) for n in lengths]


def end_to_end(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat(rows), torch.tensor([len(row) for row in rows])


def stock_front_end(front_end: torch.nn.Module, rows: list[torch.Tensor]) -> torch.Tensor: # (frames of all, channels)
    return torch.cat([front_end(row[None])[0].T for row in rows])


def padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    "The same as the stock model wants it."
    extract = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    return dict(extract([row.numpy() for row in rows], sampling_rate=SAMPLE_RATE, padding=True, return_tensors='pt'))


@pytest.mark.parametrize('config', [NANO, OVERLAPPING, {**NANO, 'do_stable_layer_norm': False}, GROUP])
def test_batch_composition_changes_nothing(config):
    torch.manual_seed(0)
    model = Recogniser(Encoder(Wav2Vec2Model(Wav2Vec2Config(**config)))).eval()
    rows = speech(17_321, 30_000, 8_000, 30_000, 1_600)
    order = [3, 0, 4, 2, 1]
    with torch.no_grad():
        batch, reordered = model(*end_to_end(rows)), model(*end_to_end([rows[i] for i in order]))
        for i, row in enumerate(rows):
            alone = model(*end_to_end([row]))
            for name, value in alone._asdict().items():
                assert torch.allclose(value[0], getattr(batch, name)[i], atol=2e-5), name
                assert torch.allclose(value[0], getattr(reordered, name)[order.index(i)], atol=2e-5), name


@pytest.mark.parametrize('config', [NANO, OVERLAPPING, GROUP])
def test_no_gradient_reaches_a_neighbour(config):
    torch.manual_seed(0)
    model = Recogniser(Encoder(Wav2Vec2Model(Wav2Vec2Config(**config)))).eval()
    waveforms, lengths = end_to_end(speech(9_000, 20_000, 9_000))
    waveforms.requires_grad_()
    gradient, = torch.autograd.grad(model(waveforms, lengths).logits[1, 0], waveforms)
    assert not gradient[:9_000].any() and gradient[9_000:29_000].any() and not gradient[29_000:].any()


@pytest.mark.parametrize('frames', [[4], [5, 5], [3, 4, 4, 5, 9, 30]])
def test_attention_calls_with_slack_equal_exact_ones_in_values_and_gradients(frames):
    results, generator = [], torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, sum(frames), 8, generator=generator).requires_grad_()
    for slack in (1., 1.6):
        layout = Layout(frames, 0, 'cpu', slack)
        assert sum(len(call) for call in layout.calls) == len(frames)
        assert all(call[-1] <= slack * call[0] for call in layout.calls)
        output, _ = end_to_end_attention(None, query, key, value, layout)
        results.append((output, *torch.autograd.grad(output.square().sum(), (query, key, value))))
    for exact, slack in zip(*results):
        assert torch.allclose(exact, slack, atol=1e-5)


@pytest.mark.parametrize('config', [NANO, OVERLAPPING, GROUP])
def test_a_strip_equals_the_stock_front_end_on_each_utterance_in_values_and_gradients(config):
    torch.manual_seed(0)
    backbone, rows = Wav2Vec2Model(Wav2Vec2Config(**config)), speech(20_001, 1_600, 12_345)
    front_end = backbone.feature_extractor
    outputs = [stock_front_end(front_end, rows), strip_front_end(front_end, backbone.config, rows)]
    weights = list(front_end.parameters())
    gradients = [torch.autograd.grad(hidden.square().mean(), weights) for hidden in outputs]
    for stock, strip in [outputs, *zip(*gradients)]:
        assert torch.allclose(stock, strip, atol=2e-5)


def test_a_step_of_the_encoder_asks_the_device_for_nothing():
    "Tensors on `meta` have no values, so whatever would wait for one fails."
    for config in (NANO, GROUP):
        model = Recogniser(Encoder(Wav2Vec2Model(Wav2Vec2Config(**config)))).to('meta')
        waveforms, lengths = end_to_end(speech(9_000, 8_000, 20_000))
        model(waveforms.to('meta'), lengths).logits.sum().backward()
        with pytest.raises(RuntimeError):
            waveforms.to('meta').sum().item()


def test_patches_equal_the_stock_front_end_in_values_and_gradients():
    front_end, rows = load_backbone('nano').feature_extractor, speech(20_001, 1_600)
    outputs = [stock_front_end(front_end, rows), patch_front_end(front_end, rows)]
    weights = list(front_end.parameters())
    gradients = [torch.autograd.grad(hidden.square().mean(), weights) for hidden in outputs]
    assert torch.allclose(*outputs, atol=1e-5)
    assert all(torch.allclose(expected, gradient, atol=1e-6) for expected, gradient in zip(*gradients))


def test_the_layer_mix_has_the_gradients_of_the_stacked_sum():
    torch.manual_seed(0)
    config = Wav2Vec2Config(**NANO, use_weighted_layer_sum=True, num_labels=4)
    stock = Wav2Vec2ForSequenceClassification(config).eval()
    torch.nn.init.normal_(stock.layer_weights)
    model, rows = from_transformers(stock), speech(16_000, 11_000)
    theirs = stock(**padded(rows)).logits
    expected = torch.autograd.grad(theirs.square().sum(), [stock.layer_weights, stock.projector.weight])
    ours = model(*end_to_end(rows)).logits
    gradients = torch.autograd.grad(ours.square().sum(), [model.encoder.layer_weights, model.projector.weight])
    assert torch.allclose(theirs, ours, atol=1e-5)
    for a, b in zip(expected, gradients):
        assert torch.allclose(a, b, atol=1e-4)


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
    encoder.mix(encoder.states(*batch)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is not None] == ['layer_weights']


def test_a_backbone_saved_by_transformers_is_loaded_frozen_and_exported(tmp_path):
    saved = Wav2Vec2Model(Wav2Vec2Config(**{**OVERLAPPING, 'feat_extract_norm': 'group'}))
    saved.save_pretrained(tmp_path / 'backbone')
    model = build(Experiment('a', 'b', encoder=str(tmp_path / 'backbone'), freeze_front_end=True))
    for name, value in saved.state_dict().items():
        if 'masked_spec_embed' not in name:
            assert torch.equal(value, model.encoder.backbone.state_dict()[name]), name
    model.train()
    model(*end_to_end(speech(16_000, 9_000))).logits.sum().backward()
    assert all(p.grad is None for p in model.encoder.backbone.feature_extractor.parameters())
    to_transformers(model).save_pretrained(tmp_path / 'export')
    stock = Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / 'export')
    row, = speech(16_000)
    with torch.no_grad():
        assert torch.allclose(stock(normalise(row)[None]).logits, model.eval()(*end_to_end([row])).logits, atol=1e-5)
    assert stock.config.id2label == {0: 'ang', 1: 'hap', 2: 'neu', 3: 'sad'}


TINY = dict(NANO, conv_dim=(8, 8, 8, 8), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8)


def saved(folder: Path, kind=Wav2Vec2Model, **config) -> Path:
    torch.manual_seed(0)
    kind(Wav2Vec2Config(**{**TINY, **config})).save_pretrained(folder)
    return folder


def refused(folder: Path | str, match: str) -> None:
    with pytest.raises(BadInput, match=match) as err:
        load_backbone(str(folder))
    assert str(err.value).startswith('encoder: ') and str(err.value).isprintable()


def edit_weights(folder: Path, edit) -> Path:
    weights = edit(load_file(folder / 'model.safetensors'))
    contiguous = {key: value.contiguous() for key, value in weights.items()}
    save_file(contiguous, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


def edit_config(folder: Path, **fields) -> Path:
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize('config, model', [
    (WavLMConfig, WavLMModel), (SEWConfig, SEWModel), (BertConfig, BertModel),
    (Data2VecAudioConfig, Data2VecAudioModel), (Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel)])
def test_an_encoder_of_another_kind_is_refused_even_if_it_says_it_is_a_wav2vec2(config, model, tmp_path):
    shared = ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')
    convolutions = [name for name in TINY if 'conv' in name or 'feat_extract' in name]
    fields = {name: TINY[name] for name in (*shared, *(convolutions if model is not BertModel else ()))}
    model(config(**fields, vocab_size=50)).save_pretrained(tmp_path / 'it')
    refused(tmp_path / 'it', f'its model_type is {config.model_type}; use a Wav2Vec2')
    edit_config(tmp_path / 'it', model_type='wav2vec2')
    refused(tmp_path / 'it', r'is not a whole Wav2Vec2Model: \d+ (missing|unexpected)|cannot be loaded')


@pytest.mark.parametrize('kind', [HubertModel, HubertForCTC])
def test_a_hubert_is_the_wav2vec2_that_it_is(kind, tmp_path):
    torch.manual_seed(0)
    saved_one = kind(HubertConfig(**TINY)).eval()
    saved_one.save_pretrained(tmp_path / 'it')
    hubert = getattr(saved_one, 'hubert', saved_one)
    row, = speech(16_000)
    with torch.no_grad():
        states = Encoder(load_backbone(str(tmp_path / 'it'))).eval().states(row, torch.tensor([len(row)]))
        hidden = hubert(normalise(row)[None], output_hidden_states=True).hidden_states[0].mean(1)
    assert torch.allclose(states[:, 0], hidden, atol=1e-5)


@pytest.mark.parametrize('kind, config', [
    (Wav2Vec2ForPreTraining, {}), (Wav2Vec2ForCTC, dict(vocab_size=9)), (Wav2Vec2ForSequenceClassification, {})])
def test_heads_and_the_vector_of_masked_frames_stay_behind_and_the_backbone_is_whole(kind, config, tmp_path):
    folder = saved(tmp_path / 'it', kind, **config)
    stored = {key.removeprefix('wav2vec2.'): value for key, value in load_file(folder / 'model.safetensors').items()
              if key.startswith('wav2vec2.')}
    weights = load_backbone(str(folder)).state_dict()
    del stored['masked_spec_embed']
    assert weights.keys() == stored.keys() and all(torch.equal(value, weights[key]) for key, value in stored.items())


def test_old_names_half_precision_and_pickled_tensors_are_the_same_encoder(tmp_path):
    folder, waves = saved(tmp_path / 'it'), end_to_end(speech(9_000))
    edit_weights(folder, lambda weights: {key: value.half() for key, value in weights.items()})
    new = 'parametrizations.weight.original'
    old = {key.replace(f'{new}0', 'weight_g').replace(f'{new}1', 'weight_v'): value
           for key, value in load_file(folder / 'model.safetensors').items()}
    saved(tmp_path / 'old')
    (tmp_path / 'old' / 'model.safetensors').unlink()
    torch.save(old, tmp_path / 'old' / 'pytorch_model.bin')
    half, pickled = load_backbone(str(folder)), load_backbone(str(tmp_path / 'old'))
    assert 'weight_g' in str(list(old)) and half.dtype == torch.float32
    assert torch.equal(Encoder(half).states(*waves), Encoder(pickled).states(*waves))


PROJECTION = 'feature_projection.projection.weight'


@pytest.mark.parametrize('edit, match', [
    *((lambda w, lost=lost: {key: value for key, value in w.items() if lost not in key},
       r'\d+ missing, such as .*' + lost)
      for lost in ('layers.1.', 'feature_projection.layer_norm.weight', 'conv_layers.2.conv.weight')),
    (lambda w: {**w, 'stranger.weight': torch.ones(2)}, "1 unexpected, such as 'stranger.weight'"),
    (lambda w: {**w, PROJECTION: torch.ones(3, 8)}, '1 of another shape, such as .*projection.weight'),
    (lambda w: {**w, PROJECTION: w[PROJECTION].index_fill(0, torch.tensor([3]), float('nan'))},
     '1 not finite, such as .*projection.weight')])
def test_what_is_missing_left_over_misshapen_or_not_finite_is_named(edit, match, tmp_path):
    refused(edit_weights(saved(tmp_path / 'it'), edit), match)


def test_damaged_files_are_one_error(tmp_path):
    damages = [('config.json', b'{'), ('config.json', b''),
               ('model.safetensors', b''), ('model.safetensors', b'\xff' * 99)]
    for i, (file, content) in enumerate(damages):
        (saved(tmp_path / str(i)) / file).write_bytes(content)
        refused(tmp_path / str(i), 'cannot be loaded')
    for name in ('', 'a/b/c', 'no such', 'x' * 5000):
        refused(name, 'cannot be loaded')


class Trap:
    "Makes a folder when it is unpickled."
    def __init__(self, path):
        self.path = path
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('how', ['torch', 'pickle', 'inside'])
def test_nothing_that_came_with_a_checkpoint_runs(how, tmp_path):
    folder, trap = saved(tmp_path / 'it'), tmp_path / 'sprung'
    weights = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    if how == 'pickle':
        (folder / 'pytorch_model.bin').write_bytes(pickle.dumps(Trap(trap)))
    else:
        torch.save({**weights, 'x': Trap(trap)} if how == 'inside' else Trap(trap), folder / 'pytorch_model.bin')
    (folder / 'modeling_evil.py').write_text(f'import os; os.mkdir({str(trap)!r})')
    edit_config(folder, auto_map={'AutoModel': 'modeling_evil.Evil', 'AutoConfig': 'modeling_evil.Evil'})
    refused(folder, 'cannot be loaded')
    assert not trap.exists()


def test_a_sharded_checkpoint_is_its_shards(tmp_path):
    load_backbone(str(saved(tmp_path / 'one'))).save_pretrained(tmp_path / 'many', max_shard_size='8KB')
    whole, sharded = (load_backbone(str(tmp_path / name)).state_dict() for name in ('one', 'many'))
    assert len(list((tmp_path / 'many').glob('*.safetensors'))) > 2
    assert all(torch.equal(value, sharded[key]) for key, value in whole.items())


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    saved(tmp_path / 'model')
    assert load_backbone('~/model')


@pytest.mark.parametrize('normalised', [True, False])
def test_an_encoder_gets_waveforms_as_it_was_pre_trained_on_them_and_so_does_its_export(normalised, tmp_path):
    Wav2Vec2FeatureExtractor(do_normalize=normalised).save_pretrained(saved(tmp_path / 'it'))
    model, (row,) = build(Experiment('a', 'b', encoder=str(tmp_path / 'it'))).eval(), speech(16_000)
    row = .05 * row + .01
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / 'it')
    inputs = extractor(row.numpy(), sampling_rate=SAMPLE_RATE, return_tensors='pt').input_values
    with torch.no_grad():
        assert torch.allclose(inputs[0], normalise(row) if normalised else row, atol=1e-5)
        states = model.encoder.states(row, torch.tensor([len(row)]))
    save_stock(model, tmp_path / 'export')
    assert Wav2Vec2FeatureExtractor.from_pretrained(tmp_path / 'export').do_normalize == normalised
    again = from_transformers(load_stock(tmp_path / 'export'))
    with torch.no_grad():
        assert torch.allclose(again.encoder.states(row, torch.tensor([len(row)])), states, atol=1e-5)
        stock = Wav2Vec2ForSequenceClassification.from_pretrained(tmp_path / 'export').eval()
        assert torch.allclose(stock(inputs).logits, again(row, torch.tensor([len(row)])).logits, atol=1e-5)


def test_an_encoder_with_an_adapter_is_mixed_and_exported_without_it(tmp_path):
    saved(tmp_path / 'it', Wav2Vec2Model, add_adapter=True)
    save_stock(build(Experiment('a', 'b', encoder=str(tmp_path / 'it'))), tmp_path / 'export')
    assert load_stock(tmp_path / 'export')


@pytest.mark.parametrize('content', ['', '{', '[]'])
def test_a_damaged_feature_extractor_is_one_error(content, tmp_path):
    (saved(tmp_path / 'it') / 'preprocessor_config.json').write_text(content)
    refused(tmp_path / 'it', 'has a preprocessor_config.json that cannot be read')


def test_an_encoder_for_another_rate_is_refused(tmp_path):
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(saved(tmp_path / 'it'))
    refused(tmp_path / 'it', 'expects 8000 Hz; use one for 16000 Hz')


@pytest.mark.parametrize('length', [1, 479_999, 480_000, 480_001, 960_001, 57_600_000])
def test_windows_are_equal_and_cover_a_recording(length):
    parts = windows(length)
    sizes = [stop - start for start, stop in parts]
    assert parts[0][0] == 0 and parts[-1][1] == length and all(a[1] == b[0] for a, b in zip(parts, parts[1:]))
    assert max(sizes) <= WINDOW * SAMPLE_RATE and max(sizes) - min(sizes) <= 1 and len(parts) == -(-length // 480_000)


def test_long_recordings_are_means_of_windows_and_short_ones_stay(monkeypatch):
    monkeypatch.setattr('cdser.encoder.WINDOW', 1.)
    torch.manual_seed(0)
    encoder = Encoder(Wav2Vec2Model(Wav2Vec2Config(**OVERLAPPING))).eval()
    rows = speech(9_000, 16_001, 16_000, 83_333)
    with torch.no_grad():
        states = long_states(encoder, *end_to_end(rows))
        short_rows = end_to_end([rows[0], rows[2]])
        short = encoder.states(*short_rows)
        assert torch.equal(states[[0, 2]], short) and torch.equal(long_states(encoder, *short_rows), short)
        for i in (1, 3):
            parts = [rows[i][start:stop] for start, stop in windows(len(rows[i]))]
            frames = frame_lengths(encoder.backbone.config, torch.tensor([len(part) for part in parts]))
            of_parts = torch.cat([encoder.states(*end_to_end([part])) for part in parts])
            expected = (of_parts * frames[:, None, None]).sum(0) / frames.sum()
            assert len(parts) > 1 and states.dtype == torch.float32 and torch.allclose(states[i], expected, atol=1e-5)


def test_mixed_precision_does_not_round_the_mean_of_windows(monkeypatch):
    monkeypatch.setattr('cdser.encoder.WINDOW', 1.)
    encoder, (row,) = Encoder(load_backbone('nano')).eval(), speech(64_000)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        literal = torch.cat([encoder.states(part, torch.tensor([len(part)])) for part in row.split(16_000)]).mean(0)
        assert torch.allclose(long_states(encoder, row, torch.tensor([64_000]))[0], literal, atol=2e-2)
        monkeypatch.setattr(encoder, 'states', lambda waveforms, lengths: literal.expand(len(lengths), -1, -1))
        assert torch.allclose(long_states(encoder, row, torch.tensor([64_000]))[0], literal, atol=1e-6)


def test_the_memory_of_a_long_recording_does_not_grow_with_it(monkeypatch):
    encoder, samples = Encoder(load_backbone('nano')).eval(), []
    def states(waveforms, lengths, real=encoder.states):
        samples.append(int(lengths.sum()))
        return real(waveforms, lengths)
    monkeypatch.setattr(encoder, 'states', states)
    with torch.no_grad():
        long_states(encoder, torch.zeros(300 * SAMPLE_RATE), torch.tensor([300 * SAMPLE_RATE]))
    assert sum(samples) == 300 * SAMPLE_RATE and max(samples) <= 4 * WINDOW * SAMPLE_RATE
