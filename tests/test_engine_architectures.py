"""Every causal LM is either run exactly by the generation engine or refused by name, adapters included."""

import random

import peft
import pytest
import torch
from peft.helpers import rescale_adapter_scale
from tiny import tiny_model, tiny_module
from transformers import AutoConfig, AutoModelForCausalLM

from dialoom.errors import ModelError
from dialoom.models.base import Sampling
from dialoom.models.engine import engine_for
from dialoom.models.exact import why_not_replaceable
from dialoom.models.local import LocalModel

SHAPE = {"vocab_size": 160, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
          "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
          "first_k_dense_replace": 2, "num_key_value_heads": 4}
MIXED = ["sliding_attention", "full_attention"] * 2
EXACT = {"gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
         "phi3": {}, "gemma3_text": {"sliding_window": 256}, "mixtral": {"num_local_experts": 4},
         "granite": {"attention_multiplier": 0.3, "logits_scaling": 2.0, "attention_dropout": 0.1},
         "smollm3": {"no_rope_layer_interval": 2}, "deepseek_v3": LATENT, "mistral": {"sliding_window": None},
         "phi": {}, "gemma": {}, "olmo2": {}, "qwen2": {}, "starcoder2": {}, "cohere": {"logit_scale": 0.3},
         "cohere2": {"sliding_window": 256, "layer_types": MIXED}, "deepseek_v2": LATENT, "glm4": {},
         "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
         "llama": {"mlp_bias": True, "attention_bias": True}, "qwen3": {}, "gpt_neox": {}}
REFUSED = {"gemma2": ({}, "capped attention"), "gpt_oss": ({"num_local_experts": 4}, "attention sinks"),
           "bloom": ({"n_layer": 3, "n_head": 4}, "cannot replace"), "nemotron": ({}, "cannot be run"),
           "mistral": ({"sliding_window": 64}, "window of 64"), "rwkv": ({"attention_hidden_size": 32}, "recurrent"),
           "lfm2": ({"layer_types": ["conv", "full_attention"] * 2}, "conv"),
           "llama": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic")}
GREEDILY = Sampling(temperature=0.0, max_new_tokens=8)


def module_of(kind, **given):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **given})
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "bias" in name:
                parameter.normal_(std=0.3)
            elif parameter.dim() > 1:
                parameter.mul_(6.0)
    return module


def tokens(count):
    draw = random.Random(count)
    return [draw.randrange(3, 160) for _ in range(count)]


PROMPTS = [tokens(size) for size in (40, 3, 90, 1)] + [tokens(33) + tokens(size) for size in (1, 5, 20, 2)]


def agrees(engine, prompts=PROMPTS):
    """Whether the engine's greedy replies are those of `generate`."""
    drawn = engine.draw(prompts, [str(at) for at in range(len(prompts))], GREEDILY)
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        said = engine.module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                      max_new_tokens=8, min_new_tokens=8, eos_token_id=None, pad_token_id=0)
        expected.append(tuple(said[0, len(prompt):].tolist()))
    return [one.ids for one in drawn] == expected


@pytest.mark.parametrize("kind", EXACT)
def test_an_architecture_says_what_generate_says(kind):
    assert agrees(engine_for(module_of(kind, **EXACT[kind]), 256))


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_that_would_not_be_exact_is_refused_by_name(kind):
    given, reason = REFUSED[kind]
    with pytest.raises(ModelError, match=f"{kind} .*{reason}"):
        engine_for(module_of(kind, **given), 256)


def test_a_decoding_step_that_computes_something_else_is_refused(monkeypatch):
    from dialoom.models.ragged import Rows
    original = Rows.attend
    monkeypatch.setattr(Rows, "attend", lambda self, layer, query, *given: original(self, layer, -query, *given))
    with pytest.raises(ModelError, match="llama gives other log-probabilities"):
        engine_for(module_of("llama"), 256)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_other_precisions_are_run_too(kind, dtype):
    engine = engine_for(tiny_module(kind).to(dtype), 256)
    assert engine.shape.dtype == dtype
    drawn = engine.draw(PROMPTS, [str(at) for at in range(len(PROMPTS))], GREEDILY)
    assert len({one.ids for one in drawn}) > 1 and all(len(one.ids) == 8 for one in drawn)
    assert dtype != torch.float64 or agrees(engine)


def test_dropout_of_attention_matters_in_training_only():
    module = module_of("granite", **EXACT["granite"])
    assert why_not_replaceable(module) is None
    assert why_not_replaceable(module, training=True) == "granite has attention dropout of 0.1"


def lora(**given):
    return peft.LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "target_modules": "all-linear", **given})


ADAPTERS = {"patterns": lora(rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 99}), "dora": lora(use_dora=True),
            "bias": lora(bias="all"), "own bias": lora(lora_bias=True), "norms": lora(modules_to_save=["norm"]),
            "inner norms": lora(modules_to_save=["input_layernorm"]),
            "embedding": lora(target_modules=["embed_tokens"]),
            "whole embedding": lora(modules_to_save=["embed_tokens"]), "tokens": lora(trainable_token_indices=[7]),
            "head": lora(target_modules=["lm_head"]),
            "ia3": peft.IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"],
                                  feedforward_modules=["down_proj"]),
            "norm tuning": peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"])}


def adapted(config):
    """A tiny Llama under an adapter that changes what it says."""
    module = peft.get_peft_model(tiny_module(), config).eval()
    shake(module)
    return module


def shake(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.2)


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.filterwarnings("ignore")
def test_adapters_of_any_kind_are_part_of_what_is_said(name):
    assert agrees(engine_for(adapted(ADAPTERS[name]), 256))


@pytest.mark.filterwarnings("ignore")
def test_adapters_switched_weighed_and_merged_in_place_are_noticed():
    module = adapted(lora())
    engine = engine_for(module, 256)
    assert agrees(engine)
    module.add_adapter("other", lora(r=2))
    module.set_adapter("other")
    shake(module)
    assert agrees(engine)
    module.base_model.set_adapter(["default", "other"])
    assert agrees(engine)
    with module.disable_adapter():
        assert agrees(engine)
    with rescale_adapter_scale(module, 0.1):
        assert agrees(engine)
    module.merge_adapter()
    assert agrees(engine)
    with module.disable_adapter():
        assert agrees(engine)
    assert agrees(engine)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_virtual_tokens_are_refused(config, tmp_path):
    module = peft.get_peft_model(tiny_module(), config(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match="virtual tokens"):
        engine_for(module, 256)
    tiny_model().save(tmp_path / "base")
    module.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match=r"cannot load .*prompt learning adapter"):
        LocalModel.load(tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
