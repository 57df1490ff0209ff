"""`dialoom export`: rows in the layouts of the field, models with cards; read back by the tools they are made for.

Runs are small folders written by hand, one for each recipe; that `datasets` and TRL read the rows is tested where they
are installed (`make bench` puts them beside the virtual environment), and skipped aloud where they are not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from dialoom.cli import main
from dialoom.dialogue import DialogueTree, Scenario, Turn
from dialoom.errors import ConfigError, DataError, StoreError
from dialoom.export import LAYOUTS, export_run
from dialoom.export.layouts import uniform
from dialoom.models.local import LocalModel
from dialoom.models.steering import Planner, Steering, UpMapping, load_steered
from dialoom.recipes.aloe import AloeConfig
from dialoom.recipes.dat import DatConfig
from dialoom.recipes.ditto import DittoConfig
from dialoom.recipes.ideas import IdeasConfig
from dialoom.recipes.ideas_deduce import ACCEPTED
from dialoom.recipes.pbt import PBTConfig
from dialoom.select import Pair
from dialoom.store import TreeLog, read_rows, write_rows
from tests.test_engine_architectures import EXACT, module_of
from tests.tiny import tiny_model, tiny_tokenizer

BESIDE = Path(__file__).parents[1] / "runs" / "bench" / "site-packages"
TRL = pytest.mark.skipif(not (BESIDE / "trl").is_dir(), reason="TRL is not installed; `make bench` does so")


def quiet(line: str) -> None:
    """Says nothing."""


def pair(at: int, kind: str, **notes: Any) -> Pair:
    prompt = [{"role": "user", "content": f"What is {at}?"}, {"role": "assistant", "content": "Let me see."},
              {"role": "user", "content": "Well?"}]
    return Pair(f"c{at}-r{at}", prompt, f"It is {at}.", "I do not know.", kind, f"tree{at}", 2.0, 1.0,
                {"parent": None if at == 0 else f"p{at}", "chosen_turn": f"c{at}", "rejected_turn": f"r{at}",
                 "level": at, **notes})


def run_folder(path: Path, recipe: str, config: Any, pairs: list[Pair], data_hash: str = "") -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(config.to_yaml())
    (path / "env.json").write_text(json.dumps({"recipe": recipe, "data_hash": data_hash, "seed": 1,
                                               "started": "2026-01-01", "versions": {"dialoom": "0.1.0"}}))
    row = {"eval": "flipflop", "subject": "pbt", "metric": "overall", "value": 0.75, "low": 0.7, "high": 0.8, "n": 40,
           "seed": 1}
    (path / "results.json").write_text(json.dumps([row]))
    if pairs:
        write_rows(path / "pairs.jsonl", [one.to_row() for one in pairs])
    return path


def pbt_run(path: Path) -> Path:
    pairs = [pair(at, "accept" if at % 2 else "resist", speaker="pocket") for at in range(6)]
    return run_folder(path, "pbt", PBTConfig(), pairs)


def aloe_run(path: Path) -> Path:
    """Pairs, and the trees that its general chats are counted by."""
    found = run_folder(path, "aloe", AloeConfig(general_share=0.0), [pair(at, "alignment") for at in range(3)])
    with TreeLog(found / "trees.jsonl") as log:
        log.add_tree(DialogueTree(Scenario("person", "Hello"), "tree0"))
    return found


def ditto_run(path: Path) -> Path:
    """Two pairs won by the one demonstration, one won by a newer sample over an older."""
    demo = {"chosen_turn": "demo", "author": "Ada"}
    pairs = [pair(0, "expert", **demo), pair(1, "expert", **demo), pair(2, "replay", author="Ada")]
    return run_folder(path, "ditto", DittoConfig(), pairs)


def ideas_run(path: Path) -> Path:
    """One dialogue of two pairs for each arm."""
    found = run_folder(path, "ideas", IdeasConfig(arms=("ideas", "plain")), [])
    for arm, log in (("ideas", found / "trees.jsonl"), ("plain", found / "arms" / "plain" / "trees.jsonl")):
        tree = DialogueTree(Scenario("opening", "What is a ferry?"), f"tree-{arm}")
        for at, (speaker, text) in enumerate([("assistant", f"A vehicle, says {arm}."), ("user", "List its parts."),
                                              ("assistant", "A seat and a frame.")]):
            tree.add(Turn(f"{arm}{at}", f"{arm}{at - 1}" if at else None, speaker, text,
                          {ACCEPTED: True} if speaker == "user" else {}, {"fine": 1.0}))
        with TreeLog(log) as sink:
            sink.add_tree(tree)
    (found / "stages").mkdir()
    pairs = {arm: {"opening": 2} for arm in ("ideas", "plain")}
    (found / "stages" / "deduce.json").write_text(json.dumps({"value": {"pairs": pairs}}))
    return found


def dat_run(path: Path, *, harden: bool = True, data_hash: str = "", **settings: Any) -> Path:
    """A red-team run: its planner, the pairs of its hardening and the hardened guard."""
    config, model = DatConfig(scenes="redteam", harden=harden, **settings), tiny_model()
    found = run_folder(path, "dat", config, [], data_hash)
    Steering(UpMapping.pca(model, 4), Planner.of(model, 4, hidden=(8,))).save(found / "planner")
    if harden:
        (found / "harden").mkdir()
        write_rows(found / "harden" / "pairs.jsonl", [pair(at, "attack").to_row() for at in range(2)])
        model.base = "pocket"
        model.add_lora(2)
        model.save(found / "harden" / "guard")
    return found


RUNS: dict[str, Callable[[Path], Path]] = {"pbt": pbt_run, "aloe": aloe_run, "ditto": ditto_run, "ideas": ideas_run}


# ------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("recipe", RUNS)
@pytest.mark.parametrize("to", [name for name in LAYOUTS if name != "parquet"])
def test_every_recipe_exports_in_every_layout_with_a_card(recipe: str, to: str, tmp_path: Path):
    file = export_run(RUNS[recipe](tmp_path / "run"), to, tmp_path / "out", log=quiet)
    rows = read_rows(file)
    assert rows and len({row["id"] for row in rows}) == len(rows)
    assert all(row.keys() == rows[0].keys() for row in rows)
    for row in rows:
        for part in ("prompt", "chosen", "rejected", "completion"):
            assert all(set(message) == {"role", "content"} for message in row.get(part, []))
    header = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])
    assert header["license"] == "apache-2.0" and header["configs"][0]["data_files"][0]["path"] == "train.jsonl"


def test_preference_rows_keep_ids_scores_and_turns(tmp_path: Path):
    rows = {row["id"]: row for row in read_rows(export_run(pbt_run(tmp_path / "run"), "trl", tmp_path / "out",
                                                           log=quiet))}
    assert rows["c3-r3"] == {
        "id": "c3-r3", "kind": "accept", "tree": "tree3", "speaker": "pocket", "parent": "p3", "level": 3,
        "prompt": [{"role": "user", "content": "What is 3?"}, {"role": "assistant", "content": "Let me see."},
                   {"role": "user", "content": "Well?"}],
        "chosen": [{"role": "assistant", "content": "It is 3."}],
        "rejected": [{"role": "assistant", "content": "I do not know."}],
        "score_chosen": 2.0, "score_rejected": 1.0, "chosen_turn": "c3", "rejected_turn": "r3"}
    assert rows["c0-r0"]["parent"] == ""  # no null among texts: a reader that guesses types would stumble


def test_targets_are_one_row_a_turn(tmp_path: Path):
    rows = read_rows(export_run(ditto_run(tmp_path / "run"), "sft", tmp_path / "out", log=quiet))
    assert [row["id"] for row in rows] == ["demo"]  # twice chosen; a sample that won is no demonstration
    rows = read_rows(export_run(ideas_run(tmp_path / "ideas"), "sft", tmp_path / "out", log=quiet))
    assert [row["id"] for row in rows] == ["ideas0", "ideas2"]
    assert rows[1]["prompt"][-1] == {"role": "user", "content": "List its parts."}
    assert rows[1]["completion"] == [{"role": "assistant", "content": "A seat and a frame."}]
    assert rows[1]["score_fine"] == 1.0


def test_an_arm_is_exported_by_its_name_and_an_unknown_one_is_refused(tmp_path: Path):
    rows = read_rows(export_run(ideas_run(tmp_path / "run"), "sharegpt", tmp_path / "out", arm="plain", log=quiet))
    assert rows[0]["conversations"][-1] == {"from": "gpt", "value": "A vehicle, says plain."}
    with pytest.raises(ConfigError, match="did you mean plain"):
        export_run(tmp_path / "run", "sft", tmp_path / "out", arm="plane", log=quiet)
    accepting = read_rows(export_run(pbt_run(tmp_path / "pbt"), "sft", tmp_path / "out", arm="accept_only", log=quiet))
    assert {row["kind"] for row in accepting} == {"accept"}


def test_the_rows_of_a_dat_run_are_those_its_defender_was_hardened_on(tmp_path: Path):
    run = dat_run(tmp_path / "run")
    rows = read_rows(export_run(run, "trl", tmp_path / "out", arm="guard", log=quiet))
    assert [(row["id"], row["kind"]) for row in rows] == [("c0-r0", "attack"), ("c1-r1", "attack")]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# What pocket-guard was trained on by `dat`" in card and "--to trl --arm guard" in card
    with pytest.raises(StoreError, match=r"--to model exports it, --arm guard has what the defender was hardened on"):
        export_run(run, "trl", tmp_path / "none", log=quiet)
    with pytest.raises(StoreError, match=r"--to model exports it, only a run with --harden has any"):
        export_run(dat_run(tmp_path / "soft", harden=False), "sft", tmp_path / "none", arm="guard", log=quiet)
    (run / "harden" / "pairs.jsonl").unlink()
    with pytest.raises(StoreError, match=r"holds no pairs yet \(no harden/pairs.jsonl\); run the same command again"):
        export_run(run, "trl", tmp_path / "none", arm="guard", log=quiet)
    assert not (tmp_path / "none").exists()


def test_what_attacks_on_ones_own_model_brought_out_is_marked_as_such(tmp_path: Path):
    mine = dat_run(tmp_path / "mine", data="behaviours.csv", partner="hf:org/mine", judge="pocket", data_hash="ab")
    pockets = dat_run(tmp_path / "pocket")
    for to, arm, marked in (("model", "", True), ("trl", "guard", True), ("model", "guard", False)):
        for run, expected in ((mine, marked), (pockets, False)):
            export_run(run, to, tmp_path / "out", arm=arm, log=quiet)
            card = (tmp_path / "out" / "README.md").read_text()
            assert ("attacking hf:org/mine" in card) is ("only with those who mend" in card) is expected


def test_a_reply_that_won_and_lost_has_no_label_and_is_told_of(tmp_path: Path):
    both = [pair(0, "alignment"), pair(1, "alignment", chosen_turn="r0")]
    found = run_folder(tmp_path / "run", "aloe", AloeConfig(general_share=0.0), both)
    with TreeLog(found / "trees.jsonl") as log:
        log.add_tree(DialogueTree(Scenario("person", "Hello"), "tree0"))
    said: list[str] = []
    rows = read_rows(export_run(found, "kto", tmp_path / "out", log=said.append))
    assert {row["id"]: row["label"] for row in rows} == {"c0": True, "r1": False}
    assert any("1 replies won in one pair and lost in another" in line for line in said)


def test_columns_are_of_one_type_and_never_only_null():
    rows = uniform([{"a": None, "b": 1, "c": None, "d": "x"}, {"a": "x", "b": 0.5, "c": None}])
    assert rows == [{"a": "", "b": 1.0, "d": "x"}, {"a": "x", "b": 0.5, "d": ""}]


def test_parquet_holds_the_rows_of_trl(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed; `pip install dialoom[parquet]`")
    run = pbt_run(tmp_path / "run")
    file = export_run(run, "parquet", tmp_path / "parquet", log=quiet)
    assert parquet.read_table(file).to_pylist() == read_rows(export_run(run, "trl", tmp_path / "trl", log=quiet))


def test_parquet_without_pyarrow_says_what_to_install_and_writes_nothing(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'dialoom\[parquet\]'"):
        export_run(pbt_run(tmp_path / "run"), "parquet", tmp_path / "out", log=quiet)
    assert not (tmp_path / "out").exists()


def test_a_row_that_trl_would_cut_is_warned_of(tmp_path: Path):
    long = Pair("c-r", [{"role": "user", "content": "word " * 2000}], "Yes.", "No.", "alignment", "t", notes={})
    found = run_folder(tmp_path / "run", "aloe", AloeConfig(general_share=0.0), [long])
    with TreeLog(found / "trees.jsonl") as log:
        log.add_tree(DialogueTree(Scenario("person", "Hello"), "tree0"))
    said: list[str] = []
    export_run(found, "trl", tmp_path / "out", log=said.append)
    assert any("max_length" in line and "about 2,5" in line for line in said), said


# ------------------------------------------------------------------------------------------------ refusals, cards


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = pbt_run(tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    cases = [((tmp_path / "none", "trl", tmp_path / "out"), "holds no run"),
             ((run, "tlr", tmp_path / "out"), "did you mean trl?"),
             ((run, "trl", run), "is the run's own folder"),
             ((run, "trl", tmp_path / "full"), "holds files that no export made"),
             ((run, "model", tmp_path / "out"), "let its training finish first")]
    for (source, to, out), message in cases:
        assert main(["export", str(source), "--to", to, "--out", str(out)]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", str(run), "--to", "trl", "--out", str(tmp_path / "out")]) == 0
    assert main(["export", str(run), "--to", "sft", "--out", str(tmp_path / "out")]) == 0  # once more
    (run / "pairs.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no pair"):
        export_run(run, "trl", tmp_path / "out", log=quiet)


def test_a_card_tells_command_data_metrics_limits_and_licence_but_no_folder(tmp_path: Path):
    secret = tmp_path / "home" / "someone" / "trivia.csv"
    config = PBTConfig(data=str(secret), partner="hf:" + str(tmp_path / "home" / "models" / "my-model"))
    run = run_folder(tmp_path / "run", "pbt", config, [pair(at, kind, speaker="pocket") for at, kind in
                                                       enumerate(["accept", "resist"])], data_hash="ab12")
    export_run(run, "trl", tmp_path / "out", arm="accept_only", log=quiet)
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("dialoom pbt -c run.yaml", "--to trl --arm accept_only", "`trivia.csv` (data)", "hash ab12",
                 "75.0 [70.0, 80.0]", "## Limits", "hf:my-model", "license: unknown", "one seed"):
        assert part in card, part
    assert str(tmp_path) not in card + (tmp_path / "out" / "run.yaml").read_text()
    export_run(run, "trl", tmp_path / "out", licence="cc-by-4.0", log=quiet)
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()


# ------------------------------------------------------------------------------------------------ models


def adapter_run(path: Path) -> tuple[Path, Any]:
    """A run that trained an adapter on a tiny model, and that model with the adapter on."""
    run, base = pbt_run(path / "run"), path / "base"
    tiny_model().save(base)
    model = tiny_model()
    model.base = str(base)
    model.add_lora(4, 8)
    for name, parameter in model.module.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    model.save(run / "adapter")
    return run, model


def test_an_adapter_loads_in_peft_and_is_named_as_vllm_wants_it(tmp_path: Path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run, model = adapter_run(tmp_path)
    out = export_run(run, "model", tmp_path / "out", log=quiet)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, str(out))
    kept, ours = loaded.state_dict(), model.module.state_dict()
    assert all((kept[name] == ours[name]).all() for name in ours if "lora_" in name)
    # vLLM's reader takes <prefix>.<module>.lora_A|lora_B.weight of linear layers, ranks from the config, and no more
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["bias"] == "none" and not config["modules_to_save"]
    assert not config["use_dora"] and isinstance(config["target_modules"], list)
    layers = dict(base.named_modules())
    tensors = load_file(out / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * model.module.config.num_hidden_layers
    for name, tensor in tensors.items():
        assert name.startswith("base_model.model.") and name.endswith((".lora_A.weight", ".lora_B.weight")), name
        module, side, _ = name.removeprefix("base_model.model.").rsplit(".", 2)
        linear = layers[module]
        assert any(module.endswith(target) for target in config["target_modules"])
        wanted = (4, linear.in_features) if side == "lora_A" else (linear.out_features, 4)
        assert tuple(tensor.shape) == wanted
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card and "--max-lora-rank 8" in card and "dialoom-" in card


def test_a_merged_adapter_is_a_whole_model_that_says_the_same(tmp_path: Path):
    import torch
    from transformers import AutoModelForCausalLM

    run, model = adapter_run(tmp_path)
    out = export_run(run, "model", tmp_path / "out", merge=True, log=quiet)
    assert not (out / "adapter_config.json").exists() and (out / "tokenizer.json").is_file()
    whole = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([[5, 9, 21, 7]])
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, model.module(ids).logits, atol=1e-5)
    assert "library_name: transformers" in (out / "README.md").read_text()


def test_the_models_of_arms_and_of_authors_are_found_by_name(tmp_path: Path):
    run = pbt_run(tmp_path / "run")
    tiny_model().save(run / "arms" / "accept_only-pocket")
    with pytest.raises(StoreError, match="--arm may be accept_only-pocket"):
        export_run(run, "model", tmp_path / "out", log=quiet)
    out = export_run(run, "model", tmp_path / "out", arm="accept_only-pocket", log=quiet)
    assert (out / "model.safetensors").is_file()


def test_a_planner_is_exported_as_what_it_is_and_steers_from_there(tmp_path: Path):
    run = dat_run(tmp_path / "run")
    out = export_run(run, "model", tmp_path / "out", log=quiet)
    assert load_steered(tiny_model(), out).fingerprint == load_steered(tiny_model(), run).fingerprint
    card = (out / "README.md").read_text()
    assert "# A planner that steers pocket, trained by `dat`" in card and "library_name: dialoom" in card
    assert "dialoom chat pocket --planner THIS_FOLDER" in card and "vllm" not in card and "peft" not in card.lower()
    with pytest.raises(ConfigError, match=r"--merge adds an adapter .* a planner is none"):
        export_run(run, "model", tmp_path / "merged", merge=True, log=quiet)
    assert not (tmp_path / "merged").exists()
    guard = export_run(run, "model", tmp_path / "guard", arm="guard", log=quiet)
    assert "# pocket-guard, hardened by `dat`" in (guard / "README.md").read_text()
    assert (guard / "adapter_model.safetensors").is_file()


def test_no_server_is_named_for_an_adapter_whose_layout_none_was_seen_to_read(tmp_path: Path):
    run, _ = adapter_run(tmp_path)
    usual = (export_run(run, "model", tmp_path / "usual", log=quiet) / "README.md").read_text()
    assert "vllm serve" in usual and "was not tried" not in usual
    model = LocalModel(module_of("mixtral", **{**EXACT["mixtral"], "vocab_size": 400}), tiny_tokenizer(), name="moe")
    model.base = "org/mixture"
    model.add_lora(2)
    experts = pbt_run(tmp_path / "experts")
    model.save(experts / "adapter")
    card = (export_run(experts, "model", tmp_path / "out", log=quiet) / "README.md").read_text()
    assert "vllm" not in card and "was not tried, since it sits on `base_layer`, `experts`, `gate` as well" in card
    assert "PeftModel.from_pretrained" in card and "base_model: org/mixture" in card
    (experts / "adapter" / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(StoreError, match="the adapter is torn"):
        export_run(experts, "model", tmp_path / "torn", log=quiet)


# ------------------------------------------------------------------------------------------------ other tools


def in_another_process(script: str, *arguments: Any) -> Any:
    """What a script prints as JSON, run where `datasets` and TRL can be imported."""
    root = Path(__file__).parents[1]
    env = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{BESIDE}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


LOAD = """
import json, sys
from datasets import load_dataset
found = {folder: load_dataset(folder, split="train", cache_dir=sys.argv[1]).to_list() for folder in sys.argv[2:]}
print(json.dumps(found))
"""


@TRL
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_datasets_loads_what_is_exported(tmp_path: Path):
    run = pbt_run(tmp_path / "run")
    files = {str(tmp_path / to): export_run(run, to, tmp_path / to, log=quiet) for to in LAYOUTS}
    loaded = in_another_process(LOAD, tmp_path / "cache", *files)
    for folder, file in files.items():
        as_trl = tmp_path / "trl" / "train.jsonl"
        assert loaded[folder] == read_rows(file if file.suffix == ".jsonl" else as_trl), folder


STEP = """
import json, sys
import datasets, trl
from tests.tiny import tiny_model
cache, moved = sys.argv[1], {}
for kind, file in zip(("DPO", "SFT", "KTO"), sys.argv[2:]):
    data = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
    model = tiny_model()
    before = model.module.model.embed_tokens.weight.detach().clone()
    settings = getattr(trl, kind + "Config")(
        output_dir=cache + kind, per_device_train_batch_size=2, max_steps=1, learning_rate=1e-3, report_to=[],
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, logging_steps=1)
    beside = {} if kind == "SFT" else {"ref_model": tiny_model().module}
    trainer = getattr(trl, kind + "Trainer")(model=model.module, args=settings, train_dataset=data,
                                             processing_class=model.tokenizer, **beside)
    trainer.train()
    moved[kind] = float((model.module.model.embed_tokens.weight - before).abs().max())
print(json.dumps(moved))
"""


@TRL
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trl_makes_a_step_on_what_is_exported(tmp_path: Path):
    run = pbt_run(tmp_path / "run")
    files = [export_run(run, to, tmp_path / to, log=quiet) for to in ("trl", "sft", "kto")]
    moved = in_another_process(STEP, tmp_path / "cache", *files)
    assert set(moved) == {"DPO", "SFT", "KTO"} and min(moved.values()) > 0
