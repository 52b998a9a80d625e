"""What a learner's file may do, through the real worker: each verdict fits on one screen."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from firsthand.course.checks import isolation

BUILD = "1.1/dot-product"
SIGNATURE = "def dot_product(weights, inputs):\n"
BODY = SIGNATURE + "    return float(sum(w * x for w, x in zip(weights, inputs, strict=True)))\n"
FORK_BOMB = "import os\nwhile True: os.fork()\n"
CASES = {
    "syntax error": ("def dot_product(weights, inputs:\n    return 0\n", "Does not run.", True),
    "wrong signature": ("def dot_product(weights):\n    return 0.0\n", "Does not run.", True),
    "renamed": (BODY.replace("dot_product", "dot"), None, True),
    "library": (
        "import numpy as np\n" + SIGNATURE + "    return float(np.dot(weights, inputs))\n",
        "Not built.",
        False,
    ),
    "exception": (SIGNATURE + "    return 1 / 0\n", "Does not run.", True),
    "recursion": (SIGNATURE + "    return dot_product(weights, inputs)\n", None, True),
    "endless loop": (SIGNATURE + "    while True: pass\n", "Stopped.", True),
    "endless import": ("while True: pass\n" + BODY, "Stopped.", True),
    "exit": (SIGNATURE + "    import os; os._exit(0)\n", "Stopped.", True),
    "exit at import": ("import os; os._exit(0)\n" + BODY, "Stopped.", True),
    "system exit": (SIGNATURE + "    raise SystemExit(0)\n", None, True),
    "100 MB printed": (SIGNATURE + "    print('x' * 100_000_000)\n    return 0.0\n", None, True),
    "100 GB allocated": (
        "import numpy as np\n" + SIGNATURE + "    return float(np.ones(100 * 2**27).sum())\n",
        None,
        True,
    ),
    "not a number": (SIGNATURE + "    return 'x' * 5000\n", None, False),
    "escape codes": (SIGNATURE + "    raise ValueError('\\x1b[2J\\x1b[31m' * 50)\n", None, True),
    "fork bomb": (SIGNATURE + "    import os\n    while True: os.fork()\n", None, True),
}
NEEDS_SECCOMP = ("fork bomb",)
SLOW = ("endless import", "exit at import", "recursion", "system exit")


def _parameter(name: str) -> Any:
    return pytest.param(name, id=name, marks=pytest.mark.slow if name in SLOW else ())


@pytest.mark.parametrize("name", [_parameter(name) for name in CASES])
def test_a_file_that_does_harm(place: Any, name: str) -> None:
    if name in NEEDS_SECCOMP and not (sys.platform == "linux" and isolation.available()["seccomp"]):
        pytest.skip("needs seccomp")
    text, outcome, free = CASES[name]
    place.begin(BUILD)
    path = place.built(BUILD)[0]
    path.write_text(text)
    done = place.run("check")
    assert done.returncode == 1, done.stderr
    shown = done.stdout
    assert outcome is None or shown.startswith(outcome), shown
    assert "Traceback" not in done.stderr
    assert len(shown.splitlines()) <= 30, shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "\x1b" not in shown
    step = place.progress.steps[BUILD]
    assert not step.passed
    assert (step.gate.used == 0) is free
    assert path.read_text().startswith(text)  # the learner's file is the learner's


def test_the_right_file_passes(place: Any) -> None:
    place.begin(BUILD)
    place.build(BUILD)
    done = place.run("check")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("Passed.")
    again = place.run("check", "dot-product")
    assert again.returncode == 0
    assert "not recorded" in again.stdout
