"""The README.md of an exported data set or model, in the hub's layout: YAML header, then how, what, how good, limits.

A card says only what the run folder knows. Names of files are told without their folders, and nothing a model said is
quoted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dialoom.errors import StoreError
from dialoom.export.trained import GUARD, Run, spec_of
from dialoom.models.load import POCKETS
from dialoom.recipes.run import hash_data
from dialoom.report.table import results_table

UNKNOWN = "unknown"
USER_FILES = ("data", "personas", "eval_personas", "conversations", "general", "strategies", "openings", "questions",
              "demos")
POCKET_LIMITS = ("Everything was said in the small synthetic world of the embedded pocket models. It shows that a "
                 "method works; it is of no use for real tasks.")
LIMITS = ("The dialogues were simulated: who talked, judged and scored were models or rules, named above, with their "
          "errors and leanings. Nobody has read all of them.")
ATTACKS = ("This was found by attacking {model} with behaviours it should refuse: share it only with those who mend "
           "that model.")
FEW_SEEDS = "The figures come from {seeds} and say how sure they are of the items measured, not of another training."
NOT_SERVED = ("Whether a server loads this adapter was not tried, since it sits on {layers} as well; exported with "
              "--merge it is a whole model in the layout of its base.")
NO_FIGURES = "Nothing was measured in this run."
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what its --max-lora-rank takes
DENSE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""Layers on which an adapter has the layout that vLLM reads; of others (experts, routers) that was not tried."""
HOW = """## How it was made

By the recipe `{recipe}` of Dialoom {version}. `{run_file}` holds all settings; this makes the run again:

```sh
dialoom {recipe} -c {run_file}
dialoom export RUN --to {to}{more}
```

- models: {models}
- data: {data}
- seed {seed}; begun {started}; {versions}
"""


def dataset_card(run: Run, arm: str = "", *, to: str, more: str, run_file: str, file: Path, rows: int,
                 kinds: Mapping[str, int], longest: str, licence: str) -> str:
    """The card of an exported data set.

    Args:
        arm: whose rows; "" is the run's main model.
        more: further flags of the export, as typed.
        run_file: the copy of the run's settings beside the card.
        longest: of the longest row, in words.
        licence: as the user said; "" is worked out.
    """
    header = {"license": licence or licence_of(run), "task_categories": ["text-generation"],
              "tags": ["dialoom", "dialogue", run.recipe, to], "size_categories": [_size(rows)],
              "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": file.name}]}]}
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    loader = "parquet" if file.suffix == ".parquet" else "json"
    body = [f"# What {_model(run, arm)} was trained on by `{run.recipe}`",
            f"{rows:,} rows, one for each trained turn: {told}. {longest}",
            f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{loader}", '
            f'data_files="{file.name}", split="train")\n```',
            _how(run, to, more, run_file), _metrics(run, "of the model that was trained on it"),
            _limits(run, attacks=True), _licence(header["license"])]
    return _page(header, body)


def model_card(run: Run, arm: str = "", *, more: str, run_file: str, folder: Path, base: str,
               adapter: Mapping[str, Any] | None, licence: str) -> str:
    """The card of an exported model or adapter.

    Args:
        arm: of the run; "" is its main model.
        folder: where its files lie; they are hashed for the name under which a server should hold it.
        base: the model it was trained from, as PEFT or the hub names it.
        adapter: its `adapter_config.json`; None for a whole model.
    """
    header: dict[str, Any] = {"license": licence or licence_of(run), "library_name": "peft" if adapter else
                              "transformers", "pipeline_tag": "text-generation",
                              "tags": ["dialoom", "dialogue", run.recipe, *(["lora"] if adapter else [])]}
    if _on_hub(base):
        header["base_model"] = base
    done = "hardened" if (run.recipe, arm) == ("dat", GUARD) else "aligned"
    body = [f"# {_model(run, arm)}, {done} by `{run.recipe}`",
            f"{'A LoRA adapter on' if adapter else 'All weights, trained from'} `{_shown(base)}`.",
            _use(folder, base, adapter), _how(run, "model", more, run_file), _metrics(run, "of the run"), _limits(run),
            _licence(header["license"])]
    return _page(header, body)


def planner_card(run: Run, *, more: str, run_file: str, licence: str) -> str:
    """The card of an exported planner, which steers a model and is none."""
    header: dict[str, Any] = {"license": licence or licence_of(run), "library_name": "dialoom",
                              "tags": ["dialoom", "dialogue", run.recipe]}
    model = spec_of(run)
    if _on_hub(base := model.removeprefix("hf:")):
        header["base_model"] = base
    use = (f"```sh\ndialoom chat {_shown(model)} --planner THIS_FOLDER\n```\n\n"
           "```python\nfrom dialoom.models.steering import load_steered\n\n"
           f'model = load_steered("{_shown(model)}", "THIS_FOLDER")\n```')
    body = [f"# A planner that steers {_model(run)}, trained by `{run.recipe}`",
            "A small network that reads the model's state before each reply and puts a few soft tokens beside the "
            "prompt. The model's weights are not changed and not in here. It fits that model alone, and Dialoom is "
            "needed to use it: it is no adapter.",
            use, _how(run, "model", more, run_file), _metrics(run, "of the run"), _limits(run, attacks=True),
            _licence(header["license"])]
    return _page(header, body)


def licence_of(run: Run) -> str:
    """The licence of what a run made, as far as it follows from pocket's; otherwise unknown."""
    return "apache-2.0" if not run.has_user_data and set(run.models) <= set(POCKETS) else UNKNOWN


def _page(header: Mapping[str, Any], body: Sequence[str]) -> str:
    front = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True)
    return "\n".join([f"---\n{front}---\n", *(part.rstrip() + "\n" for part in body)])


def _use(folder: Path, base: str, adapter: Mapping[str, Any] | None) -> str:
    if adapter is None:
        return ('```python\nfrom transformers import AutoModelForCausalLM\n\n'
                'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")\n```')
    # two adapters under one name would share what a server has cached, so the name follows the weights
    name = f"dialoom-{hash_data(folder / 'adapter_model.safetensors')[:8]}"
    rank = next((most for most in VLLM_RANKS if most >= int(adapter.get("r", 16))), VLLM_RANKS[-1])
    imports, below, served = "", f'"{_shown(base)}"', _shown(base)
    if base in POCKETS:
        imports, below, served = "from dialoom.models.load import WEIGHTS\n", f'WEIGHTS / "{base}"', "POCKETS_FOLDER"
    loaded = (f"```python\n{imports}from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
              f"base = AutoModelForCausalLM.from_pretrained({below})\n"
              'model = PeftModel.from_pretrained(base, "THIS_FOLDER")\n```\n\n')
    if others := sorted(_adapted(folder) - DENSE):
        return loaded + NOT_SERVED.format(layers=", ".join(f"`{other}`" for other in others))
    return (f"{loaded}```sh\nvllm serve {served} --enable-lora --max-lora-rank {rank} \\\n"
            f"    --lora-modules {name}=THIS_FOLDER\n```")


def _adapted(folder: Path) -> set[str]:
    """The names of the layers that an adapter sits on, out of its tensors'. Raises StoreError if they are torn."""
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, "np") as tensors:
            return {name.split(".lora_")[0].rpartition(".")[2] for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as wrong:
        raise StoreError(f"{path}: the adapter is torn ({wrong}); train it again, or fetch the run again") from None


def _how(run: Run, to: str, more: str, run_file: str) -> str:
    versions = run.environment.get("versions", {})
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft") if name in versions)
    return HOW.format(
        recipe=run.recipe, version=versions.get("dialoom", "of unknown version"), run_file=run_file, to=to, more=more,
        models=", ".join(map(_shown, run.models)) or "rules only", data=_data(run), seed=run.environment.get("seed"),
        started=run.environment.get("started", "at an unknown time"), versions=named or "versions unknown")


def shared_settings(run: Run) -> str:
    """The run's settings as YAML, the folders of the user's files left out."""
    values = run.config.values()
    for name, value in values.items():
        if isinstance(value, str):
            values[name] = Path(value).name if name in USER_FILES else _shown(value) if value in run.models else value
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def _data(run: Run) -> str:
    if not run.has_user_data:
        return "pocket's own world"
    files = [f"`{Path(str(value)).name}` ({name})" for name in USER_FILES
             if (value := getattr(run.config, name, "")) and value != "pocket"]
    return f"{', '.join(files) or 'files of the user'}; hash {run.environment['data_hash']}"


def _metrics(run: Run, whose: str) -> str:
    rows = [row for row in run.results if isinstance(row, dict)]
    if not rows:
        return f"## Figures\n\n{NO_FIGURES}"
    return f"## Figures {whose}\n\n{results_table(rows, markdown=True).strip()}"


def _limits(run: Run, *, attacks: bool = False) -> str:
    """What to know before use; `attacks`: of what a user's own red-team scenes brought out."""
    found = [LIMITS]
    if attacks and getattr(run.config, "scenes", "") == "redteam" and run.has_user_data:
        found.append(ATTACKS.format(model=_shown(spec_of(run, GUARD))))
    if set(run.models) <= set(POCKETS):
        found.append(POCKET_LIMITS)
    seeds = {row.get("seed") for row in run.results if isinstance(row, dict)} - {None}
    if seeds:
        found.append(FEW_SEEDS.format(seeds="one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"))
    return "## Limits\n\n" + " ".join(found)


def _licence(name: Any) -> str:
    if name != UNKNOWN:
        return f"## Licence\n\n{name}"
    return ("## Licence\n\nNot worked out: that of the data and of the models named above decides, also for what the "
            "models said. Look them up, and export again with --license.")


def _model(run: Run, arm: str = "") -> str:
    return _shown(spec_of(run, arm) or "a model")


def _shown(spec: str) -> str:
    """A model as a stranger may see it: a path without its folders."""
    kind, colon, rest = spec.rpartition(":") if spec.startswith(("hf:", "run:", "openai:")) else ("", "", spec)
    parts = [part if _on_hub(part) else Path(part).name or part for part in rest.split("+")]
    return f"{kind}{colon}{'+'.join(parts)}"


def _on_hub(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not name.startswith(".") and not Path(name).exists()


def _size(rows: int) -> str:
    for most, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < most:
            return name
    return "1M<n<10M"
