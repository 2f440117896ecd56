"The generated studios: the same bytes from the same settings, a valid corpus on disk, whole or not at all."
import hashlib
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from cdser import synthetic
from cdser.config import LABELS, SAMPLE_RATE, BadInput
from cdser.corpora import load_corpus
from cdser.synthetic import STUDIO_A, STUDIO_B, STUDIOS, generate, label_counts, write_studio, write_studios

SMALL = replace(STUDIO_A, speakers=9, utterances=48)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def names(folder: Path) -> list[str]: # but for lock files
    return sorted(path.name for path in folder.iterdir() if path.name != '.locks')


@pytest.mark.parametrize('changed', [dict(seed=12), dict(acting=2.), dict(spread=0.), dict(bandwidth=3000.),
                                     dict(room=(.5, .4)), dict(noise_db=(5, 0)), dict(microphone=(-3, ())),
                                     dict(seconds=1.), dict(tract=(.9, 1.1))])
def test_every_field_changes_the_sound_and_the_hash(changed):
    other = replace(SMALL, **changed)
    assert synthetic.studio_hash(other) != synthetic.studio_hash(SMALL)
    pairs = zip(generate(SMALL)[0], generate(other)[0])
    assert any(x.shape != y.shape or not np.allclose(x, y, atol=1e-3) for x, y in pairs)


@pytest.mark.parametrize('studio', STUDIOS.values(), ids=STUDIOS)
def test_waveforms_are_neither_clipped_nor_silent(studio):
    waveforms, table = generate(replace(studio, speakers=9, utterances=72))
    assert len(waveforms) == len(table) == 72 and table.path.is_unique
    for x, seconds in zip(waveforms, table.duration_s):
        assert x.dtype == np.float32 and np.isfinite(x).all() and len(x) == round(seconds * SAMPLE_RATE)
        assert .02 < np.abs(x).max() <= .951 and x.std() > .005
    assert table.duration_s.between(.79, 1.81).all()
    assert abs(table.duration_s.mean() * np.mean(studio.tempo) - studio.seconds) < .15


@pytest.mark.parametrize('studio', STUDIOS.values(), ids=STUDIOS)
@pytest.mark.parametrize('utterances', [96, 432])
def test_labels_follow_the_prior_and_every_speaker_says_every_emotion(studio, utterances):
    studio = replace(studio, utterances=utterances)
    performances = synthetic.draw_performances(studio, np.random.default_rng(studio.seed))
    counts = performances.label.value_counts().reindex(LABELS)
    assert counts.tolist() == label_counts(studio).tolist()
    assert np.abs(counts - np.array(studio.prior) * utterances).max() < 1
    table = pd.crosstab(performances.speaker, performances.label)
    assert table.shape == (18, 4) and (table > 0).all(axis=None) and np.ptp(table.sum(axis=1)) <= 1


def test_a_written_studio_is_a_corpus_like_any_other(tmp_path):
    folders = write_studios(tmp_path, speakers=9, utterances=72)
    assert [folder.name for folder in folders] == ['studio_a', 'studio_b']
    a, b = (load_corpus(folder.name, tmp_path) for folder in folders)
    for corpus in (a, b):
        assert len(corpus.table) == 72 and {path.name for path in corpus.paths} == set(names(corpus.root / 'audio'))
        for path, row in zip(corpus.paths, corpus.table.itertuples()):
            info = sf.info(path)
            assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, 'PCM_16')
            assert info.frames == round(row.duration_s * SAMPLE_RATE)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == row.sha256
    assert a.table.speaker.nunique() == 9 and not set(a.table.speaker) & set(b.table.speaker)
    assert set(a.table.text_id) == set(b.table.text_id) and not set(a.table.sha256) & set(b.table.sha256)


def test_two_writers_leave_one_studio_of_the_same_bytes_and_a_third_writes_nothing(tmp_path, monkeypatch):
    with ThreadPoolExecutor(2) as pool:
        folder, same = pool.map(lambda _: write_studio(SMALL, tmp_path / 'shared'), range(2))
    assert folder == same and names(tmp_path / 'shared') == ['studio_a']
    assert contents(folder) == contents(write_studio(SMALL, tmp_path / 'alone'))
    monkeypatch.setattr(synthetic, 'generate', lambda studio: pytest.fail('generated again'))
    assert write_studio(SMALL, tmp_path / 'shared') == folder


@pytest.mark.parametrize('error, seen', [(KeyboardInterrupt, KeyboardInterrupt), (OSError, BadInput)])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, error, seen):
    def fail(*args, **kwargs):
        raise error
    monkeypatch.setattr(synthetic.sf, 'write', fail)
    with pytest.raises(seen):
        write_studio(SMALL, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize('record', [None, '{"hash": "mine"}', 'no JSON', '[]'])
def test_a_folder_with_other_contents_is_left_alone(tmp_path, record):
    folder = tmp_path / 'studio_a'
    folder.mkdir()
    (folder / 'mine.wav').write_bytes(b'mine')
    if record is not None:
        (folder / 'studio.json').write_text(record)
    before = contents(folder)
    with pytest.raises(BadInput, match='studio_a.*move it away'):
        write_studio(SMALL, tmp_path)
    assert contents(folder) == before and names(tmp_path) == ['studio_a']


@pytest.mark.parametrize('wrong, message', [
    *((dict(name=name), '^name: ') for name in ('..', '', 'a/b', '/elsewhere/a', '.hidden', 'a\n', None)),
    (dict(utterances=20), 'utterances: 20 are too few for 18 speakers'),
    (dict(prior=(.5, .5)), 'prior'), (dict(prior=(.4, .4, .4, -.2)), 'prior')])
def test_an_impossible_studio_is_refused_and_writes_nothing(tmp_path, wrong, message):
    with pytest.raises(BadInput, match=message):
        write_studio(replace(STUDIO_A, **wrong), tmp_path)
    assert names(tmp_path) == []


def test_memory_is_modest():
    tracemalloc.start()
    generate(replace(STUDIO_B, speakers=9, utterances=72))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6
