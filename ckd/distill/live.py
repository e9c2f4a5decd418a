"""What people see of a running epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def losses(row: Mapping[str, Any]) -> str:
    """The loss and its parts, of a log row."""
    kd = f", KL {row['kd']:.4f}" if "kd" in row else ""
    return f"loss {row['loss']:.4f} (CE {row['ce']:.4f}{kd})"


def dropped(row: Mapping[str, Any]) -> str:
    """How often each teacher was dropped; nothing where none was."""
    shares = {name.removeprefix("dropped_"): share for name, share in row.items() if name.startswith("dropped_")}
    found = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share)
    return f"dropped {found}" if found else ""


def stage(row: Mapping[str, Any]) -> str:
    """The curriculum's stage."""
    return f"stage {row['stage']}" if row["stage"] else "full"


def speed(row: Mapping[str, Any]) -> str:
    """Instances per second, and the share of the time that was spent waiting for batches and scores."""
    return f"{row['instances_per_second']:,.0f} inst/s, waiting {row['waiting_share']:.1%}"


def note(row: Mapping[str, Any]) -> str:
    """A log row in a line that fits beside a progress bar, for an epoch that is under way."""
    parts = [f"epoch {row['epoch']} {stage(row)}", losses(row), dropped(row), speed(row)]
    return " · ".join(part for part in parts if part)
