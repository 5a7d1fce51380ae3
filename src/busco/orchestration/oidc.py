"""Logins by OpenID Connect: who a person is and which groups he has, from the provider's token."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride


class OidcSecurityManager(FabAirflowSecurityManagerOverride):
    """Airflow's own security manager, for any provider that speaks OpenID Connect (config/webserver_config.py)."""

    def get_oauth_user_info(self, provider: str, resp: Mapping[str, Any]) -> dict[str, Any]:
        """What Flask-AppBuilder wants to know of a person who has logged in.

        Args:
            resp: the provider's answer to the code; its ID token was checked by Authlib already.
        """
        claims = resp.get("userinfo") or self.oauth_remotes[provider].userinfo(token=resp)
        return user_info(claims, os.environ.get("OAUTH_ROLES_CLAIM", "groups"))


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
