import pytest

from loracle.spec.study import Run
from loracle.study.cohorts import STARTUP_S, Load, divide, even, halves, leaves, makespan
from loracle.study.resources import Machine, as_seen, concurrency, lanes, usable_cores, visible_gpus


@pytest.mark.parametrize(
    ("count", "pieces", "sizes"), [(14, 3, [5, 5, 4]), (12, 2, [6, 6]), (1, 1, [1]), (7, 4, [2, 2, 2, 1])]
)
def test_even(count, pieces, sizes):
    assert even(count, pieces) == sizes


def test_makespan_is_longest_first():
    assert makespan([1, 2, 3, 4], 2) == 5
    assert makespan([], 2) == 0


def test_divide_one_worker_uses_the_measured_size():
    assert divide([Load(14, 6, 60.0)], 1) == [[5, 5, 4]]


def test_divide_makes_work_for_every_worker():
    assert divide([Load(12, 12, 60.0)], 2) == [[6, 6]]
    assert divide([Load(14, 6, 60.0)], 2) == [[4, 4, 3, 3]]


def test_divide_does_not_split_what_takes_no_time():
    assert divide([Load(4, 4, STARTUP_S / 100)], 2)[0] in ([4], [2, 2])
    assert divide([Load(14, 6, 60.0, fixed=True)], 4) == [[5, 5, 4]]


@pytest.mark.parametrize(
    ("run", "machine", "independent", "expected"),
    [
        ({}, Machine("cpu", 2), 5, (2, 1)),
        ({}, Machine("cpu", 2), 1, (1, 2)),
        ({}, Machine("cpu", 8), 3, (3, 1)),
        ({"threads": 4}, Machine("cpu", 8), 9, (2, 4)),
        ({"workers": 2}, Machine("cpu", 8), 9, (2, 4)),
        ({"workers": 3, "threads": 2}, Machine("cpu", 2), 9, (3, 2)),
        ({}, Machine("cuda", 16, ("0",)), 9, (2, 8)),
        ({}, Machine("cuda", 16, ("0",)), 1, (1, 8)),
        ({}, Machine("cuda", 16, ("0", "1")), 9, (4, 4)),
    ],
)
def test_concurrency(run, machine, independent, expected):
    assert concurrency(Run(**run), machine, independent) == expected


def test_visible_gpus(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(tmp_path / "none") == ()
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:02").mkdir()
    assert visible_gpus(tmp_path) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert visible_gpus(tmp_path) == ("3",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(tmp_path) == ()


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("0,2", ("0", "2")),
        (" 1 , 3 ", ("1", "3")),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,GPU-1", ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-1")),
        ("MIG-GPU-1/2/0", ("MIG-GPU-1/2/0",)),
        ("0,-1,1", ("0",)),  # as CUDA reads it: nothing after what is no device
        ("-1", ()),
        ("NoDevFiles", ()),
    ],
)
def test_forms_of_visible_devices(monkeypatch, tmp_path, value, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus(tmp_path) == seen


def test_a_machine_as_a_worker_saw_it():
    assert as_seen(Machine("cpu", 4), {"device": "cuda", "gpus": 2}) == Machine("cuda", 4, ("0", "1"))
    assert as_seen(Machine("cuda", 4, ("5",)), {"device": "cuda", "gpus": 2}) == Machine("cuda", 4, ("5",))
    assert as_seen(Machine("cuda", 4, ("5",)), {"device": "cpu"}) == Machine("cpu", 4)
    assert as_seen(Machine("cuda", 4, ("5",)), {}) == Machine("cuda", 4, ("5",))


def test_two_workers_on_a_gpu_are_one_lane():
    assert lanes(2, Machine("cuda", 16, ("0",))) == 1
    assert lanes(16, Machine("cuda", 16, tuple("01234567"))) == 8
    assert lanes(2, Machine("cpu", 4)) == 2


def test_divide_keeps_many_gpus_busy():
    """Five groups and eight GPUs: more choices than are tried one by one."""
    sizes = divide([Load(20, 20, 60.0)] * 5, 8)
    assert all(sum(group) == 20 for group in sizes)
    whole = makespan([STARTUP_S + 20 * 60.0] * 5, 8)
    assert makespan([STARTUP_S + n * 60.0 for group in sizes for n in group], 8) < 0.7 * whole


def test_usable_cores_heeds_a_quota(tmp_path):
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")
    assert usable_cores(quota) == 1
    quota.write_text("max 100000\n")
    assert usable_cores(quota) >= 1


def test_splits_are_followed_to_the_leaves():
    cohort = {"id": "c", "runs": ["1", "2", "3", "4", "5"], "threads": 1, "steps": 3, "estimated_s": 1.0, "data": "d"}
    parts = halves(cohort)
    assert [p["runs"] for p in parts] == [["1", "2", "3"], ["4", "5"]]
    plan = {"cohorts": [cohort], "splits": {"c": parts, "c-a": halves(parts[0])}}
    assert [(leaf["id"], leaf["runs"]) for leaf in leaves(plan)] == [
        ("c-a-a", ["1", "2"]),
        ("c-a-b", ["3"]),
        ("c-b", ["4", "5"]),
    ]
    assert all(leaf["threads"] == 1 and leaf["data"] == "d" for leaf in leaves(plan))
