"""`--model` specifications: what they load and what they say when they cannot."""

import subprocess
import sys

import pytest
from tiny import save_tiny, tiny_model

from dialoom.errors import ModelError
from dialoom.models import load
from dialoom.models.endpoint import EndpointModel
from dialoom.models.load import load_model
from dialoom.models.local import LocalModel


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "base+one")  # a plus in a folder's name is no adapter


def _adapter(folder, base, name):
    model = LocalModel(tiny_model().module, tiny_model().tokenizer, name=name, base=base)
    model.add_lora(rank=2)
    model.save(folder)
    return model


def test_a_path_and_a_path_with_an_adapter_load(base, tmp_path):
    plain = load_model(f"hf:{base}", device="cpu")
    assert plain.name == f"hf:{base}" and not plain.has_adapter
    simple = save_tiny(tmp_path / "simple")
    _adapter(tmp_path / "adapter", str(simple), "x")
    adapted = load_model(f"hf:{simple}+{tmp_path / 'adapter'}", device="cpu")
    assert adapted.has_adapter and adapted.base == str(simple)


def test_pocket_comes_from_the_package_or_says_how_it_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "WEIGHTS", tmp_path)
    with pytest.raises(ModelError, match="dialoom pocket build"):
        load_model("pocket")
    save_tiny(tmp_path / "pocket-small")
    model = load_model("pocket-small", device="cpu")
    assert model.name == model.base == "pocket-small"


def test_a_run_gives_its_model_or_its_adapter_on_the_base_it_names(tmp_path, monkeypatch, base):
    monkeypatch.setattr(load, "WEIGHTS", tmp_path / "weights")
    save_tiny(tmp_path / "weights/pocket")
    made = _adapter(tmp_path / "lora/adapter", "pocket", "pocket")
    found = load_model(f"run:{tmp_path / 'lora'}", device="cpu")
    assert found.base == "pocket" and found.fingerprint == made.fingerprint
    tiny_model(seed=3).save(tmp_path / "full/model")
    assert load_model(f"run:{tmp_path / 'full'}", device="cpu").fingerprint == tiny_model(seed=3).fingerprint
    assert load_model(f"run:{tmp_path / 'full/model'}", device="cpu").fingerprint == tiny_model(seed=3).fingerprint
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="neither model/ nor adapter/"):
        load_model(f"run:{tmp_path / 'empty'}")
    with pytest.raises(ModelError, match="is no folder"):
        load_model(f"run:{tmp_path / 'nowhere'}")


def test_an_endpoint_is_named_without_being_called(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    model = load_model("openai:some/model")
    assert isinstance(model, EndpointModel) and model.name == "openai:some/model"


@pytest.mark.parametrize(("spec", "hint"), [
    ("poket", "did you mean pocket?"), ("pocket_small", "did you mean pocket-small?"),
    ("hff:x/y", "did you mean hf:x/y?"), ("opena:gpt", "did you mean openai:gpt?"),
    ("meta/llama", "did you mean hf:meta/llama?"), ("hf:", "nothing stands after the colon"), ("xyzzy", "models are"),
])
def test_an_unknown_model_is_answered_with_a_near_miss(spec, hint):
    with pytest.raises(ModelError) as caught:
        load_model(spec)
    assert hint in str(caught.value) and "openai:<model>" in str(caught.value)


def test_a_folder_given_bare_is_recognised(base):
    with pytest.raises(ModelError) as caught:
        load_model(str(base))
    assert f"did you mean hf:{base}?" in str(caught.value)


def test_a_model_that_cannot_be_had_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="cannot load 'hf:nobody/nothing': it is no folder here") as caught:
        load_model("hf:nobody/nothing")
    assert "\n" not in str(caught.value)
    folder = save_tiny(tmp_path / "torn")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(ModelError, match="its weights are torn"):
        load_model(f"hf:{folder}", device="cpu")


def test_pickled_weights_are_never_read(tmp_path):
    folder = save_tiny(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"would run code")
    with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
        load_model(f"hf:{folder}", device="cpu")


def test_importing_the_models_loads_no_torch():
    code = ("import sys, dialoom.models, dialoom.models.load, dialoom.models.scripted, dialoom.models.endpoint, "
            "dialoom.models.local; assert not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
