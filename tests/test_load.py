"""`--model` specifications: what they load and what they say when they cannot."""

import shutil
import subprocess
import sys

import pytest
from tiny import save_tiny, tiny_model

from dialoom.audit.tokens import load_reader
from dialoom.cli import main
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


def test_a_run_that_holds_no_single_model_says_what_to_give_in_its_place(tmp_path):
    dat, ditto = tmp_path / "dat", tmp_path / "ditto"
    (dat / "planner").mkdir(parents=True)
    (dat / "planner" / "steering.json").write_text("{}")
    for folder in (dat, dat / "planner"):
        with pytest.raises(ModelError, match=f"holds a planner.* with --planner {folder}$"):
            load_model(f"run:{folder}")
    for name in ("Bruno", "Alma"):
        tiny_model().save(ditto / "authors" / name / "adapter")
    (ditto / "authors" / "Clara").mkdir()  # whose training has not finished
    with pytest.raises(ModelError, match=rf"each of its authors; give one, as run:{ditto}/authors/Alma \(Alma, B"):
        load_model(f"run:{ditto}")
    assert load_model(f"run:{ditto / 'authors' / 'Alma'}", device="cpu").name.endswith("Alma")
    for folder in (dat, ditto):
        with pytest.raises(ModelError, match=f"did you mean run:{folder}"):
            load_model(str(folder))


def test_a_spec_is_made_to_hold_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base+one", "plain", "adapter"):
        (tmp_path / name).mkdir()
    for given, expected in (("hf:plain", f"hf:{tmp_path}/plain"), ("hf:./base+one", f"hf:{tmp_path}/base+one"),
                            ("hf:plain+adapter", f"hf:{tmp_path}/plain+{tmp_path}/adapter"),
                            ("hf:org/model+adapter", f"hf:org/model+{tmp_path}/adapter"), ("hf:org/model",) * 2,
                            ("run:runs/one", f"run:{tmp_path}/runs/one"), ("pocket", "pocket"), ("openai:plain",) * 2):
        assert load.absolute(given) == expected


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


def test_a_model_for_which_no_chat_can_be_written_ends_a_run_before_anybody_is_asked(tmp_path, capsys, monkeypatch):
    def reached(*_, **__):
        raise AssertionError("a run was begun")

    monkeypatch.setattr("dialoom.recipes.ideas.run", reached)
    save_tiny(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    asks = ["--extractor", "openai:m@http://127.0.0.1:9/v1", "--out", str(tmp_path / "run")]
    for stage in ([], ["extract"]):
        for role in ("--model", "--simulator", "--judge"):
            assert main(["ideas", *stage, role, f"hf:{tmp_path / 'base'}", *asks]) == 2
            assert "hf:" in (said := capsys.readouterr().err) and "the tokenizer has no chat template" in said
    assert main(["ideas", "--model", f"hf:{tmp_path / 'none'}", *asks]) == 2
    assert "cannot load" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert main(["ideas", "--model", f"hf:{tmp_path / 'none'}", "--dry-run", *asks]) == 0
    with pytest.raises(AssertionError, match="a run was begun"):  # the model may lie where the later stages are done
        main(["ideas", "extract", "--model", f"hf:{tmp_path / 'none'}", *asks])


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


@pytest.mark.parametrize("damage", [b"", b"half", b"\x93\x00 not this", b'{"a": [1]}\n', b"[]"])
@pytest.mark.parametrize("read", [load_model, load_reader])
def test_a_damaged_file_of_a_model_is_one_line_or_the_model_can_do_without_it(tmp_path, base, damage, read):
    """A reader opens no weights; settings for generation may be missing; other JSON may be settings, too."""
    for file in sorted(base.iterdir()):
        folder = shutil.copytree(base, tmp_path / file.stem)
        data = file.read_bytes()
        (folder / file.name).write_bytes(data[:len(data) // 2] if damage == b"half" else damage)
        try:
            model = read(f"hf:{folder}")
        except ModelError as error:
            assert str(folder) in str(error) and "\n" not in str(error) and len(str(error)) < 500
        else:
            assert file.name not in ("tokenizer.json", "config.json", "chat_template.jinja")
            said = model.tokenizer.decode(model.template.prompt([{"role": "user", "content": "Which river?"}]))
            assert "Which river?" in said


def test_importing_the_models_loads_no_torch():
    code = ("import sys, dialoom.models, dialoom.models.load, dialoom.models.scripted, dialoom.models.endpoint, "
            "dialoom.models.local; assert not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
