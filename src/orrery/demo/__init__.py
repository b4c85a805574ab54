# SPDX-License-Identifier: AGPL-3.0-or-later
"""The demonstration: a small guest built from Debian's packages, and the script behind `make run`."""
