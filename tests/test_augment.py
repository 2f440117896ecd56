"Every augmentation changes what it should, by as much as was drawn, whatever the padding and the neighbours."
import math

import pytest
import torch
import torchaudio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cdser.augment import AUGMENT, chunks, convolve, draw_parameters, pad, phase_vocoder, random_view, time_warp
from cdser.config import AUGMENTATIONS, SAMPLE_RATE

EACH_NAME = pytest.mark.parametrize('name', sorted({*AUGMENTATIONS, *AUGMENT}))
SIGNALS = {'noise': lambda t: .1 * torch.randn(len(t), generator=seeded()),
           'silence': torch.zeros_like,
           'loud': lambda t: torch.sin(t * .05).sign(),
           'faint': lambda t: 1e-7 * torch.sin(t),
           'click': lambda t: (t == len(t) // 2).float(),
           'tone': lambda t: .5 * torch.sin(t * .1)}
ROWS = st.lists(st.tuples(st.sampled_from([*SIGNALS]), st.integers(400, 6000)), min_size=1, max_size=6)
MANY = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signals(rows) -> list[torch.Tensor]:
    return [SIGNALS[kind](torch.arange(float(n))) for kind, n in rows]


def lengths_of(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.tensor([len(row) for row in rows])


def augmented(name: str, x: torch.Tensor, lengths=None, seed: int = 0): # waveforms, lengths, parameters
    lengths = torch.full((len(x),), x.shape[1]) if lengths is None else lengths
    drawn = draw_parameters(name, len(x), seeded(seed))
    return *AUGMENT[name].apply(x, lengths, **drawn), drawn


def clicks(rows: int, samples: int, at: int) -> torch.Tensor:
    x = torch.zeros(rows, samples)
    x[:, at] = 1
    return x


def power(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1)


# ---- what holds for all of them

@EACH_NAME
@MANY
@given(rows=ROWS, more=st.integers(0, 3000), seed=st.integers(0, 999))
@example(rows=[('tone', 1), ('noise', 100), ('tone', 20_000)], more=500, seed=0)
def test_padding_and_neighbours_do_not_matter(name, rows, more, seed):
    rows = signals(rows)
    lengths, clean = lengths_of(rows), pad([*rows, torch.zeros(max(map(len, rows)) + more)])[:-1]
    beyond = torch.arange(clean.shape[1]) >= lengths[:, None]
    waveforms, changed_lengths, drawn = augmented(name, clean, lengths, seed)
    dirty, dirty_lengths, _ = augmented(name, clean.masked_fill(beyond, math.nan), lengths, seed)
    assert torch.equal(waveforms, dirty) and torch.equal(changed_lengths, dirty_lengths)
    assert waveforms.shape == (len(rows), changed_lengths.max()) and waveforms.dtype == torch.float32
    assert (name == 'speed') or torch.equal(changed_lengths, lengths)
    for i, x in enumerate(rows):
        n = changed_lengths[i]
        assert waveforms[i].isfinite().all() and not waveforms[i, n:].any()
        parameters = {key: values[i:i + 1] for key, values in drawn.items()}
        alone, _ = AUGMENT[name].apply(x[None], lengths[i:i + 1], **parameters)
        assert torch.allclose(waveforms[i, :n], alone[0], atol=1e-4 * max(1, float(x.abs().max())))


@MANY
@given(rows=ROWS, names=st.lists(st.sampled_from(AUGMENTATIONS), min_size=1, unique=True), seed=st.integers(0, 999),
       changed=st.integers(0, 5), into=st.sampled_from([*SIGNALS]))
@example(rows=[('tone', 30 * SAMPLE_RATE), ('noise', 400), ('loud', 401)], names=AUGMENTATIONS, seed=1,
         changed=1, into='loud')
def test_a_view_changes_each_row_by_itself_and_leaves_its_input_alone(rows, names, seed, changed, into):
    rows = signals(rows)
    packed, lengths, at = torch.cat(rows), lengths_of(rows), changed % len(rows)
    view = random_view(packed, lengths, names, seeded(seed))
    assert torch.equal(packed, torch.cat(rows)) and len(view.waveforms) == view.lengths.sum()
    applied = [AUGMENTATIONS[label - 1] for label in view.augmentation_labels]
    assert set(applied) <= set(names)
    assert all(n == m or name == 'speed' for n, m, name in zip(lengths, view.lengths, applied))
    rows[at] = SIGNALS[into](torch.arange(float(len(rows[at]))))
    other = random_view(torch.cat(rows), lengths, names, seeded(seed))
    assert torch.equal(other.augmentation_labels, view.augmentation_labels) and torch.equal(other.lengths, view.lengths)
    pairs = zip(view.waveforms.split(view.lengths.tolist()), other.waveforms.split(view.lengths.tolist()))
    assert all(torch.equal(one, two) for i, (one, two) in enumerate(pairs) if i != at)


@EACH_NAME
def test_an_augmentation_can_be_heard(name):
    x = SIGNALS['noise'](torch.arange(20_000.)).repeat(4, 1)
    waveforms, _, _ = augmented(name, x)
    same = min(20_000, waveforms.shape[1])
    assert (power(waveforms[:, :same] - x[:, :same]) / power(x[:, :same])).min() > .004 # noise at 20 dB: .01


@pytest.mark.parametrize('name', ['reverberation', 'pitch', 'filtering'])
def test_level_is_kept(name):
    x = torch.stack(signals([('noise', 20_000), ('loud', 20_000)]))
    assert torch.allclose(power(augmented(name, x)[0]), power(x), rtol=1e-3)


# ---- each of them

def test_blockwise_convolution_is_convolution():
    x, kernels = torch.randn(3, 500, generator=seeded()), torch.randn(3, 40, generator=seeded(1))
    direct = torchaudio.functional.convolve(x, kernels)[:, :500]
    for block in (8, 40, 100, 1000):
        assert torch.allclose(convolve(x, kernels, block), direct, atol=1e-4)


def test_noise_falls_as_steeply_as_drawn():
    x = torch.full((16, 64_000), .1)
    waveforms, _, drawn = augmented('noise', x)
    frames = torch.stft(waveforms - x, 1024, window=torch.hann_window(1024), return_complex=True)
    spectrum = frames.abs().square().mean(2)
    low, high = (spectrum[:, k:2 * k].mean(1).log2() for k in (16, 128)) # octaves, from 250 Hz and from 2 kHz
    assert torch.allclose((high - low) / 3, -drawn['exponent'], atol=.25)


@pytest.mark.parametrize('name', ['reverberation', 'filtering'])
def test_nothing_is_shifted_in_time(name):
    waveforms, _, drawn = augmented(name, clicks(16, 16_000, at=3000))
    assert (waveforms.abs().argmax(1) == 3000).all()
    if name == 'reverberation': # the direct sound has its share of the energy
        assert torch.allclose(waveforms[:, 3000].square() / power(waveforms), 1 - drawn['wet'], atol=.01)


def test_filtering_limits_the_band():
    waveforms, _, drawn = augmented('filtering', clicks(16, 16_000, at=5000))
    response = torch.fft.rfft(waveforms).abs() # one bin per hertz
    passed = response[:, 500:2000].mean(1)
    low = response[torch.arange(16), (drawn['high_pass'] / 4).long()] / passed
    high = response[:, 7900] / passed
    assert low[drawn['high_pass'] > 200].max() < .2 and high[drawn['low_pass'] < 4000].max() < .2


def test_a_tone_is_read_exactly_and_does_not_drift():
    samples, factor = 15 * SAMPLE_RATE, torch.tensor([1.1037])
    tone = torch.sin(torch.arange(samples, dtype=torch.float64) * .3)
    at = torch.arange(int(samples / 1.1037) - 20, dtype=torch.float64) * factor.double()
    assert (time_warp(tone.float()[None], factor, len(at)) - torch.sin(at * .3))[0, 20:].abs().max() < .01


def test_reading_faster_folds_nothing_back():
    high = torch.sin(2 * math.pi * 7800 / SAMPLE_RATE * torch.arange(8000.))[None] # above the new limit of 6780 Hz
    assert time_warp(high, torch.tensor([1.18]), 6000)[:, 20:].square().mean() < .25 * .5


@pytest.mark.parametrize('rate', [.84, 1., 1.19])
def test_phase_vocoder_equals_torchaudio(rate):
    noise = torch.randn(2, 6000, dtype=torch.float64, generator=seeded())
    spectra = torch.stft(noise, 512, 128, window=torch.hann_window(512).double(), return_complex=True)
    advance = torch.pi * 128 * torch.linspace(0, 1, 257).double()[:, None]
    theirs = torchaudio.functional.phase_vocoder(spectra, rate, advance)
    ours = phase_vocoder(spectra, torch.full((2,), rate, dtype=torch.float64), theirs.shape[-1])
    assert torch.allclose(ours, theirs, atol=1e-8)


def test_pitch_does_not_move_the_time():
    bursts = torch.zeros(12, 24_000)
    for at in (4000, 16_000):
        bursts[:, at:at + 2000] = torch.sin(.4 * torch.arange(2000.)) * torch.hann_window(2000)
    for half in augmented('pitch', bursts)[0].square().split(12_000, 1): # each burst's middle is at sample 5000 of it
        assert ((half * torch.arange(12_000.)).sum(1) / half.sum(1) - 5000).abs().max() < 160 # 10 ms


def test_masking_silences_the_drawn_share_of_the_real_length():
    lengths = torch.tensor([20_000, 12_000, 5000] * 8)
    waveforms, _, drawn = augmented('masking', torch.ones(24, 20_000), lengths)
    for row, n, share, spans in zip(waveforms, lengths, drawn['share'], drawn['spans']):
        silent = (row[:n] == 0).int()
        assert silent.sum() / n == pytest.approx(share.item(), abs=1e-3) and share <= .2
        assert silent.diff(prepend=torch.zeros(1, dtype=torch.int32)).clamp(min=0).sum() == spans


# ---- a view

@EACH_NAME
def test_a_view_is_the_named_augmentation_however_it_is_chunked(name):
    lengths = torch.cat([torch.randint(800, 20_000, (20,), generator=seeded()), torch.tensor([20_000, 1])])
    rows = signals([('noise', n) for n in lengths.tolist()])
    generator = seeded(3)
    torch.randint(1, (22,), generator=generator) # the choice of an augmentation
    expected, expected_lengths = AUGMENT[name].apply(pad(rows), lengths, **draw_parameters(name, 22, generator))
    for limits in ((0., 1), (.05, 30_000), (.3, math.inf), (1., math.inf)):
        view = random_view(torch.cat(rows), lengths, (name,), seeded(3), limits)
        assert torch.equal(view.lengths, expected_lengths)
        assert view.augmentation_labels.eq(1 + AUGMENTATIONS.index(name)).all()
        assert torch.allclose(pad(view.waveforms.split(view.lengths.tolist())), expected, atol=1e-5)


@pytest.mark.parametrize('slack, most', [(0., 1), (.05, 100_000), (.3, math.inf), (1., math.inf)])
def test_chunks_hold_every_row_once_and_little_padding(slack, most):
    lengths = torch.randint(1, 240_000, (200,), generator=seeded()).tolist() + [16_000] * 20
    groups = chunks(lengths, slack, most)
    assert sorted(i for group in groups for i in group) == list(range(220))
    for sizes in ([lengths[i] for i in group] for group in groups):
        assert sum(sizes) >= (1 - slack) * max(sizes) * len(sizes) and (len(sizes) == 1 or sum(sizes) <= most)
    assert chunks([100, 50, 98, 97, 49], .05, 1000) == [[0, 2, 3], [1, 4]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('names', [AUGMENTATIONS, *((name,) for name in AUGMENTATIONS)])
def test_a_gpu_draws_the_same_and_does_not_wait(names):
    lengths = torch.tensor([20_000, 9000, 15_000, 3000, 8000, 12_000])
    packed = torch.cat(signals([('noise', n) for n in lengths.tolist()]))
    on_gpu = packed.cuda()
    random_view(on_gpu, lengths, names, seeded()) # warm up: Fourier plans
    torch.cuda.set_sync_debug_mode('error')
    try:
        view = random_view(on_gpu, lengths, names, seeded())
    finally:
        torch.cuda.set_sync_debug_mode('default')
    expected = random_view(packed, lengths, names, seeded())
    assert torch.equal(view.lengths, expected.lengths)
    assert torch.equal(view.augmentation_labels, expected.augmentation_labels)
    if not {'noise', 'reverberation'} & set(names): # their random numbers differ
        assert torch.allclose(view.waveforms.cpu(), expected.waveforms, atol=2e-3)
