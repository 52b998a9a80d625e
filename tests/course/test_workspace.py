"""The learner's files are theirs: nothing in them is ever lost."""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from firsthand.course import workspace as workspace_module
from firsthand.course.errors import FirsthandError
from firsthand.course.loading import Course
from firsthand.course.sources import module_source
from firsthand.course.steps import Build, Debug, Mistake
from firsthand.course.workspace import Workspace, WorkspaceError

COURSE = Course()


def build(step_id: str) -> Build:
    step = COURSE.step(step_id)
    assert isinstance(step, Build)
    return step


DOT, NEURON = build("1.1/dot-product"), build("1.1/neuron")
OPERATIONS, FUNCTIONS = build("1.4/scalar-operations"), build("1.4/elementary-functions")


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "mine")


def backups(space: Workspace) -> list[Path]:
    folder = space.state_folder / "backups"
    return sorted(path for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------- the folder


def test_create_open_find(tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "mine")
    assert (space.root / "README.md").read_text().startswith("# My own LLM")
    assert ".firsthand/" in (space.root / ".gitignore").read_text()
    assert space.log_path.parent == space.state_folder
    (space.root / "README.md").write_text("my own words")
    assert Workspace.create(space.root) == space  # the same again: nothing is written
    assert (space.root / "README.md").read_text() == "my own words"
    assert Workspace.open(space.root) == space
    inner = space.root / "foundations" / "deep"
    inner.mkdir(parents=True)
    assert Workspace.find(inner) == space
    assert Workspace.find(tmp_path) == space
    assert Workspace.find(tmp_path.parent) is None
    with pytest.raises(WorkspaceError, match=r"is no workspace\. Make one with: firsthand new"):
        Workspace.open(tmp_path)


def test_create_refuses_what_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(WorkspaceError, match="holds other files"):
        Workspace.create(tmp_path)
    with pytest.raises(WorkspaceError, match="is a file"):
        Workspace.create(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_error_is_one_sentence_for_the_learner(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FirsthandError) as caught:
        Workspace.create(tmp_path / "file" / "below")
    assert "cannot be written: Not a directory." in str(caught.value)


def test_a_git_repository_where_git_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str) -> Path:
        return Workspace.create(tmp_path / name).root

    if workspace_module.shutil.which("git"):
        assert (create("with") / ".git").is_dir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    without = create("without")
    assert not (without / ".git").exists()
    assert Workspace.open(without)


# ---------------------------------------------------------------------- adding a starter


def test_a_starter_in_a_new_file(space: Workspace) -> None:
    result = space.add_starter(COURSE, "1.1", DOT)
    assert result.added
    assert result.path == space.root / "foundations" / "neuron.py" == space.file_of(DOT)
    text = result.path.read_text()
    assert text.splitlines()[result.line - 1].startswith("def dot_product(")
    assert "raise NotImplementedError" in text
    assert DOT.key_line not in text
    assert backups(space) == []
    again = space.add_starter(COURSE, "1.1", DOT)
    assert (again.added, again.line, result.path.read_text()) == (False, result.line, text)


def test_a_second_part_is_appended_after_a_backup(space: Workspace) -> None:
    first = space.add_starter(COURSE, "1.1", DOT)
    mine = first.path.read_bytes().replace(b"raise NotImplementedError", b"return 5.0")
    first.path.write_bytes(mine)
    second = space.add_starter(COURSE, "1.1", NEURON)
    assert second.path == first.path
    assert second.path.read_bytes().startswith(mine)
    names = [getattr(node, "name", "") for node in ast.parse(second.path.read_text()).body]
    assert names.index("dot_product") < names.index("weighted_sum") < names.index("neuron")
    (backup,) = backups(space)
    assert backup.read_bytes() == mine
    assert backup.parts[-2:] == ("foundations", "neuron.py")


LEARNER_TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=80) | st.lists(
    st.sampled_from(
        [
            "def dot_product(weights, inputs):\n    return 1\n",
            "import numpy as np\n",
            "\r\n",
            "\n",
            "    ",
            "# dot_product\n",
            "class A:\n\tx = 1\n",
            '"""',
            "def broken(:\n",
            "x = (1,\n",
            "\x0c",
        ]
    ),
    max_size=6,
).map("".join)


@given(LEARNER_TEXTS)
@example("def dot_product(")
@example("x = 1\r\n\r\n\r\n\r\n\r\n")
@example("x = 1\r")
@example("\ufeffx = 1")
@example("   ")
def test_whatever_the_file_holds_stays_byte_for_byte(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        space = Workspace(Path(folder))
        path = space.file_of(DOT)
        path.parent.mkdir(parents=True)
        before = text.encode()
        path.write_bytes(before)
        result = space.add_starter(COURSE, "1.1", DOT)
        after = path.read_bytes()
        assert after.startswith(before)
        assert result.added == (after != before)
        if result.added:
            assert b"def dot_product(" in after[len(before) :]
            assert [copy.read_bytes() for copy in backups(space)] == [before]
        again = space.add_starter(COURSE, "1.1", DOT)
        assert not again.added or workspace_module.starters.defined_names(after.decode()) is None
        try:
            ast.parse(text.removeprefix("\ufeff"))
        except (SyntaxError, ValueError):
            return
        ast.parse(after.decode().removeprefix("\ufeff"))  # what ran before still runs


def test_an_emptied_file_gets_its_imports_again(space: Workspace) -> None:
    path = space.add_starter(COURSE, "1.1", DOT).path
    fresh = path.read_text()
    path.write_text("")
    space.add_starter(COURSE, "1.1", DOT)
    assert path.read_text() == fresh


def test_a_starter_brings_the_imports_that_the_file_lacks(space: Workspace) -> None:
    softmax = build("1.3/softmax")
    path = space.file_of(softmax)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = "import numpy as np\n\n\ndef sigmoid(x):\n    return 0.5 * (1 + np.tanh(x / 2))\n"
    path.write_text(own)
    space.add_starter(COURSE, "1.3", softmax)
    text = path.read_text()
    assert text.startswith(own)
    assert text.count("import numpy") == 1
    names: dict[str, Any] = {}
    exec(compile(text, str(path), "exec", dont_inherit=True), names)  # annotations are evaluated
    assert names["sigmoid"](0.0) == 0.5
    with pytest.raises(NotImplementedError):
        names["softmax"](1.0)


@pytest.mark.parametrize("head", ["if True:", "try:", "with open(__file__):"])
def test_a_part_inside_a_block_is_there(space: Workspace, head: str) -> None:
    path = space.file_of(DOT)
    path.parent.mkdir(parents=True, exist_ok=True)
    tail = "finally:\n    pass\n" if head == "try:" else ""
    text = f"{head}\n    def dot_product(weights, inputs):\n        return 0.0\n{tail}"
    path.write_text(text)
    assert not space.add_starter(COURSE, "1.1", DOT).added
    assert path.read_text() == text


def test_a_file_that_is_no_text_is_left_alone(space: Workspace) -> None:
    path = space.file_of(DOT)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"# caf\xe9\n")
    with pytest.raises(WorkspaceError, match="cannot be read"):
        space.add_starter(COURSE, "1.1", DOT)
    assert path.read_bytes() == b"# caf\xe9\n"


def test_a_folder_that_cannot_be_written(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    path = space.add_starter(COURSE, "1.1", DOT).path
    before = path.read_bytes()

    def denied(*arguments: Any, **named: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", denied)
        with pytest.raises(WorkspaceError, match="cannot be written: Permission denied"):
            space.add_starter(COURSE, "1.1", NEURON)
    with monkeypatch.context() as patch:
        patch.setattr(workspace_module.shutil, "copy2", denied)
        for change in (space.add_starter, space.reset):
            with pytest.raises(WorkspaceError, match="was left as it is: no backup"):
                change(COURSE, "1.1", NEURON if change == space.add_starter else DOT)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*.tmp"))


def test_a_file_where_a_folder_should_be(space: Workspace) -> None:
    (space.root / "debug").write_text("notes")
    step = COURSE.step("1.3/log-softmax")
    assert isinstance(step, Debug)
    with pytest.raises(WorkspaceError, match="cannot be written"):
        space.add_debug(COURSE, "1.3", step, given_mistake(step), 1)
    assert (space.root / "debug").read_text() == "notes"


def test_a_disk_that_fills_up_leaves_the_old_file_whole(
    space: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = space.add_starter(COURSE, "1.1", DOT).path
    before = path.read_bytes()
    whole = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        whole(self, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(WorkspaceError, match="No space left"):
        space.add_starter(COURSE, "1.1", NEURON)
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*.tmp"))


# ---------------------------------------------------------------------- classes


def scalar_methods(text: str) -> dict[str, str]:
    tree = ast.parse(text)
    node = next(item for item in tree.body if getattr(item, "name", "") == "Scalar")
    assert isinstance(node, ast.ClassDef)
    return {
        item.name: ast.unparse(item.body[-1])
        for item in node.body
        if isinstance(item, ast.FunctionDef)
    }


def test_a_class_starter_keeps_given_methods(space: Workspace) -> None:
    result = space.add_starter(COURSE, "1.4", OPERATIONS)
    found = scalar_methods(result.path.read_text())
    source = module_source("firsthand.llm.foundations.scalar_autograd")
    unbuilt = {name for name, last in found.items() if last == "raise NotImplementedError"}
    assert unbuilt == COURSE.methods_until(OPERATIONS.part, "1.4")
    for name in set(found) - unbuilt:
        assert found[name] == ast.unparse(source.method("Scalar", name).body[-1])
    line = result.path.read_text().splitlines()[result.line - 1]
    assert line.strip().startswith(f"def {OPERATIONS.methods[0]}(")


@pytest.mark.parametrize("indent", ["    ", "  ", "\t"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\nX = 1\n", "\n# the end"])
def test_methods_are_appended_to_the_learners_class(
    space: Workspace, indent: str, end: str
) -> None:
    path = space.file_of(FUNCTIONS)
    path.parent.mkdir(parents=True)
    mine = (
        "# mine\nclass Scalar:\n|x = '\x0c'  # a form feed\n|def __add__(self, other):\n"
        "||return 7\n|def exp(self):\n||return 8"
    ).replace("|", indent) + end
    path.write_bytes(mine.encode())
    result = space.add_starter(COURSE, "1.4", FUNCTIONS)
    text = path.read_bytes().decode()
    assert result.added
    found = scalar_methods(text)
    assert found == {
        "__add__": "return 7",
        "exp": "return 8",
        "tanh": "raise NotImplementedError",
    }
    assert text.endswith(end.lstrip("\n"))
    assert [copy.read_bytes().decode() for copy in backups(space)] == [mine]
    assert not space.add_starter(COURSE, "1.4", FUNCTIONS).added
    assert path.read_bytes().decode() == text


def test_a_class_on_one_line_is_left_alone(space: Workspace) -> None:
    path = space.file_of(FUNCTIONS)
    path.parent.mkdir(parents=True)
    path.write_text("class Scalar: pass\n")
    assert not space.add_starter(COURSE, "1.4", FUNCTIONS).added
    assert path.read_text() == "class Scalar: pass\n"


# ---------------------------------------------------------------------- imports


def test_imports_of_built_parts_are_the_learners_own(space: Workspace) -> None:
    text = space.add_starter(COURSE, "1.6", build("1.6/linear")).path.read_text()
    imported = {
        alias.name: node.module or ""
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported["Tensor"] == "mine.foundations.tensor_autograd"
    assert imported["as_tensor"] == "mine.foundations.tensor_autograd"  # it came with the class
    assert imported["he_normal"] == "mine.foundations.initialization"
    assert imported["Array"] == "firsthand.llm.foundations.arrays"
    early = space.add_starter(COURSE, "1.1", NEURON).path.read_text()
    assert "mine." not in early


def test_the_files_run_as_the_package_mine(space: Workspace) -> None:
    files = [
        space.add_starter(COURSE, session.id, step).path
        for session in COURSE.outline.sessions
        for step in COURSE.code(session.id).steps.values()
        if isinstance(step, Build)
    ]
    modules = sorted(
        {".".join(path.relative_to(space.root).with_suffix("").parts) for path in files}
    )
    code = (
        f"import importlib\nfor name in {modules}:\n"
        "    module = importlib.import_module(f'mine.{name}')\n"
        "    print(module.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=space.root.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {str(path) for path in files}


# ---------------------------------------------------------------------- reset


def test_reset_puts_one_part_back_and_keeps_the_old_bytes(space: Workspace) -> None:
    path = space.add_starter(COURSE, "1.1", DOT).path
    space.add_starter(COURSE, "1.1", NEURON)
    before = (
        path.read_text()
        .replace("raise NotImplementedError", "return 1.0  # \x0c mine")
        .replace("\n", "\r\n")
    )
    path.write_bytes(before.encode())
    stamp = datetime.now().strftime("%Y-%m-%d")
    backup = space.reset(COURSE, "1.1", DOT)
    assert backup.read_bytes() == before.encode()
    assert backup.relative_to(space.state_folder / "backups").parts[0].startswith(stamp)
    tree = ast.parse(path.read_bytes())
    last = {
        node.name: ast.unparse(node.body[-1])
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }
    assert last["dot_product"] == "raise NotImplementedError"
    assert last["neuron"] == "return 1.0"


def test_reset_of_methods_leaves_the_others(space: Workspace) -> None:
    path = space.add_starter(COURSE, "1.4", OPERATIONS).path
    path.write_text(path.read_text().replace("raise NotImplementedError", "return 1"))
    space.reset(COURSE, "1.4", FUNCTIONS)
    found = scalar_methods(path.read_text())
    for name in FUNCTIONS.methods:
        assert found[name] == "raise NotImplementedError"
    for name in OPERATIONS.methods:
        assert found[name] == "return 1"


@pytest.mark.parametrize("indent", ["  ", "\t"])
def test_reset_of_methods_fits_the_learners_indentation(space: Workspace, indent: str) -> None:
    path = space.file_of(FUNCTIONS)
    path.parent.mkdir(parents=True)
    mine = "class Scalar:\n|def exp(self):\n||return 8\n|def __add__(self, o):\n||return 7\n"
    path.write_text(mine.replace("|", indent))
    space.reset(COURSE, "1.4", FUNCTIONS)
    assert scalar_methods(path.read_text()) == {
        "exp": "raise NotImplementedError",
        "__add__": "return 7",
        "tanh": "raise NotImplementedError",  # it was deleted: it comes back
    }


def test_reset_of_what_is_not_there(space: Workspace) -> None:
    path = space.reset(COURSE, "1.1", DOT)
    assert path == space.file_of(DOT)
    path.write_text("X = 1\n")
    space.reset(COURSE, "1.1", DOT)
    assert path.read_text().startswith("X = 1\n")
    assert "def dot_product(" in path.read_text()


def test_reset_of_a_file_that_does_not_parse_sets_it_aside(space: Workspace) -> None:
    path = space.add_starter(COURSE, "1.1", DOT).path
    fresh = path.read_text()
    path.write_text(fresh + "def broken(:\n")
    backup = space.reset(COURSE, "1.1", DOT)
    assert path.read_text() == fresh
    assert backup.read_text().endswith("def broken(:\n")


def test_two_backups_in_a_row_are_two(space: Workspace) -> None:
    path = space.add_starter(COURSE, "1.1", DOT).path
    path.write_text("first\n")
    one = space.back_up(path)
    path.write_text("second\n")
    two = space.back_up(path)
    assert [copy.read_text() for copy in (one, two)] == ["first\n", "second\n"]


# ---------------------------------------------------------------------- Debug files


def given_mistake(step: Debug, number: int = 0) -> Mistake:
    return next(
        item
        for session in COURSE.outline.sessions
        for item in COURSE.code(session.id).mistakes_of(step)
        if isinstance(item, Mistake) and item.id == step.mistakes[number]
    )


def test_given_code_is_written_once_and_never_again(space: Workspace) -> None:
    step = COURSE.step("1.3/log-softmax")
    assert isinstance(step, Debug)
    path = space.add_debug(COURSE, "1.3", step, given_mistake(step), 1)
    assert path == space.root / "debug" / "1.3_log_softmax_1.py"
    text = path.read_text()
    assert text == space.given_text(COURSE, "1.3", step, given_mistake(step))
    for _, new in given_mistake(step).edits:
        assert new in text
    path.write_text("repaired\n")
    assert space.add_debug(COURSE, "1.3", step, given_mistake(step, 1), 1).read_text() == (
        "repaired\n"
    )
    assert space.add_debug(COURSE, "1.3", step, given_mistake(step), 2) != path


def test_given_code_says_the_symptom_and_not_the_mistake(space: Workspace) -> None:
    for session in COURSE.outline.sessions:
        for step in COURSE.code(session.id).steps.values():
            if not isinstance(step, Debug):
                continue
            for number, name in enumerate(step.mistakes):
                text = space.given_text(COURSE, session.id, step, given_mistake(step, number))
                head = ast.get_docstring(ast.parse(text)) or ""
                assert " ".join(step.symptom.split()) in " ".join(head.split())
                assert name not in text
                assert given_mistake(step, number).belief not in text


def test_paths_are_shown_from_where_one_stands(
    space: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path = space.file_of(DOT)
    assert space.shown(path) == "mine/foundations/neuron.py"
    monkeypatch.chdir(space.state_folder)
    assert space.shown(path) == str(path)


def test_the_copied_course_has_starters_too(
    space: Workspace, copied_course: Callable[..., Course]
) -> None:
    course = copied_course()
    step = course.step("1.1/layer")
    assert isinstance(step, Build)
    assert space.add_starter(course, "1.1", step).added
