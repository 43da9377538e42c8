"""How the benchmark of searches compares two curves."""

from __future__ import annotations

from benchmarks.search import Race, ratios, table

RANDOM = [(10.0, 30, 0.10), (40.0, 120, 0.15), (90.0, 270, 0.16)]


def test_a_ratio_is_the_time_to_the_random_searchs_best() -> None:
    assert ratios(RANDOM, [(12.0, 30, 0.10), (30.0, 90, 0.16), (80.0, 200, 0.17)]) == (3.0, 3.0)
    assert ratios(RANDOM, [(100.0, 300, 0.18)]) == (0.9, 0.9)
    assert ratios(RANDOM, [(12.0, 30, 0.159)]) == (0.0, 0.0)  # never reached


def test_the_table_says_what_was_not_reached_and_the_median() -> None:
    races = [
        Race(seed, 0.1, 0.2, ratio, ratio, 2 * ratio, 3, 9, 50.0, 40.0) for seed, ratio in enumerate((0.0, 4.0, 5.0))
    ]
    lines = table(races).splitlines()
    assert lines[2].endswith("| not reached | not reached | not reached |")
    assert lines[-1] == "| median | 0.1000 | | 0.2000 | | 4.0 | 4.0 | 8.0 |"
