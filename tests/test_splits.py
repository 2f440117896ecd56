"Folds of speakers, texts apart, what makes a split unfit, frozen splits."
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cdser.config import BadInput, Experiment
from cdser.corpora import Corpus, check_table, load_corpus, read_label_map, released, shipped
from cdser.parts import make_parts, open_recordings
from cdser.splits import (PARTS, Split, check_labels, check_split, findings, fold_of, freeze, plan_folds, read_split,
                          speaker_confound, split_corpus, split_hash, target_split)
from cdser.verify import audit_corpus, audit_folds, audit_summary, write_split
from trees import paper_trees

FROZEN = ('iemocap', 'cremad', 'ravdess', 'emodb', 'savee', 'nemo', 'urdu')
WORDS = dict(a='ang', h='hap', n='neu', s='sad')
FINE = dict.fromkeys('pqrstuvwx', 'ahnsahns')
NONE = np.array([], dtype=np.int64)


def known(name: str) -> Corpus:
    return Corpus(name, Path('nowhere') / name, check_table(released(name), name, read_label_map()[name]))


def made_up(speakers: dict[str, str], **columns) -> Corpus: # speaker -> labels, a letter each
    rows = [(speaker, WORDS[letter]) for speaker, letters in speakers.items() for letter in letters]
    table = pd.DataFrame(rows, columns=['speaker', 'label']).assign(path=[f'{i}.wav' for i in range(len(rows))])
    more = {name: [value(i) for i in table.index] for name, value in columns.items()}
    return Corpus('mine', Path('mine'), check_table(table.assign(**more), 'mine'))


def in_thirds(corpus: Corpus, seed: int = 0) -> list[Split]:
    return split_corpus(corpus, dict(protocol='k_fold', folds=3), seed)


def equal(splits: list[Split], others: list[Split]) -> bool:
    return all(np.array_equal(getattr(split, part), getattr(other, part))
               for split, other in zip(splits, others, strict=True) for part in PARTS)


@pytest.fixture(scope='module')
def paper(tmp_path_factory) -> Path:
    return paper_trees(tmp_path_factory.mktemp('paper'), per_speaker=1)


# ---- folds

@pytest.mark.parametrize('name, sessions', [('iemocap', 5), ('msp_improv', 6)])
def test_the_corpora_of_the_paper_leave_one_session_out_by_default(name, sessions, paper):
    corpus = load_corpus(name, paper)
    plan = plan_folds(corpus)
    assert plan == dict(protocol='leave_one_session_out', folds=sessions)
    for split in split_corpus(corpus, plan):
        tested = corpus.table.iloc[split.test]
        assert tested.speaker.nunique() == 2 and len(tested) == (corpus.table.session == tested.session.iloc[0]).sum()


def test_leaving_one_speaker_out_tests_each_speaker_once():
    corpus = known('iemocap')
    splits = split_corpus(corpus, plan_folds(corpus, 'leave_one_speaker_out'))
    tested = [corpus.table.speaker.iloc[split.test].unique().tolist() for split in splits]
    assert sorted(tested) == [[f'Ses0{i}{letter}'] for i in range(1, 6) for letter in 'FM']


@pytest.mark.parametrize('name', ['nemo', 'cremad', 'ravdess', 'emodb'])
def test_other_corpora_have_folds_of_whole_speakers_stratified_by_label(name):
    corpus = known(name)
    fold = fold_of(corpus.table, **plan_folds(corpus, folds=3))
    assert (pd.crosstab(corpus.table.speaker, fold) > 0).sum(axis=1).eq(1).all()
    shares = pd.crosstab(fold, corpus.table.label, normalize='index')
    overall = corpus.table.label.value_counts(normalize=True)
    assert np.abs(shares - overall[shares.columns]).to_numpy().max() < .09


@pytest.mark.parametrize('sizes', [(5, 5, 5), (90, 3, 3), (40, 40, 2), (1, 1, 9)])
def test_three_speakers_make_three_folds_however_uneven(sizes):
    corpus = made_up({speaker: ('asnh' * size)[:size] for speaker, size in zip('abc', sizes)})
    for split in in_thirds(corpus):
        assert len(split.train) and len(split.valid) and corpus.table.speaker.iloc[split.test].nunique() == 1


def test_texts_apart_keep_improvised_turns_of_iemocap():
    corpus = known('iemocap')
    for split in split_corpus(corpus, plan_folds(corpus), disjoint_texts=True):
        tested = corpus.table.iloc[split.test]
        improvised = (corpus.table.text_id == '') & (corpus.table.session == tested.session.iloc[0])
        assert (tested.text_id == '').sum() == improvised.sum() > 0
        rest = corpus.table.text_id.iloc[[*split.train, *split.valid]]
        assert not {*tested.text_id} & {*rest} - {''}


@pytest.mark.parametrize('speakers, folds, protocol, message', [
    (FINE, 1, 'k_fold', 'folds: 1 is too few'), (FINE, 10, 'k_fold', '10 folds need as many speakers or sessions'),
    (FINE, 3, 'leave_one_speaker_out', 'makes 9 folds here, not 3'),
    (dict(p='a'), 2, 'k_fold', 'at least two speakers'),
    (FINE, 3, 'leave_one_session_out', 'needs a session for every'),
    (dict(p='a', q='h', r='n'), 2, 'k_fold', 'need as many utterances of a label')])
def test_folds_that_cannot_be_are_refused(speakers, folds, protocol, message):
    with pytest.raises(BadInput, match=message):
        fold_of(made_up(speakers).table, folds, protocol)


# ---- what is fit

def kinds(corpus: Corpus, role: str, protocol: str = '', **plan) -> dict[str, set[str]]: # level -> kinds
    problems = audit_corpus(corpus, role, plan_folds(corpus, protocol, **plan) if plan or protocol else None)
    return {level: {finding.kind for finding in problems if finding.level == level} for level in ('error', 'warning')}


SINGLE = {f'{letter}{i}': letter * 4 for letter in 'ahns' for i in range(4)} # each speaker shows one emotion


@pytest.mark.parametrize('speakers, role, errors, warnings', [
    (FINE, 'target', set(), set()), (dict.fromkeys('pqr', 'ahnsahns'), 'target', set(), {'one speaker'}),
    (dict.fromkeys('pqrs', 'ahnsahns'), 'target', set(), set()),
    (dict.fromkeys('pqrs', 'ahnsahns'), 'source', set(), {'one speaker'}),
    (dict.fromkeys('pq', 'ahns'), 'target', {'no split'}, set()), ({'p': 'ahns'}, 'source', {'no split'}, set()),
    (dict.fromkeys('pqrstuvwx', 'ahn'), 'source', set(), {'absent class'}),
    (dict.fromkeys('pqrstuvwx', 'ahn'), 'target', set(), {'absent class'}),
    (dict.fromkeys('pqrstuvwx', 'aaa'), 'target', {'one class'}, {'absent class'}),
    (SINGLE, 'target', {'speaker is label'}, set()), (SINGLE, 'source', set(), {'speaker is label'}),
    ({'z': 'ahns', **SINGLE}, 'target', set(), {'confounded'}),
    ({'p': 'ahnsahns', 'q': 'ahnahn', 'r': 'ahnahn'}, 'target', {'never trained'}, {'one speaker', 'missing class'}),
    ({'p': 'ahns', 'q': 'ahns', 'r': 'aaaa'}, 'target', {'never trained', 'one class'}, {'one speaker'})])
def test_what_is_fit_for_which_role(speakers, role, errors, warnings):
    problems = kinds(made_up(speakers), role)
    assert problems['error'] == errors and warnings <= problems['warning'], problems


@pytest.mark.parametrize('name', FROZEN)
def test_real_corpora_can_be_run_in_either_role(name):
    corpus = known(name)
    either = [kinds(corpus, 'source'), kinds(corpus, 'target', folds=3)]
    assert not either[0]['error'] and not either[1]['error']
    assert ('confounded' in either[1]['warning']) == (name == 'urdu') == ('confounded' in either[0]['warning'])
    assert name != 'urdu' or 'one class' in kinds(corpus, 'target', 'leave_one_speaker_out')['error']


@pytest.mark.parametrize('column, name', [('speaker', 'speakers'), ('path', 'files'), ('sha256', 'checksums')])
def test_what_parts_share_is_named(column, name):
    table = made_up(FINE, sha256=lambda i: f'{i:064x}').table
    split = target_split(table, 0, 3, .2, 0)
    spoilt = table.copy()
    spoilt.loc[split.test[0], column] = table[column][split.train[0]]
    with pytest.raises(BadInput, match=f'shared {name}: train and test share {name}: 1') as err:
        check_split(spoilt, split, 'target')
    assert '\n' not in str(err.value)
    same = np.arange(len(table))
    same[split.valid[0]] = same[split.test[0]]
    assert [finding[:3] for finding in findings(table, [split], clips=same)] == [('error', 'shared clips', 'fold 0')]


def test_sessions_and_texts_count_if_folds_were_made_by_them():
    corpus = made_up(FINE, session=lambda i: f'd{i % 3}', text_id=lambda i: f't{i % 4}')
    table, splits = corpus.table, in_thirds(corpus) # of speakers, since everybody was there each day
    assert {finding.kind for finding in findings(table, splits)} == {'shared sessions'}
    assert {finding.level for finding in findings(table, splits, protocol='leave_one_session_out')} == {'error'}
    assert 'shared texts' in {finding.kind for finding in findings(table, splits, disjoint_texts=True)}
    with pytest.raises(BadInput, match="'p' speaks in several sessions"):
        fold_of(table, 3, 'leave_one_session_out')


def test_classes_that_are_tested_and_never_trained():
    table = made_up({'p': 'ahnsahns', 'q': 'ahnahn', 'r': 'ahnahn'}).table
    p, q, r = (np.flatnonzero(table.speaker == speaker) for speaker in 'pqr')
    with pytest.raises(BadInput, match='never trained: no utterance of sad is left to train on'):
        check_split(table, Split(q, p, NONE), 'source')
    warnings = check_split(table, Split(q, p, r), 'target') # sad is not tested either
    assert {finding.kind for finding in warnings} == {'one speaker', 'missing class'}
    check_labels(np.array([0, 1, 2, 3, -1]), np.array([0, 1]))
    with pytest.raises(BadInput, match='labels: neu, sad is tested'):
        check_labels(np.array([0, 1, -1]), np.array([0, 2, 3]))


def test_the_audit_counts_what_is_shared():
    corpus = known('nemo')
    table, splits = corpus.table, split_corpus(corpus, dict(protocol='k_fold', folds=3))
    mixed = table.assign(speaker=[f's{i % 9}' for i in range(len(table))])
    shared = audit_folds(mixed, splits)
    assert shared['shared speakers'].min() > 0 and not shared['shared checksums'].any()
    assert (shared['shared clips'] == '–').all()
    same, (a, b) = np.arange(len(table)), (splits[0].train[0], splits[0].test[0])
    same[b] = same[a]
    assert audit_folds(table, splits, same)['shared clips'].iloc[0] == 1
    assert audit_folds(table.assign(sha256=same.astype(str)), splits)['shared checksums'].iloc[0] == 1
    relabelled = table.assign(label=np.where(np.arange(len(table)) == b, 'sad', 'ang'))
    assert audit_summary('nemo', relabelled, splits, same)['clips with two labels'].iloc[0] == 1
    assert [round(speaker_confound(known(name).table)[0], 2) for name in ('urdu', 'nemo')] == [.96, .26]


# ---- frozen splits

@pytest.mark.parametrize('name', FROZEN)
def test_a_shipped_split_fits_the_manifest_and_is_what_the_code_makes(name):
    corpus = known(name)
    splits = read_split(shipped(f'splits/{name}.csv'), corpus.table)
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(len(corpus.table)))
    plan = plan_folds(corpus, 'leave_one_speaker_out' if name == 'savee' else '', folds=5)
    assert equal(splits, split_corpus(corpus, plan))


def test_a_split_has_the_same_hash_in_any_order_and_format_and_another_if_it_differs():
    corpus = known('emodb')
    table, splits = corpus.table, in_thirds(corpus)
    other = table.assign(path=table.path.str.replace('.wav', '.flac'))[::-1].reset_index(drop=True)
    again = [Split(*(len(table) - 1 - getattr(split, part)[::-1] for part in PARTS)) for split in splits]
    hashed = split_hash(freeze(table, splits))
    assert split_hash(freeze(other, again)) == hashed != split_hash(freeze(table, splits[::-1]))


@pytest.mark.parametrize('spoil, message', [
    (lambda frozen: frozen[1:], '1 recordings are only in one of the two, such as wav/03a01Fa'),
    (lambda frozen: pd.concat([frozen, frozen[:1]]), 'is listed twice'),
    (lambda frozen: frozen.assign(fold_1='tset'), "fold_1 holds ['tset']"),
    (lambda frozen: frozen.rename(columns={'fold_2': 'fold_7'}), 'expected fold_0, fold_1'),
    (lambda frozen: frozen.drop(columns='path'), 'has no column path'),
    (lambda frozen: frozen.assign(fold_0=['train', 'test'] + ['valid'] * (len(frozen) - 2)), 'share speakers'),
    (lambda frozen: frozen.assign(fold_0='test'), 'no utterances to train')])
def test_a_frozen_split_that_is_not_of_the_corpus_is_one_clear_error(spoil, message, tmp_path):
    corpus, file = known('emodb'), tmp_path / 'split.csv'
    spoil(freeze(corpus.table, in_thirds(corpus))).to_csv(file, index=False)
    with pytest.raises(BadInput) as err:
        read_split(file, corpus.table)
    assert str(err.value).startswith(str(file)) and message in str(err.value)


@pytest.mark.parametrize('paths', [[' a.wav', 'b.wav'], ['rec.0', 'rec.1'], ['a.wav', 'a.flac'], ['a', 'b.WAV'],
                                   ['a,"b".wav', 'é.ogg'], ['x.y.wav', 'x.z.wav']])
def test_a_split_that_is_written_is_read_again(paths, tmp_path):
    corpus, file = made_up(FINE, session=lambda i: f'd{i % 3}'), tmp_path / 'split.csv' # sessions that all parts share
    table = corpus.table.assign(path=paths + corpus.table.path[len(paths):].tolist())
    splits = in_thirds(corpus)
    assert write_split(table, splits, file) == split_hash(freeze(table, splits)) == write_split(table, splits, file)
    assert equal(read_split(file, table), splits) and [path.name for path in tmp_path.iterdir()] == ['split.csv']


def test_segments_of_recordings_are_frozen_each_by_itself(tmp_path):
    corpus = made_up(FINE, start=lambda i: float(i % 8), end=lambda i: i % 8 + .5)
    table, splits = corpus.table.assign(path=corpus.table.speaker + '.wav'), in_thirds(corpus)
    write_split(table, splits, tmp_path / 'split.csv')
    assert pd.read_csv(tmp_path / 'split.csv').path.tolist()[:2] == ['p#0-0.5', 'p#1-1.5']
    flac = table.assign(path=table.path.str.replace('.wav', '.flac'))
    assert equal(read_split(tmp_path / 'split.csv', flac), splits)


@pytest.mark.parametrize('spoil', [lambda s: Split(s.train, s.valid, s.train[:1]),
                                   lambda s: Split(s.train[:0], s.valid, s.test)])
def test_a_split_that_could_not_be_read_again_is_not_written(spoil, tmp_path):
    corpus = made_up(FINE)
    with pytest.raises(BadInput, match=f'^{tmp_path}/split.csv: '):
        write_split(corpus.table, [spoil(in_thirds(corpus)[0])], tmp_path / 'split.csv')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['a thesis', *(f'path,fold_0,{column}\n0,train,kept\n' for column in ('label',
                                                                                                       'fold_',
                                                                                                       'fold_a'))])
def test_only_what_is_a_split_and_nothing_more_is_replaced(text, tmp_path):
    corpus, file = made_up(FINE), tmp_path / 'split.csv'
    file.write_text(text)
    with pytest.raises(BadInput) as err:
        write_split(corpus.table, in_thirds(corpus), file, replace=True)
    assert str(err.value).startswith(f'{file}: is there already, and is no split') and file.read_text() == text
    write_split(corpus.table, in_thirds(corpus), tmp_path / 'there.csv')
    with pytest.raises(BadInput, match='holds another split, .*say --replace'):
        write_split(corpus.table, in_thirds(corpus, 1), tmp_path / 'there.csv')
    write_split(corpus.table, in_thirds(corpus, 1), tmp_path / 'there.csv', replace=True)
    assert equal(read_split(tmp_path / 'there.csv', corpus.table), in_thirds(corpus, 1))


def test_a_link_does_not_become_a_file(tmp_path):
    corpus, file = made_up(FINE), tmp_path / 'split.csv'
    file.symlink_to('there.csv')
    with pytest.raises(BadInput, match="split.csv: is a link to 'there.csv'; name the file itself"):
        write_split(corpus.table, in_thirds(corpus), file, replace=True)
    assert file.is_symlink() and not file.exists()


# ---- in runs

def test_runs_use_a_frozen_split(paper, tmp_path):
    def opened():
        return [open_recordings(name, paper, tmp_path, 1.) for name in ('msp_improv', 'iemocap')]
    corpus, e = load_corpus('iemocap', paper), Experiment('msp_improv', 'iemocap', protocol='frozen', folds=5)
    splits, file = split_corpus(corpus, plan_folds(corpus), seed=7), corpus.root / 'split.csv'
    with pytest.raises(BadInput, match='split.csv; cdser split writes one'):
        make_parts(e, *opened())
    try:
        write_split(corpus.table, splits[::-1], file)
        assert plan_folds(corpus) == dict(protocol='frozen', folds=5)
        frozen = opened()
        for fold in range(5):
            assert np.array_equal(make_parts(replace(e, fold=fold), *frozen).test.rows, splits[4 - fold].test)
        with pytest.raises(BadInput, match='has 5 folds, not 3'):
            make_parts(replace(e, folds=3), *frozen)
        untested = freeze(corpus.table, splits)
        untested.assign(fold_1=untested.fold_1.replace('test', '')).to_csv(file, index=False)
        with pytest.raises(BadInput, match='iemocap, fold 1: .*no utterances to test on'):
            make_parts(replace(e, fold=1), *opened())
    finally:
        file.unlink()


def test_an_experiment_by_session_trains_on_other_sessions_and_with_texts_apart_on_other_scripts(paper, tmp_path):
    source, target = (open_recordings(name, paper, tmp_path, 1.) for name in ('msp_improv', 'iemocap'))
    e = Experiment('msp_improv', 'iemocap', 'labelled_target', protocol='leave_one_session_out', folds=5, fold=2)
    with pytest.raises(BadInput, match='5 folds need as many texts, and there are 3'):
        make_parts(replace(e, disjoint_texts=True), source, target)
    scripts = target.corpus.table.assign(text_id=[f'script0{i % 5}' for i in range(len(target.corpus.table))])
    target = replace(target, corpus=replace(target.corpus, table=scripts))
    for disjoint in (False, True):
        parts = make_parts(replace(e, disjoint_texts=disjoint), source, target)
        tested, trained = (target.corpus.table.iloc[part.rows] for part in (parts.test, parts.training[1]))
        assert set(tested.session) == {'03'} and '03' not in set(trained.session)
        assert set(tested.text_id).isdisjoint(trained.text_id) == disjoint
