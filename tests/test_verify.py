"What verification finds in a damaged copy, what near duplicates are, and the command line's exit status."
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from cdser import verify as module
from cdser.cli import main
from cdser.config import BadInput, Experiment
from cdser.corpora import load_corpus, read_manifest
from cdser.duplicates import clips, sketch
from cdser.runs import make_parts, open_recordings
from cdser.splits import plan_folds
from cdser.synthetic import STUDIO_A, generate, write_studios
from cdser.verify import KINDS, audit_copy, verify
from trees import improv_turns, paper_trees, write_msp_improv


@pytest.fixture(scope='module')
def kept(tmp_path_factory) -> Path:
    return write_studios(tmp_path_factory.mktemp('kept'), utterances=48, speakers=6, seconds=.8)[0]


@pytest.fixture
def studio(kept, tmp_path) -> Path:
    "A copy to be spoilt."
    return Path(shutil.copytree(kept, tmp_path / 'studio_a'))


def third(studio: Path) -> Path: return sorted((studio / 'audio').iterdir())[3]


def write(path: Path, samples: np.ndarray, **format) -> None: sf.write(path, samples, 16_000, **format)


def copied(same: str, other: str):
    "A recording sounds, a little quieter, as one that has the same of one thing and another of the other."
    def spoil(studio):
        table = read_manifest(studio / 'manifest.csv')
        i, j = next((i, j) for i in table.index for j in table.index[i + 1:]
                    if table[same][i] == table[same][j] and table[other][i] != table[other][j])
        write(studio / table.path[j], .7 * sf.read(studio / table.path[i])[0])
        table[['path', 'label', 'speaker']].to_csv(studio / 'manifest.csv', index=False) # forget the checksums
    return spoil


def twin(studio: Path) -> None:
    "A recording is listed a second time under another name."
    shutil.copy(third(studio), studio / 'audio' / 'twin.wav')
    table = pd.read_csv(studio / 'manifest.csv', dtype=str)
    table = pd.concat([table, table[table.path == f'audio/{third(studio).name}'].assign(path='audio/twin.wav')])
    table.to_csv(studio / 'manifest.csv', index=False)


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
    found = verify('studio_a', kept, progress=False)
    assert found.ok and not len(found.findings) and 'fit for training' in str(found)
    pd.testing.assert_frame_equal(found.table.drop(columns='duration_s'), read_manifest(kept / 'manifest.csv').drop(columns='duration_s'))
    assert found.counts.loc['all', 'all'] == 48


@pytest.mark.parametrize('kind', SPOIL)
def test_damage_is_found_and_decides_whether_the_copy_is_fit(kind, studio):
    SPOIL[kind](studio)
    found = verify('studio_a', studio, progress=False)
    assert kind in set(found.findings.kind), found.findings
    assert found.ok == (kind in ('duplicate', 'extra'))
    assert kind in str(found) and len(found.findings) <= 2
    if not found.ok:
        errors = set(found.findings.kind[found.findings.level == 'error'])
        assert verify('studio_a', studio, allow=tuple(errors), progress=False).ok


def test_every_finding_of_the_facts_of_a_release(studio, monkeypatch):
    "A copy beside a release of its own: relabelled, converted, of another duration, with what the release does not have."
    table = read_manifest(studio / 'manifest.csv')
    (studio / 'manifest.csv').unlink()
    release = table.drop(columns='label').assign(emotion=table.label)
    monkeypatch.setattr(module, 'released', lambda name: release)
    monkeypatch.setattr(module, 'shipped', lambda name: Path(__file__))
    monkeypatch.setattr(module, 'read_label_map', lambda path: {'studio_a': {label: label for label in ('ang', 'hap', 'neu', 'sad')}})
    copy = release.copy()
    copy.loc[5, 'speaker'], copy.loc[6, 'emotion'] = 'nobody', 'neu' if table.label[6] != 'neu' else 'sad'
    for i, cut in ((7, 0), (8, 4000)):
        samples = sf.read(studio / table.path[i])[0]
        (studio / table.path[i]).unlink()
        copy.loc[i, 'path'] = table.path[i].replace('.wav', '.flac')
        write(studio / copy.path[i], samples[cut:])
    copy = copy.drop(index=9)
    (studio / table.path[9]).rename(studio / 'audio' / 'strange.wav')
    copy.loc[48] = copy.loc[5].to_dict() | {'path': 'audio/strange.wav'}
    monkeypatch.setitem(module.READERS, 'studio_a', lambda root: copy)
    monkeypatch.setattr(module, 'read_corpus', lambda name, root, label_map: module.Corpus(
        name, root, module.check_table(copy.reset_index(drop=True), name, module.read_label_map(None)[name])))
    found = verify('studio_a', studio, progress=False).findings.set_index('path').groupby('path').kind.agg(set)
    assert found[table.path[5]] == found[table.path[6]] == {'relabelled'}
    assert found[copy.path[7]] == {'converted'} and found[copy.path[8]] == {'converted', 'changed'}
    assert found[table.path[9]] == {'missing'} and 'extra' in found['audio/strange.wav']


def test_a_contradiction_of_the_release_itself_does_not_make_a_copy_unfit():
    table = pd.DataFrame(dict(path=['a.wav', 'b.wav', 'c.wav'], label=['ang', 'sad', 'sad'], speaker='s'))
    x = sketch(np.random.default_rng(0).normal(size=9000))
    facts = pd.DataFrame(dict(sha256=['1', '1', '2'], sketch=[x, x, -x]), dtype=object)
    kinds = lambda known: [finding[1] for finding in module.repeated(table, facts.copy(), known)]
    assert kinds(None) == ['two labels'] and kinds(pd.DataFrame(dict(sha256=['1', '1', '2']))) == ['duplicate']


def test_the_corpora_of_the_paper_are_counted_beside_what_was_published(tmp_path):
    paper_trees(tmp_path, per_speaker=1)
    iemocap, improv = (verify(name, tmp_path / name, progress=False) for name in ('iemocap', 'msp_improv'))
    published = iemocap.counts.xs('published', level=1)
    assert published['all'].tolist() == [1085, 1023, 1151, 1031, 1241, 5531]
    assert iemocap.counts.xs('here', level=1)['all'].tolist() == [8] * 5 + [40] and not iemocap.ok # nearly all of it is missing
    assert improv.counts.xs('published', level=1).loc['all'].tolist() == [792, 2644, 3477, 885, 7798]
    said = improv.findings[improv.findings.kind == 'count'].detail.tolist()
    assert 'ang of session all: 12, published 792' in said and any('scenario' in line and 'published 4381' in line for line in said)
    assert improv.ok # a subset of a corpus whose files are not known can be trained on, and the difference was said


def test_a_tree_of_msp_improv_with_the_published_counts_differs_in_nothing(tmp_path):
    write_msp_improv(tmp_path / 'msp_improv', improv_turns(), audio=False)
    found = module.compare_counts(module.read_corpus('msp_improv', tmp_path / 'msp_improv'), None, True)[1]
    assert found == [] == module.count_scenarios(tmp_path / 'msp_improv')


def test_another_label_map_is_what_is_verified(studio, tmp_path):
    mapped = tmp_path / 'map.csv'
    mapped.write_text('corpus,emotion,label\n' + ''.join(f'studio_a,{word},{label}\n' for word, label in
                      zip(read_manifest(studio / 'manifest.csv').emotion.unique(), ('ang', '', 'neu', 'sad'))))
    assert 20 < len(verify('studio_a', studio, mapped, progress=False).corpus.table) < 48


@pytest.mark.parametrize('name', ['emodb', 'urdu', 'nemo'])
def test_real_copies_are_read_whole_and_their_splits_share_no_clip(name, real_corpora):
    found = verify(name, real_corpora / name, progress=False)
    kinds = set(found.findings.kind)
    assert kinds <= {'converted', 'missing', 'count', 'clipped'} and (found.facts.seconds > .3).all()
    shared = audit_copy(found, plan_folds(found.corpus))[1]
    assert not shared[['shared speakers', 'shared files', 'shared checksums', 'shared clips']].to_numpy().any()


def test_real_recordings_are_told_apart_from_each_other_but_not_from_their_copies(real_corpora, tmp_path):
    paths = load_corpus('emodb', real_corpora).paths[:60]
    drawn = [sketch(sf.read(path)[0]) for path in paths]
    assert len(set(clips(np.stack(drawn)))) == 60
    for i, format in enumerate(('MP3', 'OGG')):
        samples, rate = sf.read(paths[i])
        sf.write(tmp_path / f'{i}.copy', .5 * samples, rate, format=format)
        drawn.append(sketch(sf.read(tmp_path / f'{i}.copy')[0]))
    same = clips(np.stack(drawn))
    assert same[60] == same[0] and same[61] == same[1] and len(set(same)) == 60


def test_generated_utterances_are_told_apart():
    voices, _ = generate(STUDIO_A)
    assert len(set(clips(np.stack([sketch(voice) for voice in voices[:200]])))) == 200


def test_exit_status_says_fit_unfit_or_impossible(studio, capsys, tmp_path):
    assert main(['verify', 'studio_a', str(studio)]) == 0
    third(studio).unlink()
    assert main(['verify', 'studio_a', str(studio), '--findings', str(tmp_path / 'found.csv')]) == 1
    assert pd.read_csv(tmp_path / 'found.csv').kind.tolist() == ['missing']
    assert main(['verify', 'studio_a', str(studio), '--allow', 'missing']) == 0
    capsys.readouterr()
    assert main(['verify', 'nowhere', str(tmp_path / 'nowhere')]) == 2
    assert capsys.readouterr().err.startswith('cdser: ') and not capsys.readouterr().out
    with pytest.raises(SystemExit) as err: main(['verify', 'studio_a', str(studio), '--allow', 'everything'])
    assert err.value.code == 2


def test_the_command_line_freezes_audits_and_lists_origins(studio, capsys):
    assert main(['split', 'studio_a', str(studio), str(studio / 'split.csv'), '--folds', '2', '--seed', '3']) == 0
    assert '2 folds, k_fold, hash ' in capsys.readouterr().out
    assert main(['audit', 'studio_a', str(studio)]) == 0
    assert 'shared clips' in capsys.readouterr().out
    assert main(['fetch']) == 0 and 'iemocap' in capsys.readouterr().out
    assert main(['fetch', 'iemocap', str(studio / 'iemocap')]) == 2 and 'release form' in capsys.readouterr().err
    assert main(['fetch', 'nemo', str(studio / 'nemo')]) == 2 and 'CC BY-NC-SA 4.0' in capsys.readouterr().err
    assert not (studio / 'nemo').exists()


def test_python_m_works_where_scripts_are_not_on_the_path(tmp_path):
    done = subprocess.run([sys.executable, '-m', 'cdser.cli', 'verify', 'a', str(tmp_path / 'b')], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f'cdser: {tmp_path / "b"}: there is no such folder\n'


def test_a_reader_of_the_output_that_stops_early_sees_no_traceback(kept):
    with subprocess.Popen([sys.executable, '-m', 'cdser.cli', 'verify', 'studio_a', str(kept)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        assert 'Traceback' not in running.stderr.read() and running.wait() == 141


def test_kinds_not_known_are_refused(studio):
    assert set(KINDS.values()) == {'error', 'warning'}
    with pytest.raises(BadInput, match="allow: 'clipped' is not known"): verify('studio_a', studio, allow=('clipped',))


def listed(studio: Path, **columns) -> pd.DataFrame:
    "The manifest anew, with other columns."
    table = read_manifest(studio / 'manifest.csv')[['path', 'label', 'speaker', 'session', 'sha256', 'duration_s', 'sample_rate']].assign(**columns)
    table.to_csv(studio / 'manifest.csv', index=False)
    return table


def test_segments_are_looked_at_each_by_itself(studio):
    table = read_manifest(studio / 'manifest.csv')[:12][['path', 'label', 'speaker']]
    lengths = [sf.info(studio / path).duration for path in table.path]
    parts = pd.concat([table.assign(start=0., end=.3), table.assign(start=.35, end=[min(length, .7) for length in lengths])])
    parts.iloc[-1, parts.columns.get_loc('end')] = lengths[-1] + 1
    samples, rate = sf.read(studio / table.path[2])
    samples[:int(.3 * rate)] = 0
    write(studio / table.path[2], samples)
    parts.to_csv(studio / 'manifest.csv', index=False)
    found = verify('studio_a', studio, progress=False, roles=('source',))
    assert found.findings.kind[found.findings.level == 'error'].tolist() == ['beyond the end', 'silent']
    assert found.findings.path[found.findings.kind == 'silent'].tolist() == [f'{table.path[2]}#0-0.3']
    assert np.allclose(found.facts.seconds[:12], .3) and found.facts.refused.sum() == 2


def test_a_manifest_that_contradicts_the_audio_is_named(studio):
    table = listed(studio)
    listed(studio, sample_rate=[8000, *table.sample_rate[1:]], duration_s=[*table.duration_s[:-1], 9.])
    found = verify('studio_a', studio, progress=False)
    assert found.ok and found.findings.kind.tolist() == ['contradiction'] * 2
    assert sorted(found.findings.detail) == ['has 16000 Hz, in the manifest 8000 Hz', f'lasts {table.duration_s.iloc[-1]:.2f} s, in the manifest 9.00 s']


def test_recordings_longer_than_runs_use_are_named(studio):
    path = third(studio)
    write(path, np.tile(sf.read(path)[0], 30)[:16 * 16_000])
    found = verify('studio_a', studio, allow=('changed',), progress=False)
    assert found.ok and set(found.findings.kind) == {'changed', 'long'}
    assert 'lasts 16.0 s; runs use the first 15 s unless max_seconds says otherwise' in str(found)


def test_what_the_label_map_leaves_out_and_what_spellings_hide_is_said(studio, tmp_path):
    table = read_manifest(studio / 'manifest.csv')[['path', 'emotion', 'speaker']]
    words = table.emotion.unique()
    (tmp_path / 'map.csv').write_text('corpus,emotion,label\n' + ''.join(f'studio_a,{word},{label}\n' for word, label in zip(words, ('ang', '', 'neu', 'sad'))))
    table.loc[0, 'speaker'] = table.speaker[0].upper()
    table.assign(notes='').to_csv(studio / 'manifest.csv', index=False)
    found = verify('studio_a', studio, tmp_path / 'map.csv', progress=False)
    assert f'left out by the label map: {(table.emotion == words[1]).sum()} {words[1]}' in str(found)
    assert {'spelling', 'ignored column'} <= set(found.findings.kind) and 'absent class' in set(found.fitness.kind)


def test_what_is_allowed_is_done_without_and_what_is_left_is_judged(studio):
    paths = read_manifest(studio / 'manifest.csv')
    for path in paths.path[paths.session != paths.session[0]]: (studio / path).unlink()
    refused = verify('studio_a', studio, progress=False)
    assert not refused.ok and not len(refused.fitness[refused.fitness.level == 'error'])
    left = verify('studio_a', studio, allow=('missing',), progress=False)
    assert left.usable.session.nunique() == 1 and not left.ok # one session cannot be tested on
    assert 'k_fold needs at least two sessions' in str(left) and 'NOT FIT for testing' in str(left)
    for path in (studio / 'audio').iterdir(): path.unlink()
    assert 'no recording is left' in str(verify('studio_a', studio, allow=('missing',), progress=False))


def test_fit_is_what_a_run_does_not_refuse(studio, studios):
    "Either both say yes or both say no, in either role: for copies that were spoilt in every way that runs look for."
    shutil.copytree(studios / 'studio_b', studio.parent / 'other')
    for kind in (None, 'missing', 'unreadable', 'silent', 'too short', 'not finite'):
        copy = Path(shutil.copytree(studio, studio.parent / (kind or 'sound').replace(' ', '_'), symlinks=True))
        if kind: SPOIL[kind](copy)
        found = verify(copy.name, copy, progress=False, plan=dict(protocol='k_fold', folds=2))
        for pair in ((copy.name, 'other'), ('other', copy.name)):
            try: make_parts(Experiment(*pair, folds=2), *(open_recordings(name, copy.parent, copy.parent / 'runs', 15.) for name in pair))
            except BadInput: assert not found.ok
            else: assert found.ok
        assert found.ok == (kind is None)
