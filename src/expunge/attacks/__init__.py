"""Attempts to bring forgotten knowledge back, each measured beside vanilla and gold."""

from expunge.attacks.base import Attack, Candidate, Context
from expunge.attacks.run import attack_run
from expunge.attacks.table import ATTACKS

__all__ = ["ATTACKS", "Attack", "Candidate", "Context", "attack_run"]
