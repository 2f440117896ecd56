"""The table of benchmarks/README.md and its plot, from what the benchmarks recorded.

python benchmarks/report.py [--device cpu|cuda]

A ratio is how many times better cdser is within a round, the median over rounds and, in brackets, the lowest and
highest. Replaces what stands between the markers in benchmarks/README.md and writes
benchmarks/results/ratios-<device>.svg and .png.
"""
import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from side_by_side import RESULTS, ratios

CORPORA = {'iemocap_lengths': 'IEMOCAP lengths', 'nemo': 'nEMO', 'urdu': 'URDU', 'emodb': 'EmoDB'}
COLUMNS = ['what', 'against', 'median', 'low', 'high', 'goal']


def load(name: str, device: str) -> dict:
    "What a benchmark recorded; nothing where it has not been run on this device."
    path = RESULTS / f'{name}-{device}.json'
    return json.loads(path.read_text()) if path.exists() else {}


def rows_of(what: str, compared: dict[str, dict[str, float]], goals: dict[str, float]) -> list[tuple]:
    return [(what, other, r['median'], r['low'], r['high'], goals.get(other, np.nan)) for other, r in compared.items()]


def training(found: dict, device: str) -> list[tuple]:
    many = {'cpu': dict(nano=6, base=2), 'cuda': dict(nano=4, base=4)}[device]
    rows = []
    for encoder in ('nano', 'base'):
        if encoder not in found:
            continue
        compared, goal = found[encoder]['compared'], many[encoder]
        what = f'training, {encoder}, IEMOCAP lengths, {compared["utterances_an_update"]} an update'
        goals = {'Trainer': goal, 'SpeechBrain': goal, 'Trainer, grouped by length': 2}
        rows += rows_of(what, compared['ratios'], goals)
        for corpus in ('nemo', 'urdu', 'emodb'):
            if f'{encoder}, {corpus}' in found:
                rows += rows_of(f'training, {encoder}, {CORPORA[corpus]}', found[f'{encoder}, {corpus}']['ratios'], {})
        if 'views' in found[encoder]:
            three = {'three times one view': found[encoder]['views']['against_three_times_one_view']}
            rows += rows_of(f'three views, {encoder}', three, {'three times one view': 3 / 3.1})
    return rows


def prediction(found: dict) -> list[tuple]:
    rows = []
    for name, value in found.items():
        if isinstance(value, dict) and 'ratios' in value:
            encoder, corpus = name.split(', ')
            goals = dict.fromkeys(value['ratios'], 3)
            rows += rows_of(f'prediction, {encoder}, {CORPORA[corpus]}', value['ratios'], goals)
    return rows


def augmentation(found: dict) -> list[tuple]:
    return [row for batch, measured in found.get('batches', {}).items() for kind, compared in measured['ratios'].items()
            for row in rows_of(f'augmentation, {kind}, {batch}', compared, {'torch-audiomentations': 5})]


def data_path(found: dict) -> list[tuple]:
    rows = []
    for corpus, ways in found.get('repeats', {}).items():
        compared = ratios(ways, 'AudioStore', higher_is_better=False)
        rows += rows_of(f'random access, {CORPORA[corpus]}', compared, {'soundfile, each file': 20})
    return rows


def table(device: str) -> pd.DataFrame: # COLUMNS, one row a comparison
    rows = [*training(load('training', device), device), *prediction(load('prediction', device)),
            *augmentation(load('augmentation', device)), *data_path(load('data_path', device))]
    return pd.DataFrame(rows, columns=COLUMNS)


def markdown(found: pd.DataFrame) -> str:
    def number(x):
        return f'{x:.3g}' if x < 100 else f'{x:.0f}'
    lines = ['| what | against | times as fast | goal | |', '|---|---|---|---|---|']
    for row in found.itertuples():
        goal = '' if np.isnan(row.goal) else number(row.goal)
        met = '' if np.isnan(row.goal) else 'met' if row.median >= row.goal else '**missed**'
        ratio = f'{number(row.median)} ({number(row.low)} to {number(row.high)})'
        lines.append(f'| {row.what} | {row.against} | {ratio} | {goal} | {met} |')
    return '\n'.join(lines)


def plot(found: pd.DataFrame, device: str) -> None:
    "Every ratio on a logarithmic axis, with its goal."
    sns.set_theme(context='paper', style='whitegrid', palette='colorblind')
    fig, ax = plt.subplots(figsize=(7, .17 * len(found) + .8), dpi=150)
    at = np.arange(len(found))
    kind = found.what.str.split(',').str[0]
    for i, name in enumerate(kind.unique()):
        own = (kind == name).to_numpy()
        median, low, high = found['median'][own], found.low[own], found.high[own]
        ax.errorbar(median, at[own], xerr=[median - low, high - median], fmt='o', ms=3, lw=1, color=f'C{i}')
    ax.plot(found.goal, at, '|', color='k', ms=7, mew=1.5, label='goal')
    ax.axvline(1, color='.3', lw=1)
    ax.set(xscale='log', xlabel='times as fast as the other', ylim=(len(found) - .4, -.6))
    ax.set_yticks(at, [f'{row.what}  /  {row.against}' for row in found.itertuples()], fontsize=6)
    ax.legend(loc='lower right', fontsize=7)
    fig.tight_layout()
    for suffix in ('svg', 'png'):
        fig.savefig(RESULTS / f'ratios-{device}.{suffix}', metadata={'Date': None} if suffix == 'svg' else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
    device = parser.parse_args().device
    found = table(device)
    readme = Path(__file__).parent / 'README.md'
    before, rest = readme.read_text().split(f'<!-- {device} -->\n')
    _, after = rest.split(f'<!-- end {device} -->\n')
    content = f'{markdown(found)}\n\n![ratios](results/ratios-{device}.svg)'
    readme.write_text(f'{before}<!-- {device} -->\n{content}\n<!-- end {device} -->\n{after}')
    plot(found, device)
    print(markdown(found))


if __name__ == '__main__':
    main()
