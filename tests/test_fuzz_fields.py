"Fields of experiments, label maps and splits that are of a wrong type or extent, or contradict each other."
import json
import math
from dataclasses import asdict, fields

import numpy as np
import pandas as pd

from cdser.config import LABELS, PROTOCOLS, Experiment, check_experiment, content_hash, from_dict, parse_pairs
from cdser.corpora import COLUMNS, NUMBERS, read_label_map
from cdser.splits import check_split, make_splits, read_split
from fuzzing import fuzzed, naming, pick

NAMES = tuple(field.name for field in fields(Experiment))
VALUES = (None, True, False, 0, 1, -1, 2, 3, 1., 1.5, -.5, .5, 1e-30, 1e30, 10**6, 2**70, -2**70, math.nan, math.inf, -math.inf, '', '1', 'nano', 'k_fold',
          'frozen', 'few_shot', 'target_only', 'tapt', 'snd', 'noise', '../x', '.', '/', 'a/b', '~', ' ', 'x' * 300, 'x' * 10**6, '\0', '\x1b[2J', '\n',
          '\ud800', '漢', b'x', [], [[]], ['noise'], ['noise', 'noise'], ['noise', 3], [None], (), ('noise',), {}, {'emotion': 1.}, {'emotion': '1'},
          {'emotion': None}, {'emotion': math.inf}, {'emotion': math.nan}, {'emotion': -1}, {'emotion': 0}, {'emotion': True}, {'emotion': 2**70},
          {'emotion': {}}, {3: 1.}, {None: 1.}, {'emotion': 1., 'dann': 1.}, {'emotion': 1., 'no such term': 1.}, {'': 1.}, {'os.system': 1.}, {'a.b:c': 1.},
          {'contrastive': .1}, set(), frozenset({'noise'}), object, 1j, np.int64(2), np.float32(.5), np.float64('nan'), np.array(1), np.array([1, 2]), np.str_('nano'),
          np.bool_(True), range(2), lambda: 1)
JSON = tuple(value for value in VALUES if isinstance(value, (type(None), bool, int, float, str, list, dict)) and not isinstance(value, np.generic))
COMMON = ({'setup': 'few_shot'}, {'setup': 'source_only', 'weights': {'emotion': 1.}}, {'setup': 'labelled_target'}, {'protocol': 'frozen'}, {'views': 1}, {})


def check_accepted(e: Experiment) -> None:
    "What is accepted can be written, is read back as the same, and holds no number that is none."
    written = json.dumps(asdict(e), allow_nan=False)
    again = from_dict(json.loads(written))
    assert check_experiment(again) == e and content_hash(asdict(again)) == content_hash(asdict(e)), 'it is not read back as it was written'
    assert all(isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0 for weight in e.weights.values()), 'weights'
    assert all(getattr(e, name) >= least for name, least in (('folds', 1), ('epochs', 1), ('views', 1), ('fold', 0), ('seed', 0))), 'extent'
    for name, kind in (('source', str), ('encoder', str), ('seed', int), ('epochs', int), ('folds', int), ('disjoint_texts', bool), ('freeze_encoder', bool)):
        assert isinstance(getattr(e, name), kind), f'{name} is {getattr(e, name)!r}'


@fuzzed('experiments', short=700)
def test_odd_fields_of_experiments(rng, folder, number):
    "Each field takes each value alone; then several together."
    alone = [(name, value) for name in NAMES for value in VALUES]
    if number < 400: chosen = dict([alone[number * 7919 % len(alone)]])
    else: chosen = {name: pick(rng, VALUES) for name in rng.choice(NAMES, rng.integers(1, 4), replace=False)}
    given = {'source': 'studio_a', 'target': 'studio_b', **pick(rng, COMMON), **chosen}
    return naming(NAMES, lambda: check_accepted(check_experiment(Experiment(**given))))


@fuzzed('experiments', short=300)
def test_odd_records_of_experiments(rng, folder, number):
    "As JSON brings them: fields that are missing, unknown or odd, records that are none."
    held = asdict(Experiment('studio_a', 'studio_b')) | pick(rng, COMMON)
    for _ in range(rng.integers(3)): held[pick(rng, NAMES)] = pick(rng, JSON)
    for _ in range(int(pick(rng, (0, 0, 1, 2)))): held.pop(pick(rng, list(held)))
    for _ in range(int(pick(rng, (0, 0, 0, 1)))): held[pick(rng, ('epoch', 'Seed', '', 'x' * 500, '\x1b[31m', '__class__', 'self', 'weights '))] = pick(rng, JSON)
    held = pick(rng, (held,) * 12 + (*JSON[::5], [held]))
    return lambda: check_accepted(check_experiment(from_dict(held)))


WORDS = ('a', 'b', 'studio_a', '>', ',', ' ', '\n', '', '..', 'a>b', 'b>a', '>>', '\0', 'é', 'x' * 300, '\x1b[2J', ';', '|')


@fuzzed('experiments', short=100)
def test_odd_pairs(rng, folder, number):
    text = ''.join(pick(rng, WORDS) for _ in range(rng.integers(7)))
    def ask():
        for pair in parse_pairs(text): assert len(pair) == 2 and all(pair) and pair[0] != pair[1]
    return naming(('pairs',), ask)


CELLS = ('', ' ', 'ang', 'hap', 'neu', 'sad', 'Ang', 'ang ', 'xxx', '1', '-1', '1.0', 'nan', 'NA', 'None', '\u00a0', 'e\u0301', 'é', '"', "'", 'a,b', '\t', '#',
         '\0', '\x1b[31m', 'x' * 300, '../x', '=1+1')
HEADS = ('corpus,emotion,label', 'corpus,emotion', 'label,emotion,corpus', 'corpus,emotion,label,label', 'corpus;emotion;label', 'Corpus,Emotion,Label', '', 'corpus',
         'corpus,emotion,label,note', ' corpus, emotion, label')


@fuzzed('label maps', short=300)
def test_odd_rows_of_label_maps(rng, folder, number):
    lines = [pick(rng, HEADS[:1] * 9 + HEADS)]
    for _ in range(rng.integers(1, 9)):
        cells = [pick(rng, ('emodb', 'mine', *CELLS)), pick(rng, CELLS), pick(rng, (*LABELS, *LABELS, '', pick(rng, CELLS)))]
        lines.append(','.join(cells + ['x'] * int(pick(rng, (0, 0, 0, 0, 1)))))
    path = folder / 'map.csv'
    path.write_text(pick(rng, ('\n', '\n', '\r\n')).join(lines), encoding='utf-8')
    def ask():
        for corpus, known in read_label_map(path).items():
            assert isinstance(corpus, str) and known and set(known.values()) <= {'', *LABELS}
    return naming((str(path),), ask)


def random_table(rng) -> pd.DataFrame:
    "A checked table of any shape: few speakers or many, labels that some never say, sessions and texts or none."
    n, speakers = int(rng.integers(1, int(pick(rng, (9, 60, 250, 250))))), int(pick(rng, (1, 2, 3, 6, 9, 12, 12, 40)))
    table = pd.DataFrame({column: np.nan if column in NUMBERS else '' for column in COLUMNS}, index=range(n))
    who = rng.integers(speakers, size=n)
    labels = np.array(LABELS)[:int(pick(rng, (1, 2, 4, 4, 4, 4)))]
    table['path'], table['speaker'] = [f'{i}.wav' for i in range(n)], [f's{k}' for k in who]
    table['label'] = labels[who % len(labels)] if rng.random() < .2 else labels[rng.integers(len(labels), size=n)]
    if rng.random() < .5: table['text_id'] = [f't{k}' for k in rng.integers(int(pick(rng, (1, 3, 9))), size=n)]
    if rng.random() < .4: table['session'] = [f'{k // 2}' for k in who] if rng.random() < .7 else [f'{k}' for k in rng.integers(3, size=n)]
    return table


def check_disjoint(table: pd.DataFrame, splits: list, texts: bool = False) -> None:
    "No speaker is in two parts of a fold, no row twice, and every row is tested once at most."
    for split in splits:
        parts = [set(table.speaker.iloc[rows]) for rows in (split.train, split.valid, split.test)]
        assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]), 'a speaker is in two parts'
        rows = np.concatenate([split.train, split.valid, split.test])
        assert len(set(rows)) == len(rows) and (not len(rows) or 0 <= rows.min() <= rows.max() < len(table)), 'a row is there twice, or is none'
        said = set(table.text_id.iloc[split.test]) - {''}
        assert not texts or not said & set(table.text_id.iloc[np.concatenate([split.train, split.valid])]), 'a tested text was said in training'
    tested = np.concatenate([split.test for split in splits])
    assert len(set(tested)) == len(tested), 'a row is tested twice'


@fuzzed('splits', short=150)
def test_any_table_is_split_without_a_leak_or_refused(rng, folder, number):
    table, texts = random_table(rng), bool(rng.random() < .4)
    plan = dict(protocol=pick(rng, ('k_fold', 'k_fold', 'k_fold', *PROTOCOLS[1:3])), folds=int(pick(rng, (1, 2, 2, 3, 3, 4, 5, 12))))
    groups = {'leave_one_session_out': 'session', 'leave_one_speaker_out': 'speaker'}.get(plan['protocol'])
    if groups and rng.random() < .8: plan['folds'] = table[groups].nunique()
    share, seed = float(pick(rng, (.01, .2, .2, .5, .99))), int(rng.integers(99))
    def ask():
        splits = make_splits(table, plan, share, seed, texts)
        for split in splits: check_split(table, split) # as a run does
        check_disjoint(table, splits, texts)
    return ask


@fuzzed('splits', short=120)
def test_odd_rows_of_splits(rng, folder, number):
    "Parts dealt at random by speaker or by row, columns with odd names, recordings too many or too few."
    table, folds = random_table(rng), int(rng.integers(1, 4))
    held = pd.DataFrame({'path': table.path.str.removesuffix('.wav')})
    for fold in range(folds):
        dealt = {who: pick(rng, ('train', 'train', 'valid', 'test')) for who in sorted(set(table.speaker))}
        held[f'fold_{fold}'] = [dealt[who] for who in table.speaker]
    for _ in range(int(pick(rng, (0, 0, 1, 2)))):
        held.iloc[rng.integers(len(held)), rng.integers(held.shape[1])] = pick(rng, ('train', 'valid', 'test', 'tested', *CELLS))
    if rng.random() < .2: held = held.rename(columns={'fold_0': pick(rng, ('fold_', 'fold_1', 'fold_00', 'Fold_0', 'fold_x', '', 'path'))})
    if rng.random() < .2: held = pd.concat([held, held.iloc[:rng.integers(3)]])
    if rng.random() < .1: held = held.iloc[1:]
    path = folder / 'split.csv'
    held.to_csv(path, index=False)
    def ask():
        for split in read_split(path, table): check_disjoint(table, [split])
    return naming((str(path),), ask)
