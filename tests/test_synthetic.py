"The generated studios: the same bytes from the same seed, a valid corpus on the disk, whole or not at all."
import hashlib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from cdser import synthetic
from cdser.config import LABELS, SAMPLE_RATE, BadInput
from cdser.corpora import COLUMNS, check_table, load_corpus
from cdser.synthetic import STUDIO_A, STUDIO_B, STUDIOS, generate, label_counts, write_studio, write_studios

SMALL = replace(STUDIO_A, speakers=9, utterances=48)


def contents(folder) -> dict: # name -> hash
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob('*') if p.is_file()}


def names(folder) -> list[str]:
    return sorted(p.name for p in folder.glob('[!.]*'))


def test_the_same_studio_is_the_same_bytes(tmp_path):
    first, second = (write_studio(SMALL, tmp_path / name) for name in ('first', 'second'))
    assert contents(first) == contents(second)


@pytest.mark.parametrize('changed', [dict(seed=12), dict(acting=2.), dict(spread=0.), dict(bandwidth=3000.), dict(room=(.5, .4)),
                                     dict(noise_db=(5, 0)), dict(microphone=(-3, ())), dict(seconds=1.), dict(tract=(.9, 1.1))])
def test_every_field_is_heard_and_changes_the_hash(changed):
    other = replace(SMALL, **changed)
    assert synthetic.studio_hash(other) != synthetic.studio_hash(SMALL)
    assert any(x.shape != y.shape or not np.allclose(x, y, atol=1e-3) for x, y in zip(generate(SMALL)[0], generate(other)[0]))


@pytest.mark.parametrize('studio', STUDIOS.values(), ids=STUDIOS)
def test_waveforms_are_sound(studio):
    waveforms, table = generate(replace(studio, speakers=9, utterances=72))
    assert len(waveforms) == len(table) == 72
    for x, seconds in zip(waveforms, table.duration_s):
        assert x.dtype == np.float32 and np.isfinite(x).all() and len(x) == round(seconds * SAMPLE_RATE)
        assert .02 < np.abs(x).max() <= .951 and x.std() > .005 # neither clipped nor silent
    assert table.duration_s.between(.79, 1.81).all() and abs(table.duration_s.mean() * np.mean(studio.tempo) - studio.seconds) < .15


@pytest.mark.parametrize('studio', STUDIOS.values(), ids=STUDIOS)
@pytest.mark.parametrize('utterances', [96, 432])
def test_labels_follow_the_prior_and_every_speaker_says_every_emotion(studio, utterances):
    studio = replace(studio, utterances=utterances)
    cast = synthetic.draw_performances(studio, np.random.default_rng(studio.seed))
    assert cast.label.value_counts().reindex(LABELS).tolist() == label_counts(studio).tolist()
    assert np.abs(label_counts(studio) - np.array(studio.prior) * utterances).max() < 1
    table = pd.crosstab(cast.speaker, cast.label)
    assert table.shape == (18, 4) and (table > 0).all(axis=None) and np.ptp(table.sum(axis=1)) <= 1


def test_a_written_studio_is_a_corpus_like_any_other(tmp_path):
    folders = write_studios(tmp_path, speakers=9, utterances=72)
    assert [f.name for f in folders] == ['studio_a', 'studio_b']
    corpora = [load_corpus(f.name, tmp_path) for f in folders]
    for corpus in corpora:
        manifest = pd.read_csv(corpus.root / 'manifest.csv')
        assert list(manifest.columns) == [c for c in COLUMNS if c not in ('start', 'end')] and len(check_table(manifest, 'manifest')) == 72
        assert not corpus.table[manifest.columns].isna().any(axis=None) and corpus.segments is None and (corpus.table.sample_rate == SAMPLE_RATE).all()
        assert sorted(p.name for p in (corpus.root / 'audio').iterdir()) == sorted(p.name for p in corpus.paths)
        for path, row in zip(corpus.paths, corpus.table.itertuples()):
            info = sf.info(path)
            assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, 'PCM_16')
            assert info.frames == round(row.duration_s * SAMPLE_RATE)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == row.sha256
    a, b = (set(c.table.speaker) for c in corpora)
    assert len(a) == len(b) == 9 and not a & b
    assert set(corpora[0].table.text_id) == set(corpora[1].table.text_id)
    assert not set(corpora[0].table.sha256) & set(corpora[1].table.sha256)


def test_a_second_write_is_nothing(tmp_path, monkeypatch):
    folder = write_studio(SMALL, tmp_path)
    monkeypatch.setattr(synthetic, 'generate', lambda studio: pytest.fail('generated again'))
    assert write_studio(SMALL, tmp_path) == folder


@pytest.mark.parametrize('error, seen', [(KeyboardInterrupt, KeyboardInterrupt), (OSError, BadInput)])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error, seen):
    write, count = synthetic.sf.write, []
    def breaks(*args, **kwargs):
        count.append(args)
        if len(count) == 20:
            raise error
        write(*args, **kwargs)
    monkeypatch.setattr(synthetic.sf, 'write', breaks)
    with pytest.raises(seen):
        write_studio(SMALL, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize('record', [None, '', '[]', '{"hash": "mine"}'])
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, record):
    (tmp_path / 'studio_a').mkdir()
    (tmp_path / 'studio_a' / 'mine.wav').write_bytes(b'mine')
    if record is not None:
        (tmp_path / 'studio_a' / 'studio.json').write_text(record)
    before = contents(tmp_path / 'studio_a')
    with pytest.raises(BadInput, match='studio_a: is there already, and holds something else.*move it away'):
        write_studio(SMALL, tmp_path)
    assert contents(tmp_path / 'studio_a') == before and names(tmp_path) == ['studio_a']


@pytest.mark.parametrize('name', ['..', '.', '', 'a/b', '/elsewhere/a', '.hidden', 'a\n', None])
def test_a_studio_is_named_by_one_plain_component(name, tmp_path):
    with pytest.raises(BadInput, match='^name: '): write_studio(replace(SMALL, name=name), tmp_path / 'root')
    assert names(tmp_path) == []


def test_two_writers_at_once_leave_one_studio(tmp_path):
    studio = SMALL
    with ThreadPoolExecutor(2) as pool: folders = set(pool.map(lambda _: write_studio(studio, tmp_path), range(2)))
    assert folders == {tmp_path / 'studio_a'} and names(tmp_path) == ['studio_a']
    assert len(load_corpus('studio_a', tmp_path).table) == 48


@pytest.mark.parametrize('wrong, message', [(dict(utterances=20), 'utterances: 20 are too few for 18 speakers'),
                                            (dict(prior=(.5, .5)), 'prior'), (dict(prior=(.4, .4, .4, -.2)), 'prior')])
def test_an_impossible_studio_is_refused_and_writes_nothing(tmp_path, wrong, message):
    with pytest.raises(BadInput, match=message): write_studio(replace(STUDIO_A, **wrong), tmp_path)
    assert names(tmp_path) == []


def test_memory_is_modest():
    tracemalloc.start()
    generate(replace(STUDIO_B, speakers=9, utterances=72))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6
