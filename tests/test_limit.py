"What a step computes and moves: against PyTorch's own count, by hand for a tiny model, and through the library's own step."
import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2Config, Wav2Vec2Model

from cdser.batches import Utterances
from cdser.config import METHODS, SAMPLE_RATE, Experiment, main_experiments
from cdser.encoder import NANO, frame_lengths
from cdser.limit import PARTS, front_end, grid_hours, least_seconds, matrix_peak, memory_peak, operations, padding_factor, step_cost, utilisation
from cdser.model import build
from cdser.train import make_optimiser, make_views, step

PLAIN = dict(apply_spec_augment=False, layerdrop=0.)
QUIET = dict(hidden_dropout=0., attention_dropout=0., activation_dropout=0., feat_proj_dropout=0., final_dropout=0.)
SMALL = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160, conv_dim=(32,) * 7,
             num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8, classifier_proj_size=16, **QUIET)
CONFIGS = {'nano': NANO, 'group': SMALL, 'layer': dict(SMALL, feat_extract_norm='layer', do_stable_layer_norm=True, conv_bias=True),
           'base': {}, 'odd': dict(SMALL, num_conv_pos_embeddings=15, conv_dim=(16, 24, 32), conv_kernel=(9, 4, 3), conv_stride=(8, 4, 2))}
FROZEN = {'nothing': (), 'front end': PARTS[:1], 'encoder': PARTS[:-1]}


def convolution_backward(grad, x, weight, *args, out_shape):
    "The counter takes a grouped convolution's weights for those of one group."
    return 2 * grad[0] * grad[2] * math.prod(weight) * sum(args[-1][:2])


def count(work) -> int:
    "FLOPs as PyTorch counts them; fused attention would compute its scores twice."
    fix = {torch.ops.aten.convolution_backward: convolution_backward}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=fix) as counter: work()
    return counter.get_total_flops()


def encoder_flops(config, seconds, frozen) -> float:
    costs = step_cost(config, seconds, frozen=frozen)
    return costs.flops[costs.part != 'heads'].sum()


@pytest.mark.parametrize('seconds', [.9, 4.5, 15.])
@pytest.mark.parametrize('name', CONFIGS)
def test_forward_and_training_flops_are_those_that_pytorch_counts(name, seconds):
    config = Wav2Vec2Config(**CONFIGS[name], **PLAIN)
    with torch.device('meta'): model = Wav2Vec2Model(config).eval()
    waveforms, batch = torch.empty(3, round(seconds * SAMPLE_RATE), device='meta'), [seconds] * 3
    forward = lambda: model(waveforms).last_hidden_state
    assert encoder_flops(config, batch, PARTS) == pytest.approx(count(forward), rel=.01)
    assert encoder_flops(config, batch, ()) == pytest.approx(count(lambda: forward().sum().backward()), rel=.01)
    model.freeze_feature_encoder()
    assert encoder_flops(config, batch, PARTS[:1]) == pytest.approx(count(lambda: forward().sum().backward()), rel=.01)


class Store:
    "Noise in the place of decoded recordings."
    def __init__(self, *seconds):
        self.lengths = np.array([round(s * SAMPLE_RATE) for s in seconds])
    def __getitem__(self, i): return np.random.default_rng(i).integers(-2**12, 2**12, self.lengths[i]).astype(np.int16)


@pytest.mark.parametrize('encoder', ['nano', 'group'])
@pytest.mark.parametrize('frozen', FROZEN)
def test_the_librarys_step_computes_what_is_counted_and_no_padding(tmp_path, encoder, frozen):
    if encoder != 'nano': Wav2Vec2Model(Wav2Vec2Config(**CONFIGS[encoder])).save_pretrained(tmp_path)
    e = Experiment('a', 'b', weights=METHODS['emotion_only'], views=1, encoder='nano' if encoder == 'nano' else str(tmp_path),
                   freeze_front_end=frozen == 'front end', freeze_encoder=frozen == 'encoder')
    model, seconds = build(e).train(), [6.1, 7.3, 2.2, 9.8]
    batch = Utterances(Store(*seconds), np.arange(4), np.arange(4)).collate(np.arange(4))
    views, optimiser = make_views(batch, e, torch.Generator().manual_seed(0)), make_optimiser(model, e)
    counted = step_cost(model.encoder.backbone.config, seconds, frozen=FROZEN[frozen]).flops.sum()
    done = count(lambda: step(model, optimiser, views, e))
    assert counted <= done * 1.01 and done < 1.04 * counted # blank frames between utterances, and a waveform's gradient


def test_frames_and_weights_are_the_models():
    for fields in CONFIGS.values():
        config = Wav2Vec2Config(**fields, **PLAIN)
        samples = np.array([16_000, 33_333, 240_000])
        assert (front_end(config, samples)[1] == frame_lengths(config, torch.tensor(samples)).numpy()).all()
        with torch.device('meta'): real = sum(p.numel() for p in Wav2Vec2Model(config).parameters())
        ops = operations(config, [1.])
        assert .95 * real < ops.weights[ops.part != 'heads'].sum() < real # without biases and norms


def test_views_add_up_and_only_scores_depend_on_how_audio_is_cut():
    config = Wav2Vec2Config(**NANO)
    one, three = (step_cost(config, [4., 8.], views=views).flops.sum() for views in (1, 3))
    assert three == pytest.approx(3 * one)
    step = np.prod(config.conv_stride) / SAMPLE_RATE # of a frame, so that no samples are lost at cuts
    short, long = (step_cost(config, seconds).groupby('part').flops.sum() for seconds in ([step * 50] * 4, [step * 200]))
    assert long['attention scores'] == pytest.approx(4 * short['attention scores'])
    assert long.drop(['attention scores', 'heads']).to_numpy() == pytest.approx(short.drop(['attention scores', 'heads']).to_numpy())


def test_what_is_frozen_costs_its_forward_pass_alone():
    config = Wav2Vec2Config(**SMALL)
    by_part = {name: step_cost(config, [4.], frozen=parts).groupby('part')[['flops', 'bytes']].sum()
               for name, parts in {**FROZEN, 'all': PARTS}.items()}
    for name, parts in FROZEN.items():
        for part in PARTS[:-1]:
            factor = by_part[name].loc[part] / by_part['all'].loc[part]
            assert (factor == 1).all() if part in parts else (factor > 2).all()
    assert by_part['all'].bytes['optimiser'] == 0
    assert by_part['nothing'].bytes['optimiser'] == 40 * operations(config, [4.]).weights.sum()


def test_a_tiny_model_by_hand():
    "Ten frames from two patches of 4 and 2, width 6, one layer: every number of every operation."
    config = Wav2Vec2Config(conv_dim=(5, 3), conv_kernel=(4, 2), conv_stride=(4, 2), num_feat_extract_layers=2, feat_extract_norm='layer',
                            hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, classifier_proj_size=4,
                            num_conv_pos_embeddings=2, num_conv_pos_embedding_groups=3)
    ops = operations(config, [83 / SAMPLE_RATE]) # 83 samples, 20 frames of 5, 10 frames of 3
    linear = lambda inputs, outputs: 10 * inputs + inputs * outputs + 10 * outputs
    forward = {'front end': (2 * 20 * 4 * 5 + 2 * 10 * 2 * 5 * 3, 83 + 20 + 100 + 100 + 30 + 30 + 2 * 2 * 100 + 2 * 2 * 30),
               'projection': (2 * 10 * 3 * 6, 2 * 30 + linear(3, 6)),
               'position': (2 * 10 * 6 * 2 * 2, 60 + 24 + 60 + 2 * 60 + 3 * 60 + 2 * 60 + 60),
               'attention projections': (4 * 2 * 10 * 36, 4 * linear(6, 6) + 5 * 60),
               'attention scores': (2 * 2 * 100 * 6, 4 * 60),
               'feed-forward': (2 * 2 * 10 * 48, linear(6, 8) + 2 * 80 + linear(8, 6) + 5 * 60 + 60)}
    for part, (flops, moved) in forward.items():
        found = ops[ops.part == part]
        assert (found.flops.sum(), found.moved.sum()) == (flops, moved), part
    costs = step_cost(config, [83 / SAMPLE_RATE], width=2).groupby('part').bytes.sum()
    assert costs['front end'] == 2 * (2 * 203 + 3 * 160 + 2.5 * 520)
    assert costs['attention scores'] == 2 * 3 * 240
    assert costs['feed-forward'] == 2 * (3 * 2 * linear(6, 8) + 2.5 * (160 + 120) + 2 * 180 + 5 * 60)


@pytest.mark.parametrize('name', CONFIGS)
def test_more_audio_views_width_and_training_move_more(name):
    config = Wav2Vec2Config(**CONFIGS[name])
    moved = lambda seconds, **how: step_cost(config, seconds, **how).bytes.sum()
    assert moved([2.]) < moved([4.]) < moved([4., 1.])
    assert moved([4.]) < moved([4.], views=2) < moved([4.], views=3)
    assert moved([4.], width=2) < moved([4.], width=4) < 2 * moved([4.], width=2) # the optimiser stays in float32
    assert moved([4.], frozen=PARTS) < moved([4.], frozen=PARTS[:-1]) < moved([4.], frozen=PARTS[:1]) < moved([4.])
    per_second = [moved(np.full(n, 4.)) / n for n in (1, 4, 16)]
    assert per_second == sorted(per_second, reverse=True) # weights and optimiser are shared


def test_the_least_time_is_the_slower_of_arithmetic_and_memory():
    costs = step_cost(Wav2Vec2Config(**NANO), [4.])
    assert least_seconds(costs, 1e12, math.inf).sum() == pytest.approx(costs.flops.sum() / 1e12)
    assert least_seconds(costs, math.inf, 1e9).sum() == pytest.approx(costs.bytes.sum() / 1e9)
    both = least_seconds(costs, 1e12, 1e11)
    assert (both >= costs.flops / 1e12).all() and (both >= costs.bytes / 1e11).all()


def test_utilisation_of_a_known_case():
    assert utilisation(throughput=250., flops=2e9, peak=1e12) == .5
    assert utilisation(0., 2e9, 1e12) == 0


def test_peaks_are_rates():
    assert 1e8 < matrix_peak(repeats=1) < 1e16 and 1e8 < memory_peak(repeats=1) < 1e14


def test_padding_of_known_lengths():
    assert padding_factor(np.full(64, 2.), 32) == pytest.approx(1)
    assert padding_factor(np.array([1., 3.]), 2) == pytest.approx(6 / 4)


def test_hours_of_a_grid_by_hand():
    plans = {'b': dict(protocol='leave_one_session_out', folds=5)}
    experiments = main_experiments([('a', 'b')], 2, plans, epochs=10, validation=.25)
    per_run = 10 * max(.75 * 2, .75 * .8 * 8) # hours of audio on each corpus
    assert grid_hours(experiments, {'a': 2., 'b': 8.}, throughput=4.) == pytest.approx(2 * (1 + 2 + 2 + 1) * per_run / 4)
