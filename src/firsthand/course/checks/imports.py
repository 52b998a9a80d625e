"""How the child imports: the workspace as `mine`, and the reference of the part out of reach.

`mine.x.y` is the workspace's x/y.py; where that file is missing it is the stack's module. Parts
that the learner has not mastered yet are the stack's as well. The module that holds the reference
of the part under check, and the session's own module, cannot be imported by the learner's files.
"""

from __future__ import annotations

import ast
import builtins
import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from firsthand.course.checks.calls import Place, Sources

globals()["__builtins__"] = dict(vars(builtins))  # see checks/values.py

PACKAGE = "mine"
_MACHINERY = ("<frozen importlib", importlib.__file__)


class ReferenceImported(ImportError):
    """A file of the learner imports what the check compares it with."""


def modules_apart(names: Sequence[str]) -> dict[str, ModuleType]:
    """Take modules out of sys.modules and their packages; who has imported them keeps them."""
    taken = {}
    for name in names:
        module = sys.modules.pop(name, None)
        package, _, leaf = name.rpartition(".")
        holder = sys.modules.get(package)
        if holder is not None and vars(holder).get(leaf) is not None:
            delattr(holder, leaf)
        if module is not None:
            taken[name] = module
    return taken


class _Existing:
    """A loader that hands out a module that exists already."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        return None


class Guard:
    """Meta-path finder that keeps some modules from the learner's files, and only from them.

    The stack's own modules may import one another, the blocked one included; it is taken out of
    sys.modules again as soon as their import ends.
    """

    def __init__(self, stack: str, blocked: Sequence[str], sources: Sources) -> None:
        self._prefix = stack + "."
        self._sources = sources
        self._blocked = tuple(blocked)
        self._frame: Callable[[int], FrameType] = sys._getframe
        self._trusted = tuple(
            folder.rstrip(os.sep) + os.sep
            for name in (stack, *blocked)
            for folder in _folders(name)
        )
        self._kept = modules_apart(self._blocked)
        self.attempt: Place | None = None

    def withdraw(self) -> None:
        """Take the blocked modules out of sys.modules, if the import of another put them back."""
        self._kept.update(modules_apart(self._blocked))

    def reference(self, name: str) -> ModuleType:
        """A module of the stack for the engine's own use, blocked or not."""
        if name in self._kept:
            return self._kept[name]
        module = importlib.import_module(name)
        self.withdraw()
        return module

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in self._blocked:
            frame = self._importer()
            if not self._is_trusted(frame):
                self.attempt = self._sources.innermost(frame)
                raise ReferenceImported(f"{name} holds the reference version of the part")
            if name in self._kept:
                return ModuleSpec(name, _Existing(self._kept[name]))  # type: ignore[arg-type]
            return None
        if not name.startswith(self._prefix):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Withdrawing(spec.loader, self)  # type: ignore[assignment]
        return spec

    def forbid_reading(self) -> None:
        """Refuse the learner's code the files of the blocked modules for as long as it runs."""
        modules = [self._kept[name] for name in self._blocked if name in self._kept]
        specs = [spec for module in modules if (spec := module.__spec__) is not None]
        files = {
            _real_path(file)
            for spec in specs
            for file in (spec.origin, spec.cached)
            if file is not None
        }
        names = frozenset(_base_name(file) for file in files)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event != "open" or not isinstance(arguments[0], str | bytes):
                return
            path = _decoded_path(arguments[0])
            if _base_name(path) in names and _real_path(path) in files:
                self._refuse_reader()

        sys.addaudithook(hook)

    def _refuse_reader(self) -> None:
        """Raise if the nearest frame that is not a library's is the learner's."""
        frame: FrameType | None = self._frame(2)
        shown_only = False  # a traceback or a warning that quotes the file's line
        while frame is not None and not self._is_trusted(frame):
            shown_only |= frame.f_globals.get("__name__") == "linecache"
            if self._sources.owns(frame.f_code.co_filename):
                if not shown_only:
                    self.attempt = self._sources.innermost(frame)
                raise PermissionError("this file holds the reference version of the part")
            frame = frame.f_back

    def watch_calls(self, part: object) -> None:
        """Note in `attempt` when the learner's code calls the reference, however it got hold of it.

        Other modules of the stack hold the same function and may call it; so it is the function
        itself that looks at its caller. Classes are not watched.
        """
        if type(part) is not FunctionType or part.__code__.co_freevars:
            return
        original = FunctionType(part.__code__, part.__globals__, part.__name__, part.__defaults__)
        original.__kwdefaults__ = part.__kwdefaults__
        part.__globals__[_CALLED] = self._note_caller
        part.__globals__[_ORIGINAL] = original
        part.__defaults__ = part.__kwdefaults__ = None
        part.__code__ = _watched.__code__
        gc.freeze()  # or gc.get_objects() hands the original out

    def _note_caller(self) -> None:
        frame = self._frame(2)
        if self._sources.owns(frame.f_code.co_filename):
            self.attempt = self._sources.innermost(frame)

    def _importer(self) -> FrameType | None:
        frame: FrameType | None = self._frame(2)
        while frame is not None and frame.f_code.co_filename.startswith(_MACHINERY):
            frame = frame.f_back
        return frame

    def _is_trusted(self, frame: FrameType | None) -> bool:
        if frame is None:
            return False
        path = frame.f_code.co_filename
        engine = os.path.dirname(__file__) + os.sep
        return not self._sources.owns(path) and path.startswith((*self._trusted, engine))


class _Withdrawing:
    """Runs the real loader, then takes the blocked modules out again."""

    def __init__(self, loader: Any, guard: Guard) -> None:
        self._loader = loader
        self._guard = guard

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._loader.exec_module(module)
        finally:
            self._guard.withdraw()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


_CALLED, _ORIGINAL = "__called_by_learner__", "__unwatched__"


def _watched(*arguments, **named):  # type: ignore[no-untyped-def]
    """The body that takes the place of the reference's; its globals are those of its module."""
    __called_by_learner__()  # type: ignore[name-defined]  # noqa: F821
    return __unwatched__(*arguments, **named)  # type: ignore[name-defined]  # noqa: F821


# Bound before the learner's code can patch the module os.
_real_path, _base_name, _decoded_path = os.path.realpath, os.path.basename, os.fsdecode


def _folders(name: str) -> list[str]:
    """Where a package lies, or the folder of a module."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return list(spec.submodule_search_locations)
    return [] if spec.origin is None else [os.path.dirname(spec.origin)]


# --------------------------------------------------------------------------- mine


class Workspace:
    """Meta-path finder and loader of the package `mine`.

    Args:
        root: absolute path of the workspace.
        stack: the package that stands in for missing files.
        under_check: (module below the package, its file); the file may lie anywhere. None: no
            file is under check, as when a run takes the learner's parts.
        references: module below the package -> attributes that come from the stack.
        sources: told about every file that is loaded.
        guard: gives the stack's modules.
    """

    def __init__(
        self,
        *,
        root: str,
        stack: str,
        under_check: tuple[str, str] | None,
        references: Mapping[str, Sequence[str]],
        sources: Sources,
        guard: Guard,
    ) -> None:
        self._root = root
        self._stack = stack
        self._checked, self._file = "", ""
        if under_check is not None:
            self._checked, self._file = f"{PACKAGE}.{under_check[0]}", under_check[1]
        self._references = {f"{PACKAGE}.{key}": value for key, value in references.items()}
        self._sources = sources
        self._guard = guard
        self._frame: Callable[[int], FrameType] = sys._getframe

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            return None
        below = name[len(PACKAGE) + 1 :].replace(".", "/")
        folder = os.path.join(self._root, below) if below else self._root
        file = self._file if name == self._checked else folder + ".py"
        if os.path.isfile(file):
            return ModuleSpec(name, self, origin=file)  # type: ignore[arg-type]
        twin = self._stack_module(name) if below else None
        if os.path.isdir(folder) or name == PACKAGE or hasattr(twin, "__path__"):
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [folder]
            return spec
        return None if twin is None else ModuleSpec(name, _Alias(twin))

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        name, file = module.__name__, str(module.__spec__ and module.__spec__.origin)
        module.__file__ = file
        try:
            exec(self.compile(file), vars(module))
        except Exception:
            if name == self._checked or not self._covered(name):
                raise
            twin = self._stack_module(name)
            vars(module).update(
                {key: value for key, value in vars(twin).items() if key[:2] != "__"}
            )
        else:
            self.substitute(module)

    def compile(self, file: str) -> CodeType:
        """The file's code with its real name, so that tracebacks have its lines."""
        with open(file, "rb") as stream:
            data = stream.read()
        text = importlib.util.decode_source(data)
        self._sources.add(file, text)
        return compile(text, file, "exec", dont_inherit=True)

    def substitute(self, module: ModuleType) -> None:
        """Replace the parts that are not mastered by the stack's."""
        names = self._references.get(module.__name__, ())
        if not names:
            return
        twin = self._stack_module(module.__name__)
        for name in names:
            *owners, leaf = name.split(".")
            source: Any = twin
            holder: Any = module
            for owner in owners:
                source = getattr(source, owner, None)
                holder = getattr(holder, owner, None)
            if source is not None and holder is not None and hasattr(source, leaf):
                setattr(holder, leaf, vars(source).get(leaf, getattr(source, leaf)))

    def _stack_module(self, name: str) -> ModuleType | None:
        twin = self._stack + name[len(PACKAGE) :]
        try:
            return self._guard.reference(twin)
        except ModuleNotFoundError as error:
            if error.name is not None and (twin + ".").startswith(error.name + "."):
                return None
            raise

    def _covered(self, name: str) -> bool:
        """Whether all that is needed of a file that fails to import is the stack's anyway."""
        twin = self._stack_module(name)
        if twin is None:
            return False
        needed = self._imported_names(name)
        if needed is None:
            needed = set(parts_of(twin))
        return needed <= set(self._references.get(name, ()))

    def _imported_names(self, name: str) -> set[str] | None:
        """What the importing files take from the module by name; None: it cannot be told."""
        needed: set[str] | None = None
        frame: FrameType | None = self._frame(1)
        own = os.path.join(self._root, name[len(PACKAGE) + 1 :].replace(".", "/") + ".py")
        while frame is not None:
            path = frame.f_code.co_filename
            if path != own and self._sources.owns(path) and frame.f_code.co_name == "<module>":
                package = frame.f_globals.get("__package__") or PACKAGE
                for node in ast.walk(ast.parse(self._sources.text(path))):
                    if isinstance(node, ast.Import) and any(a.name == name for a in node.names):
                        return None
                    if isinstance(node, ast.ImportFrom):
                        module = node.module or ""
                        if node.level:
                            dots = "." * node.level
                            module = importlib.util.resolve_name(dots + module, package)
                        names = {alias.name for alias in node.names}
                        if module == name:
                            needed = (needed or set()) | names
                        elif any(f"{module}.{leaf}" == name for leaf in names):
                            return None
                break
            frame = frame.f_back
        return None if needed is None or "*" in needed else needed


class _Alias:
    """Loader of a module of `mine` whose names are those of a module of the stack."""

    def __init__(self, twin: ModuleType) -> None:
        self._twin = twin

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        names = {key: value for key, value in vars(self._twin).items() if key[:2] != "__"}
        vars(module).update(names)


def parts_of(module: ModuleType) -> list[str]:
    """The public functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ]
