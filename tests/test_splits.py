"Protocols, texts apart, frozen splits and their audit."
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdser.config import PROTOCOLS, BadInput, Experiment
from cdser.corpora import Corpus, check_table, load_corpus, read_label_map, released, shipped
from cdser.runs import make_parts, open_recordings
from cdser.splits import (PARTS, Split, audit_corpus, audit_folds, check_labels, check_split, findings, fold_of, freeze, judge,
                          make_splits, plan_folds, read_split, split_corpus, split_hash, target_split, write_split)
from trees import paper_trees

FROZEN = ('iemocap', 'cremad', 'ravdess', 'emodb', 'savee', 'nemo', 'urdu')


def known(name: str) -> Corpus:
    return Corpus(name, Path('nowhere') / name, check_table(released(name), name, read_label_map()[name]))


@pytest.fixture(scope='module')
def paper(tmp_path_factory) -> Path:
    return paper_trees(tmp_path_factory.mktemp('paper'), per_speaker=1)


@pytest.mark.parametrize('name, sessions', [('iemocap', 5), ('msp_improv', 6)])
def test_the_corpora_of_the_paper_leave_one_session_out_by_default(name, sessions, paper):
    corpus = load_corpus(name, paper)
    plan = plan_folds(corpus)
    assert plan == dict(protocol='leave_one_session_out', folds=sessions)
    for split in make_splits(corpus.table, plan):
        tested = corpus.table.iloc[split.test]
        assert tested.session.nunique() == 1 and tested.speaker.nunique() == 2
        assert len(tested) == (corpus.table.session == tested.session.iloc[0]).sum()
        valid, train = (set(corpus.table.speaker.iloc[rows]) for rows in (split.valid, split.train))
        assert valid and train and valid.isdisjoint(train) and not (valid | train) & set(tested.speaker)


def test_leaving_one_speaker_out_tests_each_speaker_once():
    corpus = known('iemocap')
    plan = plan_folds(corpus, 'leave_one_speaker_out')
    tested = [corpus.table.speaker.iloc[split.test].unique().tolist() for split in make_splits(corpus.table, plan)]
    assert sorted(tested) == [[f'Ses0{i}{g}'] for i in range(1, 6) for g in 'FM']


@pytest.mark.parametrize('name', ['nemo', 'cremad', 'ravdess', 'emodb'])
def test_other_corpora_have_folds_of_whole_speakers_stratified_by_label(name):
    corpus = known(name)
    plan = plan_folds(corpus, folds=3)
    fold = fold_of(corpus.table, **plan)
    assert plan['protocol'] == 'k_fold' and (corpus.table.groupby('speaker').apply(lambda rows: len(set(fold[rows.index]))) == 1).all()
    shares = pd.crosstab(fold, corpus.table.label, normalize='index')
    overall = corpus.table.label.value_counts(normalize=True)
    assert np.abs(shares - overall[shares.columns]).to_numpy().max() < .09


@pytest.mark.parametrize('sizes', [(5, 5, 5), (90, 3, 3), (40, 40, 2), (1, 1, 9)])
def test_three_speakers_make_three_folds_however_uneven(sizes):
    speakers = np.repeat(['a', 'b', 'c'], sizes)
    table = check_table(pd.DataFrame(dict(path=[f'{i}.wav' for i in range(len(speakers))], label=np.resize(['ang', 'sad', 'neu', 'hap'], len(speakers)), speaker=speakers)), 'mine')
    for split in make_splits(table, dict(protocol='k_fold', folds=3)): assert len(split.train) and len(split.valid) and table.speaker.iloc[split.test].nunique() == 1


@pytest.mark.parametrize('name', ['iemocap', 'emodb', 'nemo', 'cremad'])
def test_texts_apart_share_neither_text_nor_speaker_between_testing_and_the_rest(name):
    corpus = known(name)
    for split in make_splits(corpus.table, plan_folds(corpus, folds=3), disjoint_texts=True):
        said = {part: corpus.table.iloc[getattr(split, part)] for part in PARTS}
        assert all(len(rows) > 10 for rows in said.values())
        for part in ('train', 'valid'):
            assert not (set(said[part].text_id) & set(said['test'].text_id)) - {''}
            assert not set(said[part].speaker) & set(said['test'].speaker)


def test_texts_apart_keep_improvised_turns_of_iemocap():
    corpus = known('iemocap')
    split = make_splits(corpus.table, plan_folds(corpus), disjoint_texts=True)[0]
    tested = corpus.table.iloc[split.test]
    improvised = (corpus.table.text_id == '') & (corpus.table.session == '01')
    assert (tested.text_id == '').sum() == improvised.sum() > 0 and (tested.text_id != '').any()


@pytest.mark.parametrize('name', FROZEN)
def test_a_shipped_split_fits_the_manifest_and_is_what_the_code_makes(name):
    corpus = known(name)
    splits = read_split(shipped(f'splits/{name}.csv'), corpus.table)
    assert sorted(np.concatenate([split.test for split in splits])) == list(range(len(corpus.table)))
    plan = plan_folds(corpus, 'leave_one_speaker_out' if name == 'savee' else '', folds=5)
    assert split_hash(freeze(corpus.table, splits)) == split_hash(freeze(corpus.table, make_splits(corpus.table, plan)))
    shared = audit_folds(corpus.table, splits)
    assert not shared[['shared speakers', 'shared files']].to_numpy().any()


def test_a_split_has_the_same_hash_in_any_order_and_format_and_another_where_it_differs():
    table = known('emodb').table
    splits = make_splits(table, dict(protocol='k_fold', folds=3))
    one = split_hash(freeze(table, splits))
    other = table.assign(path=table.path.str.replace('.wav', '.flac'))[::-1].reset_index(drop=True)
    again = [type(split)(*(len(table) - 1 - getattr(split, part)[::-1] for part in PARTS)) for split in splits]
    assert split_hash(freeze(other, again)) == one
    assert split_hash(freeze(table, splits[::-1])) != one


@pytest.mark.parametrize('spoil, message', [
    (lambda frozen: frozen[1:], '1 recordings are only in one of the two, such as wav/03a01Fa'),
    (lambda frozen: pd.concat([frozen, frozen[:1]]), 'is listed twice'),
    (lambda frozen: frozen.assign(fold_1='tset'), "fold_1 holds ['tset']"),
    (lambda frozen: frozen.rename(columns={'fold_2': 'fold_7'}), 'expected fold_0, fold_1'),
    (lambda frozen: frozen.drop(columns='path'), 'has no column path'),
    (lambda frozen: frozen.assign(fold_0=['train', 'test'] + ['valid'] * (len(frozen) - 2)), 'share speakers'),
    (lambda frozen: frozen.assign(fold_0='test'), 'no utterances to train')])
def test_a_frozen_split_that_is_not_of_the_corpus_is_one_clear_error(spoil, message, tmp_path):
    table = known('emodb').table
    spoil(freeze(table, make_splits(table, dict(protocol='k_fold', folds=3)))).to_csv(tmp_path / 'split.csv', index=False)
    with pytest.raises(BadInput) as err: read_split(tmp_path / 'split.csv', table)
    assert message in str(err.value)


def test_runs_use_a_frozen_split_and_are_other_runs_with_another(paper, tmp_path):
    corpus = load_corpus('iemocap', paper)
    plain = [open_recordings(name, paper, tmp_path, 1.) for name in ('msp_improv', 'iemocap')]
    e = Experiment('msp_improv', 'iemocap', protocol='frozen', folds=5)
    with pytest.raises(BadInput, match='split.csv; cdser split writes one'): make_parts(e, *plain)
    splits = make_splits(corpus.table, plan_folds(corpus), seed=7)
    try:
        freeze(corpus.table, splits[::-1]).to_csv(corpus.root / 'split.csv', index=False)
        assert plan_folds(corpus) == dict(protocol='frozen', folds=5)
        frozen = [open_recordings(name, paper, tmp_path, 1.) for name in ('msp_improv', 'iemocap')]
        assert frozen[1].digest != plain[1].digest and frozen[0].digest == plain[0].digest
        for fold in range(5): assert np.array_equal(make_parts(replace(e, fold=fold), *frozen).test.rows, splits[4 - fold].test)
        untested = freeze(corpus.table, splits)
        untested.assign(fold_1=untested.fold_1.replace('test', '')).to_csv(corpus.root / 'split.csv', index=False)
        with pytest.raises(BadInput, match='iemocap, fold 1: .*no utterances to test on'):
            make_parts(replace(e, fold=1), *(open_recordings(name, paper, tmp_path, 1.) for name in ('msp_improv', 'iemocap')))
        freeze(corpus.table, splits[::-1]).to_csv(corpus.root / 'split.csv', index=False)
        with pytest.raises(BadInput, match='has 5 folds, not 3'): make_parts(replace(e, folds=3), *frozen)
        assert all(np.array_equal(a.test, b.test) for a, b in zip(split_corpus(corpus, plan_folds(corpus)), splits[::-1]))
    finally: (corpus.root / 'split.csv').unlink()


def test_an_experiment_by_session_trains_on_other_sessions_and_with_texts_apart_on_other_scripts(paper, tmp_path):
    source, target = (open_recordings(name, paper, tmp_path, 1.) for name in ('msp_improv', 'iemocap'))
    e = Experiment('msp_improv', 'iemocap', 'labelled_target', protocol='leave_one_session_out', folds=5, fold=2)
    with pytest.raises(BadInput, match='5 folds need as many texts, and there are 3'): make_parts(replace(e, disjoint_texts=True), source, target)
    scripts = target.corpus.table.assign(text_id=[f'script0{i % 5}' for i in range(len(target.corpus.table))])
    target = replace(target, corpus=replace(target.corpus, table=scripts))
    for disjoint in (False, True):
        parts = make_parts(replace(e, disjoint_texts=disjoint), source, target)
        tested, trained = (target.corpus.table.iloc[part.rows] for part in (parts.test, parts.training[1]))
        assert set(tested.session) == {'03'} and '03' not in set(trained.session)
        assert set(tested.text_id).isdisjoint(trained.text_id) == disjoint
    with pytest.raises(BadInput, match='leave_one_session_out makes 5 folds here, not 4'): make_parts(replace(e, folds=4), source, target)


def test_the_audit_tells_what_is_shared():
    table = known('nemo').table[:400].reset_index(drop=True)
    splits = make_splits(table.assign(speaker=[f's{i % 9}' for i in range(400)]), dict(protocol='k_fold', folds=3))
    rows = audit_folds(table, splits)
    assert rows['shared speakers'].min() > 0 and (rows['shared checksums'] == 0).all() and (rows['shared clips'] == '–').all()
    same = np.arange(400)
    a, b = splits[0].train[0], splits[0].test[0]
    same[b] = same[a]
    assert audit_folds(table, splits, same)['shared clips'].iloc[0] == 1
    assert audit_folds(table.assign(sha256=same.astype(str)), splits)['shared checksums'].iloc[0] == 1
    assert audit_corpus('nemo', table.assign(label=np.where(np.arange(400) == b, 'sad', 'ang')), splits, same)['clips with two labels'].iloc[0] == 1


def test_speakers_tell_labels_in_urdu_and_hardly_in_nemo():
    tell = {name: audit_corpus(name, (corpus := known(name)).table, make_splits(corpus.table, dict(protocol='k_fold', folds=3)))
            for name in ('urdu', 'nemo')}
    assert tell['urdu']['speaker tells label'].iloc[0] == '96%' and tell['nemo']['speaker tells label'].iloc[0] == '26%'
    speaks = known('urdu').table.groupby('speaker').label.nunique()
    assert len(speaks) == 29 and (speaks == 1).sum() == 26


def made_up(speakers: dict[str, str], **columns) -> pd.DataFrame: # speaker -> labels, a letter each
    "A table of utterances."
    rows = [(speaker, {'a': 'ang', 'h': 'hap', 'n': 'neu', 's': 'sad'}[letter]) for speaker, letters in speakers.items() for letter in letters]
    table = pd.DataFrame(dict(path=[f'{i}.wav' for i in range(len(rows))], label=[label for _, label in rows], speaker=[speaker for speaker, _ in rows]))
    return check_table(table.assign(**{name: [of(i) for i in table.index] for name, of in columns.items()}), 'mine')


def kinds(table: pd.DataFrame, role: str, protocol: str = '', **plan) -> dict[str, set[str]]: # level -> kinds
    corpus = Corpus('mine', Path('mine'), table)
    found = judge(corpus, role, plan_folds(corpus, protocol, **plan) if plan or protocol else None)
    return {level: {finding.kind for finding in found if finding.level == level} for level in ('error', 'warning')}


FINE = dict.fromkeys('pqrstuvwx', 'ahnsahns')


@pytest.mark.parametrize('speakers, role, errors, warnings', [
    (FINE, 'target', set(), set()),
    (dict.fromkeys('pqr', 'ahnsahns'), 'target', set(), {'one speaker'}),
    (dict.fromkeys('pqrs', 'ahnsahns'), 'source', set(), {'one speaker'}),
    (dict.fromkeys('pq', 'ahns'), 'target', {'no split'}, set()),
    ({'p': 'ahns'}, 'source', {'no split'}, set()),
    ({'p': 'ahns'}, 'target', {'no split'}, set()),
    (dict.fromkeys('pqrstuvwx', 'ahn'), 'source', set(), {'absent class'}),
    (dict.fromkeys('pqrstuvwx', 'ahn'), 'target', set(), {'absent class'}),
    (dict.fromkeys('pqrstuvwx', 'aaa'), 'target', {'one class'}, {'absent class'}),
    ({f'{letter}{i}': letter * 4 for letter in 'ahns' for i in range(4)}, 'target', {'speaker is label'}, set()),
    ({f'{letter}{i}': letter * 4 for letter in 'ahns' for i in range(4)}, 'source', set(), {'speaker is label'}),
    ({'z': 'ahns', **{f'{letter}{i}': letter * 4 for letter in 'ahns' for i in range(4)}}, 'target', set(), {'confounded'}),
    ({'p': 'ahnsahns', 'q': 'ahnahn', 'r': 'ahnahn'}, 'target', {'never trained'}, {'one speaker', 'missing class'}),
    ({'p': 'ahns', 'q': 'ahns', 'r': 'aaaa'}, 'target', {'never trained', 'one class'}, {'one speaker'})])
def test_what_is_fit_for_which_role(speakers, role, errors, warnings):
    found = kinds(made_up(speakers), role)
    assert found['error'] == errors and warnings <= found['warning'], found


def test_a_corpus_of_four_speakers_of_eight_utterances_can_be_run_in_either_role():
    table = made_up(dict.fromkeys('pqrs', 'ahnsahns'))
    assert kinds(table, 'source')['error'] == kinds(table, 'target')['error'] == set()
    for fold in range(3): assert all(finding.level == 'warning' for finding in check_split(table, target_split(table, fold, 3, .2, 0), 'target'))


def test_leaving_speakers_out_who_show_one_emotion_tests_one_class():
    corpus = known('urdu')
    assert kinds(corpus.table, 'target', 'leave_one_speaker_out')['error'] >= {'one class'}
    assert kinds(corpus.table, 'target') == kinds(corpus.table, 'source') == {'error': set(), 'warning': {'confounded'}}


@pytest.mark.parametrize('name', ['emodb', 'nemo', 'cremad', 'ravdess', 'iemocap', 'savee'])
def test_real_corpora_can_be_run_in_either_role(name):
    table = known(name).table
    assert kinds(table, 'source')['error'] == kinds(table, 'target', folds=3)['error'] == set()
    assert {'confounded', 'absent class', 'missing class'}.isdisjoint(kinds(table, 'target', folds=3)['warning'])


@pytest.mark.parametrize('column, name', [('speaker', 'speakers'), ('path', 'files'), ('sha256', 'checksums')])
def test_what_parts_share_is_named(column, name):
    table = made_up(FINE, sha256=lambda i: f'{i:064x}')
    split = target_split(table, 0, 3, .2, 0)
    spoilt = table.copy()
    spoilt.loc[split.test[0], column] = table[column][split.train[0]]
    if column == 'path': spoilt = spoilt.assign(start=0., end=1.) # segments of one recording
    with pytest.raises(BadInput, match=f'shared {name}: train and test share {name}: 1') as err: check_split(spoilt, split, 'target')
    assert '\n' not in str(err.value)
    same = np.arange(len(table))
    same[split.valid[0]] = same[split.test[0]]
    assert [finding[:3] for finding in findings(table, [split], clips=same)] == [('error', 'shared clips', 'fold 0')]


def test_sessions_and_texts_count_where_folds_were_made_by_them():
    table = made_up(FINE, session=lambda i: f'd{i % 3}', text_id=lambda i: f't{i % 4}')
    splits = make_splits(table, dict(protocol='k_fold', folds=3)) # of speakers, since everybody was there each day
    assert {finding.kind for finding in findings(table, splits)} == {'shared sessions'}
    assert {finding.level for finding in findings(table, splits, protocol='leave_one_session_out')} == {'error'}
    assert 'shared texts' in {finding.kind for finding in findings(table, splits, disjoint_texts=True)}
    with pytest.raises(BadInput, match='speaks in several sessions'): plan_folds(Corpus('iemocap', Path('no'), table)) and fold_of(table, 3, 'leave_one_session_out')


def test_classes_that_are_tested_and_never_trained():
    table = made_up({'p': 'ahnsahns', 'q': 'ahnahn', 'r': 'ahnahn'})
    p, q, r = (np.flatnonzero(table.speaker == speaker) for speaker in 'pqr')
    with pytest.raises(BadInput, match='never trained: no utterance of sad is left to train on'): check_split(table, Split(q, p, np.array([], dtype=int)), 'source')
    assert {finding.kind for finding in check_split(table, Split(q, p, r), 'target')} == {'one speaker', 'missing class'} # it is not tested either
    check_labels(np.array([0, 1, 2, 3, -1]), np.array([0, 1]))
    with pytest.raises(BadInput, match='labels: neu, sad is tested'): check_labels(np.array([0, 1, -1]), np.array([0, 2, 3]))


@pytest.mark.parametrize('paths', [[' a.wav', 'b.wav'], ['rec.0', 'rec.1'], ['a.wav', 'a.flac'], ['a', 'b.WAV'], ['a,"b".wav', 'é.ogg'], ['x.y.wav', 'x.z.wav']])
def test_a_split_that_is_written_is_read_again(paths, tmp_path):
    table = made_up(FINE)
    table['path'] = paths + table.path[len(paths):].tolist()
    splits = make_splits(table, dict(protocol='k_fold', folds=3))
    hashed = write_split(table, splits, tmp_path / 'split.csv')
    for a, b in zip(read_split(tmp_path / 'split.csv', table), splits, strict=True): assert all(np.array_equal(getattr(a, p), getattr(b, p)) for p in PARTS)
    assert hashed == split_hash(freeze(table, splits)) and [path.name for path in tmp_path.iterdir()] == ['split.csv']


def test_segments_of_recordings_are_frozen_each_by_itself(tmp_path):
    table = made_up(FINE, start=lambda i: float(i % 8), end=lambda i: i % 8 + .5)
    table['path'] = table.speaker + '.wav'
    splits = make_splits(table, dict(protocol='k_fold', folds=3))
    write_split(table, splits, tmp_path / 'split.csv')
    assert pd.read_csv(tmp_path / 'split.csv').path.tolist()[:2] == ['p#0-0.5', 'p#1-1.5']
    flac = table.assign(path=table.path.str.replace('.wav', '.flac'))
    assert np.array_equal(read_split(tmp_path / 'split.csv', flac)[0].test, splits[0].test)


@pytest.mark.parametrize('spoil', [lambda s: Split(s.train, s.valid, s.train[:1]), lambda s: Split(s.train[:0], s.valid, s.test),
                                   lambda s: Split(np.append(s.train, s.train[0]), s.valid, s.test)])
def test_a_split_that_could_not_be_read_again_is_not_written(spoil, tmp_path):
    table = made_up(FINE)
    with pytest.raises(BadInput, match='is not written'): write_split(table, [spoil(target_split(table, 0, 3, .2, 0))], tmp_path / 'split.csv')
    (tmp_path / 'split.csv').write_text('a thesis')
    with pytest.raises(BadInput, match='is no split'): write_split(table, [target_split(table, 0, 3, .2, 0)], tmp_path / 'split.csv', replace=True)
    assert (tmp_path / 'split.csv').read_text() == 'a thesis' and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize('column', ['label', 'note', 'fold_', 'fold_a', ' fold_0'])
def test_only_what_is_a_split_and_nothing_more_is_replaced(column, tmp_path):
    table, file = made_up(FINE), tmp_path / 'split.csv'
    one, other = (make_splits(table, dict(protocol='k_fold', folds=3), seed=seed) for seed in (0, 1))
    freeze(table, one).assign(**{column: 'kept'}).to_csv(file, index=False)
    before = file.read_bytes()
    with pytest.raises(BadInput) as err: write_split(table, other, file, replace=True)
    assert str(err.value).startswith(f'{file}: is there already, and is no split') and file.read_bytes() == before
    freeze(table, one).to_csv(file, index=False)
    assert write_split(table, other, file, replace=True) == split_hash(freeze(table, other)) == split_hash(pd.read_csv(file, dtype=str))


@pytest.mark.parametrize('whole', [True, False])
def test_a_link_does_not_become_a_file(whole, tmp_path):
    table, file = made_up(FINE), tmp_path / 'split.csv'
    splits = make_splits(table, dict(protocol='k_fold', folds=3))
    if whole: write_split(table, splits, tmp_path / 'there.csv')
    file.symlink_to('there.csv')
    for seed in (0, 1):
        with pytest.raises(BadInput, match="split.csv: is a link to 'there.csv'; name the file itself"):
            write_split(table, make_splits(table, dict(protocol='k_fold', folds=3), seed=seed), file, replace=True)
    assert file.is_symlink() and (tmp_path / 'there.csv').exists() == whole


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(st.sampled_from('abcdefg'), st.sampled_from(('ang', 'hap', 'neu', 'sad')), st.sampled_from(('', 'x', 'y', 'z')), st.sampled_from('1234')),
                     min_size=1, max_size=40), folds=st.integers(-1, 6), protocol=st.sampled_from(PROTOCOLS[:3]), apart=st.booleans(), seed=st.integers(0, 99))
def test_splits_never_leak_for_any_table(rows, folds, protocol, apart, seed):
    table = check_table(pd.DataFrame(rows, columns=['speaker', 'label', 'session', 'text_id']).assign(path=[f'{i}.wav' for i in range(len(rows))]), 'any')
    try: splits = make_splits(table, dict(protocol=protocol, folds=folds), seed=seed, disjoint_texts=apart)
    except BadInput as err:
        assert len(str(err).splitlines()) == 1
        return
    assert len(splits) == folds
    for split in splits:
        parts = [getattr(split, part) for part in PARTS]
        assert len(split.train) and len(split.valid) and len(set(np.concatenate(parts))) == sum(map(len, parts))
        who = [set(table.speaker.iloc[part]) for part in parts]
        assert not who[0] & who[1] and not who[0] & who[2] and not who[1] & who[2]
        if protocol == 'leave_one_session_out': assert not set(table.session.iloc[split.test]) & set(table.session.iloc[np.r_[split.train, split.valid]])
        if apart: assert not set(table.text_id.iloc[split.test]) & set(table.text_id.iloc[np.r_[split.train, split.valid]])
    if not apart: assert sorted(np.concatenate([split.test for split in splits])) == list(range(len(table)))
    assert not {finding.kind for finding in findings(table, splits, protocol=protocol, disjoint_texts=apart) if finding.kind.startswith('shared') and finding.level == 'error'}
