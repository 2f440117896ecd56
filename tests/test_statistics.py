"The statistics keep their promises where the truth is known: coverage, false findings, corrections, the speaker control."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cdser.config import LABELS, BadInput
from cdser.evaluate import Answers, arrange, compare, confound, estimate, hits, holm, run_uars, speaker_only, standard_error, uar

ONCE = [(i, i) for i in range(3)]                            # run i has seed i and tests fold i
FIVE = [(i, i % 3) for i in range(5)]                        # the same with five seeds: two folds are tested twice
CROSSED = [(i, fold) for i in range(3) for fold in range(3)] # every seed on every fold
RECALL = np.array([.58, .50, .54, .46])
TRUTH = RECALL.mean()


def effect(rng, sd: float, size) -> np.ndarray:
    "Normal, but never so far out that a chance of recognition leaves [0, 1]: the mean UAR stays exactly TRUTH."
    return sd * np.clip(rng.standard_normal(size), -2.2, 2.2)


def world(rng, runs, speaker_sd, seed_sd, single=False, each=12, common=0) -> Answers:
    "What runs say of a new corpus: speakers with one emotion each (`single`) or all, seeds with luck, hard and easy utterances."
    speakers, folds, seeds = 24 if single else 18, np.array([fold for _, fold in runs]), np.array([seed for seed, _ in runs])
    speaker, fold_of = np.repeat(np.arange(speakers), each), np.arange(speakers) % 3
    labels = speaker // 3 % 4 if single else np.tile(np.arange(each) % 4, speakers)
    tested = (fold_of[speaker][:, None] == folds).astype(float)
    p = RECALL[labels][:, None] + (common + effect(rng, speaker_sd, speakers))[speaker][:, None] + effect(rng, seed_sd, 1 + seeds.max())[seeds]
    difficulty = .6 * rng.standard_normal((len(speaker), 1)) + .8 * rng.standard_normal((len(speaker), len(runs)))
    return Answers(tested, tested * (difficulty < stats.norm.ppf(p)), labels, speaker, fold_of, seeds)


def table(t: Answers) -> pd.DataFrame:
    "The same as `gather` would give it."
    utterance, run = np.nonzero(t.tested)
    label, right = t.labels[utterance], t.hits[utterance, run] == 1
    words = np.array(LABELS)
    return pd.DataFrame(dict(seed=t.seeds[run], fold=t.folds[t.speakers[utterance]], speaker=t.speakers[utterance].astype(str),
                             path=utterance.astype(str), label=words[label], prediction=words[np.where(right, label, (label + 1 + utterance % 3) % 4)]))


def coverage(draw_world, truth: float, replications: int, seed: int = 0) -> float:
    "How often a 95 % interval holds the truth."
    rng, held = np.random.default_rng(seed), 0
    for _ in range(replications):
        u, se, freedom = standard_error(draw_world(rng), seed=int(rng.integers(2 ** 31)), draws=150)
        held += abs(u.mean() - truth) <= stats.t.ppf(.975, freedom) * se
    return held / replications


REGIMES = {f'{design}, speakers {speaker_sd}, seeds {seed_sd}': (runs, speaker_sd, seed_sd, False)
           for design, runs in dict(once=ONCE, five=FIVE, crossed=CROSSED).items()
           for speaker_sd, seed_sd in ((0, 0), (0, .09), (.1, 0), (.1, .09))}
REGIMES |= {f'{design}, one emotion a speaker': (runs, .1, .03, True) for design, runs in dict(once=ONCE, five=FIVE, crossed=CROSSED).items()}


@pytest.mark.parametrize('regime', REGIMES)
def test_an_interval_holds_the_true_mean_in_95_of_100_worlds(regime):
    held = coverage(lambda rng: world(rng, *REGIMES[regime]), TRUTH, 1000)
    print(f'{regime}: {held:.1%}')
    assert .93 <= held <= .97


@pytest.mark.parametrize('design, runs', dict(once=ONCE, five=FIVE, crossed=CROSSED).items())
@pytest.mark.parametrize('seed_sd', [0, .06])
def test_methods_that_are_equally_good_differ_significantly_in_5_of_100_worlds(design, runs, seed_sd):
    "Two methods, equally good on average; each has seeds of its own luck and speakers whom it suits, and some speakers are hard for both."
    rng, found = np.random.default_rng(2), 0
    for _ in range(800):
        common = effect(rng, .08, 18)
        a, b = (world(rng, runs, .05, seed_sd, common=common) for _ in range(2))
        d, se, freedom = standard_error(replace(a, hits=a.hits - b.hits), seed=int(rng.integers(2 ** 31)), draws=150)
        found += 2 * stats.t.sf(abs(d.mean()) / se, freedom) < .05
    print(f'{design}, seeds {seed_sd}: {found / 800:.1%}')
    assert .03 <= found / 800 <= .07


def test_utterances_taken_as_independent_would_have_been_far_too_sure():
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        t = world(rng, CROSSED, .1, .09)
        n = t.tested.sum()
        held += abs(run_uars(t, np.ones((1, len(t.labels))))[0].mean() - TRUTH) <= 1.96 * np.sqrt(TRUTH * (1 - TRUTH) / n)
    assert held / 300 < .5


def test_the_table_and_the_arrays_say_the_same_and_estimate_is_the_mean_over_runs():
    t = world(np.random.default_rng(0), CROSSED, .1, .05)
    said = table(t)
    found, (u, se, freedom) = estimate(said), standard_error(t, 0, 1000)
    by_run = [uar(rows.label, rows.prediction) for _, rows in said.groupby(['seed', 'fold'])]
    assert np.isclose(found.mean, np.mean(by_run)) and np.allclose(u, by_run) and (found.runs, found.speakers) == (9, 18)
    assert np.isclose(found.se, se, rtol=.1) and np.isclose(found.high - found.mean, stats.t.ppf(.975, freedom) * se, rtol=.1)
    again = arrange(said.sample(frac=1, random_state=0), hits(said.sample(frac=1, random_state=0)))
    assert np.allclose(run_uars(again, np.ones((1, len(again.labels))))[0], by_run)


def test_the_same_seed_gives_the_same_interval_and_the_order_of_rows_does_not_matter_to_a_comparison():
    rng = np.random.default_rng(0)
    a, b = (table(world(rng, FIVE, .1, .05)) for _ in range(2))
    assert estimate(a) == estimate(a) and estimate(a) != estimate(a, seed=1)
    assert compare(a, b) == compare(a.sample(frac=1, random_state=0), b.sample(frac=1, random_state=1))


def test_a_comparison_is_paired_and_its_effect_is_the_difference_over_the_deviation_of_the_runs():
    rng = np.random.default_rng(3)
    a, b = (table(world(rng, FIVE, .1, .05)) for _ in range(2))
    by_run = lambda said: np.array([uar(rows.label, rows.prediction) for _, rows in said.groupby(['seed', 'fold'])])
    d, found = by_run(a) - by_run(b), compare(a, b)
    assert np.isclose(found.difference, d.mean()) and np.isclose(found.effect, d.mean() / d.std(ddof=1))
    assert (found.p < .05) == (found.low > 0 or found.high < 0)
    back = compare(b, a)
    assert np.allclose([back.difference, back.low, back.high, back.p], [-found.difference, -found.high, -found.low, found.p])
    wider = compare(a, b, level=1 - found.p)
    assert np.isclose(min(abs(wider.low), abs(wider.high)), 0, atol=1e-9)


def test_a_method_against_itself_is_no_finding():
    said = table(world(np.random.default_rng(0), ONCE, .1, .05))
    same = compare(said, said)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1) and np.isnan(same.effect)


def test_one_seed_has_a_mean_and_no_interval():
    said = table(world(np.random.default_rng(0), [(0, 0), (0, 1), (0, 2)], .1, .05))
    found, same = estimate(said), compare(said, said)
    assert np.isfinite(found.mean) and np.isnan([found.low, found.high, found.se]).all() and np.isnan([same.low, same.p]).all()


def test_three_runs_that_agree_by_luck_do_not_make_a_narrow_interval():
    "Each fold's speakers differ widely, but the folds' UARs are equal to the last digit."
    labels, speaker = np.tile(np.arange(4).repeat(3), 18), np.repeat(np.arange(18), 12)
    tested = (speaker % 3)[:, None] == np.arange(3)
    good = (speaker // 3 % 2 == 0)[:, None]
    t = Answers(tested.astype(float), (tested & good).astype(float), labels, speaker, np.arange(18) % 3, np.arange(3))
    found = estimate(table(t))
    assert found.mean == .5 and found.high - found.mean > .1 # half of 18 voices are recognised, half are not


def test_a_fold_of_one_speaker_is_a_run_like_any_other_unless_it_is_tested_again():
    said = table(world(np.random.default_rng(0), ONCE, .1, 0)).query('speaker in ["0", "1", "2", "3", "4", "5"]')
    said = said.assign(fold=said.speaker.astype(int), seed=said.speaker.astype(int))
    by_run = [uar(rows.label, rows.prediction) for _, rows in said.groupby('seed')]
    found = estimate(said)
    assert np.isclose(found.high - found.mean, stats.t.ppf(.975, 5) * np.std(by_run, ddof=1) / np.sqrt(6)) and found.runs == 6
    assert np.isnan(estimate(pd.concat([said, said.assign(seed=said.seed + 6)])).low)


def test_what_cannot_be_compared_is_refused():
    a = table(world(np.random.default_rng(0), FIVE, .1, .05))
    with pytest.raises(BadInput, match='other seeds or folds'): compare(a, a[a.seed != 4])
    with pytest.raises(BadInput, match='other utterances'): compare(a, a[a.path != '0'])
    with pytest.raises(BadInput, match='other utterances'): compare(a, a.assign(label='ang'))
    with pytest.raises(BadInput, match='tested twice'): estimate(pd.concat([a, a]))
    with pytest.raises(BadInput, match='no tested utterance'): estimate(a[:0])


def test_holm_by_hand_and_as_often_wrong_as_it_may_be():
    assert np.allclose(holm([.01, .04, np.nan, .03, .005]), [.03, .06, np.nan, .06, .02], equal_nan=True)
    assert holm([.6, .9]).tolist() == [1, 1] and np.isnan(holm([np.nan])).all() and len(holm([])) == 0
    rng = np.random.default_rng(0)
    independent = rng.random((4000, 10))
    shared = stats.norm.sf(rng.standard_normal((4000, 1)) * .8 + rng.standard_normal((4000, 10)) * .6)
    for p in (independent, shared): assert np.mean([holm(row).min() < .05 for row in p]) < .058
    some = independent.copy()
    some[:, 0] = 1e-6 # one true finding among nine worthless ones: it is found, the others are not
    adjusted = np.array([holm(row) for row in some])
    assert (adjusted[:, 0] < .05).all() and (adjusted[:, 1:].min(1) < .05).mean() < .058


def answered(labels, speakers, prediction, runs=CROSSED) -> pd.DataFrame:
    "Every run tests a third of the speakers and says what `prediction` says."
    said = pd.DataFrame(dict(speaker=speakers.astype(str), path=np.arange(len(labels)).astype(str), label=np.array(LABELS)[labels],
                             prediction=np.array(LABELS)[prediction], part=speakers % 3))
    return pd.concat([said[said.part == fold].assign(seed=seed, fold=fold) for seed, fold in runs], ignore_index=True)


@pytest.mark.parametrize('single', [True, False])
def test_the_speaker_control_knows_recognised_emotions_from_recognised_speakers(single):
    "A recogniser of emotions and one of speakers, on a corpus where each speaker has one emotion and on one where all have all."
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(24), 12)
    labels = speakers // 3 % 4 if single else np.tile(np.arange(12) % 4, 24)
    guess = lambda: rng.integers(0, 4, len(labels))
    blind = answered(labels, speakers, guess())
    emotions = answered(labels, speakers, np.where(rng.random(len(labels)) < .6, labels, guess()))
    voices = answered(labels, speakers, speakers // 3 % 4) # one answer a speaker
    assert np.isclose(estimate(speaker_only(voices)).mean, estimate(voices).mean)
    for said in (emotions, voices, blind):
        part = confound(said, blind)
        assert np.isclose(part.difference['all'], part.difference['speakers'] + part.difference['within'])
    heard, clustered = confound(emotions, blind), confound(voices, blind)
    if single: # nobody can tell: the whole gain of either could be speakers
        assert heard.difference['within'] == 0 and heard.p['within'] == 1 and clustered.difference['speakers'] > .6
    else: # emotions gain within speakers alone; knowing the voices gains nothing
        assert abs(heard.difference['speakers']) < 1e-9 and heard.low['within'] > .2
        assert abs(clustered.difference['all']) < .1 and abs(clustered.difference['speakers']) < 1e-9


def test_the_speaker_control_is_the_mean_of_many_shuffles():
    said = table(world(np.random.default_rng(0), ONCE, .1, 0)).query('path != "0"')
    rng, shuffled = np.random.default_rng(1), []
    for _ in range(300):
        mixed = said.groupby(['seed', 'fold', 'speaker']).prediction.transform(lambda words: rng.permutation(words))
        shuffled.append(estimate(said.assign(prediction=mixed), draws=2).mean)
    assert abs(estimate(speaker_only(said)).mean - np.mean(shuffled)) < 4 * np.std(shuffled) / np.sqrt(300)
