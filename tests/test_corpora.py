"From files to rows: readers on the released layouts, manifests, bad recordings, and the store of decoded audio."
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from cdser.audio import as_float, load_audio, open_store
from cdser.config import LABELS, BadInput
from cdser.corpora import (COLUMNS, Corpus, CorpusWarning, ambiguities, check_table, import_dataset, load_corpus, overlaps, read_corpus, read_csv,
                           read_label_map, read_manifest, released, tidy, write_csv, write_manifest)
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


# ---- text is text

TEXT = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=12)
AWKWARD = st.sampled_from(['', ' ', '  a', 'a  ', '"', '""', '"a"', 'a"b', ',', 'a,b', '\n', '\r', '\r\n', 'a\r', 'NA', 'nan', 'None', 'null', '03', '3.0', '1e5',
                           'True', '-1', '\ufeff', '\ufeffa', "'", '#', '\t', '\\', '\x1b[31m', '\x85', '\u2028', 'é', 'e\u0301', '漢字', '😀', '=1+1'])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_table_of_text_comes_back_as_it_was_written_or_is_refused(tmp_path_factory, data):
    names = data.draw(st.lists(TEXT.filter(bool) | AWKWARD.filter(bool), min_size=1, max_size=4, unique=True))
    rows = data.draw(st.lists(st.lists(TEXT | AWKWARD, min_size=len(names), max_size=len(names)), max_size=5))
    table = pd.DataFrame(dict(zip(names, map(list, zip(*rows)))) if rows else {name: [] for name in names}, dtype=str)
    path = tmp_path_factory.getbasetemp() / 'any.csv'
    write_csv(table, path)
    again = read_csv(path, tuple(names))
    assert list(again) == names and again.to_numpy().tolist() == table.to_numpy().tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(allow_infinity=False, width=64), min_size=1, max_size=9), st.lists(st.integers(-2**53 + 1, 2**53 - 1), min_size=1, max_size=9))
def test_numbers_come_back_bit_for_bit(tmp_path_factory, floats, integers):
    path = tmp_path_factory.getbasetemp() / 'numbers.csv'
    n = min(len(floats), len(integers))
    write_csv(pd.DataFrame(dict(x=floats[:n], n=integers[:n])), path)
    again = read_csv(path, ('x', 'n'), numbers={'x': float, 'n': int})
    np.testing.assert_array_equal(again.x.to_numpy(), np.array(floats[:n]))
    assert again.n.tolist() == integers[:n] and again.n.dtype == np.int64


@pytest.mark.parametrize('table, why', [
    (pd.DataFrame(dict(a=['x\0'])), 'a NUL'), (pd.DataFrame(dict(a=['x' * 200_000])), 'too long'), (pd.DataFrame(dict(a=[np.inf])), 'infinite'),
    (pd.DataFrame(dict(a=pd.Series(['\ud800'], dtype=object))), 'no valid text'), (pd.DataFrame([['x', 'y']], columns=['a', 'a']), 'columns'),
    (pd.DataFrame({'': ['x']}), 'columns')])
def test_what_could_not_be_read_again_is_not_written(table, why, tmp_path):
    with pytest.raises(BadInput, match=why): write_csv(table, tmp_path / 'a.csv')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text, message', [
    ('a,b\n1,2,3\n', 'line 2: has 3 fields, and the header has 2'), ('a,b\n1,2\n"1,2\n', 'is not CSV'), ('a,b\n"1"2,3\n', 'line 2: is not CSV'),
    ('a,b\n1,2\n3', 'its last line breaks off after 3'), ('', 'is empty'), ('\n\n', 'is empty'), ('a,b,b\n1,2,3\n', "more than one column 'b'"),
    ('a,b\n1\0,2\n', 'a NUL byte'), ('b,c\n1,2\n', 'has no column a'), ('a,n\n1,x\n', "row 2: n 'x' must be a number"), ('a,n\n1,inf\n', "n 'inf' must be"),
    ('a,n\n1,1e999\n', "n '1e999' must be"), ('a,n\n1,٣\n', "n '٣' must be"), ('a,n\n1,1_0\n', "n '1_0' must be"), ('a,n\n1,\n2,nan\n', "row 3: n 'nan' must be"),
    ('a,i\n1,3.5\n', "i '3.5' must be a whole number"), ('a,i\n1,\n', "i '' must be a whole number"),
    (',' * 10**6, 'columns'), ('a\x1b[2J\n', 'has no column a;')])
def test_a_table_that_cannot_be_meant_is_one_error(text, message, tmp_path):
    (tmp_path / 'a.csv').write_text(text)
    with pytest.raises(BadInput) as err: read_csv(tmp_path / 'a.csv', ('a',), numbers={'n': float, 'i': int})
    assert str(tmp_path / 'a.csv') in str(err.value) and message in str(err.value) and str(err.value).isprintable()


def test_what_spreadsheets_and_people_add_is_read(tmp_path):
    (tmp_path / 'a.csv').write_bytes('\ufeffa, b,,\r\n\r\n03, "x, y",,\r\nNA\r\n'.encode())
    assert read_csv(tmp_path / 'a.csv', ('a', 'b')).to_dict('list') == {'a': ['03', 'NA'], 'b': ['x, y', '']}
    pd.DataFrame(dict(a=['NA', '03'])).to_csv(tmp_path / 'b.csv') # with pandas' nameless index
    assert read_csv(tmp_path / 'b.csv', ('a',)).a.tolist() == ['NA', '03']


ROWS = dict(path=['a.wav', 'b.wav'], label=['ang', 'sad'], speaker=['anna', 'bo'])


@pytest.mark.parametrize('column, given, wanted', [
    ('speaker', [3, 4], ['3', '4']), ('speaker', np.array([3, 4], dtype=np.int8), ['3', '4']), ('speaker', ['NA', 'nan'], ['NA', 'nan']),
    ('speaker', pd.Categorical(['x', 'y']), ['x', 'y']), ('session', [None, 1], ['', '1']), ('session', [np.nan, np.nan], ['', '']),
    ('text_id', [pd.NA, pd.NaT], ['', '']), ('path', [Path('x/a.wav'), Path('b.wav')], ['x/a.wav', 'b.wav']), ('gender', ['f ', '\u00a0f'], ['f', 'f'])])
def test_what_becomes_text_exactly_is_made_text(column, given, wanted):
    assert check_table(pd.DataFrame({**ROWS, column: pd.Series(given, dtype=object if isinstance(given, list) else None)}), 'mine')[column].tolist() == wanted


@pytest.mark.parametrize('column, given, message', [
    ('speaker', [3., np.nan], "row 2: the speaker '3.0' is not text"), ('speaker', [True, False], "the speaker 'True' is not text"),
    ('speaker', ['a', None], 'row 3: no speaker is given'), ('label', ['ang', -1], "row 3: the label '-1' is not known"), ('label', [0, 1], "the label '0'"),
    ('label', ['ang', 2.], "row 3: the label '2.0' is not text"), ('text_id', [['a'], 'b'], 'is not text'), ('session', [b'1', '2'], 'is not text'),
    ('duration_s', [True, 1], "row 2: duration_s 'True'"), ('duration_s', [np.inf, 1], 'must be a number'), ('duration_s', [1j, 1], 'must be a number'),
    ('speaker', ['a', 'b\x1b[2J'], r"row 3: the speaker 'b\\x1b[2J' holds a character"), ('speaker', ['a', '\ud800'], 'holds a character'),
    ('path', ['a.wav', 'b\x9b.wav'], 'row 3: the path'), ('Speaker', ['a', 'b'], "the column 'Speaker' must be called 'speaker'"),
    (' label', ['a', 'b'], "the column ' label' must be called 'label'"), ('text-id', ['a', 'b'], "must be called 'text_id'")])
def test_what_is_no_text_or_number_is_refused(column, given, message):
    with pytest.raises(BadInput) as err: check_table(pd.DataFrame({**ROWS, column: pd.Series(given, dtype=object)}), 'mine')
    assert message in str(err.value) and str(err.value).isprintable()


def test_labels_that_are_not_known_have_no_index():
    table = check_table(pd.DataFrame(ROWS), 'mine')
    assert Corpus('mine', Path('mine'), table).labels.tolist() == [0, 3]
    for wrong in ('', '-1', 'ANG', np.nan):
        with pytest.raises(BadInput, match='^mine: the label .* is not known'): Corpus('mine', Path('mine'), table.assign(label=['ang', wrong])).labels


# ---- one identity, one spelling

@settings(max_examples=300, deadline=None)
@given(TEXT | AWKWARD)
def test_tidying_twice_is_tidying_once_and_changes_nothing_that_is_seen(text):
    once = tidy(text)
    assert tidy(once) == once == unicodedata.normalize('NFC', once) and once == once.strip()
    assert ''.join(once.split()) == ''.join(tidy(''.join(unicodedata.normalize('NFC', text).split())).split()) or not text.isprintable()


SAME = [lambda s: s + ' ', lambda s: '\u00a0' + s, lambda s: s + '\u200b', lambda s: '\ufeff' + s, lambda s: s.replace(' ', ' \t '), lambda s: s.replace(' ', '\u2003'),
        lambda s: unicodedata.normalize('NFD', s), lambda s: s + '\u2029', lambda s: '\u200e' + s]
MAYBE = [str.upper, lambda s: '0' + s, lambda s: s + '.0', lambda s: s.replace(' ', '_'), lambda s: s.replace('1', '１'),
         lambda s: s.replace('é', 'e'), lambda s: s[:1] + '\u200b' + s[1:], lambda s: s.replace('1', '١')]
PERSON = '1é b'


@pytest.mark.parametrize('column', ['speaker', 'session', 'text_id'])
@pytest.mark.parametrize('spell', SAME)
def test_what_cannot_differ_on_purpose_is_one(column, spell):
    assert spell(PERSON) != PERSON
    table = check_table(pd.DataFrame({**ROWS, column: [PERSON, spell(PERSON)]}), 'mine')
    assert table[column].tolist() == [PERSON] * 2 and not ambiguities(table)


@pytest.mark.parametrize('column', ['speaker', 'session', 'text_id'])
@pytest.mark.parametrize('spell', MAYBE)
def test_what_may_be_one_is_named_and_stays_two(column, spell, tmp_path):
    one, other = (PERSON, spell(PERSON)) if spell is not MAYBE[2] else ('11', '11.0')
    assert one != other
    table = pd.DataFrame({**ROWS, column: [one, other]})
    checked = check_table(table, 'mine')
    assert checked[column].tolist() == [one, other] and ambiguities(checked) == [(column, one, other)]
    write_csv(table, tmp_path / 'manifest.csv')
    with pytest.warns(CorpusWarning) as said: read_corpus('mine', tmp_path)
    message, = {str(warning.message) for warning in said}
    assert str(tmp_path / 'manifest.csv') in message and one in message and message.isprintable()


@pytest.mark.parametrize('nobody', ['nan', 'None', 'unknown', '-', 'NA', 'n/a', '?'])
def test_a_speaker_who_may_be_nobody_is_named(nobody):
    assert ambiguities(check_table(pd.DataFrame({**ROWS, 'speaker': ['anna', nobody]}), 'mine')) == [('speaker', nobody, '')]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(['Anna', 'anna', 'anna ', 'Bo', '03', '3', '3.0', 'Zoë', 'Zoe\u0308', 'S-1', 's_1', '\u200bBo']), min_size=1, max_size=12))
def test_speakers_that_look_alike_are_one_or_named(speakers):
    rows = dict(path=[f'{i}.wav' for i in range(len(speakers))], label='ang', speaker=speakers)
    table = check_table(pd.DataFrame(rows), 'mine')
    kept = set(table.speaker)
    assert kept == {tidy(speaker) for speaker in speakers}
    merged = {'Anna': 'a', 'anna': 'a', 'Bo': 'b', '03': '3', '3': '3', '3.0': '3', 'Zoë': 'z', 'S-1': 's', 's_1': 's'}
    assert len(kept) - len(ambiguities(table)) == len({merged[speaker] for speaker in kept})


@pytest.mark.parametrize('name', ['emodb', 'iemocap', 'nemo', 'cremad', 'ravdess', 'savee', 'urdu'])
def test_nothing_in_a_shipped_manifest_is_in_doubt(name):
    emotions = read_label_map()[name]
    table = check_table(released(name), name, emotions)
    assert Corpus(name, Path(name), table).doubts == [] and [tidy(emotion) for emotion in emotions] == list(emotions)


# ---- parts of recordings

def parted(**changes) -> pd.DataFrame:
    return pd.DataFrame(dict(path=['a.wav'] * 3, label='ang', speaker='s', start=['0', '1.25', '3'], end=['1.25', '2.5', '4']) | changes)


def test_parts_of_a_recording_are_utterances_with_names(tmp_path):
    write(tmp_path / 'mine', ['a.wav', 'b.wav'])
    write_csv(pd.concat([parted(), pd.DataFrame([dict(path='b.wav', label='sad', speaker='t')])]), tmp_path / 'mine' / 'manifest.csv')
    corpus = load_corpus('mine', tmp_path)
    assert corpus.names == ['a.wav#0-1.25', 'a.wav#1.25-2.5', 'a.wav#3-4', 'b.wav'] and corpus.doubts == []
    np.testing.assert_array_equal(corpus.segments, [[0, 1.25], [1.25, 2.5], [3, 4], [np.nan, np.nan]])
    write_manifest(corpus.table, tmp_path / 'again.csv')
    pd.testing.assert_frame_equal(read_manifest(tmp_path / 'again.csv'), corpus.table)


@pytest.mark.parametrize('changes, message', [
    (dict(start=['0', '', '3']), 'row 3: a.wav has a start or an end alone'), (dict(end=['1', '2.5', '']), 'row 4: a.wav has a start or an end alone'),
    (dict(start=['-1', '1', '3']), 'row 2: a.wav begins at -1 s'), (dict(end=['1', '1.25', '4']), 'row 3: a.wav begins at 1.25 s and ends at 1.25 s'),
    (dict(start=['0', 'nan', '3']), "row 3: start 'nan' must be a number"), (dict(end=['1', 'inf', '4']), "row 3: end 'inf' must be a number"),
    (dict(start=['0', '0', '3'], end=['1', '1', '4']), 'row 3: a.wav#0-1 is listed twice, first in row 2'),
    (dict(start=['0', '0.0', '3'], end=['1', '1.00', '4']), 'is listed twice'), (dict(start=[0, 0, 3], end=[1, 1 + 1e-12, 4]), 'is listed twice')])
def test_parts_that_are_none_are_refused(changes, message):
    with pytest.raises(BadInput) as err: check_table(parted(**changes), 'mine')
    assert message in str(err.value)


def test_parts_that_overlap_are_named():
    table = check_table(parted(start=[0, 1, 5], end=[4, 2, 6]), 'mine')
    assert overlaps(table) == [('a.wav#0-4', 'a.wav#1-2')]
    table = check_table(parted(start=[0, np.nan, 3.5], end=[4, np.nan, 6]), 'mine')
    assert overlaps(table) == [('a.wav#0-4', 'a.wav'), ('a.wav', 'a.wav#3.5-6')]
    assert overlaps(check_table(parted(path=['a.wav', 'b.wav', 'c.wav'], start=0, end=1), 'mine')) == []


# ---- label maps

WORDS = dict(rage='ang', joy='hap', calm='neu', grief='sad')


@pytest.fixture
def mine(tmp_path) -> Path:
    "A corpus of eight recordings with emotions and labels."
    words = list(WORDS) * 2
    write(tmp_path / 'mine', [f'{i}.wav' for i in range(8)])
    table = pd.DataFrame(dict(path=[f'{i}.wav' for i in range(8)], emotion=words, label=[WORDS[word] for word in words], speaker=list('abcdabcd')))
    write_csv(table, tmp_path / 'mine' / 'manifest.csv')
    return tmp_path / 'mine'


def map_of(root: Path, name: str, **labels) -> Path:
    (root / 'map.csv').write_text('corpus,emotion,label\n' + ''.join(f'{name},{word},{label}\n' for word, label in labels.items()))
    return root / 'map.csv'


def rewrite(root: Path, **columns) -> None:
    table = read_csv(root / 'manifest.csv', ()).assign(**columns)
    write_csv(table[[c for c in table if columns.get(c, '') is not None]], root / 'manifest.csv')


@pytest.mark.parametrize('name', ['Mine', 'mina', 'MINE', 'my_corpus'])
def test_a_label_map_without_the_corpus_is_refused_and_the_nearest_is_named(name, mine, tmp_path):
    with pytest.raises(BadInput) as err: read_corpus('mine', mine, map_of(tmp_path, name, **WORDS))
    assert f"{tmp_path / 'map.csv'}: has no lines for mine" in str(err.value) and f"it has lines for '{name}'" in str(err.value)


@pytest.mark.parametrize('name', ['mine', 'mine ', '\u00a0mine', 'mine\u200b'])
def test_a_label_map_applies_whatever_cannot_be_seen(name, mine, tmp_path):
    corpus = read_corpus('mine', mine, map_of(tmp_path, name, **{**WORDS, 'joy': ''}))
    assert corpus.left_out == {'joy': 2} and len(corpus.table) == 6


def test_a_label_map_that_contradicts_the_manifest_counts_and_says_so(mine, tmp_path):
    with pytest.warns(CorpusWarning, match='the column label differs from the label map in 4 rows; the map counts'):
        corpus = read_corpus('mine', mine, map_of(tmp_path, 'mine', **{**WORDS, 'rage': 'sad', 'calm': ''}))
    assert corpus.overruled == 4 and corpus.left_out == {'calm': 2} and corpus.table.label.tolist() == ['sad', 'hap', 'sad'] * 2


def test_a_label_map_reads_the_column_label_where_there_is_no_other(mine, tmp_path):
    rewrite(mine, emotion=None)
    corpus = read_corpus('mine', mine, map_of(tmp_path, 'mine', ang='ang', hap='hap', neu='hap', sad=''))
    assert corpus.left_out == {'sad': 2} and corpus.table.label.tolist() == ['ang', 'hap', 'hap'] * 2 and corpus.overruled == 0
    rewrite(mine, emotion='')
    assert read_corpus('mine', mine, tmp_path / 'map.csv').left_out == {'sad': 2}


@pytest.mark.parametrize('name', ['mine', 'emodb'])
def test_labels_without_emotions_hold_whatever_the_folder_is_called(name, mine):
    rewrite(mine, emotion=None)
    assert len(read_corpus(name, mine).table) == 8
    rewrite(mine, label=['ang'] * 7 + [''])
    with pytest.raises(BadInput, match="row 9: the label '' is not known"): read_corpus(name, mine)


def test_the_shipped_map_says_what_it_leaves_out_of_a_manifest(mine):
    rewrite(mine, emotion=['W', 'L', 'F', 'L', 'T', 'N', 'W', 'W'], label='')
    corpus = read_corpus('emodb', mine)
    assert corpus.left_out == {'L': 2} and corpus.overruled == 0 and len(corpus.table) == 6


def test_an_emotion_of_another_spelling_is_refused_and_the_known_one_is_named(mine, tmp_path):
    with pytest.raises(BadInput, match="row 2: the emotion 'rage' is not in the label map, which has 'Rage'"):
        read_corpus('mine', mine, map_of(tmp_path, 'mine', **{word.capitalize(): label for word, label in WORDS.items()}))


@pytest.mark.parametrize('header', ['Corpus,emotion,label', 'corpus,emotion,label,label', 'corpus, emotion ,label', 'corpus;emotion;label', 'corpus,emotion'])
def test_a_label_map_with_other_columns_is_refused(header, tmp_path):
    (tmp_path / 'map.csv').write_text(f'{header}\nmine,rage,ang,ang\n')
    with pytest.raises(BadInput, match='map.csv'): read_label_map(tmp_path / 'map.csv')


# ---- folders, names and columns

def test_columns_that_are_not_read_are_named_once(mine):
    rewrite(mine, offset='1', Notes='x')
    with pytest.warns(CorpusWarning, match="manifest.csv: what these columns say is not read: 'offset', 'Notes'$"): corpus = read_corpus('mine', mine)
    assert corpus.ignored == ('offset', 'Notes') and list(corpus.table) == list(COLUMNS)


@pytest.mark.parametrize('name', ['.', '..', '../mine', 'a/b', '/etc', '.hidden', '', 'mine/', 'mine\n', ' mine', 'a\\b', 'C:', None, 5, Path('mine')])
def test_a_corpus_is_named_by_one_plain_component(name, mine):
    for read in (lambda: read_corpus(name, mine), lambda: load_corpus(name, mine.parent)):
        with pytest.raises(BadInput, match='^corpus: '): read()


@pytest.mark.parametrize('root', [2024, None, b'x', '\0', 'x' * 300, ['a']])
def test_a_root_that_is_no_folder_is_one_error(root):
    with pytest.raises(BadInput, match='corpora_root'): load_corpus('mine', root)
    with pytest.raises(BadInput): read_corpus('mine', root)
    with pytest.raises(BadInput): read_label_map(root or 5)


@pytest.mark.parametrize('make', [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to('absent.csv'), lambda path: path.symlink_to('manifest.csv')])
def test_a_manifest_that_is_no_file_does_not_let_a_reader_take_its_place(make, tmp_path):
    write(tmp_path / 'emodb', LAYOUTS['emodb'])
    make(tmp_path / 'emodb' / 'manifest.csv')
    with pytest.raises(BadInput, match='manifest.csv: there is no such file'): load_corpus('emodb', tmp_path)


def test_two_paths_of_one_file_are_one_recording(mine):
    (mine / 'link.wav').symlink_to('0.wav')
    (mine / 'sub').symlink_to('.')
    load_corpus('mine', mine.parent)
    for path in ('link.wav', 'sub/1.wav', 'sub/sub/2.wav'):
        rewrite(mine, path=[f'{i}.wav' for i in range(7)] + [path])
        with pytest.raises(BadInput, match=f'{path} are one file'): load_corpus('mine', mine.parent)


def test_folders_without_end_and_names_that_cannot_be_printed_are_refused(tmp_path):
    write(tmp_path / 'emodb', LAYOUTS['emodb'])
    (tmp_path / 'emodb' / '03a01Fa\x1b[2J.wav').touch()
    with pytest.raises(BadInput, match=re.escape(r'03a01Fa\\x1b[2J.wav')): load_corpus('emodb', tmp_path)
    (tmp_path / 'emodb' / '03a01Fa\x1b[2J.wav').unlink()
    os.makedirs(tmp_path / 'emodb' / '/'.join('x' * 100))
    with pytest.raises(BadInput, match='more than 50 deep'): load_corpus('emodb', tmp_path)


# ---- data sets from strangers

def resave(place: Path, change=lambda rows: rows) -> Path:
    "A data set of three rows, saved; `change` makes other rows of them, or a data set."
    datasets = pytest.importorskip('datasets', reason="needs pip install 'cdser[datasets]'")
    content = io.BytesIO()
    sf.write(content, TONE, 16_000, format='FLAC')
    rows = dict(audio=[dict(bytes=content.getvalue(), path=None)] * 3, label=['ang', 'sad', 'ang'], speaker=['NA', '03', 'anna'])
    made = change(rows)
    if isinstance(made, dict): made = datasets.Dataset.from_dict(made).cast_column('audio', datasets.Audio())
    made.save_to_disk(place)
    return place


@pytest.mark.parametrize('changes, message', [
    (dict(label=['ang', None, 'sad']), 'emotion: row 1 of the data set has none'), (dict(speaker=['a', 'b', ' ']), 'speaker: row 2 of the data set has none'),
    (dict(speaker=[1., 2., 3.]), "speaker: '1.0' in row 0 of the data set is not text"), (dict(speaker=[['a']] * 3), 'is not text'),
    (dict(speaker=['a', 'b', 'c\x1b[2J']), 'holds a character that cannot be printed')])
def test_a_data_set_that_lacks_a_fact_is_one_error(changes, message, tmp_path):
    with pytest.raises(BadInput) as err: import_dataset(resave(tmp_path / 'saved', lambda rows: rows | changes), tmp_path / 'mine')
    assert message in str(err.value) and os.listdir(tmp_path) == ['saved']


def test_text_and_class_labels_of_a_data_set_are_kept_exactly(tmp_path):
    datasets = pytest.importorskip('datasets')
    table = import_dataset(resave(tmp_path / 'saved', lambda rows: rows | dict(session=[1, 2, None], text_id=['01', '1e5', 'nan'])), tmp_path / 'mine')
    again = load_corpus('mine', tmp_path).table
    assert again.speaker.tolist() == table.speaker.tolist() == ['NA', '03', 'anna'] and again.text_id.tolist() == ['01', '1e5', 'nan']
    assert again.session.tolist() == ['1', '2', '']
    features = datasets.Features(audio=datasets.Audio(), label=datasets.ClassLabel(names=['ang', 'sad']), speaker=datasets.Value('int64'), gender=datasets.ClassLabel(names=['f', 'm']))
    def labelled(rows, last=1):
        return datasets.Dataset.from_dict(rows | dict(label=[0, 1, last], speaker=[1, 2, 3], gender=[1, 0, -1])).cast(features)
    table = import_dataset(resave(tmp_path / 'two', labelled), tmp_path / 'second')
    assert table.emotion.tolist() == ['ang', 'sad', 'sad'] and table.speaker.tolist() == ['1', '2', '3'] and table.gender.tolist() == ['m', 'f', '']
    resave(tmp_path / 'three', lambda rows: labelled(rows, -1)) # no label: it is not the last class
    with pytest.raises(BadInput, match='emotion: row 2 of the data set has none'): import_dataset(tmp_path / 'three', tmp_path / 'third')


SPOILT = {
    'state.json is empty': lambda saved: (saved / 'state.json').write_text(''), 'state.json lacks keys': lambda saved: (saved / 'state.json').write_text('{}'),
    'state.json is a list': lambda saved: (saved / 'state.json').write_text('[]'), 'state.json nests': lambda saved: (saved / 'state.json').write_text('[' * 10**5),
    'state.json is a pipe': lambda saved: ((saved / 'state.json').unlink(), os.mkfifo(saved / 'state.json')),
    'names odd files': lambda saved: (saved / 'state.json').write_text('{"_data_files": [5, null, {"filename": 3}]}'),
    'names no files': lambda saved: (saved / 'state.json').write_text('{"_data_files": []}'),
    'table is cut off': lambda saved: next(saved.glob('*.arrow')).write_bytes(next(saved.glob('*.arrow')).read_bytes()[:200]),
    'table is empty': lambda saved: next(saved.glob('*.arrow')).write_bytes(b''), 'table is gone': lambda saved: next(saved.glob('*.arrow')).unlink(),
    'features are no JSON': lambda saved: (saved / 'dataset_info.json').write_text('{'),
    'features are of no known type': lambda saved: (saved / 'dataset_info.json').write_text((saved / 'dataset_info.json').read_text().replace('Audio', 'Evil')),
    'features are gone': lambda saved: (saved / 'dataset_info.json').unlink()}


@pytest.mark.parametrize('what', SPOILT)
def test_a_damaged_data_set_is_one_error_and_leaves_nothing(what, tmp_path):
    saved = resave(tmp_path / 'saved')
    SPOILT[what](saved)
    with pytest.raises(BadInput) as err: import_dataset(saved, tmp_path / 'mine')
    assert str(saved) in str(err.value) and str(err.value).isprintable() and os.listdir(tmp_path) == ['saved']


@pytest.mark.parametrize('split', ['../victim', '..', '.', '/elsewhere/victim', 'a/b', '', ' ', '.git', 'manifest.csv', 5, None, {'a': 1}])
def test_a_split_is_named_by_one_plain_component(split, saved, tmp_path):
    (tmp_path / 'victim').mkdir()
    (tmp_path / 'victim' / '000000.wav').write_bytes(b'precious')
    if split in ('.git', 'manifest.csv'): (saved / 'train').rename(saved / split)
    (saved / 'dataset_dict.json').write_text(json.dumps(dict(splits=[split])))
    with pytest.raises(BadInput): import_dataset(saved, tmp_path / 'mine')
    assert (tmp_path / 'victim' / '000000.wav').read_bytes() == b'precious' and sorted(os.listdir(tmp_path)) == ['saved', 'victim']


@pytest.mark.parametrize('name', ['../elsewhere.arrow', '/elsewhere.arrow', 'link.arrow'])
def test_a_data_set_names_no_file_elsewhere(name, tmp_path):
    saved = resave(tmp_path / 'saved')
    next(saved.glob('*.arrow')).rename(tmp_path / 'elsewhere.arrow')
    (saved / 'link.arrow').symlink_to('../elsewhere.arrow')
    state = json.loads((saved / 'state.json').read_text())
    state['_data_files'] = [dict(filename=name)]
    (saved / 'state.json').write_text(json.dumps(state))
    with pytest.raises(BadInput, match='use a plain name|leads out'): import_dataset(saved, tmp_path / 'mine')


def test_an_import_writes_neither_into_the_data_set_nor_over_anything(tmp_path):
    saved = resave(tmp_path / 'saved')
    with pytest.raises(BadInput, match='overlap'): import_dataset(saved, saved / 'mine')
    for folder, message in ((tmp_path / '.mine', 'begins with a dot'), ('', 'is empty'), (5, 'is not a path')):
        with pytest.raises(BadInput, match=message): import_dataset(saved, folder)
    (tmp_path / 'link').symlink_to('absent')
    with pytest.raises(BadInput, match='is there already'): import_dataset(saved, tmp_path / 'link')
