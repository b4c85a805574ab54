# SPDX-License-Identifier: AGPL-3.0-or-later
"""As whom a request acts. The type itself is pure and belongs to the model."""

from orrery.model.identity import ROOT, Identity, UserId

__all__ = ["LOCAL_ROOT", "NOBODY", "Identity"]

LOCAL_ROOT = Identity(ROOT)
"""root@pam, as root on this host is."""

NOBODY = Identity(UserId("nobody", "none"))
"""Who has not logged in; the realm `none` can never exist, so nothing can be granted to it."""
