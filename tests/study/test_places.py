"""Which job may run where."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import pytest

from loracle.study.places import Place, Places

A, B = Place("0"), Place("1")


@dataclass(frozen=True)
class Wish:
    needs_bytes: int | None = None
    alone: bool = False
    threads: int = 1


def test_a_cpu_is_one_place_without_count_of_memory():
    cpu = Places(cores=4)
    assert cpu.free(Wish(10**15), [], 2) == Place(None)
    assert cpu.free(Wish(), [(Place(None), Wish())], 2) == Place(None)
    assert cpu.free(Wish(), [(Place(None), Wish())] * 2, 2) is None


def test_who_measures_time_is_alone_on_a_cpu():
    cpu = Places(cores=4)
    assert cpu.free(Wish(alone=True), [], 2) == Place(None)
    assert cpu.free(Wish(alone=True), [(Place(None), Wish())], 2) is None
    assert cpu.free(Wish(), [(Place(None), Wish(alone=True))], 2) is None


def test_two_share_a_gpu_only_within_its_budget():
    one = Places(("0",), 100)
    assert one.free(Wish(60), [(A, Wish(40))], 2) == A
    assert one.free(Wish(61), [(A, Wish(40))], 2) is None
    assert one.free(Wish(1), [(A, Wish(1)), (A, Wish(1))], 2) is None  # two workers are two workers
    assert one.free(Wish(999), [], 2) == A  # alone whatever it needs: whether it is started at all is not decided here


@pytest.mark.parametrize(
    ("places", "job", "other"),
    [
        (Places(("0",), 100), Wish(None), Wish(1)),
        (Places(("0",), 100), Wish(1), Wish(None)),
        (Places(("0",), None), Wish(1), Wish(1)),
        (Places(("0",), 100), Wish(1, alone=True), Wish(1)),
        (Places(("0",), 100), Wish(1), Wish(1, alone=True)),
    ],
)
def test_what_is_not_known_or_measures_time_shares_with_none(places, job, other):
    assert places.free(job, [(A, other)], 4) is None


def test_the_least_loaded_gpu_comes_first():
    two = Places(("0", "1"), 100)
    assert two.free(Wish(10), [], 4) == A
    assert two.free(Wish(10), [(A, Wish(10))], 4) == B
    assert two.free(Wish(10), [(A, Wish(50)), (B, Wish(20))], 4) == B
    assert two.free(Wish(60), [(A, Wish(50)), (B, Wish(20))], 4) == B
    assert two.free(Wish(90), [(A, Wish(50)), (B, Wish(20))], 4) is None
    assert two.free(Wish(None), [(A, Wish(50))], 4) == B


def test_no_gpu_is_ever_promised_more_than_it_has():
    draw = random.Random(0)
    for _ in range(200):
        gpus = tuple(str(i) for i in range(draw.randint(1, 4)))
        places, workers = Places(gpus, 100), draw.randint(1, 8)
        running: list[tuple[Place, Wish]] = []
        for _ in range(40):
            wish = Wish(draw.choice([None, *range(1, 130)]), draw.random() < 0.1)
            place = places.free(wish, running, workers)
            if place is not None:
                running.append((place, wish))
            elif running and draw.random() < 0.5:
                running.pop(draw.randrange(len(running)))
            for gpu in gpus:
                here = [w for at, w in running if at.gpu == gpu]
                if len(here) > 1:
                    assert all(w.needs_bytes is not None and not w.alone for w in here)
                    assert sum(w.needs_bytes or 0 for w in here) <= 100
            assert len(running) <= workers


def test_only_of_several_gpus_one_is_named():
    assert Places(("3",)).visible(Place("3")) is None
    assert Places().visible(Place(None)) is None
    assert Places(("3", "GPU-5")).visible(Place("GPU-5")) == "GPU-5"
    assert Places(("3", "GPU-5")).kinds(2, 3) == [(2, "3"), (2, "GPU-5"), (2, "3")]
    assert Places().kinds(1, 2) == [(1, None), (1, None)]


def test_spares_are_for_what_comes_next():
    two = Places(("0", "1"), 100, cores=16)
    running = [(A, Wish()), (B, Wish())]
    assert two.ahead(running, [Wish(threads=4)] * 5, [(8, "0")]) == {(4, "0"): 1, (4, "1"): 1}
    assert two.ahead(running, [Wish(threads=4)], [(8, "0")]) == {(4, "0"): 1, (8, "0"): 1}
    assert two.ahead(running, [], []) == {}


def test_spares_are_started_on_idle_cores_only():
    cpu = Places(cores=2)
    here = Place(None)
    assert cpu.ahead([(here, Wish())], [], [(1, None), (1, None)]) == {(1, None): 1}
    assert cpu.ahead([(here, Wish()), (here, Wish())], [Wish()], []) == {}
    assert cpu.ahead([(here, Wish(threads=2))], [], [(1, None)]) == {}
    assert Places(cores=8).ahead([(here, Wish(alone=True))], [], [(1, None)]) == {}
    colab = Places(("0",), 100, cores=2)
    assert sum(colab.ahead([(A, Wish(1, alone=True))], itertools.repeat(Wish(), 9), [(1, None)] * 4).values()) == 1
