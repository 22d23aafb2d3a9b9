"""The error of every program here that its user can put right."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right; the message is one line."""
