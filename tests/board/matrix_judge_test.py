"""python3 -m unittest discover -s tests/board -p '*_test.py'"""

import unittest

import matrix_judge as judge
import matrix_table
from matrix_probes import Samples


def samples(*rows):
    out = Samples()
    for series, at, value, *rest in rows:
        out.add(series, at, value, *rest)
    return out


class Figures(unittest.TestCase):
    def test_percentile_is_a_value_that_was_seen(self):
        self.assertEqual(judge.percentile([], 99), None)
        self.assertEqual(judge.percentile([3], 99), 3)
        self.assertEqual(judge.percentile(range(1, 101), 99), 99)
        self.assertEqual(judge.percentile([5, 1, 3], 50), 3)

    def test_a_lease_that_is_never_renewed_again_is_a_gap_too(self):
        seen = judge.lease(samples(("lease_gap", 10, 10), ("lease_gap", 30, 10.2), ("lease_open", 90, 60)), begin=20)
        self.assertEqual(seen, {"lease_gap_p99": 60, "lease_gap_max": 60, "lease_over_20": 1, "lease_over_40": 1})

    def test_only_a_change_after_the_hog_began_is_its_doing(self):
        changes = samples(("node_Ready", 1, 0), ("node_Ready", 2, 1), ("node_Ready", 50, 0), ("node_Ready", 60, 1))
        self.assertEqual(judge.not_ready(changes, begin=20), 1)
        self.assertEqual(judge.not_ready(changes, begin=55), 0)

    def test_an_unanswered_question_counts_with_what_was_waited(self):
        rows = samples(("exec", 5, 0.1), ("exec", 21, 0.2), ("exec", 23, 30.0, False, "timed out"), ("exec", 61, 0.1))
        self.assertEqual(judge.asked(rows, "exec", 20, 60), {"exec_n": 2, "exec_failed": 1, "exec_p50": 0.2, "exec_p99": 30.0, "exec_max": 30.0})

    def test_a_bystander_that_was_silent_lost_what_it_did_not_do(self):
        lines = [{"at": second * 1000, "done": second * 50, "worst_ms": 2} for second in range(0, 61)]
        lines += [{"at": 110_000, "done": 60 * 50 + 25 * 50, "worst_ms": 900}]
        seen = judge.bystander(lines, (0, 60), (60, 120))
        self.assertAlmostEqual(seen["bystander_before"], 50)
        self.assertAlmostEqual(seen["bystander_share"], 0.5)
        self.assertEqual(seen["bystander_worst_ms"], 900)
        self.assertEqual(judge.bystander([], (0, 60), (60, 120))["bystander_share"], None)

    def test_histograms_are_told_by_their_bounds(self):
        def text(counts):
            return judge.metrics("".join(f'x_bucket{{le="{bound}"}} {count}\n' for bound, count in counts.items()) + "# TYPE x histogram\nx_sum 3.5\n")
        before, after = text({"0.1": 5, "0.5": 5, "+Inf": 5}), text({"0.1": 104, "0.5": 105, "+Inf": 105})
        self.assertEqual(judge.histogram(before, after, "x"), (0.1, 0.5))
        self.assertEqual(judge.histogram(after, after, "x"), (None, None))
        self.assertEqual(judge.histogram({}, {}, "x"), (None, None))

    def test_only_actions_that_were_taken_are_counted(self):
        name = "edge_agent_governor_actions_total"
        before = judge.metrics(f'{name}{{action="evict",qos="besteffort",resource="memory",result="ok"}} 1\n')
        after = judge.metrics(f'{name}{{action="evict",qos="besteffort",resource="memory",result="ok"}} 2\n{name}{{action="freeze",result="failed"}} 3\n'
                              f'{name}{{action="io_max",result="ok"}} 0\n')
        self.assertEqual(judge.actions(before, after), "evict=1")

    def test_limits_of_groups_that_are_gone_are_not_compared(self):
        before = {"a/memory.max": "max", "a/io.max": "", "pod/memory.high": "max"}
        after = {"a/memory.max": "100", "a/io.max": "", "new/memory.high": "5"}
        self.assertEqual(judge.undone(before, after), ["a/memory.max max -> 100"])


    def test_the_state_is_the_one_that_is_set(self):
        self.assertEqual(judge.state({'edge_agent_governor_state{state="calm"}': 0.0, 'edge_agent_governor_state{state="brake"}': 1.0}), "brake")
        self.assertIsNone(judge.state({"up": 1.0}))


class Verdicts(unittest.TestCase):
    row = {"lease_gap_max": 10.4, "lease_gap_p99": 10.4, "not_ready": 0, "agent_lag_p99": 0.05, "agent_lag_max": 0.25, "agent_refaults": 0, "agent_oom_kill": 0,
           "runtime_oom_kill": 0, "exec_p99": 1.2, "exec_failed": 0, "scrape_failed": 0, "scrape_max": 0.4, "agent_restarts": 0, "harmed": "", "undo_diff": 0,
           "bystander_share": 0.95, "reaction_p99": 0.1, "state_at_end": "calm"}

    def missed(self, mode, **changes):
        return judge.failures({**self.row, "mode": mode, **changes})

    def test_each_criterion_is_missed_by_its_own_figure(self):
        self.assertEqual(self.missed("C"), [])
        for name, value, criterion in (("lease_gap_max", 21, "ok_lease"), ("lease_gap_p99", 13, "ok_lease"), ("not_ready", 1, "ok_ready"), ("agent_lag_max", 2.5, "ok_lag"),
                                       ("agent_refaults", 1, "ok_refaults"), ("runtime_oom_kill", 1, "ok_oom"), ("exec_p99", 2.1, "ok_exec"),
                                       ("scrape_failed", 1, "ok_scrape"), ("harmed", "target:gone", "ok_others"), ("undo_diff", 1, "ok_undo"), ("lost", "samples", "ok_undo"),
                                       ("bystander_share", 0.89, "ok_bystander"), ("reaction_p99", 0.25, "ok_reaction"), ("state_at_end", "brake", "ok_calm")):
            self.assertEqual(self.missed("C", **{name: value}), [criterion], name)

    def test_an_exec_is_held_to_what_the_calm_board_needs_where_that_is_more(self):
        self.assertEqual(self.missed("C", exec_calm=3, exec_p99=5.9), [])
        self.assertEqual(self.missed("C", exec_calm=3, exec_p99=6.1), ["ok_exec"])
        self.assertEqual(self.missed("C", exec_calm=0.3, exec_p99=1.9), [])

    def test_what_only_the_governor_promises_is_not_asked_of_reservations(self):
        self.assertEqual(self.missed("B", lease_gap_p99=13, bystander_share=0.5, state_at_end=None), [])

    def test_nothing_protected_is_held_to_nothing(self):
        self.assertEqual(self.missed("A", lease_gap_max=300, not_ready=4), [])
        self.assertEqual(judge.verdicts({**self.row, "mode": "A", "lease_gap_max": 300})["ok_lease"], judge.MISS)

    def test_no_figure_is_no_verdict(self):
        self.assertEqual(judge.verdicts({"mode": "C"})["ok_lease"], judge.UNKNOWN)


class Tables(unittest.TestCase):
    def test_repetitions_are_one_cell_and_what_it_missed_is_named(self):
        key = {"board": "512", "swap": "none", "hog": "storm", "mode": "C"}
        rows = [{**key, "lease_gap_max": "10.1", "exec_calm": "2", "exec_p99": "3", "bystander_share": "0.99", "agent_lag_max": "0.01", "ok_exec": "pass"},
                {**key, "lease_gap_max": "12.3", "exec_calm": "2", "exec_p99": "5", "bystander_share": "0.8", "agent_lag_max": "0.5", "ok_bystander": "miss"},
                {**key, "mode": "A", "error": "the board was gone"}]
        text = matrix_table.tables(rows, "ABC").splitlines()
        self.assertEqual(text[2:], ["| 512 MB, swap none | A | C |", "|---|---|---|", "| storm | died | 12.3 s, 2.0x, 0.80, 0.5 s (bystander) |"])


if __name__ == "__main__":
    unittest.main()
