"""Sharded training: the right loss and gradients, master weights in float32, adapters that come out merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

from mgpt_edge.export.checkpoint import Checkpoint
from mgpt_edge.export.model import Decoder
from mgpt_edge.finetune.conversation import UNLABELLED, Batch
from mgpt_edge.finetune.lora import lora_config
from mgpt_edge.finetune.parallel import joined
from mgpt_edge.finetune.parts import write_parts
from mgpt_edge.finetune.release import write_release
from mgpt_edge.finetune.sft import Recipe, Stage, pieces, summed_losses, whole
from mgpt_edge.finetune.sharded import ShardedStage, Shares, newest_state
from mgpt_edge.finetune.weights import Weights
from tests.families import LIKE_34B, write_checkpoint

RECIPE = Recipe(steps=20, rate=1e-3, floor=1.0, clip=4.0, average=0.0, ramp=1)


class Noise:
    """A corpus of random sequences of several lengths."""

    def batch(self, number: int, rank: int = 0, ranks: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(number)
        tokens = torch.randint(0, 400, (4, 24), generator=generator)
        labels = tokens.roll(-1, 1)
        for row in range(4):
            labels[row, : 3 + row] = UNLABELLED
            labels[row, 23 - 4 * row :] = UNLABELLED
        return Batch(tokens[rank::ranks], labels[rank::ranks])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def alone():
    with joined("cpu") as processes:
        yield processes


@pytest.fixture(scope="module", params=["7b", "34b", "tied"])
def checkpoint(request, tmp_path_factory):
    overrides = {"7b": {}, "34b": LIKE_34B, "tied": {"tied_embeddings": True}}[request.param]
    return Checkpoint.open(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), overrides, shard_bytes=200_000))


def plain(checkpoint: Checkpoint, tensor=None) -> Decoder:
    """The decoder as it is exported, whole and in float32."""
    model = Decoder(checkpoint.config, checkpoint.norm_groups)
    state = {name: (tensor or checkpoint.tensor)(name).float() for name in checkpoint.names()}
    model.load_state_dict(state, strict=False)
    return model.eval()


def stage(checkpoint, processes, folder, recipe=RECIPE, rows=4, **weights) -> tuple[Weights, ShardedStage]:
    held = Weights(checkpoint=checkpoint, **({"dropout": 0.0, "dtype": torch.float32} | weights))
    return held, ShardedStage(held.load(processes), Noise(), recipe, folder, processes, rows, {"data": "noise"})


def full(model) -> dict[str, torch.Tensor]:
    return {name: whole(parameter).detach().clone() for name, parameter in model.named_parameters()}


def test_the_losses_are_the_definitions(checkpoint):
    model, batch = plain(checkpoint), Noise().batch(0)
    with torch.no_grad():
        entropy, penalty = summed_losses(model, batch.tokens, batch.labels)
        logits = model.logits(batch.tokens).double()
    shifted = F.pad(batch.labels, (1, 0), value=UNLABELLED)[:, :-1]  # transformers moves them back
    count = int((batch.labels != UNLABELLED).sum())
    torch.testing.assert_close(entropy / count, ForCausalLMLoss(logits.float(), shifted, logits.shape[-1]))
    reference = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
    torch.testing.assert_close(entropy.double(), reference, rtol=1e-5, atol=0)
    squared = logits.exp().sum(-1).log().square()[batch.labels != UNLABELLED].sum()
    torch.testing.assert_close(penalty.double(), squared, rtol=1e-5, atol=0)


def test_pieces_lose_padding_only():
    batch = Noise().batch(0)
    found = list(pieces(batch, 1))
    assert [tokens.shape[1] for tokens, _ in found] == [23, 19, 15, 11]
    for row, (tokens, labels) in enumerate(found):
        width = tokens.shape[1]
        assert torch.equal(tokens[0], batch.tokens[row, :width])
        assert torch.equal(labels[0], batch.labels[row, :width])
        assert (batch.labels[row, width:] == UNLABELLED).all()


def test_gradients_are_those_of_the_whole_model(checkpoint, alone, tmp_path):
    """Sharding, checkpointed activations and rows one at a time change nothing."""
    _, sharded = stage(checkpoint, alone, tmp_path, rows=1)
    batch, model = Noise().batch(0), plain(checkpoint)
    record = sharded.gradients()
    sums = summed_losses(model, batch.tokens, batch.labels)
    ((sums[0] + 1e-5 * sums[1]) / record["tokens"]).backward()
    assert record["loss"] == pytest.approx(sums[0].item() / record["tokens"], rel=1e-5)
    assert record["z"] == pytest.approx(sums[1].item() / record["tokens"], rel=1e-5)
    found = {name: whole(parameter.grad) for name, parameter in sharded.model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_sharded_stage_trains_as_the_plain_one(checkpoint, alone, tmp_path, monkeypatch):
    _, sharded = stage(checkpoint, alone, tmp_path)
    simple = Stage(plain(checkpoint), Noise(), RECIPE, tmp_path, "p")
    monkeypatch.setattr(simple, "objective", lambda *batch: summed_losses(simple.model, *batch))
    for _ in range(3):
        a, b = sharded.train_step(), simple.train_step()
        assert a == pytest.approx(b, rel=1e-4)


def test_master_weights_are_float32_and_computing_is_bfloat16(checkpoint, alone, tmp_path):
    recipe = replace(RECIPE, rate=1e-6)
    _, sharded = stage(checkpoint, alone, tmp_path, recipe, dtype=torch.bfloat16)
    before, seen = full(sharded.model), set()
    layer = sharded.model.model.layers[0].mlp.gate_proj
    layer.register_forward_hook(lambda module, inputs, output: seen.add((inputs[0].dtype, output.dtype)))
    sharded.train_step()
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    name = "model.layers.0.mlp.gate_proj.weight"
    after = full(sharded.model)[name]
    assert after.dtype == torch.float32
    moments = sharded.optimizer.state[dict(sharded.model.named_parameters())[name]]
    assert moments["exp_avg_sq"].dtype == torch.float32
    # The step is below what bfloat16 can tell apart: without master weights most of it would be lost.
    assert (after != before[name]).float().mean() > 0.95
    assert (after.bfloat16() == before[name].bfloat16()).float().mean() > 0.95


@pytest.mark.parametrize("adapters", [None, lora_config(4)], ids=["whole", "lora"])
def test_a_resumed_stage_goes_on_with_the_same_losses(checkpoint, alone, tmp_path, adapters):
    options = {"dropout": 0.1, "dtype": torch.bfloat16, "adapters": adapters}
    _, once = stage(checkpoint, alone, tmp_path / "once", **options)
    losses = [once.train_step()["loss"] for _ in range(4)]
    _, cut = stage(checkpoint, alone, tmp_path / "cut", **options)
    assert not cut.resume()
    assert [cut.train_step()["loss"] for _ in range(2)] == losses[:2]
    cut.save()
    cut.train_step()  # lost by the kill
    (tmp_path / "cut" / ".state-000000003").mkdir()  # a state that was being written
    _, again = stage(checkpoint, alone, tmp_path / "cut", **options)
    assert again.resume()
    assert [again.train_step()["loss"] for _ in range(2)] == losses[2:]
    again.save()
    assert newest_state(tmp_path / "cut").name == "state-000000004"
    assert len(list((tmp_path / "cut").iterdir())) == 1
    for name, value in full(once.model).items():
        assert torch.equal(full(again.model)[name], value)


def test_shares_of_other_counts_are_read(alone, tmp_path):
    """What three processes wrote of a tensor, one reads whole."""
    tensors = {"a": torch.randn(7, 3), "b": torch.randn(2), "c": torch.randn(1, 2)}
    for rank in range(3):
        # FSDP gives each process as many rows as torch.chunk does; the last ones may get none.
        chunks = [(name, (*value.chunk(3), value[:0], value[:0])[rank]) for name, value in tensors.items()]
        write_parts(chunks, tmp_path / f"rank-{rank:05d}", limit=20)
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    shares = Shares(tmp_path)
    for name, value in tensors.items():
        found = torch.distributed.tensor.distribute_tensor(torch.zeros_like(value), mesh)
        shares.read(name, found)
        assert torch.equal(found.full_tensor(), value)


def test_only_adapters_are_trained_and_come_out_merged(checkpoint, alone, tmp_path):
    config = lora_config(4)
    held, sharded = stage(checkpoint, alone, tmp_path, adapters=config)
    before = full(sharded.model)
    for _ in range(3):
        sharded.train_step()
    after = full(sharded.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".lora_" in name}
    assert len(changed) == 2 * 7 * checkpoint.config.num_layers

    write_release(held, sharded.model, tmp_path / "out", checkpoint.defaults, 100, alone)
    written = Checkpoint.open(tmp_path / "out")
    merged, batch = plain(written), Noise().batch(9)
    sharded.model.eval()
    with torch.no_grad():
        expected = sharded.sharded(batch.tokens, batch.labels)
        torch.testing.assert_close(summed_losses(merged, batch.tokens, batch.labels), expected, rtol=1e-5, atol=1e-3)
        base = summed_losses(plain(checkpoint), batch.tokens, batch.labels)
        assert abs(base[0] - expected[0]) > 1e-2
        by_peft = PeftModel.from_pretrained(plain(checkpoint), tmp_path / "out" / "adapter").base_model.model
        torch.testing.assert_close(by_peft.logits(batch.tokens), merged.logits(batch.tokens), rtol=1e-4, atol=1e-4)


def test_the_written_checkpoint_has_the_trained_weights(checkpoint, alone, tmp_path):
    held, sharded = stage(checkpoint, alone, tmp_path)
    for generation in (1, 2):
        sharded.train_step()
        write_release(held, sharded.model, tmp_path / "out", checkpoint.defaults, 5000, alone)
        written = Checkpoint.open(tmp_path / "out")
        assert written.config == checkpoint.config
        assert written.vocabulary == checkpoint.vocabulary
        assert written.vq_names() == checkpoint.vq_names()
        for name, value in full(sharded.model).items():
            assert torch.equal(written.tensor(name), value)
            assert written.dtype(name) == checkpoint.dtype(name)
        files = {path.name for path in (tmp_path / "out").glob("model*.safetensors")}
        assert files == {path.name for path in written.shards.files()}
        assert all(name.startswith(f"model-{generation}-") for name in files)


def test_parts_stay_below_their_limit(tmp_path):
    tensors = {f"t{n}": torch.full((n + 1, 10), float(n)) for n in range(6)}
    files = write_parts(tensors.items(), tmp_path / "new" / "part", limit=200)
    assert [sum(tensors[n].nbytes for n in files if files[n] == path) for path in sorted(set(files.values()))] == [
        120, 120, 160, 200, 240,
    ]  # fmt: skip


def test_a_checkpoint_that_carries_its_encoder_keeps_it(tmp_path, alone):
    folder = write_checkpoint(tmp_path / "old")
    source = Checkpoint.open(folder)
    extra = {f"model.vqmodel.{name}": source.vq_tensor(name) for name in source.vq_names()}
    save_file({name: source.tensor(name) for name in source.names()} | extra, folder / "model.safetensors")
    opened = replace(source, shards=type(source.shards).open(folder), vq=None)
    held, sharded = stage(opened, alone, tmp_path)
    write_release(held, sharded.model, tmp_path / "out", source.defaults, 10, alone)
    shards = type(source.shards).open(tmp_path / "out")
    assert all(torch.equal(shards.tensor(name), value) for name, value in extra.items())
