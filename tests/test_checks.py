"""Every exercise: the stub is not attempted, the notebook's solution is right, planted wrong answers are caught."""

import re

import nbformat
import numpy as np
import pytest

from mzlib import checks
from mzlib.runs import REPO


def stepped(rewards, actions, chosen):
    return [(sum(rewards[i : i + 4]), chosen(actions[i : i + 4])) for i in range(0, len(rewards) - 3, 4)]


WRONG = {
    "00 integrator": (
        lambda switches, proposals: [b * p for b, p in zip(switches, proposals, strict=True)],
        lambda switches, proposals: integrated([1 - b for b in switches], proposals),
        lambda switches, proposals: integrated([float(b >= 0.5) for b in switches], proposals),
    ),
    "00 controller": (
        lambda A, B, e: np.array(A) @ (np.array(B) @ np.array(e)),
        lambda A, B, e: np.array(e) * (1 + np.diag(np.array(A) @ np.array(B))),
        lambda A, B, e: np.array(e) + (np.array(A) @ np.array(B)).T @ np.array(e),
    ),
    "00 kl": (
        lambda mean, std: 0.5 * np.mean(np.square(mean) + np.square(std) - 1 - 2 * np.log(std)),
        lambda mean, std: 0.5 * np.sum(np.square(mean) + np.square(std) - 1 - np.log(std)),
        lambda mean, std: 0.5 * np.sum(np.square(mean) + np.asarray(std) - 1 - np.log(std)),
    ),
    "00 options": (
        lambda switches, threshold: lengths_of([t for t, b in enumerate(switches) if b >= threshold], len(switches)),
        lambda switches, threshold: lengths_of(
            [0] + [t + 1 for t, b in enumerate(switches) if t and b >= threshold], len(switches)
        ),
        lambda switches, threshold: lengths_of(
            [t for t, b in enumerate(switches) if not t or b > threshold], len(switches)
        ),
    ),
    "00 rg-lru": (
        lambda inputs, opens, remembers, decay: recurred(inputs, opens, [1] * len(remembers), decay),
        lambda inputs, opens, remembers, decay: recurred(inputs, [1] * len(opens), remembers, decay),
        lambda inputs, opens, remembers, decay: recurred(inputs, opens, remembers, decay, power=1),
        lambda inputs, opens, remembers, decay: recurred(inputs, opens, remembers, decay, first=False),
        lambda inputs, opens, remembers, decay: recurred(inputs, opens, remembers, decay, rest=lambda a: 1 - a),
    ),
    "01 repeat rate": (
        lambda actions: sum(a == b for a, b in zip(actions, actions[1:], strict=False)) / len(actions),
        lambda actions: sum(a != b for a, b in zip(actions, actions[1:], strict=False)) / (len(actions) - 1),
    ),
    "01 undelayed": (
        lambda actions, sticky: (1 - sticky) ** sum(a != b for a, b in zip(actions, actions[1:], strict=False)),
        lambda actions, sticky: (1 - sticky) ** len(actions),
        lambda actions, sticky: sticky ** sum(a != b for a, b in zip([0, *actions], actions, strict=False)),
    ),
    "01 four rows": (
        lambda rewards, actions: stepped(rewards, actions, lambda held: held[-1]),
        lambda rewards, actions: stepped(rewards, actions, lambda held: max(held, key=held.count)),
        lambda rewards, actions: [(sum(rewards[:4]), max(actions[:4][::-1], key=actions[:4].count))],
        lambda rewards, actions: stepped([*rewards, 0, 0, 0], actions, lambda held: max(held[::-1], key=held.count)),
    ),
    "02 band": (
        lambda n, window: [[int(j <= i) for j in range(n)] for i in range(n)],
        lambda n, window: [[int(i - window <= j <= i) for j in range(n)] for i in range(n)],
        lambda n, window: [[int(i - window < j < i + window) for j in range(n)] for i in range(n)],
    ),
    "02 masked nll": (
        lambda probabilities, valid: float(-np.mean(np.log(probabilities))),
        lambda probabilities, valid: float(-np.sum(np.log(np.array(probabilities)[valid])) / len(valid)),
        lambda probabilities, valid: float(-np.sum(np.log(np.array(probabilities)[valid]))),
    ),
    "02 interleaving": (
        lambda steps, chunk, patches: [t + patches * (t // chunk) for t in range(steps)],
        lambda steps, chunk, patches: [t + patches for t in range(steps)],
        lambda steps, chunk, patches: [t + patches * ((t + 1) // chunk + 1) for t in range(steps)],
    ),
    "03 hits": (
        lambda opened, true, tolerance: sum(any(abs(o - t) <= tolerance for t in true) for o in opened),
        lambda opened, true, tolerance: sum(any(abs(o - t) <= tolerance for o in opened) for t in true),
        lambda opened, true, tolerance: len(set(opened) & set(true)),
        lambda opened, true, tolerance: sum(
            abs(o - t) <= tolerance for o, t in zip(sorted(opened), sorted(true), strict=False)
        ),
    ),
    "03 information": (
        lambda a, b: nats(a, b) / np.log(2),
        lambda a, b: nats(a, a),
        lambda a, b: float(np.mean([x == y for x, y in zip(a, b, strict=True)])),
    ),
    "03 hinge": (
        lambda squares, valid, margin: max(0, np.mean([q for q, v in zip(squares, valid, strict=True) if v]) - margin),
        lambda squares, valid, margin: np.mean([max(0, q - margin) for q in squares]),
        lambda squares, valid, margin: (
            sum(max(0, q - margin) * v for q, v in zip(squares, valid, strict=True)) / len(valid)
        ),
    ),
    "04 normalised return": (
        lambda returns: (np.array(returns) - np.mean(returns)).tolist(),
        lambda returns: (np.array(returns) / (np.std(returns) + 1e-3)).tolist(),
        lambda returns: ((np.array(returns) - np.mean(returns)) / (np.std(returns, ddof=1) + 1e-3)).tolist(),
    ),
    "04 option error": (
        lambda rewards, value, after, gamma: sum(rewards) + gamma * after - value,
        lambda rewards, value, after, gamma: (
            sum(gamma**i * r for i, r in enumerate(rewards)) + gamma ** (len(rewards) - 1) * after - value
        ),
        lambda rewards, value, after, gamma: sum(gamma**i * r for i, r in enumerate(rewards)) + after - value,
    ),
    "04 clipped": (
        lambda ratio, advantage, clip: ratio * advantage,
        lambda ratio, advantage, clip: min(max(ratio, 1 - clip), 1 + clip) * advantage,
        lambda ratio, advantage, clip: max(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage),
    ),
    "05 cell": (
        lambda screen, width, height, depth: [0] * (width * height),
        lambda screen, width, height, depth: np.round(means(screen, width, height) * depth / 255).astype(int).ravel(),
        lambda screen, width, height, depth: np.floor(means(screen, width, height) * depth / 256).astype(int).ravel(),
    ),
    "05 selection": (
        lambda seen: np.full(len(seen), 1 / len(seen)),
        lambda seen: (1 / (np.array(seen) + 1)) / (1 / (np.array(seen) + 1)).sum(),
        lambda seen: 1 / np.sqrt(np.array(seen) + 1),
    ),
    "06 move": (
        lambda *given: moved(*given, clip=False),
        lambda *given: moved(*given, forward=False),
        lambda *given: moved(*given, cumulative=False),
        lambda *given: moved(*given, needed=1),
        lambda earliest, episodes, successes, threshold, trials, move: max(earliest - move, 0),
        lambda earliest, episodes, successes, threshold, trials, move: moved(
            earliest, episodes, successes, threshold + 1e-9, trials, move
        ),
    ),
    "06 gae": (
        lambda rewards, values, ended, gamma, lam: advantages(rewards, values, [False] * len(ended), gamma, lam),
        lambda rewards, values, ended, gamma, lam: advantages(rewards, values, ended, gamma, 0.0),
        lambda rewards, values, ended, gamma, lam: advantages(rewards, values, ended, gamma, 1.0),
        lambda rewards, values, ended, gamma, lam: advantages(rewards, [0] * len(values), ended, gamma, lam),
        lambda rewards, values, ended, gamma, lam: np.add(advantages(rewards, values, ended, gamma, lam), values[:-1]),
        lambda rewards, values, ended, gamma, lam: advantages(rewards, values, ended, gamma, lam, through_ends=True),
    ),
    "06 lagging": (
        lambda scores, targets, lag: scores[-1] < targets[min(len(scores) - 1 - lag, len(targets) - 1)],
        lambda scores, targets, lag: len(scores) > lag and scores[-1] < targets[-1],
        lambda scores, targets, lag: len(scores) > len(targets) + lag and scores[-1] < targets[-1],
        lambda scores, targets, lag: len(scores) > lag and scores[-1] <= targets[min(len(scores), len(targets)) - 1],
    ),
    "07 normalise": (
        lambda frame, mean, std: ((np.array(frame) - mean) / std).tolist(),
        lambda frame, mean, std: np.clip(np.array(frame) - mean, -5, 5).tolist(),
        lambda frame, mean, std: np.clip((np.array(frame) - mean) / np.square(std), -5, 5).tolist(),
    ),
    "07 filter": (
        lambda rewards, gamma: discounted(rewards, [False] * len(rewards), gamma),
        lambda rewards, gamma: np.cumsum(rewards).tolist(),
        lambda rewards, gamma: [(1 - gamma) * r for r in discounted(rewards[::-1], [False] * 9, gamma)[::-1]],
    ),
    "07 two returns": (
        lambda rewards, ended, gamma, episodic: discounted(rewards, ended, gamma),
        lambda rewards, ended, gamma, episodic: discounted(rewards, [False] * len(ended), gamma),
        lambda rewards, ended, gamma, episodic: discounted(
            rewards, [episodic and e for e in [*ended[1:], False]], gamma
        ),
    ),
    "07 bonus": (
        lambda target, prediction, std: sum((t - p) ** 2 for t, p in zip(target, prediction, strict=True)) / std,
        lambda target, prediction, std: float(np.mean(np.square(np.subtract(target, prediction)))),
        lambda target, prediction, std: float(np.mean(np.abs(np.subtract(target, prediction)))) / std,
        lambda target, prediction, std: float(np.mean(np.square(np.subtract(target, prediction)))) / std**2,
    ),
    "08 iqm": (
        lambda scores: float(np.mean(scores)),
        lambda scores: float(np.median(scores)),
        lambda scores: float(np.mean(scores[len(scores) // 4 : len(scores) - len(scores) // 4])),
    ),
    "08 interval": (
        lambda scores, draws, cut: (min(scores), max(scores)),
        lambda scores, draws, cut: ends([np.mean([scores[i] for i in draw]) for draw in draws], cut),
        lambda scores, draws, cut: ends(sorted(np.median([scores[i] for i in draw]) for draw in draws), cut),
        lambda scores, draws, cut: ends(sorted(np.mean([scores[i] for i in draw]) for draw in draws), 0),
    ),
    "08 improvement": (
        lambda ours, theirs: float(np.mean(ours) > np.mean(theirs)),
        lambda ours, theirs: np.mean([x > y for x in ours for y in theirs]),
        lambda ours, theirs: np.mean([x >= y for x in ours for y in theirs]),
        lambda ours, theirs: np.mean([x > y for x, y in zip(ours, theirs, strict=False)]),
    ),
    "08 comparable": (
        lambda ours, theirs: ours == theirs,
        lambda ours, theirs: ours["kind"] == theirs["kind"],
        lambda ours, theirs: all(ours.get(key) == theirs.get(key) for key in ("kind", "sticky", "lives")),
        lambda ours, theirs: True,
        lambda ours, theirs: all(ours.get(k) and ours.get(k) == theirs.get(k) for k in ("kind", "sticky", "lives")),
        lambda ours, theirs: "lives" in ours and all(ours.get(k) == theirs.get(k) for k in ("kind", "sticky", "lives")),
        lambda ours, theirs: all(k in ours and ours[k] == theirs.get(k) for k in ("kind", "lives")),
    ),
    "05 accept": (
        lambda score, length, old_score, old_length: score >= old_score,
        lambda score, length, old_score, old_length: length < old_length,
        lambda score, length, old_score, old_length: score > old_score,
        lambda score, length, old_score, old_length: score > old_score or length < old_length,
    ),
}


def integrated(switches, proposals):
    codes = [0.0]
    for switch, proposal in zip(switches, proposals, strict=True):
        codes.append(switch * proposal + (1 - switch) * codes[-1])
    return codes[1:]


def recurred(inputs, opens, remembers, decay, power=8, first=True, rest=lambda a: np.sqrt(1 - a * a)):
    state, states = 0.0, []
    for t, (u, i, r) in enumerate(zip(inputs, opens, remembers, strict=True)):
        a = 0.0 if first and t == 0 else decay ** (power * r)
        state = a * state + rest(a) * i * u
        states.append(state)
    return states


def ends(values, cut):
    return values[cut], values[len(values) - 1 - cut]


def nats(a, b):
    joint = dict.fromkeys(zip(a, b, strict=True), 0)
    for pair in zip(a, b, strict=True):
        joint[pair] += 1 / len(a)
    first, second = ({x: labels.count(x) / len(labels) for x in labels} for labels in (list(a), list(b)))
    return sum(p * np.log(p / first[x] / second[y]) for (x, y), p in joint.items())


def discounted(rewards, ended, gamma):
    returns = [0.0]
    for reward, over in zip(rewards[::-1], ended[: len(rewards)][::-1], strict=True):
        returns.append(reward + gamma * (not over) * returns[-1])
    return returns[:0:-1]


def lengths_of(begins, end):
    return np.diff([*begins, end]).tolist()


def means(screen, width, height):
    screen = np.asarray(screen, float)
    return screen.reshape(height, screen.shape[0] // height, width, screen.shape[1] // width).mean(axis=(1, 3))


def moved(
    earliest, episodes, successes, threshold, trials, move, clip=True, forward=True, cumulative=True, needed=None
):
    seen = won = 0
    for step, (n, k) in enumerate(zip(episodes, successes, strict=True), start=earliest):
        seen, won = (seen + n, won + k) if cumulative else (n, k)
        if seen >= (needed or trials) and won >= threshold * seen:
            return max(step - move, 0) if clip else step - move
    return earliest + move if forward and sum(episodes) >= 2 * trials else earliest


def advantages(rewards, values, ended, gamma, lam, through_ends=False):
    found, later = [], 0.0
    for t in reversed(range(len(rewards))):
        goes_on = 1 - ended[t]
        delta = rewards[t] + gamma * goes_on * values[t + 1] - values[t]
        later = delta + gamma * lam * (1 if through_ends else goes_on) * later
        found.insert(0, later)
    return found


def exercises() -> list[tuple[str, str, str]]:
    """(exercise, stub cell, solution) of all notebooks; the solution is the first folded one after the cell."""
    found = []
    for path in sorted((REPO / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, 4).cells
        for number, cell in enumerate(cells):
            for name in re.findall(r'checks\.check\("([^"]+)"', cell.source):
                folded = re.search(r"<details>.*?```python\n(.*?)```", cells[number + 1].source, re.S)
                assert folded, f"{path.name}: no folded solution under {name}"
                found.append((name, cell.source, folded[1]))
    return found


def verdict(name: str, function, capsys) -> str:
    checks.check(name, function)
    return capsys.readouterr().out


def test_every_exercise_stands_in_a_notebook():
    assert sorted(name for name, _, _ in exercises()) == sorted(checks.CASES)
    assert WRONG.keys() == checks.CASES.keys()


@pytest.mark.parametrize(("name", "stub", "solution"), exercises(), ids=[name for name, _, _ in exercises()])
def test_stub_and_solution(name, stub, solution, capsys):
    exec(stub, {"checks": checks, "np": np})
    assert capsys.readouterr().out == f"{name}: not attempted\n"
    exec(
        stub.split("\n\n\nchecks.check")[0] + "\n" + solution + f'\nchecks.check("{name}", {function_of(stub)})',
        {"checks": checks, "np": np},
    )
    assert capsys.readouterr().out == f"{name}: right\n"


def function_of(stub: str) -> str:
    return re.search(r"def (\w+)", stub)[1]


@pytest.mark.parametrize(("name", "number"), [(name, n) for name, wrong in WRONG.items() for n in range(len(wrong))])
def test_planted_wrong_answers(name, number, capsys):
    said = verdict(name, WRONG[name][number], capsys)
    assert said.startswith(f"{name}: wrong. ")
    assert "the answer is" in said


def test_what_the_student_raises_is_the_verdict(capsys):
    assert "raised ZeroDivisionError" in verdict("05 selection", lambda seen: 1 / 0, capsys)


def test_truth_values_and_numbers_are_told_apart():
    assert not checks.same(1, True)
    assert not checks.same(True, 1.0)
    assert checks.same(np.bool_(True), True)
    assert not checks.same("ab", ("a", "b"))


def test_unknown_exercise():
    with pytest.raises(ValueError, match="no exercise '99'; there are 00 integrator"):
        checks.check("99", len)
