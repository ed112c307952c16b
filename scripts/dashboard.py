"""Build the project's dashboard in Weights & Biases: what the tables show, evidence, precisions, shares and use.

`python -m scripts.dashboard TEAM` saves a new view of the team's project by W&B's own library; `--dry-run FILE` writes
what it would send, and needs no account.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ellarepro.errors import UserError, command
from ellarepro.layers.tensors import EVERYWHERE
from ellarepro.network import CHANNELS, PATHS
from ellarepro.resume.files import write_json
from ellarepro.symmetry.labels import path_colour, path_title

NAME = "Learned layer-wise equivariances"
COLUMNS = (
    *(f"config:{group}.name" for group in ("budget", "dataset", "layer", "prior", "objective")),
    *("config:seed", "summary:test/accuracy", "summary:test/nll", "summary:marglik/neg_log_marglik_per_datum"),
    *("summary:parameters", "summary:wall_seconds"),
)
"""Of the list of runs: what Tables 1 to 3 tell cells apart by, and what they show."""
TRAINING = {
    "evidence": ("marglik/neg_log_marglik_per_datum", "nats a datum, negative"),
    "training NLL": ("train/nll", "nats a datum"),
    "training accuracy": ("train/accuracy", "fraction of 1"),
}
BY_LAYER = {
    "Precision (of factors their product)": ("precision", True),
    "Relative effective number of parameters (%)": ("relative", False),
    "Share of the layer's effective number (%)": ("share", False),
}
"""Section to its measure, and whether its axis is logarithmic."""


@command("dashboard")
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 with one message for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m scripts.dashboard", description=__doc__.partition(":")[0])
    parser.add_argument("entity", metavar="TEAM", help="the team or user that the project belongs to")
    parser.add_argument("--project", default="ellarepro")
    parser.add_argument("--dry-run", type=Path, metavar="FILE", help="write the view as JSON, send nothing")
    asked = parser.parse_args(arguments)
    view = workspace(asked.entity, asked.project)
    if asked.dry_run:
        write_json(asked.dry_run, sent(view), indent=1, sort_keys=True)
        print(asked.dry_run)
    else:
        view.save()
    return 0


def workspace(entity: str, project: str) -> Any:
    """Return the view, as W&B's library has it.

    Raises:
        UserError: that library is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as views
    except ImportError as error:
        raise UserError("the package wandb-workspaces is missing: pip install wandb-workspaces") from error
    sections = [
        views.Section(name="Training", is_open=True, panels=[_curve(panels, *item) for item in TRAINING.items()]),
        *(views.Section(name=name, panels=_by_layer(panels, *how), is_open=True) for name, how in BY_LAYER.items()),
        views.Section(name="What a path is used for, at the end of a run", panels=_use(panels)),
        views.Section(name="Figures", panels=[panels.MediaBrowser(media_keys=["effective_parameters"])]),
    ]
    return views.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=views.WorkspaceSettings(x_axis="epoch"),
        runset_settings=views.RunsetSettings(pinned_columns=list(COLUMNS)),
    )


def sent(view: Any) -> dict[str, Any]:
    """What saving `view` sends, less the random names that are drawn at each call."""

    def settled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: settled(value) for key, value in node.items() if key not in ("__id__", "id")}
        return [settled(value) for value in node] if isinstance(node, list) else node

    return settled(view._to_model().model_dump(mode="json", by_alias=True, exclude_none=True))


def _curve(panels: Any, title: str, what: tuple[str, str]) -> Any:
    metric, unit = what
    return panels.LinePlot(title=title, x="epoch", y=[metric], title_y=unit)


def _by_layer(panels: Any, measure: str, log: bool) -> list[Any]:
    """One panel a layer, a line a path in the colours of the figures."""
    return [
        panels.LinePlot(title=f"layer {layer}", x="epoch", y=list(lines), log_y=log, **_named(lines))
        for layer in range(1, len(CHANNELS) + 1)
        if (lines := {f"{measure}/{layer}/{path}": path for path in PATHS})
    ]


def _named(lines: dict[str, str]) -> dict[str, Any]:
    return {
        "line_titles": {metric: path_title(path) for metric, path in lines.items()},
        "line_colors": {metric: path_colour(path) for metric, path in lines.items()},
    }


def _use(panels: Any) -> list[Any]:
    layers = [EVERYWHERE, *map(str, range(1, len(CHANNELS) + 1))]
    return [
        panels.BarPlot(
            title=f"change of test NLL without it, layer {layer} (nats a datum)",
            metrics=[panels.SummaryMetric(f"nll_change/{layer}/{path}") for path in PATHS],
        )
        for layer in layers
    ]


if __name__ == "__main__":
    sys.exit(main())
