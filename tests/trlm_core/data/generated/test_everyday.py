"""The everyday dialogs are distinct, short and free of the subjects left out."""

from trlm_core.data.generated.everyday import everyday_dialogs

DIALOGS = everyday_dialogs()


def test_the_pinned_corpus_gives_528_distinct_dialogs() -> None:
    assert len(DIALOGS) == len(set(DIALOGS)) == 528
    assert len({question for question, _ in DIALOGS}) == 448


def test_files_come_by_name_and_dialogs_by_place() -> None:
    assert DIALOGS[0][0] == "What is a computer?"
    assert DIALOGS[-1] == ("On every continent there is a city named what?", "Rome")
    assert everyday_dialogs() == DIALOGS


def test_texts_are_clean_short_and_without_code() -> None:
    texts = [text for dialog in DIALOGS for text in dialog]
    assert all(text == " ".join(text.split()) and 0 < len(text) <= 200 and "```" not in text for text in texts)


def test_unwanted_subjects_are_left_out() -> None:
    assert not any("What is AI?" in question for question, _ in DIALOGS)
