# SPDX-License-Identifier: AGPL-3.0-or-later
"""System containers: LXC, its configuration, its processes and what is inside."""
