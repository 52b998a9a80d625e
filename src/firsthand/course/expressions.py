"""Expressions as a learner types them: an AST whitelist, a plain tree, and its value at a point.

Nothing here evaluates text. A text is cut into known names, numbers and operators; the names are
replaced by placeholders before Python's parser sees them; what the parser returns is copied, node
by node, into a tree of tuples, and everything that is not arithmetic is refused.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from firsthand.course.answers import Malformed, refuse_statement

MOST_CHARACTERS = 500
MOST_DEPTH = 40
MOST_EXPONENT = 64

# ("num", text), ("sym", name), ("call", name, *arguments), ("neg", a) or an operator with two trees
Tree = tuple[object, ...]

_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Delta Sigma Omega Theta Lambda Phi d sqrt"
)
GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΔΣΩΘΛΦ∂√", _GREEK_NAMES.split(" "), strict=True))
_TYPOGRAPHY = str.maketrans(
    {"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "’": "'", "′": "'", "µ": "μ"}
    | {letter: f"^{index}" for index, letter in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
    | {letter: str(index) for index, letter in enumerate("₀₁₂₃₄₅₆₇₈₉")}
)
_OPERATORS: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Pow: "^",
}


def _stable_sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


FUNCTIONS: dict[str, tuple[int, Callable[..., float]]] = {  # name -> (arguments, value); 0: any
    "exp": (1, math.exp),
    "log": (1, math.log),
    "sqrt": (1, math.sqrt),
    "tanh": (1, math.tanh),
    "sinh": (1, math.sinh),
    "cosh": (1, math.cosh),
    "sin": (1, math.sin),
    "cos": (1, math.cos),
    "erf": (1, math.erf),
    "abs": (1, abs),
    "sign": (1, lambda x: float((x > 0) - (x < 0))),
    "sigmoid": (1, _stable_sigmoid),
    "relu": (1, lambda x: max(0.0, x)),
    "softplus": (1, lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))),
    "max": (0, max),
    "min": (0, min),
    "sum": (0, lambda *terms: math.fsum(terms)),
}
ALIASES = {"ln": "log", "sigma": "sigmoid"}
DEFAULT_FUNCTIONS = ("exp", "log", "ln", "sqrt", "tanh")


def canonical(name: str) -> str:
    """One spelling for a name: Greek letters written out, `x_{1}` as `x_1`."""
    name = re.sub(r"_\{(\w+)\}", r"_\1", name.translate(_TYPOGRAPHY))
    return "".join(GREEK.get(letter, letter) for letter in name)


def _segments(word: str, names: Sequence[str]) -> list[list[str]]:
    """The ways to write `word` as a product of known names, at most two of them."""
    ways: list[list[str]] = []

    def extend(start: int, taken: list[str]) -> None:
        if len(ways) > 1:
            return
        if start == len(word):
            ways.append(taken)
            return
        for name in names:
            if word.startswith(name, start):
                extend(start + len(name), [*taken, name])

    if len(word) <= 12:
        extend(0, [])
    return ways


class Reader:
    """Reads expressions over given symbols and functions into trees.

    symbols: names; a derivative such as `dL/dy` may be a symbol. functions: the allowed names
    besides exp, log, ln, sqrt, tanh; a name that is not in FUNCTIONS is an unspecified function.
    """

    def __init__(self, symbols: Sequence[str], functions: Sequence[str] = ()) -> None:
        self.symbols = [canonical(symbol) for symbol in symbols]
        allowed = [canonical(name) for name in (*DEFAULT_FUNCTIONS, *functions)]
        if "sigmoid" in allowed and "sigma" not in self.symbols:
            allowed.append("sigma")
        self.functions = [name for name in allowed if name not in self.symbols]
        self.given = [canonical(name) for name in functions]
        first = self.symbols[0] if self.symbols else "2"
        self.form = f"an expression in {', '.join(self.symbols)}, for example `7 + {first}^3/5`"
        special = [name for name in self.symbols if not re.fullmatch(r"\w+'*", name)]
        special.sort(key=len, reverse=True)
        self._token = re.compile(
            r"\s*(?:(?P<special>"
            + ("|".join(map(re.escape, special)) or r"(?!)")
            + r")(?!\w)|(?P<number>(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+(?![\w.]))?)"
            + r"|(?P<name>[^\W\d]\w*'*)|(?P<operator>\*\*|[-+*/^(),]))"
        )
        self._names = {name.replace("_", ""): name for name in self.symbols}

    def read(self, text: str) -> Tree:
        """The tree of `text`. Raises Malformed."""
        refuse_statement(text, self.form)
        if len(text) > MOST_CHARACTERS:
            raise Malformed(f"This is longer than {MOST_CHARACTERS} characters.", self.form)
        source, table = self._substitute(self._tokens(self._right_side(canonical(text))))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                root = ast.parse(source, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise Malformed("This is not a complete expression.", self.form) from None
        return self._tree(root, table, 0)

    def _right_side(self, text: str) -> str:
        """`dL/dw = 2x` states `2x`: one left side without operators but / is dropped."""
        left, equals, right = text.partition("=")
        if not equals:
            return text
        if "=" in right or not re.fullmatch(r"[\w\s/'()]{1,40}", left):
            raise Malformed("Give the expression alone.", self.form)
        return right

    def _tokens(self, text: str) -> list[tuple[str, str]]:
        tokens: list[tuple[str, str]] = []
        at, depth = 0, 0
        text = text.strip()
        while at < len(text):
            found = self._token.match(text, at)
            if found is None or found.lastgroup is None:
                raise Malformed(f"`{text[at : at + 10]}` cannot be read.", self.form)
            kind, word = found.lastgroup, found.group(found.lastgroup)
            depth += (word == "(") - (word == ")")
            if depth > MOST_DEPTH:
                raise Malformed("The brackets are nested too deep.", self.form)
            tokens.extend(self._name(word) if kind == "name" else [(kind, word)])
            at = found.end()
        return tokens

    def _name(self, word: str) -> list[tuple[str, str]]:
        if word in self.symbols:
            return [("symbol", word)]
        if word in self.functions:
            return [("function", word)]
        if word == "pi":
            return [("symbol", "pi")]
        if word.replace("_", "") in self._names:
            return [("symbol", self._names[word.replace("_", "")])]
        ways = _segments(word, self.symbols)
        if len(ways) == 1:
            return [("symbol", name) for name in ways[0]]
        hint = " it can be split in several ways: write `*`." if ways else " is not a known name;"
        known = f" the symbols are {', '.join(self.symbols)}" + (
            f", the functions {', '.join(self.given)}" if self.given else ""
        )
        raise Malformed(f"`{word[:30]}`{hint}{known}.", self.form)

    def _substitute(self, tokens: list[tuple[str, str]]) -> tuple[str, dict[str, tuple[str, str]]]:
        """Python source with placeholders for names, `*` where a product is implied."""
        table: dict[str, tuple[str, str]] = {}
        pieces: list[str] = []
        before = ""
        for kind, word in tokens:
            kind = "symbol" if kind == "special" else kind
            starts = kind in ("symbol", "number", "function") or word == "("
            if starts and (before in ("symbol", "number") or before == ")"):
                pieces.append("*")
            if kind in ("symbol", "function"):
                placeholder = f"_{kind}{len(table)}_"
                table[placeholder] = (kind, word)
                pieces.append(placeholder)
            else:
                pieces.append({"^": "**"}.get(word, word))
            before = kind if kind != "operator" else word
        # without blanks `1 2` would become 12, and `2 .5` a different number
        return " ".join(pieces), table

    def _tree(self, node: ast.expr, table: dict[str, tuple[str, str]], depth: int) -> Tree:
        if depth > MOST_DEPTH * 2:
            raise Malformed("The expression is nested too deep.", self.form)
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                if not math.isfinite(number) or abs(number) > 1e100:
                    raise Malformed("This number is too large.", self.form)
                return ("num", repr(number))
            case ast.Name(id=name) if table.get(name, ("", ""))[0] == "symbol":
                return ("sym", table[name][1])
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return ("neg", self._tree(operand, table, depth + 1))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self._tree(operand, table, depth + 1)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                a = self._tree(left, table, depth + 1)
                b = self._tree(right, table, depth + 1)
                if isinstance(op, ast.Pow):
                    self._bound_exponent(b)
                return (_OPERATORS[type(op)], a, b)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if (
                table.get(name, ("", ""))[0] == "function"
            ):
                word = table[name][1]
                word = ALIASES.get(word, word)
                count = FUNCTIONS[word][0] if word in FUNCTIONS else 1
                if not arguments or (count and len(arguments) != count):
                    raise Malformed(f"`{word}` takes {count or 'some'} argument(s).", self.form)
                return ("call", word, *(self._tree(item, table, depth + 1) for item in arguments))
        raise Malformed("This is not an arithmetic expression.", self.form)

    def _bound_exponent(self, exponent: Tree) -> None:
        if not free_symbols(exponent):
            size = evaluate(exponent, {})
            if size is None or abs(size) > MOST_EXPONENT:
                raise Malformed(f"A constant exponent is at most {MOST_EXPONENT}.", self.form)


def free_symbols(tree: Tree) -> frozenset[str]:
    """The names of the symbols in the tree."""
    if tree[0] == "sym":
        return frozenset({str(tree[1])})
    inner = [item for item in tree[1:] if isinstance(item, tuple)]
    return frozenset().union(*(free_symbols(item) for item in inner))


def unspecified(name: str, x: Any, sin: Callable[[Any], Any] = math.sin) -> Any:
    """A fixed smooth value for a function of which only the name is known."""
    phase = zlib.crc32(name.encode()) % 997 / 997
    return sin((1.3 + phase) * x + phase) + (0.4 + phase) * x


def evaluate(tree: Tree, point: Mapping[str, float]) -> float | None:
    """The float64 value at a point; None where it is undefined or not a finite real number."""
    try:
        return _value(tree, point)
    except (ArithmeticError, ValueError, TypeError):
        return None


def _value(tree: Tree, point: Mapping[str, float]) -> float:
    match tree:
        case ("num", str(text)):
            return float(text)
        case ("sym", "pi") if "pi" not in point:
            return math.pi
        case ("sym", str(name)):
            return float(point[name]) if name in point else _undefined()
        case ("neg", tuple(a)):
            return -_value(a, point)
        case ("call", str(name), *arguments):
            values = [_value(item, point) for item in arguments if isinstance(item, tuple)]
            if name not in FUNCTIONS:
                return float(unspecified(name, values[0]))
            return _finite(float(FUNCTIONS[name][1](*values)))
        case (str(op), tuple(a), tuple(b)):
            x, y = _value(a, point), _value(b, point)
            if op == "+":
                return _finite(x + y)
            if op == "-":
                return _finite(x - y)
            if op == "*":
                return _finite(x * y)
            if op == "/":
                return _finite(x / y)
            power = x**y
            return _finite(power) if isinstance(power, float) else _undefined()
    return _undefined()


def _finite(value: float) -> float:
    return value if math.isfinite(value) else _undefined()


def _undefined() -> float:
    raise ArithmeticError("undefined")


def differ_in_digits(one: Tree, other: Tree, point: Mapping[str, Fraction]) -> bool:
    """Whether two trees differ at a point when evaluated with 60 digits.

    Only for points where float64 values of both are finite: that bounds every intermediate value,
    and with it the work. What float64 lost to cancellation is not a difference.
    """
    import mpmath

    with mpmath.workdps(60):
        exact = {name: mpmath.mpf(v.numerator) / v.denominator for name, v in point.items()}
        try:
            a, b = _digits(one, exact, mpmath), _digits(other, exact, mpmath)
            return bool(abs(a - b) > mpmath.mpf(10) ** -30 * max(abs(a), abs(b)))
        except (ArithmeticError, ValueError, TypeError, KeyError):
            return False


def _digits(tree: Tree, point: Mapping[str, Any], mp: Any) -> Any:
    match tree:
        case ("num", str(text)):
            return mp.mpf(text)
        case ("sym", str(name)):
            return point[name] if name in point or name != "pi" else mp.pi
        case ("neg", tuple(a)):
            return -_digits(a, point, mp)
        case ("call", str(name), *arguments):
            values = [_digits(item, point, mp) for item in arguments if isinstance(item, tuple)]
            composed: dict[str, Callable[..., Any]] = {
                "abs": abs,
                "max": max,
                "min": min,
                "sum": lambda *terms: mp.fsum(terms),
                "relu": lambda x: max(x, mp.mpf(0)),
                "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
                "softplus": lambda x: mp.log(1 + mp.exp(x)),
            }
            if name not in FUNCTIONS:
                return unspecified(name, values[0], mp.sin)
            function = composed.get(name) or getattr(mp, name)
            return function(*values)
        case (str(op), tuple(a), tuple(b)):
            x, y = _digits(a, point, mp), _digits(b, point, mp)
            if op == "/":
                return x / y
            return {"+": x + y, "-": x - y, "*": x * y}[op] if op != "^" else x**y
    return _undefined()
