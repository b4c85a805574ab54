# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where images come from: a module for each kind of source. What they read is hostile until its digest was verified."""
