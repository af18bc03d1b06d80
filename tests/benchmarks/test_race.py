"""The comparison's own machinery: processes, rounds, medians, agreement, likelihoods."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peers import contenders, install
from benchmarks.peers.process import PeerFailedError, Process
from benchmarks.peers.worker import log_softmax, score
from benchmarks.race import Result, agreement, out_of_it, race

ECHO = [sys.executable, str(Path(__file__).with_name("echo_peer.py"))]
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    open_: list[Process] = []

    def call(**settings: Any) -> Process:
        open_.append(Process(ECHO, settings, {}, tmp_path / "log", timeout=60))
        return open_[-1]

    yield call
    for process in open_:
        process.close()


def test_a_process_answers_and_what_it_prints_does_not_come_between(start: Start) -> None:
    peer = start()
    assert peer.facts == {"versions": {"echo": "1"}, "bytes": 1000}
    assert "what a library prints" in peer.log.read_text()
    answer = peer.ask({"do": "generate", "prompts": [[1, 2, 3]], "count": 5})
    assert answer["ids"] == [[1, 2, 3, 1, 2]]
    assert answer["resident"] > 1_000_000


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_between_questions_it_is_stopped(start: Start) -> None:
    peer = start()
    peer.ask({"do": "generate", "prompts": [[1]], "count": 1})
    stat = Path(f"/proc/{peer._process.pid}/stat")
    deadline = time.monotonic() + 20
    while (state := stat.read_text().rpartition(")")[2].split()[0]) != "T":
        assert time.monotonic() < deadline, state
        time.sleep(0.01)
    peer.close()
    assert not stat.exists()


def test_failures_are_one_line_and_the_peer_goes_on(start: Start, tmp_path: Path) -> None:
    with pytest.raises(PeerFailedError, match=r"^ValueError: not today$"):
        start(broken=True)
    peer = start()
    with pytest.raises(PeerFailedError, match=r"^ValueError: unlucky$"):
        peer.ask({"do": "generate", "prompts": [[13]], "count": 1})
    assert peer.ask({"do": "generate", "prompts": [[4]], "count": 1})["ids"] == [[4]]
    with pytest.raises(PeerFailedError, match="ended with status"):
        Process(["false"], {}, {}, tmp_path / "log", timeout=60)


def test_likelihoods_over_the_wire(start: Start, tmp_path: Path) -> None:
    peer, truth = start(), tmp_path / "truth.npy"
    peer.ask({"do": "save", "ids": [1, 2, 3, 4], "count": 3, "path": str(truth)})
    answer = peer.ask({"do": "score", "ids": [1, 2, 2], "oracle": str(truth)})
    likely, other = (math.log((math.exp(3) if hit else 1) / (7 + math.exp(3))) for hit in (1, 0))
    assert answer["nll"] == pytest.approx([-other, -likely], abs=1e-6)
    assert answer["kl"][:2] == pytest.approx([0, 0], abs=1e-6)
    assert answer["same"] == [True, True, False]
    assert answer["kl"][2] > 1


def test_scores_by_hand() -> None:
    logits = np.array([[0.0, math.log(3)], [0.0, 0.0]], np.float32)
    assert np.exp(log_softmax(logits)) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))
    oracle = np.log(np.array([[0.5, 0.5]], np.float32))
    found = score(logits, [0, 1], oracle)
    assert found["nll"] == pytest.approx([-math.log(0.75)])
    assert found["kl"] == pytest.approx([0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)])


class Paced:
    """Answers with a given number of seconds a token, and counts how often it was asked."""

    def __init__(self, pace: float, fails_at: int = -1, short: bool = False, first: float = 1.0) -> None:
        self.pace, self.fails_at, self.short, self.first = pace, fails_at, short, first
        self.asked: list[int] = []

    def ask(self, question: Any, timeout: float = 0) -> dict[str, Any]:
        if len(self.asked) == self.fails_at:
            raise PeerFailedError("worn out")
        self.asked.append(question["count"])
        rows, count = len(question["prompts"]), question["count"]
        ids = [[7] * (count - self.short)] * rows
        return {"ids": ids, "first": self.first, "seconds": self.first + self.pace * (count - 1), "resident": 5}


def test_rounds_interleave_and_slow_ones_drop_out() -> None:
    said: list[str] = []
    peers = {"fast": Paced(0.1), "slow": Paced(1.0, first=9.0), "weak": Paced(0.1, fails_at=3),
             "cheat": Paced(0.1, short=True), "reader": Paced(1.0)}  # fmt: skip
    results: dict[str, Result] = {}
    race("one", peers, [[[1] * 8]] * 6, 11, results, said.append)
    assert peers["fast"].asked == [4, 11, 11, 11, 11, 11]
    assert peers["slow"].asked == [4, 11]
    assert peers["reader"].asked == peers["fast"].asked  # slow to write, not to read
    assert results["fast"].median("decode") == pytest.approx(10)
    assert results["fast"].median("prefill") == 8
    assert results["slow"].values["decode"] == pytest.approx([1])
    assert results["weak"].failed == {"one": "worn out"}
    assert len(results["weak"].values["decode"]) == 2
    assert "1 answers of 4 ids wanted" in results["cheat"].failed["one"]
    assert not results["cheat"].values
    assert [line.split(":")[1].strip() for line in said if line.startswith("round 1")] == [
        "fast", "slow", "weak", "reader",
    ]  # fmt: skip


def test_of_many_the_best_formats_go_on() -> None:
    rates = {"a q8": 10.0, "a q4": 9.0, "a bf16": 7.0, "b": 2.0, "c": 6.0, "m27 x": 99.0, "m27 y": 1.0}
    results = {name: Result({"many": [rate]}) for name, rate in rates.items()}
    assert out_of_it("many", results) == {"a bf16", "b"}


def test_no_round_is_begun_without_time_for_it() -> None:
    said: list[str] = []
    peer = Paced(0.1)
    race("many", {"a": peer}, [[[1]]] * 6, 3, {}, said.append, until=0.0)
    assert peer.asked == [3 if i else 4 for i in range(2)]
    assert said[-1] == "many: no time for round 2 of 5"


def test_many_counts_every_token_of_the_whole_time() -> None:
    results: dict[str, Result] = {}
    race("many", {"a": Paced(0.5)}, [[[1], [2]]] * 3, 3, results, lambda line: None)
    assert results["a"].values == {"many": pytest.approx([3.0, 3.0])}
    assert results["a"].resident == 5


def test_agreement_ends_where_the_reference_stops() -> None:
    truth = {"one1": [[5, 6, 2, 9, 9]], "many1": [[1, 1, 1, 1]]}
    mine = {"one1": [[5, 6, 7, 8, 8]], "many1": [[1, 3, 1, 1]], "many2": [[0]]}
    found = agreement(mine, truth, stops=(2,))
    assert found == {"equal": 5 / 6, "prefix": (1 + 0.25) / 2, "ids": 6, "answers": 2}
    assert agreement({"other": [[1]]}, truth) is None


def test_contenders_by_name() -> None:
    assert [c.name for c in contenders.chosen("m27 int8,llama.cpp Q4")] == [
        "m27 int8", "llama.cpp Q4_1", "llama.cpp Q4_0",
    ]  # fmt: skip
    assert len(contenders.chosen("all")) == len(contenders.CONTENDERS) > len(contenders.chosen(""))
    with pytest.raises(ValueError, match=r"^nobody: no such contender"):
        contenders.chosen("m27,nobody")


def test_a_command_that_fails_is_told_with_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(install.PeerError, match="ended with 3: gone"):
        install.call(["sh", "-c", "echo gone; exit 3"], tmp_path / "log")


def test_every_environment_is_pinned() -> None:
    assert all("==" in pin for pins in install.PINS.values() for pin in pins)
