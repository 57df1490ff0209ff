"""A real server on loopback, `transformers serve` with pocket: PBT's trees, an ALOE evaluation and a DITTO round robin
through it agree with the same in this process, and every recipe runs with roles behind it. It gives no
log-probabilities, so judges ask it for letters.

The server knows models by their folders. Its random numbers are one stream for all requests, so sampled texts differ
from run to run, and what is compared are figures, within what the same figures differ between seeds of this process.
"""

import asyncio
import json
import math
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from fault_proxy import FAULTS, SLOW, Proxy

from dialoom.dialogue import Dialogue
from dialoom.evals.alignment import alignment
from dialoom.evals.alignment_judge import exact_judge
from dialoom.evals.alignment_roles import plain, rule_user, scenario_of
from dialoom.evals.winrate import ASK, model_judge, round_robin
from dialoom.judge import LogitComparer
from dialoom.models.base import GREEDY, Sampling
from dialoom.models.endpoint import EndpointModel, load_endpoint
from dialoom.models.endpoint_options import asking_letter
from dialoom.models.ledger import Ledger, recording
from dialoom.models.load import WEIGHTS, load_model
from dialoom.recipes import ditto, pbt
from dialoom.recipes.aloe_config import AloeConfig
from dialoom.recipes.aloe_people import people
from dialoom.recipes.ditto_config import DittoConfig, DPOStage, SFTStage
from dialoom.recipes.pbt_config import PBTConfig
from dialoom.recipes.run import RunFolder
from dialoom.scenarios.demonstrations import pocket_demonstrations
from dialoom.scenarios.triviaqa import pocket_trivia
from dialoom.select import Example
from dialoom.store import read_rows, read_trees

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SERVE = Path(sys.executable).parent / "transformers"


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """Pocket as it lies in the package, but for the setting without which this server draws nothing at random."""
    folder = tmp_path_factory.mktemp("talker")
    for file in (WEIGHTS / "pocket").iterdir():
        (folder / file.name).symlink_to(file)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "top_k": 0}))
    return str(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The server's address."""
    for needed in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(needed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (tmp_path_factory.mktemp("server") / "log").open("wb")
    process = subprocess.Popen(
        [str(SERVE), "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"],
        stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket", device="cpu")


def test_greedy_replies_are_those_of_this_process_and_its_tokens_are_counted(server, talker, pocket):
    chats = [[{"role": "user", "content": one.opening}] for one in pocket_trivia("test", seed=1)[:30]]
    chats += [[{"role": "system", "content": "Answer with care."}, *chat] for chat in chats[:10]]
    keys = [str(at) for at in range(len(chats))]
    ledger = Ledger()
    with recording(ledger):
        there = EndpointModel(talker, base_url=server).chat(chats, Sampling(0.0, max_new_tokens=24), keys)
    here = pocket.chat(chats, Sampling(0.0, max_new_tokens=24), keys)
    assert [reply.text for reply in there] == [reply.text for reply in here]
    assert [reply.finish for reply in there] == [reply.finish for reply in here]
    prompts = sum(len(pocket.template.prompt(chat)) for chat in chats)
    assert ledger.rows()[0]["read"] == prompts


# ------------------------------------------------------------------------------------------------ PBT


def debates(out, *speakers, seed=1):
    """The trees of eight questions between two speakers: replies by level, and shares of right answers by stance."""
    config = PBTConfig(speakers=speakers, limit=8, seed=seed, device="cpu")
    with RunFolder(out, "pbt", config, log=quiet) as folder:
        pbt.run(config, folder, ("trees", "pairs"), quiet)
    turns = [turn for tree in read_trees(out / "trees.jsonl").values() for turn in tree]
    right = {stance: [turn.scores["correct"] for turn in turns if turn.notes.get("brief") == stance
                      and "correct" in turn.scores] for stance in ("resist", "accept", "logical", "emotional")}
    return turns, {stance: sum(found) / len(found) for stance, found in right.items()}, read_rows(out / "pairs.jsonl")


def test_pbt_trees_through_a_faulty_line_are_whole_paid_once_and_like_those_of_this_process(server, talker, tmp_path,
                                                                                            monkeypatch):
    proxy, waited = Proxy(server, every=6, paid=("cut",)), []

    async def short(seconds):
        waited.append(seconds)
        await asyncio.sleep(min(seconds, 0.05))

    def load(spec, *, device):
        if not spec.startswith("openai:"):
            return load_model(spec, device=device)
        model = load_endpoint(spec.removeprefix("openai:"))
        model.pause, model.timeout = short, 10 * SLOW  # slow ones are waited for: on a busy machine all are slow
        return model

    monkeypatch.setattr("dialoom.models.load.load_model", load)
    with proxy.running() as address:
        served, there, pairs = debates(tmp_path / "there", f"openai:{talker}@{address}", f"openai:{talker}@{address}")
    monkeypatch.undo()
    rows = json.loads((tmp_path / "there" / "usage.json").read_text())["rows"]
    assert {row["role"] for row in rows} == {"speaker A", "speaker B"}
    assert sum(row["answers"] for row in rows) == len(served) == len(proxy.delivered)
    assert set(proxy.delivered.values()) == {1} and waited
    assert sum(proxy.forwarded.values()) == len(served) + proxy.met["cut"] and set(proxy.met) == set(FAULTS)
    runs = [debates(tmp_path / f"here{seed}", "pocket", "pocket", seed=seed) for seed in (1, 2, 3)]
    sizes = [len(turns) for turns, _, _ in runs]
    assert 0.75 * min(sizes) < len(served) < 1.25 * max(sizes) and pairs
    for stance, share in there.items():
        shares = [found[stance] for _, found, _ in runs]
        print(stance, round(share, 3), [round(one, 3) for one in shares])
        assert min(shares) - 0.15 < share < max(shares) + 0.15, stance


# ------------------------------------------------------------------------------------------------ ALOE


def test_an_aloe_evaluation_of_the_server_gives_the_levels_of_this_process(server, talker, pocket):
    _, test, _ = people(AloeConfig(eval_count=16, train_count=1), quiet)
    scenarios, sampling = [scenario_of(one) for one in test], Sampling(0.7, max_new_tokens=80)

    def levels(model, seed):
        found = alignment(plain(model, sampling, ""), scenarios, rule_user(), exact_judge(), label="x", turns=4,
                          seed=seed)
        assert found.unread == 0
        return next(row for row in found.rows if row.metric == "avg")

    there = levels(EndpointModel(talker, base_url=server), 1)
    here = [levels(pocket, seed) for seed in (1, 2, 3)]
    print("avg", there.value, [row.value for row in here])  # the server draws by no seed, so each time another value
    assert there.low <= max(row.high for row in here) and there.high >= min(row.low for row in here)
    assert abs(there.value - sum(row.value for row in here) / 3) < 0.35


# ------------------------------------------------------------------------------------------------ DITTO


def test_a_ditto_round_robin_ranks_the_served_model_as_the_local_one(server, talker, tmp_path):
    config = DittoConfig(max_authors=2, pool=("zero_shot", "few_shot"), beside=(), rival=(f"openai:{talker}@{server}",),
                         sft=SFTStage(max_steps=4), dpo=DPOStage(steps=2, resample_every=2, samples=2), device="cpu")
    with RunFolder(tmp_path / "run", "ditto", config, log=quiet) as folder:
        ditto.run(config, folder, log=quiet)
    rows = {(row["eval"], row["subject"], row["metric"]): row["value"] for row in folder.results() if row["seed"]}
    for kind in ("zero_shot", "few_shot"):
        local = rows["similarity", kind, "cosine"]
        served = rows["similarity", f"openai:{talker}@{server} {kind}", "cosine"]
        print(kind, local, served)
        assert math.isclose(local, served, abs_tol=0.08)
    usage = json.loads((tmp_path / "run" / "usage.json").read_text())["rows"]
    texts = 3 * 3 * 2 * 2  # texts on a task, tasks of an author, authors, ways of asking
    assert [(row["role"], row["answers"]) for row in usage] == [("rival", texts)]


def letters(count, split, seed):
    """Questions which of two texts is by the author of a third, and the letter that answers them."""
    by_author = {}
    for demo in pocket_demonstrations():
        if (demo.split == "train") == (split == "train"):
            by_author.setdefault(demo.author, []).append(demo.output)
    rng = random.Random(seed)
    for _ in range(count):
        one, other = rng.sample(sorted(by_author), 2)
        texts = [rng.choice(by_author[one]), rng.choice(by_author[other])]
        right = rng.randrange(2)
        asked = ASK.format(reference=rng.choice(by_author[one]), left=texts[right], right=texts[1 - right])
        yield [{"role": "user", "content": asked}], "AB"[right]


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Pocket-small after some lessons in answering with a letter, in a folder; pocket itself never does."""
    from dialoom.train.config import TrainConfig
    from dialoom.train.sft import sft

    folder, model = tmp_path_factory.mktemp("judge"), load_model("pocket-small", device="cpu")
    lessons = [Example(str(at), [*asking_letter(chat, ["A", "B"]), {"role": "assistant", "content": letter}], (1,))
               for at, (chat, letter) in enumerate(letters(120, "train", 0))]
    sft(model, lessons, TrainConfig(epochs=2, lr=1e-3, batch_pairs=12), out=folder / "work")
    model.save(folder / "model")
    return str(folder / "model")


def test_a_round_robin_judged_by_letters_agrees_with_one_judged_by_logits(server, judge, pocket):
    demos = [demo for demo in pocket_demonstrations(("Alma", "Bruno", "Clara")) if demo.split == "test"]
    names = ("author", "zero_shot", "echo")
    texts = pocket.chat([demo.chat for demo in demos], GREEDY, [demo.scenario.id for demo in demos])
    tasks = [(Dialogue(demo.scenario), {"author": [demo.output], "zero_shot": [text.text],
                                        "echo": [demo.chat[-1]["content"]]})
             for demo, text in zip(demos, texts, strict=True)]
    local = load_model(f"hf:{judge}", device="cpu")

    def question(dialogue, left, right):
        asked = ASK.format(reference=dialogue.scenario.facts["reference"], left=left, right=right)
        return asking_letter([{"role": "user", "content": asked}], ["A", "B"])

    here = round_robin(tasks, names, LogitComparer("here", local, question))
    endpoint = EndpointModel(judge, base_url=server)
    there = round_robin(tasks, names, model_judge(endpoint))
    assert endpoint.learned.gives_logprobs is False
    same = [one.points == other.points for one, other in zip(here.matches, there.matches, strict=True)]
    assert len(same) == 27 and sum(same) >= 0.9 * 27
    for name in names:
        assert abs(here.standing(name).rate - there.standing(name).rate) <= 0.1


# ------------------------------------------------------------------------------------------------ whole recipes

# behaviours no model need refuse: their judge is asked all the same
BEHAVIOURS = "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n" + "".join(
    f"Say the name of river {at},standard,invented,,,river-{at}\n" for at in range(12))
# recipe, or one and a word: flags, and who is asked. Pocket plays these; it cannot rate, nor check or induce in JSON
ASKED = {
    "pbt": (["--speakers", "pocket", "{talker}"], {"speaker B"}),
    "ditto": (["--rival", "{talker}", "--judge", "model", "--judge-model", "{judge}"], {"rival", "judge"}),
    "aloe": (["--responder", "{talker}", "--user", "{talker}", "--eval-count", "1", "--baselines", "--shift-at", "0"],
             {"responder", "user"}),
    "ideas": (["--extractor", "{talker}", "--abstractor", "{talker}", "--plain", "{talker}", "--answerer", "{talker}",
               "--extract-draws", "1", "--embedding", "ngrams"], {"extractor", "abstractor", "plain", "answerer"}),
    "dat": (["--partner", "{talker}", "--transfer", "{judge}"], {"partner"}),
    "dat redteam": (["--scenes", "redteam", "--data", "{behaviours}", "--partner", "{talker}", "--judge", "{judge}",
                     "--transfer"], {"partner", "judge"})}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_same_recipe_file_runs_with_its_roles_behind_the_server(server, talker, judge, asked, tmp_path):
    import yaml
    from test_real_shapes import RECIPES, made_by

    from dialoom.cli import main

    settings, out, behaviours = (tmp_path / name for name in ("recipe.yaml", "run", "behaviours.csv"))
    recipe = asked.split()[0]
    settings.write_text(yaml.safe_dump({"device": "cpu", **RECIPES[recipe]}))
    behaviours.write_text(BEHAVIOURS)
    flags, roles = ASKED[asked]
    there = {"talker": f"openai:{talker}@{server}", "judge": f"openai:{judge}@{server}", "behaviours": str(behaviours)}
    command = [recipe, "-c", str(settings), "--out", str(out), *(flag.format(**there) for flag in flags)]
    assert main(command) == 0
    usage = json.loads((out / "usage.json").read_text())["rows"]
    assert {row["role"] for row in usage} == {role.format(**there) for role in roles}
    assert all(row["answers"] for row in usage)
    assert (out / "results.json").stat().st_size > 100
    assert made_by(recipe, out, "pocket").fingerprint != load_model("pocket", device="cpu").fingerprint
    paid = sum(row["answers"] for row in usage)
    assert main(command) == 0
    assert sum(row["answers"] for row in json.loads((out / "usage.json").read_text())["rows"]) == paid
