"The statistics where the truth is known: coverage, false findings, corrections, the speaker control."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cdser.config import LABELS, BadInput
from cdser.evaluate import Outcomes, compare, confound, estimate, holm, speaker_only, standard_error, uar

DESIGNS = dict(once=[(i, i) for i in range(3)],                            # run i has seed i and tests fold i
               five=[(i, i % 3) for i in range(5)],                        # five seeds: two folds are tested twice
               crossed=[(i, fold) for i in range(3) for fold in range(3)]) # every seed on every fold
RECALL = np.array([.58, .50, .54, .46])
WORDS = np.array(LABELS)


def deviations(rng, sd: float, size) -> np.ndarray:
    "Normal, but never so large that a chance of recognition leaves [0, 1]: the mean UAR stays exact."
    return sd * np.clip(rng.standard_normal(size), -2.2, 2.2)


def world(rng, runs, speaker_sd, seed_sd, single=False, common=0) -> Outcomes:
    "The outcomes of runs on a new corpus, whose speakers have one emotion each (`single`) or all."
    speakers = 24 if single else 18
    seeds, folds = np.array(runs).T
    speaker, fold_of = np.repeat(np.arange(speakers), 12), np.arange(speakers) % 3
    labels = speaker // 3 % 4 if single else np.tile(np.arange(12) % 4, speakers)
    tested = (fold_of[speaker][:, None] == folds).astype(float)
    of_speaker = (common + deviations(rng, speaker_sd, speakers))[speaker][:, None]
    p = RECALL[labels][:, None] + of_speaker + deviations(rng, seed_sd, 1 + seeds.max())[seeds]
    difficulty = .6 * rng.standard_normal((len(speaker), 1)) + .8 * rng.standard_normal((len(speaker), len(runs)))
    return Outcomes(tested, tested * (difficulty < stats.norm.ppf(p)), labels, speaker, fold_of, seeds)


def table(outcomes: Outcomes) -> pd.DataFrame:
    "The same as `gather` returns it."
    utterance, run = np.nonzero(outcomes.tested)
    label, correct = outcomes.labels[utterance], outcomes.hits[utterance, run] == 1
    speaker = outcomes.speakers[utterance]
    prediction = np.where(correct, label, (label + 1 + utterance % 3) % 4)
    return pd.DataFrame(dict(seed=outcomes.seeds[run], fold=outcomes.folds[speaker], speaker=speaker.astype(str),
                             path=utterance.astype(str), label=WORDS[label], prediction=WORDS[prediction]))


def tables(count: int, design: str, speaker_sd: float = .1, seed_sd: float = .05, seed: int = 0) -> list[pd.DataFrame]:
    "As many independent worlds of a design."
    rng = np.random.default_rng(seed)
    return [table(world(rng, DESIGNS[design], speaker_sd, seed_sd)) for _ in range(count)]


def uars_of_runs(cell: pd.DataFrame) -> np.ndarray:
    return np.array([uar(run.label, run.prediction) for _, run in cell.groupby(['seed', 'fold'])])


@pytest.mark.parametrize('design', DESIGNS)
@pytest.mark.parametrize('speaker_sd, seed_sd, single', [
    (0, 0, False), (0, .09, False), (.1, 0, False), (.1, .09, False), (.1, .03, True)])
def test_an_interval_contains_the_true_mean_in_95_of_100_worlds(design, speaker_sd, seed_sd, single):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        outcomes = world(rng, DESIGNS[design], speaker_sd, seed_sd, single)
        u, se, freedom = standard_error(outcomes, seed=int(rng.integers(2 ** 31)), draws=150)
        covered += abs(u.mean() - RECALL.mean()) <= stats.t.ppf(.975, freedom) * se
    assert .93 <= covered / 1000 <= .97


@pytest.mark.parametrize('design', DESIGNS)
@pytest.mark.parametrize('seed_sd', [0, .06])
def test_methods_that_are_equally_good_differ_significantly_in_5_of_100_worlds(design, seed_sd):
    "Each method suits some speakers better and has seeds of its own; some speakers are difficult for both."
    rng, findings = np.random.default_rng(2), 0
    for _ in range(800):
        common = deviations(rng, .08, 18)
        a, b = (world(rng, DESIGNS[design], .05, seed_sd, common=common) for _ in range(2))
        paired = replace(a, hits=a.hits - b.hits)
        d, se, freedom = standard_error(paired, seed=int(rng.integers(2 ** 31)), draws=150)
        findings += 2 * stats.t.sf(abs(d.mean()) / se, freedom) < .05
    assert .03 <= findings / 800 <= .07


def test_an_estimate_is_the_mean_over_runs_and_does_not_depend_on_the_order_of_rows():
    a, b = tables(2, 'crossed')
    found = estimate(a)
    assert np.isclose(found.mean, uars_of_runs(a).mean()) and (found.runs, found.speakers) == (9, 18)
    assert estimate(a) == found != estimate(a, seed=1)
    shuffled = estimate(a.sample(frac=1, random_state=0))
    assert np.isclose(shuffled.mean, found.mean) and np.isclose(shuffled.high, found.high, rtol=.05)
    assert compare(a, b) == compare(a.sample(frac=1, random_state=0), b.sample(frac=1, random_state=1))


def test_a_comparison_is_paired_and_its_effect_is_the_difference_over_the_deviation_of_the_runs():
    a, b = tables(2, 'five', seed=3)
    difference, found = uars_of_runs(a) - uars_of_runs(b), compare(a, b)
    assert np.isclose(found.mean, difference.mean())
    assert np.isclose(found.effect, difference.mean() / difference.std(ddof=1))
    assert (found.p < .05) == (found.low > 0 or found.high < 0)
    back = compare(b, a)
    assert np.allclose([back.mean, back.low, back.high, back.p], [-found.mean, -found.high, -found.low, found.p])
    at_p = compare(a, b, level=1 - found.p)
    assert np.isclose(min(abs(at_p.low), abs(at_p.high)), 0, atol=1e-9)


def test_a_method_compared_with_itself_is_no_finding():
    cell, = tables(1, 'once')
    same = compare(cell, cell)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1) and np.isnan(same.effect)


def test_one_seed_has_a_mean_and_no_interval():
    cell = tables(1, 'crossed')[0].query('seed == 0')
    for found in (estimate(cell), compare(cell, cell)):
        assert np.isfinite(found.mean) and np.isnan([found.low, found.high, found.p]).all()


def test_three_runs_that_agree_by_chance_do_not_make_a_narrow_interval():
    "Each fold's speakers differ widely, but the folds' UARs are equal to the last digit."
    labels, speaker = np.tile(np.arange(4).repeat(3), 18), np.repeat(np.arange(18), 12)
    tested = ((speaker % 3)[:, None] == np.arange(3)).astype(float)
    recognised = (speaker // 3 % 2 == 0)[:, None]
    found = estimate(table(Outcomes(tested, tested * recognised, labels, speaker, np.arange(18) % 3, np.arange(3))))
    assert found.mean == .5 and found.high - found.mean > .1


def test_a_fold_of_one_speaker_counts_as_a_run_unless_it_is_tested_again():
    cell = tables(1, 'once', seed_sd=0)[0].query('speaker in ["0", "1", "2", "3", "4", "5"]')
    cell = cell.assign(fold=cell.speaker.astype(int), seed=cell.speaker.astype(int))
    found, expected = estimate(cell), stats.t.ppf(.975, 5) * uars_of_runs(cell).std(ddof=1) / np.sqrt(6)
    assert np.isclose(found.high - found.mean, expected) and found.runs == 6
    assert np.isnan(estimate(pd.concat([cell, cell.assign(seed=cell.seed + 6)])).low)


def test_runs_that_cannot_be_compared_are_refused():
    a, = tables(1, 'five')
    for message, b in (('other seeds or folds', a[a.seed != 4]), ('other utterances', a[a.path != '0']),
                       ('other utterances', a.assign(label='ang'))):
        with pytest.raises(BadInput, match=message):
            compare(a, b)
    for message, cell in (('tested twice', pd.concat([a, a])), ('no tested utterances', a[:0])):
        with pytest.raises(BadInput, match=message):
            estimate(cell)


def test_holm_by_hand():
    assert np.allclose(holm([.01, .04, np.nan, .03, .005]), [.03, .06, np.nan, .06, .02], equal_nan=True)
    assert holm([.6, .9]).tolist() == [1, 1] and np.isnan(holm([np.nan])).all() and len(holm([])) == 0


def test_the_speaker_control_is_the_mean_of_many_shuffles():
    cell = tables(1, 'once', seed_sd=0)[0].query('path != "0"')
    rng, shuffled = np.random.default_rng(1), []
    for _ in range(300):
        mixed = cell.groupby(['seed', 'fold', 'speaker']).prediction.transform(lambda words: rng.permutation(words))
        shuffled.append(uars_of_runs(cell.assign(prediction=mixed)).mean())
    assert abs(estimate(speaker_only(cell)).mean - np.mean(shuffled)) < 4 * np.std(shuffled) / np.sqrt(300)


def test_a_recogniser_of_speakers_gains_nothing_within_speakers():
    "If each speaker has one emotion (`single`), its whole gain is that of speakers; if all have all, it gains nothing."
    rng = np.random.default_rng(0)
    for single in (True, False):
        outcomes = world(rng, DESIGNS['crossed'], 0, 0, single)
        blind = table(replace(outcomes, hits=outcomes.tested * (rng.random(outcomes.hits.shape) < .25)))
        voices = blind.assign(prediction=WORDS[blind.speaker.astype(int) // 3 % 4]) # one prediction per speaker
        gain = confound(voices, blind)['mean']
        assert np.isclose(gain['all'], gain['speakers'] + gain['within'])
        assert (gain['within'] == 0 and gain['speakers'] > .6) if single else abs(gain['speakers']) < 1e-9
