"""Values without numbers against memory counted by hand."""

from __future__ import annotations

from firsthand.llm.audit.lifetimes import Gradients, Leaf, Tape, Timeline, Value, random_state_bytes


def squared(tape: Tape, x: Value) -> Value:
    """x², which keeps x."""
    tape.saves()
    result = tape.new("square", x.elements)
    kept = x.detached

    def run(g: Value) -> Gradients:
        return (tape.timeline.value("gradient", kept.elements, category="workspace"),)

    tape.link([x], [result], run)
    return result


def joined(tape: Tape, x: Value, y: Value) -> Value:
    """x + y, whose gradients are the cotangent itself."""
    result = tape.new("sum", x.elements)

    def run(g: Value) -> Gradients:
        return g, g

    tape.link([x, y], [result], run)
    return result


def test_a_storage_lives_as_long_as_a_value_refers_to_it() -> None:
    line = Timeline()
    value = line.value("one", 10)
    view = value.seen_as(5)
    del value
    assert line.total == 40
    del view
    assert (line.total, line.peak) == (0, 40)


def test_storages_take_whole_blocks() -> None:
    line = Timeline(granule=512)
    held = [line.new("small", 1), line.new("large", 200)]
    assert line.total == 512 + 1024
    del held


def test_the_peak_names_its_moment_and_categories() -> None:
    line = Timeline()
    weights = line.value("weights", 3, category="weights")
    with line.within("first"):
        line.new("scratch", 4, category="workspace")
    with line.within("second", category="logits", layer=2):
        line.new("more", 5)
    assert (line.peak, line.peak_moment) == (12 + 20, "second")
    assert {key: count for key, count in line.at_peak.items() if count} == {
        ("weights", -1): 12,
        ("logits", 2): 20,
    }
    del weights


def test_a_chain_keeps_its_inputs_and_frees_them_on_the_way_back() -> None:
    """Three squares of 4 bytes x 100: x, x², x⁴ stay, x⁸ does not once its loss is known."""
    line = Timeline()
    tape = Tape(line)
    x = tape.parameter("x", 100)
    y = squared(tape, squared(tape, squared(tape, x)))
    assert line.total == 4 * 400
    root = y.node
    assert root is not None
    del y
    assert line.total == 3 * 400
    line.events = []
    tape.backward(root, [line.value("cotangent", 100, category="workspace")])
    del root
    # The cotangent and x; then its gradient instead of x⁴; x² goes with the next, and so on.
    totals, total = [], 1200
    for change, _ in line.events:
        total += change
        totals.append(total)
    # The first node has both cotangents and all three squares.
    assert max(totals) == 5 * 400
    assert line.total == 2 * 400
    assert isinstance(x.node, Leaf)
    assert x.node.gradient is not None
    assert {key[0]: count for key, count in line._live.items() if count} == {
        "weights": 400,
        "gradients": 400,
    }


def test_a_second_gradient_is_added_into_the_first() -> None:
    line = Timeline()
    tape = Tape(line)
    x = tape.parameter("x", 100)
    root = joined(tape, squared(tape, x), squared(tape, x)).node
    assert root is not None
    tape.backward(root, [line.value("cotangent", 100)])
    del root
    assert line.total == 800


def test_a_checkpointed_block_keeps_its_input_and_runs_again_to_its_last_saving() -> None:
    random = random_state_bytes()
    line = Timeline()
    tape = Tape(line)
    x = tape.parameter("x", 100)

    def block(value: Value) -> Value:
        inner = squared(tape, squared(tape, value))
        return joined(tape, inner, value)

    start = squared(tape, x)
    y = tape.checkpointed(block, start)
    # x, x², the block's result; its inner squares went.
    assert line.total == 3 * 400 + random
    root = y.node
    assert root is not None
    del y, start
    assert line.total == 2 * 400 + random
    line.peak = 0
    tape.backward(root, [line.value("cotangent", 100)])
    del root
    # x, x², the cotangent and again x⁴, at whose saving the rest is left out; the kept state of
    # the random numbers and the present one.
    assert line.peak == 4 * 400 + 2 * random
    assert line.total == 800
