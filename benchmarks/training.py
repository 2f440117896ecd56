"""Training on emotion labels alone, by cdser, transformers' Trainer and SpeechBrain: the same audio, model and update.

python benchmarks/training.py [--device cpu|cuda] [--threads 2] [--workers 0] [--base-batch 8] [--quick]

cdser:        decodes all into its store once (that time is given apart); then `collate`, `augment_batches`, `step`.
Trainer:      transformers' run_audio_classification.py: a data set of the datasets library whose transform decodes
              and normalises, DataCollatorWithPadding, attention mask, a classifier with a weighted sum of layers.
SpeechBrain:  its IEMOCAP recipe with wav2vec2: a DynamicItemDataset that reads files, PaddedBatch, its Wav2Vec2,
              pooling, Linear and two optimisers. Its head reads the last layer only, which costs less than the
              others' mix.
grouped:      Trainer on batches that transformers' LengthGroupedSampler makes of the whole corpus, drawn at random.

All start from the same encoder, read the same files, cut at 15 s, train in float32 on a CPU and in bf16 on a GPU,
with fused AdamW at one constant rate, without weight decay (Trainer spares biases and norms), and clip gradients.
soundfile decodes in all: SpeechBrain uses it itself, for Trainer it is in the place of torchcodec. One random order
is drawn for all, so all but grouped see the same batches. Nano is trained whole. wav2vec2-base, of random weights,
keeps its convolutional front end as it is, as both peers do by default, and has no dropout: with it, attention on a
CPU takes twice the memory and time. Its batch on a CPU is 8, since 32 padded utterances would take over 20 GB; 4 is
SpeechBrain's own. Generated utterances have IEMOCAP's durations; real ones are those of the folder that CDSER_CORPORA
names. Losses are compared on one batch taken again and again, with the same head in all: on clips of one length, and
for nano on mixed ones, where SpeechBrain's differ as it normalises padding with the waveform. Writes
benchmarks/results/training-<device>.json.
"""
import argparse
import logging
import os
import random
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import soundfile as sf
import speechbrain as sb
import torch
import transformers
from speechbrain.dataio.audio_io import load
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.nnet.activations import Softmax
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import nll_loss
from speechbrain.nnet.pooling import StatisticsPooling
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler

from cdser.audio import read_audio, resample
from cdser.audio_store import AudioStore, open_store
from cdser.batches import Utterances
from cdser.config import LABELS, METHODS, SAMPLE_RATE, Experiment
from cdser.corpora import load_corpus
from cdser.model import build, to_transformers
from cdser.train import augment_batches, make_optimiser, step
from corpus import write_corpus
from side_by_side import about, clock, interleave, peak, peak_gigabytes, ratios, record, show

CLIP_NORM = 5. # SpeechBrain's default
SINGLE = dict(views=1, weights=METHODS['emotion_only'], weight_decay=0., clip_norm=CLIP_NORM)
ENCODERS = {'nano': dict(encoder_lr=1e-3, head_lr=1e-3),
            'base': dict(encoder_lr=3e-5, head_lr=3e-5, freeze_front_end=True)}
ROUNDS = {'nano': dict(rounds=3, updates=3, warm=1), 'base': dict(rounds=2, updates=1, warm=0)}
MORE = {'nano': 12, 'base': 2} # updates a round of 4 utterances
DROPOUTS = ('hidden_dropout', 'attention_dropout', 'activation_dropout', 'feat_proj_dropout', 'final_dropout')
NO_DROPOUT = dict.fromkeys(DROPOUTS, 0.)


@dataclass(frozen=True)
class Task:
    "What all ways are given."
    paths: list[Path]
    labels: np.ndarray
    store: AudioStore # the same files decoded, for their lengths and for cdser
    e: Experiment
    folder: Path      # the model as transformers saves it
    batch: int        # utterances an update
    device: str
    workers: int      # processes in which the others read


class Way:
    "A model that learns from one list of utterances at every call."
    def __init__(self, task: Task, rounds: list[np.ndarray]):
        self.task, self.rounds, self.losses, self.heard, self.passed = task, iter(rounds), [], 0, 0
        self.prepare()

    def __call__(self) -> float: # seconds of real audio
        "Train on the next list."
        rows = next(self.rounds)
        self.train(rows)
        samples = int(self.task.store.lengths[rows].sum())
        self.heard += samples
        return samples / SAMPLE_RATE

    def keep(self, loss, waveforms) -> None:
        "Note a loss, and how many samples the model was given for it."
        self.losses.append(loss.detach())
        self.passed += waveforms.numel()

    def curve(self) -> np.ndarray: # (updates,)
        "All losses so far."
        return torch.stack(self.losses).float().cpu().numpy()


class Cdser(Way):
    "Ours; three views where the experiment says so."
    def prepare(self):
        t = self.task
        self.model, self.generator = build(t.e).to(t.device).train(), torch.Generator().manual_seed(0)
        self.optimiser = make_optimiser(self.model, t.e)
        self.utterances = Utterances(t.store, np.arange(len(t.store)), t.labels)

    def train(self, rows):
        t = self.task
        for at in rows.reshape(-1, t.batch):
            views = augment_batches([self.utterances.collate(at, t.device)], t.e, self.generator)[0]
            self.keep(step(self.model, self.optimiser, views, t.e)['loss'], views.waveforms)


class Stopwatch(transformers.TrainerCallback):
    "Notes how long the loop over batches took."
    def __init__(self, way):
        self.way = way
    def on_epoch_begin(self, *args, **kwargs):
        self.way.seconds = -clock(self.way.task.device)
    def on_epoch_end(self, *args, **kwargs):
        self.way.seconds += clock(self.way.task.device)


class Trainer(Way):
    "transformers' example, its own data set, transform, collator and loop."
    def prepare(self):
        t = self.task
        extractor = transformers.AutoFeatureExtractor.from_pretrained(t.folder, return_attention_mask=True)
        model = transformers.AutoModelForAudioClassification.from_pretrained(t.folder)
        if t.e.freeze_front_end:
            model.freeze_feature_encoder()
        def keep(_, args, kwargs, out):
            self.keep(out.loss, kwargs['input_values'])
        model.register_forward_hook(keep, with_kwargs=True)
        data = datasets.Dataset.from_dict(dict(audio=[str(path) for path in t.paths], label=t.labels))
        self.data = data.cast_column('audio', datasets.Audio(decode=False))
        self.data.set_transform(partial(transform, extractor=extractor, seconds=t.e.max_seconds))
        args = transformers.TrainingArguments(
            str(t.folder / 'trainer'), per_device_train_batch_size=t.batch, num_train_epochs=1,
            learning_rate=t.e.head_lr, weight_decay=0., max_grad_norm=t.e.clip_norm, lr_scheduler_type='constant',
            train_sampling_strategy='sequential', remove_unused_columns=False,
            dataloader_num_workers=t.workers, use_cpu=t.device == 'cpu', bf16=t.device == 'cuda',
            report_to='none', logging_strategy='no', save_strategy='no', disable_tqdm=True)
        self.trainer = transformers.Trainer(model, args, train_dataset=self.data, processing_class=extractor)
        self.trainer.remove_callback(transformers.PrinterCallback)
        self.trainer.add_callback(Stopwatch(self))

    def __call__(self):
        "As if the loop were all: what `train` prepares at every call, some tenths of a second, is not counted."
        start, audio = clock(self.task.device), super().__call__()
        return audio * (clock(self.task.device) - start) / self.seconds

    def train(self, rows):
        self.trainer.train_dataset = self.data.select(rows)
        self.trainer.train()


def transform(found: dict, extractor, seconds: float) -> dict:
    "What the example does to items as they are taken; long ones are cut at random."
    def cut(samples):
        longest = round(seconds * SAMPLE_RATE)
        start = random.randint(0, max(len(samples) - longest - 1, 0))
        return samples[start:start + longest]
    clips = [cut(resample(*read_audio(audio['path']))) for audio in found['audio']]
    return dict(input_values=extractor(clips, sampling_rate=SAMPLE_RATE)['input_values'], labels=list(found['label']))


class Recipe(sb.Brain):
    "SpeechBrain's recipe; `head` lies between encoder and pooling, and is nothing in the recipe."
    def compute_forward(self, batch, stage):
        waveforms, lengths = batch.to(self.device).sig
        frames = self.modules.head(self.modules.wav2vec2(waveforms, lengths))
        pooled = self.hparams.avg_pool(frames, lengths)
        return self.hparams.log_softmax(self.modules.output_mlp(pooled.view(len(pooled), -1)))

    def compute_objectives(self, predictions, batch, stage):
        return nll_loss(predictions, batch.label.data)

    def init_optimizers(self):
        make = partial(torch.optim.AdamW, lr=self.hparams.lr, weight_decay=0., fused=True)
        heads = [*self.modules.head.parameters(), *self.modules.output_mlp.parameters()]
        self.optimizers_dict = dict(wav2vec2=make(self.modules.wav2vec2.parameters()), model=make(heads))


class SpeechBrain(Way):
    "Its recipe, with `Brain.fit_batch` called on each batch of its own loader."
    def prepare(self):
        t = self.task
        wav2vec2 = Wav2Vec2(str(t.folder), str(t.folder / 'speechbrain'), **self.encoder_options(),
                            freeze_feature_extractor=t.e.freeze_front_end)
        if t.e.freeze_front_end:
            wav2vec2.model.feature_extractor._freeze_parameters() # as the recipe does
        head, output = self.heads(wav2vec2.model.config.hidden_size)
        run = dict(device=t.device, precision='bf16' if t.device == 'cuda' else 'fp32', max_grad_norm=t.e.clip_norm)
        hparams = dict(avg_pool=StatisticsPooling(return_std=False), log_softmax=Softmax(apply_log=True),
                       lr=t.e.head_lr)
        self.brain = Recipe(dict(wav2vec2=wav2vec2, head=head, output_mlp=output), hparams=hparams, run_opts=run)
        self.brain.on_fit_start()
        self.brain.modules.train()

    def encoder_options(self) -> dict:
        "What the recipe asks of the encoder: its last layer, normalised."
        return dict(output_norm=True)

    def heads(self, width: int) -> tuple[nn.Module, nn.Module]:
        "What comes before the pooling, and after it."
        return nn.Identity(), Linear(input_size=width, n_neurons=len(LABELS), bias=False)

    def train(self, rows):
        t = self.task
        items = {str(n): dict(wav=str(t.paths[i]), label=int(t.labels[i])) for n, i in enumerate(rows)}
        reader = dict(func=partial(read, seconds=t.e.max_seconds), takes=['wav'], provides=['sig'])
        data = DynamicItemDataset(items, [reader], ['id', 'sig', 'label'])
        for batch in make_dataloader(data, batch_size=t.batch, num_workers=t.workers):
            self.brain.step += 1
            self.keep(self.brain.fit_batch(batch), batch.sig.data)


def read(path: str, seconds: float) -> torch.Tensor:
    "SpeechBrain's reader, then our resampling, which it leaves to its user."
    samples, rate = load(path)
    return torch.from_numpy(resample(samples.mean(0).numpy(), rate)[:round(seconds * SAMPLE_RATE)])


class SameHead(SpeechBrain):
    "SpeechBrain with the layer mix, projection and classifier of the others, to compare losses."
    def encoder_options(self):
        return dict(output_all_hiddens=True)
    def heads(self, width):
        stock = transformers.AutoModelForAudioClassification.from_pretrained(self.task.folder)
        return Mix(stock.layer_weights, stock.projector), stock.classifier


class Mix(nn.Module):
    "A softmax-weighted mix of hidden states, projected."
    def __init__(self, weights: nn.Parameter, projector: nn.Linear):
        super().__init__()
        self.weights, self.projector = weights, projector

    def forward(self, hidden):
        return self.projector(torch.einsum('l,lbtc->btc', self.weights.softmax(0), hidden))


WAYS = {'cdser': Cdser, 'Trainer': Trainer, 'Trainer, grouped by length': Trainer, 'SpeechBrain': SpeechBrain}


def make_task(encoder: str, corpus: str, root: Path, batch: int, folder: Path, args) -> Task:
    "Decode the files and write the model, unless both are there."
    name, model, found = encoder, folder / f'{encoder}-stock', load_corpus(corpus, root)
    if encoder == 'base':
        name = str(folder / 'base')
        config = transformers.Wav2Vec2Config(layerdrop=0., apply_spec_augment=False, **NO_DROPOUT)
        if not Path(name).exists():
            transformers.Wav2Vec2Model(config).save_pretrained(name)
    e = Experiment('', '', encoder=name, **ENCODERS[encoder], **SINGLE)
    if not model.exists():
        to_transformers(build(e)).save_pretrained(model)
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(model)
    store = open_store(folder / corpus, found.paths, e.max_seconds)
    return Task(found.paths, found.labels, store, e, model, batch, args.device, args.workers)


def draw(task: Task, rounds: int, updates: int, grouped: bool = False) -> list[np.ndarray]: # rows, for each round
    "Random utterances; or random ones of the batches that LengthGroupedSampler makes of all."
    rng, n, size = np.random.default_rng(0), len(task.store), updates * task.batch
    if not grouped:
        return [rng.permutation(n)[:size] for _ in range(rounds)]
    sampler = LengthGroupedSampler(task.batch, lengths=task.store.lengths.tolist(),
                                   generator=torch.Generator().manual_seed(0))
    whole = np.array(list(sampler))[:n // task.batch * task.batch].reshape(-1, task.batch)
    return [whole[rng.permutation(len(whole))[:updates]].ravel() for _ in range(rounds)]


def compare(task: Task, names: list[str], rounds: int, updates: int, warm: int = 1) -> dict:
    "Rates of all ways, what cdser's is times theirs, and how many samples each gave the model for one that is real."
    ways = {name: WAYS[name](task, draw(task, warm + rounds, updates, 'grouped' in name)) for name in names}
    found = interleave(ways, rounds, task.device, warm)
    show(found, 's/s', ratios(found, 'cdser'))
    return dict(utterances_an_update=task.batch, updates_a_round=updates, rounds=found, ratios=ratios(found, 'cdser'),
                samples_per_real_sample={name: way.passed / way.heard for name, way in ways.items()})


def compare_views(task: Task, rounds: int, updates: int, warm: int = 1) -> dict:
    "The proposed method on three views, against three passes of emotion alone on one."
    proposed = replace(task, e=replace(task.e, views=3, weights=METHODS['proposed']))
    rows = draw(task, warm + rounds, updates)
    ways = {'three views, proposed': Cdser(proposed, rows), 'one view': Cdser(task, rows)}
    found = interleave(ways, rounds, task.device, warm)
    against_one = {name: 3 * ratio for name, ratio in ratios(found, 'three views, proposed')['one view'].items()}
    show(found, 's/s', {'three views, proposed': against_one})
    return dict(utterances_an_update=task.batch, rounds=found, against_three_times_one_view=against_one)


def of_one_length(task: Task, folder: Path, seconds: float = 1.) -> Task:
    "The beginnings of some longer utterances, as files of their own."
    rows, size = np.flatnonzero(task.store.lengths > seconds * SAMPLE_RATE)[:task.batch], round(seconds * SAMPLE_RATE)
    paths = [folder / f'{i}.wav' for i in rows]
    for path, i in zip(paths, rows):
        sf.write(path, task.store[i][:size], SAMPLE_RATE)
    return replace(task, paths=paths, labels=task.labels[rows], store=open_store(folder / f'clips-{task.batch}', paths))


def losses(task: Task, updates: int) -> dict:
    "The losses of all with the same head, on one batch again and again, unclipped; their largest distance to cdser's."
    task = replace(task, e=replace(task.e, clip_norm=1e9)) # SpeechBrain clips each optimiser's parameters separately
    short = np.flatnonzero(task.store.lengths < task.e.max_seconds * SAMPLE_RATE)[:task.batch]
    ways = {name: way(task, [np.tile(short, updates)]) for name, way in (WAYS | {'SpeechBrain': SameHead}).items()
            if 'grouped' not in name}
    for way in ways.values():
        way()
    furthest = {name: float(np.abs(way.curve() - ways['cdser'].curve()).max()) for name, way in ways.items()}
    for name, way in ways.items():
        print(f'{name:44}loss {way.curve()[0]:.4f} to {way.curve()[-1]:.4f}, furthest from cdser {furthest[name]:.1e}')
    return dict(curves={name: way.curve().tolist() for name, way in ways.items()}, furthest_from_cdser=furthest)


def alone(args) -> None:
    "Train for a round in this process, and print its peak memory."
    name, encoder, batch, folder = args.alone
    task = make_task(encoder, 'iemocap_lengths', Path(folder), int(batch), Path(folder) / 'made', args)
    WAYS[name](task, draw(task, 1, ROUNDS[encoder]['updates']))()
    print(peak(args.device))


def measure(encoder: str, batch: int, folder: Path, args) -> dict:
    "All that is measured of an encoder on utterances of IEMOCAP's lengths."
    start = time.perf_counter()
    task, often = make_task(encoder, 'iemocap_lengths', folder, batch, folder / 'made', args), ROUNDS[encoder]
    hours = task.store.lengths.sum() / SAMPLE_RATE / 3600
    print(f'{encoder}, {hours:.1f} h, ready in {time.perf_counter() - start:.1f} s')
    if args.quick:
        often = often | dict(rounds=1)
    result = dict(ready_seconds=time.perf_counter() - start, compared=compare(task, list(WAYS), **often))
    result['losses'] = {'one length': losses(of_one_length(task, folder), 8)}
    if encoder == 'nano':
        result['losses']['mixed lengths'] = losses(task, 8)
    if args.quick:
        return result
    result['batch_of_4'] = compare(replace(task, batch=4), ['cdser', 'SpeechBrain'],
                                   **often | dict(updates=MORE[encoder]))
    if encoder == 'nano' or args.device == 'cuda':
        result['views'] = compare_views(task, **often)
    options = ('--device', args.device, '--threads', str(args.threads), '--workers', str(args.workers))
    result['peak_gigabytes'] = {name: peak_gigabytes(*options, '--alone', name, encoder, str(batch), str(folder))
                                for name in ('cdser', 'Trainer', 'SpeechBrain')}
    print('peak memory in GB:', result['peak_gigabytes'])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--workers', type=int, default=0, help='processes in which Trainer and SpeechBrain read')
    parser.add_argument('--base-batch', type=int, default=8, help='utterances an update of wav2vec2-base')
    parser.add_argument('--quick', action='store_true',
                        help='one round of nano on few generated utterances; writes nothing')
    parser.add_argument('--alone', nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings('ignore')
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    if args.alone:
        return alone(args)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_corpus(folder / 'iemocap_lengths', 600 if args.quick else 5531) # as IEMOCAP has
        found = dict(nano=measure('nano', 32, folder, args))
        if args.quick:
            return
        real = Path(os.environ.get('CDSER_CORPORA', Path(__file__).parents[2] / 'shared' / 'corpora'))
        for name in ('nemo', 'urdu', 'emodb'):
            if not (real / name).is_dir():
                continue
            print(f'nano, {name}')
            task = make_task('nano', name, real, 32, folder / 'made', args)
            found[f'nano, {name}'] = compare(task, list(WAYS), **ROUNDS['nano'])
        found['base'] = measure('base', args.base_batch, folder, args)
    about_run = about(args.device, 'speechbrain', 'datasets', 'accelerate')
    record('training', args.device, dict(**about_run, threads=args.threads, workers=args.workers,
                                         unit='seconds of real audio per second', **found))


if __name__ == '__main__':
    main()
