"The encoder and the model on their own: what is loaded, neighbours, freezing, the front end's ways, long recordings, the way out."
import json
import os
import pickle
import shutil
import socket
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (BertConfig, BertModel, Data2VecAudioConfig, Data2VecAudioModel, HubertConfig, HubertModel, SEWConfig, SEWModel,
                          Wav2Vec2Config, Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC,
                          Wav2Vec2ForPreTraining, Wav2Vec2ForSequenceClassification, Wav2Vec2Model, WavLMConfig, WavLMModel)

from cdser.config import SAMPLE_RATE, BadInput, Experiment
from cdser.encoder import (NANO, WINDOW, Encoder, Layout, Places, encoder_digest, end_to_end_attention, frame_lengths, load_backbone, long_states,
                           normalise, patch_front_end, strip_front_end, windows)
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


TINY = dict(NANO, conv_dim=(8, 8, 8, 8), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, classifier_proj_size=8)


def saved(folder: Path, kind=Wav2Vec2Model, **config) -> Path:
    torch.manual_seed(0)
    kind(Wav2Vec2Config(**{**TINY, **config})).save_pretrained(folder)
    return folder


def refused(name, match: str, load=load_backbone) -> str:
    "The one line that says why."
    with pytest.raises(BadInput, match=match) as caught: load(name if isinstance(name, str) else str(name))
    message = str(caught.value)
    assert message.isprintable()
    return message


def edit_config(folder: Path, **fields) -> Path:
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **fields}))
    return folder


def edit_weights(folder: Path, edit) -> Path:
    weights = load_file(folder / 'model.safetensors')
    save_file({key: value.contiguous() for key, value in edit(weights).items()}, folder / 'model.safetensors', metadata={'format': 'pt'})
    return folder


@pytest.mark.parametrize('config, model', [(HubertConfig, HubertModel), (WavLMConfig, WavLMModel), (SEWConfig, SEWModel), (BertConfig, BertModel),
                                           (Wav2Vec2ConformerConfig, Wav2Vec2ConformerModel), (Data2VecAudioConfig, Data2VecAudioModel)])
def test_an_encoder_of_another_kind_is_refused_even_where_it_says_it_is_a_wav2vec2(config, model, tmp_path):
    fields = {name: TINY[name] for name in ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size')} | (
        dict(vocab_size=50) if model is BertModel else {name: value for name, value in TINY.items() if 'conv' in name or 'feat_extract' in name})
    model(config(**fields)).save_pretrained(tmp_path / 'it')
    refused(tmp_path / 'it', f"config.json: its model_type is '{config.model_type}'; .* wav2vec2")
    if model is HubertModel: return # the same architecture, so its tensors do fit
    refused(edit_config(tmp_path / 'it', model_type='wav2vec2'), r'model_type wav2vec2.*\d+ (missing|unexpected|of another shape) \(')


@pytest.mark.parametrize('kind, config', [(Wav2Vec2ForPreTraining, {}), (Wav2Vec2ForCTC, dict(vocab_size=9)), (Wav2Vec2ForSequenceClassification, {})])
def test_heads_stay_behind_and_the_backbone_is_whole(kind, config, tmp_path):
    folder = saved(tmp_path / 'it', kind, **config)
    stored = {key.removeprefix('wav2vec2.'): value for key, value in load_file(folder / 'model.safetensors').items() if key.startswith('wav2vec2.')}
    backbone = load_backbone(str(folder))
    found = backbone.state_dict()
    for key, value in stored.items():
        assert torch.equal(value, found[key.replace('weight_g', 'parametrizations.weight.original0')]), key
    assert found.keys() == stored.keys() and not backbone.training


def test_loading_draws_as_many_random_numbers_as_transformers_does_so_heads_start_as_ever(tmp_path):
    folder, found = saved(tmp_path / 'it'), []
    for load in (Wav2Vec2Model.from_pretrained, load_backbone):
        torch.manual_seed(0)
        load(str(folder))
        found.append(torch.get_rng_state())
    assert torch.equal(*found)


def test_old_keys_of_a_weight_norm_half_precision_and_pickled_tensors_are_the_same_encoder(tmp_path):
    folder, waves = saved(tmp_path / 'it'), end_to_end(speech(9_000))
    old = {key.replace('parametrizations.weight.original0', 'weight_g').replace('parametrizations.weight.original1', 'weight_v'): value.half()
           for key, value in load_file(folder / 'model.safetensors').items()}
    (tmp_path / 'old').mkdir()
    shutil.copy(edit_config(folder, dtype='float16') / 'config.json', tmp_path / 'old')
    torch.save(old, tmp_path / 'old' / 'pytorch_model.bin')
    edit_weights(folder, lambda weights: {key: value.half() for key, value in weights.items()})
    one, other = load_backbone(str(folder)), load_backbone(str(tmp_path / 'old'))
    assert 'weight_g' in str(list(old)) and one.dtype == torch.float32
    assert torch.equal(Encoder(one).states(*waves), Encoder(other).states(*waves))


@pytest.mark.parametrize('lost', ['layers.1.', 'feature_projection.layer_norm.weight', 'pos_conv_embed', 'conv_layers.2.conv.weight'])
def test_a_checkpoint_without_some_of_its_tensors_names_them(lost, tmp_path):
    folder = edit_weights(saved(tmp_path / 'it'), lambda weights: {key: value for key, value in weights.items() if lost not in key})
    assert lost in refused(folder, r'\d+ missing \(')


def test_what_is_left_over_or_of_another_shape_or_no_number_is_named(tmp_path):
    first = 'feature_projection.projection.weight'
    for i, (edit, match) in enumerate([
            (lambda w: {**w, 'stranger.weight': torch.ones(2)}, "1 unexpected .'stranger.weight'"),
            (lambda w: {**w, 'encoder.layers.2.final_layer_norm.bias': torch.ones(16)}, '1 unexpected .*layers.2'),
            (lambda w: {**w, first: torch.ones(3, 8)}, r'1 of another shape .*projection.weight \(3, 8\), not \(16, 8\)'),
            (lambda w: {**w, first: w[first].int()}, '1 not of floating point .*projection.weight'),
            (lambda w: {**w, first: w[first].index_fill(0, torch.tensor([3]), float('nan'))}, '1 with NaN or infinity .*projection.weight'),
            (lambda w: {**w, first: w[first] * float('inf')}, '1 with NaN or infinity'),
            (lambda w: {**w, 'encoder.pos_conv_embed.conv.weight_g': torch.ones(1, 1, 4)}, 'is there twice'),
            (lambda w: {}, r'\d+ missing')]):
        refused(edit_weights(saved(tmp_path / str(i)), edit), match)
    refused(edit_config(saved(tmp_path / 'layers'), num_hidden_layers=3), r'16 missing .*encoder.layers.2')


@pytest.mark.parametrize('fields', [dict(hidden_size=10**9), dict(hidden_size=0), dict(hidden_size='16'), dict(hidden_size=True), dict(num_hidden_layers=0),
                                    dict(num_hidden_layers=10**6), dict(conv_stride=[0, 5, 4, 4]), dict(conv_dim=[]), dict(conv_kernel=16),
                                    dict(classifier_proj_size=10**9), dict(num_attention_heads=3), dict(hidden_act='nope'), dict(hidden_act=[]),
                                    dict(feat_extract_norm='batch'), dict(attention_dropout=2), dict(layer_norm_eps=float('nan')),
                                    dict(conv_stride=[1000, 5, 4, 4]), dict(add_adapter=True), dict(hidden_size=65_536), dict(model_type=None)])
def test_a_configuration_that_cannot_be_is_refused_before_anything_is_allocated(fields, tmp_path):
    name, = fields
    message = refused(edit_config(saved(tmp_path / 'it'), **fields), 'config.json')
    assert name in message or name in ('hidden_act', 'num_attention_heads') or 'of another shape' in message


@pytest.mark.parametrize('content', [b'', b'[]', b'{', b'\xff', b'[' * 100_000, b'{"a": 1}', b' ' * 2**25])
def test_a_configuration_that_is_none_is_refused(content, tmp_path):
    (saved(tmp_path / 'it') / 'config.json').write_bytes(content)
    refused(tmp_path / 'it', 'config.json: ')
    refused(tmp_path / 'it', 'config.json: ', encoder_digest)


@pytest.mark.parametrize('damage', [lambda data: b'', lambda data: data[:100], lambda data: data[:-1], lambda data: data + b'x',
                                    lambda data: b'\xff' * 8 + data[8:], lambda data: pickle.dumps({'a': 1})])
@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
def test_damaged_weights_are_refused(file, damage, tmp_path):
    folder = saved(tmp_path / 'it')
    if file == 'pytorch_model.bin':
        torch.save(load_file(folder / 'model.safetensors'), folder / file)
        (folder / 'model.safetensors').unlink()
        assert load_backbone(str(folder))
    data = (folder / file).read_bytes()
    damaged = damage(data)
    if file == 'pytorch_model.bin' and damaged == data + b'x': damaged = data[:5_000] + bytes([data[5_000] ^ 1]) + data[5_001:]
    (folder / file).write_bytes(damaged)
    refused(folder, f'{file}: is no whole file of weights')


class Trap:
    "Writes a file where it is unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('how', ['torch', 'legacy', 'pickle', 'inside', 'compressed'])
def test_nothing_that_came_with_a_checkpoint_runs(how, tmp_path):
    folder, trap = saved(tmp_path / 'it'), tmp_path / 'sprung'
    weights = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    if how == 'pickle': (folder / 'pytorch_model.bin').write_bytes(pickle.dumps(Trap(trap)))
    elif how == 'compressed':
        with zipfile.ZipFile(folder / 'pytorch_model.bin', 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('archive/data.pkl', b'0' * 10**6)
    else: torch.save({**weights, 'x': Trap(trap)} if how == 'inside' else Trap(trap), folder / 'pytorch_model.bin',
                     _use_new_zipfile_serialization=how != 'legacy')
    (folder / 'modeling_evil.py').write_text(f'import os; os.mkdir({str(trap)!r})')
    edit_config(folder, auto_map={'AutoModel': 'modeling_evil.Evil', 'AutoConfig': 'modeling_evil.Evil'}, transformers_weights='../x.safetensors')
    refused(folder, 'pytorch_model.bin: is no whole file of weights')
    torch.save(weights, folder / 'pytorch_model.bin')
    assert load_backbone(str(folder)) and not trap.exists()


@pytest.mark.parametrize('name', ['', ' ', '/', '..', 'a\0b', 'a/b/c', 'nosuch', '\ud800', 'a\nb', '~', '-/-', 'x' * 5_000, None, 7, Path('nano'), b'nano', ['nano']])
def test_names_that_stand_for_no_checkpoint(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for load in (load_backbone, encoder_digest):
        with pytest.raises(BadInput, match='^encoder: ') as caught: load(name)
        assert str(caught.value).isprintable()


def test_a_file_and_a_folder_without_weights_are_told_apart(tmp_path):
    (tmp_path / 'file').write_text('x')
    refused(tmp_path / 'file', 'is a file')
    (saved(tmp_path / 'it') / 'model.safetensors').unlink()
    refused(tmp_path / 'it', 'lacks weights')
    (tmp_path / 'it' / 'config.json').unlink()
    refused(tmp_path / 'it', 'lacks config.json')


def test_a_sharded_checkpoint_is_its_shards(tmp_path):
    folder = saved(tmp_path / 'one')
    load_backbone(str(folder)).save_pretrained(tmp_path / 'many', max_shard_size='8KB')
    shards = sorted((tmp_path / 'many').glob('*.safetensors'))
    assert len(shards) > 2
    one, many = (load_backbone(str(tmp_path / name)).state_dict() for name in ('one', 'many'))
    assert all(torch.equal(value, many[key]) for key, value in one.items())
    before = encoder_digest(str(tmp_path / 'many'))
    kept = shards[1].read_bytes()
    shards[1].write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert encoder_digest(str(tmp_path / 'many')) != before
    shards[1].unlink()
    for load in (load_backbone, encoder_digest): refused(tmp_path / 'many', f'lists .{shards[1].name}.*not there', load)
    for name in ('../one/model.safetensors', '/etc/passwd', 7, 'config.json'):
        (tmp_path / 'many' / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': name}}))
        refused(tmp_path / 'many', 'weight_map')


def test_a_digest_is_of_content(tmp_path, monkeypatch):
    folder = saved(tmp_path / 'it')
    digest = encoder_digest(str(folder))
    assert len(digest) == 12 and digest != encoder_digest('nano') == encoder_digest('nano')
    shutil.copytree(folder, tmp_path / 'elsewhere' / 'other')
    monkeypatch.chdir(tmp_path / 'elsewhere')
    os.symlink('other', 'link')
    (tmp_path / 'elsewhere' / 'other' / 'README.md').write_text('not of the model')
    edit_config(tmp_path / 'elsewhere' / 'other', hidden_dropout=0, transformers_version='4.1', _name_or_path='x', torch_dtype='float16', architectures=None, vocab_size=9)
    assert {encoder_digest(name) for name in ('other', './other', 'link', str(Path('other').resolve()))} == {digest}
    for i, fields in enumerate([dict(hidden_act='relu'), dict(layer_norm_eps=1e-6), dict(conv_stride=[15, 5, 4, 4]), dict(attention_dropout=.1)]):
        shutil.copytree(folder, str(i))
        assert encoder_digest(str(edit_config(Path(str(i)), **fields))) != digest
    data = bytearray((folder / 'model.safetensors').read_bytes())
    for at in (-1, len(data) // 2):
        flipped = data.copy()
        flipped[at] ^= 1
        Path('other', 'model.safetensors').write_bytes(flipped)
        assert encoder_digest('other') != digest


def test_a_kept_digest_is_found_again_and_never_stale(tmp_path, monkeypatch):
    folder, keep = saved(tmp_path / 'it'), tmp_path / 'keep' / 'digests.json'
    monkeypatch.setattr('cdser.files.SETTLED', 0)
    first, weights = encoder_digest(str(folder), keep), folder / 'model.safetensors'
    with monkeypatch.context() as patched:
        patched.setattr('cdser.files.content_digest', lambda path: pytest.fail('hashed again'))
        assert encoder_digest(str(folder), keep) == first
    stat = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert encoder_digest(str(folder), keep) != first


def test_a_checkpoint_that_changes_after_its_digest_is_noticed(tmp_path):
    folder = saved(tmp_path / 'it')
    digest = encoder_digest(str(folder))
    assert load_backbone(str(folder), expected=digest) and load_backbone('nano', expected=encoder_digest('nano'))
    edit_weights(folder, lambda weights: {**weights, 'masked_spec_embed': weights['masked_spec_embed'] + 1})
    refused(folder, f'was {digest}', lambda name: load_backbone(name, expected=digest))
    refused('nano', 'start again', lambda name: load_backbone(name, expected=digest))


def test_a_vector_for_hidden_frames_is_never_drawn_at_random(tmp_path):
    folder = edit_weights(saved(tmp_path / 'it'), lambda weights: {key: value for key, value in weights.items() if key != 'masked_spec_embed'})
    assert not hasattr(load_backbone(str(folder)), 'masked_spec_embed')
    assert not hasattr(load_backbone(str(edit_config(saved(tmp_path / 'off'), mask_time_prob=0., mask_feature_prob=0.))), 'masked_spec_embed')
    model = build(Experiment('a', 'b', encoder=str(folder)))
    assert set(to_transformers(model).wav2vec2.state_dict()) == set(load_file(folder / 'model.safetensors'))


@pytest.fixture
def cached(tmp_path, monkeypatch):
    "A hub that cannot be reached, and its cache with one checkpoint."
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: (_ for _ in ()).throw(socket.gaierror(-2, 'no network in tests')))
    repository = tmp_path / 'hub' / 'models--some--encoder'
    saved(repository / 'snapshots' / ('0' * 40))
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('0' * 40)
    return repository / 'snapshots' / ('0' * 40)


def test_a_cached_hub_id_is_its_snapshot_and_needs_no_network(cached):
    assert encoder_digest('some/encoder') == encoder_digest(str(cached))
    assert load_backbone('some/encoder', expected=encoder_digest(str(cached)))
    torch.save(load_file(cached / 'model.safetensors'), cached / 'pytorch_model.bin')
    (cached / 'model.safetensors').unlink()
    assert load_backbone('some/encoder') and encoder_digest('some/encoder') == encoder_digest(str(cached))
    (cached / 'pytorch_model.bin').unlink()
    for name in ('some/encoder', 'some/other'):
        for load in (load_backbone, encoder_digest): refused(name, 'encoder: .*go online', load)


@pytest.mark.parametrize('length', [1, 479_999, 480_000, 480_001, 960_001, 57_600_000])
def test_windows_are_equal_and_cover_a_recording(length):
    found = windows(length)
    sizes = [stop - start for start, stop in found]
    assert found[0][0] == 0 and found[-1][1] == length and all(a[1] == b[0] for a, b in zip(found, found[1:]))
    assert max(sizes) <= WINDOW * SAMPLE_RATE and max(sizes) - min(sizes) <= 1 and len(found) == -(-length // 480_000)


def test_long_recordings_are_means_of_windows_and_short_ones_stay(monkeypatch):
    monkeypatch.setattr('cdser.encoder.WINDOW', 1.)
    torch.manual_seed(0)
    encoder = Encoder(Wav2Vec2Model(Wav2Vec2Config(**OVERLAPPING))).eval()
    rows = speech(9_000, 16_001, 16_000, 83_333)
    with torch.no_grad():
        found = long_states(encoder, *end_to_end(rows))
        short = encoder.states(*end_to_end([rows[0], rows[2]]))
        assert torch.equal(found[[0, 2]], short) and torch.equal(long_states(encoder, *end_to_end([rows[0], rows[2]])), short)
        for i in (1, 3):
            parts = [rows[i][start:stop] for start, stop in windows(len(rows[i]))]
            frames = frame_lengths(encoder.backbone.config, torch.tensor([len(part) for part in parts]))
            heard = torch.cat([encoder.states(*end_to_end([part])) for part in parts])
            assert len(parts) > 1 and found.dtype == torch.float32 and torch.allclose(found[i], (heard * frames[:, None, None]).sum(0) / frames.sum(), atol=1e-5)


def test_mixed_precision_does_not_round_the_mean_of_windows(monkeypatch):
    monkeypatch.setattr('cdser.encoder.WINDOW', 1.)
    encoder, (row,) = Encoder(load_backbone('nano')).eval(), speech(64_000)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        literal = torch.cat([encoder.states(part, torch.tensor([len(part)])) for part in row.split(16_000)]).mean(0)
        assert torch.allclose(long_states(encoder, row, torch.tensor([64_000]))[0], literal, atol=2e-2)
        monkeypatch.setattr(encoder, 'states', lambda waveforms, lengths: literal.expand(len(lengths), -1, -1))
        assert torch.allclose(long_states(encoder, row, torch.tensor([64_000]))[0], literal, atol=1e-6)


def test_the_memory_of_a_long_recording_does_not_grow_with_it(monkeypatch):
    encoder, heard = Encoder(load_backbone('nano')).eval(), []
    states = encoder.states
    monkeypatch.setattr(encoder, 'states', lambda waveforms, lengths: heard.append(int(lengths.sum())) or states(waveforms, lengths))
    with torch.no_grad(): long_states(encoder, torch.zeros(300 * SAMPLE_RATE), torch.tensor([300 * SAMPLE_RATE]))
    assert sum(heard) == 300 * SAMPLE_RATE and max(heard) <= 4 * WINDOW * SAMPLE_RATE
