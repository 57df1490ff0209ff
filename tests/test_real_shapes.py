"""Shapes of real models with random weights: adapters on every architecture, precision, quantised weights, recipes."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_architectures import EXACT, module_of, shake
from tiny import save_tiny, tiny_model, tiny_tokenizer

from dialoom.config import load_config
from dialoom.errors import ConfigError, ModelError, TrainingError
from dialoom.models.base import GREEDY, ChatModel
from dialoom.models.load import load_model
from dialoom.models.local import LocalModel
from dialoom.models.place import Place
from dialoom.models.steering import load_steered
from dialoom.recipes.pbt_config import PRESETS as PBT
from dialoom.select import Pair
from dialoom.train.activations import recomputed
from dialoom.train.config import TrainConfig
from dialoom.train.dpo import dpo

USUAL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
EXPERTS = {"q_proj", "k_proj", "v_proj", "o_proj", "experts", "base_layer", "gate"}
LAYERS = {"llama": USUAL, "qwen3": USUAL, "mistral": USUAL, "gemma3_text": USUAL, "olmo2": USUAL,
          "gpt2": {"c_attn", "c_proj", "c_fc"}, "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
          "mixtral": EXPERTS, "qwen3_moe": EXPERTS}
CHAT = [{"role": "user", "content": "Which city is the capital of Norway?"}]
PAIRS = [Pair(str(at), [*CHAT, {"role": "assistant", "content": "Oslo " * at}, {"role": "user", "content": "Sure?"}],
              "I am sure.", "No, Rome.", group="one") for at in range(1, 4)]
has_bitsandbytes = importlib.util.find_spec("bitsandbytes") is not None


def shaped(kind: str) -> LocalModel:
    return LocalModel(module_of(kind, **{**EXACT[kind], "vocab_size": 400}), tiny_tokenizer(), name=kind)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_an_adapter_sits_on_all_linear_layers_but_the_head_and_is_trained_saved_and_loaded(kind: str, tmp_path: Path):
    model = shaped(kind)
    model.base = str(tmp_path / "base")
    model.save(tmp_path / "base")
    model.add_lora(rank=2)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.module.named_parameters()
            if "lora_" in name} == LAYERS[kind]
    shake(model.module)  # a fresh adapter changes nothing
    said = model.logprobs([model.reply_ids(CHAT, "Oslo.")])
    settings = TrainConfig(tune="lora", max_steps=2, lr=1e-2, schedule="constant", warmup=0)
    frozen = {name: parameter.clone() for name, parameter in model.module.named_parameters() if "lora_" not in name}
    assert dpo(model, PAIRS, settings, out=tmp_path / "work").steps == 2
    assert all(torch.equal(frozen[name], parameter) for name, parameter in model.module.named_parameters()
               if "lora_" not in name)
    trained = model.logprobs([model.reply_ids(CHAT, "Oslo.")])
    assert trained != pytest.approx(said, abs=1e-3)
    model.save(tmp_path / "adapter")
    again = load_model(f"hf:{tmp_path / 'base'}+{tmp_path / 'adapter'}", device="cpu")
    assert isinstance(again, LocalModel)
    assert again.logprobs([again.reply_ids(CHAT, "Oslo.")]) == pytest.approx(trained, abs=1e-4)


def test_dropout_on_fused_experts_is_left_out_and_said():
    with pytest.warns(UserWarning, match=r"mixtral: its experts lie in fused tensors \(down_proj, gate_up_proj\)"):
        shaped("mixtral").add_lora(rank=2, dropout=0.05)


def test_layers_that_are_not_there_are_named():
    with pytest.raises(ModelError, match="no adapter can be put on fc_in"):
        shaped("llama").add_lora(targets=["fc_in"])


def test_only_the_named_layers_get_an_adapter(tmp_path: Path):
    model = tiny_model()
    dpo(model, PAIRS, TrainConfig(tune="lora", lora_targets=("q_proj", "v_proj"), max_steps=1), out=tmp_path)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name, _ in model.module.named_parameters()
            if "lora_" in name} == {"q_proj", "v_proj"}


# ---------------------------------------------------------------------------------------------- memory


def kept_bytes(model: LocalModel, wanted: bool) -> int:
    kept: dict[int, int] = {}

    def note(tensor: Any) -> Any:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    ids = torch.arange(3, 203)[None]
    with recomputed(model.module, wanted), torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        model.module(input_ids=ids, use_cache=False).logits.sum()
    return sum(kept.values()) - sum(parameter.numel() * 4 for parameter in model.module.parameters())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradient_checkpointing_keeps_less_for_the_same_gradients(mode: str):
    model = tiny_model()
    getattr(model.module, mode)()
    assert kept_bytes(model, True) < 0.5 * kept_bytes(model, False)
    found = []
    for wanted in (True, False):
        with recomputed(model.module, wanted):
            model.module(input_ids=torch.arange(3, 203)[None], use_cache=False).logits.square().sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.module.named_parameters()})
        model.module.zero_grad()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_model_whose_layers_cannot_be_computed_again_is_named():
    module = torch.nn.Linear(2, 2)
    module.config = type("config", (), {"model_type": "odd"})()
    with pytest.raises(TrainingError, match="odd has no layers that can be computed again"), recomputed(module):
        pass


def test_weights_are_float32_on_a_cpu_unless_another_type_is_asked_for(tmp_path: Path):
    folder = save_tiny(tmp_path)
    kinds = {dtype: LocalModel.load(folder, device=Place("cpu", dtype)).module.dtype  # type: ignore[arg-type]
             for dtype in ("auto", "bfloat16", "float16")}
    assert kinds == {"auto": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def test_a_model_spread_over_devices_is_run_plainly():
    model = tiny_model()
    expected = model.chat([CHAT], GREEDY, ["a"])
    model.module.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": "disk"}
    spread = LocalModel(model.module, model.tokenizer)
    with pytest.warns(UserWarning, match="read whole: llama has its layers on several devices"):
        assert spread.chat([CHAT], GREEDY, ["a"]) == expected


# ---------------------------------------------------------------------------------------------- 4 and 8 bits


@pytest.mark.skipif(has_bitsandbytes, reason="bitsandbytes is installed")
def test_quantising_without_its_library_says_what_to_install(tmp_path: Path):
    with pytest.raises(ModelError, match=r"--quantize 4bit needs bitsandbytes.*pip install 'dialoom\[quantize\]'"):
        LocalModel.load(save_tiny(tmp_path), device=Place("cpu", quantize="4bit"))


def test_training_all_quantised_weights_is_refused_before_a_run():
    with pytest.raises(ConfigError, match=r"quantize is 4bit.*--sft.tune lora and --dpo.tune lora"):
        load_config(type(PBT["pocket"]), PBT["pocket"], None, {"quantize": "4bit"})
    tuned = {"quantize": "4bit", "sft.tune": "lora", "dpo.tune": "lora", "device": "cpu"}
    assert load_config(type(PBT["pocket"]), PBT["pocket"], None, tuned).place == Place("cpu", quantize="4bit")


@pytest.mark.skipif(not has_bitsandbytes, reason="needs bitsandbytes")
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_on_quantised_weights_is_trained_and_goes_back_onto_them(kind: Any, tmp_path: Path):
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 400}
    base = LocalModel(module_of("llama", **shape), tiny_tokenizer(), name="base")
    base.save(tmp_path / "base")
    model = load_model(f"hf:{tmp_path / 'base'}", device=Place("cpu", quantize=kind))
    assert isinstance(model, LocalModel) and model.module.is_quantized
    assert model.module.get_memory_footprint() < 0.6 * base.module.get_memory_footprint()
    rows = [base.reply_ids(CHAT, "Oslo."), base.reply_ids(CHAT, "I am sure.")]
    assert model.logprobs(rows) == pytest.approx(base.logprobs(rows), rel=0.5)
    assert all(reply.text for reply in model.chat([CHAT] * 3, GREEDY, ["a", "b", "c"]))
    with pytest.raises(ConfigError, match="quantised"):
        dpo(model, PAIRS, TrainConfig(max_steps=1), out=tmp_path / "full")
    before = model.fingerprint
    dpo(model, PAIRS, TrainConfig(tune="lora", max_steps=3, lr=1e-2, warmup=0), out=tmp_path / "work")
    assert model.fingerprint != before
    model.save(tmp_path / "adapter")
    again = load_model(f"run:{tmp_path / 'adapter'}", device=Place("cpu", quantize=kind))
    assert isinstance(again, LocalModel)
    assert again.fingerprint == model.fingerprint
    assert again.logprobs(rows) == pytest.approx(model.logprobs(rows), rel=1e-3)


# ---------------------------------------------------------------------------------------------- recipes

LORA = {"tune": "lora", "lora_rank": 2, "max_steps": 2, "batch_pairs": 4, "gradient_checkpointing": True}
RECIPES: dict[str, dict[str, Any]] = {
    "pbt": {"speakers": ["pocket", "pocket-small"], "partner": "pocket-small", "train_partner": False, "limit": 12,
            "eval_questions": 3, "max_new_tokens": 24, "sft": LORA, "dpo": LORA},
    "aloe": {"responder": "pocket", "train_count": 4, "eval_count": 2, "turns": 3, "shift_at": 2, "max_new_tokens": 24,
             "baselines": ["reminder"], "sft": LORA, "dpo": LORA},
    "ideas": {"corpus_count": 12, "opening_count": 4, "eval_count": 2, "max_pairs": 3, "max_new_tokens": 24,
              "weighed": 0, "simulator_sft": {"max_steps": 20, "batch_pairs": 6}, "sft": LORA},
    "ditto": {"max_authors": 1, "train_demos": 3, "pool": ["zero_shot", "sft"], "beside": [], "test_samples": 1,
              "max_new_tokens": 24, "lora_rank": 2, "gradient_checkpointing": True,
              "sft": {"max_steps": 2, "stop_loss": 0.0},
              "dpo": {"steps": 2, "resample_every": 1, "samples": 2, "pairs_per_demo": 2}},
    "dat": {"mapping": "pca", "action": 4, "tokens": 2, "train_scenes": 6, "valid_scenes": 2, "test_scenes": 3,
            "constants": 2, "constant_scenes": 2, "rounds": 2, "max_new_tokens": 16, "transfer": ["pocket-small"],
            "td3": {"steps": 4, "batch_size": 8}}}


def made_by(recipe: str, out: Path, spec: str) -> ChatModel:
    """What a run made, as it talks: a model of its own; DAT's is the one it began with, under the planner."""
    if recipe != "dat":
        return load_model(f"run:{out}", device="cpu")
    steered = load_steered(spec, out, device="cpu")
    assert len(steered.chat([CHAT], GREEDY, ["a"])[0].notes["action"]) == steered.steering.planner.shape.action
    return steered


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_recipe_file_runs_on_pocket_and_on_llama_and_qwen3_in_the_hubs_layout(recipe: str, tmp_path: Path):
    import yaml
    from test_template_shapes import tokenizer_of
    from tiny import tiny_module

    from dialoom.cli import main

    settings = tmp_path / "recipe.yaml"
    settings.write_text(yaml.safe_dump({"device": "cpu", **RECIPES[recipe]}))
    specs = ["pocket"]
    for kind, shape in (("llama", "llama3"), ("qwen3", "qwen3")):
        LocalModel(tiny_module(kind, context=4096), tokenizer_of(shape), name=kind).save(tmp_path / kind)
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
            file.name for file in (tmp_path / kind).iterdir()}
        specs.append(f"hf:{tmp_path / kind}")
    for at, spec in enumerate(specs):
        out = tmp_path / f"run{at}"
        assert main([recipe, "-c", str(settings), "--model", spec, "--out", str(out)]) == 0
        assert (out / "results.json").stat().st_size > 100
        trained, base = made_by(recipe, out, spec), load_model(spec, device="cpu")
        assert trained.fingerprint != base.fingerprint
        assert len(trained.chat([CHAT], GREEDY, ["a"])) == 1
