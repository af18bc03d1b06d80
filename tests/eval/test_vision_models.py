"""`hf:` on the real classes of vision-language models, tiny and of random weights, with their own processors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from m27.eval.answerers import Asked, Settings, open_model
from m27.language.bytelevel import byte_characters

transformers = pytest.importorskip("transformers")

SPECIAL = (
    "<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>",
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<video>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)  # fmt: skip
SIZE = len(SPECIAL) + 256
TEXT = {
    "vocab_size": SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
EYE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SETTINGS = Settings(max_tokens=5, at_once=3, precision="float32", threads=1)


def template(picture):
    return (
        "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{% if p['type'] == 'image' %}" + picture
        + "{% else %}{{ p['text'] }}{% endif %}{% endfor %}\n{% endfor %}assistant:"
    )  # fmt: skip


def tokenizer():
    names = [*SPECIAL, *byte_characters()]
    made = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def idefics2():
    config = transformers.Idefics2Config(
        vision_config={**EYE, "image_size": 28, "patch_size": 7}, image_token_id=3, pad_token_id=0,
        perceiver_config={"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
                          "resampler_head_dim": 8, "num_key_value_heads": 2},
        text_config={**TEXT, "model_type": "mistral"}, tie_word_embeddings=False,
    )  # fmt: skip
    size = {"shortest_edge": 14, "longest_edge": 28}
    eye = transformers.Idefics2ImageProcessorPil(size=size, do_image_splitting=False)
    reads = transformers.Idefics2Processor(eye, tokenizer(), image_seq_len=4, chat_template=template("<image>"))
    return transformers.Idefics2ForConditionalGeneration, config, reads


def idefics3():
    config = transformers.Idefics3Config(
        vision_config={**EYE, "image_size": 32, "patch_size": 8}, image_token_id=3, pad_token_id=0, scale_factor=2,
        text_config={**TEXT, "model_type": "llama"}, tie_word_embeddings=False,
    )  # fmt: skip
    eye = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    reads = transformers.Idefics3Processor(eye, tokenizer(), image_seq_len=4, chat_template=template("<image>"))
    return transformers.Idefics3ForConditionalGeneration, config, reads


def without_video(kind):
    """A processor's class that may lack the part that reads films, which torchvision is needed for."""
    class Pictures(kind):
        def check_argument_for_proper_class(self, argument_name, argument):
            if argument is not None:
                super().check_argument_for_proper_class(argument_name, argument)

    return Pictures


def smolvlm():
    config = transformers.SmolVLMConfig(
        vision_config={**EYE, "image_size": 32, "patch_size": 8}, image_token_id=3, pad_token_id=0, scale_factor=2,
        text_config={**TEXT, "model_type": "llama"}, tie_word_embeddings=False,
    )  # fmt: skip
    eye = transformers.SmolVLMImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}, do_image_splitting=True
    )
    reads = without_video(transformers.SmolVLMProcessor)(
        eye, tokenizer(), None, image_seq_len=4, chat_template=template("<image>")
    )
    reads.video_processor = SimpleNamespace(num_frames=1, fps=1, size={"longest_edge": 32})  # looked at, never asked
    return transformers.SmolVLMForConditionalGeneration, config, reads


def llava_next():
    grid = [[32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaNextConfig(
        vision_config={**EYE, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8,
                       "projection_dim": 32},
        text_config={**TEXT, "model_type": "llama"}, image_token_index=3, image_grid_pinpoints=grid,
        vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    eye = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    reads = transformers.LlavaNextProcessor(
        eye, tokenizer(), patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )  # fmt: skip
    return transformers.LlavaNextForConditionalGeneration, config, reads


def qwen2_5_vl():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
                       "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 32,
                       "fullatt_block_indexes": [1]},
        image_token_id=7, video_token_id=8, vision_start_token_id=9, vision_end_token_id=10, tie_word_embeddings=False,
    )  # fmt: skip
    eye = transformers.Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 2048}
    )
    reads = without_video(transformers.Qwen2_5_VLProcessor)(
        eye, tokenizer(), None, chat_template=template("<|vision_start|><|image_pad|><|vision_end|>")
    )
    return transformers.Qwen2_5_VLForConditionalGeneration, config, reads


def saved(make, folder):
    kind, config, reads = make()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 2
    model.save_pretrained(folder)
    if not hasattr(reads, "video_processor"):
        reads.save_pretrained(folder)
    return model, reads


def questions():
    """One of words, some with a picture of another form each, and one with two."""
    rng = np.random.default_rng(0)

    def picture(height, width):
        return {"type": "image", "image": rng.integers(0, 256, (height, width, 3), np.uint8)}

    contents = [
        [{"type": "text", "text": "What?"}],
        [picture(40, 40), {"type": "text", "text": "What is this?"}],
        [picture(30, 60), {"type": "text", "text": "And this, which is longer than it is high?"}],
        [picture(64, 32), {"type": "text", "text": "Which"}, picture(48, 50), {"type": "text", "text": "is red?"}],
    ]
    return [Asked(f"q{n}", [{"role": "user", "content": content}]) for n, content in enumerate(contents)]


@pytest.mark.parametrize("make", [idefics2, idefics3, smolvlm, llava_next, qwen2_5_vl], ids=lambda make: make.__name__)
def test_batches_are_answered_as_the_model_alone_answers(make, tmp_path, monkeypatch):
    from PIL import Image
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # that speaks of films
    model, reads = saved(make, tmp_path)
    if not (tmp_path / "processor_config.json").exists():
        monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: reads)
    opened = open_model(f"hf:{tmp_path}", SETTINGS)
    found = {answer.key: answer for answer in opened.answer(questions())}
    opened.close()
    for one in questions():
        (message,) = one.messages
        pictures = [Image.fromarray(part["image"]) for part in message["content"] if part["type"] == "image"]
        text = reads.apply_chat_template(one.messages, add_generation_prompt=True, tokenize=False)
        given = reads(text=[text], return_tensors="pt", **({"images": [pictures]} if pictures else {}))
        with torch.inference_mode():
            ids = model.generate(**given, max_new_tokens=5, do_sample=False, pad_token_id=0)
        want = reads.tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        assert (found[one.key].error, found[one.key].text) == ("", want)
        assert found[one.key].prompt_tokens == given["input_ids"].shape[1]
