"The fuzzers' own tools: what is a fault is counted as one, and names its input."
import time

import pytest

import fuzzing
from cdser.config import BadInput
from fuzzing import count, generator, judge, naming, table


def refuse(message: str):
    err = BadInput(message)
    err.args = (message,) # as if it did not mind what it says
    raise err


@pytest.mark.parametrize('ask, answer', [(lambda: 3, 'read'), (lambda: None, 'read'), (lambda: refuse('a.csv: no such file'), 'refused')])
def test_an_answer_and_one_line_are_good(ask, answer):
    assert judge(ask) == answer


@pytest.mark.parametrize('ask, says', [
    (lambda: {}['x'], 'KeyError'), (lambda: 1 / 0, 'ZeroDivisionError'), (lambda: refuse('two\nlines'), 'not one line'), (lambda: refuse('x' * 2000), 'not one line'),
    (lambda: refuse('\x1b[31m'), 'cannot be printed'), (lambda: time.sleep(9), 'no answer in 0.2 seconds'), (lambda: bytearray(3 << 30), 'MemoryError')])
def test_anything_else_is_a_fault(monkeypatch, ask, says):
    monkeypatch.setattr(fuzzing, 'SECONDS', .2)
    with pytest.raises(AssertionError, match=says): judge(ask)


def test_nobody_who_catches_errors_catches_the_end_of_waiting(monkeypatch):
    monkeypatch.setattr(fuzzing, 'SECONDS', .2)
    def ask():
        try: time.sleep(9)
        except Exception: return 3
    with pytest.raises(AssertionError, match='no answer'): judge(ask)


def test_a_refusal_has_to_name_what_it_is_about():
    ask = lambda: refuse('a.csv: no such file')
    assert judge(naming(('a.csv', 'b.csv'), ask)) == 'refused'
    with pytest.raises(AssertionError, match='names none of'): judge(naming(('b.csv',), ask))


def test_all_inputs_are_counted_and_faults_named_by_number():
    noted = {}
    def attempt(number):
        if number % 10 == 3: raise AssertionError('odd\nmore')
        return 'read' if number % 2 else 'refused'
    with pytest.raises(pytest.fail.Exception, match=r'3 faults in 30 of 30 cases:\nx 3 \(seed 2026\): odd\nx 13 '):
        count('splits', 'x', 30, attempt, lambda key, value: noted.update(value))
    assert (noted['inputs'], noted['read'], noted['refused'], noted['faults']) == (30, 12, 15, 3)
    *_, last = table([noted, {**noted, 'area': 'readers', 'faults': 0, 'inputs': 20_000}])
    assert last.startswith('20,030 inputs, 3 faults, ')


def test_an_input_is_the_same_each_time_and_unlike_the_next():
    draw = lambda name, number: generator(name, number).bytes(8)
    assert draw('x', 3) == draw('x', 3) and len({draw('x', 3), draw('x', 4), draw('y', 3)}) == 3
