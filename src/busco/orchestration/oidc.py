"""OpenID Connect logins: reads a user's identity and groups from the provider's token."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride

log = logging.getLogger(__name__)


class OidcSecurityManager(FabAirflowSecurityManagerOverride):
    """Airflow's security manager for any OpenID Connect provider (webserver_config.py)."""

    def get_oauth_user_info(self, provider: str, resp: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the attributes that Flask-AppBuilder needs for a user who has just logged in.

        Args:
            resp: the provider's token response; Authlib has already verified its ID token.
        """
        claims = resp.get("userinfo") or self.oauth_remotes[provider].userinfo(token=resp)
        return user_info(claims, os.environ.get("OAUTH_ROLES_CLAIM", "groups"))

    def auth_user_oauth(self, userinfo: Mapping[str, Any]) -> Any:
        """Returns the Airflow user, who is created at the first login.

        Returns None if OAUTH_DEFAULT_ROLE is unset and OAUTH_ROLES maps none of the user's groups to a role.
        """
        if not os.environ.get("OAUTH_DEFAULT_ROLE") and not self.get_roles_from_keys(userinfo["role_keys"]):
            log.warning("login refused user=%s: none of the user's groups is in OAUTH_ROLES", userinfo["username"])
            return None
        return super().auth_user_oauth(userinfo)  # type: ignore[no-untyped-call]


def user_info(claims: Mapping[str, Any], groups: str) -> dict[str, Any]:
    """Converts an ID token's claims to user attributes (OpenID Connect Core 1.0, section 5.1).

    The username is the subject (`sub`), which the provider never assigns to another person.

    Args:
        groups: the name of the claim that contains the user's groups, as a list or as a single name.
    """
    member_of = claims.get(groups) or []
    name = str(claims.get("name") or claims.get("preferred_username") or claims["sub"])
    first, _, last = name.partition(" ")
    return {
        "username": str(claims["sub"]),
        "first_name": str(claims.get("given_name") or first),
        "last_name": str(claims.get("family_name") or last),
        # Airflow requires each user to have a unique e-mail address
        "email": str(claims.get("email") or claims["sub"]),
        "role_keys": [member_of] if isinstance(member_of, str) else [str(group) for group in member_of],
    }
