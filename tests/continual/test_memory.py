"""What is kept, by every sampler; and that it can be taken up again."""

import json
from collections import Counter

import pytest

from zeitgeist.continual.memory import Memory
from zeitgeist.errors import InputInvalid


def test_a_ring_keeps_the_last():
    memory = Memory(3)
    memory.add(0, range(5))
    memory.add(0, [5])
    assert memory.items(0) == [3, 4, 5]
    memory.add(2, [9])
    assert memory.tasks == [0, 2] and len(memory) == 4 and memory.items(1) == []


def test_a_reservoir_keeps_each_alike():
    kept = Counter()
    for seed in range(600):
        memory = Memory(4, "reservoir", seed=seed)
        for i in range(12):
            memory.add(0, [i])
        assert len(memory) == 4
        kept.update(memory.items(0))
    assert all(150 < kept[i] < 250 for i in range(12))  # 200 on average, sd 11.5


def test_balanced_classes_have_equal_room_however_rare():
    memory = Memory(7, "balanced", seed=1)
    labels = [0] * 90 + [1] * 8 + [2] * 2
    memory.add(0, list(enumerate(labels)), labels)
    held = Counter(label for _, label in memory.items(0))
    assert held == {0: 3, 1: 2, 2: 2}


def test_the_seed_decides():
    def kept(seed):
        memory = Memory(5, "reservoir", seed=seed)
        memory.add(0, range(100))
        return memory.items(0)

    assert kept(1) == kept(1) != kept(2)


def test_groups_deal_all_samples_and_draws_are_of_all_tasks():
    memory = Memory(7)
    memory.add(0, range(7))
    memory.add(1, range(10, 13))
    groups = list(memory.groups(0, 3))
    assert [len(g) for g in groups] == [3, 2, 2] and sorted(i for g in groups for i in g) == list(
        range(7)
    )
    assert [len(g) for g in memory.groups(0, 3, per_group=1)] == [1, 1, 1]
    assert list(memory.groups(1, 8)) == [[10], [11], [12]]
    assert sorted(memory.draw(99)) == [*range(7), 10, 11, 12]
    assert memory.draw(99, exclude=0) == [10, 11, 12]
    assert len(set(memory.draw(4))) == 4


@pytest.mark.parametrize("sampler", ["ring", "reservoir", "balanced"])
def test_a_memory_goes_through_a_file(sampler):
    memory, other = Memory(3, sampler, seed=4), Memory(3, sampler, seed=0)
    memory.add(0, list(range(20)), [i % 2 for i in range(20)])
    other.restore(json.loads(json.dumps(memory.state())))
    for each in (memory, other):
        each.add(0, list(range(20, 60)), [i % 2 for i in range(40)])
        each.add(1, [1, 2], [0, 0])
    assert memory.state() == other.state()
    assert memory.draw(2) == other.draw(2)


def test_bad_memories_are_told():
    with pytest.raises(InputInvalid, match="0 samples"):
        Memory(0)
    with pytest.raises(InputInvalid, match="no sampler 'fifo'"):
        Memory(1, "fifo")
    with pytest.raises(InputInvalid, match="classes of the samples"):
        Memory(1, "balanced").add(0, [1])
    with pytest.raises(InputInvalid, match="1 samples and 2 classes"):
        Memory(1).add(0, [1], [1, 2])
