"""Logins by OpenID Connect: who a person is and which groups he has, from the provider's token."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride

log = logging.getLogger(__name__)


class OidcSecurityManager(FabAirflowSecurityManagerOverride):
    """Airflow's own security manager, for any provider that speaks OpenID Connect (webserver_config.py)."""

    def get_oauth_user_info(self, provider: str, resp: Mapping[str, Any]) -> dict[str, Any]:
        """What Flask-AppBuilder wants to know of a person who has logged in.

        Args:
            resp: the provider's answer to the code; its ID token was checked by Authlib already.
        """
        claims = resp.get("userinfo") or self.oauth_remotes[provider].userinfo(token=resp)
        return user_info(claims, os.environ.get("OAUTH_ROLES_CLAIM", "groups"))

    def auth_user_oauth(self, userinfo: Mapping[str, Any]) -> Any:
        """The user whom a person is, made at the first login; None for whoever has no group that OAUTH_ROLES names,
        unless OAUTH_DEFAULT_ROLE says which role everybody has."""
        if not os.environ.get("OAUTH_DEFAULT_ROLE") and not self.get_roles_from_keys(userinfo["role_keys"]):
            log.warning("login refused user=%s: no group of OAUTH_ROLES", userinfo["username"])
            return None
        return super().auth_user_oauth(userinfo)  # type: ignore[no-untyped-call]


def user_info(claims: Mapping[str, Any], groups: str) -> dict[str, Any]:
    """A person by the claims of an ID token (OpenID Connect Core 1.0, section 5.1).

    The user's name is what the provider never gives to another person: its subject.

    Args:
        groups: the claim that has the person's groups: a list, or one of them.
    """
    said = claims.get(groups) or []
    name = str(claims.get("name") or claims.get("preferred_username") or claims["sub"])
    first, _, last = name.partition(" ")
    return {
        "username": str(claims["sub"]),
        "first_name": str(claims.get("given_name") or first),
        "last_name": str(claims.get("family_name") or last),
        # Airflow wants one that no other user has
        "email": str(claims.get("email") or claims["sub"]),
        "role_keys": [said] if isinstance(said, str) else [str(one) for one in said],
    }
