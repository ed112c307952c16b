"""The count of words a sentence sees a long sentence, and nothing that is no sentence."""

import pytest

from scripts.prose import MOST, MOST_IN_THE_MEAN, main, sentences

SHORT = "The curvature is fitted once. It takes a minute.\n"


def of_words(count: int) -> str:
    return " ".join(["word"] * count) + ".\n"


def test_code_tables_and_headings_are_no_sentences():
    page = (
        "# A title\n\nSee [the page](docs/a.md) first. Then call `f(x, y)`.\n\n```sh\nmake test\n```\n\n| a | b c |\n"
    )
    assert sentences(page) == ["See the page first.", "Then call x."]


@pytest.mark.parametrize("text", [SHORT + of_words(MOST + 1), of_words(MOST_IN_THE_MEAN + 1)])
@pytest.mark.parametrize("named", [True, False], ids=["page", "folder"])
def test_a_sentence_that_is_too_long_is_seen(text, named, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(SHORT + of_words(MOST))
    assert main([str(page if named else tmp_path)]) == 0
    page.write_text(text)
    assert main([str(page if named else tmp_path)]) == 1
    assert str(page) in capsys.readouterr().out


def test_short_pages_pass_and_only_named_ones_are_printed(tmp_path, capsys):
    (tmp_path / "page.md").write_text(SHORT)
    assert main([str(tmp_path)]) == 0 and not capsys.readouterr().out
    assert main([str(tmp_path / "page.md")]) == 0 and "mean 4.5 words" in capsys.readouterr().out
