"""The public names that users import, pinned: a name that comes or goes is a decision, not an accident."""

import ast
import importlib
from pathlib import Path

import pytest

PUBLIC = {
    "answers": ["AGREE", "AnswerJudge", "DISAGREE", "EXTRACT", "extract_answer", "gold_of", "is_correct",
                "latest_answer", "parse_final_answer", "partner_answer", "same_answer"],
    "config": ["C", "Config", "MAX_VALUES", "Values", "differences", "fields", "load_config", "near_miss", "read_yaml"],
    "dialogue": ["Brief", "Chat", "Dialogue", "DialogueTree", "Message", "Scenario", "Turn", "chat_view",
                 "content_id", "turn_id"],
    "embed": ["CHUNK", "CachedEmbedder", "DECIMALS", "EMBEDDERS", "Embedder", "LEADERS", "Ngrams", "SLACK",
              "SentenceTransformer", "Vectors", "cosine", "greedy_distinct", "leader_clusters", "load_embedder",
              "nearest"],
    "judge": ["Comparer", "Judge", "LogitComparer", "LogitJudge", "Preference", "RuleJudge", "Verdict",
              "ask_until_read"],
    "select": ["Example", "Item", "Pair", "balance", "pair_of", "sibling_pairs", "subtree_sum", "transitions"],
    "simulate": ["FINISH", "ModelSpeaker", "NO_BRIEF", "Request", "ScriptedSpeaker", "Speaker", "TreeSink", "grow",
                 "own_first", "speaking"],
    "files": ["Log", "Row", "StoreWarning", "append_row", "dumped", "lock", "read_answers", "read_json", "read_rows",
              "read_steps", "read_text", "remove_drafts", "stopped", "sync", "warn", "whole_folder", "write_all",
              "write_rows", "write_whole"],
    "store": ["FollowedLog", "SYNC_RECORDS", "SYNC_SECONDS", "Skip", "TreeLog", "framed", "is_damaged", "read_skips",
              "read_trees", "unframed"],
    "text": ["MAX_NESTING", "SILENCE", "UNUSABLE", "check_nesting", "decode_json", "edit_ratio", "matches",
             "normalize_answer", "overlap", "parse_json"],
}


def defined(statement: ast.stmt) -> list[str]:
    """The names one top-level statement defines; imports define none."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return []


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_public_names_are_these(name):
    module = importlib.import_module(f"dialoom.{name}")
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    assert sorted(one for statement in body for one in defined(statement) if not one.startswith("_")) == PUBLIC[name]
    assert all(hasattr(module, one) for one in PUBLIC[name])


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_class_and_function_says_what_it_is(name):
    module = importlib.import_module(f"dialoom.{name}")
    for one in PUBLIC[name]:
        thing = getattr(module, one)
        if getattr(thing, "__module__", "") == module.__name__ and (isinstance(thing, type) or callable(thing)):
            assert (thing.__doc__ or "").strip(), f"{name}.{one} has no docstring"
