"""The record of a step, against figures computed from all tensors kept by hand."""

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.layers import Surroundings
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training import gradient_flow
from firsthand.llm.training.gradient_flow import FlowRecorder, layer_of, without_compiled_code

torch.set_num_threads(1)
CONFIG = ModelConfig(vocab_size=31, context=12, d_model=16, n_layers=3, n_heads=2, d_ff=20)
UNTIED = ModelConfig(
    vocab_size=31,
    context=12,
    d_model=16,
    n_layers=1,
    n_heads=2,
    d_ff=20,
    tied=False,
    positions="learned",
    norm_placement="post",
)


def _batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(31, (2, 9), generator=generator) for _ in range(2))  # type: ignore[return-value]


def _step(
    model: Transformer,
    recorder: FlowRecorder | None,
    call: Callable[..., Any] | None = None,
    micro: int = 2,
) -> dict[str, Any] | None:
    """Two micro-batches, the mean over their tokens, one step of plain descent."""
    call = call or model.loss
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    optimizer.zero_grad()

    def passes() -> None:
        for seed in range(micro):
            call(*_batch(seed)).total.backward()

    if recorder is None:
        passes()
    else:
        with recorder.watching():
            passes()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= 18.0 * micro
    if recorder is not None:
        recorder.before_update()
    optimizer.step()
    return None if recorder is None else recorder.after_update(7, loss_divisor=18.0 * micro)


def _rms(*tensors: Tensor) -> float:
    return float(torch.cat([t.detach().flatten() for t in tensors]).square().mean().sqrt())


def _hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_figures_of_weights_are_those_of_all_values(config: ModelConfig) -> None:
    model = Transformer(config, FAST, seed=1)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    line = _step(model, FlowRecorder(model))
    assert line is not None
    gradients = {name: p.grad for name, p in model.named_parameters()}
    layers = {layer_of(name) for name in old}
    assert layers <= set(line["layers"])
    for layer in layers:
        names = [name for name in old if layer_of(name) == layer]
        figures = line["layers"][layer]
        wanted = {
            "gradient_rms": _rms(*[gradients[n] for n in names]),  # type: ignore[misc]
            "weight_rms": _rms(*[old[n] for n in names]),
            "update_rms": 0.3 * _rms(*[gradients[n] for n in names]),  # type: ignore[misc]
        }
        for name, value in wanted.items():
            assert figures[name] == pytest.approx(value, rel=1e-3), (layer, name)
        ratio = wanted["update_rms"] / wanted["weight_rms"]
        assert figures["update_ratio"] == pytest.approx(ratio, rel=1e-3)


def test_figures_of_activations_are_those_of_the_first_micro_batch() -> None:
    model = Transformer(CONFIG, FAST, seed=1)
    stream = model.embedding.weight[_batch(0)[0]]
    wanted = {("embedding", "activation_rms"): stream}
    for number, block in enumerate(model.blocks):
        attention: Any = block.attention
        around = _surroundings(model, stream)
        added = attention(block.attention_norm(stream), around)  # type: ignore[operator]
        wanted[f"blocks.{number}", "attention_rms"] = added
        stream = stream + added
        added = block.feed_forward(block.feed_forward_norm(stream))  # type: ignore[operator]
        wanted[f"blocks.{number}", "feed_forward_rms"] = added
        stream = stream + added
        stream.retain_grad()
        wanted[f"blocks.{number}", "activation_rms"] = stream
    assert model.final_norm is not None
    final = model.final_norm(stream)
    wanted["final_norm", "activation_rms"] = final
    total = model.parts.cross_entropy(
        final.flatten(0, 1), model.output_weight, _batch(0)[1].flatten()
    )
    total.backward()
    line = _step(model, FlowRecorder(model))
    assert line is not None
    for (layer, figure), tensor in wanted.items():
        assert line["layers"][layer][figure] == pytest.approx(_rms(tensor), rel=1e-4)
    for number in range(3):
        kept = wanted[f"blocks.{number}", "activation_rms"].grad
        assert kept is not None
        found = line["layers"][f"blocks.{number}"]["activation_gradient_rms"]
        assert found == pytest.approx(_rms(kept) / 36, rel=1e-4)


def _surroundings(model: Transformer, stream: Tensor) -> Surroundings:
    positions = torch.arange(stream.shape[1])
    return Surroundings(angles=model._rotation(positions, stream.shape[1], stream))


def test_checkpointed_blocks_give_the_same_record() -> None:
    """Their second forward pass, in the backward one, is not counted."""
    lines = []
    for checkpoint in (False, True):
        model = Transformer(CONFIG, FAST, seed=1)
        model.checkpoint_blocks = checkpoint
        lines.append(_step(model, FlowRecorder(model)))
    assert lines[0] is not None
    assert lines[1] is not None
    assert lines[0]["layers"].keys() == lines[1]["layers"].keys()
    for layer, figures in lines[0]["layers"].items():
        assert lines[1]["layers"][layer] == pytest.approx(figures, rel=1e-5)


def test_compiled_blocks_are_recorded_and_run_compiled_again_afterwards() -> None:
    plain, model = Transformer(CONFIG, FAST, seed=1), Transformer(CONFIG, FAST, seed=1)
    runs = []

    def backend(graph: Any, _: Any) -> Any:
        def run(*arguments: Any) -> Any:
            runs.append(1)
            return graph.forward(*arguments)

        return run

    for block in model.blocks:
        block.compile(backend=backend)
    with torch.no_grad():
        model.loss(*_batch(0))
    compiled = len(runs)
    assert compiled > 0
    line, wanted = _step(model, FlowRecorder(model)), _step(plain, FlowRecorder(plain))
    assert line is not None
    assert wanted is not None
    assert len(runs) == compiled
    for layer, figures in wanted["layers"].items():
        assert line["layers"][layer] == pytest.approx(figures, rel=1e-4)
    with torch.no_grad():
        model.loss(*_batch(0))
    assert len(runs) > compiled


def test_recording_changes_nothing_and_leaves_no_hook() -> None:
    models = [Transformer(CONFIG, FAST, seed=1) for _ in range(2)]
    recorder = FlowRecorder(models[0])
    for _ in range(2):
        assert _step(models[0], recorder) is not None
        assert _hooks(models[0]) == 0
        _step(models[1], None)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert not recorder._old


def test_hooks_are_gone_after_an_error() -> None:
    model = Transformer(CONFIG, FAST)
    recorder = FlowRecorder(model)
    context = recorder.watching()
    context.__enter__()
    assert _hooks(model) > 0
    assert not context.__exit__(RuntimeError, RuntimeError("on the way"), None)
    assert _hooks(model) == 0


def test_work_of_a_record_is_one_look_per_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cost does not grow with the micro-batches; a step that is not recorded has none."""
    looks: list[Tensor] = []
    real = gradient_flow._norm

    def counted(tensor: Tensor) -> Tensor:
        looks.append(tensor)
        return real(tensor)

    monkeypatch.setattr(gradient_flow, "_norm", counted)
    model = Transformer(CONFIG, FAST)
    recorder = FlowRecorder(model)
    _step(model, None)
    assert not looks
    _step(model, recorder, micro=4)
    parameters = len(list(model.parameters()))
    streams = 1 + CONFIG.n_layers + 1
    assert len(looks) == 3 * parameters + 2 * streams + 2 * CONFIG.n_layers


def test_frozen_and_broken_values_have_no_number() -> None:
    model = Transformer(CONFIG, FAST)
    model.blocks[1].requires_grad_(False)
    with torch.no_grad():
        model.blocks[2].feed_forward.down.weight[0, 0] = math.inf  # type: ignore[union-attr, index, operator]
    line = _step(model, FlowRecorder(model))
    assert line is not None
    assert "gradient_rms" not in line["layers"]["blocks.1"]
    assert line["layers"]["blocks.1"]["update_ratio"] == 0
    assert line["layers"]["blocks.2"]["activation_rms"] is None
    json.dumps(line, allow_nan=False)


def test_line_is_what_the_log_takes() -> None:
    model = Transformer(CONFIG, FAST)
    line = _step(model, FlowRecorder(model))
    assert line is not None
    assert (line["kind"], line["step"]) == ("flow", 7)
    assert line["seconds"] > 0
    assert list(line["layers"]) == ["embedding", "blocks.0", "blocks.1", "blocks.2", "final_norm"]
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_layer_names() -> None:
    assert layer_of("blocks.11.attention.qkv.weight") == "blocks.11"
    assert layer_of("final_norm.weight") == "final_norm"


def test_without_a_compiler_none_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with without_compiled_code():
        assert "torch._dynamo" not in sys.modules
