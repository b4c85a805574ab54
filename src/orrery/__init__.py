# SPDX-License-Identifier: AGPL-3.0-or-later
"""Orrery: virtual machines and containers on one server or many, as one system."""

__version__ = "0.1.0"
