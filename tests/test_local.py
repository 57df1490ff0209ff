"""The local model on random tiny Llama and Qwen3 shapes: equal to transformers, the same in any batch."""

import json
import math

import pytest
import torch
from tiny import save_tiny, tiny_model

from dialoom.errors import ModelError
from dialoom.models import decode
from dialoom.models.base import GREEDY, ChatModel, Sampling, ScoringModel
from dialoom.models.local import LocalModel

KINDS = ("llama", "qwen3")
CHATS = [[{"role": "system", "content": "Be brief." * (at % 2 + 1)},
          {"role": "user", "content": "The capital of " + "France and Norway " * at}] for at in range(5)]
SIBLINGS = [chat for chat in CHATS for _ in range(3)]
KEYS = [f"key {at}" for at in range(len(SIBLINGS))]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model(request.param)


def test_greedy_text_is_that_of_transformers_generate(model):
    replies = model.chat(SIBLINGS, Sampling(temperature=0, max_new_tokens=60), KEYS)
    assert any(reply.finish == "stop" for reply in replies) or len({reply.tokens for reply in replies}) > 1
    for chat, reply in zip(SIBLINGS[::3], replies[::3], strict=True):
        prompt = torch.tensor([model.prompt_ids(chat)])
        expected = model.module.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=60,
                                         do_sample=False, eos_token_id=5, pad_token_id=0)
        assert list(reply.tokens) == expected[0, prompt.shape[1]:].tolist()


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=60), Sampling(0.7, top_p=0.9, max_new_tokens=40),
                                      Sampling(1.3, top_k=5, max_new_tokens=40)])
def test_the_same_key_gives_the_same_text_in_any_batch_and_order(model, sampling):
    together = model.chat(SIBLINGS, sampling, KEYS)
    assert model.chat(SIBLINGS[::-1], sampling, KEYS[::-1])[::-1] == together
    assert [model.chat([chat], sampling, [key])[0] for chat, key in zip(SIBLINGS, KEYS, strict=True)] == together
    budgeted = LocalModel(model.module, model.tokenizer, name="small batches", batch_tokens=250)
    assert budgeted.chat(SIBLINGS, sampling, KEYS) == together
    assert len({reply.text for reply in together}) > 10


def test_a_reply_ends_at_the_end_token_and_its_row_leaves_the_batch(model):
    sampling = Sampling(temperature=3.0, max_new_tokens=150)
    replies = model.chat(SIBLINGS * 4, sampling, [f"{at}" for at in range(60)])
    stopped = [reply for reply in replies if reply.finish == "stop"]
    assert stopped and len({len(reply.tokens) for reply in stopped}) > 1
    for reply in replies:
        assert (reply.tokens[-1] == 5) == (reply.finish == "stop")
        assert 5 not in reply.tokens[:-1] and "<|end|>" not in reply.text


def test_nucleus_and_top_k_keep_the_likeliest_tokens_only():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(200, 4)
    noise = torch.linspace(0, 0.999999, 200, dtype=torch.float64)

    def shares(sampling):
        return (torch.bincount(decode.pick(logits, sampling, noise), minlength=4) / 200).tolist()

    assert shares(Sampling()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.006)
    assert shares(Sampling(top_p=0.7)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.006)
    assert shares(Sampling(top_p=0.85)) == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], abs=0.006)
    assert shares(Sampling(top_k=1)) == [1, 0, 0, 0]
    assert shares(Sampling(temperature=0.5)) == pytest.approx([0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365,
                                                               0.0025 / 0.365], abs=0.006)


def test_noise_depends_on_the_key_alone_and_not_on_the_length():
    assert decode.uniforms("a", 5).tolist() == decode.uniforms("a", 9).tolist()[:5]
    assert decode.uniforms("a", 5).tolist() != decode.uniforms("b", 5).tolist()


def test_equal_prompts_are_computed_once_without_an_engine(monkeypatch):
    model = tiny_model("mistral")
    with pytest.warns(UserWarning, match="read whole"):
        model.chat(CHATS[:1], GREEDY, ["a"])
    seen = []
    original = model.module.forward
    monkeypatch.setattr(model.module, "forward", lambda **given: (seen.append(tuple(given["input_ids"].shape)),
                                                                  original(**given))[1])
    model.chat([CHATS[0]] * 8 + [CHATS[1]] * 8, Sampling(max_new_tokens=2), [f"{at}" for at in range(16)])
    assert seen[0][0] == 2 and seen[1][0] > 12  # some end at once


def _slow_logprob(model, ids, start):
    table = model.module(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(table[at - 1, ids[at]].item() for at in range(start, len(ids)))


def test_log_probabilities_of_replies_are_those_of_the_plain_forward_pass(model):
    rows = [model.reply_ids(chat, reply) for chat, reply in zip(CHATS, ["Paris.", "No", "I think Oslo is right.", "a",
                                                                        ""], strict=True)]
    rows.append((rows[0][0], len(rows[0][0])))
    assert model.logprobs(rows) == pytest.approx([_slow_logprob(model, *row) for row in rows], abs=2e-4)
    with pytest.raises(ModelError, match="cannot be scored"):
        model.logprobs([([1, 2, 3], 4)])


def test_options_are_weighed_by_their_whole_text(model):
    options = ["yes", "no, never", "Oslo"]
    scores = []
    for chat in CHATS:
        prompt = model.prompt_ids(chat)
        rows = [[*prompt, *model.template.encode(option)] for option in options]
        scores.append([_slow_logprob(model, ids, len(prompt)) for ids in rows])
    for found, row in zip(model.choose(CHATS, options), scores, strict=True):
        total = math.log(sum(math.exp(value - max(row)) for value in row)) + max(row)
        assert found == pytest.approx([value - total for value in row], abs=2e-4)
    letters = model.choose(CHATS, ["A", "B"])
    assert all(sum(math.exp(value) for value in row) == pytest.approx(1) for row in letters)
    with pytest.raises(ModelError, match="not empty"):
        model.choose(CHATS, ["yes", ""])


def test_a_prompt_too_long_for_the_context_is_cut_counted_and_said_once(recwarn):
    model = tiny_model(context=128)
    long = [{"role": "system", "content": "Be kind."}, *[{"role": role, "content": "Oslo is the capital of Norway " * 2}
                                                         for role in ("user", "assistant") * 5][:-1]]
    with pytest.warns(UserWarning, match="truncated prompts: 2"):
        replies = model.chat([long, CHATS[0], long], Sampling(max_new_tokens=20), ["a", "b", "c"])
    assert model.truncated == 2 and len(replies) == 3
    model.chat([long], GREEDY, ["a"])
    assert model.truncated == 3 and len(recwarn) == 0
    ids, start = model.reply_ids(long, "Paris")
    assert len(ids) <= 128 and ids[start:] == model.reply_ids(CHATS[0], "Paris")[0][-len(ids) + start:]
    with pytest.raises(ModelError, match="leave no room"):
        model.chat([CHATS[0]], Sampling(max_new_tokens=128), ["a"])


def test_a_batch_that_finds_no_memory_is_halved_and_gives_the_same_text(monkeypatch):
    model = tiny_model("mistral")
    small = LocalModel(model.module, model.tokenizer, batch_tokens=2000)
    with pytest.warns(UserWarning, match="read whole"):
        expected = model.chat(SIBLINGS, Sampling(max_new_tokens=20), KEYS)
        small.chat(CHATS[:1], GREEDY, ["a"])
    original = decode.draw

    def scarce(module, prompts, *rest):
        if len(prompts) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(module, prompts, *rest)

    monkeypatch.setattr(decode, "draw", scarce)
    assert small.chat(SIBLINGS, Sampling(max_new_tokens=20), KEYS) == expected
    assert small.batch_tokens < 2000
    small.batch_tokens = 1 << 20
    with pytest.raises(torch.OutOfMemoryError):
        small.chat(SIBLINGS * 8, Sampling(max_new_tokens=20), KEYS * 8)


def test_a_broken_model_is_named_before_it_speaks():
    model = tiny_model()
    with torch.no_grad():
        model.module.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="NaN"):
        model.chat([CHATS[0]], GREEDY, ["a"])


def test_no_chats_give_no_replies_and_a_missing_key_is_refused(model):
    assert model.chat([], GREEDY, []) == [] and model.choose([], ["a", "b"]) == [] and model.logprobs([]) == []
    with pytest.raises(ModelError, match="one key for each chat"):
        model.chat([CHATS[0]], GREEDY, [])
    assert isinstance(model, ChatModel) and isinstance(model, ScoringModel)


def _train_a_step(model):
    ids, _ = model.reply_ids(CHATS[0], "Paris.")
    optimizer = torch.optim.AdamW(model.trainable(), lr=0.01)
    model.module(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
    optimizer.step()


def test_the_fingerprint_follows_the_weights_and_not_the_object():
    one, same, other = tiny_model(seed=1), tiny_model(seed=1), tiny_model(seed=2)
    assert one.fingerprint == same.fingerprint == one.clone().fingerprint != other.fingerprint
    before, copied = one.fingerprint, one.clone()
    _train_a_step(one)
    assert one.fingerprint != before == copied.fingerprint
    same.tokenizer.chat_template += " "
    assert same.fingerprint != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_adapter_is_trained_switched_off_saved_and_loaded(kind, tmp_path):
    base = save_tiny(tmp_path / "base", kind)
    model = LocalModel.load(base, device="cpu")
    plain = model.chat(CHATS, GREEDY, KEYS[:5])
    bare = model.fingerprint
    model.add_lora(rank=4)
    assert all("lora" in name for name, parameter in model.module.named_parameters() if parameter.requires_grad)
    assert model.chat(CHATS, GREEDY, KEYS[:5]) == plain
    _train_a_step(model)
    trained = model.logprobs([model.reply_ids(CHATS[0], "Paris.")])
    with model.without_adapter():
        assert model.fingerprint == bare
        assert model.chat(CHATS, GREEDY, KEYS[:5]) == plain
        assert model.logprobs([model.reply_ids(CHATS[0], "Paris.")])[0] < trained[0]
    assert model.fingerprint != bare
    model.save(tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"} <= {
        path.name for path in (tmp_path / "adapter").iterdir()}
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    again = LocalModel.load(base, adapter=tmp_path / "adapter", device="cpu")
    assert again.fingerprint == model.fingerprint
    assert again.logprobs([model.reply_ids(CHATS[0], "Paris.")]) == pytest.approx(trained, abs=1e-5)
    with pytest.raises(ModelError, match="has an adapter already"):
        again.add_lora()
    again.merge()
    assert again.logprobs([model.reply_ids(CHATS[0], "Paris.")]) == pytest.approx(trained, abs=1e-3)
    again.add_lora(rank=2)


def test_a_full_model_survives_saving(tmp_path):
    model = tiny_model("qwen3")
    _train_a_step(model)
    model.save(tmp_path)
    again = LocalModel.load(tmp_path, device="cpu")
    assert again.fingerprint == model.fingerprint
    assert again.chat(CHATS, Sampling(), KEYS[:5]) == model.chat(CHATS, Sampling(), KEYS[:5])
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    with pytest.raises(ModelError, match="no adapter to switch off"), model.without_adapter():
        pass


def test_speaking_leaves_a_model_in_training_mode_and_able_to_learn(model):
    model.module.train()
    model.chat(CHATS, GREEDY, KEYS[:5])
    assert model.module.training
    model.module.eval()
    _train_a_step(model.clone())
