"""Pages as Markdown: tables that read well as text, means with their spread."""

from ellarepro.tables.markdown import markdown_table, mean_cell, sections


def test_a_table_is_padded_and_numbers_are_aligned_to_the_right():
    text = markdown_table([["layer", "nats"], ["CONV", "1.25"], ["F-FC+CONV", "10.5"]], labels=1)
    assert text.splitlines() == [
        "| layer     | nats |",
        "| --------- | ---: |",
        "| CONV      | 1.25 |",
        "| F-FC+CONV | 10.5 |",
    ]


def test_a_page_leaves_out_what_is_empty():
    assert sections("# Title", "", " text\n") == "# Title\n\ntext\n"


def test_the_spread_is_of_the_sample_and_has_no_sign():
    assert mean_cell([1.0, 2.0, 6.0], "+.2f") == "+3.00 ± 2.65"  # of the population: 2.16
    assert mean_cell([-1.5], "+.1f") == "-1.5"


def test_no_value_is_said_as_asked():
    assert mean_cell([], ".1f") == ""
    assert mean_cell([], ".1f", "not run") == "not run"
