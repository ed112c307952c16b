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


@pytest.mark.parametrize("above", [0, 1])
def test_a_docstring_is_held_to_the_same_length_and_its_arguments_are_no_sentence(above, tmp_path):
    arguments = "".join(f"        name{i}: of it\n" for i in range(20))
    page = tmp_path / "module.py"
    page.write_text(f'def f():\n    """Short. {of_words(MOST + above)}\n    Args:\n{arguments}    """\n')
    # Only the long sentence lifts the mean; words of the arguments stand alone.
    assert main([str(page)]) == above
