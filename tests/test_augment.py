"Every augmentation does what it says, by as much as it drew, whatever the padding and whoever the neighbours."
import math

import pytest
import torch
import torch.nn.functional as F
import torchaudio

from cdser.augment import AUGMENT, chunks, phase_vocoder, random_view, resample
from cdser.config import AUGMENTATIONS, SAMPLE_RATE

NAMES = pytest.mark.parametrize('name', AUGMENTATIONS)
F0 = 140.


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def voices(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    "Harmonics under three formants, in syllables; a row for each length."
    t = torch.arange(max(lengths), dtype=torch.float64) / SAMPLE_RATE
    harmonics = torch.arange(1, 50)[:, None] * F0
    gain = sum(1 / (1 + ((harmonics - f) / 120)**2) for f in (700, 1200, 2600)) + .01
    voice = .1 * (gain * torch.sin(2 * math.pi * harmonics * t)).sum(0) * (.2 + torch.sin(4 * math.pi * t)**2)
    lengths = torch.tensor(lengths)
    return (voice * (torch.arange(len(t)) < lengths[:, None])).float(), lengths


def fundamental(x: torch.Tensor, low: int = 100, high: int = 250) -> float: # Hz
    r = torch.fft.irfft(torch.fft.rfft(x.double(), 2 * len(x)).abs().square())
    lags = torch.arange(SAMPLE_RATE // high, SAMPLE_RATE // low)
    k = int(lags[r[lags].argmax()])
    a, b, c = r[k - 1:k + 2].tolist()
    return SAMPLE_RATE / (k + .5 * (a - c) / (a - 2 * b + c))


def clicks(rows: int, samples: int, at: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.zeros(rows, samples)
    x[:, at] = 1
    return x, torch.full((rows,), samples)


def test_every_name_has_an_augmentation():
    assert tuple(AUGMENT) == AUGMENTATIONS


@NAMES
def test_a_seed_decides(name):
    x, lengths = voices(9000, 16_000)
    one, two, other = (AUGMENT[name](x, lengths, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one.waveforms, two.waveforms) and torch.equal(one.lengths, two.lengths)
    assert all(torch.equal(one.drawn[key], two.drawn[key]) for key in one.drawn)
    assert one.waveforms.shape != other.waveforms.shape or not torch.equal(one.waveforms, other.waveforms)


@NAMES
def test_contract_of_the_result(name):
    x, lengths = voices(1600, 20_000, 7777)
    y = AUGMENT[name](F.pad(x, (0, 500)), lengths, seeded())
    assert y.waveforms.dtype == torch.float32 and y.waveforms.isfinite().all()
    assert y.waveforms.shape == (3, y.lengths.max()) and y.lengths.dtype == torch.int64
    assert all(v.shape == (3,) and v.device.type == 'cpu' for v in y.drawn.values())
    assert all(row[n:].abs().sum() == 0 for row, n in zip(y.waveforms, y.lengths))
    if name != 'speed': assert torch.equal(y.lengths, lengths)


@NAMES
@pytest.mark.parametrize('more', [1, 4001, 60_000])
def test_padding_changes_nothing_real(name, more):
    x, lengths = voices(20_000, 9000, 1600)
    once, padded = AUGMENT[name](x, lengths, seeded()), AUGMENT[name](F.pad(x, (0, more)), lengths, seeded())
    assert torch.equal(once.lengths, padded.lengths)
    assert torch.allclose(once.waveforms, padded.waveforms, atol=1e-5)


@NAMES
def test_what_lies_in_the_padding_is_never_heard(name):
    x, lengths = voices(20_000, 9000)
    dirty = x.clone()
    dirty[1, 9000:] = 1.
    assert torch.equal(AUGMENT[name](x, lengths, seeded()).waveforms, AUGMENT[name](dirty, lengths, seeded()).waveforms)


@NAMES
def test_a_row_does_not_depend_on_its_neighbours(name):
    "Another first row, longer than before, draws the same parameters; the second must stay as it is."
    x, lengths = voices(9000, 12_000)
    longer, more = voices(40_000, 12_000)
    longer[0] = longer[0].flip(0)
    longer[1, :12_000] = x[1]
    a, b = AUGMENT[name](x, lengths, seeded()), AUGMENT[name](longer, more, seeded())
    n = a.lengths[1]
    assert b.lengths[1] == n and torch.allclose(a.waveforms[1, :n], b.waveforms[1, :n], atol=1e-5)


@NAMES
@pytest.mark.parametrize('samples', [1, 100, 1600])
def test_very_short_and_alone(name, samples):
    x, lengths = voices(samples)
    y = AUGMENT[name](x + .1, lengths, seeded())
    assert y.waveforms.shape == (1, y.lengths.item()) and y.waveforms.isfinite().all()


@NAMES
def test_silence_stays_finite(name):
    y = AUGMENT[name](torch.zeros(2, 4000), torch.tensor([4000, 1600]), seeded())
    assert y.waveforms.isfinite().all() and y.waveforms.abs().max() < 1e-4


@NAMES
def test_differs_from_the_original(name):
    x, lengths = voices(20_000, 20_000, 20_000, 20_000)
    y = AUGMENT[name](x, lengths, seeded())
    same = min(20_000, y.waveforms.shape[1])
    difference = (y.waveforms[:, :same] - x[:, :same]).square().sum(1) / x.square().sum(1)
    assert difference.min() > .004 # the weakest is noise at 20 dB, with a share of .01


@pytest.mark.parametrize('name', ['reverberation', 'pitch', 'filtering'])
def test_level_is_kept(name):
    x, lengths = voices(20_000, 9000)
    power = lambda waveforms: waveforms.square().sum(1)
    assert torch.allclose(power(AUGMENT[name](x, lengths, seeded()).waveforms), power(x), rtol=1e-3)


def test_noise_has_the_drawn_ratio_over_real_samples():
    x, lengths = voices(20_000, 9000, 1600)
    y = AUGMENT['noise'](F.pad(x, (0, 50_000)), lengths, seeded())
    noise = y.waveforms - x
    measured = 10 * (x.square().sum(1) / noise.square().sum(1)).log10()
    assert torch.allclose(measured, y.drawn['snr_db'], atol=.1)
    assert (y.drawn['snr_db'] >= 5).all() and (y.drawn['snr_db'] <= 20).all()


def test_noise_falls_as_steeply_as_drawn():
    x, lengths = torch.ones(16, 64_000) * .1, torch.full((16,), 64_000)
    y = AUGMENT['noise'](x, lengths, seeded())
    power = torch.stft(y.waveforms - x, 1024, window=torch.hann_window(1024), return_complex=True).abs().square().mean(2)
    octave = lambda low: power[:, low:2 * low].mean(1).log2() # bins of 15.6 Hz
    slope = (octave(128) - octave(16)) / 3                    # powers of two an octave
    assert torch.allclose(slope, -y.drawn['exponent'], atol=.25)


def test_pitch_moves_the_fundamental_and_not_the_time():
    x, lengths = voices(*[24_000] * 12)
    y = AUGMENT['pitch'](x, lengths, seeded())
    for row, semitones in zip(y.waveforms, y.drawn['semitones']):
        assert 1 <= abs(semitones) <= 3
        assert 12 * math.log2(fundamental(row) / F0) == pytest.approx(semitones.item(), abs=.1)
    bursts = torch.zeros(12, 24_000)
    for at in (4000, 16_000): bursts[:, at:at + 2000] = torch.sin(.4 * torch.arange(2000.)) * torch.hann_window(2000)
    late = AUGMENT['pitch'](bursts, lengths, seeded()).waveforms.square()
    at = torch.arange(12_000.)
    for half in late.split(12_000, 1): # the middle of a burst lies 5000 samples into its half
        centre = (half * at).sum(1) / half.sum(1)
        assert (centre - 5000).abs().max() < 160 # 10 ms


@pytest.mark.parametrize('rate', [.84, .93, 1., 1.07, 1.19])
def test_phase_vocoder_equals_torchaudio(rate):
    noise = torch.randn(2, 6000, dtype=torch.float64, generator=seeded())
    spectra = torch.stft(noise, 512, 128, window=torch.hann_window(512).double(), return_complex=True)
    theirs = torchaudio.functional.phase_vocoder(spectra, rate, torch.pi * 128 * torch.linspace(0, 1, 257).double()[:, None])
    ours = phase_vocoder(spectra, torch.full((2,), rate, dtype=torch.float64), theirs.shape[-1])
    assert torch.allclose(ours, theirs, atol=1e-8)


def test_phase_vocoder_takes_a_rate_for_each_row():
    spectra = torch.randn(3, 65, 40, dtype=torch.complex64, generator=seeded())
    rates = torch.tensor([.9, 1., 1.1])
    together = phase_vocoder(spectra, rates, 36)
    alone = torch.cat([phase_vocoder(s[None], r[None], 36) for s, r in zip(spectra, rates)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_speed_changes_length_and_fundamental_by_its_factor():
    x, lengths = voices(*[24_000, 16_000] * 6)
    y = AUGMENT['speed'](x, lengths, seeded())
    for row, n, before, speed in zip(y.waveforms, y.lengths, lengths, y.drawn['speed'].double()):
        assert .84 < speed < 1.19 and abs(math.log(speed)) > math.log(1.04)
        assert abs(n - before / speed) <= 1
        assert fundamental(row[:n]) / F0 == pytest.approx(speed.item(), rel=.005)


def test_resampling_a_long_row_does_not_drift():
    "Positions are exact: after fifteen seconds the last sample is read where it should be."
    samples, speed = 15 * SAMPLE_RATE, torch.tensor([1.1037])
    x = torch.sin(torch.arange(samples + 0., dtype=torch.float64) * .3).float()[None]
    at = torch.arange(int(samples / 1.1037) - 20, dtype=torch.float64) * speed.double()
    assert (resample(x, speed, len(at)) - torch.sin(at * .3))[0, 20:].abs().max() < .01


def test_reverberation_keeps_the_onset_and_has_the_drawn_decay():
    x, lengths = clicks(8, 24_000, at=3000)
    y = AUGMENT['reverberation'](x, lengths, seeded())
    assert (y.waveforms.abs().argmax(1) == 3000).all() and y.waveforms[:, :3000].abs().max() < 1e-5
    direct = y.waveforms[:, 3000].square() / y.waveforms.square().sum(1)
    assert torch.allclose(direct, 1 - y.drawn['wet'], atol=.01)
    for response, rt60 in zip(y.waveforms, y.drawn['rt60']):
        decay = response[3001:].square().flip(0).cumsum(0).flip(0)
        decay = 10 * (decay / decay[0]).clamp(min=1e-9).log10()
        fall = int((decay > -25).sum()) - int((decay > -5).sum())
        assert 3 * fall / SAMPLE_RATE == pytest.approx(rt60.item(), rel=.15)


def test_filtering_limits_the_band_and_shifts_nothing():
    x, lengths = clicks(16, 16_000, at=5000)
    y = AUGMENT['filtering'](x, lengths, seeded())
    assert (y.waveforms.abs().argmax(1) == 5000).all()
    response = torch.fft.rfft(y.waveforms).abs() # one bin a hertz
    for row, high_pass, low_pass in zip(response, y.drawn['high_pass'], y.drawn['low_pass']):
        passed = row[500:2000].mean()
        if high_pass > 200: assert row[int(high_pass / 4)] < .2 * passed
        if low_pass < 4000: assert row[7900] < .2 * passed


def test_masking_silences_the_drawn_share_within_the_real_length():
    lengths = torch.tensor([20_000, 12_000, 5000] * 8)
    y = AUGMENT['masking'](torch.ones(24, 20_000), lengths, seeded())
    for row, n, share, spans in zip(y.waveforms, lengths, y.drawn['share'], y.drawn['spans']):
        silent = row[:n] == 0
        assert silent.float().mean() <= .2 and silent.float().mean() == pytest.approx(share.item(), abs=1e-3)
        assert F.pad(silent.int(), (1, 0)).diff().clamp(min=0).sum() == spans
        assert (row[:n][~silent] == 1).all()


def pack(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return torch.cat([row[:n] for row, n in zip(x, lengths)])


def test_kinds_match_what_was_applied():
    x, lengths = voices(*[8000, 6000, 1600] * 20)
    view = random_view(pack(x, lengths), lengths, AUGMENTATIONS, seeded())
    assert view.kinds.dtype == torch.int64 and set(view.kinds.tolist()) == {1, 2, 3, 4, 5, 6}
    for k, name in enumerate(AUGMENTATIONS, 1):
        for key, values in view.drawn.items():
            if key.startswith(name + '.'): assert torch.equal(~values.isnan(), view.kinds == k)
    changed_length = view.lengths != lengths
    assert torch.equal(changed_length, view.kinds == 1 + AUGMENTATIONS.index('speed'))
    assert view.waveforms.shape == (view.lengths.sum(),) and view.lengths.dtype == torch.int64


@NAMES
def test_a_view_of_one_name_is_that_augmentation(name):
    x, lengths = voices(8000, 5000)
    generator = seeded()
    torch.randint(1, (2,), generator=generator) # the choice among one
    expected = AUGMENT[name](x, lengths, generator)
    view = random_view(pack(x, lengths), lengths, (name,), seeded(), limits=(1., math.inf))
    assert torch.equal(view.waveforms, pack(expected.waveforms, view.lengths)) and torch.equal(view.lengths, expected.lengths)
    assert view.kinds.tolist() == [1 + AUGMENTATIONS.index(name)] * 2


@NAMES
def test_how_rows_are_chunked_changes_nothing(name):
    x, lengths = voices(*torch.randint(800, 20_000, (20,), generator=seeded()).tolist(), 20_000, 1)
    limits = (0., 1), (.05, 30_000), (.3, math.inf), (1., math.inf)
    views = [random_view(pack(x, lengths), lengths, (name,), seeded(3), limit) for limit in limits]
    for other in views[1:]:
        assert torch.equal(other.lengths, views[0].lengths) and torch.equal(other.kinds, views[0].kinds)
        assert torch.allclose(other.waveforms, views[0].waveforms, atol=1e-5)
        assert all(torch.equal(other.drawn[key], views[0].drawn[key]) for key in views[0].drawn)


@pytest.mark.parametrize('slack, most', [(0., 1), (.05, math.inf), (.05, 100_000), (.3, math.inf), (1., 500_000), (1., math.inf)])
def test_chunks_hold_every_row_once_and_little_padding(slack, most):
    lengths = torch.randint(1, 240_000, (200,), generator=seeded()).tolist() + [16_000] * 20
    found = chunks(lengths, slack, most)
    assert sorted(sum(found, [])) == list(range(220))
    for chunk in found:
        sizes = [lengths[i] for i in chunk]
        assert sum(sizes) >= (1 - slack) * max(sizes) * len(sizes)
        assert len(chunk) == 1 or sum(sizes) <= most
    if slack == 1 and most == math.inf: assert len(found) == 1


def test_a_view_puts_rows_back_in_place_and_leaves_its_input_alone():
    x, lengths = voices(8000, 7000, 9000, 8000)
    x = x * torch.tensor([1., 2, 4, 8])[:, None]
    packed = pack(x, lengths)
    before = packed.clone()
    view = random_view(packed, lengths, ('filtering', 'reverberation', 'pitch'), seeded(1)) # those that keep the level
    assert torch.equal(packed, before) and not view.waveforms.requires_grad
    power = torch.stack([row.square().sum() for row in view.waveforms.split(lengths.tolist())])
    assert torch.allclose(power, x.square().sum(1), rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_a_view_on_a_gpu_does_not_wait():
    x, lengths = voices(20_000, 9000, 15_000, 3000, 8000, 12_000)
    packed = pack(x, lengths).cuda()
    random_view(packed, lengths, AUGMENTATIONS, seeded()) # warm up: Fourier plans
    torch.cuda.set_sync_debug_mode('error')
    try: there = random_view(packed, lengths, AUGMENTATIONS, seeded())
    finally: torch.cuda.set_sync_debug_mode('default')
    here = random_view(packed.cpu(), lengths, AUGMENTATIONS, seeded())
    assert torch.equal(there.lengths, here.lengths) and torch.equal(there.kinds, here.kinds)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@NAMES
def test_on_a_gpu_the_same_parameters_and_no_waiting(name):
    x, lengths = voices(20_000, 9000)
    there = x.cuda()
    AUGMENT[name](there, lengths, seeded()) # warm up: Fourier plans
    torch.cuda.set_sync_debug_mode('error')
    try: y = AUGMENT[name](there, lengths, seeded())
    finally: torch.cuda.set_sync_debug_mode('default')
    here = AUGMENT[name](x, lengths, seeded())
    assert torch.equal(y.lengths, here.lengths) and all(torch.equal(y.drawn[key], here.drawn[key]) for key in y.drawn)
    if name not in ('noise', 'reverberation'): assert torch.allclose(y.waveforms.cpu(), here.waveforms, atol=2e-3)
