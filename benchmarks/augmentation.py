"""Seconds of audio augmented in a second, beside torch-audiomentations and audiomentations.

python benchmarks/augmentation.py [--device cpu|cuda] [--threads 1] [--repeats 5] [--utterances 32]

On one thread, as the runs of a grid have it. Generated speech, in a batch of utterances as long as IEMOCAP's (cut at
15 s), and in one of 2.5 s each, where nobody pads. Everybody changes every utterance by parameters of its own from
the same ranges, and starts from waveforms in memory:
- ours from a packed batch, with `random_view`, which chooses, cuts the batch into chunks, and packs the result again;
- torch-audiomentations from a padded batch, mode `per_example`; time spent on padding is spent, but does not count as
  audio;
- audiomentations from one array after another, as it has no batches (on a CPU only).
Only real audio is counted, before augmentation. Nearest to nearest:
- noise: colours 1/f**0 to 1/f**2 at 5 to 20 dB. torch-audiomentations repeats one second of noise, so it draws less.
- reverberation: the peers convolve with 64 of our room responses; ours also draws a new response for every utterance.
  audiomentations caches its files. torch-audiomentations would read them again each time (torchaudio with
  torchcodec), and is given them in memory instead.
- pitch: 1 to 3 semitones either way, the peers up to 3; audiomentations with its default (signalsmith) and with
  librosa's phase vocoder. torch-audiomentations shifts by few ratios only, at 16 kHz by 0.4 and 3.9 semitones, so up
  to 4 are allowed.
- filtering: high-pass and low-pass with the same corners; audiomentations with a seven-band equaliser after them, as
  ours has five bands. torch-audiomentations has no equaliser and does without.
- masking: audiomentations.TimeMask, one silence. torch-audiomentations has nothing like it.
- speed: torchaudio.transforms.SpeedPerturbation on each utterance, six factors (it reduces them to small fractions,
  and any others would be slow), and audiomentations.Resample, any factor. torch-audiomentations has nothing like it.
- mixture: one of noise, reverberation, pitch and filtering for each utterance. `OneOf` of torch-audiomentations
  chooses once per batch, so the utterances of each choice are gathered for it by hand.
Not compared: how they sound. Writes benchmarks/results/augmentation-<device>.json.
"""
import argparse
import tempfile
import warnings
from pathlib import Path

import audiomentations as A
import numpy as np
import soundfile as sf
import torch
import torch_audiomentations as T
from torchaudio.transforms import SpeedPerturbation

from cdser.augment import draw_parameters, pad, random_view, room_responses
from cdser.config import AUGMENTATIONS, SAMPLE_RATE
from cdser.corpora import released
from cdser.synthetic import STUDIO_A, generate
from side_by_side import about, interleave, ratios, record, show

OURS, MIXED = 'cdser', ('noise', 'reverberation', 'pitch', 'filtering')
BANDS = dict(high=(60., 400.), low=(2500., 7000.)) # Hz


def batch_of(seconds: np.ndarray) -> list[torch.Tensor]:
    "Pieces of generated speech."
    speech, rng = torch.from_numpy(np.concatenate(generate(STUDIO_A)[0])), np.random.default_rng(0)
    sizes = (seconds * SAMPLE_RATE).astype(int)
    return [speech[start:start + n].clone() for n in sizes for start in [rng.integers(len(speech) - n)]]


def write_responses(folder: Path) -> dict[str, torch.Tensor]: # path -> (1, taps)
    "Room responses as files."
    g = torch.Generator().manual_seed(0)
    drawn = draw_parameters('reverberation', 64, g)
    rooms = room_responses(drawn['rt60'], drawn['wet'], drawn['seed'], torch.zeros(1))
    for i, room in enumerate(rooms):
        sf.write(folder / f'{i}.wav', room.numpy(), SAMPLE_RATE, subtype='FLOAT')
    return {str(folder / f'{i}.wav'): room[None] for i, room in enumerate(rooms)}


def torch_transforms(folder: Path, device: str) -> dict:
    "What torch-audiomentations has."
    rooms, always = write_responses(folder), dict(p=1., sample_rate=SAMPLE_RATE, output_type='tensor')
    found = dict(noise=T.AddColoredNoise(5., 20., 0., 2., **always),
                 reverberation=T.ApplyImpulseResponse(str(folder), **always),
                 pitch=T.PitchShift(-4., 4., **always), filtering=T.Compose([
                     T.HighPassFilter(*BANDS['high'], **always | dict(output_type='dict')),
                     T.LowPassFilter(*BANDS['low'], **always | dict(output_type='dict'))], output_type='tensor'))
    found['reverberation'].audio = lambda path: rooms[str(path)]
    return {name: transform.to(device).train() for name, transform in found.items()}


def array_transforms(folder: Path) -> dict:
    "What audiomentations has."
    speeds = dict(min_sample_rate=round(SAMPLE_RATE / 1.18), max_sample_rate=round(SAMPLE_RATE * 1.18))
    steep = dict(min_rolloff=24, max_rolloff=24, p=1.)
    return dict(noise=A.AddColorNoise(5., 20., -6., 0., p=1.), reverberation=A.ApplyImpulseResponse(str(folder), p=1.),
                pitch=A.PitchShift(-3., 3., p=1.), speed=A.Resample(**speeds, p=1.),
                filtering=A.Compose([A.HighPassFilter(*BANDS['high'], **steep), A.LowPassFilter(*BANDS['low'], **steep),
                                     A.SevenBandParametricEQ(-6., 6., p=1.)]),
                masking=A.TimeMask(.05, .2, fade_duration=0., p=1.))


def ways_of(rows: list[torch.Tensor], folder: Path, device: str) -> dict[str, dict]: # augmentation -> way -> function
    "Every way to do each augmentation to the same utterances; each returns the seconds of real audio."
    lengths, g = torch.tensor([len(row) for row in rows]), torch.Generator().manual_seed(0)
    there, arrays = [row.to(device) for row in rows], [row.numpy() for row in rows]
    packed, padded, seconds = torch.cat(there), pad(there)[:, None], lengths.sum().item() / SAMPLE_RATE
    batched, single = torch_transforms(folder, device), array_transforms(folder)
    perturb = SpeedPerturbation(SAMPLE_RATE, [.85, .9, .95, 1.05, 1.1, 1.15]).to(device)
    rng = np.random.default_rng(0)

    def timed(work):
        def way():
            work()
            return seconds
        return way
    def gathered():
        choice = rng.integers(len(MIXED), size=len(rows))
        for k, name in enumerate(MIXED):
            if (choice == k).any():
                batched[name](pad([there[i] for i in np.flatnonzero(choice == k)])[:, None], SAMPLE_RATE)
    def ours(names):
        return timed(lambda: random_view(packed, lengths, names, g))
    def each(change):
        return timed(lambda: [change(x, SAMPLE_RATE) for x in arrays])

    found = {name: {OURS: ours((name,))} for name in AUGMENTATIONS} | dict(mixture={OURS: ours(MIXED)})
    for name, change in batched.items():
        found[name]['torch-audiomentations'] = timed(lambda change=change: change(padded, SAMPLE_RATE))
    found['mixture']['torch-audiomentations'] = timed(gathered)
    found['speed']['torchaudio, each'] = timed(lambda: [perturb(row) for row in there])
    if device == 'cpu':
        for name, change in single.items():
            found[name]['audiomentations'] = each(change)
        found['pitch']['audiomentations, vocoder'] = each(A.PitchShift(-3., 3., 'librosa_phase_vocoder', p=1.))
        found['mixture']['audiomentations'] = each(A.OneOf([single[name] for name in MIXED]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--utterances', type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings('ignore') # of the peers
    seconds = released('iemocap').duration_s.clip(upper=15)
    durations = np.random.default_rng(0).choice(seconds, args.utterances, replace=False)
    result = about(args.device, 'torchaudio', 'torch-audiomentations', 'audiomentations') | dict(
        threads=args.threads, unit='seconds of real audio a second', batches={})
    for batch, seconds in {'IEMOCAP lengths': durations, '2.5 s each': np.full(args.utterances, 2.5)}.items():
        result['batches'][batch] = dict(seconds=float(seconds.sum()), found={}, ratios={})
        with tempfile.TemporaryDirectory() as folder:
            for name, ways in ways_of(batch_of(seconds), Path(folder), args.device).items():
                found = interleave(ways, args.repeats, args.device)
                compared = ratios(found, OURS)
                result['batches'][batch]['found'][name] = found
                result['batches'][batch]['ratios'][name] = compared
                print(f'\n{batch}, {name}')
                show(found, 's/s', compared)
    record('augmentation', args.device, result)


if __name__ == '__main__':
    main()
