"""The signature of each breakage: relations of a run's own figures that hold in it and in no other.

A relation is a figure without a unit and the bounds that it lies between: a size as a share of what
it should be, of another layer's, or of another step's. So it needs no healthy run beside it and no
width or depth of its own. The bounds lie between what broken and healthy runs of the gallery
measure, a factor of about 2 or more from either where the figure is a size;
`tests/llm/audit/test_flow_gallery.py` measures both.

A signature matches when every relation holds. A figure that was not recorded decides nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from firsthand.llm.audit.flow import Flow, share_of
from firsthand.llm.model.config import parameter_counts

Figure = Callable[[Flow], float | None]
# The smallest number above 0.
_LEAST = math.ulp(0.0)


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A figure and where it lies.

    Attributes:
        says: what the figure is.
        figure: computes it; None when the flow does not tell.
        above, below: the bounds, not included.
        qualifies: it holds in healthy runs too, and tells this breakage from another one.
    """

    says: str
    figure: Figure
    above: float = -math.inf
    below: float = math.inf
    qualifies: bool = False

    def holds(self, flow: Flow) -> bool | None:
        """Whether it does; None when the flow does not tell."""
        value = self.figure(flow)
        return None if value is None else self.above < value < self.below

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        if self.below == _LEAST:
            return "exactly 0"
        words = []
        if self.above > -math.inf:
            words.append(f"above {self.above:g}")
        if self.below < math.inf:
            words.append(f"below {self.below:g}")
        return " and ".join(words)


def _over_blocks(figure: str, combined: Callable[[list[float]], float], step: int = 1) -> Figure:
    """A figure of all blocks at a step, combined."""

    def found(flow: Flow) -> float | None:
        values = [flow.at(step, f"blocks.{n}", figure) for n in range(flow.model.n_layers)]
        known = [value for value in values if value is not None]
        return combined(known) if len(known) == len(values) else None

    return found


def weight_size(flow: Flow) -> float | None:
    """First weights of the blocks, rms · √d_model: near 1 when each has deviation 1/√fan-in."""
    rms = _over_blocks("weight_rms", statistics.median)(flow)
    return None if rms is None else rms * math.sqrt(flow.model.d_model)


def sublayer_size(flow: Flow) -> float | None:
    """What the last feed-forward adds before training, rms · √(2 n_layers)."""
    rms = flow.at(1, "blocks.-1", "feed_forward_rms")
    return None if rms is None else rms * math.sqrt(2 * flow.model.n_layers)


def first_loss_excess(flow: Flow) -> float | None:
    """The first loss less ln of the vocabulary, nats."""
    loss = flow.logged(1, "loss")
    return None if loss is None else loss - math.log(flow.model.vocab_size)


def final_norm_size(flow: Flow) -> float | None:
    """|ln| of the rms that the last norm gives before training."""
    rms = flow.at(1, "final_norm", "activation_rms")
    return None if not rms else abs(math.log(rms))


def stream_off_one(flow: Flow) -> float | None:
    """How far the stream's rms is from 1 behind a block before training, the farthest."""
    return _over_blocks("activation_rms", lambda values: max(abs(v - 1) for v in values))(flow)


def identity_share(flow: Flow) -> float | None:
    """|1 - feed-forward / stream| behind the last block before training."""
    share = share_of(
        flow.at(1, "blocks.-1", "feed_forward_rms"), flow.at(1, "blocks.-1", "activation_rms")
    )
    return None if share is None else abs(1 - share)


def largest(layer: str, figure: str, *, after: int = 0) -> Figure:
    """The largest value over the recorded steps behind one."""

    def found(flow: Flow) -> float | None:
        steps = [int(record["step"]) for record in flow.flow]
        values = [flow.at(step, layer, figure) for step in steps if step > after]
        return max((value for value in values if value is not None), default=None)

    return found


def block_gradients(flow: Flow) -> float | None:
    """The largest gradient rms of a block at a recorded step."""
    found = [
        value
        for layer in range(flow.model.n_layers)
        for value in flow.series(f"blocks.{layer}", "gradient_rms")
    ]
    return max(found, default=None)


def update_size(flow: Flow) -> float | None:
    """The largest update of the blocks over the recorded steps, rms · √d_model (median block)."""
    updates = [size for _, size in _updates(flow)]
    return max(updates) * math.sqrt(flow.model.d_model) if updates else None


def first_update_share(flow: Flow) -> float | None:
    """The first update of the blocks over the median of the later ones."""
    updates = dict(_updates(flow))
    later = [size for step, size in updates.items() if step > 1]
    return share_of(updates.get(1), statistics.median(later)) if later else None


def _updates(flow: Flow) -> list[tuple[int, float]]:
    found = []
    for record in flow.flow:
        step = int(record["step"])
        size = _over_blocks("update_rms", statistics.median, step)(flow)
        if size is not None:
            found.append((step, size))
    return found


def entering_norm(flow: Flow) -> float | None:
    """The largest norm of a gradient as it entered the optimizer, from all layers' rms."""
    norms = [_norm(flow, int(record["step"])) for record in flow.flow]
    return max((norm for norm in norms if norm is not None), default=None)


def _norm(flow: Flow, step: int) -> float | None:
    total = 0.0
    for layer, count in layer_parameters(flow).items():
        rms = flow.at(step, layer, "gradient_rms")
        if rms is None:
            return None
        total += count * rms * rms
    return math.sqrt(total)


def layer_parameters(flow: Flow) -> dict[str, int]:
    """Parameters of each layer that `FlowRecorder` tells apart."""
    config = flow.model
    counts = parameter_counts(config)
    norm = config.d_model * (2 if config.norm == "layer" and config.bias else 1)
    final = norm if config.norm_placement == "pre" else 0
    block = counts["attention"] + counts["feed_forward"] + counts["norms"] - final
    layers = {f"blocks.{n}": block // config.n_layers for n in range(config.n_layers)}
    others = {
        "embedding": counts["embedding"],
        "position_embedding": counts["positions"],
        "neighbours": counts["neighbours"],
        "final_norm": final,
        "output": counts["output"],
    }
    return layers | {name: count for name, count in others.items() if count}


def failed_at_once(flow: Flow) -> float | None:
    """1 if the first step found an attention as the first place that is not finite, else 0."""
    return float(flow.failed_step == 1 and flow.failure.endswith("attention"))


_WEIGHTS = "first weights of the blocks, rms · √d_model"
_GRADIENTS = "largest gradient of a block at any step, rms"
_UPDATES = "largest update of the blocks, rms · √d_model"
_ENTROPY = "entropy of attention in the first block at step 1, share of an even look back"
_FUTURE = "largest weight that the first block's attention gives to later keys"

SIGNATURES: dict[str, tuple[Relation, ...]] = {
    "large-init": (Relation(says=_WEIGHTS, figure=weight_size, above=3.0),),
    "zero-init": (Relation(says=_GRADIENTS, figure=block_gradients, below=_LEAST),),
    "no-residual-scaling": (
        Relation(
            says="what the last feed-forward adds at step 1, rms · √(2 n_layers)",
            figure=sublayer_size,
            above=1.3,
            below=10.0,
        ),
        Relation(
            says="stream behind a block at step 1, distance of its rms from 1, the farthest",
            figure=stream_off_one,
            above=0.05,
            qualifies=True,
        ),
    ),
    "large-embedding": (
        Relation(says="first loss less ln(vocabulary), nats", figure=first_loss_excess, above=2.0),
    ),
    "no-norm": (
        Relation(
            says="what the last norm gives at step 1, |ln rms|", figure=final_norm_size, above=0.2
        ),
    ),
    "deep-post-norm": (
        Relation(
            says="stream behind a block at step 1, distance of its rms from 1, the farthest",
            figure=stream_off_one,
            below=0.02,
        ),
    ),
    "no-residual": (
        Relation(
            says="|1 - feed-forward / stream| behind the last block at step 1",
            figure=identity_share,
            below=1e-4,
        ),
    ),
    "no-score-scaling": (
        Relation(
            says=_ENTROPY,
            figure=lambda flow: flow.at(1, "blocks.0", "attention_entropy"),
            below=0.5,
        ),
        Relation(says=_WEIGHTS, figure=weight_size, below=3.0, qualifies=True),
    ),
    "no-mask": (
        Relation(
            says="largest weight that the first block's attention gives beyond the next key",
            figure=largest("blocks.0", "distant_future_weight"),
            above=0.01,
        ),
    ),
    "mask-one-late": (
        Relation(says=_FUTURE, figure=largest("blocks.0", "future_weight"), above=0.01),
        Relation(
            says="largest weight that the first block's attention gives beyond the next key",
            figure=largest("blocks.0", "distant_future_weight"),
            below=1e-6,
            qualifies=True,
        ),
    ),
    "mask-one-early": (
        Relation(
            says="1 if an attention is the first that is not finite, at step 1",
            figure=failed_at_once,
            above=0.5,
        ),
    ),
    "high-rate": (Relation(says=_UPDATES, figure=update_size, above=0.06),),
    "low-rate": (
        Relation(says=_UPDATES, figure=update_size, below=1e-3),
        Relation(says=_GRADIENTS, figure=block_gradients, above=0.0, qualifies=True),
    ),
    "no-warmup": (
        Relation(
            says="first update of the blocks over the median of the later ones",
            figure=first_update_share,
            above=1.5,
        ),
    ),
    "no-clipping": (
        Relation(
            says="largest norm of a gradient as it enters the optimizer",
            figure=entering_norm,
            above=1.2,
        ),
    ),
    "dead-relu": (
        Relation(
            says="hidden features that are 0 for every token at step 1, the least share of a block",
            figure=_over_blocks("silent_share", min),
            above=0.8,
        ),
        Relation(says=_GRADIENTS, figure=block_gradients, above=0.0, qualifies=True),
    ),
    "bfloat16-weights": (
        Relation(
            says="weights that an update leaves as they are, the largest share from step 2 on",
            figure=largest("weights", "unmoved_share", after=1),
            above=0.1,
        ),
        Relation(says=_GRADIENTS, figure=block_gradients, above=0.0, qualifies=True),
    ),
}
