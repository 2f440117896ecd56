"What verification finds in a damaged copy, and what near duplicates are."
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

import cdser.verify as module
from cdser.cli import main
from cdser.config import BadInput, Experiment
from cdser.corpora import load_corpus, read_corpus, read_manifest
from cdser.files import write_csv
from cdser.parts import make_parts, open_recordings
from cdser.splits import plan_folds
from cdser.synthetic import write_studios
from cdser.verify import KINDS, audit_copy, clips, sketch, verify
from trees import IMPROV_SCENARIOS, improv_turns, paper_trees, put, write_msp_improv

FACTS = ['path', 'label', 'speaker', 'session', 'sha256', 'duration_s', 'sample_rate']


@pytest.fixture(scope='module')
def kept(tmp_path_factory) -> Path:
    return write_studios(tmp_path_factory.mktemp('kept'), utterances=48, speakers=6, seconds=.8)[0]


@pytest.fixture
def studio(kept, tmp_path) -> Path:
    "A copy to damage."
    return Path(shutil.copytree(kept, tmp_path / 'studio_a'))


def third(studio: Path) -> Path:
    return sorted((studio / 'audio').iterdir())[3]


def write(path: Path, samples: np.ndarray, **format) -> None:
    sf.write(path, samples, 16_000, **format)


def copied(same: str, other: str):
    "A recording is, a little quieter, one that has the same of one column and another value of the other."
    def spoil(studio):
        table = read_manifest(studio / 'manifest.csv')
        pairs = table.merge(table, on=same, suffixes=('', '_copy'))
        pair = pairs[pairs[other] != pairs[f'{other}_copy']].iloc[0]
        write(studio / pair.path_copy, .7 * sf.read(studio / pair.path)[0])
        write_csv(table[['path', 'label', 'speaker']], studio / 'manifest.csv') # without checksums
    return spoil


def twin(studio: Path) -> None:
    "A recording is listed a second time under another name."
    shutil.copy(third(studio), studio / 'audio' / 'twin.wav')
    table = read_manifest(studio / 'manifest.csv')
    again = table[table.path == f'audio/{third(studio).name}'].assign(path='audio/twin.wav')
    write_csv(pd.concat([table, again])[FACTS], studio / 'manifest.csv')


SPOIL = {
    'missing': lambda studio: third(studio).unlink(),
    'changed': lambda studio: write(third(studio), .9 * sf.read(third(studio))[0]),
    'unreadable': lambda studio: third(studio).write_bytes(third(studio).read_bytes()[:3000]),
    'silent': lambda studio: write(third(studio), np.zeros(8000)),
    'too short': lambda studio: write(third(studio), np.full(800, .1)),
    'not finite': lambda studio: write(third(studio), np.full(8000, np.nan), subtype='FLOAT'),
    'two labels': copied('speaker', 'label'),
    'two speakers': copied('label', 'speaker'),
    'duplicate': twin,
    'clipped': lambda studio: write(third(studio), np.clip(40 * sf.read(third(studio))[0], -1, 1)),
    'extra': lambda studio: shutil.copy(third(studio), studio / 'stray.wav')}


def test_a_sound_copy_is_fit_and_nothing_is_found(kept):
    report = verify('studio_a', kept, progress=False)
    assert report.ok and not len(report.findings) and 'fit for training' in str(report)
    table = read_manifest(kept / 'manifest.csv')
    pd.testing.assert_frame_equal(report.table.drop(columns='duration_s'), table.drop(columns='duration_s'),
                                  check_dtype=False)
    assert report.counts.loc['all', 'all'] == 48


@pytest.mark.parametrize('kind', SPOIL)
def test_damage_is_found_and_decides_whether_the_copy_is_fit(kind, studio):
    SPOIL[kind](studio)
    report = verify('studio_a', studio, progress=False)
    assert kind in set(report.findings.kind) and kind in str(report) and len(report.findings) <= 2
    assert report.ok == (kind in ('duplicate', 'extra'))
    errors = tuple(report.findings.kind[report.findings.level == 'error'])
    assert verify('studio_a', studio, allow=errors, progress=False).ok


def test_a_copy_is_compared_with_its_release(studio, monkeypatch):
    "Relabelled, converted, of another duration, with what the release does not have."
    table = read_manifest(studio / 'manifest.csv')
    (studio / 'manifest.csv').unlink()
    paths = table.path.tolist()
    copy = table.assign(emotion=table.label).drop(columns='label')
    monkeypatch.setattr(module, 'released', lambda name: copy.assign(emotion=table.label, path=paths,
                                                                     speaker=table.speaker))
    monkeypatch.setattr(module, 'shipped', lambda name: Path(__file__))
    monkeypatch.setattr(module, 'read_label_map', lambda path: {'studio_a': dict(zip(table.label, table.label))})
    copy.loc[5, 'speaker'], copy.loc[6, 'emotion'] = 'nobody', 'neu' if table.label[6] != 'neu' else 'sad'
    for i, cut in ((7, 0), (8, 4000)):
        samples = sf.read(studio / paths[i])[0]
        (studio / paths[i]).unlink()
        copy.loc[i, 'path'] = paths[i].replace('.wav', '.flac')
        write(studio / copy.path[i], samples[cut:])
    copy.loc[9, 'path'] = 'audio/strange.wav'
    (studio / paths[9]).rename(studio / 'audio' / 'strange.wav')
    monkeypatch.setitem(module.READERS, 'studio_a', lambda root: copy)
    kinds = verify('studio_a', studio, progress=False).findings.groupby('path').kind.agg(set)
    assert kinds[paths[5]] == kinds[paths[6]] == {'relabelled'} and kinds[paths[9]] == {'missing'}
    assert kinds[copy.path[7]] == {'converted'} and kinds[copy.path[8]] == {'converted', 'changed'}
    assert kinds['audio/strange.wav'] == {'extra'}


def test_a_contradiction_of_the_release_itself_does_not_make_a_copy_unfit():
    table = pd.DataFrame(dict(path=['a.wav', 'b.wav', 'c.wav'], label=['ang', 'sad', 'sad'], speaker='s',
                              start=np.nan, end=np.nan))
    facts = pd.DataFrame(dict(sha256=['1', '1', '2'], clip=[0, 0, 1]))
    for known, kind in ((None, 'two labels'), (facts, 'duplicate')):
        assert [problem[1] for problem in module.repeated(table, facts, known)] == [kind]


def test_the_corpora_of_the_paper_are_counted_beside_what_was_published(tmp_path):
    paper_trees(tmp_path, per_speaker=1)
    iemocap, improv = (verify(name, tmp_path / name, progress=False) for name in ('iemocap', 'msp_improv'))
    assert iemocap.counts.xs('published', level=1)['all'].tolist() == [1085, 1023, 1151, 1031, 1241, 5531]
    assert iemocap.counts.xs('here', level=1)['all'].tolist() == [8] * 5 + [40] and not iemocap.ok # most is missing
    assert improv.counts.xs('published', level=1).loc['all'].tolist() == [792, 2644, 3477, 885, 7798]
    details = improv.findings.detail[improv.findings.kind == 'count'].tolist()
    assert 'ang of session all: 12, published 792' in details and 'published 4381' in ' '.join(details)
    assert improv.ok # a part of a corpus whose files are not known can be trained on


def test_a_tree_of_msp_improv_with_the_published_counts_differs_in_nothing(tmp_path):
    write_msp_improv(tmp_path / 'msp_improv', improv_turns(), audio=False)
    assert module.SCENARIOS == IMPROV_SCENARIOS
    table = read_corpus('msp_improv', tmp_path / 'msp_improv').table
    assert table.label.value_counts()[['ang', 'hap', 'neu', 'sad']].tolist() == [*module.PUBLISHED['msp_improv']]


def test_recordings_that_a_reader_does_not_recognise_are_counted_on_reading_and_listed_by_verify(tmp_path, recwarn):
    put(tmp_path / 'shemo',
        [f'{letter}0{i}{emotion}01.wav' for letter in 'FM' for i in range(3) for emotion in 'AHNS'],
        audio=True)
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'shemo' / 'F00A01.wav').rename(tmp_path / 'disk' / 'F00A01 (1).wav')
    (tmp_path / 'shemo' / 'more').symlink_to(tmp_path / 'disk')
    corpus = load_corpus('shemo', tmp_path)
    assert corpus.unlisted == ('more/F00A01 (1).wav',) and len(corpus.table) == 23
    assert '1 recordings in the folder are not used' in str(recwarn.pop(UserWarning).message)
    report = verify('shemo', tmp_path / 'shemo', progress=False)
    assert report.findings.path[report.findings.kind == 'extra'].tolist() == ['more/F00A01 (1).wav']


def test_another_label_map_is_what_is_verified_and_what_it_leaves_out_is_listed(studio, tmp_path):
    table = read_manifest(studio / 'manifest.csv')[['path', 'emotion', 'speaker']]
    words = table.emotion.unique()
    labels = [f'studio_a,{word},{label}' for word, label in zip(words, ('ang', '', 'neu', 'sad'))]
    (tmp_path / 'map.csv').write_text('\n'.join(['corpus,emotion,label', *labels]))
    table.loc[0, 'speaker'] = table.speaker[0].upper()
    write_csv(table.assign(notes=''), studio / 'manifest.csv')
    report = verify('studio_a', studio, tmp_path / 'map.csv', progress=False)
    assert 20 < len(report.corpus.table) < 48
    assert f'left out by the label map: {(table.emotion == words[1]).sum()} {words[1]}' in str(report)
    assert set(report.findings.kind) == {'spelling', 'ignored column'} and 'absent class' in set(report.fitness.kind)


@pytest.mark.parametrize('name', ['emodb', 'urdu', 'nemo'])
def test_real_copies_are_read_whole_and_their_splits_share_no_clip(name, real_corpora):
    report = verify(name, real_corpora / name, progress=False)
    assert set(report.findings.kind) <= {'converted', 'missing', 'count',
                                         'clipped'} and (report.facts.seconds > .3).all()
    shared = audit_copy(report, plan_folds(report.corpus))[1]
    assert not shared[['shared speakers', 'shared files', 'shared checksums', 'shared clips']].to_numpy().any()


def test_real_recordings_are_told_apart_from_each_other_but_not_from_their_copies(real_corpora, tmp_path):
    paths = load_corpus('emodb', real_corpora).paths[:60]
    sketches = [sketch(sf.read(path)[0]) for path in paths]
    assert len(set(clips(sketches))) == 60
    for i, format in enumerate(('MP3', 'OGG')):
        samples, rate = sf.read(paths[i])
        sf.write(tmp_path / f'{i}.copy', .5 * samples, rate, format=format)
        sketches.append(sketch(sf.read(tmp_path / f'{i}.copy')[0]))
    same = clips(sketches)
    assert same[60] == same[0] and same[61] == same[1] and len(set(same)) == 60


def test_findings_are_written_if_asked_for(studio, tmp_path):
    third(studio).unlink()
    assert main(['verify', 'studio_a', str(studio), '--findings', str(tmp_path / 'found.csv')]) == 1
    assert pd.read_csv(tmp_path / 'found.csv').kind.tolist() == ['missing']


def test_unknown_kinds_are_refused(studio):
    assert set(KINDS.values()) == {'error', 'warning'}
    with pytest.raises(BadInput, match="allow: 'clipped' is not known"):
        verify('studio_a', studio, allow=('clipped',))


def test_segments_are_examined_each_by_itself(studio):
    table = read_manifest(studio / 'manifest.csv')[:12][['path', 'label', 'speaker']]
    lengths = [sf.info(studio / path).duration for path in table.path]
    ends = [min(length, .7) for length in lengths[:-1]] + [lengths[-1] + 1]
    parts = pd.concat([table.assign(start=0., end=.3), table.assign(start=.35, end=ends)])
    samples = sf.read(studio / table.path[2])[0]
    samples[:4800] = 0
    write(studio / table.path[2], samples)
    write_csv(parts, studio / 'manifest.csv')
    report = verify('studio_a', studio, progress=False, roles=('source',))
    errors = report.findings[report.findings.level == 'error']
    assert errors.kind.tolist() == ['beyond the end', 'silent'] and errors.path.iloc[1] == f'{table.path[2]}#0-0.3'
    assert np.allclose(report.facts.seconds[:12], .3) and report.facts.refused.sum() == 2


def test_a_manifest_that_contradicts_the_audio_is_named(studio):
    table = read_manifest(studio / 'manifest.csv')[FACTS]
    first, last = table.index[0], table.index[-1]
    changed = table.assign(sample_rate=table.sample_rate.where(table.index != first, 8000),
                           duration_s=table.duration_s.where(table.index != last, 9))
    write_csv(changed, studio / 'manifest.csv')
    report = verify('studio_a', studio, progress=False)
    assert report.ok and report.findings.kind.tolist() == ['contradiction'] * 2
    assert sorted(report.findings.detail) == ['has 16000 Hz, in the manifest 8000 Hz',
                                              f'lasts {table.duration_s[last]:.2f} s, in the manifest 9.00 s']


def test_recordings_longer_than_runs_use_are_named(studio):
    write(third(studio), np.tile(sf.read(third(studio))[0], 30)[:16 * 16_000])
    report = verify('studio_a', studio, allow=('changed',), progress=False)
    assert report.ok and set(report.findings.kind) == {'changed', 'long'}
    assert 'lasts 16.0 s; runs use the first 15 s unless max_seconds says otherwise' in str(report)


def test_what_is_allowed_is_done_without_and_what_is_left_is_audited(studio):
    table = read_manifest(studio / 'manifest.csv')
    for path in table.path[table.session != table.session[0]]:
        (studio / path).unlink()
    report = verify('studio_a', studio, progress=False)
    assert not report.ok and not (report.fitness.level == 'error').any()
    left = verify('studio_a', studio, allow=('missing',), progress=False)
    assert left.usable.session.nunique() == 1 and not left.ok # one session cannot be tested on
    assert 'k_fold needs at least two sessions' in str(left) and 'NOT FIT for testing' in str(left)
    shutil.rmtree(studio / 'audio')
    assert 'no recording is left' in str(verify('studio_a', studio, allow=('missing',), progress=False))


def test_fit_is_what_a_run_does_not_refuse(studio, studios):
    "Either both say yes or both say no, in either role: for copies that were damaged in every way that runs look for."
    shutil.copytree(studios / 'studio_b', studio.parent / 'other')
    for kind in (None, 'missing', 'unreadable', 'silent', 'too short', 'not finite'):
        copy = Path(shutil.copytree(studio, studio.parent / (kind or 'sound').replace(' ', '_')))
        if kind:
            SPOIL[kind](copy)
        assert verify(copy.name, copy, progress=False, plan=dict(protocol='k_fold', folds=2)).ok == (kind is None)
        for pair in ((copy.name, 'other'), ('other', copy.name)):
            try:
                opened = [open_recordings(name, copy.parent, copy.parent / 'runs', 15.) for name in pair]
                make_parts(Experiment(*pair, folds=2), *opened)
            except BadInput:
                assert kind
            else:
                assert not kind
