"""Configures logins and request filtering for Airflow's webserver, which loads this file as its `webserver_config.py`.

Sets only what differs from Flask-AppBuilder's defaults, according to these environment variables:

AIRFLOW_LOGIN           `password` (the default), or `oauth` for the OpenID Connect provider below
OAUTH_ISSUER            the provider's issuer URL, https://…; it must serve <issuer>/.well-known/openid-configuration
OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET
OAUTH_NAME              the label of the login button (default: OpenID)
OAUTH_ROLES_CLAIM       the claim that contains a user's groups (default: groups)
OAUTH_ROLES             JSON that maps groups to lists of roles: {"data-oncall": ["OnCall"], "data-admins": ["Admin"]}
OAUTH_DEFAULT_ROLE      a role for every user of the provider (Viewer, for example); if unset, only users in a group in
                        OAUTH_ROLES can log in
OAUTH_SCOPES            the scopes to request in addition to `openid email profile` (default: groups)
BUSCO_WEB_HOSTS         additional host names under which browsers reach the webserver
"""

from __future__ import annotations

import json
import os

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from flask import current_app
from flask_appbuilder.const import AUTH_DB, AUTH_OAUTH

from busco.errors import BuscoError
from busco.orchestration.access import admin, login_kind, refuse_known
from busco.orchestration.guard import protect

WTF_CSRF_ENABLED = True
SECURITY_MANAGER_CLASS: type[FabAirflowSecurityManagerOverride]

if login_kind() == "oauth":
    from busco.orchestration.oidc import OidcSecurityManager

    AUTH_TYPE = AUTH_OAUTH
    SECURITY_MANAGER_CLASS = OidcSecurityManager
    AUTH_USER_REGISTRATION = True
    # Public has no permissions, so without a default role, users have only the roles of their groups
    AUTH_USER_REGISTRATION_ROLE = os.environ.get("OAUTH_DEFAULT_ROLE") or "Public"
    # roles are reset from the provider's groups at each login, so a manually assigned role lasts only until then
    AUTH_ROLES_SYNC_AT_LOGIN = True
    AUTH_ROLES_MAPPING = json.loads(os.environ.get("OAUTH_ROLES") or "{}")
    if not AUTH_ROLES_MAPPING and not os.environ.get("OAUTH_DEFAULT_ROLE"):
        raise BuscoError(
            "AIRFLOW_LOGIN is oauth, but neither OAUTH_ROLES nor OAUTH_DEFAULT_ROLE is set: nobody could log in",
            'set OAUTH_ROLES to the roles of your groups: {"data-admins": ["Admin"]}',
        )
    OAUTH_PROVIDERS = [
        {
            "name": os.environ.get("OAUTH_NAME", "OpenID"),
            "icon": "fa-key",
            "token_key": "access_token",
            "remote_app": {
                "client_id": os.environ["OAUTH_CLIENT_ID"],
                "client_secret": os.environ["OAUTH_CLIENT_SECRET"],
                "server_metadata_url": f"{os.environ['OAUTH_ISSUER'].rstrip('/')}/.well-known/openid-configuration",
                "client_kwargs": {"scope": "openid email profile " + os.environ.get("OAUTH_SCOPES", "groups")},
            },
        }
    ]
else:
    from busco.orchestration.passwords import PasswordSecurityManager

    AUTH_TYPE = AUTH_DB
    SECURITY_MANAGER_CLASS = PasswordSecurityManager
    refuse_known(admin()[1])

# Airflow loads this file within an app context, so that it can configure the app
protect(current_app)
