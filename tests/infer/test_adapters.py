"""adapters.py: what PEFT wrote has the effect that it has in PEFT; the rest is refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from m27.infer.adapters import TARGETS, read_adapter
from m27.infer.request import Request, RequestError
from m27.model import checkpoint
from tests import tiny

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
# Of PEFT's own making: it asks transformers for a name that is about to go.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def write(folder: Path, **options: Any) -> tuple[Path, Any]:
    """An adapter with random factors on the tiny model, written by PEFT, and PEFT's own model."""
    checkpoint.save(tiny.decoder(), folder / "model", dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    settings = {"r": 4, "lora_alpha": 6, "target_modules": list(TARGETS), **options}
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter", adapted.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "down_proj"]},
        {"alpha_pattern": {"q_proj": 20, "mlp.up_proj": 1}},
        {"rank_pattern": {"k_proj": 2}},
    ],
)
def test_the_same_logits_as_plain_peft(tmp_path: Path, options: dict[str, Any]) -> None:
    folder, theirs = write(tmp_path, **options)
    adapter = read_adapter(folder)
    assert adapter.name == "adapter"
    ours = tiny.decoder()
    for name, (a, b) in adapter.matrices.items():
        assert a.dtype == b.dtype == np.float32
        weight = ours.get_submodule(name).get_parameter("weight")
        weight.data += torch.from_numpy(b @ a)
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        expected = theirs(ids).logits
        assert (ours(ids) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_an_engine_answers_with_it(tmp_path: Path) -> None:
    folder, theirs = write(tmp_path)
    torch.set_num_threads(1)  # a model this small only loses time to a second thread
    engine = tiny.engine(100)
    engine.add_adapter("mine", read_adapter(folder, "mine"))
    request = Request(
        [{"role": "user", "content": "hi"}], modalities=("text",), adapter="mine", max_tokens=10,
        temperature=0.0, repetition_penalty=1.0,
    )  # fmt: skip
    answer = engine.chat(request)
    ids = tiny.processor().encode(request.messages, generate=True).ids
    allowed = [i for a, b in tiny.VOCABULARY.text_spans for i in range(a, b)]
    allowed.append(tiny.VOCABULARY.turn_end)
    with torch.inference_mode():
        for id in answer.ids[:-1]:
            logits = theirs(torch.tensor([ids])).logits[0, -1]
            assert id == allowed[int(logits[allowed].argmax())]
            ids.append(id)


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_what_is_not_supported_is_refused_by_name(tmp_path: Path) -> None:
    folder, _ = write(tmp_path)
    good = (folder / "adapter_config.json").read_text()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"alpha_pattern": {"(a+)+": 2}}, "alpha_pattern"),
    ]
    for settings, words in wrong:
        change(folder, **settings)
        with pytest.raises(RequestError, match=words):
            read_adapter(folder)
        (folder / "adapter_config.json").write_text(good)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(name for name in tensors if "lora_A" in name)
    faults = {
        "no lora_A": {k: v for k, v in tensors.items() if k != first},
        "has factors": tensors | {first: torch.zeros(3, 32)},
        "not finite": tensors | {first: torch.full_like(tensors[first], torch.nan)},
        "embed_tokens": tensors | {"base_model.model.model.embed_tokens.weight": torch.ones(2)},
        "holds no matrices": {},
    }
    for words, held in faults.items():
        save_file(held, weights)
        with pytest.raises(RequestError, match=words):
            read_adapter(folder)
    weights.write_bytes(b"no")
    with pytest.raises(RequestError, match="not readable"):
        read_adapter(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(RequestError, match="pickled"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(RequestError, match="adapter_config"):
        read_adapter(folder)
    with pytest.raises(RequestError, match="no adapter_config"):
        read_adapter(tmp_path / "nowhere")
