"""Packed rows hold every shared token once and give the log-probabilities, losses and gradients of flat rows."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dialoom.errors import DataError
from dialoom.models.exact import why_not_replaceable
from dialoom.select import Example
from dialoom.store import read_rows
from dialoom.train import tree_attention
from dialoom.train.config import TrainConfig
from dialoom.train.cross_entropy import target_logprobs
from dialoom.train.dpo import dpo_loss
from dialoom.train.pack import (
    TokenPath,
    bins,
    choose_logprobs,
    flat_token_logprobs,
    logprobs_flat,
    logprobs_packed,
    pack,
    packed_token_logprobs,
    packing_refused,
    score_paths,
    unique_tokens,
)
from dialoom.train.rows import example_rows
from dialoom.train.sft import sft
from dialoom.train.tree_attention import Segment, attend, flex
from tests.tiny import tiny_model, tiny_module

VOCABULARY = 400
token_lists = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=12)


def last_tokens(ids: list[int], scored: int = 1) -> TokenPath:
    return TokenPath.of(ids, (len(ids) - scored, len(ids)))


def random_pairs(rng: random.Random, shape: str, longest: int = 12) -> list[tuple[TokenPath, TokenPath]]:
    """Pairs of replies of a random tree: in `bushy` every reply goes on, in `spine` one does, in `star` none."""
    def say() -> list[int]:
        return [rng.randrange(6, VOCABULARY) for _ in range(rng.randint(1, longest))]

    pairs = []
    front = [say()]
    for _ in range({"bushy": 3, "spine": 5, "star": 1}[shape]):
        after = []
        for path in front:
            prompt = path + say()
            start = len(prompt)
            replies = [prompt + say() for _ in range(2 if shape != "star" else 5)]
            replies[1] = [*prompt, replies[0][start], *replies[1][start:]]  # replies often begin alike
            paths = [TokenPath.of(reply, (start, len(reply))) for reply in replies]
            pairs += [(paths[0], path) for path in paths[1:]]
            after += replies if shape == "bushy" else replies[:1]
        front = after
    return pairs


def both(pairs: list[tuple[TokenPath, TokenPath]]) -> list[TokenPath]:
    return [path for pair in pairs for path in pair]


def loss_and_gradients(module: Any, logprobs: Any, paths: list[TokenPath]) -> tuple[float, dict[str, torch.Tensor]]:
    module.zero_grad()
    policy = logprobs(module, paths).view(-1, 2)
    reference = torch.linspace(-3, 3, policy.numel()).view(-1, 2) + policy.detach()
    loss = dpo_loss(policy, reference, 0.3).mean()
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in module.named_parameters()
                         if parameter.grad is not None}


def assert_packed_is_flat(module: Any, paths: list[TokenPath]) -> None:
    with torch.no_grad():
        packed = packed_token_logprobs(module, pack(paths))
        flat = torch.cat([flat_token_logprobs(module, path) for path in paths])
    assert (packed - flat).abs().max() <= 1e-5 * flat.abs().max()
    packed_loss, packed_gradients = loss_and_gradients(module, logprobs_packed, paths)
    flat_loss, flat_gradients = loss_and_gradients(module, logprobs_flat, paths)
    assert packed_loss == pytest.approx(flat_loss, rel=1e-4)
    assert packed_gradients.keys() == flat_gradients.keys()
    scale = max(gradient.norm() for gradient in flat_gradients.values())
    for name, gradient in flat_gradients.items():
        assert (packed_gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7 * scale, name


def test_shared_beginnings_stand_once_in_depth_first_order():
    packed = pack([last_tokens([1, 2, 5]), last_tokens([1, 2, 3, 4]), last_tokens([9, 8]), last_tokens([1, 2, 3, 4])])
    assert packed.ids.tolist() == [1, 2, 3, 4, 5, 9, 8]
    assert packed.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert packed.tree.segments == (Segment(0, 2, 5, True), Segment(2, 4, 4, False), Segment(4, 5, 5, False),
                                    Segment(5, 7, 7, True))
    assert packed.predictors.tolist() == [2, 1, 5] and packed.targets.tolist() == [4, 5, 8]
    assert dict(zip(packed.owner.tolist(), packed.spread.tolist(), strict=True)) == {1: 0, 3: 0, 0: 1, 2: 2}


def test_a_sequence_that_goes_on_is_one_segment_until_it_branches():
    packed = pack([last_tokens([1, 2]), last_tokens([1, 2, 3, 4]), last_tokens([1, 2, 3, 4, 5])])
    assert packed.tree.segments == (Segment(0, 5, 5, True),)
    packed = pack([last_tokens([1, 2]), last_tokens([1, 2, 3, 4]), last_tokens([1, 2, 3, 5])])
    assert packed.tree.segments == (Segment(0, 3, 5, True), Segment(3, 4, 4, False), Segment(4, 5, 5, False))


@given(token_lists)
def test_a_packed_row_has_one_token_for_each_distinct_prefix_and_each_sees_its_own_prefix(lists: list[list[int]]):
    paths = [last_tokens(ids) for ids in lists]
    packed = pack(paths)
    prefixes = {tuple(ids[:stop]) for ids in lists for stop in range(1, len(ids) + 1)}
    assert len(packed.ids) == len(prefixes) == unique_tokens(paths)
    mask = packed.tree.mask(torch.device("cpu"))
    seen = [tuple(packed.ids[mask[at]].tolist()) for at in range(len(packed.ids))]
    assert set(seen) == prefixes
    assert [len(prefix) - 1 for prefix in seen] == packed.positions.tolist()
    assert [seen[at] for at in packed.predictors.tolist()] == [
        prefix[:-1] for prefix in (seen[at] for at in sorted({seen.index(tuple(ids)) for ids in lists}))]


@given(token_lists, st.integers(1, 30), st.booleans())
def test_bins_hold_every_group_once_within_the_budget(lists: list[list[int]], budget: int, packed: bool):
    groups = [[last_tokens(ids), last_tokens([*ids, 1])] for ids in lists]
    found = bins(groups, budget, packed=packed)
    assert sorted(at for row in found for at in row) == list(range(len(groups)))
    for row in found:
        paths = [path for at in row for path in groups[at]]
        assert len(row) == 1 or (unique_tokens(paths) if packed else sum(map(len, paths))) <= budget


def test_a_span_that_cannot_be_scored_is_refused():
    for span in ((0, 2), (2, 2), (2, 5)):
        with pytest.raises(DataError, match="cannot be scored"):
            TokenPath.of([1, 2, 3], span)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("shape", ["bushy", "spine", "star"])
def test_packed_equals_flat_on_random_trees(kind: str, shape: str):
    module = tiny_module(kind)
    for seed in range(4):
        pairs = random_pairs(random.Random(f"{kind}/{shape}/{seed}"), shape)
        assert_packed_is_flat(module, both(pairs))


@settings(max_examples=15, deadline=None)
@given(lists=token_lists)
@example(lists=[[0, 0], [1, 1]])
def test_packed_equals_flat_on_any_sharing(lists: list[list[int]]):
    # in double precision: with one key to look at, the queries' gradient is zero, and in single precision pure rounding
    pairs = [[TokenPath.of(reply, (1, len(reply))) for reply in (ids, [*ids, 1])] for ids in [*lists, lists[0]]]
    assert_packed_is_flat(tiny_module().double(), [path for pair in pairs for path in pair])


def test_packed_equals_flat_under_lora():
    model = tiny_model("qwen3")
    model.add_lora(4, 8, 0.0)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert_packed_is_flat(model.module, both(random_pairs(random.Random(3), "bushy")))


def architecture(kind: str) -> Any:
    """A two-layer model with weights three times as large as they are drawn, so that its predictions differ."""
    import transformers as tf
    shape = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 512}
    grouped = shape | {"num_key_value_heads": 2}
    configs = {"llama": lambda: tf.LlamaConfig(**grouped), "qwen3": lambda: tf.Qwen3Config(**grouped, head_dim=24),
               "olmo2": lambda: tf.Olmo2Config(**grouped, pad_token_id=0),
               "gpt_neox": lambda: tf.GPTNeoXConfig(**shape, rotary_pct=0.5)}
    torch.manual_seed(1)
    module = tf.AutoModelForCausalLM.from_config(configs[kind]())
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    return module.eval()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2", "gpt_neox"])
def test_packed_is_flat_to_1e_5_nats_a_token_and_1e_4_of_every_gradient(kind: str, lora: bool):
    module = architecture(kind)
    if lora:
        from peft import LoraConfig, get_peft_model
        module = get_peft_model(module, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    paths = both(random_pairs(random.Random(f"{kind}/{lora}"), "spine", longest=30))
    assert unique_tokens(paths) < 0.5 * sum(map(len, paths)) and choose_logprobs(module, 400)[1]
    with torch.no_grad():
        packed = packed_token_logprobs(module, pack(paths))
        flat = torch.cat([flat_token_logprobs(module, path) for path in paths])
    assert flat.std() > 0.3 and (packed - flat).abs().max() <= 1e-5
    gradients = [loss_and_gradients(module, logprobs, paths)[1] for logprobs in (logprobs_packed, logprobs_flat)]
    assert gradients[1] and all("lora" in name for name in gradients[1]) == lora
    scale = max(gradient.norm() for gradient in gradients[1].values())
    for name, gradient in gradients[1].items():
        if gradient.norm() > 1e-5 * scale:  # the key bias's is zero but for rounding
            assert (gradients[0][name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_packed_equals_flat_for_learned_positions():
    from transformers import GPT2Config, GPT2LMHeadModel
    torch.manual_seed(0)
    module = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=256,
                                        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)).eval()
    assert packing_refused(module, 100) is None
    assert_packed_is_flat(module, both(random_pairs(random.Random(4), "bushy")))


def test_packed_equals_flat_without_the_cpu_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree_attention, "_forward", None)
    assert_packed_is_flat(tiny_module(), both(random_pairs(random.Random(5), "bushy")))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_three_ways_to_attend_over_a_tree_agree(key_heads: int, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    tree = pack(both(random_pairs(random.Random(9), "bushy", longest=25))).tree
    query, *rest = (torch.randn(1, heads, tree.size, 16) for heads in (4, key_heads, key_heads))
    module = torch.nn.Module()
    by_segments, _ = attend(module, query, *rest, None, tree=tree, scaling=0.3)
    with torch.no_grad():
        by_blocks = flex(query, *rest, tree, 0.3).transpose(1, 2)
    monkeypatch.setattr(tree_attention, "_forward", None)
    by_mask, _ = attend(module, query, *rest, None, tree=tree, scaling=0.3)
    torch.testing.assert_close(by_segments, by_mask, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_blocks, by_mask, rtol=1e-5, atol=1e-5)


def test_intervals_of_a_tree_say_who_sees_whom():
    tree = pack(both(random_pairs(random.Random(10), "bushy"))).tree
    rows, ends = torch.arange(tree.size), tree.ends(torch.device("cpu"))
    assert torch.equal((rows[None] <= rows[:, None]) & (rows[:, None] < ends[None]), tree.mask(torch.device("cpu")))


def test_target_logprobs_are_the_librarys_cross_entropy():
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(700, 8), torch.randn(1000, 8), torch.randint(0, 1000, (700,))
    share = torch.randn(700)
    for capped in (False, True):  # a cap keeps its result for its own backward, a linear layer does not
        found = []
        for logprobs in (target_logprobs, lambda logits, ids: -torch.nn.functional.cross_entropy(logits, ids,
                                                                                                  reduction="none")):
            leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
            logits = torch.nn.functional.linear(*leaves)
            scores = logprobs(torch.tanh(logits) * 5 if capped else logits, targets)
            found.append([scores, *torch.autograd.grad(scores @ share, leaves)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_second_backward_pass_through_the_same_logits_is_an_error_not_a_wrong_gradient():
    module = tiny_module()
    scores = logprobs_packed(module, [TokenPath.of([5, 6, 7], (1, 3))]).sum()
    scores.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.backward()


def test_dialogues_of_one_tree_are_packed_together_and_a_shared_reply_counts_once_for_each(tmp_path: Any):
    stem = [{"role": "user", "content": "Which river flows through Vienna?"},
            {"role": "assistant", "content": "I think it is the Danube."}]
    ends = ("Are you sure?", "No, it is the Rhine."), ("Thank you.", "You are right to ask."), ("Well?", "The Danube.")
    examples = [Example(str(at), [*stem, {"role": "user", "content": asked}, {"role": "assistant", "content": said}],
                        (1, 3), group="tree") for at, (asked, said) in enumerate(ends)]
    model = tiny_model()
    rows = example_rows(model, examples)
    assert [len(row.paths) for row in rows] == [1, 1, 1] and {row.group for row in rows} == {"tree"}
    paths = [path for row in rows for path in row.paths]
    shared = set(pack(paths).spread.tolist()) - set(pack(paths[1:]).spread.tolist())
    assert len(pack(paths).targets) < sum(path.targets for path in paths) and shared
    gradients = []
    for logprobs in (logprobs_packed, logprobs_flat):
        model.module.zero_grad()
        (-logprobs(model.module, paths).sum()).backward()  # each path in full, the shared reply in all three
        gradients.append({name: parameter.grad.clone() for name, parameter in model.module.named_parameters()})
    for name, gradient in gradients[1].items():
        assert (gradients[0][name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    done = sft(model, examples, TrainConfig(max_steps=2, batch_pairs=3), out=tmp_path)
    assert done.tokens == 2 * sum(map(len, paths)) and done.unique_tokens == 2 * unique_tokens(paths) < done.tokens


def test_the_tokens_a_budget_costs_are_told(tmp_path: Any):
    examples = [Example(str(at), [{"role": "user", "content": "Which river flows through Vienna? " * 2},
                                  {"role": "assistant", "content": "The Danube. " * (at + 1)}], (1,), group="tree")
                for at in range(4)]
    paths = [path for row in example_rows(tiny_model(), examples) for path in row.paths]
    whole, cut = (sft(tiny_model(), examples, TrainConfig(max_steps=1, token_budget=budget), out=tmp_path / str(budget))
                  for budget in (4096, max(map(len, paths))))
    assert whole.unique_tokens == whole.unsplit_tokens == cut.unsplit_tokens == unique_tokens(paths)
    assert whole.unsplit_tokens < cut.unique_tokens <= cut.tokens == whole.tokens
    assert read_rows(tmp_path / "4096" / "metrics.jsonl")[-1]["unsplit_tokens"] == whole.unsplit_tokens


def test_packed_equals_flat_in_double_precision():
    module = tiny_module("llama").double()
    paths = both(random_pairs(random.Random(6), "bushy"))
    with torch.no_grad():
        assert (logprobs_packed(module, paths) - logprobs_flat(module, paths)).abs().max() < 1e-4


def test_packed_is_near_flat_in_bfloat16():
    module = tiny_module().to(torch.bfloat16)
    paths = both(random_pairs(random.Random(7), "bushy"))
    assert packing_refused(module, 100) is None
    exact = logprobs_flat(module.float(), paths)
    module.to(torch.bfloat16)
    errors = [(logprobs(module, paths) - exact).abs().mean() for logprobs in (logprobs_packed, logprobs_flat)]
    assert errors[0] < 1.5 * errors[1]
    logprobs_packed(module, paths).sum().backward()


def test_splitting_a_tree_at_its_subtrees_changes_no_score():
    module = tiny_module()
    paths = both(random_pairs(random.Random(8), "bushy"))
    whole, split = (score_paths(module, [*paths, *paths[:3]], budget=budget) for budget in (10_000, 60))
    assert len(bins([[path] for path in paths], 60)) > 3
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(split[-3:], split[:3], rtol=0, atol=0)


def test_generation_attention_is_back_after_packing():
    module = tiny_module()
    before = module.config._attn_implementation
    logprobs_packed(module, [last_tokens([7, 8, 9])])
    assert module.config._attn_implementation == before != tree_attention.NAME


def unpackable(kind: str) -> Any:
    import transformers as tf
    shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    configs = {
        "sliding": lambda: tf.MistralConfig(**shape, sliding_window=8),
        "sinks": lambda: tf.GptOssConfig(**shape, num_local_experts=2, num_experts_per_tok=1, sliding_window=500),
        "recurrent": lambda: tf.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4),
        "rwkv": lambda: tf.RwkvConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, intermediate_size=16),
        "linear": lambda: tf.Qwen3NextConfig(**shape, linear_num_key_heads=2, linear_num_value_heads=2,
                                             linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2,
                                             num_experts_per_tok=1, moe_intermediate_size=8,
                                             shared_expert_intermediate_size=8),
        "capped": lambda: tf.Gemma2Config(**shape, sliding_window=500),
        "rope": lambda: tf.LlamaConfig(**shape, rope_parameters={"rope_type": "dynamic", "factor": 2.0,
                                                                 "rope_theta": 10000.0}),
        "dropout": lambda: tf.LlamaConfig(**shape, attention_dropout=0.1),
    }
    return tf.AutoModelForCausalLM.from_config(configs[kind]()).eval()


@pytest.mark.parametrize(("kind", "words"), [
    ("sliding", "mistral has sliding attention over a window of 8"), ("sinks", "gpt_oss has attention sinks"),
    ("recurrent", "mamba has recurrent"), ("rwkv", "rwkv has recurrent"),
    ("linear", "qwen3_next has recurrent .*linear_attention"),
    ("capped", "gemma2 has capped"), ("rope", "llama has rotary positions .*dynamic"),
    ("dropout", "llama has attention dropout of 0.1")])
def test_models_that_cannot_be_packed_exactly_are_refused_by_name_and_trained_flat(kind: str, words: str):
    module = unpackable(kind)
    with pytest.warns(UserWarning, match=f"flat rows, not packed ones: {words}"):
        logprobs, is_packed = choose_logprobs(module, longest=20)
    assert not is_packed and logprobs is logprobs_flat
    assert logprobs(module, [last_tokens([1, 2, 3, 4], 2)]).isfinite().all()


def test_a_window_wider_than_every_path_is_no_hindrance():
    module = unpackable("sliding")
    assert why_not_replaceable(module, longest=8) is None
    assert_packed_is_flat(module, [TokenPath.of([5, 6, 7, *tail], (3, 8)) for tail in ([1] * 5, [1, 2, 3, 4, 5])])


def test_the_probe_refuses_a_model_that_ignores_the_tree(monkeypatch: pytest.MonkeyPatch):
    module = tiny_module()
    blind = lambda tree, device: torch.ones(tree.size, tree.size).tril().bool()  # noqa: E731
    monkeypatch.setattr(tree_attention.Tree, "mask", blind)
    monkeypatch.setattr(tree_attention, "_forward", None)
    assert "gives other log-probabilities packed than flat" in (packing_refused(module, 20) or "")


def test_packable_models_are_packed_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_logprobs(tiny_module("qwen3"), longest=200) == (logprobs_packed, True)
        assert choose_logprobs(tiny_module(), longest=200, packed=False) == (logprobs_flat, False)
