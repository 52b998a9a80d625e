"""The fold over any sequence of events: pure, prefix-stable, and never a skip."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firsthand.course import gate as gates
from firsthand.course.fold import advance, progress
from firsthand.course.gate import Rung
from firsthand.course.log import Event, EventKind
from firsthand.course.outline import Outline, Phase, Session
from firsthand.course.progress import Progress, State, seed_for, unlocks, visit_seed, why_locked
from firsthand.course.verdicts import Outcome

STEPS = ("1.1/neuron", "1.1/guess", "1.1/order", "1.2/loss", "1.2/slope", "9.9/gone")
# The outline is frozen, so that one for all examples is as good as a new one for each.
FIXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
CREATED = {"workspace": "w", "salt": "s"}

EVENT = st.one_of(
    st.tuples(
        st.just(EventKind.ATTEMPT),
        st.sampled_from(STEPS),
        st.fixed_dictionaries(
            {
                "rung": st.integers(-1, 5),
                "fingerprint": st.sampled_from(["a", "b", "c", None]),
                "verdict": st.builds(
                    lambda outcome: {"outcome": outcome},
                    st.sampled_from([*map(str, Outcome), "perfect"]),
                ),
            }
        ),
    ),
    st.tuples(
        st.sampled_from([EventKind.SIMPLIFY, EventKind.WORKED, EventKind.HINT]),
        st.sampled_from(STEPS),
        st.just({}),
    ),
    st.tuples(
        st.just(EventKind.REVIEW),
        st.sampled_from(STEPS),
        st.just({"verdict": {"outcome": "passed"}}),
    ),
    # Words that look like a way around the gate, and data that is not what it should be.
    st.tuples(
        st.sampled_from(["skip", "pass", "passed", *EventKind]),
        st.sampled_from([*STEPS, None]),
        st.sampled_from([{}, {"passed": True}, {"verdict": "passed", "rung": 0}, {"rung": "0"}]),
    ),
)
# Long runs at few steps reach the deep rungs that independent draws hardly ever do.
PLAUSIBLE = st.tuples(
    st.sampled_from(["wrong", "right", "simplify", "read"]), st.sampled_from(STEPS[:2])
)


def made(drawn: list[Any]) -> list[Event]:
    events = [Event(1, "2025-01-01T20:00:00+00:00", EventKind.CREATED, data=dict(CREATED))]
    for kind, step, data in drawn:
        number = len(events) + 1
        session = step.split("/")[0] if step else None
        at = f"2025-01-01T20:{number % 60:02}:00+00:00"
        events.append(Event(number, at, kind, session, step, data))
    return events


def attempt(step: str, rung: int, outcome: str, fingerprint: str | None = None) -> Any:
    data = {"rung": rung, "fingerprint": fingerprint, "verdict": {"outcome": outcome}}
    return (EventKind.ATTEMPT, step, data)


def played(moves: list[tuple[str, str]], outline: Outline) -> list[Event]:
    """Moves at the rung that is open at the time."""
    drawn: list[Any] = []
    for move, step in moves:
        rung = int(progress(made(drawn), outline).steps[step].gate.rung)
        if move == "read":
            drawn.append((EventKind.WORKED, step, {}))
        elif move == "simplify":
            drawn.append((EventKind.SIMPLIFY, step, {}))
        else:
            drawn.append(attempt(step, rung, "passed" if move == "right" else "wrong"))
    return made(drawn)


def check(events: list[Event], outline: Outline) -> Progress:
    now = progress(events, outline)
    right = defaultdict(list)
    for event in events:
        attempted = event.kind == EventKind.ATTEMPT and event.data.get("rung") == 0
        if attempted and event.data["verdict"] == {"outcome": "passed"}:
            right[event.step].append(event.number)
    for session in outline.sessions:
        record = now.sessions[session.id]
        states = [now.steps[step.id].state for step in session.steps]
        # One at a time: passed ones, then at most one open, then locked ones.
        assert states == sorted(states, key=[State.PASSED, State.OPEN, State.LOCKED].index)
        assert states.count(State.OPEN) == (record.state is State.OPEN)
        assert record.complete == (set(states) == {State.PASSED})
        assert record.state is not State.LOCKED or set(states) == {State.LOCKED}
        opened = all(now.sessions[id_].complete for id_ in session.requires)
        assert (record.state is not State.LOCKED) == (opened or record.tested_out)
    for id_, step in now.steps.items():
        assert 0 <= step.gate.used < gates.ATTEMPTS
        if step.passed:
            assert step.solved is not None
            assert step.solved.event in right[id_]
        assert bool(why_locked(id_, now, outline)) == (step.state is State.LOCKED)
    for mastery in now.mastered:
        assert len({proof.step for proof in mastery.proofs}) >= 2
        assert all(now.steps[proof.step].passed for proof in mastery.proofs)
    assert now.current is None or now.steps[now.current].state is State.OPEN
    return now


@FIXED
@given(drawn=st.lists(EVENT, max_size=60), data=st.data())
def test_any_events_never_skip_and_fold_in_any_pieces(
    small_outline: Outline, drawn: list[Any], data: Any
) -> None:
    outline = small_outline
    events = made(drawn)
    whole = check(events, outline)
    cut = data.draw(st.integers(0, len(events)))
    assert advance(progress(events[:cut], outline), events[cut:], outline) == whole
    assert progress(events, outline) == whole


@FIXED
@given(moves=st.lists(PLAUSIBLE, max_size=40))
def test_plausible_runs_keep_the_gate(small_outline: Outline, moves: list[tuple[str, str]]) -> None:
    outline = small_outline
    events = played(moves, outline)
    now = check(events, outline)
    failures = defaultdict(int)
    for item in now.difficulties:
        failures[item.step] += 1
    for id_, step in now.steps.items():
        assert failures[id_] == step.gate.failures
        assert step.gate.judged == sum(a.counted for a in step.attempts)


def test_identical_resubmission_costs_nothing(small_outline: Outline) -> None:
    same = [attempt("1.1/neuron", 0, "wrong", "a")] * 5
    gate = progress(made(same), small_outline).steps["1.1/neuron"].gate
    assert (gate.used, gate.rung, gate.judged) == (1, Rung.STEP, 1)
    other = [*same, attempt("1.1/neuron", 0, "wrong", "b")]
    assert progress(made(other), small_outline).steps["1.1/neuron"].gate.rung is Rung.SMALL


def test_the_same_file_that_now_passes_passes(small_outline: Outline) -> None:
    drawn = [attempt("1.1/neuron", 0, "wrong", "a"), attempt("1.1/neuron", 0, "passed", "a")]
    assert progress(made(drawn), small_outline).steps["1.1/neuron"].passed


def test_an_answer_to_another_rung_does_not_count(small_outline: Outline) -> None:
    for rung in (1, 2, 3, 4):
        drawn = [attempt("1.1/neuron", rung, "passed")]
        step = progress(made(drawn), small_outline).steps["1.1/neuron"]
        assert not step.gate.passed
        assert step.gate.judged == 0


def test_an_answer_out_of_reach_counts_only_once_it_is_in_reach(small_outline: Outline) -> None:
    ahead = [attempt("1.2/loss", 0, "passed")]
    now = progress(made(ahead), small_outline)
    assert now.steps["1.2/loss"].state is State.LOCKED
    first = [attempt(id_, 0, "passed") for id_ in STEPS[:3]]
    now = progress(made([*ahead, *first]), small_outline)
    assert now.steps["1.2/loss"].passed
    assert now.current == "1.2/slope"


def test_a_step_put_in_by_a_newer_course_hides_but_loses_nothing(small_outline: Outline) -> None:
    done = made([attempt(id_, 0, "passed") for id_ in STEPS[:5]])
    phase = small_outline.phases[0]
    first = phase.sessions[0]
    extra = replace(first.steps[0], id="1.1/extra")
    grown: Session = replace(first, steps=(first.steps[0], extra, *first.steps[1:]))
    newer = Outline(
        (replace(phase, sessions=(grown, *phase.sessions[1:])), *small_outline.phases[1:]),
        small_outline.root,
    )
    now = progress(done, newer)
    assert now.current == "1.1/extra"
    assert now.steps["1.2/slope"].state is State.LOCKED
    more = made([attempt(id_, 0, "passed") for id_ in (*STEPS[:5], "1.1/extra")])
    now = progress(more, newer)
    assert now.concepts_mastered == {"dot", "loss"}
    assert now.current == "1.3/trace"


def test_what_is_unknown_is_ignored_with_a_note(small_outline: Outline) -> None:
    drawn = [("skip", "1.1/neuron", {}), attempt("9.9/gone", 0, "passed")]
    now = progress(made(drawn), small_outline)
    assert len(now.ignored) == 2
    assert "'skip'" in now.ignored[0]
    assert "9.9/gone" in now.ignored[1]
    assert now.current == "1.1/neuron"


def test_a_session_without_steps_proves_nothing(small_outline: Outline) -> None:
    phase = small_outline.phases[0]
    empty = replace(phase.sessions[0], steps=(), concepts=())
    second = replace(phase.sessions[1], concepts=())
    outline = Outline((Phase(1, "p", "f", "h", 1, (empty, second), 2),), small_outline.root)
    now = progress(made([]), outline)
    assert not now.sessions["1.1"].complete
    assert now.sessions["1.2"].state is State.LOCKED


def test_sessions_that_require_each_other_stay_locked(small_outline: Outline) -> None:
    first, second, *_ = small_outline.phases[0].sessions
    knot = (replace(first, requires=("1.2",)), replace(second, requires=("1.1", "nowhere")))
    outline = Outline((replace(small_outline.phases[0], sessions=knot),), small_outline.root)
    now = progress(made([attempt("1.1/neuron", 0, "passed")]), outline)
    assert {record.state for record in now.sessions.values()} == {State.LOCKED}
    assert "nowhere" in why_locked("1.2", now, outline)


def test_unlocks_and_why_locked_name_each_other(small_outline: Outline) -> None:
    now = progress(made([]), small_outline)
    assert unlocks("1.1", small_outline) == ("1.2",)
    assert "1.1 (Session 1.1)" in why_locked("1.2", now, small_outline)
    assert "1.1 (Session 1.1)" in why_locked("1.2/slope", now, small_outline)
    assert "1.1/neuron" in why_locked("1.1/order", now, small_outline)
    assert why_locked("1.1", now, small_outline) == ""


def test_seeds_are_fresh_at_each_question_and_stable_until_answered(
    small_outline: Outline,
) -> None:
    moves = [("wrong", "1.1/neuron")] * 8 + [("read", "1.1/neuron")] + [("wrong", "1.1/neuron")]
    seeds, visits = [], []
    for count in range(len(moves) + 1):
        now = progress(played(moves[:count], small_outline), small_outline)
        seeds.append(seed_for("1.1/neuron", now))
        visits.append(visit_seed("1.1/neuron", now))
    assert len(set(seeds)) == len(seeds)
    assert visits[0] == visits[1] != visits[2] == visits[3]
    assert len(set(visits)) == 6  # the step, four rungs, and the step again
    free = made([attempt("1.1/neuron", 0, "broken"), (EventKind.HINT, "1.1/neuron", {})])
    assert seed_for("1.1/neuron", progress(free, small_outline)) == seeds[0]
    salted = [replace(free[0], data={"workspace": "w", "salt": "other"}), *free[1:]]
    assert seed_for("1.1/neuron", progress(salted, small_outline)) != seeds[0]


def test_time_is_counted_without_pauses_and_never_backwards(small_outline: Outline) -> None:
    def at(number: int, clock: str, kind: EventKind, **data: Any) -> Event:
        return Event(number, f"2025-01-01T{clock}:00+00:00", kind, "1.1", None, data)

    events = [
        at(1, "20:00", EventKind.CREATED, **CREATED),
        at(2, "20:00", EventKind.SITTING, sitting="a"),
        at(3, "20:10", EventKind.NOTE, text="ten minutes"),
        at(4, "20:15", EventKind.PAUSE, sitting="a"),
        at(5, "21:00", EventKind.NOTE, text="after the pause"),
        at(6, "20:50", EventKind.NOTE, text="the clock was set back"),
        at(7, "23:00", EventKind.NOTE, text="asleep: half an hour at most"),
        at(8, "23:30", EventKind.SITTING, sitting="b"),
    ]
    now = progress(events, small_outline)
    assert now.seconds == (15 + 30) * 60
    assert now.sessions["1.1"].seconds == now.seconds
