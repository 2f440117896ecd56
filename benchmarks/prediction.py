"""Emotions of files of mixed lengths, decoding included: cdser's `recognise`, and transformers' audio-classification.

python benchmarks/prediction.py [--device cpu|cuda] [--threads 2] [--rounds 3] [--files 400] [--base-files 32]
[--quick]

Both have the same model: nano and wav2vec2-base of random weights, whose classifier is scaled so that utterances
differ as they do for a trained one. The pipeline is given a generator of samples that soundfile has read (it would
need FFmpeg for files), cut at 15 s, brought to 16 kHz by cdser's resampling, and is tried with batches of 1, 8 and
32; it masks padding if the model was made for masks (nano), and does not otherwise (base). On a GPU both are bf16.
Files have IEMOCAP's durations; real ones are those of the folder that CDSER_CORPORA names. Probabilities of every way
are compared with those of the stock model for one utterance at a time in float32. Writes
benchmarks/results/prediction-<device>.json.
"""
import argparse
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
import transformers

from cdser.audio import decoded, resample
from cdser.audio_store import open_store
from cdser.batches import InMemory, Utterances
from cdser.config import LABELS, SAMPLE_RATE, Experiment, content_hash
from cdser.corpora import load_corpus
from cdser.model import Recogniser, build, save_stock
from cdser.runs import recognise
from cdser.store import FORMAT, Run, RunStore
from cdser.train import predict
from corpus import write_corpus
from side_by_side import about, interleave, ratios, record, show

BATCHES = (1, 8, 32)
MAX_SECONDS = Experiment('', '').max_seconds


def load(path: Path) -> np.ndarray: # (samples,) float32
    "What soundfile reads, at 16 kHz."
    samples, rate = sf.read(path, dtype='float32', always_2d=True)
    samples = samples.mean(1)[:round(MAX_SECONDS * rate)]
    return resample(samples, rate)


def sharpen(model: Recogniser, store, device: str) -> Recogniser:
    "Scale and shift the classifier: its logits' mean over utterances becomes 0, their standard deviation 1."
    embeddings = torch.from_numpy(predict(model, store, np.arange(min(len(store), 64)), device=device)[1])
    with torch.no_grad():
        logits = embeddings @ model.classifier.weight.cpu().T
        model.classifier.weight /= logits.std(0).to(device)[:, None]
        model.classifier.bias.copy_(-logits.mean(0) / logits.std(0))
    return model


def make_run(encoder: str, paths: list[Path], folder: Path, device: str) -> Run:
    "A run as `fit` would have stored it."
    if encoder == 'base':
        encoder = str(folder / 'base')
        transformers.Wav2Vec2Model(transformers.Wav2Vec2Config()).save_pretrained(encoder)
    e, store = Experiment('some', 'others', encoder=encoder), open_store(folder / 'some', paths[:64], MAX_SECONDS)
    config = dict(format=FORMAT, identity=dict(benchmark='prediction', encoder=encoder), experiment=asdict(e))
    model = sharpen(build(e).to(device), store, device).cpu()
    return RunStore(folder / 'runs').add(content_hash(config['identity']), config,
                                         lambda draft: save_stock(model, draft / 'model'))


def packed(model: Recogniser, paths: list[Path], folder: Path, device: str, bf16: bool) -> np.ndarray: # (n, 4)
    "Our probabilities, 16 utterances at a time, in this precision."
    store = open_store(folder / 'all', paths, MAX_SECONDS)
    utterances = Utterances(store, np.arange(len(store)), np.zeros(len(store), dtype=np.int64))
    probabilities = []
    for at in np.array_split(utterances.rows, max(len(store) // 16, 1)):
        batch = utterances.collate(at, device)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            outputs = model(batch.waveforms, batch.lengths)
        probabilities.append(outputs.logits.float().softmax(-1).cpu())
    return torch.cat(probabilities).numpy()


def piped(classify: Callable, paths: list[Path], batch: int) -> np.ndarray: # (n, 4)
    "The pipeline's probabilities in the order of LABELS."
    found = classify((dict(raw=load(path), sampling_rate=SAMPLE_RATE) for path in paths), batch_size=batch, top_k=None)
    return np.array([[{f['label']: f['score'] for f in each}[label] for label in LABELS] for each in found])


def parts_of(run: Run, paths: list[Path], device: str) -> dict[str, Callable[[], None]]:
    "What `recognise` does, and its two parts, each alone."
    samples, model = list(decoded(paths, MAX_SECONDS)), run.model.to(device)
    def whole():
        recognise(run, paths, device)
    def decoding():
        for _ in decoded(paths, MAX_SECONDS):
            pass
    def forward():
        predict(model, InMemory(samples), np.arange(len(samples)), device=device)
    return {'recognise': whole, 'decoding alone': decoding, 'encoder and heads alone': forward}


def compare(encoder: str, paths: list[Path], folder: Path, rounds: int, warm: int, device: str) -> dict:
    "Rates, ratios, and how far each way's probabilities are from those of one utterance at a time."
    run, probabilities = make_run(encoder, paths, folder, device), {}
    stock = transformers.Wav2Vec2ForSequenceClassification.from_pretrained(run.folder / 'model').eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=stock.config.feat_extract_norm == 'layer')
    def make(dtype):
        return transformers.pipeline('audio-classification', model=str(run.folder / 'model'),
                                     feature_extractor=extractor, device=device, dtype=dtype)
    classify, exact = make(torch.bfloat16 if device == 'cuda' else torch.float32), make(torch.float32)
    seconds = sum(len(load(path)) for path in paths) / SAMPLE_RATE
    def cdser():
        probabilities['cdser'] = recognise(run, paths, device)[[f'p_{label}' for label in LABELS]].to_numpy()
        return seconds
    def pipeline(batch):
        probabilities[f'pipeline, {batch} at a time'] = piped(classify, paths, batch)
        return seconds
    ways = {'cdser': cdser} | {f'pipeline, {batch} at a time': lambda batch=batch: pipeline(batch) for batch in BATCHES}
    found = interleave(ways, rounds, device, warm)
    parts = interleave(parts_of(run, paths, device), rounds, device, warm)
    single = piped(exact, paths, 1)
    for name, bf16 in (('cdser, float32', False), ('cdser, bf16', True)):
        probabilities[name] = packed(run.model.to(device).eval(), paths, folder, device, bf16)
    furthest = {name: float(np.abs(p - single).max()) for name, p in probabilities.items()}
    assert furthest['cdser, float32'] < 1e-4, furthest
    show(found, 's/s', ratios(found, 'cdser'))
    show(parts, 's')
    for name, distance in furthest.items():
        print(f'  furthest from one at a time: {name:30}{distance:.1e}')
    different = {name: int((p.argmax(1) != single.argmax(1)).sum()) for name, p in probabilities.items()}
    return dict(files=len(paths), hours=seconds / 3600, rounds=found, ratios=ratios(found, 'cdser'),
                seconds_of_parts=parts, furthest_from_one_at_a_time=furthest, different_answers=different,
                spread_of_probabilities=single.std(0).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--files', type=int, default=400)
    parser.add_argument('--base-files', type=int, default=32, help='of them for wav2vec2-base')
    parser.add_argument('--quick', action='store_true', help='nano, one round, 64 generated files; writes nothing')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    if args.quick:
        args.files, args.rounds = 64, 1
    with tempfile.TemporaryDirectory() as folder:
        folder, found = Path(folder), {}
        write_corpus(folder / 'corpora' / 'iemocap_lengths', args.files)
        roots = {'iemocap_lengths': folder / 'corpora'}
        real = Path(os.environ.get('CDSER_CORPORA', Path(__file__).parents[2] / 'shared' / 'corpora'))
        if not args.quick:
            roots |= {name: real for name in ('urdu', 'emodb') if (real / name).is_dir()}
        for name, root in roots.items():
            paths = load_corpus(name, root).paths[:args.files]
            print(f'nano, {name}')
            found[f'nano, {name}'] = compare('nano', paths, folder / name / 'nano', args.rounds, 1, args.device)
            if args.quick:
                return
            if name != 'iemocap_lengths':
                continue
            print(f'base, {name}')
            found[f'base, {name}'] = compare('base', paths[:args.base_files], folder / name / 'base', 2, 0, args.device)
    record('prediction', args.device, dict(**about(args.device, 'soundfile'), threads=args.threads,
                                           unit='seconds of audio per second', **found))


if __name__ == '__main__':
    main()
