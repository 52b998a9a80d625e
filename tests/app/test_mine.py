"""Training with the learner's own parts: whose code runs where, and what stops it."""

from __future__ import annotations

import importlib
import io
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from firsthand.app.mine import (
    CHANGED,
    MASTERED,
    NO_STEP,
    NOT_AT_FIRST,
    PartError,
    Row,
    own_parts,
    parts_table,
    run_record,
)
from firsthand.course.checks import imports
from firsthand.course.loading import Course
from firsthand.course.log import EventKind, EventLog
from firsthand.course.verdicts import Outcome, Verdict
from firsthand.course.workspace import Workspace, WorkspaceError
from firsthand.llm.data.loading import TokenStream
from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.config import (
    OptimizerSettings,
    RunConfig,
    ScheduleSettings,
    TrainingSettings,
)
from firsthand.llm.training.distributed import World
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.journal import NoJournal
from firsthand.llm.training.loop import train
from firsthand.llm.training.memory import OutOfMemoryError
from firsthand.llm.training.next_token import Corpus, NextToken

# ------------------------------------------------------------------- a course that builds parts

# Step -> the part that it builds; None: a question. They open one after the other.
STEPS: dict[str, str | None] = {
    "attention": "model.attention:attention",
    "scale": None,
    "norm": "model.norms:rms_norm",
    "swiglu": "model.feed_forward:swiglu",
    "schedule": "training.schedules:cosine_schedule",
    "adamw": "training.optimizers.adamw:adamw",
    "cache": "model.cache:KVCache",
    "heads": "model.attention:split_heads",
    "views": None,
    "clipping": "training.clipping:clip_gradients",
}
CONCEPTS = {"attention": ("attention", "scale"), "heads": ("heads", "views")}
PASSED = ("attention", "scale", "norm", "swiglu", "schedule", "adamw", "cache", "heads")
OWN = {"attention", "rms_norm", "swiglu", "cosine_schedule", "adamw", "kv_cache"}
SESSION = "2.1"
NUMBERS = itertools.count()

ONE_BUILD = """
    Build(
        id="{id}",
        part="{part}",
        probes=lambda generator: [],
        oracle=lambda *arguments: None,
        small=lambda: (),
        key_line="",
    ),"""
ONE_QUESTION = """
    Predict(
        id="{id}",
        draw=lambda generator, small: {{}},
        ask="How many?",
        answer=lambda: 1,
        working=lambda: ["1"],
    ),"""


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Course]:
    """One session of phase 2, whose steps build parts of the real stack."""
    name = f"curriculum_of_parts_{next(NUMBERS)}"
    folder = tmp_path / name / "phase_2_attention" / "session_01_parts"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent, folder.parent.parent):
        (package / "__init__.py").touch()
    (folder.parent / "phase.toml").write_text(
        'title = "Attention"\nfocus = ""\nhands_on = ""\nhours = 1\nsessions = 1\n'
    )
    concepts = "".join(
        f'[concepts.{id_}]\ntitle = "{id_}"\nproofs = {json.dumps(proofs)}\n'
        for id_, proofs in CONCEPTS.items()
    )
    (folder / "session.toml").write_text(
        'title = "Parts"\nobjective = ""\nminutes = 60\nrequires = []\nable = []\n'
        f"resources = []\n{concepts}"
    )
    kinds = {id_: "Build" if part else "Predict" for id_, part in STEPS.items()}
    (folder / "lesson.md").write_text(
        "".join(f"## {kind}: {id_} {{#{id_}}}\n\nText.\n\n" for id_, kind in kinds.items())
    )
    declared = "".join(
        (ONE_BUILD if part else ONE_QUESTION).format(id=id_, part=part)
        for id_, part in STEPS.items()
    )
    (folder / "steps.py").write_text(
        f"from firsthand.course.steps import Build, Predict\n\nSTEPS = ({declared}\n)\n"
    )
    (folder / "mistakes.py").write_text("MISTAKES = ()\nALTERNATIVES = ()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Course(curriculum=name)
    for module in [item for item in sys.modules if item.split(".")[0] == name]:
        del sys.modules[module]


# ------------------------------------------------------------------- parts in another style

FILES: dict[str, str] = {
    "counting.py": """
from collections import Counter

CALLS = Counter()
""",
    "model/attention.py": '''
"""Scores by einsum, and a softmax written out."""

import torch

from mine.counting import CALLS
from mine.model.embedding import embed  # which is the stack's


def attention(q, k, v, bias=None):
    CALLS["attention"] += 1
    batch, heads, queries, width = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    q = q.reshape(batch, kv_heads, heads // kv_heads, queries, width)
    scores = torch.einsum("bkgqw,bktw->bkgqt", q, k) * width**-0.5
    scores = scores.reshape(batch, heads, queries, keys)
    if bias is None:
        at = torch.arange(queries)[:, None] + keys - queries
        scores = scores.masked_fill(torch.arange(keys)[None, :] > at, float("-inf"))
    else:
        scores = scores + bias
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = powers / powers.sum(-1, keepdim=True)
    weights = weights.reshape(batch, kv_heads, heads // kv_heads, queries, keys)
    return torch.einsum("bkgqt,bktw->bkgqw", weights, v).reshape(batch, heads, queries, width)


def split_heads(x, heads):
    raise NotImplementedError
''',
    "model/norms.py": """
from mine.counting import CALLS


def rms_norm(x, weight, eps=1e-5):
    CALLS["rms_norm"] += 1
    length = (x * x).sum(-1, keepdim=True) / x.shape[-1]
    return weight * x / (length + eps) ** 0.5
""",
    "model/feed_forward.py": """
from mine.counting import CALLS


def swiglu(both):
    CALLS["swiglu"] += 1
    half = both.shape[-1] // 2
    gate = both[..., :half]
    return gate / (1 + (-gate).exp()) * both[..., half:]
""",
    "training/schedules.py": """
import math

from mine.counting import CALLS


def cosine_schedule(step, steps, warmup, final):
    CALLS["cosine_schedule"] += 1
    number = step + 1
    if warmup and number <= warmup:
        return number / warmup
    way = (number - warmup) / max(1, steps - warmup)
    middle, height = (1 + final) / 2, (1 - final) / 2
    return middle + height * math.cos(math.pi * min(way, 1))
""",
    "training/optimizers/adamw.py": """
import torch

from mine.counting import CALLS


def adamw(parameters, gradients, firsts, seconds, step, learning_rate, beta1, beta2, eps,
          weight_decay):
    CALLS["adamw"] += 1
    for i in range(len(parameters)):
        p, g = parameters[i], gradients[i]
        p *= 1 - learning_rate * weight_decay
        firsts[i].copy_(beta1 * firsts[i] + (1 - beta1) * g)
        seconds[i].copy_(beta2 * seconds[i] + (1 - beta2) * g**2)
        first = firsts[i] / (1 - beta1**step)
        second = seconds[i] / (1 - beta2**step)
        p -= learning_rate * first / (torch.sqrt(second) + eps)
""",
    "model/cache.py": '''
"""A list of keys and values for each layer, joined anew each time."""

import torch

from mine.counting import CALLS


class KVCache:
    def __init__(self, layers, batch, kv_heads, capacity, width, window=0, dtype=torch.float32,
                 device=None):
        CALLS["kv_cache"] += 1
        empty = torch.zeros(batch, kv_heads, 0, width, dtype=dtype, device=device)
        self.pairs = [(empty, empty) for _ in range(layers)]
        self.capacity, self.window, self.length = capacity, window, 0

    @property
    def piece(self):
        return self.capacity - (self.window - 1 if self.window else self.length)

    @property
    def nbytes(self):
        return sum(t.nbytes for pair in self.pairs for t in pair)

    def append(self, layer, keys, values):
        if keys.shape[2] > self.piece:
            raise ValueError("the cache is full")
        joined = [torch.cat(two, 2) for two in zip(self.pairs[layer], (keys, values))]
        self.pairs[layer] = tuple(t[:, :, -self.capacity:] for t in joined)
        return self.pairs[layer]

    def positions(self, new=0):
        end = self.length + new
        return torch.arange(max(0, end - self.capacity), end)

    def advance(self, new):
        self.length += new
''',
}


@dataclass
class Mine:
    """A learner's workspace in the middle of the course."""

    course: Course
    workspace: Workspace

    def write(self, file: str, text: str) -> None:
        path = self.workspace.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.workspace.root / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, (old, text.count(old))
        self.write(file, text.replace(old, new))

    def passed(self, *steps: str) -> None:
        with EventLog(self.workspace.log_path) as log:
            log.ensure_created()
            for step in steps:
                part = STEPS[step]
                answer = "1"
                if part is not None:
                    file = self.workspace.root / (part.split(":")[0].replace(".", "/") + ".py")
                    answer = file.read_text(encoding="utf-8")
                log.append(
                    EventKind.ATTEMPT,
                    SESSION,
                    f"{SESSION}/{step}",
                    rung=0,
                    seed=1,
                    answer=answer,
                    fingerprint=step,
                    verdict=Verdict(Outcome.PASSED, "Right.").to_json(),
                    machine="laptop",
                )

    def parts(
        self, base: Parts = REFERENCE, only: set[str] | None = None
    ) -> tuple[Parts, list[Row]]:
        return own_parts(self.workspace.root, base, course=self.course, only=only)

    @property
    def refusal(self) -> str:
        with pytest.raises(PartError) as caught:
            self.parts()
        assert isinstance(caught.value, TrainingError)
        return str(caught.value)

    @property
    def calls(self) -> Counter[str]:
        counted: Counter[str] = importlib.import_module("mine.counting").CALLS
        return counted


@pytest.fixture
def mine(tmp_path: Path, course: Course) -> Iterator[Mine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = Mine(course, Workspace.create(tmp_path / "mine"))
    for file, text in FILES.items():
        found.write(file, text)
    found.passed(*PASSED)
    yield found
    torch.set_num_threads(threads)
    sys.meta_path[:] = [item for item in sys.meta_path if not isinstance(item, imports.Workspace)]
    for name in [name for name in sys.modules if name.split(".")[0] == "mine"]:
        del sys.modules[name]


# ------------------------------------------------------------------- whose code runs where


def test_the_table_says_whose_each_part_is(mine: Mine) -> None:
    parts, rows = mine.parts(FAST)
    by_part = {row.part: row for row in rows}
    assert list(by_part) == [field.name for field in fields(Parts)]
    assert {row.part for row in rows if row.whose == "yours"} == OWN
    assert {by_part[name].why for name in OWN} == {MASTERED}
    line = FILES["model/attention.py"].splitlines().index("def attention(q, k, v, bias=None):") + 1
    assert by_part["attention"].where == f"mine/model/attention.py:{line}"
    assert by_part["split_heads"].why == "built, not mastered: 2.1/views is not passed yet"
    assert by_part["clip_gradients"].why == "not built yet: 2.1/clipping"
    assert by_part["gelu"].why == NO_STEP
    origins = parts.origins()
    for name in set(by_part) - OWN:
        assert getattr(parts, name) is getattr(FAST, name)
        assert by_part[name].where == origins[name] == FAST.origins()[name]
    assert origins["attention"] == "mine.model.attention.attention"
    assert origins["adamw"] == "mine.training.optimizers.adamw.adamw"
    assert origins["kv_cache"] == "mine.model.cache.KVCache"


def test_the_record_and_the_screen(mine: Mine) -> None:
    _, rows = mine.parts(FAST)
    record = json.loads(json.dumps(run_record(rows)))["whose"]
    assert record["adamw"] == {
        "whose": "yours",
        "where": "mine/training/optimizers/adamw.py:7",
        "why": MASTERED,
    }
    assert record["gelu"]["where"].startswith("firsthand.llm.kernels.swiglu")
    console = Console(width=80, file=io.StringIO())
    with console.capture() as shown:
        console.print(parts_table(rows))
    text = shown.get()
    assert re.search(r"attention +yours +mine/model/attention\.py:10", text)
    assert re.search(r"gelu +stack +llm\.kernels\.swiglu", text)
    flat = " ".join(text.split())
    assert f"6 of {len(rows)} parts are yours." in flat
    assert "The stack's, not built yet: 2.1/clipping: clip_gradients." in flat
    assert f"The stack's, no step builds it: {len(rows) - 8} parts." in flat
    assert max(map(len, text.splitlines())) <= 80


def test_without_a_log_nothing_is_mastered(tmp_path: Path, course: Course) -> None:
    Workspace.create(tmp_path / "new")
    parts, rows = own_parts(tmp_path / "new", FAST, course=course)
    assert parts == FAST
    assert {row.whose for row in rows} == {"stack"}
    assert {row.part: row for row in rows}["attention"].why == "not built yet: 2.1/attention"


def test_no_workspace(tmp_path: Path, course: Course) -> None:
    with pytest.raises(WorkspaceError, match="is no workspace"):
        own_parts(tmp_path, FAST, course=course)


def test_the_course_of_today_builds_none_of_them(tmp_path: Path) -> None:
    Workspace.create(tmp_path / "new")
    parts, rows = own_parts(tmp_path / "new", FAST)
    assert parts == FAST
    assert len(rows) == len(fields(Parts))


# ------------------------------------------------------------------- it trains

CONFIG = RunConfig(
    model=ModelConfig(
        vocab_size=19, context=8, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=20
    ),
    optimizer=OptimizerSettings(learning_rate=0.02),
    schedule=ScheduleSettings(warmup=2),
    training=TrainingSettings(steps=8, batch_size=4, flow_every=4, evaluate_every=4),
)


def trained(parts: Parts) -> tuple[list[float], Transformer]:
    """The loss of each step and validation, and the model."""
    generator = np.random.default_rng(0)
    ids = generator.integers(19, size=400).astype(np.uint16)
    corpus = Corpus(
        train=TokenStream([ids], 0),
        validation=TokenStream([ids[:50]], 0),
        byte_lengths=np.ones(19, np.int64),
    )
    world = World(rank=0, ranks=1, device=torch.device("cpu"))
    model = Transformer(CONFIG.model, parts, seed=1)
    journal = NoJournal()
    training = assemble(CONFIG, model, NextToken(corpus, CONFIG, world), world, journal)
    train(training)
    return [line["loss"] for line in journal.lines if "loss" in line], model


def test_a_run_with_the_learners_parts_has_the_same_losses(mine: Mine) -> None:
    expected, _ = trained(REFERENCE)
    parts, _ = mine.parts()
    mine.calls.clear()
    found, model = trained(parts)
    assert len(found) == len(expected) > CONFIG.training.steps
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    counted = dict(mine.calls)
    layers, steps = CONFIG.model.n_layers, CONFIG.training.steps
    assert counted["cosine_schedule"] == steps
    assert counted["adamw"] == 2 * steps  # matrices decay, the rest does not
    assert counted["attention"] >= layers * steps
    # Once more in each backward pass, since its result is not kept.
    assert counted["swiglu"] == counted["attention"] + layers * steps
    assert counted["rms_norm"] >= (2 * layers + 1) * steps
    tokens = torch.arange(6)[None]
    with torch.no_grad():
        kv = model.new_cache(1)
        cached = torch.cat([model(tokens[:, :4], cache=kv), model(tokens[:, 4:], cache=kv)], 1)
        torch.testing.assert_close(cached, model(tokens))
    assert mine.calls["kv_cache"] == 1


def test_the_runs_random_numbers_are_left_alone(mine: Mine) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    mine.parts()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_compiled_block_takes_them(mine: Mine) -> None:
    parts, _ = mine.parts()
    call = torch.compile(parts.attention, backend="eager", fullgraph=True)
    q = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(call(q, q, q, None), REFERENCE.attention(q, q, q, None))


# ------------------------------------------------------------------- a file that has changed


def test_a_changed_right_file_is_taken_and_said(mine: Mine) -> None:
    mine.edit(
        "model/norms.py",
        "weight * x / (length + eps) ** 0.5",
        "weight * (x * (length + eps) ** -0.5)",
    )
    mine.edit("model/attention.py", '"""Scores by einsum', '"""All scores by einsum')
    _, rows = mine.parts()
    why = {row.part: row.why for row in rows}
    assert why["rms_norm"] == CHANGED
    assert why["attention"] == MASTERED  # another part of the file's text


WRONG: dict[str, tuple[str, str, str, str]] = {
    "attention": ("model/attention.py", " * width**-0.5", "", "2.1/attention"),
    "rms_norm": ("model/norms.py", "/ x.shape[-1]", "/ (x.shape[-1] - 1)", "2.1/norm"),
    "swiglu": ("model/feed_forward.py", "1 + (-gate)", "1 + gate", "2.1/swiglu"),
    "cosine_schedule": ("training/schedules.py", "step + 1", "step", "2.1/schedule"),
    "adamw": ("training/optimizers/adamw.py", " / (1 - beta2**step)", "", "2.1/adamw"),
    "KVCache": ("model/cache.py", "joined = [", "values = values * 1.01; joined = [", "2.1/cache"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_changed_wrong_file_is_refused(mine: Mine, name: str) -> None:
    file, old, new, step = WRONG[name]
    mine.edit(file, old, new)
    refusal = mine.refusal
    assert refusal.startswith(f"Your {name} (mine/{file}:")
    assert "differs from the reference" in refusal
    assert re.search(r"off by [0-9.e-]+|off by inf", refusal)
    assert refusal.endswith(f"Run its step again: firsthand check {step}")


BROKEN: list[tuple[str, Callable[[str], str], str]] = [
    (
        "model/norms.py",
        lambda text: text.replace("weight, eps=1e-5):", "weight, eps=1e-5:"),
        "Your rms_norm cannot be imported: mine/model/norms.py:5: SyntaxError",
    ),
    (
        "model/norms.py",
        lambda text: text + "\nTABLE = {}['missing']\n",
        "Your rms_norm cannot be imported: mine/model/norms.py:10: KeyError: 'missing'",
    ),
    (
        "model/norms.py",
        lambda text: text + "\nraise SystemExit(0)\n",
        "Your rms_norm cannot be imported: mine/model/norms.py:10: SystemExit",
    ),
    (
        "counting.py",
        lambda text: text + "\nimport no_such_package_anywhere\n",
        "mine/counting.py:6: ModuleNotFoundError",
    ),
    (
        "model/norms.py",
        lambda text: text.replace("def rms_norm", "def norm"),
        "mine/model/norms.py defines no rms_norm any more.",
    ),
    (
        "model/norms.py",
        lambda text: "from firsthand.llm.model.norms import rms_norm\n",
        "rms_norm (mine/model/norms.py:1) is the stack's version.",
    ),
    (
        "model/norms.py",
        lambda text: text + "\nrms_norm = 3\n",
        "rms_norm (mine/model/norms.py:10) is of type int, no function.",
    ),
    (
        "model/norms.py",
        lambda text: text.replace("weight, eps=1e-5):", "weight):\n    eps = 1e-5"),
        "the stack passes (x, weight, eps): too many positional arguments",
    ),
    (
        "model/norms.py",
        lambda text: text.replace("    length =", "    raise RuntimeError('no')\n    length ="),
        "Your rms_norm raised RuntimeError: no (mine/model/norms.py:7: `raise RuntimeError('no')`)",
    ),
    (
        "model/norms.py",
        lambda text: text.replace("return weight", "return None and weight"),
        "With your rms_norm (mine/model/norms.py:5) the stack stops:",
    ),
]


@pytest.mark.parametrize(("file", "change", "says"), BROKEN)
def test_a_broken_file_is_named(
    mine: Mine, file: str, change: Callable[[str], str], says: str
) -> None:
    mine.write(file, change(FILES[file]))
    assert says in mine.refusal


def test_a_file_that_is_gone(mine: Mine) -> None:
    (mine.workspace.root / "model" / "norms.py").unlink()
    assert "mine/model/norms.py is not there, though 2.1/norm is passed" in mine.refusal


def test_what_is_not_mastered_is_not_even_compared(mine: Mine) -> None:
    mine.write("training/clipping.py", "def clip_gradients(:\n")
    parts, _ = mine.parts()
    assert parts.clip_gradients is REFERENCE.clip_gradients


def test_a_helper_that_is_not_mastered_is_the_stacks_in_their_code_too(mine: Mine) -> None:
    mine.parts()
    module = importlib.import_module("mine.model.attention")
    assert module.split_heads is REFERENCE.split_heads
    assert module.embed is REFERENCE.embed


def test_each_call_imports_anew(mine: Mine) -> None:
    first, _ = mine.parts()
    mine.edit("model/norms.py", 'CALLS["rms_norm"] += 1', 'CALLS["anew"] += 1')
    mine.parts()
    assert mine.calls["anew"] > 0
    assert sum(isinstance(item, imports.Workspace) for item in sys.meta_path) == 1
    x = torch.ones(3)
    assert torch.allclose(first.rms_norm(x, x, 1e-5), x)


# ------------------------------------------------------------------- errors in a run


def test_a_part_that_raises_in_a_run_is_named(mine: Mine) -> None:
    guard = '    if CALLS["armed"]:\n        return x @ weight[:3]\n    length ='
    mine.edit("model/norms.py", "    length =", guard)
    parts, _ = mine.parts()
    mine.calls["armed"] = 1
    with pytest.raises(TrainingError) as caught:
        trained(parts)
    message = str(caught.value)
    assert message.startswith("Your rms_norm raised RuntimeError: ")
    assert message.endswith("(mine/model/norms.py:8: `return x @ weight[:3]`).")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_method_that_raises_is_named(mine: Mine) -> None:
    parts, _ = mine.parts()
    kv = parts.kv_cache(layers=1, batch=1, kv_heads=1, capacity=2, width=4)
    assert not hasattr(kv, "rewind")
    assert kv.nbytes == 0
    with pytest.raises(PartError, match=r"Your KVCache\.append raised ValueError: the cache is"):
        kv.append(0, torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))


@pytest.mark.parametrize(
    "error",
    [GenerationError("x"), OutOfMemoryError("x"), torch.OutOfMemoryError("x"), MemoryError()],
)
def test_what_is_no_fault_of_a_part_goes_through(mine: Mine, error: Exception) -> None:
    guard = '    if CALLS["error"]:\n        raise CALLS["error"]\n    length ='
    mine.edit("model/norms.py", "    length =", guard)
    parts, _ = mine.parts()
    mine.calls["error"] = error  # type: ignore[assignment]
    with pytest.raises(type(error)) as caught:
        parts.rms_norm(torch.ones(3), torch.ones(3), 1e-5)
    assert caught.value is error


# ------------------------------------------------------------------- going on with a run


def test_a_run_goes_on_with_the_parts_that_it_began_with(mine: Mine) -> None:
    parts, rows = mine.parts(only={"attention", "adamw"})
    assert {row.part for row in rows if row.whose == "yours"} == {"attention", "adamw"}
    assert {row.part: row.why for row in rows}["rms_norm"] == NOT_AT_FIRST
    assert parts.rms_norm is REFERENCE.rms_norm
    with pytest.raises(PartError, match="began with your split_heads; here it is not mastered"):
        mine.parts(only={"split_heads"})
    with pytest.raises(PartError, match="began with your gelu; here it is not mastered"):
        mine.parts(only={"gelu"})
