"""Does torch.compile pay? A training step with the transformer's feed-forward blocks compiled, against the plain one.

python benchmarks/compiled.py [--device cpu|cuda] [--threads 2] [--repeats 5]

Batches end to end have one size that varies, the number of frames of all utterances together, so one compilation with
a dynamic size serves every batch, and no buckets of shapes are needed. The feed-forward blocks are where compilation
can win most: two matrix products with an activation between them. The nano encoder, three views, random batches of 16
seconds with the durations of IEMOCAP; the same weights and batches for both ways; the first step is timed apart,
since it compiles. Writes benchmarks/results/compiled-<device>.json.
"""
import argparse

import numpy as np
import torch

from cdser.batches import Batch
from cdser.config import SAMPLE_RATE, Experiment
from cdser.corpora import released
from cdser.model import Recogniser, build
from cdser.train import make_optimiser, step
from side_by_side import about, clock, interleave, ratios, record, show

E = Experiment('a', 'b')


def batches(device: str, count: int = 8) -> list[Batch]:
    "Noise: what is said plays no part in speed."
    rng, found = np.random.default_rng(0), []
    seconds = released('iemocap').duration_s.clip(upper=E.max_seconds).to_numpy()
    for _ in range(count):
        lengths = torch.from_numpy((rng.choice(seconds, 4) * SAMPLE_RATE).astype(np.int64)).repeat(E.views)
        labels = torch.arange(len(lengths)) % 7
        waveforms, labels = .1 * torch.randn(int(lengths.sum()), device=device), labels.to(device)
        found.append(Batch(waveforms, lengths, labels % 4, labels % 2, labels))
    return found


def prepared(compiled: bool, device: str) -> Recogniser:
    model = build(E).to(device).train()
    if compiled:
        for layer in model.encoder.backbone.encoder.layers:
            layer.feed_forward = torch.compile(layer.feed_forward, dynamic=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given, ways, first, losses = batches(args.device), {}, {}, {}
    for name, compiled in (('plain', False), ('compiled', True)):
        model = prepared(compiled, args.device)
        optimiser, start = make_optimiser(model, E), clock(args.device)
        step(model, optimiser, given[0], E)
        first[name] = clock(args.device) - start
        losses[name] = [step(model, optimiser, views, E)['loss'].item() for views in given]
        def way(model=model, optimiser=optimiser):
            for views in given:
                step(model, optimiser, views, E)
        ways[name] = way
    assert np.allclose(losses['plain'], losses['compiled'], atol=1e-3), losses
    found = interleave(ways, args.repeats, args.device)
    compared = ratios(found, 'compiled', higher_is_better=False)
    record('compiled', args.device, dict(about(args.device), threads=args.threads, unit='seconds for 8 steps',
                                         first_step=first, repeats=found, ratios=compared, losses=losses))
    show(found, 's for 8 steps', compared)
    for name, seconds in first.items():
        print(f'first step, {name}: {seconds:.1f} s')


if __name__ == '__main__':
    main()
