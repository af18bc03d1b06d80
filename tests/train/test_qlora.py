"""A base in blocks: the gradients of LoRA over the widened weights, the bytes of the format, small runs."""

import dataclasses
import json

import pytest
import torch

from m27.infer.store import store
from m27.model import checkpoint as models
from m27.model.decoder import Decoder
from m27.model.rounding import quantized
from m27.train.loop import Trainer
from m27.train.lora import Adapters, LoraConfig, merged
from m27.train.optim import OptimConfig
from m27.train.qlora import BaseError, BlockExperts, BlockLinear, _widened, bits_of, hold, open_base
from m27.train.rows import FrozenRows
from m27.train.settings import SettingError, change
from tests.train import fixtures, pairs

FAMILIES = {
    "llama": {"family": "llama"},
    "qwen3": {"family": "qwen3"},
    "qwen3_moe": {"family": "qwen3_moe", "n_experts": 4, "top_k": 2, "expert_dim": 64},
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def widened(model: Decoder, bits: int) -> Decoder:
    """The same decoder with every matrix rounded and made whole again: what blocks stand for."""
    state = {}
    for name, tensor in model.state_dict().items():
        stacked = tensor.dim() == 3
        parts = list(tensor) if stacked else [tensor]
        if "_proj" in name:
            key = name if name.endswith(".weight") else f"{name}.weight"
            found = [dict(quantized({key: part}, f"int{bits}"))[key] for part in parts]
            parts = [b.dequantize()[:, : p.shape[1]] for b, p in zip(found, parts, strict=True)]
        state[name] = torch.stack(parts) if stacked else parts[0]
    other = Decoder(model.config)
    other.load_state_dict(state)
    return other.requires_grad_(False)


def adapted(decoder, targets):
    adapters = Adapters(decoder, LoraConfig(rank=4, alpha=8, targets=targets), seed=3)
    torch.manual_seed(1)
    for name, parameter in adapters.parameters().items():
        if name.endswith("lora_B"):
            torch.nn.init.normal_(parameter, std=0.1)
    adapters.attach(decoder)
    return adapters


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_states_and_gradients_are_those_over_the_widened_weights(family, bits):
    targets = ATTENTION if family == "qwen3_moe" else LoraConfig().targets
    model = fixtures.decoder(64, **FAMILIES[family])
    plain = widened(model, bits)
    hold(model, bits)
    assert bits_of(model) == bits
    assert bits_of(plain) is None
    x = torch.randn(2, 40, model.config.dim)
    found = []
    for decoder in (model, plain):
        adapters = adapted(decoder, targets)
        inputs = x.clone().requires_grad_()
        states = decoder.hidden(inputs)
        states.backward(torch.cos(states.detach()))
        grads = {name: p.grad for name, p in adapters.parameters().items()}
        found.append((states.detach(), inputs.grad, grads))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=1e-5)
    for name, gradient in found[1][2].items():
        assert (found[0][2][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def held_bytes(decoder):
    """Bytes of a decoder's blocks, and of everything else that is not on the meta device."""
    blocks = sum(
        held.blocks.bytes
        for module in decoder.modules()
        if isinstance(module, BlockLinear | BlockExperts)
        for held in module.matrices
    )
    rest = [t for t in [*decoder.parameters(), *decoder.buffers()] if not t.is_meta]
    return blocks, sum(t.nbytes for t in rest)


@pytest.mark.parametrize(("bits", "a_group"), [(8, 34), (4, 20)])
def test_the_bytes_are_those_of_the_format(bits, a_group):
    model = fixtures.decoder(64, dim=64, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=96)
    weights = {name: p.numel() for name, p in model.named_parameters() if "_proj" in name}
    norms = sum(p.nbytes for p in model.parameters() if p.dim() == 1)
    # Values and the output of attention stay at 8 bits, as in what is served.
    careful = sum(n for name, n in weights.items() if name.split(".")[-2] in ("v_proj", "o_proj"))
    want = (sum(weights.values()) - careful) // 32 * a_group + careful // 32 * 34
    hold(model, bits)
    assert held_bytes(model) == (want, norms)
    model.to(torch.bfloat16)
    assert held_bytes(model) == (want, norms // 2)


def test_nothing_whole_is_kept_for_the_backward_pass():
    model = fixtures.decoder(64)
    hold(model, 4)
    adapted(model, LoraConfig().targets)
    whole = min(m.in_features * m.out_features for m in model.modules() if isinstance(m, BlockLinear))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model.hidden(torch.randn(1, 3, model.config.dim, requires_grad=True))
    factors = {id(p) for p in model.parameters()}
    assert kept
    assert all(t.numel() < whole or id(t) in factors for t in kept)


@pytest.fixture
def folder(tmp_path):
    """A stock checkpoint."""
    models.save(fixtures.decoder(192), tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize("bits", [8, 4])
def test_a_base_is_opened_from_an_export_as_it_is_and_from_floats_by_rounding(folder, bits, tmp_path):
    store(folder, tmp_path / "blocks", f"int{bits}")
    ids = torch.arange(10)[None]
    want = models.load(tmp_path / "blocks")
    for source in (folder, tmp_path / "blocks"):
        decoder, rows = open_base(source, bits, torch.float32)
        assert bits_of(decoder) == bits
        assert decoder.model.embed_tokens.weight.is_meta
        found = decoder.hidden(rows[ids])
        close = 1e-5 if source != folder else 0.02  # the step's rounding and torch's differ by near-ties
        error = (found - want.hidden(rows[ids])).norm() / found.norm()
        assert error < close
    with pytest.raises(BaseError, match=f"holds weights in int{bits}, and base_bits is {12 - bits}"):
        open_base(tmp_path / "blocks", 12 - bits)
    with pytest.raises(BaseError, match="base_bits is 3"):
        open_base(folder, 3)


def trainer(run, corpus, config, source=None):
    decoder, rows = (
        (fixtures.decoder(192), None) if source is None else open_base(source, 4, torch.float32)
    )
    rows = decoder.model.embed_tokens.weight if rows is None else rows
    return Trainer(config, decoder, FrozenRows(rows, torch.float32), corpus, run, quiet=True)


def settings(**changes):
    optim = OptimConfig(lr=3e-3, schedule="constant")
    return fixtures.config(steps=12, rows="frozen", base_bits=4, optim=optim, **changes)


def log(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_run_learns_resumes_exactly_and_merges_into_what_the_blocks_stand_for(folder, tmp_path):
    corpus = fixtures.corpus(tmp_path / "shards")
    store(folder, tmp_path / "int4", "int4")
    whole = trainer(tmp_path / "run", corpus, settings(), tmp_path / "int4").run()
    losses = [record["loss"] for record in log(tmp_path / "run")]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3
    trainer(tmp_path / "again", corpus, settings(), tmp_path / "int4").run(until=5)
    again = trainer(tmp_path / "again", corpus, settings(), tmp_path / "int4")
    assert again.run().step == 12
    for name, tensor in whole.trained.items():
        assert torch.equal(tensor, again.trained()[name]), name
    base = models.load(tmp_path / "int4")
    state = base.state_dict()
    merged_ones = merged(state, whole.trained, again.adapters.scale)
    base.load_state_dict({**state, **merged_ones})
    again.adapters.attach(again.decoder)  # a second time: the plain way has attached them already
    x = base.embed(torch.arange(12)[None])
    again.adapters.scale /= 2  # so halve both
    found = again.decoder.hidden(x)
    torch.testing.assert_close(found, base.hidden(x), rtol=1e-4, atol=1e-4)


def test_preferences_are_learnt_over_a_base_in_blocks(tmp_path):
    corpus = pairs.write(tmp_path / "shard", 60, 1)
    config = pairs.config(steps=15, rows="frozen", base_bits=4, optim=OptimConfig(lr=5e-3))
    trainer(tmp_path / "run", corpus, config).run()
    records = log(tmp_path / "run")
    assert records[0]["preference"]["margin"] == pytest.approx(0, abs=1e-4)
    assert records[-1]["preference"]["accuracy"] > 0.8


def test_what_blocks_cannot_do_is_refused(tmp_path):
    corpus = fixtures.corpus(tmp_path / "shards")
    for changes in ({"path": "fused"}, {"body": "full"}):
        with pytest.raises(SettingError, match="base_bits"):
            trainer(tmp_path / "run", corpus, settings(**changes))
    decoder = fixtures.decoder(192)
    rows = FrozenRows(decoder.model.embed_tokens.weight, torch.float32)
    hold(decoder, 8)
    with pytest.raises(SettingError, match="held in 8 bits"):
        Trainer(settings(), decoder, rows, corpus, tmp_path / "run", quiet=True)
    plain = dataclasses.replace(settings(), base_bits=None)
    with pytest.raises(SettingError, match="set base_bits=8"):
        Trainer(plain, decoder, rows, corpus, tmp_path / "run", quiet=True)
    assert change(plain, {"base_bits": "4"}).base_bits == 4
    with pytest.raises(SettingError, match="none of 8, 4"):
        change(plain, {"base_bits": "5"})


def test_what_the_compiler_is_given_is_the_same():
    model = fixtures.decoder(64)
    hold(model, 4)
    for module in model.modules():
        if isinstance(module, BlockLinear):
            for dtype in (torch.float32, torch.bfloat16):
                whole = module.held.whole(dtype)
                module.held.widen = _widened
                assert torch.equal(module.held.whole(dtype), whole)
                module.held.widen = None
