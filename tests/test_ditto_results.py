"""What `bench.results` makes of finished runs of DITTO: fair comparisons beside the pool, and verdicts."""

import json
import math

import pytest

from bench.results import Claims, ditto_rows, time_taken


def lines_of(claims):
    return [line.strip("| ").split(" | ")[-1] for line in claims.lines[2:]]


@pytest.mark.parametrize(("found", "verdict"), [
    ((0.05, 0.01, 0.09), "yes"), ((0.02, -0.05, 0.09), "yes (interval spans the limit)"),
    ((-0.02, -0.05, 0.09), "**no**"), ((0.02, math.nan, math.nan), "yes")])
def test_a_claim_is_met_by_its_mean_and_says_where_its_interval_spans_the_limit(found, verdict):
    claims = Claims()
    claims.add("above 0", found, lambda mean: mean > 0)
    claims.add("only told", found)
    assert lines_of(claims) == [verdict, "told"]


def test_a_method_beside_the_pool_is_also_measured_against_ditto_s_own_opponents(tmp_path):
    def match(pool, one, other, points):
        return {"pool": pool, "author": "Ada", "task": "t", "sample": 0, "one": one, "other": other, "points": points}
    rows = [match("winrate", "sft", "spin", 1), match("winrate", "sft", "ditto", 0),
            match("winrate", "spin", "ditto", 1), match("beside sft_long", "sft_long", "sft", 2),
            match("beside sft_long", "sft_long", "spin", 2),
            match("beside sft_long", "sft_long", "ditto", 0), match("beside sft_long", "sft_long", "ditto", None),
            match("ablation", "no_replay", "ditto", 2)]
    (tmp_path / "matches.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = {(row.eval, row.subject): (row.value, row.n) for row in ditto_rows(tmp_path, 3)}
    assert found == {("same_opponents", "ditto"): (0.75, 4), ("same_opponents", "sft_long"): (1, 4),
                     ("duels_with_ditto", "sft"): (0, 2), ("duels_with_ditto", "spin"): (0.5, 2),
                     ("duels_with_ditto", "sft_long"): (0, 2)}


def test_the_time_of_runs_is_the_sum_of_their_stages(tmp_path):
    for seed, seconds in ((1, (60, 120)), (2, (600,))):
        folder = tmp_path / f"seed-{seed}" / "stages"
        folder.mkdir(parents=True)
        for at, value in enumerate(seconds):
            (folder / f"{at}.json").write_text(json.dumps({"stage": str(at), "seconds": value}))
    assert "2 runs took 13 minutes together, one thread each: 3 to 10 a run" in time_taken(sorted(tmp_path.glob("*")))
