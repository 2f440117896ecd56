"Readers on trees laid out as released: every trap of every corpus, and the counts that its owners publish."
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pandas as pd
import pytest

from cdser.config import LABELS, BadInput
from cdser.corpora import check_table, load_corpus, read_label_map, released
from cdser.readers import READERS
from trees import (CAST, IMPROV_CODES, IMPROV_SCENARIOS, LAYOUTS, OTHERS, TWIN, iemocap_lines, iemocap_turns,
                   improv_lines, improv_path, improv_turns, links, put, summary_line, text, with_others,
                   write_iemocap, write_msp_improv, write_small)

FOUR = dict(ang='ang', hap='hap', exc='hap', neu='neu', sad='sad') # of IEMOCAP
TURNS = {'Ses01F_impro01_F000': 'neu', 'Ses01F_impro01_M000': 'ang', 'Ses01M_script01_1_F003': 'exc',
         'Ses01M_script01_1_M004': 'fru', 'Ses05M_script01_1_F003': 'hap', 'Ses05F_impro05a_M010': 'sad',
         'Ses05F_impro05a_F011': 'xxx'}
IMPROV = pd.DataFrame([('S01A-F01-S-FM01', 'A'), ('S01A-M06-R-MF01', 'N'), ('S20H-M03-T-FM02', 'H'),
                       ('S07S-F05-P-MF11', 'S'), ('S07S-F05-P-FM12', 'O'), ('S01N-M06-S-MF01', 'X')],
                      columns=['name', 'emotion'])
TURN, CLIP = iemocap_turns(TURNS).path[0], 'Audio/' + improv_path('S01A-F01-S-FM01')
DIALOGUE = 'Session1/dialog/EmoEvaluation/Ses01F_impro01.txt'


def four(table: pd.DataFrame) -> tuple: # ang, hap, neu, sad
    return tuple(int((table.label == label).sum()) for label in LABELS)


def by_stem(table: pd.DataFrame, column: str = 'label') -> dict:
    return dict(zip([PurePosixPath(path).stem for path in table.path], table[column]))


def refused(root: Path, name: str, *words: str) -> None:
    "A corpus is refused with one error that holds all words."
    with pytest.raises(BadInput) as err:
        load_corpus(name, root)
    assert not [word for word in words if word not in str(err.value)], str(err.value)


def write_tree(root: Path, name: str, **options) -> None:
    "A small tree of any corpus."
    if name == 'iemocap':
        write_iemocap(root / name, iemocap_turns(TURNS), **options)
    elif name == 'msp_improv':
        write_msp_improv(root / name, IMPROV, **options)
    else:
        write_small(root / name, name, **options)


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Iterator[Path]:
    "IEMOCAP and MSP-IMPROV with all their turns, a few bytes in place of audio."
    root = tmp_path_factory.mktemp('whole')
    name = links(root / 'seed')
    write_iemocap(root / 'iemocap', with_others(released('iemocap'), **OTHERS), name)
    write_msp_improv(root / 'msp_improv', improv_turns(), name)
    yield root
    shutil.rmtree(root) # thousands of files: not to be kept for three runs


# ---- what is shipped

@pytest.mark.parametrize('name, counts, rows, speakers', [
    ('iemocap', (1103, 1636, 1708, 1084), 5531, 10), ('cremad', (1271, 1271, 1087, 1271), 7442, 91),
    ('ravdess', (192, 192, 96, 192), 1440, 24), ('savee', (60, 60, 120, 60), 480, 4),
    ('emodb', (127, 71, 79, 62), 339, 10), ('nemo', (749, 749, 809, 769), 4481, 9),
    ('urdu', (100, 100, 100, 100), 400, 29)])
def test_a_shipped_manifest_counts_what_is_published(name, counts, rows, speakers):
    table = check_table(released(name), name, read_label_map()[name])
    assert four(table) == counts and table.speaker.nunique() == speakers
    assert len(released(name)) == rows and table.path.is_unique
    assert set(table.gender) == ({'male'} if name == 'savee' else {'female', 'male'})


def test_every_corpus_has_a_reader_and_a_label_map_of_four_labels():
    assert {'iemocap', 'msp_improv', *LAYOUTS} == set(READERS) == set(read_label_map())
    assert all({*LABELS, ''} >= set(emotions.values()) >= set(LABELS) for emotions in read_label_map().values())


@pytest.mark.parametrize('name', ['emodb', 'urdu', 'nemo'])
def test_a_reader_says_of_a_real_copy_what_the_manifest_of_the_release_says(name, real_corpora):
    table, known = load_corpus(name, real_corpora).table, check_table(released(name), name, read_label_map()[name])
    assert len(table) > 300
    for column in ('label', 'speaker', 'gender', 'text_id'):
        facts = by_stem(known, column)
        assert all(facts[stem] == value for stem, value in by_stem(table, column).items())


# ---- IEMOCAP and MSP-IMPROV

def test_iemocaps_list_equals_the_shipped_manifest_row_for_row(whole):
    table, facts = load_corpus('iemocap', whole).table, ['path', 'emotion', 'speaker', 'session', 'gender']
    expected = released('iemocap').sort_values('path')[facts].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[facts], expected, check_dtype=False)
    assert (table.label == table.emotion.map(FOUR)).all() and len(table) == 5531
    prefix = table.path.str.extract(r'/(Ses\d\d[FM])_')[0]
    assert (prefix != table.speaker).sum() == 2750 # the speaker is in the turn, not in the prefix
    sessions = table[table.text_id != ''].groupby('text_id').session.nunique()
    assert len(sessions) == 7 and (sessions == 5).all() # text leaks even if speakers do not
    assert (table.text_id == '').equals(table.path.str.contains('_impro'))
    assert Counter(READERS['iemocap'](whole / 'iemocap').emotion)['xxx'] == OTHERS['xxx']


def test_msp_improv_counts_what_is_published_and_says_who_when_and_what(whole):
    every = READERS['msp_improv'](whole / 'msp_improv')
    assert Counter(every.emotion) == IMPROV_CODES
    assert Counter(every.path.str.extract(r'-([PRST])-')[0]) == IMPROV_SCENARIOS
    table = load_corpus('msp_improv', whole).table
    pattern = r'(?P<sentence>S\d\d)(?P<intended>[A-Z])-(?P<speaker>[FM]\d\d)-(?P<scenario>[PRST])-'
    names = table.path.str.extract(pattern)
    assert four(table) == (792, 2644, 3477, 885) and sorted(set(table.speaker)) == sorted(CAST)
    assert (table.speaker == names.speaker).all() and (table.session == names.speaker.str[-1]).all()
    assert (names.intended != table.emotion).any() and (table.gender.str[0].str.upper() == names.speaker.str[0]).all()
    assert (table.text_id == names.sentence.where(names.scenario.isin(['S', 'R']), '')).all()


def test_a_small_iemocap_is_read_in_full_and_nothing_beside_its_label_files_is(tmp_path):
    write_tree(tmp_path, 'iemocap')
    corpus = load_corpus('iemocap', tmp_path)
    table = corpus.table
    assert by_stem(table) == {turn: FOUR[code] for turn, code in TURNS.items() if code in FOUR}
    assert by_stem(table, 'speaker')['Ses01M_script01_1_F003'] == 'Ses01F'
    assert by_stem(table, 'text_id')['Ses01M_script01_1_F003'] == 'script01_1' and not corpus.unlisted
    other = iemocap_lines(iemocap_turns({turn: 'sad' for turn in TURNS if turn.startswith('Ses01F_impro01')}))
    folder = tmp_path / 'iemocap' / PurePosixPath(DIALOGUE).parent
    assert (folder / '._Ses01F_impro01.txt').read_bytes() == TWIN
    for path in ('Attribute/Ses01F_impro01.txt', 'Categorical/a.txt', 'Self-evaluation/a.txt', '._Ses01F_impro01.txt'):
        text(folder / path, *other) # of single raters, and what macOS leaves
    pd.testing.assert_frame_equal(load_corpus('iemocap', tmp_path).table, table)


@pytest.mark.parametrize('name', ['iemocap', 'msp_improv'])
def test_lines_may_end_as_on_windows(name, tmp_path):
    for system, newline in ('unix', '\n'), ('windows', '\r\n'):
        write_tree(tmp_path / system, name, newline=newline)
    unix, windows = (load_corpus(name, tmp_path / system).table for system in ('unix', 'windows'))
    pd.testing.assert_frame_equal(unix, windows)


@pytest.mark.parametrize('spelling', ['Evalution.txt', 'Evaluation.txt', 'Labels/Evalution.txt'])
@pytest.mark.parametrize('audio_folder', [True, False])
def test_msp_improv_is_found_however_its_copy_is_laid_out(spelling, audio_folder, tmp_path):
    write_tree(tmp_path, 'msp_improv', spelling=spelling, audio_folder=audio_folder)
    table = load_corpus('msp_improv', tmp_path).table
    assert table.label.tolist() == ['ang', 'hap', 'sad', 'neu'] and table.text_id.tolist() == ['S01', '', '', 'S01']
    assert set(table.path) == {'Audio/' * audio_folder + improv_path(name) for name in IMPROV.name[:4]}


@pytest.mark.parametrize('again', [
    [summary_line('S01A-F01-S-FM01', 'A')],        # word for word
    [summary_line('S01A-F01-S-FM01', 'A', 'NaN')], # with other ratings
    ['WORKER00000009; Sad; Sad,; A:NaN; V:NaN; D:NaN; N:NaN;'] * 2,
    ['S; N; X;', 'S01A-F01-S-FM01; S; A:1.000000;']]) # raters
def test_a_repeated_summary_counts_once_and_raters_never(again, tmp_path):
    write_tree(tmp_path, 'msp_improv')
    before = load_corpus('msp_improv', tmp_path).table
    text(tmp_path / 'msp_improv/Evalution.txt', *improv_lines(IMPROV), *again, '')
    pd.testing.assert_frame_equal(load_corpus('msp_improv', tmp_path).table, before)


def without_audio(root: Path, name: str, *stems: str) -> None:
    for stem in stems:
        next((root / name).rglob(f'*{stem}.wav')).unlink()


def list_turn(root: Path, folder: str, turn: str, code: str) -> None:
    text(root / 'iemocap' / folder / DIALOGUE, *iemocap_lines(iemocap_turns({turn: code})))


DAMAGED = {
    'label lines without audio': (
        'iemocap', lambda root: without_audio(root, 'iemocap', 'Ses05M_script01_1_F003', 'Ses01F_impro01_M000'),
        '2 of 5', 'Ses01F_impro01_M000'),
    'turns in two files': ('iemocap', lambda root: list_turn(root, 'copy', 'Ses01F_impro01_F000', 'neu'),
                           'Ses01F_impro01_F000', 'labelled twice'),
    'other label lines': ('iemocap', lambda root: text(root / 'iemocap' / DIALOGUE, '[1 - 2] Ses01F_impro01_F000 neu'),
                          DIALOGUE, 'line 1', 'is not as in the release'),
    'no label files': ('iemocap', lambda root: [shutil.rmtree(path) for path in root.glob('iemocap/Session*/dialog')],
                       'EmoEvaluation'),
    'another code': ('iemocap', lambda root: list_turn(root, '', 'Ses01F_impro01_F000', 'joy'),
                     "'joy' is not in the label map"),
    'turn in two formats': ('iemocap', lambda root: put(root / 'iemocap', [TURN.replace('.wav', '.flac')]), TURN),
    'no audio of a turn': ('msp_improv', lambda root: without_audio(root, 'msp_improv', 'S20H-M03-T-FM02'),
                           '1 of 4', 'S20H-M03'),
    'no label file': ('msp_improv', lambda root: (root / 'msp_improv/Evalution.txt').unlink(), 'Evalution.txt'),
    'contradiction': (
        'msp_improv', lambda root: text(root / 'msp_improv/Evaluation.txt', summary_line('S01A-F01-S-FM01', 'N')),
        'S01A-F01-S-FM01', 'a second label'),
    'clip in two folders': ('msp_improv', lambda root: put(root / 'msp_improv', [CLIP.replace('Audio/', '')]), CLIP),
    'folder copied': ('nemo', lambda root: shutil.copytree(root / 'nemo/samples', root / 'nemo/copy'),
                      'copy/', 'samples/')}


@pytest.mark.parametrize('what', DAMAGED)
def test_a_damaged_release_is_one_error_that_names_what_is_wrong(what, tmp_path):
    name, damage, *words = DAMAGED[what]
    write_tree(tmp_path, name)
    load_corpus(name, tmp_path)
    damage(tmp_path)
    refused(tmp_path, name, *words)


# ---- the open corpora

@pytest.mark.parametrize('name', LAYOUTS)
def test_a_reader_tells_what_names_and_folders_say(name, tmp_path):
    layout = {path: row for path, row in write_small(tmp_path / name, name).items() if row}
    corpus, full = load_corpus(name, tmp_path), READERS[name](tmp_path / name)
    assert dict(zip(full.path, full.emotion)) == {path: row[0] for path, row in layout.items()}
    assert set(corpus.table.path) == {path for path, row in layout.items() if row[1]}
    for row in corpus.table.itertuples():
        facts = (row.emotion, row.label, row.speaker, row.gender, row.text_id)
        assert all(fact == wanted for fact, wanted in zip(facts, layout[row.path]) if wanted != '?')
    assert len(corpus.unlisted) == (name == 'msp_podcast') # an unknown speaker


@pytest.mark.parametrize('name', ['iemocap', 'msp_improv', *(name for name in LAYOUTS if name != 'cremad')])
def test_any_audio_format_will_do(name, tmp_path):
    write_tree(tmp_path, name)
    wanted = len(load_corpus(name, tmp_path).table)
    for path in (tmp_path / name).rglob('[!.]*.wav'):
        path.rename(path.with_suffix('.OPUS'))
    table = load_corpus(name, tmp_path).table
    assert len(table) == wanted and table.path.str.endswith('.OPUS').all()


@pytest.mark.parametrize('name, files', [
    ('savee', {'DC_a01.wav': 'ang', 'JE_sa02.wav': 'sad', 'KL_su03.wav': None, 'JK_n04.wav': 'neu',
               'KL/a01.wav': 'ang'}),
    ('urdu', {'wav/SM1_F10_A010.wav': 'ang', 'SF2_F3_H03.wav': 'hap', 'SM5_F1_N001.wav': 'neu'}),
    ('esd', {'0011/Angry/train/0011_000371.wav': 'ang', '0011/Sad/evaluation/0011_001051.wav': 'sad',
             '0002/Surprise/train/0002_001441.wav': None}),
    ('tess', {'OAF_bath_angry.wav': 'ang', 'YAF_bath_ps.wav': None, 'OA_bite_neutral.wav': 'neu'}),
    ('ravdess', {'Audio_Speech_Actors_01-24/Actor_01/03-01-05-01-02-01-01.wav': 'ang',
                 'Actor_02/03-02-05-01-02-01-02.wav': None}),
    ('shemo', {'F24A24.wav': 'ang', 'F03F01.wav': None, 'M03N01.wav': 'neu'}),
    ('cremad', {'AudioMP3/1001_DFA_ANG_XX.mp3': 'ang', 'AudioMP3/1002_IEO_DIS_HI.mp3': None}),
    ('nemo', {'EB0_anger_1.wav': 'ang'}), ('emodb', {'03a01Wa.wav': 'ang', '16b10Td.wav': 'sad',
                                                     '16b10Ld.wav': None})])
def test_other_layouts_in_use_are_read_too(name, files, tmp_path):
    put(tmp_path / name, files)
    table = load_corpus(name, tmp_path).table
    assert dict(zip(table.path, table.label)) == {path: label for path, label in files.items() if label}


@pytest.mark.parametrize('spelling', ['labels_consensus.csv', 'labels_concensus.csv'])
def test_msp_podcast_is_read_under_both_spellings_without_unknown_speakers(spelling, tmp_path):
    write_small(tmp_path / 'msp_podcast', 'msp_podcast')
    labels = tmp_path / 'msp_podcast/Labels'
    (labels / 'labels_consensus.csv').rename(labels / spelling)
    assert set(load_corpus('msp_podcast', tmp_path).table.speaker) == {'127', '9', '55'}


@pytest.mark.parametrize('name, first, second', [
    ('emodb', 'wav/03a01Fa.wav', 'wav/03a01Fa.flac'), ('emodb', 'wav/03a01Fa.wav', 'copy/wav/03a01Fa.wav'),
    ('savee', 'DC/a01.wav', 'DC_a01.wav'), ('tess', 'OAF_neutral/OA_bite_neutral.wav',
                                            'OAF_neutral/OAF_bite_neutral.wav'),
    ('urdu', 'Angry/SM1_F10_A010.wav', 'wav/SM1_F10_A010.wav'),
    ('esd', '0011/Angry/0011_000351.wav', '0011/Angry/train/0011_000351.wav'),
    ('cremad', 'AudioWAV/1001_DFA_ANG_XX.wav', 'AudioWAV/1001_DFA_ANG_XX.flac'),
    ('msp_podcast', 'Audios/MSP-PODCAST_0001_0008.wav', 'Audios/MSP-PODCAST_0001_0008.flac')])
def test_the_same_utterance_twice_is_refused_and_both_are_named(name, first, second, tmp_path):
    write_small(tmp_path / name, name)
    put(tmp_path / name, [second])
    refused(tmp_path, name, first, second)
