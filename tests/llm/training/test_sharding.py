"""Two ranks with half of the weights each (FSDP2) do what one process does."""

import traceback
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing

from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.training.averaging import Average
from firsthand.llm.training.clipping import clip_gradients
from firsthand.llm.training.config import OptimizerSettings
from firsthand.llm.training.optimizers.optimizer import Optimizer

# The widths leave ranks with shards of different heights, and one with none of a vector's end.
CONFIG = ModelConfig(
    vocab_size=13, context=8, d_model=10, n_layers=1, n_heads=5, n_kv_heads=1, d_ff=15, d_head=2
)
SETTINGS = OptimizerSettings(kind="muon", weight_decay=0.2)


def _states(sharded: bool) -> dict[str, Tensor]:
    """Weights, optimizer state, average and norms after three steps, as whole tensors."""
    torch.set_num_threads(1)
    model = Transformer(CONFIG, FAST, seed=3)
    if sharded:
        from torch.distributed.fsdp import fully_shard

        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    optimizer, average = Optimizer(model, SETTINGS, FAST), Average(model, 0.6, FAST)
    norms = []
    for step in range(3):
        tokens = torch.randint(0, 13, (2, 9), generator=torch.Generator().manual_seed(step))
        hidden = model(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(hidden.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(clip_gradients(gradients, 0.5))
        optimizer.step(0.5)
        optimizer.zero_gradients()
        average.update()
    named = {f"weight/{name}": p.detach() for name, p in model.named_parameters()}
    named |= optimizer.tensors()
    named |= {f"average/{name}": tensor for name, tensor in average.tensors().items()}
    whole = {
        name: (tensor.full_tensor() if sharded else tensor).clone()
        for name, tensor in named.items()
    }
    if sharded:
        saved = {name: 2 * whole[name] for name in optimizer.tensors()}
        optimizer.load(saved, 3)
        for name, tensor in optimizer.tensors().items():
            assert torch.equal(tensor.full_tensor(), saved[name]), name
        with average.applied():
            for name, p in model.named_parameters():
                assert torch.equal(p.full_tensor(), whole[f"average/{name}"]), name
    return {**whole, "norms": torch.stack(norms)}


def _rank(rank: int, folder: str) -> None:
    try:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
        )
        torch.save(_states(sharded=True), f"{folder}/rank{rank}.pt")
        distributed.destroy_process_group()
    except BaseException:
        Path(folder, f"rank{rank}.error").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def test_two_ranks_do_what_one_does(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in ranks:
        process.start()
    expected = _states(sharded=False)
    for process in ranks:
        process.join(timeout=120)
    errors = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.error")]
    assert not errors, "\n".join(errors)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
