"Corpora laid out as their owners release them, at any size; the names are the released ones, the audio is not."
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import soundfile as sf
from scipy.signal import resample_poly

from cdser.synthetic import STUDIO_A, STUDIO_B, generate

HUM = (.1 * np.sin(np.arange(4800) * .1)).astype(np.float32)
TWIN = (b'\0\5\x16\7\0\2\0\0Mac OS X        \xb0\xff[1.0000 - 2.0000]\tSes01F_impro01_F000\tang\t'
        b'[1.0000, 1.0000, 1.0000]\n') # what macOS leaves beside a file, as `._` and its name


# ---- audio: what is written at a path

def touch(path: Path) -> None:
    "A few bytes, no two files alike: all that is needed where only names and labels are read."
    path.write_text(path.stem)


def links(seed: Path) -> Callable[[Path], None]:
    "One small file under every name: for thousands of them, many times faster than as many files."
    seed.write_text(seed.stem)
    return lambda path: os.link(seed, path)


def save(path: Path, samples: np.ndarray = HUM, rate: int = 16_000) -> None:
    "Audio in the format that the suffix names."
    sf.write(path, samples, rate, **(dict(format='OGG', subtype='OPUS') if path.suffix.lower() == '.opus' else {}))


def put(root: Path, paths, audio: bool | Callable[[Path], None] = touch, # True: a short hum; False: no audio at all
        rate: int = 16_000) -> None:
    "Write a recording at each path."
    for folder in {(root / path).parent for path in paths if audio}:
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths if audio else ():
        if audio is True:
            save(root / path, np.resize(HUM, int(.3 * rate)), rate)
        else:
            audio(root / path)


def text(path: Path, *lines: str, newline: str = '\n') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(''.join(line + newline for line in lines).encode())


# ---- IEMOCAP

OTHERS = dict(xxx=2507, fru=1849, sur=107, fea=40, oth=3,
              dis=2) # turns of the release beside the 5531 of the four classes
RATERS = ('C-E2:\tNeutral;\t()', 'C-E3:\tNeutral; Sadness;\t()', 'C-E4:\tOther;\t(unsure)', 'C-{0}1:\tAnger;\t()',
          'A-E3:\tval 3; act 2; dom  3;\t()', 'A-E4:\tval 2; act 3; dom  3;\t()',
          'A-{0}1:\tval 3; act 2; dom  1;\t()')


def iemocap_turns(codes: dict[str, str], suffix: str = '.wav') -> pd.DataFrame: # path, emotion
    "Rows of a manifest for turns such as `Ses01F_impro01_F000`, given with their codes."
    rows = [(f'Session{int(turn[3:5])}/sentences/wav/{turn.rpartition("_")[0]}/{turn}{suffix}', code)
            for turn, code in codes.items()]
    return pd.DataFrame(rows, columns=['path', 'emotion'])


def with_others(turns: pd.DataFrame, **codes: int) -> pd.DataFrame: # path, emotion
    "Turns of further codes, dealt over the dialogues that are there."
    dialogues = sorted({PurePosixPath(path).parent.name for path in turns.path})
    dealt = [code for code, n in codes.items() for _ in range(n)]
    names = [f'{dialogues[i % len(dialogues)]}_{"FM"[i % 2]}{500 + i // len(dialogues)}' for i in range(len(dealt))]
    return pd.concat([turns[['path', 'emotion']], iemocap_turns(dict(zip(names, dealt)))], ignore_index=True)


def iemocap_lines(turns: pd.DataFrame, start: float = 6.2901) -> list[str]:
    "The lines of a dialogue's label file: a line for each turn, then its raters' and a blank one."
    lines = ['% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]', '']
    for i, row in enumerate(turns.itertuples()):
        turn, end = PurePosixPath(row.path).stem, start + 1.9456
        values = ', '.join(f'{2 + (i + k) % 7 / 3:.4f}' for k in range(3))
        letter = turn.rpartition('_')[2][0]
        lines += [f'[{start:.4f} - {end:.4f}]\t{turn}\t{row.emotion}\t[{values}]',
                  *(rater.format(letter) for rater in RATERS), '']
        start = end + .5
    return lines


def write_iemocap(root: Path, turns: pd.DataFrame, # path, emotion, as in a manifest
                  audio: bool | Callable[[Path], None] = touch, newline: str = '\n') -> None:
    "Sessions with label files, single raters' files, `._` twins, whole dialogues and utterances."
    dialogue = turns.path.map(lambda path: PurePosixPath(path).parent)
    for folder, rows in turns.groupby(dialogue):
        session, name = root / folder.parts[0], folder.name
        spoken = rows.iloc[np.argsort([PurePosixPath(path).stem[::-1] for path in rows.path])] # by time, not by name
        labels = session / 'dialog' / 'EmoEvaluation'
        text(labels / f'{name}.txt', *iemocap_lines(spoken), newline=newline)
        (labels / f'._{name}.txt').write_bytes(TWIN)
        stems = [PurePosixPath(path).stem for path in spoken.path]
        ratings = [f'{stem} :Anger; ()' for stem in stems]
        text(labels / 'Categorical' / f'{name}_e2_cat.txt', *ratings, newline=newline)
        text(labels / 'Attribute' / f'{name}_e3_atr.txt', *(f'{stem} :act 2; :val 3; :dom 2; ()' for stem in stems),
             newline=newline)
        text(labels / 'Self-evaluation' / f'{name}_f1_cat.txt', *(f'{stem} :Sadness; ()' for stem in stems),
             newline=newline)
        put(session, [f'dialog/wav/{name}.wav'], audio)
    put(root, turns.path, audio)
    twins = [path.with_name(f'._{path.name}') for path in map(PurePosixPath, turns.path[::20])]
    put(root, twins, audio and (lambda path: path.write_bytes(TWIN)))


# ---- MSP-IMPROV

IMPROV_CODES = dict(A=792, H=2644, N=3477, S=885, O=85, X=555)
IMPROV_SCENARIOS = dict(S=652, R=620, T=4381, P=2785)
CAST = [f'{letter}{session:02}' for session in range(1, 7) for letter in 'FM']


def improv_turns(codes: dict[str, int] = IMPROV_CODES,
                 scenarios: dict[str, int] = IMPROV_SCENARIOS,
                ) -> pd.DataFrame: # name, emotion
    "Turns such as `S01A-F01-S-FM01` of the twelve speakers, as many of each code and scenario as asked for."
    emotions = np.repeat(list(codes), list(codes.values()))
    played = np.random.default_rng(0).permutation(np.repeat(list(scenarios), list(scenarios.values())))
    said, names = Counter(), []
    for i, scenario in enumerate(played):
        speaker, sentence = CAST[i % 12], f'S{i // 12 % 20 + 1:02}{"AHNS"[i // 240 % 4]}'
        said[sentence, speaker, scenario] += 1
        names.append(f'{sentence}-{speaker}-{scenario}-{("FM", "MF")[i % 2]}{said[sentence, speaker, scenario]:02}')
    return pd.DataFrame(dict(name=names, emotion=emotions))


def improv_path(name: str, suffix: str = '.wav') -> str:
    "Where the recording of a turn lies below the folder of the audio."
    sentence, speaker, scenario, _ = name.split('-')
    return f'session{int(speaker[1:])}/{sentence}/{scenario}/MSP-IMPROV-{name}{suffix}'


def summary_line(name: str, code: str, valence: str = '3.500000') -> str:
    return f'UTD-IMPROV-{name}.avi; {code}; A:3.000000; V:{valence}; D:3.000000 ; N:4.000000;'


def improv_lines(turns: pd.DataFrame) -> list[str]:
    "The lines of the label file: a summary of each turn, its raters' (every seventh has one twice), a blank one."
    lines = []
    for i, row in enumerate(turns.itertuples()):
        raters = [f'WORKER{i % 97 + k:08}; {word}; {word},Concentrated; A:3.000000; V:4.000000; D:NaN; N:5.000000;'
                  for k, word in enumerate(['Neutral', 'Angry', 'Happy', 'Sad', 'Other'])]
        lines += [summary_line(row.name, row.emotion, 'NaN' if i % 50 == 3 else '3.500000'), *raters,
                  *(raters[-1:] * (i % 7 == 0)), '']
    return lines


def write_msp_improv(root: Path, turns: pd.DataFrame, # name, emotion
                     audio: bool | Callable[[Path], None] = touch, spelling: str = 'Evalution.txt',
                     audio_folder: bool = True, rate: int = 44_100,
                     suffix: str = '.wav', newline: str = '\n') -> None:
    "The label file and the recordings of six sessions."
    text(root / spelling, *improv_lines(turns), newline=newline)
    put(root / 'Audio' if audio_folder else root, [improv_path(name, suffix) for name in turns.name], audio, rate)


# ---- both, with speech that can be told apart

def speak(voices: dict[str, np.ndarray], rate: int) -> Callable[[Path], None]:
    "Write the voice that goes with the name of a file, a hum where none does."
    return lambda path: save(path, voices.get(path.stem, HUM), rate)


def paper_trees(root: Path, per_speaker: int = 2,
                seconds: float = .7) -> Path: # root, with iemocap and msp_improv below it
    "Both corpora of the paper with all sessions and speakers, and generated utterances of each label by each."
    def cast(studio, speakers):
        return generate(replace(studio, speakers=speakers, utterances=speakers * 4 * per_speaker, prior=(.25,) * 4,
                                seconds=seconds))
    waves, table = cast(STUDIO_A, 10)
    who, said = table.speaker.str[-2:].astype(int) - 1, table.groupby('speaker').cumcount()
    names, codes = [], []
    for i, k, label, sentence in zip(who, said, table.label, table.text_id.str[1:].astype(int)):
        played = f'F_impro{sentence:02}' if k % 2 else f'M_script0{sentence % 3 + 1}_1'
        names.append(f'Ses{i // 2 + 1:02}{played}_{"FM"[i % 2]}{k:03}')
        codes.append('exc' if label == 'hap' and k % 2 else label)
    turns = with_others(iemocap_turns(dict(zip(names, codes))), fru=12, xxx=12)
    write_iemocap(root / 'iemocap', turns, speak(dict(zip(names, waves)), 16_000))

    waves, table = cast(STUDIO_B, 12)
    who, said = table.speaker.str[-2:].astype(int) - 1, table.groupby('speaker').cumcount()
    names = [f'S{sentence:02}{"AHNS"[k % 4]}-{CAST[i]}-{"SRTP"[(k + k // 4) % 4]}-{("FM", "MF")[i % 2]}{k + 1:02}'
             for i, k, sentence in zip(who, said, table.text_id.str[1:].astype(int))]
    turns = pd.DataFrame(dict(name=names, emotion=table.label.str[0].str.upper()))
    more = pd.DataFrame(dict(name=[f'S20N-{speaker}-T-FM99' for speaker in CAST], emotion=list('OX') * 6))
    voices = {f'MSP-IMPROV-{name}': resample_poly(wave, 441, 160).astype(np.float32) for name,
              wave in zip(names, waves)}
    write_msp_improv(root / 'msp_improv', pd.concat([turns, more], ignore_index=True), speak(voices, 44_100))
    return root


# ---- the open corpora: path -> emotion, label ('' is left out), speaker, gender, text_id; '?' is not asked for;
#      None: a file that is no utterance of the corpus

LAYOUTS = {
    'cremad': {
        'AudioWAV/1001_DFA_ANG_XX.wav': ('ANG', 'ang', '1001', 'male', 'DFA'),
        'AudioWAV/1002_IEO_HAP_HI.wav': ('HAP', 'hap', '1002', 'female', 'IEO'),
        'AudioWAV/1091_WSI_NEU_XX.wav': ('NEU', 'neu', '1091', 'female', 'WSI'),
        'AudioWAV/1091_IEO_SAD_LO.wav': ('SAD', 'sad', '1091', 'female', 'IEO'),
        'AudioWAV/1001_TIE_DIS_XX.wav': ('DIS', '', '1001', 'male', 'TIE'),
        'AudioWAV/1001_TIE_FEA_XX.wav': ('FEA', '', '1001', 'male', 'TIE'),
        'AudioMP3/1001_DFA_ANG_XX.mp3': None, 'AudioMP3/1002_IEO_HAP_HI.mp3': None,
        'AudioWAV/._1001_DFA_ANG_XX.wav': None},
    'ravdess': {
        'Actor_01/03-01-05-01-02-01-01.wav': ('05', 'ang', '01', 'male', '02'),
        'Actor_02/03-01-03-02-01-01-02.wav': ('03', 'hap', '02', 'female', '01'),
        'Actor_24/03-01-01-01-01-01-24.wav': ('01', 'neu', '24', 'female', '01'),
        'Actor_23/03-01-04-01-01-02-23.wav': ('04', 'sad', '23', 'male', '01'),
        'Actor_01/03-01-02-01-01-01-01.wav': ('02', '', '01', 'male', '01'),
        'Actor_01/03-01-08-01-01-01-01.wav': ('08', '', '01', 'male', '01'),
        'Actor_01/03-02-05-01-02-01-01.wav': None, 'Actor_01/01-01-05-01-02-01-01.wav': None,
        'Actor_01/02-01-05-01-02-01-01.wav': None},
    'emodb': {
        'wav/03a01Fa.wav': ('F', 'hap', '03', 'male', 'a01'), 'wav/08b10Wb.wav': ('W', 'ang', '08', 'female', 'b10'),
        'wav/14a05Tb.wav': ('T', 'sad', '14', 'female', 'a05'), 'wav/15a02Nc.wav': ('N', 'neu', '15', 'male', 'a02'),
        'wav/03a01La.wav': ('L', '', '03', 'male', 'a01'), 'wav/16a01Ec.wav': ('E', '', '16', 'female', 'a01'),
        'wav/09a04Al.wav': ('A', '', '09', 'female', 'a04'), 'wav/._03a01Fa.wav': None},
    'savee': {
        'DC/a01.wav': ('a', 'ang', 'DC', 'male', 'a01'), 'JE/h15.wav': ('h', 'hap', 'JE', 'male', 'h15'),
        'JK/n30.wav': ('n', 'neu', 'JK', 'male', 'n30'),
        'KL/sa07.wav': ('sa', 'sad', 'KL', 'male', 'sa07'), 'DC/su01.wav': ('su', '', 'DC', 'male', 'su01'),
        'KL/a01.wav': ('a', 'ang', 'KL', 'male', 'a01'),
        'DC/d02.wav': ('d', '', 'DC', 'male', 'd02'), 'DC/f03.wav': ('f', '', 'DC', 'male', 'f03')},
    'tess': {
        'OAF_angry/OAF_back_angry.wav': ('angry', 'ang', 'OAF', 'female', 'back'),
        'YAF_happy/YAF_hash_happy.wav': ('happy', 'hap', 'YAF', 'female', 'hash'),
        'OAF_neutral/OA_bite_neutral.wav': ('neutral', 'neu', 'OAF', 'female', 'bite'),
        'YAF_sad/YAF_neat_sad.wav': ('sad', 'sad', 'YAF', 'female', 'neat'),
        'OAF_Pleasant_surprise/OAF_back_ps.wav': ('ps', '', 'OAF', 'female', 'back'),
        'OAF_Fear/OAF_back_fear.wav': ('fear', '', 'OAF', 'female', 'back'),
        'YAF_disgust/YAF_sour_disgust.wav': ('disgust', '', 'YAF', 'female', 'sour')},
    'nemo': {
        'samples/EB0_anger_1.wav': ('anger', 'ang', 'EB0', 'female', '1'),
        'samples/EB0_happiness_12.wav': ('happiness', 'hap', 'EB0', 'female', '12'),
        'samples/MP0_neutral_90.wav': ('neutral', 'neu', 'MP0', 'male', '90'),
        'samples/MP0_sadness_3.wav': ('sadness', 'sad', 'MP0', 'male', '3'),
        'samples/MP0_fear_3.wav': ('fear', '', 'MP0', 'male', '3'),
        'samples/EB0_surprised_3.wav': ('surprised', '', 'EB0', 'female', '3')},
    'urdu': {
        'Angry/SM1_F10_A010.wav': ('Angry', 'ang', 'SM1', 'male', '?'),
        'Happy/SF2_F3_H03.wav': ('Happy', 'hap', 'SF2', 'female', '?'),
        'Neutral/SM5_F1_N001.wav': ('Neutral', 'neu', 'SM5', 'male', '?'),
        'Sad/SM24_F2_S002.wav': ('Sad', 'sad', 'SM24', 'male', '?')},
    'esd': {
        '0011/Angry/0011_000351.wav': ('Angry', 'ang', '0011', '?', '?'),
        '0020/Happy/0020_000701.wav': ('Happy', 'hap', '0020', '?', '?'),
        '0001/Neutral/0001_000001.wav': ('Neutral', 'neu', '0001', '?', '?'),
        '0010/Sad/0010_001051.wav': ('Sad', 'sad', '0010', '?', '?'),
        '0011/Surprise/0011_001401.wav': ('Surprise', '', '0011', '?', '?')},
    'shemo': {
        'female/F24A24.wav': ('A', 'ang', 'F24', 'female', '?'), 'male/M01H03.wav': ('H', 'hap', 'M01', 'male', '?'),
        'female/F01N02.wav': ('N', 'neu', 'F01', 'female', '?'), 'male/M56S01.wav': ('S', 'sad', 'M56', 'male', '?'),
        'female/F01W01.wav': ('W', '', 'F01', 'female', '?'), 'female/F03F01.wav': ('F', '', 'F03', 'female', '?')},
    'msp_podcast': {
        'Audios/MSP-PODCAST_0001_0008.wav': ('N', 'neu', '127', 'male', '?'),
        'Audios/MSP-PODCAST_0001_0019.wav': ('A', 'ang', '127', 'male', '?'),
        'Audios/MSP-PODCAST_0002_0033.wav': ('H', 'hap', '9', 'female', '?'),
        'Audios/MSP-PODCAST_0002_0039.wav': ('S', 'sad', '9', 'female', '?'),
        'Audios/MSP-PODCAST_0003_0001.wav': ('U', '', '9', 'female', '?'),
        'Audios/MSP-PODCAST_0003_0002.wav': ('X', '', '9', 'female', '?'),
        'Audios/MSP-PODCAST_0003_0003.wav': ('C', '', '9', 'female', '?'),
        'Audios/MSP-PODCAST_0005_0001.wav': ('N', 'neu', '55', '', '?'),
        'Audios/MSP-PODCAST_0004_0001.wav': None}} # its speaker is unknown

ASIDE = { # what lies beside the audio
    'cremad': {'VideoDemographics.csv': ['ActorID,Age,Sex,Race,Ethnicity', '1001,51,Male,Caucasian,Not Hispanic',
                                         '1002,21,Female,Caucasian,Not Hispanic',
                                         '1091,29,Female,Asian,Not Hispanic']},
    'nemo': {'data.tsv': ['file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage', *(
        f'{speaker}_{emotion}.wav\t{emotion.rpartition("_")[0]}\tMleko.\tmleko\t        {speaker}\t{gender}\t27'
        for speaker, gender, emotion in
        [('EB0', 'female', 'anger_1'), ('MP0', 'male', 'neutral_90')])]},
    'esd': {'0011/0011.txt': ['0011_000351\tThe nine the eggs, I keep.\tAngry']},
    'msp_podcast': {'Labels/labels_consensus.csv': [
        'FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set', *(
        f'{PurePosixPath(path).name},{row[0] if row else "N"},4.2,3.4,4.6,{row[2] if row else "Unknown"},'
        f'{row[3].title() if row and row[3] else "Unknown"},{("Train", "Development", "Test1")[i % 3]}' for i,
        (path, row) in enumerate(LAYOUTS['msp_podcast'].items()))]}}


def write_small(root: Path, name: str, audio: bool | Callable[[Path], None] = touch, aside: bool = True) -> dict:
    "A handful of files of an open corpus at `root`; what each is."
    put(root, LAYOUTS[name], audio)
    for path, lines in ASIDE.get(name, {}).items() if aside else ():
        text(root / path, *lines)
    return LAYOUTS[name]
