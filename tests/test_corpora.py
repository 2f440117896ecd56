"From a manifest to a checked table: CSV, spellings, labels, parts of recordings, names of corpora, data sets."
import io
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from cdser.config import LABELS, BadInput
from cdser.corpora import (COLUMNS, Corpus, CorpusWarning, ambiguities, check_table, doubts, load_corpus,
                           overlaps, read_corpus, read_csv, read_label_map, read_manifest, released)
from cdser.files import write_csv, write_manifest
from cdser.readers import find_files, import_dataset

TONE = (.1 * np.sin(np.arange(8000) * .1)).astype(np.float32)
ROWS = dict(path=['a.wav', 'b.wav'], label=['ang', 'sad'], speaker=['anna', 'bo'])
WORDS = dict(rage='ang', joy='hap', calm='neu', grief='sad')


def touch(root: Path, paths) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


@pytest.fixture
def mine(tmp_path) -> Path:
    "A corpus of eight recordings with emotions and labels."
    words = list(WORDS) * 2
    table = pd.DataFrame(dict(path=[f'{i}.wav' for i in range(8)], emotion=words,
                              label=[WORDS[word] for word in words], speaker=list('abcdabcd')))
    touch(tmp_path / 'mine', table.path)
    write_csv(table, tmp_path / 'mine' / 'manifest.csv')
    return tmp_path / 'mine'


def rewrite(root: Path, **columns) -> None:
    "Give the manifest other columns; None: drop this one."
    table = read_csv(root / 'manifest.csv').assign(**columns)
    write_csv(table[[c for c in table if columns.get(c, '') is not None]], root / 'manifest.csv')


def map_of(root: Path, name: str, **labels) -> Path:
    lines = [f'{name},{word},{label}' for word, label in labels.items()]
    (root / 'map.csv').write_text('\n'.join(['corpus,emotion,label', *lines]))
    return root / 'map.csv'


# ---- manifests

TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=12)
AWKWARD = st.sampled_from(['', ' a', 'a,b', '"', 'a"b', '\n', '\r', '\0', 'NA', 'nan', '03', '3.0', '1e5', '\ufeffa',
                           'é',
                           'e\u0301', '漢字', '😀', '#', '\x1b[31m', '../a', '/a', 'inf', '-1', 'ang', 'sad'])


@given(st.lists(st.fixed_dictionaries(dict(path=TEXT | AWKWARD, label=st.sampled_from(LABELS) | AWKWARD,
                                           speaker=TEXT | AWKWARD),
                                      optional=dict(text_id=TEXT | AWKWARD, start=AWKWARD,
                                                    duration_s=st.floats() | AWKWARD)),
                min_size=1, max_size=4))
def test_any_table_is_one_error_or_a_corpus_that_comes_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / 'manifest.csv'
    try:
        table = check_table(pd.DataFrame(rows), 'any')
        write_manifest(table, path)
    except BadInput as err:
        assert str(err).startswith('any') and str(err).isprintable()
    else:
        pd.testing.assert_frame_equal(read_manifest(path), table)


@given(st.text(st.sampled_from('path,label,speaker\n\r"a.wav,ang s\0\ufeff'), max_size=80))
def test_any_text_in_place_of_a_manifest_is_one_error_or_a_table(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / 'text.csv'
    path.write_text('path,label,speaker\n' + text, newline='')
    try:
        assert set(read_manifest(path).label) <= set(LABELS)
    except BadInput as err:
        assert str(err).startswith(str(path)) and '\n' not in str(err)


@pytest.mark.parametrize('text, message', [
    ('a,b\n1,2,3\n', 'Expected 2 fields in line 2, saw 3'), ('a,b\n1,2\n"1,2\n', 'is not CSV'), ('', 'is not CSV'),
    ('a,b\n1,2\n3', 'its last line breaks off after 3'), ('a,b,b\n1,2,3\n', "more than one column 'b'"),
    ('b,c\n1,2\n', 'has no column a'), ('a\x1b[2J\n', 'has no column a;'),
    ('a,n\n1,x\n', 'row 2: n x must be a number'),
    ('a,n\n1,inf\n', 'n inf must be'), ('a,n\n1,1e999\n', 'n 1e999 must be'), ('a,n\n1,٣\n', 'n ٣ must be'),
    ('a,n\n1,1_0\n', 'n 1_0 must be'), ('a,n\n1,\n2,nan\n', 'row 3: n nan must be'),
    ('a\n\xff', 'expected text in UTF-8')])
def test_a_table_that_cannot_be_meant_is_one_error(text, message, tmp_path):
    (tmp_path / 'a.csv').write_bytes(text.encode('latin-1' if '\xff' in text else 'utf-8'))
    with pytest.raises(BadInput) as err:
        read_csv(tmp_path / 'a.csv', ('a',), numbers=('n',))
    assert str(tmp_path / 'a.csv') in str(err.value) and message in str(err.value) and str(err.value).isprintable()


def test_what_spreadsheets_and_people_add_is_read(tmp_path):
    (tmp_path / 'a.csv').write_bytes('\ufeffa, b ,,\r\n\r\n03,"x, y",,\r\nNA\r\n'.encode())
    assert read_csv(tmp_path / 'a.csv', ('a', 'b')).to_dict('list') == {'a': ['03', 'NA'], 'b': ['x, y', '']}
    pd.DataFrame(dict(a=['NA', '03'])).to_csv(tmp_path / 'b.csv') # with pandas' nameless index
    assert read_csv(tmp_path / 'b.csv', ('a',)).to_dict('list') == {'a': ['NA', '03']}


@pytest.mark.parametrize('lines, message', [
    (['a.wav,joy,s'], "row 2: the label 'joy' is not known; use ang, hap, neu, sad"),
    (['a.wav,ang,s', 'b.wav,hap,s', 'a.wav,ang,s'], 'row 4: a.wav is listed twice, first in row 2'),
    (['a.wav,ang,'], 'row 2: no speaker is given for a.wav'), ([',ang,s'], 'row 2: the path is empty'),
    (['../a.wav,ang,s'], "row 2: the path '../a.wav' must be relative"), ([], 'has no utterances'),
    (['C:\\a.wav,ang,s'], 'must be relative'), (['a.wav,ang,s', 'c.wav,sad,s'], '1 of 2 recordings are not in')])
def test_a_bad_manifest_is_one_error_that_names_file_and_row(lines, message, tmp_path):
    touch(tmp_path / 'mine', ('a.wav', 'b.wav'))
    manifest = tmp_path / 'mine' / 'manifest.csv'
    manifest.write_text('\n'.join(['path,label,speaker', *lines]) + '\n')
    with pytest.raises(BadInput) as err:
        load_corpus('mine', tmp_path)
    assert str(manifest) in str(err.value) and message in str(err.value)


@pytest.mark.parametrize('column, given, wanted', [
    ('speaker', [3, 4], ['3', '4']), ('speaker', np.array([3, 4], dtype=np.int8), ['3', '4']),
    ('speaker', ['NA', 'nan'], ['NA', 'nan']), ('speaker', pd.Categorical(['x', 'y']), ['x', 'y']),
    ('session', [None, 1], ['', '1']), ('session', [np.nan, np.nan], ['', '']), ('text_id', [pd.NA, pd.NaT], ['', '']),
    ('path', [Path('x/a.wav'), Path('b.wav')], ['x/a.wav', 'b.wav']), ('gender', ['f ', '\u00a0f'], ['f', 'f'])])
def test_what_becomes_text_exactly_is_made_text(column, given, wanted):
    given = pd.Series(given, dtype=object if isinstance(given, list) else None)
    assert check_table(pd.DataFrame({**ROWS, column: given}), 'mine')[column].tolist() == wanted


@pytest.mark.parametrize('column, given, message', [
    ('speaker', [3., np.nan], "row 2: the speaker '3.0' is not text"),
    ('speaker', [True, False], "'True' is not text"),
    ('speaker', ['a', None], 'row 3: no speaker is given'),
    ('label', ['ang', -1], "row 3: the label '-1' is not known"),
    ('text_id', [['a'], 'b'], 'is not text'), ('session', [b'1', '2'], 'is not text'),
    ('duration_s', [True, 1], 'duration_s True'),
    ('duration_s', [np.inf, 1], 'must be a number'),
    ('speaker', ['a', 'b\x1b[2J'], r"row 3: the speaker 'b\\x1b[2J' holds"),
    ('speaker', ['a', '\ud800'], 'cannot be printed'), ('path', ['a.wav', 'b\x9b.wav'], 'row 3: the path'),
    ('Speaker', ['a', 'b'], "the column 'Speaker' must be called 'speaker'"),
    ('text-id', ['a', 'b'], "called 'text_id'")])
def test_what_is_no_text_or_number_is_refused(column, given, message):
    with pytest.raises(BadInput) as err:
        check_table(pd.DataFrame({**ROWS, column: pd.Series(given, dtype=object)}), 'mine')
    assert message in str(err.value) and str(err.value).isprintable()


# ---- one identity, one spelling

SAME = [lambda s: s + ' ', lambda s: '\u00a0' + s, lambda s: s + '\u200b', lambda s: '\ufeff' + s,
        lambda s: '\u200e' + s,
        lambda s: s.replace(' ', ' \t '), lambda s: s.replace(' ', '\u2003'),
        lambda s: unicodedata.normalize('NFD', s)]


@pytest.mark.parametrize('spell', SAME)
def test_what_cannot_differ_on_purpose_is_one(spell):
    person = '1é b'
    assert spell(person) != person
    spelt = dict.fromkeys(('speaker', 'session', 'text_id'), [person, spell(person)])
    table = check_table(pd.DataFrame(ROWS | spelt), 'mine')
    assert table[list(spelt)].values.tolist() == [[person] * 3] * 2 and not ambiguities(table)


@pytest.mark.parametrize('one, other', [('1é b', '1É B'), ('1é b', '01é b'), ('11', '11.0'), ('1é b', '1é_b'),
                                        ('1é b', '1e b'),
                                        ('1é b', '1\u200bé b'), ('1é b', '١é b'), ('S-1', 's_1'), ('03', '3')])
def test_what_may_be_one_is_named_and_stays_two(one, other, tmp_path):
    table = pd.DataFrame({**ROWS, 'speaker': [one, other]})
    checked = check_table(table, 'mine')
    assert checked.speaker.tolist() == [one, other] and ambiguities(checked) == [('speaker', one, other)]
    write_csv(table, tmp_path / 'manifest.csv')
    with pytest.warns(CorpusWarning) as warned:
        read_corpus('mine', tmp_path)
    [message] = {str(warning.message) for warning in warned}
    assert str(tmp_path / 'manifest.csv') in message and one in message and message.isprintable()


@pytest.mark.parametrize('missing', ['nan', 'None', 'unknown', '-', 'NA', 'n/a', '?'])
def test_a_speaker_who_may_be_missing_is_named(missing):
    table = check_table(pd.DataFrame({**ROWS, 'speaker': ['anna', missing]}), 'mine')
    assert ambiguities(table) == [('speaker', missing, '')]


@pytest.mark.parametrize('name', ['emodb', 'iemocap', 'nemo', 'cremad', 'ravdess', 'savee', 'urdu'])
def test_nothing_in_a_shipped_manifest_is_in_doubt(name):
    assert [*doubts(Corpus(name, Path(name), check_table(released(name), name, read_label_map()[name])))] == []


# ---- parts of recordings

def parted(**changes) -> pd.DataFrame:
    return pd.DataFrame(dict(path='a.wav', label='ang', speaker='s', start=['0', '1.25', '3'],
                             end=['1.25', '2.5', '4']) | changes)


def test_parts_of_a_recording_are_utterances_with_names(tmp_path):
    touch(tmp_path / 'mine', ['a.wav', 'b.wav'])
    table = pd.concat([parted(), pd.DataFrame([dict(path='b.wav', label='sad', speaker='t')])])
    write_csv(table, tmp_path / 'mine' / 'manifest.csv')
    corpus = load_corpus('mine', tmp_path)
    assert corpus.names == ['a.wav#0-1.25', 'a.wav#1.25-2.5', 'a.wav#3-4', 'b.wav'] and [*doubts(corpus)] == []
    np.testing.assert_array_equal(corpus.segments, [[0, 1.25], [1.25, 2.5], [3, 4], [np.nan, np.nan]])
    write_manifest(corpus.table, tmp_path / 'again.csv')
    pd.testing.assert_frame_equal(read_manifest(tmp_path / 'again.csv'), corpus.table)


@pytest.mark.parametrize('changes, message', [
    (dict(start=['0', '', '3']), 'row 3: a.wav has a start or an end alone'),
    (dict(start=['-1', '1', '3']), 'row 2: a.wav begins at -1'),
    (dict(end=['1', '1.25', '4']), 'row 3: a.wav begins at 1.25 s and ends at 1.25 s'),
    (dict(start=['0', 'nan', '3']), 'row 3: start nan must be a number'),
    (dict(end=['1', 'inf', '4']), 'row 3: end inf must be'),
    (dict(start=['0', '0.0', '3'], end=['1', '1.00', '4']), 'row 3: a.wav#0-1 is listed twice, first in row 2')])
def test_parts_that_cannot_be_are_refused(changes, message):
    with pytest.raises(BadInput) as err:
        check_table(parted(**changes), 'mine')
    assert message in str(err.value)


def test_parts_that_overlap_are_named():
    assert overlaps(check_table(parted(start=[0, 1, 5], end=[4, 2, 6]), 'mine')) == ['a.wav#1-2']
    table = check_table(parted(start=[0, np.nan, 3.5], end=[4, np.nan, 6]), 'mine')
    assert overlaps(table) == ['a.wav', 'a.wav#3.5-6']


# ---- label maps

@pytest.mark.parametrize('name', ['Mine', 'my_corpus'])
def test_a_label_map_without_the_corpus_is_refused(name, mine, tmp_path):
    with pytest.raises(BadInput) as err:
        read_corpus('mine', mine, map_of(tmp_path, name, **WORDS))
    assert f"{tmp_path / 'map.csv'}: has no lines for mine" in str(err.value)
    assert f"it has lines for '{name}'" in str(err.value)


@pytest.mark.parametrize('name', ['mine', 'mine ', '\u00a0mine', 'mine\u200b'])
def test_a_label_map_applies_whatever_cannot_be_seen(name, mine, tmp_path):
    corpus = read_corpus('mine', mine, map_of(tmp_path, name, **{**WORDS, 'joy': ''}))
    assert corpus.left_out == {'joy': 2} and len(corpus.table) == 6


def test_a_label_map_that_contradicts_the_manifest_counts_and_a_warning_is_given(mine, tmp_path):
    with pytest.warns(CorpusWarning, match='the column label differs from the label map in 4 rows; the map counts'):
        corpus = read_corpus('mine', mine, map_of(tmp_path, 'mine', **{**WORDS, 'rage': 'sad', 'calm': ''}))
    assert corpus.overruled == 4 and corpus.left_out == {'calm': 2}
    assert corpus.table.label.tolist() == ['sad', 'hap', 'sad'] * 2


@pytest.mark.parametrize('emotion', [None, ''])
def test_a_label_map_reads_the_column_label_where_there_are_no_emotions(emotion, mine, tmp_path):
    rewrite(mine, emotion=emotion)
    corpus = read_corpus('mine', mine, map_of(tmp_path, 'mine', ang='ang', hap='hap', neu='hap', sad=''))
    assert corpus.left_out == {'sad': 2} and corpus.overruled == 0
    assert corpus.table.label.tolist() == ['ang', 'hap', 'hap'] * 2


@pytest.mark.parametrize('name', ['mine', 'emodb'])
def test_labels_without_emotions_count_whatever_the_folder_is_called(name, mine):
    rewrite(mine, emotion=None)
    assert len(read_corpus(name, mine).table) == 8
    rewrite(mine, label=['ang'] * 7 + [''])
    with pytest.raises(BadInput, match="row 9: the label '' is not known"):
        read_corpus(name, mine)


def test_an_emotion_that_the_map_lacks_is_refused_and_what_it_has_is_named(mine, tmp_path):
    rewrite(mine, emotion=['W', 'L', 'F', 'L', 'T', 'N', 'W', 'W'], label='')
    assert read_corpus('emodb', mine).left_out == {'L': 2}
    message = "row 2: the emotion 'W' is not in the label map, which has rage, joy, calm, grief"
    with pytest.raises(BadInput, match=message):
        read_corpus('mine', mine, map_of(tmp_path, 'mine', **WORDS))


@pytest.mark.parametrize('text', ['Corpus,emotion,label\n', 'corpus,emotion,label,label\n', 'corpus;emotion;label\n',
                                  'corpus,emotion\n',
                                  'corpus,emotion,label\nmine,rage,angry\n',
                                  'corpus,emotion,label\nmine,a,ang\nmine,a,sad\n'])
def test_a_label_map_that_is_invalid_is_refused(text, tmp_path):
    (tmp_path / 'map.csv').write_text(text)
    with pytest.raises(BadInput, match='map.csv'):
        read_label_map(tmp_path / 'map.csv')


# ---- folders and names

def test_columns_that_are_not_read_are_named(mine):
    rewrite(mine, offset='1', Notes='x')
    with pytest.warns(CorpusWarning, match="manifest.csv: these columns are not read: 'offset', 'Notes'$"):
        corpus = read_corpus('mine', mine)
    assert corpus.ignored == ('offset', 'Notes') and list(corpus.table) == list(COLUMNS)


@pytest.mark.parametrize('name', ['.', '..', '../mine', 'a/b', '/etc', '.hidden', '', 'mine\n', ' mine', 'a\\b',
                                  'C:', None, 5])
def test_a_corpus_is_named_by_one_plain_component(name, mine):
    for read, root in ((read_corpus, mine), (load_corpus, mine.parent)):
        with pytest.raises(BadInput, match='^corpus: '):
            read(name, root)


@pytest.mark.parametrize('root', [2024, None, b'x', '\0', 'x' * 300, ['a']])
def test_a_root_that_is_no_folder_is_one_error(root):
    for read in (load_corpus, read_corpus):
        with pytest.raises(BadInput):
            read('mine', root)


def test_a_missing_root_corpus_or_column_is_named(tmp_path):
    for root, message in ((tmp_path / 'absent', 'corpora_root: there is no folder .*absent'),
                          (tmp_path, "has no folder 'mine', it holds no")):
        with pytest.raises(BadInput, match=message):
            load_corpus('mine', root)
    (tmp_path / 'mine').mkdir()
    with pytest.raises(BadInput, match="no reader knows a corpus 'mine'"):
        load_corpus('mine', tmp_path)
    (tmp_path / 'mine' / 'manifest.csv').write_text('file,emotion\na.wav,ang\n')
    with pytest.raises(BadInput, match='has no column path and no speaker'):
        load_corpus('mine', tmp_path)


def test_a_tilde_is_the_home_folder_in_every_path(mine, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    map_of(tmp_path, 'mine', **WORDS)
    corpus = load_corpus('mine', '~', '~/map.csv')
    assert corpus.root == mine == read_corpus('mine', '~/mine').root
    write_manifest(corpus.table, '~/again.csv')
    assert len(read_manifest('~/again.csv')) == 8 and (tmp_path / 'again.csv').exists()


@pytest.mark.parametrize('make', [lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to('absent.csv')])
def test_a_manifest_that_is_no_file_does_not_let_a_reader_take_its_place(make, tmp_path):
    touch(tmp_path / 'emodb', ['03a01Fa.wav'])
    make(tmp_path / 'emodb' / 'manifest.csv')
    with pytest.raises(BadInput, match='manifest.csv: there is no such file'):
        load_corpus('emodb', tmp_path)


def test_links_to_folders_are_followed_and_each_folder_once(tmp_path):
    touch(tmp_path, ['corpus/real/a.wav', 'corpus/.hidden/x.wav', 'disk/deep/b.FLAC', 'disk/._c.wav'])
    for link, target in {'disk': '../disk', 'again': 'real', 'real/up': '..', 'disk/round': '../disk'}.items():
        (tmp_path / 'corpus' / link).symlink_to(target if '/' not in link else tmp_path / 'corpus')
    assert list(map(str, find_files(tmp_path / 'corpus', {'.wav', '.flac'}))) == ['disk/deep/b.FLAC', 'real/a.wav']
    touch(tmp_path, ['shemo/F01A01.wav', 'shemo/\x1b[2J/F01A02.wav'])
    with pytest.raises(BadInput, match='cannot be printed'):
        load_corpus('shemo', tmp_path)


# ---- data sets of the datasets library

def save_dataset(place: Path, format: str = 'FLAC', **changes):
    "A data set of three rows; changes: other columns."
    datasets = pytest.importorskip('datasets', reason="needs pip install 'cdser[datasets]'")
    content = io.BytesIO()
    sf.write(content, TONE, 16_000, format=format)
    rows = dict(audio=[dict(bytes=content.getvalue(), path=None)] * 3, label=['ang', 'sad', 'ang'],
                speaker=['NA', '03', 'anna'])
    data = datasets.Dataset.from_dict(rows | changes).cast_column('audio', datasets.Audio())
    if place:
        data.save_to_disk(place)
    return data


def test_a_data_set_becomes_a_corpus_byte_for_byte(tmp_path):
    datasets = pytest.importorskip('datasets')
    parts = dict(train=save_dataset(None, session=[1, 2, None]), test=save_dataset(None, 'WAV', speaker=[4, 5, 6]))
    labels = datasets.ClassLabel(names=['ang', 'sad'])
    parts = {name: part.cast_column('label', labels) for name, part in parts.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / 'saved')
    import_dataset(tmp_path / 'saved', tmp_path / 'mine')
    table = load_corpus('mine', tmp_path).table
    assert table.path.tolist() == [f'train/00000{i}.flac' for i in range(3)] + [f'test/00000{i}.wav' for i in range(3)]
    assert table.label.tolist() == ['ang', 'sad', 'ang'] * 2
    assert table.speaker.tolist() == ['NA', '03', 'anna', '4', '5', '6']
    assert table.session.tolist() == ['1', '2', '', '', '', '']
    assert len(sf.read(tmp_path / 'mine' / table.path[5])[0]) == len(TONE)
    with pytest.raises(BadInput, match='import-dataset'):
        load_corpus('saved', tmp_path)


@pytest.mark.parametrize('changes, arguments, message', [
    ({}, dict(speaker='who'), "speaker: the data set has no column 'who', it has audio, label, speaker"),
    ({}, dict(audio='speaker'), "audio: the column 'speaker' holds no audio"),
    ({}, dict(folder='saved/mine'), 'overlap'),
    ({}, dict(folder='there'), 'is there already; name a new folder'),
    ({}, dict(saved='nowhere'), 'name a folder that save_to_disk wrote'),
    ({}, dict(folder='.mine'), '.mine'),
    (dict(label=['ang', None, 'sad']), {}, 'row 3: no emotion is given for 000001.flac'),
    (dict(speaker=['a', 'b', ' ']), {}, 'row 4: no speaker is given for 000002.flac'),
    (dict(speaker=[1., 2., 3.]), {}, "'1.0' is not text"),
    (dict(speaker=['a', 'b', 'c\x1b[2J']), {}, 'holds a character that cannot be printed'),
    (dict(audio=[None] * 3), {}, 'is not stored in it')])
def test_a_data_set_that_cannot_be_imported_is_one_error_and_leaves_nothing(changes, arguments, message, tmp_path):
    save_dataset(tmp_path / 'saved', **changes)
    (tmp_path / 'there').mkdir()
    places = {name: tmp_path / arguments.pop(name, name) for name in ('saved', 'folder')} | arguments
    with pytest.raises(BadInput) as err:
        import_dataset(**places)
    assert message in str(err.value) and sorted(os.listdir(tmp_path)) == ['saved', 'there']


@pytest.mark.parametrize('spoil', [
    lambda saved: (saved / 'state.json').write_text(''), lambda saved: next(saved.glob('*.arrow')).unlink(),
    lambda saved: next(saved.glob('*.arrow')).write_bytes(next(saved.glob('*.arrow')).read_bytes()[:200]),
    lambda saved: (saved / 'dataset_info.json').write_text('{')])
def test_a_damaged_data_set_is_one_error_and_leaves_nothing(spoil, tmp_path):
    save_dataset(tmp_path / 'saved')
    spoil(tmp_path / 'saved')
    with pytest.raises(BadInput) as err:
        import_dataset(tmp_path / 'saved', tmp_path / 'mine')
    assert str(tmp_path / 'saved') in str(err.value) and '\n' not in str(err.value)
    assert os.listdir(tmp_path) == ['saved']


@pytest.mark.parametrize('split', ['../victim', '/elsewhere', 'a/b', '.git'])
def test_nothing_is_written_outside_the_new_corpus(split, tmp_path):
    datasets = pytest.importorskip('datasets')
    datasets.DatasetDict(train=save_dataset(None)).save_to_disk(tmp_path / 'saved')
    (tmp_path / 'saved' / 'dataset_dict.json').write_text(json.dumps(dict(splits=[split])))
    if split in ('a/b', '.git'):
        (tmp_path / 'saved' / split).parent.mkdir(exist_ok=True)
        (tmp_path / 'saved' / 'train').rename(tmp_path / 'saved' / split)
    with pytest.raises(BadInput):
        import_dataset(tmp_path / 'saved', tmp_path / 'mine')
    assert os.listdir(tmp_path) == ['saved']
