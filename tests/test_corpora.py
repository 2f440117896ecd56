"From files to rows: readers on the released layouts, manifests, bad recordings, and the store of decoded audio."
import hashlib
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from cdser.audio import as_float, load_audio, open_store
from cdser.config import LABELS, BadInput
from cdser.corpora import check_table, import_dataset, load_corpus, read_label_map, read_manifest, released, write_manifest
from cdser.splits import audit, hold_out, source_split, target_split

TONE = (.1 * np.sin(np.arange(8000) * .1)).astype(np.float32)

# name -> what its reader must find there: path in the released layout -> label and speaker, None: not one of the four emotions
LAYOUTS = {
    'emodb': {'wav/03a01Fa.wav': ('hap', '03'), 'wav/11b10Wb.wav': ('ang', '11'), 'wav/14a05Tb.wav': ('sad', '14'),
              'wav/16a02Nc.wav': ('neu', '16'), 'wav/03a01Ea.wav': None, 'wav/._03a01Fa.wav': None, 'wav/readme.wav': None},
    'urdu': {'Angry/SM1_F10_A010.wav': ('ang', 'SM1'), 'Happy/SF2_F3_H01.wav': ('hap', 'SF2'),
             'Neutral/SM5_F1_N001.wav': ('neu', 'SM5'), 'Sad/SM24_F2_S002.wav': ('sad', 'SM24')},
    'nemo': {'samples/EB0_anger_1.wav': ('ang', 'EB0'), 'samples/EB0_happiness_1.wav': ('hap', 'EB0'),
             'samples/KM2_neutral_90.wav': ('neu', 'KM2'), 'samples/KM2_sadness_3.wav': ('sad', 'KM2'),
             'samples/KM2_fear_3.wav': None, 'samples/KM2_surprised_3.wav': None}}
COUNTS = {'emodb': ((127, 71, 79, 62), 10), 'urdu': ((100, 100, 100, 100), 29), 'nemo': (None, 9)}


def write(root, files: dict, samples=TONE, rate=16_000):
    for path in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        sf.write(root / path, samples, rate)


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_reader_reads_the_released_layout(name, tmp_path):
    write(tmp_path / name, LAYOUTS[name])
    if name == 'nemo':
        (tmp_path / name / 'data.tsv').write_text('speaker_id\tgender\nEB0\tfemale\nKM2\tmale\n')
    table = load_corpus(name, tmp_path).table
    found = {row.path: (row.label, row.speaker) for row in table.itertuples()}
    assert found == {path: facts for path, facts in LAYOUTS[name].items() if facts}
    assert set(table.gender) <= {'female', 'male'}


@pytest.mark.parametrize('name', COUNTS)
def test_a_reader_counts_what_the_real_corpus_holds(name, real_corpora):
    table, (counts, speakers) = load_corpus(name, real_corpora).table, COUNTS[name]
    found = Counter(table.label)
    if counts: assert tuple(found[label] for label in LABELS) == counts
    else: assert len(table) == 1534 and set(found) == set(LABELS)
    assert table.speaker.nunique() == speakers


@pytest.mark.parametrize('name', COUNTS)
def test_a_reader_says_what_the_manifest_of_the_release_says(name, real_corpora):
    known = check_table(released(name), name, read_label_map()[name])
    facts = lambda table: dict(zip(table.path.map(lambda path: Path(path).stem), zip(table.label, table.speaker, table.gender, table.text_id)))
    said, known = facts(load_corpus(name, real_corpora).table), facts(known)
    assert len(said) > 300 and all(known[stem] == said[stem] for stem in said)


@pytest.mark.parametrize('name', COUNTS)
def test_every_real_recording_is_decoded(name, real_corpora, tmp_path):
    corpus = load_corpus(name, real_corpora)
    store = open_store(tmp_path / name, corpus.paths[::20], 15.)
    assert len(store) == len(corpus.paths[::20]) and store.lengths.min() > 3000
    assert all(np.abs(as_float(store[i])).max() > .003 for i in range(len(store)))


def test_speakers_of_real_corpora_never_cross(real_corpora):
    for name in COUNTS:
        table = load_corpus(name, real_corpora).table
        for split in [source_split(table, .2, 0), *(target_split(table, fold, 3, .2, fold) for fold in range(3))]:
            shared = audit(table, split)
            assert not shared[['speaker', 'path', 'sha256']].to_numpy().any()


def test_folds_test_every_utterance_once_and_held_out_speakers_cover_every_label(studios):
    table = load_corpus('studio_a', studios).table
    tested = np.concatenate([target_split(table, fold, 3, .2, seed=5).test for fold in range(3)])
    assert sorted(tested) == list(range(len(table)))
    for seed in range(5):
        rest, held = hold_out(table, np.arange(len(table)), .2, seed)
        assert set(table.label.iloc[held]) == set(LABELS) == set(table.label.iloc[rest])


def test_a_manifest_comes_back_as_it_was_written(tmp_path, studios):
    table = load_corpus('studio_a', studios).table
    write_manifest(table, tmp_path / 'manifest.csv')
    pd.testing.assert_frame_equal(read_manifest(tmp_path / 'manifest.csv'), table)


@pytest.mark.parametrize('lines, message', [
    (['a.wav,joy,s'], "row 2: the label 'joy' is not known; use ang, hap, neu, sad"),
    (['a.wav,ang,s', 'b.wav,hap,s', 'a.wav,ang,s'], 'row 4: a.wav is listed twice, first in row 2'),
    (['a.wav,ang,'], 'row 2: no speaker is given for a.wav'),
    (['../a.wav,ang,s'], "row 2: the path '../a.wav' must be relative"),
    ([',ang,s'], 'row 2: the path is empty'),
    ([], 'has no utterances'),
    (['a.wav,ang,s', 'c.wav,sad,s'], '1 of 2 recordings are not in')])
def test_a_bad_manifest_is_one_error_that_names_file_and_row(lines, message, tmp_path):
    write(tmp_path / 'mine', {'a.wav', 'b.wav'})
    manifest = tmp_path / 'mine' / 'manifest.csv'
    manifest.write_text('\n'.join(['path,label,speaker', *lines]) + '\n')
    with pytest.raises(BadInput) as err: load_corpus('mine', tmp_path)
    assert str(manifest) in str(err.value) and message in str(err.value)


def test_a_missing_root_corpus_or_column_is_named(tmp_path):
    with pytest.raises(BadInput, match='corpora_root: there is no folder .*absent'): load_corpus('mine', tmp_path / 'absent')
    with pytest.raises(BadInput, match="has no folder 'mine'"): load_corpus('mine', tmp_path)
    (tmp_path / 'mine').mkdir()
    with pytest.raises(BadInput, match="no reader knows a corpus 'mine'"): load_corpus('mine', tmp_path)
    (tmp_path / 'mine' / 'manifest.csv').write_text('file,emotion\na.wav,ang\n')
    with pytest.raises(BadInput, match='has no column path and no speaker'): load_corpus('mine', tmp_path)


def cut_short(path): path.write_bytes(path.read_bytes()[:9000])


BAD = {'empty': (lambda path: path.write_bytes(b''), 'the file is empty'),
       'no_samples': (lambda path: sf.write(path, TONE[:0], 16_000), 'holds no samples'),
       'silent': (lambda path: sf.write(path, 0 * TONE, 16_000), 'is silent'),
       'nan': (lambda path: sf.write(path, np.where(np.arange(8000) == 99, np.nan, TONE), 16_000, subtype='FLOAT'), 'NaN or infinite'),
       'short': (lambda path: sf.write(path, TONE[:800], 16_000), 'is too short'),
       'truncated': (cut_short, 'truncated'),
       'text': (lambda path: path.write_text('version https://git-lfs.github.com/spec/v1\n'), 'cannot be decoded as audio'),
       'missing': (lambda path: path.unlink(), 'there is no such file')}


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_recording_is_one_error_that_names_the_file(kind, tmp_path):
    spoil, message = BAD[kind]
    path = tmp_path / 'a.wav'
    sf.write(path, TONE, 16_000)
    spoil(path)
    with pytest.raises(BadInput) as err: load_audio(path)
    assert str(path) in str(err.value) and message in str(err.value)


def test_bad_recordings_are_named_together_and_an_earlier_store_stays(tmp_path):
    paths = [tmp_path / f'{i}.wav' for i in range(4)]
    for path in paths: sf.write(path, TONE, 16_000)
    before = open_store(tmp_path / 'store', paths).digest
    contents = lambda: {path: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / 'store').rglob('*')
                        if path.is_file() and path.parent.name != 'digests'}
    kept = contents()
    sf.write(paths[1], 0 * TONE, 16_000)
    cut_short(paths[3])
    with pytest.raises(BadInput) as err: open_store(tmp_path / 'store', paths)
    assert '2 of 4' in str(err.value) and '1.wav' in str(err.value) and '3.wav' in str(err.value)
    assert contents() == kept and not list(tmp_path.rglob('.draft-*'))
    for path in (paths[1], paths[3]): sf.write(path, TONE, 16_000)
    assert open_store(tmp_path / 'store', paths).digest == before


def test_a_store_is_built_once_and_again_when_a_recording_changes(tmp_path):
    path = tmp_path / 'a.wav'
    sf.write(path, TONE, 16_000)
    first = open_store(tmp_path / 'store', [path])
    stamp = (first.folder / 'samples').stat().st_mtime_ns
    assert open_store(tmp_path / 'store', [path]).folder == first.folder
    assert (first.folder / 'samples').stat().st_mtime_ns == stamp
    sf.write(path, TONE / 2, 16_000)
    assert open_store(tmp_path / 'store', [path]).digest != first.digest


@pytest.mark.parametrize('rate', [8_000, 22_050, 24_000, 44_100, 48_000])
def test_any_rate_and_any_number_of_channels_becomes_16_khz_mono(rate, tmp_path):
    t = np.arange(rate) / rate
    sf.write(tmp_path / 'a.wav', np.stack([.2 * np.sin(2 * np.pi * 440 * t)] * 2, 1), rate)
    samples = load_audio(tmp_path / 'a.wav')
    assert samples.shape == (16_000,) and samples.dtype == np.float32
    assert np.abs(np.fft.rfft(samples)).argmax() == 440


@pytest.fixture
def saved(tmp_path) -> Path:
    "A data set with two parts as the datasets library saves it: two formats, a class label, a speaker, a sentence."
    datasets = pytest.importorskip('datasets', reason="needs pip install 'cdser[datasets]'")
    def part(speakers, format):
        content = io.BytesIO()
        sf.write(content, TONE, 16_000, format=format)
        rows = dict(audio=[dict(bytes=content.getvalue(), path=None)] * 2, label=['ang', 'sad'], speaker=speakers, text_id=['t1', 't2'])
        return datasets.Dataset.from_dict(rows).cast_column('audio', datasets.Audio()).class_encode_column('label')
    datasets.DatasetDict(train=part(['a', 'b'], 'FLAC'), test=part(['c', 'd'], 'WAV')).save_to_disk(tmp_path / 'saved')
    return tmp_path / 'saved'


def test_a_data_set_becomes_a_corpus_byte_for_byte(saved, tmp_path):
    import_dataset(saved, tmp_path / 'mine')
    table = load_corpus('mine', tmp_path).table
    assert table.path.tolist() == ['train/000000.flac', 'train/000001.flac', 'test/000000.wav', 'test/000001.wav']
    assert table.label.tolist() == ['ang', 'sad'] * 2 and table.speaker.tolist() == list('abcd') and table.text_id.tolist() == ['t1', 't2'] * 2
    assert all(len(load_audio(tmp_path / 'mine' / path)) == len(TONE) for path in table.path)
    with pytest.raises(BadInput, match='import-dataset'): load_corpus('saved', tmp_path)


@pytest.mark.parametrize('arguments, message', [
    (dict(speaker='who'), "speaker: the data set has no column 'who', it has audio, label, speaker, text_id"),
    (dict(audio='text_id'), "audio: the column 'text_id' holds no audio"),
    (dict(folder='saved'), 'is there already; name a new folder'),
    (dict(saved='nowhere'), 'is no folder that datasets saved')])
def test_a_data_set_that_cannot_be_imported_is_one_error_and_leaves_nothing(arguments, message, saved, tmp_path):
    places = {'saved': saved, 'folder': tmp_path / 'mine'} | {k: tmp_path / v for k, v in arguments.items() if k in ('saved', 'folder')}
    with pytest.raises(BadInput) as err: import_dataset(**places, **{k: v for k, v in arguments.items() if k not in places})
    assert message in str(err.value) and sorted(path.name for path in tmp_path.iterdir()) == ['saved']
