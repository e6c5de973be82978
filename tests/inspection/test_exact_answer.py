"""Labels, the rule that finds exact answers, and the smallest window of tokens around them."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.exact_answer import (
    blind,
    by_pattern,
    decoded,
    find_alias,
    folded,
    is_right,
    published,
    token_window,
)
from zeitgeist.inspection.questions import Question

CAPITAL = Question("What is the capital of France?", ("Paris",))


@pytest.mark.parametrize(
    ("answer", "alias", "loose", "strict"),
    [
        ("It is Paris.", "Paris", True, True),
        ("It is paris.", "Paris", True, False),
        ("It is Bogota.", "Bogot\u00e1", True, False),
        ("It is Bogot\u00e1.", "Bogota", True, False),
        ("It is Bogota\u0301.", "Bogot\u00e1", True, False),
        ("It is 15.", "5", False, False),
        ("It is 51.", "5", False, False),
        ("It is 5.", "5", True, True),
        ("It is -5.", "5", False, False),
        ("It is 2.5", "5", False, False),
        ("It is 5.2", "5", False, False),
        ("It is 5,000.", "5", False, False),
        ("It is not so.", "no", False, False),
        ("It is female.", "Male", False, False),
        ("US dollars.", "Dollar", True, False),
        ("Strasse", "Stra\u00dfe", True, False),
        ("St. John's.", "St. John's", True, True),
        ("(Bangkok)", "Bangkok", True, True),
        ("", "x", False, False),
    ],
)
def test_labels_loose_and_strict(answer, alias, loose, strict):
    assert (find_alias(answer, alias) is not None) is loose
    assert (find_alias(answer, alias, strict=True) is not None) is strict


def test_offsets_are_of_the_answer_as_it_is():
    answer = "Stra\u00dfe: Bogot\u00e1!"
    assert answer[slice(*find_alias(answer, "bogota"))] == "Bogot\u00e1"
    assert answer[slice(*find_alias(answer, "strasse"))] == "Stra\u00dfe"


@given(st.text(max_size=20))
def test_folding_keeps_count_of_where_letters_came_from(text):
    plain, came = folded(text)
    assert len(plain) == len(came)
    assert all(one <= other for one, other in pairwise(came))


def test_of_two_options_the_first_counts():
    question = Question("Who?", ("nurse",), wrong="surgeon")
    assert is_right(question, "The nurse, not the surgeon.")
    assert not is_right(question, "The surgeon, not the nurse.")
    assert not is_right(question, "Nobody.")


@pytest.mark.parametrize(
    ("question", "answer", "exact"),
    [
        ("What is the capital of France?", "The capital of France is Paris.", "Paris"),
        ("What is the capital of France?", "Paris.", "Paris"),
        ("What is the capital of France?", "The capital of France is called \u201cParis\u201d.",
         "Paris"),
        ("What is the capital of the US?", "It is Washington, D.C. It lies east.", "Washington"),
        ("What is the capital of Grenada?", "It is St. George's.\nMore.", "St. George's"),
        ("What is the currency of Japan?", "It is the Japanese Yen (JPY), I say.", "Japanese Yen"),
        ("What is the currency of Peru?", "The currency: Sol.", "Sol"),
        ("Which element has the symbol Na?", "The element with the symbol Na is Na, which is 11.",
         "Na"),
        ("What is the capital of Morocco?",
         "Morocco is a large kingdom on the coast of north Africa with Rabat.", "Africa"),
        ("What is the capital of Morocco?",
         "Morocco is a very large country on the coast of it all.", None),
        ("What is the capital of France?", "I'm sorry, I don't know.", None),
        ("What is 2 + 3?", "2 + 3 = 5.", "5"),
        ("What is 2 + 3?", "To add 2 and 3 we do so. 2 + 3 equals 5 and 1 is odd.", "5"),
        ("What is 2 + 30?", "2 + 30 = 2*16 = 32.", "32"),
        ("What is 2 + 3?", " 5 ", "5"),
        ("What is 2 + 3?", "We need to add.", None),
        ("What is 2 + 3?", "It is -1,234.5.", "-1,234.5"),
    ],
)  # fmt: skip
def test_the_blind_rule(question, answer, exact):
    found = blind(Question(question, ("never seen",)), answer)
    assert (None if found is None else answer[slice(*found)]) == exact


@given(st.text(max_size=60), st.sampled_from(["Who?", "2 + 2?"]))
@settings(max_examples=200, deadline=None)
def test_the_blind_rule_sees_no_alias_and_stays_inside(answer, text):
    found = blind(Question(text, ("a",)), answer)
    assert found == blind(Question(text, (answer or "b",)), answer)
    if found is not None:
        assert 0 <= found[0] < found[1] <= len(answer)
        assert answer[slice(*found)].strip()


def test_the_blind_rule_does_not_know_which_option_is_right():
    one = Question("Who?", ("nurse",), wrong="surgeon")
    other = Question("Who?", ("surgeon",), wrong="nurse")
    answer = "It is the surgeon or the nurse."
    assert blind(one, answer) == blind(other, answer) == (10, 17)


def test_the_published_rule_looks_at_the_label():
    answer = "France is a country and its capital is Paris."
    assert answer[slice(*published(CAPITAL, answer))] == "Paris"
    assert answer[slice(*blind(CAPITAL, answer))] == "country"
    wrong = "The capital of France is Lyon."
    assert published(CAPITAL, wrong) == blind(CAPITAL, wrong)


def test_a_pattern_takes_its_group_or_all_of_it():
    assert by_pattern(r"is (\w+)")(CAPITAL, "It is Paris.") == (6, 11)
    assert by_pattern(r"P\w+")(CAPITAL, "It is Paris.") == (6, 11)
    assert by_pattern(r"Q\w+")(CAPITAL, "It is Paris.") is None
    with pytest.raises(InputInvalid, match=r"'\(' is no regular expression"):
        by_pattern("(")


def brute_force(tokenizer, ids, piece):
    """All windows whose text has the piece, whatever its case: earliest end, then latest start."""
    windows = [
        (high - 1, -low, low)
        for low in range(len(ids))
        for high in range(low + 1, len(ids) + 1)
        if piece.lower() in decoded(tokenizer, ids[low:high]).lower()
    ]
    return None if not windows else (min(windows)[2], min(windows)[0])


@pytest.mark.parametrize(
    ("text", "piece"),
    [
        ("the cat sat on the mat", "cat"),
        ("the cat sat on the mat", "CAT SAT"),
        ("the cat sat on the mat", "at on th"),
        ("the cat sat on the mat", "mat"),
        (" dog", "dog"),
        ("It is \u6771\u4eac and \u5927\u962a.", "\u6771\u4eac"),
        ("Bogot\u00e1, the city", "Bogot\u00e1"),
        ("Bogot\u00e1, the city", "t\u00e1"),
        ("a \U0001f600 smile", "\U0001f600"),
        ("the the the", "the"),
        ("the cat", "dog"),
    ],
)
def test_the_window_is_the_smallest(tiny_tokenizer, text, piece):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = token_window(tokenizer, ids, piece)
    assert found == brute_force(tokenizer, ids, piece)
    if found:
        assert piece.lower() in decoded(tokenizer, ids[found[0] : found[1] + 1]).lower()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_piece_of_any_text_is_covered(tiny_tokenizer, data):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    text = data.draw(st.text("the cat\u00e9\u6771", min_size=1, max_size=12))
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    low, high = token_window(tokenizer, ids, (begin, end))
    assert text[begin:end] in decoded(tokenizer, ids[low : high + 1])
    assert text[begin:end] not in decoded(tokenizer, ids[low + 1 : high + 1])


def test_an_occurrence_is_chosen_by_its_offsets(tiny_tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    ids = tokenizer("cat cat cat", add_special_tokens=False)["input_ids"]
    first, second = (token_window(tokenizer, ids, at) for at in ((0, 3), (4, 7)))
    assert first == token_window(tokenizer, ids, "cat")
    assert first < second
    assert token_window(tokenizer, ids, "") is None
    assert token_window(tokenizer, ids, (3, 3)) is None


@pytest.mark.parametrize("question", ["Who won the cup in 1998?", "Who led France in 1939-1945?"])
def test_a_year_in_a_question_asks_for_no_number(question):
    answer = "The winner is France."
    assert answer[slice(*blind(Question(question, ("?",)), answer))] == "France"
    calculated = Question("What is 12 - 5?", ("7",))
    assert blind(calculated, "12 - 5 = 7.") == (9, 10)


@pytest.mark.parametrize(
    ("alias", "answer", "right"),
    [
        ("東京", "日本の首都は東京です。", True),
        ("東京", "京都です", False),
        ("กรุงเทพ", "คือกรุงเทพมหานคร", True),
        ("5", "5月", True),
        ("5", "15月", False),
        ("yen", "yenta", False),
    ],
)
def test_words_have_no_bounds_where_they_are_written_without_spaces(alias, answer, right):
    question = Question("?", (alias,))
    assert is_right(question, answer) is right
    assert is_right(question, answer, strict=True) is right


@pytest.mark.parametrize(
    ("asked", "answer", "exact"),
    [
        ("Capital?", "The capital of Sri Lanka is:\nColombo", "Colombo"),
        ("Capital?", "The capital is\nParis. It is old.", "Paris"),
        ("Capital?", "(A) Paris", "Paris"),
        ("Capital?", "The answer is (B) Paris", "Paris"),
        ("Capital?", "1. Paris", "Paris"),
        ("Capital?", "I don\u2019t know. Perhaps Paris.", None),
        ("Who won the 2010 - 2011 season?", "The winner was Milan.", "Milan"),
        ("What is 17 + 25?", "The answer is **42**.", "42"),
        ("What is 17 + 25?", "The answer is: 42", "42"),
        ("What is 17 + 25?", "17 + 25 = **42**", "42"),
        ("What is 17 + 25?", "It is equal to 42.", "42"),
        ("What is 17 - 5?", "17 - 5 = 12", "12"),
        ("What is 16 + 93?", "16 + 93 = 16 * 13 + 93", None),
    ],
)
def test_answers_as_chat_models_write_them(asked, answer, exact):
    span = blind(Question(asked, ("?",)), answer)
    assert (None if span is None else answer[slice(*span)]) == exact


def test_what_is_strictly_right_is_right():
    question = Question("Who?", ("chef",), wrong="waiter")
    assert not is_right(question, "The Waiter, not the chef.")
    assert not is_right(question, "The Waiter, not the chef.", strict=True)
