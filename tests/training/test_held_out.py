from mini_claude.training.held_out import split

from .tiny_training import tokenized

EXAMPLES = [tokenized(f"question {i}", "answer", row=i) for i in range(50)]


def test_the_share_is_held_out_and_both_parts_keep_the_files_order() -> None:
    train, held_out = split(EXAMPLES, 0.2)
    assert len(held_out) == 10
    assert sorted(train + held_out, key=lambda e: e.row) == EXAMPLES
    assert held_out == sorted(held_out, key=lambda e: e.row)


def test_the_order_of_the_file_does_not_matter() -> None:
    _, held_out = split(EXAMPLES, 0.2)
    _, reversed_held_out = split(EXAMPLES[::-1], 0.2)
    assert set(held_out) == set(reversed_held_out)


def test_copies_are_on_one_side() -> None:
    copies = [tokenized(f"question {i % 5}", "answer", row=i) for i in range(50)]
    train, held_out = split(copies, 0.1)
    assert len(held_out) == 10
    assert {e.token_ids for e in train}.isdisjoint(e.token_ids for e in held_out)


def test_ten_examples_hold_out_one_and_nine_none() -> None:
    assert [len(part) for part in split(EXAMPLES[:10], 0.01)] == [9, 1]
    assert [len(part) for part in split(EXAMPLES[:9], 0.01)] == [9, 0]
    assert [len(part) for part in split(EXAMPLES, 0.0)] == [50, 0]


def test_something_is_always_left_to_train_on() -> None:
    same = [tokenized("question", "answer", row=i) for i in range(20)]
    assert [len(part) for part in split(same, 0.5)] == [20, 0]
