"""What an audit cannot do, in one sentence."""

from __future__ import annotations


class AuditError(ValueError):
    """A machine that cannot be measured, a record that cannot be read, or a budget that fails."""
