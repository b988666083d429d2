"""A dataset of public layers of a made-up device, ingested and fitted once."""

from __future__ import annotations

import pytest
from public_layers import SHAPES, Fitted, public_table, write_public
from typer.testing import CliRunner

from costprof.cli.main import app


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Ingest three of the four shapes and fit them, by the command line."""
    folder = tmp_path_factory.mktemp("layers")
    found = Fitted(
        write_public(folder / "known.parquet", public_table(SHAPES[:3])),
        write_public(folder / "new.parquet", public_table(SHAPES[3:])),
        folder / "dataset",
        folder / "table.parquet",
    )
    runner = CliRunner()
    for command in (
        ["ingest", "--format", "aiconfigurator", str(found.source), "--out", str(found.dataset)],
        ["fit", str(found.dataset), "--out", str(found.table)],
    ):
        done = runner.invoke(app, command)
        assert done.exit_code == 0, done.output
    return found
