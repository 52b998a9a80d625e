"""Session 1.4: wrong versions that people write, and other right ones."""

import math

from firsthand.course.steps import Alternative, Mistake, WrongAnswer, WrongFormula
from firsthand.llm.foundations.scalar_autograd import Node, Scalar, as_scalar


def order_by_recursion(root: Node) -> list[Node]:
    order: list[Node] = []
    met: set[Node] = set()

    def visit(node: Node) -> None:
        if node in met:
            return
        met.add(node)
        for parent in node.parents:
            visit(parent)
        order.append(node)

    visit(root)
    return order


def order_by_counting(root: Node) -> list[Node]:
    """Right, in another style (Kahn 1962): release a node when its last open parent is done."""
    users: dict[Node, list[Node]] = {root: []}
    waiting = [root]
    for node in waiting:
        for parent in set(node.parents):
            if parent not in users:
                users[parent] = []
                waiting.append(parent)
            users[parent].append(node)
    missing = {node: len(set(node.parents)) for node in users}
    order = [node for node in users if not missing[node]]
    for node in order:
        for user in users[node]:
            missing[user] -= 1
            if missing[user] == 0:
                order.append(user)
    return order


class PartnerFirst(Scalar):
    """Right: the parents in the other order, each with its own derivative."""

    def __add__(self, other: Scalar | float) -> Scalar:
        partner = as_scalar(other)
        derivatives = (1.0, 1.0)
        return PartnerFirst(partner.data + self.data, (partner, self), derivatives, "plus")

    def __mul__(self, other: Scalar | float) -> Scalar:
        partner = as_scalar(other)
        derivatives = (self.data, partner.data)
        return PartnerFirst(partner.data * self.data, (partner, self), derivatives, "times")


class ByExponentials(Scalar):
    """Right: tanh from an exponential that cannot overflow, its derivative as 1 / cosh^2."""

    def exp(self) -> Scalar:
        result = Scalar(math.exp(self.data))
        result.parents, result.local_derivatives = (self,), (math.exp(self.data),)
        return result

    def tanh(self) -> Scalar:
        decay = math.exp(-2.0 * abs(self.data))
        size = (1.0 - decay) / (1.0 + decay)
        local = 4.0 * decay / (1.0 + decay) ** 2
        return Scalar(math.copysign(size, self.data), (self,), (local,), "tanh")


class ByCountingUsers(Scalar):
    """Right: no order made beforehand; a node is taken when all of its users have sent a share."""

    def backward(self) -> None:
        arrows: dict[Scalar, int] = {self: 0}
        waiting: list[Scalar] = [self]
        for node in waiting:
            for parent in node.parents:
                if parent not in arrows:
                    arrows[parent] = 0
                    waiting.append(parent)
                arrows[parent] += 1
        sent = dict.fromkeys(arrows, 0.0)
        sent[self] = 1.0
        ready: list[Scalar] = [self]
        for node in ready:
            node.grad = node.grad + sent[node]
            for index, parent in enumerate(node.parents):
                sent[parent] += node.local_derivatives[index] * sent[node]
                arrows[parent] -= 1
                if not arrows[parent]:
                    ready.append(parent)


MISTAKES = (
    # graph-nodes
    WrongFormula(
        id="inputs-made-anew",
        step="graph-nodes",
        belief="It counts the inputs once for each neuron that reads them.",
        question="How many nodes does a value make that two operations read?",
        formula=lambda inputs, neurons: neurons * (4 * inputs + 2),
    ),
    WrongFormula(
        id="operations-only",
        step="graph-nodes",
        belief="It counts the results of the operations and leaves out what they start from.",
        question="Where would the gradient of a weight be kept?",
        formula=lambda inputs, neurons: neurons * (2 * inputs + 1),
    ),
    WrongFormula(
        id="leaves-only",
        step="graph-nodes",
        belief="It counts inputs, weights and biases, and none of the intermediate results.",
        question="What does one product of two Scalars return?",
        formula=lambda inputs, neurons: inputs + neurons * (inputs + 1),
    ),
    # scalar-operations
    Mistake(
        id="locals-swapped",
        step="scalar-operations",
        belief="Each factor of a product gets itself as its derivative.",
        question="By how much does 2 * 5 grow when the 2 grows by 1?",
        edits=(('(other.data, self.data), "*"', '(self.data, other.data), "*"'),),
    ),
    Mistake(
        id="product-like-sum",
        step="scalar-operations",
        belief="A product gets the local derivatives of a sum.",
        question="By how much does 2 * 5 grow when the 2 grows by 1?",
        edits=(('(other.data, self.data), "*"', '(1.0, 1.0), "*"'),),
    ),
    Mistake(
        id="second-parent-missing",
        step="scalar-operations",
        belief="A product remembers its first factor only.",
        question="Which nodes should get a gradient through a * b?",
        edits=(
            (
                '(self, other), (other.data, self.data), "*"',
                '(self,), (other.data,), "*"',
            ),
        ),
    ),
    Mistake(
        id="nothing-remembered",
        step="scalar-operations",
        belief="The results hold their values and not the operands that they were computed from.",
        question="Starting at the result, how would a backward pass find the operands?",
        edits=(
            (
                'Scalar(self.data + other.data, (self, other), (1.0, 1.0), "+")',
                "Scalar(self.data + other.data)",
            ),
            (
                'Scalar(self.data * other.data, (self, other), (other.data, self.data), "*")',
                "Scalar(self.data * other.data)",
            ),
        ),
    ),
    Mistake(
        id="changed-in-place",
        step="scalar-operations",
        belief="The first operand is overwritten with the result instead of making a new node.",
        question="What is a.data after b = a + a?",
        edits=(
            (
                'return Scalar(self.data + other.data, (self, other), (1.0, 1.0), "+")',
                "self.data += other.data\n        return self",
            ),
            (
                "return Scalar(self.data * other.data, (self, other), "
                '(other.data, self.data), "*")',
                "self.data *= other.data\n        return self",
            ),
        ),
    ),
    # chain-rule
    WrongAnswer(
        id="path-left-out",
        step="chain-rule",
        belief="It follows the long path only, and x also enters L directly.",
        question="How many arrows leave x?",
    ),
    WrongAnswer(
        id="inner-factor-left-out",
        step="chain-rule",
        belief="The last arrow of the long path has no factor.",
        question="By how much does u move when x moves by 1?",
    ),
    WrongAnswer(
        id="factors-added",
        step="chain-rule",
        belief="The local derivatives along a path are added instead of multiplied.",
        question="If u doubles a change and h triples it, how large is it in the end?",
    ),
    # elementary-functions
    Mistake(
        id="derivative-of-the-input",
        step="elementary-functions",
        belief="The derivative of tanh is computed from the input where the value belongs.",
        question="What does your local derivative of tanh say at an input of 3?",
        edits=(("(1.0 - value * value,)", "(1.0 - self.data * self.data,)"),),
    ),
    Mistake(
        id="sigmoid-derivative",
        step="elementary-functions",
        belief="The local derivative of tanh is the formula that belongs to the sigmoid.",
        question="How steep is tanh at 0, by its graph?",
        edits=(("(1.0 - value * value,)", "(value * (1.0 - value),)"),),
    ),
    Mistake(
        id="power-rule-for-exp",
        step="elementary-functions",
        belief="The rule for x to a constant power is applied to a constant to the power x.",
        question="What does your local derivative of exp say at an input of 0?",
        edits=(('(value,), "exp"', '(self.data * math.exp(self.data - 1.0),), "exp"'),),
    ),
    Mistake(
        id="tanh-overflows",
        step="elementary-functions",
        belief="tanh is computed from a growing exponential, which overflows for a large input.",
        question="How large is e to the power 800 as a float64?",
        edits=(
            (
                "value = math.tanh(self.data)",
                "growth = math.exp(2.0 * self.data)\n"
                "        value = (growth - 1.0) / (growth + 1.0)",
            ),
        ),
    ),
    # shared-node
    WrongAnswer(
        id="one-share-only",
        step="shared-node",
        belief="A node that is read twice got one of its two shares.",
        question="Which operations read this node?",
    ),
    WrongAnswer(
        id="own-value-as-derivative",
        step="shared-node",
        belief="Each factor of a product got itself as its derivative.",
        question="By how much does 2 * 5 grow when the 2 grows by 1?",
    ),
    WrongAnswer(
        id="upstream-left-out",
        step="shared-node",
        belief="The local derivatives are added up without the gradient of the node above.",
        question="If the node above counts for nothing in the end, what should its operands get?",
    ),
    # topological-order
    Mistake(
        id="shared-node-twice",
        step="topological-order",
        belief="A node that is reached by two ways is listed twice.",
        question="How often would the backward pass then send on the gradient of that node?",
        edits=(("elif node not in entered:", "else:"),),
    ),
    Mistake(
        id="root-first",
        step="topological-order",
        belief="The order runs from the root to the inputs.",
        question="Which of two nodes should stand first: an operand or its result?",
        edits=(("return order", "return order[::-1]"),),
    ),
    Mistake(
        id="first-parent-only",
        step="topological-order",
        belief="Only the first parent of each node is followed.",
        question="Which nodes does a sum depend on?",
        edits=(("for parent in node.parents)", "for parent in node.parents[:1])"),),
    ),
    Mistake(
        id="listed-when-met",
        step="topological-order",
        belief="A node is listed when it is first met, and the list is turned round at the end.",
        question="Can a node be met early and still be a parent of one that is met later?",
        edits=(
            ("            order.append(node)", "            pass"),
            ("entered.add(node)", "entered.add(node)\n            order.append(node)"),
            ("return order", "return order[::-1]"),
        ),
    ),
    Mistake(
        id="recursion-too-deep",
        step="topological-order",
        belief="The function calls itself once for each node of a path, and Python limits that.",
        question="How long is the longest path in a loss that sums 5,000 terms one by one?",
        code=order_by_recursion,
    ),
    # backward-pass
    Mistake(
        id="share-overwritten",
        step="backward-pass",
        belief="A second share replaces the first one instead of being added to it.",
        question="What is the derivative of a + a with respect to a?",
        edits=(("earlier + upstream * local", "upstream * local"),),
    ),
    Mistake(
        id="root-at-zero",
        step="backward-pass",
        belief="The pass starts from a derivative of 0 at the root, so that all others are 0 too.",
        question="By how much does the root move when the root moves by 1?",
        edits=(("{self: 1.0}", "{self: 0.0}"),),
    ),
    Mistake(
        id="inputs-first",
        step="backward-pass",
        belief="The nodes are taken from the inputs to the root.",
        question="Which gradient is known before anything is computed?",
        edits=(
            ("reversed(topological_order(self))", "topological_order(self)"),
            ("derivatives[node]", "derivatives.get(node, 0.0)"),
        ),
    ),
    Mistake(
        id="upstream-ignored",
        step="backward-pass",
        belief="Each node gets its local derivatives, not multiplied by what comes from above.",
        question="If the node above counts for nothing in the end, what should its operands get?",
        edits=(("earlier + upstream * local", "earlier + local"),),
    ),
    Mistake(
        id="old-gradients-reused",
        step="backward-pass",
        belief="What an earlier call left in `grad` is sent on again as if it were new.",
        question="What should a second call add to a gradient that the first one made 5?",
        edits=(
            ("derivatives = {self: 1.0}", "self.grad = 1.0"),
            (
                "upstream = derivatives[node]\n            node.grad += upstream",
                "upstream = node.grad",
            ),
            (
                "earlier = derivatives.get(parent, 0.0)\n"
                "                derivatives[parent] = earlier + upstream * local",
                "parent.grad += upstream * local",
            ),
        ),
    ),
    # keep-or-recompute
    WrongAnswer(
        id="segment-not-counted",
        step="keep-or-recompute",
        belief="It counts what the forward pass keeps, not what the backward pass recomputes.",
        question="Which arrays exist just before the backward pass of the last segment begins?",
    ),
    WrongAnswer(
        id="all-run-again",
        step="keep-or-recompute",
        belief="It counts every operation as run again.",
        question="Of a segment's inputs, which one need not be recomputed?",
    ),
    WrongAnswer(
        id="four-byte-numbers",
        step="keep-or-recompute",
        belief="The bytes are counted with 4 for each number.",
        question="Which dtype does the scenario state?",
    ),
)

ALTERNATIVES = (
    Alternative(step="scalar-operations", code=PartnerFirst),
    Alternative(step="elementary-functions", code=ByExponentials),
    Alternative(step="topological-order", code=order_by_counting),
    Alternative(step="backward-pass", code=ByCountingUsers),
)
