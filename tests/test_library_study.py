"""The study of networks of one's own runs, at a size of seconds, and its page holds what it promises."""

import re

import torch

from scripts.library_study import Budget, main

TINY = Budget(images=40, test_images=20, epochs=6, compared_images=20, exact_images=20, rounds=1)


def table(page: str, heading: str, key: int = 1) -> dict[str, list[str]]:
    """Rows of the first table below the heading, by the cell in column `key`."""
    lines = page.partition(f"## {heading}")[2].split("\n| ", 1)[1].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {" ".join(row[:key]): row[key:] for row in rows}


def test_the_page_of_the_study(tmp_path, capsys):
    threads = torch.get_num_threads()
    main(TINY, tmp_path / "library.md")
    torch.set_num_threads(threads)
    page = (tmp_path / "library.md").read_text()
    assert capsys.readouterr().out.strip() == page.strip()
    for cells in table(page, "Learned").values():
        learned, fixed = float(cells[-2]), float(cells[-1])
        assert learned < fixed, "learned precisions have the larger evidence"
    blocks = table(page, "Blocks")
    for kind in ("GroupNorm", "LayerNorm", "BatchNorm2d", "every bias"):
        assert blocks[kind][1:3] == ["1.00", "0.00"]
    assert {"Embedding", "Linear, shared positions", "Conv1d 4", "Conv2d 3x3, depthwise"} <= set(blocks)
    change = {fit: abs(float(cells[-1])) for fit, cells in table(page, "A fit beside", key=2).items()}
    assert max(change["ResNet asdl"], change["ResNet curvlinops"], change["transformer curvlinops"]) < 1e-3
    assert change["transformer asdl"] > 0.1, "asdl: an input factor for each position where a mean is meant"
    assert re.search(r"learned noise:\n0\.\d+", page)
